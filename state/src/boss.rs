//! The boss's own tables: its key and port, claims, alerts and hobs.
//!
//! They have no part in serials and row versions: what happens here changes nothing that was
//! declared.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gobs_model::Address;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use zeroize::Zeroizing;

use crate::claim::{
    Alert, CLAIM_LIFETIME_MAX, CLAIM_TTL, Claim, ClaimOutcome, HobRow, JoinOutcome, NewClaim,
    Refusal, SwissnumHash,
};
use crate::database::{Database, count, integer, milliseconds, time};
use crate::encode::Cell;
use crate::error::{Fault, OpenError, StoreError};
use crate::seal::{DataKey, SealError};

/// How many alerts a claim may have: each is one foreign key, and a thief can make any number.
/// Beyond it, tries count on the newest.
const ALERTS_PER_CLAIM_MAX: u32 = 100;

const SEED_BYTES: usize = 32;

const CLAIM_COLUMNS: &str = "swissnum_hash, machine, incarnation, expires_at, bound_key, \
                             first_address, first_time, revoked_at, contested";

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

    /// Binds a claim to the first key that asks, as one compare-and-set that is durable when this
    /// returns. The same key gets the same answer ever after; a try by another one is recorded.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is bound then, and the claimer may ask again.
    pub fn claim(
        &self,
        hash: SwissnumHash,
        key: &str,
        address: Option<SocketAddr>,
        now: SystemTime,
    ) -> Result<ClaimOutcome, StoreError> {
        let now = milliseconds(now);
        let address = address.map(|address| address.to_string());
        self.write(|transaction, _| {
            let mut compare_and_set = transaction.prepare_cached(&format!(
                "UPDATE claims SET
                     first_address = CASE WHEN bound_key IS NULL THEN ?3 ELSE first_address END,
                     first_time = coalesce(first_time, ?4),
                     bound_key = coalesce(bound_key, ?2),
                     claimed = claimed + 1
                 WHERE swissnum_hash = ?1 AND revoked_at IS NULL
                     AND (bound_key = ?2 OR (bound_key IS NULL AND expires_at > ?4))
                 RETURNING {CLAIM_COLUMNS}, claimed"
            ))?;
            let mut rows = compare_and_set.query((hash.0, key, &address, now))?;
            if let Some(row) = rows.next()? {
                let claim = read_claim(row)?;
                return Ok(match row.get("claimed")? {
                    1i64 => ClaimOutcome::Bound(claim),
                    _ => ClaimOutcome::Again(claim),
                });
            }
            let refusal = match claim_by_hash(transaction, hash)? {
                None => Refusal::Unknown,
                Some(claim) if claim.revoked_at.is_some() => Refusal::Revoked,
                Some(claim) if claim.bound_key.is_none() => Refusal::Expired,
                Some(claim) => {
                    let contested = now < milliseconds(claim.expires_at);
                    record_alert(transaction, hash, key, address.as_deref(), now, contested)?;
                    Refusal::OtherKey
                }
            };
            Ok(ClaimOutcome::Refused(refusal))
        })
    }

    /// Counts a claim's time from the provider's acceptance of its machine; the first call counts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn accepted(&self, hash: SwissnumHash, now: SystemTime) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET accepted_at = ?2, expires_at = ?3, closes_at = ?4
                 WHERE swissnum_hash = ?1 AND accepted_at IS NULL AND bound_key IS NULL",
                (
                    hash.0,
                    milliseconds(now),
                    after(now, CLAIM_TTL),
                    after(now, CLAIM_LIFETIME_MAX),
                ),
            )?;
            Ok(())
        })
    }

    /// Extends a claim's time, since the provider says that it is still provisioning; never past
    /// [`CLAIM_LIFETIME_MAX`], and not once it has run out.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn provisioning(&self, hash: SwissnumHash, now: SystemTime) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET expires_at = max(expires_at, min(?3, closes_at))
                 WHERE swissnum_hash = ?1 AND bound_key IS NULL AND expires_at > ?2",
                (hash.0, milliseconds(now), after(now, CLAIM_TTL)),
            )?;
            Ok(())
        })
    }

    /// Returns the claims of one incarnation of a machine, in no order: more than one where a
    /// crash made a second invitation necessary.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn claims(&self, machine: &Address, incarnation: u64) -> Result<Vec<Claim>, StoreError> {
        self.read(|database| {
            let mut statement = database.connection.prepare_cached(&format!(
                "SELECT {CLAIM_COLUMNS} FROM claims WHERE machine = ?1 AND incarnation = ?2"
            ))?;
            let mut rows = statement.query((machine.to_string(), integer(incarnation)))?;
            let mut claims = Vec::new();
            while let Some(row) = rows.next()? {
                claims.push(read_claim(row)?);
            }
            Ok(claims)
        })
    }

    /// Withdraws one claim: nobody can use it any more, not even who claimed it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn revoke_claim(&self, hash: SwissnumHash, now: SystemTime) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET revoked_at = ?2
                 WHERE swissnum_hash = ?1 AND revoked_at IS NULL",
                (hash.0, milliseconds(now)),
            )?;
            Ok(())
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

    /// Returns all alerts, newest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn alerts(&self) -> Result<Vec<Alert>, StoreError> {
        self.read(|database| {
            let mut statement = database.connection.prepare_cached(
                "SELECT a.id, c.machine, c.incarnation, c.bound_key, c.first_address AS bound_at,
                     c.first_time AS bound_time, a.other_key, a.other_address, a.first_time,
                     a.last_time, a.count, a.contested, a.acknowledged_at
                 FROM alerts a JOIN claims c USING (swissnum_hash)
                 ORDER BY a.last_time DESC, a.id DESC",
            )?;
            let mut rows = statement.query([])?;
            let mut alerts = Vec::new();
            while let Some(row) = rows.next()? {
                alerts.push(read_alert(row)?);
            }
            Ok(alerts)
        })
    }

    /// Marks an alert as seen by an operator; returns whether there was one to mark.
    ///
    /// A machine is no longer contested when the last alert that made it so is seen.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn acknowledge(&self, alert: u64, now: SystemTime) -> Result<bool, StoreError> {
        self.write(|transaction, _| {
            let marked = transaction.execute(
                "UPDATE alerts SET acknowledged_at = ?2
                 WHERE id = ?1 AND acknowledged_at IS NULL",
                (integer(alert), milliseconds(now)),
            )?;
            transaction.execute(
                "UPDATE claims SET contested = 0 WHERE contested AND NOT EXISTS (
                     SELECT 1 FROM alerts a WHERE a.swissnum_hash = claims.swissnum_hash
                         AND a.contested AND a.acknowledged_at IS NULL)",
                [],
            )?;
            Ok(marked == 1)
        })
    }

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
                         join_confirmed = iif(locked_at IS NULL AND ?2 = join_offered,
                             join_offered, join_confirmed),
                         join_offered = iif(locked_at IS NULL AND ?2 = join_offered,
                             join_offered + 1, join_offered),
                         locked_at = iif(locked_at IS NULL
                             AND ?2 NOT IN (join_confirmed, join_offered), ?3, locked_at)
                     WHERE machine = ?1
                     RETURNING join_offered, locked_at",
                )?
                .query_row(
                    (machine.to_string(), integer(presented), milliseconds(now)),
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

    /// Lets a locked hob join again; returns whether it was locked.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn unlock(&self, machine: &Address) -> Result<bool, StoreError> {
        self.write(|transaction, _| {
            let unlocked = transaction.execute(
                "UPDATE hobs SET locked_at = NULL WHERE machine = ?1 AND locked_at IS NOT NULL",
                [machine.to_string()],
            )?;
            Ok(unlocked == 1)
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Database> {
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

/// Makes a claim durable, in the transaction that writes its machine's intent.
pub(crate) fn insert_claim(transaction: &Transaction<'_>, claim: &NewClaim) -> Result<(), Fault> {
    transaction
        .prepare_cached(
            "INSERT INTO claims
                 (swissnum_hash, machine, incarnation, minted_at, expires_at, closes_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            claim.swissnum_hash.0,
            claim.machine.to_string(),
            integer(claim.incarnation),
            milliseconds(claim.minted_at),
            after(claim.minted_at, CLAIM_TTL),
            after(claim.minted_at, CLAIM_LIFETIME_MAX),
        ))?;
    Ok(())
}

/// Returns a claim as it was minted, if it is still remembered.
pub(crate) fn new_claim(
    connection: &Connection,
    hash: SwissnumHash,
) -> Result<Option<NewClaim>, Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT machine, incarnation, minted_at FROM claims WHERE swissnum_hash = ?1",
    )?;
    let mut rows = statement.query([hash.0])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    Ok(Some(NewClaim {
        swissnum_hash: hash,
        machine: address(row, "machine")?,
        incarnation: count(row.get("incarnation")?)?,
        minted_at: time(row.get("minted_at")?)?,
    }))
}

fn claim_by_hash(
    transaction: &Transaction<'_>,
    hash: SwissnumHash,
) -> Result<Option<Claim>, Fault> {
    let mut statement = transaction.prepare_cached(&format!(
        "SELECT {CLAIM_COLUMNS} FROM claims WHERE swissnum_hash = ?1"
    ))?;
    let mut rows = statement.query([hash.0])?;
    rows.next()?.map(read_claim).transpose()
}

fn record_alert(
    transaction: &Transaction<'_>,
    hash: SwissnumHash,
    key: &str,
    address: Option<&str>,
    now: i64,
    contested: bool,
) -> Result<(), Fault> {
    if contested {
        transaction
            .prepare_cached("UPDATE claims SET contested = 1 WHERE swissnum_hash = ?1")?
            .execute([hash.0])?;
    }
    // A further try by a known key, or by any key beyond the limit, counts on an alert that is
    // there, and asks for the operator's eye again.
    let counted = transaction
        .prepare_cached(
            "UPDATE alerts SET count = count + 1, last_time = ?4, other_address = ?3,
                 contested = max(contested, ?5), acknowledged_at = NULL
             WHERE id = coalesce(
                 (SELECT id FROM alerts WHERE swissnum_hash = ?1 AND other_key = ?2),
                 (SELECT max(id) FROM alerts WHERE swissnum_hash = ?1 HAVING count(*) >= ?6))",
        )?
        .execute((hash.0, key, address, now, contested, ALERTS_PER_CLAIM_MAX))?;
    if counted == 0 {
        transaction
            .prepare_cached(
                "INSERT INTO alerts (swissnum_hash, other_key, other_address, first_time,
                     last_time, contested)
                 VALUES (?1, ?2, ?3, ?4, ?4, ?5)",
            )?
            .execute((hash.0, key, address, now, contested))?;
    }
    Ok(())
}

fn read_claim(row: &Row<'_>) -> Result<Claim, Fault> {
    Ok(Claim {
        swissnum_hash: SwissnumHash(row.get("swissnum_hash")?),
        machine: address(row, "machine")?,
        incarnation: count(row.get("incarnation")?)?,
        expires_at: time(row.get("expires_at")?)?,
        bound_key: row.get("bound_key")?,
        first_address: socket_address(row, "first_address")?,
        first_time: optional_time(row, "first_time")?,
        revoked_at: optional_time(row, "revoked_at")?,
        contested: row.get("contested")?,
    })
}

fn read_alert(row: &Row<'_>) -> Result<Alert, Fault> {
    Ok(Alert {
        id: count(row.get("id")?)?,
        machine: address(row, "machine")?,
        incarnation: count(row.get("incarnation")?)?,
        bound_key: row.get("bound_key")?,
        bound_address: socket_address(row, "bound_at")?,
        bound_time: optional_time(row, "bound_time")?,
        other_key: row.get("other_key")?,
        other_address: socket_address(row, "other_address")?,
        first_time: time(row.get("first_time")?)?,
        last_time: time(row.get("last_time")?)?,
        count: count(row.get("count")?)?,
        contested: row.get("contested")?,
        acknowledged_at: optional_time(row, "acknowledged_at")?,
    })
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

/// Returns a time some way after another, in milliseconds.
fn after(start: SystemTime, duration: Duration) -> i64 {
    let duration = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    milliseconds(start).saturating_add(duration)
}

const SEED: Cell<'static> = Cell {
    table: "boss",
    row: "1",
    column: "seed",
    version: 0,
};

fn presence_cell(machine: &str, incarnation: i64) -> Cell<'_> {
    Cell {
        table: "hobs",
        row: machine,
        column: "presence",
        version: incarnation,
    }
}
