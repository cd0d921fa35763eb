//! What gobs remembers of a project at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Address, Known, Name};
use serde::{Deserialize, Serialize};

/// One machine, service or binding that exists, or that may exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The declaration that it comes from.
    pub address: Address,
    /// What was asked last: a machine's attributes and its `hob` settings, a service's
    /// specification, a binding's ends and terms.
    pub wanted: Known,
    /// What the provider or the hobs said last.
    pub observed: Known,
    /// What this row needs directly; never what those need in turn.
    pub depends_on: Vec<Address>,
    /// The serial of the commit that wrote this row. Set by the store; ignored in a
    /// [`RowChange::PutRow`](crate::RowChange::PutRow).
    pub version: u64,
    /// What only this kind of row has.
    pub kind: RowKind,
}

/// What only one kind of row has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RowKind {
    /// A machine: its row exists from the moment its creation ended, or it was adopted.
    Machine {
        /// The provider with its alias, if any: `dummy` or `dummy.other`.
        provider: String,
        /// The provider's identifier.
        id: String,
        /// The text of the token that the machine was created under.
        token: String,
        /// Counts creations, replacements and rebuilds: one for each enrollment.
        incarnation: u64,
        /// The designator of the hob that enrolled; nothing until Enroll has ended.
        enrolled: Option<String>,
    },
    /// A service that was offered.
    Service {
        /// The incarnation of the machine that it was offered to.
        incarnation: u64,
    },
    /// A binding that was granted.
    Binding {
        /// Counts the grants of this binding; the exporter refuses lower ones.
        generation: u64,
        /// The incarnation of the exporting machine at the grant.
        from_incarnation: u64,
        /// The incarnation of the importing machine at the grant.
        to_incarnation: u64,
        /// How far it is.
        phase: Phase,
    },
}

/// How far a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Granted at the exporter and registered at the importer.
    Granted,
    /// Closed at the importer; the exporter has not yet acknowledged its revocation.
    RevokePending,
}

impl RowKind {
    /// Returns whether a row of this kind may have this address.
    pub fn suits(&self, address: &Address) -> bool {
        matches!(
            (self, address),
            (Self::Machine { .. }, Address::Machine(_))
                | (Self::Service { .. }, Address::Service { .. })
                | (Self::Binding { .. }, Address::Binding(_))
        )
    }
}

/// All rows and outputs as they were at one commit. Immutable once loaded, cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Names the project for its life: random, chosen with the state file. Empty where no state
    /// file exists yet.
    pub lineage: String,
    /// Counts the commits that changed rows or outputs.
    pub serial: u64,
    /// Counts the runs that could change something. Hobs keep the highest that they saw, so a
    /// restored state file is noticed.
    pub generation: u64,
    /// The rows by address.
    pub rows: BTreeMap<Address, Arc<Row>>,
    /// The outputs of the last apply.
    pub outputs: BTreeMap<Name, Known>,
}
