//! References, promises and resolvers: what programs hold.
//!
//! Every one of them points to a [`Node`]. Transitions happen under the vat's lock; the small
//! lock in a promise's node only guards its memory, and is never held while another is taken.

use std::fmt;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use super::Place;
use super::broken::Broken;
use super::usage::{Charge, Usage};
use crate::locator::PeerId;
use crate::passable::{Passable, Symbol};
use crate::vat::{Dropped, Object, Shared};

/// A live object or promise, of this vat or of another peer.
///
/// Clones are the same reference. When the last clone of a remote reference is dropped, the peer
/// is told that it may collect the object.
#[derive(Clone)]
pub struct Reference(pub(crate) Arc<Node>);

/// The result of a call that may not be there yet.
///
/// A promise is a future, and it can be called before it is resolved: the messages go to the
/// peer that will have the result, without waiting for a round trip.
#[derive(Clone)]
pub struct Promise(pub(crate) Reference);

/// The right to resolve one promise, once. Dropped unused, it breaks the promise.
#[derive(Debug)]
pub struct Resolver(Option<Reference>, Option<Charge>);

pub(crate) struct Node {
    pub(crate) vat: Weak<Shared>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    /// An object of this vat; `None` only while it is being dropped.
    Object(Option<Arc<dyn Object>>),
    /// An object of a peer.
    Remote(Place),
    /// A promise, wherever its messages go.
    Promise(Route, Mutex<State>),
    /// Resolves the promise; empty once it has.
    Resolver(Mutex<Option<Reference>>),
    /// The bootstrap object as the peer of one session sees it.
    Bootstrap(super::SessionId),
}

/// Where messages to an unresolved promise go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Nowhere yet: they wait in the node.
    Here,
    /// To the answer that the peer will compute for our question.
    Answer(Place),
    /// To the promise that the peer sent us.
    Import(Place),
}

impl Route {
    pub(crate) fn place(self) -> Option<Place> {
        match self {
            Self::Here => None,
            Self::Answer(place) | Self::Import(place) => Some(place),
        }
    }
}

pub(crate) enum State {
    Pending(Pending),
    /// Became another promise, which was not settled then.
    Forwarded {
        to: Reference,
        by_route: bool,
    },
    /// `by_route`: later messages still travel by the old route, since earlier ones did and
    /// might otherwise be overtaken.
    Settled {
        result: Result<Passable, Broken>,
        by_route: bool,
        /// What the result costs those for whom it is kept.
        held: Vec<Charge>,
    },
}

impl State {
    /// Returns whether the answer of a question was given back to the peer when the question was
    /// settled.
    pub(crate) fn was_collected(&self) -> bool {
        match self {
            Self::Pending(_) => false,
            Self::Forwarded { by_route, .. } | Self::Settled { by_route, .. } => !by_route,
        }
    }
}

#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) queue: Vec<Delivery>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) wakers: Vec<Waker>,
    /// Whose question this is the answer to.
    pub(crate) asker: Option<Arc<Usage>>,
    /// For whom else the result will be kept.
    pub(crate) keepers: Vec<Arc<Usage>>,
    /// Whether a message was sent along the route.
    pub(crate) used_route: bool,
    /// Whether the peer was asked to tell the resolution.
    pub(crate) listening: bool,
}

/// One message on its way to a target.
pub(crate) struct Delivery {
    pub(crate) args: Vec<Passable>,
    /// The promise that gets the answer.
    pub(crate) answer: Option<Reference>,
    pub(crate) from: Option<Arc<PeerId>>,
    /// Set for a message of a peer.
    pub(crate) charge: Option<Charge>,
}

/// Who is told when a promise settles.
pub(crate) enum Listener {
    /// An object of a peer that takes `fulfill` and `break`.
    Wire(Reference, Charge),
    /// A promise that becomes a part of the result, perhaps for a peer.
    Part(Reference, Part, Option<Charge>),
}

/// What `op:get`, `op:index` and `op:untag` take from a value.
pub(crate) enum Part {
    Field(String),
    Index(u64),
    Untag(Symbol),
}

