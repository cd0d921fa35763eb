//! Several peers exchange references, promises, handoffs and cuts, in an order that a seed
//! decides. A failing seed prints itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use ocapn::{Answer, Object, Passable, Promise, Reference, Turn};

use crate::support::{World, name};

/// Seeds of one run of the test; the world is small, so many fit.
const SEEDS: u64 = 100;

/// Promises of different peers that may resolve to each other before the end of them is asked.
const PROMISES_DEEP_MAX: usize = 20;

/// Steps of one seed.
const STEPS: usize = 250;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// What all objects of one seed tell.
#[derive(Default)]
struct Record {
    /// The last message on each handle.
    last: HashMap<i64, i64>,
    delivered: usize,
    faults: Vec<String>,
}

/// An object that knows who it is, and keeps what it is given.
struct Thing {
    id: i64,
    bag: Arc<Mutex<Vec<Held>>>,
    record: Arc<Mutex<Record>>,
}

/// A reference as somebody holds it.
#[derive(Clone)]
struct Held {
    /// Which object it must lead to; `None` while that is not known to the holder.
    target: Option<i64>,
    reference: Reference,
}

impl Object for Thing {
    /// `[target, handle, number]`, then perhaps `id, reference` to be kept. Answers a pair of an
    /// id and a reference out of the bag, or the reference alone where `target` is `f`.
    fn deliver(&self, _: &Turn, args: Vec<Passable>) -> Answer {
        let mut record = self.record.lock().unwrap();
        record.delivered += 1;
        if let Some(target) = args[0].as_int()
            && target != self.id
        {
            record
                .faults
                .push(format!("a message for {target} came to {}", self.id));
        }
        if let (Some(handle), Some(number)) = (args[1].as_int(), args[2].as_int()) {
            let last = record.last.insert(handle, number).unwrap_or(-1);
            if number <= last {
                record
                    .faults
                    .push(format!("handle {handle}: {number} came after {last}"));
            }
        }
        let mut bag = self.bag.lock().unwrap();
        if let Some(Passable::Reference(reference)) = args.get(4) {
            bag.push(Held {
                target: args[3].as_int(),
                reference: reference.clone(),
            });
        }
        let pick = args[2].as_int().unwrap_or(0) as usize % bag.len().max(1);
        match bag.get(pick).cloned() {
            Some(held) if args[0].as_int().is_some() => Answer::value(held.reference),
            _ => Answer::value(self.id),
        }
    }
}

struct Simulation {
    world: World,
    random: Random,
    record: Arc<Mutex<Record>>,
    bags: Vec<Arc<Mutex<Vec<Held>>>>,
    /// What the programs of each vat hold, each with its own handle and count.
    held: Vec<Vec<(Held, i64, i64)>>,
    promises: Vec<(usize, Promise)>,
    handles: i64,
}

