//! Cloud firewalls: rules, and the instances that they are for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::account::{Account, check_tags};
use crate::clock::api_time;
use crate::instance::Instance;
use crate::interface::default_of;
use crate::reply::Refusal;
use crate::resources::check_label;

/// How many rules a firewall has, inbound and outbound together.
const RULES_MAX: usize = 25;

/// How many addresses a rule has, of both families together.
const ADDRESSES_MAX: usize = 255;

/// How many pieces the ports of a rule have.
const PORTS_MAX: usize = 15;

/// One firewall.
#[derive(Clone, Debug)]
pub(crate) struct Firewall {
    id: u64,
    label: String,
    tags: Vec<String>,
    status: String,
    /// As the API shows them, with version and fingerprint.
    pub(crate) rules: Value,
    created_ms: u64,
    /// The id of each device, by its instance or interface.
    devices: BTreeMap<u64, u64>,
}

impl Firewall {
    /// Returns whether it is for this instance or interface.
    pub(crate) fn covers(&self, id: u64) -> bool {
        self.devices.contains_key(&id)
    }

    pub(crate) fn show(&self, account: &Account) -> Value {
        let living = self.devices.keys().filter_map(|it| entity(account, *it));
        let entities: Vec<Value> = living.collect();
        json!({
            "id": self.id, "label": self.label, "created": api_time(self.created_ms),
            "updated": api_time(self.created_ms), "status": self.status, "rules": self.rules,
            "tags": self.tags, "entities": entities,
        })
    }
}

/// Returns what a firewall is for, as the API shows it; nothing where it is gone.
fn entity(account: &Account, id: u64) -> Option<Value> {
    let of = |it: &Instance| {
        json!({"id": it.id, "type": "linode", "label": it.label,
            "url": format!("/v4/linode/instances/{}", it.id), "parent_entity": null})
    };
    if let Some(instance) = account.instances.get(&id) {
        return Some(of(instance));
    }
    let parent = account.instance_with(id)?;
    let url = format!("/v4/linode/instances/{}/interfaces/{id}", parent.id);
    Some(
        json!({"id": id, "type": "linode_interface", "label": null, "url": url,
        "parent_entity": of(parent)}),
    )
}

/// Says in the API's own words that the firewalls of an instance are those of its interfaces.
fn of_interfaces(verb: &str) -> Refusal {
    let why = match verb {
        "list" => {
            "Linode is using Linode Interfaces. Please list Cloud Firewall(s) on each interface, \
             instead of directly on the Linode"
        }
        _ => {
            "Linode is using Linode Interfaces. Please apply Cloud Firewall to the interfaces of \
             the Linode instead of directly to the Linode."
        }
    };
    Refusal::of(400, None, why)
}

impl Account {
    pub(crate) fn firewall(&mut self, id: u64) -> Result<&mut Firewall, Refusal> {
        let firewalls = &mut self.resources.firewalls;
        firewalls.get_mut(&id).ok_or_else(Refusal::not_found)
    }

    pub(crate) fn create_firewall(&mut self, body: &Value) -> Result<Value, Refusal> {
        let mut wrong = Vec::new();
        if body["label"].is_null() {
            wrong.push(("label", "label is required".into()));
        }
        check_label(body, (3, 32), &mut wrong);
        let label = body["label"].as_str().unwrap_or_default().to_owned();
        if self
            .resources
            .firewalls
            .values()
            .any(|it| it.label == label)
        {
            wrong.push(("label", "Label must be unique".into()));
        }
        let tags = check_tags(body, &mut wrong).unwrap_or_default();
        let rules = checked_rules(&body["rules"], 1, &mut wrong);
        Refusal::of_fields(wrong)?;
        let linodes = body["devices"]["linodes"].as_array().into_iter().flatten();
        let linodes: Vec<u64> = linodes.filter_map(Value::as_u64).collect();
        for linode in &linodes {
            self.instance(*linode)?;
        }
        let id = self.fresh_id();
        let firewall = Firewall {
            id,
            label: label.clone(),
            tags,
            status: "enabled".into(),
            rules,
            created_ms: self.clock.now_ms(),
            devices: BTreeMap::new(),
        };
        self.resources.firewalls.insert(id, firewall);
        self.stats.firewalls_created += 1;
        for linode in linodes {
            self.attach_firewall(id, linode)?;
        }
        self.note("firewall_create", "firewall", id, &label);
        let firewall = self.firewall(id)?.clone();
        Ok(firewall.show(self))
    }

