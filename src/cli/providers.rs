//! `gobs providers`

use std::path::PathBuf;

use gobs_model::{Change, Diagnostic, Instance, Known, Name, Value};
use gobs_provider::UserData;
use gobs_provider::conformance::{self, Fixture};

use crate::plan::change_of;
use crate::plugins::Plugins;
use crate::project::{Project, Surroundings, built_in_names};

use super::arguments::Variables;
use super::{Context, Failure, Outcome, exit, runtime};

/// What machines of a test get for their agents: nothing that does anything.
const USER_DATA: &str = "#cloud-config\n{}\n";

/// Lists the providers that there are, or tests one
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Providers {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Test(Test),
}

/// Runs the conformance checks against a provider: makes machines, changes and deletes them
///
/// FILE is written as a project is. Its machine "wanted" is made; "refused", if there, is one that
/// the provider refuses; "loses_answer" one that is made although the call ends in doubt; to each
/// other machine, in the order of their names, "wanted" is updated. Exits with 0 when every check
/// holds, with 1 when one is broken.
#[derive(Debug, clap::Args)]
struct Test {
    /// The provider: dummy, linode, or a plugin
    name: String,
    /// Machines to test with
    file: PathBuf,
}

impl Providers {
    pub(super) fn run(self, context: &mut Context) -> Outcome {
        let surroundings = Variables::default().surroundings(context)?;
        match self.command {
            None => list(context, surroundings),
            Some(Command::Test(test)) => test.run(context, surroundings),
        }
    }
}

fn list(context: &mut Context, mut surroundings: Surroundings) -> Outcome {
    // Listing runs none of them; a directory without a project has no commands.
    let search = std::mem::take(&mut surroundings.plugins);
    let directory = surroundings.directory.clone();
    let config = Project::peek(surroundings).map(|project| project.config);
    let directory = directory.canonicalize().unwrap_or(directory);
    let may_run_tree = search.may_run_tree;
    let (plugins, errors) = Plugins::new(directory, search, &config.unwrap_or_default());
    context.terminal.diagnose(&errors);
    let built_in = built_in_names().map(|name| (name.to_owned(), "built in".to_owned()));
    let plugins = plugins.all().into_iter().map(|found| {
        let not_allowed = match found.is_of_tree && !may_run_tree {
            true => " (not allowed without --allow-tree-commands)",
            false => "",
        };
        let how = format!("{}{not_allowed}", found.command_line());
        (found.name, how)
    });
    // What is built in is never a plugin.
    let plugins = plugins.filter(|(name, _)| !built_in_names().any(|it| it == name));
    let rows: Vec<(String, String)> = built_in.chain(plugins).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, how) in rows {
        context.terminal.out(&format!("{name:width$}  {how}\n"));
    }
    Ok(exit::DONE)
}

impl Test {
    fn run(&self, context: &mut Context, surroundings: Surroundings) -> Outcome {
        let project = Project::of_file(surroundings, &self.file)?;
        context.terminal.diagnose(&project.warnings);
        let (provider, fixture) = self.fixture(&project)?;
        let outcomes = runtime()?.block_on(async {
            let evaluator = project.evaluator()?;
            let provider = project.provider(&provider, &evaluator).await?;
            Ok::<_, Failure>(conformance::check(&*provider, &fixture).await)
        })?;
        for outcome in &outcomes {
            context.terminal.out(&format!("{outcome}\n"));
        }
        let broken = outcomes.iter().filter(|it| it.result.is_err()).count();
        context.terminal.out(&match broken {
            0 => format!(
                "\n{} keeps the contract: {} checks.\n",
                self.name,
                outcomes.len()
            ),
            _ => format!(
                "\n{} breaks the contract: {broken} of {} checks.\n",
                self.name,
                outcomes.len()
            ),
        });
        Ok(if broken == 0 {
            exit::DONE
        } else {
            exit::FAILED
        })
    }

    /// Returns the provider's configuration, and what it is tested with.
    fn fixture(&self, project: &Project) -> Result<(String, Fixture), Failure> {
        let evaluator = project.evaluator()?;
        let mut provider = None;
        let mut machine = |name: &Name| {
            let instance = Instance {
                name: name.clone(),
                key: None,
            };
            let values = evaluator.machine(&instance)?;
            if values.provider.split('.').next() != Some(&self.name) {
                let detail = format!("machine.{name} is not of the provider {:?}.", self.name);
                return Err(Failure::from(Diagnostic::error("Wrong provider", detail)));
            }
            provider = Some(values.provider);
            let known = Known::try_from(values.attributes);
            known.map_err(|unknown| {
                let detail = format!("machine.{name}: {unknown}.");
                Diagnostic::error("Attributes not known", detail).into()
            })
        };
        let (mut wanted, mut refused, mut loses_answer) = (None, None, None);
        let mut others = Vec::new();
        for name in project.config.machines.keys() {
            let attributes = machine(name)?;
            match name.as_str() {
                "wanted" => wanted = Some(attributes),
                "refused" => refused = Some(attributes),
                "loses_answer" => loses_answer = Some(attributes),
                _ => others.push((name, attributes)),
            }
        }
        let (Some(wanted), Some(provider)) = (wanted, provider) else {
            let detail = format!("{} declares no machine \"wanted\".", self.file.display());
            return Err(Diagnostic::error("Nothing to test with", detail).into());
        };
        let Some(schema) = project.schemas.get(&self.name) else {
            let detail = format!("There is no provider {:?}.", self.name);
            return Err(Diagnostic::error("Unknown provider", detail).into());
        };
        let mut before: &Value = wanted.value();
        let mut changes = Vec::new();
        for (name, attributes) in &others {
            let change = change_of(&schema.machine, before, attributes.value());
            if change == Some(Change::Replace) {
                let detail = format!("To become machine.{name}, a machine would be replaced.");
                let error = Diagnostic::error("No change to test", detail);
                return Err(error
                    .hint("Leave out what only another machine can have.")
                    .into());
            }
            changes.push((change.unwrap_or_default(), attributes.clone()));
            before = attributes.value();
        }
        let fixture = Fixture {
            wanted,
            changes,
            refused,
            loses_answer,
            user_data: Some(UserData(USER_DATA.into())),
        };
        Ok((provider, fixture))
    }
}
