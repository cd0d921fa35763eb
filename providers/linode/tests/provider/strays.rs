//! What is lost, foreign or left of a machine's belongings: found, said, and never guessed at.

use gobs_linode_double::{Double, Fault, Kind};
use gobs_model::{Change, Known, Value};
use gobs_provider::{Error, Observed, Proposal, Provider};
use serde_json::{Value as Json, json};

use crate::blocks::{firewall, volume};
use crate::host::{address, create, quiet, start, update, wanted};

fn all(double: &Double, path: &str) -> Vec<Json> {
    let found = double.ask("GET", path, &Json::Null).expect("listed");
    found["data"].as_array().expect("a list").clone()
}

fn ask(double: &Double, method: &str, path: &str, body: Json) -> Json {
    double.ask(method, path, &body).expect("done")
}

fn record() -> Value {
    Value::object([
        ("domain", "example.net".into()),
        ("name", "db".into()),
        ("type", "A".into()),
        ("ttl", Value::NULL),
    ])
}

/// Returns a machine with a firewall, a record and two volumes.
fn whole() -> Known {
    let volumes = [("data", volume(10, false)), ("temp", volume(10, true))];
    wanted([
        ("firewall", firewall("22", Value::NULL)),
        ("dns", Value::list([record()])),
        ("volume", Value::map(volumes)),
    ])
}

/// Returns a machine as a run left it that did not see its belongings made.
fn unseen(seen: &Observed) -> Observed {
    let mut entries = seen
        .attributes
        .value()
        .as_entries()
        .cloned()
        .expect("an object");
    for name in ["firewall", "dns", "volume"] {
        let asked = whole().get(name).cloned().expect("asked");
        entries.insert(name.into(), asked);
    }
    entries.remove("volume_ids");
    Observed {
        id: seen.id.clone(),
        attributes: Known::try_from(Value::object(entries)).expect("known"),
    }
}

