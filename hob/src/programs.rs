//! The machine's programs: the lines of `run`, kept running with the bindings in their
//! environment.
//!
//! A program outlives the hob. The next hob finds it by its environment, which names the machine
//! and the line, so that a hob that was killed at any moment never leaves two.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use sha2::{Digest, Sha256};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::expose::{address, host_and_port};
use crate::protocol::{Expose, ProgramStatus};

/// Says whose program a process is; whoever ends the machine looks for it.
const TOKEN_VARIABLE: &str = "GOBS_MACHINE_TOKEN";

/// Says which line a process runs, with the digest of all that it was started with.
const RUN_VARIABLE: &str = "GOBS_RUN";

/// Pauses before a program that has ended is started again.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A program that ran for this long has not failed at its start: the pauses begin anew.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// How long a program may take to end when it is asked to; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A log that is larger when its program starts is put aside as `.1`, over the last one.
const LOG_BYTES_MAX: u64 = 16 << 20;

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
    token: String,
    dir: PathBuf,
    logs: PathBuf,
    /// The limit of open files that programs get: the one the hob was given, not its own.
    files_max: Option<u64>,
    status: Mutex<BTreeMap<usize, ProgramStatus>>,
}

/// A program that runs.
struct Process {
    pid: Pid,
    /// Readable once it has ended.
    pidfd: AsyncFd<OwnedFd>,
    /// To be reaped, if it is this hob's own child.
    child: Option<Child>,
    digest: String,
    since: Instant,
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

/// Returns what bindings add to the environment of programs.
pub(crate) fn environment(
    root: &Path,
    exposed: &BTreeMap<String, Vec<Expose>>,
) -> BTreeMap<String, String> {
    let root = root.display().to_string();
    let mut environment = BTreeMap::from([("SERVICE_BINDING_ROOT".to_owned(), root)]);
    for (name, exposes) in exposed {
        let prefix = name.to_ascii_uppercase().replace('-', "_");
        if let Some(first) = exposes.first() {
            environment.insert(format!("{prefix}_ADDRESS"), address(first));
        }
        for expose in exposes.iter().rev() {
            match expose {
                Expose::Unix(path) => {
                    environment.insert(format!("{prefix}_SOCKET"), path.display().to_string());
                }
                Expose::Tcp(address) => {
                    if let Some((host, port)) = host_and_port(address) {
                        environment.insert(format!("{prefix}_HOST"), host);
                        environment.insert(format!("{prefix}_PORT"), port);
                    }
                }
            }
        }
    }
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
    /// Returns the programs of the machine in `dir`.
    pub(crate) fn new(token: String, dir: PathBuf, logs: PathBuf, files_max: Option<u64>) -> Self {
        Self {
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
        // Lines that went away while no hob ran are found too.
        let mut found = BTreeMap::new();
        for (index, process) in self.find() {
            found.entry(index).or_insert_with(Vec::new).push(process);
        }
        let mut kept = BTreeMap::new();
        loop {
            let lines = wanted.borrow_and_update().lines.len();
            let indices = (0..lines).chain(found.keys().copied());
            for index in indices.collect::<Vec<_>>() {
                let running = found.remove(&index).unwrap_or_default();
                let task = kept.get(&index);
                if task.is_none_or(tokio::task::JoinHandle::is_finished) {
                    let keeping = Arc::clone(&self).keep_line(index, running, wanted.clone());
                    kept.insert(index, tokio::spawn(keeping));
                }
            }
            if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Keeps one line, until it is gone.
    async fn keep_line(
        self: Arc<Self>,
        index: usize,
        mut found: Vec<Process>,
        mut wanted: watch::Receiver<Wanted>,
    ) {
        let mut process = found.pop();
        for more in found {
            more.stop().await;
        }
        let mut pause = Duration::ZERO;
        let mut status = ProgramStatus {
            index: index as u64,
            pid: None,
            restarts: 0,
        };
        loop {
            status.pid = process
                .as_ref()
                .map(|process| process.pid.as_raw_nonzero().get() as u32);
            self.statuses().insert(index, status.clone());
            let line = wanted.borrow_and_update().line(index);
            let fits = match (&line, &process) {
                (Line::Gone, _) => break,
                (Line::Waits, _) => true,
                (Line::Runs { digest, .. }, Some(process)) => *digest == process.digest,
                (Line::Runs { .. }, None) => false,
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
                            if running.since.elapsed() >= SETTLED_AFTER {
                                pause = Duration::ZERO;
                            }
                        }
                        None => process = Some(running),
                    }
                }
                (Some(running), _) => {
                    tracing::info!(index, "program restarts: its environment or line changed");
                    running.stop().await;
                    pause = Duration::ZERO;
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
                        () = sleep(crate::agent::jitter(pause)) => true,
                        changed = wanted.changed() => match changed {
                            Ok(()) => false,
                            Err(_) => return,
                        },
                    };
                    if !waited {
                        continue;
                    }
                    pause = (pause * 2).clamp(RESTART_PAUSE_MIN, RESTART_PAUSE_MAX);
                    match self.start(index, &line, &environment, digest) {
                        Ok(started) => process = Some(started),
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
        if let Some(process) = process {
            process.stop().await;
        }
        self.statuses().remove(&index);
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
            .env(TOKEN_VARIABLE, &self.token)
            .env(RUN_VARIABLE, format!("{index}:{digest}"))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| io::Error::other("the program ended at once"))?;
        tracing::info!(index, pid = pid.as_raw_nonzero(), "program started");
        Process::new(pid, Some(child), digest)
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

    /// Returns the programs that an earlier hob has started and that run still.
    fn find(&self) -> Vec<(usize, Process)> {
        let Ok(processes) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let adopt = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let pid = Pid::from_raw(pid)?;
            // The descriptor first: what is read then is of the process that it stands for.
            let mut process = Process::new(pid, None, String::new()).ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let value = |name: &str| {
                let variables = environment.split(|byte| *byte == 0);
                variables
                    .filter_map(|v| std::str::from_utf8(v).ok())
                    .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
            };
            if value(TOKEN_VARIABLE)? != self.token {
                return None;
            }
            let (index, digest) = value(RUN_VARIABLE)?.split_once(':')?;
            let leads = rustix::process::getpgid(Some(pid)).ok()? == pid;
            if !leads {
                return None;
            }
            process.digest = digest.to_owned();
            tracing::info!(index, pid = pid.as_raw_nonzero(), "program adopted");
            Some((index.parse().ok()?, process))
        };
        processes.filter_map(adopt).collect()
    }

    fn statuses(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, ProgramStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    #[expect(
        deprecated,
        reason = "an `OwnedFd` keeps its descriptor, and what replaces `new` is unsafe"
    )]
    fn new(pid: Pid, child: Option<Child>, digest: String) -> io::Result<Self> {
        let pidfd = AsyncFd::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
        Ok(Self {
            pid,
            pidfd,
            child,
            digest,
            since: Instant::now(),
        })
    }

    /// Waits for the end; what is left of its group is ended too. Returns how it ended.
    async fn ended(&mut self) -> String {
        // An error would mean that it cannot be waited for: it counts as ended.
        let _ = self.pidfd.readable().await;
        let status = match &mut self.child {
            Some(child) => child.wait().await.ok(),
            None => None,
        };
        let _ = kill_process_group(self.pid, Signal::KILL);
        status.map_or_else(|| "status unknown".into(), |status| status.to_string())
    }

    /// Ends the program and its group.
    async fn stop(mut self) {
        let _ = kill_process_group(self.pid, Signal::TERM);
        if timeout(STOP_TIMEOUT, self.ended()).await.is_err() {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.ended().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_name_each_binding() {
        let exposed = BTreeMap::from([
            (
                "app-db".to_owned(),
                vec![
                    Expose::Unix("/run/x/socket".into()),
                    Expose::Tcp("127.0.0.1:5432".into()),
                ],
            ),
            ("web".to_owned(), vec![Expose::Tcp("[::1]:80".into())]),
        ]);
        let text: Vec<_> = environment(Path::new("/r/bindings"), &exposed)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            text,
            [
                "APP_DB_ADDRESS=unix:/run/x/socket",
                "APP_DB_HOST=127.0.0.1",
                "APP_DB_PORT=5432",
                "APP_DB_SOCKET=/run/x/socket",
                "SERVICE_BINDING_ROOT=/r/bindings",
                "WEB_ADDRESS=[::1]:80",
                "WEB_HOST=::1",
                "WEB_PORT=80",
            ]
        );
    }
}
