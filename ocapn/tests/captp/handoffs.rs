//! Handoffs whose certificates are signed well and say something wrong, what counts as a replay,
//! and what becomes of gifts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ocapn::{Limits, Passable, PeerLocator, VatEvent};

use crate::by_hand::{Give, Receive, Side, broken, key};
use crate::support::{Log, TRANSPORT, World, echo, name};

/// The key that the receiver uses towards gifters, where it matters not which.
const TOWARDS_GIFTER: u8 = 77;

/// Vat 0 is the exporter; gifter and receiver are played by the test.
struct Scene {
    world: World,
    gifter: Side,
    receiver: Side,
    asked: u64,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let mut world = World::with_limits(2, limits);
        world.publish(0, "gift", echo());
        let gifter = Side::connect(&mut world, "gifter", key(1));
        gifter.fetch(&mut world, "gift");
        let receiver = Side::connect(&mut world, "receiver", key(2));
        Self {
            world,
            gifter,
            receiver,
            asked: 100,
        }
    }

    fn deposit(&mut self, gift: &str) -> String {
        self.gifter.deposit(&mut self.world, gift.as_bytes())
    }

    fn withdraw(&mut self, certificate: &Receive) -> String {
        self.asked += 1;
        self.receiver
            .withdraw(&mut self.world, &certificate.encode(), self.asked)
    }

    /// Returns the certificate in which everything is right.
    fn certificate(&self, gift: &str, count: u64) -> Receive {
        certificate(&self.gifter, &self.receiver, TOWARDS_GIFTER, gift, count)
    }
}

fn certificate(gifter: &Side, receiver: &Side, with: u8, gift: &str, count: u64) -> Receive {
    Receive {
        signer: key(with),
        session: receiver.session_id,
        receiver_side: receiver.side,
        count,
        give: Give {
            signer: gifter.key.clone(),
            receiver: *key(with).verifying_key().as_bytes(),
            exporter: (TRANSPORT.into(), name(0)),
            hints: "f",
            session: gifter.session_id,
            gifter_side: gifter.side,
            gift: gift.into(),
        },
    }
}

fn is_given(back: &str) -> bool {
    back.contains("7'fulfill<18'desc:import-object")
}

#[test]
fn a_wrong_word_well_signed_is_refused_for_its_own_reason() {
    let mut scene = Scene::new(Limits::default());
    let other = Side::connect(&mut scene.world, "other", key(3));
    scene.deposit("gift");
    let right = scene.certificate("gift", 0);
    let wrong = |change: &dyn Fn(&mut Receive)| {
        let mut changed = right.clone();
        change(&mut changed);
        changed
    };
    let for_another = "the certificate is for another session";
    let not_by_gifter = "the gifter did not sign this";
    let elsewhere = "the gift is at another peer";
    let cases = [
        (
            "session",
            wrong(&|it| it.session = other.session_id),
            for_another,
        ),
        (
            "receiver's side",
            wrong(&|it| it.receiver_side = other.side),
            for_another,
        ),
        (
            "gifter's session",
            wrong(&|it| it.give.session = [9; 32]),
            "no session with the gifter",
        ),
        (
            "gifter's side",
            wrong(&|it| it.give.gifter_side = other.side),
            not_by_gifter,
        ),
        (
            "exporter's designator",
            wrong(&|it| it.give.exporter.1 = name(1)),
            elsewhere,
        ),
        (
            "exporter's transport",
            wrong(&|it| it.give.exporter.0 = "tls-rpk".into()),
            elsewhere,
        ),
        (
            "gifter's signature",
            wrong(&|it| it.give.signer = other.key.clone()),
            not_by_gifter,
        ),
        (
            "receiver's signature",
            wrong(&|it| it.signer = other.key.clone()),
            "the receiver did not sign this",
        ),
    ];
    for (what, certificate, reason) in cases {
        let back = scene.withdraw(&certificate);
        assert!(back.contains("handoff-refused"), "{what}: {back}");
        assert!(back.contains(reason), "{what}: {back}");
    }
    let back = scene.withdraw(&right);
    assert!(is_given(&back), "the right one is still good: {back}");
}

