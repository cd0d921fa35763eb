//! What is kept for a peer is counted as long as it is kept, and bounded.

use std::sync::{Arc, Mutex};

use ocapn::{Answer, Broken, Limits, Object, Passable, Promise, Resolver, Turn};
use proptest::prelude::*;

use crate::support::{Behavior, End, World, echo, send};

/// The vat that keeps things, and the one for which it does.
const KEEPER: usize = 1;
const PEER: usize = 0;

/// Promises of one vat that the test resolves when it likes.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<Vec<Resolver>>>);

impl Object for Gates {
    /// Answers a promise that waits for the test.
    fn deliver(&self, turn: &Turn, _: Vec<Passable>) -> Answer {
        let (promise, resolver) = turn.vat().promise();
        self.0.lock().unwrap().push(resolver);
        Answer::value(promise)
    }
}

/// Answers a promise of its own and the object that resolves it.
fn maker() -> impl Object {
    Behavior(|turn: &Turn, _| {
        let (promise, resolver) = turn.vat().promise();
        let pair = vec![promise.into(), resolver.into_reference().into()];
        Answer::value(Passable::List(pair))
    })
}

/// Has another object answer.
fn forwarder() -> impl Object {
    Behavior(|turn: &Turn, args| Answer::value(turn.vat().export(echo()).call_raw(args)))
}

/// Waits until the argument, a promise, is settled, and keeps all of its arguments till then.
fn patient() -> impl Object {
    Behavior(|_: &Turn, args: Vec<Passable>| {
        let on = args[0].as_reference().map(|promise| promise.resolution());
        Answer::later(async move {
            if let Some(promise) = on {
                let _ = promise.await;
            }
            Ok(Passable::from(args.len() as u64))
        })
    })
}

fn kept(world: &World) -> usize {
    let End { vat, session } = world.links[0].ends[1];
    assert_eq!(vat, KEEPER);
    world.vats[vat]
        .inspect(session)
        .map_or(0, |held| held.retained_bytes)
}

