//! The boss's own tables: its key and port, claims, alerts, hobs, and what people were lent.
//!
//! They have no part in serials and row versions: what happens here changes nothing that was
//! declared.

mod claims;
mod hobs;
mod loans;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gobs_model::Address;
use rusqlite::{OptionalExtension, Row, Transaction};
use zeroize::Zeroizing;

use crate::database::{Database, time};
use crate::encode::Cell;
use crate::error::{Fault, OpenError, StoreError};
use crate::seal::{DataKey, SealError};

pub use claims::{
    Alert, CLAIM_LIFETIME_MAX, CLAIM_TTL, Claim, ClaimOutcome, NewClaim, Refusal, SwissnumHash,
};
pub(crate) use claims::{insert_claim, new_claim};
pub use hobs::{HobRow, JoinOutcome};
pub use loans::LoanRow;

const SEED_BYTES: usize = 32;

/// The boss's own connection to the state file: usable from any thread, beside a running apply.
pub struct BossStore {
    database: Mutex<Database>,
}

impl BossStore {
    /// Opens the boss's tables; makes the state file where there is none.
    ///
    /// It takes no lock of its own: whoever uses the boss's key holds a [`Lock`](crate::Lock) that
    /// says so.
    ///
    /// # Errors
    /// Whatever is wrong with the file, its directory or the key.
    pub fn open(path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        let database = Mutex::new(Database::open_writable(path, key)?);
        Ok(Self { database })
    }

    /// Returns the project's name for life.
    pub fn lineage(&self) -> String {
        self.lock().lineage.clone()
    }

    /// Returns the seed of the boss's key, which is made and kept at the first call.
    ///
    /// # Errors
    /// When the file cannot be written, or the sealed seed was tampered with.
    pub fn seed(&self) -> Result<Zeroizing<[u8; SEED_BYTES]>, StoreError> {
        self.write(|transaction, cells| {
            let kept: Option<Vec<u8>> = transaction
                .query_row("SELECT seed FROM boss", [], |row| row.get(0))
                .optional()?
                .flatten();
            let mut seed = Zeroizing::new([0; SEED_BYTES]);
            if let Some(sealed) = kept {
                let opened = SEED.open(cells, &sealed)?;
                let bytes: &[u8; SEED_BYTES] = opened
                    .as_slice()
                    .try_into()
                    .map_err(|_| Fault::corrupt("the boss's seed has another length"))?;
                seed.copy_from_slice(bytes);
            } else {
                getrandom::fill(&mut *seed).map_err(|_| SealError::Unsealable)?;
                let sealed = SEED.seal(cells, &*seed)?;
                transaction.execute(
                    "INSERT INTO boss (id, seed) VALUES (1, ?1)
                     ON CONFLICT DO UPDATE SET seed = excluded.seed",
                    [sealed],
                )?;
            }
            Ok(seed)
        })
    }

    /// Returns the port that the boss keeps, if one was chosen.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn port(&self) -> Result<Option<u16>, StoreError> {
        self.read(|database| {
            let port = database
                .connection
                .query_row("SELECT port FROM boss", [], |row| row.get(0))
                .optional()?;
            Ok(port.flatten())
        })
    }

    /// Keeps the port that the boss listens on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_port(&self, port: u16) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "INSERT INTO boss (id, port) VALUES (1, ?1)
                 ON CONFLICT DO UPDATE SET port = excluded.port",
                [port],
            )?;
            Ok(())
        })
    }

    fn lock(&self) -> MutexGuard<'_, Database> {
        // A transaction that unwound was rolled back, so the connection is as good as before.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write<T>(
        &self,
        body: impl FnOnce(&Transaction<'_>, &DataKey) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.lock().write(body)
    }

    fn read<T>(&self, body: impl FnOnce(&Database) -> Result<T, Fault>) -> Result<T, StoreError> {
        self.lock().read(body)
    }
}

fn address(row: &Row<'_>, column: &str) -> Result<Address, Fault> {
    let text: String = row.get(column)?;
    text.parse().map_err(Fault::corrupt)
}

fn socket_address(row: &Row<'_>, column: &str) -> Result<Option<SocketAddr>, Fault> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(Fault::corrupt))
        .transpose()
}

fn optional_time(row: &Row<'_>, column: &str) -> Result<Option<SystemTime>, Fault> {
    row.get::<_, Option<i64>>(column)?.map(time).transpose()
}

impl std::fmt::Debug for BossStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BossStore")
            .field("path", &self.lock().path)
            .finish_non_exhaustive()
    }
}

const SEED: Cell<'static> = Cell {
    table: "boss",
    row: "1",
    column: "seed",
    version: 0,
};
