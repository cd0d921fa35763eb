//! `gobs apply`

use std::path::{Path, PathBuf};

use futures_util::future::join;
use gobs_model::Diagnostic;
use tokio::sync::{mpsc, watch};

use crate::apply::Summary;
use crate::project::Project;
use crate::run::{Choices, Planned, Run};

use super::approve::{Question, approve};
use super::arguments::Planning;
use super::plan::show;
use super::watch::{Interrupts, Watcher};
use super::{Context, Failure, Outcome, exit, plan_file, runtime, view};

/// Makes what is declared: shows the plan, asks, and does it
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// A plan that plan --out wrote: exactly that is done, without asking, or it is refused
    #[arg(value_name = "PLANFILE")]
    plan: Option<PathBuf>,
    /// Does not ask
    #[arg(long)]
    auto_approve: bool,
    /// Ends everything: as gobs destroy
    #[arg(long)]
    destroy: bool,
    #[command(flatten)]
    planning: Planning,
}

impl Apply {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        match &self.plan {
            Some(path) => self.run_file(context, path),
            None => run(context, &self.planning, self.destroy, self.auto_approve),
        }
    }

    fn run_file(&self, context: &mut Context, path: &Path) -> Outcome {
        self.planning.decides_nothing(self.destroy)?;
        let surroundings = self.planning.variables.surroundings(context)?;
        let (file, project) = plan_file::read(path, surroundings)?;
        let choices = self.planning.choices(file.plan.destroy);
        block_on(async {
            let mut session = Session::begin(context, &project, choices).await?;
            let outcome = match session.run.planned(&file) {
                Ok(planned) => session.apply(context, &planned).await,
                Err(refused) => Err(refused.into()),
            };
            session.run.end().await;
            outcome
        })
    }
}

/// Plans, asks, and applies.
pub(super) fn run(
    context: &mut Context,
    planning: &Planning,
    destroy: bool,
    auto_approve: bool,
) -> Outcome {
    context.input &= planning.input;
    let project = planning.variables.project(context)?;
    let choices = planning.choices(destroy);
    block_on(async {
        let mut session = Session::begin(context, &project, choices).await?;
        let outcome = session.plan_and_apply(context, auto_approve).await;
        session.run.end().await;
        outcome
    })
}

/// Runs to the end; a task that hangs when Ctrl-C was pressed twice holds nothing up.
fn block_on(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = runtime()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// One run that may change things, and whoever watches it.
struct Session<'a> {
    project: &'a Project,
    choices: Choices,
    run: Run<'a>,
    watcher: Watcher,
}

impl<'a> Session<'a> {
    async fn begin(
        context: &mut Context,
        project: &'a Project,
        choices: Choices,
    ) -> Result<Self, Failure> {
        let (events, receiver) = channel();
        let command = if choices.destroy { "destroy" } else { "apply" };
        let begun = Run::begin(project, command, &events).await;
        drop(events);
        let mut watcher = Watcher::default();
        watcher.print(receiver, &mut context.terminal).await;
        Ok(Self {
            project,
            choices,
            run: begun?,
            watcher,
        })
    }

    async fn plan_and_apply(&mut self, context: &mut Context, auto_approve: bool) -> Outcome {
        let planned = self.run.plan(self.choices).await?;
        show(context, &planned, &self.project.warnings);
        if planned.plan.is_empty() {
            self.show_outputs(context)?;
            return Ok(exit::DONE);
        }
        let question = if self.choices.destroy {
            Question::Destroy
        } else {
            Question::Apply
        };
        if !auto_approve && !approve(context, &question)? {
            return Ok(exit::FAILED);
        }
        context.terminal.out("\n");
        self.apply(context, &planned).await
    }

    async fn apply(&mut self, context: &mut Context, planned: &Planned) -> Outcome {
        let (events, receiver) = channel();
        let (stop, stopped) = watch::channel(false);
        let interrupts = Interrupts::listen().map_err(|error| {
            let detail = format!("Ctrl-C cannot be heard: {error}. Nothing was done.");
            Diagnostic::error("No signals", detail)
        })?;
        let parallelism = self.choices.parallelism;
        let apply = self.run.apply(planned, parallelism, stopped, events);
        let print = self.watcher.print(receiver, &mut context.terminal);
        let ended = tokio::select! {
            (summary, ()) = join(apply, print) => Some(summary?),
            () = interrupts.second(&stop) => None,
        };
        let Some(summary) = ended else {
            context
                .terminal
                .err("\nLeft at once. What was under way is in doubt; the next run settles it.\n");
            return Ok(exit::FAILED);
        };
        self.show_end(context, &summary, planned.plan.destroy)
    }

    fn show_end(&mut self, context: &mut Context, summary: &Summary, destroy: bool) -> Outcome {
        context.terminal.out("\n");
        context
            .terminal
            .out(&view::apply::summary(summary, destroy));
        context.terminal.diagnose(&self.watcher.failures());
        if !summary.is_complete() {
            return Ok(exit::FAILED);
        }
        self.show_outputs(context)?;
        Ok(exit::DONE)
    }

    fn show_outputs(&self, context: &mut Context) -> Result<(), Failure> {
        let snapshot = self.run.snapshot()?;
        let outputs = snapshot.outputs.iter();
        let outputs = outputs.map(|(name, value)| (name.as_str(), value.value()));
        context.terminal.out(&view::apply::outputs(outputs));
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a few events for each step: the plan bounds them, and an apply must not wait for \
              a terminal that stands still"
)]
fn channel() -> (
    crate::apply::Events,
    mpsc::UnboundedReceiver<crate::apply::Event>,
) {
    mpsc::unbounded_channel()
}
