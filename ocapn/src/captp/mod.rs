//! One CapTP session as a state machine: bytes and calls in, bytes and events out.
//!
//! Nothing here does I/O, looks at a clock or makes randomness; `vat` drives the sessions and
//! runs the objects.

use std::cell::RefCell;

pub(crate) mod broken;
pub(crate) mod crypto;
pub(crate) mod handoff;
pub(crate) mod message;
pub(crate) mod promise;
pub(crate) mod session;
pub(crate) mod tables;
pub(crate) mod usage;

use crate::vat::Dropped;

/// Names one session of a vat; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) slot: u32,
    pub(crate) serial: u32,
}

/// A position in a table of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) session: SessionId,
    pub(crate) position: u64,
}

thread_local! {
    /// What is to be dropped on this thread; `None` while nobody empties it.
    static DROPPING: RefCell<Option<Vec<Dropped>>> = const { RefCell::new(None) };
}

/// Drops without recursion: what falls out of a promise while it is dropped is dropped after it,
/// not inside.
pub(crate) fn drop_flat(dropped: Dropped) {
    let nested = DROPPING.with_borrow_mut(|queue| match queue {
        Some(queue) => {
            queue.push(dropped);
            None
        }
        None => {
            *queue = Some(Vec::new());
            Some(dropped)
        }
    });
    let mut next = nested;
    if next.is_none() {
        return;
    }
    while let Some(dropped) = next {
        drop(dropped);
        next = DROPPING.with_borrow_mut(|queue| queue.as_mut().and_then(Vec::pop));
    }
    DROPPING.with_borrow_mut(|queue| *queue = None);
}
