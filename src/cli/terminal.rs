//! The one place that prints: data, plan and progress to stdout, everything else to stderr.

use std::io::{self, BufRead, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice, adapter::strip_str};
use gobs_model::Diagnostic;

use super::view::diagnostic;

/// Both output streams, each with or without colour.
///
/// A write that fails stops nothing: an apply whose reader went away must still finish and
/// record what it does. [`Terminal::failure`] says afterwards what was lost.
#[derive(Debug)]
pub(super) struct Terminal {
    out_strips: bool,
    err_strips: bool,
    failure: Option<io::Error>,
}

impl Terminal {
    /// Returns the process's own streams; colour is as the flags and the environment say.
    pub(super) fn new() -> Self {
        Self {
            out_strips: AutoStream::choice(&io::stdout()) == ColorChoice::Never,
            err_strips: AutoStream::choice(&io::stderr()) == ColorChoice::Never,
            failure: None,
        }
    }

    /// Writes to stdout.
    pub(super) fn out(&mut self, text: &str) {
        let written = write(&mut io::stdout().lock(), text, self.out_strips);
        self.note(written);
    }

    /// Writes to stderr.
    pub(super) fn err(&mut self, text: &str) {
        let written = write(&mut io::stderr().lock(), text, self.err_strips);
        self.note(written);
    }

    /// Writes diagnostics to stderr.
    pub(super) fn diagnose(&mut self, diagnostics: &[Diagnostic]) {
        if !diagnostics.is_empty() {
            self.err(&diagnostic::diagnostics(diagnostics));
        }
    }

    /// Returns whether somebody can be asked: stdin and stderr are a terminal.
    pub(super) fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Writes the question to stderr and returns the line that was typed; nothing at the end of
    /// the input.
    pub(super) fn ask(&mut self, question: &str) -> Option<String> {
        self.err(question);
        let mut line = String::new();
        match io::stdin().lock().read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim().to_owned()),
        }
    }

    /// Returns what went wrong with the first write that failed, unless the reader just left:
    /// `gobs show | head` is no error.
    pub(super) fn failure(&self) -> Option<&io::Error> {
        self.failure
            .as_ref()
            .filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }

    fn note(&mut self, written: io::Result<()>) {
        if let Err(error) = written
            && self.failure.is_none()
        {
            self.failure = Some(error);
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

fn write(stream: &mut dyn Write, text: &str, strip: bool) -> io::Result<()> {
    if strip {
        stream.write_all(strip_str(text).to_string().as_bytes())?;
    } else {
        stream.write_all(text.as_bytes())?;
    }
    stream.flush()
}
