//! The plan's own checker: it trusts nothing that planning said, follows the steps over the rows,
//! and looks at what would be there at the end. What it finds is a bug in gobs, not in a project.

use std::collections::{BTreeMap, BTreeSet};

use gobs_model::{Address, Block, Change, Instance, Role, Value};
use gobs_state::{Phase, Row, RowKind, Snapshot};

use crate::lang::{Config, Schemas};

use super::diff::hob_enabled;
use super::machines::provider_name;
use super::{Action, DriftKind, Grant, Held, Plan, Step, StepId};

/// A plan that cannot be right: nothing of it may be applied, and it is worth a bug report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the plan contradicts itself, which is a bug in gobs: {}", .findings.join("; "))]
pub struct ImpossiblePlan {
    /// What is wrong with it, each a fragment.
    pub findings: Vec<String>,
}

/// Checks that a plan can be applied, and that applying it leaves what is declared.
///
/// # Errors
/// Everything that is wrong with it.
pub fn review(
    config: &Config,
    schemas: &Schemas,
    snapshot: &Snapshot,
    plan: &Plan,
) -> Result<(), ImpossiblePlan> {
    let mut review = Review {
        snapshot,
        plan,
        schemas,
        rows: snapshot
            .rows
            .iter()
            .filter_map(|(at, row)| Some((at, Left::of(row)?)))
            .collect(),
        gone: plan
            .drift
            .iter()
            .filter(|drift| drift.kind == DriftKind::Gone)
            .map(|drift| &drift.address)
            .collect(),
        steps: BTreeMap::new(),
        unbinds: BTreeMap::new(),
        findings: Vec::new(),
    };
    for (place, step) in plan.steps.iter().enumerate() {
        review.order(place, step);
        review.step(step);
        review.steps.entry(&step.address).or_default().push(step);
    }
    review.end(config);
    match review.findings.is_empty() {
        true => Ok(()),
        false => Err(ImpossiblePlan {
            findings: review.findings,
        }),
    }
}

/// What there is of an address after the steps so far.
#[derive(Clone, Copy)]
enum Left<'a> {
    Machine {
        incarnation: u64,
        enrolled: bool,
        wanted: &'a Value,
    },
    Service {
        incarnation: u64,
    },
    Binding {
        generation: u64,
        from: &'a Address,
        /// What it is made from.
        parent: Option<(&'a Address, u64)>,
        to: &'a Address,
        ends: [u64; 2],
        granted: bool,
    },
}

impl<'a> Left<'a> {
    fn of(row: &'a Row) -> Option<Self> {
        Some(match &row.kind {
            RowKind::Machine {
                incarnation,
                enrolled,
                ..
            } => Self::Machine {
                incarnation: *incarnation,
                enrolled: enrolled.is_some(),
                wanted: row.wanted.value(),
            },
            RowKind::Service { incarnation, .. } => Self::Service {
                incarnation: *incarnation,
            },
            RowKind::Binding {
                generation,
                from_incarnation,
                to_incarnation,
                parent,
                phase,
            } => Self::Binding {
                generation: *generation,
                from: {
                    let service = row.wanted.get("service").and_then(Value::as_ref_address);
                    service.or_else(|| row.wanted.get("from")?.as_ref_address())?
                },
                parent: parent
                    .and_then(|parent| Some((row.wanted.get("from")?.as_ref_address()?, parent))),
                to: row.wanted.get("to")?.as_ref_address()?,
                ends: [*from_incarnation, *to_incarnation],
                granted: *phase == Phase::Granted,
            },
        })
    }
}

struct Review<'a> {
    snapshot: &'a Snapshot,
    plan: &'a Plan,
    schemas: &'a Schemas,
    rows: BTreeMap<&'a Address, Left<'a>>,
    gone: BTreeSet<&'a Address>,
    /// The steps so far.
    steps: BTreeMap<&'a Address, Vec<&'a Step>>,
    /// The Unbinds so far, by the machines at both ends.
    unbinds: BTreeMap<&'a Instance, Vec<StepId>>,
    findings: Vec<String>,
}

impl<'a> Review<'a> {
    fn find(&mut self, step: &Step, what: &str) {
        let (id, name, address) = (step.id, step.action.name(), &step.address);
        self.findings
            .push(format!("step {id} ({name} {address}) {what}"));
    }

