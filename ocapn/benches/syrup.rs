//! What Syrup costs: `cargo bench -p ocapn --bench syrup`.
//!
//! Each figure is the median of many rounds, so that a busy machine spoils few of them.

#![expect(clippy::disallowed_methods, reason = "times are what it is about")]

use std::error::Error;
use std::hint::black_box;
use std::io::{Write, stdout};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use ocapn::Passable;
use ocapn::syrup::{Limits, Mode, Reader, Scanner, SyrupError, Writer, decode, encode};

/// Rounds of one figure, and how often each repeats what is measured.
const ROUNDS: usize = 201;
const REPEATS: u32 = 2_000;

/// The size of the byte arrays that stand for bulk data.
const BULK_BYTES: usize = 4 << 20;

/// What is read from a socket at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A delivery as it is often seen: two arguments, an answer and a resolver; 85 bytes.
const DELIVER: &[u8] =
    b"<10'op:deliver<11'desc:export1234+>[4'echo9\"hello you]45+<18'desc:import-object346+>>";

fn main() -> Result<(), Box<dyn Error>> {
    let deliver = Bytes::from_static(DELIVER);
    let read = || decode(&deliver, Limits::default(), Mode::Strict);
    // Only a session writes descriptors, so what is written has other labels of the same length.
    let like = String::from_utf8(DELIVER.to_vec())?.replace("desc:", "like:");
    let value = decode(&like.into(), Limits::default(), Mode::Strict)?;
    report("bytes of the delivery", deliver.len() as f64, "B")?;
    let mut scanner = Scanner::new(Limits::default(), Mode::Strict);
    report(
        "find its end",
        nanoseconds(REPEATS, || scanner.scan(black_box(&deliver))),
        "ns",
    )?;
    report(
        "decode it",
        nanoseconds(REPEATS, || black_box(read())),
        "ns",
    )?;
    report(
        "encode it",
        nanoseconds(REPEATS, || encode(black_box(&value))),
        "ns",
    )?;
    report(
        "read its tokens",
        nanoseconds(REPEATS, || read_deliver(black_box(&deliver))),
        "ns",
    )?;
    let mut writer = Writer::new();
    let tokens = nanoseconds(REPEATS, || {
        write_deliver(&mut writer);
        writer.truncate(0);
    });
    report("write its tokens", tokens, "ns")?;

    let bulk = Passable::bytes(vec![7; BULK_BYTES]);
    let encoding = encode(&bulk).ok_or("bytes can be encoded")?;
    let gigabytes = |nanoseconds: f64| BULK_BYTES as f64 / nanoseconds;
    let decoding = nanoseconds(1, || arrive(&encoding));
    report("decode bulk bytes", gigabytes(decoding), "GB/s")?;
    let encoding = nanoseconds(1, || encode(black_box(&bulk)));
    report("encode bulk bytes", gigabytes(encoding), "GB/s")?;
    Ok(())
}

/// Reads bytes that arrive in pieces, as a session does.
fn arrive(encoding: &[u8]) -> Option<Passable> {
    let mut scanner = Scanner::new(Limits::default(), Mode::Strict);
    let mut input = BytesMut::new();
    let mut value = None;
    for piece in encoding.chunks(PIECE_BYTES) {
        input.extend_from_slice(piece);
        if let Ok(Some(end)) = scanner.scan(&input) {
            let whole = input.split_to(end).freeze();
            value = decode(&whole, Limits::default(), Mode::Strict).ok();
        }
    }
    value
}

/// Reads what a session wants of a delivery: only the arguments become values.
fn read_deliver(encoding: &Bytes) -> Result<(u64, Vec<Passable>, u64, u64), SyrupError> {
    let mut reader = Reader::new(encoding, Mode::Strict);
    reader.record_of("op:deliver")?;
    reader.record_of("desc:export")?;
    let to = reader.unsigned()?;
    reader.end()?;
    reader.list()?;
    let method = Passable::symbol(reader.symbol()?);
    let text = Passable::from(reader.string()?);
    reader.end()?;
    let answer = reader.unsigned()?;
    reader.record_of("desc:import-object")?;
    let resolver = reader.unsigned()?;
    reader.end()?;
    reader.end()?;
    Ok((to, vec![method, text], answer, resolver))
}

fn write_deliver(writer: &mut Writer) {
    writer.record("op:deliver");
    writer.record("desc:export").unsigned(12).end_record();
    writer.list().symbol("echo").string("hello, world!");
    writer.end_list().unsigned(345);
    writer
        .record("desc:import-object")
        .unsigned(346)
        .end_record();
    writer.end_record();
    black_box(writer);
}

/// Returns the median time of one call.
fn nanoseconds<R>(repeats: u32, mut call: impl FnMut() -> R) -> f64 {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..repeats {
                black_box(call());
            }
            start.elapsed()
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2].as_nanos() as f64 / f64::from(repeats)
}

fn report(what: &str, figure: f64, unit: &str) -> Result<(), std::io::Error> {
    writeln!(stdout(), "{what:<24} {figure:>10.1} {unit}")
}
