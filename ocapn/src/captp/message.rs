//! The operations of CapTP: reading what a peer sent.

use bytes::Bytes;

use super::crypto::{Envelope, PublicKey, read_signature};
use super::handoff;
use super::promise::{Node, Part, Reference, Route};
use super::tables::Tables;
use crate::captp::broken::Broken;
use crate::locator::PeerLocator;
use crate::passable::{Opaque, Passable, Symbol};
use crate::syrup::{
    Mode, Orders, Reader, Refer, SyrupError, SyrupErrorKind as Kind, Token, read_value,
};

/// The one version of CapTP there is.
pub(crate) const VERSION: &str = "1.0";

/// Messages from this size on have memory of their own, of which a byte array may stay a part.
/// Smaller ones share theirs, so that a few bytes of one would keep many others.
pub(crate) const OWN_MEMORY_MIN: usize = 64 << 10;

/// Bytes of the label of an unknown operation that are told.
const LABEL_BYTES_MAX: usize = 80;

/// Why a session must end, in words that the peer may read.
pub(crate) type Fault = String;

/// A peer's start-session, its signature verified.
pub(crate) struct Hello {
    pub(crate) key: PublicKey,
    pub(crate) location: PeerLocator,
    /// The location as it came, to be named in certificates byte for byte.
    pub(crate) location_encoding: Bytes,
}

/// What a peer asks for once the session is up.
pub(crate) enum Message {
    Deliver {
        to: Reference,
        args: Vec<Passable>,
        answer: Option<u64>,
        resolver: Option<Reference>,
    },
    Listen {
        to: Reference,
        listener: Reference,
    },
    Take {
        from: Reference,
        part: Part,
        answer: u64,
    },
    Abort(String),
    GcExports(Vec<(u64, u64)>),
    GcAnswers(Vec<u64>),
    /// An operation with a label that means nothing here.
    Unknown(String),
}

/// A handoff certificate found in a message, and the promise that stands for the gift.
pub(crate) struct Gift {
    pub(crate) envelope: Envelope,
    pub(crate) promise: Reference,
}

/// What is read before a session is up.
pub(crate) enum Greeting {
    Hello(Box<Hello>),
    Abort(String),
}

/// Returns the bytes that a location's signature covers.
pub(crate) fn my_location(location: &[u8]) -> Vec<u8> {
    [b"<11'my-location", location, b">"].concat()
}

/// Reads the first message of a peer.
pub(crate) fn read_greeting(frame: &Bytes, mode: Mode) -> Result<Greeting, Fault> {
    let mut reader = Reader::new(frame, mode);
    let wrong = |error: SyrupError| format!("malformed start-session: {error}");
    match reader.record().map_err(wrong)? {
        "op:abort" => return Ok(Greeting::Abort(read_reason(&mut reader).map_err(wrong)?)),
        "op:start-session" => {}
        _ => return Err("expected op:start-session".into()),
    }
    if reader.string().map_err(wrong)? != VERSION {
        return Err(format!("this peer speaks CapTP {VERSION}"));
    }
    let mut rest = || {
        let key = PublicKey::read(&mut reader)?;
        let start = reader.offset();
        let location_encoding = reader.raw()?;
        reader.rewind(start);
        let location = PeerLocator::read(&mut reader, Orders::OF_SESSION)?;
        let signature = read_signature(&mut reader)?;
        reader.end()?;
        Ok((
            Hello {
                key,
                location,
                location_encoding,
            },
            signature,
        ))
    };
    let (hello, signature) = rest().map_err(wrong)?;
    if !hello
        .key
        .verifies(&my_location(&hello.location_encoding), &signature)
    {
        return Err("invalid location signature".into());
    }
    Ok(Greeting::Hello(Box::new(hello)))
}

fn read_reason(reader: &mut Reader<'_>) -> Result<String, SyrupError> {
    let reason = reader.string()?.to_owned();
    reader.end()?;
    Ok(reason)
}

/// Reads messages of a session that is up.
pub(crate) struct Decoder<'a> {
    pub(crate) tables: &'a mut Tables,
    pub(crate) vat: &'a std::sync::Weak<crate::vat::Shared>,
    pub(crate) imports_max: usize,
    pub(crate) mode: Mode,
    pub(crate) gifts: &'a mut Vec<Gift>,
    /// Set with an error whose reason is not one of Syrup.
    pub(crate) fault: Option<Fault>,
}

