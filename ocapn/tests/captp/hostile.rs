//! What a peer may send that it should not: each ends in one error or one closed session, and the
//! other sessions do not notice.

use std::collections::BTreeSet;

use crate::support::{Behavior, End, Log, TRANSPORT, World, echo, name};
use ocapn::{Answer, Direction, Limits, Passable, PeerLocator, Struct, Symbol, Tagged, Turn};

/// Two vats with a session between them; the test plays vat 0 towards vat 1, which exports an
/// echo, and has a session with vat 2 that must not suffer.
struct Victim {
    world: World,
}

impl Victim {
    fn new(limits: Limits) -> Self {
        let mut world = World::with_limits(3, limits);
        world.connect(0, 1);
        world.connect(2, 1);
        world.publish(1, "echo", echo());
        world.publish(
            1,
            "data",
            Behavior(|_: &Turn, _| {
                let tagged = Tagged {
                    tag: Symbol::new("tag"),
                    value: "inner".into(),
                };
                let list = vec!["zero".into(), Passable::Tagged(Box::new(tagged))];
                Answer::value(Struct::new().with("list", Passable::List(list)))
            }),
        );
        Self { world }
    }

    /// Sends bytes as vat 0 and returns what vat 1 sends back, as text.
    fn send(&mut self, bytes: &[u8]) -> String {
        let End { vat, session } = self.world.links[0].ends[1];
        let _ = self.world.vats[vat].receive(session, bytes);
        for _ in 0..3 {
            self.world.serve(1);
        }
        let back: Vec<u8> = self.world.links[0].to[0].drain(..).collect();
        String::from_utf8_lossy(&back).into_owned()
    }

    fn is_up(&self) -> bool {
        self.world.session(1, 0).is_some()
    }

    fn assert_others_live(&mut self) {
        let echo = self.world.fetch(2, 1, "echo").call_raw(vec![1_u64.into()]);
        assert_eq!(self.world.get(echo), Ok(vec![1_u64.into()].into()));
    }
}

const FETCH_ECHO: &str =
    "<10'op:deliver<11'desc:export0+>[5'fetch4:echo]0+<18'desc:import-object0+>>";

#[test]
fn messages_that_make_no_sense_end_their_session_alone() {
    let cases = [
        "<10'op:deliver<11'desc:export99+>[]ff>",
        "<10'op:deliver<11'desc:answer99+>[]ff>",
        "<10'op:deliver<11'desc:export0+>[<11'desc:export99+>]ff>",
        "<10'op:deliver<11'desc:export0+>[]0-f>",
        "<10'op:deliver<11'desc:export0+>[]f3\"foo>",
        "<10'op:deliver<11'desc:export0+>[]ff1+>",
        "<10'op:deliver<11'desc:export0+>ff>",
        "<10'op:deliver<18'desc:import-object0+>[]ff>",
        "<10'op:deliver<11'desc:export0+>[]5+f><10'op:deliver<11'desc:export0+>[]5+f>",
        "<9'op:listen<11'desc:export99+><18'desc:import-object1+>f>",
        "<13'op:gc-exports[77+][1+]>",
        "<13'op:gc-exports[0+][]>",
        "<13'op:gc-answers[77+]>",
        "<7'op:pick<11'desc:export99+>1+>",
        "<0'1+>",
        "<16'op:start-session3\"1.0>",
        "[1+2+3+]",
        "junk",
        "<10'op:deliver}",
        "99999999999999:",
    ];
    for case in cases {
        let mut victim = Victim::new(Limits::default());
        let back = victim.send(case.as_bytes());
        assert!(back.contains("8'op:abort"), "{case}: {back}");
        assert!(!victim.is_up(), "{case}");
        assert_eq!(
            victim.send(FETCH_ECHO.as_bytes()),
            "",
            "{case}: nothing after the end"
        );
        victim.assert_others_live();
    }
}

#[test]
fn a_peer_that_gives_back_too_much_is_cut_off() {
    let mut victim = Victim::new(Limits::default());
    let back = victim.send(FETCH_ECHO.as_bytes());
    assert!(
        back.contains("7'fulfill<18'desc:import-object1+>"),
        "{back}"
    );
    let back = victim.send(b"<13'op:gc-exports[1+][2+]>");
    assert!(back.contains("8'op:abort"), "{back}");
    victim.assert_others_live();
}

