//! The processes of a machine: started in a session of their own, found by the machine's token.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gobs_provider::Token;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, waitpid,
};
use serde::{Deserialize, Serialize};

/// In the environment of everything that runs on a machine; what belongs to it is found by it.
const TOKEN_VARIABLE: &str = "GOBS_MACHINE_TOKEN";

/// How long a process may take to end by itself: a database closes its files in less.
const GRACE: Duration = Duration::from_secs(3);

/// How long a process may take to vanish after SIGKILL: longer means that it hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// How often a machine is searched for what runs: more means that something keeps forking.
const ROUNDS_MAX: u32 = 20;

/// How long a fresh agent may take until it can be told anything.
const RELOAD_WAIT: Duration = Duration::from_secs(2);

/// How often something that shows only in `/proc` is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a fresh process may show no environment, or look like its parent: while it becomes
/// another program.
const EXEC_WAIT: Duration = Duration::from_millis(100);

/// How long an agent may take to stand still, before what it started is counted.
const FREEZE_WAIT: Duration = Duration::from_secs(1);

/// Closes what a shell above gobs may have left open (`gobs apply 3>&1 | tee`), and goes on as
/// the agent in a session of its own. `setsid` does not fork here, so the process id stays.
/// A shell can only close single digits; everything that gobs opens closes itself.
///
/// Of the environment that gobs runs in, which may hold its secrets, little is passed on.
const LAUNCH: &str = r#"
for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    case $fd in [3-9]) eval "exec $fd>&-" ;; esac
done
set -- setsid -- "$@"
for name in PATH HOME USER LOGNAME SHELL LANG LC_ALL LC_CTYPE TZ TMPDIR GOBS_LOG \
    GOBS_MACHINE_TOKEN
do
    eval "[ -z \"\${$name+set}\" ] || set -- \"$name=\${$name}\" \"\$@\""
done
exec env -i "$@"
"#;

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// In clock ticks since boot, as `/proc` says.
    started: u64,
}

/// An agent, as it is remembered: a process is told apart from others of the same boot only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agent {
    process: Process,
    boot: String,
}

impl From<Process> for Agent {
    fn from(process: Process) -> Self {
        let boot = boot();
        Self { process, boot }
    }
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    process: Process,
    parent: i32,
    session: i32,
    zombie: bool,
    stopped: bool,
}