fn left(double: &Double) -> [usize; 4] {
    let domain = all(double, "/domains").remove(0);
    let records = format!("/domains/{}/records", domain["id"]);
    let of = |path: &str| all(double, path).len();
    let instances = double.instances().len();
    [
        instances,
        of("/networking/firewalls"),
        of("/volumes"),
        of(&records),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_saw_made_goes_with_its_machine_though_lists_lag() {
    for gone in [false, true] {
        let (double, linode) = start(31).await;
        ask(
            &double,
            "POST",
            "/domains",
            json!({"domain": "example.net"}),
        );
        let made = linode.create(create("web", whole()), quiet()).await;
        let seen = unseen(&made.expect("made"));
        assert_eq!(left(&double), [1, 1, 2, 1]);
        let read = linode.read(&seen).await.expect("read").expect("there");
        let of = |seen: &Observed, name| seen.attributes.get(name).cloned();
        for name in ["dns", "volume"] {
            assert_eq!(
                of(&read, name),
                of(&seen, name),
                "{name} is as doubtful as it was"
            );
        }
        for list in ["/networking/firewalls", "/volumes", "/domains/*/records"] {
            let lag = Kind::ListLag { virtual_s: 100_000 };
            double.fault(Fault::once("GET", list, lag));
        }
        if gone {
            let id = seen.id.parse().expect("a number");
            double.meddle(id, None).expect("deleted");
            double.advance(std::time::Duration::from_secs(60));
        }
        linode.delete(&seen, quiet()).await.expect("deleted");
        assert_eq!(left(&double), [0, 0, 1, 0], "the data is kept");
        assert_eq!(double.unused_faults(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firewall_of_a_machine_that_was_never_made_goes() {
    let (double, linode) = start(32).await;
    ask(
        &double,
        "POST",
        "/domains",
        json!({"domain": "example.net"}),
    );
    let maintenance = Fault::once("POST", "/linode/instances", Kind::Maintenance);
    double.fault(maintenance);
    match linode.create(create("web", whole()), quiet()).await {
        Err(Error::Busy { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(left(&double), [0, 1, 0, 0]);
    linode.abandon(&address("db")).await.expect("nothing to do");
    assert_eq!(left(&double), [0, 1, 0, 0], "it is another machine's");
    linode.abandon(&address("web")).await.expect("abandoned");
    assert_eq!(left(&double), [0, 0, 0, 0]);
    // What a machine is under stays, whoever takes it for unmade.
    let made = linode.create(create("web", whole()), quiet()).await;
    made.expect("made");
    linode
        .abandon(&address("web"))
        .await
        .expect("nothing to do");
    assert_eq!(left(&double), [1, 1, 2, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_takes_the_place_of_one_that_is_gone_has_what_was_its() {
    let (double, linode) = start(33).await;
    ask(
        &double,
        "POST",
        "/domains",
        json!({"domain": "example.net"}),
    );
    let made = linode.create(create("web", whole()), quiet()).await;
    let seen = made.expect("made");
    for volume in all(&double, "/volumes") {
        let path = format!("/volumes/{}", volume["id"]);
        // Not by its mark, and not by its label: only by what was seen of it.
        let label = format!("other-{}", volume["id"]);
        ask(&double, "PUT", &path, json!({"tags": [], "label": label}));
    }
    let id = seen.id.parse().expect("a number");
    double.meddle(id, None).expect("deleted");
    double.advance(std::time::Duration::from_secs(60));
    let mut request = create("web", whole());
    request.before = Some(seen);
    let next = linode.create(request, quiet()).await.expect("made");
    assert_eq!(left(&double), [1, 1, 2, 1]);
    let stats = double.stats();
    assert_eq!((stats.volumes_created, stats.records_created), (2, 1));
    // Without its blocks, the next one has nothing of it.
    let id = next.id.parse().expect("a number");
    double.meddle(id, None).expect("deleted");
    double.advance(std::time::Duration::from_secs(60));
    let mut request = create("web", wanted([]));
    request.before = Some(next);
    linode.create(request, quiet()).await.expect("made");
    assert_eq!(left(&double), [1, 0, 1, 0], "the data is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_empty_volume_takes_the_place_of_one_that_is_lost() {
    let (double, linode) = start(34).await;
    let with = |size, region: &str| {
        wanted([
            ("region", region.into()),
            ("volume", Value::map([("data", volume(size, false))])),
        ])
    };
    let first = with(10, "eu-central");
    let made = linode.create(create("web", first.clone()), quiet()).await;
    let seen = made.expect("made");
    let path = format!("/volumes/{}", all(&double, "/volumes")[0]["id"]);
    let objections = async |wanted: Known, before: Option<&Observed>| {
        let proposal = Proposal {
            address: address("web"),
            wanted: wanted.value().clone(),
            is_new: before.is_none(),
            before: before.cloned(),
        };
        linode.objections(&proposal).await.expect("asked")
    };
    // Without its tag it is found by its label, and marked again; the machine need not be there.
    ask(&double, "PUT", &path, json!({"tags": []}));
    let change = update(&seen, Change::InPlace, first.clone(), first.clone());
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(
        all(&double, "/volumes")[0]["tags"].as_array().map(Vec::len),
        Some(1)
    );
    ask(&double, "PUT", &path, json!({"tags": []}));
    linode.delete(&seen, quiet()).await.expect("deleted");
    assert_eq!(
        all(&double, "/volumes")[0]["tags"].as_array().map(Vec::len),
        Some(1)
    );
    ask(&double, "PUT", &path, json!({"tags": []}));
    // What cannot be is said beforehand, of a machine that is yet to be made too.
    for (asked, says) in [
        (
            with(5, "eu-central"),
            "volume data has 10 GB, and volumes never shrink",
        ),
        (
            with(10, "us-ord"),
            "volume data is in eu-central, and volumes do not move",
        ),
    ] {
        let refused = objections(asked, None).await;
        assert!(refused[0].message.starts_with(says), "{refused:?}");
        let about = (&*refused[0].attribute, refused[0].label.as_deref());
        assert_eq!(about, ("volume", Some("data")));
    }
    let made = linode.create(create("web", first.clone()), quiet()).await;
    let seen = made.expect("made");
    assert_eq!(objections(with(20, "eu-central"), Some(&seen)).await, []);
    assert_eq!(double.stats().volumes_created, 1);

    ask(&double, "POST", &format!("{path}/detach"), json!({}));
    double.advance(std::time::Duration::from_secs(60));
    ask(&double, "DELETE", &path, json!({}));
    let now = linode.read(&seen).await.expect("read").expect("there");
    let refused = objections(first.clone(), Some(&now)).await;
    assert!(
        refused[0].message.ends_with("is gone, with its data"),
        "{refused:?}"
    );
    let change = update(&now, Change::InPlace, first.clone(), first.clone());
    match linode.update(change, quiet()).await {
        Err(Error::Rejected { message, .. }) => assert!(message.contains("is gone"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(double.stats().volumes_created, 1);
    // Taken out and declared again, it is a new one.
    let change = update(&now, Change::InPlace, first.clone(), wanted([]));
    let seen = linode.update(change, quiet()).await.expect("updated");
    let change = update(&seen, Change::InPlace, wanted([]), first);
    linode.update(change, quiet()).await.expect("updated");
    assert_eq!(double.stats().volumes_created, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_another_machine_has_is_let_be() {
    for deletes in [false, true] {
        let (double, linode) = start(35).await;
        let with = wanted([("volume", Value::map([("data", volume(10, deletes))]))]);
        let made = linode.create(create("web", with.clone()), quiet()).await;
        let seen = made.expect("made");
        let other = linode.create(create("db", wanted([])), quiet()).await;
        let other: u64 = other.expect("made").id.parse().expect("a number");
        double.advance(std::time::Duration::from_secs(600));
        let path = format!("/volumes/{}", all(&double, "/volumes")[0]["id"]);
        ask(&double, "POST", &format!("{path}/detach"), json!({}));
        double.advance(std::time::Duration::from_secs(60));
        ask(
            &double,
            "POST",
            &format!("{path}/attach"),
            json!({"linode_id": other}),
        );
        double.advance(std::time::Duration::from_secs(60));
        let change = update(&seen, Change::InPlace, with, wanted([]));
        match (deletes, linode.update(change, quiet()).await) {
            (false, Ok(_)) => {}
            (true, Err(Error::Rejected { message, .. })) => {
                assert!(message.contains("which is not this machine"), "{message}");
            }
            (_, other) => panic!("{other:?}"),
        }
        let volume = all(&double, "/volumes").remove(0);
        assert_eq!(volume["linode_id"], other, "it stays where it is");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_the_rows_have_it_is_told() {
    let (double, linode) = start(36).await;
    let domain = ask(
        &double,
        "POST",
        "/domains",
        json!({"domain": "example.net"}),
    );
    let records = format!("/domains/{}/records", domain["id"]);
    let made = linode.create(create("web", whole()), quiet()).await;
    let known = [(address("web"), made.expect("made"))];
    assert_eq!(linode.oddities(&known).await, Ok(Vec::new()));
    // All that carries the project's mark, where no row has it.
    let strays = linode.oddities(&[]).await.expect("asked");
    let problems: Vec<bool> = strays.iter().map(|it| it.is_problem).collect();
    assert_eq!(problems, [true, false, false], "{strays:?}");
    assert!(strays[0].what.contains("gobs-web-"), "{strays:?}");

    let wall = all(&double, "/networking/firewalls").remove(0);
    let wall = format!("/networking/firewalls/{}", wall["id"]);
    ask(&double, "PUT", &wall, json!({"tags": []}));
    let volume = format!("/volumes/{}", all(&double, "/volumes")[0]["id"]);
    ask(&double, "DELETE", &volume, json!({}));
    let record = all(&double, &records).remove(0);
    ask(
        &double,
        "DELETE",
        &format!("{records}/{}", record["id"]),
        json!({}),
    );
    let by_hand = json!({"type": "A", "name": "www", "target": record["target"]});
    ask(&double, "POST", &records, by_hand);
    let odd = linode.oddities(&known).await.expect("asked");
    let odd: Vec<(&str, bool)> = odd.iter().map(|it| (&*it.what, it.is_problem)).collect();
    for (says, is_problem) in [
        ("has lost its mark gobs-firewall:", true),
        ("the volume \"data\" of machine.web", true),
        ("the record \"db\" in \"example.net\" of machine.web", true),
        ("the record \"www\" in \"example.net\"", false),
    ] {
        let found = odd.iter().find(|(what, _)| what.contains(says));
        assert_eq!(found.map(|it| it.1), Some(is_problem), "{says}: {odd:?}");
    }
    assert_eq!(odd.len(), 4, "{odd:?}");
    // A token that may not see what nobody uses is no obstacle.
    double.set_token("double", Some("linodes:read_write events:read_only"));
    assert_eq!(linode.oddities(&[]).await, Ok(Vec::new()));
}