#[test]
fn counts_of_goblins_and_of_endo_are_accepted_and_none_twice() {
    // Goblins counts per session of gifter and receiver, Endo per session of exporter and
    // receiver. The receiver has another key towards each gifter.
    for counts in [[0, 0, 1, 1], [0, 1, 2, 3]] {
        let mut scene = Scene::new(Limits::default());
        let second = Side::connect(&mut scene.world, "second", key(4));
        second.fetch(&mut scene.world, "gift");
        let mut used = Vec::new();
        for (n, count) in counts.into_iter().enumerate() {
            let gift = format!("gift {n}");
            let (gifter, with) = match n % 2 {
                0 => (&scene.gifter, 50),
                _ => (&second, 51),
            };
            let certificate = certificate(gifter, &scene.receiver, with, &gift, count);
            gifter.deposit(&mut scene.world, gift.as_bytes());
            let back = scene.withdraw(&certificate);
            assert!(is_given(&back), "{counts:?}, number {n}: {back}");
            // Were it not for the count, this would give it again.
            let gifter = if n % 2 == 0 { &scene.gifter } else { &second };
            gifter.deposit(&mut scene.world, gift.as_bytes());
            used.push(certificate);
        }
        for certificate in used {
            let back = scene.withdraw(&certificate);
            assert!(back.contains("the certificate was used"), "{back}");
        }
        // After a new session with the same gifter the receiver's key is another, and Goblins
        // begins to count again.
        scene.deposit("later");
        let certificate = certificate(&scene.gifter, &scene.receiver, 52, "later", 0);
        let back = scene.withdraw(&certificate);
        assert!(is_given(&back), "{counts:?}, later: {back}");
    }
}

/// Sessions last long, and their handoffs must not run out; nor may an old one be made again.
#[test]
fn handoffs_go_on_and_none_is_replayed_however_many_there_were() {
    const MANY: u64 = 300;
    let mut scene = Scene::new(Limits::default());
    // One that comes late is let in as well.
    let counts = (0..MANY).filter(|n| *n != MANY - 9).chain([MANY - 9]);
    for count in counts {
        scene.deposit("gift");
        let back = scene.withdraw(&scene.certificate("gift", count));
        assert!(is_given(&back), "number {count}: {back}");
    }
    scene.deposit("gift");
    for used in 0..MANY {
        let back = scene.withdraw(&scene.certificate("gift", used));
        assert!(back.contains("the certificate was used"), "{used}: {back}");
    }
    let back = scene.withdraw(&scene.certificate("gift", MANY));
    assert!(is_given(&back), "{back}");
}

#[test]
fn gifts_die_with_the_session_of_their_gifter() {
    let mut scene = Scene::new(Limits::default());
    let log = Log::default();
    let alive = Arc::downgrade(&log.0);
    scene.world.publish(0, "log", log);
    let gifter = Side::connect(&mut scene.world, "another", key(5));
    gifter.fetch(&mut scene.world, "log");
    gifter.deposit(&mut scene.world, b"here");
    scene.world.published[0].clear();
    let collected = "<13'op:gc-exports[1+][1+]><13'op:gc-answers[0+]>";
    gifter.say(&mut scene.world, collected);
    assert_eq!(alive.strong_count(), 1, "the deposit keeps it");

    let receiver = &scene.receiver;
    let awaited = certificate(&gifter, receiver, TOWARDS_GIFTER, "awaited", 0);
    let here = certificate(&gifter, receiver, TOWARDS_GIFTER, "here", 1);
    assert_eq!(scene.withdraw(&awaited), "", "it waits");
    scene.world.vats[0].closed(gifter.session, "gone");
    assert_eq!(alive.strong_count(), 0, "nothing keeps it");
    let back = scene.receiver.hear(&mut scene.world);
    assert!(back.contains("the gifter's session is over"), "{back}");
    let back = scene.withdraw(&here);
    assert!(back.contains("no session with the gifter"), "{back}");

    // The gifter's next session is another one.
    let gifter = Side::connect(&mut scene.world, "another", key(6));
    let here = certificate(&gifter, &scene.receiver, TOWARDS_GIFTER, "here", 2);
    assert_eq!(scene.withdraw(&here), "", "nothing was deposited");
}

