//! Network interfaces, in both of their generations.

use gobs_model::{Known, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Map, Value as Json, json};

use crate::api::Fail;
use crate::blocks::{Owner, about, elements, text};
use crate::machine::{Machines, path_of};
use crate::observe::{OFF, json_of, tags};
use crate::pace::Class;

/// The generation in which interfaces belong to the Linode, each with firewalls of its own.
pub(crate) const LINODE: &str = "linode";

/// The generation in which they belong to a configuration profile.
pub(crate) const LEGACY: &str = "legacy_config";

/// What says that an interface is to have no firewall.
const NO_FIREWALL: i64 = -1;

/// How often what is there is compared with what is asked: once to change it, once to see that it
/// is so, and once more for each answer that was lost, of which there are few.
const ROUNDS_MAX: u32 = 6;

/// What an account has for machines that say nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults {
    /// `interfaces_for_new_linodes`; nothing where the token may not read it.
    pub(crate) interfaces: Option<String>,
    /// The firewalls by what they are for; nothing where the token may not read them.
    firewalls: Option<Json>,
}

/// Returns whether a machine's interfaces are its own, and not those of a configuration profile.
pub(crate) fn has_linode_interfaces(instance: &Json) -> bool {
    instance["interface_generation"] == LINODE
}

/// Returns the interfaces that a machine is to have: a public one where none is declared.
pub(crate) fn asked_of(wanted: &Known) -> Vec<Value> {
    match elements(wanted, "interface") {
        [] => vec![Value::object([("purpose", "public".into())])],
        asked => asked.to_vec(),
    }
}

/// Returns the generation that the account's setting gives to a machine that names none.
pub(crate) fn generation_by(setting: &str) -> &'static str {
    match setting {
        "linode_only" | "linode_default_but_legacy_config_allowed" => LINODE,
        _ => LEGACY,
    }
}

impl Machines {
    /// Returns what the account has for machines that say nothing; it is asked once.
    pub(crate) async fn defaults(&self) -> Result<&Defaults, Error> {
        let ask = async || {
            let read = async |path: &str| match self.api.get(path).await {
                Ok(found) => Ok(Some(found)),
                Err(Fail::Denied(_) | Fail::Refused(_) | Fail::Gone) => Ok(None),
                Err(fail) => Err(Error::from(fail)),
            };
            let settings = read("/account/settings").await?;
            let interfaces = settings.and_then(|it| {
                let setting = it["interfaces_for_new_linodes"].as_str();
                setting.map(str::to_owned)
            });
            let firewalls = read("/networking/firewalls/settings").await?;
            Ok(Defaults {
                interfaces,
                firewalls,
            })
        };
        self.defaults.get_or_try_init(ask).await
    }

    /// Returns the generation of a new machine's interfaces; nothing where neither its block nor
    /// the account says it and nothing depends on it.
    pub(crate) async fn generation(&self, wanted: &Known) -> Result<Option<String>, Error> {
        if let Some(asked) = wanted.get("interface_generation").and_then(Value::as_str) {
            return Ok(Some(asked.to_owned()));
        }
        if let Some(setting) = &self.defaults().await?.interfaces {
            return Ok(Some(generation_by(setting).to_owned()));
        }
        let is_set = |name: &str| wanted.get(name).is_some_and(|it| !it.is_null());
        let depends = is_set("firewall")
            || is_set("firewall_id")
            || is_set("private_ip")
            || !elements(wanted, "interface").is_empty();
        // Said so, an account that does not allow it refuses it instead of making it otherwise.
        Ok(depends.then(|| LEGACY.to_owned()))
    }

    /// Puts the interfaces and the firewall of a machine into the body of its create.
    pub(crate) async fn put_network(
        &self,
        body: &mut Map<String, Json>,
        wanted: &Known,
        generation: Option<&str>,
        own: Option<u64>,
    ) -> Result<(), Error> {
        let firewall = firewall_of(wanted, own);
        if let Some(generation) = generation {
            body.insert("interface_generation".into(), generation.into());
        }
        if generation == Some(LINODE) {
            let mut interfaces = Vec::new();
            for asked in asked_of(wanted) {
                interfaces.push(self.current(&asked, firewall).await?);
            }
            body.insert("interfaces".into(), json!(interfaces));
            return Ok(());
        }
        if !elements(wanted, "interface").is_empty() {
            body.insert("interfaces".into(), json!(legacy(wanted)));
        }
        if let Some(firewall) = firewall {
            body.insert("firewall_id".into(), firewall.into());
        }
        Ok(())
    }

