//! Peers on a network that delays and cuts: what comes back, and what must not be half done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::{Answer, Passable, Turn};

use crate::support::{Methods, TestPeer, echoes, service, severed, soon};

#[tokio::test(start_paused = true)]
async fn a_cut_breaks_what_was_under_way_and_enlivening_finds_the_peer_again() {
    for seed in 0..20 {
        let network = MemoryNetwork::new(seed, Duration::ZERO..Duration::from_millis(50));
        let mut server = TestPeer::over(network.netlayer("server"));
        let mut client = TestPeer::over(network.netlayer("client"));
        let bystander = TestPeer::over(network.netlayer("bystander"));
        let sturdyref = server.offer("service", service());
        let undisturbed = soon(bystander.peer.enliven(&sturdyref)).await.unwrap();
        server.expect_up("bystander").await;

        for _ in 0..3 {
            let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
            client.expect_up("server").await;
            server.expect_up("client").await;
            let waiting = remote.call("never", []);
            network.cut("client", "server");
            severed(waiting).await;
            severed(remote.call("echo", [])).await;
            client.expect_down("server").await;
            server.expect_down("client").await;
        }
        network.sever("client", "server");
        assert!(
            soon(client.peer.enliven(&sturdyref)).await.is_err(),
            "seed {seed}"
        );
        network.join("client", "server");
        echoes(
            &soon(client.peer.enliven(&sturdyref)).await.unwrap(),
            "joined",
        )
        .await;
        echoes(&undisturbed, "undisturbed").await;
    }
}

/// Counts its calls and answers with the count, so that a call that is lost, doubled or overtaken
/// shows.
fn counter() -> impl ocapn::Object {
    let count = Arc::new(AtomicU64::new(0));
    Methods(move |_: &Turn, _: &str, args: &[Passable]| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        assert_eq!(args[0].as_int(), i64::try_from(number).ok(), "out of order");
        Answer::value(number)
    })
}

#[tokio::test(start_paused = true)]
async fn calls_arrive_once_and_in_order_up_to_a_cut() {
    for seed in 0..20 {
        let network = MemoryNetwork::new(seed, Duration::ZERO..Duration::from_millis(20));
        let server = TestPeer::over(network.netlayer("server"));
        let client = TestPeer::over(network.netlayer("client"));
        let sturdyref = server.offer("counter", counter());
        let remote = soon(client.peer.enliven(&sturdyref)).await.unwrap();
        let calls: Vec<_> = (0..200_i64)
            .map(|n| remote.call("count", [n.into()]))
            .collect();
        // The first answer has come when the cut does; how many more have depends on the seed.
        let cut_after = usize::try_from(seed).unwrap() * 10;
        let mut answered = 0;
        for (number, call) in calls.into_iter().enumerate() {
            match soon(call).await {
                Ok(answer) => {
                    assert_eq!(answer.as_int(), i64::try_from(number).ok());
                    assert_eq!(answered, number, "an answer after a break, seed {seed}");
                    answered += 1;
                }
                Err(broken) => assert!(broken.is_severed(), "{broken}"),
            }
            if number == cut_after {
                network.cut("client", "server");
            }
        }
        assert!(answered > cut_after, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handoff_survives_delays_of_every_kind() {
    for seed in 0..50 {
        let network = MemoryNetwork::new(seed, Duration::ZERO..Duration::from_millis(100));
        let gifter = TestPeer::over(network.netlayer("gifter"));
        let exporter = TestPeer::over(network.netlayer("exporter"));
        let receiver = TestPeer::over(network.netlayer("receiver"));
        let gift = exporter.offer("gift", service());
        let caller = receiver.offer(
            "caller",
            Methods(|_: &Turn, _: &str, args: &[Passable]| {
                let gift = args[0].as_reference().unwrap().clone();
                Answer::later(async move { gift.call("who", []).await })
            }),
        );
        let gift = soon(gifter.peer.enliven(&gift)).await.unwrap();
        let caller = soon(gifter.peer.enliven(&caller)).await.unwrap();
        let who = soon(caller.call("call", [gift.into()])).await.unwrap();
        assert_eq!(who.as_str(), Some("receiver"), "seed {seed}");
    }
}
