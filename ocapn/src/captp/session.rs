//! The state of one session, from the first byte to the last.

use std::sync::{Arc, Weak};
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::SessionId;
use super::crypto::{PublicKey, Secrets, SessionKeys, session_id};
use super::message::{Decoder, Fault, Gift, Hello, Message, OWN_MEMORY_MIN, VERSION, my_location};
use super::tables::Tables;
use super::usage::{Charge, Usage};
use crate::locator::{PeerId, PeerLocator};
use crate::syrup::{self, Mode, Scanner, Writer};
use crate::vat::{Dialect, Direction, Greet, Limits, Opening, Output, Shared};

/// Bytes of a start-session: ten times what one with a long locator has. Until it came, anybody
/// may be at the other end of each of many connections.
pub const GREETING_SIZE_MAX: usize = 16 << 10;

/// Bytes kept of what follows a start-session that has to wait for the end of another session:
/// room for some hundred calls of a peer that came back.
pub(crate) const CONTESTED_INPUT_MAX: usize = 64 << 10;

/// Positions in one GC operation, so that it stays small beside any limit on messages.
const GC_POSITIONS_MAX: usize = 10_000;

pub(crate) struct Session {
    pub(crate) direction: Direction,
    /// What the netlayer knows of the other end.
    pub(crate) proven: Option<PeerId>,
    dialect: Dialect,
    pub(crate) keys: Arc<SessionKeys>,
    pub(crate) secrets: Secrets,
    /// Our start-session, until it is sent.
    greeting: Option<Bytes>,
    /// Whether hellos that crossed ours would have arrived.
    pub(crate) settled: bool,
    pub(crate) phase: Phase,
    /// The peer's greeting, while another session stands in its way.
    pub(crate) contested: Option<Box<Hello>>,
    pub(crate) mode: Mode,
    pub(crate) tables: Tables,
    input: BytesMut,
    scanner: Scanner,
    pub(crate) output: Outbox,
    gc_exports: Vec<(u64, u64)>,
    gc_answers: Vec<u64>,
    /// Certificates in the message just read.
    pub(crate) gifts: Vec<Gift>,
    pub(crate) limits: Limits,
    /// What is kept for the peer.
    pub(crate) usage: Arc<Usage>,
}

/// Where a session is, by what it waits for.
pub(crate) enum Phase {
    /// The peer's start-session.
    Greeting,
    /// The signature in the peer's start-session to be checked, outside of the vat's lock.
    Checking,
    /// Messages.
    Up(Box<Link>),
    /// Its last bytes to be taken.
    Over(String),
}

/// What is known of the peer once a session is up.
pub(crate) struct Link {
    pub(crate) peer: Arc<PeerId>,
    pub(crate) key: PublicKey,
    pub(crate) location_encoding: Bytes,
    /// The id of the session, the same at both ends.
    pub(crate) id: [u8; 32],
    /// The count of our next withdrawal.
    pub(crate) handoffs: u64,
}

#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) writer: Writer,
    pub(crate) ends: Vec<usize>,
    /// Bytes of the answers among them.
    pub(crate) answers: usize,
    /// What the messages cost that other peers sent by way of us.
    pub(crate) charges: Vec<Charge>,
    pub(crate) waker: Option<Waker>,
}

