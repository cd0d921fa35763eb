//! What a plan is made of. Nothing here is left open for apply to decide.

use std::collections::BTreeMap;
use std::fmt;

use gobs_model::{Address, Block, Change, Diagnostic, Known, Name, Nesting, Network, Path, Value};
use serde::{Deserialize, Serialize};

/// What an apply is going to do, and what it rests on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whether everything goes away (`--destroy`).
    pub destroy: bool,
    /// The serial of the snapshot that was planned on. For people: a plan stays good while the
    /// rows in `reads` are as they were, whatever else has moved on.
    pub serial: u64,
    /// The rows that the plan rests on, each with the version that it had; version 0 says that
    /// there was none.
    pub reads: Vec<(Address, u64)>,
    /// What is done; a step's place in this list is its [`StepId`], and its `after` names only
    /// steps before it.
    pub steps: Vec<Step>,
    /// What has changed outside gobs, on what the configuration sets.
    pub drift: Vec<Drift>,
    /// The outputs that change, by name.
    pub outputs: Vec<OutputChange>,
    /// How many streams went through each grant that ends, when it was planned; nothing where
    /// nobody could tell. For the reader.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<Address, Option<u64>>,
    /// The nested blocks of the machines of each provider, for the reader.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, BTreeMap<String, BlockShape>>,
    /// What somebody should look at; no errors. Said when it was planned, and not kept in a file.
    #[serde(skip)]
    pub warnings: Vec<Diagnostic>,
}

/// How a nested block is written, and whether what it stands for outlives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockShape {
    /// How often it may stand.
    pub nesting: Nesting,
    /// Whether it stands for data that is kept unless its `delete` says otherwise.
    pub outlives: bool,
    /// The blocks within it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<String, Self>,
}

impl BlockShape {
    /// Returns the shapes of the blocks within a block.
    pub fn of(block: &Block) -> BTreeMap<String, Self> {
        let shapes = block.blocks.iter().map(|(name, nested)| {
            let shape = Self {
                nesting: nested.nesting,
                outlives: nested.outlives,
                blocks: Self::of(&nested.block),
            };
            (name.clone(), shape)
        });
        shapes.collect()
    }
}

/// A step's place in [`Plan::steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u32);

/// One thing that is done to one address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// This step's place in the plan.
    pub id: StepId,
    /// What it is done to.
    pub address: Address,
    /// What is done.
    pub action: Action,
    /// Why, for the reader; never for decisions.
    pub because: Vec<Because>,
    /// The steps that must have succeeded before this one starts. For a step that undoes
    /// something it is the same: what failed before it still needs what it would take away.
    pub after: Vec<StepId>,
    /// The addresses that the object depends on directly, to be stored in its row.
    pub depends_on: Vec<Address>,
    /// What a reference to the address showed before, `null` where there was nothing. For the
    /// reader.
    pub before: Value,
    /// What a reference to the address shows afterwards, with what is not known yet; `null`
    /// where nothing is left. For the reader, and for apply to hold the real object against: what
    /// was known here must be the same then.
    pub planned: Value,
}