    pub(crate) fn update_firewall(&mut self, id: u64, body: &Value) -> Result<Value, Refusal> {
        self.firewall(id)?;
        let mut wrong = Vec::new();
        check_label(body, (3, 32), &mut wrong);
        if let Some(label) = body["label"].as_str() {
            let mut others = self.resources.firewalls.values().filter(|it| it.id != id);
            if others.any(|it| it.label == label) {
                wrong.push(("label", "Label must be unique".into()));
            }
        }
        let tags = check_tags(body, &mut wrong);
        Refusal::of_fields(wrong)?;
        let firewall = self.firewall(id)?;
        if let Some(label) = body["label"].as_str() {
            firewall.label = label.into();
        }
        if let Some(status) = body["status"].as_str() {
            firewall.status = status.into();
        }
        if let Some(tags) = tags {
            firewall.tags = tags;
        }
        let firewall = firewall.clone();
        self.note("firewall_update", "firewall", id, &firewall.label);
        Ok(firewall.show(self))
    }

    pub(crate) fn set_rules(&mut self, id: u64, body: &Value) -> Result<Value, Refusal> {
        let version = self.firewall(id)?.rules["version"].as_u64().unwrap_or(0) + 1;
        let mut wrong = Vec::new();
        let rules = checked_rules(body, version, &mut wrong);
        Refusal::of_fields(wrong)?;
        self.firewall(id)?.rules = rules.clone();
        let label = self.firewall(id)?.label.clone();
        self.note("firewall_update", "firewall", id, &label);
        Ok(rules)
    }

    pub(crate) fn delete_firewall(&mut self, id: u64) -> Result<Value, Refusal> {
        let label = self.firewall(id)?.label.clone();
        let defaults = ["linode", "public_interface", "vpc_interface"];
        if defaults
            .iter()
            .any(|it| self.network.default_firewall(it) == Some(id))
        {
            // The words are a guess.
            let why = "A default firewall cannot be deleted";
            return Err(Refusal::of(400, None, why));
        }
        self.resources.firewalls.remove(&id);
        for instance in self.instances.values_mut() {
            instance.firewalls.retain(|it| *it != id);
        }
        self.note("firewall_delete", "firewall", id, &label);
        Ok(json!({}))
    }

    pub(crate) fn devices_of(&mut self, id: u64) -> Result<Vec<Value>, Refusal> {
        let devices = self.firewall(id)?.devices.clone();
        let created = api_time(self.firewall(id)?.created_ms);
        let living = devices.iter().filter_map(|(of, device)| {
            let entity = entity(self, *of)?;
            Some(json!({"id": device, "created": created, "updated": created, "entity": entity}))
        });
        Ok(living.collect())
    }

