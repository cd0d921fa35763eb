//! What a peer makes us keep, counted for its session.
//!
//! Counted is what lasts: the arguments of a call until it is done, what a promise holds as long
//! as the peer may ask for it or anything else keeps it. A message that is dealt with at once
//! leaves nothing behind, however large it was.

use std::mem::size_of;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use super::SessionId;
use super::broken::Broken;
use super::promise::{Kind, Reference, State, lock};
use crate::passable::{Passable, Tagged};
use crate::vat::Limits;

/// Why a session ends that has too much kept.
pub(crate) const TOO_MUCH_KEPT: &str = "too much is kept for the peer";

/// What is kept for the peer of one session. Shared by all that is charged to it, which may
/// outlast the session.
pub(crate) struct Usage {
    pub(crate) session: SessionId,
    calls_max: usize,
    bytes_max: usize,
    calls: AtomicUsize,
    bytes: AtomicUsize,
    over: AtomicBool,
    /// Who waits until less is kept.
    waiter: Mutex<Option<Waker>>,
    is_waited_for: AtomicBool,
}

/// A part of a [`Usage`], until it is dropped.
pub(crate) struct Charge {
    usage: Arc<Usage>,
    calls: usize,
    bytes: usize,
}

impl Usage {
    pub(crate) fn new(session: SessionId, limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            session,
            calls_max: limits.pending_max,
            bytes_max: limits.retained_max,
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            waiter: Mutex::new(None),
            is_waited_for: AtomicBool::new(false),
        })
    }

    /// Counts one more thing that the peer asked for, and the bytes that wait with it.
    pub(crate) fn call(self: &Arc<Self>, bytes: usize) -> Result<Charge, &'static str> {
        if self.calls.load(Relaxed) >= self.calls_max {
            return Err("too much waits to be done");
        }
        let mut charge = self.keep(bytes, self.bytes_max).ok_or(TOO_MUCH_KEPT)?;
        charge.calls = 1;
        self.calls.fetch_add(1, Relaxed);
        Ok(charge)
    }

    /// Counts bytes that are kept; `None` if there would be more than `most` with them.
    pub(crate) fn keep(self: &Arc<Self>, bytes: usize, most: usize) -> Option<Charge> {
        // Only the vat adds, under its lock, so nothing is added between.
        let all = self.bytes.load(Relaxed).checked_add(bytes);
        all.filter(|all| *all <= most)?;
        self.bytes.fetch_add(bytes, Relaxed);
        Some(Charge {
            usage: Arc::clone(self),
            calls: 0,
            bytes,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Waits until no more is kept than so many eighths of what may be. One task waits.
    pub(crate) fn poll_room(&self, eighths: usize, waker: &Waker) -> Poll<()> {
        let has_room = || self.bytes() <= (self.bytes_max / 8).saturating_mul(eighths);
        if has_room() {
            return Poll::Ready(());
        }
        *lock(&self.waiter) = Some(waker.clone());
        self.is_waited_for.store(true, SeqCst);
        // What was let go of before the flag was up woke nobody.
        match has_room() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    fn let_go(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, SeqCst);
        if self.is_waited_for.load(SeqCst)
            && self.is_waited_for.swap(false, SeqCst)
            && let Some(waker) = lock(&self.waiter).take()
        {
            waker.wake();
        }
    }

    /// Tells that the session is over, so that nobody counts for it any more.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}

impl Charge {
    /// Returns the session that it is charged to.
    pub(crate) fn session(&self) -> SessionId {
        self.usage.session
    }

    /// Returns the charge of one more thing that the same message asked for.
    pub(crate) fn beside(&self) -> Self {
        self.usage.calls.fetch_add(1, Relaxed);
        Self {
            usage: Arc::clone(&self.usage),
            calls: 1,
            bytes: 0,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.usage.calls.fetch_sub(self.calls, Relaxed);
        if self.bytes > 0 {
            self.usage.let_go(self.bytes);
        }
    }
}

impl std::fmt::Debug for Charge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Charge({} bytes)", self.bytes)
    }
}

/// Charges what an answer holds to who asked; false if that is too much. Half of what may be kept
/// is left for what is under way.
pub(crate) fn keep_answer(answer: &Reference, asker: &Arc<Usage>) -> bool {
    keep_within(answer, asker, asker.bytes_max / 2)
}

/// Charges what a promise holds, or will hold, and what the promises in it do, to `usage`; false
/// if that is too much. It lasts as long as the promise, whoever keeps it. Called under the
/// vat's lock.
pub(crate) fn keep(reference: &Reference, usage: &Arc<Usage>) -> bool {
    keep_within(reference, usage, usage.bytes_max)
}

fn keep_within(reference: &Reference, usage: &Arc<Usage>, most: usize) -> bool {
    let mut more = Vec::new();
    let mut next = Some(reference.clone());
    while let Some(at) = next {
        if let Kind::Promise(_, state) = &at.0.kind {
            match &mut *lock(state) {
                State::Pending(pending) => {
                    let mut have = pending.asker.iter().chain(&pending.keepers);
                    if !have.any(|have| Arc::ptr_eq(have, usage)) {
                        pending.keepers.retain(|have| !have.is_over());
                        pending.keepers.push(Arc::clone(usage));
                    }
                }
                State::Forwarded { to, .. } => more.push(to.clone()),
                State::Settled { held, .. }
                    if held.iter().any(|have| Arc::ptr_eq(&have.usage, usage)) => {}
                State::Settled { result, held, .. } => {
                    let found = |reference: &Reference| more.push(reference.clone());
                    let bytes = match result {
                        Ok(value) => weigh(value, found),
                        Err(broken) => weigh_broken(broken, found),
                    };
                    if bytes > 0 {
                        let Some(charge) = usage.keep(bytes, most) else {
                            return false;
                        };
                        held.retain(|have| !have.usage.is_over());
                        held.push(charge);
                    }
                }
            }
        }
        next = more.pop();
    }
    true
}

fn weigh_broken<'a>(broken: &'a Broken, found: impl FnMut(&'a Reference)) -> usize {
    match broken.given() {
        Some(reason) => size_of::<Passable>() + weigh(reason, found),
        None => 0,
    }
}

/// Returns how many bytes some arguments take.
pub(crate) fn weigh_args(args: &[Passable]) -> usize {
    let inside: usize = args.iter().map(|value| weigh(value, |_| ())).sum();
    size_of_val(args) + inside
}

/// Returns how many bytes a value takes beside its own place, and tells which references are in
/// it. What it shares with other values counts in full.
fn weigh<'a>(value: &'a Passable, mut found: impl FnMut(&'a Reference)) -> usize {
    let mut bytes = 0;
    let mut more = Vec::new();
    let mut next = Some(value);
    while let Some(value) = next {
        bytes += match value {
            Passable::Undefined | Passable::Null | Passable::Bool(_) | Passable::Float64(_) => 0,
            Passable::Int(n) => n.heap_bytes(),
            Passable::String(text) => text.len(),
            Passable::Symbol(symbol) => symbol.heap_bytes(),
            Passable::Bytes(bytes) => bytes.len(),
            Passable::List(values) => {
                more.extend(values);
                size_of_val(&values[..])
            }
            Passable::Struct(entries) => {
                more.extend(entries.iter().map(|(_, value)| value));
                let keys: usize = entries.iter().map(|(key, _)| key.len()).sum();
                entries.len() * size_of::<(String, Passable)>() + keys
            }
            Passable::Tagged(tagged) => {
                more.push(&tagged.value);
                size_of::<Tagged>() + tagged.tag.heap_bytes()
            }
            Passable::Error(error) => size_of::<String>() + error.message.len(),
            Passable::Sturdyref(sturdyref) => sturdyref.heap_bytes(),
            Passable::Reference(reference) => {
                found(reference);
                0
            }
            Passable::Opaque(opaque) => {
                more.extend(opaque.values());
                size_of_val(opaque.values())
            }
        };
        next = more.pop();
    }
    bytes
}
