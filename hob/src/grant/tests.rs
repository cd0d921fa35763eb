//! Grants in memory and on disk, without a network.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use tokio::time::{Instant, timeout};

use super::live::TICKETS_MAX;
use super::*;
use crate::layout::Layout;
use crate::protocol::{
    Attenuate, Postgres, ServiceKind, ServiceSpec, StreamReply, TICKET_LIFETIME,
};

/// How long anything may take on a host that is busy with other tests.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn grant(generation: u64) -> Grant {
    Grant {
        service: "orders".into(),
        binding: "binding.db".into(),
        generation,
        receiver: "receiver".into(),
        attenuate: Attenuate {
            connections_max: Some(2),
            ..Attenuate::default()
        },
        parent: None,
    }
}

fn peer(designator: &str, authenticated: bool) -> PeerId {
    PeerId {
        transport: "tls-rpk".into(),
        designator: designator.into(),
        authenticated,
        address: None,
    }
}

fn offering(layout: &Layout) -> Arc<Grants> {
    let store = Arc::new(Store::open(layout).unwrap());
    let kind = ServiceKind::Tcp("127.0.0.1:1".into());
    let spec = ServiceSpec { kind, r#type: None };
    store
        .update(|contents| contents.offers.insert("orders".into(), spec))
        .unwrap();
    Arc::new(Grants::new(store))
}

async fn made(grants: &Arc<Grants>, generation: u64) -> (Arc<Membrane>, Sturdyref) {
    let own = PeerLocator::new("tls-rpk", "own");
    let (object, sturdyref) = grants.grant(&own, grant(generation)).await.unwrap();
    drop(object);
    let membrane = Arc::clone(&grants.live().grants[&grant(generation).generation()]);
    (membrane, sturdyref)
}

#[tokio::test]
async fn s4_a_revocation_is_on_disk_before_it_cuts_and_cuts_before_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let grants = offering(&layout);
    let (membrane, sturdyref) = made(&grants, 1).await;
    let (later, _) = made(&grants, 2).await;
    let ticket = grants.ticket(&membrane).unwrap();
    let place = grants.enter(&membrane).unwrap();

    let revoking = grants.revoke(grant(1).generation(), Span::AndBefore);
    tokio::pin!(revoking);
    let mut marked = membrane.revoked.subscribe();
    tokio::select! {
        _ = marked.wait_for(|revoked| *revoked) => {}
        _ = &mut revoking => panic!("acknowledged while a stream is open"),
    }
    let on_disk: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.hob().join("state.json")).unwrap()).unwrap();
    assert_eq!(on_disk["revoked"]["binding.db"], 1);
    assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Refused));
    assert!(grants.ticket(&membrane).is_err());
    let receiver = peer("receiver", true);
    let now = Instant::now();
    assert!(grants.redeem(&ticket.ticket, &receiver, now).is_none());
    assert!(
        grants
            .find(sturdyref.swissnum.reveal(), &receiver)
            .is_none()
    );
    drop(place);
    revoking.await.unwrap();
    assert!(grants.enter(&later).is_ok(), "a later generation goes on");
    assert_eq!(grants.streams.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn s4_what_is_withdrawn_ends_at_once_for_all_who_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let grants = offering(&layout);
    let offered_here =
        |contents: &mut crate::store::Contents| contents.offered_here.insert("orders".into());
    grants.store.update(offered_here).unwrap();
    let (first, _) = made(&grants, 1).await;
    let (second, _) = made(&grants, 2).await;
    let places = [&first, &second].map(|it| grants.enter(it).unwrap());
    let withdrawing = grants.offer_here("orders".into(), None);
    tokio::pin!(withdrawing);
    let mut marked = [&first, &second].map(|it| it.revoked.subscribe());
    let [one, other] = &mut marked;
    let both = async {
        let _ = one.wait_for(|revoked| *revoked).await;
        let read = std::fs::read(layout.hob().join("state.json")).unwrap();
        let on_disk: serde_json::Value = serde_json::from_slice(&read).unwrap();
        assert_eq!(on_disk["revoked"]["binding.db"], 2, "with the offer");
        let _ = other.wait_for(|revoked| *revoked).await;
    };
    tokio::select! {
        marked = timeout(PATIENCE, both) => marked.expect("one waits for the other"),
        _ = &mut withdrawing => panic!("acknowledged while a stream is open"),
    }
    drop(places);
    withdrawing.await.unwrap();
}

