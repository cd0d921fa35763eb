//! Configuration profiles: what an instance boots with. A rebuild deletes them with the disks, so
//! what was in the old one is not in the new one.

use serde_json::{Value, json};

use crate::account::Account;
use crate::clock::api_time;
use crate::instance::Instance;
use crate::reply::Refusal;

/// How far the identifiers of profiles are from those of their instances, and from one another.
const ID_FROM: u64 = 5_000_000;

/// Where disks and volumes can be.
const SLOTS: [&str; 8] = ["sda", "sdb", "sdc", "sdd", "sde", "sdf", "sdg", "sdh"];

/// Returns the interfaces that a body asks for, as a profile of this instance shows them.
pub(crate) fn interfaces(body: &Value, linode: u64) -> Vec<Value> {
    let asked = body["interfaces"].as_array().into_iter().flatten();
    let shown = asked.enumerate().map(|(at, asked)| {
        let is_vpc = asked["purpose"] == "vpc";
        let id = linode * 10 + at as u64;
        let own = &asked["ipv4"]["vpc"];
        let own = own
            .as_str()
            .map_or(format!("10.0.0.{}", id % 250 + 2), str::to_owned);
        let public = match asked["ipv4"]["nat_1_1"].as_str() {
            Some("any") => crate::account::address(linode, "203.0").into(),
            _ => asked["ipv4"]["nat_1_1"].clone(),
        };
        // As recorded: a VLAN without an address has an empty one.
        let ipam = match asked["purpose"] == "vlan" {
            true => asked["ipam_address"].as_str().unwrap_or_default().into(),
            false => Value::Null,
        };
        json!({
            "id": id, "purpose": asked["purpose"], "primary": asked["primary"] == true,
            "active": false, "ipam_address": ipam, "label": asked["label"],
            "vpc_id": is_vpc.then_some(1), "subnet_id": asked["subnet_id"],
            "ipv4": is_vpc.then(|| json!({"vpc": own, "nat_1_1": public})),
            "ip_ranges": is_vpc.then(|| json!([])), "ipv6": null,
        })
    });
    shown.collect()
}

fn is_of_vpc(interface: &Value) -> bool {
    interface["purpose"] == "vpc" || interface["vpc"].is_object()
}

impl Instance {
    /// Returns whether it leads into a VPC, by whichever kind of interface.
    pub(crate) fn has_vpc(&self) -> bool {
        self.interfaces.iter().any(is_of_vpc)
    }

    fn profile_id(&self) -> u64 {
        self.id + ID_FROM * (10 * self.disk + 1)
    }
}

impl Account {
    /// Returns an instance's configuration profile.
    pub(crate) fn profile(&mut self, linode: u64) -> Result<Value, Refusal> {
        let now = api_time(self.clock.now_ms());
        let instance = self.instance(linode)?.clone();
        let volumes = self.resources.volumes.values();
        let volumes = volumes.filter(|it| it.linode == Some(linode));
        let volumes = volumes.filter(|it| it.profile == instance.disk);
        let disks = instance.disks.iter();
        let disks = disks.map(|it| json!({"disk_id": it.id, "volume_id": null}));
        let mut used = disks.chain(volumes.map(|it| json!({"disk_id": null, "volume_id": it.id})));
        let mut devices = json!({});
        for slot in SLOTS {
            devices[slot] = used.next().unwrap_or_default();
        }
        let interfaces = match instance.has_linode_interfaces() {
            true => json!([]),
            false => json!(instance.interfaces),
        };
        Ok(json!({
            "id": instance.profile_id(), "label": "My Debian 13 Disk Profile",
            "helpers": {"updatedb_disabled": true, "distro": true, "modules_dep": true,
                "network": true, "devtmpfs_automount": true},
            "kernel": "linode/grub2", "comments": "", "memory_limit": 0,
            "created": api_time(instance.created_ms), "updated": now,
            "root_device": "/dev/sda", "initrd": null, "run_level": "default",
            "virt_mode": "paravirt", "devices": devices, "interfaces": interfaces,
        }))
    }

    /// Changes the interfaces of an instance's configuration profile.
    pub(crate) fn set_profile(
        &mut self,
        linode: u64,
        id: u64,
        body: &Value,
    ) -> Result<Value, Refusal> {
        let instance = self.instance(linode)?;
        if instance.profile_id() != id {
            return Err(Refusal::not_found());
        }
        if body["interfaces"].is_array() {
            let refused = |why: &str| Err(Refusal::of(400, Some("interfaces"), why));
            if instance.has_linode_interfaces() {
                let why = "Option cannot be set on a Linode that is configured to use Linode \
                           Interfaces";
                return refused(why);
            }
            let asked = interfaces(body, linode);
            let is_off = instance.status == "offline" && instance.jobs.is_empty();
            if !is_off && (instance.has_vpc() || asked.iter().any(is_of_vpc)) {
                // The words are a guess; that it must be off is what Terraform's provider found.
                return refused("The Linode must be powered off to change a VPC interface");
            }
            instance.interfaces = asked;
        }
        self.profile(linode)
    }
}