impl Session {
    /// Returns a session that waits for its peer; makes the keys and the signature it needs.
    pub(crate) fn new(
        id: SessionId,
        vat: Weak<Shared>,
        opening: Opening,
        location: &PeerLocator,
        limits: Limits,
        mode: Mode,
    ) -> Self {
        let mut secrets = Secrets::new(opening.seed);
        let keys = Arc::new(SessionKeys::new(&secrets.next()));
        let usage = Usage::new(id, &limits);
        let greeting_size_max = limits.message_size_max.min(GREETING_SIZE_MAX);
        let mut session = Self {
            greeting: Some(greeting(&keys, location)),
            direction: match opening.direction {
                Direction::Inbound => Direction::Inbound,
                // Where the peer was dialled is of no use any more.
                Direction::Outbound(to) => {
                    Direction::Outbound(PeerLocator::new(to.transport, to.designator))
                }
            },
            proven: opening.peer,
            dialect: opening.dialect,
            keys,
            secrets,
            settled: false,
            phase: Phase::Greeting,
            contested: None,
            mode,
            tables: Tables::new(id, vat, Arc::clone(&usage)),
            input: BytesMut::new(),
            scanner: scanner(&limits, greeting_size_max, mode),
            output: Outbox::default(),
            gc_exports: Vec::new(),
            gc_answers: Vec::new(),
            gifts: Vec::new(),
            limits,
            usage,
        };
        if opening.greet == Greet::AtOnce {
            session.greet();
        }
        session
    }

