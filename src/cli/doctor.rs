//! `gobs doctor`

use crate::doctor::{Finding, Level, examine};
use crate::live;

use super::arguments::Variables;
use super::view::text::printable_line;
use super::{Context, Outcome, exit, remembered, runtime, view};

/// Looks for what is wrong and says how to mend it; exits with 3 while a person is needed
///
/// It looks at the state, its key, the clock, the providers, and for strays: machines that carry
/// this project's mark and are not in the state, and machines of the state that their provider has
/// no more. It changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    variables: Variables,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let project = self.variables.project(context)?;
        let runtime = runtime()?;
        let mut found = runtime.block_on(examine(&project));
        // What cannot be read has been said.
        if let Ok((project, snapshot)) = remembered(context)
            && let Ok(report) = runtime.block_on(live::report(&project, &snapshot))
        {
            let now = std::time::UNIX_EPOCH.elapsed();
            let now_s = now.map_or(0, |since| since.as_secs());
            if view::status::status((&report, &[]), &snapshot, now_s).1 {
                let what = "A hob, a claim or a binding needs a person.";
                found.push(Finding::problem(what, "`gobs status` says which, and why."));
            }
            for it in live::unknown_since(&snapshot, &project, &report)? {
                let what = format!("{} is not in this state: {}.", it.binding, it.whose());
                found.push(Finding::problem(what, live::Unknown::MEND));
            }
        }
        let needs_person = found.iter().any(|it| it.level == Level::Problem);
        if self.json {
            let json = serde_json::json!({
                "format_version": "1.0",
                "needs_person": needs_person,
                "findings": found,
            });
            context.terminal.out(&format!("{json:#}\n"));
        } else {
            for finding in &found {
                let sign = match finding.level {
                    Level::Good => "ok     ",
                    Level::Note => "note   ",
                    Level::Problem => "PROBLEM",
                };
                let what = printable_line(&finding.what);
                context.terminal.out(&format!("{sign}  {what}\n"));
                if let Some(mend) = &finding.mend {
                    let mend = printable_line(mend);
                    context.terminal.out(&format!("         {mend}\n"));
                }
            }
        }
        Ok(if needs_person {
            exit::ATTENTION
        } else {
            exit::DONE
        })
    }
}
