//! Claims over the wire: promises B1 to B5.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use gobs::boss::{BossError, operator_sturdyref};
use gobs_state::CLAIM_TTL;
use ocapn::{EnlivenError, Identity, Swissnum};

use super::home::{
    Client, Home, Host, PATIENCE, Pair, address, enliven, eventually, peer, refusal, registered,
    stranger, sturdyref, unbind_request,
};

#[tokio::test(flavor = "multi_thread")]
async fn b1_of_concurrent_claimers_exactly_one_gets_the_presence() {
    const ROUNDS: usize = 10;
    const CLAIMERS: usize = 8;
    let home = Home::new();
    let boss = home.boss().await;
    let claimers: Vec<_> = (0..CLAIMERS).map(|_| stranger()).collect();
    for round in 0..ROUNDS {
        let machine = format!("machine.web[{round}]");
        let claim = sturdyref(&home.invite(&boss, &machine));
        let outcomes = join_all(claimers.iter().map(|claimer| claimer.enliven(&claim))).await;
        let winners: Vec<_> = (0..CLAIMERS).filter(|n| outcomes[*n].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let winner = winners[0];

        // B2: the winner gets the same again, and nobody else gets anything.
        let again = join_all(claimers.iter().map(|claimer| claimer.enliven(&claim))).await;
        for (n, outcome) in again.into_iter().enumerate() {
            match outcome {
                Ok(presence) => assert!(outcomes[n].as_ref().is_ok_and(|it| *it == presence)),
                Err(error) => {
                    assert!(matches!(error, EnlivenError::Refused(_)), "{error}");
                    assert_ne!(n, winner);
                }
            }
        }

        // B3: an alert for each other key.
        let alerts = boss.status().await.expect("a report").alerts;
        let mut others: Vec<_> = alerts
            .into_iter()
            .filter(|alert| alert.machine == machine)
            .map(|alert| {
                assert_eq!(alert.bound_key, claimers[winner].locator().designator);
                assert_eq!((alert.count, alert.contested), (2, true));
                assert!(alert.other_address.is_some());
                alert.other_key
            })
            .collect();
        others.sort();
        let losers = claimers.iter().enumerate().filter(|(n, _)| *n != winner);
        let mut losers: Vec<_> = losers.map(|(_, it)| it.locator().designator).collect();
        losers.sort();
        assert_eq!(others, losers);
    }
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_a_claimed_key_finds_its_presence_after_the_boss_died() {
    let home = Home::new();
    let boss = home.boss().await;
    let claim = sturdyref(&home.invite(&boss, "machine.db"));
    let identity = Identity::generate().expect("a key");
    enliven(&peer(&identity), &claim).await;
    boss.shutdown().await;
    let boss = home.boss().await;
    enliven(&peer(&identity), &claim).await;
    refusal(&stranger(), &claim).await;
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b5_whatever_is_refused_gets_the_same_reply() {
    let (home, elsewhere) = (Home::new(), Home::new());
    let (boss, other_boss) = (home.boss().await, elsewhere.boss().await);
    let used = sturdyref(&home.invite(&boss, "machine.used"));
    let winner = Identity::generate().expect("a key");
    enliven(&peer(&winner), &used).await;
    let long_ago = SystemTime::now() - CLAIM_TTL - Duration::from_secs(1);
    let expired = sturdyref(&home.invite_as_of(&boss, "machine.late", 1, long_ago));
    let withdrawn = sturdyref(&home.invite(&boss, "machine.gone"));
    boss.forget(&address("machine.gone"), 1).expect("written");
    let mut foreign = sturdyref(&elsewhere.invite(&other_boss, "machine.used"));
    foreign.peer = boss.locator();
    let mut unknown = used.clone();
    unknown.swissnum = Swissnum::new([7; 32]);
    let mut empty = used.clone();
    empty.swissnum = Swissnum::new([]);
    let mut long = used.clone();
    long.swissnum = Swissnum::new(vec![7; 100_000]);
    let operators = operator_sturdyref(&home.tables(), boss.locator()).expect("readable");

    let asker = stranger();
    let expected = refusal(&asker, &unknown).await;
    let kinds = [used, expired, withdrawn, foreign, operators, empty, long];
    for (kind, refused) in kinds.iter().enumerate() {
        assert_eq!(refusal(&asker, refused).await, expected, "kind {kind}");
    }
    // Who has one claim has no other.
    let asker = peer(&winner);
    for (kind, refused) in kinds.iter().enumerate().skip(1) {
        assert_eq!(refusal(&asker, refused).await, expected, "kind {kind}");
    }
    boss.shutdown().await;
    other_boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b4_a_contested_machine_gets_nothing_until_somebody_has_looked() {
    let pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let mut client = Client::connect(&bound).await;
    refusal(&stranger(), &sturdyref(&pair.invitation)).await;
    let contested = |error: &BossError| matches!(error, BossError::Contested { machine } if *machine == address("machine.app"));
    let error = pair.bind(2).await.expect_err("contested");
    assert!(contested(&error), "{error}");
    let app = address("machine.app");
    let waited = pair.boss.wait_registered(&app, 1, Duration::ZERO).await;
    let error = waited.expect_err("contested");
    assert!(contested(&error), "{error}");
    // What was delivered goes on, and can be taken back.
    client.ping().await;
    let tables = pair.home.tables();
    let alerts = tables.alerts().expect("readable");
    assert_eq!(alerts.len(), 1);
    let seen = tables.acknowledge(alerts[0].id, SystemTime::now());
    assert!(seen.expect("written"));
    let again = pair.bind(2).await.expect("bound again");
    Client::connect(&again).await.ping().await;

    refusal(&stranger(), &sturdyref(&pair.invitation)).await;
    pair.boss.unbind(unbind_request(2)).await.expect("unbound");
    client.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn b2_a_hob_that_dies_at_any_time_before_it_registers_is_not_lost() {
    let home = Home::new();
    let boss = home.boss().await;
    // At each step of the agent's start that shows in its directory, it is killed.
    for (n, step) in ["hob", "hob/lock", "hob/key", "hob/state.json"]
        .iter()
        .enumerate()
    {
        let machine = format!("machine.web[{n}]");
        let mut host = Host::start(&home.invite(&boss, &machine));
        eventually(step, async || host.path(step).exists()).await;
        host.kill();
        host.start_again();
        registered(&boss, &machine).await;
        eventually("erased", async || !host.path("user-data").exists()).await;
    }
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_machine_takes_the_place_of_the_one_before() {
    let home = Home::new();
    let boss = home.boss().await;
    let machine = address("machine.db");
    let mut before = Host::start(&home.invite(&boss, "machine.db"));
    let old_key = registered(&boss, "machine.db").await;
    let invitation = home.invite_as_of(&boss, "machine.db", 2, SystemTime::now());
    let _after = Host::start(&invitation);
    let rebuilt = boss.wait_registered(&machine, 2, PATIENCE).await;
    let rebuilt = rebuilt.expect("registered").designator;
    assert_ne!(rebuilt, old_key);
    // The one before may still run; it is refused, and changes nothing.
    before.kill();
    before.start_again();
    eventually("refused", async || {
        before.log().contains("a later incarnation has registered")
    })
    .await;
    let hobs = boss.status().await.expect("a report").hobs;
    assert_eq!(hobs.len(), 1);
    assert_eq!((hobs[0].incarnation, &hobs[0].designator), (2, &rebuilt));
    boss.forget(&machine, 1).expect("written");
    boss.wait_registered(&machine, 2, Duration::ZERO)
        .await
        .expect("still there");
    boss.forget(&machine, 2).expect("written");
    assert!(boss.status().await.expect("a report").hobs.is_empty());
    let gone = boss.wait_registered(&machine, 2, Duration::ZERO).await;
    assert!(matches!(gone, Err(BossError::Unclaimed { .. })), "{gone:?}");
    boss.shutdown().await;
}
