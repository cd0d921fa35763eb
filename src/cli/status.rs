//! `gobs status`

use std::time::{SystemTime, UNIX_EPOCH};

use gobs_model::Diagnostic;
use gobs_state::{Row, RowKind, Snapshot};

use crate::boss::{Boss, BossError, StatusReport, ask_status};
use crate::project::{Project, boss_error};

use super::{Context, Failure, Outcome, exit, remembered, runtime, view};

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
        let (text, needs_person) = view::status::status(&report, &snapshot, now_s);
        if self.json {
            let json = serde_json::json!({
                "format_version": "1.0",
                "needs_person": needs_person,
                "hobs": report.hobs,
                "alerts": report.alerts,
                "unclaimed": unclaimed(&report, &snapshot),
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

/// Asks the boss that a running apply hosts; where none runs, hosts one for the moment.
pub(super) async fn report(
    project: &Project,
    snapshot: &Snapshot,
) -> Result<StatusReport, Failure> {
    let socket = project.paths().boss_socket();
    let asked = || async {
        ask_status(&socket).await.map_err(|error| {
            let detail = format!("The boss at {} did not answer: {error}.", socket.display());
            Failure::from(Diagnostic::error("No answer", detail))
        })
    };
    if let Some(report) = asked().await? {
        return Ok(report);
    }
    if snapshot.rows.is_empty() {
        return Ok(StatusReport::default());
    }
    match Boss::start(project.boss_store()?, project.boss_options(snapshot)).await {
        Ok(boss) => {
            let report = boss.status().await;
            boss.shutdown().await;
            report.map_err(|error| boss_error(&error).into())
        }
        // One began in between.
        Err(BossError::Running(_)) => Ok(asked().await?.unwrap_or_default()),
        Err(error) => Err(boss_error(&error).into()),
    }
}
