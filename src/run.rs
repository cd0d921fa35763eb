//! The order of a run: lock, recover, refresh, plan, apply.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use gobs_model::{Address, Diagnostic, Path, Value};
use gobs_provider::{Objection, Proposal};
use gobs_state::{
    BossStore, Finished, Intent, Outcome, Row, RowChange, RowKind, Snapshot, Started, Store,
};
use tokio::sync::watch;

use crate::apply::{self, Apply, Events, Providers, Recovered, Summary, recover};
use crate::boss::{Boss, BossError, StatusReport};
use crate::import;
use crate::live::{count_streams, silence, streams_of, unknown_to};
use crate::plan::{self, Action, Options, Plan, PlanFile, review};
use crate::project::{Project, boss_error, store_error};
use crate::refresh::{Refreshed, holdings, refresh};
use crate::rights::lacking;

/// How long another process may host the boss before a run gives up: `gobs status` needs 3 s at
/// most.
const BOSS_WAIT: Duration = Duration::from_secs(10);
const BOSS_LOOK: Duration = Duration::from_millis(50);

/// What `plan`, `apply` and `destroy` let a user choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Plans the end of everything.
    pub destroy: bool,
    /// Whether the providers are asked what is there now.
    pub refresh: bool,
    /// How many provider calls run at once.
    pub parallelism: usize,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            destroy: false,
            refresh: true,
            parallelism: apply::PARALLELISM_DEFAULT,
        }
    }
}

/// A plan, and the rows that it was made on.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// The rows, as the providers said a moment ago.
    pub snapshot: Snapshot,
}

/// Plans without writing anything: beside a running apply too.
///
/// # Errors
/// Everything that is wrong.
pub async fn plan_only(project: &Project, choices: Choices) -> Result<Planned, Vec<Diagnostic>> {
    let reader = project.reader().map_err(one)?;
    let has_state = reader.is_some();
    let (snapshot, doubts) = match reader {
        None => (Snapshot::default(), Vec::new()),
        Some(reader) => {
            let snapshot = reader
                .snapshot()
                .map_err(|error| one(store_error(&error)))?;
            let doubts = reader
                .in_doubt()
                .map_err(|error| one(store_error(&error)))?;
            (snapshot, doubts)
        }
    };
    let providers = project.providers(&snapshot).await?;
    let in_doubt = doubts.iter().map(|it| it.started.intent().address.clone());
    let in_doubt: BTreeSet<Address> = in_doubt.collect();
    let (snapshot, warnings) = apply::recover_in_memory(snapshot, doubts, &providers).await?;
    let mut refreshed = refreshed(&snapshot, &providers, choices).await?;
    let is_real = providers.values().any(|provider| !provider.is_simulated());
    let report = match is_real && asks_hobs(&snapshot, choices) {
        true => ask_hobs(project, &snapshot).await,
        false => None,
    };
    if let Some(report) = &report {
        refreshed.holdings = holdings(report, &snapshot);
    }
    let unclaimed = match has_state {
        true => unclaimed(
            &project.boss_store().map_err(one)?,
            &refreshed.snapshot,
            &providers,
        )?,
        false => BTreeSet::new(),
    };
    let imports = imports(project, &providers, &refreshed.snapshot, choices).await?;
    let more = (unclaimed, imports);
    let mut planned = make_plan(project, &providers, refreshed, choices, more)?;
    planned.plan.warnings.extend(warnings);
    refuse_impossible(project, &providers, &planned).await?;
    let Planned { plan, snapshot } = &mut planned;
    match &report {
        Some(report) => look_at(plan, (snapshot, &in_doubt), report),
        None if choices.refresh => count_streams(plan, project, snapshot, None).await,
        None => {}
    }
    // Whoever only plans needs less, and is told what an apply needs.
    let lacking = lacking(&providers, &planned.plan).await;
    planned
        .plan
        .warnings
        .extend(lacking.into_iter().map(|(provider, rights)| {
            let detail = format!("To apply this plan, provider {provider} lacks: {rights}.");
            Diagnostic::warning("Rights for an apply are missing", detail)
        }));
    Ok(planned)
}

