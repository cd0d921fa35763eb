//! Claims, alerts, join sequences and hobs.

use std::collections::BTreeSet;
use std::sync::Barrier;

use gobs_state::{
    Alert, CLAIM_LIFETIME_MAX, CLAIM_TTL, ClaimOutcome, HobRow, JoinOutcome, LoanRow, Refusal,
};
use proptest::prelude::*;
use zeroize::Zeroizing;

use crate::*;

const SWISSNUM: &[u8] = b"a swissnum";

/// A project in which claims for a machine were minted at second 0.
fn invited(swissnums: &[&[u8]]) -> (Project, BossStore) {
    let project = Project::new();
    let mut store = project.running();
    for (number, swissnum) in swissnums.iter().enumerate() {
        // A later invitation of a machine would withdraw the one before.
        let machine = match number {
            0 => "machine.a".to_owned(),
            _ => format!("machine.a{number}"),
        };
        let claim = Some(claim(swissnum, &machine));
        drop(start(
            &mut store,
            Intent {
                claim,
                ..intent("machine.a")
            },
        ));
    }
    let boss = project.boss();
    (project, boss)
}

fn try_claim(boss: &BossStore, swissnum: &[u8], key: &str, seconds: u64) -> ClaimOutcome {
    let address = "192.0.2.1:4000".parse().ok();
    boss.claim(SwissnumHash::of(swissnum), key, address, at(seconds))
        .expect("decided")
}

#[test]
fn b1_of_concurrent_claims_with_different_keys_exactly_one_wins() {
    const ROUNDS: usize = 1_000;
    const CLIENTS: usize = 8;
    let swissnums: Vec<_> = (0..ROUNDS).map(|round| round.to_le_bytes()).collect();
    let (project, _boss) = invited(&swissnums.iter().map(|s| &s[..]).collect::<Vec<_>>());
    // Two threads share each connection: both the mutex and SQLite's lock are contended.
    let stores: Vec<_> = (0..CLIENTS / 2).map(|_| project.boss()).collect();
    let barrier = Barrier::new(CLIENTS);
    let outcomes: Vec<Vec<ClaimOutcome>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (stores, barrier, swissnums) = (&stores, &barrier, &swissnums);
                scope.spawn(move || {
                    let key = format!("key{client}");
                    let rounds = swissnums.iter().map(|swissnum| {
                        barrier.wait();
                        try_claim(&stores[client / 2], swissnum, &key, 1)
                    });
                    rounds.collect()
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no panic"))
            .collect()
    });
    let mut winners = BTreeSet::new();
    for round in 0..ROUNDS {
        let round: Vec<_> = outcomes.iter().map(|outcomes| &outcomes[round]).collect();
        let bound = |outcome: &&&ClaimOutcome| matches!(outcome, ClaimOutcome::Bound(_));
        let other = ClaimOutcome::Refused(Refusal::OtherKey);
        assert_eq!(round.iter().filter(bound).count(), 1);
        assert_eq!(
            round.iter().filter(|outcome| **outcome == &other).count(),
            CLIENTS - 1
        );
        winners.insert(round.iter().position(|outcome| bound(&outcome)));
    }
    assert!(winners.len() > 1, "the clients did race: {winners:?}");
}

#[test]
fn b2_the_same_key_gets_the_same_answer_ever_after() {
    let (project, boss) = invited(&[SWISSNUM]);
    let ClaimOutcome::Bound(first) = try_claim(&boss, SWISSNUM, "mine", 5) else {
        panic!("the first claim binds");
    };
    assert_eq!(first.bound_key.as_deref(), Some("mine"));
    assert_eq!(
        (first.first_time, first.first_address),
        (Some(at(5)), "192.0.2.1:4000".parse().ok())
    );
    drop(boss);
    let month = 30 * 24 * 3600;
    let boss = project.boss();
    let address = "203.0.113.9:1".parse().ok();
    let again = boss.claim(SwissnumHash::of(SWISSNUM), "mine", address, at(month));
    assert_eq!(again.expect("decided"), ClaimOutcome::Again(first));
}

