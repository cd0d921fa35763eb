//! A boss that ends and comes back: same key, same port, same presences.

use std::os::unix::net::UnixListener;

use gobs::boss::{BossError, StatusReport};

use super::home::{Client, Home, Pair, eventually};

/// Returns whether the hob of a machine answers, and knows that its boss is there.
fn connected(report: &StatusReport, machine: &str) -> bool {
    let hob = report.hobs.iter().find(|hob| hob.machine == machine);
    let status = hob.and_then(|hob| hob.status.as_ref());
    status.is_some_and(|status| status.boss_connected)
}

async fn both_connected(pair: &Pair) {
    eventually("both hobs are back", async || {
        let report = pair.boss.status().await.expect("a report");
        connected(&report, "machine.db") && connected(&report, "machine.app")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boss_comes_back_as_the_same() {
    let mut pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let mut client = Client::connect(&bound).await;
    let before = pair.boss.locator();
    pair.boss.shutdown().await;
    // S9: nobody needs a boss to use what was handed over.
    client.ping().await;
    Client::connect(&bound).await.ping().await;

    // The app's hob is dialled; the db's is away then, and dials when it is back.
    pair.db.kill();
    pair.boss = pair.home.boss().await;
    assert_eq!(pair.boss.locator(), before);
    eventually("the hob that runs is back", async || {
        let report = pair.boss.status().await.expect("a report");
        connected(&report, "machine.app")
    })
    .await;
    pair.db.start_again();
    both_connected(&pair).await;
    assert_eq!(pair.bind(1).await.expect("held"), bound);
    Client::connect(&bound).await.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boss_that_moved_dials_its_hobs() {
    let mut pair = Pair::start().await;
    let before = pair.boss.locator();
    pair.boss.shutdown().await;
    // Its old address stays taken, so that no hob can find it.
    let port = before.addresses()[0].1;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("free again");
    let error = pair.home.try_boss().await.err().expect("no port");
    assert!(matches!(error, BossError::Listen { .. }), "{error}");
    assert!(!pair.home.socket().exists());

    pair.home.tables().set_port(0).expect("written");
    pair.boss = pair.home.boss().await;
    assert_ne!(pair.boss.locator().addresses(), before.addresses());
    both_connected(&pair).await;
    drop(taken);

    // The hobs have learned the new place.
    pair.app.kill();
    pair.db.kill();
    pair.app.start_again();
    pair.db.start_again();
    both_connected(&pair).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_boss_runs_at_a_time() {
    let home = Home::new();
    // A killed boss leaves its socket behind.
    drop(UnixListener::bind(home.socket()).expect("a socket"));
    assert!(home.socket().exists());
    let boss = home.boss().await;
    let error = home.try_boss().await.err().expect("another one runs");
    assert!(matches!(error, BossError::Running(_)), "{error}");
    assert!(home.socket().exists());
    boss.shutdown().await;
    assert!(!home.socket().exists());
    home.boss().await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hobs_are_told_what_is_advertised() {
    let home = Home::new();
    let advertised = ["boss.example", "boss.example:99", "::1", "[::1]:98"];
    let boss = home
        .boss_at("127.0.0.1:0", &advertised)
        .await
        .expect("started");
    let port = home.tables().port().expect("readable").expect("kept");
    assert_eq!(
        boss.locator().addresses(),
        [
            ("boss.example".to_owned(), port),
            ("boss.example".to_owned(), 99),
            ("::1".to_owned(), port),
            ("::1".to_owned(), 98),
        ]
    );
    boss.shutdown().await;
    let error = home
        .boss_at("0.0.0.0:0", &[])
        .await
        .err()
        .expect("nobody could dial it");
    assert!(matches!(error, BossError::NoAddress(_)), "{error}");
    let error = home
        .boss_at("nowhere", &[])
        .await
        .err()
        .expect("no address");
    assert!(matches!(error, BossError::Address(_)), "{error}");
}
