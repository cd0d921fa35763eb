//! CapTP among vats connected in memory.

use std::sync::{Arc, Mutex};

use crate::support::{Behavior, Log, World, echo, name};
use ocapn::{Answer, Broken, Dialect, Limits, Passable, Reference, Resolver, Turn};

#[test]
fn an_echo_comes_back() {
    for dialect in [Dialect::D1, Dialect::D2] {
        for authenticated in [true, false] {
            let mut world = World::new(2);
            (world.dialect, world.authenticated) = (dialect, authenticated);
            world.publish(1, "echo", echo());
            world.connect(0, 1);
            let echo = world.fetch(0, 1, "echo");
            let args = vec![
                "foo".into(),
                1_u64.into(),
                false.into(),
                vec!["baz".into()].into(),
            ];
            let answer = echo.call_raw(args.clone());
            assert_eq!(world.wait(&answer), Ok(args.into()));
            assert_eq!(world.fetched_by.len(), 1);
            assert_eq!(world.fetched_by[0].designator, name(0));
            assert_eq!(world.fetched_by[0].authenticated, authenticated);
            drop((echo, answer));
            world.run();
            world.published[1].clear();
            world.run();
            world.assert_empty(false);
        }
    }
}

/// What a program does when it is let go of is its own business.
#[test]
fn an_object_that_panics_when_it_is_dropped_disturbs_no_other() {
    struct Bomb;
    impl ocapn::Object for Bomb {
        fn deliver(&self, _: &Turn, _: Vec<Passable>) -> Answer {
            Answer::value(true)
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("as the test wants it");
        }
    }
    let mut world = World::new(2);
    world.publish(1, "bomb", Bomb);
    world.publish(1, "echo", echo());
    world.connect(0, 1);
    let (bomb, echo) = (world.fetch(0, 1, "bomb"), world.fetch(0, 1, "echo"));
    assert!(world.wait(&bomb).is_ok());
    world.published[1].remove(&b"bomb"[..]);
    drop(bomb);
    world.run();
    let answer = echo.call_raw(vec![1_u64.into()]);
    assert_eq!(world.get(answer), Ok(vec![1_u64.into()].into()));
}

#[test]
fn an_unknown_swissnum_breaks() {
    let mut world = World::new(2);
    world.connect(0, 1);
    let promise = world.fetch(0, 1, "nothing");
    let pipelined = promise.call("hello", []);
    let broken = world.wait(&promise).unwrap_err();
    assert_eq!(world.wait(&pipelined), Err(broken));
}

/// The suite's car factory: every object is the answer of the one before.
fn car_factory_builder() -> impl ocapn::Object {
    Behavior(|turn: &Turn, _| {
        let factory = Behavior(|turn: &Turn, args: Vec<Passable>| {
            let Some([color, model]) = args.first().and_then(Passable::as_list) else {
                return Answer::broken("wrong-call", "a factory takes a color and a model");
            };
            let text = format!(
                "Vroom! I am a {} {} car!",
                color.as_symbol().unwrap_or_default(),
                model.as_symbol().unwrap_or_default()
            );
            let car = Behavior(move |_: &Turn, _| Answer::value(text.clone()));
            Answer::value(turn.vat().export(car))
        });
        Answer::value(turn.vat().export(factory))
    })
}

#[test]
fn calls_pipeline_without_a_round_trip() {
    let mut world = World::new(2);
    world.publish(1, "builder", car_factory_builder());
    world.connect(0, 1);
    let model = vec![Passable::symbol("red"), Passable::symbol("zoomracer")];
    let builder = world.fetch(0, 1, "builder");
    let car = builder
        .call_raw(vec![])
        .call_raw(vec![model.into()])
        .call_raw(vec![]);
    // One way to the peer is enough for all four to be answered there.
    world.serve(0);
    world.arrive(0, 1, usize::MAX);
    world.serve(1);
    world.serve(1);
    world.arrive(0, 0, usize::MAX);
    assert_eq!(
        car.now(),
        Some(Ok("Vroom! I am a red zoomracer car!".into()))
    );
    let broken = builder
        .call_raw(vec![])
        .call_raw(vec![1_u64.into()])
        .call_raw(vec![]);
    let broken = world.get(broken).unwrap_err();
    assert_eq!(
        broken.code(),
        Some("wrong-call"),
        "the break reaches the last call"
    );
    drop((builder, car));
    world.published[1].clear();
    world.run();
    world.assert_empty(false);
}

