//! The command line: alone prints, prompts, and reads the environment. A file a command.
//!
//! A command is its arguments (clap's derive, the help as doc comments) and a `run` of a few
//! lines that calls the library and shows what came back through [`view`].

mod ack;
mod apply;
mod approve;
mod arguments;
mod argv;
mod destroy;
mod doctor;
mod environment;
pub mod exit;
mod hob;
mod import;
mod init;
mod log;
mod open;
mod output;
mod plan;
mod plan_file;
mod providers;
mod show;
mod state;
mod status;
mod terminal;
mod unlock;
mod validate;
mod version;
pub mod view;
mod watch;
mod who;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use gobs_model::Diagnostic;
use gobs_state::Snapshot;

use crate::plugins::PluginSearch;
use crate::project::{Project, store_error};

use environment::Environment;
use terminal::Terminal;

/// Runs the command line of this process; returns its exit code, one of [`exit`].
///
/// Under the name `hob` it is the agent: machines can be given this program as theirs.
pub fn run() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments
        .first()
        .and_then(|it| std::path::Path::new(it).file_name());
    if name.is_some_and(|it| it == "hob") {
        return ::hob::run(arguments.into_iter().skip(1)).into();
    }
    run_with(arguments, Environment::read()).into()
}

/// Declares machines and the bindings between their services, and makes them so
#[derive(Debug, Parser)]
#[command(
    name = "gobs",
    version,
    propagate_version = false,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed or not approved; 2 changes are waiting \
    (plan --detailed-exitcode); 3 something needs a person (status, \
    doctor); 64 wrong usage.\n\
    Environment: GOBS_VAR_name sets a variable; GOBS_INPUT=0 asks nobody; GOBS_IN_AUTOMATION \
    leaves out what to do next; GOBS_CLI_ARGS and GOBS_CLI_ARGS_command add arguments; GOBS_KEY is \
    the state's key; GOBS_BOSS_LISTEN and GOBS_BOSS_ADVERTISE say how hobs reach this \
    host; LINODE_TOKEN is the token of the account at Linode, LINODE_URL its API; GOBS_LOG (debug, \
    gobs=trace, ...) logs to stderr or to GOBS_LOG_PATH; NO_COLOR and \
    CLICOLOR_FORCE are obeyed.\n\
    Terraform's single-dash long flags (-auto-approve, -var 'a=b') work too."
)]
struct Gobs {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The heading of what every command takes.
const GLOBAL: &str = "Global options";

#[derive(Debug, clap::Args)]
struct Global {
    /// Works in this directory
    #[arg(short = 'C', long, value_name = "DIR", global = true, help_heading = GLOBAL)]
    chdir: Option<PathBuf>,
    /// When to use colour; auto is on a terminal, and as NO_COLOR and CLICOLOR_FORCE say
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true, help_heading = GLOBAL)]
    color: Color,
    /// Uses no colour, as --color=never
    #[arg(long, global = true, help_heading = GLOBAL)]
    no_color: bool,
    /// Runs programs that the project's own files name; also GOBS_ALLOW_TREE_COMMANDS=1
    #[arg(long, global = true, help_heading = GLOBAL)]
    allow_tree_commands: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Validate(validate::Validate),
    Plan(plan::Plan),
    Apply(apply::Apply),
    Destroy(destroy::Destroy),
    Show(show::Show),
    Output(output::Output),
    State(state::State),
    Import(import::Import),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Ack(ack::Ack),
    Unlock(unlock::Unlock),
    Who(who::Who),
    Open(open::Open),
    Providers(providers::Providers),
    Hob(hob::Hob),
    Version(version::Version),
}

impl Command {
    fn run(self, context: &mut Context) -> Outcome {
        match self {
            Self::Init(it) => it.run(context),
            Self::Validate(it) => it.run(context),
            Self::Plan(it) => it.run(context),
            Self::Apply(it) => it.run(context),
            Self::Destroy(it) => it.run(context),
            Self::Show(it) => it.run(context),
            Self::Output(it) => it.run(context),
            Self::State(it) => it.run(context),
            Self::Import(it) => it.run(context),
            Self::Status(it) => it.run(context),
            Self::Doctor(it) => it.run(context),
            Self::Ack(it) => it.run(context),
            Self::Unlock(it) => it.run(context),
            Self::Who(it) => it.run(context),
            Self::Open(it) => it.run(context),
            Self::Providers(it) => it.run(context),
            Self::Hob(it) => it.run(),
            Self::Version(it) => it.run(context),
        }
    }
}

