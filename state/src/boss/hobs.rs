//! Hobs that registered, and the join sequence that tells a hob from a copy of it.

use std::time::SystemTime;

use gobs_model::Address;
use rusqlite::{OptionalExtension, Row};
use zeroize::Zeroizing;

use super::{BossStore, optional_time};
use crate::database::{count, integer, milliseconds, time};
use crate::encode::Cell;
use crate::error::{Fault, StoreError};
use crate::seal::DataKey;

/// A hob that registered.
#[derive(Clone, PartialEq, Eq)]
pub struct HobRow {
    /// The machine that it runs on.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// The designator of its key.
    pub designator: String,
    /// Where it can be dialled, as a locator's URI.
    pub locator: String,
    /// The sturdyref of its client presence, as a URI: sealed, since it is a capability.
    pub presence: Option<Zeroizing<String>>,
    /// When it was last connected.
    pub last_seen: SystemTime,
    /// When a stale join sequence locked it, if one did.
    pub locked_at: Option<SystemTime>,
}

impl std::fmt::Debug for HobRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HobRow")
            .field("machine", &self.machine)
            .field("incarnation", &self.incarnation)
            .field("designator", &self.designator)
            .field("locator", &self.locator)
            .field("last_seen", &self.last_seen)
            .field("locked_at", &self.locked_at)
            .finish_non_exhaustive()
    }
}

/// What a presented join sequence came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinOutcome {
    /// Welcome; the number to present next time.
    Welcome(u64),
    /// A stale number from the right key: there are two copies of it, and both are locked.
    Locked,
    /// No such hob.
    Unknown,
}

/// Stands for a confirmed join sequence where an operator has said that the next one presented is
/// to be believed: after a restore only the hob knows the number.
const BELIEVED: i64 = -1;

