//! One connection to the state file: opening it, its format, and what it says of failures.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::error::{Fault, OpenError, StoreError};
use crate::filesystem::{self, TemporaryFile, create_private_directory, parent};
use crate::seal::{DataKey, KeyError};

/// `gobs` in ASCII: tells a state file from other databases.
const APPLICATION_ID: i64 = 0x676F_6273;

/// Each format's statements, in order; the format's number is its place here, from 1.
const MIGRATIONS: [&str; 2] = [
    include_str!("../schema/0001_initial.sql"),
    include_str!("../schema/0002_loans.sql"),
];
const FORMAT: i64 = MIGRATIONS.len() as i64;

/// Transactions take milliseconds; a process that is stopped for longer than this is reported.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// More than the number of distinct statements, so that none is prepared twice.
const STATEMENTS_CACHED: usize = 64;

/// A connection whose format and key were checked.
pub(crate) struct Database {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) cells: DataKey,
    pub(crate) lineage: String,
}

impl Database {
    /// Opens the state file for writing; makes it where there is none.
    pub(crate) fn open_writable(path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        let create = |source| OpenError::Create {
            path: path.into(),
            source,
        };
        let directory = parent(path);
        create_private_directory(directory).map_err(create)?;
        refuse_network(path)?;
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Asked again, since another process may have made the file and written to it.
                if wal_has_content(path) && !path.exists() {
                    return Err(OpenError::Leftover(path.into()));
                }
                // Made whole beside its place: SQLite does not let two processes wait for each
                // other while they turn one empty file into a WAL database.
                let fresh = TemporaryFile::create(directory).map_err(create)?;
                let made = Self::open_existing(&fresh.path, key)?.connection;
                fold_wal(&made, path)?;
                made.close().map_err(|(_, error)| at(path)(error))?;
                fresh.put_in_place(path).map_err(create)?;
            }
            Err(error) => return Err(create(error)),
            Ok(file) if file.is_file() && file.mode() & 0o077 != 0 => {
                // Copied or restored by hand; what cannot be tightened is reported when opened.
                let tightened = fs::set_permissions(path, Permissions::from_mode(0o600));
                tracing::debug!(?tightened, path = %path.display(), "state file mode");
            }
            Ok(_) => {}
        }
        refuse_empty(path)?;
        Self::open_existing(path, key)
    }

    fn open_existing(path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(at(path))?;
        let format = prepare(&connection, path)?;
        let store = at(path);
        let mode: String = connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .map_err(&store)?;
        if mode != "wal" {
            let fault = Fault::Io(format!("it stays in journal mode {mode}, not WAL"));
            return Err(fault.at(path).into());
        }
        connection
            .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
            .map_err(&store)?;
        if format < FORMAT {
            migrate(&mut connection, path, key)?;
        }
        Self::unlock(connection, path, key)
    }

    /// Opens the state file for reading, beside whoever writes it.
    pub(crate) fn open_readable(path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing(path.into()));
            }
            Err(error) => return Err(Fault::from(error).at(path).into()),
            Ok(_) => {}
        }
        refuse_empty(path)?;
        refuse_network(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags)
            .map_err(at(path))
            .and_then(|connection| Ok((prepare(&connection, path)?, connection)));
        let (format, connection) = match opened {
            Err(OpenError::Store(StoreError {
                fault: Fault::Unopenable | Fault::ReadOnly,
                ..
            })) if !wal_has_content(path) => {
                // A directory that cannot be written has no room for the shared memory that
                // readers of a WAL need. Without a WAL nobody writes, and the file is all.
                let flags = flags | OpenFlags::SQLITE_OPEN_URI;
                let connection =
                    Connection::open_with_flags(immutable_uri(path), flags).map_err(at(path))?;
                (prepare(&connection, path)?, connection)
            }
            opened => opened?,
        };
        if format == 0 {
            return Err(OpenError::Missing(path.into()));
        }
        Self::unlock(connection, path, key)
    }

    /// Writes in one transaction: all of it, durably, or nothing.
    ///
    /// The lock is taken at its beginning, since a transaction that reads and then writes fails
    /// at once where another has written meanwhile, whatever the busy timeout.
    pub(crate) fn write<T>(
        &mut self,
        body: impl FnOnce(&Transaction<'_>, &DataKey) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let Self {
            connection,
            path,
            cells,
            ..
        } = self;
        let run = || {
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = body(&transaction, cells)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|fault: Fault| fault.at(path))
    }

    /// Reads as of one moment.
    pub(crate) fn read<T>(
        &self,
        body: impl FnOnce(&Self) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let read = || {
            // Deferred: the first statement fixes the moment that all of them see.
            let transaction = self.connection.unchecked_transaction()?;
            let result = body(self)?;
            transaction.finish()?;
            Ok(result)
        };
        read().map_err(|fault: Fault| fault.at(&self.path))
    }

    /// Returns an error with the file's path.
    pub(crate) fn fail(&self, fault: Fault) -> StoreError {
        fault.at(&self.path)
    }

    fn unlock(connection: Connection, path: &Path, key: &DataKey) -> Result<Self, OpenError> {
        let (lineage, sealed): (String, Vec<u8>) = connection
            .query_row("SELECT lineage, cell_key FROM project", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .map_err(at(path))?;
        let cells = key
            .open_at(&cell_key_place(&lineage), &sealed)
            .map_err(|_| OpenError::WrongKey(path.into()))?;
        let cells = DataKey::from_bytes(&cells).ok_or_else(|| OpenError::WrongKey(path.into()))?;
        Ok(Self {
            connection,
            path: path.into(),
            cells,
            lineage,
        })
    }
}

