//! Linode interfaces: they belong to the instance rather than to a configuration profile, and
//! each but those of VLANs is under firewalls of its own.

use serde_json::{Value, json};

use crate::account::Account;
use crate::clock::api_time;
use crate::instance::Instance;
use crate::reply::Refusal;

/// The generation of these interfaces.
pub(crate) const LINODE: &str = "linode";

/// The other one: interfaces of a configuration profile.
const LEGACY: &str = "legacy_config";

/// How many interfaces an instance has.
const INTERFACES_MAX: usize = 3;

/// What an interface may be.
const KINDS: [&str; 3] = ["public", "vpc", "vlan"];

/// What the account allows new instances, and the firewalls that they get if nothing is said.
#[derive(Clone, Debug)]
pub(crate) struct NetworkSettings {
    interfaces_for_new_linodes: String,
    default_firewall_ids: Value,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        let none = json!({"linode": null, "nodebalancer": null, "public_interface": null,
            "vpc_interface": null});
        Self {
            interfaces_for_new_linodes: "legacy_config_default_but_linode_allowed".into(),
            default_firewall_ids: none,
        }
    }
}

impl NetworkSettings {
    /// Returns the generation that a new instance gets; the words of a refusal are a guess, that
    /// there is one is not.
    pub(crate) fn generation(&self, asked: Option<&str>) -> Result<&'static str, String> {
        let setting = self.interfaces_for_new_linodes.as_str();
        match (asked, setting) {
            (Some(LINODE), "legacy_config_only") => {
                Err("Linode interfaces are not allowed on this account".into())
            }
            (Some(LEGACY), "linode_only") => {
                Err("Legacy config interfaces are not allowed on this account".into())
            }
            (Some(LINODE), _) => Ok(LINODE),
            (Some(LEGACY), _) => Ok(LEGACY),
            (Some(_), _) => Err("Must be one of legacy_config, linode".into()),
            (None, "linode_only" | "linode_default_but_legacy_config_allowed") => Ok(LINODE),
            (None, _) => Ok(LEGACY),
        }
    }

    /// Returns the firewall of an interface, or of an instance, for which none is named.
    pub(crate) fn default_firewall(&self, of: &str) -> Option<u64> {
        self.default_firewall_ids[of].as_u64()
    }
}

/// Returns what kind of interface this is.
fn kind_of(interface: &Value) -> Option<&'static str> {
    KINDS.into_iter().find(|it| interface[*it].is_object())
}

/// Returns the setting that names the firewall of an interface for which none is named.
pub(crate) fn default_of(interface: &Value) -> Option<&'static str> {
    match kind_of(interface) {
        Some("public") => Some("public_interface"),
        Some("vpc") => Some("vpc_interface"),
        _ => None,
    }
}

