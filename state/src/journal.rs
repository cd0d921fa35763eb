//! The journal: what was begun, before it is begun, and how it ended.

use std::time::SystemTime;

use gobs_model::{Address, Known, Name};
use rusqlite::{OptionalExtension, Transaction};

use crate::boss;
use crate::database::{Database, count, integer, milliseconds, time};
use crate::encode::Cell;
use crate::error::Fault;
use crate::seal::DataKey;
use crate::{NewClaim, Row, SwissnumHash};

/// How many finished entries are kept: enough to tell what the last runs did, and a few
/// megabytes at the most.
const FINISHED_KEPT: u32 = 10_000;
/// How many runs are kept, beside those that the journal still speaks of.
const RUNS_KEPT: u32 = 1_000;

/// What is about to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// What it is done to.
    pub address: Address,
    /// The step's name, such as `create` or `bind`.
    pub action: String,
    /// By which the effect can be found at the provider.
    pub token: Option<String>,
    /// The claim that becomes durable with the intent, where a new hob is invited.
    pub claim: Option<NewClaim>,
    /// Whatever recovery needs; sealed whole, and forgotten when the step ends.
    pub detail: serde_json::Value,
}

/// Proof that an intent is on disk: without one, nothing outside gobs is changed.
///
/// Dropped, it leaves the step in doubt, which is the truth.
#[derive(Debug, PartialEq)]
#[must_use = "a step that was started is in doubt until it is finished"]
pub struct Started {
    pub(crate) id: i64,
    pub(crate) intent: Intent,
}

impl Started {
    /// Returns what was begun.
    pub fn intent(&self) -> &Intent {
        &self.intent
    }

    /// Returns the number of the journal entry.
    pub fn id(&self) -> i64 {
        self.id
    }
}

/// A step that ended, and what it changed.
#[derive(Debug, PartialEq)]
pub struct Finished {
    /// The step.
    pub started: Started,
    /// How it ended.
    pub outcome: Outcome,
    /// What is true since; a failed step may change rows too.
    pub changes: Vec<RowChange>,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As intended.
    Done,
    /// Not as intended, and this is known for sure; says why.
    Failed(String),
}

/// A change of what is remembered.
#[derive(Clone, Debug, PartialEq)]
pub enum RowChange {
    /// Writes a row, whether or not there was one.
    PutRow(Box<Row>),
    /// Removes a row, if there is one.
    RemoveRow(Address),
    /// Writes an output, or removes it.
    PutOutput(Name, Option<Known>),
}

/// A step without a known end: the run that began it was cut short.
#[derive(Debug, PartialEq)]
pub struct Doubt {
    /// The step.
    pub started: Started,
    /// The number of the run that began it.
    pub run: u64,
    /// When it was begun.
    pub since: SystemTime,
}

/// One step of a run, as history remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it was done to.
    pub address: Address,
    /// The step's name.
    pub action: String,
    /// When it was begun.
    pub started_at: SystemTime,
    /// When and how it ended; nothing while it runs or is in doubt.
    pub ended: Option<(SystemTime, Outcome)>,
}

/// One run of a command that could change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Counts from 1.
    pub number: u64,
    /// The command's name, such as `apply`.
    pub command: String,
    /// When it began.
    pub started_at: SystemTime,
}