    /// Sends our start-session, once.
    pub(crate) fn greet(&mut self) {
        if let Some(greeting) = self.greeting.take() {
            self.output.writer.raw(&greeting);
            self.end_message();
        }
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        match &self.phase {
            Phase::Up(link) => Some(link),
            _ => None,
        }
    }

    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.phase {
            Phase::Up(link) => Some(link),
            _ => None,
        }
    }

    /// Returns whether we dialled the peer so lately that its own dial may have crossed ours.
    pub(crate) fn is_ours_unsettled(&self) -> bool {
        !self.settled && matches!(self.direction, Direction::Outbound(_))
    }

    /// Returns whether the peer dialled us so lately that our own dial may have crossed its.
    pub(crate) fn is_theirs_unsettled(&self) -> bool {
        !self.settled && matches!(self.direction, Direction::Inbound)
    }

    /// Ends a session that was not begun yet, without a word to the peer.
    pub(crate) fn give_up(&mut self, reason: &str) {
        self.output = Outbox::default();
        self.phase = Phase::Over(reason.to_owned());
    }

    /// Returns how many bytes wait to be sent, with what is to be given back.
    pub(crate) fn backlog(&self) -> usize {
        self.output.writer.len() + size_of_val(&self.gc_exports[..])
    }

    /// Returns how many of them the peer had us write by what it sent.
    pub(crate) fn unsent_answers(&self) -> usize {
        self.output.answers + size_of_val(&self.gc_exports[..])
    }

    /// Returns how many bytes arrived that were not read yet.
    pub(crate) fn input_len(&self) -> usize {
        self.input.len()
    }

    /// Keeps bytes that arrived.
    pub(crate) fn take_input(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// Returns the next whole message.
    pub(crate) fn frame(&mut self) -> Result<Option<Bytes>, Fault> {
        let end = self.scanner.scan(&self.input);
        let end = end.map_err(|error| format!("malformed message: {error}"))?;
        if end.is_none() && self.input.is_empty() {
            // A session that is silent keeps no room for what may come.
            self.input = BytesMut::new();
        }
        Ok(end.map(|end| {
            if end < OWN_MEMORY_MIN {
                return self.input.split_to(end).freeze();
            }
            // Whichever is shorter is copied, so that no byte is copied over and over.
            if self.input.len() - end > end {
                return Bytes::copy_from_slice(&self.input.split_to(end));
            }
            let rest = BytesMut::from(&self.input[end..]);
            let mut message = std::mem::replace(&mut self.input, rest);
            message.truncate(end);
            message.freeze()
        }))
    }

    pub(crate) fn read_message(
        &mut self,
        frame: &Bytes,
        vat: &Weak<Shared>,
    ) -> Result<Message, Fault> {
        let decoder = Decoder {
            tables: &mut self.tables,
            vat,
            imports_max: self.limits.imports_max,
            mode: self.mode,
            gifts: &mut self.gifts,
            fault: None,
        };
        decoder.read(frame)
    }

    /// Brings the session up with a peer that greeted.
    pub(crate) fn start(&mut self, hello: Hello) -> Arc<PeerId> {
        self.greet();
        self.scanner = scanner(&self.limits, self.limits.message_size_max, self.mode);
        let known = self.proven.as_ref();
        let peer = Arc::new(PeerId {
            transport: hello.location.transport,
            designator: hello.location.designator,
            authenticated: known.is_some_and(|peer| peer.authenticated),
            address: known.and_then(|peer| peer.address),
        });
        self.phase = Phase::Up(Box::new(Link {
            peer: Arc::clone(&peer),
            id: session_id(&self.keys.public.side, &hello.key.side),
            key: hello.key,
            // A part of the message would keep the whole of it.
            location_encoding: Bytes::copy_from_slice(&hello.location_encoding),
            handoffs: 0,
        }));
        peer
    }

    /// Ends one written message.
    pub(crate) fn end_message(&mut self) {
        self.output.ends.push(self.output.writer.len());
    }

    /// Writes the start of a delivery up to its arguments.
    pub(crate) fn write_deliver_start(writer: &mut Writer, dialect: Dialect, only: bool) {
        let label = match dialect {
            Dialect::D1 if only => "op:deliver-only",
            _ => "op:deliver",
        };
        writer.record(label);
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(crate) fn write_abort(&mut self, reason: &str) {
        self.output
            .writer
            .record("op:abort")
            .string(reason)
            .end_record();
        self.end_message();
    }

    pub(crate) fn collect_export(&mut self, position: u64, received: u64) {
        self.gc_exports.push((position, received));
    }

    pub(crate) fn collect_answer(&mut self, position: u64) {
        self.gc_answers.push(position);
    }

    /// Takes what is to be sent, what was collected included.
    pub(crate) fn take_output(&mut self) -> Option<Output> {
        if matches!(self.phase, Phase::Up(_)) {
            self.write_collected();
        }
        if self.output.ends.is_empty() {
            // A session that is silent keeps no room for what may be written.
            self.output.writer = Writer::new();
            return None;
        }
        let ends = std::mem::take(&mut self.output.ends);
        self.output.answers = 0;
        self.output.charges.clear();
        Some(Output {
            bytes: self.output.writer.take().freeze(),
            ends,
        })
    }

    fn write_collected(&mut self) {
        let (exports, answers) = match self.dialect {
            Dialect::D1 => ("op:gc-export", "op:gc-answer"),
            Dialect::D2 => ("op:gc-exports", "op:gc-answers"),
        };
        let all = std::mem::take(&mut self.gc_answers);
        for some in all.chunks(GC_POSITIONS_MAX) {
            let writer = &mut self.output.writer;
            writer.record(answers).list();
            for position in some {
                writer.unsigned(*position);
            }
            writer.end_list().end_record();
            self.end_message();
        }
        let all = std::mem::take(&mut self.gc_exports);
        for some in all.chunks(GC_POSITIONS_MAX) {
            let writer = &mut self.output.writer;
            writer.record(exports).list();
            for (position, _) in some {
                writer.unsigned(*position);
            }
            writer.end_list().list();
            for (_, received) in some {
                writer.unsigned(*received);
            }
            writer.end_list().end_record();
            self.end_message();
        }
    }
}

fn scanner(limits: &Limits, size_max: usize, mode: Mode) -> Scanner {
    let limits = syrup::Limits {
        size_max,
        depth_max: limits.depth_max.min(syrup::DECODE_DEPTH_MAX),
        values_max: limits.values_max,
    };
    Scanner::new(limits, mode)
}

/// Returns the start-session of the side with these keys.
fn greeting(keys: &SessionKeys, location: &PeerLocator) -> Bytes {
    let mut encoding = Writer::new();
    location.write(&mut encoding, true);
    let location = encoding.take();
    let mut writer = Writer::new();
    writer
        .record("op:start-session")
        .string(VERSION)
        .raw(&keys.public.encoding())
        .raw(&location);
    keys.sign(&my_location(&location), &mut writer);
    writer.end_record();
    writer.take().freeze()
}