#[tokio::test]
async fn a_disk_that_fails_does_not_keep_a_stream_open() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let grants = offering(&layout);
    let (membrane, _) = made(&grants, 1).await;
    std::fs::create_dir(layout.hob().join("state.new")).unwrap();
    let broken = grants
        .revoke(grant(1).generation(), Span::AndBefore)
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Some(code::STORE));
    assert!(broken.to_string().contains("Is a directory"), "{broken}");
    assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Refused));
}

#[tokio::test]
async fn places_and_tickets_have_limits() {
    let dir = tempfile::tempdir().unwrap();
    let grants = offering(&Layout::new(dir.path()));
    let (membrane, sturdyref) = made(&grants, 1).await;
    let first = grants.enter(&membrane).unwrap();
    let second = grants.enter(&membrane).unwrap();
    assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Busy));
    drop(first);
    drop((grants.enter(&membrane).unwrap(), second));
    assert_eq!(*membrane.streams.borrow(), 0);

    let tickets: Vec<_> = (0..TICKETS_MAX)
        .map(|_| grants.ticket(&membrane).unwrap())
        .collect();
    let refused = grants.ticket(&membrane).unwrap_err();
    assert_eq!(refused.code(), Some(code::BUSY));
    let (now, receiver) = (Instant::now(), peer("receiver", true));
    let late = now + TICKET_LIFETIME;
    let redeem = |ticket: usize, from: &PeerId, at| {
        let redeemed = grants.redeem(&tickets[ticket].ticket, from, at);
        redeemed.is_some()
    };
    for stranger in [peer("stranger", true), peer("receiver", false)] {
        assert!(!redeem(0, &stranger, now));
        assert!(
            grants
                .find(sturdyref.swissnum.reveal(), &stranger)
                .is_none()
        );
    }
    assert!(redeem(0, &receiver, now));
    assert!(!redeem(0, &receiver, now), "used");
    // Nobody has looked for those that have expired yet.
    assert!(!redeem(1, &receiver, late), "too late");
    assert!(!redeem(1, &receiver, now), "used all the same");
    assert!(grants.redeem_near(&tickets[2].ticket, late).is_none());
    grants.live().forget_expired(late);
    assert!(!redeem(3, &receiver, now), "forgotten");
    for _ in 0..TICKETS_MAX {
        grants.ticket(&membrane).unwrap();
    }
}

/// A grant made from the first generation of [`grant`]'s binding.
fn child(generation: u64) -> Grant {
    Grant {
        binding: "binding.child".into(),
        attenuate: Attenuate::default(),
        parent: Some(grant(1).generation()),
        ..grant(generation)
    }
}

async fn granted(grants: &Arc<Grants>, grant: Grant) -> Result<Arc<Membrane>, Broken> {
    let generation = grant.generation();
    let own = PeerLocator::new("tls-rpk", "own");
    grants.grant(&own, grant).await.map(drop)?;
    Ok(Arc::clone(&grants.live().grants[&generation]))
}

#[tokio::test]
async fn what_is_given_on_is_narrower_counts_there_too_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let grants = offering(&layout);
    let (parent, _) = made(&grants, 1).await;
    let wider = Grant {
        attenuate: Attenuate {
            connections_max: Some(3),
            ..Attenuate::default()
        },
        ..child(1)
    };
    let refused = granted(&grants, wider).await.err().unwrap();
    assert_eq!(refused.code(), Some(code::RIGHTS));
    let orphan = Grant {
        parent: Some(grant(7).generation()),
        ..child(1)
    };
    let refused = granted(&grants, orphan).await.err().unwrap();
    assert_eq!(refused.code(), Some(code::UNKNOWN));

    let child_membrane = granted(&grants, child(1)).await.unwrap();
    assert_eq!(child_membrane.row.rights.connections_max, Some(2));
    let places = [&parent, &child_membrane].map(|it| grants.enter(it).unwrap());
    // The parent's limit is reached by both together.
    for full in [&parent, &child_membrane] {
        assert_eq!(grants.enter(full).err(), Some(StreamReply::Busy));
    }
    drop(places);
    assert_eq!(*parent.streams.borrow(), 0);

    grants
        .revoke(grant(1).generation(), Span::AndBefore)
        .await
        .unwrap();
    assert!(*child_membrane.revoked.borrow());
    assert_eq!(
        grants.enter(&child_membrane).err(),
        Some(StreamReply::Refused)
    );
    let refused = granted(&grants, child(1)).await.err().unwrap();
    assert_eq!(refused.code(), Some(code::REVOKED), "its tombstone stays");
    drop(grants);
    let again = Grants::new(Arc::new(Store::open(&layout).unwrap()));
    assert!(again.status().is_empty());
}