    fn order(&mut self, place: usize, step: &Step) {
        if step.id.0 as usize != place {
            self.find(step, "has another step's place");
        }
        if step.after.iter().any(|id| *id >= step.id) {
            self.find(step, "waits for itself or for a later step");
        }
        let before = self.steps.get(&step.address).cloned().unwrap_or_default();
        if before
            .iter()
            .any(|it| it.action.name() == step.action.name())
        {
            self.find(step, "is there twice");
        }
        if let Some(earlier) = before.last() {
            if !step.after.contains(&earlier.id) {
                self.find(
                    step,
                    "does not wait for the earlier step on the same address",
                );
            }
            let pair = (&earlier.action, &step.action);
            let follows = matches!(
                pair,
                (
                    Action::Delete { replaced: true, .. },
                    Action::Create { replaces: true, .. }
                ) | (_, Action::Enroll { .. } | Action::Admit { .. })
                    | (Action::Import { .. }, Action::Update { .. })
                    | (Action::Unbind { .. }, Action::Bind { .. })
            );
            if !follows {
                self.find(step, "settles what another step has settled");
            }
        }
    }

    fn step(&mut self, step: &'a Step) {
        let address = &step.address;
        let suits = match &step.action {
            Action::Create { .. }
            | Action::Import { .. }
            | Action::Update { .. }
            | Action::Delete { .. }
            | Action::Admit { .. }
            | Action::Enroll { .. } => matches!(address, Address::Machine(_)),
            Action::Offer { .. } | Action::Withdraw { .. } => {
                matches!(address, Address::Service { .. })
            }
            Action::Bind { .. }
            | Action::Move { .. }
            | Action::Expose { .. }
            | Action::Unbind { .. } => matches!(address, Address::Binding(_)),
        };
        if !suits {
            return self.find(step, "is not for an address of that kind");
        }
        match &step.action {
            Action::Create {
                provider,
                wanted,
                incarnation,
                ..
            } => {
                let was = self.rows.get(address).copied();
                if was.is_some() && !self.gone.contains(address) {
                    self.find(step, "creates what exists");
                }
                self.make(step, provider, wanted, *incarnation, was, true);
            }
            Action::Import { incarnation, .. } => {
                let row = self.snapshot.rows.get(address);
                if row.is_none_or(|row| row.version > 0) {
                    self.find(step, "imports what the state has, or what nobody has seen");
                }
                if self.incarnation_before(step) != Some(*incarnation) {
                    self.find(step, "has an incarnation that is not that of its row");
                }
            }
            Action::Update {
                provider,
                wanted,
                change,
                incarnation,
                ..
            } => {
                let was = self.rows.get(address).copied();
                if was.is_none() {
                    self.find(step, "updates what does not exist");
                }
                if *change == Change::Replace {
                    self.find(step, "replaces in one step");
                }
                let rebuilt = *change == Change::Rebuild;
                if rebuilt {
                    self.ends_hob(step);
                }
                self.make(step, provider, wanted, *incarnation, was, rebuilt);
            }
            Action::Delete { .. } => {
                self.ends_hob(step);
                if self.rows.remove(address).is_none() {
                    self.find(step, "deletes what does not exist");
                }
            }
            Action::Admit { .. } => {
                if !matches!(self.rows.get(address), Some(Left::Machine { .. })) {
                    self.find(step, "changes the firewall of what does not exist");
                }
            }
            Action::Enroll { incarnation, .. } => match self.rows.get_mut(address) {
                Some(Left::Machine {
                    incarnation: is,
                    enrolled,
                    ..
                }) if *is == *incarnation && !*enrolled => {
                    *enrolled = true;
                }
                _ => self.find(step, "enrolls a machine that does not wait for it"),
            },
            Action::Offer {
                incarnation, of, ..
            } => {
                let machine = address.as_machine().cloned().map(Address::Machine);
                self.serves(step, machine.as_ref(), *incarnation);
                if !of
                    .as_ref()
                    .is_none_or(|it| matches!(it, Address::Binding(_)))
                {
                    self.find(step, "is declared by what is no binding");
                }
                self.rows.insert(
                    address,
                    Left::Service {
                        incarnation: *incarnation,
                    },
                );
            }
            Action::Withdraw { .. } => {
                if self.rows.remove(address).is_none() {
                    self.find(step, "withdraws what was not offered");
                }
            }
            Action::Bind { grant, .. } | Action::Move { grant, .. } => self.grant(step, grant),
            Action::Expose { grant, .. } => self.expose(step, grant),
            Action::Unbind { held, .. } => {
                let had = self.rows.remove(address);
                self.held(step, had, held);
                for end in [&held.from, &held.to]
                    .into_iter()
                    .filter_map(Address::as_machine)
                {
                    self.unbinds.entry(end).or_default().push(step.id);
                }
            }
        }
    }