impl Part {
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Field(name) => name.len(),
            Self::Index(_) => 0,
            Self::Untag(tag) => tag.heap_bytes(),
        }
    }

    /// Returns the part of `value`, or why there is none.
    pub(crate) fn of(&self, value: &Passable) -> Result<Passable, Broken> {
        let wrong = || Broken::new("wrong-type", format!("no parts in a {}", value.kind()));
        match self {
            Self::Field(name) => {
                let entries = value.as_struct().ok_or_else(wrong)?;
                entries
                    .get(name)
                    .cloned()
                    .ok_or_else(|| Broken::new("absent", "no such field"))
            }
            Self::Index(index) => {
                let values = value.as_list().ok_or_else(wrong)?;
                let value = usize::try_from(*index).ok().and_then(|at| values.get(at));
                value
                    .cloned()
                    .ok_or_else(|| Broken::new("absent", "index out of range"))
            }
            Self::Untag(tag) => {
                let (found, inside) = tagged(value).ok_or_else(wrong)?;
                match found == tag.as_str() {
                    true => Ok(inside.clone()),
                    false => Err(Broken::new("absent", "another tag")),
                }
            }
        }
    }
}

/// Returns the tag of a tagged value, and what is under it. Other forms than ours are records that
/// are not known, and stay as they came: that of Goblins, and one that was proposed.
fn tagged(value: &Passable) -> Option<(&str, &Passable)> {
    match value {
        Passable::Tagged(tagged) => Some((tagged.tag.as_str(), &tagged.value)),
        Passable::Opaque(record) => match (record.label().as_symbol()?, record.fields()) {
            ("user-record" | "desc:tag", [tag, inside]) => {
                Some((tag.as_str().or_else(|| tag.as_symbol())?, inside))
            }
            _ => None,
        },
        _ => None,
    }
}

/// Takes the lock whether or not a panic elsewhere poisoned it: no state here is left half made.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    pub(crate) fn promise(vat: &Weak<Shared>, route: Route) -> Reference {
        let state = Mutex::new(State::Pending(Pending::default()));
        Reference(Arc::new(Self {
            vat: vat.clone(),
            kind: Kind::Promise(route, state),
        }))
    }

    /// Returns the promise of what a peer asked for.
    pub(crate) fn answer(vat: &Weak<Shared>, asker: &Arc<Usage>) -> Reference {
        let state = Mutex::new(State::Pending(Pending {
            asker: Some(Arc::clone(asker)),
            ..Pending::default()
        }));
        Self::reference(vat, Kind::Promise(Route::Here, state))
    }

    pub(crate) fn broken(vat: &Weak<Shared>, broken: Broken) -> Reference {
        let state = Mutex::new(State::Settled {
            result: Err(broken),
            by_route: false,
            held: Vec::new(),
        });
        Reference(Arc::new(Self {
            vat: vat.clone(),
            kind: Kind::Promise(Route::Here, state),
        }))
    }

    pub(crate) fn reference(vat: &Weak<Shared>, kind: Kind) -> Reference {
        Reference(Arc::new(Self {
            vat: vat.clone(),
            kind,
        }))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let dropped = match &mut self.kind {
            // A program's own `Drop` must not run while the vat is locked, and chains of
            // promises must not unwind on the stack: the vat drops both in a loop of its own.
            Kind::Object(object) => object.take().map(Dropped::Object),
            Kind::Remote(place) => Some(Dropped::Import(*place)),
            Kind::Promise(route, state) => {
                let empty = State::Pending(Pending::default());
                let state = mem::replace(
                    state.get_mut().unwrap_or_else(PoisonError::into_inner),
                    empty,
                );
                Some(Dropped::Promise(*route, Box::new(state)))
            }
            Kind::Resolver(promise) => {
                let promise = promise.get_mut().unwrap_or_else(PoisonError::into_inner);
                promise.take().map(Dropped::Resolver)
            }
            Kind::Bootstrap(_) => None,
        };
        if let Some(dropped) = dropped {
            match self.vat.upgrade() {
                Some(vat) => vat.dropped(dropped),
                None => super::drop_flat(dropped),
            }
        }
    }
}

