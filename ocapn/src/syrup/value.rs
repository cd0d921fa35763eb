//! Values of the data model as Syrup.

use std::cell::Cell;
use std::cmp::Ordering;

use bytes::Bytes;

use super::{Limits, Mode, Reader, Scanner, SyrupError, SyrupErrorKind as Kind, Token, Writer};
use crate::captp::promise::Reference;
use crate::locator::{PeerLocator, Sturdyref, Swissnum};
use crate::passable::{ErrorValue, Opaque, Passable, Struct, Symbol, Tagged, canonical_key_order};

/// Decodes one value and nothing after it. Descriptors of live references, which mean something
/// in a session only, stay [`Passable::Opaque`]. Byte arrays are parts of `bytes`, not copies.
/// Whatever the limits, nothing is deeper than [`DECODE_DEPTH_MAX`].
pub fn decode(bytes: &Bytes, mut limits: Limits, mode: Mode) -> Result<Passable, SyrupError> {
    limits.depth_max = limits.depth_max.min(DECODE_DEPTH_MAX);
    // Nearly all is right and within the limits, so that one pass is enough. What is not is looked
    // at once more, to say where.
    if mode == Mode::Strict && bytes.len() <= limits.size_max {
        let mut reader = Reader::new(bytes, mode);
        let bounds = Some(Bounds {
            depth: limits.depth_max,
            values: limits.values_max,
        });
        if let Ok(value) = read_within(&mut reader, &mut Nowhere, bounds)
            && reader.offset() == bytes.len()
        {
            return Ok(value);
        }
    }
    let mut scanner = Scanner::new(limits, mode);
    let end = scanner
        .scan(bytes)?
        .ok_or_else(|| Kind::End.at(bytes.len()))?;
    if end != bytes.len() {
        return Err(Kind::Trailing.at(end));
    }
    read_value(&mut Reader::new(bytes, mode), &mut Nowhere)
}

/// Encodes one value in the canonical form; `None` if it holds a live reference, which has a
/// form in a session only, or a record that would pass for one, or is nested deeper than
/// [`ENCODE_DEPTH_MAX`].
pub fn encode(value: &Passable) -> Option<Bytes> {
    let mut writer = Writer::new();
    write_value(&mut writer, value, &mut Nowhere)?;
    Some(writer.take().freeze())
}

/// Containers inside each other that can be written: as many as fit any stack.
pub const ENCODE_DEPTH_MAX: usize = 128;

/// Containers inside each other that a value which was read can have, whatever the limits. Reading
/// does not recurse, but to drop, to compare and to print a value does: so many fit any stack.
pub const DECODE_DEPTH_MAX: usize = 512;

/// Labels of records that stand for live references in a session.
const LIVE: [&str; 5] = [
    "desc:import-object",
    "desc:import-promise",
    "desc:export",
    "desc:answer",
    "desc:sig-envelope",
];

/// Makes references of the records that stand for them.
pub(crate) trait Refer {
    /// Reads the record at the reader if it stands for a reference; `None`, with the reader
    /// where it was, if it does not. Called at the start of every record.
    fn refer(
        &mut self,
        label: &str,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Passable>, SyrupError>;

    /// Returns a byte array as it is kept: a part of a message of `size` bytes keeps the whole.
    fn keep(&mut self, part: Bytes, size: usize) -> Bytes;

    /// Returns which orders of a dictionary's keys are right.
    fn orders(&self) -> Orders;
}

/// Orders of keys, of which one dictionary has to keep to one: that of the encoding, which is the
/// canonical one, and that of the text itself, which Endo writes and alone takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Orders {
    pub(crate) encoding: bool,
    pub(crate) text: bool,
}

impl Orders {
    /// What is taken in a session.
    pub(crate) const OF_SESSION: Self = Self {
        encoding: true,
        text: true,
    };

    /// Returns those that `next` after `last` leaves; `None` if there are none.
    fn after(self, last: &str, next: &str) -> Option<Self> {
        let left = Self {
            encoding: self.encoding && canonical_key_order(last, next).is_lt(),
            text: self.text && text_order(last, next).is_lt(),
        };
        (left.encoding || left.text).then_some(left)
    }
}

/// Compares two keys as JavaScript does.
fn text_order(a: &str, b: &str) -> Ordering {
    a.encode_utf16().cmp(b.encode_utf16())
}

