//! What the provider remembers of a machine, and the files and locks around it.
//!
//! ```text
//! ROOT/TOKEN/record.json   the machine's reality: while it is there, the machine is
//! ROOT/TOKEN/machine.json  what the agent reads: token, runtime directory, programs
//! ROOT/TOKEN/user-data     what the agent starts with; it erases it
//! ROOT/TOKEN/hob, logs     the agent's own
//! ROOT/.new-TOKEN          a machine that does not exist yet
//! ROOT/.gone-TOKEN         a machine that exists no more
//! ROOT/.lock-TOKEN         held while a machine is worked on
//! ROOT/.faults/            which faults have happened
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gobs_model::{Address, Known};
use gobs_provider::{Error, Token};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::process::Agent;

/// The format of `record.json` and of `machine.json` that this version writes.
pub(crate) const FORMAT: u32 = 1;

/// How long another process may work on a machine before we say so: a deletion waits out what
/// runs on it twice.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// How often a lock that is held is tried again.
const LOCK_EVERY: Duration = Duration::from_millis(10);

/// How often a directory is made again that someone else, who found it empty, removed.
const MAKE_TRIES: u32 = 10;

/// What remains to be done before a machine is what its record says. Whoever meets a machine
/// that is not settled goes on with it, as a real provider goes on when its client has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Nothing.
    Settled,
    /// Its description must be written, and its agent told.
    Describing,
    /// All that runs on it must end, and its disk be written anew; then its agent starts.
    Rebuilding,
    /// Its agent must start, where it does not run yet.
    Launching,
    /// All that runs on it must end; then it goes.
    Deleting,
}

/// A machine, as the provider remembers it. The password is not in it: nobody can read it back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) token: Token,
    pub(crate) address: Address,
    pub(crate) created_ms: u64,
    pub(crate) wanted: Known,
    pub(crate) phase: Phase,
    /// Whether it has an agent at all.
    pub(crate) has_agent: bool,
    pub(crate) agent: Option<Agent>,
    /// The last change that was taken, so that a repeat of it is not a second one.
    pub(crate) last_update: Option<Token>,
}

/// Why a machine's files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} has format {format}, and this version knows format {FORMAT}", path.display())]
    Newer { path: PathBuf, format: u64 },
    #[error("another process is working on the machine in {}", .0.display())]
    Locked(PathBuf),
    #[error("{} belongs to somebody else", .0.display())]
    Foreign(PathBuf),
    #[error("{0:?} is not a token: letters, digits, `-` and `_`, 64 at most")]
    Token(String),
}

impl From<RecordError> for Error {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Locked(_) => Self::Busy {
                message: error.to_string(),
                after: Duration::from_secs(1),
            },
            _ => Self::rejected(error.to_string()),
        }
    }
}

impl RecordError {
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// Where one machine lives.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) gone: PathBuf,
    lock: PathBuf,
}

impl Place {
    /// Returns the place of a token; a token that could name another place is refused.
    pub(crate) fn new(root: &Path, token: &Token) -> Result<Self, RecordError> {
        let text = &token.0;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(RecordError::Token(text.clone()));
        }
        Ok(Self {
            root: root.into(),
            dir: root.join(text),
            staging: root.join(format!(".new-{text}")),
            gone: root.join(format!(".gone-{text}")),
            lock: root.join(format!(".lock-{text}")),
        })
    }

    /// Returns the record, where there is a machine.
    pub(crate) fn load(&self) -> Result<Option<Record>, RecordError> {
        let path = self.dir.join("record.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::io("read", path)(error)),
        };
        let damaged = |source| RecordError::Damaged {
            path: path.clone(),
            source,
        };
        let document: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        match document["format"].as_u64() {
            Some(format) if format != u64::from(FORMAT) => Err(RecordError::Newer { path, format }),
            _ => serde_json::from_value(document).map(Some).map_err(damaged),
        }
    }

    /// Writes the record where the machine is, or where it will be moved from.
    pub(crate) fn store(dir: &Path, record: &Record) -> Result<(), RecordError> {
        let path = dir.join("record.json");
        let text = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Damaged {
            path: path.clone(),
            source,
        })?;
        replace(&path, &text)
    }

    /// Removes what was never a machine, or is one no more. The lock is held.
    pub(crate) fn sweep(&self) -> Result<(), RecordError> {
        remove_tree(&self.staging)?;
        remove_tree(&self.gone)
    }

    /// Returns whether there is something to sweep.
    pub(crate) fn is_littered(&self) -> bool {
        [&self.staging, &self.gone]
            .into_iter()
            .any(|it| it.symlink_metadata().is_ok())
    }

    /// Waits until nobody else works on the machine, in this process or another.
    pub(crate) fn lock(&self) -> Result<Lock, RecordError> {
        let deadline = Instant::now() + LOCK_WAIT;
        let failed = || RecordError::io("lock", &self.lock);
        loop {
            let file = in_directory(&self.root, || {
                OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&self.lock)
            })
            .map_err(failed())?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Its last holder may have removed it since: then it locks nothing.
                Ok(()) if is_at(&file, &self.lock) => {
                    let path = self.lock.clone();
                    return Ok(Lock { path, _file: file });
                }
                Ok(()) => continue,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(failed()(error.into())),
            }
            if Instant::now() >= deadline {
                return Err(RecordError::Locked(self.dir.clone()));
            }
            std::thread::sleep(LOCK_EVERY);
        }
    }
}

/// Held while a machine is worked on; a process that dies lets go of it.
pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is still held; one that stays harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Replaces a file as a whole, for its owner only; once this returns it survives a power loss.
pub(crate) fn replace(path: &Path, text: &[u8]) -> Result<(), RecordError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_parent(path)
    };
    write().map_err(RecordError::io("write", path))
}

/// Renames, and makes it survive a power loss.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), RecordError> {
    fs::rename(from, to)
        .and_then(|()| sync_parent(to))
        .map_err(RecordError::io("rename", from))
}

/// Removes a directory and all in it, where it is there.
pub(crate) fn remove_tree(path: &Path) -> Result<(), RecordError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(RecordError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory for its owner alone, or takes the one that is there and is ours: the place
/// may be a directory that everybody can write to.
pub(crate) fn private_dir(path: &Path) -> Result<(), RecordError> {
    let parent = path.parent().unwrap_or(path);
    let made = in_directory(parent, || DirBuilder::new().mode(0o700).create(path));
    match made {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(RecordError::io("make", path)(error)),
    }
    let data = path
        .symlink_metadata()
        .map_err(RecordError::io("read", path))?;
    if !data.is_dir() || data.uid() != rustix::process::geteuid().as_raw() {
        return Err(RecordError::Foreign(path.into()));
    }
    fs::set_permissions(path, PermissionsExt::from_mode(0o700))
        .map_err(RecordError::io("protect", path))
}

/// Makes the directory that holds private ones, or takes the one that is there, where nobody but
/// us and root can exchange what is in it.
pub(crate) fn shared_dir(path: &Path) -> Result<(), RecordError> {
    match path.symlink_metadata() {
        Err(_) => private_dir(path),
        Ok(data)
            if data.is_dir() && [0, rustix::process::geteuid().as_raw()].contains(&data.uid()) =>
        {
            Ok(())
        }
        Ok(_) => Err(RecordError::Foreign(path.into())),
    }
}

/// Does something in a directory that is made where it is missing.
fn in_directory<T>(parent: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..MAKE_TRIES {
        match work() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(parent)?;
            }
            done => return done,
        }
    }
    work()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Returns the time since the epoch in milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}
