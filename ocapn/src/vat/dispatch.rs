//! Messages to their targets, results to their promises.
//!
//! All that follows from one step is done before the next: [`Inner::work`] takes from a list,
//! and what a piece of work causes goes to the front of it, so that messages to one target
//! keep their order and no chain of promises is walked on the stack.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Weak;
use std::task::Waker;

use super::gifts::{Gifts, waits_for_its_turn};
use super::sessions::Slot;
use super::wire::Desc;
use super::{Dropped, Limits, Shared, VatEvent, VatOptions};
use crate::captp::broken::Broken;
use crate::captp::promise::{
    Delivery, Kind, Listener, Node, Part, Pending, Reference, Route, State, lock,
};
use crate::captp::usage::{TOO_MUCH_KEPT, Usage, keep, keep_answer};
use crate::captp::{Place, SessionId};
use crate::locator::PeerLocator;
use crate::passable::Passable;
use crate::syrup::Mode;

/// The state of a vat, under its lock.
pub(crate) struct Inner {
    pub(super) vat: Weak<Shared>,
    pub(super) location: PeerLocator,
    pub(super) limits: Limits,
    pub(super) mode: Mode,
    /// Whether those who dialled us are whom they claim to be.
    pub(super) claims_believed: bool,
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    /// The sessions that are up, by transport and designator.
    pub(super) peers: HashMap<(String, String), SessionId>,
    /// Our own connections that wait for the peer's start-session.
    pub(super) dialling: HashMap<(String, String), SessionId>,
    /// Connections that waited for the end of a session under their name, which has come.
    pub(super) freed: Vec<SessionId>,
    pub(super) gifts: Gifts,
    turns: VecDeque<Waiting>,
    running: bool,
    events: VecDeque<VatEvent>,
    pub(super) wakers: Vec<Waker>,
    work: VecDeque<Work>,
}

/// A turn that waits to run.
pub(super) struct Waiting {
    pub(super) target: Reference,
    pub(super) delivery: Delivery,
}

enum Work {
    Deliver(Reference, Delivery),
    Settle(Reference, Result<Passable, Broken>),
    Listen(Reference, Listener),
    /// Tells a listener of a peer how a promise settled.
    Tell(Reference, Result<Passable, Broken>),
}

/// Where a message goes from here.
enum Destination {
    /// An object, or a promise whose messages wait.
    Node(Reference),
    Wire(Desc, Place),
    Broken(Broken),
}

impl Inner {
    pub(super) fn new(vat: Weak<Shared>, options: VatOptions) -> Self {
        Self {
            vat,
            location: options.location,
            limits: options.limits,
            mode: Mode::Strict,
            claims_believed: false,
            slots: Vec::new(),
            free: Vec::new(),
            peers: HashMap::new(),
            dialling: HashMap::new(),
            freed: Vec::new(),
            gifts: Gifts::default(),
            turns: VecDeque::new(),
            running: false,
            events: VecDeque::new(),
            wakers: Vec::new(),
            work: VecDeque::new(),
        }
    }

    pub(super) fn event(&mut self, event: VatEvent) {
        self.events.push_back(event);
    }

    pub(super) fn next_event(&mut self) -> Option<VatEvent> {
        self.events.pop_front()
    }

    pub(super) fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// Returns whether a turn waits that nobody is about to run.
    pub(super) fn has_turn(&self) -> bool {
        !self.running && !self.turns.is_empty()
    }

    /// Returns whether turns for what the peer of a session asked wait to begin, or messages of
    /// that peer wait to be sent on to others.
    pub(super) fn is_busy(&self, id: SessionId) -> bool {
        let turns = self.turns.iter();
        let turns = turns.filter_map(|waiting| waiting.delivery.charge.as_ref());
        let others = self.slots.iter().filter_map(Slot::session);
        let others = others.filter(|session| session.usage.session != id);
        let sent_on = others.flat_map(|session| &session.output.charges);
        turns.chain(sent_on).any(|charge| charge.session() == id)
    }

    /// Settles the answer of the turn that was run and returns the next one. The first call of a
    /// run takes the right to run turns, the one that returns `None` gives it back.
    pub(super) fn next_turn(
        &mut self,
        done: Option<(Reference, Result<Passable, Broken>)>,
        mine: bool,
        more: bool,
    ) -> Option<Waiting> {
        if let Some((promise, result)) = done {
            self.settle(promise, result);
            self.work();
        }
        if self.running && !mine {
            return None;
        }
        let next = if more { self.turns.pop_front() } else { None };
        self.running = next.is_some();
        next
    }