fn bounded(retained_max: usize) -> World {
    let limits = Limits {
        retained_max,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    world.connect(PEER, KEEPER);
    world
}

/// The most that the tables and the slots of the values themselves may add here.
const SLACK: usize = 2_000;

fn is_about(bytes: usize, expected: usize) {
    let about = expected..=expected + SLACK;
    assert!(
        about.contains(&bytes),
        "{bytes} bytes, not about {expected}"
    );
}

const FETCH: &str = "<10'op:deliver<11'desc:export0+>[5'fetch6:object]0+f>";

fn text(length: usize) -> String {
    format!("{length}\"{}", "x".repeat(length))
}

#[test]
fn an_answer_counts_until_it_is_collected() {
    let mut world = bounded(1 << 20);
    world.publish(KEEPER, "object", echo());
    let large = text(100_000);
    send(&mut world, FETCH).expect("it is up");
    for position in 1..=5 {
        let call = format!("<10'op:deliver<11'desc:answer0+>[{large}]{position}+f>");
        send(&mut world, call).expect("it is up");
        is_about(kept(&world), 100_000 * position);
    }
    // What was said to a resolver is kept no longer than it takes to say it.
    let call = format!("<10'op:deliver<11'desc:answer0+>[{large}]f<18'desc:import-object1+>>");
    send(&mut world, call).expect("it is up");
    is_about(kept(&world), 500_000);
    send(&mut world, "<13'op:gc-answers[1+2+3+]>").expect("it is up");
    is_about(kept(&world), 200_000);
    send(&mut world, "<13'op:gc-answers[0+4+5+]>").expect("it is up");
    assert_eq!(kept(&world), 0);
}

/// A peer that asks for much at once gets all of it, and what is not kept cannot be asked again.
#[test]
fn an_answer_for_which_there_is_no_room_is_told_and_not_kept() {
    let mut world = bounded(1_000_000);
    world.publish(KEEPER, "object", echo());
    send(&mut world, FETCH).expect("it is up");
    let large = text(90_000);
    let mut told = 0;
    for position in 1..=30 {
        let call = format!(
            "<10'op:deliver<11'desc:answer0+>[{large}]{position}+<18'desc:import-object1+>>\
             <8'op:index<11'desc:answer{position}+>0+{}+>",
            100 + position
        );
        let back = send(&mut world, call).expect("the session stands");
        told += usize::from(back.contains(&format!("[7'fulfill[{large}]]")));
        let index = format!("<13'op:gc-answers[{}+]>", 100 + position);
        send(&mut world, index).expect("the session stands");
        assert!(kept(&world) <= 500_000);
    }
    assert_eq!(told, 30);
    send(&mut world, "<13'op:gc-answers[2+]>").expect("it is up");
    for (position, told) in [(1, "7'fulfill90000"), (30, "5'break"), (30, "overloaded")] {
        let take = format!(
            "<8'op:index<11'desc:answer{position}+>0+200+>\
             <9'op:listen<11'desc:answer200+><18'desc:import-object1+>f>\
             <13'op:gc-answers[200+]>"
        );
        let back = send(&mut world, take).expect("the session stands");
        assert!(back.contains(told), "{position}: {back}");
    }
    let all: String = (3..=30)
        .chain([0, 1])
        .map(|position| format!("{position}+"))
        .collect();
    send(&mut world, format!("<13'op:gc-answers[{all}]>")).expect("it is up");
    assert_eq!(kept(&world), 0);
}

/// A peer that has all that it was given collected may have as much as it likes.
#[test]
fn arguments_and_answers_that_are_used_at_once_meet_no_limit() {
    let mut world = bounded(200_000);
    world.publish(KEEPER, "object", echo());
    let object = world.fetch(PEER, KEEPER, "object");
    for _ in 0..100 {
        let answer = object.call_raw(vec![Passable::bytes(vec![7; 90_000])]);
        assert!(world.get(answer).is_ok());
    }
    drop(object);
    world.run();
    assert_eq!(kept(&world), 0);
    assert_eq!(world.downs, []);
}

/// Each of these has something kept again and again.
#[test]
fn whatever_is_kept_is_bounded() {
    let large = text(50_000);
    let fulfil = format!("[7'fulfill{large}]");
    // For how the object came to be, and what is then done for each number from 1 on.
    type Flood = (
        &'static str,
        fn() -> Box<dyn Object>,
        Box<dyn Fn(usize) -> String>,
    );
    let floods: [Flood; 6] = [
        (
            "calls that wait for a promise",
            || Box::new(Gates::default()),
            {
                let large = large.clone();
                Box::new(move |n| {
                    let gate = match n {
                        1 => "<10'op:deliver<11'desc:answer0+>[]1+f>",
                        _ => "",
                    };
                    format!("{gate}<10'op:deliver<11'desc:answer1+>[{large}]ff>")
                })
            },
        ),
        ("calls that run", || Box::new(stuck()), {
            let large = large.clone();
            Box::new(move |_| format!("<10'op:deliver<11'desc:answer0+>[{large}]ff>"))
        }),
        ("names of fields", || Box::new(Gates::default()), {
            let large = large.clone();
            Box::new(move |n| {
                let (gate, answer) = match n {
                    1 => ("<10'op:deliver<11'desc:answer0+>[]1+f>", 2),
                    _ => ("", n + 1),
                };
                format!("{gate}<6'op:get<11'desc:answer1+>{large}{answer}+>")
            })
        }),
        (
            "swissnums that are looked up",
            || Box::new(Gates::default()),
            {
                Box::new(|_| {
                    let swissnum = format!("50000:{}", "x".repeat(50_000));
                    format!("<10'op:deliver<11'desc:export0+>[5'fetch{swissnum}]ff>")
                })
            },
        ),
        ("promises in answers", || Box::new(maker()), {
            Box::new(move |n| {
                let (pair, resolver) = (3 * n, 3 * n + 1);
                format!(
                    "<10'op:deliver<11'desc:answer0+>[]{pair}+f>\
                     <8'op:index<11'desc:answer{pair}+>1+{resolver}+>\
                     <10'op:deliver<11'desc:answer{resolver}+>{fulfil}ff>"
                )
            })
        }),
        ("answers of other calls", || Box::new(forwarder()), {
            Box::new(move |n| format!("<10'op:deliver<11'desc:answer0+>[{large}]{n}+f>"))
        }),
    ];
    for (what, object, flood) in floods {
        let mut world = bounded(1_000_000);
        world.publish(KEEPER, "object", Any(object()));
        send(&mut world, FETCH).expect("it is up");
        let mut most = 0;
        let mut taken = 0;
        while taken < 100 && send_unserved(&world, flood(taken + 1)) {
            taken += 1;
            most = most.max(kept(&world));
        }
        if what == "promises in answers" {
            // The pairs themselves are not kept any more.
            assert!((400_000..=500_000).contains(&most), "{what}: {most}");
            assert!(world.downs.is_empty(), "{what}");
            continue;
        }
        assert!((10..30).contains(&taken), "{what}: {taken}");
        assert!((800_000..=1_000_000).contains(&most), "{what}: {most}");
        world.run();
        assert_eq!(world.downs[0].2, "too much is kept for the peer", "{what}");
        assert_eq!(kept(&world), 0, "{what}");
    }
}

/// Gives vat 1 the bytes, but serves no event: what is looked up is not found yet.
fn send_unserved(world: &World, bytes: String) -> bool {
    let End { vat, session } = world.links[0].ends[1];
    world.vats[vat].receive(session, bytes.as_bytes()).is_ok()
}

struct Any(Box<dyn Object>);

impl Object for Any {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        self.0.deliver(turn, args)
    }
}