#[test]
fn messages_to_a_promise_keep_their_order_when_it_resolves() {
    let mut world = World::new(2);
    let log = Log::default();
    let sink = world.vats[0].export(log.clone());
    // Answers the reference it is given, so the promise resolves to an object of the caller.
    world.publish(
        1,
        "identity",
        Behavior(|_: &Turn, args: Vec<Passable>| Answer::value(args[0].clone())),
    );
    world.connect(0, 1);
    let identity = world.fetch(0, 1, "identity");
    let back = identity.call_raw(vec![sink.into()]);
    let mut sent = 0_u64;
    for round in 0..6 {
        for _ in 0..3 {
            back.as_reference().send_raw(vec![sent.into()]);
            sent += 1;
        }
        world.serve(round % 2);
        world.arrive(0, (round + 1) % 2, usize::MAX);
    }
    assert_eq!(
        world
            .wait(&back)
            .map(|value| value.as_reference().is_some()),
        Ok(true)
    );
    back.as_reference().send_raw(vec![sent.into()]);
    world.run();
    let got: Vec<_> = log
        .taken()
        .into_iter()
        .map(|args| args[0].as_int().unwrap())
        .collect();
    assert_eq!(got, (0..=sent as i64).collect::<Vec<_>>());
}

fn promise_maker(kept: &Arc<Mutex<Vec<Resolver>>>) -> impl ocapn::Object {
    let kept = Arc::clone(kept);
    Behavior(move |turn: &Turn, _| {
        let (promise, resolver) = turn.vat().promise();
        kept.lock().unwrap().push(resolver);
        Answer::value(vec![promise.into()])
    })
}

#[test]
fn a_promise_in_a_message_is_listened_to() {
    for breaks in [false, true] {
        let mut world = World::new(2);
        let kept = Arc::default();
        world.publish(1, "maker", promise_maker(&kept));
        world.connect(0, 1);
        let maker = world.fetch(0, 1, "maker");
        let made = world.get(maker.call_raw(vec![])).unwrap();
        let promise = made.as_list().unwrap()[0]
            .as_reference()
            .unwrap()
            .resolution();
        assert_eq!(promise.now(), None);
        let early = futures_util::FutureExt::now_or_never(promise.clone());
        assert_eq!(early, None, "polling asks the peer to tell");
        world.run();
        let resolver = kept.lock().unwrap().pop().unwrap();
        let reason = Passable::symbol("oh-no");
        match breaks {
            false => resolver.fulfill(7_u64),
            true => resolver.break_(Broken::with(reason.clone())),
        }
        let expected = if breaks {
            Err(Broken::with(reason))
        } else {
            Ok(7_u64.into())
        };
        assert_eq!(world.wait(&promise), expected);
        // A value takes no messages, and a broken promise neither.
        assert!(world.wait(&promise.call("hi", [])).is_err());
        drop((promise, made, maker));
        world.published[1].clear();
        world.run();
        world.assert_empty(false);
    }
}

#[test]
fn a_resolver_travels_and_works_once() {
    let mut world = World::new(2);
    world.publish(
        1,
        "maker",
        Behavior(|turn: &Turn, _| {
            let (promise, resolver) = turn.vat().promise();
            Answer::value(vec![promise.into(), resolver.into_reference().into()])
        }),
    );
    world.connect(0, 1);
    let maker = world.fetch(0, 1, "maker");
    let made = world.get(maker.call_raw(vec![])).unwrap();
    let [promise, resolver] = made.as_list().unwrap() else {
        panic!("two")
    };
    resolver
        .as_reference()
        .unwrap()
        .send("fulfill", ["first".into()]);
    resolver
        .as_reference()
        .unwrap()
        .send("break", ["second".into()]);
    let promise = promise.as_reference().unwrap().resolution();
    assert_eq!(world.wait(&promise), Ok("first".into()));
    let maker = world.fetch(0, 1, "maker");
    let made = world.get(maker.call_raw(vec![])).unwrap();
    let promise = made.as_list().unwrap()[0]
        .as_reference()
        .unwrap()
        .resolution();
    drop(made);
    let broken = world.wait(&promise).unwrap_err();
    assert_eq!(
        broken.code(),
        Some("dropped"),
        "nobody holds the resolver any more"
    );
}

