//! The lock that keeps a second writer out, says who the first one is, and dies with it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::filesystem::{self, create_private_directory, parent};

/// How long to look again for who holds the lock: the holder writes its name just after it got it.
const HOLDER_WAIT: Duration = Duration::from_millis(200);
/// How long a lock may outlive its holder, which is killed: a child that the holder had begun to
/// start has the file, too, until it runs its own program.
const ORPHAN_WAIT: Duration = Duration::from_secs(5);
/// The pause between two tries of such a lock.
const ORPHAN_PAUSE: Duration = Duration::from_millis(10);
/// Longer than any holder's line; whatever else is in the file is not read.
const HOLDER_BYTES_MAX: u64 = 4096;

/// An exclusive lock, held until dropped or until the process ends, however it ends.
#[derive(Debug)]
#[must_use = "dropping the lock releases it"]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its host.
    pub host: String,
    /// The command's name; never its arguments, which may hold secrets.
    pub command: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "{} is locked {}: wait for it to end, or end it", .path.display(),
        .holder.as_ref().map_or_else(|| "by another process".into(), |h| format!("by {h}"))
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who has it, where that could be read.
        holder: Option<Holder>,
    },
    /// It lies where locks cannot be trusted.
    #[error(
        "{} lies on a network filesystem ({filesystem}), where locks cannot be trusted: keep \
         it on a local disk", .path.display()
    )]
    Network {
        /// The lock file.
        path: PathBuf,
        /// The kind of filesystem.
        filesystem: String,
    },
    /// The system refused.
    #[error("cannot lock {}: {source}", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, or says who has it: at once, unless its process on this host is gone.
    ///
    /// # Errors
    /// When it is held, on a network filesystem, or cannot be opened.
    pub fn acquire(path: &Path, command: &str, since: SystemTime) -> Result<Self, LockError> {
        let io = |source| LockError::Io {
            path: path.into(),
            source,
        };
        create_private_directory(parent(path)).map_err(io)?;
        if let Some(filesystem) = filesystem::network(parent(path)).map_err(io)? {
            return Err(LockError::Network {
                path: path.into(),
                filesystem,
            });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(io)?;
        let deadline = Instant::now() + ORPHAN_WAIT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(io(errno.into())),
            }
            let holder = read_holder(&mut file);
            let is_orphan = holder.as_ref().is_some_and(Holder::is_gone);
            if !is_orphan || Instant::now() >= deadline {
                return Err(LockError::Held {
                    path: path.into(),
                    holder,
                });
            }
            std::thread::sleep(ORPHAN_PAUSE);
        }
        let holder = Holder::this_process(command, since);
        let line = serde_json::to_string(&holder).map_err(|error| io(error.into()))?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(line.as_bytes()))
            .map_err(io)?;
        Ok(Self {
            file,
            path: path.into(),
        })
    }

    /// Returns the lock file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The name goes with the lock; the file stays, since removing it would race.
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, path = %self.path.display(), "lock file not emptied");
        }
    }
}

/// Returns this host's name.
fn host() -> String {
    let uname = rustix::system::uname();
    uname.nodename().to_string_lossy().into_owned()
}

impl Holder {
    /// Returns whether it was a process of this host that has ended.
    fn is_gone(&self) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let is_there = pid.map(rustix::process::test_kill_process);
        self.host == host() && is_there == Some(Err(rustix::io::Errno::SRCH))
    }

    fn this_process(command: &str, since: SystemTime) -> Self {
        Self {
            pid: std::process::id(),
            host: host(),
            command: command.into(),
            since_ms: since
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
                }),
        }
    }
}

/// `process 41 on host box (apply), since 2026-11-22 14:00:00 UTC`
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            host,
            command,
            since_ms,
        } = self;
        write!(f, "process {pid} on host {host} ({command}), since ")?;
        let seconds = since_ms / 1000;
        let (year, month, day) = civil_date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC"
        )
    }
}

/// Returns the year, month and day of a day counted from 1970 (Hinnant's `civil_from_days`).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let deadline = Instant::now() + HOLDER_WAIT;
    loop {
        let mut text = String::new();
        file.rewind().ok()?;
        let read = Read::by_ref(file)
            .take(HOLDER_BYTES_MAX)
            .read_to_string(&mut text);
        match read.ok().and_then(|_| serde_json::from_str(&text).ok()) {
            Some(holder) => return Some(holder),
            None if Instant::now() < deadline => std::thread::yield_now(),
            None => return None,
        }
    }
}