impl Simulation {
    fn new(seed: u64, cuts: bool) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let vats = 3 + random.below(4);
        let mut world = World::new(vats);
        world.authenticated = cuts || seed.is_multiple_of(2);
        let record = Arc::default();
        let mut bags = Vec::new();
        for vat in 0..vats {
            let bag: Arc<Mutex<Vec<Held>>> = Arc::default();
            let thing = Thing {
                id: vat as i64,
                bag: bag.clone(),
                record: Arc::clone(&record),
            };
            let own = world.publish(vat, "thing", thing);
            bag.lock().unwrap().push(Held {
                target: Some(vat as i64),
                reference: own,
            });
            bags.push(bag);
        }
        let held = vec![Vec::new(); vats];
        let mut simulation = Self {
            world,
            random,
            record,
            bags,
            held,
            promises: Vec::new(),
            handles: 0,
        };
        for one in 0..vats {
            let two = (one + 1) % vats;
            simulation.meet(one, two);
        }
        simulation
    }

    /// Connects two vats, and each gets the other's object.
    fn meet(&mut self, one: usize, two: usize) {
        if self.world.session(one, two).is_none() {
            self.world.dial(one, two);
            self.world.run();
        }
        if self.world.session(one, two).is_some() && self.world.session(two, one).is_some() {
            for (at, from) in [(one, two), (two, one)] {
                let thing = self.world.fetch(at, from, "thing");
                self.hold(at, Some(from as i64), thing.into());
            }
        }
    }

    fn hold(&mut self, vat: usize, target: Option<i64>, reference: Reference) {
        self.handles += 1;
        self.held[vat].push((Held { target, reference }, self.handles, 0));
    }

    fn step(&mut self, cuts: bool) {
        let vats = self.world.vats.len();
        let vat = self.random.below(vats);
        match self.random.below(if cuts { 41 } else { 40 }) {
            0..10 => {
                let count = self.held[vat].len();
                let (to, gift) = (self.random.below(count), self.random.below(count));
                let with_gift = self.random.below(2) == 0;
                let keep = self.random.below(3) == 0;
                let gift = self.held[vat].get(gift).map(|(held, ..)| held.clone());
                let Some((held, handle, number)) = self.held[vat].get_mut(to) else {
                    return;
                };
                let target = held.target.map_or(Passable::Bool(false), Passable::from);
                let mut args = vec![target, (*handle).into(), (*number).into()];
                *number += 1;
                if let Some(gift) = gift.filter(|_| with_gift) {
                    args.push(gift.target.map_or(Passable::Bool(false), Passable::from));
                    args.push(gift.reference.into());
                }
                let reference = held.reference.clone();
                let answer = reference.call_raw(args);
                if keep && held.target.is_some() {
                    self.hold(vat, None, answer.clone().into());
                }
                self.promises.push((vat, answer));
            }
            10..14 => {
                let count = self.held[vat].len();
                if count > 1 {
                    let at = self.random.below(count);
                    self.held[vat].swap_remove(at);
                }
            }
            14..16 => {
                let mut bag = self.bags[vat].lock().unwrap();
                let taken = bag.pop();
                if bag.is_empty() {
                    bag.extend(taken);
                    return;
                }
                drop(bag);
                if let Some(Held { target, reference }) = taken {
                    self.hold(vat, target, reference);
                }
            }
            16..26 => {
                self.world.serve(vat);
            }
            26..40 => {
                let link = self.random.below(self.world.links.len());
                let side = self.random.below(2);
                let most = 1 + self.random.below(600);
                self.world.arrive(link, side, most);
            }
            _ => {
                let other = (vat + 1 + self.random.below(vats - 1)) % vats;
                self.world.cut_between(vat, other);
                self.meet(vat, other);
            }
        }
    }

    /// Lets everything arrive, then lets go of everything.
    fn finish(mut self, seed: u64) {
        self.world.run();
        for (vat, promise) in std::mem::take(&mut self.promises) {
            let settled = (0..PROMISES_DEEP_MAX).any(|_| {
                let settled = promise.clone().now_or_never().is_some();
                self.world.run();
                settled
            });
            assert!(
                settled,
                "seed {seed}: a promise of {} never settles",
                name(vat)
            );
        }
        let record = std::mem::take(&mut *self.record.lock().unwrap());
        assert_eq!(record.faults, [""; 0], "seed {seed}");
        assert!(record.delivered > 0, "seed {seed}");
        self.held.clear();
        for bag in &self.bags {
            let held = std::mem::take(&mut *bag.lock().unwrap());
            drop(held);
        }
        for published in &mut self.world.published {
            published.clear();
        }
        self.world.run();
        // A session that ended, be it one of two that crossed, takes withdrawals with it.
        if self.world.downs.is_empty() {
            self.world.assert_empty();
        }
    }
}

fn simulate(cuts: bool) {
    for seed in 1..=SEEDS {
        let mut simulation = Simulation::new(seed, cuts);
        for _ in 0..STEPS {
            simulation.step(cuts);
        }
        simulation.finish(seed);
    }
}

#[test]
fn references_lead_where_they_should_and_all_is_collected() {
    simulate(false);
}

#[test]
fn cuts_break_promises_and_never_repeat_or_reorder_messages() {
    simulate(true);
}
