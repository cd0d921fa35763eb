//! Apply: walks a plan's steps, every effect behind an intent on disk.
//!
//! One loop owns the journal. It takes what is ready, writes the outcomes of what has ended and
//! the intents of what begins in one transaction, and only then lets the effects run, side by
//! side. It decides nothing: what a step does was planned, and all that is added here is the
//! value of what was not known yet.

mod act;
mod admit;
mod adopt;
mod arrivals;
mod bind;
mod event;
mod home;
mod left;
mod prepare;
mod promise;
mod recover;
mod resume;
mod retire;
mod teller;
mod user_data;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use data_encoding::BASE32_NOPAD;
use gobs_model::{Address, Diagnostic, Name, Value};
use gobs_provider::Provider;
use gobs_state::{Finished, Outcome, Row, RowChange, Snapshot, Started, Store, StoreError};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::boss::Boss;
use crate::lang::Evaluator;
use crate::plan::{Action, Plan, Step, StepId};

use act::{Ended, Work};
use arrivals::Arrivals;
pub use event::{Event, Summary, Verb};
pub use home::homes;
pub(crate) use left::perhaps;
pub(crate) use prepare::observed_of;
pub use recover::{Recovered, recover, recover_in_memory};

/// How many provider calls run at once unless `--parallelism` says otherwise, as in Terraform.
pub const PARALLELISM_DEFAULT: usize = 10;

/// How many steps may run at once that hold no provider's slot: waits for hobs, grants, rows
/// only. It bounds memory and open calls, not speed.
const RUNNING_MAX: usize = 1_000;

/// A provider as gobs calls it.
pub type Providers = HashMap<String, Arc<dyn Provider>>;

/// Where the events of an apply go.
pub type Events = mpsc::UnboundedSender<Event>;

/// Returns what the tokens of a project's machines end with, by the project's name for life: it
/// tells them from machines of other projects in the same account.
pub fn mark_of(lineage: &str) -> String {
    // 30 bits: two projects of one account share a mark hardly ever, and the rest of a token is
    // random still.
    let hash = BASE32_NOPAD.encode(&Sha256::digest(lineage));
    hash[..6].to_ascii_lowercase()
}

/// What an apply works with.
pub struct Apply<'a> {
    /// What is done.
    pub plan: &'a Plan,
    /// The rows that the plan was made on.
    pub snapshot: &'a Snapshot,
    /// Evaluates what was not known when the plan was made; nothing is set in it yet.
    pub evaluator: Evaluator<'a>,
    /// Where intents, outcomes and rows are written.
    pub store: &'a mut Store,
    /// The configured providers by name.
    pub providers: &'a Providers,
    /// Keeps the hobs; nothing where every machine is a row only.
    pub boss: Option<Boss>,
    /// How many provider calls run at once.
    pub parallelism: usize,
    /// Where progress is told.
    pub events: Events,
    /// Becomes true when nothing more is to be started.
    pub stop: watch::Receiver<bool>,
}

impl Apply<'_> {
    /// Walks the plan to its end, or as far as it goes.
    ///
    /// # Errors
    /// When the state file cannot be written: then nothing more is started, and what ran is in
    /// doubt until the next run.
    pub async fn run(self) -> Result<Summary, StoreError> {
        Walk::new(self).run().await
    }
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Waits for this many steps.
    Waiting(usize),
    /// Can start, or runs.
    Begun,
    /// Has ended well.
    Done,
    /// Has failed, or was skipped.
    Failed,
}

/// A step that runs, or has just ended.
struct Running {
    step: StepId,
    since: Instant,
    holds_slot: bool,
}

/// The loop's own state.
struct Walk<'a> {
    apply: Apply<'a>,
    /// The rows as they are now.
    rows: HashMap<Address, Arc<Row>>,
    progress: Vec<Progress>,
    /// Which steps wait for each.
    dependents: Vec<Vec<StepId>>,
    /// Ready steps that call a provider, and those that do not.
    ready_calls: VecDeque<StepId>,
    ready_others: VecDeque<StepId>,
    slots_free: usize,
    summary: Summary,
    arrivals: Arrivals,
    /// What is told once its outcome is on disk.
    untold: Vec<Event>,
}