/// Starts the agent of a machine.
pub(crate) fn launch(agent: &[OsString], dir: &Path, token: &Token) -> io::Result<Process> {
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(dir.join("logs/hob.log"))?;
    let child = Command::new("/bin/sh")
        .args(["-c", LAUNCH, "sh"])
        .args(agent_command(agent, dir))
        .current_dir(dir)
        .env(TOKEN_VARIABLE, &token.0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    // Not waited for: it outlives this process. Until it is reaped its number is not used again,
    // so this finds it even if it has ended at once.
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    stat(pid)
        .map(|it| it.process)
        .ok_or_else(|| io::Error::other("/proc does not show it"))
}

/// Returns the agent that runs for this machine, whoever started it.
pub(crate) fn find_agent(agent: &[OsString], dir: &Path, token: &Token) -> Option<Process> {
    let command = agent_command(agent, dir);
    let is_agent = |it: Process| runs(it.pid, &command) && is_running(it);
    let candidates: Vec<_> = everything()
        .into_iter()
        .filter(|it| has_token(it.process, token) && is_agent(it.process))
        .map(|it| it.process)
        .collect();
    if !candidates.is_empty() {
        // What a dead agent was just starting looks like it, until it is another program.
        std::thread::sleep(EXEC_WAIT);
    }
    candidates
        .into_iter()
        .filter(|it| is_agent(*it))
        .min_by_key(|it| it.started)
}

/// Returns the agent of a machine, where it runs: the one that was recorded, or the one that its
/// own lock names, since a person may have started it again.
pub(crate) fn agent(dir: &Path, recorded: Option<&Agent>) -> Option<Process> {
    let recorded = recorded.filter(|it| it.boot == boot()).map(|it| it.process);
    recorded
        .filter(|it| is_running(*it))
        .or_else(|| locked_by(dir))
}

/// Returns the programs that the agent has written down, as far as they run. One that has written
/// its title over its environment, as Redis does, is known by this alone once its agent is dead.
fn kept_by_agent(dir: &Path) -> impl Iterator<Item = Process> {
    let text = fs::read(dir.join("hob/state.json")).unwrap_or_default();
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let programs = state.get("programs").and_then(|it| it.as_object()).cloned();
    let programs = programs.unwrap_or_default().into_iter();
    programs
        .filter_map(|(_, program)| serde_json::from_value(program).ok())
        .filter(|process| is_running(*process))
}

/// Returns the process that the agent's lock names: its number and its start, apart by a space.
fn locked_by(dir: &Path) -> Option<Process> {
    let text = fs::read_to_string(dir.join("hob/lock")).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let process = Process {
        pid: pid.parse().ok()?,
        started: started.parse().ok()?,
    };
    is_running(process).then_some(process)
}

fn is_running(process: Process) -> bool {
    stat(process.pid).is_some_and(|it| it.process == process && !it.zombie)
}

/// Tells the agent to read its machine's description again.
///
/// A signal that is not caught yet would end it, so this waits until it is; an agent that never
/// catches it reads the description at its next start.
pub(crate) fn reload(agent: Process) {
    let deadline = Instant::now() + RELOAD_WAIT;
    while is_running(agent) {
        if catches_hangup(agent.pid) {
            if let Some(fd) = open(agent) {
                // It may have ended just now; its next start reads the description.
                let _ = pidfd_send_signal(&fd, Signal::HUP);
            }
            return;
        }
        if Instant::now() >= deadline {
            tracing::warn!(pid = agent.pid, "the agent does not listen for changes");
            return;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Ends everything that runs on a machine: its agent first, since it restarts what ends.
pub(crate) fn stop(
    agent: &[OsString],
    dir: &Path,
    token: &Token,
    recorded: Option<&Agent>,
) -> Result<(), StopError> {
    // The session that it led outlives it, and its number is not used again for as long.
    let led = recorded.filter(|it| it.boot == boot()).map(|it| it.process);
    let led = led.filter(|led| stat(led.pid).is_none_or(|it| it.process == *led));
    let mut sessions: BTreeSet<i32> = led.map(|it| it.pid).into_iter().collect();
    let command = agent_command(agent, dir);
    let locked = locked_by(dir);
    let is_agent = |it: &Process| Some(*it) == locked || runs(it.pid, &command);
    let mut agents = belonging(dir, token, &mut sessions);
    agents.retain(is_agent);
    // It stands still while its children are counted, and they are counted before it ends, since
    // then they are nobody's.
    freeze(&agents);
    let known = belonging(dir, token, &mut sessions);
    end(&agents)?;
    end(&known)?;
    // A process that forks and ends while `/proc` is read can be missed once.
    let mut clean = 0;
    for _ in 0..ROUNDS_MAX {
        let found = belonging(dir, token, &mut sessions);
        if found.is_empty() {
            clean += 1;
            if clean == 2 {
                return Ok(());
            }
        } else {
            clean = 0;
            end(&found)?;
        }
    }
    Err(StopError::Forking)
}

/// Why something of a machine may still run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error("process {0} does not end, not even by SIGKILL")]
    Stuck(i32),
    #[error("process {pid} cannot be ended: {why}")]
    Refused { pid: i32, why: Errno },
    #[error("its processes start new ones faster than they can be ended")]
    Forking,
}

fn freeze(processes: &[Process]) {
    for process in processes {
        if let Some(fd) = open(*process) {
            // One that ended meanwhile starts nothing more either.
            let _ = pidfd_send_signal(&fd, Signal::STOP);
        }
    }
    let deadline = Instant::now() + FREEZE_WAIT;
    let runs = |it: &Process| {
        stat(it.pid).is_some_and(|seen| seen.process == *it && !seen.stopped && !seen.zombie)
    };
    while processes.iter().any(runs) && Instant::now() < deadline {
        std::thread::sleep(LOOK_EVERY);
    }
}

fn end(processes: &[Process]) -> Result<(), StopError> {
    let open: Vec<_> = processes
        .iter()
        .filter_map(|it| Some((it.pid, open(*it)?)))
        .collect();
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, KILL_WAIT)] {
        for (pid, fd) in &open {
            // One that stands still hears nothing but the last signal until it goes on.
            for signal in [signal, Signal::CONT] {
                match pidfd_send_signal(fd, signal) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(why) => return Err(StopError::Refused { pid: *pid, why }),
                }
            }
        }
        let deadline = Instant::now() + patience;
        let alive = open.iter().find(|(_, fd)| !ended_by(fd, deadline));
        match alive {
            None => break,
            Some((pid, _)) if signal == Signal::KILL => return Err(StopError::Stuck(*pid)),
            Some(_) => {}
        }
    }
    for (pid, _) in open {
        if let Some(pid) = Pid::from_raw(pid) {
            // Only a child of this very process is left to reap; of others this is refused.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
    Ok(())
}

/// Returns a handle that cannot come to mean another process.
fn open(process: Process) -> Option<OwnedFd> {
    let fd = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
    stat(process.pid)
        .filter(|it| it.process == process)
        .map(|_| fd)
}

fn ended_by(fd: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}

/// Returns what runs on a machine: its agent, what that has started and written down, what has its
/// token, what is in a session that such a process leads or led, and the children of all these, so
/// that a cleaned environment hides little: only what a program started that cleaned it, began a
/// session and lost its parent is not seen.
///
/// This process and its ancestors are left out: gobs may itself run on a machine.
fn belonging(dir: &Path, token: &Token, sessions: &mut BTreeSet<i32>) -> Vec<Process> {
    let all = everything();
    let own = getpid().as_raw_nonzero().get();
    let mut spared = BTreeSet::from([own]);
    while let Some(it) = all
        .iter()
        .find(|it| spared.contains(&it.process.pid) && !spared.contains(&it.parent))
    {
        spared.insert(it.parent);
    }
    // Not asked with getsid: in a container whose session began outside it is 0, no number to it.
    let own_session = stat(own).map_or(0, |it| it.session);
    let known = locked_by(dir).into_iter().chain(kept_by_agent(dir));
    let mut pids: BTreeSet<i32> = known.map(|it| it.pid).collect();
    for it in &all {
        if has_token(it.process, token) {
            pids.insert(it.process.pid);
            if it.session == it.process.pid && it.session != own_session {
                sessions.insert(it.session);
            }
        }
    }
    loop {
        let before = pids.len();
        for it in &all {
            if sessions.contains(&it.session)
                || pids.contains(&it.parent) && !spared.contains(&it.parent)
            {
                pids.insert(it.process.pid);
            }
        }
        if pids.len() == before {
            break;
        }
    }
    all.into_iter()
        .filter(|it| pids.contains(&it.process.pid) && !spared.contains(&it.process.pid))
        .filter(|it| !it.zombie)
        .map(|it| it.process)
        .collect()
}

fn everything() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command stands in parentheses and may hold any byte: what follows the last one counts.
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&text[after..]).ok()?;
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    Some(Stat {
        process: Process {
            pid,
            started: fields.get(19)?.parse().ok()?,
        },
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        stopped: *fields.first()? == "T",
    })
}

