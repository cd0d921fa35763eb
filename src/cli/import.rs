//! `gobs import`

use gobs_model::{Address, Diagnostic, Instance};

use super::arguments::Variables;
use super::{Context, Failure, Outcome, exit, runtime};

/// Takes over a machine that exists already, as a machine that is declared here
///
/// The machine is marked as this project's, and otherwise left as it is; `gobs plan` then says
/// where it differs from its declaration. It has no hob: its block needs `hob { enabled = false }`.
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    #[command(flatten)]
    variables: Variables,
    /// The machine's address: machine.db
    address: String,
    /// Its identifier at the provider
    id: String,
}

impl Import {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let machine = machine(&self.address)?;
        let project = self.variables.project(context)?;
        let work = crate::import::import(&project, &machine, &self.id);
        runtime()?.block_on(work)?;
        context.terminal.out(&format!(
            "{} is {} now. gobs plan says where it differs from its declaration.\n",
            self.id, self.address
        ));
        Ok(exit::DONE)
    }
}

/// Returns the machine of an address.
pub(super) fn machine(address: &str) -> Result<Instance, Failure> {
    let parsed = address.parse::<Address>().ok();
    let machine = parsed.and_then(|it| it.as_machine().cloned());
    machine.ok_or_else(|| {
        let detail = format!("{address:?} is not the address of a machine.");
        let error = Diagnostic::error("Not a machine", detail);
        error
            .hint("Such as machine.db, or 'machine.web[\"a\"]'.")
            .into()
    })
}