#[test]
fn b2_a_step_begun_again_with_its_claim_leaves_the_claim_as_it_was() {
    let (project, boss) = invited(&[SWISSNUM]);
    try_claim(&boss, SWISSNUM, "mine", 1);
    let mut store = project.running();
    let doubt = store.in_doubt().expect("readable").remove(0);
    let again = doubt.started.intent().clone();
    assert_eq!(again.claim, Some(claim(SWISSNUM, "machine.a")));
    drop(start(&mut store, again));
    let again = try_claim(&boss, SWISSNUM, "mine", 2);
    assert!(matches!(again, ClaimOutcome::Again(_)), "{again:?}");
}

#[test]
fn b5_an_invitation_that_nobody_took_ends_with_the_next_one() {
    let (project, boss) = invited(&[b"first"]);
    let mut store = project.running();
    let claim = Some(claim(b"second", "machine.a"));
    drop(start(
        &mut store,
        Intent {
            claim,
            ..intent("machine.a")
        },
    ));
    assert_eq!(
        try_claim(&boss, b"first", "k", 1),
        ClaimOutcome::Refused(Refusal::Revoked)
    );
    let second = try_claim(&boss, b"second", "k", 1);
    assert!(matches!(second, ClaimOutcome::Bound(_)), "{second:?}");
}

#[test]
fn b5_every_other_claim_is_refused_for_a_reason_of_our_own() {
    let (_project, boss) = invited(&[SWISSNUM, b"late", b"revoked"]);
    let refused = |refusal| ClaimOutcome::Refused(refusal);
    let ttl = CLAIM_TTL.as_secs();
    assert_eq!(
        try_claim(&boss, b"no such", "k", 0),
        refused(Refusal::Unknown)
    );
    assert_eq!(
        try_claim(&boss, b"late", "k", ttl),
        refused(Refusal::Expired)
    );
    boss.revoke_claim(SwissnumHash::of(b"revoked"), at(1))
        .expect("revoked");
    assert_eq!(
        try_claim(&boss, b"revoked", "k", 2),
        refused(Refusal::Revoked)
    );
    assert!(matches!(
        try_claim(&boss, SWISSNUM, "k", ttl - 1),
        ClaimOutcome::Bound(_)
    ));
    assert_eq!(
        try_claim(&boss, SWISSNUM, "other", 1),
        refused(Refusal::OtherKey)
    );
    boss.revoke_claim(SwissnumHash::of(SWISSNUM), at(2))
        .expect("revoked");
    assert_eq!(
        try_claim(&boss, SWISSNUM, "k", 3),
        refused(Refusal::Revoked)
    );
    assert_eq!(
        boss.alerts().expect("readable").len(),
        1,
        "only another key is an alert"
    );
}