    pub(crate) fn add_device(&mut self, id: u64, body: &Value) -> Result<Value, Refusal> {
        self.firewall(id)?;
        let of = body["id"].as_u64().unwrap_or_default();
        let known = match body["type"].as_str() {
            Some("linode") => match self.instances.get(&of) {
                Some(it) if it.has_linode_interfaces() => return Err(of_interfaces("apply")),
                found => found.is_some(),
            },
            Some("linode_interface") => match self.instance_with(of) {
                Some(instance) => {
                    let ids = |it: &&Value| it["id"].as_u64() == Some(of);
                    let found = instance.interfaces.iter().find(ids);
                    found.is_some_and(|it| default_of(it).is_some())
                }
                None => false,
            },
            _ => false,
        };
        if !known {
            return Err(Refusal::of(400, Some("id"), "id is not valid"));
        }
        let all = self.resources.firewalls.values();
        if all
            .clone()
            .any(|it| it.covers(of) && it.status == "enabled")
        {
            // The words are a guess: one enabled firewall for each service is not.
            let why = "This service is already assigned to a firewall";
            return Err(Refusal::of(400, None, why));
        }
        self.attach_firewall(id, of)?;
        let device = self.firewall(id)?.devices.get(&of).copied();
        let shown = self.devices_of(id)?;
        let shown = shown.into_iter().find(|it| it["id"].as_u64() == device);
        shown.ok_or_else(Refusal::not_found)
    }

    pub(crate) fn remove_device(&mut self, id: u64, device: u64) -> Result<Value, Refusal> {
        let devices = &mut self.firewall(id)?.devices;
        let linode = devices.iter().find(|it| *it.1 == device).map(|it| *it.0);
        let linode = linode.ok_or_else(Refusal::not_found)?;
        devices.remove(&linode);
        if let Ok(instance) = self.instance(linode) {
            instance.firewalls.retain(|it| *it != id);
        }
        self.note("firewall_device_remove", "firewall", id, "");
        Ok(json!({}))
    }

    /// Puts an instance, or an interface, under a firewall.
    pub(crate) fn attach_firewall(&mut self, id: u64, of: u64) -> Result<(), Refusal> {
        let device = self.fresh_id();
        self.firewall(id)?.devices.insert(of, device);
        if let Ok(instance) = self.instance(of)
            && !instance.firewalls.contains(&id)
        {
            instance.firewalls.push(id);
        }
        self.note("firewall_device_add", "firewall", id, "");
        Ok(())
    }

    /// Takes something that is gone from under every firewall.
    pub(crate) fn detach_all(&mut self, of: u64) {
        for firewall in self.resources.firewalls.values_mut() {
            firewall.devices.remove(&of);
        }
    }

    /// Returns what an instance's firewalls are, whole.
    pub(crate) fn firewalls_of(&mut self, linode: u64) -> Result<Vec<Value>, Refusal> {
        let instance = self.instance(linode)?;
        if instance.has_linode_interfaces() {
            return Err(of_interfaces("list"));
        }
        let ids = instance.firewalls.clone();
        let found = ids.iter().filter_map(|id| self.resources.firewalls.get(id));
        Ok(found.map(|it| it.show(self)).collect())
    }

    pub(crate) fn set_firewalls(&mut self, linode: u64, body: &Value) -> Result<(), Refusal> {
        if self.instance(linode)?.has_linode_interfaces() {
            return Err(of_interfaces("apply"));
        }
        let asked = body["firewall_ids"].as_array().into_iter().flatten();
        let asked: Vec<u64> = asked.filter_map(Value::as_u64).collect();
        let has_unknown = asked
            .iter()
            .any(|id| !self.resources.firewalls.contains_key(id));
        if has_unknown {
            return Err(Refusal::of(
                400,
                Some("firewall_ids"),
                "firewall_ids is not valid",
            ));
        }
        let had = std::mem::take(&mut self.instance(linode)?.firewalls);
        for id in had.iter().filter(|id| !asked.contains(id)) {
            if let Ok(firewall) = self.firewall(*id) {
                firewall.devices.remove(&linode);
            }
        }
        for id in asked {
            self.attach_firewall(id, linode)?;
        }
        Ok(())
    }

    /// Puts a new instance under the firewall that its create asks for.
    pub(crate) fn first_firewall(&mut self, linode: u64, body: &Value) -> Result<(), Refusal> {
        let mut firewalls: Vec<u64> = asked_firewalls(body);
        if firewalls.is_empty() && body["firewall_id"].is_null() {
            firewalls.extend(self.network.default_firewall("linode"));
        }
        for id in firewalls {
            self.attach_firewall(id, linode)?;
        }
        Ok(())
    }
}

