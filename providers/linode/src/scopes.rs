//! What a token must be allowed for what is planned: its scopes, and the grants of its user.

use std::collections::BTreeSet;

use gobs_model::{Block, Change, Value};
use gobs_provider::{Error, Intended};
use serde_json::Value as Json;

use crate::api::Fail;
use crate::interfaces::LINODE;
use crate::machine::Machines;
use crate::schema;

/// What every change of a machine needs: its end is told by an event.
const ALWAYS: [&str; 2] = ["linodes:read_write", "events:read_only"];

/// What a machine needs beside that, by the block that it has. What it only names needs none of
/// its own: an image, a subnet, a user's keys, a placement group.
const BLOCKS: [(&str, &str); 3] = [
    ("firewall", "firewall:read_write"),
    ("dns", "domains:read_write"),
    ("volume", "volumes:read_write"),
];

/// What the identifiers of an account's own images begin with.
const PRIVATE_IMAGE: &str = "private/";

impl Machines {
    /// Returns what the token lacks; nothing where the API does not tell what it has.
    pub(crate) async fn lacking(&self, plan: &[Intended]) -> Result<Vec<String>, Error> {
        let granted = self.granted().await?;
        let mut lacking = Vec::new();
        if let Some(held) = self.api.scopes() {
            let needed = scopes(plan).filter(|scope| !allows(&held, scope));
            lacking.extend(needed.map(|scope| format!("scope {scope}")));
        }
        if let Some(granted) = granted {
            lacking.extend(ungranted(granted, plan));
        }
        Ok(lacking)
    }

    /// Returns what the token's user was granted, where that is a restricted one and the API
    /// tells; asked once, since any token may.
    async fn granted(&self) -> Result<Option<&Json>, Error> {
        let ask = async || {
            let profile = match self.api.get("/profile").await {
                Ok(profile) => profile,
                // What the token is for was said all the same.
                Err(Fail::Refused(_) | Fail::Gone) => return Ok(None),
                Err(_) if self.api.scopes().is_some_and(|it| !it.is_empty()) => return Ok(None),
                Err(fail) => return Err(fail.into()),
            };
            // Whoever is not restricted has no grants, and is refused the question.
            if profile["restricted"] != true {
                return Ok(None);
            }
            match self.api.get("/profile/grants").await {
                Ok(granted) => Ok(Some(granted).filter(Json::is_object)),
                Err(Fail::Refused(_) | Fail::Gone | Fail::Denied(_)) => Ok(None),
                Err(fail) => Err(fail.into()),
            }
        };
        let granted = self.api.granted.get_or_try_init(ask).await;
        granted.map(Option::as_ref)
    }
}

/// Returns the scopes that a plan needs.
fn scopes(plan: &[Intended]) -> impl Iterator<Item = &'static str> {
    let blocks = BLOCKS.iter();
    let needs = |one: &Intended, block: &str| {
        touches(one, block) || block == "firewall" && covers_otherwise(one)
    };
    let blocks = blocks.filter(move |(block, _)| plan.iter().any(|one| needs(one, block)));
    ALWAYS.into_iter().chain(blocks.map(|(_, scope)| *scope))
}

/// Returns whether something is done to the blocks of this name.
fn touches(one: &Intended, block: &str) -> bool {
    let is_end = one.after.is_null();
    if block == "volume" && is_end {
        // A machine that ends lets go of its volumes by itself.
        let volumes = one.before.get(block).and_then(Value::as_entries);
        let mut volumes = volumes.into_iter().flatten();
        return volumes.any(|(_, it)| it.get("delete").and_then(Value::as_bool) == Some(true));
    }
    has(&one.before, block) || has(&one.after, block)
}

/// Returns whether interfaces of a machine's own come under another firewall, or under none: those
/// are the firewall's devices, where a machine with a profile has a list of firewalls.
fn covers_otherwise(one: &Intended) -> bool {
    let is_own = one
        .before
        .get("interface_generation")
        .and_then(Value::as_str)
        == Some(LINODE);
    let of = |machine: &Value| machine.get("firewall_id").cloned().unwrap_or(Value::NULL);
    is_own && !one.anew && !one.after.is_null() && !of(&one.before).same(&of(&one.after))
}

/// Returns whether a machine has such a block, or may have one.
fn has(machine: &Value, block: &str) -> bool {
    machine.get(block).is_some_and(|it| {
        let is_empty = it.as_elements().is_some_and(<[_]>::is_empty)
            || it.as_entries().is_some_and(|it| it.is_empty());
        !it.is_null() && !is_empty
    })
}

