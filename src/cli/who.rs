//! `gobs who`

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use gobs_model::{Address, Diagnostic};
use gobs_state::Snapshot;

use crate::boss::StatusReport;
use crate::live;
use crate::project::store_error;

use super::{Context, Failure, Outcome, exit, remembered, runtime, view};

/// Shows who holds a service: with which rights, since when
///
/// The hob that gives it out is asked; where it cannot be reached, what is remembered is shown.
/// Whom gobs open gave it for a while is shown afterwards, too.
#[derive(Debug, clap::Args)]
pub(super) struct Who {
    /// The service's address: machine.db.service.orders
    service: String,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Who {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let (project, snapshot) = remembered(context)?;
        let service = address(&self.service)?;
        let report = runtime()?.block_on(live::report(&project, &snapshot))?;
        offered(&service, &snapshot, &report)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now_s = now.map_or(0, |since| since.as_secs());
        let holders = view::who::holders(&service, &report, &snapshot);
        let loans = project.boss_store()?.loans(&service);
        let loans = view::who::loans(loans.map_err(|error| store_error(&error))?);
        let text = match self.json {
            true => {
                let json = serde_json::json!({
                    "format_version": "1.0",
                    "service": service.to_string(),
                    "holders": holders,
                    "loans": loans,
                });
                format!("{json:#}\n")
            }
            false => view::who::who(&service, &holders, &loans, now_s),
        };
        context.terminal.out(&text);
        Ok(exit::DONE)
    }
}

/// Returns the address of a service.
pub(super) fn address(text: &str) -> Result<Address, Failure> {
    if let Ok(service @ Address::Service { .. }) = text.parse() {
        return Ok(service);
    }
    let detail = format!("{text:?} is not a service's address.");
    let error = Diagnostic::error("No such service", detail);
    let hint = "An address looks like machine.db.service.orders.";
    Err(error.hint(hint).into())
}

/// Checks that the state has a service, or that its machine's hob offers it.
pub(super) fn offered(
    service: &Address,
    snapshot: &Snapshot,
    report: &StatusReport,
) -> Result<(), Failure> {
    let hobs = report.hobs.iter().filter_map(|hob| {
        let offers = hob.status.as_ref()?.offers.iter();
        Some(offers.map(|it| format!("{}.service.{}", hob.machine, it.service)))
    });
    let rows = snapshot.rows.keys();
    let rows = rows.filter(|it| matches!(it, Address::Service { .. }));
    let rows = rows.map(ToString::to_string);
    let offered: BTreeSet<_> = hobs.flatten().chain(rows).collect();
    if offered.contains(&service.to_string()) {
        return Ok(());
    }
    let detail = format!("{service} is not offered, as far as the state and the hobs tell.");
    let error = Diagnostic::error("No such service", detail);
    let offered = Vec::from_iter(offered);
    let hint = match offered.is_empty() {
        true => "No service is.".into(),
        false => format!("These are: {}.", offered.join(", ")),
    };
    Err(error.hint(hint).into())
}