impl Reference {
    /// Calls `method` with `args` and returns the promise of the result.
    pub fn call(&self, method: &str, args: impl IntoIterator<Item = Passable>) -> Promise {
        self.call_raw(with_method(method, args))
    }

    /// Delivers `args` as they are, without a method's name, and returns the promise of the
    /// result.
    pub fn call_raw(&self, args: Vec<Passable>) -> Promise {
        match self.0.vat.upgrade() {
            Some(vat) => vat.call(self, args),
            None => Promise(Node::broken(
                &Weak::new(),
                Broken::severed("the vat has ended"),
            )),
        }
    }

    /// Calls `method` with `args` and wants no result.
    pub fn send(&self, method: &str, args: impl IntoIterator<Item = Passable>) {
        self.send_raw(with_method(method, args));
    }

    /// Delivers `args` as they are and wants no result.
    pub fn send_raw(&self, args: Vec<Passable>) {
        if let Some(vat) = self.0.vat.upgrade() {
            vat.send(self, args);
        }
    }

    /// Returns a promise for what this reference is in the end: itself for an object, the
    /// resolution for a promise.
    pub fn resolution(&self) -> Promise {
        Promise(self.clone())
    }

    /// Returns whether this is an object of the local vat.
    pub fn is_local(&self) -> bool {
        matches!(self.0.kind, Kind::Object(_))
    }

    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Returns what this reference is now, with resolved promises followed to their ends. An
    /// error is a promise that broke, or became a value that takes no messages.
    pub(crate) fn shortened(&self) -> Result<Self, Broken> {
        let mut at = self.clone();
        let (mut hops, mut short_cut) = (0_usize, true);
        loop {
            let next = match &at.0.kind {
                Kind::Promise(_, state) => match &*lock(state) {
                    State::Pending(_) => None,
                    State::Forwarded { to, by_route }
                    | State::Settled {
                        result: Ok(Passable::Reference(to)),
                        by_route,
                        ..
                    } => {
                        short_cut &= !by_route;
                        Some(to.clone())
                    }
                    State::Settled {
                        result: Ok(value), ..
                    } => {
                        let text = format!("a {} takes no messages", value.kind());
                        return Err(Broken::new("not-callable", text));
                    }
                    State::Settled {
                        result: Err(broken),
                        ..
                    } => return Err(broken.clone()),
                },
                _ => None,
            };
            let Some(next) = next else { break };
            hops += 1;
            at = next;
        }
        // What was found is remembered, so that a long chain is walked once; but messages must
        // not pass by a promise that keeps them to its old way.
        if hops > 1
            && short_cut
            && let Kind::Promise(_, state) = &self.0.kind
        {
            let mut state = lock(state);
            if let State::Forwarded { to, .. } = &mut *state {
                let old = mem::replace(to, at.clone());
                drop(state);
                drop(old);
            }
        }
        Ok(at)
    }
}

fn with_method(method: &str, args: impl IntoIterator<Item = Passable>) -> Vec<Passable> {
    let args = args.into_iter();
    let mut all = Vec::with_capacity(1 + args.size_hint().0);
    all.push(Passable::symbol(method));
    all.extend(args);
    all
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Reference {}

impl Hash for Reference {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.kind {
            Kind::Object(_) => f.write_str("<object>"),
            Kind::Remote(place) => write!(f, "<remote {}>", place.position),
            Kind::Promise(..) => f.write_str("<promise>"),
            Kind::Resolver(_) => f.write_str("<resolver>"),
            Kind::Bootstrap(_) => f.write_str("<bootstrap>"),
        }
    }
}

impl Promise {
    /// Calls `method` on what this promise will be.
    pub fn call(&self, method: &str, args: impl IntoIterator<Item = Passable>) -> Self {
        self.0.call(method, args)
    }

    /// Delivers `args` to what this promise will be.
    pub fn call_raw(&self, args: Vec<Passable>) -> Self {
        self.0.call_raw(args)
    }

    /// Calls `method` on what this promise will be, and wants no result.
    pub fn send(&self, method: &str, args: impl IntoIterator<Item = Passable>) {
        self.0.send(method, args);
    }

