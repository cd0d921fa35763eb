//! Local objects and their turns, the bootstrap object, and the sessions of one peer.
//!
//! A [`Vat`] does no I/O. A driver opens a session for each connection, gives the vat the bytes
//! that arrive ([`Vat::receive`]), writes the bytes it has to send ([`Vat::transmit`]), and obeys
//! its events ([`Vat::next_event`]). Turns run one at a time in the order of arrival, outside of
//! every lock, on whichever of those calls finds them waiting.

mod dials;
mod dispatch;
mod gifts;
mod inspect;
mod sessions;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::captp::broken::Broken;
use crate::captp::message::read_greeting;
use crate::captp::promise::{
    Delivery, Kind, Node, Part, Promise, Reference, Resolver, Route, State, lock,
};
use crate::captp::session::Session;
use crate::captp::{Place, SessionId};
use crate::locator::{PeerId, PeerLocator, Swissnum};
use crate::passable::Passable;
use crate::syrup::Mode;
use dispatch::{Inner, Waiting};
use gifts::{Withdrawal, is_withdrawal};
pub use inspect::{Inspection, Retained};

/// An object that takes messages.
pub trait Object: Send + Sync + 'static {
    /// Takes one message: one turn. Turns run in order of arrival; [`Answer::Later`] suspends
    /// the answer, not the turns that follow.
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer;

    /// Returns what the object is called in reports on what peers retain.
    fn label(&self) -> &str {
        std::any::type_name::<Self>()
    }
}

/// What a turn answers.
pub enum Answer {
    /// At once.
    Now(Result<Passable, Broken>),
    /// When the future is done; the driver spawns it.
    Later(BoxFuture<'static, Result<Passable, Broken>>),
}

impl Answer {
    /// Returns the answer with this value.
    pub fn value(value: impl Into<Passable>) -> Self {
        Self::Now(Ok(value.into()))
    }

    /// Returns the answer that breaks with a code for programs and a text for people.
    pub fn broken(code: &str, message: impl Into<String>) -> Self {
        Self::Now(Err(Broken::new(code, message)))
    }

    /// Returns the answer that this future will have.
    pub fn later(answer: impl Future<Output = Result<Passable, Broken>> + Send + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }
}

impl From<Result<Passable, Broken>> for Answer {
    fn from(result: Result<Passable, Broken>) -> Self {
        Self::Now(result)
    }
}

/// The circumstances of one turn.
pub struct Turn {
    vat: Vat,
    from: Option<Arc<PeerId>>,
}

impl Turn {
    /// Returns the peer whose message this is; `None` for one sent in this vat.
    pub fn peer(&self) -> Option<&PeerId> {
        self.from.as_deref()
    }

    /// Returns the vat, to export objects and to make promises.
    pub fn vat(&self) -> &Vat {
        &self.vat
    }
}

/// The objects and sessions of one peer. Clones are the same vat.
#[derive(Clone)]
pub struct Vat(Arc<Shared>);

/// What a vat needs to know of its peer.
#[derive(Clone, Debug)]
pub struct VatOptions {
    /// Where this peer can be reached; sessions announce it.
    pub location: PeerLocator,
    /// What a peer may use.
    pub limits: Limits,
}

/// What one peer may use of this vat. At a limit the session is aborted, or where only one call
/// is concerned, that call breaks.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one message. Default 16 MiB; a larger one aborts.
    pub message_size_max: usize,
    /// Nesting of one message. Default 64; a deeper one aborts. More than
    /// [`crate::syrup::DECODE_DEPTH_MAX`] is as good as that.
    pub depth_max: usize,
    /// Values in one message. Default 1,000,000; more abort.
    pub values_max: usize,
    /// Objects and promises of ours that the peer holds, resolvers of our calls included.
    /// Default 1,000,000; at the limit a call of ours breaks, and an answer breaks.
    pub exports_max: usize,
    /// Objects of the peer that we hold. Default 1,000,000; more abort.
    pub imports_max: usize,
    /// Answers that the peer has not collected. Default 1,000,000; more abort.
    pub answers_max: usize,
    /// Gifts of the peer that wait for their receiver; beyond it the oldest makes room. And what
    /// the peer hands over to us while its exporter is being dialled; more breaks. Default 1,024
    /// each.
    pub gifts_max: usize,
    /// Calls of the peer that wait or run, its fetches, its wait for gifts, what was passed on to
    /// others and not sent yet, and whom it wants told of a result, together. Default 1,000,000;
    /// more abort.
    pub pending_max: usize,
    /// Bytes that we keep for the peer: arguments of its calls that wait or run, results that it
    /// may still ask for, what promises that it holds became, and certificates whose exporter is
    /// being dialled. What objects keep is not in it. Default 64 MiB; more abort, but from the
    /// half on a result is rather not kept: it is told to whoever waits for it, and nothing can
    /// be taken from it later. Should be four times [`Limits::message_size_max`], since a list of
    /// small values takes more than its message.
    pub retained_max: usize,
    /// Messages waiting in one promise. Default 100,000; more break.
    pub queue_max: usize,
    /// Bytes waiting to be sent. Default 256 MiB: from half of it on own calls break, and so does
    /// what other peers send by way of us, or is left out if nobody waits for an answer; at the
    /// whole the peer is one that does not read, and its session is aborted.
    pub output_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_size_max: 16 << 20,
            depth_max: 64,
            values_max: 1_000_000,
            exports_max: 1_000_000,
            imports_max: 1_000_000,
            answers_max: 1_000_000,
            gifts_max: 1_024,
            pending_max: 1_000_000,
            retained_max: 64 << 20,
            queue_max: 100_000,
            output_max: 256 << 20,
        }
    }
}

