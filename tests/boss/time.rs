//! The time that a machine has to call home, from where it calls, and who dials.

use std::time::{Duration, SystemTime};

use gobs::boss::{BossError, Expected};
use gobs::clock::Clock;
use gobs::lang::Dial;
use gobs_state::SwissnumHash;

use super::home::{Home, Host, address, eventually, refusal, registered, stranger, sturdyref};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// How long a machine has in these tests.
const TTL: Duration = Duration::from_secs(30 * 60);

/// Returns a home whose clock stands until it is turned.
fn home() -> Home {
    let mut home = Home::new();
    home.clock = Clock::manual(SystemTime::now());
    home
}

fn hash(user_data: &str) -> SwissnumHash {
    SwissnumHash::of(sturdyref(user_data).swissnum.reveal())
}

#[tokio::test(flavor = "multi_thread")]
async fn b6_a_machine_that_never_calls_is_unclaimed_when_its_time_is_over() {
    let home = home();
    let boss = home.boss().await;
    let user_data = home.invite(&boss, "machine.a");
    let machine = address("machine.a");
    // The time counts from the acceptance, not from the invitation.
    home.clock.advance(10 * MINUTE);
    boss.accepted(hash(&user_data), TTL).expect("written");
    let waiter = {
        let (boss, machine) = (boss.clone(), machine.clone());
        tokio::spawn(async move { boss.wait_registered(&machine, 1, TTL).await })
    };
    home.clock.advance(29 * MINUTE);
    assert_eq!(home.tables().unclaimed(home.clock.now()).expect("read"), []);
    // While the provider says that it is still making it, there is more time, up to a stop.
    for minutes in [29, 29, 29] {
        boss.provisioning(&machine, 1, TTL).expect("written");
        home.clock.advance(minutes * MINUTE);
        assert_eq!(home.tables().unclaimed(home.clock.now()).expect("read"), []);
    }
    boss.provisioning(&machine, 1, TTL).expect("written");
    home.clock.advance(3 * MINUTE);
    assert!(!waiter.is_finished(), "119 minutes are not two hours");
    home.clock.advance(MINUTE);
    let error = waiter.await.expect("no panic").expect_err("over");
    assert!(matches!(&error, BossError::Unclaimed { machine: it, .. } if *it == machine));
    let unclaimed = boss.status().await.expect("a report").unclaimed;
    assert_eq!(unclaimed, [("machine.a".to_owned(), 1)]);
    // Whoever comes now gets what an unknown swissnum gets (B5).
    let late = refusal(&stranger(), &sturdyref(&user_data)).await;
    let mut unknown = sturdyref(&user_data);
    unknown.swissnum = ocapn::Swissnum::new(*b"nobody was ever invited with it!");
    assert_eq!(late, refusal(&stranger(), &unknown).await);
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b8_a_hob_comes_back_after_thirty_days() {
    let home = home();
    let boss = home.boss().await;
    let mut host = Host::start(&home.invite(&boss, "machine.a"));
    let designator = registered(&boss, "machine.a").await;
    host.kill();
    boss.shutdown().await;
    home.clock.advance(30 * DAY);

    let boss = home.boss().await;
    host.start_again();
    let mut last_seen_s = 0;
    eventually("it is back", async || {
        let hobs = boss.status().await.expect("a report").hobs;
        last_seen_s = hobs[0].last_seen_s;
        hobs[0].designator == designator && hobs[0].status.is_some()
    })
    .await;
    let machine = address("machine.a");
    let claims = home.tables().claims(&machine, 1).expect("readable");
    assert_eq!(claims.len(), 1, "nothing new was needed");
    let claimed = claims[0].first_time.expect("claimed");
    let claimed = claimed.duration_since(SystemTime::UNIX_EPOCH);
    eventually("its registration is of today", async || {
        let hobs = boss.status().await.expect("a report").hobs;
        hobs[0].last_seen_s >= claimed.as_ref().expect("late").as_secs() + DAY.as_secs() * 30
    })
    .await;
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b9_a_claim_from_elsewhere_is_told_of_or_refused() {
    let home = Home::new();
    let boss = home.boss().await;
    let elsewhere = Expected {
        addresses: Some(vec!["203.0.113.7".parse().expect("an address")]),
        required: false,
    };
    // Told of, where nothing says that it must be refused.
    boss.expect_from(&address("machine.a"), 1, elsewhere.clone());
    let _a = Host::start(&home.invite(&boss, "machine.a"));
    let machine = address("machine.a");
    let a = boss
        .wait_registered(&machine, 1, TTL)
        .await
        .expect("it came");
    assert_eq!(a.unexpected, Some("127.0.0.1".parse().expect("an address")));

    // Refused while the machine's addresses are not known, and where they are others.
    let machine = address("machine.b");
    let required = |addresses| Expected {
        addresses,
        required: true,
    };
    boss.expect_from(&machine, 1, required(None));
    let user_data = home.invite(&boss, "machine.b");
    let host = Host::start(&user_data);
    eventually("refused", async || host.log().contains("not registered")).await;
    boss.expect_from(&machine, 1, required(elsewhere.addresses));
    let theirs = refusal(&stranger(), &sturdyref(&user_data)).await;
    let claims = home.tables().claims(&machine, 1).expect("readable");
    assert_eq!(claims[0].bound_key, None, "nothing is used up");
    let mut unknown = sturdyref(&user_data);
    unknown.swissnum = ocapn::Swissnum::new(*b"nobody was ever invited with it!");
    assert_eq!(theirs, refusal(&stranger(), &unknown).await);

    // And let in where they are the machine's, though it was refused before.
    let own = vec!["127.0.0.1".parse().expect("an address")];
    boss.expect_from(&machine, 1, required(Some(own)));
    let b = boss
        .wait_registered(&machine, 1, TTL)
        .await
        .expect("it came");
    assert_eq!(b.unexpected, None);
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_boss_dials_a_machine_that_waits_to_be_called() {
    let home = Home::new();
    let boss = home.boss().await;
    let port = crate::support::free_port();
    let listen = format!("127.0.0.1:{port}");
    let place = (Dial::Boss, listen.as_str());
    let user_data = home.invite_to(&boss, "machine.a", 1, SystemTime::now(), place);
    assert_eq!(sturdyref(&user_data).peer.addresses(), []);
    let machine = address("machine.a");
    let places = [("127.0.0.1".to_owned(), port)];

    // Somebody else at the machine's address proves a key too, and gets nothing by it.
    let impostor = ocapn::TlsRpk::bind(
        ocapn::Identity::generate().expect("a key"),
        listen.parse().expect("an address"),
        ocapn::TlsRpkOptions::default(),
    );
    let impostor = impostor.await.expect("bound");
    let impostor = ocapn::Peer::builder().netlayer(impostor).spawn();
    let visitor = {
        let (boss, machine) = (boss.clone(), machine.clone());
        tokio::spawn(async move { boss.visit(&machine, 1, &places).await })
    };
    eventually("the impostor is met", async || {
        !impostor.sessions().is_empty()
    })
    .await;
    let claims = home.tables().claims(&machine, 1).expect("readable");
    assert_eq!(claims[0].bound_key, None);
    impostor.close().await;

    let mut host = Host::start(&user_data);
    let a = boss
        .wait_registered(&machine, 1, TTL)
        .await
        .expect("it came");
    visitor.await.expect("no panic");
    // The claim is as one-time as any (B5), and the key is bound to its place.
    refusal(&stranger(), &{
        let mut there = sturdyref(&user_data);
        there.peer = boss.locator();
        there
    })
    .await;
    let claims = home.tables().claims(&machine, 1).expect("readable");
    assert_eq!(claims[0].bound_key.as_ref(), Some(&a.designator));
    boss.shutdown().await;

    // The next boss knows where it is, whoever was restarted.
    host.kill();
    host.start_again();
    let boss = home.boss().await;
    eventually("it is back", async || {
        let hobs = boss.status().await.expect("a report").hobs;
        hobs[0].status.is_some()
    })
    .await;
    boss.shutdown().await;
}