#[test]
fn what_is_only_unknown_is_kept_and_answered() {
    let mut victim = Victim::new(Limits::default());
    victim.send(FETCH_ECHO.as_bytes());
    for value in [
        "<16'exn:fail:mystery>",
        "<7'unknown1+<18'desc:import-object7+>>",
        "<9'desc:else2\"hi>",
        "<4'null>",
    ] {
        let call = format!("<10'op:deliver<11'desc:answer0+>[{value}]f<18'desc:import-object2+>>");
        let back = victim.send(call.as_bytes());
        let expected = value.replace("18'desc:import-object7+", "11'desc:export7+");
        assert!(
            back.contains(&format!("[7'fulfill[{expected}]]ff")),
            "{value}: {back}"
        );
        victim.send(b"<13'op:gc-exports[][]>");
    }
    assert!(victim.is_up());
}

/// What other peers speak of some day must not end what works.
#[test]
fn an_unknown_operation_is_left_out_and_what_it_mentions_given_back() {
    let mut victim = Victim::new(Limits::default());
    victim.send(FETCH_ECHO.as_bytes());
    for (operation, told) in [
        ("<7'op:ping>", ""),
        ("<7'op:pick<11'desc:answer0+>[2+<3'any>]1+>", ""),
        (
            "<8'op:flush<18'desc:import-object9+>[<19'desc:import-promise8+>]>",
            "<13'op:gc-exports[9+8+][1+1+]>",
        ),
    ] {
        let back = victim.send(operation.as_bytes());
        let back = back.replace("[8+9+]", "[9+8+]");
        assert_eq!(back, told, "{operation}");
    }
    let call = "<10'op:deliver<11'desc:answer0+>[1+]f<18'desc:import-object2+>>";
    let back = victim.send(call.as_bytes());
    assert!(back.contains("7'fulfill[1+]"), "{back}");
}

/// References that are let go of are given back in messages, which wait for the peer as all others.
#[test]
fn a_peer_that_sends_references_and_does_not_read_is_cut_off() {
    let limits = Limits {
        output_max: 100_000,
        ..Limits::default()
    };
    let mut victim = Victim::new(limits);
    victim.send(FETCH_ECHO.as_bytes());
    let End { vat, session } = victim.world.links[0].ends[1];
    let references: String = (10..20)
        .map(|position| format!("<18'desc:import-object{position}+>"))
        .collect();
    let call = format!("<10'op:deliver<11'desc:answer0+>[{references}]ff>");
    let taken = (0..10_000)
        .take_while(|_| {
            victim.world.vats[vat]
                .receive(session, call.as_bytes())
                .is_ok()
        })
        .count();
    assert!((500..1_000).contains(&taken), "{taken}");
    victim.world.serve(1);
    assert_eq!(victim.world.downs[0].2, "the peer does not read");
    victim.assert_others_live();
}

#[test]
fn parts_of_answers_are_taken_and_old_spellings_understood() {
    let mut victim = Victim::new(Limits::default());
    victim.send(b"<10'op:deliver<11'desc:export0+>[5'fetch4:data]0+f>");
    victim.send(b"<15'op:deliver-only<11'desc:answer0+>[]>");
    victim.send(b"<10'op:deliver<11'desc:answer0+>[]1+f>");
    victim.send(b"<6'op:get<11'desc:answer1+>4\"list2+>");
    victim.send(b"<8'op:index<11'desc:answer2+>1+3+>");
    victim.send(b"<8'op:untag<11'desc:answer3+>3\"tag4+>");
    let back = victim.send(b"<9'op:listen<11'desc:answer4+><18'desc:import-object1+>>");
    assert!(
        back.contains("[7'fulfill5\"inner]ff>"),
        "two fields of op:listen do: {back}"
    );
    for (wrong, position) in [
        ("<6'op:get<11'desc:answer1+>4\"none5+>", 5),
        ("<6'op:get<11'desc:answer2+>4\"list6+>", 6),
        ("<8'op:index<11'desc:answer2+>2+7+>", 7),
        ("<8'op:untag<11'desc:answer3+>5\"other8+>", 8),
    ] {
        let listen = format!("<9'op:listen<11'desc:answer{position}+><18'desc:import-object1+>f>");
        let back = victim.send(format!("{wrong}{listen}").as_bytes());
        assert!(back.contains("[5'break"), "{wrong}: {back}");
    }
    victim.send(b"<12'op:gc-answer[0+1+2+]><13'op:gc-answers[3+4+5+6+7+]><12'op:gc-answer8+>");
    assert!(victim.is_up());
    let session = victim.world.session(1, 0).unwrap();
    assert_eq!(victim.world.vats[1].inspect(session).unwrap().answers, 0);
}