fn stuck() -> impl Object {
    Behavior(|_: &Turn, _| Answer::later(std::future::pending()))
}

/// A byte array of a short message is a copy: as a part it would keep what came with it.
#[test]
fn a_few_bytes_keep_no_others() {
    let mut world = bounded(1 << 20);
    let unique = |_: &Turn, args: Vec<Passable>| {
        let bytes = args[0].as_bytes().is_some_and(|bytes| bytes.is_unique());
        Answer::value(bytes)
    };
    world.publish(KEEPER, "object", Behavior(unique));
    let call = "<10'op:deliver<11'desc:answer0+>[3:abc]f<18'desc:import-object1+>>";
    let back = send(&mut world, [FETCH, call, "<10'op:del"].concat());
    let back = back.expect("it is up");
    assert!(back.contains("[7'fulfillt]"), "{back}");
}

/// The peer's own words end up in every promise that its session breaks.
#[test]
fn the_reason_of_an_abort_is_short() {
    let mut world = bounded(1 << 20);
    world.publish(KEEPER, "object", stuck());
    let abort = format!("<8'op:abort{}>", text(1_000_000));
    assert_eq!(send(&mut world, abort), None);
    world.run();
    assert_eq!(world.downs[0].2.len(), 1_024);
}

/// What a program of the peer does; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    /// Calls an object of the keeper, perhaps through the answer to another call.
    Call(usize, usize),
    /// Has the keeper make a promise, and resolves it from afar.
    Make(usize),
    /// Calls with a promise that the keeper made and did not resolve.
    Wait(usize, usize),
    /// The keeper resolves one of its promises.
    Resolve(usize, usize),
    /// Hands an object of the third vat to the keeper.
    Give(usize),
    Drop(usize),
    /// Lets some bytes arrive.
    Arrive(usize, usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..40_usize;
    prop_oneof![
        4 => (n(), n()).prop_map(|(to, value)| Step::Call(to, value)),
        1 => n().prop_map(Step::Make),
        2 => (n(), n()).prop_map(|(to, value)| Step::Wait(to, value)),
        2 => (n(), n()).prop_map(|(which, value)| Step::Resolve(which, value)),
        1 => n().prop_map(Step::Give),
        3 => n().prop_map(Step::Drop),
        5 => (0..3_usize, 0..2_usize, 1..4_000_usize)
            .prop_map(|(link, side, most)| Step::Arrive(link, side, most)),
    ]
}

