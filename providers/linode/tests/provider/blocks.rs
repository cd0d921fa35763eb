//! What belongs to a machine: its firewall, its records, its volumes, across changes and faults.

use std::time::Duration;

use gobs_linode_double::{Double, Fault, Kind};
use gobs_model::{Change, Known, Value};
use gobs_provider::{CreateRequest, Error, Observed, Provider};
use gobs_provider_linode::Linode;
use serde_json::{Value as Json, json};

use crate::faults::every_fault;
use crate::host::{create, quiet, start, text, update, wanted};

/// How often a caller asks again, as `apply` does.
const TRIES_MAX: usize = 5;

pub(crate) fn object<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::object(entries)
}

fn rule(ports: &str) -> Value {
    object([
        ("label", "web".into()),
        ("action", "ACCEPT".into()),
        ("protocol", "TCP".into()),
        ("ports", ports.into()),
        ("description", Value::NULL),
        ("ipv4", Value::list(["0.0.0.0/0".into()])),
        ("ipv6", Value::NULL),
    ])
}

pub(crate) fn firewall(ports: &str, admits: Value) -> Value {
    object([
        ("derived", true.into()),
        ("admits", admits),
        ("inbound", Value::list([rule(ports)])),
        ("outbound", Value::list([])),
        ("inbound_policy", "DROP".into()),
        ("outbound_policy", "ACCEPT".into()),
        ("label", Value::NULL),
    ])
}

fn record(ttl: i64) -> Value {
    object([
        ("domain", "example.net".into()),
        ("name", "db".into()),
        ("type", "A".into()),
        ("ttl", ttl.into()),
    ])
}

pub(crate) fn volume(size: i64, delete: bool) -> Value {
    object([
        ("size", size.into()),
        ("delete", delete.into()),
        ("label", Value::NULL),
        ("tags", Value::NULL),
        ("encryption", Value::NULL),
    ])
}

fn volumes<const N: usize>(all: [(&str, Value); N]) -> Value {
    Value::map(all)
}

fn with_domain(double: &Double) {
    double
        .ask("POST", "/domains", &json!({"domain": "example.net"}))
        .expect("a domain");
}

/// Returns what the account has at a path.
pub(crate) fn all(double: &Double, path: &str) -> Vec<Json> {
    let found = double.ask("GET", path, &Json::Null).expect("listed");
    found["data"].as_array().expect("a list").clone()
}

fn records(double: &Double) -> Vec<Json> {
    let domain = all(double, "/domains").remove(0);
    all(double, &format!("/domains/{}/records", domain["id"]))
}

