//! The agent of gobs, both halves.
//!
//! On a machine, [`run`] keeps the agent running: it claims its place with the boss, offers the
//! machine's services as capabilities, and gives the machine's programs the bindings it holds.
//! Beside the boss, [`server`] is what a machine looks like from there. [`protocol`] is what the
//! two say to each other; [`layout`] is what a provider has to know.

mod agent;
mod binding;
mod client;
mod expose;
mod front;
mod grant;
pub mod layout;
mod local;
mod metadata;
mod process;
mod programs;
pub mod protocol;
pub mod server;
mod service;
mod splice;
pub mod store;
mod user_data;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::layout::Layout;
use crate::local::Question;

/// The exit code of success.
pub const EXIT_OK: u8 = 0;

/// The exit code of a failure.
pub const EXIT_FAILED: u8 = 1;

/// The exit code of a command that is none.
pub const EXIT_USAGE: u8 = 64;

/// Where a machine's directory is looked for when `--dir` does not say.
const DIR_VARIABLE: &str = "GOBS_MACHINE_DIR";

/// Where a machine's directory is when nothing says.
const DIR_DEFAULT: &str = "/var/lib/gobs";

/// Threads that carry streams: encryption of a busy stream takes one.
const THREADS_MAX: usize = 4;

const USAGE: &str = "\
The agent of a machine, and what it knows.

Usage: hob [--dir DIR] [--session] [--metadata URL]...    runs the agent
       hob [--dir DIR] status         everything, as JSON
       hob [--dir DIR] list           the bindings: name, address, directory
       hob [--dir DIR] get NAME       a binding's address

  --dir DIR         the machine's directory [env: GOBS_MACHINE_DIR] [default: /var/lib/gobs]
  --session         leave the terminal's session first
  --metadata URL    where the cloud serves the user data, for a directory that has none:
                    http://169.254.169.254; more than one are asked in turn, until one has it
  --version         the version
";

/// What the command line asks for.
enum Command {
    Agent {
        session: bool,
        metadata: Vec<String>,
    },
    Ask(Question),
    Help,
    Version,
}

/// Runs the agent, or asks the one that runs; returns the exit code.
///
/// `args` are those after the program's name. Data goes to stdout, logs and errors to stderr.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let outcome = match parse(args) {
        Ok((_, Command::Help)) => print(USAGE),
        Ok((_, Command::Version)) => print(&format!("hob {}\n", env!("CARGO_PKG_VERSION"))),
        Ok((layout, Command::Ask(question))) => ask(&layout, &question),
        Ok((layout, Command::Agent { session, metadata })) => run_agent(layout, session, &metadata),
        Err(wrong) => {
            complain(&format!("{wrong}\n\n{USAGE}"));
            return EXIT_USAGE;
        }
    };
    match outcome {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Layout, Command), String> {
    let mut args = args.into_iter();
    let dir = std::env::var_os(DIR_VARIABLE).unwrap_or_else(|| DIR_DEFAULT.into());
    let mut dir = PathBuf::from(dir);
    let mut session = false;
    let mut metadata = Vec::new();
    let mut command = None;
    while let Some(arg) = args.next() {
        let mut value = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
        let text = arg.to_str().ok_or("an argument is not UTF-8")?;
        let asked = match text {
            "--dir" => {
                dir = value("the directory of --dir")?.into();
                continue;
            }
            "--session" => {
                session = true;
                continue;
            }
            "--metadata" => {
                let url = value("the address of --metadata")?;
                metadata.push(url.into_string().map_err(|_| "an argument is not UTF-8")?);
                continue;
            }
            "--help" | "-h" | "help" => Command::Help,
            "--version" | "-V" | "version" => Command::Version,
            "status" => Command::Ask(Question::Status),
            "list" => Command::Ask(Question::List),
            "get" => {
                let name = value("the name")?;
                let name = name.into_string().map_err(|_| "an argument is not UTF-8")?;
                Command::Ask(Question::Get(name))
            }
            _ => match text.strip_prefix("--dir=") {
                Some(value) => {
                    dir = value.into();
                    continue;
                }
                None => return Err(format!("{text} is no command of the hob")),
            },
        };
        if command.replace(asked).is_some() {
            return Err(format!("{text} is one command too many"));
        }
    }
    Ok((
        Layout::new(dir),
        command.unwrap_or(Command::Agent { session, metadata }),
    ))
}

fn run_agent(layout: Layout, session: bool, metadata: &[String]) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GOBS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A host that has its own subscriber keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
    if session && let Err(error) = rustix::process::setsid() {
        tracing::warn!(%error, "the session stays the same");
    }
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(THREADS_MAX))
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime
        .block_on(agent::run(layout, metadata))
        .map_err(|error| grant::Chain(&error).to_string())
}

fn ask(layout: &Layout, question: &Question) -> Result<(), String> {
    let machine = layout
        .read_machine()
        .map_err(|error| grant::Chain(&error).to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(local::ask(&machine.local_socket(), question))
}

fn print(text: &str) -> Result<(), String> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| error.to_string())
}

fn complain(text: &str) {
    // Nobody is left to be told that stderr is closed.
    let _ = writeln!(io::stderr(), "hob: {}", text.trim_end());
}