    /// Returns the promise of a field of the struct that this promise will be. It is taken out
    /// where the struct is (`op:get`), so that calls to it need no round trip.
    pub fn get(&self, field: impl Into<String>) -> Self {
        self.part(Part::Field(field.into()))
    }

    /// Returns the promise of an item of the list that this promise will be, from 0 (`op:index`).
    pub fn index(&self, index: u64) -> Self {
        self.part(Part::Index(index))
    }

    /// Returns the promise of the value under this tag that this promise will be (`op:untag`).
    pub fn untag(&self, tag: &str) -> Self {
        self.part(Part::Untag(Symbol::new(tag)))
    }

    fn part(&self, part: Part) -> Self {
        match self.0.0.vat.upgrade() {
            Some(vat) => vat.part(&self.0, part),
            None => Self(Node::broken(
                &Weak::new(),
                Broken::severed("the vat has ended"),
            )),
        }
    }

    /// Returns the promise as a reference, to be passed in messages.
    pub fn as_reference(&self) -> &Reference {
        &self.0
    }

    /// Returns the result if it is there already.
    pub fn now(&self) -> Option<Result<Passable, Broken>> {
        match self.look(None) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    fn look(&self, waker: Option<&Waker>) -> Poll<Result<Passable, Broken>> {
        let mut at = self.0.clone();
        loop {
            let Kind::Promise(route, state) = &at.0.kind else {
                return Poll::Ready(Ok(Passable::Reference(at)));
            };
            let mut state = lock(state);
            let next = match &mut *state {
                State::Forwarded { to, .. } => to.clone(),
                State::Settled {
                    result: Ok(Passable::Reference(to)),
                    ..
                } => to.clone(),
                State::Settled { result, .. } => return Poll::Ready(result.clone()),
                State::Pending(pending) => {
                    let Some(waker) = waker else {
                        return Poll::Pending;
                    };
                    if !pending.wakers.iter().any(|have| have.will_wake(waker)) {
                        pending.wakers.push(waker.clone());
                    }
                    let ask = matches!(route, Route::Import(_)) && !pending.listening;
                    drop(state);
                    if ask && let Some(vat) = at.0.vat.upgrade() {
                        vat.listen(&at);
                    }
                    return Poll::Pending;
                }
            };
            drop(state);
            at = next;
        }
    }
}

impl Future for Promise {
    type Output = Result<Passable, Broken>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.look(Some(cx.waker()))
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<promise>")
    }
}

impl From<Promise> for Reference {
    fn from(promise: Promise) -> Self {
        promise.0
    }
}

impl Resolver {
    pub(crate) fn new(promise: Reference) -> Self {
        Self(Some(promise), None)
    }

    /// Returns a resolver that a peer waits for.
    pub(crate) fn charged(promise: Reference, charge: Option<Charge>) -> Self {
        Self(Some(promise), charge)
    }

    /// Resolves the promise to `value`; a reference to a promise makes it follow that one.
    pub fn fulfill(self, value: impl Into<Passable>) {
        self.settle(Ok(value.into()));
    }

    /// Breaks the promise.
    pub fn break_(self, reason: Broken) {
        self.settle(Err(reason));
    }

    /// Resolves or breaks the promise.
    pub fn settle(mut self, result: Result<Passable, Broken>) {
        self.end(result);
    }

    /// Returns an object that peers can call with `fulfill` or `break` once.
    pub fn into_reference(mut self) -> Reference {
        let promise = self.0.take();
        let vat = promise
            .as_ref()
            .map_or_else(Weak::new, |promise| promise.0.vat.clone());
        Node::reference(&vat, Kind::Resolver(Mutex::new(promise)))
    }

    fn end(&mut self, result: Result<Passable, Broken>) {
        drop(self.1.take());
        if let Some(promise) = self.0.take()
            && let Some(vat) = promise.0.vat.upgrade()
        {
            vat.settle(promise, result);
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.end(Err(Broken::new(
                "dropped",
                "nobody is left to resolve this promise",
            )));
        }
    }
}
