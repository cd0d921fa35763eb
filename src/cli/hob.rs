//! `gobs hob`

use std::ffi::OsString;

use super::Outcome;

/// Runs the agent of a machine, or asks it: gobs hob --help
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Hob {
    /// The agent's own arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    args: Vec<OsString>,
}

impl Hob {
    pub(super) fn run(self) -> Outcome {
        Ok(hob::run(self.args))
    }
}
