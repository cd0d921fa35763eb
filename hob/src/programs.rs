//! The machine's programs: the lines of `run`, kept running with the bindings in their
//! environment.
//!
//! A program outlives the hob, and the next one adopts it: `process` tells how it is found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::grant::Chain;
use crate::layout::Layout;
use crate::process::{self, Process};
use crate::protocol::ProgramStatus;
use crate::store::Store;

/// Pauses before a program that has ended is started again.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A program that ran for this long has not failed at its start: the pauses begin anew.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// A log that is larger when its program starts is put aside as `.1`, over the last one.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Names the directory of all bindings, as servicebinding.io has it.
pub(crate) const ROOT_VARIABLE: &str = "SERVICE_BINDING_ROOT";

/// What the programs should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The shell lines.
    pub(crate) lines: Vec<String>,
    /// What the bindings add to the environment; none while a binding is expected that is not
    /// there yet: then nothing is started, and what runs stays as it is.
    pub(crate) environment: Option<BTreeMap<String, String>>,
}

/// Where programs run and as whose.
pub(crate) struct Programs {
    store: Arc<Store>,
    token: String,
    dir: PathBuf,
    logs: PathBuf,
    /// The limit of open files that programs get: the one the hob was given, not its own.
    files_max: Option<u64>,
    status: Mutex<BTreeMap<usize, ProgramStatus>>,
}

/// What one line should be.
enum Line {
    Gone,
    Waits,
    Runs {
        line: String,
        environment: BTreeMap<String, String>,
        digest: String,
    },
}

/// The pause before a program is started again; there is none before one that is another since.
#[derive(Default)]
struct Pause {
    /// What was started last, and how long it is waited before that is started again.
    last: Option<(String, Duration)>,
}

impl Pause {
    fn before(&self, digest: &str) -> Duration {
        let last = self.last.as_ref().filter(|(it, _)| it == digest);
        last.map_or(Duration::ZERO, |(_, pause)| *pause)
    }

    fn tried(&mut self, digest: &str) {
        let pause = (self.before(digest) * 2).clamp(RESTART_PAUSE_MIN, RESTART_PAUSE_MAX);
        self.last = Some((digest.to_owned(), pause));
    }
}

/// Returns what bindings add to the environment of programs.
pub(crate) fn environment(
    root: &Path,
    variables: BTreeMap<String, BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let root = root.display().to_string();
    let mut environment = BTreeMap::from([(ROOT_VARIABLE.to_owned(), root)]);
    environment.extend(variables.into_values().flatten());
    environment
}

impl Wanted {
    fn line(&self, index: usize) -> Line {
        match (self.lines.get(index), &self.environment) {
            (None, _) => Line::Gone,
            (Some(_), None) => Line::Waits,
            (Some(line), Some(environment)) => {
                let mut digest = Sha256::new();
                let variables = environment.iter().flat_map(|(name, value)| [name, value]);
                for part in [line].into_iter().chain(variables) {
                    digest.update((part.len() as u64).to_be_bytes());
                    digest.update(part.as_bytes());
                }
                let digest = data_encoding::HEXLOWER.encode(&digest.finalize()[..16]);
                Line::Runs {
                    line: line.clone(),
                    environment: environment.clone(),
                    digest,
                }
            }
        }
    }
}

impl Programs {
    /// Returns the programs of a machine.
    pub(crate) fn new(
        store: Arc<Store>,
        token: String,
        layout: &Layout,
        files_max: Option<u64>,
    ) -> Self {
        let (dir, logs) = (layout.dir().to_owned(), layout.logs());
        Self {
            store,
            token,
            dir,
            logs,
            files_max,
            status: Mutex::default(),
        }
    }

    /// Returns what an operator may see.
    pub(crate) fn status(&self) -> Vec<ProgramStatus> {
        self.statuses().values().cloned().collect()
    }