/// What a session speaks; every dialect is understood when it is received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// The public suite's main branch of 2026-02-17: `op:deliver-only`, singular GC labels.
    D1,
    /// The drafts since 2026-02-25, Goblins 0.18 and Endo 1.1.
    #[default]
    D2,
}

/// Who made the connection.
#[derive(Clone, Debug)]
pub enum Direction {
    /// The peer did.
    Inbound,
    /// We did, to this peer; another one that answers is refused.
    Outbound(PeerLocator),
}

/// When our start-session is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Greet {
    /// At once, as the public suite wants it and as a dialler must.
    #[default]
    AtOnce,
    /// After the peer's. For inbound connections of authenticated netlayers: it lets both
    /// sides of crossed hellos see the same order.
    AfterPeer,
}

/// A connection that becomes a session.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Fresh randomness, never used before: the session's keypair and gift numbers come of it.
    pub seed: [u8; 32],
    /// Who made the connection.
    pub direction: Direction,
    /// What the netlayer knows of the other end. With `authenticated` set, a start-session that
    /// names another designator is refused; otherwise only the address is used.
    pub peer: Option<PeerId>,
    /// What is spoken.
    pub dialect: Dialect,
    /// When our start-session is sent.
    pub greet: Greet,
}

/// Bytes to be sent.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whole messages, one after the other.
    pub bytes: Bytes,
    /// Where each message ends in `bytes`, for netlayers that frame each.
    pub ends: Vec<usize>,
}

/// The session is over: what is left to send may be sent, then the connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("session over: {reason}")]
pub struct Over {
    /// Why.
    pub reason: String,
}

/// What the driver is asked to do, or told.
pub enum VatEvent {
    /// Spawn this future: it computes an answer.
    Spawn(BoxFuture<'static, ()>),
    /// Find the object of a swissnum. Dropping the resolver is the answer for an unknown one. Told
    /// when all that the peer sent before has had its turn.
    Fetch {
        /// The number asked for.
        swissnum: Swissnum,
        /// Who asks.
        from: PeerId,
        /// Takes the object. Whatever is refused must read the same to the peer: drop it.
        answer: Resolver,
    },
    /// Connect to this peer and open a session: something was handed over from there. Failure is
    /// told by [`Vat::dial_failed`]; success needs no word.
    Dial(PeerLocator),
    /// A peer greeted under a name that has a session already, on a connection that proves
    /// nothing. It is let in as soon as that session ends, which may just be on its way: no
    /// order between two connections can be relied upon. [`Vat::decide`] ends its wait.
    Contested(SessionId),
    /// A session is up.
    Up(SessionId, PeerId),
    /// A session that was up is over.
    Down(SessionId, PeerId, String),
}

/// What was dropped and must be dealt with by the vat.
pub(crate) enum Dropped {
    Object(Arc<dyn Object>),
    Import(Place),
    Promise(Route, Box<State>),
    Resolver(Reference),
}

/// Turns that one call runs before it leaves the rest to the next, so that none is kept for ever
/// by objects that go on calling each other.
const TURNS_AT_ONCE_MAX: usize = 4_096;

/// What the clones of a vat share. `inner` is taken before `dropped` and `idle`, which are
/// taken alone.
pub(crate) struct Shared {
    this: Weak<Self>,
    inner: Mutex<Inner>,
    dropped: Mutex<Vec<Dropped>>,
    has_dropped: AtomicBool,
    /// Wakes who waits for events.
    idle: Mutex<Option<Waker>>,
}

impl Shared {
    /// Runs `f` on the locked vat, then what follows from it; wakes and drops what belongs to
    /// programs after the lock.
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut objects = Vec::new();
        let mut inner = lock(&self.inner);
        let result = f(&mut inner);
        inner.work();
        inner.decide_freed();
        while self.has_dropped.swap(false, Ordering::AcqRel) {
            // Collecting drops more, which takes the lock of this list.
            let batch = std::mem::take(&mut *lock(&self.dropped));
            for dropped in batch {
                match dropped {
                    Dropped::Object(object) => objects.push(object),
                    other => inner.collect(other),
                }
            }
            inner.work();
        }
        let wakers = std::mem::take(&mut inner.wakers);
        let busy = inner.has_event() || inner.has_turn();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
        if busy {
            self.wake_idle();
        }
        for object in objects {
            // A program's own `Drop` that panics must not end the turns of all others.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
        }
        result
    }

