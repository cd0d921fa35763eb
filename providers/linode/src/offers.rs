//! What Linode has on offer, and what it takes: said when a machine is planned, before it costs.

use std::collections::BTreeMap;

use gobs_model::{Known, Value};
use gobs_provider::{Error, Objection, Proposal};
use serde_json::Value as Json;

use crate::api::Fail;
use crate::blocks::text;
use crate::machine::Machines;
use crate::observe::shown_region;

/// How long labels, tags and passwords may be.
const LENGTHS: [(&str, std::ops::RangeInclusive<usize>); 3] =
    [("label", 3..=64), ("tags", 3..=50), ("root_pass", 7..=128)];

/// What the names of Linode's own images begin with.
const OWN_IMAGE: &str = "linode/";

/// What was looked up of the catalogue, by path. It is locked while one is asked for, so that
/// machines that are alike ask once.
#[derive(Debug, Default)]
pub(crate) struct Offers(tokio::sync::Mutex<BTreeMap<String, Option<Json>>>);

impl Machines {
    /// Returns what the catalogue has at a path: nothing where there is no such thing; `null`
    /// where that could not be told.
    async fn offer(&self, of: &str, name: &str) -> Option<Json> {
        let is_plain = |it: char| it.is_ascii_alphanumeric() || "-_./".contains(it);
        if !name.chars().all(is_plain) || name.contains("..") {
            return Some(Json::Null);
        }
        // A name is one part of a path, as clients of Linode's own send it.
        let path = format!("/{of}/{}", name.replace('/', "%2F"));
        let mut known = self.offers.0.lock().await;
        if let Some(found) = known.get(&path) {
            return found.clone();
        }
        let found = match self.api.get(&path).await {
            Ok(found) => Some(found),
            Err(Fail::Gone) => None,
            Err(_) => return Some(Json::Null),
        };
        known.insert(path, found.clone());
        found
    }

    /// Returns why Linode would not take what is proposed.
    pub(crate) async fn objections_to_words(&self, proposal: &Proposal) -> Vec<Objection> {
        let (wanted, mut found) = (&proposal.wanted, Vec::new());
        let before = proposal.before.as_ref().filter(|_| !proposal.is_new);
        let changes = |name: &str| {
            let asked = text(wanted, name)?;
            let was = before.and_then(|it| it.attributes.get(name)?.as_str());
            (was != Some(asked)).then_some(asked)
        };
        let kinds = [
            ("region", "regions", "`linode-cli regions list`"),
            ("type", "linode/types", "`linode-cli linodes types`"),
        ];
        for (name, of, lists) in kinds {
            let Some(asked) = changes(name) else { continue };
            if self.offer(of, shown_region(asked)).await.is_none() {
                let why = format!("Linode has no {name} {asked:?}");
                found.push(Objection::new(
                    name,
                    why,
                    &format!("{lists} tells what there is"),
                ));
            }
        }
        if wanted.get("user_data").is_some_and(|it| !it.is_null())
            && (changes("region").is_some() || changes("image").is_some())
            && let Some((name, why)) = self.unread(wanted).await
        {
            let hint = "take user_data out, or choose another one";
            found.push(Objection::new(name, why, hint));
        }
        let had_private = before.and_then(|it| it.attributes.get("private_ip")?.as_bool());
        if had_private == Some(true)
            && wanted.get("private_ip").and_then(Value::as_bool) == Some(false)
        {
            let why = "Linode takes no private address away".into();
            let hint = "take private_ip out, or have Linode's support take the address away";
            found.push(Objection::new("private_ip", why, hint));
        }
        for (name, lengths) in LENGTHS {
            let value = wanted.get(name).unwrap_or(&Value::NULL);
            let one = std::slice::from_ref(value);
            let texts = value.as_elements().unwrap_or(one).iter();
            let mut lengths_of = texts.filter_map(Value::as_str).map(|it| it.chars().count());
            if lengths_of.any(|it| !lengths.contains(&it)) {
                let (least, most) = (lengths.start(), lengths.end());
                let why = format!("{name} has {least} to {most} characters");
                found.push(Objection::new(name, why, "make it longer, or shorter"));
            }
        }
        found
    }

    /// Refuses user data that nothing on the machine would read, before it costs.
    pub(crate) async fn check_user_data(&self, wanted: &Known) -> Result<(), Error> {
        match self.unread(wanted.value()).await {
            None => Ok(()),
            Some((name, message)) => Err(Error::Rejected {
                message,
                attribute: Some(name.into()),
            }),
        }
    }

    /// Returns why user data would not be read, with the attribute that says so.
    async fn unread(&self, wanted: &Value) -> Option<(&'static str, String)> {
        let lacks = |offer: Option<Json>, capability: &str| {
            let offer = offer.unwrap_or_default();
            let all = offer["capabilities"].as_array();
            all.is_some_and(|all| all.iter().all(|it| it != capability))
        };
        if let Some(region) = text(wanted, "region")
            && lacks(
                self.offer("regions", shown_region(region)).await,
                "Metadata",
            )
        {
            let why = format!("the region {region} has no metadata service to get user data from");
            return Some(("region", why));
        }
        // What an image of the account has in it, nobody knows but its owner.
        if let Some(image) = text(wanted, "image").filter(|it| it.starts_with(OWN_IMAGE))
            && lacks(self.offer("images", image).await, "cloud-init")
        {
            let why = format!("the image {image} has no cloud-init, so it reads no user data");
            return Some(("image", why));
        }
        None
    }
}