/// Says what is wrong with the interfaces that an instance is to have. The words are a guess, as
/// are those of the other refusals here for which nothing else is said; the rules are not.
pub(crate) fn check(
    interfaces: &[Value],
    settings: &NetworkSettings,
    wrong: &mut Vec<(&'static str, String)>,
) {
    let mut refuse = |why: &str| wrong.push(("interfaces", why.into()));
    if interfaces.len() > INTERFACES_MAX {
        refuse("A Linode can have up to three interfaces");
    }
    for (at, interface) in interfaces.iter().enumerate() {
        let count = KINDS.iter().filter(|it| interface[**it].is_object());
        if !interface["purpose"].is_null() || count.count() != 1 {
            refuse("Interfaces must be of the Linode's interface generation");
            continue;
        }
        let kind = kind_of(interface);
        let same = |it: &&Value| match kind {
            Some("vlan") => it["vlan"]["vlan_label"] == interface["vlan"]["vlan_label"],
            _ => kind_of(it) == kind,
        };
        if interfaces[..at].iter().any(|it| same(&it)) {
            refuse("Only one public, one VPC and one interface for each VLAN is allowed");
        }
        let has_firewall = interface["firewall_id"].is_i64();
        match default_of(interface) {
            None if has_firewall => refuse("A firewall is not allowed for VLAN interfaces"),
            Some(of) if !has_firewall && settings.default_firewall(of).is_none() => {
                refuse("A firewall is required for public and VPC interfaces");
            }
            _ => {}
        }
        if kind == Some("vlan") && interface["default_route"]["ipv4"] == true {
            refuse("VLAN interfaces cannot be the default route");
        }
        if kind == Some("vpc") && !interface["vpc"]["subnet_id"].is_u64() {
            refuse("subnet_id is required");
        }
    }
}

/// Returns an interface as the API shows it.
fn made(asked: &Value, id: u64, now_ms: u64, instance: &Instance) -> Value {
    let mut shown = json!({
        "id": id, "version": 1, "mac_address": format!("22:00:{:02x}:{:02x}:{:02x}:{:02x}",
            id >> 24 & 0xff, id >> 16 & 0xff, id >> 8 & 0xff, id & 0xff),
        "created": api_time(now_ms), "updated": api_time(now_ms), "default_route": {},
        "public": null, "vpc": null, "vlan": null,
    });
    set(&mut shown, asked, instance);
    shown
}

/// Sets what is asked of an interface, and nothing else.
fn set(shown: &mut Value, asked: &Value, instance: &Instance) {
    for family in ["ipv4", "ipv6"] {
        if let Some(route) = asked["default_route"][family].as_bool() {
            shown["default_route"][family] = route.into();
        }
    }
    let public = instance.public_address();
    if asked["public"].is_object() && shown["public"].is_null() {
        shown["public"] = json!({
            "ipv4": {"addresses": [{"address": public, "primary": true}], "shared": []},
            "ipv6": {"ranges": [], "shared": [],
                "slaac": [{"address": instance.slaac(), "prefix": 64}]},
        });
    }
    if asked["vlan"].is_object() {
        shown["vlan"] = asked["vlan"].clone();
    }
    if asked["vpc"].is_object() {
        if shown["vpc"].is_null() {
            shown["vpc"] = json!({"vpc_id": 1, "subnet_id": asked["vpc"]["subnet_id"],
                "ipv4": {"addresses": [{"address": "auto", "primary": true}], "ranges": []},
                "ipv6": {"slaac": [], "ranges": [], "is_public": false}});
        }
        if asked["vpc"]["ipv4"]["addresses"].is_array() {
            shown["vpc"]["ipv4"]["addresses"] = asked["vpc"]["ipv4"]["addresses"].clone();
        }
        let id = shown["id"].as_u64().unwrap_or_default();
        let addresses = shown["vpc"]["ipv4"]["addresses"].as_array_mut();
        for address in addresses.into_iter().flatten() {
            if address["address"] == "auto" {
                address["address"] = format!("10.0.0.{}", id % 250 + 2).into();
            }
            if address["nat_1_1_address"] == "auto" {
                address["nat_1_1_address"] = public.clone().into();
            }
        }
    }
}

/// Sees to it that one interface that can has each default route: the one that was named last,
/// or else the first.
fn settle_routes(interfaces: &mut [Value], named: Option<u64>) {
    for family in ["ipv4", "ipv6"] {
        let can = |it: &Value| match kind_of(it) {
            Some("public") => true,
            Some("vpc") => family == "ipv4",
            _ => false,
        };
        let has = |it: &&Value| it["default_route"][family] == true;
        let named = interfaces.iter().filter(|it| it["id"].as_u64() == named);
        let chosen = named.clone().find(has);
        let chosen = chosen.or_else(|| interfaces.iter().filter(|it| can(it)).find(has));
        let chosen = chosen.or_else(|| interfaces.iter().find(|it| can(it)));
        let chosen = chosen.map(|it| it["id"].clone());
        for interface in interfaces.iter_mut() {
            let is_it = Some(&interface["id"]) == chosen.as_ref();
            let route = interface["default_route"].as_object_mut();
            if let Some(route) = route {
                match is_it {
                    true => drop(route.insert(family.into(), true.into())),
                    false => drop(route.remove(family)),
                }
            }
        }
    }
}

impl Instance {
    /// Returns whether it has interfaces of this kind.
    pub(crate) fn has_linode_interfaces(&self) -> bool {
        self.interface_generation == LINODE
    }

    /// Gives it an address, or takes it, as its interfaces have it.
    fn settle_network(&mut self, named: Option<u64>) {
        settle_routes(&mut self.interfaces, named);
        let is_public = |it: &Value| {
            let addresses = it["vpc"]["ipv4"]["addresses"].as_array();
            let mut addresses = addresses.into_iter().flatten();
            it["public"].is_object() || addresses.any(|it| it["nat_1_1_address"].is_string())
        };
        match self.interfaces.iter().any(is_public) {
            true if self.ipv4.is_empty() => self.ipv4 = vec![self.public_address()],
            true => {}
            false => self.ipv4.clear(),
        }
    }
}

impl Account {
    /// Gives a new instance its interfaces, each under the firewall that is named for it.
    pub(crate) fn first_interfaces(&mut self, linode: u64, body: &Value) -> Result<(), Refusal> {
        let asked = asked_of(body);
        for interface in &asked {
            self.put_interface(linode, interface)?;
        }
        Ok(())
    }

    fn put_interface(&mut self, linode: u64, asked: &Value) -> Result<Value, Refusal> {
        let (id, now_ms) = (self.fresh_id(), self.clock.now_ms());
        let default = default_of(asked).and_then(|it| self.network.default_firewall(it));
        let firewall = match asked["firewall_id"].as_i64() {
            Some(firewall) => u64::try_from(firewall).ok(),
            None => default,
        };
        let instance = self.instance(linode)?;
        let shown = made(asked, id, now_ms, instance);
        instance.interfaces.push(shown);
        instance.settle_network(Some(id));
        let shown = instance.interfaces.last().cloned().unwrap_or_default();
        if let Some(firewall) = firewall {
            self.attach_firewall(firewall, id)?;
        }
        self.note("interface_create", "interface", id, "");
        Ok(shown)
    }

    /// Gives an instance interfaces of its own that are like those of its configuration profile,
    /// for good. Its firewalls go to those that lead to the internet or into a VPC.
    pub(crate) fn upgrade_interfaces(
        &mut self,
        linode: u64,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let is_dry = body["dry_run"].as_bool().unwrap_or(true);
        let profile = self.profile(linode)?["id"].clone();
        let instance = self.instance(linode)?.clone();
        // The words of these refusals are guesses.
        let refused = |field, why: &str| Err(Refusal::of(400, field, why));
        if !body["config_id"].is_null() && body["config_id"] != profile {
            return refused(Some("config_id"), "config_id is not valid");
        }
        if instance.has_linode_interfaces() {
            return refused(None, "The Linode is using Linode Interfaces already");
        }
        if let Err(why) = self.network.generation(Some(LINODE)) {
            return refused(None, &why);
        }
        let firewall = instance.firewalls.first().map_or(json!(-1), |it| json!(it));
        let of = |legacy: &Value| match legacy["purpose"].as_str() {
            Some("vlan") => json!({"vlan": {"vlan_label": legacy["label"],
                "ipam_address": legacy["ipam_address"]}}),
            Some("vpc") => json!({"firewall_id": firewall, "default_route":
                {"ipv4": legacy["primary"]}, "vpc": {"subnet_id": legacy["subnet_id"],
                "ipv4": {"addresses": [{"address": legacy["ipv4"]["vpc"], "primary": true,
                    "nat_1_1_address": legacy["ipv4"]["nat_1_1"]}]}}}),
            _ => json!({"firewall_id": firewall, "public": {}}),
        };
        let mut asked: Vec<Value> = instance.interfaces.iter().map(of).collect();
        if asked.is_empty() {
            asked.push(json!({"firewall_id": firewall, "public": {}}));
        }
        if is_dry {
            let now_ms = self.clock.now_ms();
            let shown = asked.iter().map(|it| made(it, 0, now_ms, &instance));
            let shown: Vec<Value> = shown.collect();
            return Ok(json!({"config_id": profile, "dry_run": true, "interfaces": shown}));
        }
        let this = self.instance(linode)?;
        this.interface_generation = LINODE.into();
        this.interfaces.clear();
        this.firewalls.clear();
        for interface in &asked {
            self.put_interface(linode, interface)?;
        }
        let shown = &self.instance(linode)?.interfaces;
        Ok(json!({"config_id": profile, "dry_run": false, "interfaces": shown}))
    }

    /// Returns the instance of an interface.
    pub(crate) fn instance_with(&self, interface: u64) -> Option<&Instance> {
        let has = |it: &&Instance| {
            let mut ids = it.interfaces.iter().map(|it| it["id"].as_u64());
            it.has_linode_interfaces() && ids.any(|id| id == Some(interface))
        };
        self.instances.values().find(has)
    }

    /// Returns an instance whose interfaces may be changed now.
    fn changeable(&mut self, linode: u64) -> Result<&mut Instance, Refusal> {
        let instance = self.with_interfaces(linode)?;
        let is_off = instance.status == "offline" && instance.jobs.is_empty();
        match is_off || instance.status == "provisioning" {
            true => Ok(instance),
            false => {
                let why = "The Linode must be shut down to change its interfaces";
                Err(Refusal::of(400, None, why))
            }
        }
    }

    fn with_interfaces(&mut self, linode: u64) -> Result<&mut Instance, Refusal> {
        let instance = self.instance(linode)?;
        match instance.has_linode_interfaces() {
            true => Ok(instance),
            false => Err(Refusal::not_found()),
        }
    }

    /// Answers a request below `/linode/instances/{id}/interfaces` that is for no list.
    pub(crate) fn ask_interfaces(
        &mut self,
        method: &str,
        linode: u64,
        rest: &[&str],
        body: &Value,
    ) -> Result<Value, Refusal> {
        let id = |text: &str| text.parse::<u64>().map_err(|_| Refusal::not_found());
        match (method, rest) {
            ("GET", []) => Ok(json!({"interfaces": self.with_interfaces(linode)?.interfaces})),
            ("POST", []) => {
                let mut all = self.changeable(linode)?.interfaces.clone();
                let mut asked = body.clone();
                // Those that are there have been looked at.
                for it in &mut all {
                    if default_of(it).is_some() {
                        it["firewall_id"] = (-1).into();
                    }
                    it["default_route"] = Value::Null;
                }
                asked["purpose"] = Value::Null;
                all.push(asked);
                let mut wrong = Vec::new();
                check(&all, &self.network, &mut wrong);
                let firewall = body["firewall_id"].as_u64();
                let firewalls = &self.resources.firewalls;
                if firewall.is_some_and(|it| !firewalls.contains_key(&it)) {
                    wrong.push(("firewall_id", "firewall_id is not valid".into()));
                }
                Refusal::of_fields(wrong)?;
                self.put_interface(linode, body)
            }
            ("GET", ["settings"]) => {
                let all = &self.with_interfaces(linode)?.interfaces;
                let on = |family: &str| {
                    let has = all.iter().find(|it| it["default_route"][family] == true);
                    has.map_or(Value::Null, |it| it["id"].clone())
                };
                Ok(json!({"network_helper": true, "default_route": {
                    "ipv4_interface_id": on("ipv4"), "ipv6_interface_id": on("ipv6")}}))
            }
            ("GET", [it]) => Ok(self.interface(linode, id(it)?)?.clone()),
            ("PUT", [it]) => self.update_interface(linode, id(it)?, body),
            ("DELETE", [it]) => {
                let it = id(it)?;
                self.changeable(linode)?;
                self.interface(linode, it)?;
                let instance = self.instance(linode)?;
                instance
                    .interfaces
                    .retain(|at| at["id"].as_u64() != Some(it));
                instance.settle_network(None);
                self.detach_all(it);
                self.note("interface_delete", "interface", it, "");
                Ok(json!({}))
            }
            _ => Err(Refusal::not_found()),
        }
    }

    fn interface(&mut self, linode: u64, id: u64) -> Result<&mut Value, Refusal> {
        let all = &mut self.with_interfaces(linode)?.interfaces;
        let found = all.iter_mut().find(|it| it["id"].as_u64() == Some(id));
        found.ok_or_else(Refusal::not_found)
    }

    fn update_interface(&mut self, linode: u64, id: u64, body: &Value) -> Result<Value, Refusal> {
        self.changeable(linode)?;
        let now_ms = self.clock.now_ms();
        let mut shown = self.interface(linode, id)?.clone();
        let subnet = &body["vpc"]["subnet_id"];
        if body["vlan"].is_object() || shown["vlan"].is_object() {
            let why = "VLAN interfaces cannot be updated";
            return Err(Refusal::of(400, None, why));
        }
        let is_other_kind = KINDS
            .iter()
            .any(|it| body[*it].is_object() && shown[*it].is_null());
        if is_other_kind || !subnet.is_null() && *subnet != shown["vpc"]["subnet_id"] {
            let why = "The type and the subnet of an interface cannot be changed";
            return Err(Refusal::of(400, None, why));
        }
        set(&mut shown, body, &self.instance(linode)?.clone());
        shown["version"] = (shown["version"].as_u64().unwrap_or(0) + 1).into();
        shown["updated"] = api_time(now_ms).into();
        *self.interface(linode, id)? = shown;
        self.instance(linode)?.settle_network(Some(id));
        self.note("interface_update", "interface", id, "");
        Ok(self.interface(linode, id)?.clone())
    }

    /// Returns the firewalls of an interface, whole.
    pub(crate) fn firewalls_of_interface(
        &mut self,
        linode: u64,
        id: u64,
    ) -> Result<Vec<Value>, Refusal> {
        self.interface(linode, id)?;
        let all = self.resources.firewalls.values();
        Ok(all
            .filter(|it| it.covers(id))
            .map(|it| it.show(self))
            .collect())
    }

    /// Returns the settings of the account.
    pub(crate) fn settings(&self) -> Value {
        json!({"backups_enabled": false, "managed": false, "network_helper": true,
            "longview_subscription": null, "object_storage": null,
            "interfaces_for_new_linodes": self.network.interfaces_for_new_linodes,
            "maintenance_policy": "linode/migrate"})
    }

    /// Changes the settings of the account that the double knows.
    pub(crate) fn set_settings(&mut self, body: &Value) -> Result<Value, Refusal> {
        let field = "interfaces_for_new_linodes";
        let known = [
            "legacy_config_only",
            "legacy_config_default_but_linode_allowed",
            "linode_default_but_legacy_config_allowed",
            "linode_only",
        ];
        match body[field].as_str() {
            Some(asked) if known.contains(&asked) => {
                self.network.interfaces_for_new_linodes = asked.into();
            }
            None => {}
            Some(_) => {
                let why = format!("Must be one of {}", known.join(", "));
                return Err(Refusal::of(400, Some(field), &why));
            }
        }
        Ok(self.settings())
    }

    /// Returns the firewalls that are meant where none is named.
    pub(crate) fn firewall_settings(&self) -> Value {
        json!({"default_firewall_ids": self.network.default_firewall_ids})
    }

    /// Changes them.
    pub(crate) fn set_firewall_settings(&mut self, body: &Value) -> Result<Value, Refusal> {
        let asked = body["default_firewall_ids"].as_object();
        for (name, id) in asked.into_iter().flatten() {
            let is_known = self.network.default_firewall_ids.get(name).is_some();
            let has = id
                .as_u64()
                .map(|it| self.resources.firewalls.contains_key(&it));
            if !is_known || has == Some(false) {
                let field = format!("default_firewall_ids.{name}");
                return Err(Refusal::of(
                    400,
                    Some(&field),
                    "Must be an enabled firewall",
                ));
            }
            self.network.default_firewall_ids[name] = id.clone();
        }
        Ok(self.firewall_settings())
    }
}

/// Returns the interfaces that a create asks for: a public one where it names none.
pub(crate) fn asked_of(body: &Value) -> Vec<Value> {
    match body["interfaces"].as_array() {
        Some(asked) if !asked.is_empty() => asked.clone(),
        _ => vec![json!({"public": {}})],
    }
}