/// Refuses a plan by which a machine would become what its provider says it cannot be.
async fn refuse_impossible(
    project: &Project,
    providers: &Providers,
    planned: &Planned,
) -> Result<(), Vec<Diagnostic>> {
    let mut refused = Vec::new();
    for step in &planned.plan.steps {
        let (name, wanted, is_new) = match &step.action {
            Action::Create {
                provider,
                wanted,
                simulated: false,
                ..
            } => (provider, wanted, true),
            Action::Update {
                provider,
                wanted,
                simulated: false,
                calls_provider: true,
                ..
            } => (provider, wanted, false),
            _ => continue,
        };
        let Some(provider) = providers.get(name) else {
            continue;
        };
        let row = planned.snapshot.rows.get(&step.address);
        let is_of = |row: &&Arc<Row>| match &row.kind {
            RowKind::Machine { provider: of, .. } => of == name,
            _ => false,
        };
        let proposal = Proposal {
            address: step.address.clone(),
            wanted: wanted.clone(),
            is_new,
            before: row.filter(is_of).map(|row| apply::observed_of(row)),
        };
        // What cannot be asked now is refused when it is done.
        let objections = provider.objections(&proposal).await;
        let objections = objections.unwrap_or_else(|error| {
            tracing::debug!(provider = name, %error, "what it objects to is not known");
            Vec::new()
        });
        for objection in objections {
            let Objection {
                attribute,
                label,
                message,
                hint,
            } = objection;
            let detail = format!("{} cannot be so: {message}.", step.address);
            let error = Diagnostic::error("Impossible machine", detail).hint(sentence(&hint));
            let machine = step.address.as_machine();
            let config = &project.config;
            let said =
                machine.and_then(|it| config.said_at(&it.name, &attribute, label.as_deref()));
            refused.push(match said {
                Some(span) => error.at(span),
                None => error.about(step.address.clone(), Path::attribute(&attribute)),
            });
        }
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(refused),
    }
}

/// Returns a fragment as a sentence.
fn sentence(fragment: &str) -> String {
    let mut letters = fragment.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    format!("{}{}.", first.collect::<String>(), letters.as_str())
}

/// A run that may change things: it holds the lock from its beginning to its end.
pub struct Run<'a> {
    project: &'a Project,
    store: Store,
    providers: Providers,
    boss: Option<Boss>,
    /// What an earlier run had left, if anything.
    pub recovered: Recovered,
}

impl<'a> Run<'a> {
    /// Takes the lock, makes a backup, starts the boss, and settles what an earlier run left.
    ///
    /// # Errors
    /// When another process writes, something cannot be opened, or a step in doubt cannot be
    /// settled.
    pub async fn begin(
        project: &'a Project,
        command: &str,
        events: &Events,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut store = project.store(command).map_err(one)?;
        let unusable = |error| one(store_error(&error));
        let snapshot = store.snapshot().map_err(unusable)?;
        let now = SystemTime::now();
        if snapshot.serial > 0 {
            store
                .backup(&project.paths().backups(), now)
                .map_err(unusable)?;
        }
        store.begin_run(command, now).map_err(unusable)?;
        let providers = project.providers(&snapshot).await?;
        let boss = if providers.values().all(|provider| provider.is_simulated()) {
            None
        } else {
            Some(start_boss(project, &snapshot).await?)
        };
        let recovered = recover(&mut store, &providers, boss.as_ref(), events).await;
        let mut run = Self {
            project,
            store,
            providers,
            boss,
            recovered: Recovered::default(),
        };
        match recovered {
            Ok(recovered) if recovered.unsettled.is_empty() => {
                run.recovered = recovered;
                Ok(run)
            }
            Ok(recovered) => {
                run.end().await;
                Err(recovered.unsettled)
            }
            Err(error) => {
                run.end().await;
                Err(unusable(error))
            }
        }
    }