/// Neither who never fetches what it is given nor who asks for what was never deposited takes the
/// places of those to whom the same gifter gives something.
#[test]
fn gifts_that_lie_or_never_come_keep_nobody_from_another() {
    let limits = Limits {
        gifts_max: 3,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    let gifts = |scene: &Scene| {
        let held = scene.world.vats[0].inspect(scene.gifter.session);
        held.map(|held| held.gifts)
    };
    for n in 0..10 {
        let certificate = scene.certificate(&format!("awaited {n}"), n);
        assert_eq!(scene.withdraw(&certificate), "", "number {n} waits");
    }
    for n in 0..10 {
        let back = scene.deposit(&format!("left {n}"));
        assert!(!back.contains("5'break"), "{back}");
    }
    assert_eq!(gifts(&scene), Some(13));
    let back = scene.deposit("left 9");
    assert!(back.contains("the gift id is in use"), "{back}");
    let other = Side::connect(&mut scene.world, "other", key(3));
    for (n, gift) in ["left 7", "left 8", "left 9"].into_iter().enumerate() {
        let certificate = certificate(&scene.gifter, &other, 60, gift, n as u64);
        let back = other.withdraw(&mut scene.world, &certificate.encode(), n as u64);
        assert!(is_given(&back), "{gift}: {back}");
    }
    let early = certificate(&scene.gifter, &other, 60, "left 6", 3);
    let back = other.withdraw(&mut scene.world, &early.encode(), 3);
    assert_eq!(back, "", "it made room, as the oldest");

    // What is waited for is let in whatever there is.
    for n in 10..13 {
        scene.deposit(&format!("left {n}"));
    }
    let back = scene.deposit("awaited 1");
    assert!(!back.contains("5'break"), "{back}");
    assert!(is_given(&scene.receiver.hear(&mut scene.world)));
    // A withdrawal that was refused may be made again: only what was accepted is used up.
    let again = certificate(&scene.gifter, &other, 60, "awaited 2", 4);
    let back = other.withdraw(&mut scene.world, &again.encode(), 4);
    assert!(back.contains("somebody else waits"), "{back}");
    scene.deposit("awaited 2");
    scene.deposit("awaited 2");
    let back = other.withdraw(&mut scene.world, &again.encode(), 5);
    assert!(is_given(&back), "{back}");

    // Who waits is forgotten with the session that waits.
    scene.world.vats[0].closed(scene.receiver.session, "gone");
    scene.world.vats[0].closed(other.session, "gone");
    assert_eq!(gifts(&scene), Some(2));
}

/// Who waits for gifts waits at its own cost.
#[test]
fn waiting_for_gifts_is_bounded() {
    let limits = Limits {
        pending_max: 20,
        ..Limits::default()
    };
    let mut scene = Scene::new(limits);
    // Whom it wants told counts as well.
    for n in 0..10 {
        let certificate = scene.certificate(&format!("gift {n}"), n);
        assert_eq!(scene.withdraw(&certificate), "", "number {n} waits");
    }
    let back = scene.withdraw(&scene.certificate("one more", 20));
    assert!(back.contains("too much waits to be done"), "{back}");
    let back = scene.deposit("gift 1");
    assert!(!back.contains("op:abort"), "{back}");
}

/// Gives a certificate to an object of vat 0.
fn hand_over(world: &World, gifter: &Side, give: &Give) {
    let start = b"<10'op:deliver<11'desc:export1+>[";
    let message = [start, &give.encode()[..], b"]ff>"].concat();
    world.vats[0].receive(gifter.session, &message).unwrap();
}

/// Gives certificates to an object of vat 0, and returns what became of each.
fn give(world: &World, gifter: &Side, log: &Log, gives: &[Give]) -> Vec<String> {
    for give in gives {
        hand_over(world, gifter, give);
    }
    let taken = log.taken();
    assert_eq!(taken.len(), gives.len());
    taken.iter().map(|args| broken(&args[0])).collect()
}

#[test]
fn a_receiver_takes_only_what_is_given_to_it_by_another() {
    let limits = Limits {
        gifts_max: 2,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    let log = Log::default();
    world.publish(0, "log", log.clone());
    let gifter = Side::connect(&mut world, "gifter", key(1));
    gifter.fetch(&mut world, "log");
    let right = Give {
        signer: key(9),
        receiver: gifter.vat_key,
        exporter: (TRANSPORT.into(), name(1)),
        hints: "f",
        session: [8; 32],
        gifter_side: [7; 32],
        gift: b"gift".to_vec(),
    };
    let for_another = Give {
        receiver: *key(TOWARDS_GIFTER).verifying_key().as_bytes(),
        ..right.clone()
    };
    let at_itself = Give {
        exporter: (TRANSPORT.into(), name(0)),
        ..right.clone()
    };
    let reasons = give(&world, &gifter, &log, &[for_another, at_itself]);
    assert!(
        reasons[0].starts_with("the certificate is for another receiver"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].starts_with("the gift is at the receiver itself"),
        "{reasons:?}"
    );
    assert_eq!(world.links.len(), 0, "nobody was dialled");

    let three = [right.clone(), right.clone(), right];
    let reasons = give(&world, &gifter, &log, &three);
    world.serve(0);
    assert_eq!(world.links.len(), 1, "the exporter is dialled once");
    assert!(reasons[0].starts_with("not broken"), "{reasons:?}");
    assert!(reasons[1].starts_with("not broken"), "{reasons:?}");
    assert!(reasons[2].starts_with("too many gifts"), "{reasons:?}");
}

/// What one gifter says of an exporter must not decide over what another hands over.
#[test]
fn gifters_neither_fill_each_others_places_nor_misdirect_each_others_dials() {
    let limits = Limits {
        gifts_max: 2,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    let log = Log::default();
    world.publish(0, "log", log.clone());
    let gifters = [("hostile", 1), ("honest", 2)].map(|(name, seed)| {
        let gifter = Side::connect(&mut world, name, key(seed));
        gifter.fetch(&mut world, "log");
        gifter
    });
    let [wrong, right] = [(0, "{4\"host1\"x}"), (1, "{4\"host1\"y}")].map(|(n, hints)| Give {
        signer: key(9),
        receiver: gifters[n].vat_key,
        exporter: (TRANSPORT.into(), name(1)),
        hints,
        session: [8; 32],
        gifter_side: [7; 32],
        gift: b"gift".to_vec(),
    });
    for (gifter, give) in [(0, &wrong), (0, &wrong), (0, &wrong), (1, &right)] {
        hand_over(&world, &gifters[gifter], give);
    }
    let there = |host: &str| PeerLocator::new(TRANSPORT, name(1)).with_hint("host", host);
    world.vats[0].dial_failed(&there("x"), "nobody is there");
    let taken = log.taken();
    let reasons: Vec<_> = taken.iter().map(|args| broken(&args[0])).collect();
    assert!(reasons[0].contains("nobody is there"), "{reasons:?}");
    assert!(reasons[1].contains("nobody is there"), "{reasons:?}");
    assert!(reasons[2].starts_with("too many gifts"), "{reasons:?}");
    assert!(reasons[3].starts_with("not broken"), "{reasons:?}");
    world.vats[0].dial_failed(&there("y"), "nor here");
    assert!(broken(&taken[3][0]).contains("nor here"));

    // Nor does who comes again and again have places each time.
    let mut kept = Vec::new();
    for seed in 10..15 {
        let gifter = Side::connect(&mut world, "again", key(seed));
        gifter.fetch(&mut world, "log");
        let give = Give {
            receiver: gifter.vat_key,
            ..wrong.clone()
        };
        hand_over(&world, &gifter, &give);
        world.vats[0].closed(gifter.session, "gone");
        kept.extend(log.taken());
    }
    let waits = |args: &&Vec<Passable>| broken(&args[0]).starts_with("not broken");
    assert_eq!((kept.len(), kept.iter().filter(waits).count()), (5, 2));
}

/// Vat 0 is told by its events whom to dial.
fn dialled(world: &World) -> Vec<PeerLocator> {
    let mut cx = Context::from_waker(Waker::noop());
    let events = std::iter::from_fn(|| match world.vats[0].poll_event(&mut cx) {
        Poll::Ready(event) => Some(event),
        Poll::Pending => None,
    });
    let dials = events.filter_map(|event| match event {
        VatEvent::Dial(to) => Some(to),
        _ => None,
    });
    dials.collect()
}

/// A gifter may name any number of exporters that do not answer.
#[test]
fn few_exporters_are_dialled_at_a_time_for_one_gifter() {
    let mut world = World::new(1);
    let log = Log::default();
    world.publish(0, "log", log.clone());
    let [hostile, honest] = [("hostile", 1), ("honest", 2)].map(|(name, seed)| {
        let gifter = Side::connect(&mut world, name, key(seed));
        gifter.fetch(&mut world, "log");
        gifter
    });
    let give = |gifter: &Side, exporter: String| Give {
        signer: key(9),
        receiver: gifter.vat_key,
        exporter: (TRANSPORT.into(), exporter),
        hints: "f",
        session: [8; 32],
        gifter_side: [7; 32],
        gift: b"gift".to_vec(),
    };
    for n in 0..100 {
        hand_over(
            &world,
            &hostile,
            &give(&hostile, format!("exporter {}", n % 50)),
        );
    }
    let mut all = dialled(&world);
    assert_eq!(all.len(), 32);
    hand_over(&world, &honest, &give(&honest, "another".into()));
    assert_eq!(dialled(&world), [PeerLocator::new(TRANSPORT, "another")]);
    let mut ended = 0;
    while let Some(exporter) = all.get(ended).cloned() {
        world.vats[0].dial_failed(&exporter, "nobody is there");
        all.extend(dialled(&world));
        ended += 1;
    }
    let names: BTreeSet<_> = all.iter().map(|to| &to.designator).collect();
    assert_eq!((all.len(), names.len()), (50, 50));
    let taken = log.taken();
    let failed = taken.iter().map(|args| broken(&args[0]));
    let failed = failed.filter(|reason| reason.contains("nobody is there"));
    assert_eq!((taken.len(), failed.count()), (101, 100));
}
