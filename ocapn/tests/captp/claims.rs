//! Who dials under a name and proves nothing: it gets nothing that is meant for the peer of that
//! name.

use ocapn::{Answer, Direction, Limits, Passable, PeerLocator, SessionId, Turn, Vat, VatOptions};

use crate::support::{Behavior, Log, TRANSPORT, World, echo, name};

/// A vat that says it is another.
struct Claimant {
    vat: Vat,
    /// Its session with the victim, at its own end and at the victim's.
    ends: [SessionId; 2],
}

impl Claimant {
    /// Dials `victim` as `claimed`, with nothing proved, and says hello.
    fn dial(world: &mut World, victim: usize, claimed: usize, seed: u8) -> Self {
        let vat = Vat::new(VatOptions {
            location: PeerLocator::new(TRANSPORT, name(claimed)),
            limits: Limits::default(),
        });
        let before = std::mem::replace(&mut world.authenticated, false);
        let to = PeerLocator::new(TRANSPORT, name(victim));
        let mut outbound = world.opening(victim, Direction::Outbound(to));
        outbound.seed = [seed; 32];
        let inbound = world.opening(claimed, Direction::Inbound);
        world.authenticated = before;
        let ends = [vat.open(outbound), world.vats[victim].open(inbound)];
        let claimant = Self { vat, ends };
        claimant.exchange(&world.vats[victim]);
        claimant
    }

    /// Moves what waits at both ends, and returns what the victim sent.
    fn exchange(&self, victim: &Vat) -> String {
        let mut said = Vec::new();
        loop {
            let there = self.vat.try_transmit(self.ends[0]);
            let back = victim.try_transmit(self.ends[1]);
            if there.is_none() && back.is_none() {
                return String::from_utf8_lossy(&said).into_owned();
            }
            // An end that is over drops what comes.
            if let Some(output) = there {
                let _ = victim.receive(self.ends[1], &output.bytes);
            }
            if let Some(output) = back {
                said.extend_from_slice(&output.bytes);
                let _ = self.vat.receive(self.ends[0], &output.bytes);
            }
        }
    }

    fn is_in(&self, world: &World, victim: usize, claimed: usize) -> bool {
        world.session(victim, claimed) == Some(self.ends[1])
    }
}

/// Has vat 0 give vat 1 an object of vat 2, and returns what comes of the call to it.
fn give(world: &mut World) -> Result<Passable, ocapn::Broken> {
    world.publish(2, "log", Log::default());
    let take = Behavior(|_: &Turn, args: Vec<Passable>| {
        let gift = args[0].as_reference().unwrap();
        Answer::later(gift.call_raw(vec!["secret".into()]))
    });
    world.publish(1, "take", take);
    let gift = world.fetch(0, 2, "log");
    let gift = world.get(gift)?;
    let called = world.fetch(0, 1, "take").call_raw(vec![gift]);
    world.get(called)
}

#[test]
fn a_claimed_name_gets_no_certificate_and_no_message() {
    let mut world = World::new(3);
    world.authenticated = false;
    world.connect(0, 1);
    world.connect(0, 2);
    let claimant = Claimant::dial(&mut world, 1, 2, 200);
    assert!(claimant.is_in(&world, 1, 2), "nobody else has the name");
    let broken = give(&mut world).unwrap_err();
    assert_eq!(broken.code(), Some("handoff-refused"));
    let said = claimant.exchange(&world.vats[1]);
    assert!(
        !said.contains("withdraw-gift") && !said.contains("secret"),
        "{said}"
    );
    assert_eq!(world.vats[1].session_reached(TRANSPORT, &name(2)), None);

    // Without it, or where claims are believed, the gift arrives.
    world.vats[1].closed(claimant.ends[1], "gone");
    assert_eq!(give(&mut world), Ok(true.into()));
    let mut world = World::new(3);
    world.authenticated = false;
    world.vats[1].set_claims_believed(true);
    world.connect(0, 1);
    world.connect(0, 2);
    world.connect(2, 1);
    assert_eq!(give(&mut world), Ok(true.into()));
}

#[test]
fn a_claimed_name_that_comes_before_our_dial_ends_gets_nothing_either() {
    let mut won = false;
    for seed in 0..20 {
        let mut world = World::new(3);
        world.authenticated = false;
        world.connect(0, 1);
        world.connect(0, 2);
        // Our dial of the exporter has not been answered when somebody dials under its name.
        world.dial(1, 2);
        let claimant = Claimant::dial(&mut world, 1, 2, seed);
        won |= claimant.is_in(&world, 1, 2);
        let given = give(&mut world);
        assert_ne!(given.is_ok(), claimant.is_in(&world, 1, 2), "{given:?}");
        let said = claimant.exchange(&world.vats[1]);
        assert!(!said.contains("secret"), "{said}");
    }
    assert!(won, "keys can be tried until one is high enough");
}

#[test]
fn a_claim_does_not_cross_out_a_dial_that_is_proven() {
    for seed in 0..20 {
        let mut world = World::new(2);
        world.publish(0, "echo", echo());
        // A dial that waits for its answer, and one whose session is up but lately.
        let dialled = world.dial(1, 0);
        let waiting = Claimant::dial(&mut world, 1, 0, seed);
        assert!(!waiting.is_in(&world, 1, 0));
        world.run();
        let up = Claimant::dial(&mut world, 1, 0, seed + 100);
        world.run();
        assert!(!up.is_in(&world, 1, 0));
        let ours = world.links[dialled].ends[0].session;
        assert_eq!(world.session(1, 0), Some(ours));
        let call = world.fetch(1, 0, "echo").call_raw(vec![1_u64.into()]);
        assert_eq!(world.wait(&call), Ok(vec![1_u64.into()].into()));
    }
}

#[test]
fn a_proven_dial_is_made_though_a_claim_came_first() {
    let mut world = World::new(2);
    let claimant = Claimant::dial(&mut world, 1, 0, 1);
    assert!(claimant.is_in(&world, 1, 0));
    let dialled = world.dial(1, 0);
    world.run();
    let ours = world.links[dialled].ends[0].session;
    assert_eq!(world.session(1, 0), Some(ours), "it takes the place");
}
