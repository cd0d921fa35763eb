//! What a restricted user of the account may do.

use serde_json::{Value, json};

/// The grants of a restricted user, as `GET /profile/grants` shows them. What it makes itself, it
/// may write to. Reading is not limited here.
#[derive(Clone, Debug)]
pub(crate) struct Grants(Value);

/// The collections whose members are granted one by one: where they are, by which name their
/// grants go, and the grant to add one.
const KINDS: [(&[&str], &str, &str); 5] = [
    (&["linode", "instances"], "linode", "add_linodes"),
    (&["networking", "firewalls"], "firewall", "add_firewalls"),
    (&["volumes"], "volume", "add_volumes"),
    (&["domains"], "domain", "add_domains"),
    (
        &["placement", "groups"],
        "placement_group",
        "add_placement_groups",
    ),
];

impl Grants {
    pub(crate) fn new(grants: Value) -> Self {
        Self(grants)
    }

    pub(crate) fn show(&self) -> Value {
        self.0.clone()
    }

    /// Returns whether the user may ask this.
    pub(crate) fn allow(&self, method: &str, parts: &[&str], body: &Value) -> bool {
        let account = self.0["global"]["account_access"].as_str();
        if method == "GET" {
            return parts.first() != Some(&"account")
                || parts.get(1) == Some(&"events")
                || account.is_some();
        }
        let has_tags = body["tags"].as_array().is_some_and(|it| !it.is_empty());
        if has_tags && account != Some("read_write") {
            return false;
        }
        let Some((kind, add, rest)) = kind_of(parts) else {
            return account == Some("read_write");
        };
        let Some(id) = rest.first() else {
            return self.0["global"][add] == true;
        };
        let image = body["image"].as_str();
        if let Some(image) = image.and_then(|it| it.strip_prefix("private/"))
            && self.may("image", image).is_none()
        {
            return false;
        }
        self.may(kind, id) == Some("read_write")
    }

    /// Grants the user what it has just made.
    pub(crate) fn note(&mut self, method: &str, parts: &[&str], made: &Value) {
        let Some((kind, _, [])) = kind_of(parts).filter(|_| method == "POST") else {
            return;
        };
        let grant = json!({"id": made["id"], "label": made["label"], "permissions": "read_write"});
        match self.0[kind].as_array_mut() {
            Some(all) => all.push(grant),
            None => self.0[kind] = json!([grant]),
        }
    }

    fn may(&self, kind: &str, id: &str) -> Option<&str> {
        let id = id.parse::<u64>().ok()?;
        let mut all = self.0[kind].as_array().into_iter().flatten();
        all.find(|it| it["id"].as_u64() == Some(id))?["permissions"].as_str()
    }
}

/// Returns of which kind a path is, which grant adds one, and what of the path is left.
fn kind_of<'a>(parts: &'a [&'a str]) -> Option<(&'static str, &'static str, &'a [&'a str])> {
    KINDS.iter().find_map(|(path, kind, add)| {
        let rest = parts.strip_prefix(*path)?;
        Some((*kind, *add, rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restricted_user_does_what_it_was_granted_and_no_more() {
        let mut grants = Grants::new(json!({"global": {"add_linodes": true},
            "linode": [{"id": 7, "permissions": "read_only"}]}));
        let check = |grants: &Grants, method: &str, path: &str, body: Value, expected: bool| {
            let parts: Vec<&str> = path.split('/').collect();
            assert_eq!(
                grants.allow(method, &parts, &body),
                expected,
                "{method} {path}"
            );
        };
        let instances = "linode/instances";
        check(&grants, "POST", instances, json!({"label": "x"}), true);
        check(&grants, "POST", instances, json!({"tags": ["x"]}), false);
        check(&grants, "POST", "volumes", json!({}), false);
        check(&grants, "GET", "linode/instances/7", Value::Null, true);
        check(&grants, "GET", "account/settings", Value::Null, false);
        check(&grants, "GET", "account/events", Value::Null, true);
        check(&grants, "POST", "linode/instances/7/boot", json!({}), false);
        check(&grants, "DELETE", "linode/instances/8", Value::Null, false);
        grants.note("POST", &["linode", "instances"], &json!({"id": 8}));
        check(&grants, "DELETE", "linode/instances/8", Value::Null, true);
    }
}