/// Brings all that was written into the file itself, which is then whole without its WAL.
///
/// Closing does so too, but keeps silent about a disk that has no room for it.
fn fold_wal(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let is_busy = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            row.get::<_, bool>(0)
        })
        .map_err(at(path))?;
    match is_busy {
        true => Err(Fault::Busy.at(path).into()),
        false => Ok(()),
    }
}

/// Refuses a file without contents: gobs makes the file whole before it has its name, so this one
/// was emptied, and taking it for a new project would make every machine a second time.
fn refuse_empty(path: &Path) -> Result<(), OpenError> {
    match fs::metadata(path) {
        Ok(file) if file.len() == 0 => Err(Fault::Corrupt("it is empty".into()).at(path).into()),
        _ => Ok(()),
    }
}

/// Sets what every connection has, and returns the format; zero for an empty file.
fn prepare(connection: &Connection, path: &Path) -> Result<i64, OpenError> {
    let settings = "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;
                    PRAGMA temp_store = MEMORY;";
    let read = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let header = connection
        .busy_timeout(BUSY_TIMEOUT)
        .and_then(|()| connection.execute_batch(settings))
        .and_then(|()| {
            // One moment for all three: another process may be making the file just now.
            let transaction = connection.unchecked_transaction()?;
            let header = (
                read("PRAGMA application_id")?,
                read("PRAGMA user_version")?,
                read("SELECT count(*) FROM sqlite_schema")?,
            );
            transaction.finish()?;
            Ok(header)
        });
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    match header {
        Err(rusqlite::Error::SqliteFailure(failure, _))
            if failure.code == rusqlite::ErrorCode::NotADatabase =>
        {
            Err(OpenError::NotAState(path.into()))
        }
        Err(error) => Err(at(path)(error)),
        Ok((0, 0, 0)) => Ok(0),
        Ok((APPLICATION_ID, found @ 1.., _)) if found <= FORMAT => Ok(found),
        Ok((APPLICATION_ID, found @ 1.., _)) => Err(OpenError::Newer {
            path: path.into(),
            found,
            known: FORMAT,
        }),
        Ok(_) => Err(OpenError::NotAState(path.into())),
    }
}

/// Brings the file to this gobs' format, in one transaction.
fn migrate(connection: &mut Connection, path: &Path, key: &DataKey) -> Result<(), OpenError> {
    let store = at(path);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&store)?;
    // Another process may have been faster while this one waited.
    let found = transaction
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map_err(&store)?;
    let steps = usize::try_from(found)
        .ok()
        .and_then(|n| MIGRATIONS.get(n..));
    for statements in steps.unwrap_or_default() {
        transaction.execute_batch(statements).map_err(&store)?;
    }
    if found == 0 {
        let mut lineage = [0; 16];
        getrandom::fill(&mut lineage).map_err(|_| KeyError::Random)?;
        let lineage = HEXLOWER.encode(&lineage);
        let cell_key = DataKey::generate()?;
        let sealed = key
            .seal_at(&cell_key_place(&lineage), cell_key.bytes())
            .map_err(|error| Fault::from(error).at(path))?;
        let insert = "INSERT INTO project (id, lineage, cell_key) VALUES (1, ?1, ?2)";
        transaction
            .execute(insert, (&lineage, sealed.as_bytes()))
            .map_err(&store)?;
        transaction
            .pragma_update(None, "application_id", APPLICATION_ID)
            .map_err(&store)?;
    }
    transaction
        .pragma_update(None, "user_version", FORMAT)
        .map_err(&store)?;
    transaction.commit().map_err(&store)
}

fn cell_key_place(lineage: &str) -> [&[u8]; 2] {
    [b"cell-key", lineage.as_bytes()]
}

fn refuse_network(path: &Path) -> Result<(), OpenError> {
    match filesystem::network(parent(path)) {
        Ok(None) => Ok(()),
        Ok(Some(filesystem)) => Err(OpenError::Network {
            path: path.into(),
            filesystem,
        }),
        Err(error) => Err(Fault::from(error).at(path).into()),
    }
}

/// Returns whether commits may lie beside the file, not in it.
fn wal_has_content(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    fs::metadata(wal).is_ok_and(|wal| wal.len() > 0)
}

/// Returns the URI under which SQLite opens a file that nobody writes, without locks.
pub(crate) fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri.push_str("?immutable=1");
    uri
}

fn at(path: &Path) -> impl Fn(rusqlite::Error) -> OpenError {
    move |error| Fault::from(error).at(path).into()
}

/// Returns a count as SQLite has it.
pub(crate) fn integer(count: u64) -> i64 {
    // Counters begin at zero and go up by one; the bound is beyond reach.
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Returns a count that the file has.
pub(crate) fn count(integer: i64) -> Result<u64, Fault> {
    u64::try_from(integer).map_err(|_| Fault::corrupt("a negative count"))
}

/// Returns a time in milliseconds since 1970; what is before is 1970.
pub(crate) fn milliseconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// Returns the time of so many milliseconds since 1970.
pub(crate) fn time(milliseconds: i64) -> Result<SystemTime, Fault> {
    u64::try_from(milliseconds)
        .ok()
        .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since)))
        .ok_or_else(|| Fault::corrupt("an impossible time"))
}