#[test]
fn b3_b4_another_key_is_an_alert_and_contests_within_the_time() {
    let (_project, boss) = invited(&[SWISSNUM]);
    let contested = |boss: &BossStore| {
        let claims = boss.claims(&address("machine.a"), 1).expect("readable");
        claims[0].contested
    };
    let ttl = CLAIM_TTL.as_secs();
    try_claim(&boss, SWISSNUM, "mine", 1);
    try_claim(&boss, SWISSNUM, "late thief", ttl + 1);
    assert!(
        !contested(&boss),
        "old user data takes no healthy machine down"
    );
    try_claim(&boss, SWISSNUM, "thief", 2);
    try_claim(&boss, SWISSNUM, "thief", 3);
    assert!(contested(&boss));
    let alerts = boss.alerts().expect("readable");
    let [late, thief] = &alerts[..] else {
        panic!("one alert a key: {alerts:?}");
    };
    assert_eq!(
        (&*late.other_key, late.contested, late.count),
        ("late thief", false, 1)
    );
    let expected = Alert {
        id: thief.id,
        machine: address("machine.a"),
        incarnation: 1,
        bound_key: "mine".into(),
        bound_address: "192.0.2.1:4000".parse().ok(),
        bound_time: Some(at(1)),
        other_key: "thief".into(),
        other_address: "192.0.2.1:4000".parse().ok(),
        first_time: at(2),
        last_time: at(3),
        count: 2,
        contested: true,
        acknowledged_at: None,
    };
    assert_eq!(thief, &expected);

    assert!(boss.acknowledge(late.id, at(9)).expect("written"));
    assert!(contested(&boss), "another alert made it so");
    assert!(boss.acknowledge(thief.id, at(9)).expect("written"));
    assert!(!contested(&boss));
    assert!(!boss.acknowledge(thief.id, at(9)).expect("written"), "once");
    assert!(
        !boss.acknowledge(u64::MAX, at(9)).expect("written"),
        "no such alert"
    );

    try_claim(&boss, SWISSNUM, "thief", 10);
    assert!(
        contested(&boss),
        "a further try asks for the operator again"
    );
    let alerts = boss.alerts().expect("readable");
    let again = alerts
        .iter()
        .find(|alert| alert.id == thief.id)
        .expect("kept");
    assert_eq!((again.acknowledged_at, again.count), (None, 3));
}

#[test]
fn a_thief_with_many_keys_fills_no_disk() {
    let (_project, boss) = invited(&[SWISSNUM]);
    try_claim(&boss, SWISSNUM, "mine", 1);
    for number in 0..120 {
        try_claim(&boss, SWISSNUM, &format!("thief{number}"), 2);
    }
    let alerts = boss.alerts().expect("readable");
    assert_eq!(alerts.len(), 100);
    assert_eq!(
        alerts.iter().map(|alert| alert.count).sum::<u64>(),
        120,
        "none is uncounted"
    );
}

#[test]
fn b6_the_time_counts_from_acceptance_and_is_extended_up_to_a_stop() {
    let hash = SwissnumHash::of(SWISSNUM);
    let (ttl, stop) = (CLAIM_TTL.as_secs(), CLAIM_LIFETIME_MAX.as_secs());
    let (_project, boss) = invited(&[SWISSNUM]);
    let expires = |boss: &BossStore| {
        let claims = boss.claims(&address("machine.a"), 1).expect("readable");
        claims[0].expires_at
    };
    assert_eq!(expires(&boss), at(ttl));
    boss.accepted(hash, at(100), CLAIM_TTL).expect("written");
    boss.accepted(hash, at(900), CLAIM_TTL).expect("written");
    assert_eq!(expires(&boss), at(100 + ttl), "the first acceptance counts");
    boss.provisioning(hash, at(100 + ttl - 1), CLAIM_TTL)
        .expect("written");
    assert_eq!(expires(&boss), at(100 + 2 * ttl - 1));
    boss.provisioning(hash, at(200), CLAIM_TTL)
        .expect("written");
    assert_eq!(expires(&boss), at(100 + 2 * ttl - 1), "never shortened");
    for minute in 0..stop / 60 {
        boss.provisioning(hash, at(100 + minute * 60), CLAIM_TTL)
            .expect("written");
    }
    assert_eq!(expires(&boss), at(100 + stop), "the hard stop");
    boss.provisioning(hash, at(100 + stop), CLAIM_TTL)
        .expect("written");
    let unclaimed = |now| boss.unclaimed(at(now)).expect("readable");
    assert_eq!(unclaimed(99 + stop), []);
    assert_eq!(unclaimed(100 + stop), [(address("machine.a"), 1)]);
    let refused = ClaimOutcome::Refused(Refusal::Expired);
    assert_eq!(try_claim(&boss, SWISSNUM, "k", 100 + stop), refused);
    assert!(matches!(
        try_claim(&boss, SWISSNUM, "k", 99 + stop),
        ClaimOutcome::Bound(_)
    ));
    assert_eq!(boss.unclaimed(at(100 + stop)).expect("readable"), []);
    let claim = boss.claim_of(hash).expect("readable").expect("there");
    assert_eq!(claim.bound_key.as_deref(), Some("k"));
}