#[test]
fn an_answer_may_come_later_and_does_not_hold_back_others() {
    let mut world = World::new(2);
    let (gate, opened) = futures_channel();
    let opened = Mutex::new(Some(opened));
    world.publish(
        1,
        "slow",
        Behavior(move |_: &Turn, _| match opened.lock().unwrap().take() {
            Some(opened) => Answer::later(opened),
            None => Answer::value("at once"),
        }),
    );
    world.connect(0, 1);
    let slow = world.fetch(0, 1, "slow");
    let (first, second) = (slow.call_raw(vec![]), slow.call_raw(vec![]));
    assert_eq!(world.wait(&second), Ok("at once".into()));
    assert_eq!(first.now(), None);
    gate.fulfill("later");
    assert_eq!(world.wait(&first), Ok("later".into()));
}

/// A promise of a vat of its own serves as a channel between test and object.
fn futures_channel() -> (Resolver, ocapn::Promise) {
    let world = Box::leak(Box::new(World::new(1)));
    let (promise, resolver) = world.vats[0].promise();
    (resolver, promise)
}

#[test]
fn references_are_counted_exactly_and_collected() {
    let mut world = World::new(2);
    world.publish(1, "echo", echo());
    world.connect(0, 1);
    let echo = world.fetch(0, 1, "echo");
    let object = world.vats[0].export(Log::default());
    let four = vec![Passable::from(&object); 4];
    let answer = echo.call_raw(four.clone());
    let back = world.wait(&answer).unwrap();
    assert_eq!(back, Passable::List(four), "the same object comes back");
    for _ in 0..4 {
        let answer = echo.call_raw(vec![object.clone().into()]);
        world.wait(&answer).unwrap();
    }
    drop((answer, back, echo, object));
    world.published[1].clear();
    world.run();
    world.assert_empty(false);
}

#[test]
fn a_cut_breaks_what_depended_on_the_session() {
    let mut world = World::new(2);
    let kept = Arc::default();
    world.publish(1, "maker", promise_maker(&kept));
    world.publish(
        1,
        "never",
        Behavior(|_: &Turn, _| Answer::later(std::future::pending())),
    );
    world.connect(0, 1);
    let maker = world.fetch(0, 1, "maker");
    let made = world.get(maker.call_raw(vec![])).unwrap();
    let imported = made.as_list().unwrap()[0]
        .as_reference()
        .unwrap()
        .resolution();
    let never = world.fetch(0, 1, "never");
    let object = world.wait(&never).unwrap();
    let unanswered = never.call_raw(vec![]);
    let pipelined = unanswered.call("more", []);
    world.run();
    world.cut_between(0, 1);
    for promise in [&imported, &unanswered, &pipelined] {
        assert!(world.wait(promise).unwrap_err().is_severed());
    }
    let late = object.as_reference().unwrap().call("late", []);
    assert!(world.wait(&late).unwrap_err().is_severed());
    assert_eq!(world.downs.len(), 2);
    // A new session works.
    world.connect(1, 0);
    let again = world.fetch(0, 1, "maker").call_raw(vec![]);
    assert!(world.wait(&again).is_ok());
}

/// An object at vat 2, fetched by vat 0 and passed to vat 1.
fn hand_over(world: &mut World) -> (Log, Reference) {
    let log = Log::default();
    world.publish(2, "log", log.clone());
    let holder: Arc<Mutex<Option<Reference>>> = Arc::default();
    let keep = Arc::clone(&holder);
    world.publish(
        1,
        "holder",
        Behavior(move |_: &Turn, args: Vec<Passable>| {
            let given = args[0].as_reference().unwrap();
            // Called before the gift is there: the message waits and goes first.
            given.send_raw(vec!["early".into()]);
            *keep.lock().unwrap() = Some(given.clone());
            Answer::value(true)
        }),
    );
    let gift = world.fetch(0, 2, "log");
    let gift = world.wait(&gift).unwrap();
    let given = world.fetch(0, 1, "holder").call_raw(vec![gift]);
    assert_eq!(world.wait(&given), Ok(true.into()));
    world.run();
    let held = holder.lock().unwrap().take().unwrap();
    (log, held)
}

