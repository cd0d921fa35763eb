//! Writing messages of ours into their sessions.

use std::sync::{Arc, Mutex};

use super::dispatch::Inner;
use crate::captp::broken::Broken;
use crate::captp::handoff::sign_give;
use crate::captp::promise::{Kind, Node, Part, Reference, Route};
use crate::captp::session::{Phase, Session};
use crate::captp::tables::BOOTSTRAP;
use crate::captp::usage::Charge;
use crate::captp::{Place, SessionId};
use crate::passable::Passable;
use crate::syrup::{Describe, Writer, write_value};

/// Objects of third peers that one message may hand over. Each takes a signature, made under the
/// vat's lock, and a message to the third peer, which a short message of the peer may cause.
const GIVES_MAX: usize = 128;

/// What a position of the peer's is.
#[derive(Clone, Copy)]
pub(super) enum Desc {
    Export,
    Answer,
}

impl Desc {
    /// What the route of a promise leads to.
    pub(super) fn of(route: Route) -> Self {
        match route {
            Route::Answer(_) => Self::Answer,
            Route::Here | Route::Import(_) => Self::Export,
        }
    }

    fn write(self, position: u64, writer: &mut Writer) {
        let label = match self {
            Self::Export => "desc:export",
            Self::Answer => "desc:answer",
        };
        writer.record(label).unsigned(position).end_record();
    }
}

/// The arguments of a message.
pub(super) enum Args {
    Values(Vec<Passable>),
    /// A signed certificate for the bootstrap object.
    Withdraw(bytes::Bytes),
}

impl Inner {
    /// Writes a delivery. With `wants`, returns the promise of the answer, otherwise `None`.
    /// `charge` is that of a message which another peer sent, and lasts until it is sent on.
    pub(super) fn write_deliver(
        &mut self,
        desc: Desc,
        place: Place,
        args: Vec<Passable>,
        wants: bool,
        charge: Option<Charge>,
    ) -> Result<Option<Reference>, Broken> {
        self.write_any(desc, place, &Args::Values(args), wants, charge)
    }

    pub(super) fn write_any(
        &mut self,
        desc: Desc,
        place: Place,
        args: &Args,
        wants: bool,
        charge: Option<Charge>,
    ) -> Result<Option<Reference>, Broken> {
        let severed = || Broken::severed("the session is over");
        // What others send to the peer by way of us must not end its session.
        self.check_backlog(place.session, wants || charge.is_some())?;
        let mut session = self.take(place.session).ok_or_else(severed)?;
        let start = session.output.writer.len();
        // The session is out of its slot, and its writer out of the session, while references
        // in the arguments are described.
        let mut writer = std::mem::take(&mut session.output.writer);
        let written = self.write_message(&mut session, &mut writer, desc, place, args, wants);
        match &written {
            Some(_) => session.tables.keep_mentions(),
            None => {
                writer.truncate(start);
                session.tables.forget_mentions();
            }
        }
        session.output.writer = writer;
        if written.is_some() {
            session.output.charges.extend(charge);
            session.end_message();
            self.wakers.extend(session.output.waker.take());
        }
        self.put_back(place.session, session);
        written.ok_or_else(|| Broken::new("not-sendable", "too deep, or too many references"))
    }

    /// Refuses what is to be written to a session that is over, or whose peer does not read:
    /// what may break at half of what may wait, all else at the whole.
    fn check_backlog(&mut self, id: SessionId, may_break: bool) -> Result<(), Broken> {
        let session = self.session(id);
        let (backlog, most) = session.map_or((0, 0), |session| {
            (session.backlog(), session.limits.output_max)
        });
        if backlog > most {
            self.abort(id, "the peer does not read");
        } else if may_break && backlog > most / 2 {
            let text = "too much waits to be sent to the peer";
            return Err(Broken::new("overloaded", text));
        }
        match self.is_up(id) {
            true => Ok(()),
            false => Err(Broken::severed("the session is over")),
        }
    }