fn value(n: usize) -> Passable {
    let inner = vec![Passable::from("text"), Passable::bytes(vec![1; n * 50])];
    match n % 5 {
        0 => Passable::from(n as u64),
        1 => "x".repeat(n * 100).into(),
        2 => Passable::List(inner),
        3 => Passable::Struct(ocapn::Struct::new().with("key", Passable::List(inner))),
        _ => Passable::bytes(vec![2; n * 4_000]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever was called, kept, handed over and resolved, in whatever order: once it is let go
    /// of, nothing is counted any more at any end.
    #[test]
    fn what_is_let_go_of_counts_no_more(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(3);
        for (one, two) in [(PEER, KEEPER), (KEEPER, 2), (PEER, 2)] {
            world.connect(one, two);
        }
        let gates = Gates::default();
        world.publish(2, "far", echo());
        let far = world.fetch(KEEPER, 2, "far");
        world.publish(KEEPER, "echo", echo());
        world.publish(KEEPER, "gate", gates.clone());
        world.publish(KEEPER, "maker", maker());
        world.publish(KEEPER, "patient", patient());
        let forward = move |_: &Turn, args| Answer::value(far.as_reference().call_raw(args));
        world.publish(KEEPER, "forward", Behavior(forward));
        let objects = ["echo", "gate", "forward", "maker", "patient"];
        let objects = objects.map(|name| world.fetch(PEER, KEEPER, name));
        let far = world.fetch(PEER, 2, "far");
        let mut held: Vec<Promise> = Vec::new();
        for step in steps {
            match step {
                Step::Call(to, n) => {
                    let to = held.get(to).unwrap_or(&objects[n % 3]).clone();
                    held.push(to.call_raw(vec![value(n)]));
                }
                Step::Make(n) => {
                    let pair = objects[3].call_raw(vec![]);
                    pair.index(1).send("fulfill", [value(n)]);
                    held.push(pair.index(0));
                    held.push(pair);
                }
                Step::Wait(on, n) => {
                    let on = held.get(on).map_or_else(|| objects[1].call_raw(vec![]), Clone::clone);
                    held.push(objects[4].call_raw(vec![on.clone().into(), value(n)]));
                    held.push(on.call_raw(vec![value(n)]));
                }
                Step::Resolve(which, n) => {
                    let mut gates = gates.0.lock().unwrap();
                    if which < gates.len() {
                        let gate = gates.swap_remove(which);
                        drop(gates);
                        match n % 7 {
                            0 => gate.break_(Broken::with(value(n))),
                            _ => gate.fulfill(value(n)),
                        }
                    }
                }
                Step::Give(n) => {
                    held.push(objects[0].call_raw(vec![far.clone().into(), value(n)]));
                }
                Step::Drop(n) if n < held.len() => drop(held.swap_remove(n)),
                Step::Drop(_) => {}
                Step::Arrive(link, side, most) => {
                    for vat in 0..3 {
                        world.serve(vat);
                    }
                    world.arrive(link, side, most);
                }
            }
        }
        world.run();
        // Resolving may have more promises made.
        loop {
            let gate = gates.0.lock().unwrap().pop();
            let Some(gate) = gate else { break };
            gate.fulfill(true);
            world.run();
        }
        for promise in &held {
            prop_assert!(world.wait(promise).is_ok() || promise.now().is_some());
        }
        let used = kept(&world);
        held.clear();
        drop((objects, far));
        for published in &mut world.published {
            published.clear();
        }
        world.run();
        world.assert_empty(false);
        prop_assert_eq!(kept(&world), 0, "{} before", used);
        prop_assert_eq!(&world.downs, &[]);
    }
}