#[test]
fn floods_end_at_the_limits() {
    let limits = Limits {
        message_size_max: 10_000,
        depth_max: 10,
        values_max: 500,
        imports_max: 20,
        answers_max: 20,
        output_max: 100_000,
        ..Limits::default()
    };
    let mut floods = vec![
        [
            &b"<10'op:deliver<11'desc:export0+>["[..],
            &b"t".repeat(20_000),
        ]
        .concat(),
        [&b"<10'op:deliver<11'desc:export0+>["[..], &b"[".repeat(20)].concat(),
        b"<10'op:deliver<11'desc:export0+>[1000000:".to_vec(),
    ];
    let (mut imports, mut answers) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let import = format!(
            "<10'op:deliver<11'desc:export0+>[12'deposit-gift{n}+<18'desc:import-object{n}+>]ff>"
        );
        imports.extend(import.bytes());
        answers.extend(format!("<10'op:deliver<11'desc:export0+>[]{n}+f>").bytes());
    }
    floods.extend([imports, answers]);
    for flood in floods {
        let name = String::from_utf8_lossy(&flood[..40]).into_owned();
        let mut victim = Victim::new(limits.clone());
        let back = victim.send(&flood);
        assert!(back.contains("8'op:abort"), "{name}: {back}");
        victim.assert_others_live();
    }
    // A peer that asks and never reads: its session ends, and the memory with it.
    let mut victim = Victim::new(limits);
    victim.send(FETCH_ECHO.as_bytes());
    let End { vat, session } = victim.world.links[0].ends[1];
    let text = "x".repeat(400);
    let call = format!("<10'op:deliver<11'desc:answer0+>[400\"{text}]f<18'desc:import-object2+>>");
    let ended = (0..1_000).position(|_| {
        victim.world.vats[vat]
            .receive(session, call.as_bytes())
            .is_err()
    });
    assert!(ended.is_some_and(|calls| calls < 300), "{ended:?}");
    victim.assert_others_live();
}

#[test]
fn a_start_session_that_was_changed_never_comes_up() {
    let mut world = World::new(2);
    world.authenticated = false;
    world.dial(0, 1);
    world.serve(0);
    let hello: Vec<u8> = world.links[0].to[1].drain(..).collect();
    world.cut(0);
    for at in 0..hello.len() {
        for change in [1, 0x20] {
            let mut changed = hello.clone();
            changed[at] ^= change;
            let opening = world.opening(0, Direction::Inbound);
            let session = world.vats[1].open(opening);
            let _ = world.vats[1].receive(session, &changed);
            assert_eq!(world.session(1, 0), None, "byte {at}");
            world.vats[1].closed(session, "next");
        }
    }
    let opening = world.opening(0, Direction::Inbound);
    let session = world.vats[1].open(opening);
    assert_eq!(world.vats[1].receive(session, &hello), Ok(()));
    assert!(world.session(1, 0).is_some(), "unchanged it does");
}

/// C1: nothing is delivered in a session whose designator is not the one proven.
#[test]
fn c1_another_designator_than_the_proven_one_is_refused_before_any_delivery() {
    let mut world = World::new(3);
    let log = Log::default();
    world.publish(1, "log", log.clone());
    world.dial(0, 1);
    world.serve(0);
    let mut bytes: Vec<u8> = world.links[0].to[1].drain(..).collect();
    bytes.extend_from_slice(b"<10'op:deliver<11'desc:export0+>[5'fetch3:log]0+f>");
    bytes.extend_from_slice(b"<10'op:deliver<11'desc:answer0+>[1+]ff>");
    let opening = world.opening(2, Direction::Inbound);
    let session = world.vats[1].open(opening);
    assert!(world.vats[1].receive(session, &bytes).is_err());
    world.serve(1);
    assert!(world.fetched_by.is_empty());
    assert!(world.ups.is_empty());
    let last = world.vats[1].try_transmit(session).expect("the reason");
    assert!(String::from_utf8_lossy(&last.bytes).contains("8'op:abort"));

    // A dialler refuses whoever answers in another's place.
    let locator = PeerLocator::new(TRANSPORT, name(1));
    let opening = world.opening(1, Direction::Outbound(locator));
    let session = world.vats[2].open(opening);
    world.dial(0, 1);
    world.serve(0);
    let hello: Vec<u8> = world.links[1].to[1].drain(..).collect();
    assert!(world.vats[2].receive(session, &hello).is_err());
}

