//! `gobs unlock`

use gobs_model::{Address, Diagnostic};

use crate::project::store_error;

use super::{Context, Outcome, exit, remembered};

/// Lets a hob back in that was locked since its state is older than what was seen of it
///
/// A copied disk, or a state file restored from a backup, looks like that. Make sure first that
/// only one machine has the hob's key: the first one to come back is believed.
#[derive(Debug, clap::Args)]
pub(super) struct Unlock {
    /// The machine's address: machine.db
    address: String,
}

impl Unlock {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let Ok(machine @ Address::Machine(_)) = self.address.parse() else {
            let detail = format!("{:?} is not a machine's address.", self.address);
            let error = Diagnostic::error("No such machine", detail);
            return Err(error
                .hint("An address looks like machine.db or machine.web[0].")
                .into());
        };
        let store = remembered(context)?.0.boss_store()?;
        if !store
            .unlock(&machine)
            .map_err(|error| store_error(&error))?
        {
            let detail = format!("The hob on {machine} is not locked.");
            let error = Diagnostic::error("Nothing to unlock", detail);
            return Err(error.hint("gobs status shows what is.").into());
        }
        context
            .terminal
            .out(&format!("The hob on {machine} may come back.\n"));
        Ok(exit::DONE)
    }
}
