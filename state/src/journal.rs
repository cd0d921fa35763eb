//! The journal: what was begun, before it is begun, and how it ended.

use std::time::SystemTime;

use gobs_model::{Address, Known, Name};

use crate::{NewClaim, Row};

/// What is about to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// What it is done to.
    pub address: Address,
    /// The step's name, such as `create` or `bind`.
    pub action: String,
    /// By which the effect can be found at the provider.
    pub token: Option<String>,
    /// The claim that becomes durable with the intent, where a new hob is invited.
    pub claim: Option<NewClaim>,
    /// Whatever recovery needs; sealed whole, and forgotten when the step ends.
    pub detail: serde_json::Value,
}

/// Proof that an intent is on disk: without one, nothing outside gobs is changed.
///
/// Dropped, it leaves the step in doubt, which is the truth.
#[derive(Debug, PartialEq)]
#[must_use = "a step that was started is in doubt until it is finished"]
pub struct Started {
    pub(crate) id: i64,
    pub(crate) intent: Intent,
}

impl Started {
    /// Returns what was begun.
    pub fn intent(&self) -> &Intent {
        &self.intent
    }

    /// Returns the number of the journal entry.
    pub fn id(&self) -> i64 {
        self.id
    }
}

/// A step that ended, and what it changed.
#[derive(Debug, PartialEq)]
pub struct Finished {
    /// The step.
    pub started: Started,
    /// How it ended.
    pub outcome: Outcome,
    /// What is true since; a failed step may change rows too.
    pub changes: Vec<RowChange>,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As intended.
    Done,
    /// Not as intended, and this is known for sure; says why.
    Failed(String),
}

/// A change of what is remembered.
#[derive(Clone, Debug, PartialEq)]
pub enum RowChange {
    /// Writes a row, whether or not there was one.
    PutRow(Box<Row>),
    /// Removes a row, if there is one.
    RemoveRow(Address),
    /// Writes an output, or removes it.
    PutOutput(Name, Option<Known>),
}

/// A step without a known end: the run that began it was cut short.
#[derive(Debug, PartialEq)]
pub struct Doubt {
    /// The step.
    pub started: Started,
    /// The number of the run that began it.
    pub run: u64,
    /// When it was begun.
    pub since: SystemTime,
}

/// One run of a command that could change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Counts from 1.
    pub number: u64,
    /// The command's name, such as `apply`.
    pub command: String,
    /// When it began.
    pub started_at: SystemTime,
}
