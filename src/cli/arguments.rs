//! Arguments that several commands share, and what they open.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use gobs_model::Diagnostic;
use gobs_provider_linode::LinodeHost;
use gobs_state::CrashAt;

use crate::apply::PARALLELISM_DEFAULT;
use crate::lang::{Assignment, BossPlace, Given, Origin};
use crate::plugins::{PluginSearch, split_path};
use crate::project::{Project, Surroundings};
use crate::run::Choices;

use super::environment::Environment;
use super::{Context, Failure};

/// How many provider calls may run at once at most: a limit for typing errors, far beyond what
/// any provider allows.
const PARALLELISM_MAX: u64 = 1_000;

/// Values for variables.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Variables {
    /// Sets a variable; may be repeated, the last one wins
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = assignment)]
    #[arg(allow_hyphen_values = true)]
    given: Vec<Assignment>,
    /// Reads variables from a file; may be repeated, the last one wins
    #[arg(long = "var-file", value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What is planned, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Planning {
    #[command(flatten)]
    pub(super) variables: Variables,
    /// Asks the providers what is there now, before planning
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    refresh: bool,
    /// How many provider calls run at once
    #[arg(long, value_name = "N", default_value_t = PARALLELISM_DEFAULT as u64)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=PARALLELISM_MAX))]
    parallelism: u64,
    /// Whether somebody may be asked; also GOBS_INPUT=0
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) input: bool,
}

impl Planning {
    /// Returns what is chosen.
    pub(super) fn choices(&self, destroy: bool) -> Choices {
        Choices {
            destroy,
            refresh: self.refresh,
            parallelism: usize::try_from(self.parallelism).unwrap_or(PARALLELISM_DEFAULT),
        }
    }

    /// Returns an error where something is chosen that a plan file has decided already.
    pub(super) fn decides_nothing(&self, destroy: bool) -> Result<(), Failure> {
        let variables = &self.variables;
        let decided = [
            ("--destroy", destroy),
            ("--refresh", !self.refresh),
            ("--var", !variables.given.is_empty()),
            ("--var-file", !variables.files.is_empty()),
        ];
        match decided.iter().find(|(_, is_given)| *is_given) {
            None => Ok(()),
            Some((flag, _)) => Err(Diagnostic::error(
                "Plan file and planning option",
                format!(
                    "{flag} was decided when the plan was made; a plan file is applied as it is."
                ),
            )
            .hint(format!("Leave {flag} out, or plan again with it."))
            .into()),
        }
    }
}

impl Variables {
    /// Returns what the project here is opened with.
    ///
    /// # Errors
    /// When a value in the environment cannot be read.
    pub(super) fn surroundings(&self, context: &Context) -> Result<Surroundings, Failure> {
        let env = &context.env;
        let text = |name: String, value: &OsStr| {
            let bad = || {
                let detail = format!("{name} is not UTF-8.");
                Failure::from(Diagnostic::error("Bad value in the environment", detail))
            };
            value.to_str().map(str::to_owned).ok_or_else(bad)
        };
        let from_environment = env.with_prefix("GOBS_VAR_").map(|(name, value)| {
            Ok(Assignment {
                name: name.into(),
                value: Given::Text(text(format!("GOBS_VAR_{name}"), value)?),
                origin: Origin::Environment,
                span: None,
            })
        });
        let given = |name: &str| {
            env.get(name)
                .map(|value| text(name.into(), value))
                .transpose()
        };
        let agent = std::env::current_exe().map_err(|error| {
            let detail = format!("The path of this program cannot be found: {error}.");
            Diagnostic::error("No agent", detail)
        })?;
        Ok(Surroundings {
            directory: PathBuf::from("."),
            environment_variables: from_environment.collect::<Result<_, Failure>>()?,
            variable_files: self.files.clone(),
            variables: self.given.clone(),
            key: given("GOBS_KEY")?,
            agent: vec![agent.into(), OsString::from("hob")],
            boss: BossPlace {
                listen: given("GOBS_BOSS_LISTEN")?,
                advertise: given("GOBS_BOSS_ADVERTISE")?,
            },
            runtime_root: runtime_root(),
            plugins: plugins(context),
            linode: LinodeHost {
                token: given("LINODE_TOKEN")?.map(Into::into),
                url: given("LINODE_URL")?,
                // What the project's own files name does not run by itself (X6).
                allow_commands: context.may_run_tree,
                clock_scale: clock_scale(env)?,
                // The state knows it, once that is open.
                project: String::new(),
            },
            crash_at: env.get("GOBS_TEST_CRASH_AT").map(crash_at).transpose()?,
        })
    }

    /// Opens the project here.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn project(&self, context: &mut Context) -> Result<Project, Failure> {
        let project = Project::open(self.surroundings(context)?)?;
        context.terminal.diagnose(&project.warnings);
        Ok(project)
    }
}

/// Returns where plugins are looked for, and what they may get a part of.
fn plugins(context: &Context) -> PluginSearch {
    let env = &context.env;
    PluginSearch {
        path: env.get("PATH").map(split_path).unwrap_or_default(),
        in_tree: true,
        may_run_tree: context.may_run_tree,
        environment: env
            .all()
            .map(|(name, it)| (name.into(), it.into()))
            .collect(),
    }
}

/// Returns where the machines of this host have their sockets: short, since a socket's path has
/// 107 bytes at most, and the same in every session of the same user.
fn runtime_root() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    PathBuf::from(format!("/tmp/gobs-{user}"))
}

/// Reads how much faster than this host's the clock of a double of Linode runs.
fn clock_scale(env: &Environment) -> Result<u32, Failure> {
    let name = "GOBS_LINODE_CLOCK_SCALE";
    let Some(text) = env.get(name) else {
        return Ok(1);
    };
    text.to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            let detail = format!("{name} must be a whole number.");
            Diagnostic::error("Bad value in the environment", detail).into()
        })
}

/// Reads where a test of crash safety wants the run to die: `before:3`, `after:3`, `call:3`.
fn crash_at(text: &OsStr) -> Result<CrashAt, Failure> {
    let point = text.to_str().and_then(|text| {
        let (when, commit) = text.split_once(':')?;
        let commit = commit.parse().ok()?;
        match when {
            "before" => Some(CrashAt::Before(commit)),
            "after" => Some(CrashAt::After(commit)),
            "call" => Some(CrashAt::Call(commit)),
            _ => None,
        }
    });
    point.ok_or_else(|| {
        let detail =
            "GOBS_TEST_CRASH_AT, which is for tests alone, is before:N, after:N or call:N.";
        Diagnostic::error("Bad value in the environment", detail).into()
    })
}

fn assignment(text: &str) -> Result<Assignment, String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("it has no `=`; a variable is set with NAME=VALUE")?;
    Ok(Assignment {
        name: name.trim().into(),
        value: Given::Text(value.into()),
        origin: Origin::CommandLine,
        span: None,
    })
}
