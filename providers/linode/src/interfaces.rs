//! Network interfaces, in both of their generations.

use gobs_model::{Known, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Map, Value as Json, json};

use crate::blocks::{elements, text};
use crate::jobs::Job;
use crate::machine::{Machines, path_of};

/// The generation in which interfaces belong to the Linode, each with a firewall of its own.
const LINODE: &str = "linode";

/// What says that an interface is to have no firewall.
const NO_FIREWALL: i64 = -1;

/// Puts the interfaces and the firewall of a machine into the body of its create.
pub(crate) fn put_network(body: &mut Map<String, Json>, wanted: &Known, firewall: Option<i64>) {
    let generation = wanted.get("interface_generation").and_then(Value::as_str);
    if let Some(generation) = generation {
        body.insert("interface_generation".into(), generation.into());
    }
    let asked = elements(wanted, "interface");
    if generation == Some(LINODE) {
        let public = [Value::object([("purpose", "public".into())])];
        let asked = if asked.is_empty() { &public } else { asked };
        let of = |it: &Value| current(it, firewall.unwrap_or(NO_FIREWALL));
        let interfaces: Vec<Json> = asked.iter().map(of).collect();
        body.insert("interfaces".into(), json!(interfaces));
        return;
    }
    if !asked.is_empty() {
        body.insert("interfaces".into(), json!(legacy(wanted)));
    }
    if let Some(firewall) = firewall {
        body.insert("firewall_id".into(), firewall.into());
    }
}

impl Machines {
    /// Sets the interfaces of the machine's configuration profile; they come with the next boot.
    pub(crate) async fn set_interfaces(
        &self,
        id: &str,
        wanted: &Known,
        progress: &Progress,
    ) -> Result<(), Error> {
        let instance = self.there(id).await?;
        if instance["interface_generation"] == LINODE {
            return Err(Error::Rejected {
                message: "the interfaces of this generation stay as they were made; replace the \
                          machine, with --replace"
                    .into(),
                attribute: Some("interface".into()),
            });
        }
        let path = format!("{}/configs", path_of(id)?);
        let configs = self.api.list(&path, None).await?;
        let Some(config) = configs.iter().min_by_key(|it| it["id"].as_u64()) else {
            return Err(Error::rejected(format!(
                "Linode {id} has no configuration profile, so it has no interfaces"
            )));
        };
        let path = format!("{path}/{}", config["id"]);
        let body = json!({"interfaces": legacy(wanted)});
        self.api.put(&path, &body).await?;
        if !self.is_on_when_settled(id).await? {
            return Ok(());
        }
        let (body, event) = (json!({}), "linode_reboot");
        let job = Job {
            id,
            verb: "reboot",
            body,
            event,
        };
        self.api.run(&job, progress).await
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

/// Returns an interface of the current generation.
fn current(asked: &Value, firewall: i64) -> Json {
    let mut interface = match text(asked, "purpose") {
        Some("vlan") => json!({"vlan": {"vlan_label": text(asked, "label"),
            "ipam_address": text(asked, "ipam_address")}}),
        Some("vpc") => {
            let mut address = json!({"address": text(asked, "ipv4").unwrap_or("auto"),
                "primary": true});
            if let Some(public) = text(asked, "nat_1_1") {
                let public = if public == "any" { "auto" } else { public };
                address["nat_1_1_address"] = public.into();
            }
            let subnet = asked.get("subnet_id").and_then(Value::as_i64);
            json!({"vpc": {"subnet_id": subnet, "ipv4": {"addresses": [address]}},
                "firewall_id": firewall})
        }
        _ => json!({"public": {}, "firewall_id": firewall}),
    };
    if asked.get("primary").and_then(Value::as_bool) == Some(true) {
        interface["default_route"] = json!({"ipv4": true, "ipv6": true});
    }
    interface
}
