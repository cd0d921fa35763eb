//! Sessions from opening to end, and what their peers ask for.

use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;

use super::dispatch::Inner;
use super::{Direction, Output, Over, VatEvent};
use crate::captp::SessionId;
use crate::captp::broken::Broken;
use crate::captp::message::{Fault, Greeting, Hello, Message};
use crate::captp::promise::{Delivery, Kind, Listener, Node, Reference, Route, lock};
use crate::captp::session::{CONTESTED_INPUT_MAX, Phase, Session};
use crate::captp::usage::weigh_args;
use crate::locator::PeerLocator;
use crate::syrup::Mode;

/// Bytes of the reason why a session ended that are kept and sent.
const REASON_BYTES_MAX: usize = 1_024;

/// A place for a session; the serial tells those that had it apart.
pub(super) struct Slot {
    serial: u32,
    session: Option<Box<Session>>,
}

impl Slot {
    pub(super) fn session(&self) -> Option<&Session> {
        self.session.as_deref()
    }
}

/// What the peer is told at the end of its session.
enum Farewell {
    /// The reason.
    Abort,
    /// Nothing: it ended the session itself.
    None,
}

impl Inner {
    /// Returns the name of a new session, whose state follows by [`Inner::begin`].
    pub(super) fn reserve(&mut self) -> SessionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                serial: 0,
                session: None,
            });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.serial = place.serial.wrapping_add(1);
        SessionId {
            slot,
            serial: place.serial,
        }
    }

    /// Puts a new session in its place. One that we dialled is given up before it says a word if
    /// the peer's own dial has just come up: crossing that one now could end it at the peer's
    /// side, after it was used.
    pub(super) fn begin(&mut self, id: SessionId, mut session: Box<Session>) {
        if let Direction::Outbound(peer) = &session.direction {
            let up = self.session_with(&peer.transport, &peer.designator);
            let up = up.and_then(|up| self.session(up));
            let weaker = |up: &Session| is_proven(&session) && !is_proven(up);
            if up.is_some_and(|up| up.is_theirs_unsettled() && !weaker(up)) {
                session.give_up("the peer's own dial came first");
            } else {
                self.dialling.insert(key(peer), id);
            }
        }
        self.put_back(id, session);
    }

    pub(super) fn session(&self, id: SessionId) -> Option<&Session> {
        let slot = self
            .slots
            .get(id.slot as usize)
            .filter(|slot| slot.serial == id.serial)?;
        slot.session.as_deref()
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        let slot = self
            .slots
            .get_mut(id.slot as usize)
            .filter(|slot| slot.serial == id.serial)?;
        slot.session.as_deref_mut()
    }

    /// Returns how many bytes wait to be sent.
    pub(super) fn backlog(&self, id: SessionId) -> usize {
        self.session(id).map_or(0, Session::backlog)
    }

    /// Returns a session if it is up.
    pub(super) fn session_up(&mut self, id: SessionId) -> Option<&mut Session> {
        self.session_mut(id)
            .filter(|session| matches!(session.phase, Phase::Up(_)))
    }

    /// Takes a session out of its slot, so that the others can be used beside it.
    pub(super) fn take(&mut self, id: SessionId) -> Option<Box<Session>> {
        let slot = self
            .slots
            .get_mut(id.slot as usize)
            .filter(|slot| slot.serial == id.serial)?;
        slot.session.take()
    }

    pub(super) fn put_back(&mut self, id: SessionId, session: Box<Session>) {
        self.slots[id.slot as usize].session = Some(session);
    }

    pub(super) fn session_with(&self, transport: &str, designator: &str) -> Option<SessionId> {
        self.peers
            .get(&(transport.to_owned(), designator.to_owned()))
            .copied()
    }

    /// Returns whether whoever is at the other end is the peer that it says, as far as the
    /// netlayer can tell: it was dialled there, or it has proved it.
    pub(super) fn is_reached(&self, id: SessionId) -> bool {
        self.session(id).is_some_and(|session| {
            self.claims_believed
                || is_proven(session)
                || matches!(session.direction, Direction::Outbound(_))
        })
    }

    pub(super) fn bootstrap(&mut self, id: SessionId) -> Option<Reference> {
        Some(self.session_up(id)?.tables.bootstrap())
    }

    pub(super) fn transmit(
        &mut self,
        id: SessionId,
        waker: Option<&Waker>,
    ) -> Poll<Option<Output>> {
        let Some(session) = self.session_mut(id) else {
            return Poll::Ready(None);
        };
        if let Some(output) = session.take_output() {
            return Poll::Ready(Some(output));
        }
        if matches!(session.phase, Phase::Over(_)) {
            self.free(id);
            return Poll::Ready(None);
        }
        if let Some(waker) = waker {
            session.output.waker = Some(waker.clone());
        }
        Poll::Pending
    }

    /// Takes bytes of a session and does what they ask for. A start-session is returned, to be
    /// checked outside of the lock and brought back by [`Inner::checked`]; later bytes wait.
    pub(super) fn receive(
        &mut self,
        id: SessionId,
        bytes: &[u8],
    ) -> Result<Option<(Bytes, Mode)>, Over> {
        if let Some(session) = self.session_mut(id) {
            session.take_input(bytes);
        }
        loop {
            let Some(session) = self.session_mut(id) else {
                return Err(Over {
                    reason: "the session is over".into(),
                });
            };
            if let Phase::Over(reason) = &session.phase {
                return Err(Over {
                    reason: reason.clone(),
                });
            }
            if session.contested.is_some() {
                if session.input_len() > CONTESTED_INPUT_MAX {
                    self.abort(id, "too much was sent before the session began");
                    continue;
                }
                return Ok(None);
            }
            if matches!(session.phase, Phase::Checking) {
                return Ok(None);
            }
            let frame = match session.frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(fault) => {
                    self.abort(id, &fault);
                    continue;
                }
            };
            let vat = self.vat.clone();
            let Some(session) = self.session_mut(id) else {
                continue;
            };
            if matches!(session.phase, Phase::Greeting) {
                session.phase = Phase::Checking;
                return Ok(Some((frame, session.mode)));
            }
            let message = session.read_message(&frame, &vat);
            let gifts = std::mem::take(&mut session.gifts);
            for gift in gifts {
                self.receive_gift(id, gift);
            }
            if let Err(fault) = message.and_then(|message| self.obey(id, message)) {
                self.abort(id, &fault);
            }
            self.work();
        }
    }

    /// Goes on with a start-session that was checked, and with what came after it.
    pub(super) fn checked(
        &mut self,
        id: SessionId,
        greeting: Result<Greeting, Fault>,
    ) -> Result<Option<(Bytes, Mode)>, Over> {
        // The session may have ended meanwhile.
        if let Some(session) = self.session_mut(id)
            && matches!(session.phase, Phase::Checking)
        {
            session.phase = Phase::Greeting;
            match greeting {
                Ok(greeting) => self.greeted(id, greeting),
                Err(fault) => self.abort(id, &fault),
            }
            self.work();
        }
        self.receive(id, &[])
    }

    fn greeted(&mut self, id: SessionId, greeting: Greeting) {
        let hello = match greeting {
            Greeting::Hello(hello) => hello,
            Greeting::Abort(reason) => return self.end(id, &reason, &Farewell::None),
        };
        if self.rival(id, &hello).is_some()
            && let Some(session) = self.session_mut(id)
        {
            session.contested = Some(hello);
            return self.event(VatEvent::Contested(id));
        }
        self.decide_on(id, *hello);
    }

    fn decide_on(&mut self, id: SessionId, hello: Hello) {
        match self.admit(id, &hello) {
            Ok(()) => self.start(id, hello),
            Err(reason) => self.abort(id, reason),
        }
    }

    /// Returns the session that stands in the way of one whose peer proves nothing, and that may
    /// turn out to be over.
    fn rival(&self, id: SessionId, hello: &Hello) -> Option<SessionId> {
        let session = self.session(id)?;
        let proven = session.proven.as_ref();
        if proven.is_some_and(|peer| peer.authenticated)
            || !matches!(session.direction, Direction::Inbound)
        {
            return None;
        }
        self.peers.get(&key(&hello.location)).copied()
    }

    /// Decides over a greeting that has waited, and then takes what came after it.
    pub(super) fn decide(&mut self, id: SessionId) {
        let contested = self.session_mut(id).and_then(|s| s.contested.take());
        if let Some(hello) = contested {
            self.decide_on(id, *hello);
            self.work();
            // How the session ends, if it does, its driver sees by itself.
            let _ = self.receive(id, &[]);
        }
    }

    /// Decides over those whose rival has ended.
    pub(super) fn decide_freed(&mut self) {
        while let Some(id) = self.freed.pop() {
            self.decide(id);
        }
    }

    /// A session with this peer ended: one of those who waited for that is let in.
    fn free_name(&mut self, peer: &(String, String)) {
        let waits = |session: &Session| {
            let hello = session.contested.as_ref();
            hello.is_some_and(|hello| key(&hello.location) == *peer)
        };
        let slots = self.slots.iter().enumerate();
        let ids = slots.filter_map(|(slot, place)| {
            let session = place.session()?;
            waits(session).then_some(SessionId {
                slot: slot as u32,
                serial: place.serial,
            })
        });
        self.freed.extend(ids);
    }

    /// Decides whether the peer that greeted is who it must be, and which of several sessions
    /// with it stays.
    fn admit(&mut self, id: SessionId, hello: &Hello) -> Result<(), &'static str> {
        let peer = key(&hello.location);
        let Some(session) = self.session(id) else {
            return Err("the session is over");
        };
        let authenticated = match &session.proven {
            Some(proven) if proven.authenticated => {
                if !proven.is(&peer.0, &peer.1) {
                    return Err("the location is not that of the key proved");
                }
                true
            }
            Some(proven) if !proven.transport.is_empty() && proven.transport != peer.0 => {
                return Err("the location is on another transport");
            }
            _ => false,
        };
        let inbound = match &session.direction {
            Direction::Inbound => true,
            Direction::Outbound(dialled) if dialled.same_peer(&hello.location) => false,
            Direction::Outbound(_) => return Err("another peer answered than was dialled"),
        };
        if hello.key == session.keys.public {
            return Err("the peer's key is ours");
        }
        if inbound && let Some(ours) = self.dialling.get(&peer).copied() {
            self.admit_crossed(ours, hello, authenticated)?;
        }
        if let Some(old) = self.peers.get(&peer).copied() {
            // The peer may have answered our dial before its own, which it sent earlier, came
            // here by its slower connection.
            if inbound && self.session(old).is_some_and(Session::is_ours_unsettled) {
                return self.admit_crossed(old, hello, authenticated);
            }
            // A peer that came back must not be shut out by its own ghost, but only who proved
            // to be that peer may take its place.
            if !authenticated {
                return Err("there is a session with this peer");
            }
            self.abort(old, "replaced by a newer session");
        }
        Ok(())
    }

    /// Decides between a connection that we dialled and one that the peer did at the same time:
    /// of the two diallers' keys the lower one loses, at both ends alike. But whoever proves
    /// nothing does not end what is proven, since keys can be tried until one is high enough.
    fn admit_crossed(
        &mut self,
        ours: SessionId,
        hello: &Hello,
        authenticated: bool,
    ) -> Result<(), &'static str> {
        const CROSSED: &str = "Crossed hellos mitigated";
        let Some(session) = self.session(ours) else {
            return Ok(());
        };
        let weaker = is_proven(session) && !authenticated;
        if weaker || session.keys.public.side >= hello.key.side {
            return Err(CROSSED);
        }
        self.abort(ours, CROSSED);
        Ok(())
    }

    pub(super) fn settled(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id) {
            session.settled = true;
        }
    }

    fn start(&mut self, id: SessionId, hello: Hello) {
        let locator = hello.location.clone();
        let Some(session) = self.session_mut(id) else {
            return;
        };
        let peer = session.start(hello);
        let waker = session.output.waker.take();
        self.wakers.extend(waker);
        self.forget_dial(&locator, id);
        self.peers.insert(key(&locator), id);
        self.event(VatEvent::Up(id, (*peer).clone()));
        self.redeem_waiting(id, &locator);
    }

    fn forget_dial(&mut self, locator: &PeerLocator, id: SessionId) {
        let key = key(locator);
        if self.dialling.get(&key) == Some(&id) {
            self.dialling.remove(&key);
        }
    }

    /// Does what one message asks for.
    fn obey(&mut self, id: SessionId, message: Message) -> Result<(), String> {
        let charge = |bytes| {
            let session = self.session(id).ok_or("the session is over")?;
            session.usage.call(bytes)
        };
        match message {
            Message::Deliver {
                to,
                args,
                answer,
                resolver,
            } => {
                let charge = charge(weigh_args(&args))?;
                let promise = match (answer, resolver) {
                    (None, None) => None,
                    (answer, resolver) => {
                        let promise = match answer {
                            Some(position) => self.new_answer(id, position)?,
                            None => Node::promise(&self.vat, Route::Here),
                        };
                        if let Some(resolver) = resolver {
                            let listener = Listener::Wire(resolver, charge.beside());
                            self.listen(promise.clone(), listener);
                        }
                        Some(promise)
                    }
                };
                let from = self.session(id).and_then(Session::link);
                let from = from.map(|link| Arc::clone(&link.peer));
                self.deliver(
                    to,
                    Delivery {
                        args,
                        answer: promise,
                        from,
                        charge: Some(charge),
                    },
                );
            }
            Message::Listen { to, listener } => {
                let charge = charge(0)?;
                self.listen(to, Listener::Wire(listener, charge));
            }
            Message::Take { from, part, answer } => {
                let charge = charge(part.heap_bytes())?;
                let promise = self.new_answer(id, answer)?;
                self.listen(from, Listener::Part(promise, part, Some(charge)));
            }
            Message::Abort(reason) => self.end(id, &reason, &Farewell::None),
            Message::Unknown(label) => {
                tracing::debug!(label, "an operation that is not known was left out");
            }
            Message::GcExports(given_back) => {
                let Some(session) = self.session_up(id) else {
                    return Ok(());
                };
                for (position, delta) in given_back {
                    let released = session.tables.release(position, delta);
                    released.map_err(|()| "gave back more references than it got")?;
                }
            }
            Message::GcAnswers(positions) => {
                let Some(session) = self.session_up(id) else {
                    return Ok(());
                };
                for position in positions {
                    let found = session.tables.answers.remove(&position);
                    found.ok_or("gave back an answer it did not have")?;
                }
            }
        }
        Ok(())
    }

    fn new_answer(&mut self, id: SessionId, position: u64) -> Result<Reference, String> {
        let vat = self.vat.clone();
        let session = self.session_up(id).ok_or("the session is over")?;
        let answers = &mut session.tables.answers;
        if answers.len() >= session.limits.answers_max {
            return Err("too many answers".into());
        }
        let promise = Node::answer(&vat, &session.usage);
        if answers.insert(position, promise.clone()).is_some() {
            return Err(format!("answer position {position} is in use"));
        }
        Ok(promise)
    }

    pub(super) fn abort(&mut self, id: SessionId, reason: &str) {
        self.end(id, reason, &Farewell::Abort);
    }

    pub(super) fn closed(&mut self, id: SessionId, reason: &str) {
        self.end(id, reason, &Farewell::None);
        self.free(id);
    }

    fn free(&mut self, id: SessionId) {
        if let Some(session) = self.take(id) {
            self.wakers.extend(session.output.waker);
            self.free.push(id.slot);
        }
    }

    /// Ends a session: what depends on it breaks, what it holds is let go.
    fn end(&mut self, id: SessionId, reason: &str, farewell: &Farewell) {
        // The peer's own words may be in it, and every broken promise keeps it.
        let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
        let Some(session) = self.session_mut(id) else {
            return;
        };
        if matches!(session.phase, Phase::Over(_)) {
            return;
        }
        if matches!(farewell, Farewell::Abort) {
            session.write_abort(reason);
        }
        session.contested = None;
        session.usage.end();
        let over = Phase::Over(reason.to_owned());
        let was = std::mem::replace(&mut session.phase, over);
        let promises = session.tables.imported_promises();
        let mut broken = promises;
        for export in session.tables.exports() {
            if let Kind::Resolver(promise) = &export.0.kind {
                broken.extend(lock(promise).take());
            }
        }
        let held = session.tables.clear();
        let waker = session.output.waker.take();
        let direction = session.direction.clone();
        self.wakers.extend(waker);
        if let Direction::Outbound(peer) = &direction {
            self.forget_dial(peer, id);
        }
        let severed = Broken::severed(reason);
        for promise in broken {
            self.settle(promise, Err(severed.clone()));
        }
        self.end_gifts(id);
        if let Phase::Up(link) = was {
            let peer = (link.peer.transport.clone(), link.peer.designator.clone());
            if self.peers.get(&peer) == Some(&id) {
                self.peers.remove(&peer);
                if !link.peer.authenticated {
                    self.free_name(&peer);
                }
            }
            self.event(VatEvent::Down(id, (*link.peer).clone(), reason.to_owned()));
        }
        drop(held);
    }
}

/// Returns whether the netlayer knows who is at the other end.
fn is_proven(session: &Session) -> bool {
    let proven = session.proven.as_ref();
    proven.is_some_and(|peer| peer.authenticated)
}

/// What makes two locators the same peer.
pub(super) fn key(locator: &PeerLocator) -> (String, String) {
    (locator.transport.clone(), locator.designator.clone())
}
