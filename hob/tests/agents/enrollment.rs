//! Claiming, registering, and coming back.

use std::sync::Arc;

use hob::protocol::{method, to_passable};
use ocapn::Passable;

use crate::support::{Boss, Host, eventually, generation, stranger};

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_claims_registers_and_erases_its_user_data() {
    let boss = Boss::new().await;
    let data = boss.invite("machine.db", &[]);
    let mut host = Host::start(&data, &[]);
    let client = boss.client("machine.db").await;
    eventually("user data erased", async || {
        !host.layout.user_data().exists()
    })
    .await;
    eventually("the hob knows", async || {
        client.status().await.boss_connected
    })
    .await;
    let status = client.status().await;
    assert_eq!(
        (status.machine.as_str(), status.designator),
        ("machine.db", client.designator)
    );

    let second = host.command().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(
        said.contains("another hob runs in this directory"),
        "{said}"
    );

    let status = host.command().arg("status").output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["machine"], "machine.db");

    assert_eq!(host.terminate(), Some(0));
    let log = host.log();
    for secret in [
        data.sturdyref.to_uri().as_str(),
        "swissnum one-time",
        "swissnum key-bound",
    ] {
        assert!(!log.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_waits_for_its_boss_and_finds_it_again() {
    let seed = [7; 32];
    let boss = Boss::start(&seed, "127.0.0.1:0".parse().unwrap(), Arc::default()).await;
    let data = boss.invite("machine.db", &[]);
    let (host_address, port) = boss.peer.locator().addresses().remove(0);
    let listen = format!("{host_address}:{port}").parse().unwrap();
    let known = Arc::clone(&boss.known);
    boss.peer.close().await;

    // Nobody listens when the hob starts.
    let mut host = Host::start(&data, &[]);
    eventually("tried in vain", async || {
        host.log().contains("not registered")
    })
    .await;
    host.kill();
    host.start_again();
    let boss = Boss::start(&seed, listen, known).await;
    let client = boss.client("machine.db").await;
    let known = Arc::clone(&boss.known);
    let name = boss.client_sturdyref("machine.db");
    boss.peer.close().await;

    // The next boss does not wait for the hob: it dials, and the durable name still leads there.
    let boss = Boss::start(&seed, listen, known).await;
    let again = boss.peer.enliven(&name).await.unwrap();
    let bindings = again.call(method::LIST_BINDINGS, []).await.unwrap();
    assert_eq!(bindings, Passable::List(vec![]));
    assert_eq!(
        boss.client("machine.db").await.designator,
        client.designator
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hob_answers_its_boss_only() {
    let boss = Boss::new().await;
    let host = Host::start(&boss.invite("machine.db", &[]), &[]);
    let client = boss.client("machine.db").await;
    let name = boss.client_sturdyref("machine.db");
    let (peer, _, _) = stranger();
    let refused = peer.enliven(&name).await.unwrap_err().to_string();
    let mut unknown = name.clone();
    unknown.swissnum = ocapn::Swissnum::new(*b"guessed");
    assert_eq!(
        refused,
        peer.enliven(&unknown).await.unwrap_err().to_string()
    );

    // What is malformed is refused, and told so.
    let broken = client
        .hob
        .call(method::REVOKE, ["x".into()])
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Some("malformed"));
    let broken = client.hob.call("open-the-door", []).await.unwrap_err();
    assert_eq!(broken.code(), Some("malformed"));
    let args = [to_passable(&generation(1))];
    let broken = client
        .hob
        .call(method::CHECK_BINDING, args)
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Some("unknown"));
    drop(host);
}

#[test]
fn a_hob_that_cannot_run_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hob"));
        let output = command.args(args).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let at = dir.path().to_str().unwrap();
    let (code, said) = run(&["--dir", at]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("cannot read") && said.contains("machine.json"),
        "{said}"
    );

    let machine = format!(r#"{{"format":1,"token":"t","runtime":"{at}/run"}}"#);
    std::fs::write(dir.path().join("machine.json"), machine).unwrap();
    let (code, said) = run(&["--dir", at]);
    assert_eq!(code, Some(1));
    assert!(said.contains("there is no user data"), "{said}");
    let (code, said) = run(&["--dir", at, "list"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no hob answers"), "{said}");

    std::fs::write(dir.path().join("hob/state.json"), "{").unwrap();
    let (code, said) = run(&["--dir", at]);
    assert_eq!(code, Some(1));
    assert!(said.contains("state.json is damaged"), "{said}");
    let (code, said) = run(&["dance"]);
    assert_eq!(code, Some(64));
    assert!(said.contains("dance is no command of the hob"), "{said}");
}
