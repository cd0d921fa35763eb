//! Refresh: what there is now, as the providers say, and the hobs that can be asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use gobs_model::{Address, Diagnostic, Path, Value};
use gobs_state::{Phase, Row, RowChange, RowKind, Snapshot};
use hob::protocol::HobStatus;

use crate::apply::Providers;
use crate::boss::StatusReport;
use crate::plan::{Drift, Holding, drift};

/// What the providers said.
#[derive(Clone, Debug, Default)]
pub struct Refreshed {
    /// The snapshot with what they said as `observed`. A machine that is gone keeps its row.
    pub snapshot: Snapshot,
    /// How that differs from what they said before, on what the configuration sets.
    pub drift: Vec<Drift>,
    /// The rows that changed, to be written by whoever may.
    pub changes: Vec<RowChange>,
    /// What the hobs say of bindings, where they were asked.
    pub holdings: BTreeMap<Address, Holding>,
}

/// Reads every machine that is more than a row, at most `parallelism` at once.
///
/// # Errors
/// When a provider cannot say: planning on what might be gone would be a guess.
pub async fn refresh(
    snapshot: &Snapshot,
    providers: &Providers,
    parallelism: usize,
) -> Result<Refreshed, Vec<Diagnostic>> {
    let mut refreshed = Refreshed {
        snapshot: snapshot.clone(),
        ..Refreshed::default()
    };
    let mut errors = Vec::new();
    let reads = snapshot.rows.values().filter_map(|row| {
        let RowKind::Machine { provider, .. } = &row.kind else {
            return None;
        };
        let provider = providers.get(provider)?;
        if provider.is_simulated() {
            return None;
        }
        Some(async move {
            let seen = provider.read(&crate::apply::observed_of(row)).await;
            (row, provider, seen)
        })
    });
    let mut reads = stream::iter(reads).buffer_unordered(parallelism.max(1));
    while let Some((row, provider, seen)) = reads.next().await {
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                let error =
                    Diagnostic::error("Refresh failed", format!("{}: {error}.", row.address))
                        .about(row.address.clone(), Path::default())
                        .hint("To plan on what was seen last, use --refresh=false.");
                errors.push(error);
                continue;
            }
        };
        let now = seen.as_ref().map(|seen| &seen.attributes);
        refreshed.drift.extend(drift(provider.schema(), row, now));
        if let Some(seen) = seen
            && seen.attributes != row.observed
        {
            let row = Row {
                observed: seen.attributes,
                ..Row::clone(row)
            };
            refreshed
                .changes
                .push(RowChange::PutRow(Box::new(row.clone())));
            refreshed
                .snapshot
                .rows
                .insert(row.address.clone(), Arc::new(row));
        }
    }
    drop(reads);
    refreshed.drift.sort_by(|a, b| a.address.cmp(&b.address));
    if errors.is_empty() {
        Ok(refreshed)
    } else {
        Err(errors)
    }
}

/// Returns what the hobs that answered say of bindings. One that could not be asked says nothing.
pub fn holdings(report: &StatusReport, snapshot: &Snapshot) -> BTreeMap<Address, Holding> {
    let answered = report.hobs.iter().filter(|hob| !hob.locked);
    let answered: HashMap<(&str, u64), &HobStatus> = answered
        .filter_map(|hob| {
            let status = hob.status.as_ref()?;
            Some(((hob.machine.as_str(), hob.incarnation), status))
        })
        .collect();
    let mut holdings = BTreeMap::<Address, Holding>::new();
    for status in answered.values() {
        let grants = status.grants.iter().map(|it| (&it.binding, it.generation));
        let held = status.bindings.iter();
        let held = held.map(|it| (&it.binding, it.generation));
        let revoked = status.revoked.iter();
        let revoked = revoked.map(|it| (&it.binding, it.generation));
        for (binding, generation) in grants.chain(held).chain(revoked) {
            if let Ok(address) = binding.parse() {
                let highest = &mut holdings.entry(address).or_default().generation;
                *highest = generation.max(*highest);
            }
        }
    }
    for row in snapshot.rows.values() {
        let RowKind::Binding {
            generation,
            from_incarnation,
            to_incarnation,
            phase: Phase::Granted,
            ..
        } = row.kind
        else {
            continue;
        };
        // One that has expired has ended as it was asked to.
        if may_expire(row, snapshot) {
            continue;
        }
        let binding = row.address.to_string();
        let end = |name: &str, incarnation: u64| {
            let machine = row.wanted.get(name)?.as_ref_address()?.as_machine()?;
            let machine = Address::Machine(machine.clone());
            let status = *answered.get(&(machine.to_string().as_str(), incarnation))?;
            Some((machine, status))
        };
        let importer = end("to", to_incarnation).filter(|(_, status)| {
            let mut held = status.bindings.iter();
            !held.any(|it| it.binding == binding && it.generation == generation)
        });
        let from = ["service", "from"].into_iter();
        let mut from = from.filter(|name| row.wanted.get(name).is_some());
        let exporter = from.next().and_then(|name| end(name, from_incarnation));
        let exporter = exporter.filter(|(_, status)| {
            let mut given = status.grants.iter();
            !given.any(|it| it.binding == binding && it.generation == generation)
        });
        if let Some((machine, _)) = importer.or(exporter) {
            holdings.entry(row.address.clone()).or_default().lost_at = Some(machine);
        }
    }
    holdings
}

/// Returns whether a binding, or one that it is made from, ends by its exporter's clock.
fn may_expire(row: &Row, snapshot: &Snapshot) -> bool {
    let mut next = Some(row);
    // What is made from each other is no circle, and is never longer than all there is.
    for _ in 0..snapshot.rows.len() {
        let Some(row) = next else { break };
        let rights = row.wanted.get("attenuate");
        let expires = rights.and_then(|it| it.get("expires"));
        if expires.is_some_and(|it| !it.is_null()) {
            return true;
        }
        let from = row.wanted.get("from").and_then(Value::as_ref_address);
        next = from.and_then(|it| snapshot.rows.get(it)).map(|row| &**row);
    }
    false
}
