//! What the driver keeps an eye on by itself: names that nobody proves, sessions to be kept up,
//! gifts that nobody fetches, what peers hold.

use std::time::Duration;

use bytes::Bytes;
use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::{Limits, Passable, Peer, PeerLocator};

use crate::support::{ANY_PORT, ByHand, TestPeer, echoes, service, severed, soon};

async fn tcp(designator: &str) -> TcpTesting {
    let bound = TcpTesting::bind(designator, ANY_PORT, TcpFraming::Unframed);
    bound.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unproven_peer_that_left_before_it_came_back_is_always_let_in() {
    let server = TestPeer::over(tcp("server").await);
    let dialler = tcp("client").await;
    let here = PeerLocator::new("tcp-testing-only", "client");
    let to = server.peer.locator();
    let mut old: Option<ByHand> = None;
    for _ in 0..200 {
        // The end of the old connection and the start of the new one arrive together.
        if let Some(mut old) = old.take() {
            old.connection.outgoing.close().await.unwrap();
        }
        let mut new = ByHand::dial(&dialler, &to, here.clone()).await;
        new.set_up(&to).await;
        old = Some(new);
    }
}

#[tokio::test]
async fn an_unproven_peer_cannot_take_the_name_of_one_that_is_there() {
    let server = TestPeer::over(tcp("server").await);
    let sturdyref = server.offer("service", service());
    let client = TestPeer::over(tcp("client").await);
    let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
    let stranger = tcp("client").await;
    let here = client.peer.locator();
    for _ in 0..2 {
        let mut second = ByHand::dial(&stranger, &server.peer.locator(), here.clone()).await;
        let refusal = second.read_to_end().await;
        let refusal = String::from_utf8_lossy(&refusal).into_owned();
        assert!(
            refusal.contains("there is a session with this peer"),
            "{refusal}"
        );
        echoes(&remote, "still here").await;
    }
    assert_eq!(server.peer.sessions().len(), 1);
}

/// Two peers without delay; the first has a service.
fn pair() -> (MemoryNetwork, TestPeer, TestPeer) {
    let network = MemoryNetwork::new(3, Duration::ZERO..Duration::ZERO);
    let alice = TestPeer::over(network.netlayer("alice"));
    let bob = TestPeer::over(network.netlayer("bob"));
    (network, alice, bob)
}

#[tokio::test]
async fn a_kept_session_comes_back_after_a_cut() {
    let (network, alice, mut bob) = pair();
    let sturdyref = alice.offer("service", service());
    network.cut("alice", "bob");
    let kept = bob.peer.keep(&alice.peer.locator());
    network.join("alice", "bob");
    for round in 0..3 {
        kept.retry_now();
        bob.expect_up("alice").await;
        let remote = soon(bob.peer.enliven(&sturdyref)).await.unwrap();
        echoes(&remote, "here").await;
        if round < 2 {
            network.sever("alice", "bob");
            bob.expect_down("alice").await;
            severed(remote.call("echo", [])).await;
            network.join("alice", "bob");
        }
    }
    // Who is kept no longer is not dialled again.
    drop(kept);
    bob.peer.disconnect("alice", "enough");
    bob.expect_down("alice").await;
    tokio::task::yield_now().await;
    assert!(!bob.peer.has_session("alice"));
}

/// Returns how many sessions a keeper has in `life` if its peer ends each after `lasts`.
async fn sessions_within(life: Duration, lasts: Duration) -> usize {
    let (_network, mut alice, bob) = pair();
    let kept = bob.peer.keep(&alice.peer.locator());
    let mut sessions = 0;
    let serve = async {
        loop {
            alice.events.recv().await.unwrap();
            if alice.peer.has_session("bob") {
                sessions += 1;
                tokio::time::sleep(lasts).await;
                alice.peer.disconnect("bob", "too busy");
            }
        }
    };
    let _ = tokio::time::timeout(life, serve).await;
    drop(kept);
    sessions
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_accepts_and_hangs_up_is_dialled_less_and_less() {
    let hour = Duration::from_secs(3600);
    // The pauses are 30 s on average once they have grown.
    let hung_up = sessions_within(hour, Duration::ZERO).await;
    assert!((20..400).contains(&hung_up), "{hung_up} sessions");
    // Who lets sessions stand is dialled again at once.
    let stood = sessions_within(hour, Duration::from_secs(90)).await;
    assert!((39..=41).contains(&stood), "{stood} sessions");
}

#[tokio::test]
async fn keeping_a_session_does_not_keep_the_peer() {
    let (_network, mut alice, bob) = pair();
    let kept = bob.peer.keep(&alice.peer.locator());
    alice.expect_up("bob").await;
    drop(bob);
    alice.expect_down("bob").await;
    drop(kept);
}

#[tokio::test]
async fn what_peers_hold_can_be_looked_at() {
    let (_network, alice, bob) = pair();
    let sturdyref = alice.offer("service", service());
    let remote = soon(bob.peer.enliven(&sturdyref)).await.unwrap();
    let again = soon(bob.peer.enliven(&sturdyref)).await.unwrap();
    assert_eq!(remote, again);
    let [session] = &alice.peer.inspect()[..] else {
        panic!("one session is up")
    };
    assert_eq!(session.peer.designator, "bob");
    let held: Vec<_> = session
        .retained
        .iter()
        .filter(|held| held.label.contains("Methods"))
        .collect();
    assert_eq!(held.len(), 1, "{:?}", session.retained);
    assert_eq!(held[0].mentions, 2);
    assert!(
        session.tables.exports >= 1 && session.tables.imports == 0,
        "{}",
        session.tables
    );
}

#[tokio::test]
async fn a_gift_that_nobody_fetches_is_let_go_of() {
    let (_network, alice, bob) = pair();
    let sturdyref = alice.offer("service", service());
    let remote = soon(bob.peer.enliven(&sturdyref)).await.unwrap();
    let session = bob.peer.vat().session_with("memory", "alice").unwrap();
    let bootstrap = bob.peer.vat().bootstrap(session).unwrap();
    let deposit = |id: &'static [u8]| {
        let gift = [
            Passable::bytes(Bytes::from_static(id)),
            remote.clone().into(),
        ];
        soon(bootstrap.call("deposit-gift", gift))
    };
    deposit(b"one").await.unwrap();
    let gifts = || alice.peer.inspect()[0].tables.gifts;
    alice.peer.vat().expire_gifts();
    deposit(b"two").await.unwrap();
    assert_eq!(gifts(), 2);
    alice.peer.vat().expire_gifts();
    assert_eq!(gifts(), 1, "the younger one waits on");
    alice.peer.vat().expire_gifts();
    assert_eq!(gifts(), 0);
}

#[tokio::test]
async fn only_a_lenient_peer_takes_what_is_not_canonical() {
    // Two keys in the wrong order, and leading zeros.
    const CALL: &[u8] = b"<10'op:deliver<11'desc:export0+>[5'fetch{2\"aa1+1\"b007+}]0+f>";
    for lenient in [false, true] {
        let mut builder = Peer::builder().netlayer(tcp("server").await);
        if lenient {
            builder = builder.lenient();
        }
        let server = TestPeer::with(builder);
        let to = server.peer.locator();
        let here = PeerLocator::new("tcp-testing-only", "client");
        let mut client = ByHand::dial(&tcp("client").await, &to, here).await;
        client.set_up(&to).await;
        client.send(CALL).await;
        if lenient {
            // The call makes no sense, but it was read: the session goes on.
            let ask = b"<9'op:listen<11'desc:answer0+><18'desc:import-object1+>f>";
            client.send(&ask[..]).await;
            let mut chunks = Vec::new();
            assert!(
                soon(client.connection.incoming.read(&mut chunks))
                    .await
                    .unwrap()
            );
            let answer = String::from_utf8_lossy(&chunks.concat()).into_owned();
            assert!(answer.contains("5'break"), "{answer}");
        } else {
            let end = String::from_utf8_lossy(&client.read_to_end().await).into_owned();
            assert!(end.contains("op:abort"), "{end}");
        }
    }
}

#[tokio::test]
async fn each_peer_may_have_limits_of_its_own() {
    let network = MemoryNetwork::new(3, Duration::ZERO..Duration::ZERO);
    let builder = Peer::builder().netlayer(network.netlayer("alice"));
    let mut alice = TestPeer::with(builder.limits_of(|peer| {
        let modest = Limits {
            message_size_max: 10_000,
            gifts_max: 1,
            ..Limits::default()
        };
        (peer.designator == "bob").then_some(modest)
    }));
    let sturdyref = alice.offer("service", service());
    let bob = TestPeer::over(network.netlayer("bob"));
    let carol = TestPeer::over(network.netlayer("carol"));
    let of_carol = soon(carol.peer.enliven(&sturdyref)).await.unwrap();
    alice.expect_up("carol").await;
    let of_bob = soon(bob.peer.enliven(&sturdyref)).await.unwrap();
    alice.expect_up("bob").await;

    let session = bob.peer.vat().session_with("memory", "alice").unwrap();
    let bootstrap = bob.peer.vat().bootstrap(session).unwrap();
    let deposit = |id: &'static [u8]| {
        let gift = [
            Passable::bytes(Bytes::from_static(id)),
            of_bob.clone().into(),
        ];
        soon(bootstrap.call("deposit-gift", gift))
    };
    deposit(b"one").await.unwrap();
    deposit(b"two").await.unwrap();
    let sessions = alice.peer.inspect();
    let with_bob = sessions.iter().find(|it| it.peer.designator == "bob");
    assert_eq!(with_bob.map(|it| it.tables.gifts), Some(1));

    let long = "x".repeat(20_000);
    echoes(&of_carol, &long).await;
    severed(of_bob.call("echo", [long.as_str().into()])).await;
    alice.expect_down("bob").await;
    echoes(&of_carol, "still here").await;
}
