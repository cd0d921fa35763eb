//! Peers over real sockets: sessions, references, handoffs.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use crate::support::{ANY_PORT, Methods, TestPeer, echoes, service, severed, soon};
use futures_util::future::join_all;
use ocapn::{
    Answer, ConnectError, DialError, EnlivenError, Identity, Passable, Reference, SessionEvent,
    TlsRpk, TlsRpkOptions, Turn,
};
use tokio::net::TcpListener;

fn dialling() -> TestPeer {
    TestPeer::dialling(Identity::generate().unwrap())
}

async fn listening() -> TestPeer {
    TestPeer::listening(TlsRpkOptions::default()).await
}

#[tokio::test]
async fn objects_are_fetched_called_and_pipelined() {
    let server = listening().await;
    let client = dialling();
    let sturdyref = server.offer("service", service());

    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    echoes(&remote, "hello").await;
    let pipelined = remote
        .call("self", [])
        .call("self", [])
        .call("echo", ["deep".into()]);
    assert_eq!(soon(pipelined).await.unwrap().as_str(), Some("deep"));
    let broken = soon(remote.call("fail", []).call("echo", []))
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Some("asked-for"));

    let who = soon(remote.call("who", [])).await.unwrap();
    assert_eq!(who.as_str(), Some(client.designator().as_str()));
    let asked = server.table.asked.lock().unwrap().clone();
    let [(swissnum, from)] = &asked[..] else {
        panic!("one fetch, not {asked:?}")
    };
    assert_eq!(swissnum, b"service");
    assert!(from.authenticated && from.address.is_some());
    assert_eq!(from.designator, client.designator());
}

#[tokio::test]
async fn a_session_serves_both_directions() {
    let server = listening().await;
    let client = dialling();
    let offered = client.offer("mine", service());
    soon(client.peer.connect(&server.peer.locator()))
        .await
        .unwrap();
    // The client has no address: the server reaches it over the session that stands.
    let mut events = server.peer.session_events();
    while !server.peer.has_session(&client.designator()) {
        soon(events.recv()).await.unwrap();
    }
    let remote = soon(server.peer.enliven(&offered)).await.unwrap();
    echoes(&remote, "backwards").await;
}