    fn write_message(
        &mut self,
        session: &mut Box<Session>,
        writer: &mut Writer,
        desc: Desc,
        place: Place,
        args: &Args,
        wants: bool,
    ) -> Option<Option<Reference>> {
        let dialect = session.dialect();
        Session::write_deliver_start(writer, dialect, !wants);
        desc.write(place.position, writer);
        writer.list();
        match args {
            Args::Values(values) => {
                let mut gives = 0;
                for value in values {
                    let mut describer = Describer {
                        inner: self,
                        session,
                        id: place.session,
                        gives: &mut gives,
                    };
                    write_value(writer, value, &mut describer)?;
                }
            }
            Args::Withdraw(envelope) => {
                writer.symbol("withdraw-gift").raw(envelope);
            }
        }
        writer.end_list();
        if !wants {
            if dialect != super::Dialect::D1 {
                writer.bool(false).bool(false);
            }
            writer.end_record();
            return Some(None);
        }
        // A question that is dropped unsent would be given back to a peer that never saw it.
        if session.tables.is_full(session.limits.exports_max) {
            return None;
        }
        let position = session.tables.question();
        let route = Route::Answer(Place {
            session: place.session,
            position,
        });
        let question = Node::promise(&self.vat, route);
        let resolver = self.resolver_of(&question);
        writer.unsigned(position);
        let export = session
            .tables
            .mention(&resolver, session.limits.exports_max)?;
        writer
            .record("desc:import-object")
            .unsigned(export)
            .end_record()
            .end_record();
        Some(Some(question))
    }

    fn resolver_of(&self, promise: &Reference) -> Reference {
        Node::reference(&self.vat, Kind::Resolver(Mutex::new(Some(promise.clone()))))
    }

    /// Asks the peer for a part of what one of its promises or answers will be, and to be told.
    pub(super) fn write_take(&mut self, desc: Desc, place: Place, part: &Part) -> Reference {
        let severed = || Broken::severed("the session is over");
        let checked = self.check_backlog(place.session, true);
        let session = checked.and_then(|()| self.session_up(place.session).ok_or_else(severed));
        let session = match session {
            Ok(session) => session,
            Err(broken) => return Node::broken(&self.vat, broken),
        };
        let position = session.tables.question();
        let writer = &mut session.output.writer;
        writer.record(match part {
            Part::Field(_) => "op:get",
            Part::Index(_) => "op:index",
            Part::Untag(_) => "op:untag",
        });
        desc.write(place.position, writer);
        match part {
            Part::Field(name) => writer.string(name),
            Part::Index(index) => writer.unsigned(*index),
            Part::Untag(tag) => writer.string(tag.as_str()),
        };
        writer.unsigned(position).end_record();
        session.end_message();
        let place = Place {
            session: place.session,
            position,
        };
        let question = Node::promise(&self.vat, Route::Answer(place));
        self.write_listen(Desc::Answer, place, &question);
        question
    }

    /// Writes the request to be told how the peer's promise or answer resolves.
    pub(super) fn write_listen(&mut self, desc: Desc, place: Place, promise: &Reference) {
        let resolver = self.resolver_of(promise);
        let waker = self.session_up(place.session).and_then(|session| {
            let exports_max = session.limits.exports_max;
            let export = session.tables.mention(&resolver, exports_max)?;
            session.tables.keep_mentions();
            let writer = &mut session.output.writer;
            writer.record("op:listen");
            desc.write(place.position, writer);
            writer
                .record("desc:import-object")
                .unsigned(export)
                .end_record();
            writer.bool(false).end_record();
            session.end_message();
            Some(session.output.waker.take())
        });
        // Without a session or a place in the table the resolver is dropped here, and breaks
        // the promise.
        self.wakers.extend(waker.flatten());
    }

