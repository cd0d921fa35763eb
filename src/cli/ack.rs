//! `gobs ack`

use std::time::SystemTime;

use gobs_model::Diagnostic;

use crate::project::store_error;

use super::{Context, Outcome, exit, remembered};

/// Settles an alert that status shows, once you have looked at it
///
/// A machine whose claim another key tried in time gets its grants again with the next apply.
#[derive(Debug, clap::Args)]
pub(super) struct Ack {
    /// The alert's number
    alert: u64,
}

impl Ack {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let store = remembered(context)?.0.boss_store()?;
        let settled = store.acknowledge(self.alert, SystemTime::now());
        if !settled.map_err(|error| store_error(&error))? {
            let detail = format!("There is no open alert {}.", self.alert);
            let error = Diagnostic::error("No such alert", detail);
            return Err(error.hint("gobs status lists those that are open.").into());
        }
        context
            .terminal
            .out(&format!("Alert {} is settled.\n", self.alert));
        Ok(exit::DONE)
    }
}
