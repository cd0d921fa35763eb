//! The state file as the rest of gobs sees it: one writer, any number of readers.

use std::ops::Deref;
use std::path::Path;
use std::time::SystemTime;

use rusqlite::Connection;

use crate::database::{Database, count, milliseconds, time};
use crate::error::{Fault, OpenError, StoreError};
use crate::journal::{self, Doubt, Entry, Finished, Intent, Run, Started};
use crate::lock::Lock;
use crate::seal::DataKey;
use crate::snapshot::{self, Snapshot};

/// Reads the state file, beside whoever writes it; takes no lock that a writer waits for.
pub struct Reader {
    pub(crate) database: Database,
}

/// Reads and writes rows, outputs and the journal. There is one, since it holds the lock.
pub struct Store {
    reader: Reader,
    run: Option<u64>,
    commits: u64,
    crash: Option<CrashAt>,
    _lock: Lock,
}

/// Where a test of crash safety wants this process to die, as by SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashAt {
    /// Before the commit of this number, counted from 1: effects are done, and not yet written.
    Before(u64),
    /// After the commit of this number: intents are written, and nothing of them is done.
    After(u64),
    /// When hobs have done this many things for it: an effect is half done. Not the store's affair.
    Call(u64),
}

impl CrashAt {
    /// Returns after how many things that hobs did.
    pub fn calls(self) -> Option<u64> {
        match self {
            Self::Call(calls) => Some(calls),
            Self::Before(_) | Self::After(_) => None,
        }
    }
}

impl Reader {
    /// Opens the state file for reading.
    ///
    /// # Errors
    /// [`OpenError::Missing`] where nothing was applied yet, and whatever is wrong with the file.
    pub fn open(path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        let database = Database::open_readable(path, key)?;
        Ok(Self { database })
    }

    /// Returns the path of the state file.
    pub fn path(&self) -> &Path {
        &self.database.path
    }

    /// Returns the project's name for life.
    pub fn lineage(&self) -> &str {
        &self.database.lineage
    }

    /// Returns everything that is remembered, as of one moment.
    ///
    /// # Errors
    /// When the file cannot be read, or holds what gobs did not write.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.database.read(snapshot::load)
    }

    /// Returns the steps without a known end, oldest first.
    ///
    /// # Errors
    /// As for [`snapshot`](Self::snapshot).
    pub fn in_doubt(&self) -> Result<Vec<Doubt>, StoreError> {
        self.database.read(journal::in_doubt)
    }

    /// Returns the runs that are still remembered, newest first.
    ///
    /// # Errors
    /// As for [`snapshot`](Self::snapshot).
    pub fn runs(&self) -> Result<Vec<Run>, StoreError> {
        self.database.read(|database| {
            let mut statement = database
                .connection
                .prepare_cached("SELECT number, command, started_at FROM runs ORDER BY 1 DESC")?;
            let mut rows = statement.query([])?;
            let mut runs = Vec::new();
            while let Some(row) = rows.next()? {
                runs.push(Run {
                    number: count(row.get(0)?)?,
                    command: row.get(1)?,
                    started_at: time(row.get(2)?)?,
                });
            }
            Ok(runs)
        })
    }

    /// Returns what one run did, in the order in which it was begun.
    ///
    /// # Errors
    /// As for [`snapshot`](Self::snapshot).
    pub fn history(&self, run: u64) -> Result<Vec<Entry>, StoreError> {
        self.database
            .read(|database| journal::history(database, run))
    }

    /// Returns what SQLite's own check finds wrong with the file; nothing where it is sound.
    /// Reads the whole file.
    ///
    /// # Errors
    /// When the file cannot be read at all.
    pub fn check(&self) -> Result<Vec<String>, StoreError> {
        quick_check(&self.database.connection).map_err(|fault| self.database.fail(fault))
    }
}

/// Returns what is wrong with a database, by `PRAGMA quick_check`.
pub(crate) fn quick_check(connection: &Connection) -> Result<Vec<String>, Fault> {
    let mut statement = connection.prepare("PRAGMA quick_check")?;
    let findings = statement
        .query_map([], |row| row.get::<_, String>(0))?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(findings.into_iter().filter(|text| text != "ok").collect())
}

impl Store {
    /// Opens the state file for writing; makes it where there is none.
    ///
    /// # Errors
    /// Whatever is wrong with the file, its directory or the key.
    pub fn open(path: &Path, key: &DataKey, lock: Lock) -> Result<Self, OpenError> {
        let database = Database::open_writable(path, key)?;
        Ok(Self {
            reader: Reader { database },
            run: None,
            commits: 0,
            crash: None,
            _lock: lock,
        })
    }