    /// Plans on what is there now, and writes what was seen.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub async fn plan(&mut self, choices: Choices) -> Result<Planned, Vec<Diagnostic>> {
        let unusable = |error| one(store_error(&error));
        let snapshot = self.store.snapshot().map_err(unusable)?;
        let mut refreshed = refreshed(&snapshot, &self.providers, choices).await?;
        let report = match &self.boss {
            Some(boss) if asks_hobs(&snapshot, choices) => report_of(boss).await,
            _ => None,
        };
        if let Some(report) = &report {
            refreshed.holdings = holdings(report, &snapshot);
        }
        // What has drifted is written by the step that settles it: were it written now and the
        // plan declined, the next plan would take it for what was there all along.
        let drifted: BTreeSet<_> = refreshed.drift.iter().map(|drift| &drift.address).collect();
        let seen = std::mem::take(&mut refreshed.changes);
        let (pending, seen): (Vec<_>, Vec<_>) = seen.into_iter().partition(|change| match change {
            RowChange::PutRow(row) => drifted.contains(&row.address),
            _ => false,
        });
        if !seen.is_empty() {
            self.write(seen).map_err(one)?;
            // The versions of the rows that were written are part of what the plan rests on.
            refreshed.snapshot = self.store.snapshot().map_err(unusable)?;
            for change in pending {
                if let RowChange::PutRow(row) = change {
                    let address = row.address.clone();
                    refreshed.snapshot.rows.insert(address, Arc::from(row));
                }
            }
        }
        let tables = self.project.boss_store().map_err(one)?;
        let unclaimed = unclaimed(&tables, &refreshed.snapshot, &self.providers)?;
        let (project, providers) = (self.project, &self.providers);
        let imports = imports(project, providers, &refreshed.snapshot, choices).await?;
        let more = (unclaimed, imports);
        let mut planned = make_plan(project, providers, refreshed, choices, more)?;
        refuse_impossible(self.project, &self.providers, &planned).await?;
        let Planned { plan, snapshot } = &mut planned;
        match (&report, &self.boss) {
            // Nothing is in doubt any more.
            (Some(report), _) => look_at(plan, (snapshot, &BTreeSet::new()), report),
            (None, Some(boss)) if choices.refresh => {
                count_streams(plan, project, snapshot, Some(boss)).await;
            }
            _ => {}
        }
        self.refuse_without_rights(&planned.plan).await?;
        Ok(planned)
    }

    /// Refuses a plan that could be begun and not ended.
    async fn refuse_without_rights(&self, plan: &Plan) -> Result<(), Vec<Diagnostic>> {
        let lacking = lacking(&self.providers, plan).await;
        let refused = lacking.into_iter().map(|(provider, rights)| {
            let detail = format!("For this plan, provider {provider} lacks: {rights}.");
            let hint = "Nothing was done. Give its token, or whose that is, what is missing; \
                        planning needs less.";
            Diagnostic::error("Rights are missing", detail).hint(hint)
        });
        let refused: Vec<_> = refused.collect();
        if refused.is_empty() {
            Ok(())
        } else {
            Err(refused)
        }
    }

    /// Takes a plan file: the plan is as it was made, or it is refused.
    ///
    /// # Errors
    /// When it is for another project or version, or a row that it read has moved on.
    pub fn planned(&self, file: &PlanFile) -> Result<Planned, Vec<Diagnostic>> {
        let snapshot = self
            .store
            .snapshot()
            .map_err(|error| one(store_error(&error)))?;
        file.check(env!("CARGO_PKG_VERSION"), &snapshot)
            .map_err(|error| {
                let detail = format!("The plan file cannot be applied: {error}.");
                vec![Diagnostic::error("Plan file refused", detail)]
            })?;
        Ok(Planned {
            plan: file.plan.clone(),
            snapshot,
        })
    }

    /// Does what was planned.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub async fn apply(
        &mut self,
        planned: &Planned,
        parallelism: usize,
        stop: watch::Receiver<bool>,
        events: Events,
    ) -> Result<Summary, Vec<Diagnostic>> {
        self.refuse_without_rights(&planned.plan).await?;
        let apply = Apply {
            plan: &planned.plan,
            snapshot: &planned.snapshot,
            evaluator: self.project.evaluator()?,
            store: &mut self.store,
            providers: &self.providers,
            boss: self.boss.clone(),
            parallelism,
            events,
            stop,
        };
        apply.run().await.map_err(|error| one(store_error(&error)))
    }

    /// Returns the rows and outputs as they are now.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, Vec<Diagnostic>> {
        self.store
            .snapshot()
            .map_err(|error| one(store_error(&error)))
    }

    /// Ends the run: the boss stops, and the lock is free.
    pub async fn end(self) {
        if let Some(boss) = self.boss {
            boss.shutdown().await;
        }
    }

    fn write(&mut self, changes: Vec<RowChange>) -> Result<(), Box<Diagnostic>> {
        let Some(RowChange::PutRow(first)) = changes.first() else {
            return Ok(());
        };
        let address = first.address.clone();
        let started = intend(&mut self.store, address, "refresh", None)?;
        finish(&mut self.store, started, Outcome::Done, changes)
    }
}

