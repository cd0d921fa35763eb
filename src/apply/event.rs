//! What an apply tells whoever watches: plain data, printed by `src/cli` alone.

use std::time::Duration;

use gobs_model::{Address, Diagnostic};

use crate::plan::Counts;

/// What a step does, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// A machine is made.
    Create,
    /// A machine that exists already is taken over.
    Import,
    /// A machine is changed; it stays the same machine.
    Update,
    /// A machine's disk is written anew.
    Rebuild,
    /// A machine is deleted.
    Delete,
    /// A machine's hob claims and registers.
    Enroll,
    /// A hob is told of a service.
    Offer,
    /// A hob is told to forget a service.
    Withdraw,
    /// A binding is granted.
    Bind,
    /// A binding is pointed at another service.
    Move,
    /// A binding is revoked.
    Unbind,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A step's intent is on disk, and its effect begins.
    Started {
        /// What the step is about.
        address: Address,
        /// What it does.
        verb: Verb,
        /// The provider's id, where the machine has one already.
        id: Option<String>,
    },
    /// A step waits for something that is not gobs: `the hob`, `the provider (busy)`.
    Waiting {
        /// What the step is about.
        address: Address,
        /// What it waits for.
        what: String,
    },
    /// A provider or a hob said something worth showing.
    Progress {
        /// What the step is about.
        address: Address,
        /// What was said.
        text: String,
    },
    /// A step is done and its outcome is on disk.
    Done {
        /// What the step was about.
        address: Address,
        /// What it did.
        verb: Verb,
        /// The provider's id, where the machine has one.
        id: Option<String>,
        /// How long it took.
        took: Duration,
    },
    /// A step failed; what depends on it is skipped.
    Failed {
        /// What the step was about.
        address: Address,
        /// What it tried.
        verb: Verb,
        /// What is wrong and what to do.
        diagnostic: Box<Diagnostic>,
    },
    /// A step is not tried, since something that it needs failed.
    Skipped {
        /// What the step was about.
        address: Address,
        /// What it would have done.
        verb: Verb,
        /// The step that failed.
        because: Address,
    },
    /// What a run that was cut off had left was settled.
    Recovered {
        /// What the step was about.
        address: Address,
        /// The run that left it.
        run: u64,
        /// What came of it: `adopted`, `not created`, `deleted`.
        what: String,
    },
    /// Ctrl-C: nothing more is started; this many steps still run.
    Stopping {
        /// How many.
        running: usize,
    },
}

/// How an apply ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What was done.
    pub counts: Counts,
    /// Bindings that could not be revoked yet: a hob is away, or something is left at a server.
    pub revoke_pending: usize,
    /// Steps that failed.
    pub failed: usize,
    /// Steps that were not started: something failed before, or Ctrl-C.
    pub remaining: Vec<Address>,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

impl Summary {
    /// Returns whether everything that was planned is done.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.remaining.is_empty() && self.revoke_pending == 0
    }
}