/// What is done to one address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Makes a machine. A machine that is replaced has a [`Action::Delete`] before it.
    Create {
        /// The provider's name: `dummy`, `dummy.alias`.
        provider: String,
        /// What the row's `wanted` becomes: the provider's attributes complete by its schema, and
        /// `hob`, which is gobs' own and not for the provider.
        wanted: Value,
        /// The row's incarnation from now on.
        incarnation: u64,
        /// Whether it takes the place of one that the plan deletes.
        replaces: bool,
        /// Whether the machine is a row only.
        simulated: bool,
    },
    /// Takes over a machine that exists already, and is otherwise left as it is; what is to be
    /// changed of it is an [`Action::Update`] after this.
    Import {
        /// The provider's name.
        provider: String,
        /// What the provider calls it.
        id: String,
        /// What the row's `wanted` becomes: it counts as asked for as it is.
        wanted: Value,
        /// The row's incarnation from now on.
        incarnation: u64,
    },
    /// Changes a machine, keeping its identity.
    Update {
        /// The provider's name.
        provider: String,
        /// What the row's `wanted` becomes, as in [`Action::Create`].
        wanted: Value,
        /// The costliest change, never [`Change::Replace`]; the provider does nothing costlier.
        change: Change,
        /// The row's incarnation from now on: a new one where `change` is [`Change::Rebuild`].
        incarnation: u64,
        /// Whether the provider is called at all; otherwise only what gobs itself keeps in the
        /// row (`hob`) changes.
        calls_provider: bool,
        /// Whether the machine is a row only.
        simulated: bool,
    },
    /// Takes a machine away.
    Delete {
        /// The provider's name.
        provider: String,
        /// Whether another one takes its place in this plan.
        replaced: bool,
        /// Whether the machine is a row only.
        simulated: bool,
    },
    /// Lets the firewall of a machine let in those that its hob serves.
    Admit {
        /// The provider's name.
        provider: String,
        /// Whom.
        whom: Whom,
        /// Whether this comes after grants were taken back, and shuts out whoever had them.
        narrows: bool,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Waits until the machine's hob has registered.
    Enroll {
        /// The incarnation that registers.
        incarnation: u64,
        /// How long its first connection may take, in seconds.
        deadline_s: u64,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Makes a service known to its machine's hob, or changes it.
    Offer {
        /// What the row's `wanted` becomes.
        spec: Value,
        /// The incarnation of the machine that offers it.
        incarnation: u64,
        /// How long to wait until it answers its protocol, in seconds.
        ready_s: u64,
        /// The binding that declares it, where that is from an object.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of: Option<Address>,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Takes a service back; the hob of a machine that is deleted or rebuilt in the same plan, or
    /// that is gone, is not asked.
    Withdraw {
        /// Whether this removes the row only, since the machine that offered it ends.
        settled_by_delete: bool,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Grants a service's capability to a machine.
    Bind {
        /// What is granted.
        grant: Grant,
        /// The grant that this one takes the place of, revoked once the new one is in use.
        revokes: Option<Held>,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Lets an existing binding lead to another service: the new grant first, then the switch of
    /// its listener, then the old grant's revocation.
    Move {
        /// What is granted.
        grant: Grant,
        /// The grant that is revoked at the end.
        revokes: Held,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Lets programs see a binding in another way. The grant stays, and so do its streams.
    Expose {
        /// What is granted already, with the new `expose`.
        grant: Grant,
        /// Whether this writes the row only.
        simulated: bool,
    },
    /// Revokes a grant.
    Unbind {
        /// What is revoked.
        held: Held,
        /// Whether this removes the row only.
        simulated: bool,
    },
}

/// Whom a machine's derived firewall lets in, at the port of its hob.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Whom {
    /// The nested block that is derived, and its attribute that says whom it lets in.
    pub block: String,
    /// See `block`.
    pub attribute: String,
    /// Where the hob listens.
    pub port: u16,
    /// The machines that have bindings from this one.
    pub machines: Vec<Address>,
    /// The attributes of theirs that say from which addresses they come.
    pub attributes: Vec<String>,
    /// The networks among machines by which they come, where the hob is dialled in such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Within>,
    /// Who else, as the attribute has it: the boss, or whoever is not to be shut out yet.
    pub also: Value,
}

/// A network among machines, and in which part of it a machine is dialled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Within {
    /// The network.
    pub network: Network,
    /// Its part, as the machine that is dialled says it; null where it says nothing.
    pub part: Value,
}

/// A capability to be given out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// Higher than that of any grant that this binding ever had.
    pub generation: u64,
    /// The service.
    pub from: Address,
    /// The binding that it is given on from, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    /// The machine that gets it.
    pub to: Address,
    /// The name that programs on `to` know it by (`as`).
    pub name: Name,
    /// How it is narrowed: an object, or `null`.
    pub attenuate: Value,
    /// How programs on `to` see it: a list of objects.
    pub expose: Value,
    /// The incarnation of the service's machine.
    pub from_incarnation: u64,
    /// The incarnation of `to`.
    pub to_incarnation: u64,
    /// How long to wait until the service answers through the binding, in seconds.
    pub ready_s: u64,
    /// How long live streams may go on where the binding leads elsewhere, in seconds.
    pub drain_s: u64,
}

/// The grant that another one is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Via {
    /// The binding.
    pub binding: Address,
    /// Which grant of it.
    pub generation: u64,
}

/// A capability that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The grant's generation.
    pub generation: u64,
    /// The service.
    pub from: Address,
    /// The machine that has it.
    pub to: Address,
    /// The name that programs on `to` know it by.
    pub name: Name,
    /// Whether the hob that gave it is gone, or ends in this plan: its end is the revocation, and
    /// it is not asked.
    pub settled_by_delete: bool,
    /// Whether the hob that has it is gone, or ends in this plan: it is not asked.
    pub importer_gone: bool,
}