impl BossStore {
    /// Keeps a hob that registered; returns the join sequence to present next time, or nothing
    /// where a later incarnation of the machine has registered already.
    ///
    /// Another incarnation or another key begins a new join sequence; `locked_at` is not taken
    /// from the argument.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_hob(&self, hob: &HobRow) -> Result<Option<u64>, StoreError> {
        let machine = hob.machine.to_string();
        let incarnation = integer(hob.incarnation);
        self.write(|transaction, cells| {
            let presence = match &hob.presence {
                None => None,
                Some(uri) => {
                    let cell = presence_cell(&machine, incarnation);
                    Some(cell.seal(cells, uri.as_bytes())?)
                }
            };
            let offered = transaction
                .prepare_cached(
                    "INSERT INTO hobs
                         (machine, incarnation, designator, locator, presence, last_seen)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                     ON CONFLICT DO UPDATE SET
                         join_confirmed = iif(incarnation = excluded.incarnation
                             AND designator = excluded.designator, join_confirmed, 0),
                         join_offered = iif(incarnation = excluded.incarnation
                             AND designator = excluded.designator, join_offered, 1),
                         locked_at = iif(incarnation = excluded.incarnation
                             AND designator = excluded.designator, locked_at, NULL),
                         incarnation = excluded.incarnation, designator = excluded.designator,
                         locator = excluded.locator, presence = excluded.presence,
                         last_seen = excluded.last_seen
                     WHERE incarnation <= excluded.incarnation
                     RETURNING join_offered",
                )?
                .query_row(
                    (
                        &machine,
                        incarnation,
                        &hob.designator,
                        &hob.locator,
                        presence,
                        milliseconds(hob.last_seen),
                    ),
                    |row| row.get(0),
                )
                .optional()?;
            offered.map(count).transpose()
        })
    }

    /// Returns every hob that registered, by machine.
    ///
    /// # Errors
    /// When the file cannot be read, or a sealed cell was tampered with.
    pub fn hobs(&self) -> Result<Vec<HobRow>, StoreError> {
        self.read(|database| {
            let mut statement = database.connection.prepare_cached(
                "SELECT machine, incarnation, designator, locator, presence, last_seen, locked_at
                 FROM hobs ORDER BY machine",
            )?;
            let mut rows = statement.query([])?;
            let mut hobs = Vec::new();
            while let Some(row) = rows.next()? {
                hobs.push(read_hob(row, &database.cells)?);
            }
            Ok(hobs)
        })
    }

    /// Notes that a hob is connected, and where it can be dialled if that has changed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn seen(
        &self,
        machine: &Address,
        designator: &str,
        locator: Option<&str>,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE hobs SET last_seen = max(last_seen, ?4), locator = coalesce(?3, locator)
                 WHERE machine = ?1 AND designator = ?2",
                (machine.to_string(), designator, locator, milliseconds(now)),
            )?;
            Ok(())
        })
    }

    /// Judges the join sequence that a hob with the right key presents, as one compare-and-set.
    ///
    /// The confirmed number gets the same answer again, since a reply may have been lost; the
    /// offered one confirms it; any other comes from a copy, and locks both.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn join(
        &self,
        machine: &Address,
        presented: u64,
        now: SystemTime,
    ) -> Result<JoinOutcome, StoreError> {
        self.write(|transaction, _| {
            let judged = transaction
                .prepare_cached(
                    "UPDATE hobs SET
                         join_confirmed = iif(locked_at IS NULL
                             AND (?2 = join_offered OR join_confirmed = ?4), ?2, join_confirmed),
                         join_offered = iif(locked_at IS NULL
                             AND (?2 = join_offered OR join_confirmed = ?4), ?2 + 1, join_offered),
                         locked_at = iif(locked_at IS NULL AND join_confirmed != ?4
                             AND ?2 NOT IN (join_confirmed, join_offered), ?3, locked_at)
                     WHERE machine = ?1
                     RETURNING join_offered, locked_at",
                )?
                .query_row(
                    (
                        machine.to_string(),
                        integer(presented),
                        milliseconds(now),
                        BELIEVED,
                    ),
                    |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)),
                )
                .optional()?;
            Ok(match judged {
                None => JoinOutcome::Unknown,
                Some((_, Some(_))) => JoinOutcome::Locked,
                Some((offered, None)) => JoinOutcome::Welcome(count(offered)?),
            })
        })
    }

    /// Lets a locked hob join again, with whatever it presents next; returns whether it was
    /// locked.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn unlock(&self, machine: &Address) -> Result<bool, StoreError> {
        self.write(|transaction, _| {
            let unlocked = transaction.execute(
                "UPDATE hobs SET locked_at = NULL, join_confirmed = ?2
                 WHERE machine = ?1 AND locked_at IS NOT NULL",
                (machine.to_string(), BELIEVED),
            )?;
            Ok(unlocked == 1)
        })
    }

    /// Forgets the hob of a machine that is gone, up to this incarnation, and withdraws its
    /// claims; a later incarnation of the same name is left alone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_machine(
        &self,
        machine: &Address,
        incarnation: u64,
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let (machine, incarnation) = (machine.to_string(), integer(incarnation));
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET revoked_at = ?3
                 WHERE machine = ?1 AND incarnation <= ?2 AND revoked_at IS NULL",
                (&machine, incarnation, milliseconds(now)),
            )?;
            transaction.execute(
                "DELETE FROM hobs WHERE machine = ?1 AND incarnation <= ?2",
                (&machine, incarnation),
            )?;
            Ok(())
        })
    }
}

fn read_hob(row: &Row<'_>, cells: &DataKey) -> Result<HobRow, Fault> {
    let machine: String = row.get("machine")?;
    let incarnation = row.get("incarnation")?;
    let presence = match row.get::<_, Option<Vec<u8>>>("presence")? {
        None => None,
        Some(blob) => {
            let uri = presence_cell(&machine, incarnation).open(cells, &blob)?;
            let uri = std::str::from_utf8(&uri).map_err(Fault::corrupt)?;
            Some(Zeroizing::new(uri.to_owned()))
        }
    };
    Ok(HobRow {
        machine: machine.parse().map_err(Fault::corrupt)?,
        incarnation: count(incarnation)?,
        designator: row.get("designator")?,
        locator: row.get("locator")?,
        presence,
        last_seen: time(row.get("last_seen")?)?,
        locked_at: optional_time(row, "locked_at")?,
    })
}

fn presence_cell(machine: &str, incarnation: i64) -> Cell<'_> {
    Cell {
        table: "hobs",
        row: machine,
        column: "presence",
        version: incarnation,
    }
}