    /// Keeps the programs as they are wanted, for as long as the sender lives.
    pub(crate) async fn keep(self: Arc<Self>, mut wanted: watch::Receiver<Wanted>) {
        let recorded = self.store.contents();
        let mut found = process::find(&self.token, &recorded.programs);
        let mut kept = BTreeSet::new();
        loop {
            // Lines that went away while no hob ran are ended.
            let lines = wanted.borrow_and_update().lines.len();
            let indices: BTreeSet<_> = (0..lines).chain(found.keys().copied()).collect();
            for index in indices {
                let running = found.remove(&index);
                if kept.insert(index) {
                    let keeping = Arc::clone(&self).keep_line(index, running, wanted.clone());
                    tokio::spawn(keeping);
                }
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps one line as it is wanted.
    async fn keep_line(
        self: Arc<Self>,
        index: usize,
        mut process: Option<Process>,
        mut wanted: watch::Receiver<Wanted>,
    ) {
        let mut pause = Pause::default();
        let mut status = ProgramStatus {
            index: index as u64,
            pid: None,
            restarts: 0,
        };
        loop {
            status.pid = process
                .as_ref()
                .map(|process| process.pid().as_raw_nonzero().get().cast_unsigned());
            let line = wanted.borrow_and_update().line(index);
            match (&line, &process) {
                (Line::Gone, None) => self.statuses().remove(&index),
                _ => self.statuses().insert(index, status.clone()),
            };
            let fits = match (&line, &process) {
                (Line::Waits, _) => true,
                (Line::Runs { digest, .. }, Some(process)) => digest == process.digest(),
                (Line::Gone, _) | (Line::Runs { .. }, None) => false,
            };
            match (process.take(), line) {
                // As it should be: until it ends, or something else is wanted.
                (Some(mut running), _) if fits => {
                    let ended = tokio::select! {
                        ended = running.ended() => Some(ended),
                        changed = wanted.changed() => match changed {
                            Ok(()) => None,
                            Err(_) => return,
                        },
                    };
                    match ended {
                        Some(how) => {
                            tracing::warn!(index, how, "program ended");
                            status.restarts += 1;
                            if running.age() >= SETTLED_AFTER {
                                pause = Pause::default();
                            }
                        }
                        None => process = Some(running),
                    }
                }
                (Some(running), _) => {
                    tracing::info!(index, "program stopped: something else is wanted");
                    running.stop().await;
                    pause = Pause::default();
                }
                (
                    None,
                    Line::Runs {
                        line,
                        environment,
                        digest,
                    },
                ) => {
                    let waited = tokio::select! {
                        () = sleep(crate::agent::jitter(pause.before(&digest))) => true,
                        changed = wanted.changed() => match changed {
                            Ok(()) => false,
                            Err(_) => return,
                        },
                    };
                    if !waited {
                        continue;
                    }
                    pause.tried(&digest);
                    match self.start(index, &line, &environment, digest) {
                        Ok(started) => {
                            self.record(index, &started).await;
                            process = Some(started);
                        }
                        Err(error) => tracing::error!(index, %error, "program not started"),
                    }
                }
                (None, _) => {
                    if wanted.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Keeps what the next hob knows the program by. Without it, that hob guesses well.
    async fn record(&self, index: usize, process: &Process) {
        let row = process.row();
        let written = self
            .store
            .write(move |contents| contents.programs.insert(index, row));
        if let Err(error) = written.await {
            tracing::error!(error = %Chain(&error), "a program was not recorded");
        }
    }

    fn start(
        &self,
        index: usize,
        line: &str,
        environment: &BTreeMap<String, String>,
        digest: String,
    ) -> io::Result<Process> {
        let log = self.open_log(index)?;
        let mut command = Command::new("/bin/sh");
        match self.files_max {
            // The shell replaces itself, so that the process stays the one that is known.
            Some(files) => command
                .args(["-c", r#"ulimit -S -n "$1"; exec /bin/sh -c "$2""#, "sh"])
                .args([files.to_string().as_str(), line]),
            None => command.args(["-c", line]),
        };
        let child = command
            .envs(environment)
            .envs(process::marks(&self.token, index, &digest))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let process = Process::of_child(child, digest)?;
        tracing::info!(
            index,
            pid = process.pid().as_raw_nonzero(),
            "program started"
        );
        Ok(process)
    }

    fn open_log(&self, index: usize) -> io::Result<File> {
        fs::create_dir_all(&self.logs)?;
        let path = self.logs.join(format!("run-{index}.log"));
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
    }

    fn statuses(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, ProgramStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_something_else_is_started() {
        let mut pause = Pause::default();
        assert_eq!(pause.before("without its binding"), Duration::ZERO);
        for expected in [500, 1_000, 2_000, 4_000] {
            pause.tried("without its binding");
            let expected = Duration::from_millis(expected);
            assert_eq!(pause.before("without its binding"), expected);
        }
        for _ in 0..20 {
            pause.tried("without its binding");
        }
        assert_eq!(pause.before("without its binding"), RESTART_PAUSE_MAX);
        assert_eq!(pause.before("with its binding"), Duration::ZERO);
        pause.tried("with its binding");
        assert_eq!(pause.before("with its binding"), RESTART_PAUSE_MIN);
    }
}