#[track_caller]
fn within<'a>(seen: &'a Observed, path: &[&str]) -> &'a Value {
    let whole = seen.attributes.value();
    path.iter().fold(whole, |of, name| {
        of.get(name)
            .unwrap_or_else(|| panic!("no {name} in {of:?}"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_a_machine_follows_it() {
    let (double, linode) = start(21).await;
    with_domain(&double);
    let first = wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("dns", Value::list([record(300)])),
        (
            "volume",
            volumes([("data", volume(10, false)), ("temp", volume(10, true))]),
        ),
    ]);
    let request = create("web", first.clone());
    let seen = linode.create(request, quiet()).await.expect("made");
    let id: u64 = seen.id.parse().expect("a number");
    let wall = all(&double, "/networking/firewalls").remove(0);
    assert_eq!(wall["entities"][0]["id"], id);
    assert_eq!(wall["rules"]["inbound_policy"], "DROP");
    let address = double.instances()[0]["ipv4"][0].clone();
    assert_eq!(records(&double)[0]["target"], address);
    for volume in all(&double, "/volumes") {
        assert_eq!(
            (&volume["linode_id"], &volume["status"]),
            (&json!(id), &json!("active"))
        );
    }
    // What the API computes can be referred to.
    let path = within(&seen, &["volume", "data", "path"])
        .as_str()
        .expect("a path");
    assert!(
        path.starts_with("/dev/disk/by-id/scsi-0Linode_Volume_gobs-web-data-"),
        "{path}"
    );
    let read = linode.read(&seen).await.expect("read").expect("there");
    assert_eq!(read.attributes, seen.attributes, "nothing has drifted");

    let admits = Value::set([object([
        ("address", "192.0.2.7".into()),
        ("port", 7463.into()),
    ])]);
    let second = wanted([
        ("firewall", firewall("22, 443", admits.clone())),
        ("dns", Value::list([record(7_000)])),
        ("volume", volumes([("data", volume(20, false))])),
        ("region", "eu-central".into()),
    ]);
    let change = update(&seen, Change::InPlace, first, second.clone());
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(within(&seen, &["volume", "data", "size"]), &20.into());
    assert_eq!(within(&seen, &["firewall", "admits"]), &admits);
    let rules = all(&double, "/networking/firewalls").remove(0)["rules"]["inbound"].clone();
    assert_eq!(rules[0]["ports"], "22, 443");
    assert_eq!(rules[1]["ports"], "7463");
    assert_eq!(rules[1]["addresses"], json!({"ipv4": ["192.0.2.7/32"]}));
    // Linode rounds it up, which is no drift.
    assert_eq!(records(&double)[0]["ttl_sec"], 7_200);
    assert_eq!(
        within(&seen, &["dns"]).as_elements().expect("records")[0].get("ttl"),
        Some(&7_000.into())
    );
    let kept = all(&double, "/volumes");
    assert_eq!(
        kept.len(),
        1,
        "what was to go with its block is gone: {kept:?}"
    );

    // Without its block, a volume is kept; nobody has it then.
    let third = wanted([("dns", Value::list([record(7_000)]))]);
    let change = update(&seen, Change::InPlace, second, third.clone());
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(all(&double, "/networking/firewalls"), Vec::<Json>::new());
    assert_eq!(all(&double, "/volumes")[0]["linode_id"], Json::Null);

    // The record follows a machine that moves.
    let moved = wanted([
        ("dns", Value::list([record(7_000)])),
        ("region", "us-ord".into()),
    ]);
    let change = update(&seen, Change::Migrate, third, moved);
    let seen = linode.update(change, quiet()).await.expect("moved");
    let now = double.instances()[0]["ipv4"][0].clone();
    assert_ne!(now, address);
    assert_eq!(records(&double)[0]["target"], now);
    linode.delete(&seen, quiet()).await.expect("deleted");
    assert_eq!((double.instances().len(), records(&double).len()), (0, 0));
    let stats = double.stats();
    assert_eq!(
        (
            stats.firewalls_created,
            stats.volumes_created,
            stats.records_created
        ),
        (1, 2, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_found_again_by_the_machine_that_takes_the_place() {
    let (double, linode) = start(22).await;
    let with = wanted([("volume", volumes([("data", volume(10, false))]))]);
    let seen = linode
        .create(create("web", with.clone()), quiet())
        .await
        .expect("made");
    let id = within(&seen, &["volume", "data", "id"]).clone();
    linode.delete(&seen, quiet()).await.expect("deleted");
    assert_eq!(all(&double, "/volumes").len(), 1);
    let seen = linode
        .create(create("web", with.clone()), quiet())
        .await
        .expect("made");
    assert_eq!(within(&seen, &["volume", "data", "id"]), &id);
    // Another machine has another volume, of the same name or not.
    let other = linode
        .create(create("db", with.clone()), quiet())
        .await
        .expect("made");
    assert_ne!(within(&other, &["volume", "data", "id"]), &id);
    // What no volume can do is refused before anything is done.
    let smaller = wanted([("volume", volumes([("data", volume(5, false))]))]);
    let elsewhere = wanted([
        ("volume", volumes([("data", volume(10, false))])),
        ("region", "us-ord".into()),
    ]);
    let cases = [
        (smaller, "never shrink"),
        (elsewhere, "do not move to another region"),
    ];
    for (asked, why) in cases {
        let change = update(&seen, Change::Migrate, with.clone(), asked);
        match linode.update(change, quiet()).await {
            Err(Error::Rejected { message, attribute }) => {
                assert!(message.contains(why), "{message}");
                assert_eq!(attribute.as_deref(), Some("volume"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(double.events("linode_migrate_datacenter"), 0);
    // Its end is that of its machine where it says so, also of one that is gone already.
    let doomed = wanted([("volume", volumes([("data", volume(10, true))]))]);
    let change = update(&seen, Change::InPlace, with, doomed);
    let seen = linode.update(change, quiet()).await.expect("updated");
    double
        .meddle(seen.id.parse().expect("a number"), None)
        .expect("deleted");
    double.advance(Duration::from_secs(60));
    linode.delete(&seen, quiet()).await.expect("deleted");
    assert_eq!(
        all(&double, "/volumes").len(),
        1,
        "the other machine's is left"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_change_is_seen_and_mended() {
    let (double, linode) = start(23).await;
    with_domain(&double);
    let whole = wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("dns", Value::list([record(300)])),
        ("volume", volumes([("data", volume(10, false))])),
    ]);
    let seen = linode
        .create(create("web", whole.clone()), quiet())
        .await
        .expect("made");
    let wall = all(&double, "/networking/firewalls").remove(0);
    let volume = all(&double, "/volumes").remove(0);
    let record = records(&double).remove(0);
    let domain = all(&double, "/domains").remove(0);
    let ask = |method: &str, path: String, body: Json| {
        double.ask(method, &path, &body).expect("done");
    };
    let open = json!({"inbound": [], "inbound_policy": "ACCEPT", "outbound": [],
        "outbound_policy": "ACCEPT"});
    ask(
        "PUT",
        format!("/networking/firewalls/{}/rules", wall["id"]),
        open,
    );
    ask(
        "POST",
        format!("/volumes/{}/detach", volume["id"]),
        json!({}),
    );
    ask(
        "DELETE",
        format!("/domains/{}/records/{}", domain["id"], record["id"]),
        json!({}),
    );
    double.advance(Duration::from_secs(60));
    let now = linode.read(&seen).await.expect("read").expect("there");
    assert_eq!(
        within(&now, &["firewall", "inbound_policy"]),
        &"ACCEPT".into()
    );
    assert_eq!(within(&now, &["volume"]).get("data"), None);
    assert_eq!(
        within(&now, &["dns"]).as_elements(),
        Some(&[Value::NULL][..])
    );
    let change = update(&now, Change::InPlace, whole.clone(), whole.clone());
    let mended = linode.update(change, quiet()).await.expect("mended");
    let same = |name: &str| {
        (
            mended.attributes.get(name).cloned(),
            seen.attributes.get(name).cloned(),
        )
    };
    for name in ["firewall", "volume"] {
        let (mended, seen) = same(name);
        assert_eq!(mended, seen, "{name}");
    }
    assert_eq!(records(&double).len(), 1);
    // A firewall that is gone altogether is made anew.
    ask(
        "DELETE",
        format!("/networking/firewalls/{}", wall["id"]),
        json!({}),
    );
    let now = linode.read(&mended).await.expect("read").expect("there");
    assert_eq!(now.attributes.get("firewall"), Some(&Value::NULL));
    let change = update(&now, Change::InPlace, whole.clone(), whole);
    linode.update(change, quiet()).await.expect("mended");
    assert_eq!(
        all(&double, "/networking/firewalls")[0]["entities"][0]["id"].to_string(),
        seen.id
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_leaves_nothing() {
    let (double, linode) = start(24).await;
    let wrong_port = wanted([("firewall", firewall("ssh", Value::NULL))]);
    let no_region = wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("region", "nowhere".into()),
    ]);
    for (it, attribute) in [(wrong_port, "firewall"), (no_region, "region")] {
        match linode.create(create("web", it), quiet()).await {
            Err(Error::Rejected { attribute: of, .. }) => {
                assert_eq!(of.as_deref(), Some(attribute));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(all(&double, "/networking/firewalls"), Vec::<Json>::new());
        assert_eq!(double.instances(), Vec::<Json>::new());
    }
    // Once the machine is there, what comes after it is no refusal of the machine.
    let lost = wanted([("dns", Value::list([record(300)]))]);
    let request = create("web", lost);
    match linode.create(request.clone(), quiet()).await {
        Err(Error::InDoubt(why)) => assert_eq!(why, "the account has no domain example.net"),
        other => panic!("{other:?}"),
    }
    with_domain(&double);
    let seen = linode.create(request, quiet()).await.expect("finished");
    assert_eq!((double.instances().len(), records(&double).len()), (1, 1));
    linode.delete(&seen, quiet()).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_and_interfaces_are_as_asked() {
    let (double, linode) = start(25).await;
    let group = |label: &str| {
        let body = json!({"label": label, "region": "eu-central", "placement_group_type":
            "anti_affinity:local", "placement_group_policy": "flexible"});
        let made = double
            .ask("POST", "/placement/groups", &body)
            .expect("made");
        made["id"].as_i64().expect("an id")
    };
    let (one, two) = (group("one"), group("two"));
    let vlan = object([
        ("purpose", "vlan".into()),
        ("label", "inner".into()),
        ("ipam_address", "10.0.0.1/24".into()),
        ("subnet_id", Value::NULL),
        ("ipv4", Value::NULL),
        ("nat_1_1", Value::NULL),
        ("primary", Value::NULL),
    ]);
    let public = object([("purpose", "public".into()), ("primary", true.into())]);
    let first = wanted([
        ("placement_group", one.into()),
        ("interface", Value::list([public.clone()])),
    ]);
    let seen = linode
        .create(create("web", first.clone()), quiet())
        .await
        .expect("made");
    assert_eq!(seen.attributes.get("placement_group"), Some(&one.into()));
    let second = wanted([
        ("placement_group", two.into()),
        ("interface", Value::list([public, vlan])),
    ]);
    let change = update(&seen, Change::PowerCycle, first, second);
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(seen.attributes.get("placement_group"), Some(&two.into()));
    assert_eq!(text(&seen, "status"), "running");
    let path = format!("/linode/instances/{}/configs", seen.id);
    let interfaces = all(&double, &path).remove(0)["interfaces"].clone();
    assert_eq!(interfaces[1]["label"], "inner");
}

/// Asks as `apply` does: what is in doubt is looked for, and then asked for again.
pub(crate) async fn made(linode: &Linode, request: &CreateRequest) -> Result<Observed, String> {
    for _ in 0..TRIES_MAX {
        match linode.create(request.clone(), quiet()).await {
            Ok(seen) => return Ok(seen),
            Err(Error::Busy { .. } | Error::InDoubt(_)) => {}
            Err(error) => return Err(format!("create: {error}")),
        }
    }
    Err("create does not converge".into())
}

async fn updated(
    linode: &Linode,
    before: &Observed,
    was: &Known,
    wanted: &Known,
) -> Result<Observed, String> {
    let request = update(before, Change::InPlace, was.clone(), wanted.clone());
    for _ in 0..TRIES_MAX {
        match linode.update(request.clone(), quiet()).await {
            Ok(seen) => return Ok(seen),
            Err(Error::Busy { .. } | Error::InDoubt(_)) => {}
            Err(error) => return Err(format!("update: {error}")),
        }
    }
    Err("update does not converge".into())
}

/// Lives a machine's whole life, and that of what belongs to it, with a fault.
async fn live(double: &Double, linode: &Linode, fault: &Fault) -> Result<(), String> {
    with_domain(double);
    double.fault(fault.clone());
    let first = wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("dns", Value::list([record(300)])),
        (
            "volume",
            volumes([("data", volume(10, false)), ("temp", volume(10, true))]),
        ),
    ]);
    let seen = made(linode, &create("web", first.clone())).await?;
    let second = wanted([
        ("firewall", firewall("80", Value::NULL)),
        ("dns", Value::list([record(3_600)])),
        ("volume", volumes([("data", volume(20, false))])),
    ]);
    let seen = updated(linode, &seen, &first, &second).await?;
    let third = wanted([("volume", volumes([("data", volume(20, true))]))]);
    let seen = updated(linode, &seen, &second, &third).await?;
    if !(all(double, "/networking/firewalls").is_empty() && records(double).is_empty()) {
        return Err("what is not asked for any more is left".into());
    }
    let fourth = wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("dns", Value::list([record(300)])),
        ("volume", volumes([("data", volume(20, true))])),
    ]);
    let seen = updated(linode, &seen, &third, &fourth).await?;
    let mut tries = 0;
    while let Err(error) = linode.delete(&seen, quiet()).await {
        tries += 1;
        if tries >= TRIES_MAX || !matches!(error, Error::Busy { .. } | Error::InDoubt(_)) {
            return Err(format!("delete: {error}"));
        }
    }
    let left = ["/networking/firewalls", "/volumes"].map(|path| all(double, path).len());
    let left = (double.instances().len(), left, records(double).len());
    if left != (0, [0, 0], 0) {
        return Err(format!("it leaves {left:?}"));
    }
    let stats = double.stats();
    let made = (stats.created, stats.firewalls_created);
    let made = (made, stats.volumes_created, stats.records_created);
    if made != ((1, 2), 2, 2) {
        return Err(format!("it made {made:?}"));
    }
    match double.unused_faults() {
        0 => Ok(()),
        _ => Err("the fault was never met".into()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_every_fault_converges_at_what_belongs_to_a_machine() {
    let requests = [
        ("GET", "/networking/firewalls"),
        ("POST", "/networking/firewalls"),
        ("PUT", "/networking/firewalls/*/rules"),
        ("DELETE", "/networking/firewalls/*"),
        ("GET", "/linode/instances/*/firewalls"),
        ("PUT", "/linode/instances/*/firewalls"),
        ("GET", "/volumes"),
        ("GET", "/volumes/*"),
        ("POST", "/volumes"),
        ("POST", "/volumes/*/attach"),
        ("POST", "/volumes/*/resize"),
        ("POST", "/volumes/*/detach"),
        ("DELETE", "/volumes/*"),
        ("GET", "/linode/instances/*/volumes"),
        ("GET", "/domains"),
        ("GET", "/domains/*/records"),
        ("POST", "/domains/*/records"),
        ("PUT", "/domains/*/records/*"),
        ("DELETE", "/domains/*/records/*"),
    ];
    every_fault(&requests, 0, 24, live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_what_lists_show_late_is_not_made_twice() {
    for path in ["/networking/firewalls", "/volumes", "/domains/*/records"] {
        let (double, linode) = start(26).await;
        with_domain(&double);
        double.fault(Fault::once("POST", path, Kind::ResetAfter));
        // The first look comes before there is anything to see.
        let lag = Fault::once("GET", path, Kind::ListLag { virtual_s: 8 });
        double.fault(lag.times(3));
        let request = create(
            "web",
            wanted([
                ("firewall", firewall("22", Value::NULL)),
                ("dns", Value::list([record(300)])),
                ("volume", volumes([("data", volume(10, false))])),
            ]),
        );
        made(&linode, &request).await.expect("made");
        let stats = double.stats();
        let made = (
            stats.firewalls_created,
            stats.volumes_created,
            stats.records_created,
        );
        assert_eq!(made, (1, 1, 1), "{path}");
    }
}