/// Why a step is in the plan, for the reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It is declared and does not exist.
    Declared,
    /// An `import` block takes it over.
    Imported {
        /// What its provider calls it.
        id: String,
    },
    /// Everything goes away.
    Destroy,
    /// No block declares it.
    NotDeclared,
    /// The instance's key is not among those of `count` or `for_each`.
    KeyGone,
    /// An attribute differs from what was asked last.
    Changed {
        /// Which.
        path: Path,
        /// What that costs.
        change: Change,
    },
    /// An attribute that the configuration sets was changed outside gobs.
    Drifted {
        /// Which.
        path: Path,
        /// What setting it back costs.
        change: Change,
    },
    /// The provider says that it is gone.
    Gone,
    /// Another provider, or another alias, is to have it.
    ProviderChanged {
        /// Which had it.
        was: String,
    },
    /// Its hob has not registered yet.
    NotEnrolled,
    /// Its hob never called home, and the time for that is over: what it was given to claim its
    /// place with is worthless.
    Unclaimed,
    /// The machine at one end is new, rebuilt or replaced.
    NewIncarnation {
        /// The machine.
        machine: Address,
    },
    /// An earlier offer of it did not end well: what its hob has now may be anything.
    OfferUnsettled,
    /// The binding leads to another service.
    FromChanged {
        /// The service it led to.
        was: Address,
    },
    /// The service is another one now, and what was made for the binding at it is of no use.
    ServiceChanged {
        /// The service.
        service: Address,
    },
    /// The binding that it is made from is granted again, and the grant of before ends with it.
    ParentGranted {
        /// The binding that it is made from.
        parent: Address,
    },
    /// The binding is for another machine.
    ToChanged {
        /// The machine that had it.
        was: Address,
    },
    /// An earlier revocation could not reach the exporter.
    RevokePending,
    /// The hob at one end says that it has not the grant that the state names.
    Lost {
        /// Its machine.
        machine: Address,
    },
    /// The machine of the service, or of the binding, goes away.
    MachineGone {
        /// The machine.
        machine: Address,
    },
}

/// What has changed outside gobs, on what the configuration sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The machine.
    pub address: Address,
    /// How.
    pub kind: DriftKind,
}

/// How something has changed outside gobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// The provider says that it is gone.
    Gone,
    /// Attributes have other values now.
    Changed(Vec<DriftedAttribute>),
}

/// An attribute that was changed outside gobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftedAttribute {
    /// Which.
    pub path: Path,
    /// What the provider said last.
    pub was: Value,
    /// What it says now.
    pub now: Value,
}

/// An output that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputChange {
    /// Which.
    pub name: Name,
    /// Its value until now; nothing where it is new.
    pub before: Option<Known>,
    /// Its value, as far as it is known; nothing where it goes away.
    pub after: Option<Value>,
}

/// What the planner must know beside configuration, inputs, snapshot and schemas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Plans the end of everything.
    pub destroy: bool,
    /// The providers (`dummy`, `dummy.alias`) whose machines are rows only.
    pub simulated: std::collections::BTreeSet<String>,
    /// The machines whose time to claim their place is over.
    pub unclaimed: std::collections::BTreeSet<Address>,
    /// What hobs say of bindings, as far as they could be asked.
    pub holdings: std::collections::BTreeMap<Address, Holding>,
    /// The machines that are taken over: their rows are not in the state yet.
    pub imports: std::collections::BTreeSet<Address>,
}

/// What hobs say of one binding's grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The highest generation that any of them has heard of. It may be above the state's, where
    /// that was restored from a backup.
    pub generation: u64,
    /// A machine at one of its ends that has not the grant which the state names.
    pub lost_at: Option<Address>,
}

/// How much a plan does: the two lines below it, and below an apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Machines taken over; one that is changed then is counted here and in `change`.
    #[serde(default)]
    pub import: usize,
    /// Machines created; a replaced one is counted here and in `destroy`.
    pub add: usize,
    /// Machines updated or rebuilt.
    pub change: usize,
    /// Machines deleted.
    pub destroy: usize,
    /// Bindings granted, and granted again.
    pub grant: usize,
    /// Bindings that lead to another service.
    #[serde(rename = "move")]
    pub moved: usize,
    /// Bindings that programs see in another way.
    #[serde(default)]
    pub expose: usize,
    /// Bindings revoked.
    pub revoke: usize,
}

impl Plan {
    /// Returns whether there is nothing to do, not even to an output.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.outputs.is_empty()
    }

    /// Returns the nested blocks of a provider's machines.
    pub fn blocks_of(&self, provider: &str) -> Option<&BTreeMap<String, BlockShape>> {
        let kind = provider.split('.').next().unwrap_or_default();
        self.blocks.get(kind)
    }

    /// Returns a step by its id.
    pub fn step(&self, id: StepId) -> Option<&Step> {
        self.steps.get(id.0 as usize)
    }

    /// Returns how much the plan does.
    pub fn counts(&self) -> Counts {
        Counts::of(self.steps.iter().map(|step| &step.action))
    }
}