#[tokio::test]
async fn unknown_swissnums_are_refused_alike() {
    let server = listening().await;
    let client = dialling();
    server.offer("known", service());
    let mut texts = Vec::new();
    for name in ["other", "", "known "] {
        match soon(client.peer.enliven(&server.sturdyref(name))).await {
            Err(EnlivenError::Refused(broken)) => texts.push(broken.to_string()),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[tokio::test]
async fn c4_a_peer_that_guesses_swissnums_is_shown_out() {
    let mut server = listening().await;
    let client = dialling();
    soon(client.peer.connect(&server.peer.locator()))
        .await
        .unwrap();
    server.expect_up(&client.designator()).await;
    let sturdyref = server.sturdyref("guess");
    let guesses = (0..200).map(|_| client.peer.enliven(&sturdyref));
    for refused in soon(join_all(guesses)).await {
        assert!(refused.is_err());
    }
    let reason = server.expect_down(&client.designator()).await;
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn own_sturdyrefs_need_no_network() {
    let server = listening().await;
    let sturdyref = server.offer("mine", service());
    echoes(
        &soon(server.peer.enliven(&sturdyref)).await.unwrap(),
        "local",
    )
    .await;
    let error = soon(server.peer.connect(&server.peer.locator()))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Itself), "{error}");
    assert!(server.peer.sessions().is_empty());
}

#[tokio::test]
async fn c2_a_wrong_pin_never_becomes_a_session() {
    let server = listening().await;
    let client = dialling();
    let mut sturdyref = server.offer("service", service());
    sturdyref.peer.designator = Identity::generate().unwrap().designator();
    match soon(client.peer.enliven(&sturdyref)).await {
        Err(EnlivenError::Connect(ConnectError::Dial(error))) => {
            assert!(matches!(*error, DialError::WrongPeer(_)), "{error}");
        }
        other => panic!("expected a failed dial, got {other:?}"),
    }
    assert!(server.peer.sessions().is_empty());
    assert!(server.table.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn waiting_for_a_peer_shares_one_dial() {
    let mut server = listening().await;
    let client = dialling();
    let sturdyref = server.offer("service", service());
    let enlivened = soon(join_all((0..20).map(|_| client.peer.enliven(&sturdyref)))).await;
    let first = enlivened[0].as_ref().unwrap().clone();
    assert!(
        enlivened
            .into_iter()
            .all(|reference| reference.unwrap() == first)
    );
    server.expect_up(&client.designator()).await;
    let designator = client.designator();
    client.peer.close().await;
    // A second connection would have shown between these two.
    server.expect_down(&designator).await;
}

/// Two locators of one peer may differ in where they lead.
#[tokio::test]
async fn a_dial_that_leads_nowhere_holds_up_no_other() {
    let server = listening().await;
    let sturdyref = server.offer("service", service());
    let patient = TlsRpkOptions {
        handshake_timeout: Duration::from_secs(3_600),
        ..TlsRpkOptions::default()
    };
    let identity = Identity::generate().unwrap();
    let client = TestPeer::over(TlsRpk::dial_only(identity, patient).unwrap());
    let silent = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = silent.local_addr().unwrap();
    let nowhere = server.peer.locator();
    let nowhere = nowhere.with_addresses([(address.ip().to_string(), address.port())]);
    let peer = client.peer.clone();
    let waits = tokio::spawn(async move { peer.connect(&nowhere).await });
    let _held = soon(silent.accept()).await.unwrap();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    echoes(&remote, "reached").await;
    assert!(soon(waits).await.unwrap().is_ok(), "it has its session too");
}

#[tokio::test]
async fn dials_of_many_locators_of_one_peer_end_in_one_session() {
    let mut server = listening().await;
    let client = dialling();
    let sturdyref = server.offer("service", service());
    let enlivened = (0..20).map(|n| {
        let mut sturdyref = sturdyref.clone();
        sturdyref.peer = sturdyref.peer.with_hint("n", n.to_string());
        let peer = client.peer.clone();
        async move { peer.enliven(&sturdyref).await.unwrap() }
    });
    let enlivened = soon(join_all(enlivened)).await;
    assert!(enlivened.iter().all(|reference| *reference == enlivened[0]));
    server.expect_up(&client.designator()).await;
    let designator = client.designator();
    client.peer.close().await;
    // A second session would have shown between these two.
    server.expect_down(&designator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crossed_dials_end_in_one_session() {
    for _ in 0..20 {
        let (one, two) = (listening().await, listening().await);
        let (at_one, at_two) = (one.offer("x", service()), two.offer("x", service()));
        let (to_two, to_one) =
            soon(async { tokio::join!(one.peer.enliven(&at_two), two.peer.enliven(&at_one)) })
                .await;
        echoes(&to_two.unwrap(), "to two").await;
        echoes(&to_one.unwrap(), "to one").await;
        assert_eq!(one.peer.sessions().len(), 1);
        assert_eq!(two.peer.sessions().len(), 1);
    }
}

#[tokio::test]
async fn a_reference_is_handed_over_and_outlives_who_gave_it() {
    let (boss, exporter, importer) = (listening().await, listening().await, dialling());
    let held: Arc<Mutex<Option<Reference>>> = Arc::default();
    let offered = exporter.offer("service", service());
    let takes = Arc::clone(&held);
    let taker = importer.offer(
        "taker",
        Methods(move |_: &Turn, _: &str, args: &[Passable]| {
            *takes.lock().unwrap() = args[0].as_reference().cloned();
            Answer::value("taken")
        }),
    );
    soon(importer.peer.connect(&boss.peer.locator()))
        .await
        .unwrap();
    let mut events = boss.peer.session_events();
    while !boss.peer.has_session(&importer.designator()) {
        soon(events.recv()).await.unwrap();
    }
    let service = soon(boss.peer.enliven(&offered)).await.unwrap();
    let taker = soon(boss.peer.enliven(&taker)).await.unwrap();
    let taken = soon(taker.call("take", [service.clone().into()]))
        .await
        .unwrap();
    assert_eq!(taken.as_str(), Some("taken"));

    let handed_over = held.lock().unwrap().clone().unwrap();
    let who = soon(handed_over.call("who", [])).await.unwrap();
    assert_eq!(
        who.as_str(),
        Some(importer.designator().as_str()),
        "called directly"
    );
    assert!(importer.peer.has_session(&exporter.designator()));

    boss.peer.close().await;
    severed(service.call("echo", [])).await;
    echoes(&handed_over, "without the boss").await;
}

#[tokio::test]
async fn a_new_session_of_a_peer_replaces_its_old_one() {
    let mut server = listening().await;
    let sturdyref = server.offer("service", service());
    let identity = Identity::generate().unwrap();
    let first = TestPeer::dialling(identity.clone());
    let from_first = first.offer("callback", service());
    let held = soon(first.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_up(&first.designator()).await;
    let callback = soon(server.peer.enliven(&from_first)).await.unwrap();
    let waiting = callback.call("never", []);

    let second = TestPeer::dialling(identity);
    let remote = soon(second.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_down(&first.designator()).await;
    server.expect_up(&second.designator()).await;
    severed(waiting).await;
    severed(held.call("never", [])).await;
    echoes(&remote, "second").await;
    assert_eq!(server.peer.sessions().len(), 1);
}

#[tokio::test]
async fn disconnecting_tells_why_and_enlivening_connects_again() {
    let server = listening().await;
    let mut client = dialling();
    let sturdyref = server.offer("service", service());
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    client.expect_up(&server.designator()).await;
    let waiting = remote.call("never", []);
    server.peer.disconnect(&client.designator(), "that will do");
    let reason = client.expect_down(&server.designator()).await;
    assert!(reason.contains("that will do"), "{reason}");
    severed(waiting).await;
    echoes(
        &soon(client.peer.enliven(&sturdyref)).await.unwrap(),
        "again",
    )
    .await;
}

#[tokio::test]
async fn a_closed_peer_ends_its_sessions_and_takes_no_more() {
    let server = listening().await;
    let mut client = dialling();
    let sturdyref = server.offer("service", service());
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    client.expect_up(&server.designator()).await;
    let waiting = remote.call("never", []);
    let clone = server.peer.clone();
    soon(server.peer.close()).await;
    let (host, port) = sturdyref.peer.addresses().remove(0);
    let _ = std::net::TcpListener::bind((host, port)).expect("the port is free at once");
    severed(waiting).await;
    client.expect_down(&sturdyref.peer.designator).await;
    assert!(soon(client.peer.enliven(&sturdyref)).await.is_err());
    let error = soon(clone.connect(&listening().await.peer.locator()))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Closed), "{error}");
}

#[tokio::test]
async fn a_peer_ends_with_its_last_handle() {
    let server = listening().await;
    let mut client = dialling();
    soon(client.peer.connect(&server.peer.locator()))
        .await
        .unwrap();
    client.expect_up(&server.designator()).await;
    let designator = server.designator();
    drop(server);
    assert!(
        matches!(client.next_event().await, SessionEvent::Down(peer, _)
        if peer.designator == designator)
    );
}