    fn make(
        &mut self,
        step: &'a Step,
        provider: &str,
        wanted: &'a Value,
        incarnation: u64,
        was: Option<Left<'a>>,
        fresh: bool,
    ) {
        let (last, enrolled) = match was {
            Some(Left::Machine {
                incarnation,
                enrolled,
                ..
            }) => (Some(incarnation), enrolled),
            _ => (self.incarnation_before(step), false),
        };
        let right = match (fresh, last) {
            (true, last) => last.is_none_or(|last| incarnation > last) && incarnation > 0,
            (false, last) => last == Some(incarnation),
        };
        if !right {
            self.find(
                step,
                "has an incarnation that does not follow from the last",
            );
        }
        match self.schemas.get(provider_name(provider)) {
            None => self.find(step, "is for a provider that has no schema"),
            Some(schema) => {
                if let Some(name) = missing(&schema.machine, wanted) {
                    self.find(step, &format!("lacks the attribute {name}"));
                }
            }
        }
        let enrolled = enrolled && !fresh;
        let left = Left::Machine {
            incarnation,
            enrolled,
            wanted,
        };
        self.rows.insert(&step.address, left);
    }

    /// Returns the incarnation that a machine had before the plan.
    fn incarnation_before(&self, step: &Step) -> Option<u64> {
        match self.snapshot.rows.get(&step.address)?.kind {
            RowKind::Machine { incarnation, .. } => Some(incarnation),
            RowKind::Service { .. } | RowKind::Binding { .. } => None,
        }
    }

    /// Checks that whoever must be told by the hob that ends was told.
    fn ends_hob(&mut self, step: &Step) {
        let machine = step.address.as_machine();
        let unbinds = machine
            .and_then(|it| self.unbinds.get(it))
            .cloned()
            .unwrap_or_default();
        if unbinds.iter().any(|unbind| !step.after.contains(unbind)) {
            self.find(step, "does not wait for an unbind at this machine");
        }
    }

    /// Checks that a machine's hob serves when the step starts.
    fn serves(&mut self, step: &Step, machine: Option<&Address>, incarnation: u64) {
        let Some(machine) = machine else {
            return self.find(step, "is for no machine");
        };
        let ready = matches!(
            self.rows.get(machine),
            Some(Left::Machine { incarnation: is, enrolled: true, .. }) if *is == incarnation
        );
        if !ready {
            self.find(step, &format!("needs a hob of {machine} that is not there"));
        }
        let steps = self.steps.get(machine).cloned().unwrap_or_default();
        let makes = steps
            .iter()
            .filter(|it| !matches!(it.action, Action::Delete { .. } | Action::Admit { .. }));
        if makes.into_iter().any(|it| !step.after.contains(&it.id)) {
            self.find(step, &format!("does not wait for {machine}"));
        }
    }

    fn grant(&mut self, step: &'a Step, grant: &'a Grant) {
        let from = grant.from.as_machine().cloned().map(Address::Machine);
        self.serves(step, from.as_ref(), grant.from_incarnation);
        self.serves(step, Some(&grant.to), grant.to_incarnation);
        if matches!(grant.from, Address::Service { .. }) {
            let offered = matches!(
                self.rows.get(&grant.from),
                Some(Left::Service { incarnation }) if *incarnation == grant.from_incarnation
            );
            if !offered {
                self.find(
                    step,
                    &format!("grants {}, which is not offered", grant.from),
                );
            }
            let offers = self.steps.get(&grant.from).cloned().unwrap_or_default();
            if offers.iter().any(|offer| !step.after.contains(&offer.id)) {
                self.find(step, &format!("does not wait for {}", grant.from));
            }
        }
        let exporter = from.as_ref().and_then(|it| self.steps.get(it));
        let is_shut = exporter.into_iter().flatten().any(|it| {
            let admits = matches!(it.action, Action::Admit { narrows: false, .. });
            admits && !step.after.contains(&it.id)
        });
        if is_shut {
            self.find(step, "does not wait until the firewall lets its machine in");
        }
        let had = self.rows.get(&step.address).copied();
        if let Some(Left::Binding { generation, .. }) = had
            && grant.generation <= generation
        {
            self.find(step, "has a generation that is not higher than the last");
        }
        match &step.action {
            Action::Bind {
                revokes: Some(held),
                ..
            }
            | Action::Move { revokes: held, .. } => {
                self.held(step, had, held);
            }
            _ => {}
        }
        if let Some(via) = &grant.via {
            let granted = matches!(
                self.rows.get(&via.binding),
                Some(Left::Binding { generation, .. }) if *generation == via.generation
            );
            if !granted {
                let what = format!("is made from a grant of {} that is not there", via.binding);
                self.find(step, &what);
            }
            // The one that makes it waits for the one that ends it, where both are there.
            let steps = self.steps.get(&via.binding).cloned().unwrap_or_default();
            if steps.last().is_some_and(|it| !step.after.contains(&it.id)) {
                self.find(step, &format!("does not wait for {}", via.binding));
            }
        }
        let left = Left::Binding {
            generation: grant.generation,
            from: &grant.from,
            parent: grant.via.as_ref().map(|via| (&via.binding, via.generation)),
            to: &grant.to,
            ends: [grant.from_incarnation, grant.to_incarnation],
            granted: true,
        };
        self.rows.insert(&step.address, left);
    }

