//! `gobs plan`

use std::path::PathBuf;

use gobs_model::Diagnostic;

use crate::run::{Planned, plan_only};

use super::arguments::Planning;
use super::{Context, Outcome, exit, plan_file, runtime, view};

/// Shows what apply would do; changes nothing
#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// Writes the plan to a file, which apply takes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Exits with 2 where there is something to do: 0 nothing, 1 error, 2 changes
    #[arg(long)]
    detailed_exitcode: bool,
    /// Plans the end of everything
    #[arg(long)]
    destroy: bool,
    #[command(flatten)]
    planning: Planning,
}

impl Plan {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let project = self.planning.variables.project(context)?;
        let choices = self.planning.choices(self.destroy);
        let planned = runtime()?.block_on(plan_only(&project, choices))?;
        show(context, &planned, &project.warnings);
        if let Some(path) = &self.out {
            plan_file::write(path, &project, &planned)?;
            context
                .terminal
                .out(&format!("\nSaved the plan to: {}\n", path.display()));
            if !context.in_automation {
                context.terminal.out(&format!(
                    "\nTo perform exactly these actions, run the following command to apply:\n    \
                     gobs apply {:?}\n",
                    path.display().to_string()
                ));
            }
        }
        let has_changes = self.detailed_exitcode && !planned.plan.is_empty();
        Ok(if has_changes {
            exit::CHANGES
        } else {
            exit::DONE
        })
    }
}

/// Prints a plan, and what to look at that was not said before.
pub(super) fn show(context: &mut Context, planned: &Planned, said: &[Diagnostic]) {
    let warnings = planned.plan.warnings.iter();
    let warnings: Vec<_> = warnings.filter(|it| !said.contains(it)).cloned().collect();
    context.terminal.out(&view::plan::plan(&planned.plan));
    context.terminal.diagnose(&warnings);
}
