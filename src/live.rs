//! What hobs say to the reader of a plan, who may want to wait: how many streams go through the
//! grants that it ends, and which hobs say nothing. No step depends on it.

use std::collections::{BTreeMap, BTreeSet};

use gobs_model::{Address, Diagnostic};
use gobs_state::{RowKind, Snapshot};
use hob::protocol::HobStatus;

use crate::boss::{Boss, BossError, StatusReport, ask_status};
use crate::plan::{Action, Held, Plan, Step};
use crate::project::{Project, boss_error};

/// A machine of one incarnation.
type Key = (Address, u64);

/// How many machines a warning names; it is read by people.
const NAMED_MAX: usize = 5;

/// Counts the streams of the grants that a plan ends. Whoever cannot be reached in a moment is not
/// waited for: their counts stay unknown.
pub(crate) async fn count_streams(
    plan: &mut Plan,
    project: &Project,
    snapshot: &Snapshot,
    boss: Option<&Boss>,
) {
    let ending = ending(plan, snapshot);
    let exporters: BTreeSet<Key> = ending.iter().map(|(.., key)| key.clone()).collect();
    if exporters.is_empty() {
        return;
    }
    let statuses = match boss {
        Some(boss) => boss.statuses(&exporters).await,
        None => statuses(project, snapshot, &exporters).await,
    };
    plan.streams = counts(ending, &statuses);
}

/// As [`count_streams`], of hobs that were asked already.
pub(crate) fn streams_of(plan: &mut Plan, snapshot: &Snapshot, report: &StatusReport) {
    let ending = ending(plan, snapshot);
    let exporters = ending.iter().map(|(.., key)| key.clone()).collect();
    plan.streams = counts(ending, &told(report, &exporters));
}

/// Says whose hob did not answer: of bindings that it has lost, the plan knows nothing.
pub(crate) fn silence(
    plan: &Plan,
    snapshot: &Snapshot,
    report: &StatusReport,
) -> Option<Diagnostic> {
    let goes = |step: &&Step| matches!(step.action, Action::Delete { .. });
    let going: BTreeSet<_> = plan
        .steps
        .iter()
        .filter(goes)
        .map(|step| &step.address)
        .collect();
    let unheard = report
        .hobs
        .iter()
        .filter(|hob| hob.status.is_none() && !hob.locked);
    let silent = unheard.filter(|hob| {
        let row = hob
            .machine
            .parse()
            .ok()
            .and_then(|it| snapshot.rows.get(&it));
        row.is_some_and(|row| {
            let is_this = matches!(row.kind, RowKind::Machine { incarnation, .. }
                if incarnation == hob.incarnation);
            is_this && !going.contains(&row.address)
        })
    });
    let silent: Vec<_> = silent.map(|hob| hob.machine.as_str()).collect();
    let (named, more) = silent.split_at(silent.len().min(NAMED_MAX));
    let named = named.join(", ");
    let of = match more.len() {
        0 if silent.is_empty() => return None,
        0 => named,
        more => format!("{named} and {more} more"),
    };
    let detail =
        format!("No answer from the hob of {of}: if it lost a binding, this plan is blind to it.");
    let hint = "gobs status shows every hob, and when it was last seen.";
    Some(Diagnostic::warning("Hobs do not answer", detail).hint(hint))
}

/// Returns the grants that a plan ends: the binding, the grant's generation, and its exporter.
fn ending(plan: &Plan, snapshot: &Snapshot) -> Vec<(Address, u64, Key)> {
    let real = plan.steps.iter().filter(|step| !step.action.is_simulated());
    real.filter_map(|step| {
        let held = ended(&step.action)?;
        let exporter = Address::Machine(held.from.as_machine()?.clone());
        let key = (exporter, incarnation(snapshot, &step.address)?);
        Some((step.address.clone(), held.generation, key))
    })
    .collect()
}

fn counts(
    ending: Vec<(Address, u64, Key)>,
    statuses: &BTreeMap<Key, HobStatus>,
) -> BTreeMap<Address, Option<u64>> {
    let count = |(binding, generation, key): (Address, u64, Key)| {
        let grants = statuses.get(&key).map(|status| &status.grants);
        let name = binding.to_string();
        let count = grants.map(|grants| {
            let mut grants = grants.iter();
            let of = grants.find(|it| it.binding == name && it.generation == generation);
            of.map_or(0, |grant| grant.streams)
        });
        (binding, count)
    };
    ending.into_iter().map(count).collect()
}

/// Returns what a report has of these hobs.
fn told(report: &StatusReport, of: &BTreeSet<Key>) -> BTreeMap<Key, HobStatus> {
    let told = |(machine, incarnation): &Key| {
        let name = machine.to_string();
        let mut hobs = report.hobs.iter();
        let hob = hobs.find(|it| it.machine == name && it.incarnation == *incarnation)?;
        Some(((machine.clone(), *incarnation), hob.status.clone()?))
    };
    of.iter().filter_map(told).collect()
}

/// Asks the boss that another process of the project hosts; where none does, hosts one for the
/// moment.
///
/// # Errors
/// When a boss is there and does not answer, or none can be started.
pub(crate) async fn report(
    project: &Project,
    snapshot: &Snapshot,
) -> Result<StatusReport, Box<Diagnostic>> {
    if let Some(report) = asked(project).await? {
        return Ok(report);
    }
    if snapshot.rows.is_empty() {
        return Ok(StatusReport::default());
    }
    match Boss::start(project.boss_store()?, project.boss_options(snapshot)).await {
        Ok(boss) => {
            let report = boss.status().await;
            boss.shutdown().await;
            report.map_err(|error| boss_error(&error))
        }
        // One began in between.
        Err(BossError::Running(_)) => Ok(asked(project).await?.unwrap_or_default()),
        Err(error) => Err(boss_error(&error)),
    }
}

async fn asked(project: &Project) -> Result<Option<StatusReport>, Box<Diagnostic>> {
    let socket = project.paths().boss_socket();
    ask_status(&socket).await.map_err(|error| {
        let detail = format!("The boss at {} did not answer: {error}.", socket.display());
        Box::new(Diagnostic::error("No answer", detail))
    })
}

/// As [`report`], of some hobs only; whoever cannot be asked says nothing.
async fn statuses(
    project: &Project,
    snapshot: &Snapshot,
    of: &BTreeSet<Key>,
) -> BTreeMap<Key, HobStatus> {
    if let Ok(Some(report)) = asked(project).await {
        return told(&report, of);
    }
    let started = match project.boss_store() {
        Ok(store) => Boss::start(store, project.boss_options(snapshot)).await,
        Err(error) => {
            tracing::debug!(error = %error.detail, "live streams are not counted");
            return BTreeMap::new();
        }
    };
    match started {
        Ok(boss) => {
            let statuses = boss.statuses(of).await;
            boss.shutdown().await;
            statuses
        }
        Err(error) => {
            tracing::debug!(%error, "live streams are not counted");
            BTreeMap::new()
        }
    }
}

/// Returns the grant that an action ends, if it ends one.
fn ended(action: &Action) -> Option<&Held> {
    match action {
        Action::Bind { revokes, .. } => revokes.as_ref(),
        Action::Move { revokes: held, .. } | Action::Unbind { held, .. } => Some(held),
        _ => None,
    }
}

/// Returns the incarnation of the machine that gave a binding's grant.
fn incarnation(snapshot: &Snapshot, binding: &Address) -> Option<u64> {
    match snapshot.rows.get(binding)?.kind {
        RowKind::Binding {
            from_incarnation, ..
        } => Some(from_incarnation),
        _ => None,
    }
}