    fn wake_idle(&self) {
        let waker = lock(&self.idle).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn dropped(&self, dropped: Dropped) {
        lock(&self.dropped).push(dropped);
        if !self.has_dropped.swap(true, Ordering::AcqRel) {
            self.wake_idle();
        }
    }

    pub(crate) fn call(&self, to: &Reference, args: Vec<Passable>) -> Promise {
        Promise(self.with(|inner| inner.call(to, args)))
    }

    pub(crate) fn part(&self, of: &Reference, part: Part) -> Promise {
        Promise(self.with(|inner| inner.part(of, part)))
    }

    pub(crate) fn send(&self, to: &Reference, args: Vec<Passable>) {
        self.with(|inner| inner.send(to, args));
    }

    pub(crate) fn settle(&self, promise: Reference, result: Result<Passable, Broken>) {
        self.with(|inner| inner.settle(promise, result));
    }

    pub(crate) fn listen(&self, promise: &Reference) {
        self.with(|inner| inner.ask_resolution(promise));
    }

    /// Runs turns until none is left, unless another thread does.
    fn run_turns(&self) {
        let mut done = None;
        for turns in 0.. {
            let next = self
                .with(|inner| inner.next_turn(done.take(), turns > 0, turns < TURNS_AT_ONCE_MAX));
            let Some(Waiting { target, delivery }) = next else {
                return;
            };
            if let Kind::Bootstrap(session) = target.0.kind {
                if is_withdrawal(&delivery) {
                    self.withdraw(session, delivery);
                } else {
                    self.with(|inner| inner.bootstrap_turn(session, delivery));
                }
                continue;
            }
            let (Kind::Object(Some(object)), Some(this)) = (&target.0.kind, self.this.upgrade())
            else {
                continue;
            };
            let turn = Turn {
                vat: Vat(this),
                from: delivery.from,
            };
            let (args, charge) = (delivery.args, delivery.charge);
            // A program that panics in a turn breaks its answer, not the vat.
            let answer = catch_unwind(AssertUnwindSafe(|| object.deliver(&turn, args)))
                .unwrap_or_else(|panic| Answer::Now(Err(failed(&*panic))));
            match answer {
                Answer::Now(result) => done = delivery.answer.map(|promise| (promise, result)),
                Answer::Later(future) => {
                    let resolver = delivery.answer.map(Resolver::new);
                    let task = async move {
                        let _charge = charge;
                        let result = future.await;
                        if let Some(resolver) = resolver {
                            resolver.settle(result);
                        }
                    };
                    self.with(|inner| inner.event(VatEvent::Spawn(Box::pin(task))));
                }
            }
        }
    }
}

impl Shared {
    /// Makes a withdrawal for the peer of session `receiver`; checks its signatures outside of
    /// the lock, and all that may change meanwhile after them.
    fn withdraw(&self, receiver: SessionId, delivery: Delivery) {
        let mode = self.with(|inner| inner.mode);
        let withdrawal = Withdrawal::read(delivery.args, mode).and_then(|withdrawal| {
            let gifter = self.with(|inner| inner.gifter(receiver, &withdrawal))?;
            withdrawal.check_signatures(&gifter)?;
            Ok(withdrawal)
        });
        self.with(|inner| inner.withdraw(receiver, withdrawal, delivery.answer, delivery.charge));
    }
}

/// Returns the break for a turn that panicked.
fn failed(panic: &(dyn std::any::Any + Send)) -> Broken {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    Broken::reported("internal", "the object failed", text.unwrap_or("a panic"))
}

impl Vat {
    /// Returns a vat without sessions.
    pub fn new(options: VatOptions) -> Self {
        Self(Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            inner: Mutex::new(Inner::new(this.clone(), options)),
            dropped: Mutex::default(),
            has_dropped: AtomicBool::new(false),
            idle: Mutex::default(),
        }))
    }

    /// Sets where this peer can be reached, for the sessions opened from now on.
    pub fn set_location(&self, location: PeerLocator) {
        self.0.with(|inner| inner.location = location);
    }

    /// Sets how exact the bytes of peers must be, for the sessions opened from now on. Default:
    /// [`Mode::Strict`].
    pub fn set_mode(&self, mode: Mode) {
        self.0.with(|inner| inner.mode = mode);
    }

    /// Sets whether peers that dialled us and proved nothing are taken for whom they claim to be
    /// ([`Vat::session_reached`]). Default: no.
    pub fn set_claims_believed(&self, believed: bool) {
        self.0.with(|inner| inner.claims_believed = believed);
    }

    /// Lets go of the gifts that were waiting at the last call already, so that none waits for
    /// ever: called at intervals, it gives each gift one to two of them.
    pub fn expire_gifts(&self) {
        self.0.with(Inner::expire_gifts);
    }

    /// Decides over a connection that was [`VatEvent::Contested`]: refuses it if the session in
    /// its way still stands. Does nothing when that was decided.
    pub fn decide(&self, session: SessionId) {
        self.0.with(|inner| inner.decide(session));
        self.0.run_turns();
    }

    /// Returns a new reference to `object`.
    pub fn export(&self, object: impl Object) -> Reference {
        Node::reference(&self.0.this, Kind::Object(Some(Arc::new(object))))
    }

    /// Returns a promise and the right to resolve it.
    pub fn promise(&self) -> (Promise, Resolver) {
        let promise = Node::promise(&self.0.this, Route::Here);
        (Promise(promise.clone()), Resolver::new(promise))
    }

    /// Opens a session on a new connection.
    pub fn open(&self, opening: Opening) -> SessionId {
        self.open_limited(opening, None)
    }

    /// Opens a session whose peer may use something else than [`VatOptions::limits`] says.
    pub fn open_limited(&self, opening: Opening, limits: Option<Limits>) -> SessionId {
        let of_vat = |inner: &mut Inner| {
            let limits = limits.unwrap_or_else(|| inner.limits.clone());
            (inner.reserve(), inner.location.clone(), limits, inner.mode)
        };
        let (id, location, limits, mode) = self.0.with(of_vat);
        let vat = self.0.this.clone();
        // Making keys and signing takes long enough to do it outside of the lock.
        let session = Box::new(Session::new(id, vat, opening, &location, limits, mode));
        self.0.with(|inner| inner.begin(id, session));
        id
    }

    /// Takes bytes that arrived, cut anywhere, and runs the turns they cause.
    pub fn receive(&self, session: SessionId, bytes: &[u8]) -> Result<(), Over> {
        let mut result = self.0.with(|inner| inner.receive(session, bytes));
        while let Ok(Some((frame, mode))) = result {
            let greeting = read_greeting(&frame, mode);
            result = self.0.with(|inner| inner.checked(session, greeting));
        }
        self.0.run_turns();
        result.map(|_| ())
    }

    /// Waits for bytes to send; `None` when the session is over and its last bytes were taken.
    pub fn poll_transmit(&self, session: SessionId, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        self.0
            .with(|inner| inner.transmit(session, Some(cx.waker())))
    }

    /// Waits for bytes to send; `None` when the session is over and its last bytes were taken.
    pub async fn transmit(&self, session: SessionId) -> Option<Output> {
        std::future::poll_fn(|cx| self.poll_transmit(session, cx)).await
    }

    /// Returns the bytes that are to be sent now, if any.
    pub fn try_transmit(&self, session: SessionId) -> Option<Output> {
        match self.0.with(|inner| inner.transmit(session, None)) {
            Poll::Ready(output) => output,
            Poll::Pending => None,
        }
    }

    /// Returns the number of bytes that wait to be taken by [`Vat::transmit`].
    pub fn backlog(&self, session: SessionId) -> usize {
        self.0.with(|inner| inner.backlog(session))
    }

    /// Returns how much of that are answers to what the peer asked for, and what it is given back
    /// of what it sent.
    pub(crate) fn unsent_answers(&self, session: SessionId) -> usize {
        self.0
            .with(|inner| inner.session(session).map_or(0, Session::unsent_answers))
    }

    /// Tells that the connection is gone: its promises break. Does nothing when it was over.
    pub fn closed(&self, session: SessionId, reason: &str) {
        self.0.with(|inner| inner.closed(session, reason));
    }

    /// Ends a session from our side: sends the reason, breaks its promises.
    pub fn abort(&self, session: SessionId, reason: &str) {
        self.0.with(|inner| inner.abort(session, reason));
    }

    /// Runs the turns that local calls caused. Needed where nobody waits for events.
    pub fn run(&self) {
        self.0.run_turns();
    }

    /// Has the driver run a future.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0
            .with(|inner| inner.event(VatEvent::Spawn(Box::pin(task))));
    }

    /// Waits for the next event; runs the turns that local calls caused. One task loops on it.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<VatEvent> {
        *lock(&self.0.idle) = Some(cx.waker().clone());
        self.0.run_turns();
        match self.0.with(Inner::next_event) {
            Some(event) => Poll::Ready(event),
            None => Poll::Pending,
        }
    }

    /// Waits for the next event; runs the turns that local calls caused. One task loops on it.
    pub async fn next_event(&self) -> VatEvent {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Tells that a peer that [`VatEvent::Dial`] named cannot be reached by that locator.
    pub fn dial_failed(&self, peer: &PeerLocator, reason: &str) {
        self.0.with(|inner| inner.dial_failed(peer, reason));
    }

    /// Tells that a session has been up for longer than a message can be under way: from now on
    /// a new session of the same peer is one that came back, not one that crossed ours.
    pub fn settled(&self, session: SessionId) {
        self.0.with(|inner| inner.settled(session));
    }

    /// Waits until no more is kept for the peer than so many eighths of what may be.
    pub(crate) async fn has_room(&self, session: SessionId, eighths: usize) {
        let usage = |inner: &mut Inner| Some(inner.session(session)?.usage.clone());
        if let Some(usage) = self.0.with(usage) {
            std::future::poll_fn(|cx| usage.poll_room(eighths, cx.waker())).await;
        }
    }

    /// Returns whether turns for what this peer asked wait to begin, or messages of it wait to be
    /// sent on to others.
    pub(crate) fn is_busy(&self, session: SessionId) -> bool {
        self.0.with(|inner| inner.is_busy(session))
    }

    /// Returns whether the session is up.
    pub(crate) fn is_up(&self, session: SessionId) -> bool {
        self.0.with(|inner| inner.is_up(session))
    }

    /// Returns the session that is up with this peer.
    pub fn session_with(&self, transport: &str, designator: &str) -> Option<SessionId> {
        self.0
            .with(|inner| inner.session_with(transport, designator))
    }

    /// Returns the session that is up with this peer, if what is meant for that peer alone may be
    /// sent there: we dialled it, or the peer is authenticated. Any other may be with somebody
    /// who only claims the name.
    pub fn session_reached(&self, transport: &str, designator: &str) -> Option<SessionId> {
        self.0.with(|inner| {
            let up = inner.session_with(transport, designator);
            up.filter(|up| inner.is_reached(*up))
        })
    }

    /// Returns the peer's bootstrap object while the session is up.
    pub fn bootstrap(&self, session: SessionId) -> Option<Reference> {
        self.0.with(|inner| inner.bootstrap(session))
    }

    /// Asks the peer for the object of a swissnum.
    pub fn fetch(&self, session: SessionId, swissnum: &Swissnum) -> Promise {
        let secret = Bytes::copy_from_slice(swissnum.reveal());
        match self.bootstrap(session) {
            Some(bootstrap) => bootstrap.call("fetch", [Passable::Bytes(secret)]),
            None => {
                let broken = Broken::severed("the session is not up");
                Promise(Node::broken(&self.0.this, broken))
            }
        }
    }
}