impl<'a> Walk<'a> {
    fn new(mut apply: Apply<'a>) -> Self {
        let rows: HashMap<_, _> = apply
            .snapshot
            .rows
            .iter()
            .map(|(at, row)| (at.clone(), row.clone()))
            .collect();
        for row in rows.values() {
            if let Some((address, value)) = shown(apply.providers, row) {
                apply.evaluator.set_object(address, value);
            }
        }
        let steps = &apply.plan.steps;
        let mut dependents = vec![Vec::new(); steps.len()];
        for step in steps {
            for before in &step.after {
                dependents[before.0 as usize].push(step.id);
            }
        }
        let arrivals = Arrivals::new(apply.plan, rows.keys());
        if let Some(boss) = &apply.boss {
            boss.set_machines(Arc::new(arrivals.clone()));
        }
        let slots_free = apply.parallelism.max(1);
        let mut walk = Self {
            rows,
            progress: steps
                .iter()
                .map(|step| Progress::Waiting(step.after.len()))
                .collect(),
            dependents,
            ready_calls: VecDeque::new(),
            ready_others: VecDeque::new(),
            slots_free,
            summary: Summary::default(),
            arrivals,
            untold: Vec::new(),
            apply,
        };
        for step in &walk.apply.plan.steps {
            if step.after.is_empty() {
                walk.progress[step.id.0 as usize] = Progress::Begun;
                walk.enqueue(step);
            }
        }
        walk
    }

    async fn run(mut self) -> Result<Summary, StoreError> {
        let mut running: JoinSet<(Running, Started, Ended)> = JoinSet::new();
        let mut finished: Vec<Finished> = Vec::new();
        let mut stopping = false;
        loop {
            if !stopping && *self.apply.stop.borrow() {
                stopping = true;
                self.summary.interrupted = true;
                self.tell(Event::Stopping {
                    running: running.len(),
                });
            }
            let begin = if stopping {
                Vec::new()
            } else {
                self.take_ready(running.len())
            };
            let (info, (intents, works)): (Vec<_>, (Vec<_>, Vec<_>)) = begin
                .into_iter()
                .map(|(running, intent, work)| (running, (intent, work)))
                .unzip();
            if !finished.is_empty() || !intents.is_empty() {
                let started = self
                    .apply
                    .store
                    .commit(std::mem::take(&mut finished), intents)?;
                for event in std::mem::take(&mut self.untold) {
                    self.tell(event);
                }
                for ((info, started), work) in info.into_iter().zip(started).zip(works) {
                    self.tell_started(info.step);
                    running.spawn(async move {
                        let ended = work.run(&started).await;
                        (info, started, ended)
                    });
                }
            }
            if running.is_empty() {
                // A step that failed before it began leaves others ready, or nothing at all.
                if stopping || self.ready_calls.is_empty() && self.ready_others.is_empty() {
                    break;
                }
                continue;
            }
            let first = tokio::select! {
                ended = running.join_next() => ended,
                changed = self.apply.stop.changed(), if !stopping => {
                    // A sender that is gone will never ask to stop.
                    if changed.is_err() { running.join_next().await } else { None }
                }
            };
            // Everything that has ended by now shares one commit.
            let mut next = first;
            while let Some(ended) = next {
                if let Ok((info, started, ended)) = ended {
                    finished.extend(self.end(info, started, ended));
                }
                next = running.try_join_next();
            }
        }
        for step in &self.apply.plan.steps {
            if matches!(
                self.progress[step.id.0 as usize],
                Progress::Waiting(_) | Progress::Begun
            ) {
                self.summary.remaining.push(step.address.clone());
            }
        }
        self.finish_outputs()?;
        Ok(self.summary)
    }

    /// Returns the steps that begin now, each with its intent and its effect.
    fn take_ready(&mut self, running: usize) -> Vec<(Running, gobs_state::Intent, Work)> {
        let mut begin = Vec::new();
        loop {
            let room = running + begin.len() < RUNNING_MAX;
            let (id, holds_slot) = if self.slots_free > 0
                && let Some(id) = self.ready_calls.pop_front()
            {
                (id, true)
            } else if room && let Some(id) = self.ready_others.pop_front() {
                (id, false)
            } else {
                return begin;
            };
            let plan = self.apply.plan;
            let Some(step) = plan.step(id) else { continue };
            match self.prepare(step) {
                Ok((intent, work)) => {
                    if holds_slot {
                        self.slots_free -= 1;
                    }
                    begin.push((
                        Running {
                            step: id,
                            since: Instant::now(),
                            holds_slot,
                        },
                        intent,
                        work,
                    ));
                }
                Err(diagnostic) => self.fail(step, *diagnostic),
            }
        }
    }