    /// Begins a run: what is committed from now on belongs to it. Returns its number.
    ///
    /// Old journal entries and runs are forgotten here, so that history stays bounded.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin_run(&mut self, command: &str, started_at: SystemTime) -> Result<u64, StoreError> {
        let number = self.reader.database.write(|transaction, _| {
            transaction.execute(
                "INSERT INTO runs (command, started_at) VALUES (?1, ?2)",
                (command, milliseconds(started_at)),
            )?;
            let number = count(transaction.last_insert_rowid())?;
            transaction.execute("UPDATE project SET generation = generation + 1", [])?;
            journal::compact(transaction)?;
            Ok(number)
        })?;
        self.run = Some(number);
        Ok(number)
    }

    /// Writes how steps ended, what that changed, and which steps begin, in one transaction.
    ///
    /// When it returns, all of it is on disk. When it fails, none of it is: the finished steps
    /// stay in doubt, and the next run settles them.
    ///
    /// # Errors
    /// When the file cannot be written, a step has ended before, or something cannot be stored.
    pub fn commit(
        &mut self,
        finished: Vec<Finished>,
        starting: Vec<Intent>,
    ) -> Result<Vec<Started>, StoreError> {
        self.commits += 1;
        self.crash_if(CrashAt::Before(self.commits));
        let run = self.run;
        let started = self.reader.database.write(|transaction, cells| {
            let changes = finished.iter().flat_map(|finished| &finished.changes);
            snapshot::write(transaction, cells, changes)?;
            journal::end(transaction, cells, &finished)?;
            journal::start(transaction, cells, run, starting)
        })?;
        self.crash_if(CrashAt::After(self.commits));
        Ok(started)
    }

    /// Kills this process at a commit to come, for tests of crash safety.
    pub fn crash_at(&mut self, point: Option<CrashAt>) {
        self.crash = point;
    }

    fn crash_if(&self, point: CrashAt) {
        if self.crash == Some(point) {
            use rustix::process::{Signal, getpid, kill_process};
            // No destructor may run, as none would.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}

impl Deref for Store {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("path", &self.database.path)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.database.path)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn store(directory: &tempfile::TempDir) -> (Store, DataKey) {
        let key = DataKey::generate().expect("a key");
        let lock = Lock::acquire(&directory.path().join("lock"), "test", SystemTime::now());
        let path = directory.path().join("state.db");
        let store = Store::open(&path, &key, lock.expect("free")).expect("a state file");
        (store, key)
    }

    fn intent(detail: &str) -> Intent {
        Intent {
            address: "machine.a".parse().expect("an address"),
            action: "create".into(),
            token: None,
            claim: None,
            detail: json!(detail),
        }
    }

    #[test]
    fn a6_every_commit_is_synced() {
        let directory = tempfile::tempdir().expect("a directory");
        let (store, key) = store(&directory);
        let boss = Database::open_writable(store.path(), &key).expect("a state file");
        for connection in [&store.database.connection, &boss.connection] {
            let pragma = |name: &str| -> String {
                let text = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
                connection
                    .query_row(&text, [], |row| row.get(0))
                    .expect("a pragma")
            };
            let full = "2";
            assert_eq!(pragma("synchronous"), full);
            assert_eq!(pragma("journal_mode"), "wal");
            assert_eq!(pragma("foreign_keys"), "1");
        }
    }

    #[test]
    fn a9_a_full_disk_loses_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut store, _) = store(&directory);
        let _ = store.begin_run("apply", SystemTime::now()).expect("a run");
        let kept = store
            .commit(Vec::new(), vec![intent("x")])
            .expect("committed");
        let limit = |store: &Store, pages: i64| {
            let connection = &store.database.connection;
            let set = format!("PRAGMA max_page_count = {pages}");
            connection
                .query_row(&set, [], |row| row.get::<_, i64>(0))
                .expect("a pragma");
        };
        // SQLite answers a limit that is reached as it answers a disk that is full.
        limit(&store, 1);
        let large = "x".repeat(100_000);
        let error = store.commit(Vec::new(), vec![intent("y"), intent(&large)]);
        let error = error.expect_err("full");
        assert!(matches!(error.fault, Fault::DiskFull), "{error}");
        assert!(
            error
                .to_string()
                .contains("the disk is full; nothing was lost"),
            "{error}"
        );
        let in_doubt = |store: &Store| {
            let doubts = store.in_doubt().expect("readable");
            doubts
                .into_iter()
                .map(|doubt| doubt.started)
                .collect::<Vec<_>>()
        };
        assert_eq!(in_doubt(&store), kept);
        limit(&store, 1_000_000);
        let more = store
            .commit(Vec::new(), vec![intent(&large)])
            .expect("committed");
        assert_eq!(
            in_doubt(&store),
            kept.into_iter().chain(more).collect::<Vec<_>>()
        );
        assert!(store.check().expect("readable").is_empty());
    }

    #[test]
    fn a9_a_file_that_stays_locked_is_reported() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut store, _) = store(&directory);
        let other = Connection::open(store.path()).expect("a connection");
        other.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let connection = &store.database.connection;
        connection.busy_timeout(Duration::ZERO).expect("set");
        let error = store
            .begin_run("apply", SystemTime::now())
            .expect_err("locked");
        assert!(matches!(error.fault, Fault::Busy), "{error}");
        assert_eq!(store.snapshot().expect("readers do not wait").serial, 0);
        other.execute_batch("ROLLBACK").expect("unlocked");
        assert_eq!(
            store.begin_run("apply", SystemTime::now()).expect("free"),
            1
        );
    }
}
