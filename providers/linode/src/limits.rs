//! What cannot be, by the rules of interfaces and the settings of the account: said when a
//! machine is planned.

use gobs_model::Value;
use gobs_provider::{Error, Objection, Proposal};

use crate::blocks::{elements, text};
use crate::disks::of_swap;
use crate::interfaces::{LEGACY, LINODE, generation_by};
use crate::machine::Machines;
use crate::observe::is_same_region;

/// How many Linode interfaces a machine has.
const INTERFACES_MAX: usize = 3;

/// What lets a machine have interfaces of the other generation.
const BY_SETTING: &str = "take interface_generation out, or let the account make such machines: \
                          interfaces_for_new_linodes in its settings";

impl Machines {
    /// Returns why a machine cannot be as it is wanted; what is not known yet is no reason.
    pub(crate) async fn objections(&self, proposal: &Proposal) -> Result<Vec<Objection>, Error> {
        let mut found = self.objections_to_volumes(proposal).await?;
        let of_network = self.objections_to_network(&proposal.wanted, proposal.is_new);
        found.extend(of_network.await?);
        found.extend(of_swap(proposal));
        found.extend(of_migration(proposal));
        found.extend(of_rules(&proposal.wanted));
        found.extend(self.objections_to_words(proposal).await);
        Ok(found)
    }

    async fn objections_to_network(
        &self,
        wanted: &Value,
        is_new: bool,
    ) -> Result<Vec<Objection>, Error> {
        let declared = wanted.get("interface_generation");
        let setting = match is_new {
            true => self.defaults().await?.interfaces.as_deref(),
            false => None,
        };
        let by_account = setting.map(generation_by);
        let generation = match declared {
            Some(it) if it.contains_unknown() => return Ok(Vec::new()),
            Some(it) => it.as_str().or(by_account),
            None => by_account,
        };
        let mut found = Vec::new();
        let forbidden = match (declared.and_then(Value::as_str), setting) {
            (Some(LINODE), Some("legacy_config_only")) => Some("of configuration profiles"),
            (Some(LEGACY), Some("linode_only")) => Some("of the Linode's own"),
            _ => None,
        };
        if let Some(only) = forbidden {
            let why = format!("the account makes new machines with interfaces {only} only");
            found.push(Objection::new("interface_generation", why, BY_SETTING));
        }
        if generation == Some(LINODE) {
            let can_be_legacy = is_new && setting != Some("linode_only");
            found.extend(of_linode_interfaces(wanted, can_be_legacy));
        }
        Ok(found)
    }
}

/// Returns why a machine cannot move to another region: a VPC is of one.
fn of_migration(proposal: &Proposal) -> Option<Objection> {
    let before = proposal.before.as_ref().filter(|_| !proposal.is_new)?;
    let was = before.attributes.get("region").and_then(Value::as_str)?;
    let region = text(&proposal.wanted, "region")?;
    let is_in_vpc = |it: &Value| text(it, "purpose") == Some("vpc");
    let stays = is_same_region(was, region)
        || !elements(&before.attributes, "interface")
            .iter()
            .any(is_in_vpc);
    (!stays).then(|| {
        let why = format!("its interface in a VPC keeps it in {was}");
        let hint = "take that interface out and apply, then change the region";
        Objection::new("region", why, hint)
    })
}

/// Returns why a firewall cannot have the rules that are declared.
fn of_rules(wanted: &Value) -> Vec<Objection> {
    let mut found = Vec::new();
    let firewall = wanted.get("firewall").unwrap_or(&Value::NULL);
    let of = |name: &str| {
        firewall
            .get(name)
            .and_then(Value::as_elements)
            .unwrap_or_default()
    };
    for (kind, rules) in ["inbound", "outbound"].map(|it| (it, of(it))) {
        for (at, rule) in rules.iter().enumerate() {
            let is_set = |name: &str| {
                let value = rule.get(name).filter(|it| !it.is_null());
                value.is_some_and(|it| it.as_elements().is_none_or(|all| !all.is_empty()))
            };
            let mut object = |why: String, hint: &str| {
                let message = format!("{kind} rule {} {why}", at + 1);
                found.push(Objection::new("firewall", message, hint));
            };
            if !is_set("ipv4") && !is_set("ipv6") {
                let hint = "for everybody: ipv4 = [\"0.0.0.0/0\"] and ipv6 = [\"::/0\"]";
                object("is about no address".into(), hint);
            }
            let protocol = text(rule, "protocol").unwrap_or("TCP");
            if is_set("ports") && ["ICMP", "IPENCAP"].contains(&protocol) {
                object(
                    format!("is about {protocol}, which has no ports"),
                    "take ports out",
                );
            }
        }
    }
    found
}