impl Action {
    /// Returns the action's name, as the journal has it: `create`, `update`, `bind`, …
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Import { .. } => "import",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
            Self::Admit { narrows: false, .. } => "admit",
            Self::Admit { narrows: true, .. } => "narrow",
            Self::Enroll { .. } => "enroll",
            Self::Offer { .. } => "offer",
            Self::Withdraw { .. } => "withdraw",
            Self::Bind { .. } => "bind",
            Self::Move { .. } => "move",
            Self::Expose { .. } => "expose",
            Self::Unbind { .. } => "unbind",
        }
    }

    /// Returns whether the step writes rows only.
    pub fn is_simulated(&self) -> bool {
        match self {
            Self::Create { simulated, .. }
            | Self::Update { simulated, .. }
            | Self::Delete { simulated, .. }
            | Self::Admit { simulated, .. }
            | Self::Enroll { simulated, .. }
            | Self::Offer { simulated, .. }
            | Self::Withdraw { simulated, .. }
            | Self::Bind { simulated, .. }
            | Self::Move { simulated, .. }
            | Self::Expose { simulated, .. }
            | Self::Unbind { simulated, .. } => *simulated,
            Self::Import { .. } => false,
        }
    }
}

impl Counts {
    /// Returns how much these actions do. An Unbind beside a Bind of the same binding counts too.
    pub fn of<'a>(actions: impl IntoIterator<Item = &'a Action>) -> Self {
        let mut counts = Self::default();
        for action in actions {
            counts.add_action(action);
        }
        counts
    }

    /// Counts one action more: for an apply, which counts what has ended.
    pub fn add_action(&mut self, action: &Action) {
        match action {
            Action::Create { .. } => self.add += 1,
            Action::Import { .. } => self.import += 1,
            Action::Update { .. } => self.change += 1,
            Action::Delete { .. } => self.destroy += 1,
            Action::Bind { .. } => self.grant += 1,
            Action::Move { .. } => self.moved += 1,
            Action::Expose { .. } => self.expose += 1,
            Action::Unbind { .. } => self.revoke += 1,
            // It goes with the bindings that need it.
            Action::Admit { .. } => {}
            Action::Enroll { .. } | Action::Offer { .. } | Action::Withdraw { .. } => {}
        }
    }

    /// Returns `Plan: 3 to add, 1 to change, 0 to destroy.`, with what is to import before that.
    pub fn machines_planned(&self) -> String {
        format!(
            "Plan: {}{} to add, {} to change, {} to destroy.",
            self.imports("to import"),
            self.add,
            self.change,
            self.destroy
        )
    }

    fn imports(&self, word: &str) -> String {
        match self.import {
            0 => String::new(),
            count => format!("{count} {word}, "),
        }
    }

    /// Returns `Bindings: 2 to grant, 1 to move, 1 to revoke.` with what is not zero, or nothing.
    pub fn bindings_planned(&self) -> Option<String> {
        self.bindings(["to grant", "to move", "to update", "to revoke"])
    }

    /// Returns `Resources: 3 added, 1 changed, 0 destroyed.`, with what was imported before that.
    pub fn machines_done(&self) -> String {
        format!(
            "Resources: {}{} added, {} changed, {} destroyed.",
            self.imports("imported"),
            self.add,
            self.change,
            self.destroy
        )
    }

    /// Returns `Bindings: 2 granted, 1 moved, 1 revoked.` with what is not zero, or nothing.
    pub fn bindings_done(&self) -> Option<String> {
        self.bindings(["granted", "moved", "updated", "revoked"])
    }

    fn bindings(&self, words: [&str; 4]) -> Option<String> {
        let parts: Vec<String> = [self.grant, self.moved, self.expose, self.revoke]
            .iter()
            .zip(words)
            .filter(|(count, _)| **count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        (!parts.is_empty()).then(|| format!("Bindings: {}.", parts.join(", ")))
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_lines_leave_out_bindings_that_are_zero() {
        let mut counts = Counts {
            add: 2,
            change: 1,
            ..Counts::default()
        };
        assert_eq!(
            counts.machines_planned(),
            "Plan: 2 to add, 1 to change, 0 to destroy."
        );
        assert_eq!(
            counts.machines_done(),
            "Resources: 2 added, 1 changed, 0 destroyed."
        );
        assert_eq!(counts.bindings_planned(), None);
        counts.import = 1;
        assert_eq!(
            counts.machines_planned(),
            "Plan: 1 to import, 2 to add, 1 to change, 0 to destroy."
        );
        (counts.grant, counts.revoke) = (1, 3);
        assert_eq!(
            counts.bindings_planned().as_deref(),
            Some("Bindings: 1 to grant, 3 to revoke.")
        );
        assert_eq!(
            counts.bindings_done().as_deref(),
            Some("Bindings: 1 granted, 3 revoked.")
        );
    }
}
