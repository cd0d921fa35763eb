//! The firewall of a machine: it is there before the machine, and goes before it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gobs_model::{Known, Number, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};

use crate::api::Fail;
use crate::blocks::{Owner, about, is_doubted, label_of, text, with};
use crate::interfaces::has_linode_interfaces;
use crate::machine::Machines;
use crate::marks::Mark;
use crate::observe::json_of;
use crate::pace::Class;

/// What marks a firewall as a machine's.
pub(crate) const MARK: &str = "gobs-firewall:";

/// How long a label of a firewall may be.
const LABEL_CHARS_MAX: usize = 32;

/// What the labels of the rules begin with that let in whom the machine's hob serves.
const ADMITS: &str = "gobs-hob-";

/// How many addresses a rule has.
const ADDRESSES_MAX: usize = 255;

/// How many rules a firewall has.
const RULES_MAX: usize = 25;

impl Machines {
    /// Makes a machine's firewall as it is asked for, whether or not the machine is there yet.
    /// Returns its identifier; nothing where the machine is to have none of its own.
    pub(crate) async fn ensure_firewall(&self, owner: &Owner<'_>) -> Result<Option<u64>, Error> {
        let Some(asked) = owner.wanted.get("firewall").filter(|it| !it.is_null()) else {
            return Ok(None);
        };
        if json_of(owner.wanted, "firewall_id").is_some() {
            return Err(rejected(
                "a machine is under one firewall: set firewall_id, or a firewall block".into(),
            ));
        }
        let rules = rules(asked)?;
        let mark = owner.mark.thing(MARK, "");
        let doubted = owner.doubts(owner.seen.get("firewall"));
        let label = label_of(owner.address, "", &mark, LABEL_CHARS_MAX);
        let label = text(asked, "label").map_or(label, str::to_owned);
        let body = json!({"label": label, "rules": rules, "tags": [mark]});
        let path = "/networking/firewalls";
        let sought = (&*mark, doubted);
        let found = self.api.ensure(path, Class::Other, sought, &body).await;
        let found = found.map_err(|error| match error {
            Error::Rejected { message, .. } => rejected(message),
            other => other,
        })?;
        let Some(id) = found["id"].as_u64() else {
            return Err(Error::InDoubt(
                "Linode answered with a firewall without an id".into(),
            ));
        };
        if !is_as_asked(&found["rules"], &rules) {
            let done = self.api.put(&format!("{path}/{id}/rules"), &rules).await;
            done.map_err(|fail| about("firewall", fail))?;
        }
        let is_named = text(asked, "label").is_none_or(|it| found["label"] == it);
        if !is_named || found["status"] != "enabled" {
            let change = match is_named {
                true => json!({"status": "enabled"}),
                false => json!({"status": "enabled", "label": label}),
            };
            let done = self.api.put(&format!("{path}/{id}"), &change).await;
            done.map_err(|fail| about("firewall", fail))?;
        }
        Ok(Some(id))
    }