#[test]
fn a_third_party_handoff_leads_to_a_direct_reference() {
    for (authenticated, connected) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut world = World::new(3);
        world.authenticated = authenticated;
        world.connect(0, 1);
        world.connect(0, 2);
        match (connected, authenticated) {
            (true, true) => world.connect(2, 1),
            // Who dialled and proves nothing may be anybody.
            (true, false) => world.connect(1, 2),
            (false, _) => {}
        }
        let (log, held) = hand_over(&mut world);
        assert_eq!(log.taken(), [vec![Passable::from("early")]]);
        assert!(
            world.session(1, 2).is_some(),
            "receiver and exporter are connected"
        );
        world.cut_between(0, 1);
        world.cut_between(0, 2);
        let direct = held.call_raw(vec!["direct".into()]);
        assert_eq!(world.wait(&direct), Ok(true.into()));
        assert_eq!(log.taken(), [vec![Passable::from("direct")]]);
        drop((held, direct));
        for published in &mut world.published {
            published.clear();
        }
        world.run();
        world.assert_empty(false);
    }
}

#[test]
fn a_gift_from_a_peer_that_cannot_be_reached_breaks() {
    let mut world = World::new(3);
    world.connect(0, 1);
    world.connect(0, 2);
    // Vat 1 knows nobody of that name.
    let log = world.publish(2, "log", Log::default());
    drop(log);
    let gift = world.fetch(0, 2, "log");
    let gift = world.wait(&gift).unwrap();
    world.publish(
        1,
        "call",
        Behavior(|_: &Turn, args: Vec<Passable>| {
            let promise = args[0].as_reference().unwrap().call_raw(vec![]);
            Answer::later(promise)
        }),
    );
    let call = world.fetch(0, 1, "call");
    assert!(world.wait(&call).is_ok());
    let result = call.call_raw(vec![gift]);
    world.serve(0);
    // The message arrives; the exporter's session with the gifter ends before the withdrawal.
    world.arrive(0, 1, usize::MAX);
    world.cut_between(0, 2);
    let broken = world.wait(&result).unwrap_err();
    assert_eq!(broken.code(), Some("handoff-refused"));
}

#[test]
fn crossed_hellos_leave_one_session() {
    for swap in [false, true] {
        for order in 0..4 {
            let mut world = World::new(2);
            if swap {
                // Other keys, so that the other side loses.
                world.dial(0, 1);
                world.cut(0);
            }
            world.publish(1, "echo", echo());
            world.publish(0, "echo", echo());
            world.dial(0, 1);
            world.dial(1, 0);
            let first = world.links.len() - 2;
            world.serve(0);
            world.serve(1);
            for (link, side) in [(first, 1), (first + 1, 1)] {
                if order & 1 == 0 {
                    world.arrive(link, side, usize::MAX);
                }
                if order & 2 == 0 {
                    world.serve(side);
                }
            }
            world.run();
            for (one, two) in [(0, 1), (1, 0)] {
                let echo = world.fetch(one, two, "echo").call_raw(vec![1_u64.into()]);
                assert_eq!(world.wait(&echo), Ok(vec![1_u64.into()].into()), "{order}");
            }
        }
    }
}

#[test]
fn a_dial_made_late_leaves_the_session_that_came_meanwhile() {
    let mut world = World::new(2);
    world.connect(1, 0);
    let (near, far) = (world.session(0, 1), world.session(1, 0));
    world.dial(0, 1);
    world.run();
    assert_eq!((world.session(0, 1), world.session(1, 0)), (near, far));
    assert!(world.downs.is_empty());
}

#[test]
fn a_new_session_replaces_the_old_one_only_when_proven() {
    let mut world = World::new(2);
    world.connect(0, 1);
    let old = world.session(1, 0);
    world.dial(0, 1);
    world.run();
    assert_ne!(
        world.session(1, 0),
        old,
        "the peer that came back is let in"
    );
    let downs: Vec<_> = world.downs.iter().map(|(vat, ..)| *vat).collect();
    assert!(downs.contains(&1));

    let mut world = World::new(2);
    world.authenticated = false;
    world.connect(0, 1);
    let old = world.session(1, 0);
    world.dial(0, 1);
    world.run();
    assert_eq!(world.session(1, 0), old, "anybody can claim a designator");
}

#[test]
fn a_panic_in_a_turn_breaks_its_answer_alone() {
    let mut world = World::new(2);
    world.publish(
        1,
        "bad",
        Behavior(|_: &Turn, args: Vec<Passable>| Answer::value(args[3].clone())),
    );
    world.connect(0, 1);
    let bad = world.fetch(0, 1, "bad");
    let broken = bad.call_raw(vec![]);
    assert_eq!(world.wait(&broken).unwrap_err().code(), Some("internal"));
    let fine = bad.call_raw(vec![
        Passable::Null,
        Passable::Null,
        Passable::Null,
        true.into(),
    ]);
    assert_eq!(world.wait(&fine), Ok(true.into()));
}

