//! The provider as a plugin: it passes the kit through the pipe, and what goes through the pipe
//! is what the published schema says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use gobs_model::{Known, Value};
use gobs_provider::Provider;
use gobs_provider::conformance::check;
use gobs_provider::pipe::Client;
use serde_json::{Value as Json, json};

use crate::conformance::fixture;
use crate::host::{AGENT, Host};
use crate::schema::Schema;

/// Runs the plugin between two recorders.
const RECORDED: &str = r#"in=$1 out=$2; shift 2; tee "$in" | "$@" | tee "$out""#;

fn plugin(host: &Host, recorded: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", RECORDED, "recorder"])
        .arg(recorded.join("requests"))
        .arg(recorded.join("replies"))
        .arg(env!("CARGO_BIN_EXE_gobs-provider-dummy"))
        .arg(&host.root)
        .arg(&host.runtime_root)
        .args(["/bin/sh", "-c", AGENT, "agent"]);
    command
}

fn lines(file: &Path) -> Vec<Json> {
    let text = fs::read_to_string(file).expect("what was recorded");
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect("JSON in each line")
}

async fn check_all(simulated: bool) -> BTreeSet<String> {
    let (host, recorded) = (Host::new(), tempfile::tempdir().expect("a directory"));
    let client = Client::start("dummy", plugin(&host, recorded.path())).expect("it starts");
    assert_eq!(client.schema(), host.dummy().schema());
    let settings = Value::object([("simulated", simulated.into())]);
    let settings = Known::try_from(settings).expect("known");
    client.configure(&settings).await.expect("configured");
    assert_eq!(client.is_simulated(), simulated);
    let outcomes = check(&client, &fixture()).await;
    let broken: Vec<_> = outcomes.iter().filter(|it| it.result.is_err()).collect();
    assert!(broken.is_empty() && !outcomes.is_empty(), "{broken:#?}");
    drop(client);
    assert_eq!(host.leftovers(), [""; 0]);

    let schema = Schema::published();
    let requests = lines(&recorded.path().join("requests"));
    for message in &requests {
        schema.check("request", message);
    }
    for message in lines(&recorded.path().join("replies")) {
        schema.check("reply", &message);
    }
    let method = |it: &Json| it["method"].as_str().map(str::to_owned);
    requests.iter().filter_map(method).collect()
}

#[tokio::test]
async fn real_machines_keep_the_contract_through_the_pipe() {
    let methods = check_all(false).await;
    let all = [
        "abandon",
        "adopt",
        "cancel",
        "configure",
        "create",
        "delete",
        "find",
        "hello",
        "import",
        "lacking",
        "list",
        "objections",
        "oddities",
        "read",
        "update",
    ];
    assert!(methods.iter().eq(&all), "{methods:?}");
}

#[tokio::test]
async fn simulated_machines_keep_the_contract_through_the_pipe() {
    check_all(true).await;
}

#[test]
fn the_published_schema_refuses_what_is_wrong() {
    let schema = Schema::published();
    for (kind, wrong) in [
        (
            "request",
            json!({"id": 1, "method": "hello", "deadline_s": 1, "params": {}}),
        ),
        (
            "request",
            json!({"id": 1, "method": "dance", "deadline_s": 1, "params": {}}),
        ),
        (
            "request",
            json!({"method": "list", "deadline_s": 1, "params": {}}),
        ),
        ("reply", json!({"id": 1})),
        ("reply", json!({"id": 1, "progress": 5})),
        ("reply", json!({"id": 1, "result": {}, "progress": "both"})),
        (
            "reply",
            json!({"id": 1, "result": {"machine": {"id": "m"}}}),
        ),
        (
            "reply",
            json!({"id": 1, "error": {"kind": "oops", "message": "no"}}),
        ),
        (
            "reply",
            json!({"id": 1, "result": {"machine": {"id": "m", "attributes": {"size": "bare"}}}}),
        ),
    ] {
        assert!(schema.wrong(kind, &wrong).is_some(), "{wrong}");
    }
}
