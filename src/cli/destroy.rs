//! `gobs destroy`

use super::arguments::Planning;
use super::{Context, Outcome, apply};

/// Ends everything that the project made: as apply --destroy
#[derive(Debug, clap::Args)]
pub(super) struct Destroy {
    /// Does not ask
    #[arg(long)]
    auto_approve: bool,
    #[command(flatten)]
    planning: Planning,
}

impl Destroy {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        apply::run(context, &self.planning, true, self.auto_approve)
    }
}
