//! Hand-overs and revocations between real agents.

use std::path::Path;
use std::time::{Duration, Instant};

use gobs::boss::{BindRequest, BossError, Bound, UnbindRequest, Unbound};
use gobs_model::Value;
use rustix::process::Signal;
use tokio::sync::watch;

use super::home::{Client, Pair, bind_request, eventually, unbind_request};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_handed_over_and_taken_back() {
    let pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let mut client = Client::connect(&bound).await;
    client.ping().await;
    let unbound = pair.boss.unbind(unbind_request(1)).await.expect("unbound");
    assert_eq!(unbound, Unbound::Done);
    client.ends().await;
    let path = bound.address.strip_prefix("unix:").expect("a socket");
    assert!(!Path::new(path).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_first_boot_makes_is_waited_for_until_that_is_over() {
    let pair = Pair::start().await;
    let cloud_init = pair.app.path("cloud-init");
    std::fs::create_dir(&cloud_init).expect("a directory");
    std::fs::write(cloud_init.join("enabled"), "").expect("written");
    let asked = BindRequest {
        expose: Value::list([Value::object([("user", Value::from("gobs-not-there-yet"))])]),
        ..bind_request(1)
    };
    let boss = pair.boss.clone();
    let (reason, _) = watch::channel(String::new());
    let mut bound = tokio::spawn(async move { boss.bind(asked, &reason).await });
    let asked = async || pair.app.log().contains("no user gobs-not-there-yet");
    eventually("the hob is asked", asked).await;
    let early = tokio::time::timeout(Duration::ZERO, &mut bound).await;
    assert!(early.is_err(), "{early:?}");
    std::fs::write(cloud_init.join("result.json"), "").expect("written");
    let refused = bound.await.expect("no panic").expect_err("nobody comes");
    assert!(matches!(&refused, BossError::Refused { code: Some(code), .. } if code == "expose"));
}

/// An exporter that cannot be reached: what the boss waits for it, with room for a busy host.
const PENDING_WITHIN: Duration = Duration::from_secs(15);

async fn left_pending(pair: &Pair, bound: &Bound, client: &mut Client) {
    let asked = Instant::now();
    let unbound = pair.boss.unbind(unbind_request(1)).await.expect("answered");
    assert!(matches!(unbound, Unbound::Pending(_)), "{unbound:?}");
    assert!(asked.elapsed() < PENDING_WITHIN, "{:?}", asked.elapsed());
    client.ends().await;
    assert!(!Path::new(&bound.directory).exists());
}

async fn settled(pair: &Pair) {
    for _ in 0..2 {
        let again = pair.boss.unbind(unbind_request(1)).await.expect("answered");
        assert_eq!(again, Unbound::Done);
    }
    let refused = pair.bind(1).await.expect_err("revoked for good");
    assert!(matches!(&refused, BossError::Refused { code: Some(code), .. } if code == "revoked"));
    let bound = pair.bind(2).await.expect("granted anew");
    Client::connect(&bound).await.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_a_dead_exporter_leaves_the_revocation_pending() {
    let mut pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let mut client = Client::connect(&bound).await;
    client.ping().await;
    pair.db.kill();
    left_pending(&pair, &bound, &mut client).await;
    pair.db.start_again();
    settled(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_a_frozen_exporter_leaves_the_revocation_pending() {
    let pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let mut client = Client::connect(&bound).await;
    client.ping().await;
    pair.db.signal(Signal::STOP);
    left_pending(&pair, &bound, &mut client).await;
    pair.db.signal(Signal::CONT);
    settled(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_a_receiver_that_is_away_is_revoked_and_not_forgotten() {
    let mut pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    pair.app.kill();
    let unbound = pair.boss.unbind(unbind_request(1)).await.expect("unbound");
    assert!(matches!(unbound, Unbound::Pending(_)), "{unbound:?}");
    pair.app.start_again();
    // Back again, it still has the name, and nothing behind it.
    let path = bound.address.strip_prefix("unix:").expect("a socket");
    eventually("it listens again", async || {
        tokio::net::UnixStream::connect(path).await.is_ok()
    })
    .await;
    Client::connect(&bound).await.ends().await;
    let request = UnbindRequest {
        exporter: None,
        ..unbind_request(1)
    };
    let unbound = pair.boss.unbind(request).await.expect("unbound");
    assert_eq!(unbound, Unbound::Done);
    assert!(!Path::new(&bound.directory).exists());
}
