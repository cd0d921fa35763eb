//! `gobs who`

use std::time::{SystemTime, UNIX_EPOCH};

use gobs_model::{Address, Diagnostic};
use gobs_state::Snapshot;

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
        let service = offered(&self.service, &snapshot)?;
        let report = runtime()?.block_on(live::report(&project, &snapshot))?;
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

/// Returns the address of a service that the state has.
pub(super) fn offered(text: &str, snapshot: &Snapshot) -> Result<Address, Failure> {
    let parsed = text.parse();
    let Ok(service @ Address::Service { .. }) = parsed else {
        let detail = format!("{text:?} is not a service's address.");
        let error = Diagnostic::error("No such service", detail);
        let hint = "An address looks like machine.db.service.orders.";
        return Err(error.hint(hint).into());
    };
    if snapshot.rows.contains_key(&service) {
        return Ok(service);
    }
    let detail = format!("{service} is not offered, as far as the state tells.");
    let error = Diagnostic::error("No such service", detail);
    let offered = snapshot.rows.keys();
    let offered: Vec<_> = offered
        .filter(|it| matches!(it, Address::Service { .. }))
        .map(ToString::to_string)
        .collect();
    let hint = match offered.is_empty() {
        true => "No service is.".into(),
        false => format!("These are: {}.", offered.join(", ")),
    };
    Err(error.hint(hint).into())
}