    /// Delivers and returns the promise of the answer.
    pub(super) fn call(&mut self, to: &Reference, args: Vec<Passable>) -> Reference {
        // The usual case in one piece, without a promise between.
        if let Destination::Wire(desc, place) = self.destination(to) {
            return match self.write_deliver(desc, place, args, true, None) {
                Ok(Some(question)) => question,
                Ok(None) => Node::broken(&self.vat, Broken::severed("the session is over")),
                Err(broken) => Node::broken(&self.vat, broken),
            };
        }
        let answer = Node::promise(&self.vat, Route::Here);
        let delivery = Delivery {
            args,
            answer: Some(answer.clone()),
            from: None,
            charge: None,
        };
        self.deliver(to.clone(), delivery);
        answer
    }

    /// Returns the promise of a part of what `of` will be.
    pub(super) fn part(&mut self, of: &Reference, part: Part) -> Reference {
        if let End::Pending(promise) = end_of(of)
            && let Kind::Promise(route, _) = &promise.0.kind
            && let Some(place) = route.place()
            && self.is_up(place.session)
        {
            return self.write_take(Desc::of(*route), place, &part);
        }
        let answer = Node::promise(&self.vat, Route::Here);
        self.listen(of.clone(), Listener::Part(answer.clone(), part, None));
        answer
    }

    pub(super) fn send(&mut self, to: &Reference, args: Vec<Passable>) {
        self.deliver(
            to.clone(),
            Delivery {
                args,
                answer: None,
                from: None,
                charge: None,
            },
        );
    }

    pub(super) fn deliver(&mut self, to: Reference, delivery: Delivery) {
        self.work.push_back(Work::Deliver(to, delivery));
    }

    pub(super) fn settle(&mut self, promise: Reference, result: Result<Passable, Broken>) {
        self.work.push_back(Work::Settle(promise, result));
    }

    pub(super) fn listen(&mut self, promise: Reference, listener: Listener) {
        self.work.push_back(Work::Listen(promise, listener));
    }

    /// Does all that waits to be done under this lock.
    pub(super) fn work(&mut self) {
        while let Some(work) = self.work.pop_front() {
            match work {
                Work::Deliver(to, delivery) => self.do_deliver(&to, delivery),
                Work::Settle(promise, result) => self.do_settle(&promise, result),
                Work::Listen(promise, listener) => self.do_listen(&promise, listener),
                Work::Tell(resolver, result) => self.do_tell(&resolver, result),
            }
        }
    }

    fn next(&mut self, work: Work) {
        self.work.push_front(work);
    }

    /// Follows resolved promises to where a message goes.
    fn destination(&self, to: &Reference) -> Destination {
        let mut at = to.clone();
        loop {
            let next = match &at.0.kind {
                Kind::Remote(place) => return Destination::Wire(Desc::Export, *place),
                Kind::Object(_) | Kind::Resolver(_) | Kind::Bootstrap(_) => {
                    return Destination::Node(at);
                }
                Kind::Promise(route, state) => {
                    let mut state = lock(state);
                    let wire = route.place().filter(|place| self.is_up(place.session));
                    let wire = wire.map(|place| Destination::Wire(Desc::of(*route), place));
                    match (&mut *state, wire) {
                        (State::Pending(pending), Some(wire)) => {
                            pending.used_route = true;
                            return wire;
                        }
                        (
                            State::Forwarded { by_route: true, .. }
                            | State::Settled { by_route: true, .. },
                            wire,
                        ) => {
                            // Another way could overtake what went this way before.
                            let severed = || Broken::severed("the session of the promise is over");
                            return wire.unwrap_or_else(|| Destination::Broken(severed()));
                        }
                        (State::Pending(_), None) => None,
                        (State::Forwarded { to, .. }, _) => Some(to.clone()),
                        (State::Settled { result, .. }, _) => match result {
                            Ok(Passable::Reference(to)) => Some(to.clone()),
                            Ok(value) => {
                                let text = format!("a {} takes no messages", value.kind());
                                return Destination::Broken(Broken::new("not-callable", text));
                            }
                            Err(broken) => return Destination::Broken(broken.clone()),
                        },
                    }
                }
            };
            match next {
                Some(next) => at = next,
                None => return Destination::Node(at),
            }
        }
    }

