//! `gobs init`

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use gobs_model::Diagnostic;

use super::{Context, Failure, Outcome, exit};

/// Starts a project that applies without an account, or gets an existing one ready
///
/// An existing project needs no init: this only keeps its state out of version control.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Which example to start from
    #[arg(long, value_name = "NAME", default_value = "first")]
    example: Example,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Example {
    First,
    AppAndDb,
}

impl Example {
    /// Returns the example's files by name.
    fn files(self) -> &'static [(&'static str, &'static str)] {
        macro_rules! files {
            ($directory:literal: $($name:literal),*) => {
                &[$((
                    $name,
                    include_str!(concat!("../../examples/", $directory, "/", $name)),
                )),*]
            };
        }
        match self {
            Self::First => files!("first": "main.gobs.hcl"),
            Self::AppAndDb => {
                files!("app-and-db": "main.gobs.hcl", "orders.pl", "report.pl")
            }
        }
    }
}

/// What holds the state and its key: no checkout may share it.
const IGNORED: &str = ".gobs/";

impl Init {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let here = Path::new(".");
        let mut out = String::new();
        if has_configuration(here).map_err(|error| failed("this directory", "read", &error))? {
            out += "This directory has a configuration already; nothing of it was changed.\n";
        } else {
            let files = self.example.files();
            // All or nothing: a name that is taken is found before anything is written.
            for (name, _) in files {
                if here.join(name).symlink_metadata().is_ok() {
                    let error = io::Error::from(ErrorKind::AlreadyExists);
                    return Err(failed(name, "written", &error));
                }
            }
            for (name, text) in files {
                write_new(&here.join(name), text).map_err(|it| failed(name, "written", &it))?;
                out += &format!("Wrote {name}.\n");
            }
        }
        let ignored = ignore(&here.join(".gitignore"));
        if ignored.map_err(|error| failed(".gitignore", "written", &error))? {
            out += &format!("Added {IGNORED} to .gitignore: it will hold the state and its key.\n");
        }
        if !context.in_automation {
            out += "\nNext: gobs plan shows what would be made, gobs apply makes it.\n";
        }
        context.terminal.out(&out);
        Ok(exit::DONE)
    }
}

fn has_configuration(directory: &Path) -> io::Result<bool> {
    for entry in directory.read_dir()? {
        if entry?.file_name().to_string_lossy().ends_with(".gobs.hcl") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}

/// Adds the state's directory to a `.gitignore`; returns whether it was not there.
fn ignore(path: &Path) -> io::Result<bool> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let is_there = |line: &str| matches!(line.trim(), ".gobs/" | ".gobs" | "/.gobs/" | "/.gobs");
    if text.lines().any(is_there) {
        return Ok(false);
    }
    file.seek(SeekFrom::End(0))?;
    let gap = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{gap}{IGNORED}\n").as_bytes())?;
    Ok(true)
}

fn failed(what: &str, how: &str, error: &io::Error) -> Failure {
    let detail = format!("{what} cannot be {how}: {error}.");
    let diagnostic = Diagnostic::error("Init failed", detail);
    match error.kind() {
        ErrorKind::AlreadyExists => {
            let hint =
                "gobs init overwrites nothing. Move the file away, or use another directory.";
            diagnostic.hint(hint).into()
        }
        _ => diagnostic.into(),
    }
}