/// Writes the intent of a step that is none of a plan.
pub(crate) fn intend(
    store: &mut Store,
    address: Address,
    action: &str,
    token: Option<String>,
) -> Result<Vec<Started>, Box<Diagnostic>> {
    let intent = Intent {
        address,
        action: action.into(),
        token,
        claim: None,
        detail: serde_json::Value::Null,
    };
    let started = store.commit(Vec::new(), vec![intent]);
    started.map_err(|error| store_error(&error))
}

/// Writes how such a step ended, and what is true since.
pub(crate) fn finish(
    store: &mut Store,
    started: Vec<Started>,
    outcome: Outcome,
    changes: Vec<RowChange>,
) -> Result<(), Box<Diagnostic>> {
    let mut changes = Some(changes);
    let finished = started.into_iter().map(|started| Finished {
        started,
        outcome: outcome.clone(),
        changes: changes.take().unwrap_or_default(),
    });
    let ended = store.commit(finished.collect(), Vec::new());
    ended.map(drop).map_err(|error| store_error(&error))
}

/// Starts the boss; waits out a `gobs status`, which hosts it for a moment.
async fn start_boss(project: &Project, snapshot: &Snapshot) -> Result<Boss, Vec<Diagnostic>> {
    let deadline = Instant::now() + BOSS_WAIT;
    loop {
        let store = project.boss_store().map_err(one)?;
        match Boss::start(store, project.boss_options(snapshot)).await {
            Ok(boss) => return Ok(boss),
            Err(BossError::Running(_)) if Instant::now() < deadline => {
                tokio::time::sleep(BOSS_LOOK).await;
            }
            Err(error) => return Err(one(boss_error(&error))),
        }
    }
}

/// Returns the machines whose hob never came, and cannot come any more: their time is over, or the
/// provider says that they have ended.
fn unclaimed(
    tables: &BossStore,
    snapshot: &Snapshot,
    providers: &Providers,
) -> Result<BTreeSet<Address>, Vec<Diagnostic>> {
    let found = tables.unclaimed(SystemTime::now());
    let found = found.map_err(|error| one(store_error(&error)))?;
    let is_there = |(address, claimed): &(Address, u64)| {
        let kind = snapshot.rows.get(address).map(|row| &row.kind);
        matches!(kind, Some(RowKind::Machine { incarnation, enrolled: None, .. })
            if incarnation == claimed)
    };
    let there = found.into_iter().filter(is_there);
    let ended = snapshot.rows.values().filter(|row| match &row.kind {
        RowKind::Machine {
            provider,
            enrolled: None,
            ..
        } => {
            let status = row.observed.get("status").and_then(Value::as_str);
            let schema = providers.get(provider).map(|it| it.schema());
            status
                .is_some_and(|it| schema.is_some_and(|has| has.hosts.ended.iter().any(|s| s == it)))
        }
        _ => false,
    });
    let ended = ended.map(|row| row.address.clone());
    Ok(there.map(|(address, _)| address).chain(ended).collect())
}