    /// Returns an interface of the Linode's own, as the API takes it.
    async fn current(&self, asked: &Value, firewall: Option<i64>) -> Result<Json, Error> {
        let (mut interface, of) = match text(asked, "purpose") {
            Some("vlan") => {
                let mut vlan = json!({"vlan_label": text(asked, "label")});
                if let Some(address) = text(asked, "ipam_address") {
                    vlan["ipam_address"] = address.into();
                }
                return Ok(json!({"vlan": vlan}));
            }
            Some("vpc") => {
                let mut address = json!({"address": text(asked, "ipv4").unwrap_or("auto"),
                    "primary": true});
                if let Some(public) = nat(asked) {
                    address["nat_1_1_address"] = public.into();
                }
                let subnet = asked.get("subnet_id").and_then(Value::as_i64);
                let vpc = json!({"subnet_id": subnet, "ipv4": {"addresses": [address]}});
                (json!({"vpc": vpc}), "vpc_interface")
            }
            _ => (json!({"public": {}}), "public_interface"),
        };
        let firewall = match firewall {
            Some(firewall) => Some(firewall),
            None => match &self.defaults().await?.firewalls {
                // Without a default one the API takes no interface that does not say so.
                Some(all) if all["default_firewall_ids"][of].is_null() => Some(NO_FIREWALL),
                _ => None,
            },
        };
        if let Some(firewall) = firewall {
            interface["firewall_id"] = firewall.into();
        }
        if is_primary(asked) {
            interface["default_route"] = routes(asked);
        }
        Ok(interface)
    }

    /// Makes the interfaces of a machine those that are asked for. It is off meanwhile: the API
    /// changes its own ones so, and those of a VPC in its configuration profile.
    pub(crate) async fn set_interfaces(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let id = owner.id;
        let asked = asked_of(owner.wanted);
        let is_own = has_linode_interfaces(owner.instance);
        let is_paused = tags(&self.there(id).await?).any(|tag| tag == OFF);
        let is_so = match is_own {
            true => steps(&asked, &self.interfaces_of(id).await?).is_empty(),
            false => is_profile(&asked, &self.profile_of(id).await?.1),
        };
        if !is_paused && is_so {
            return Ok(());
        }
        let own = match is_own {
            true => self.ensure_firewall(owner).await?,
            false => None,
        };
        let firewall = firewall_of(owner.wanted, own);
        let ran = self.pause(id, progress).await?;
        let done = match is_own {
            true => self.change_interfaces(id, &asked, firewall, progress).await,
            false => self.put_profile(id, owner.wanted).await,
        };
        // Whatever came of it, the machine is not left off.
        let on = owner.wanted.get("booted").and_then(Value::as_bool);
        let resumed = self.resume(id, on.unwrap_or(ran), progress).await;
        done.and(resumed)
    }