/// Writes what stands for a reference.
pub(crate) trait Describe {
    /// `None` if it cannot be described here.
    fn describe(&mut self, reference: &Reference, writer: &mut Writer) -> Option<()>;

    /// Returns whether keys are written in the order of their text; otherwise in the canonical
    /// order.
    fn sorts_by_text(&self) -> bool;
}

struct Nowhere;

impl Refer for Nowhere {
    fn refer(&mut self, _: &str, _: &mut Reader<'_>) -> Result<Option<Passable>, SyrupError> {
        Ok(None)
    }

    fn keep(&mut self, part: Bytes, _: usize) -> Bytes {
        part
    }

    fn orders(&self) -> Orders {
        Orders {
            encoding: true,
            text: false,
        }
    }
}

impl Describe for Nowhere {
    fn describe(&mut self, _: &Reference, _: &mut Writer) -> Option<()> {
        None
    }

    fn sorts_by_text(&self) -> bool {
        false
    }
}

/// A container that is not complete.
#[derive(Clone, Copy)]
struct Open {
    kind: Container,
    /// Where its values start among those read. A dictionary's keys and values take turns.
    start: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Container {
    List,
    Record,
    /// With the orders that its keys may still be in.
    Dict(Orders),
}

impl Open {
    fn closer(&self) -> u8 {
        match self.kind {
            Container::List => b']',
            Container::Record => b'>',
            Container::Dict(_) => b'}',
        }
    }
}

/// What is read and not complete.
#[derive(Default)]
struct Stack {
    values: Vec<Passable>,
    open: Vec<Open>,
}

/// Room that is kept for the next value: most have less in them.
const ROOM_MAX: usize = 64;

thread_local! {
    /// The room of the value that was read last.
    static ROOM: Cell<Stack> = const { Cell::new(Stack { values: Vec::new(), open: Vec::new() }) };
}

/// What is left of the limits for a value that no scanner has seen.
#[derive(Clone, Copy)]
struct Bounds {
    depth: usize,
    values: usize,
}

/// Reads one value that a scanner has seen, whatever its depth, without recursion.
pub(crate) fn read_value(
    reader: &mut Reader<'_>,
    refer: &mut impl Refer,
) -> Result<Passable, SyrupError> {
    read_within(reader, refer, None)
}

fn read_within(
    reader: &mut Reader<'_>,
    refer: &mut impl Refer,
    bounds: Option<Bounds>,
) -> Result<Passable, SyrupError> {
    let mut stack = ROOM.take();
    let value = stack.read(reader, refer, bounds);
    stack.values.clear();
    stack.open.clear();
    if stack.values.capacity() <= ROOM_MAX && stack.open.capacity() <= ROOM_MAX {
        ROOM.set(stack);
    }
    value
}

impl Stack {
    fn read(
        &mut self,
        reader: &mut Reader<'_>,
        refer: &mut impl Refer,
        bounds: Option<Bounds>,
    ) -> Result<Passable, SyrupError> {
        let Self { values, open } = self;
        let mut seen = 0_usize;
        loop {
            let at = reader.offset();
            // Ends do not count, so this counts some too many, and labels are counted below.
            if let Some(bounds) = bounds
                && (seen >= bounds.values || open.len() > bounds.depth)
            {
                return Err(Kind::Count.at(at));
            }
            seen += 1;
            // Only a string can be a key.
            if let Some(dict) = open.last_mut()
                && let Container::Dict(orders) = &mut dict.kind
                && (values.len() - dict.start).is_multiple_of(2)
                && reader.peek()? != b'}'
            {
                let text = reader.string()?;
                if reader.mode() == Mode::Strict
                    && let [.., Passable::String(last), _] = &values[dict.start..]
                {
                    let left = orders.after(last, text);
                    *orders = left.ok_or_else(|| Kind::Canonical.at(at))?;
                }
                values.push(Passable::String(text.to_owned()));
                continue;
            }
            // Every value is made where it stays: moving one about costs more than reading it.
            let start = values.len();
            match reader.token() {
                Err(error) => return Err(error),
                Ok(Token::Bool(b)) => values.push(Passable::Bool(b)),
                Ok(Token::Int(n)) => values.push(Passable::Int(n)),
                Ok(Token::Float(x)) => values.push(Passable::Float64(x)),
                Ok(Token::String(text)) => values.push(Passable::String(text.to_owned())),
                Ok(Token::Symbol(text)) => values.push(Passable::Symbol(Symbol::new(text))),
                Ok(Token::Bytes(bytes)) => {
                    values.push(Passable::Bytes(refer.keep(bytes, reader.size())));
                }
                Ok(Token::List) => {
                    let kind = Container::List;
                    open.push(Open { kind, start });
                    continue;
                }
                Ok(Token::Dict) => {
                    let kind = Container::Dict(refer.orders());
                    open.push(Open { kind, start });
                    continue;
                }
                Ok(Token::Record) => {
                    seen += 1;
                    if !known_record(reader, at, refer, values, bounds.is_some())? {
                        let kind = Container::Record;
                        open.push(Open { kind, start });
                        continue;
                    }
                }
                Ok(Token::End) => {
                    let closed = open.pop().filter(|open| {
                        // A scanner has seen to it, and knows more forms.
                        bounds.is_none() || reader.last_byte() == Some(open.closer())
                    });
                    let closed = closed.and_then(|open| close(&open, values));
                    closed.ok_or_else(|| Kind::Byte.at(at))?;
                }
            }
            if open.is_empty() {
                return values.pop().ok_or_else(|| Kind::Byte.at(at));
            }
        }
    }
}

/// Puts a complete container in the place of its values; `None` if they do not make one.
fn close(open: &Open, values: &mut Vec<Passable>) -> Option<()> {
    match open.kind {
        Container::List => {
            let inside = values.split_off(open.start);
            values.push(Passable::List(inside));
        }
        Container::Record => {
            let inside = Opaque::of(values.split_off(open.start))?;
            values.push(record(inside));
        }
        Container::Dict(_) => {
            let mut inside = values.drain(open.start..);
            let mut entries = Vec::with_capacity(inside.len() / 2);
            while let Some(key) = inside.next() {
                let Passable::String(key) = key else {
                    return None;
                };
                entries.push((key, inside.next()?));
            }
            drop(inside);
            values.push(Passable::Struct(Struct::from_iter(entries)));
        }
    }
    Some(())
}

/// Reads the rest of a record that is more than its fields to the end of `values`, and returns
/// whether it was one. Otherwise reads the label, if it is a symbol.
fn known_record(
    reader: &mut Reader<'_>,
    start: usize,
    refer: &mut impl Refer,
    values: &mut Vec<Passable>,
    is_bounded: bool,
) -> Result<bool, SyrupError> {
    let after = reader.offset();
    let Ok(label) = reader.symbol() else {
        reader.rewind(after);
        return Ok(false);
    };
    let fields = reader.offset();
    if label == "ocapn-sturdyref" {
        if is_bounded {
            // What is in it is not counted here.
            return Err(Kind::Count.at(start));
        }
        let sturdyref = (|| {
            let peer = PeerLocator::read(reader, refer.orders())?;
            let swissnum = Swissnum::new(reader.bytes()?);
            reader.end()?;
            Ok::<_, SyrupError>(Sturdyref { peer, swissnum })
        })();
        if let Ok(sturdyref) = sturdyref {
            values.push(sturdyref.into());
            return Ok(true);
        }
    } else if label.starts_with("desc:") {
        reader.rewind(start);
        if let Some(value) = refer.refer(label, reader)? {
            values.push(value);
            return Ok(true);
        }
    }
    reader.rewind(fields);
    values.push(Passable::Symbol(Symbol::new(label)));
    Ok(false)
}

/// Returns the value that a complete record stands for.
fn record(record: Opaque) -> Passable {
    match (record.label().as_symbol(), record.fields()) {
        (Some("void"), []) => Passable::Undefined,
        (Some("null"), []) => Passable::Null,
        (Some("desc:tagged"), [Passable::Symbol(_), _]) => {
            let mut values = record.into_values();
            match (values.pop(), values.pop()) {
                (Some(value), Some(Passable::Symbol(tag))) => {
                    Passable::Tagged(Box::new(Tagged { tag, value }))
                }
                _ => Passable::Undefined,
            }
        }
        (Some("desc:error"), [Passable::String(message)]) => {
            Passable::Error(Box::new(ErrorValue {
                message: message.clone(),
            }))
        }
        _ => Passable::Opaque(record),
    }
}

/// Writes one value; `None` if it cannot be written, and then the output holds a part of it.
pub(crate) fn write_value(
    writer: &mut Writer,
    value: &Passable,
    describe: &mut impl Describe,
) -> Option<()> {
    write_nested(writer, value, describe, 0)
}

fn write_nested(
    writer: &mut Writer,
    value: &Passable,
    describe: &mut impl Describe,
    depth: usize,
) -> Option<()> {
    if depth > ENCODE_DEPTH_MAX {
        return None;
    }
    let deeper = depth + 1;
    match value {
        Passable::Undefined => writer.record("void").end_record(),
        Passable::Null => writer.record("null").end_record(),
        Passable::Bool(b) => writer.bool(*b),
        Passable::Int(n) => writer.int(n),
        Passable::Float64(x) => writer.float(*x),
        Passable::String(text) => writer.string(text),
        Passable::Symbol(symbol) => writer.symbol(symbol.as_str()),
        Passable::Bytes(bytes) => writer.bytes(bytes),
        Passable::List(values) => {
            writer.list();
            for value in values {
                write_nested(writer, value, describe, deeper)?;
            }
            writer.end_list()
        }
        Passable::Struct(entries) => {
            writer.dict();
            let mut entries: Vec<_> = entries.iter().collect();
            if describe.sorts_by_text() {
                entries.sort_by(|(a, _), (b, _)| text_order(a, b));
            }
            for (key, value) in entries {
                writer.string(key);
                write_nested(writer, value, describe, deeper)?;
            }
            writer.end_dict()
        }
        Passable::Tagged(tagged) => {
            writer.record("desc:tagged").symbol(tagged.tag.as_str());
            write_nested(writer, &tagged.value, describe, deeper)?;
            writer.end_record()
        }
        Passable::Error(error) => writer
            .record("desc:error")
            .string(&error.message)
            .end_record(),
        Passable::Sturdyref(sturdyref) => {
            writer.record("ocapn-sturdyref");
            sturdyref.peer.write(writer, describe.sorts_by_text());
            writer.bytes(sturdyref.swissnum.reveal()).end_record()
        }
        Passable::Reference(reference) => return describe.describe(reference, writer),
        Passable::Opaque(opaque) => {
            // A record made by hand must not pass for a live reference.
            if opaque
                .label()
                .as_symbol()
                .is_some_and(|label| LIVE.contains(&label))
            {
                return None;
            }
            writer.raw(b"<");
            for value in opaque.values() {
                write_nested(writer, value, describe, deeper)?;
            }
            writer.end_record()
        }
    };
    Some(())
}

impl PeerLocator {
    /// Reads `<ocapn-peer transport designator hints>`.
    pub(crate) fn read(reader: &mut Reader<'_>, mut orders: Orders) -> Result<Self, SyrupError> {
        reader.record_of("ocapn-peer")?;
        let transport = reader.symbol()?.to_owned();
        let mut peer = Self::new(transport, reader.string()?);
        if !reader.is_false()? {
            let start = reader.offset();
            if reader.token()? != Token::Dict {
                return Err(Kind::Kind.at(start));
            }
            let mut last: Option<&str> = None;
            while !reader.at_end()? {
                let at = reader.offset();
                let name = reader.string()?;
                if reader.mode() == Mode::Strict
                    && let Some(last) = last
                {
                    let left = orders.after(last, name);
                    orders = left.ok_or_else(|| Kind::Canonical.at(at))?;
                }
                last = Some(name);
                if reader.mode() == Mode::Lenient && !reader.is_string_next() {
                    // Nobody can use it; and of two with one name the last counts.
                    reader.raw()?;
                    peer.hints.remove(name);
                    continue;
                }
                peer.hints
                    .insert(name.to_owned(), reader.string()?.to_owned());
            }
        }
        reader.end()?;
        Ok(peer)
    }

    /// Writes `<ocapn-peer transport designator hints>`, its hints in the order of their text or
    /// in the canonical one.
    pub(crate) fn write(&self, writer: &mut Writer, by_text: bool) {
        writer
            .record("ocapn-peer")
            .symbol(&self.transport)
            .string(&self.designator);
        if self.hints.is_empty() {
            writer.bool(false);
        } else {
            let mut hints: Vec<_> = self.hints.iter().collect();
            hints.sort_by(|(a, _), (b, _)| match by_text {
                true => text_order(a, b),
                false => canonical_key_order(a, b),
            });
            writer.dict();
            for (name, value) in hints {
                writer.string(name).string(value);
            }
            writer.end_dict();
        }
        writer.end_record();
    }
}
