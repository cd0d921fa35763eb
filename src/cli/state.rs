//! `gobs state`

use super::import::machine;
use super::view::text::printable_line;
use super::{Context, Outcome, exit, remembered};

/// Looks into the state, and forgets machines
#[derive(Debug, clap::Args)]
pub(super) struct State {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists what the state has, one address a line
    #[command(visible_alias = "ls")]
    List {
        /// Lists only addresses that are this one, or within it: machine.db, binding.db["a"]
        address: Vec<String>,
    },
    /// Forgets a machine, which goes on as it is; `gobs import` takes it over again
    Rm {
        /// The machine's address: machine.db
        address: String,
    },
}

impl State {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let wanted = match &self.command {
            Command::List { address } => address,
            Command::Rm { address } => return forget(context, address),
        };
        let snapshot = remembered(context)?.1;
        let addresses = snapshot.rows.keys().map(ToString::to_string);
        let is_within = |address: &str, wanted: &str| {
            let rest = address.strip_prefix(wanted);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let is_wanted = |address: &String| {
            wanted.is_empty() || wanted.iter().any(|wanted| is_within(address, wanted))
        };
        let lines: String = addresses
            .filter(is_wanted)
            .map(|address| format!("{}\n", printable_line(&address)))
            .collect();
        context.terminal.out(&lines);
        Ok(exit::DONE)
    }
}

fn forget(context: &mut Context, address: &str) -> Outcome {
    let machine = machine(address)?;
    let (project, _) = remembered(context)?;
    crate::import::forget(&project, &machine)?;
    context
        .terminal
        .out(&format!("{address} is forgotten; it goes on as it is.\n"));
    Ok(exit::DONE)
}