/// Returns whether scopes, apart by spaces or commas, allow what one of them would.
fn allows(held: &str, needed: &str) -> bool {
    let (area, needs) = needed.split_once(':').unwrap_or((needed, ""));
    let mut held = held.split([' ', ',']).filter(|it| !it.is_empty());
    held.any(|scope| match scope.split_once(':') {
        None => scope == "*",
        Some((of, may)) => {
            (of == area || of == "*") && (may == needs || may == "read_write" || may == "*")
        }
    })
}

/// Returns the grants that a plan needs of a restricted user, and that this one has not.
fn ungranted(granted: &Json, plan: &[Intended]) -> BTreeSet<String> {
    let mut user = User {
        granted,
        lacking: BTreeSet::new(),
    };
    let attributes = schema::machine();
    plan.iter().for_each(|one| user.needs(one, &attributes));
    user.lacking
}

/// A restricted user.
struct User<'a> {
    granted: &'a Json,
    lacking: BTreeSet<String>,
}

impl User<'_> {
    fn needs(&mut self, one: &Intended, schema: &Block) {
        let (before, after) = (&one.before, &one.after);
        if one.anew {
            self.add("add_linodes");
        }
        if let Some(id) = id_of(before) {
            self.one("linode", &id, true);
        }
        let writes_disk = one.anew || !after.is_null() && rebuilds(schema, before, after);
        if writes_disk || !after.is_null() && differs(before, after, "tags") {
            self.tag();
        }
        let image = after.get("image").and_then(Value::as_str);
        if let Some(id) = image.and_then(|it| it.strip_prefix(PRIVATE_IMAGE))
            && writes_disk
        {
            self.one("image", id, false);
        }
        // A firewall goes with its machine; a volume stays.
        let had = before.get("firewall").and_then(id_of);
        match had.as_deref() {
            Some(id) => self.one("firewall", id, true),
            None if has(before, "firewall") => {}
            None if has(after, "firewall") => self.add("add_firewalls"),
            None => {}
        }
        if one.anew && had.is_some() && has(after, "firewall") {
            self.add("add_firewalls");
        }
        if touches(one, "volume") {
            self.volumes(before, after);
        }
        for machine in [before, after] {
            for record in machine
                .get("dns")
                .and_then(Value::as_elements)
                .into_iter()
                .flatten()
            {
                if let Some(domain) = record.get("domain").and_then(Value::as_str) {
                    self.one("domain", domain, true);
                }
            }
        }
    }

    fn volumes(&mut self, before: &Value, after: &Value) {
        let entries = |of: &Value| of.get("volume").and_then(Value::as_entries).cloned();
        let had = entries(before).unwrap_or_default();
        for id in had.values().filter_map(id_of) {
            self.one("volume", &id, true);
        }
        let asked = entries(after).unwrap_or_default();
        if asked.keys().any(|label| !had.contains_key(label)) {
            self.add("add_volumes");
            self.tag();
        }
    }

    /// Needs a grant for the whole account.
    fn add(&mut self, name: &str) {
        if self.granted["global"][name] != true {
            self.lacks(&format!("grant {name}"));
        }
    }

    /// Needs to set tags, by which gobs finds what it has made: the API lets nobody do that who
    /// may not write to the account.
    fn tag(&mut self) {
        if self.granted["global"]["account_access"] != "read_write" {
            self.lacks("grant account_access read_write, which setting tags takes");
        }
    }

    /// Needs a grant for one thing, by its identifier or its label.
    fn one(&mut self, kind: &str, which: &str, writes: bool) {
        let is_it = |it: &&Json| match it["id"].as_u64() {
            Some(id) if id.to_string() == which => true,
            _ => it["label"] == which,
        };
        let mut all = self.granted[kind].as_array().into_iter().flatten();
        let may = all.find(is_it).and_then(|it| it["permissions"].as_str());
        let needs = if writes { "read_write" } else { "read_only" };
        if may != Some("read_write") && may != Some(needs) {
            self.lacks(&format!("grant {needs} for {kind} {which}"));
        }
    }

    fn lacks(&mut self, grant: &str) {
        self.lacking
            .insert(format!("{grant} (its user is restricted)"));
    }
}

/// Returns the identifier of a machine, or of what a block stands for.
fn id_of(of: &Value) -> Option<String> {
    let id = of.get("id")?;
    let number = || id.as_i64().map(|it| it.to_string());
    id.as_str().map(str::to_owned).or_else(number)
}

/// Returns whether the disk is written anew.
fn rebuilds(schema: &Block, before: &Value, after: &Value) -> bool {
    let attributes = schema.attributes.iter();
    let mut rebuilding = attributes.filter(|(_, it)| it.change == Change::Rebuild);
    rebuilding.any(|(name, _)| differs(before, after, name))
}