impl Decoder<'_> {
    pub(crate) fn read(mut self, frame: &Bytes) -> Result<Message, Fault> {
        let mut reader = Reader::new(frame, self.mode);
        let label = reader.record().unwrap_or_default();
        self.message(label, &mut reader).map_err(|error| {
            self.fault
                .take()
                .unwrap_or_else(|| format!("malformed {label}: {error}"))
        })
    }

    fn message(&mut self, label: &str, reader: &mut Reader<'_>) -> Result<Message, SyrupError> {
        let message = match label {
            "op:deliver" => Message::Deliver {
                to: self.target(reader)?,
                args: self.args(reader)?,
                answer: match reader.is_false()? {
                    true => None,
                    false => Some(reader.unsigned()?),
                },
                resolver: match reader.is_false()? {
                    true => None,
                    false => Some(self.listener(reader)?),
                },
            },
            "op:deliver-only" => Message::Deliver {
                to: self.target(reader)?,
                args: self.args(reader)?,
                answer: None,
                resolver: None,
            },
            "op:listen" => {
                let message = Message::Listen {
                    to: self.target(reader)?,
                    listener: self.listener(reader)?,
                };
                // Whether partial answers are wanted: the drafts dropped the field, peers did
                // not.
                if matches!(reader.peek()?, b't' | b'f') {
                    reader.token()?;
                }
                message
            }
            "op:get" => {
                let from = self.target(reader)?;
                let part = Part::Field(reader.string()?.to_owned());
                Message::Take {
                    from,
                    part,
                    answer: reader.unsigned()?,
                }
            }
            "op:index" => {
                let from = self.target(reader)?;
                let part = Part::Index(index(reader)?);
                Message::Take {
                    from,
                    part,
                    answer: reader.unsigned()?,
                }
            }
            "op:untag" => {
                let from = self.target(reader)?;
                // The draft says a string, the tag itself is a symbol.
                let part = match read_value(reader, self)? {
                    Passable::String(tag) => Part::Untag(Symbol::new(&tag)),
                    Passable::Symbol(tag) => Part::Untag(tag),
                    _ => return Err(reader.error(Kind::Kind)),
                };
                Message::Take {
                    from,
                    part,
                    answer: reader.unsigned()?,
                }
            }
            "op:abort" => return Ok(Message::Abort(read_reason(reader)?)),
            "op:gc-exports" | "op:gc-export" => {
                let (positions, deltas) = (numbers(reader)?, numbers(reader)?);
                if positions.len() != deltas.len() {
                    return Err(reader.error(Kind::Kind));
                }
                Message::GcExports(positions.into_iter().zip(deltas).collect())
            }
            "op:gc-answers" | "op:gc-answer" => Message::GcAnswers(numbers(reader)?),
            "op:start-session" => return Err(self.fault(reader, "second op:start-session")),
            "" => return Err(self.fault(reader, "not an operation")),
            unknown => {
                // What it mentions counts all the same, and is given back.
                while !reader.at_end()? {
                    read_value(reader, self)?;
                }
                self.gifts.clear();
                let shown = unknown.floor_char_boundary(LABEL_BYTES_MAX);
                return Ok(Message::Unknown(unknown[..shown].to_owned()));
            }
        };
        reader.end()?;
        Ok(message)
    }

    fn fault(&mut self, reader: &Reader<'_>, reason: impl Into<Fault>) -> SyrupError {
        self.fault = Some(reason.into());
        reader.error(Kind::Kind)
    }

    /// Reads whom a message is for.
    fn target(&mut self, reader: &mut Reader<'_>) -> Result<Reference, SyrupError> {
        let label = reader.record()?;
        let position = reader.unsigned()?;
        reader.end()?;
        self.ours(label, position, reader)
    }

    /// Returns the export or the answer of ours at a position.
    fn ours(
        &mut self,
        label: &str,
        position: u64,
        reader: &Reader<'_>,
    ) -> Result<Reference, SyrupError> {
        let found = match label {
            "desc:export" => self.tables.exported(position),
            "desc:answer" => self.tables.answers.get(&position),
            _ => return Err(reader.error(Kind::Kind)),
        };
        match found.cloned() {
            Some(reference) => Ok(reference),
            None => Err(self.fault(reader, format!("nothing at {label} {position}"))),
        }
    }

    /// Reads who is to be told a result: an object or a promise of the peer. One of ours would
    /// be called as if we had done it ourselves.
    fn listener(&mut self, reader: &mut Reader<'_>) -> Result<Reference, SyrupError> {
        let label = reader.record()?;
        if !matches!(label, "desc:import-object" | "desc:import-promise") {
            return Err(reader.error(Kind::Kind));
        }
        let position = reader.unsigned()?;
        reader.end()?;
        self.theirs(label, position, reader)
    }

    /// Returns the object or promise of the peer at a position.
    fn theirs(
        &mut self,
        label: &str,
        position: u64,
        reader: &Reader<'_>,
    ) -> Result<Reference, SyrupError> {
        let promise = label == "desc:import-promise";
        let found = self.tables.import(position, promise, self.imports_max);
        found.ok_or_else(|| self.fault(reader, "too many references"))
    }

    fn args(&mut self, reader: &mut Reader<'_>) -> Result<Vec<Passable>, SyrupError> {
        reader.list()?;
        let mut args = Vec::new();
        while !reader.at_end()? {
            args.push(read_value(reader, self)?);
        }
        Ok(args)
    }

    /// Returns what stands for a signed record: a promise for a gift, or for a receiver's
    /// certificate the certificate itself, which only the bootstrap object understands.
    fn envelope(&mut self, reader: &mut Reader<'_>) -> Result<Passable, SyrupError> {
        let envelope = Envelope::read(reader)?;
        if handoff::holds(&envelope, "desc:handoff-give", self.mode) {
            let promise = Node::promise(self.vat, Route::Here);
            self.gifts.push(Gift {
                envelope,
                promise: promise.clone(),
            });
            return Ok(promise.into());
        }
        let encoding = self.keep(envelope.encoding, reader.size());
        let envelope = Opaque::new(Symbol::new(ENVELOPE), [Passable::Bytes(encoding)]);
        Ok(Passable::Opaque(envelope))
    }
}