fn has_token(process: Process, token: &Token) -> bool {
    let wanted = format!("{TOKEN_VARIABLE}={token}");
    let deadline = Instant::now() + EXEC_WAIT;
    loop {
        let Ok(text) = fs::read(format!("/proc/{}/environ", process.pid)) else {
            return false;
        };
        if !text.is_empty() || !is_young(process) || Instant::now() >= deadline {
            return text
                .split(|byte| *byte == 0)
                .any(|it| it == wanted.as_bytes());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns whether a process may be on its way from one program to the next after its start.
fn is_young(process: Process) -> bool {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: Option<u64> = uptime.split('.').next().and_then(|it| it.parse().ok());
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    seconds.is_some_and(|it| it <= process.started / ticks + 1)
}

/// Returns what names this boot of the host.
fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn agent_command(agent: &[OsString], dir: &Path) -> Vec<OsString> {
    let mut command = agent.to_vec();
    command.extend(["--dir".into(), dir.into()]);
    command
}

/// Returns whether a process was started with this command, be it through an interpreter.
fn runs(pid: i32, command: &[OsString]) -> bool {
    let Ok(text) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    let words: Vec<&[u8]> = text.split(|byte| *byte == 0).collect();
    let command: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
    words.ends_with(&command)
}

fn catches_hangup(pid: i32) -> bool {
    const HANGUP: u64 = 1;
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & HANGUP != 0)
    })
}