    /// Puts a machine under its firewall, or takes away the one that it is not to have any more.
    pub(crate) async fn firewall(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<Value, Error> {
        let asked = owner.wanted.get("firewall").cloned().unwrap_or(Value::NULL);
        let own = self.ensure_firewall(owner).await?;
        let was = |name: &str| owner.was.get(name).is_some_and(|it| !it.is_null());
        let given = json_of(owner.wanted, "firewall_id")
            .as_ref()
            .and_then(Json::as_u64);
        if own.is_some() || was("firewall") || was("firewall_id") || given.is_some() {
            self.cover(owner, own.or(given), progress).await?;
        }
        match own {
            Some(id) => Ok(with(&asked, [("id", id.to_string().into())])),
            None => {
                if was("firewall") {
                    self.remove_firewall(owner).await?;
                }
                Ok(Value::NULL)
            }
        }
    }

    /// Puts a machine under one firewall, and from under any other.
    async fn cover(
        &self,
        owner: &Owner<'_>,
        wanted: Option<u64>,
        progress: &Progress,
    ) -> Result<(), Error> {
        if has_linode_interfaces(owner.instance) {
            return self.cover_interfaces(owner.id, wanted, progress).await;
        }
        let path = format!("/linode/instances/{}/firewalls", owner.id);
        let seen = self.api.list(&path, None).await?;
        let seen: Vec<u64> = seen.iter().filter_map(|it| it["id"].as_u64()).collect();
        let wanted: Vec<u64> = wanted.into_iter().collect();
        if seen != wanted {
            progress("changes its firewall".into());
            let done = self.api.put(&path, &json!({"firewall_ids": wanted})).await;
            done.map_err(|fail| about("firewall", fail))?;
        }
        Ok(())
    }

    /// Takes a machine's own firewall away.
    pub(crate) async fn remove_firewall(&self, owner: &Owner<'_>) -> Result<(), Error> {
        match self.doomed_firewall(owner.seen, Some(&owner.mark)).await? {
            Some(path) => self.remove_at(&path).await,
            None => Ok(()),
        }
    }

    /// Takes away the firewall at a path.
    pub(crate) async fn remove_at(&self, path: &str) -> Result<(), Error> {
        let done = self.api.remove(path).await;
        done.map_err(|fail| about("firewall", fail))
    }

    async fn firewall_of(&self, mark: &Mark, doubted: bool) -> Result<Option<String>, Fail> {
        let (path, mark) = ("/networking/firewalls", mark.thing(MARK, ""));
        let found = self.api.sought(path, &mark, doubted).await?;
        Ok(found.map(|it| format!("{path}/{}", it["id"])))
    }

    /// Returns the path of the firewall that goes with a machine: the one that it was seen to
    /// have, or the one with its mark.
    pub(crate) async fn doomed_firewall(
        &self,
        last: &Known,
        mark: Option<&Mark>,
    ) -> Result<Option<String>, Error> {
        let seen = last.get("firewall");
        let id = seen.and_then(|it| text(it, "id"));
        match (id.and_then(|it| it.parse::<u64>().ok()), mark) {
            (Some(id), _) => Ok(Some(format!("/networking/firewalls/{id}"))),
            (None, Some(mark)) => Ok(self.firewall_of(mark, seen.is_some_and(is_doubted)).await?),
            (None, None) => Ok(None),
        }
    }

    /// Takes away the firewall that was made for a machine which was not.
    pub(crate) async fn abandon_firewall(&self, mark: &Mark) -> Result<(), Error> {
        let Some(path) = self.firewall_of(mark, true).await? else {
            return Ok(());
        };
        let devices = self.api.list(&format!("{path}/devices"), None).await;
        match devices {
            // Something else is under it by now.
            Ok(devices) if !devices.is_empty() => Ok(()),
            Ok(_) => self.remove_at(&path).await,
            Err(Fail::Gone) => Ok(()),
            Err(fail) => Err(fail.into()),
        }
    }

    /// Returns the machine's own firewall, where it had one and all of it is under that.
    pub(crate) async fn observe_firewall(
        &self,
        instance: &Json,
        set: &Known,
    ) -> Result<Value, Error> {
        let Some(last) = set.get("firewall").filter(|it| !it.is_null()) else {
            return Ok(Value::NULL);
        };
        let is_own = |it: &Json| {
            let tags = it["tags"].as_array().into_iter().flatten();
            let is_marked = tags
                .filter_map(Json::as_str)
                .any(|tag| tag.starts_with(MARK));
            is_marked && it["status"] == "enabled"
        };
        let id = instance["id"].to_string();
        let under = match has_linode_interfaces(instance) {
            true => self.firewalls_by_interface(&id).await?,
            false => {
                let path = format!("/linode/instances/{id}/firewalls");
                vec![self.firewalls_at(&path).await?]
            }
        };
        let own = under.iter().map(|all| all.iter().find(|it| is_own(it)));
        let own: Option<Vec<&Json>> = own.collect();
        let own = own.as_deref().and_then(<[&Json]>::first);
        Ok(match own {
            Some(own) => shown(own, last),
            // It may be there, and the machine not yet under it.
            None if is_doubted(last) => last.clone(),
            None => Value::NULL,
        })
    }

    /// Returns the firewalls of a machine, or of one of its interfaces; none where it is gone.
    pub(crate) async fn firewalls_at(&self, path: &str) -> Result<Vec<Json>, Error> {
        match self.api.list(path, None).await {
            Err(Fail::Gone) => Ok(Vec::new()),
            other => Ok(other?),
        }
    }
}

/// Returns a firewall as the contract has it.
fn shown(firewall: &Json, last: &Value) -> Value {
    let text = |it: &Json| it.as_str().map_or(Value::NULL, Value::from);
    let of = |name: &str| {
        firewall["rules"][name]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let is_ours = |rule: &Json| {
        rule["label"]
            .as_str()
            .is_some_and(|label| label.starts_with(ADMITS))
    };
    let own = |rules: Vec<Json>| {
        let theirs = rules.into_iter().filter(|rule| !is_ours(rule));
        Value::list(theirs.map(|rule| shown_rule(&rule)))
    };
    let inbound = of("inbound");
    let admits = inbound
        .iter()
        .filter(|rule| is_ours(rule))
        .flat_map(shown_admits);
    let admits = Value::set(admits);
    let nobody = admits.as_elements().is_some_and(<[Value]>::is_empty);
    let was_null = last.get("admits").is_none_or(Value::is_null);
    Value::object([
        (
            "derived",
            last.get("derived").cloned().unwrap_or(Value::NULL),
        ),
        // Nobody is let in, whether or not somebody was to be.
        (
            "admits",
            if nobody && was_null {
                Value::NULL
            } else {
                admits
            },
        ),
        ("inbound", own(inbound)),
        ("outbound", own(of("outbound"))),
        ("inbound_policy", text(&firewall["rules"]["inbound_policy"])),
        (
            "outbound_policy",
            text(&firewall["rules"]["outbound_policy"]),
        ),
        ("label", text(&firewall["label"])),
        ("id", firewall["id"].to_string().into()),
    ])
}

fn shown_rule(rule: &Json) -> Value {
    let text = |name: &str| rule[name].as_str().map_or(Value::NULL, Value::from);
    let addresses = |family: &str| match rule["addresses"][family].as_array() {
        Some(all) => Value::list(all.iter().filter_map(Json::as_str).map(Value::from)),
        None => Value::NULL,
    };
    Value::object([
        ("label", text("label")),
        ("action", text("action")),
        ("protocol", text("protocol")),
        ("ports", text("ports")),
        ("description", text("description")),
        ("ipv4", addresses("ipv4")),
        ("ipv6", addresses("ipv6")),
    ])
}

fn shown_admits(rule: &Json) -> Vec<Value> {
    let port = rule["ports"].as_str().and_then(|it| it.parse::<i64>().ok());
    let port = port.map_or(Value::NULL, |it| Number::from(it).into());
    let families = ["ipv4", "ipv6"].map(|family| rule["addresses"][family].as_array());
    let all = families
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(Json::as_str);
    all.map(|network| {
        let address = network.split('/').next().unwrap_or(network);
        Value::object([("address", address.into()), ("port", port.clone())])
    })
    .collect()
}

/// Returns rules as the API takes them: those that are declared, then those that let in whom the
/// machine's hob serves.
fn rules(asked: &Value) -> Result<Json, Error> {
    let of = |name: &str| {
        let rules = asked
            .get(name)
            .and_then(Value::as_elements)
            .unwrap_or_default();
        rules.iter().map(rule).collect::<Vec<Json>>()
    };
    let mut inbound = of("inbound");
    let outbound = of("outbound");
    inbound.extend(admitting(asked.get("admits").unwrap_or(&Value::NULL)));
    if inbound.len() + outbound.len() > RULES_MAX {
        return Err(rejected(format!(
            "it comes to {} rules, with those for the hob, and a firewall has {RULES_MAX}",
            inbound.len() + outbound.len()
        )));
    }
    let policy = |name: &str, default: &str| text(asked, name).unwrap_or(default).to_owned();
    Ok(json!({
        "inbound": inbound, "inbound_policy": policy("inbound_policy", "DROP"),
        "outbound": outbound, "outbound_policy": policy("outbound_policy", "ACCEPT"),
    }))
}

fn rule(asked: &Value) -> Json {
    let mut rule = json!({
        "action": text(asked, "action").unwrap_or("ACCEPT"),
        "protocol": text(asked, "protocol").unwrap_or("TCP"),
    });
    for name in ["label", "ports", "description"] {
        if let Some(text) = text(asked, name) {
            rule[name] = text.into();
        }
    }
    for family in ["ipv4", "ipv6"] {
        let addresses = asked
            .get(family)
            .and_then(Value::as_elements)
            .unwrap_or_default();
        let addresses: Vec<&str> = addresses.iter().filter_map(Value::as_str).collect();
        if !addresses.is_empty() {
            rule["addresses"][family] = json!(addresses);
        }
    }
    rule
}

fn admitting(admits: &Value) -> Vec<Json> {
    let mut by_port: BTreeMap<i64, Vec<IpAddr>> = BTreeMap::new();
    for one in admits.as_elements().unwrap_or_default() {
        let address = text(one, "address").and_then(|it| it.parse().ok());
        let port = one.get("port").and_then(Value::as_i64);
        if let (Some(address), Some(port)) = (address, port) {
            by_port.entry(port).or_default().push(address);
        }
    }
    let mut rules = Vec::new();
    for (port, mut addresses) in by_port {
        addresses.sort_unstable();
        addresses.dedup();
        for some in addresses.chunks(ADDRESSES_MAX) {
            let of = |is_v4: bool, bits: u8| -> Vec<String> {
                let family = some.iter().filter(|it| it.is_ipv4() == is_v4);
                family.map(|it| format!("{it}/{bits}")).collect()
            };
            let mut addresses = json!({});
            for (name, list) in [("ipv4", of(true, 32)), ("ipv6", of(false, 128))] {
                if !list.is_empty() {
                    addresses[name] = json!(list);
                }
            }
            rules.push(json!({
                "label": format!("{ADMITS}{}", rules.len() + 1), "action": "ACCEPT",
                "protocol": "TCP", "ports": port.to_string(), "addresses": addresses,
                "description": "Whom the hob serves; gobs changes this rule by itself.",
            }));
        }
    }
    rules
}

/// Returns whether rules are those that are asked for, whatever else the API says of them.
fn is_as_asked(seen: &Json, asked: &Json) -> bool {
    let plain = |rules: &Json, name: &str| {
        let rules = rules[name].as_array().cloned().unwrap_or_default();
        let rules = rules.iter().map(|rule| {
            let family = |name: &str| {
                let all = rule["addresses"][name].as_array().into_iter().flatten();
                let mut all: Vec<String> = all.map(Json::to_string).collect();
                all.sort();
                all
            };
            let field = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
            let fields = ["label", "action", "protocol", "ports", "description"].map(field);
            (fields, family("ipv4"), family("ipv6"))
        });
        rules.collect::<Vec<_>>()
    };
    ["inbound", "outbound"]
        .iter()
        .all(|it| plain(seen, it) == plain(asked, it))
        && ["inbound_policy", "outbound_policy"]
            .iter()
            .all(|it| seen[*it] == asked[*it])
}

fn rejected(message: String) -> Error {
    Error::Rejected {
        message,
        attribute: Some("firewall".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_the_hob_serves_is_let_in_at_its_port_alone() {
        let one = |address: &str, port: i64| {
            Value::object([("address", address.into()), ("port", Value::from(port))])
        };
        let admits = Value::set([one("192.0.2.2", 7463), one("2001:db8::1", 7463)]);
        let rules = admitting(&admits);
        assert_eq!(rules.len(), 1);
        assert_eq!(
            rules[0]["addresses"],
            json!({"ipv4": ["192.0.2.2/32"],
            "ipv6": ["2001:db8::1/128"]})
        );
        assert_eq!(Value::set(shown_admits(&rules[0])), admits);
        let many = (0..300).map(|at| one(&format!("10.0.{}.{}", at / 250, at % 250), 7463));
        let rules = admitting(&Value::set(many));
        let counts: Vec<usize> = rules
            .iter()
            .map(|it| it["addresses"]["ipv4"].as_array().map_or(0, Vec::len))
            .collect();
        assert_eq!(counts, [255, 45]);
        assert_eq!(admitting(&Value::NULL), Vec::<Json>::new());
    }
}