    fn do_deliver(&mut self, to: &Reference, delivery: Delivery) {
        let target = match self.destination(to) {
            Destination::Node(target) => target,
            Destination::Wire(desc, place) => {
                let wants = delivery.answer.is_some();
                let Delivery { args, charge, .. } = delivery;
                let sent = self.write_deliver(desc, place, args, wants, charge);
                if let Some(answer) = delivery.answer {
                    let severed = || Broken::severed("the session is over");
                    let result = sent.and_then(|question| question.ok_or_else(severed));
                    self.next(Work::Settle(answer, result.map(Passable::from)));
                }
                return;
            }
            Destination::Broken(broken) => {
                if let Some(answer) = delivery.answer {
                    self.next(Work::Settle(answer, Err(broken)));
                }
                return;
            }
        };
        match &target.0.kind {
            Kind::Promise(_, state) => {
                if let State::Pending(pending) = &mut *lock(state) {
                    if pending.queue.len() < self.limits.queue_max {
                        pending.queue.push(delivery);
                    } else if let Some(answer) = delivery.answer {
                        let broken = Broken::new("overloaded", "too many messages wait here");
                        self.work.push_front(Work::Settle(answer, Err(broken)));
                    }
                }
            }
            Kind::Resolver(promise) => {
                let promise = lock(promise).take();
                if let Some(answer) = delivery.answer {
                    self.next(Work::Settle(answer, Ok(Passable::Undefined)));
                }
                if let Some(promise) = promise {
                    self.next(Work::Settle(promise, resolution(delivery.args)));
                }
            }
            Kind::Bootstrap(session) if !waits_for_its_turn(&delivery) => {
                self.bootstrap_turn(*session, delivery);
            }
            _ => self.turns.push_back(Waiting { target, delivery }),
        }
    }

    fn do_settle(&mut self, promise: &Reference, result: Result<Passable, Broken>) {
        let Kind::Promise(route, state) = &promise.0.kind else {
            return;
        };
        let mut result = result;
        let mut forward = None;
        if let Ok(Passable::Reference(to)) = &result {
            match end_of(to) {
                End::Settled(end) => result = end,
                End::Pending(to) if to == *promise => {
                    result = Err(Broken::new("cycle", "the promise was resolved to itself"));
                }
                End::Pending(to) => forward = Some(to),
            }
        }
        let mut guard = lock(state);
        let State::Pending(pending) = &mut *guard else {
            return;
        };
        let pending = mem::take(pending);
        // Whoever got messages for the promise passes them on in order, by a way that only they
        // know. So even to a target of the same peer there may be a shorter way, and a later
        // message must not take it.
        let by_route = pending.used_route;
        *guard = match &forward {
            Some(to) => State::Forwarded {
                to: to.clone(),
                by_route,
            },
            None => State::Settled {
                result: result.clone(),
                by_route,
                held: Vec::new(),
            },
        };
        drop(guard);
        let Pending {
            queue,
            listeners,
            wakers,
            asker,
            keepers,
            ..
        } = pending;
        if let Route::Answer(place) = route
            && !by_route
        {
            // Nothing will be sent there any more, so the peer need not keep it.
            self.collect_answer(*place);
        }
        if let Some(usage) = asker
            && !keep_answer(promise, &usage)
        {
            self.forget(promise, by_route, &usage);
        }
        for usage in keepers {
            if !keep(promise, &usage) {
                self.abort(usage.session, TOO_MUCH_KEPT);
            }
        }
        self.wakers.extend(wakers);
        // The last to be put in front is the first to be done: listeners before messages.
        for delivery in queue.into_iter().rev() {
            self.next(Work::Deliver(promise.clone(), delivery));
        }
        if let Some(to) = &forward {
            for listener in listeners.into_iter().rev() {
                self.next(Work::Listen(to.clone(), listener));
            }
        } else {
            for listener in listeners.into_iter().rev() {
                self.notify(listener, result.clone());
            }
        }
    }

    /// Lets go of an answer for which there is no room: who waits for it is told what it is, but
    /// later nothing can be taken from it. So whoever asks for much at once gets it.
    fn forget(&mut self, answer: &Reference, by_route: bool, asker: &Usage) {
        let Kind::Promise(_, state) = &answer.0.kind else {
            return;
        };
        let broken = Broken::new("overloaded", "the answer was too large to be kept");
        let forgotten = State::Settled {
            result: Err(broken),
            by_route,
            held: Vec::new(),
        };
        let mut state = lock(state);
        if let State::Settled { .. } = &*state {
            let old = mem::replace(&mut *state, forgotten);
            drop(state);
            drop(old);
        } else {
            drop(state);
            self.abort(asker.session, TOO_MUCH_KEPT);
        }
    }

