//! One program's process: ended with its group, and found again by a later hob.
//!
//! A program's environment names its machine and its line, and so does that of all that it
//! starts. The hob also writes down the process it has started. The next hob takes that one. If
//! the last one was killed before it could write, there is a process with the marks that leads
//! its group but no session, and whose parent has no marks: so does nothing but what a hob starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::time::{Instant, timeout};

use crate::store::ProgramRow;

/// Says whose program a process is; whoever ends the machine looks for it.
const TOKEN_VARIABLE: &str = "GOBS_MACHINE_TOKEN";

/// Says which line a process runs, with the digest of all that it was started with.
const RUN_VARIABLE: &str = "GOBS_RUN";

/// How long a program may take to end when it is asked to; then it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A program that runs.
pub(crate) struct Process {
    pid: Pid,
    /// What is ended with it.
    group: Pid,
    started: u64,
    digest: String,
    since: Instant,
    /// Readable once it has ended.
    pidfd: AsyncFd<OwnedFd>,
    /// To be reaped, if it is this hob's own child.
    child: Option<Child>,
}

/// A process with a program's marks.
struct Marked {
    pid: Pid,
    stat: Stat,
    index: usize,
    digest: String,
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: i32,
    group: i32,
    session: i32,
    /// In ticks since the boot.
    started: u64,
}

/// Returns the environment by which a program is known.
pub(crate) fn marks(token: &str, index: usize, digest: &str) -> [(&'static str, String); 2] {
    [
        (TOKEN_VARIABLE, token.to_owned()),
        (RUN_VARIABLE, format!("{index}:{digest}")),
    ]
}

/// Returns when this process started, in the kernel's ticks.
pub(crate) fn start_time() -> Option<u64> {
    stat("self").map(|stat| stat.started)
}

/// Returns the programs of a machine that an earlier hob has started and that run still.
pub(crate) fn find(
    token: &str,
    recorded: &BTreeMap<usize, ProgramRow>,
) -> BTreeMap<usize, Process> {
    let entries = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let marked: Vec<_> = entries
        .filter_map(|entry| marked(entry.file_name().to_str()?, token))
        .collect();
    let is_first = |one: &&Marked| {
        let pid = one.pid.as_raw_nonzero().get();
        let parent = one.stat.parent;
        one.stat.group == pid
            && one.stat.session != pid
            && !marked
                .iter()
                .any(|other| other.pid.as_raw_nonzero().get() == parent)
    };
    let mut found = BTreeMap::new();
    for one in marked.iter().filter(is_first) {
        let eldest = found.entry(one.index).or_insert(one);
        if one.stat.started < eldest.stat.started {
            *eldest = one;
        }
    }
    for one in &marked {
        let known = recorded.get(&one.index);
        if known.is_some_and(|row| {
            row.pid == one.pid.as_raw_nonzero().get() && row.started == one.stat.started
        }) {
            found.insert(one.index, one);
        }
    }
    // A program that writes its title over its environment, as Redis does, has no marks any more.
    let unmarked: Vec<_> = recorded
        .iter()
        .filter(|(index, _)| !found.contains_key(index))
        .filter_map(|(index, row)| {
            let stat = stat(&row.pid.to_string())?;
            let is_it = stat.started == row.started && stat.group == row.pid;
            is_it.then_some(Marked {
                pid: Pid::from_raw(row.pid)?,
                stat,
                index: *index,
                digest: row.digest.clone(),
            })
        })
        .collect();
    found.extend(unmarked.iter().map(|one| (one.index, one)));
    let adopt = |(index, one): (usize, &Marked)| {
        // One that has ended by now is none.
        let process = Process::new(one.pid, one.stat, one.digest.clone(), None).ok()?;
        tracing::info!(index, pid = one.pid.as_raw_nonzero(), "program adopted");
        Some((index, process))
    };
    found.into_iter().filter_map(adopt).collect()
}

fn marked(pid: &str, token: &str) -> Option<Marked> {
    let environment = fs::read(format!("/proc/{}/environ", pid.parse::<u32>().ok()?)).ok()?;
    let value = |name: &str| {
        let variables = environment.split(|byte| *byte == 0);
        variables
            .filter_map(|variable| std::str::from_utf8(variable).ok())
            .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
    };
    let (index, digest) = value(RUN_VARIABLE)?.split_once(':')?;
    (value(TOKEN_VARIABLE)? == token).then_some(())?;
    Some(Marked {
        pid: Pid::from_raw(pid.parse().ok()?)?,
        stat: stat(pid)?,
        index: index.parse().ok()?,
        digest: digest.to_owned(),
    })
}

fn stat(pid: &str) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Fields 4 to 6 are read, 22 is wanted.
    Some(Stat {
        parent,
        group,
        session,
        started: fields.nth(15)?.parse().ok()?,
    })
}

impl Process {
    /// Returns the process of a child that was just started at the head of a group of its own.
    pub(crate) fn of_child(child: Child, digest: String) -> io::Result<Self> {
        let ended = || io::Error::other("the program ended at once");
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .ok_or_else(ended)?;
        let raw = pid.as_raw_nonzero().get();
        let started = stat(&raw.to_string()).ok_or_else(ended)?.started;
        // Its group is there before its program, so it is not asked for.
        let stat = Stat {
            parent: 0,
            group: raw,
            session: 0,
            started,
        };
        Self::new(pid, stat, digest, Some(child))
    }

    #[expect(
        deprecated,
        reason = "an `OwnedFd` keeps its descriptor, and what replaces `new` is unsafe"
    )]
    fn new(pid: Pid, stat: Stat, digest: String, child: Option<Child>) -> io::Result<Self> {
        let pidfd = AsyncFd::new(pidfd_open(pid, PidfdFlags::NONBLOCK)?)?;
        let group = Pid::from_raw(stat.group).unwrap_or(pid);
        let since = Instant::now();
        Ok(Self {
            pid,
            group,
            started: stat.started,
            digest,
            since,
            pidfd,
            child,
        })
    }

    /// Returns its number.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the digest of all that it was started with.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns for how long this hob has known it.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Returns what it is recorded by.
    pub(crate) fn row(&self) -> ProgramRow {
        ProgramRow {
            pid: self.pid.as_raw_nonzero().get(),
            started: self.started,
            digest: self.digest.clone(),
        }
    }

    /// Waits for the end; what is left of its group is ended too. Returns how it ended.
    pub(crate) async fn ended(&mut self) -> String {
        // An error would mean that it cannot be waited for: it counts as ended.
        let _ = self.pidfd.readable().await;
        let status = match &mut self.child {
            Some(child) => child.wait().await.ok(),
            None => None,
        };
        // Nothing is left, usually.
        let _ = kill_process_group(self.group, Signal::KILL);
        status.map_or_else(|| "status unknown".into(), |status| status.to_string())
    }

    /// Ends the program and its group.
    pub(crate) async fn stop(mut self) {
        // One that has ended meanwhile cannot be told; it is waited for all the same.
        let _ = kill_process_group(self.group, Signal::TERM);
        if timeout(STOP_TIMEOUT, self.ended()).await.is_err() {
            let _ = kill_process_group(self.group, Signal::KILL);
            self.ended().await;
        }
    }
}
