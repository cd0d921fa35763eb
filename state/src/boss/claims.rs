//! One-time claims, what they came to, and the alerts that refused ones leave.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use gobs_model::Address;
use rusqlite::{Connection, Row, Transaction};
use sha2::{Digest, Sha256};

use super::{BossStore, address, optional_time, socket_address};
use crate::database::{count, integer, milliseconds, time};
use crate::error::{Fault, StoreError};

/// How long a claim may be used after the provider accepted the machine, or was last seen
/// provisioning it: longer than a slow boot, shorter than user data lies about.
pub const CLAIM_TTL: Duration = Duration::from_secs(30 * 60);

/// The longest that provisioning can keep a claim open.
pub const CLAIM_LIFETIME_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// The SHA-256 of a swissnum: all of it that is ever stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwissnumHash(pub [u8; 32]);

impl SwissnumHash {
    /// Returns the hash of a swissnum.
    pub fn of(swissnum: &[u8]) -> Self {
        Self(Sha256::digest(swissnum).into())
    }
}

/// A one-time invitation that is about to be handed to a provider in user data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// By which it is found.
    pub swissnum_hash: SwissnumHash,
    /// The machine that it is for.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// When it was minted; the time to use it counts from here until the provider accepts.
    pub minted_at: SystemTime,
}

/// What a claim came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The key is bound now, and durably so.
    Bound(Claim),
    /// The key was bound before; it gets what it got then.
    Again(Claim),
    /// Not to be had by this key. The reason is for our own records: every refusal gets the same
    /// reply.
    Refused(Refusal),
}

/// Why a claim was refused; never sent to the claimer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such swissnum.
    Unknown,
    /// Nobody claimed it in time.
    Expired,
    /// It was withdrawn.
    Revoked,
    /// Another key claimed it; an alert was recorded.
    OtherKey,
}

/// A claim as it is remembered, for the life of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// By which it is found.
    pub swissnum_hash: SwissnumHash,
    /// The machine that it is for.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// Until when it can be claimed; once bound, this only tells a contest from a mere alert.
    pub expires_at: SystemTime,
    /// The designator of the key that claimed it.
    pub bound_key: Option<String>,
    /// From where it was claimed.
    pub first_address: Option<SocketAddr>,
    /// When it was claimed.
    pub first_time: Option<SystemTime>,
    /// When it was withdrawn.
    pub revoked_at: Option<SystemTime>,
    /// Whether another key tried within the time to claim: grants not yet delivered are held.
    pub contested: bool,
}

/// Something that an operator must see: another key tried a claim that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// For `ack`.
    pub id: u64,
    /// The machine whose claim it was.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// The designator of the key that has the claim.
    pub bound_key: String,
    /// From where the claim was made.
    pub bound_address: Option<SocketAddr>,
    /// When the claim was made.
    pub bound_time: Option<SystemTime>,
    /// The designator of the key that was refused.
    pub other_key: String,
    /// From where it tried last.
    pub other_address: Option<SocketAddr>,
    /// When it tried first.
    pub first_time: SystemTime,
    /// When it tried last.
    pub last_time: SystemTime,
    /// How often it tried.
    pub count: u64,
    /// Whether it tried while the claim was open, so that the machine is contested.
    pub contested: bool,
    /// When an operator acknowledged it.
    pub acknowledged_at: Option<SystemTime>,
}

/// How many alerts a claim may have: each is one foreign key, and a thief can make any number.
/// Beyond it, tries count on the newest.
const ALERTS_PER_CLAIM_MAX: u32 = 100;

const CLAIM_COLUMNS: &str = "swissnum_hash, machine, incarnation, expires_at, bound_key, \
                             first_address, first_time, revoked_at, contested";

impl BossStore {
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

    /// Counts a claim's time, usually [`CLAIM_TTL`], from the provider's acceptance of its machine;
    /// the first call counts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn accepted(
        &self,
        hash: SwissnumHash,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET accepted_at = ?2, expires_at = ?3, closes_at = ?4
                 WHERE swissnum_hash = ?1 AND accepted_at IS NULL AND bound_key IS NULL",
                (
                    hash.0,
                    milliseconds(now),
                    after(now, ttl.min(CLAIM_LIFETIME_MAX)),
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
    pub fn provisioning(
        &self,
        hash: SwissnumHash,
        now: SystemTime,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE claims SET expires_at = max(expires_at, min(?3, closes_at))
                 WHERE swissnum_hash = ?1 AND bound_key IS NULL AND expires_at > ?2",
                (hash.0, milliseconds(now), after(now, ttl)),
            )?;
            Ok(())
        })
    }

    /// Returns a claim, used or not; nothing where there is none with this hash.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn claim_of(&self, hash: SwissnumHash) -> Result<Option<Claim>, StoreError> {
        self.read(|database| claim_by_hash(&database.connection, hash))
    }

    /// Returns the machines, each with its incarnation, whose every claim ran out before anybody
    /// came. Some of them may never have been made.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn unclaimed(&self, now: SystemTime) -> Result<Vec<(Address, u64)>, StoreError> {
        self.read(|database| {
            let mut statement = database.connection.prepare_cached(
                "SELECT machine, incarnation FROM claims GROUP BY machine, incarnation
                 HAVING count(bound_key) = 0
                     AND max(iif(revoked_at IS NULL, expires_at, 0)) <= ?1",
            )?;
            let mut rows = statement.query([milliseconds(now)])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push((address(row, "machine")?, count(row.get("incarnation")?)?));
            }
            Ok(found)
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
}

/// Makes a claim durable, in the transaction that writes its machine's intent.
///
/// One that is there stays as it is: recovery may begin a step again with the claim it had.
///
/// Invitations of the machine that nobody has taken are withdrawn: what got them was not created,
/// or is about to end.
pub(crate) fn insert_claim(transaction: &Transaction<'_>, claim: &NewClaim) -> Result<(), Fault> {
    transaction
        .prepare_cached(
            "UPDATE claims SET revoked_at = ?3
             WHERE machine = ?1 AND swissnum_hash != ?2 AND bound_key IS NULL
                 AND revoked_at IS NULL",
        )?
        .execute((
            claim.machine.to_string(),
            claim.swissnum_hash.0,
            milliseconds(claim.minted_at),
        ))?;
    transaction
        .prepare_cached(
            "INSERT INTO claims
                 (swissnum_hash, machine, incarnation, minted_at, expires_at, closes_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
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

fn claim_by_hash(transaction: &Connection, hash: SwissnumHash) -> Result<Option<Claim>, Fault> {
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

/// Returns a time some way after another, in milliseconds.
fn after(start: SystemTime, duration: Duration) -> i64 {
    let duration = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    milliseconds(start).saturating_add(duration)
}