const ENVELOPE: &str = "desc:sig-envelope";

/// Returns the encoding of a signed record that came as an argument.
pub(crate) fn as_envelope(value: &Passable) -> Option<&Bytes> {
    match value {
        Passable::Opaque(opaque) if opaque.label().as_symbol() == Some(ENVELOPE) => {
            opaque.fields().first()?.as_bytes()
        }
        _ => None,
    }
}

impl Refer for Decoder<'_> {
    fn refer(
        &mut self,
        label: &str,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Passable>, SyrupError> {
        match label {
            ENVELOPE => return self.envelope(reader).map(Some),
            "desc:import-object" | "desc:import-promise" | "desc:export" | "desc:answer" => {}
            _ => return Ok(None),
        }
        let label = reader.record()?;
        let position = reader.unsigned()?;
        reader.end()?;
        if !label.starts_with("desc:import") {
            return self
                .ours(label, position, reader)
                .map(|found| Some(found.into()));
        }
        self.theirs(label, position, reader)
            .map(|found| Some(found.into()))
    }

    fn keep(&mut self, part: Bytes, size: usize) -> Bytes {
        match size >= OWN_MEMORY_MIN && part.len() >= size / 2 {
            true => part,
            false => Bytes::copy_from_slice(&part),
        }
    }

    fn orders(&self) -> Orders {
        Orders::OF_SESSION
    }
}

/// Reads which item of a list is wanted. An integer that no list can have an item at breaks the
/// answer, as one beyond the end does: it is the caller's mistake, not one of the session.
fn index(reader: &mut Reader<'_>) -> Result<u64, SyrupError> {
    let error = reader.error(Kind::Kind);
    match reader.token()? {
        Token::Int(index) => Ok(index.to_u64().unwrap_or(u64::MAX)),
        _ => Err(error),
    }
}

/// Reads a list of positions, or the one that the oldest peers send.
fn numbers(reader: &mut Reader<'_>) -> Result<Vec<u64>, SyrupError> {
    if reader.peek()? != b'[' {
        return Ok(vec![reader.unsigned()?]);
    }
    reader.list()?;
    let mut numbers = Vec::new();
    while !reader.at_end()? {
        numbers.push(reader.unsigned()?);
    }
    Ok(numbers)
}

/// Returns a promise that is broken because a certificate is not as it must be.
pub(crate) fn refused(reason: &str) -> Broken {
    Broken::new("handoff-refused", reason)
}