/// Returns why a machine with Linode interfaces cannot be as it is wanted.
fn of_linode_interfaces(wanted: &Value, can_be_legacy: bool) -> Vec<Objection> {
    let mut found = Vec::new();
    if wanted.get("private_ip").and_then(Value::as_bool) == Some(true) {
        let why = "a machine with Linode interfaces, as this one gets, has no private address";
        let mut hint = "use an interface in a VPC or a VLAN instead".to_owned();
        if can_be_legacy {
            hint += ", or set interface_generation = \"legacy_config\"";
        }
        found.push(Objection::new("private_ip", why.into(), &hint));
    }
    let interfaces = wanted.get("interface").and_then(Value::as_elements);
    let interfaces = interfaces.unwrap_or_default();
    let mut object = |why: &str, hint: &str| {
        found.push(Objection::new("interface", why.into(), hint));
    };
    if interfaces.len() > INTERFACES_MAX {
        object("a machine has up to three interfaces", "take one out");
    }
    let purposes: Vec<_> = interfaces.iter().map(|it| text(it, "purpose")).collect();
    for purpose in ["public", "vpc"] {
        if purposes.iter().filter(|it| **it == Some(purpose)).count() > 1 {
            let why = format!("a machine has one {purpose} interface at most");
            object(&why, "take one out");
        }
    }
    for (at, interface) in interfaces.iter().enumerate() {
        let label = text(interface, "label");
        match purposes[at] {
            Some("vlan") => {
                let mut before = interfaces[..at].iter();
                if before
                    .any(|it| text(it, "purpose") == Some("vlan") && text(it, "label") == label)
                {
                    object("two interfaces lead to the same VLAN", "take one out");
                }
                if interface.get("primary").and_then(Value::as_bool) == Some(true) {
                    let why = "the default route goes through no VLAN";
                    object(
                        why,
                        "set primary on the public interface, or on that of the VPC",
                    );
                }
            }
            Some("vpc") if interface.get("subnet_id").is_none_or(Value::is_null) => {
                object("an interface in a VPC needs subnet_id", "set subnet_id");
            }
            Some("public" | "vpc") | None => {}
            Some(other) => {
                let why = format!("{other:?} is not the purpose of an interface");
                object(&why, "it is public, vlan or vpc");
            }
        }
    }
    let has_firewall = ["firewall", "firewall_id"]
        .iter()
        .any(|it| wanted.get(it).is_some_and(|it| !it.is_null()));
    if has_firewall && !purposes.is_empty() && purposes.iter().all(|it| *it == Some("vlan")) {
        let why = "its interfaces lead to VLANs only, and those are under no firewall";
        object(
            why,
            "take the firewall out, or add an interface that leads elsewhere",
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linode_interfaces_cannot_be_is_said() {
        let interface = |purpose: &str, label: &str| {
            Value::object([("purpose", purpose.into()), ("label", Value::from(label))])
        };
        let check = |interfaces: Vec<Value>, more: (&'static str, Value), expected: &[&str]| {
            let wanted = Value::object([("interface", Value::list(interfaces)), more]);
            let found = of_linode_interfaces(&wanted, true);
            let found: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
            assert_eq!(found, expected);
        };
        let nothing = || ("booted", Value::NULL);
        let vlan = || interface("vlan", "inner");
        let public = || interface("public", "");
        check(vec![public(), vlan()], nothing(), &[]);
        check(vec![], ("firewall_id", 1.into()), &[]);
        check(
            vec![vlan(), vlan()],
            ("firewall_id", 1.into()),
            &[
                "two interfaces lead to the same VLAN",
                "its interfaces lead to VLANs only, and those are under no firewall",
            ],
        );
        let four = vec![public(), public(), vlan(), interface("lan", "")];
        check(
            four,
            ("private_ip", true.into()),
            &[
                "a machine with Linode interfaces, as this one gets, has no private address",
                "a machine has up to three interfaces",
                "a machine has one public interface at most",
                "\"lan\" is not the purpose of an interface",
            ],
        );
        check(
            vec![interface("vpc", "")],
            nothing(),
            &["an interface in a VPC needs subnet_id"],
        );
    }
}