/// Returns whether something is asked for that is not so.
fn differs(before: &Value, after: &Value, name: &str) -> bool {
    let asked = after.get(name).filter(|it| !it.is_null());
    asked.is_some_and(|asked| before.get(name).is_none_or(|was| !was.same(asked)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_scope_to_write_is_one_to_read_and_not_the_other_way() {
        for (held, needed, expected) in [
            ("*", "linodes:read_write", true),
            (
                "linodes:read_write events:read_only",
                "events:read_only",
                true,
            ),
            ("events:read_write", "events:read_only", true),
            ("linodes:read_only", "linodes:read_write", false),
            (
                "images:read_write,linodes:read_write",
                "linodes:read_write",
                true,
            ),
            ("", "events:read_only", false),
        ] {
            assert_eq!(allows(held, needed), expected, "{held} for {needed}");
        }
    }

    /// Returns a value of what stands in plain JSON.
    fn value(json: Json) -> Value {
        match json {
            Json::Object(entries) => {
                Value::object(entries.into_iter().map(|(name, it)| (name, value(it))))
            }
            Json::Array(elements) => Value::list(elements.into_iter().map(value)),
            plain => Value::from_json(plain).expect("a plain value"),
        }
    }

    fn intended(before: Json, after: Json, anew: bool) -> Intended {
        let (before, after) = (value(before), value(after));
        Intended {
            before,
            after,
            anew,
        }
    }

    #[test]
    fn scopes_are_those_of_what_is_touched() {
        let check = |one: Intended, expected: &[&str]| {
            let more: Vec<&str> = scopes(&[one]).skip(ALWAYS.len()).collect();
            assert_eq!(more, expected);
        };
        let (db, none) = (json!({"id": "7"}), Json::Null);
        check(intended(none.clone(), json!({"type": "x"}), true), &[]);
        let walled = json!({"id": "7", "firewall": {"id": "1"}, "volume": {}});
        check(
            intended(walled.clone(), none.clone(), false),
            &["firewall:read_write"],
        );
        check(
            intended(walled, db.clone(), false),
            &["firewall:read_write"],
        );
        // What stays is let go of by itself, what is destroyed is not.
        let volume = |delete: bool| json!({"id": "7", "volume": {"a": {"delete": delete}}});
        check(intended(volume(false), none.clone(), false), &[]);
        check(
            intended(volume(true), none.clone(), false),
            &["volumes:read_write"],
        );
        check(intended(volume(false), db, false), &["volumes:read_write"]);
        let under = |generation: &str, id: i64| json!({"id": "7", "interface_generation": generation, "firewall_id": id});
        let other = |of: &str| intended(under(of, 1), under(of, 2), false);
        check(other("linode"), &["firewall:read_write"]);
        check(other("legacy_config"), &[]);
        let named = json!({"dns": [{"domain": "example.net"}]});
        check(intended(none, named, true), &["domains:read_write"]);
    }

    #[test]
    fn grants_are_those_of_what_a_restricted_user_is_to_do() {
        let check = |granted: Json, one: Intended, expected: &[&str]| {
            let lacking: Vec<String> = ungranted(&granted, &[one]).into_iter().collect();
            let lacking: Vec<&str> = lacking
                .iter()
                .map(|it| it.trim_end_matches(" (its user is restricted)"))
                .collect();
            assert_eq!(lacking, expected);
        };
        let tags = "grant account_access read_write, which setting tags takes";
        let new = json!({"image": "private/12", "firewall": {"label": "x"}});
        let create = || intended(Json::Null, new.clone(), true);
        let all = [
            "grant add_firewalls",
            "grant add_linodes",
            "grant read_only for image 12",
        ];
        check(json!({}), create(), &[&[tags][..], &all].concat());
        let granted = json!({"image": [{"id": 12, "permissions": "read_only"}],
            "global": {"add_linodes": true, "add_firewalls": true,
                "account_access": "read_write"}});
        check(granted.clone(), create(), &[]);

        let was = json!({"id": "7", "image": "private/12", "type": "small",
            "volume": {"data": {"id": "3"}}, "dns": [{"domain": "example.net"}]});
        let end = intended(was.clone(), Json::Null, false);
        let both = [
            "grant read_write for domain example.net",
            "grant read_write for linode 7",
        ];
        check(granted, end, &both);
        let granted = json!({"linode": [{"id": 7, "permissions": "read_write"}],
            "domain": [{"id": 9, "label": "example.net", "permissions": "read_write"}],
            "volume": [{"id": 3, "permissions": "read_only"}]});
        let mut larger = was.clone();
        larger["type"] = "large".into();
        let volume = "grant read_write for volume 3";
        check(
            granted.clone(),
            intended(was.clone(), larger.clone(), false),
            &[volume],
        );
        larger["volume"]["more"] = json!({"size": 10});
        let more = [tags, "grant add_volumes", volume];
        check(granted, intended(was, larger, false), &more);
    }
}