    fn do_listen(&mut self, promise: &Reference, listener: Listener) {
        match end_of(promise) {
            End::Settled(result) => self.notify(listener, result),
            End::Pending(promise) => {
                if let Kind::Promise(_, state) = &promise.0.kind
                    && let State::Pending(pending) = &mut *lock(state)
                {
                    pending.listeners.push(listener);
                }
                self.ask_resolution(&promise);
            }
        }
    }

    fn notify(&mut self, listener: Listener, result: Result<Passable, Broken>) {
        match listener {
            Listener::Wire(resolver, charge) => {
                drop(charge);
                self.next(Work::Tell(resolver, result));
            }
            Listener::Part(promise, part, charge) => {
                drop(charge);
                let part = result.and_then(|value| part.of(&value));
                self.next(Work::Settle(promise, part));
            }
        }
    }

    fn do_tell(&mut self, resolver: &Reference, result: Result<Passable, Broken>) {
        let mut args = settlement(result);
        if let Destination::Wire(desc, place) = self.destination(resolver) {
            // What cannot be said in this session must not leave the peer waiting for ever. The
            // reason of this break is plain text, which can always be said.
            let before = self.backlog(place.session);
            let Err(broken) = self.write_deliver(desc, place, args, false, None) else {
                let answer = self.backlog(place.session).saturating_sub(before);
                if let Some(session) = self.session_up(place.session) {
                    session.output.answers += answer;
                }
                return;
            };
            args = settlement(Err(broken));
        }
        let told = Delivery {
            args,
            answer: None,
            from: None,
            charge: None,
        };
        self.next(Work::Deliver(resolver.clone(), told));
    }

    /// Asks the peer how its promise resolves, unless that was asked.
    pub(super) fn ask_resolution(&mut self, promise: &Reference) {
        let Kind::Promise(Route::Import(place), state) = &promise.0.kind else {
            return;
        };
        if let State::Pending(pending) = &mut *lock(state) {
            if mem::replace(&mut pending.listening, true) {
                return;
            }
        } else {
            return;
        }
        self.write_listen(Desc::Export, *place, promise);
    }

    /// Deals with what programs dropped.
    pub(super) fn collect(&mut self, dropped: Dropped) {
        match dropped {
            Dropped::Object(_) => {}
            Dropped::Import(place) => self.collect_import(place),
            Dropped::Promise(route, state) => {
                match route {
                    Route::Here => {}
                    Route::Answer(place) if !state.was_collected() => self.collect_answer(place),
                    Route::Answer(_) => {}
                    Route::Import(place) => self.collect_import(place),
                }
                if let State::Pending(pending) = *state {
                    let gone = || Broken::new("dropped", "nobody is left to resolve the target");
                    for delivery in pending.queue {
                        if let Some(answer) = delivery.answer {
                            self.settle(answer, Err(gone()));
                        }
                    }
                    for listener in pending.listeners {
                        self.notify(listener, Err(gone()));
                    }
                }
            }
            Dropped::Resolver(promise) => {
                let broken = Broken::new("dropped", "nobody is left to resolve this promise");
                self.settle(promise, Err(broken));
            }
        }
    }
}

/// What a resolver is told.
fn settlement(result: Result<Passable, Broken>) -> Vec<Passable> {
    match result {
        Ok(value) => vec![Passable::symbol("fulfill"), value],
        Err(broken) => vec![Passable::symbol("break"), broken.reason()],
    }
}

/// What a resolver was told.
fn resolution(args: Vec<Passable>) -> Result<Passable, Broken> {
    let wrong = || Broken::new("wrong-resolution", "a resolver takes fulfill or break");
    let mut args = args.into_iter();
    let (Some(method), Some(value), None) = (args.next(), args.next(), args.next()) else {
        return Err(wrong());
    };
    match method.as_symbol() {
        Some("fulfill") => Ok(value),
        Some("break") => Err(Broken::with(value)),
        _ => Err(wrong()),
    }
}

/// What a reference is in the end.
enum End {
    Settled(Result<Passable, Broken>),
    Pending(Reference),
}

fn end_of(reference: &Reference) -> End {
    let mut at = reference.clone();
    loop {
        let next = match &at.0.kind {
            Kind::Promise(_, state) => match &*lock(state) {
                State::Pending(_) => None,
                State::Forwarded { to, .. } => Some(to.clone()),
                State::Settled {
                    result: Ok(Passable::Reference(to)),
                    ..
                } => Some(to.clone()),
                State::Settled { result, .. } => return End::Settled(result.clone()),
            },
            _ => return End::Settled(Ok(Passable::Reference(at))),
        };
        match next {
            Some(next) => at = next,
            None => return End::Pending(at),
        }
    }
}
