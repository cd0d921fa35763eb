//! What a configuration profile holds: interfaces and volumes, across changes, rebuilds and moves.

use gobs_linode_double::{Double, Fault};
use gobs_model::{Change, Known, Value};
use gobs_provider::{Observed, Proposal, Provider};
use gobs_provider_linode::Linode;
use serde_json::{Value as Json, json};

use crate::blocks::{all, made, object, volume};
use crate::faults::every_fault;
use crate::host::{address, create, quiet, start, text, update, wanted};
use crate::network::{TRIES_MAX, interface, updated, vlan, vpc};

/// Returns a machine with interfaces and a volume in its profile.
fn profiled(image: &str, interfaces: &[Value]) -> Known {
    wanted([
        ("image", image.into()),
        ("interface", Value::list(interfaces.iter().cloned())),
        ("volume", Value::map([("data", volume(10, true))])),
    ])
}

fn profile(double: &Double, id: &str) -> Json {
    all(double, &format!("/linode/instances/{id}/configs")).remove(0)
}

/// Returns what is not as it should be of a machine that runs with a VPC, a VLAN and a volume.
fn lacks(double: &Double, seen: &Observed, address: &str) -> Option<String> {
    let profile = profile(double, &seen.id);
    let (interfaces, devices) = (&profile["interfaces"], &profile["devices"]);
    let volume = &all(double, "/volumes")[0]["id"];
    let instance = double.instances().remove(0);
    let is_so = interfaces[0]["ipv4"]["vpc"] == address
        && interfaces[1]["label"] == "inner"
        && devices["sdc"]["volume_id"] == *volume
        && instance["status"] == "running"
        && !instance["tags"].to_string().contains("gobs-off");
    (!is_so).then(|| format!("{profile:#}\n{instance:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_its_profile_held_is_there_after_a_rebuild() {
    let (double, linode) = start(71).await;
    let interfaces = [vpc(7, &[("ipv4", "10.0.0.9".into())]), vlan("inner")];
    let first = profiled("linode/debian13", &interfaces);
    let seen = made(&linode, &create("web", first.clone()))
        .await
        .expect("made");
    let old = profile(&double, &seen.id)["id"].clone();
    let (boots, second) = (
        double.events("linode_boot"),
        profiled("linode/debian12", &interfaces),
    );
    let change = (&first, &second);
    let seen = updated(&linode, &seen, Change::Rebuild, change)
        .await
        .expect("rebuilt");
    assert_ne!(profile(&double, &seen.id)["id"], old);
    assert_eq!(lacks(&double, &seen, "10.0.0.9"), None);
    // It starts with all of that, and not before.
    assert_eq!(double.events("linode_boot"), boots + 1);
    assert_eq!(text(&seen, "image"), "linode/debian12");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_moves_into_the_group_of_its_new_region() {
    let (double, linode) = start(72).await;
    let group = |region: &str| {
        let body = json!({"label": region, "region": region, "placement_group_type":
            "anti_affinity:local", "placement_group_policy": "flexible"});
        let made = double
            .ask("POST", "/placement/groups", &body)
            .expect("made");
        made["id"].as_i64().expect("an id")
    };
    let at = |region: &str, group: Value| {
        wanted([("region", region.into()), ("placement_group", group)])
    };
    let (here, there) = (group("eu-central"), group("us-ord"));
    let (first, second) = (at("eu-central", here.into()), at("us-ord", there.into()));
    let seen = made(&linode, &create("web", first.clone()))
        .await
        .expect("made");
    let change = (&first, &second);
    let seen = updated(&linode, &seen, Change::Migrate, change)
        .await
        .expect("moved");
    assert_eq!(text(&seen, "region"), "us-ord");
    assert_eq!(seen.attributes.get("placement_group"), Some(&there.into()));
    // Out of any group, too.
    let third = at("eu-central", Value::NULL);
    let change = (&second, &third);
    let seen = updated(&linode, &seen, Change::Migrate, change)
        .await
        .expect("moved");
    assert_eq!(seen.attributes.get("placement_group"), Some(&Value::NULL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_move_and_rules_that_cannot_be_are_said_before() {
    let (double, linode) = start(73).await;
    let in_vpc = |region: &str| {
        let interfaces = Value::list([vpc(7, &[])]);
        wanted([("region", region.into()), ("interface", interfaces)])
    };
    let (here, there) = (in_vpc("eu-central"), in_vpc("us-ord"));
    let seen = made(&linode, &create("web", here.clone()))
        .await
        .expect("made");
    let said = async |wanted: &Known, is_new: bool| -> Vec<(String, String)> {
        let proposal = Proposal {
            address: address("web"),
            wanted: wanted.value().clone(),
            is_new,
            before: Some(seen.clone()),
        };
        let found = linode.objections(&proposal).await.expect("looked at");
        found
            .into_iter()
            .map(|it| (it.attribute, it.message))
            .collect()
    };
    let stuck = (
        "region".into(),
        "its interface in a VPC keeps it in eu-central".into(),
    );
    assert_eq!(said(&there, false).await, [stuck]);
    assert_eq!(said(&there, true).await, []);
    assert_eq!(said(&here, false).await, []);
    // And so the API does.
    let migrate = update(&seen, Change::Migrate, here, there);
    let error = linode
        .update(migrate, quiet())
        .await
        .expect_err("it cannot");
    assert!(error.to_string().contains("cannot migrate"), "{error}");
    assert_eq!(double.events("linode_migrate_datacenter"), 0);

    let rule = |more: [(&'static str, Value); 2]| {
        let [one, two] = more;
        object([("action", "ACCEPT".into()), one, two])
    };
    let everybody = || ("ipv4", Value::list(["0.0.0.0/0".into()]));
    let rules = [
        rule([("protocol", "TCP".into()), ("ports", "22".into())]),
        rule([("protocol", "ICMP".into()), everybody()]),
        object([
            ("protocol", "ICMP".into()),
            ("ports", "22".into()),
            everybody(),
        ]),
    ];
    let wall = object([("inbound", Value::list(rules))]);
    let walled = wanted([("firewall", wall)]);
    let said: Vec<_> = said(&walled, false)
        .await
        .into_iter()
        .map(|it| it.1)
        .collect();
    let expected = [
        "inbound rule 1 is about no address",
        "inbound rule 3 is about ICMP, which has no ports",
    ];
    assert_eq!(said, expected);
}

/// Lives a machine's life with all that a profile holds, with a fault.
async fn live(double: &Double, linode: &Linode, fault: &Fault) -> Result<(), String> {
    double.fault(fault.clone());
    let first = profiled("linode/debian13", &[interface("public", &[])]);
    let seen = made(linode, &create("web", first.clone())).await?;
    let interfaces = [vpc(7, &[("ipv4", "10.0.0.9".into())]), vlan("inner")];
    let second = profiled("linode/debian13", &interfaces);
    let seen = updated(linode, &seen, Change::PowerCycle, (&first, &second)).await?;
    if let Some(why) = lacks(double, &seen, "10.0.0.9") {
        return Err(format!("changed: {why}"));
    }
    let third = profiled("linode/debian12", &interfaces);
    let seen = updated(linode, &seen, Change::Rebuild, (&second, &third)).await?;
    if let Some(why) = lacks(double, &seen, "10.0.0.9") {
        return Err(format!("rebuilt: {why}"));
    }
    let mut tries = 0;
    while let Err(error) = linode.delete(&seen, quiet()).await {
        tries += 1;
        if tries >= TRIES_MAX {
            return Err(format!("delete: {error}"));
        }
    }
    let (stats, left) = (
        double.stats(),
        double.instances().len() + all(double, "/volumes").len(),
    );
    match (stats.created, stats.volumes_created, double.unused_faults()) {
        (1, 1, 0) if left == 0 && double.events("linode_rebuild") == 1 => Ok(()),
        counts => Err(format!("made {counts:?}, leaves {left}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_every_fault_converges_at_a_profile() {
    let requests = [
        ("GET", "/linode/instances/*/configs"),
        ("PUT", "/linode/instances/*/configs/*"),
        ("POST", "/linode/instances/*/rebuild"),
        ("POST", "/linode/instances/*/shutdown"),
        ("POST", "/linode/instances/*/boot"),
        ("POST", "/volumes/*/attach"),
        ("POST", "/volumes/*/detach"),
    ];
    every_fault(&requests, 900, 24, live).await;
}