#[tokio::test]
async fn a_grant_ends_by_the_exporters_clock() {
    let dir = tempfile::tempdir().unwrap();
    let grants = offering(&Layout::new(dir.path()));
    let until = |expires| Grant {
        attenuate: Attenuate {
            expires: Some(expires),
            ..Attenuate::default()
        },
        ..grant(1)
    };
    let late = granted(&grants, until(now())).await.err().unwrap();
    assert_eq!(late.code(), Some(code::RIGHTS));

    let clock = tokio::spawn(Arc::clone(&grants).expire());
    let membrane = granted(&grants, until(now() + 2)).await.unwrap();
    let mut revoked = membrane.revoked.subscribe();
    assert!(!*revoked.borrow_and_update());
    let ended = timeout(PATIENCE, revoked.wait_for(|revoked| *revoked)).await;
    assert!(ended.is_ok(), "it has not ended");
    assert!(now() >= membrane.row.rights.expires.unwrap());
    let refused = granted(&grants, until(now() + 60)).await.err().unwrap();
    assert_eq!(refused.code(), Some(code::REVOKED));
    clock.abort();
}

#[tokio::test]
async fn a_grant_whose_time_is_over_lets_nobody_in_whoever_looks_first() {
    let dir = tempfile::tempdir().unwrap();
    let grants = offering(&Layout::new(dir.path()));
    let end = now() + 2;
    let until = Grant {
        attenuate: Attenuate {
            expires: Some(end),
            ..Attenuate::default()
        },
        ..grant(1)
    };
    // Nobody waits for its end here, as where the clock has just been set.
    let membrane = granted(&grants, until).await.unwrap();
    assert!(grants.enter(&membrane).is_ok());
    while now() < end {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Refused));
    assert_eq!(
        grants.ticket(&membrane).err().unwrap().code(),
        Some(code::REVOKED)
    );
    // Who ends it is told, and it stays ended.
    let clock = tokio::spawn(Arc::clone(&grants).expire());
    let mut revoked = membrane.revoked.subscribe();
    let ended = timeout(PATIENCE, revoked.wait_for(|revoked| *revoked)).await;
    assert!(ended.is_ok(), "it has not ended");
    clock.abort();
}

#[tokio::test]
async fn s6_what_is_left_at_a_server_is_remembered_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let grants = offering(&layout);
    let kind = ServiceKind::Postgres(Postgres {
        database: "orders".into(),
        create: false,
        socket: Some(dir.path().to_owned()),
        admin_user: None,
    });
    let spec = ServiceSpec { kind, r#type: None };
    let service = "orders".into();
    grants.offer(Offer { service, spec }).await.unwrap();
    // Nobody is at that socket, so nothing was made.
    let away = granted(&grants, grant(1)).await.err().unwrap();
    assert_eq!(away.code(), Some(code::UNREACHABLE));
    assert!(grants.store.contents().grants.is_empty());
    // A hob that was killed while it made the role: nothing is known of what has come of it.
    let begun = grants
        .store
        .write(|contents| contents.admit(grant(1), "hash".into(), now()));
    assert!(begun.await.unwrap().unwrap().minted.is_some());
    let pending = grants
        .revoke(grant(1).generation(), Span::AndBefore)
        .await
        .unwrap_err();
    assert_eq!(pending.code(), Some(code::PENDING));
    drop(grants);
    let again = Arc::new(Grants::new(Arc::new(Store::open(&layout).unwrap())));
    assert!(again.status().is_empty(), "the access is gone all the same");
    let pending = again
        .revoke(grant(1).generation(), Span::AndBefore)
        .await
        .unwrap_err();
    assert_eq!(pending.code(), Some(code::PENDING));
    assert_eq!(again.store.contents().leaving.len(), 1);
}

#[derive(Clone, Debug)]
enum Act {
    /// Which binding, with which generation, made from which.
    Grant(u8, u64, Option<u8>),
    Revoke(u8, u64),
    /// As a move that failed does.
    Abandon(u8, u64),
    /// The next generation is made, and then the one before it is revoked.
    Move(u8),
    /// The hob is killed and comes back.
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..4_u8, 0..4_u64, prop::option::of(0..4_u8))
            .prop_map(|(which, generation, parent)| Act::Grant(which, generation, parent)),
        2 => (0..4_u8, 0..4_u64).prop_map(|(which, generation)| Act::Revoke(which, generation)),
        2 => (0..4_u8, 0..4_u64).prop_map(|(which, generation)| Act::Abandon(which, generation)),
        2 => (0..4_u8).prop_map(Act::Move),
        1 => Just(Act::Restart),
    ];
    prop::collection::vec(act, 0..24)
}