/// Returns whether a plan can depend on what hobs have, or its reader would want to know.
fn asks_hobs(snapshot: &Snapshot, choices: Choices) -> bool {
    let has_hob = |row: &Row| {
        let is_machine = matches!(
            &row.kind,
            RowKind::Machine {
                enrolled: Some(_),
                ..
            }
        );
        is_machine || matches!(row.kind, RowKind::Binding { .. })
    };
    choices.refresh && !choices.destroy && snapshot.rows.values().any(|row| has_hob(row))
}

/// Asks the hobs for what they have of the state's bindings. What cannot be asked is not drift.
async fn report_of(boss: &Boss) -> Option<StatusReport> {
    let report = boss.status().await;
    report
        .inspect_err(|error| tracing::debug!(%error, "what the hobs have is not known"))
        .ok()
}

/// Asks the hobs beside whatever else runs. Where another process hosts the boss, it may be about
/// to change what they have, and nothing is asked.
async fn ask_hobs(project: &Project, snapshot: &Snapshot) -> Option<StatusReport> {
    let store = project.boss_store().ok()?;
    let started = Boss::start(store, project.boss_options(snapshot)).await;
    let boss = started
        .inspect_err(|error| tracing::debug!(%error, "the hobs are not asked"))
        .ok()?;
    let report = report_of(&boss).await;
    boss.shutdown().await;
    report
}

/// Adds to a plan what the hobs said that no step depends on.
fn look_at(
    plan: &mut Plan,
    (snapshot, in_doubt): (&Snapshot, &BTreeSet<Address>),
    report: &StatusReport,
) {
    streams_of(plan, snapshot, report);
    plan.warnings.extend(silence(plan, snapshot, report));
    plan.warnings.extend(unknown_to(snapshot, in_doubt, report));
}

async fn refreshed(
    snapshot: &Snapshot,
    providers: &Providers,
    choices: Choices,
) -> Result<Refreshed, Vec<Diagnostic>> {
    if choices.refresh {
        refresh(snapshot, providers, choices.parallelism).await
    } else {
        Ok(Refreshed {
            snapshot: snapshot.clone(),
            ..Refreshed::default()
        })
    }
}

/// Returns the machines to take over; none where everything is to go.
async fn imports(
    project: &Project,
    providers: &Providers,
    snapshot: &Snapshot,
    choices: Choices,
) -> Result<Vec<Row>, Vec<Diagnostic>> {
    match choices.destroy {
        true => Ok(Vec::new()),
        false => import::look(project, providers, snapshot).await,
    }
}

fn make_plan(
    project: &Project,
    providers: &Providers,
    refreshed: Refreshed,
    choices: Choices,
    (unclaimed, imports): (BTreeSet<Address>, Vec<Row>),
) -> Result<Planned, Vec<Diagnostic>> {
    let simulated = providers
        .iter()
        .filter(|(_, provider)| provider.is_simulated());
    let options = Options {
        destroy: choices.destroy,
        simulated: simulated.map(|(name, _)| name.clone()).collect(),
        unclaimed,
        holdings: refreshed.holdings,
        imports: imports.iter().map(|row| row.address.clone()).collect(),
    };
    let Refreshed {
        mut snapshot,
        drift,
        ..
    } = refreshed;
    let imports = imports.into_iter().map(|row| (row.address.clone(), row));
    snapshot
        .rows
        .extend(imports.map(|(at, row)| (at, Arc::new(row))));
    let (config, inputs, schemas) = (&project.config, &project.inputs, &project.schemas);
    let plan = plan::plan(config, inputs, &snapshot, schemas, &options, drift)?;
    review(config, schemas, &snapshot, &plan).map_err(|impossible| {
        let detail = format!("{impossible}: {}.", impossible.findings.join("; "));
        let hint = "This is a mistake in gobs, and nothing was done. Please report it.";
        vec![Diagnostic::error("Impossible plan", detail).hint(hint)]
    })?;
    Ok(Planned { plan, snapshot })
}

#[expect(
    clippy::boxed_local,
    reason = "errors travel boxed until they are listed"
)]
fn one(diagnostic: Box<Diagnostic>) -> Vec<Diagnostic> {
    vec![*diagnostic]
}
