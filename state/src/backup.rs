//! Backups: one before each apply, the last few kept beside the state file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::Reader;
use crate::database::{immutable_uri, milliseconds};
use crate::error::{Fault, StoreError};
use crate::filesystem::create_private_directory;
use crate::store::quick_check;

/// How many backups are kept: enough to go back past a bad day.
pub const BACKUPS_KEPT: usize = 10;

const PREFIX: &str = "state-";
const SUFFIX: &str = ".db";
const UNFINISHED: &str = ".unfinished";

impl Reader {
    /// Copies the state file into the directory, checks the copy, and removes the oldest backups.
    /// Returns the copy's path.
    ///
    /// To restore one, while nothing runs: move the state file away with its `-wal` and `-shm`
    /// files (a WAL of the old file would damage the new one), and copy the backup to its place.
    ///
    /// # Errors
    /// When the copy cannot be made or does not hold; no earlier backup is removed then.
    pub fn backup(&self, directory: &Path, now: SystemTime) -> Result<PathBuf, StoreError> {
        let at_directory = |error: io::Error| Fault::from(error).at(directory);
        create_private_directory(directory).map_err(at_directory)?;
        // Left by a process that was killed while it copied.
        for unfinished in listed(directory, UNFINISHED).map_err(at_directory)? {
            fs::remove_file(unfinished).map_err(at_directory)?;
        }
        // Thirteen digits of milliseconds last until 2286, so that names sort by time.
        let name = format!("{PREFIX}{:013}{SUFFIX}", milliseconds(now));
        let path = directory.join(&name);
        let fresh = directory.join(format!("{name}{UNFINISHED}"));
        let copied = self.copy_to(&fresh).and_then(|()| {
            fs::rename(&fresh, &path)?;
            File::open(directory)?.sync_all()?;
            Ok(())
        });
        if let Err(fault) = copied {
            // What is left of it is removed by the next backup at the latest.
            let _ = fs::remove_file(&fresh);
            return Err(fault.at(&path));
        }
        let mut backups = listed(directory, SUFFIX).map_err(at_directory)?;
        backups.sort();
        let surplus = backups.len().saturating_sub(BACKUPS_KEPT);
        for old in backups.into_iter().take(surplus) {
            fs::remove_file(old).map_err(at_directory)?;
        }
        Ok(path)
    }

    fn copy_to(&self, path: &Path) -> Result<(), Fault> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let step = Backup::new(&self.database.connection, &mut copy)?.step(-1)?;
        if step != StepResult::Done {
            return Err(Fault::Busy);
        }
        copy.close().map_err(|(_, error)| error)?;
        file.sync_all()?;
        self.verify(path)
    }

    /// Checks that a copy is whole and of this project.
    fn verify(&self, path: &Path) -> Result<(), Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let copy = Connection::open_with_flags(immutable_uri(path), flags)?;
        if let Some(finding) = quick_check(&copy)?.first() {
            return Err(Fault::corrupt(finding));
        }
        let lineage: String =
            copy.query_row("SELECT lineage FROM project", [], |row| row.get(0))?;
        if lineage == self.database.lineage {
            Ok(())
        } else {
            Err(Fault::corrupt("the copy is of another project"))
        }
    }
}

fn listed(directory: &Path, suffix: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(suffix));
        if ours {
            found.push(entry.path());
        }
    }
    Ok(found)
}