/// What should be there: each binding's grants with what they are made from, and tombstones.
#[derive(Default)]
struct Model {
    live: BTreeMap<(u8, u64), Option<(u8, u64)>>,
    dead: BTreeMap<u8, u64>,
}

impl Model {
    fn last(&self, which: u8) -> Option<u64> {
        let same = self.live.keys().filter(|(it, _)| *it == which);
        same.map(|(_, generation)| *generation).max()
    }

    /// Returns a generation that there never was.
    fn fresh(&self, which: u8) -> u64 {
        let dead = self.dead.get(&which).copied();
        self.last(which).max(dead).map_or(0, |last| last + 1)
    }

    fn grant(&mut self, which: u8, generation: u64, parent: Option<(u8, u64)>) -> bool {
        if let Some(last) = self.last(which).filter(|last| *last >= generation) {
            return last == generation && self.live[&(which, last)] == parent;
        }
        if self
            .dead
            .get(&which)
            .is_some_and(|dead| *dead >= generation)
        {
            return false;
        }
        if parent.is_some_and(|parent| !self.live.contains_key(&parent)) {
            return false;
        }
        self.live.insert((which, generation), parent);
        true
    }

    fn revoke(&mut self, which: u8, generation: u64, span: Span) {
        let dead = self.dead.entry(which).or_default();
        *dead = generation.max(*dead);
        self.live.retain(|(it, age), _| {
            let is_before = span == Span::AndBefore && *age < generation;
            *it != which || *age != generation && !is_before
        });
        let orphans: Vec<_> = self
            .live
            .iter()
            .filter(|(_, parent)| parent.is_some_and(|it| !self.live.contains_key(&it)))
            .map(|(it, _)| *it)
            .collect();
        for (which, generation) in orphans {
            self.revoke(which, generation, span);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// S5, S7: whatever is granted, given on, moved and revoked, in memory and on disk there is
    /// what a simple model says.
    #[test]
    fn s5_any_sequence_leaves_what_the_model_says(acts in acts()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mut grants = offering(&layout);
        let mut model = Model::default();
        let name = |which: u8| format!("binding.b{which}");
        for act in acts {
            let asked = |which, generation, parent: Option<(u8, u64)>| Grant {
                binding: name(which),
                parent: parent.map(|(it, generation)| Generation {
                    binding: name(it),
                    generation,
                }),
                ..grant(generation)
            };
            match act {
                Act::Grant(which, generation, parent) => {
                    // One is made from the last grant of another.
                    let parent = parent.filter(|it| *it != which);
                    let parent = parent.map(|it| (it, model.last(it).unwrap_or(9)));
                    let asked = asked(which, generation, parent);
                    let done = runtime.block_on(granted(&grants, asked)).is_ok();
                    prop_assert_eq!(done, model.grant(which, generation, parent));
                }
                Act::Move(which) => {
                    let Some(last) = model.last(which) else { continue };
                    let next = model.fresh(which);
                    // To another service: what it was made from is left.
                    let moved = granted(&grants, asked(which, next, None));
                    prop_assert!(runtime.block_on(moved).is_ok());
                    prop_assert!(model.grant(which, next, None));
                    let revoked = Generation { binding: name(which), generation: last };
                    runtime.block_on(grants.revoke(revoked, Span::AndBefore)).unwrap();
                    model.revoke(which, last, Span::AndBefore);
                }
                Act::Revoke(which, generation) => {
                    let revoked = Generation { binding: name(which), generation };
                    runtime.block_on(grants.revoke(revoked, Span::AndBefore)).unwrap();
                    model.revoke(which, generation, Span::AndBefore);
                }
                Act::Abandon(which, generation) => {
                    let abandoned = Generation { binding: name(which), generation };
                    runtime.block_on(grants.revoke(abandoned, Span::Alone)).unwrap();
                    model.revoke(which, generation, Span::Alone);
                }
                Act::Restart => {
                    drop(grants);
                    grants = Arc::new(Grants::new(Arc::new(Store::open(&layout).unwrap())));
                }
            }
            let found: Vec<_> = grants
                .status()
                .into_iter()
                .map(|it| (it.binding, it.generation))
                .collect();
            let expected: Vec<_> = model.live.keys().map(|(it, age)| (name(*it), *age)).collect();
            prop_assert_eq!(&found, &expected);
            let contents = grants.store.contents();
            prop_assert_eq!(contents.grants.len(), expected.len());
            let dead = model.dead.iter().map(|(it, last)| (name(*it), *last));
            let dead: BTreeMap<_, _> = dead.collect();
            prop_assert_eq!(&contents.revoked, &dead);
        }
    }
}
