//! What strangers and dead peers do to a peer: each ends alone, and nobody else notices.

use std::time::Duration;

use crate::support::{ANY_PORT, ByHand, Methods, TestPeer, echoes, service, severed, soon};
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::{
    Answer, Identity, Limits, Netlayer, Passable, Peer, PeerLocator, TlsRpk, TlsRpkOptions, Turn,
};

/// `op:deliver` of `fetch` to the bootstrap object, for the swissnum `service`.
const FETCH: &[u8] =
    b"<10'op:deliver<11'desc:export0+>[5'fetch7:service]0+<18'desc:import-object1+>>";

fn netlayer() -> TlsRpk {
    TlsRpk::dial_only(Identity::generate().unwrap(), TlsRpkOptions::default()).unwrap()
}

fn dialling() -> TestPeer {
    TestPeer::dialling(Identity::generate().unwrap())
}

#[tokio::test]
async fn c1_a_designator_that_is_not_the_key_is_aborted_before_any_delivery() {
    let server = TestPeer::listening(TlsRpkOptions::default()).await;
    server.offer("service", service());
    let victim = Identity::generate().unwrap().designator();
    for claim in [victim.as_str(), "", "nonsense", &server.designator()] {
        let claim = PeerLocator::new("tls-rpk", claim);
        let mut liar = ByHand::dial(&netlayer(), &server.peer.locator(), claim).await;
        liar.send(FETCH).await;
        let said = liar.read_to_end().await;
        assert!(
            String::from_utf8_lossy(&said).contains("op:abort"),
            "{said:?}"
        );
    }
    // Another transport's name is no way around it.
    let elsewhere = PeerLocator::new("onion", victim);
    let mut liar = ByHand::dial(&netlayer(), &server.peer.locator(), elsewhere).await;
    liar.send(FETCH).await;
    liar.read_to_end().await;
    assert!(server.peer.sessions().is_empty());
    assert!(server.table.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn c4_bytes_that_are_no_captp_end_one_session_only() {
    let mut server = TestPeer::listening(TlsRpkOptions::default()).await;
    let sturdyref = server.offer("service", service());
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_up(&client.designator()).await;

    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"99999999999999999999:",
        b"[[[[",
        FETCH,
    ] {
        let netlayer = netlayer();
        let mut connection = soon(netlayer.dial(&sturdyref.peer)).await.unwrap();
        let mut garbage = vec![bytes::Bytes::from_static(garbage); 50];
        connection.outgoing.write(&mut garbage).await.unwrap();
        let _ = connection.outgoing.close().await;
        let mut answer = Vec::new();
        while let Ok(true) = soon(connection.incoming.read(&mut answer)).await {}
    }
    // The same on a session that stands.
    let netlayer = netlayer();
    let claim = netlayer.locator();
    let mut hostile = ByHand::dial(&netlayer, &sturdyref.peer, claim.clone()).await;
    hostile.set_up(&sturdyref.peer).await;
    server.expect_up(&claim.designator).await;
    hostile
        .send(&b"<10'op:deliver<11'desc:export99+>[]f"[..])
        .await;
    hostile.send(&b"junk"[..]).await;
    hostile.read_to_end().await;
    server.expect_down(&claim.designator).await;

    echoes(&remote, "undisturbed").await;
    assert_eq!(server.peer.sessions().len(), 1);
}

#[tokio::test]
async fn c4_a_connection_that_never_begins_is_closed() {
    let identity = Identity::generate().unwrap();
    let listener = TlsRpk::bind(identity, ANY_PORT, TlsRpkOptions::default())
        .await
        .unwrap();
    let builder = Peer::builder()
        .netlayer(listener)
        .setup_timeout(Duration::from_secs(1));
    let server = TestPeer::with(builder);
    let mut connection = soon(netlayer().dial(&server.peer.locator())).await.unwrap();
    let mut answer = Vec::new();
    while let Ok(true) = soon(connection.incoming.read(&mut answer)).await {}
    // Sessions that stand are not concerned, however old they are.
    let sturdyref = server.offer("service", service());
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    let mut connection = soon(netlayer().dial(&server.peer.locator())).await.unwrap();
    while let Ok(true) = soon(connection.incoming.read(&mut answer)).await {}
    echoes(&remote, "still here").await;
}

/// Who has not greeted cannot make us gather a large message; who has may send one at once.
#[tokio::test]
async fn c4_before_a_session_stands_little_is_gathered() {
    let identity = Identity::generate().unwrap();
    let tls = TlsRpk::bind(identity, ANY_PORT, TlsRpkOptions::default());
    let tls = TestPeer::with(hasty(tls.await.unwrap()));
    little_is_gathered(&tls, |_| netlayer()).await;
    let tcp = async |name: &str| {
        TcpTesting::bind(name, ANY_PORT, TcpFraming::Netstring)
            .await
            .unwrap()
    };
    let server = TestPeer::with(hasty(tcp("server").await));
    let mut diallers = vec![tcp("first").await, tcp("second").await, tcp("third").await];
    little_is_gathered(&server, |n| diallers.remove(n)).await;
}

fn hasty<N: Netlayer>(netlayer: N) -> ocapn::PeerBuilder<N> {
    let builder = Peer::builder().netlayer(netlayer);
    builder.setup_timeout(Duration::from_secs(1))
}

async fn little_is_gathered<N: Netlayer>(server: &TestPeer, mut dialler: impl FnMut(usize) -> N) {
    let to = server.offer("service", service()).peer;
    // More than the buffers of two sockets hold.
    let large = bytes::Bytes::from(vec![b'x'; 15 << 20]);
    let netlayer = dialler(0);
    let mut first = soon(netlayer.dial(&to)).await.unwrap();
    let written = soon(first.outgoing.write(&mut vec![large.clone()])).await;
    assert!(written.is_err(), "the first message is large");
    let netlayer = dialler(0);
    let mut second = soon(netlayer.dial(&to)).await.unwrap();
    let start = bytes::Bytes::from_static(b"<16'op:start-session3\"1.0");
    let written = soon(second.outgoing.write(&mut vec![start, large])).await;
    assert!(written.is_err(), "the second message is large");

    let netlayer = dialler(0);
    let mut third = ByHand::dial(&netlayer, &to, netlayer.locator()).await;
    let args = "x".repeat(1 << 20);
    let call = format!(
        "<10'op:deliver<11'desc:answer0+>[4'echo{}\"{args}]1+f>",
        args.len()
    );
    let listen = "<9'op:listen<11'desc:answer1+><18'desc:import-object2+>f>";
    let calls = [FETCH, call.as_bytes(), listen.as_bytes()].concat();
    third.send(calls).await;
    let (mut answer, mut came) = (Vec::new(), 0);
    while came < args.len() {
        let more = soon(third.connection.incoming.read(&mut answer));
        assert!(more.await.unwrap(), "the session stands");
        came += answer.drain(..).map(|part| part.len()).sum::<usize>();
        // The greeting came first.
        third.connection.incoming.session_up();
    }
}

#[tokio::test]
async fn c5_a_dead_peer_is_found_out_and_a_silent_one_is_not() {
    let timers = TlsRpkOptions {
        keepalive: Duration::from_millis(100),
        dead_after: Duration::from_millis(1500),
        ..TlsRpkOptions::default()
    };
    let mut server = TestPeer::listening(timers.clone()).await;
    let sturdyref = server.offer("service", service());
    let identity = Identity::generate().unwrap();
    let silent = TestPeer::over(TlsRpk::dial_only(identity, timers).unwrap());
    let remote = soon(silent.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_up(&silent.designator()).await;

    // Its socket stays open, but nobody reads or writes it any more.
    let netlayer = netlayer();
    let claim = netlayer.locator();
    let mut dead = ByHand::dial(&netlayer, &sturdyref.peer, claim.clone()).await;
    dead.set_up(&sturdyref.peer).await;
    server.expect_up(&claim.designator).await;
    let session = server
        .peer
        .vat()
        .session_with("tls-rpk", &claim.designator)
        .unwrap();
    let waiting = server
        .peer
        .vat()
        .bootstrap(session)
        .unwrap()
        .call("fetch", ["x".into()]);

    let reason = server.expect_down(&claim.designator).await;
    assert!(reason.contains("silent"), "{reason}");
    severed(waiting).await;
    assert_eq!(server.peer.sessions().len(), 1);
    echoes(&remote, "alive").await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_no_longer_read_from() {
    let timers = TlsRpkOptions {
        dead_after: Duration::from_secs(1),
        ..TlsRpkOptions::default()
    };
    let mut server = TestPeer::listening(timers).await;
    let sturdyref = server.offer("service", service());
    let netlayer = netlayer();
    let claim = netlayer.locator();
    let mut greedy = ByHand::dial(&netlayer, &sturdyref.peer, claim.clone()).await;
    greedy.set_up(&sturdyref.peer).await;
    server.expect_up(&claim.designator).await;
    let session = greedy.session;
    let remote = greedy.vat.fetch(session, &sturdyref.swissnum);
    // Calls with large answers, none of which is ever taken.
    let large = "x".repeat(100_000);
    let flood = async {
        loop {
            drop(remote.call("echo", [large.as_str().into()]));
            let Some(output) = greedy.vat.transmit(session).await else {
                return;
            };
            let written = greedy
                .connection
                .outgoing
                .write(&mut vec![output.bytes])
                .await;
            if written.is_err() {
                return;
            }
        }
    };
    soon(flood).await;
    server.expect_down(&claim.designator).await;
}

/// What an honest peer sends while our turns are slow waits outside, and does not end its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_peer_whose_turns_have_to_wait_is_no_longer_read_from() {
    let identity = Identity::generate().unwrap();
    let listener = TlsRpk::bind(identity, ANY_PORT, TlsRpkOptions::default());
    let limits = Limits {
        retained_max: 8 << 20,
        ..Limits::default()
    };
    let builder = Peer::builder().netlayer(listener.await.unwrap());
    let server = TestPeer::with(builder.limits(limits));
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let slow = Methods(move |_: &Turn, _: &str, _: &[Passable]| {
        let _ = wait.lock().unwrap().recv();
        Answer::value(true)
    });
    let slow = server.offer("slow", slow);
    let sturdyref = server.offer("service", service());
    let (one, other) = (dialling(), dialling());
    let slow = soon(one.peer.enliven(&slow)).await.unwrap();
    let remote = soon(other.peer.enliven(&sturdyref)).await.unwrap();
    let held_up = slow.call("wait", []);
    let calls: Vec<_> = (0..40)
        .map(|_| remote.call("echo", ["x".repeat(1 << 20).into()]))
        .collect();
    let name = other.designator();
    let kept = || {
        let sessions = server.peer.inspect();
        let session = sessions
            .iter()
            .find(|session| session.peer.designator == name);
        session.expect("it is up").tables.retained_bytes
    };
    soon(async {
        while kept() <= 4 << 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(kept() < 6 << 20, "no more is read");
    go_on.send(()).unwrap();
    assert!(soon(held_up).await.is_ok());
    for call in calls {
        assert!(soon(call).await.is_ok());
    }
}

/// What is parked for long holds a peer up for a while, and not at each message.
#[tokio::test]
async fn a_peer_that_has_much_parked_is_read_from_all_the_same() {
    let identity = Identity::generate().unwrap();
    let listener = TlsRpk::bind(identity, ANY_PORT, TlsRpkOptions::default());
    let limits = Limits {
        retained_max: 1_000_000,
        ..Limits::default()
    };
    let builder = Peer::builder().netlayer(listener.await.unwrap());
    let server = TestPeer::with(builder.limits(limits));
    let sturdyref = server.offer("service", service());
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    let never = remote.call("never", []);
    let parked: Vec<_> = (0..7)
        .map(|_| never.call("echo", ["x".repeat(100_000).into()]))
        .collect();
    soon(async {
        for _ in 0..50 {
            echoes(&remote, "read").await;
        }
    })
    .await;
    assert!(server.peer.inspect()[0].tables.retained_bytes > 700_000);
    assert!(parked.iter().all(|call| call.now().is_none()));
}

/// Neither stops reading for ever because the other does not.
#[tokio::test]
async fn peers_that_answer_each_other_much_both_get_it() {
    let server = TestPeer::listening(TlsRpkOptions::default()).await;
    let client = dialling();
    let service_there = server.offer("service", service());
    let there = soon(client.peer.enliven(&service_there)).await.unwrap();
    let service_here = client.peer.export(service());
    let here = soon(there.call("echo", [(&service_here).into()])).await;
    assert_eq!(here.unwrap().as_reference(), Some(&service_here));
    // The server gets to call it by keeping what it is given.
    let kept: std::sync::Arc<std::sync::Mutex<Option<ocapn::Reference>>> = Default::default();
    let keep = kept.clone();
    let keeper = server.offer(
        "keeper",
        Methods(move |_: &Turn, _: &str, args: &[Passable]| {
            *keep.lock().unwrap() = args.first().and_then(Passable::as_reference).cloned();
            Answer::value(true)
        }),
    );
    let keeper = soon(client.peer.enliven(&keeper)).await.unwrap();
    soon(keeper.call("keep", [(&service_here).into()]))
        .await
        .unwrap();
    let here = kept.lock().unwrap().take().expect("it was given");
    let large = Passable::from("x".repeat(1 << 20));
    let calls: Vec<_> = (0..40)
        .map(|n| [&there, &here][n % 2].call("echo", [large.clone()]))
        .collect();
    for call in calls {
        assert_eq!(soon(call).await.unwrap(), large);
    }
}

/// A session of a hostile peer with `server`, driven by hand.
async fn intruder(server: &mut TestPeer) -> (TlsRpk, ByHand) {
    let netlayer = netlayer();
    let to = server.peer.locator();
    let mut hostile = ByHand::dial(&netlayer, &to, netlayer.locator()).await;
    hostile.set_up(&to).await;
    server.expect_up(&netlayer.locator().designator).await;
    (netlayer, hostile)
}

#[tokio::test]
async fn c4_each_hostile_message_ends_its_session_and_no_other() {
    let mut server = TestPeer::listening(TlsRpkOptions::default()).await;
    let sturdyref = server.offer("service", service());
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_up(&client.designator()).await;
    let fetched = "<10'op:deliver<11'desc:export0+>[5'fetch7:service]0+<18'desc:import-object1+>>";
    for (what, messages) in [
        (
            "a position that does not exist",
            vec!["<10'op:deliver<11'desc:export99+>[]ff>"],
        ),
        (
            "an answer that does not exist",
            vec!["<9'op:listen<11'desc:answer9+><18'desc:import-object1+>f>"],
        ),
        ("mentions it never got", vec!["<13'op:gc-exports[77+][1+]>"]),
        (
            "more mentions than it got",
            vec![fetched, "<13'op:gc-exports[1+][9+]>"],
        ),
        (
            "an answer given back twice",
            vec![fetched, "<13'op:gc-answers[0+]><13'op:gc-answers[0+]>"],
        ),
        ("an answer position in use", vec![fetched, fetched]),
        (
            "a second start-session",
            vec!["<16'op:start-session3\"1.0>"],
        ),
    ] {
        let (netlayer, mut hostile) = intruder(&mut server).await;
        for message in messages {
            hostile.send(message.as_bytes()).await;
        }
        let end = String::from_utf8_lossy(&hostile.read_to_end().await).into_owned();
        assert!(end.contains("8'op:abort"), "{what}: {end}");
        server.expect_down(&netlayer.locator().designator).await;
        echoes(&remote, what).await;
    }
    assert_eq!(server.peer.sessions().len(), 1);
}

#[tokio::test]
async fn c4_a_wrong_certificate_breaks_one_call_and_ends_nothing() {
    let mut server = TestPeer::listening(TlsRpkOptions::default()).await;
    let sturdyref = server.offer("service", service());
    let (netlayer, mut hostile) = intruder(&mut server).await;
    let signature = format!("[7'sig-val[5'eddsa[1'r32:{0}][1's32:{0}]]]", "x".repeat(32));
    let give = format!("<17'desc:sig-envelope<17'desc:handoff-give>{signature}>");
    let receive = format!(
        "<17'desc:sig-envelope<20'desc:handoff-receive32:{0}32:{0}0+{give}>{signature}>",
        "y".repeat(32)
    );
    for (answer, certificate) in [&give, &receive, &receive].into_iter().enumerate() {
        let withdraw = format!(
            "<10'op:deliver<11'desc:export0+>[13'withdraw-gift{certificate}]{answer}+\
             <18'desc:import-object{}+>>",
            answer + 1
        );
        hostile.send(withdraw.into_bytes()).await;
        let mut told = String::new();
        while !told.contains("5'break") {
            let mut chunks = Vec::new();
            let more = soon(hostile.connection.incoming.read(&mut chunks)).await;
            assert!(more.unwrap(), "the session ended: {told}");
            told.push_str(&String::from_utf8_lossy(&chunks.concat()));
        }
        assert!(told.contains("handoff-refused"), "{told}");
    }
    assert!(server.peer.has_session(&netlayer.locator().designator));
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    echoes(&remote, "undisturbed").await;
}

#[tokio::test]
async fn c4_slow_bytes_hold_nobody_up() {
    let mut server = TestPeer::listening(TlsRpkOptions::default()).await;
    let sturdyref = server.offer("service", service());
    let client = dialling();
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    server.expect_up(&client.designator()).await;
    let (_netlayer, mut slow) = intruder(&mut server).await;
    let message = b"<10'op:deliver<11'desc:export0+>[5'fetch7:service]0+<18'desc:import-object1+>>";
    for byte in message.chunks(1) {
        slow.send(bytes::Bytes::from_static(byte)).await;
        echoes(&remote, "not held up").await;
    }
    let mut answer = Vec::new();
    assert!(
        soon(slow.connection.incoming.read(&mut answer))
            .await
            .unwrap()
    );
    assert!(String::from_utf8_lossy(&answer.concat()).contains("7'fulfill"));
}
