//! What gobs remembers: rows, outputs, a journal and the boss's own tables, in one SQLite file.
//!
//! [`Store`] is the one writer of what was declared; it holds the [`Lock`]. [`Reader`] reads beside
//! it. [`BossStore`] is the boss's own connection to its own tables. Everything sensitive is sealed
//! before SQLite sees it, so that neither the file nor its WAL nor a backup holds it in clear.
//!
//! ```
//! # use std::time::SystemTime;
//! # use gobs_state::{DataKey, Lock, Store};
//! # let directory = tempfile::tempdir()?;
//! let state = directory.path().join("state.db");
//! let key = DataKey::load_or_create(&directory.path().join("key"), &state)?;
//! let lock = Lock::acquire(&directory.path().join("lock"), "apply", SystemTime::now())?;
//! let mut store = Store::open(&state, &key, lock)?;
//! store.backup(&directory.path().join("backups"), SystemTime::now())?;
//! assert_eq!(store.begin_run("apply", SystemTime::now())?, 1);
//! assert!(store.in_doubt()?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod backup;
mod boss;
mod database;
mod encode;
mod error;
mod filesystem;
mod journal;
mod lock;
mod seal;
mod snapshot;
mod store;

pub use backup::BACKUPS_KEPT;
pub use boss::{
    Alert, BossStore, CLAIM_LIFETIME_MAX, CLAIM_TTL, Claim, ClaimOutcome, HobRow, JoinOutcome,
    LoanRow, NewClaim, Refusal, SwissnumHash,
};
pub use error::{Fault, OpenError, StoreError};
pub use journal::{Doubt, Entry, Finished, Intent, Outcome, RowChange, Run, Started};
pub use lock::{Holder, Lock, LockError};
pub use seal::{DataKey, KeyError, SealError, SealedBlob};
pub use snapshot::{Phase, Row, RowKind, Snapshot};
pub use store::{CrashAt, Reader, Store};
