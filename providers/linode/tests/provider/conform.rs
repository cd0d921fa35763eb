//! The provider passes the kit.

use std::process::Command;

use gobs_linode_double::Double;
use gobs_model::{Change, Known, Value};
use gobs_provider::conformance::{Fixture, check};
use gobs_provider::pipe::Client;
use gobs_provider::{Provider, UserData};

use crate::blocks;
use crate::host::{SCALE, start, wanted};

fn fixture() -> Fixture {
    let bigger = ("type", "g6-standard-1".into());
    let newer = ("image", "linode/debian12".into());
    Fixture {
        wanted: wanted([("root_pass", Value::from("correct horse").sensitive())]),
        changes: vec![
            (Change::InPlace, wanted([("label", "renamed".into())])),
            (
                Change::Resize,
                wanted([("label", "renamed".into()), bigger.clone()]),
            ),
            (
                Change::Rebuild,
                wanted([("label", "renamed".into()), bigger, newer]),
            ),
        ],
        refused: Some(wanted([("region", "nowhere".into())])),
        // It is not lost on this provider: it looks, and adopts. See the matrix of faults.
        loses_answer: None,
        user_data: Some(UserData("the way home".into())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linode_machines_keep_the_contract() {
    let (double, linode) = start(11).await;
    keeps_the_contract(&double, &linode, &fixture()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linode_machines_keep_the_contract_with_what_belongs_to_them() {
    let (double, linode) = start(12).await;
    let with = |ports: &str, size: i64| {
        let volume = ("data", blocks::volume(size, true));
        wanted([
            ("firewall", blocks::firewall(ports, Value::NULL)),
            ("volume", Value::map([volume])),
        ])
    };
    let fixture = Fixture {
        wanted: with("22", 10),
        changes: vec![
            (Change::InPlace, with("80", 20)),
            (Change::InPlace, wanted([])),
        ],
        refused: Some(with("ssh", 10)),
        ..fixture()
    };
    keeps_the_contract(&double, &linode, &fixture).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linode_machines_keep_the_contract_through_the_pipe() {
    let (double, linode) = start(11).await;
    let mut plugin = Command::new(env!("CARGO_BIN_EXE_gobs-provider-linode"));
    plugin
        .env("LINODE_TOKEN", "double")
        .env("LINODE_URL", double.url())
        .env("LINODE_CLOCK_SCALE", SCALE.to_string());
    let client = Client::start("linode", plugin).expect("it starts");
    assert_eq!(client.schema(), linode.schema());
    client.configure(&Known::empty()).await.expect("configured");
    keeps_the_contract(&double, &client, &fixture()).await;
}

async fn keeps_the_contract(double: &Double, provider: &dyn Provider, fixture: &Fixture) {
    let outcomes = check(provider, fixture).await;
    let broken: Vec<_> = outcomes.iter().filter(|it| it.result.is_err()).collect();
    assert!(broken.is_empty() && !outcomes.is_empty(), "{broken:#?}");
    for path in ["/linode/instances", "/networking/firewalls", "/volumes"] {
        let left = double.ask("GET", path, &serde_json::Value::Null);
        assert_eq!(left.expect("listed")["results"], 0, "{path}");
    }
}