fn hob(incarnation: u64, designator: &str) -> HobRow {
    HobRow {
        machine: address("machine.a"),
        incarnation,
        designator: designator.into(),
        locator: "ocapn://one".into(),
        presence: Some(Zeroizing::new("ocapn://presence".into())),
        last_seen: at(1),
        locked_at: None,
    }
}

#[test]
fn b7_a_lost_reply_harms_nobody_and_a_stale_copy_locks_both() {
    let (_project, boss) = invited(&[]);
    let machine = address("machine.a");
    let join = |presented| boss.join(&machine, presented, at(7)).expect("judged");
    assert_eq!(join(0), JoinOutcome::Unknown);
    assert_eq!(boss.put_hob(&hob(1, "key")).expect("kept"), Some(1));
    assert_eq!(
        join(0),
        JoinOutcome::Welcome(1),
        "the reply to the registration was lost"
    );
    assert_eq!(join(1), JoinOutcome::Welcome(2));
    assert_eq!(join(1), JoinOutcome::Welcome(2), "that reply was lost");
    assert_eq!(
        boss.put_hob(&hob(1, "key")).expect("kept"),
        Some(2),
        "registers again"
    );
    assert_eq!(join(2), JoinOutcome::Welcome(3));
    assert_eq!(join(1), JoinOutcome::Locked, "a copy of the disk as it was");
    assert_eq!(join(3), JoinOutcome::Locked, "both are");
    assert_eq!(boss.hobs().expect("readable")[0].locked_at, Some(at(7)));
    assert!(boss.unlock(&machine).expect("written"));
    assert!(!boss.unlock(&machine).expect("written"));
    // What comes next is believed, once: after a restore only the hob knows its number.
    assert_eq!(join(9), JoinOutcome::Welcome(10));
    assert_eq!(join(9), JoinOutcome::Welcome(10), "that reply was lost");
    assert_eq!(join(3), JoinOutcome::Locked, "the other copy");
    assert!(boss.unlock(&machine).expect("written"));
    assert_eq!(join(10), JoinOutcome::Welcome(11));
    assert_eq!(
        boss.put_hob(&hob(2, "key2")).expect("kept"),
        Some(1),
        "a fresh incarnation"
    );
    assert_eq!(
        boss.put_hob(&hob(1, "key")).expect("judged"),
        None,
        "an older one is refused"
    );
    assert_eq!(boss.hobs().expect("readable"), [hob(2, "key2")]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn b7_one_hob_is_never_locked_whatever_replies_are_lost(
        lost in prop::collection::vec(any::<bool>(), 1..30),
        copied_at in any::<prop::sample::Index>(),
    ) {
        let (_project, boss) = invited(&[]);
        let machine = address("machine.a");
        let mut held = 0;
        let _ = boss.put_hob(&hob(1, "key")).expect("kept");
        let copied_at = copied_at.index(lost.len());
        let mut copy = 0;
        for (round, lost) in lost.into_iter().enumerate() {
            if round == copied_at {
                copy = held;
            }
            match boss.join(&machine, held, at(1)).expect("judged") {
                JoinOutcome::Welcome(offered) if !lost => held = offered,
                JoinOutcome::Welcome(_) => {}
                other => prop_assert!(false, "{other:?} for {held}"),
            }
        }
        // A copy is welcome only while it is indistinguishable: nothing was confirmed since.
        let outcome = boss.join(&machine, copy, at(2)).expect("judged");
        let distinguishable = held > copy + 1;
        prop_assert!(!distinguishable || outcome == JoinOutcome::Locked, "{outcome:?}");
        prop_assert!(held != copy || outcome != JoinOutcome::Locked, "{outcome:?}");
    }
}

#[test]
fn a_machine_that_is_gone_is_forgotten_with_its_claims() {
    let (_project, boss) = invited(&[SWISSNUM]);
    let machine = address("machine.a");
    try_claim(&boss, SWISSNUM, "key", 1);
    let _ = boss.put_hob(&hob(2, "key")).expect("kept");
    boss.forget_machine(&machine, 1, at(5)).expect("forgotten");
    assert_eq!(
        boss.hobs().expect("readable").len(),
        1,
        "a later incarnation stays"
    );
    let claims = boss.claims(&machine, 1).expect("readable");
    assert_eq!(claims[0].revoked_at, Some(at(5)), "a tombstone");
    boss.forget_machine(&machine, 2, at(6)).expect("forgotten");
    assert_eq!(boss.hobs().expect("readable"), []);
}

#[test]
fn the_boss_keeps_its_key_its_port_and_where_hobs_are() {
    let project = Project::new();
    let boss = project.boss();
    assert_eq!(boss.port().expect("readable"), None);
    boss.set_port(4711).expect("written");
    let seed = boss.seed().expect("a seed");
    let _ = boss.put_hob(&hob(1, "key")).expect("kept");
    let machine = address("machine.a");
    boss.seen(&machine, "key", Some("ocapn://two"), at(50))
        .expect("written");
    boss.seen(&machine, "key", None, at(40)).expect("written");
    boss.seen(&machine, "another", Some("ocapn://three"), at(60))
        .expect("written");
    let lineage = boss.lineage();
    drop(boss);
    let boss = project.boss();
    assert_eq!(*boss.seed().expect("a seed"), *seed);
    assert_eq!(boss.port().expect("readable"), Some(4711));
    assert_eq!((boss.lineage(), lineage.len()), (lineage, 32));
    let hobs = boss.hobs().expect("readable");
    assert_eq!(
        (&*hobs[0].locator, hobs[0].last_seen),
        ("ocapn://two", at(50))
    );
    assert_eq!(
        project.reader().snapshot().expect("readable").serial,
        0,
        "no row changed"
    );
}

#[test]
fn what_people_were_lent_is_remembered_and_comes_with_the_second_format() {
    let project = Project::new();
    drop(project.store());
    let as_before = "DROP TABLE loans; PRAGMA user_version = 1;";
    project.sql().execute_batch(as_before).expect("changed");
    let boss = project.boss();
    let service: Address = "machine.db.service.orders".parse().expect("an address");
    let loan = |generation| LoanRow {
        service: service.clone(),
        holder: "open by maria on laptop".into(),
        generation,
        key: "a key".into(),
        since: at(10),
        expires: at(70),
        ended: None,
    };
    for generation in [1, 2] {
        boss.begin_loan(&loan(generation)).expect("written");
    }
    assert!(boss.begin_loan(&loan(2)).is_err(), "there is one like it");
    // What has ended does not end again.
    for ended in [20, 30] {
        boss.end_loan(&loan(1).holder, 1, at(ended))
            .expect("written");
    }
    let first = LoanRow {
        ended: Some(at(20)),
        ..loan(1)
    };
    assert_eq!(boss.loans(&service).expect("read"), [loan(2), first]);
    let other = "machine.db.service.other".parse().expect("an address");
    assert_eq!(boss.loans(&other).expect("read"), []);
}

#[test]
fn the_boss_writes_beside_a_running_apply() {
    const EACH: u64 = 100;
    let (project, boss) = invited(&[]);
    let mut store = project.running();
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| {
            for incarnation in 1..=EACH {
                let offered = boss.put_hob(&hob(incarnation, "key")).expect("kept");
                assert_eq!(offered, Some(1));
            }
        });
        for _ in 0..EACH {
            write(
                &mut store,
                vec![put(machine_row("machine.a", gobs_model::Value::NULL))],
            );
        }
        joining.join().expect("no panic");
    });
    assert_eq!(store.snapshot().expect("readable").serial, EACH);
    assert_eq!(boss.hobs().expect("readable")[0].incarnation, EACH);
}
