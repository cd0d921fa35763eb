//! What one session may use of a vat, and what happens at each limit.

use crate::support::{Behavior, End, Log, TRANSPORT, World, echo, name, send};
use ocapn::{
    Answer, Dialect, Direction, Greet, Limits, Object, Opening, Passable, PeerLocator, Turn, Vat,
    VatOptions,
};

/// Answers never.
fn stuck() -> impl Object {
    Behavior(|_: &Turn, _| Answer::later(std::future::pending()))
}

/// Two vats with a session, in which the test plays vat 0 ([`send`]): its answer 0 is an object of
/// vat 1.
fn asking(limits: Limits, object: impl Object) -> World {
    let mut world = World::with_limits(2, limits);
    world.connect(0, 1);
    world.publish(1, "object", object);
    let fetch = "<10'op:deliver<11'desc:export0+>[5'fetch6:object]0+f>";
    send(&mut world, fetch).expect("it is up");
    world
}

/// A call that finds the table full breaks alone: the peer is told nothing of it.
#[test]
fn at_the_limit_of_exports_one_call_breaks() {
    let limits = Limits {
        exports_max: 4,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    world.connect(0, 1);
    world.publish(1, "stuck", stuck());
    world.publish(1, "echo", echo());
    let object = world.fetch(0, 1, "stuck");
    assert!(world.wait(&object).is_ok());
    let calls: Vec<_> = (0..8).map(|_| object.call_raw(vec![])).collect();
    let codes: Vec<_> = calls
        .iter()
        .filter_map(|call| call.now())
        .map(|result| result.unwrap_err().code().map(str::to_owned))
        .collect();
    assert!((1..8).contains(&codes.len()), "{codes:?}");
    assert!(
        codes
            .iter()
            .all(|code| code.as_deref() == Some("not-sendable"))
    );
    world.run();
    assert_eq!(world.downs, []);
    drop(calls);
    world.run();
    assert_eq!(world.downs, []);
}

/// An answer that finds no room for what it mentions breaks: the peer would wait for ever.
#[test]
fn at_the_limit_of_exports_an_answer_breaks() {
    let limits = Limits {
        exports_max: 3,
        ..Limits::default()
    };
    let mut world = World::with_limits(2, limits);
    world.connect(0, 1);
    world.publish(
        1,
        "make",
        Behavior(|turn: &Turn, _| Answer::value(turn.vat().export(echo()))),
    );
    let make = |position: u64| {
        format!("<10'op:deliver<11'desc:answer0+>[]{position}+<18'desc:import-object{position}+>>")
    };
    let fetch = "<10'op:deliver<11'desc:export0+>[5'fetch4:make]0+<18'desc:import-object1+>>";
    let back = send(&mut world, fetch).expect("it is up");
    assert!(back.contains("7'fulfill"), "{back}");
    let back = send(&mut world, make(2)).expect("it is up");
    assert!(
        back.contains("<11'desc:export2+>[7'fulfill<18'desc:import-object2+>]"),
        "{back}"
    );
    let back = send(&mut world, make(3)).expect("it is up");
    assert!(
        back.contains("<11'desc:export3+>[5'break") && back.contains("not-sendable"),
        "{back}"
    );
    // Who listens later is told the same, and with room again the answer can be had.
    let listen = "<9'op:listen<11'desc:answer3+><18'desc:import-object4+>f>";
    let back = send(&mut world, listen).expect("it is up");
    assert!(back.contains("<11'desc:export4+>[5'break"), "{back}");
    let collect = "<13'op:gc-exports[2+][1+]>";
    let back = send(&mut world, [collect, listen].concat()).expect("it is up");
    assert!(back.contains("<11'desc:export4+>[7'fulfill"), "{back}");
    assert_eq!(world.downs, []);
}

#[test]
fn a_bootstrap_object_whose_session_is_over_breaks_its_calls() {
    let log = Log::default();
    let mut world = asking(Limits::default(), log.clone());
    send(
        &mut world,
        "<10'op:deliver<11'desc:answer0+>[<11'desc:export0+>]ff>",
    );
    let bootstrap = log.taken()[0][0].as_reference().cloned().unwrap();
    world.cut(0);
    world.run();
    let fetched = bootstrap.call("fetch", [Passable::Bytes("log".into())]);
    world.run();
    let result = fetched.now().expect("it settles");
    assert!(result.is_err_and(|broken| broken.is_severed()));
}

/// Implementations write tagged values in three ways, and `op:untag` asks for the tag alone.
#[test]
fn a_value_can_be_untagged_whatever_dialect_it_is_in() {
    let first = |_: &Turn, mut args: Vec<Passable>| Answer::value(args.remove(0));
    let mut world = asking(Limits::default(), Behavior(first));
    for (tagged, tag, told) in [
        (
            "<11'desc:tagged5'color3\"red>",
            "5\"color",
            "7'fulfill3\"red",
        ),
        (
            "<11'user-record5\"color3\"red>",
            "5\"color",
            "7'fulfill3\"red",
        ),
        (
            "<11'user-record5'color3\"red>",
            "5'color",
            "7'fulfill3\"red",
        ),
        ("<8'desc:tag5\"color3\"red>", "5\"color", "7'fulfill3\"red"),
        ("<8'desc:tag5\"color3\"red>", "6\"colour", "another tag"),
        ("<11'user-record5\"color3\"redt>", "5\"color", "wrong-type"),
        ("<7'another5\"color3\"red>", "5\"color", "wrong-type"),
    ] {
        let ask = format!(
            "<10'op:deliver<11'desc:answer0+>[{tagged}]1+f>\
             <8'op:untag<11'desc:answer1+>{tag}2+>\
             <9'op:listen<11'desc:answer2+><18'desc:import-object1+>f>\
             <13'op:gc-answers[1+2+]>"
        );
        let back = send(&mut world, ask).expect("the session stands");
        assert!(back.contains(told), "{tagged}: {back}");
    }
}

/// Endo sorts the keys of a struct by their text, and ends a session where they are otherwise.
#[test]
fn structs_are_written_as_endo_has_them_and_read_either_way() {
    let mut world = asking(Limits::default(), echo());
    let call =
        |args: &str| format!("<10'op:deliver<11'desc:answer0+>[{args}]f<18'desc:import-object1+>>");
    let by_text = "{2\"aa1+1\"b{10\"aaaaaaaaaa1+2\"bb2+}}";
    let by_encoding = "{1\"b{10\"aaaaaaaaaa1+2\"bb2+}2\"aa1+}";
    for args in [by_text, by_encoding] {
        let back = send(&mut world, call(args)).expect("the session stands");
        assert!(back.contains(by_text), "{args}: {back}");
    }
    for args in ["{1\"b1+1\"a1+}", "{1\"a1+1\"a1+}", "{2\"aa1+1\"b1+2\"ab1+}"] {
        let mut world = World::new(2);
        world.connect(0, 1);
        let back = send(&mut world, call(args).replace("answer", "export"));
        assert_eq!(back, None, "{args}");
    }
}

/// The hints of a locator are a struct like any other: in sturdyrefs, and in greetings, whose
/// signatures cover them.
#[test]
fn hints_are_written_as_endo_has_them_and_read_either_way() {
    let look = |_: &Turn, mut args: Vec<Passable>| {
        let is_sturdyref = args[0].as_sturdyref().is_some();
        Answer::value(vec![is_sturdyref.into(), args.remove(0)])
    };
    let mut world = asking(Limits::default(), Behavior(look));
    let call = |hints: &str| {
        format!(
            "<10'op:deliver<11'desc:answer0+>\
             [<15'ocapn-sturdyref<10'ocapn-peer1't1\"d{hints}>1:s>]f<18'desc:import-object1+>>"
        )
    };
    let by_text = "{2\"aa1\"x1\"b1\"y}";
    let told = format!("[t<15'ocapn-sturdyref<10'ocapn-peer1't1\"d{by_text}>1:s>]");
    for hints in [by_text, "{1\"b1\"y2\"aa1\"x}"] {
        let back = send(&mut world, call(hints)).expect("the session stands");
        assert!(back.contains(&told), "{hints}: {back}");
    }
    let neither = "{2\"aa1\"x1\"b1\"y2\"ab1\"z}";
    assert_eq!(send(&mut world, call(neither)), None, "in no order");

    let vats = ["one", "two"].map(|name| {
        let location = PeerLocator::new(TRANSPORT, name)
            .with_hint("b", "y")
            .with_hint("aa", "x");
        let limits = Limits::default();
        Vat::new(VatOptions { location, limits })
    });
    let [one, two] = [1, 2].map(|seed| Opening {
        seed: [seed; 32],
        direction: Direction::Inbound,
        peer: None,
        dialect: Dialect::D2,
        greet: Greet::AtOnce,
    });
    let (one, two) = (vats[0].open(one), vats[1].open(two));
    let hello = vats[0].try_transmit(one).expect("a greeting").bytes;
    assert!(String::from_utf8_lossy(&hello).contains(by_text));
    assert_eq!(vats[1].receive(two, &hello), Ok(()));
    assert_eq!(vats[1].session_with(TRANSPORT, "one"), Some(two));
}

/// An object of ours as a listener would be called as if by ourselves.
#[test]
fn only_objects_of_the_peer_are_told_results() {
    for message in [
        "<10'op:deliver<11'desc:answer0+>[1+]1+<11'desc:export1+>>",
        "<10'op:deliver<11'desc:answer0+>[1+]1+<11'desc:answer0+>>",
        "<9'op:listen<11'desc:answer0+><11'desc:export1+>f>",
        "<9'op:listen<11'desc:answer0+><11'desc:answer0+>f>",
        "<9'op:listen<11'desc:answer0+>ff>",
    ] {
        let log = Log::default();
        let mut world = asking(Limits::default(), log.clone());
        let listen = "<9'op:listen<11'desc:answer0+><18'desc:import-object1+>f>";
        let back = send(&mut world, listen).expect("it is up");
        assert!(
            back.contains("7'fulfill<18'desc:import-object1+>"),
            "{back}"
        );
        assert_eq!(send(&mut world, message), None, "{message}");
        world.run();
        assert!(log.taken().is_empty(), "{message}");
        assert!(world.downs[0].2.starts_with("malformed op:"), "{message}");
    }
}

#[test]
fn an_index_that_no_list_has_breaks_its_answer_alone() {
    let mut world = asking(Limits::default(), echo());
    send(&mut world, "<10'op:deliver<11'desc:answer0+>[1+2+]1+f>");
    for (position, index) in [(2, "1-"), (3, "2+"), (4, "99999999999999999999999+")] {
        let take = format!(
            "<8'op:index<11'desc:answer1+>{index}{position}+>\
             <9'op:listen<11'desc:answer{position}+><18'desc:import-object{position}+>f>"
        );
        let back = send(&mut world, take).expect("the session stands");
        assert!(
            back.contains("5'break") && back.contains("absent"),
            "{index}: {back}"
        );
    }
}

#[test]
fn before_a_session_is_up_little_is_kept() {
    let mut world = World::new(2);
    world.authenticated = false;
    for start in ["15000000:", "<16'op:start-session3\"1.01000000\""] {
        let opening = world.opening(0, Direction::Inbound);
        let session = world.vats[1].open(opening);
        let over = world.vats[1].receive(session, start.as_bytes());
        assert!(over.is_err(), "{start}");
    }
    // Bytes without a length that tells how many they will be.
    let opening = world.opening(0, Direction::Inbound);
    let session = world.vats[1].open(opening);
    let taken = (0..1_000).take_while(|_| {
        let zeroes = "0+".repeat(500);
        let list = format!("[{zeroes}");
        world.vats[1].receive(session, list.as_bytes()).is_ok()
    });
    assert!(taken.count() <= 16, "16 KiB");
}

#[test]
fn a_contested_session_keeps_little_of_what_follows() {
    let mut world = World::new(2);
    world.authenticated = false;
    world.connect(0, 1);
    let claimant = Vat::new(VatOptions {
        location: PeerLocator::new(TRANSPORT, name(0)),
        limits: Limits::default(),
    });
    let out = world.opening(1, Direction::Outbound(PeerLocator::new(TRANSPORT, name(1))));
    let opening = world.opening(0, Direction::Inbound);
    let out = claimant.open(out);
    let session = world.vats[1].open(opening);
    let hello = claimant.try_transmit(out).expect("a greeting");
    assert_eq!(world.vats[1].receive(session, &hello.bytes), Ok(()));
    let taken = (0..1_000).take_while(|_| world.vats[1].receive(session, &[b'['; 1_000]).is_ok());
    let taken = taken.count();
    assert!((1..=65).contains(&taken), "{taken}");
    world.run();
    assert!(world.downs.is_empty(), "the session in its way stands");
}

/// A reference that goes over and over in one message is handed over a bounded number of times.
#[test]
fn one_message_makes_few_handoffs() {
    let mut world = World::new(3);
    world.connect(0, 1);
    world.connect(1, 2);
    world.publish(2, "thing", echo());
    let thing = world.fetch(1, 2, "thing");
    let thing = world.get(thing).unwrap();
    world.publish(
        1,
        "many",
        Behavior(move |_: &Turn, _| Answer::value(Passable::List(vec![thing.clone(); 500]))),
    );
    let many = world.fetch(0, 1, "many");
    let answer = many.call_raw(vec![]);
    world.serve(0);
    world.arrive(0, 1, usize::MAX);
    world.serve(1);
    let count = |bytes: &mut dyn Iterator<Item = &u8>, what: &[u8]| {
        let bytes: Vec<u8> = bytes.copied().collect();
        bytes
            .windows(what.len())
            .filter(|part| *part == what)
            .count()
    };
    let back = &world.links[0].to[0];
    let deposits = &world.links[1].to[1];
    assert_eq!(count(&mut back.iter(), b"17'desc:handoff-give"), 128);
    assert_eq!(count(&mut deposits.iter(), b"12'deposit-gift"), 128);
    let answer = world.get(answer).expect("the answer comes");
    let items = answer.as_list().expect("a list").to_vec();
    assert_eq!(items.len(), 500);
    let last = items[499].as_reference().expect("a promise").resolution();
    assert_eq!(world.wait(&last).unwrap_err().code(), Some("overloaded"));
}

/// A third peer that does not read is sent no gifts either.
#[test]
fn handoffs_stop_where_the_third_peer_does_not_read() {
    let limits = Limits {
        output_max: 20_000,
        ..Limits::default()
    };
    let mut world = World::with_limits(3, limits);
    world.connect(0, 1);
    world.connect(1, 2);
    world.publish(2, "thing", echo());
    let thing = world.fetch(1, 2, "thing");
    let thing = world.get(thing).unwrap();
    world.publish(
        1,
        "give",
        Behavior(move |_: &Turn, _| Answer::value(thing.clone())),
    );
    let give = world.fetch(0, 1, "give");
    assert!(world.wait(&give).is_ok());
    let other = world.session(1, 2).expect("a session");
    for _ in 0..400 {
        give.as_reference().call_raw(vec![]);
        let output = world.vats[0].try_transmit(world.links[0].ends[0].session);
        let End { vat, session } = world.links[0].ends[1];
        assert_eq!(
            world.vats[vat].receive(session, &output.unwrap().bytes),
            Ok(())
        );
        while world.vats[vat].try_transmit(session).is_some() {}
    }
    let waits = world.vats[1].backlog(other);
    assert!((9_000..11_000).contains(&waits), "{waits}");
}

/// What one peer sends to another by way of us is at its own cost, and ends no other session.
#[test]
fn a_flood_for_a_third_peer_that_does_not_read_ends_at_who_sends_it() {
    let flood = |limits: Limits| {
        let mut world = World::with_limits(3, limits);
        world.connect(0, 1);
        world.connect(1, 2);
        let log = Log::default();
        world.publish(2, "log", log.clone());
        let session = world.session(1, 2).expect("a session");
        // Not resolved as long as nothing is served: what is sent to it goes by way of vat 1.
        let there = world.fetch(1, 2, "log");
        let by_way = move |_: &Turn, _| Answer::value(there.clone());
        world.publish(1, "by way", Behavior(by_way));
        let fetch = "<10'op:deliver<11'desc:export0+>[5'fetch6:by way]0+f>";
        send(&mut world, fetch).expect("it is up");
        send(&mut world, "<10'op:deliver<11'desc:answer0+>[]1+f>").expect("it is up");
        let from = world.links[0].ends[1].session;
        let text = "x".repeat(1_000);
        let message = format!("<10'op:deliver<11'desc:answer1+>[1000\"{text}]ff>");
        let taken = (0..1_000)
            .take_while(|_| world.vats[1].receive(from, message.as_bytes()).is_ok())
            .count();
        let backlog = world.vats[1].backlog(session);
        world.run();
        (world, log, taken, backlog)
    };
    let limits = Limits {
        output_max: 100_000,
        ..Limits::default()
    };
    let (world, log, taken, backlog) = flood(limits.clone());
    assert_eq!(taken, 1_000);
    assert!((49_000..53_000).contains(&backlog), "{backlog}");
    let passed = log.taken().len();
    assert!((45..50).contains(&passed), "{passed}");
    assert_eq!(world.downs, [], "what finds no room is left out");

    let limits = Limits {
        retained_max: 20_000,
        ..limits
    };
    let (world, log, taken, backlog) = flood(limits);
    assert!((15..20).contains(&taken), "{taken}");
    assert!(backlog < 25_000, "{backlog}");
    assert_eq!(log.taken().len(), taken);
    let downs: Vec<_> = world
        .downs
        .iter()
        .map(|(vat, peer, _)| (*vat, &*peer.designator))
        .collect();
    assert_eq!(downs, [(1, "vat0"), (0, "vat1")]);
}

/// Whatever a peer asks for and does not wait for counts, also where it takes no place in a table.
#[test]
fn what_a_peer_leaves_undone_is_bounded() {
    let listener = "<18'desc:import-object5+>";
    for flood in [
        format!("<9'op:listen<11'desc:answer1+>{listener}f>"),
        format!("<10'op:deliver<11'desc:answer0+>[]f{listener}>"),
        "<10'op:deliver<11'desc:answer0+>[]ff>".to_owned(),
        "<10'op:deliver<11'desc:answer1+>[]ff>".to_owned(),
        "<10'op:deliver<11'desc:export0+>[5'fetch4:none]ff>".to_owned(),
        "<6'op:get<11'desc:answer1+>1\"a9+><13'op:gc-answers[9+]>".to_owned(),
    ] {
        let limits = Limits {
            pending_max: 100,
            ..Limits::default()
        };
        let mut world = asking(limits, stuck());
        let call = "<10'op:deliver<11'desc:answer0+>[]1+f>";
        send(&mut world, call).expect("it is up");
        let End { vat, session } = world.links[0].ends[1];
        let taken = (0..1_000)
            .take_while(|_| world.vats[vat].receive(session, flood.as_bytes()).is_ok())
            .count();
        assert!((40..=100).contains(&taken), "{flood}: {taken}");
        world.run();
        assert_eq!(world.downs[0].2, "too much waits to be done", "{flood}");
    }
    // What is done counts no more.
    let mut world = World::with_limits(
        2,
        Limits {
            pending_max: 10,
            ..Limits::default()
        },
    );
    world.connect(0, 1);
    world.publish(1, "echo", echo());
    let object = world.fetch(0, 1, "echo");
    for _ in 0..100 {
        let call = object.call_raw(vec![]);
        assert!(world.get(call).is_ok());
    }
}

#[test]
fn the_id_of_a_gift_is_short() {
    let mut world = World::new(2);
    world.connect(0, 1);
    let mut deposit = |length: usize, position: u64| {
        let id = "x".repeat(length);
        let deposit = format!(
            "<10'op:deliver<11'desc:export0+>[12'deposit-gift{length}:{id}\
             <18'desc:import-object7+>]{position}+<18'desc:import-object8+>>"
        );
        let back = send(&mut world, deposit).expect("the session stands");
        let End { vat, session } = world.links[0].ends[1];
        (
            back,
            world.vats[vat].inspect(session).expect("it is up").gifts,
        )
    };
    let (back, gifts) = deposit(252, 0);
    assert!(back.contains("7'fulfill"), "{back}");
    assert_eq!(gifts, 1);
    let (back, gifts) = deposit(253, 1);
    assert!(back.contains("the gift id is too long"), "{back}");
    assert_eq!(gifts, 1);
}