#[test]
fn local_objects_and_promises_need_no_session() {
    let mut world = World::new(1);
    let echo = world.vats[0].export(echo());
    let answer = echo.call("hi", [1_u64.into()]);
    assert_eq!(answer.now(), None, "turns never run inside of a call");
    let expected = vec![Passable::symbol("hi"), 1_u64.into()];
    assert_eq!(world.wait(&answer), Ok(expected.into()));
    let (promise, resolver) = world.vats[0].promise();
    let early = promise.call_raw(vec![2_u64.into()]);
    resolver.fulfill(echo);
    assert_eq!(world.wait(&early), Ok(vec![2_u64.into()].into()));
    let (one, resolve_one) = world.vats[0].promise();
    let (two, resolve_two) = world.vats[0].promise();
    resolve_one.fulfill(two.clone());
    resolve_two.fulfill(one.clone());
    assert_eq!(world.wait(&one).unwrap_err().code(), Some("cycle"));
}

/// Each promise resolves to the next: neither settling nor dropping may use the stack.
#[test]
fn long_chains_of_promises_settle_and_drop() {
    let mut world = World::new(1);
    let vat = world.vats[0].clone();
    let (first, mut resolver) = vat.promise();
    for _ in 0..200_000 {
        let (next, resolve_next) = vat.promise();
        resolver.fulfill(next);
        resolver = resolve_next;
    }
    resolver.fulfill(3_u64);
    assert_eq!(world.wait(&first), Ok(3_u64.into()));
    drop(first);
    world.run();
}

#[test]
fn messages_beyond_what_a_promise_may_queue_break() {
    let limits = Limits {
        queue_max: 3,
        ..Limits::default()
    };
    let mut world = World::with_limits(1, limits);
    let log = Log::default();
    let sink = world.vats[0].export(log.clone());
    let (promise, resolver) = world.vats[0].promise();
    let calls: Vec<_> = (0..5_u64)
        .map(|n| promise.call_raw(vec![n.into()]))
        .collect();
    for (n, call) in calls.iter().enumerate() {
        let broken = call.now().map(|result| result.unwrap_err());
        let code = broken.as_ref().and_then(Broken::code);
        assert_eq!(code, (n >= 3).then_some("overloaded"), "number {n}");
    }
    resolver.fulfill(sink);
    for call in calls.into_iter().take(3) {
        assert_eq!(world.get(call), Ok(true.into()));
    }
    let first: Vec<Vec<Passable>> = (0..3_u64).map(|n| vec![n.into()]).collect();
    assert_eq!(log.taken(), first, "what had a place arrives, in order");
}

/// Returns what vat 0 writes in a dialect while it calls, sends, and lets go of everything.
fn written(dialect: Dialect) -> String {
    let mut world = World::new(2);
    world.dialect = dialect;
    world.publish(1, "echo", echo());
    world.connect(0, 1);
    let mut text = String::new();
    let mut round = |world: &mut World| {
        world.serve(0);
        let bytes: Vec<u8> = world.links[0].to[1].iter().copied().collect();
        text.push_str(&String::from_utf8_lossy(&bytes));
        world.run();
    };
    let echo = world.fetch(0, 1, "echo");
    let answer = echo.call_raw(vec![1_u64.into()]);
    echo.as_reference().send_raw(vec![2_u64.into()]);
    round(&mut world);
    drop((echo, answer));
    round(&mut world);
    text
}

#[test]
fn each_dialect_has_its_own_labels_on_the_wire() {
    let old = written(Dialect::D1);
    let new = written(Dialect::D2);
    for (label, in_old, in_new) in [
        ("<15'op:deliver-only<11'desc:", true, false),
        ("<12'op:gc-export[", true, false),
        ("<12'op:gc-answer[", true, false),
        ("<13'op:gc-exports[", false, true),
        ("<13'op:gc-answers[", false, true),
        ("]ff>", false, true),
    ] {
        assert_eq!(old.contains(label), in_old, "{label} in {old}");
        assert_eq!(new.contains(label), in_new, "{label} in {new}");
    }
}