/// Writes intents; each is durable when the transaction is.
pub(crate) fn start(
    transaction: &Transaction<'_>,
    cells: &DataKey,
    run: Option<u64>,
    intents: Vec<Intent>,
) -> Result<Vec<Started>, Fault> {
    if intents.is_empty() {
        return Ok(Vec::new());
    }
    let run = integer(run.ok_or(Fault::NoRun)?);
    let now = milliseconds(SystemTime::now());
    // An entry's number is needed before it is written: its detail is sealed for it.
    let last = transaction
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'journal'")?
        .query_row([], |row| row.get(0))
        .optional()?
        .unwrap_or(0i64);
    let mut insert = transaction.prepare_cached(
        "INSERT INTO journal (id, run, address, action, token, claim, detail, started_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let ids = last.saturating_add(1)..;
    ids.zip(intents)
        .map(|(id, intent)| {
            if let Some(claim) = &intent.claim {
                boss::insert_claim(transaction, claim)?;
            }
            let detail =
                detail_cell(&id.to_string()).seal_json(cells, &intent.address, &intent.detail)?;
            insert.execute((
                id,
                run,
                intent.address.to_string(),
                &intent.action,
                &intent.token,
                intent.claim.as_ref().map(|claim| claim.swissnum_hash.0),
                detail,
                now,
            ))?;
            Ok(Started { id, intent })
        })
        .collect()
}

/// Writes how steps ended.
pub(crate) fn end(
    transaction: &Transaction<'_>,
    cells: &DataKey,
    finished: &[Finished],
) -> Result<(), Fault> {
    let now = milliseconds(SystemTime::now());
    let mut update = transaction.prepare_cached(
        "UPDATE journal SET ended_at = ?2, message = ?3, detail = NULL
         WHERE id = ?1 AND ended_at IS NULL",
    )?;
    for Finished {
        started, outcome, ..
    } in finished
    {
        let message = match outcome {
            Outcome::Done => None,
            // A provider's words may repeat what it was told, so they are sealed too.
            Outcome::Failed(why) => {
                let id = started.id.to_string();
                Some(message_cell(&id).seal(cells, why.as_bytes())?)
            }
        };
        if update.execute((started.id, now, message))? != 1 {
            return Err(Fault::AlreadyEnded(started.id));
        }
    }
    Ok(())
}

/// Returns the steps without a known end, oldest first.
pub(crate) fn in_doubt(database: &Database) -> Result<Vec<Doubt>, Fault> {
    let mut statement = database.connection.prepare_cached(
        "SELECT id, run, address, action, token, claim, detail, started_at FROM journal
         WHERE ended_at IS NULL ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut doubts = Vec::new();
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let address = row.get_ref(2)?.as_str().map_err(Fault::corrupt)?;
        let claim = match row.get(5)? {
            None => None,
            Some(hash) => boss::new_claim(&database.connection, SwissnumHash(hash))?,
        };
        let detail: Vec<u8> = row.get(6)?;
        let intent = Intent {
            address: address.parse().map_err(Fault::corrupt)?,
            action: row.get(3)?,
            token: row.get(4)?,
            claim,
            detail: detail_cell(&id.to_string()).open_json(&database.cells, &detail)?,
        };
        doubts.push(Doubt {
            started: Started { id, intent },
            run: count(row.get(1)?)?,
            since: time(row.get(7)?)?,
        });
    }
    Ok(doubts)
}

/// Returns the steps of one run, in the order in which they began.
pub(crate) fn history(database: &Database, run: u64) -> Result<Vec<Entry>, Fault> {
    let mut statement = database.connection.prepare_cached(
        "SELECT id, address, action, started_at, ended_at, message FROM journal
         WHERE run = ?1 ORDER BY id",
    )?;
    let mut rows = statement.query([integer(run)])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let ended = match row.get::<_, Option<i64>>(4)? {
            None => None,
            Some(ended_at) => {
                let outcome = match row.get::<_, Option<Vec<u8>>>(5)? {
                    None => Outcome::Done,
                    Some(message) => {
                        let id = row.get::<_, i64>(0)?.to_string();
                        let message = message_cell(&id).open(&database.cells, &message)?;
                        Outcome::Failed(String::from_utf8_lossy(&message).into_owned())
                    }
                };
                Some((time(ended_at)?, outcome))
            }
        };
        let address = row.get_ref(1)?.as_str().map_err(Fault::corrupt)?;
        entries.push(Entry {
            address: address.parse().map_err(Fault::corrupt)?,
            action: row.get(2)?,
            started_at: time(row.get(3)?)?,
            ended,
        });
    }
    Ok(entries)
}

/// Forgets what ended long ago.
pub(crate) fn compact(transaction: &Transaction<'_>) -> Result<(), Fault> {
    transaction.execute(
        "DELETE FROM journal WHERE ended_at IS NOT NULL AND id <= (
             SELECT id FROM journal WHERE ended_at IS NOT NULL
             ORDER BY id DESC LIMIT 1 OFFSET ?1)",
        [FINISHED_KEPT],
    )?;
    transaction.execute(
        "DELETE FROM runs WHERE number <= (
             SELECT number FROM runs ORDER BY number DESC LIMIT 1 OFFSET ?1)
         AND NOT EXISTS (SELECT 1 FROM journal WHERE run = number)",
        [RUNS_KEPT],
    )?;
    Ok(())
}

fn detail_cell(id: &str) -> Cell<'_> {
    Cell {
        table: "journal",
        row: id,
        column: "detail",
        version: 0,
    }
}

fn message_cell(id: &str) -> Cell<'_> {
    Cell {
        column: "message",
        ..detail_cell(id)
    }
}
