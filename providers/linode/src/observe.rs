//! Between the contract's values and the API's JSON.

use gobs_model::{Known, Number, Value};
use gobs_provider::{Error, Observed, Token};
use serde_json::{Map, Value as Json, json};

use crate::marks::{self, MARKED, Mark};

/// What marks a machine as made under a token.
pub(crate) const OWNER: &str = "gobs:";

/// What marks that a machine was rebuilt for a request, and after which event.
pub(crate) const REBUILT: &str = "gobs-rebuild:";

/// What marks that a machine is off for gobs' sake, and is to run again.
pub(crate) const OFF: &str = "gobs-off";

/// Attributes that the API never shows: they are what was set last.
const UNSEEN: [&str; 6] = [
    "user_data",
    "authorized_keys",
    "authorized_users",
    "swap_size",
    "firewall_id",
    "interface",
];

/// Regions by their old names, which the API takes and never shows.
const ALIASES: [(&str, &str); 1] = [("us-south", "us-central")];

/// Returns the tag of a token.
pub(crate) fn owner_tag(token: &Token) -> String {
    format!("{OWNER}{token}")
}

/// Returns the tags of an instance.
pub(crate) fn tags(instance: &Json) -> impl Iterator<Item = &str> {
    let tags = instance["tags"].as_array().into_iter().flatten();
    tags.filter_map(Json::as_str)
}

/// Returns whether a tag is one of ours rather than the user's.
pub(crate) fn is_own(tag: &str) -> bool {
    let own = [OWNER, REBUILT, MARKED];
    own.iter().any(|it| tag.starts_with(it)) || tag == OFF
}

/// Returns the token that an instance carries.
pub(crate) fn token_of(instance: &Json) -> Option<Token> {
    tags(instance)
        .find_map(|tag| tag.strip_prefix(OWNER))
        .map(|text| Token(text.into()))
}

/// Returns whether two names are of one region.
pub(crate) fn is_same_region(a: &str, b: &str) -> bool {
    shown_region(a) == shown_region(b)
}

/// Returns the name of a region that the API shows.
pub(crate) fn shown_region(name: &str) -> &str {
    ALIASES
        .iter()
        .find(|(old, _)| *old == name)
        .map_or(name, |(_, new)| new)
}

/// Returns whether an instance runs, or is about to; nothing while its jobs do not tell.
pub(crate) fn runs(instance: &Json) -> Option<bool> {
    match instance["status"].as_str().unwrap_or_default() {
        "running" | "booting" | "rebooting" => Some(true),
        "offline" | "stopped" | "shutting_down" | "billing_suspension" => Some(false),
        _ => None,
    }
}

/// Returns an instance as the contract has it; what the API does not show comes from `set`.
pub(crate) fn observed(instance: &Json, set: &Known) -> Result<Observed, Error> {
    let Some(id) = instance["id"].as_u64() else {
        return Err(Error::InDoubt(
            "Linode answered with an instance without an id".into(),
        ));
    };
    let text = |json: &Json| json.as_str().map_or(Value::NULL, Value::from);
    let number = |json: &Json| {
        json.as_i64()
            .map_or(Value::NULL, |it| Number::from(it).into())
    };
    let addresses: Vec<&str> = instance["ipv4"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
        .collect();
    let public = addresses.iter().find(|it| !is_private(it)).copied();
    let was_region = set.get("region").and_then(Value::as_str);
    let region = instance["region"].as_str().unwrap_or_default();
    let region = was_region
        .filter(|was| is_same_region(was, region))
        .unwrap_or(region);
    let booted = match (runs(instance), set.get("booted")) {
        (Some(runs), _) => runs.into(),
        (None, Some(was)) => was.clone(),
        (None, None) => Value::NULL,
    };
    let specs = &instance["specs"];
    let mut entries = vec![
        ("id", Value::from(id.to_string())),
        ("region", region.into()),
        ("type", text(&instance["type"])),
        ("image", text(&instance["image"])),
        ("label", text(&instance["label"])),
        (
            "tags",
            Value::set(tags(instance).filter(|it| !is_own(it)).map(Value::from)),
        ),
        (
            "private_ip",
            addresses.iter().any(|it| is_private(it)).into(),
        ),
        ("backups", (instance["backups"]["enabled"] == true).into()),
        ("booted", booted),
        ("disk_encryption", text(&instance["disk_encryption"])),
        ("maintenance_policy", text(&instance["maintenance_policy"])),
        (
            "interface_generation",
            text(&instance["interface_generation"]),
        ),
        (
            "placement_group",
            number(&instance["placement_group"]["id"]),
        ),
        ("address", public.map_or(Value::NULL, Value::from)),
        (
            "ipv4",
            Value::list(addresses.iter().map(|it| Value::from(*it))),
        ),
        ("ipv6", text(&instance["ipv6"])),
        ("status", text(&instance["status"])),
        ("created", text(&instance["created"])),
        ("host_uuid", text(&instance["host_uuid"])),
        ("memory", number(&specs["memory"])),
        ("disk", number(&specs["disk"])),
        ("vcpus", number(&specs["vcpus"])),
        ("gpus", number(&specs["gpus"])),
        ("transfer", number(&specs["transfer"])),
        (
            marks::ATTRIBUTE,
            Mark::on(instance)
                .or_else(|| Mark::seen(set))
                .map_or(Value::NULL, |it| it.value()),
        ),
    ];
    for name in UNSEEN {
        if let Some(value) = set.get(name) {
            entries.push((name, value.clone()));
        }
    }
    let attributes = Known::try_from(Value::object(entries));
    let attributes = attributes.map_err(|error| Error::InDoubt(error.to_string()))?;
    Ok(Observed {
        id: id.to_string(),
        attributes,
    })
}

/// Returns the first public address of each family, without its prefix.
pub(crate) fn public_addresses(instance: &Json) -> [Option<String>; 2] {
    let all = instance["ipv4"].as_array().into_iter().flatten();
    let public = all.filter_map(Json::as_str).find(|it| !is_private(it));
    let v6 = instance["ipv6"]
        .as_str()
        .and_then(|it| it.split('/').next());
    [public.map(str::to_owned), v6.map(str::to_owned)]
}

/// Returns whether an address is one of Linode's private ones.
fn is_private(address: &str) -> bool {
    address.starts_with("192.168.")
}

/// Returns an attribute as JSON; nothing where it is not set.
pub(crate) fn json_of(wanted: &Known, name: &str) -> Option<Json> {
    plain(wanted.get(name)?)
}

fn plain(value: &Value) -> Option<Json> {
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    if let Some(elements) = value.as_elements() {
        return Some(elements.iter().filter_map(plain).collect());
    }
    value
        .as_bool()
        .map(Json::from)
        .or_else(|| value.as_i64().map(Json::from))
}

/// Puts an attribute into a body, under the API's name for it.
pub(crate) fn put(body: &mut Map<String, Json>, wanted: &Known, name: &str, field: &str) {
    if let Some(value) = json_of(wanted, name) {
        body.insert(field.into(), value);
    }
}

/// Returns what a disk is written from, for a create or a rebuild.
pub(crate) fn disk(wanted: &Known, user_data: Option<&str>) -> Map<String, Json> {
    let mut body = Map::new();
    for name in [
        "image",
        "authorized_keys",
        "authorized_users",
        "root_pass",
        "disk_encryption",
    ] {
        put(&mut body, wanted, name, name);
    }
    if let Some(user_data) = user_data {
        body.insert("metadata".into(), json!({"user_data": user_data}));
    }
    body
}
