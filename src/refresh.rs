//! Refresh: asks the providers what is there now.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use gobs_model::{Diagnostic, Path};
use gobs_state::{Row, RowChange, RowKind, Snapshot};

use crate::apply::Providers;
use crate::plan::{Drift, drift};

/// What the providers said.
#[derive(Clone, Debug, Default)]
pub struct Refreshed {
    /// The snapshot with what they said as `observed`. A machine that is gone keeps its row.
    pub snapshot: Snapshot,
    /// How that differs from what they said before, on what the configuration sets.
    pub drift: Vec<Drift>,
    /// The rows that changed, to be written by whoever may.
    pub changes: Vec<RowChange>,
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
