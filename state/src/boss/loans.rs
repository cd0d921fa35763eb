//! Services that people have had for a while: a record that stays when they have them no longer.

use std::time::SystemTime;

use gobs_model::Address;

use super::{BossStore, address, optional_time};
use crate::database::{count, integer, milliseconds, time};
use crate::error::StoreError;

/// How many are kept: years of daily use, in a megabyte or two.
const LOANS_KEPT: u32 = 10_000;

/// A service that a person was given for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoanRow {
    /// The service.
    pub service: Address,
    /// Who had it, for people: `open by maria on laptop`.
    pub holder: String,
    /// Which grant to this holder.
    pub generation: u64,
    /// The designator of the person's key.
    pub key: String,
    /// When it was asked for.
    pub since: SystemTime,
    /// When it ends by itself, by the clock of the machine that gives it.
    pub expires: SystemTime,
    /// When it was taken back or refused; nothing where that is not known: then it ends, or has
    /// ended, at its time.
    pub ended: Option<SystemTime>,
}

impl BossStore {
    /// Writes that a service is about to be given to a person; it is on disk when this returns.
    ///
    /// The oldest are forgotten here, so that the record stays bounded.
    ///
    /// # Errors
    /// When the file cannot be written, or this holder had a grant of this generation.
    pub fn begin_loan(&self, loan: &LoanRow) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "INSERT INTO loans (service, holder, generation, key, since, expires, ended)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (
                    loan.service.to_string(),
                    &loan.holder,
                    integer(loan.generation),
                    &loan.key,
                    milliseconds(loan.since),
                    milliseconds(loan.expires),
                    loan.ended.map(milliseconds),
                ),
            )?;
            transaction.execute(
                "DELETE FROM loans WHERE id <= (SELECT max(id) FROM loans) - ?1",
                [LOANS_KEPT],
            )?;
            Ok(())
        })
    }

    /// Writes that a person's grant ended now, if it had not ended before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn end_loan(
        &self,
        holder: &str,
        generation: u64,
        ended: SystemTime,
    ) -> Result<(), StoreError> {
        self.write(|transaction, _| {
            transaction.execute(
                "UPDATE loans SET ended = ?3
                 WHERE holder = ?1 AND generation = ?2 AND ended IS NULL",
                (holder, integer(generation), milliseconds(ended)),
            )?;
            Ok(())
        })
    }

    /// Returns who was given a service for a while, newest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn loans(&self, service: &Address) -> Result<Vec<LoanRow>, StoreError> {
        self.read(|database| {
            let mut statement = database.connection.prepare_cached(
                "SELECT service, holder, generation, key, since, expires, ended FROM loans
                 WHERE service = ?1 ORDER BY id DESC",
            )?;
            let mut rows = statement.query([service.to_string()])?;
            let mut loans = Vec::new();
            while let Some(row) = rows.next()? {
                loans.push(LoanRow {
                    service: address(row, "service")?,
                    holder: row.get("holder")?,
                    generation: count(row.get("generation")?)?,
                    key: row.get("key")?,
                    since: time(row.get("since")?)?,
                    expires: time(row.get("expires")?)?,
                    ended: optional_time(row, "ended")?,
                });
            }
            Ok(loans)
        })
    }
}
