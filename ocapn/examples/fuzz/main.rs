//! Feeds an input surface with mutations of good input, until the time is over or something is
//! found.
//!
//! ```text
//! cargo build --release -p ocapn --example fuzz
//! ulimit -v 2000000
//! target/release/examples/fuzz TARGET SECONDS [SEED]
//! ```
//! Targets: `syrup` (strict and lenient), `locator`, `frames` (netstrings on a socket), `tls`
//! (`tls-rpk`: its handshake and records, and the frames inside), with the feature of that name
//! `websocket` (a listener's handshake and frames), `greeting` (what comes before a session is
//! up), `session` (after it is up, handoffs included), `lenient` (the same among peers that take
//! what is not canonical) and `trace` (what is shown of a message). A finding is a panic, a wrong
//! result, one input that takes seconds, or memory that grows; its seed is printed, and given as
//! SEED makes the input again as the first one, but for keys, which are made anew.
//!
//! In release, since rustls 0.23 asserts in debug builds that nothing damaged comes in after it has
//! said its own last word.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "whoever starts it reads what it found"
)]
#![expect(clippy::disallowed_methods, reason = "it runs for a time")]

#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../../tests/captp/support.rs"]
mod support;

mod sockets;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ocapn::netlayer::trace::describe;
use ocapn::syrup::{self, Limits, Mode, Scanner};
use ocapn::{Passable, PeerLocator, Sturdyref};
use sockets::{Frames, Tls};
use support::{Log, World, echo};

/// One input may take this long, on a machine that is busy with other things.
const INPUT_TIME_MAX: Duration = Duration::from_secs(5);

/// The process may grow to this much memory: no input is larger than some megabytes.
const MEMORY_BYTES_MAX: usize = 512 << 20;

/// Mutations of one input.
const MUTATIONS_MAX: usize = 6;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, seconds, seed @ ..] = arguments.as_slice() else {
        return Err("usage: fuzz TARGET SECONDS [SEED]".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut attempt: Box<dyn FnMut(&mut Random)> = match target.as_str() {
        "syrup" => Box::new(syrup),
        "locator" => Box::new(locator),
        "greeting" => Box::new(greeting),
        "session" => Box::new(|random| session(random, Mode::Strict)),
        "lenient" => Box::new(|random| session(random, Mode::Lenient)),
        "trace" => Box::new(trace),
        "frames" => {
            let frames = Frames::new(runtime)?;
            Box::new(move |random| frames.attempt(random))
        }
        "tls" => {
            let tls = Tls::new(runtime)?;
            Box::new(move |random| tls.attempt(random))
        }
        #[cfg(feature = "websocket")]
        "websocket" => {
            let websocket = sockets::WebSockets::new(runtime)?;
            Box::new(move |random| websocket.attempt(random))
        }
        other => return Err(format!("no such target: {other}").into()),
    };
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    let first: u64 = match seed.first() {
        Some(seed) => seed.parse()?,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() << 24,
    };
    let mut seed = first;
    while Instant::now() < end {
        let _finding = Finding(seed);
        let start = Instant::now();
        attempt(&mut Random::new(seed));
        assert!(
            start.elapsed() < INPUT_TIME_MAX,
            "took {:?}",
            start.elapsed()
        );
        if seed.is_multiple_of(256) {
            let memory = memory_bytes()?;
            assert!(memory < MEMORY_BYTES_MAX, "{memory} bytes of memory");
        }
        seed += 1;
    }
    let memory = memory_bytes()? >> 20;
    println!(
        "{target}: {} inputs from seed {first} without a finding, {memory} MiB of memory",
        seed - first
    );
    Ok(())
}

/// Tells which input it was when a panic passes by.
struct Finding(u64);

impl Drop for Finding {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("found with seed {}", self.0);
        }
    }
}

fn memory_bytes() -> std::io::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).unwrap_or_default();
    Ok(pages.parse().unwrap_or(0) * 4096)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.below(of.len())]
    }
}

/// Pieces that mean something to the grammar.
const PIECES: [&[u8]; 34] = [
    b"[",
    b"]",
    b"{",
    b"}",
    b"<",
    b">",
    b"t",
    b"f",
    b"0+",
    b"1-",
    b"0-",
    b"007+",
    b"1:x",
    b"1\"k",
    b"2'ab",
    b"D",
    b"F",
    b"#",
    b"$",
    b" ",
    b"18446744073709551615+",
    b"18446744073709551616+",
    b"99999999999999999999999999999999:",
    b"16777217\"",
    b"4294967295:",
    b"<4'void>",
    b"<4'null>",
    b"<18'desc:import-object1+>",
    b"<19'desc:import-promise2+>",
    b"<11'desc:export0+>",
    b"<11'desc:answer0+>",
    b"\xff",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"%",
];

fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..random.below(MUTATIONS_MAX + 1) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(12)).min(bytes.len());
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let piece = random.one(&PIECES);
                bytes.splice(at..at, piece.iter().copied());
            }
            5 => {
                let piece = random.one(&PIECES);
                bytes.splice(at..end, piece.iter().copied());
            }
            6 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            // Another number in the place of one, be it a length, a position or a count.
            7 => {
                let from = bytes[at..].iter().position(u8::is_ascii_digit);
                if let Some(from) = from.map(|offset| at + offset) {
                    let digits = bytes[from..]
                        .iter()
                        .take_while(|b| b.is_ascii_digit())
                        .count();
                    let shift = random.below(64);
                    let number = (random.next() >> shift).to_string();
                    bytes.splice(from..from + digits, number.bytes());
                }
            }
            _ => {
                let other = random.below(bytes.len() + 1);
                let far = (other + random.below(200)).min(bytes.len());
                let part = bytes[other..far].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}

/// Good values to start from.
const VALUES: [&[u8]; 8] = [
    b"[1+2-0+18446744073709551616+tf3\"abc3'sym3:\x00\x01\x02]",
    b"{1\"a3+1\"b1+2\"aa[]10\"0123456789{}}",
    b"D\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"<10'op:deliver<11'desc:export12+>[4'echo9\"hello you]345+<18'desc:import-object346+>>",
    b"<11'desc:tagged3'tag<10'desc:error7\"message>>",
    b"[<4'void><4'null><7'unknown1+[2+]>]",
    b"<15'ocapn-sturdyref<10'ocapn-peer7'tls-rpk4\"abcd{4\"host9\"127.0.0.14\"port4\"1234}>4:swis>",
    b"#1+2+$",
];

fn syrup(random: &mut Random) {
    let mut input = random.one(&VALUES).to_vec();
    if random.below(2) == 0 {
        input.extend_from_slice(random.one(&VALUES));
    }
    mutate(random, &mut input);
    let input = Bytes::from(input);
    let limits = Limits {
        size_max: 1 << 20,
        depth_max: 64,
        values_max: 10_000,
    };
    for mode in [Mode::Strict, Mode::Lenient] {
        let whole = Scanner::new(limits, mode).scan(&input);
        assert_eq!(whole, scan_in_pieces(random, &input, limits, mode));
        let Ok(Some(length)) = whole else {
            let decoded = syrup::decode(&input, limits, mode);
            assert!(decoded.is_err(), "{decoded:?} has no end");
            continue;
        };
        let first = input.slice(..length);
        let Ok(value) = syrup::decode(&first, limits, mode) else {
            continue;
        };
        let Some(encoding) = syrup::encode(&value) else {
            continue;
        };
        // A locator without hints has two forms.
        let two_forms = first.windows(2).any(|pair| pair == b"{}");
        if mode == Mode::Strict && !two_forms {
            assert_eq!(encoding, first, "read {value:?}");
        } else {
            let again = syrup::decode(&encoding, limits, Mode::Strict);
            assert_eq!(again, Ok(value), "from {first:?}");
        }
    }
}

fn scan_in_pieces(
    random: &mut Random,
    input: &[u8],
    limits: Limits,
    mode: Mode,
) -> Result<Option<usize>, syrup::SyrupError> {
    let mut scanner = Scanner::new(limits, mode);
    let mut arrived = 0;
    loop {
        let found = scanner.scan(&input[..arrived])?;
        if found.is_some() || arrived == input.len() {
            return Ok(found);
        }
        arrived = (arrived + 1 + random.below(9)).min(input.len());
    }
}

fn locator(random: &mut Random) {
    let good: [&[u8]; 4] = [
        b"ocapn://abcdef.tls-rpk?host=127.0.0.1&port=1234&host2=%5B::1%5D&port2=5",
        b"ocapn://abcdef.tls-rpk/s/c3dpc3MtbnVtYmVy?host=example.org&port=22",
        b"ocapn://a.b.c.tcp-testing-only",
        b"ocapn://z.websocket/s/AAECAw?url=ws%3A%2F%2F127.0.0.1%3A80",
    ];
    let mut input = random.one(&good).to_vec();
    mutate(random, &mut input);
    let Ok(text) = String::from_utf8(input) else {
        return;
    };
    if let Ok(peer) = text.parse::<PeerLocator>() {
        let again = peer.to_string();
        assert_eq!(again.parse(), Ok(peer.clone()), "{again}");
        let _ = peer.addresses();
    }
    if let Ok(sturdyref) = text.parse::<Sturdyref>() {
        let again = sturdyref.to_uri();
        let parsed: Sturdyref = again.parse().expect("what was written can be read");
        assert!(parsed == sturdyref, "{}", *again);
        let value = Passable::from(sturdyref);
        let bytes = syrup::encode(&value).expect("a sturdyref can be encoded");
        let read = syrup::decode(&bytes, Limits::default(), Mode::Strict);
        assert_eq!(read, Ok(value));
    }
}

/// What byte arrays and the swissnums of texts hold here, and no trace may show.
const SECRET: &str = "c2VjcmV0";

/// Letters of a trace at most, and the one that says that there was more.
const TRACE_MAX: usize = 2_001;

fn trace(random: &mut Random) {
    let secret: [&[u8]; 6] = [
        b"8:c2VjcmV0",
        b"32\"ocapn://a.tls-rpk/s/c2VjcmV0?n=1",
        b"[10'public-key[3'ecc[1'q8:c2VjcmV0]]]",
        b"[7'sig-val[5'eddsa[1'r8:c2VjcmV0][1's8:c2VjcmV0]]]",
        b"<17'desc:sig-envelope<17'desc:handoff-give8:c2VjcmV0>[7'sig-val8:c2VjcmV0]>",
        b"{1\"k8:c2VjcmV0}",
    ];
    let mut message = b"<10'op:deliver<11'desc:export0+>[".to_vec();
    for _ in 0..random.below(40) {
        let from: &[&[u8]] = if random.below(2) == 0 {
            &secret
        } else {
            &VALUES
        };
        message.extend_from_slice(random.one(from));
    }
    message.extend_from_slice(b"]5+<18'desc:import-object6+>>");
    let text = describe(&Bytes::from(message.clone()));
    assert!(!text.contains(SECRET), "{text}");
    assert!(text.chars().count() <= TRACE_MAX, "{text}");
    // What is damaged may show anything, since any letter may then be that of a text.
    mutate(random, &mut message);
    let text = describe(&Bytes::from(message));
    assert!(text.chars().count() <= TRACE_MAX, "{text}");
}

/// Three peers; what 0 sends to 1 is damaged. Peer 2 has sessions with both.
fn world() -> World {
    let mut world = World::new(3);
    for vat in 0..3 {
        world.publish(vat, "echo", echo());
        world.publish(vat, "log", Log::default());
    }
    world
}

fn assert_others_live(world: &mut World) {
    for (at, with) in [(2, 1), (1, 2), (2, 0), (0, 2)] {
        let promise = world.fetch(at, with, "echo").call_raw(vec![7_u64.into()]);
        assert_eq!(world.get(promise), Ok(vec![7_u64.into()].into()));
    }
}

/// Damages what is on its way to one end of a connection.
fn damage(random: &mut Random, world: &mut World, link: usize, side: usize) {
    let mut bytes: Vec<u8> = world.links[link].to[side].drain(..).collect();
    mutate(random, &mut bytes);
    world.links[link].to[side].extend(bytes);
}

fn greeting(random: &mut Random) {
    let mut world = world();
    world.authenticated = random.below(2) == 0;
    world.connect(2, 1);
    world.connect(2, 0);
    let link = world.dial(0, 1);
    let side = random.below(2);
    for _ in 0..1 + random.below(3) {
        world.serve(0);
        world.serve(1);
        damage(random, &mut world, link, side);
        world.arrive(link, 0, random.below(400));
        world.arrive(link, 1, random.below(400));
    }
    world.run();
    assert_others_live(&mut world);
}

fn session(random: &mut Random, mode: Mode) {
    let mut world = world();
    for vat in &world.vats {
        vat.set_mode(mode);
    }
    let link = world.dial(0, 1);
    world.run();
    world.connect(2, 1);
    world.connect(2, 0);
    let side = random.below(2);
    let (near, far) = if side == 1 { (0, 1) } else { (1, 0) };
    let mut held = Vec::new();
    for _ in 0..1 + random.below(12) {
        if world.session(near, far).is_none() {
            break;
        }
        let echo = world.fetch(near, far, "echo");
        let third = world.fetch(near, 2, "echo");
        let (promise, resolver) = world.vats[near].promise();
        match random.below(6) {
            // A handoff, once the third's object has arrived.
            0 => {
                world.run();
                held.push(echo.call_raw(vec![third.into()]));
            }
            1 => held.push(echo.call_raw(vec![promise.into(), 1_u64.into()])),
            2 => held.push(echo.call("one", []).call("two", ["three".into()])),
            3 => held.push(world.fetch(near, far, "log").call_raw(vec![echo.into()])),
            4 => echo.send("send", [Passable::bytes(vec![0; 100])]),
            _ => held.clear(),
        }
        if random.below(2) == 0 {
            resolver.fulfill("late");
        }
        world.serve(near);
        if random.below(3) == 0 {
            damage(random, &mut world, link, side);
        }
        world.arrive(link, side, random.below(500));
        world.serve(far);
        world.arrive(link, 1 - side, random.below(500));
    }
    drop(held);
    world.run();
    assert_others_live(&mut world);
}