    fn expose(&mut self, step: &'a Step, grant: &'a Grant) {
        self.serves(step, Some(&grant.to), grant.to_incarnation);
        let is = self.rows.get(&step.address);
        let stays = matches!(
            is,
            Some(Left::Binding { generation, from, parent, to, ends, granted: true })
                if *generation == grant.generation
                    && **from == grant.from
                    && **to == grant.to
                    && *parent == grant.via.as_ref().map(|via| (&via.binding, via.generation))
                    && *ends == [grant.from_incarnation, grant.to_incarnation]
        );
        if !stays {
            self.find(step, "keeps a grant that is not there");
        }
    }

    fn held(&mut self, step: &Step, had: Option<Left<'_>>, held: &Held) {
        let right = matches!(
            had,
            Some(Left::Binding { generation, from, to, .. })
                if generation == held.generation && *from == held.from && *to == held.to
        );
        if !right {
            self.find(step, "revokes what was not granted");
        }
    }

    /// Checks what is there at the end.
    fn end(&mut self, config: &Config) {
        let mut findings = Vec::new();
        if self.plan.destroy {
            findings.extend(self.rows.keys().map(|left| format!("{left} is left")));
            self.findings.extend(findings);
            return;
        }
        for (address, left) in &self.rows {
            let (declared, fault) = match (address, left) {
                (
                    Address::Machine(it),
                    Left::Machine {
                        enrolled, wanted, ..
                    },
                ) => {
                    let waits = hob_enabled(wanted) && !enrolled;
                    (
                        config.machines.contains_key(&it.name),
                        waits.then_some("is not enrolled"),
                    )
                }
                (Address::Service { machine, service }, Left::Service { incarnation }) => {
                    let block = config.machines.get(&machine.name);
                    let declared = block.is_some_and(|it| it.services.contains_key(service));
                    let declared = declared || self.is_object(address, machine);
                    let stale = self.incarnation(machine) != Some(*incarnation);
                    (
                        declared,
                        stale.then_some("is not offered by the machine as it is then"),
                    )
                }
                (
                    Address::Binding(it),
                    Left::Binding {
                        from,
                        parent,
                        to,
                        ends,
                        granted,
                        ..
                    },
                ) => {
                    let orphan = parent.is_some_and(|(parent, then)| {
                        let is = self.rows.get(parent);
                        !matches!(is, Some(Left::Binding { generation, .. }) if *generation == then)
                    });
                    let is = [from, to].map(|end| {
                        end.as_machine()
                            .and_then(|machine| self.incarnation(machine))
                    });
                    let stale = is != ends.map(Some) || !granted || orphan;
                    let block = config.bindings.contains_key(&it.name);
                    (
                        block,
                        stale.then_some("is not granted between the machines as they are then"),
                    )
                }
                _ => (true, Some("has a row of another kind")),
            };
            if !declared {
                findings.push(format!("{address} is left, but not declared"));
            }
            findings.extend(fault.map(|fault| format!("{address} {fault}")));
        }
        let missing = |address: &Address| !self.rows.contains_key(address);
        let machines = config
            .machines
            .iter()
            .filter(|(_, block)| block.is_single());
        let machines = machines.map(|(name, _)| Address::machine(name.clone(), None));
        let bindings = config
            .bindings
            .iter()
            .filter(|(_, block)| block.is_single());
        let bindings = bindings.map(|(name, _)| Address::binding(name.clone(), None));
        let absent = machines.chain(bindings).filter(missing);
        findings.extend(absent.map(|address| format!("{address} is declared, but not there")));
        self.findings.extend(findings);
    }

    /// Returns whether a service is an object that its own machine has a binding from.
    fn is_object(&self, service: &Address, machine: &Instance) -> bool {
        let mut left = self.rows.values();
        left.any(|it| match it {
            Left::Binding { from, to, .. } => *from == service && to.as_machine() == Some(machine),
            _ => false,
        })
    }

    fn incarnation(&self, machine: &Instance) -> Option<u64> {
        match self.rows.get(&Address::Machine(machine.clone())) {
            Some(Left::Machine { incarnation, .. }) => Some(*incarnation),
            _ => None,
        }
    }
}

/// Returns an attribute that must be set and is not.
fn missing<'a>(block: &'a Block, wanted: &Value) -> Option<&'a str> {
    let required = block
        .attributes
        .iter()
        .filter(|(_, it)| it.role == Role::Required);
    let mut names = required.map(|(name, _)| name.as_str());
    names.find(|name| wanted.get(name).is_none_or(Value::is_null))
}
