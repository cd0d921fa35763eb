//! What can go wrong with a state file, by what there is to do about it.

use std::io;
use std::path::{Path, PathBuf};

use gobs_model::Address;
use rusqlite::ErrorCode;
use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;

use crate::seal::{KeyError, SealError};

/// Why a state file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none at this path.
    #[error("there is no state file {}: nothing was applied here yet", .0.display())]
    Missing(PathBuf),
    /// It is gone, and its WAL is there: a new file beside that would be filled with the old one's
    /// pages.
    #[error(
        "the state file {path} is missing, but {path}-wal holds commits that belong to it: bring \
         the file back, or move {path}-wal away to begin anew", path = .0.display()
    )]
    Leftover(PathBuf),
    /// It lies where locks and shared memory cannot be trusted.
    #[error(
        "the state file {} lies on a network filesystem ({filesystem}), where locks and shared \
         memory cannot be trusted: keep it on a local disk", .path.display()
    )]
    Network {
        /// The state file.
        path: PathBuf,
        /// The kind of filesystem.
        filesystem: String,
    },
    /// It is something else.
    #[error(
        "{} is not a state file of gobs: move it away, or name another path for the state",
        .0.display()
    )]
    NotAState(PathBuf),
    /// A later gobs wrote it.
    #[error(
        "the state file {} has format {found}, and this gobs knows formats up to {known}: \
         use the gobs that wrote it, or a later one", .path.display()
    )]
    Newer {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest format that this gobs knows.
        known: i64,
    },
    /// The data key is not the one that the file was made with.
    #[error(
        "the data key does not open the state file {}: bring back the key that the file was \
         made with (`.gobs/key` or GOBS_KEY)", .0.display()
    )]
    WrongKey(PathBuf),
    /// Its directory could not be made, or the file could not be created there.
    #[error("cannot create the state file {}: {source}", .path.display())]
    Create {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key of the cells could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Reading or writing it failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why reading or writing an open state file failed. Whatever was not acknowledged has left no
/// trace in the file.
#[derive(Debug, thiserror::Error)]
#[error("state file {}: {fault}", .path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with an operation on the state file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No space left.
    #[error("the disk is full; nothing was lost: free some space and run again")]
    DiskFull,
    /// The file or its directory cannot be written.
    #[error("it cannot be written: check the permissions of the file and of its directory")]
    ReadOnly,
    /// It cannot be opened at all.
    #[error("it cannot be opened: check the permissions of the file and of its directory")]
    Unopenable,
    /// Another process kept the file locked for longer than the busy timeout.
    #[error("another process keeps it locked: wait for it to end and run again")]
    Busy,
    /// The contents are not what gobs wrote.
    #[error(
        "it is damaged ({0}): move it away with its -wal and -shm files, and copy the latest \
         backup to its place"
    )]
    Corrupt(String),
    /// A sealed cell does not open: it was changed, or moved from another place.
    #[error(
        "the sealed cell {0} was changed by something else: move the file away with its -wal \
         and -shm files, and copy the latest backup to its place"
    )]
    Tampered(String),
    /// The system refused.
    #[error("{0}")]
    Io(String),
    /// A step was finished that is not in doubt.
    #[error("journal entry {0} has ended already")]
    AlreadyEnded(i64),
    /// An intent came before `begin_run`.
    #[error("no run was begun")]
    NoRun,
    /// Something that the format cannot hold.
    #[error("{address} cannot be stored: {reason}")]
    Unstorable {
        /// What was to be stored.
        address: Address,
        /// Why it cannot be.
        reason: String,
    },
    /// The system gave no random bytes.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Fault {
    pub(crate) fn at(self, path: &Path) -> StoreError {
        StoreError {
            path: path.into(),
            fault: self,
        }
    }

    pub(crate) fn corrupt(what: impl std::fmt::Display) -> Self {
        Self::Corrupt(what.to_string())
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, message) = &error else {
            // Every statement is ours, so a value of the wrong type or range came from the file.
            return Self::corrupt(error);
        };
        match failure.code {
            ErrorCode::DiskFull => Self::DiskFull,
            // The WAL's index could not be made larger.
            _ if failure.extended_code == SQLITE_IOERR_SHMSIZE => Self::DiskFull,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Self::ReadOnly,
            ErrorCode::CannotOpen => Self::Unopenable,
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                Self::corrupt(message.as_deref().unwrap_or("SQLite finds it malformed"))
            }
            // A table or column that a damaged schema has lost is reported as a plain error.
            ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => {
                Self::corrupt(&error)
            }
            _ => Self::Io(error.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ => Self::Io(error.to_string()),
        }
    }
}