    /// Takes a step's end; returns what is to be written of it.
    fn end(&mut self, info: Running, started: Started, ended: Ended) -> Option<Finished> {
        let plan = self.apply.plan;
        let step = plan.step(info.step)?;
        if info.holds_slot {
            self.slots_free += 1;
        }
        match ended {
            Ended::Done(changes) => {
                for change in &changes {
                    self.apply_change(change);
                }
                self.count(step, &changes);
                self.arrivals.done(&step.address, &step.action);
                self.untold.push(Event::Done {
                    address: step.address.clone(),
                    verb: verb(&step.action),
                    id: self.id_of(&step.address),
                    took: info.since.elapsed(),
                });
                self.progress[step.id.0 as usize] = Progress::Done;
                for &next in &self.dependents[step.id.0 as usize].clone() {
                    if let Progress::Waiting(left) = &mut self.progress[next.0 as usize] {
                        *left -= 1;
                        if *left == 0 {
                            self.progress[next.0 as usize] = Progress::Begun;
                            if let Some(next) = plan.step(next) {
                                self.enqueue(next);
                            }
                        }
                    }
                }
                Some(Finished {
                    started,
                    outcome: Outcome::Done,
                    changes,
                })
            }
            Ended::Failed {
                diagnostic,
                changes,
            } => {
                for change in &changes {
                    self.apply_change(change);
                }
                let outcome = Outcome::Failed(diagnostic.detail.clone());
                self.fail(step, *diagnostic);
                Some(Finished {
                    started,
                    outcome,
                    changes,
                })
            }
            // Dropping the proof leaves the intent without an outcome: the next run looks.
            Ended::InDoubt(diagnostic) => {
                self.fail(step, *diagnostic);
                None
            }
        }
    }

    fn apply_change(&mut self, change: &RowChange) {
        match change {
            RowChange::PutRow(row) => {
                let row: Arc<Row> = Arc::new((**row).clone());
                if let Some((address, value)) = shown(self.apply.providers, &row) {
                    self.apply.evaluator.set_object(address, value);
                }
                self.rows.insert(row.address.clone(), row);
            }
            RowChange::RemoveRow(address) => {
                self.rows.remove(address);
            }
            RowChange::PutOutput(..) => {}
        }
    }

    /// Marks a step as failed, and everything that needs it as skipped.
    fn fail(&mut self, step: &Step, diagnostic: Diagnostic) {
        self.summary.failed += 1;
        self.arrivals.failed(&step.address, &diagnostic.detail);
        self.progress[step.id.0 as usize] = Progress::Failed;
        self.tell(Event::Failed {
            address: step.address.clone(),
            verb: verb(&step.action),
            diagnostic: Box::new(diagnostic),
        });
        let mut skipped = self.dependents[step.id.0 as usize].clone();
        while let Some(id) = skipped.pop() {
            if !matches!(self.progress[id.0 as usize], Progress::Waiting(_)) {
                continue;
            }
            self.progress[id.0 as usize] = Progress::Failed;
            skipped.extend(&self.dependents[id.0 as usize]);
            if let Some(other) = self.apply.plan.step(id) {
                self.summary.remaining.push(other.address.clone());
                self.arrivals
                    .failed(&other.address, "what it needs has failed");
                self.tell(Event::Skipped {
                    address: other.address.clone(),
                    verb: verb(&other.action),
                    because: step.address.clone(),
                });
            }
        }
    }

    fn enqueue(&mut self, step: &Step) {
        let calls = match &step.action {
            Action::Create { simulated, .. } | Action::Delete { simulated, .. } => !simulated,
            Action::Update {
                simulated,
                calls_provider,
                ..
            } => !simulated && *calls_provider,
            Action::Import { .. } => true,
            _ => false,
        };
        if calls {
            &mut self.ready_calls
        } else {
            &mut self.ready_others
        }
        .push_back(step.id);
    }

