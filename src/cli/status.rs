//! `gobs status`

use std::time::{SystemTime, UNIX_EPOCH};

use gobs_state::{Row, RowKind, Snapshot};

use crate::boss::StatusReport;
use crate::live::{report, unknown_since};

use super::{Context, Outcome, exit, remembered, runtime, view};

/// Shows what is live: hobs, bindings, alerts; exits with 3 while something needs a person
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let (project, snapshot) = remembered(context)?;
        let report = runtime()?.block_on(report(&project, &snapshot))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.map_or(0, |since| since.as_secs());
        let unknown = unknown_since(&snapshot, &project, &report)?;
        let shown = (&report, unknown.as_slice());
        let (text, needs_person) = view::status::status(shown, &snapshot, now_s);
        if self.json {
            let json = serde_json::json!({
                "format_version": "1.0",
                "needs_person": needs_person,
                "hobs": report.hobs,
                "alerts": report.alerts,
                "unclaimed": unclaimed(&report, &snapshot),
                "unknown_bindings": unknown,
            });
            context.terminal.out(&format!("{json:#}\n"));
        } else {
            context.terminal.out(&text);
        }
        Ok(if needs_person {
            exit::ATTENTION
        } else {
            exit::DONE
        })
    }
}

/// Returns the machines that exist and whose hob did not call home in time.
fn unclaimed(report: &StatusReport, snapshot: &Snapshot) -> Vec<String> {
    let is_it = |row: &Row| match row.kind {
        RowKind::Machine { incarnation, .. } => report
            .unclaimed
            .contains(&(row.address.to_string(), incarnation)),
        _ => false,
    };
    let rows = snapshot.rows.values().filter(|row| is_it(row));
    rows.map(|row| row.address.to_string()).collect()
}
