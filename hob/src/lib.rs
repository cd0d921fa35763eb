//! The agent of gobs, both halves.
//!
//! On a machine, [`run`] keeps the agent running: it claims its place with the boss, offers the
//! machine's services as capabilities, and gives the machine's programs the bindings it holds.
//! Beside the boss, [`server`] is what a machine looks like from there. [`protocol`] is what the
//! two say to each other; [`layout`] is what a provider has to know.

mod advertise;
mod agent;
mod ask;
mod binding;
mod client;
mod expose;
mod files;
mod front;
mod grant;
pub mod layout;
mod local;
mod logs;
mod metadata;
mod near;
mod owner;
pub mod person;
mod process;
mod programs;
pub mod protocol;
pub mod server;
mod service;
mod slot;
mod splice;
pub mod store;
mod units;
mod user_data;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use crate::agent::raise_files_max;

use crate::layout::{Layout, MachineError};
use crate::local::Question;
use crate::protocol::{ServiceKind, ServiceSpec};

/// The exit code of success.
pub const EXIT_OK: u8 = 0;

/// The exit code of a failure.
pub const EXIT_FAILED: u8 = 1;

/// The exit codes of `hob run` when the command cannot be run, and is not found: as a shell's.
pub const EXIT_NOT_RUN: u8 = 126;
/// See [`EXIT_NOT_RUN`].
pub const EXIT_NOT_FOUND: u8 = 127;

/// The exit code of a command that is none.
pub const EXIT_USAGE: u8 = 64;

/// Where a machine's directory is looked for when `--dir` does not say.
const DIR_VARIABLE: &str = "GOBS_MACHINE_DIR";

/// Where a machine's directory is when nothing says.
const DIR_DEFAULT: &str = "/var/lib/gobs";

/// Threads that carry streams: encryption of a busy stream takes one.
const THREADS_MAX: usize = 4;

/// Processors for each of them: two threads that share short exchanges wake each other more than
/// they carry, and the programs and services whose bytes these are need processors, too. Measured
/// with pgbench on a two-core host: two threads took 37 µs of processor in both hobs for a
/// transaction, one takes 25 µs.
const PROCESSORS_PER_THREAD: usize = 2;

const USAGE: &str = "\
The agent of a machine, and what it knows.

Usage: hob [--dir DIR] [--session] [--metadata URL]...
                                            runs the agent
       hob [--dir DIR] status               everything, as JSON
       hob [--dir DIR] list [--json]        the bindings: name, address, directory
       hob [--dir DIR] get NAME [--json]    a binding's address, or all of it
       hob [--dir DIR] env [--json]         the environment of programs, for eval \"$(hob env)\"
       hob setup postgres USER              the SQL that a superuser runs once in a database, so
                                            that a hob that is USER there can hand it out
       hob [--dir DIR] call NAME METHOD [ARG]...
                                            calls the object that a binding gives: each ARG is
                                            JSON, or a text; the answer is JSON
       hob [--dir DIR] offer NAME --tcp HOST:PORT | --unix PATH | --withdraw
                                            offers a service of this machine that its project
                                            does not declare, until it is withdrawn: for people,
                                            by gobs open MACHINE.service.NAME
       hob [--dir DIR] run [--wait SECONDS] [--] CMD...
                                            becomes CMD with that environment, once every
                                            binding that is expected is granted

  --dir DIR         the machine's directory [env: GOBS_MACHINE_DIR] [default: /var/lib/gobs]
  --session         leave the terminal's session first
  --metadata URL    where the cloud serves the user data, for a directory that has none:
                    http://169.254.169.254; more than one are asked in turn, until one has it
  --json            as JSON
  --wait SECONDS    how long bindings may take to come [default: 300]
  --version         the version

Programs of users other than root and the hob's own see the bindings that are exposed to them.
With GOBS_APART=yes in its environment, an agent passes streams over TLS to those of its host, too.
";

