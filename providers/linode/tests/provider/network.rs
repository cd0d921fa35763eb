//! Linode interfaces: their firewalls, their changes, and which generation a machine gets.

use gobs_linode_double::{Double, Fault};
use gobs_model::{Change, Known, Value};
use gobs_provider::{Error, Observed, Proposal, Provider};
use gobs_provider_linode::Linode;
use serde_json::{Value as Json, json};

use crate::blocks::{all, firewall, made, object};
use crate::faults::every_fault;
use crate::host::{address, create, provider, quiet, start, text, update, wanted};

/// How often a caller asks again, as `apply` does.
pub(crate) const TRIES_MAX: usize = 5;

/// Returns an `interface` block.
pub(crate) fn interface(purpose: &str, set: &[(&'static str, Value)]) -> Value {
    let all = [
        "label",
        "ipam_address",
        "subnet_id",
        "ipv4",
        "nat_1_1",
        "primary",
    ];
    let unset = all.iter().map(|name| (*name, Value::NULL));
    let set = set.iter().map(|(name, value)| (*name, value.clone()));
    Value::object(unset.chain([("purpose", purpose.into())]).chain(set))
}

pub(crate) fn vlan(label: &str) -> Value {
    interface("vlan", &[("label", label.into())])
}

pub(crate) fn vpc(subnet: i64, set: &[(&'static str, Value)]) -> Value {
    let more = [("subnet_id", Value::from(subnet))];
    let set: Vec<_> = more.into_iter().chain(set.iter().cloned()).collect();
    interface("vpc", &set)
}

/// Returns a machine with interfaces of its own.
fn own<const N: usize>(interfaces: &[Value], set: [(&'static str, Value); N]) -> Known {
    let plain = wanted(set);
    let mut entries = plain.value().as_entries().expect("an object").clone();
    entries.insert("interface_generation".into(), "linode".into());
    entries.insert("interface".into(), Value::list(interfaces.iter().cloned()));
    Known::try_from(Value::object(entries)).expect("known")
}

/// Returns a machine's interfaces as the API shows them.
fn shown(double: &Double, id: &str) -> Vec<Json> {
    let path = format!("/linode/instances/{id}/interfaces");
    let shown = double.ask("GET", &path, &Json::Null).expect("shown");
    shown["interfaces"].as_array().expect("a list").clone()
}

/// Returns the firewalls of each interface, by label.
fn walls(double: &Double, id: &str) -> Vec<Vec<String>> {
    let of = |it: &Json| {
        let path = format!("/linode/instances/{id}/interfaces/{}/firewalls", it["id"]);
        let labels = all(double, &path);
        let label = |it: &Json| it["label"].as_str().unwrap_or_default().to_owned();
        labels.iter().map(label).collect()
    };
    shown(double, id).iter().map(of).collect()
}

fn named_wall(double: &Double, label: &str) -> i64 {
    let rules = json!({"inbound": [], "inbound_policy": "DROP", "outbound": [],
        "outbound_policy": "ACCEPT"});
    let body = json!({"label": label, "rules": rules});
    let made = double.ask("POST", "/networking/firewalls", &body);
    made.expect("made")["id"].as_i64().expect("an id")
}

pub(crate) async fn updated(
    linode: &Linode,
    before: &Observed,
    change: Change,
    (was, wanted): (&Known, &Known),
) -> Result<Observed, String> {
    let request = update(before, change, was.clone(), wanted.clone());
    for _ in 0..TRIES_MAX {
        match linode.update(request.clone(), quiet()).await {
            Ok(seen) => return Ok(seen),
            Err(Error::Busy { .. } | Error::InDoubt(_)) => {}
            Err(error) => return Err(format!("update: {error}")),
        }
    }
    Err("update does not converge".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firewalls_are_those_of_the_interfaces() {
    let (double, linode) = start(61).await;
    let interfaces = [interface("public", &[]), vpc(7, &[]), vlan("inner")];
    let first = own(&interfaces, [("firewall", firewall("22", Value::NULL))]);
    let seen = linode
        .create(create("web", first.clone()), quiet())
        .await
        .expect("made");
    let id = seen.id.clone();
    let label = all(&double, "/networking/firewalls")[0]["label"]
        .as_str()
        .expect("a label")
        .to_owned();
    let under = |label: &str| vec![vec![label.to_owned()], vec![label.to_owned()], vec![]];
    assert_eq!(walls(&double, &id), under(&label));
    let read = linode.read(&seen).await.expect("read").expect("there");
    let of = |it: &Observed| it.attributes.get("firewall").cloned();
    assert_eq!(of(&read), of(&seen), "nothing has drifted");
    // As the API has it: not the machine is under it, and nobody may say so.
    let wall = all(&double, "/networking/firewalls").remove(0);
    assert_eq!(wall["entities"][0]["type"], "linode_interface");
    assert_eq!(wall["entities"][0]["parent_entity"]["id"].to_string(), id);
    let path = format!("/linode/instances/{id}/firewalls");
    let why = double.ask("GET", &path, &Json::Null).expect_err("refused");
    assert!(
        why.contains("Please list Cloud Firewall(s) on each interface"),
        "{why}"
    );
    let why = double.ask("PUT", &path, &json!({"firewall_ids": []}));
    let why = why.expect_err("refused");
    assert!(
        why.contains("Please apply Cloud Firewall to the interfaces"),
        "{why}"
    );

    // What somebody takes away is missed, although the other interface still has it.
    let device = json!(wall["entities"][1]["id"]);
    let devices = format!("/networking/firewalls/{}/devices", wall["id"]);
    let is_it = |it: &Json| it["entity"]["id"] == device;
    let found = all(&double, &devices)
        .into_iter()
        .find(is_it)
        .expect("a device");
    let path = format!("{devices}/{}", found["id"]);
    double.ask("DELETE", &path, &Json::Null).expect("removed");
    let now = linode.read(&seen).await.expect("read").expect("there");
    assert_eq!(now.attributes.get("firewall"), Some(&Value::NULL));
    let same = (&first, &first);
    let seen = updated(&linode, &now, Change::InPlace, same)
        .await
        .expect("mended");
    assert_eq!(walls(&double, &id), under(&label));

    // Another one takes its place, and then none.
    let named = named_wall(&double, "named");
    let second = own(&interfaces, [("firewall_id", named.into())]);
    let change = (&first, &second);
    let seen = updated(&linode, &seen, Change::InPlace, change)
        .await
        .expect("changed");
    assert_eq!(walls(&double, &id), under("named"));
    assert_eq!(all(&double, "/networking/firewalls").len(), 1);
    // One that is not there takes nothing away.
    let wrong = own(&interfaces, [("firewall_id", 1.into())]);
    let request = update(&seen, Change::InPlace, second.clone(), wrong);
    match linode.update(request, quiet()).await {
        Err(Error::Rejected { attribute, .. }) => {
            assert_eq!(attribute.as_deref(), Some("firewall_id"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(walls(&double, &id), under("named"));
    let third = own(&interfaces, []);
    let change = (&second, &third);
    let seen = updated(&linode, &seen, Change::InPlace, change)
        .await
        .expect("changed");
    assert_eq!(walls(&double, &id), vec![Vec::<String>::new(); 3]);
    assert_eq!(
        double.events("linode_shutdown"),
        0,
        "firewalls change while it runs"
    );
    linode.delete(&seen, quiet()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_change_while_the_machine_is_off_and_it_runs_again() {
    let (double, linode) = start(62).await;
    let public = || interface("public", &[]);
    let first = own(&[public()], [("firewall", firewall("22", Value::NULL))]);
    let seen = linode
        .create(create("web", first.clone()), quiet())
        .await
        .expect("made");
    let id = seen.id.clone();
    double.advance(std::time::Duration::from_secs(600));
    let kept = shown(&double, &id)[0]["id"].clone();
    let wall = || ("firewall", firewall("22", Value::NULL));
    let second = own(&[public(), vpc(7, &[]), vlan("inner")], [wall()]);
    let change = (&first, &second);
    let seen = updated(&linode, &seen, Change::PowerCycle, change)
        .await
        .expect("changed");
    assert_eq!(text(&seen, "status"), "running");
    assert_eq!(double.events("linode_shutdown"), 1);
    let now = shown(&double, &id);
    assert_eq!(
        (now.len(), &now[0]["id"]),
        (3, &kept),
        "the first one is kept"
    );
    assert_eq!(now[0]["default_route"], json!({"ipv4": true, "ipv6": true}));
    assert_eq!(now[1]["vpc"]["subnet_id"], 7);
    let counts = |id: &str| walls(&double, id).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(
        counts(&id),
        [1, 1, 0],
        "a new one is under the firewall too"
    );

    // A change of one that is there; one that goes; one that leads elsewhere.
    let routed = [("primary", true.into()), ("nat_1_1", "any".into())];
    let third = own(&[vpc(7, &routed), vlan("outer")], [wall()]);
    let change = (&second, &third);
    let seen = updated(&linode, &seen, Change::PowerCycle, change)
        .await
        .expect("changed");
    let was = now[1]["id"].clone();
    let now = shown(&double, &id);
    assert_eq!((now.len(), &now[0]["id"]), (2, &was));
    assert_eq!(now[0]["default_route"], json!({"ipv4": true}));
    assert!(now[0]["vpc"]["ipv4"]["addresses"][0]["nat_1_1_address"].is_string());
    assert_eq!(now[1]["vlan"]["vlan_label"], "outer");
    assert_eq!(counts(&id), [1, 0]);
    assert_eq!(text(&seen, "status"), "running");
    let tags = double.instances()[0]["tags"].clone();
    assert!(!tags.to_string().contains("gobs-off"), "{tags}");
    // What cannot be leaves the machine running, and says what it is about.
    let wrong = own(&[public(), public()], [wall()]);
    let request = update(&seen, Change::PowerCycle, third, wrong);
    match linode.update(request, quiet()).await {
        Err(Error::Rejected { attribute, .. }) => {
            assert_eq!(attribute.as_deref(), Some("interface"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(double.instances()[0]["status"], "running");
}

/// Lives a machine's whole life with interfaces of its own, with a fault.
async fn live(double: &Double, linode: &Linode, fault: &Fault) -> Result<(), String> {
    let named = named_wall(double, "named");
    let public = || interface("public", &[]);
    double.fault(fault.clone());
    let first = own(&[public()], [("firewall", firewall("22", Value::NULL))]);
    let seen = made(linode, &create("web", first.clone())).await?;
    let second = own(&[public(), vlan("inner")], [("firewall_id", named.into())]);
    let change = (&first, &second);
    let seen = updated(linode, &seen, Change::PowerCycle, change).await?;
    let id = seen.id.clone();
    if walls(double, &id) != [vec!["named".to_owned()], vec![]] {
        return Err(format!("it is under {:?}", walls(double, &id)));
    }
    let third = own(&[vpc(7, &[("primary", true.into())])], []);
    let fourth = own(&[vpc(7, &[("ipv4", "10.0.0.9".into())])], []);
    let seen = updated(linode, &seen, Change::PowerCycle, (&second, &third)).await?;
    let seen = updated(linode, &seen, Change::PowerCycle, (&third, &fourth)).await?;
    let now = shown(double, &id);
    let address = &now[0]["vpc"]["ipv4"]["addresses"][0]["address"];
    if now.len() != 1 || address != "10.0.0.9" || text(&seen, "status") != "running" {
        return Err(format!("it comes to {now:?}"));
    }
    let tags = double.instances()[0]["tags"].to_string();
    if tags.contains("gobs-off") {
        return Err(format!("it is left with the tags {tags}"));
    }
    let mut tries = 0;
    while let Err(error) = linode.delete(&seen, quiet()).await {
        tries += 1;
        if tries >= TRIES_MAX {
            return Err(format!("delete: {error}"));
        }
    }
    let left = (
        double.instances().len(),
        all(double, "/networking/firewalls").len(),
    );
    if left != (0, 1) || double.stats().created != 1 {
        return Err(format!("it leaves {left:?}"));
    }
    match double.unused_faults() {
        0 => Ok(()),
        _ => Err("the fault was never met".into()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_every_fault_converges_at_interfaces() {
    let requests = [
        ("GET", "/account/settings"),
        ("GET", "/linode/instances/*/interfaces"),
        ("POST", "/linode/instances/*/interfaces"),
        ("PUT", "/linode/instances/*/interfaces/*"),
        ("DELETE", "/linode/instances/*/interfaces/*"),
        ("GET", "/linode/instances/*/interfaces/*/firewalls"),
        ("GET", "/networking/firewalls/*/devices"),
        ("POST", "/networking/firewalls/*/devices"),
        ("DELETE", "/networking/firewalls/*/devices/*"),
        ("PUT", "/linode/instances/*"),
        ("POST", "/linode/instances/*/shutdown"),
        ("POST", "/linode/instances/*/boot"),
    ];
    every_fault(&requests, 700, 24, live).await;
}

fn set(double: &Double, setting: &str) {
    let body = json!({"interfaces_for_new_linodes": setting});
    double.ask("PUT", "/account/settings", &body).expect("set");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_says_nothing_gets_what_the_account_gives() {
    let legacy = [
        "legacy_config_only",
        "legacy_config_default_but_linode_allowed",
    ];
    let of_linode = ["linode_default_but_legacy_config_allowed", "linode_only"];
    for (setting, generation) in legacy
        .map(|it| (it, "legacy_config"))
        .into_iter()
        .chain(of_linode.map(|it| (it, "linode")))
    {
        let (double, linode) = start(63).await;
        set(&double, setting);
        let plain = wanted([("firewall", firewall("22", Value::NULL))]);
        let seen = linode.create(create("web", plain), quiet()).await;
        let seen = seen.unwrap_or_else(|error| panic!("{setting}: {error}"));
        assert_eq!(text(&seen, "interface_generation"), generation, "{setting}");
        let wall = all(&double, "/networking/firewalls").remove(0);
        let of = match generation {
            "linode" => &wall["entities"][0]["parent_entity"],
            _ => &wall["entities"][0],
        };
        assert_eq!(of["id"].to_string(), seen.id, "{setting}");
    }
    // Whoever may not read the settings gets what was asked for, or a refusal.
    for (setting, refused) in [("legacy_config_only", None), ("linode_only", Some(()))] {
        let (double, _) = start(64).await;
        set(&double, setting);
        let scopes = "linodes:read_write events:read_only firewall:read_write";
        double.set_token("narrow", Some(scopes));
        let linode = provider(&double, "narrow").await;
        let plain = wanted([("firewall", firewall("22", Value::NULL))]);
        let done = linode.create(create("web", plain), quiet()).await;
        match (done, refused) {
            (Ok(seen), None) => assert_eq!(text(&seen, "interface_generation"), "legacy_config"),
            (Err(Error::Rejected { attribute, .. }), Some(())) => {
                assert_eq!(attribute.as_deref(), Some("interface_generation"));
                assert_eq!(all(&double, "/networking/firewalls"), Vec::<Json>::new());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_s_own_firewalls_are_those_of_machines_that_name_none() {
    let (double, linode) = start(65).await;
    let named = named_wall(&double, "default");
    let body = json!({"default_firewall_ids": {"public_interface": named}});
    double
        .ask("PUT", "/networking/firewalls/settings", &body)
        .expect("set");
    let of = |value: Value| {
        own(
            &[interface("public", &[]), vpc(7, &[])],
            [("firewall_id", value)],
        )
    };
    let seen = linode
        .create(create("web", of(Value::NULL)), quiet())
        .await
        .expect("made");
    // There is none for VPCs, and an interface has to say that it is to have none.
    assert_eq!(
        walls(&double, &seen.id),
        [vec!["default".to_owned()], vec![]]
    );
    let seen = linode
        .create(create("app", of((-1).into())), quiet())
        .await
        .expect("made");
    assert_eq!(walls(&double, &seen.id), vec![Vec::<String>::new(); 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_account_does_not_allow_is_said_before_it_is_done() {
    let (double, _) = start(66).await;
    let says = async |setting: &str, machine: Known, is_new: bool| {
        set(&double, setting);
        // What the account has is asked once.
        let linode = provider(&double, "double").await;
        let found = linode.objections(&proposal(machine.value(), is_new)).await;
        let found = found.expect("asked").into_iter();
        found.map(|it| it.attribute).collect::<Vec<_>>()
    };
    let of = |generation: &str| wanted([("interface_generation", generation.into())]);
    let private = || wanted([("private_ip", true.into())]);
    let nothing: [&str; 0] = [];
    let allowed = "legacy_config_default_but_linode_allowed";
    assert_eq!(
        says("legacy_config_only", of("linode"), true).await,
        ["interface_generation"]
    );
    assert_eq!(
        says("legacy_config_only", of("linode"), false).await,
        nothing
    );
    assert_eq!(
        says("linode_only", of("legacy_config"), true).await,
        ["interface_generation"]
    );
    assert_eq!(says(allowed, of("linode"), true).await, nothing);
    assert_eq!(says(allowed, private(), true).await, nothing);
    assert_eq!(says("linode_only", private(), true).await, ["private_ip"]);
    let unknown = object([
        (
            "interface_generation",
            Value::unknown(gobs_model::Type::String),
        ),
        ("private_ip", true.into()),
    ]);
    let linode = provider(&double, "double").await;
    let found = linode.objections(&proposal(&unknown, true)).await;
    assert_eq!(found.expect("asked"), []);
}

fn proposal(wanted: &Value, is_new: bool) -> Proposal {
    Proposal {
        address: address("web"),
        wanted: wanted.clone(),
        is_new,
        before: None,
    }
}