    fn count(&mut self, step: &Step, changes: &[RowChange]) {
        let pending = changes.iter().any(|change| match change {
            RowChange::PutRow(row) => matches!(
                row.kind,
                gobs_state::RowKind::Binding {
                    phase: gobs_state::Phase::RevokePending,
                    ..
                }
            ),
            _ => false,
        });
        match &step.action {
            Action::Unbind { .. } if pending => self.summary.revoke_pending += 1,
            action => self.summary.counts.add_action(action),
        }
    }

    /// Writes the outputs that have a value now; after a whole apply that is each of them.
    fn finish_outputs(&mut self) -> Result<(), StoreError> {
        let mut finished = Vec::new();
        let mut changes = Vec::new();
        for change in &self.apply.plan.outputs {
            match &change.after {
                None => changes.push(RowChange::PutOutput(change.name.clone(), None)),
                Some(_) => {
                    let value = self.apply.evaluator.output(&change.name);
                    let known = value.ok().and_then(|value| value.try_into().ok());
                    if let Some(known) = known {
                        changes.push(RowChange::PutOutput(change.name.clone(), Some(known)));
                    }
                }
            }
        }
        // While machines remain, so do the outputs that tell of them.
        if changes.is_empty() || self.apply.plan.destroy && !self.summary.is_complete() {
            return Ok(());
        }
        // Outputs have no effect outside; an entry of their own keeps the journal the one writer.
        let intent = prepare::outputs_intent();
        for started in self.apply.store.commit(Vec::new(), vec![intent])? {
            let changes = std::mem::take(&mut changes);
            finished.push(Finished {
                started,
                outcome: Outcome::Done,
                changes,
            });
        }
        self.apply.store.commit(finished, Vec::new())?;
        Ok(())
    }

    fn tell_started(&self, step: StepId) {
        if let Some(step) = self.apply.plan.step(step) {
            self.tell(Event::Started {
                address: step.address.clone(),
                verb: verb(&step.action),
                id: self.id_of(&step.address),
            });
        }
    }

    fn id_of(&self, address: &Address) -> Option<String> {
        match &self.rows.get(address)?.kind {
            gobs_state::RowKind::Machine { id, .. } => Some(id.clone()),
            _ => None,
        }
    }

    fn tell(&self, event: Event) {
        // Whoever watched may have left; the walk goes on.
        let _ = self.apply.events.send(event);
    }
}

/// Returns what expressions see of a row, if they see anything.
fn shown(providers: &Providers, row: &Row) -> Option<(Address, gobs_model::Value)> {
    let value = match &row.kind {
        gobs_state::RowKind::Machine { provider, .. } => {
            crate::plan::machine_object(providers.get(provider)?.schema(), row)
        }
        gobs_state::RowKind::Binding { .. } => row.observed.value().clone(),
        gobs_state::RowKind::Service { .. } => return None,
    };
    Some((row.address.clone(), value))
}

fn verb(action: &Action) -> Verb {
    match action {
        Action::Create { .. } => Verb::Create,
        Action::Import { .. } => Verb::Import,
        Action::Update {
            change: gobs_model::Change::Rebuild,
            ..
        } => Verb::Rebuild,
        Action::Update { .. } => Verb::Update,
        Action::Delete { .. } => Verb::Delete,
        Action::Admit { .. } => Verb::Update,
        Action::Enroll { .. } => Verb::Enroll,
        Action::Offer { .. } => Verb::Offer,
        Action::Withdraw { .. } => Verb::Withdraw,
        Action::Bind { .. } => Verb::Bind,
        Action::Move { .. } => Verb::Move,
        Action::Expose { .. } => Verb::Update,
        Action::Unbind { .. } => Verb::Unbind,
    }
}

/// Returns the names under which a machine gets bindings in this plan, with how they are exposed:
/// its programs wait for them.
fn expected_names(plan: &Plan, machine: &Address) -> Vec<(Name, Value)> {
    let grants = plan.steps.iter().filter_map(|step| match &step.action {
        Action::Bind { grant, .. } | Action::Move { grant, .. } => Some(grant),
        _ => None,
    });
    grants
        .filter(|grant| grant.to == *machine)
        .map(|grant| (grant.name.clone(), grant.expose.clone()))
        .collect()
}