/// Returns the firewalls that a create names, for the instance or for one of its interfaces.
pub(crate) fn asked_firewalls(body: &Value) -> Vec<u64> {
    let interfaces = body["interfaces"].as_array().into_iter().flatten();
    let mut asked: Vec<u64> = interfaces
        .chain([body])
        .filter_map(|it| it["firewall_id"].as_u64())
        .collect();
    asked.sort_unstable();
    asked.dedup();
    asked
}

/// Returns rules as the API shows them, and what is wrong with them.
fn checked_rules(body: &Value, version: u64, wrong: &mut Vec<(&'static str, String)>) -> Value {
    let of = |name: &str| body[name].as_array().cloned().unwrap_or_default();
    let (inbound, outbound) = (of("inbound"), of("outbound"));
    if inbound.len() + outbound.len() > RULES_MAX {
        wrong.push(("rules", "A firewall may have at most 25 rules".into()));
    }
    for name in ["inbound_policy", "outbound_policy"] {
        let policy = body[name].as_str().unwrap_or_default();
        if !["ACCEPT", "DROP"].contains(&policy) {
            wrong.push(("rules", format!("{name} must be one of ACCEPT, DROP")));
        }
    }
    for rule in inbound.iter().chain(&outbound) {
        if let Err(why) = check_rule(rule) {
            wrong.push(("rules", why));
        }
    }
    let mut hash: u32 = 2_166_136_261;
    for byte in json!([inbound, outbound]).to_string().bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    }
    json!({"inbound": inbound, "inbound_policy": body["inbound_policy"], "outbound": outbound,
        "outbound_policy": body["outbound_policy"], "version": version,
        "fingerprint": format!("{hash:08x}")})
}

fn check_rule(rule: &Value) -> Result<(), String> {
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let protocol = text("protocol");
    if !["TCP", "UDP", "ICMP", "IPENCAP"].contains(&protocol) {
        return Err("protocol must be one of TCP, UDP, ICMP, IPENCAP".into());
    }
    if !["ACCEPT", "DROP"].contains(&text("action")) {
        return Err("action must be one of ACCEPT, DROP".into());
    }
    if !rule["label"].is_null() && !(3..=32).contains(&text("label").len()) {
        return Err("label: Length must be 3-32 characters".into());
    }
    let has_ports = rule["ports"].as_str().is_some_and(|it| !it.is_empty());
    if has_ports && !["TCP", "UDP"].contains(&protocol) {
        return Err(format!("Ports are not allowed for {protocol} protocol."));
    }
    let pieces = text("ports").split(',').map(str::trim);
    let is_port = |it: &str| it.parse::<u16>().is_ok_and(|port| port > 0);
    let right = |piece: &str| match piece.split_once('-') {
        Some((from, to)) => is_port(from) && is_port(to),
        None => is_port(piece),
    };
    if has_ports && (pieces.clone().count() > PORTS_MAX || !pieces.clone().all(right)) {
        return Err("ports is not valid".into());
    }
    let mut count = 0;
    for (family, bits) in [("ipv4", 32), ("ipv6", 128)] {
        let Some(addresses) = rule["addresses"][family].as_array() else {
            continue;
        };
        if addresses.is_empty() {
            return Err(format!("addresses.{family} must not be an empty list"));
        }
        count += addresses.len();
        for address in addresses.iter().filter_map(Value::as_str) {
            let is_right = address.split_once('/').is_some_and(|(ip, mask)| {
                let is_family = ip
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.is_ipv4() == (bits == 32));
                is_family && mask.parse::<u32>().is_ok_and(|mask| mask <= bits)
            });
            if !is_right {
                return Err(format!("{address} is not in IP/mask format"));
            }
        }
    }
    match count {
        0 => Err("addresses must have ipv4, ipv6, or both".into()),
        count if count > ADDRESSES_MAX => Err("A rule may have at most 255 addresses".into()),
        _ => Ok(()),
    }
}