    /// Deposits an object of one session for the peer of another, and returns the certificate.
    fn give(&mut self, to: &Session, place: Place) -> Result<bytes::Bytes, Broken> {
        let severed = || Broken::severed("the object's session is over");
        let receiver_key = to.link().ok_or_else(severed)?.key.clone();
        let other = self.session_up(place.session).ok_or_else(severed)?;
        if other.backlog() > other.limits.output_max / 2 {
            let text = "too much waits to be sent to the object's peer";
            return Err(Broken::new("overloaded", text));
        }
        let gift_id = other.secrets.next();
        let (keys, dialect) = (Arc::clone(&other.keys), other.dialect());
        let writer = &mut other.output.writer;
        Session::write_deliver_start(writer, dialect, true);
        Desc::Export.write(BOOTSTRAP, writer);
        writer.list().symbol("deposit-gift").bytes(&gift_id);
        Desc::Export.write(place.position, writer);
        writer.end_list();
        if dialect != super::Dialect::D1 {
            writer.bool(false).bool(false);
        }
        writer.end_record();
        other.end_message();
        let waker = other.output.waker.take();
        let link = other.link().ok_or_else(severed)?;
        let exporter = link.location_encoding.clone();
        let give = sign_give(&keys, &receiver_key, &exporter, &link.id, &gift_id);
        self.wakers.extend(waker);
        Ok(give)
    }

    pub(super) fn collect_import(&mut self, place: Place) {
        let Some(session) = self.session_up(place.session) else {
            return;
        };
        if let Some(received) = session.tables.dropped_import(place.position) {
            session.collect_export(place.position, received);
            let waker = session.output.waker.take();
            let is_too_much = session.backlog() > session.limits.output_max;
            self.wakers.extend(waker);
            if is_too_much {
                self.abort(place.session, "the peer does not read");
            }
        }
    }

    pub(super) fn collect_answer(&mut self, place: Place) {
        let Some(session) = self.session_up(place.session) else {
            return;
        };
        session.collect_answer(place.position);
        let waker = session.output.waker.take();
        self.wakers.extend(waker);
    }

    pub(super) fn is_up(&self, id: SessionId) -> bool {
        self.session(id)
            .is_some_and(|session| matches!(session.phase, Phase::Up(_)))
    }
}

/// Describes references for the peer of one session.
struct Describer<'a> {
    inner: &'a mut Inner,
    session: &'a mut Box<Session>,
    id: SessionId,
    /// How many objects of third peers the message hands over so far.
    gives: &'a mut usize,
}

impl Describe for Describer<'_> {
    fn describe(&mut self, reference: &Reference, writer: &mut Writer) -> Option<()> {
        // A promise that broke or became a plain value goes as the promise, to be listened to.
        let short = reference.shortened().unwrap_or_else(|_| reference.clone());
        let place = match &short.0.kind {
            Kind::Remote(place) | Kind::Promise(Route::Import(place), _) => Some(*place),
            _ => None,
        };
        if let Some(place) = place.filter(|place| place.session == self.id) {
            Desc::Export.write(place.position, writer);
            return Some(());
        }
        let mut export = short.clone();
        if let Kind::Remote(place) = &short.0.kind {
            *self.gives += 1;
            let give = match *self.gives {
                ..=GIVES_MAX => self.inner.give(self.session, *place),
                _ => Err(Broken::new(
                    "overloaded",
                    "too many handoffs in one message",
                )),
            };
            match give {
                Ok(give) => {
                    writer.raw(&give);
                    return Some(());
                }
                Err(broken) => export = Node::broken(&self.inner.vat, broken),
            }
        }
        let label = match &export.0.kind {
            Kind::Promise(..) => "desc:import-promise",
            _ => "desc:import-object",
        };
        let limit = self.session.limits.exports_max;
        let position = self.session.tables.mention(&export, limit)?;
        writer.record(label).unsigned(position).end_record();
        Some(())
    }

    fn sorts_by_text(&self) -> bool {
        true
    }
}