/// What every command needs.
struct Context {
    terminal: Terminal,
    /// Whether a script drives (`GOBS_IN_AUTOMATION`): hints about next steps are left out.
    in_automation: bool,
    /// Whether somebody may be asked.
    input: bool,
    /// Whether programs may be run that the project's tree names.
    may_run_tree: bool,
    env: Environment,
}

/// How a command ended: one of [`exit`], or what is wrong; the latter exits with
/// [`exit::FAILED`].
type Outcome = Result<u8, Failure>;

/// Why a command could not do what it was asked.
#[derive(Debug)]
struct Failure(Vec<Diagnostic>);

impl From<Diagnostic> for Failure {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl From<Box<Diagnostic>> for Failure {
    fn from(diagnostic: Box<Diagnostic>) -> Self {
        Self(vec![*diagnostic])
    }
}

impl From<Vec<Diagnostic>> for Failure {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Self(diagnostics)
    }
}

/// Returns what the state of the project here has; nothing where there is no state yet. The
/// configuration need not be right for it, nor have values for its variables.
fn remembered(context: &Context) -> Result<(Project, Snapshot), Failure> {
    let mut surroundings = arguments::Variables::default().surroundings(context)?;
    // What is remembered is said without running anything.
    surroundings.plugins = PluginSearch::default();
    let project = Project::peek(surroundings)?;
    let snapshot = match project.reader()? {
        Some(reader) => reader.snapshot().map_err(|error| store_error(&error))?,
        None => Snapshot::default(),
    };
    Ok((project, snapshot))
}

/// Returns what runs asynchronous work.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Runtime::new().map_err(|error| {
        let detail = format!("The threads of this program cannot be started: {error}.");
        Diagnostic::error("No threads", detail).into()
    })
}

/// Returns the definition of the whole command line.
fn command() -> clap::Command {
    Gobs::command()
}

fn run_with(args: Vec<OsString>, env: Environment) -> u8 {
    // Before clap parses, since its own errors are coloured too.
    if args
        .iter()
        .any(|arg| arg == "--no-color" || arg == "-no-color")
    {
        anstream::ColorChoice::Never.write_global();
    }
    let args = match argv::normalise(args, &command(), &env) {
        Ok(args) => args,
        Err(error) => {
            let error = Diagnostic::error("Bad arguments in the environment", format!("{error}."));
            Terminal::new().diagnose(&[error]);
            return exit::USAGE;
        }
    };
    let parsed = command()
        .try_get_matches_from(args)
        .and_then(|matches| Gobs::from_arg_matches(&matches));
    let gobs = match parsed {
        Ok(gobs) => gobs,
        Err(error) => {
            // Where help cannot be written, nobody reads it.
            let _ = error.print();
            return if error.use_stderr() {
                exit::USAGE
            } else {
                exit::DONE
            };
        }
    };
    gobs.global.choose_color();
    let mut context = Context {
        terminal: Terminal::new(),
        in_automation: env.is_on("GOBS_IN_AUTOMATION"),
        input: !env.is_off("GOBS_INPUT"),
        may_run_tree: gobs.global.allow_tree_commands || env.is_on("GOBS_ALLOW_TREE_COMMANDS"),
        env,
    };
    let outcome = gobs
        .global
        .enter(&context.env)
        .and_then(|()| gobs.command.run(&mut context));
    let code = outcome.unwrap_or_else(|Failure(diagnostics)| {
        context.terminal.diagnose(&diagnostics);
        exit::FAILED
    });
    match context.terminal.failure() {
        Some(error) if code == exit::DONE => {
            let error = Diagnostic::error("Output was lost", format!("Writing failed: {error}."));
            context.terminal.diagnose(&[error]);
            exit::FAILED
        }
        _ => code,
    }
}

impl Global {
    fn choose_color(&self) {
        let choice = match self.color {
            _ if self.no_color => anstream::ColorChoice::Never,
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }

    /// Starts the log where the caller stands, then goes to the project's directory.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is -C, before anything else"
    )]
    fn enter(&self, env: &Environment) -> Result<(), Failure> {
        log::start(env)?;
        tracing::debug!(version = env!("CARGO_PKG_VERSION"), "gobs starts");
        let Some(directory) = &self.chdir else {
            return Ok(());
        };
        std::env::set_current_dir(directory).map_err(|error| {
            let detail = format!("{} cannot be entered: {error}.", directory.display());
            Diagnostic::error("No such project directory", detail).into()
        })
    }
}
