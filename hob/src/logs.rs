//! The end of what the machine has logged, for whoever has to find out why something does not
//! answer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of one log that are told: the last few dozen lines.
const TAIL_BYTES: u64 = 2 << 10;

/// Programs whose logs are told, the ones that wrote last: a screen of text in all.
const LOGS_MAX: usize = 4;

/// What the hob itself has logged last: where it is a service of the system, no file has it.
static RECENT: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// Writes the hob's log to stderr, and remembers its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remembering;

impl Write for Remembering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(bytes);
        let over = recent.len().saturating_sub(TAIL_BYTES as usize);
        recent.drain(..over);
        drop(recent);
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Remembering {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

/// Returns the end of the logs in a directory, each under its name, and of the hob's own.
pub(crate) fn tail(dir: &Path) -> String {
    let mut logs: Vec<(SystemTime, String, String)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let text = end_of(&entry.path()).ok().filter(|it| !it.is_empty())?;
            let when = entry.metadata().ok()?.modified().ok()?;
            name.ends_with(".log").then_some((when, name, text))
        })
        .collect();
    logs.sort_by(|a, b| b.cmp(a));
    logs.truncate(LOGS_MAX);
    if !logs.iter().any(|(_, name, _)| name == "hob.log") {
        let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = recent.iter().copied().collect();
        logs.push((SystemTime::now(), "hob".into(), whole_lines(&bytes, true)));
    }
    logs.retain(|(_, _, text)| !text.is_empty());
    logs.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
    let sections = logs
        .iter()
        .map(|(_, name, text)| format!("--- {name}\n{text}"));
    sections.collect()
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(whole_lines(&bytes, from > 0))
}

/// Returns the text without the line that was cut, if one was.
fn whole_lines(bytes: &[u8], cut: bool) -> String {
    let first = bytes
        .iter()
        .position(|it| *it == b'\n')
        .map_or(0, |at| at + 1);
    let from = if cut && first < bytes.len() { first } else { 0 };
    let mut text = String::from_utf8_lossy(&bytes[from..]).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_in_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let long: String = (0..1_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.path().join("hob.log"), long).unwrap();
        std::fs::write(dir.path().join("run-0.log"), "cannot bind").unwrap();
        std::fs::write(dir.path().join("run-1.log"), "").unwrap();
        std::fs::write(dir.path().join("run-0.log.1"), "old\n").unwrap();
        let tail = tail(dir.path());
        let (hob, program) = tail.split_once("--- run-0.log\n").unwrap();
        assert_eq!(program, "cannot bind\n");
        assert!(hob.starts_with("--- hob.log\nline "), "{hob}");
        assert!(hob.ends_with("line 999\n"), "{hob}");
        assert!(hob.len() as u64 <= TAIL_BYTES + 16);
    }
}
