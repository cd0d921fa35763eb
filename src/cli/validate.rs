//! `gobs validate`

use gobs_model::Diagnostic;

use crate::project::Project;

use super::arguments::Variables;
use super::view::text::{GREEN, styled};
use super::{Context, Outcome, exit};

/// Checks the configuration, without state or values of variables
#[derive(Debug, clap::Args)]
pub(super) struct Validate {}

impl Validate {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let surroundings = Variables::default().surroundings(context)?;
        let mut diagnostics = Project::peek(surroundings.clone())?.warnings;
        // With a value for every variable, all that planning says without a state can be said.
        if let Ok(project) = Project::open(surroundings) {
            diagnostics.extend(project.rehearse().into_iter().filter(Diagnostic::is_error));
        }
        if diagnostics.iter().any(Diagnostic::is_error) {
            return Err(diagnostics.into());
        }
        context.terminal.diagnose(&diagnostics);
        let success = styled(GREEN.bold(), "Success!");
        let but = match diagnostics.len() {
            0 => "",
            1 => ", but there is a warning to look at",
            _ => ", but there are warnings to look at",
        };
        context
            .terminal
            .out(&format!("{success} The configuration is valid{but}.\n"));
        Ok(exit::DONE)
    }
}
