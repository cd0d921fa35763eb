//! What hobs say to the reader of a plan, who may want to wait: how many streams go through the
//! grants that it ends, which hobs say nothing, and which have bindings that the state has not. No
//! step depends on it.

use std::collections::{BTreeMap, BTreeSet};

use gobs_model::{Address, Diagnostic, Value};
use gobs_state::{Row, RowKind, Snapshot};
use hob::protocol::HobStatus;
use serde::Serialize;

use crate::boss::{Boss, BossError, StatusReport, ask_status};
use crate::plan::{Action, Held, Plan, Step};
use crate::project::{Project, boss_error, store_error};

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
    let is_binding = |address: &Address| matches!(address, Address::Binding(_));
    if !snapshot.rows.keys().any(is_binding) {
        return None;
    }
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

/// A binding that hobs have and the state has not: a state file that was restored from a backup
/// knows nothing later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Unknown {
    /// The binding's address.
    pub(crate) binding: Address,
    /// The machines that have it.
    pub(crate) held_by: Vec<String>,
    /// The machines that gave it.
    pub(crate) given_by: Vec<String>,
}

impl Unknown {
    /// What to do about one.
    pub(crate) const MEND: &str = "What is declared is granted anew by the next apply. To end \
                                   another one, declare it as it was, apply, take it out and \
                                   apply again.";

    /// Returns who has it and gave it, as a fragment.
    pub(crate) fn whose(&self) -> String {
        let said = |what: &str, machines: &[String]| match machines {
            [] => None,
            machines => Some(format!("{what} by {}", machines.join(", "))),
        };
        let said = [said("held", &self.held_by), said("given", &self.given_by)];
        said.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Returns the bindings that hobs have and none of these snapshots has, but for those of which a
/// step is not over. Nothing is done about them: no state brings back what it does not have.
fn unknown(
    report: &StatusReport,
    snapshots: &[&Snapshot],
    in_doubt: &BTreeSet<Address>,
) -> Vec<Unknown> {
    let mut found = BTreeMap::<Address, Unknown>::new();
    let known = |binding: &Address, machine: &str, ends: &[&str]| {
        let is_at = |row: &Row| {
            let end = ends.iter().find_map(|it| row.wanted.get(it));
            let end = end
                .and_then(Value::as_ref_address)
                .and_then(Address::as_machine);
            end.is_some_and(|it| Address::Machine(it.clone()).to_string() == machine)
        };
        let mut rows = snapshots.iter().filter_map(|it| it.rows.get(binding));
        in_doubt.contains(binding) || rows.any(|row| is_at(row))
    };
    for hob in report.hobs.iter().filter(|hob| !hob.locked) {
        let Some(status) = &hob.status else { continue };
        let machine = &hob.machine;
        let held = status.bindings.iter().map(|it| (&it.binding, &["to"][..]));
        let given = status.grants.iter();
        let given = given.map(|it| (&it.binding, &["service", "from"][..]));
        for (binding, ends) in held.chain(given) {
            // What a person has opened is not the state's affair, and is no binding's address.
            let Ok(binding @ Address::Binding(_)) = binding.parse() else {
                continue;
            };
            if known(&binding, machine, ends) {
                continue;
            }
            let unknown = found.entry(binding.clone()).or_insert_with(|| Unknown {
                binding,
                held_by: Vec::new(),
                given_by: Vec::new(),
            });
            let machines = match ends {
                ["to"] => &mut unknown.held_by,
                _ => &mut unknown.given_by,
            };
            if !machines.contains(machine) {
                machines.push(machine.clone());
            }
        }
    }
    found.into_values().collect()
}

/// Returns the bindings that hobs have and the state has not, neither before they were asked nor
/// after: an apply may run meanwhile.
///
/// # Errors
/// When the state cannot be read.
pub(crate) fn unknown_since(
    before: &Snapshot,
    project: &Project,
    report: &StatusReport,
) -> Result<Vec<Unknown>, Box<Diagnostic>> {
    let Some(reader) = project.reader()? else {
        return Ok(Vec::new());
    };
    let unusable = |error| store_error(&error);
    let doubts = reader.in_doubt().map_err(unusable)?;
    let in_doubt = doubts.iter().map(|it| it.started.intent().address.clone());
    let after = reader.snapshot().map_err(unusable)?;
    Ok(unknown(report, &[before, &after], &in_doubt.collect()))
}

/// Says which bindings hobs have and the state has not.
pub(crate) fn unknown_to(
    snapshot: &Snapshot,
    in_doubt: &BTreeSet<Address>,
    report: &StatusReport,
) -> Option<Diagnostic> {
    let unknown = unknown(report, &[snapshot], in_doubt);
    let (named, more) = unknown.split_at(unknown.len().min(NAMED_MAX));
    let named = named.iter();
    let named = named.map(|it| format!("{} ({})", it.binding, it.whose()));
    let mut text = named.collect::<Vec<_>>().join("; ");
    if !more.is_empty() {
        text += &format!("; and {} more", more.len());
    }
    let detail = format!("Hobs have what this state has not: {text}.");
    let warning = Diagnostic::warning("Bindings not in this state", detail);
    (!unknown.is_empty()).then(|| warning.hint(Unknown::MEND))
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