/// What the command line asks for.
enum Command {
    Agent {
        session: bool,
        metadata: Vec<String>,
    },
    Ask {
        question: Question,
        json: bool,
    },
    Run {
        wait: Duration,
        argv: Vec<OsString>,
    },
    Setup {
        user: String,
    },
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
        Ok((_, Command::Setup { user })) => print(&service::postgres::setup(&user)),
        Ok((layout, Command::Ask { question, json })) => with_socket(&layout, async |socket| {
            ask::ask(socket, question, json).await
        }),
        Ok((layout, Command::Run { wait, argv })) => {
            let asked = with_socket(&layout, async |socket| ask::environment(socket, wait).await);
            match asked {
                Ok(variables) => return become_command(&argv, &variables),
                Err(error) => Err(error),
            }
        }
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
    let args: Vec<OsString> = args.into_iter().collect();
    if asks_for_help(&args) {
        return Ok((Layout::new(DIR_DEFAULT), Command::Help));
    }
    let mut args = args.into_iter();
    let dir = std::env::var_os(DIR_VARIABLE).unwrap_or_else(|| DIR_DEFAULT.into());
    let mut dir = PathBuf::from(dir);
    let (mut session, mut as_json) = (false, false);
    let mut metadata = Vec::new();
    let mut command = None;
    while let Some(arg) = args.next() {
        let mut value = |what: &str| args.next().ok_or_else(|| format!("{what} is missing"));
        let text = arg.to_str().ok_or("an argument is not UTF-8")?;
        let question = |question| Command::Ask {
            question,
            json: false,
        };
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
            "--json" => {
                as_json = true;
                continue;
            }
            "help" => Command::Help,
            "--version" | "-V" | "version" => Command::Version,
            "status" => question(Question::Status),
            "list" => question(Question::List),
            "env" => question(Question::Environment),
            "setup" => {
                if value("what is set up, postgres,")? != "postgres" {
                    return Err("setup is for postgres only".into());
                }
                let user = value("the user")?;
                let user = user.into_string().map_err(|_| "an argument is not UTF-8")?;
                Command::Setup { user }
            }
            "get" => {
                let name = value("the name")?;
                let name = name.into_string().map_err(|_| "an argument is not UTF-8")?;
                question(Question::Get(name))
            }
            // What follows belongs to the object.
            "call" if command.is_none() => {
                let question = parse_call(args)?;
                let json = false;
                return Ok((Layout::new(dir), Command::Ask { question, json }));
            }
            "offer" if command.is_none() => {
                let question = parse_offer(args)?;
                let json = false;
                return Ok((Layout::new(dir), Command::Ask { question, json }));
            }
            // What follows belongs to the command.
            "run" if command.is_none() => {
                let run = parse_run(&mut args)?;
                return Ok((Layout::new(dir), run));
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
    let mut command = command.unwrap_or(Command::Agent { session, metadata });
    match &mut command {
        Command::Ask { json, .. } => *json = as_json,
        _ if as_json => return Err("--json is for status, list, get and env".into()),
        _ => {}
    }
    Ok((Layout::new(dir), command))
}

/// Returns whether help is asked for, before or after the command: all have the same. What else
/// follows `run` and `call` is for others.
fn asks_for_help(args: &[OsString]) -> bool {
    let of_others = args.iter().position(|arg| arg == "run" || arg == "call");
    let ours = of_others.map_or(args.len(), |at| args.len().min(at + 2));
    let mut ours = args[..ours].iter();
    ours.any(|arg| arg == "--help" || arg == "-h")
}

/// Reads what follows `call`.
fn parse_call(args: impl Iterator<Item = OsString>) -> Result<Question, String> {
    let texts: Result<Vec<String>, _> = args.map(OsString::into_string).collect();
    let mut texts = texts.map_err(|_| "an argument is not UTF-8")?.into_iter();
    Ok(Question::Call {
        name: texts.next().ok_or("the name is missing")?,
        method: texts.next().ok_or("the method is missing")?,
        args: texts
            .map(|text| serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
            .collect(),
    })
}

/// Reads what follows `offer`.
fn parse_offer(args: impl Iterator<Item = OsString>) -> Result<Question, String> {
    let texts: Result<Vec<String>, _> = args.map(OsString::into_string).collect();
    let texts = texts.map_err(|_| "an argument is not UTF-8")?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (service, kind) = match texts[..] {
        [name, "--withdraw"] => (name, None),
        [name, "--tcp", place] => {
            let (host, port) = protocol::host_and_port(place, 0);
            if host.is_empty() || port == 0 {
                return Err(format!("{place} is not HOST:PORT"));
            }
            (name, Some(ServiceKind::Tcp(place.into())))
        }
        [name, "--unix", path] if path.starts_with('/') => {
            (name, Some(ServiceKind::Unix(path.into())))
        }
        [_, "--unix", path] => return Err(format!("{path} does not begin with /")),
        _ => {
            let usage = "hob offer takes NAME, and --tcp HOST:PORT, --unix PATH or --withdraw";
            return Err(usage.into());
        }
    };
    if !binding::is_name(service) {
        return Err(format!(
            "{service:?} is no name: that has up to {} letters, digits, _ and -, and begins with \
             a letter or _",
            binding::NAME_SIZE_MAX
        ));
    }
    let spec = kind.map(|kind| ServiceSpec { kind, r#type: None });
    let service = service.to_owned();
    Ok(Question::Offer { service, spec })
}

/// Reads what follows `run`.
fn parse_run(args: &mut impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut wait = ask::WAIT_DEFAULT;
    let mut argv = Vec::new();
    while let Some(arg) = args.next() {
        let seconds = match arg.to_str() {
            Some("--") => break,
            Some("--wait") => args.next().ok_or("the seconds of --wait are missing")?,
            Some(text) if text.starts_with("--wait=") => text["--wait=".len()..].into(),
            Some(text) if text.starts_with('-') => {
                return Err(format!("{text} is no option of hob run"));
            }
            _ => {
                argv.push(arg);
                break;
            }
        };
        let seconds = seconds.to_str().and_then(|text| text.parse().ok());
        wait = Duration::from_secs(seconds.ok_or("--wait takes a number of seconds")?);
    }
    argv.extend(args);
    match argv.is_empty() {
        true => Err("the command of hob run is missing".into()),
        false => Ok(Command::Run { wait, argv }),
    }
}

/// Becomes a command, or returns the exit code that a shell would have.
fn become_command(argv: &[OsString], variables: &BTreeMap<String, String>) -> u8 {
    let error = ask::become_command(argv, variables);
    let name = argv.first().map(|name| name.display().to_string());
    complain(&format!("cannot run {}: {error}", name.unwrap_or_default()));
    match error.kind() {
        io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_RUN,
    }
}

fn run_agent(layout: Layout, session: bool, metadata: &[String]) -> Result<(), String> {
    // Levels and targets only: a filter of spans would bring an engine for patterns with it, which
    // every machine would have to store.
    let asked = std::env::var("GOBS_LOG").ok();
    let filter = asked.and_then(|asked| asked.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(logs::Remembering)
        .with_ansi(false);
    // A host that has its own subscriber keeps it.
    let _ = tracing_subscriber::registry()
        .with(filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)))
        .with(lines)
        .try_init();
    if session && let Err(error) = rustix::process::setsid() {
        tracing::warn!(%error, "the session stays the same");
    }
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((processors / PROCESSORS_PER_THREAD).clamp(1, THREADS_MAX))
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime
        .block_on(agent::run(layout, metadata))
        .map_err(|error| grant::Chain(&error).to_string())
}

/// Asks the hob of a machine.
fn with_socket<T>(
    layout: &Layout,
    ask: impl AsyncFnOnce(&Path) -> Result<T, ask::AskError>,
) -> Result<T, String> {
    let socket = match layout.read_machine() {
        Ok(machine) => machine.local_socket(),
        // The machine's directory may be the hob's alone; its socket is for all.
        Err(MachineError::Read { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Path::new(layout::RUNTIME_DEFAULT).join(layout::LOCAL_SOCKET)
        }
        Err(error) => {
            let error = grant::Chain(&error);
            return Err(format!("{error}; --dir names the directory of a machine"));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime
        .block_on(ask(&socket))
        .map_err(|error| grant::Chain(&error).to_string())
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