#[test]
fn certificates_that_were_changed_or_used_are_refused() {
    let mut world = World::new(3);
    world.connect(0, 1);
    world.connect(0, 2);
    world.connect(1, 2);
    let log = Log::default();
    world.publish(2, "log", log.clone());
    world.publish(
        1,
        "take",
        Behavior(|_: &Turn, args: Vec<Passable>| {
            args[0].as_reference().unwrap().send_raw(vec!["hi".into()]);
            Answer::value(true)
        }),
    );
    let gift = world.fetch(0, 2, "log");
    let gift = world.get(gift).unwrap();
    let take = world.fetch(0, 1, "take");
    take.as_reference().send_raw(vec![gift]);
    // Until the withdrawal is on its way from 1 to 2.
    world.serve(0);
    world.arrive(0, 1, usize::MAX);
    world.arrive(1, 1, usize::MAX);
    world.serve(1);
    let sent: Vec<u8> = world.links[2].to[1].drain(..).collect();
    let start = find(&sent, b"<10'op:deliver<11'desc:export0+>[13'withdraw-gift").unwrap();
    let next = find(&sent[start + 1..], b"><10'op:deliver");
    let end = next.map_or(sent.len(), |at| start + 1 + at);
    // Without its answer and resolver, so that it can be sent under others.
    let message = &sent[start..end];
    let tail = message
        .windows(22)
        .rposition(|part| part.starts_with(b"<18'desc:import-object"));
    let mut cut = tail.expect("a resolver");
    while message[cut - 1] != b']' {
        cut -= 1;
    }
    let certificate = &message[..cut];
    let End { vat, session } = world.links[2].ends[1];
    let ask = |world: &mut World, certificate: &[u8], position: usize| {
        let tail = format!("{position}+<18'desc:import-object{position}+>>");
        let whole = [certificate, tail.as_bytes()].concat();
        let _ = world.vats[vat].receive(session, &whole);
        world.serve(2);
        let back: Vec<u8> = world.links[2].to[0].drain(..).collect();
        String::from_utf8_lossy(&back).into_owned()
    };
    // Bytes of each 32-byte string: keys, ids, the gift, and both signatures.
    let places: BTreeSet<usize> = certificate
        .windows(3)
        .enumerate()
        .filter(|(_, window)| window == b"32:")
        .map(|(at, _)| at + 9)
        .collect();
    assert!(places.len() >= 9, "{places:?}");
    let mut position = 500;
    for at in places {
        let mut changed = certificate.to_vec();
        changed[at] ^= 1;
        let back = ask(&mut world, &changed, position);
        assert!(back.contains("handoff-refused"), "byte {at}: {back}");
        position += 1;
    }
    let back = ask(&mut world, certificate, position);
    assert!(
        back.contains("7'fulfill<18'desc:import-object"),
        "unchanged it works: {back}"
    );
    let back = ask(&mut world, certificate, position + 1);
    assert!(back.contains("handoff-refused"), "once: {back}");
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A loop of mutations over whole sessions; bounded, and repeatable.
#[test]
fn mutated_messages_never_panic() {
    let corpus: [&[u8]; 9] = [
        FETCH_ECHO.as_bytes(),
        b"<10'op:deliver<11'desc:answer0+>[1+<18'desc:import-object3+>]1+<18'desc:import-object4+>>",
        b"<9'op:listen<11'desc:answer1+><18'desc:import-object5+>f>",
        b"<6'op:get<11'desc:answer1+>4\"list2+>",
        b"<8'op:index<11'desc:answer1+>0+3+>",
        b"<13'op:gc-exports[1+][1+]>",
        b"<13'op:gc-answers[0+]>",
        b"<10'op:deliver<11'desc:export0+>[12'deposit-gift1:a<19'desc:import-promise1+>]ff>",
        b"<10'op:deliver<11'desc:export0+>[13'withdraw-gift<17'desc:sig-envelope1+2+>]7+f>",
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for _ in 0..300 {
        let mut victim = Victim::new(Limits::default());
        while victim.is_up() {
            let mut message = corpus[random(corpus.len())].to_vec();
            if random(3) == 0 {
                let at = random(message.len());
                message[at] = b"0123456789+-<>[]{}:'\"tf"[random(23)];
            }
            let back = victim.send(&message);
            if random(40) == 0 || back.len() > 100_000 {
                break;
            }
        }
        victim.assert_others_live();
    }
}