    /// Gives a machine whose interfaces are those of its configuration profile such of its own,
    /// for good; it is off then, for whoever changes these further. Returns the machine with them,
    /// and nothing where it is not to have such.
    pub(crate) async fn upgrade_interfaces(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<Option<Json>, Error> {
        let asked = owner.wanted.get("interface_generation");
        if asked.and_then(Value::as_str) != Some(LINODE) {
            return Ok(None);
        }
        let id = owner.id;
        if has_linode_interfaces(owner.instance) {
            // By a run that died; what came after it may be lacking.
            return Ok(Some(owner.instance.clone()));
        }
        let path = path_of(id)?;
        let (_, profile) = self.profile_of(id).await?;
        let body = json!({"config_id": profile["id"], "dry_run": false});
        let ran = self.pause(id, progress).await?;
        progress("gives it interfaces of its own".into());
        let path = format!("{path}/upgrade-interfaces");
        let done = self.api.post(&path, Class::Other, &body).await;
        let now = self.there(id).await?;
        match done {
            _ if has_linode_interfaces(&now) => Ok(Some(now)),
            Ok(_) => {
                let why = format!("Linode {id} does not show interfaces of its own");
                Err(Error::InDoubt(why))
            }
            Err(Fail::Lost(why)) => Err(Error::InDoubt(why)),
            Err(fail) => {
                let on = owner.wanted.get("booted").and_then(Value::as_bool);
                self.resume(id, on.unwrap_or(ran), progress).await?;
                Err(about("interface_generation", fail))
            }
        }
    }

    /// Returns the configuration profile that a machine boots with, after its path.
    pub(crate) async fn profile_of(&self, id: &str) -> Result<(String, Json), Error> {
        let path = format!("{}/configs", path_of(id)?);
        let profiles = self.api.list(&path, None).await?;
        let first = profiles.into_iter().min_by_key(|it| it["id"].as_u64());
        let first = first.map(|it| (format!("{path}/{}", it["id"]), it));
        first.ok_or_else(|| {
            let why = format!("Linode {id} has no configuration profile, so nothing is in one");
            Error::rejected(why)
        })
    }

    async fn put_profile(&self, id: &str, wanted: &Known) -> Result<(), Error> {
        let (path, _) = self.profile_of(id).await?;
        let body = json!({"interfaces": legacy(wanted)});
        let done = self.api.put(&path, &body).await;
        done.map(drop).map_err(|fail| about("interface", fail))
    }

    /// Changes the interfaces of a machine that is off. What is to be done is found anew each
    /// time, so that nothing is done twice whose answer was lost.
    async fn change_interfaces(
        &self,
        id: &str,
        asked: &[Value],
        firewall: Option<i64>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let path = format!("{}/interfaces", path_of(id)?);
        let mut doubt = String::new();
        for _ in 0..ROUNDS_MAX {
            let steps = steps(asked, &self.interfaces_of(id).await?);
            if steps.is_empty() {
                return Ok(());
            }
            progress("changes its interfaces".into());
            for step in steps {
                let done = match step {
                    Step::Remove(it) => self.api.delete(&format!("{path}/{it}")).await,
                    Step::Change(it, body) => self.api.put(&format!("{path}/{it}"), &body).await,
                    Step::Add(it) => {
                        let body = self.current(&it, firewall).await?;
                        self.api.post(&path, Class::Other, &body).await
                    }
                };
                match done {
                    Ok(_) | Err(Fail::Gone) => {}
                    Err(Fail::Lost(why)) => {
                        doubt = why;
                        break;
                    }
                    Err(fail) => return Err(about("interface", fail)),
                }
            }
        }
        let why = format!("the interfaces of Linode {id} do not become as asked {doubt}");
        Err(Error::InDoubt(why.trim_end().into()))
    }

    /// Returns a machine's own interfaces; none where it is gone.
    pub(crate) async fn interfaces_of(&self, id: &str) -> Result<Vec<Json>, Error> {
        let found = self
            .api
            .look(&format!("{}/interfaces", path_of(id)?))
            .await?;
        let Some(found) = found else {
            return Ok(Vec::new());
        };
        // Clients of Linode's own differ on the name that the list goes by.
        let all = ["interfaces", "data"].map(|it| found[it].as_array().cloned());
        let all = all.into_iter().flatten().next();
        all.ok_or_else(|| Error::InDoubt(format!("Linode {id} was shown without interfaces")))
    }

    /// Returns the firewalls of each interface of a machine that can be under one.
    pub(crate) async fn firewalls_by_interface(&self, id: &str) -> Result<Vec<Vec<Json>>, Error> {
        let mut all = Vec::new();
        for interface in self
            .interfaces_of(id)
            .await?
            .iter()
            .filter(|it| is_open(it))
        {
            let path = format!("{}/interfaces/{}", path_of(id)?, interface["id"]);
            all.push(self.firewalls_at(&format!("{path}/firewalls")).await?);
        }
        Ok(all)
    }

    /// Puts the interfaces of a machine under one firewall, and from under any other.
    pub(crate) async fn cover_interfaces(
        &self,
        id: &str,
        wanted: Option<u64>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mut is_checked = false;
        for interface in self
            .interfaces_of(id)
            .await?
            .iter()
            .filter(|it| is_open(it))
        {
            let path = format!("{}/interfaces/{}/firewalls", path_of(id)?, interface["id"]);
            for _ in 0..ROUNDS_MAX {
                let seen = self.firewalls_at(&path).await?;
                let seen: Vec<u64> = seen.iter().filter_map(|it| it["id"].as_u64()).collect();
                if seen.iter().eq(wanted.iter()) {
                    break;
                }
                if let Some(firewall) = wanted.filter(|_| !is_checked) {
                    // An interface is under one at a time, so the old one goes first: no sooner
                    // than it is known that the new one is there.
                    let path = format!("/networking/firewalls/{firewall}");
                    let there = self.api.get(&path).await;
                    there.map_err(|fail| about("firewall_id", fail))?;
                    is_checked = true;
                }
                progress("changes the firewall of an interface".into());
                for other in seen.iter().filter(|it| Some(**it) != wanted) {
                    self.uncover(*other, &interface["id"]).await?;
                }
                let Some(firewall) = wanted.filter(|it| !seen.contains(it)) else {
                    continue;
                };
                let devices = format!("/networking/firewalls/{firewall}/devices");
                let body = json!({"id": interface["id"], "type": "linode_interface"});
                match self.api.post(&devices, Class::Other, &body).await {
                    // The next look says whether it is so.
                    Ok(_) | Err(Fail::Lost(_)) => {}
                    Err(fail) => return Err(about("firewall", fail)),
                }
            }
        }
        Ok(())
    }

    /// Takes an interface from under a firewall.
    async fn uncover(&self, firewall: u64, interface: &Json) -> Result<(), Error> {
        let path = format!("/networking/firewalls/{firewall}/devices");
        let devices = match self.api.list(&path, None).await {
            Err(Fail::Gone) => return Ok(()),
            other => other?,
        };
        let is_it = |it: &&Json| {
            it["entity"]["type"] == "linode_interface" && it["entity"]["id"] == *interface
        };
        for device in devices.iter().filter(is_it) {
            let removed = self.api.remove(&format!("{path}/{}", device["id"])).await;
            removed.map_err(|fail| about("firewall", fail))?;
        }
        Ok(())
    }
}

/// Returns the firewall that a machine is to be under: its own, or the one that is named.
fn firewall_of(wanted: &Known, own: Option<u64>) -> Option<i64> {
    let given = json_of(wanted, "firewall_id").and_then(|it| it.as_i64());
    own.and_then(|id| i64::try_from(id).ok()).or(given)
}

/// Returns whether an interface leads somewhere that a firewall is for.
fn is_open(interface: &Json) -> bool {
    interface["public"].is_object() || interface["vpc"].is_object()
}

/// What makes the interfaces that are there those that are asked for.
#[derive(Debug, PartialEq)]
enum Step {
    /// By its identifier.
    Remove(Json),
    Change(Json, Json),
    Add(Value),
}

/// Returns what is to be done; what goes does so first, since there are few places.
fn steps(asked: &[Value], there: &[Json]) -> Vec<Step> {
    let mut left: Vec<&Json> = there.iter().collect();
    let (mut changes, mut added) = (Vec::new(), Vec::new());
    for one in asked {
        match left.iter().position(|it| is_same(one, it)) {
            None => added.push(Step::Add(one.clone())),
            Some(at) => {
                let it = left.remove(at);
                changes.extend(change(one, it).map(|body| Step::Change(it["id"].clone(), body)));
            }
        }
    }
    let gone = left.into_iter().map(|it| Step::Remove(it["id"].clone()));
    gone.chain(changes).chain(added).collect()
}

/// Returns whether an interface that is there can become the one that is asked for: neither its
/// kind nor where it leads can be changed, and nothing about one of a VLAN.
fn is_same(asked: &Value, there: &Json) -> bool {
    match text(asked, "purpose") {
        Some("vlan") => {
            said(&there["vlan"]["vlan_label"]) == text(asked, "label")
                && said(&there["vlan"]["ipam_address"]) == text(asked, "ipam_address")
        }
        Some("vpc") => {
            let subnet = asked.get("subnet_id").and_then(Value::as_i64);
            there["vpc"]["subnet_id"].as_i64() == subnet && subnet.is_some()
        }
        _ => there["public"].is_object(),
    }
}

/// Returns what to change of an interface; nothing where it is as asked.
fn change(asked: &Value, there: &Json) -> Option<Json> {
    let mut body = json!({});
    if is_primary(asked) && there["default_route"]["ipv4"] != true {
        body["default_route"] = routes(asked);
    }
    if there["vpc"].is_object() {
        let all = there["vpc"]["ipv4"]["addresses"].as_array();
        let is = all.and_then(|all| all.iter().find(|it| it["primary"] == true));
        let is = is.cloned().unwrap_or_default();
        let (address, public) = (text(asked, "ipv4"), nat(asked));
        let has_public = match public {
            Some("auto") => is["nat_1_1_address"].is_string(),
            public => is["nat_1_1_address"].as_str() == public,
        };
        if !has_public || address.is_some_and(|it| is["address"] != it) {
            let address = address.or(is["address"].as_str()).unwrap_or("auto");
            let address = json!({"address": address, "primary": true, "nat_1_1_address": public});
            body["vpc"] = json!({"subnet_id": there["vpc"]["subnet_id"],
                "ipv4": {"addresses": [address]}});
        }
    }
    (body != json!({})).then_some(body)
}

fn is_primary(asked: &Value) -> bool {
    asked.get("primary").and_then(Value::as_bool) == Some(true)
}

/// Returns a text that says something: the API writes `""` as well as `null` for nothing.
fn said(text: &Json) -> Option<&str> {
    text.as_str().filter(|it| !it.is_empty())
}

/// Returns whether a configuration profile has the interfaces that are asked for, in this order.
fn is_profile(asked: &[Value], profile: &Json) -> bool {
    let public = [json!({"purpose": "public"})];
    let there = profile["interfaces"].as_array().map(Vec::as_slice);
    let there = there.filter(|it| !it.is_empty()).unwrap_or(&public);
    let is_same = |(asked, there): (&Value, &Json)| {
        let address = &there["ipv4"];
        let is_at = text(asked, "ipv4").is_none_or(|it| address["vpc"] == it);
        let is_led_to = match text(asked, "nat_1_1") {
            Some("any") => said(&address["nat_1_1"]).is_some(),
            other => said(&address["nat_1_1"]) == other,
        };
        ["purpose", "label", "ipam_address"]
            .iter()
            .all(|it| said(&there[it]) == text(asked, it))
            && there["subnet_id"].as_i64() == asked.get("subnet_id").and_then(Value::as_i64)
            && (!is_primary(asked) || there["primary"] == true)
            && is_at
            && is_led_to
    };
    asked.len() == there.len() && asked.iter().zip(there).all(is_same)
}

/// Returns the default routes that can go through an interface.
fn routes(asked: &Value) -> Json {
    match text(asked, "purpose") {
        Some("vpc") => json!({"ipv4": true}),
        _ => json!({"ipv4": true, "ipv6": true}),
    }
}

/// Returns the public address that leads to the one in a VPC, as the API calls it.
fn nat(asked: &Value) -> Option<&str> {
    match text(asked, "nat_1_1") {
        Some("any") => Some("auto"),
        other => other,
    }
}

/// Returns the interfaces of a configuration profile.
fn legacy(wanted: &Known) -> Vec<Json> {
    let of = |asked: &Value| {
        let mut interface = json!({"purpose": text(asked, "purpose")});
        for name in ["label", "ipam_address"] {
            if let Some(text) = text(asked, name) {
                interface[name] = text.into();
            }
        }
        if let Some(id) = asked.get("subnet_id").and_then(Value::as_i64) {
            interface["subnet_id"] = id.into();
        }
        if let Some(primary) = asked.get("primary").and_then(Value::as_bool) {
            interface["primary"] = primary.into();
        }
        for (name, field) in [("ipv4", "vpc"), ("nat_1_1", "nat_1_1")] {
            if let Some(text) = text(asked, name) {
                interface["ipv4"][field] = text.into();
            }
        }
        interface
    };
    elements(wanted, "interface").iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_changed_where_they_can_be_and_made_anew_where_not() {
        let asked = |purpose: &str, more: &[(&'static str, Value)]| {
            let more = more.iter().map(|(name, value)| (*name, value.clone()));
            Value::object([("purpose", Value::from(purpose))].into_iter().chain(more))
        };
        let public = json!({"id": 1, "public": {}, "default_route": {"ipv4": true, "ipv6": true}});
        let vpc = json!({"id": 2, "default_route": {}, "vpc": {"subnet_id": 7, "ipv4":
            {"addresses": [{"address": "10.0.0.2", "primary": true, "nat_1_1_address": null}]}}});
        let vlan = json!({"id": 3, "vlan": {"vlan_label": "inner", "ipam_address": ""}});
        let there = [public, vpc, vlan];
        let own = [
            asked("public", &[]),
            asked("vpc", &[("subnet_id", 7.into())]),
            asked("vlan", &[("label", "inner".into())]),
        ];
        assert_eq!(steps(&own, &there), []);
        // Where a VPC's address and the default route are, it is changed.
        let routed = [
            ("subnet_id", 7.into()),
            ("primary", true.into()),
            ("nat_1_1", "any".into()),
        ];
        let mut changed = own.clone();
        changed[1] = asked("vpc", &routed);
        let address = json!({"address": "10.0.0.2", "primary": true, "nat_1_1_address": "auto"});
        let body = json!({"default_route": {"ipv4": true},
            "vpc": {"subnet_id": 7, "ipv4": {"addresses": [address]}}});
        assert_eq!(steps(&changed, &there), [Step::Change(json!(2), body)]);
        // In another subnet, and in another VLAN, it is another one.
        let elsewhere = asked("vpc", &[("subnet_id", 8.into())]);
        let outer = asked("vlan", &[("label", "outer".into())]);
        let expected = [
            Step::Remove(json!(2)),
            Step::Remove(json!(3)),
            Step::Add(elsewhere.clone()),
            Step::Add(outer.clone()),
        ];
        assert_eq!(steps(&[own[0].clone(), elsewhere, outer], &there), expected);
    }
}
