//! Machines on disk: each verb as steps that any later call goes on with.
//!
//! A record is written before what it promises is done, so a crash leaves either nothing or a
//! machine that can be found, and that the next call brings to where it was going.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gobs_model::{Change, Known, Value};
use gobs_provider::{CreateRequest, Error, Observed, Token, UpdateRequest};
use serde_json::json;

use crate::fault::{Ledger, Point, reach};
use crate::process;
use crate::record::{
    FORMAT, Phase, Place, Record, RecordError, now_ms, private_dir, remove_tree, rename, replace,
    shared_dir,
};

/// How much of a token names the runtime directory: 60 bits, short enough for socket paths.
const RUNTIME_NAME_CHARS: usize = 12;

/// What stands before the token in a machine's id.
const ID_PREFIX: &str = "dummy-";

/// The status of a machine whose agent does not run: nobody starts it again by itself.
pub(crate) const STOPPED: &str = "stopped";

/// The machines in one directory.
#[derive(Clone, Debug)]
pub(crate) struct Machines {
    pub(crate) root: PathBuf,
    pub(crate) agent: Vec<OsString>,
    pub(crate) runtime_root: PathBuf,
}

/// Returns the id of the machine that was created under this token.
pub(crate) fn id_of(token: &Token) -> String {
    format!("{ID_PREFIX}{token}")
}

fn token_of(id: &str) -> Result<Token, Error> {
    id.strip_prefix(ID_PREFIX)
        .map(|text| Token(text.into()))
        .ok_or_else(|| Error::rejected(format!("{id:?} is not the id of a dummy machine")))
}

impl Machines {
    pub(crate) fn create(
        &self,
        request: &CreateRequest,
        crash: Option<Point>,
    ) -> Result<Observed, Error> {
        let token = &request.token;
        let place = Place::new(&self.root, token)?;
        let has_agent = request.user_data.is_some();
        self.check(&request.wanted, has_agent)?;
        let _lock = place.lock()?;
        if let Some(record) = place.load()? {
            if record.phase == Phase::Deleting {
                return Err(Error::rejected(format!(
                    "{} is being deleted",
                    id_of(token)
                )));
            }
            return self.revive(&place, record, crash);
        }
        place.sweep()?;
        let record = Record {
            format: FORMAT,
            token: token.clone(),
            address: request.address.clone(),
            created_ms: now_ms(),
            wanted: readable(&request.wanted)?,
            phase: Phase::Launching,
            has_agent,
            agent: None,
            last_update: None,
        };
        let stage = || {
            private_dir(&place.staging)?;
            private_dir(&place.staging.join("logs"))?;
            if let Some(data) = &request.user_data {
                replace(&place.staging.join("user-data"), data.0.as_bytes())?;
            }
            Place::store(&place.staging, &record)
        };
        let staged = stage().and_then(|()| {
            reach(crash, Point::Staged);
            rename(&place.staging, &place.dir)
        });
        if let Err(error) = staged {
            // The machine may exist if only the last sync failed, so nothing is taken back then.
            if place.dir.exists() {
                return Err(Error::InDoubt(error.to_string()));
            }
            remove_tree(&place.staging)?;
            return Err(error.into());
        }
        reach(crash, Point::Placed);
        let record = self.settle(&place, record, crash)?;
        record.map_or_else(|| Err(vanished(token)), |it| Ok(self.observe(&place, &it)))
    }

    /// Returns the machine and its record; one that was left unfinished is finished first.
    pub(crate) fn find(&self, token: &Token) -> Result<Option<(Record, Observed)>, Error> {
        let place = Place::new(&self.root, token)?;
        match place.load()? {
            None if !place.is_littered() => return Ok(None),
            Some(record) if record.phase == Phase::Settled => {
                let observed = self.observe(&place, &record);
                return Ok(Some((record, observed)));
            }
            _ => {}
        }
        let _lock = place.lock()?;
        place.sweep()?;
        let Some(record) = place.load()? else {
            return Ok(None);
        };
        // What cannot be finished now is still there, and shown as far as it got.
        let seen = match self.settle(&place, record, None) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(%error, id = id_of(token), "the machine is not what it should be");
                place.load()?
            }
        };
        Ok(seen.map(|record| {
            let observed = self.observe(&place, &record);
            (record, observed)
        }))
    }

    pub(crate) fn read(&self, id: &str) -> Result<Option<Observed>, Error> {
        Ok(self.find(&token_of(id)?)?.map(|(_, observed)| observed))
    }

    pub(crate) fn update(
        &self,
        request: &UpdateRequest,
        crash: Option<Point>,
    ) -> Result<Observed, Error> {
        let token = token_of(&request.before.id)?;
        let place = Place::new(&self.root, &token)?;
        let _lock = place.lock()?;
        let Some(mut record) = place.load()?.filter(|it| it.phase != Phase::Deleting) else {
            return Err(Error::rejected(format!("{} is gone", request.before.id)));
        };
        if record.last_update.as_ref() == Some(&request.token) {
            return self.revive(&place, record, crash);
        }
        let rebuild = request.change == Change::Rebuild;
        let has_agent = if rebuild {
            request.user_data.is_some()
        } else {
            record.has_agent
        };
        self.check(&request.wanted, has_agent)?;
        for (name, change) in [("zone", Change::Replace), ("image", Change::Rebuild)] {
            let (was, is) = (record.wanted.get(name), request.wanted.get(name));
            let same = was.unwrap_or(&Value::NULL).same(is.unwrap_or(&Value::NULL));
            if !same && change > request.change {
                return Err(Error::Rejected {
                    message: format!("a change of {name} costs more than was planned"),
                    attribute: Some(name.into()),
                });
            }
        }
        if request.change > Change::Rebuild {
            return Err(Error::rejected(
                "another machine is a create, not an update",
            ));
        }
        // What an earlier call left undone comes first: its record would be lost otherwise.
        let Some(settled) = self.settle(&place, record, None)? else {
            return Err(vanished(&token));
        };
        record = settled;
        if rebuild {
            // An empty one is a disk without an agent; the file itself says that it is wanted.
            let text = request.user_data.as_ref().map_or("", |data| &data.0);
            replace(&place.dir.join("next-user-data"), text.as_bytes())?;
        }
        let was = std::mem::replace(&mut record.wanted, readable(&request.wanted)?);
        record.has_agent = has_agent;
        record.last_update = Some(request.token.clone());
        record.phase = if rebuild {
            Phase::Rebuilding
        } else if was.get("run") == record.wanted.get("run") {
            Phase::Settled
        } else {
            Phase::Describing
        };
        Place::store(&place.dir, &record).map_err(|error| Error::InDoubt(error.to_string()))?;
        reach(
            crash,
            if rebuild {
                Point::Accepted
            } else {
                Point::Recorded
            },
        );
        self.revive(&place, record, crash)
    }

    pub(crate) fn delete(&self, id: &str, crash: Option<Point>) -> Result<(), Error> {
        let token = token_of(id)?;
        let place = Place::new(&self.root, &token)?;
        // What cannot be looked at is not gone.
        let looked = place.root.try_exists();
        if !looked.map_err(RecordError::io("look at", &place.root))? {
            return Ok(());
        }
        let _lock = place.lock()?;
        place.sweep()?;
        if let Some(mut record) = place.load()? {
            record.phase = Phase::Deleting;
            Place::store(&place.dir, &record).map_err(|error| Error::InDoubt(error.to_string()))?;
            reach(crash, Point::Doomed);
            self.settle(&place, record, crash)?;
        }
        Ok(())
    }

    pub(crate) fn list(&self) -> Result<Vec<(Record, Observed)>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RecordError::io("read", &self.root)(error).into()),
        };
        let mut seen = Vec::new();
        for entry in entries {
            let entry = entry.map_err(RecordError::io("read", &self.root))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let Ok(place) = Place::new(&self.root, &Token(name.into())) else {
                continue;
            };
            if let Some(record) = place.load()? {
                let observed = self.observe(&place, &record);
                seen.push((record, observed));
            }
        }
        seen.sort_by(|(a, _), (b, _)| a.token.cmp(&b.token));
        Ok(seen)
    }

    /// Brings a machine to what its record says, and starts its agent where that has ended.
    fn revive(
        &self,
        place: &Place,
        mut record: Record,
        crash: Option<Point>,
    ) -> Result<Observed, Error> {
        let token = record.token.clone();
        if record.phase == Phase::Settled && !is_up(place, &record) {
            record.phase = Phase::Launching;
        }
        let record = self
            .settle(place, record, crash)?
            .ok_or_else(|| vanished(&token))?;
        Ok(self.observe(place, &record))
    }

    /// Goes through the phases until the machine is settled, or gone. The lock is held.
    fn settle(
        &self,
        place: &Place,
        mut record: Record,
        crash: Option<Point>,
    ) -> Result<Option<Record>, Error> {
        // The record stands already: whatever goes wrong now, it is not known how far it got.
        let doubt = |error: RecordError| Error::InDoubt(error.to_string());
        let token = record.token.clone();
        let dir = &place.dir;
        let stop = |record: &Record| {
            process::stop(&self.agent, dir, &token, record.agent.as_ref())
                .map_err(|error| Error::InDoubt(format!("{}: {error}", id_of(&token))))
        };
        loop {
            match record.phase {
                Phase::Settled => return Ok(Some(record)),
                Phase::Describing => {
                    self.describe(dir, &record).map_err(doubt)?;
                    reach(crash, Point::Described);
                    match process::agent(dir, record.agent.as_ref()) {
                        Some(agent) => {
                            process::reload(agent);
                            record.phase = Phase::Settled;
                        }
                        None => record.phase = Phase::Launching,
                    }
                }
                Phase::Rebuilding => {
                    stop(&record)?;
                    wipe(dir).map_err(doubt)?;
                    remove_tree(&self.runtime_dir(&token)).map_err(doubt)?;
                    reach(crash, Point::Wiped);
                    record.agent = None;
                    record.phase = Phase::Launching;
                }
                Phase::Launching => {
                    self.launch(place, &mut record, crash)?;
                    record.phase = Phase::Settled;
                }
                Phase::Deleting => {
                    stop(&record)?;
                    remove_tree(&self.runtime_dir(&token)).map_err(doubt)?;
                    reach(crash, Point::Stopped);
                    rename(dir, &place.gone).map_err(doubt)?;
                    reach(crash, Point::Displaced);
                    remove_tree(&place.gone).map_err(doubt)?;
                    Ledger::Directory(self.faults_dir()).forget(&record.address.to_string());
                    return Ok(None);
                }
            }
            Place::store(dir, &record).map_err(doubt)?;
            if record.phase == Phase::Settled {
                reach(crash, Point::Settled);
            }
        }
    }

    fn launch(
        &self,
        place: &Place,
        record: &mut Record,
        crash: Option<Point>,
    ) -> Result<(), Error> {
        let doubt = |error: RecordError| Error::InDoubt(error.to_string());
        let dir = &place.dir;
        // Only a rebuild leaves one, and not twice: the agent erases what it has used.
        let next = dir.join("next-user-data");
        if next.exists() {
            if record.has_agent {
                rename(&next, &dir.join("user-data")).map_err(doubt)?;
            } else {
                fs::remove_file(&next)
                    .map_err(RecordError::io("remove", &next))
                    .map_err(doubt)?;
            }
        }
        record.agent = None;
        if !record.has_agent {
            return Ok(());
        }
        private_dir(&dir.join("logs")).map_err(doubt)?;
        shared_dir(&self.runtime_root).map_err(doubt)?;
        private_dir(&self.runtime_dir(&record.token)).map_err(doubt)?;
        self.describe(dir, record).map_err(doubt)?;
        let token = &record.token;
        let running =
            process::agent(dir, None).or_else(|| process::find_agent(&self.agent, dir, token));
        let agent = match running {
            Some(agent) => agent,
            None => process::launch(&self.agent, dir, token).map_err(|error| {
                Error::InDoubt(format!(
                    "cannot start the agent of {}: {error}",
                    id_of(token)
                ))
            })?,
        };
        reach(crash, Point::Launched);
        record.agent = Some(agent.into());
        Ok(())
    }

    /// Writes what the agent reads.
    fn describe(&self, dir: &Path, record: &Record) -> Result<(), RecordError> {
        let run: Vec<_> = record
            .wanted
            .get("run")
            .and_then(Value::as_elements)
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let description = json!({
            "format": FORMAT,
            "token": record.token.0,
            "runtime": self.runtime_dir(&record.token),
            "run": run,
        });
        replace(
            &dir.join("machine.json"),
            format!("{description:#}\n").as_bytes(),
        )
    }

    fn check(&self, wanted: &Known, has_agent: bool) -> Result<(), Error> {
        let runs = wanted
            .get("run")
            .and_then(Value::as_elements)
            .is_some_and(|it| !it.is_empty());
        if runs && !has_agent {
            return Err(Error::Rejected {
                message: "a machine without a hob has nothing to start programs with".into(),
                attribute: Some("run".into()),
            });
        }
        match self.agent.first().map(Path::new) {
            Some(agent) if agent.is_absolute() && !agent.exists() => Err(Error::rejected(format!(
                "the agent {} does not exist",
                agent.display()
            ))),
            None => Err(Error::rejected("no agent was named")),
            Some(_) => Ok(()),
        }
    }

    fn observe(&self, place: &Place, record: &Record) -> Observed {
        let status = match record.phase {
            Phase::Deleting => "deleting",
            Phase::Rebuilding => "rebuilding",
            _ if is_up(place, record) => "running",
            _ => STOPPED,
        };
        let directory = Value::from(place.dir.display().to_string());
        observed(&id_of(&record.token), &record.wanted, status, directory)
    }

    fn runtime_dir(&self, token: &Token) -> PathBuf {
        let text = &token.0;
        self.runtime_root
            .join(text.get(..RUNTIME_NAME_CHARS).unwrap_or(text))
    }

    /// Returns where it is remembered which faults have happened.
    pub(crate) fn faults_dir(&self) -> PathBuf {
        self.root.join(".faults")
    }

    /// Removes the directories that nothing is left in; others may be making machines meanwhile.
    pub(crate) fn tidy(&self) {
        // Each fails where something is left, which is what this asks.
        let _ = fs::remove_dir(self.faults_dir());
        let _ = fs::remove_dir(&self.root);
        let _ = fs::remove_dir(&self.runtime_root);
    }
}

/// Returns what gobs sees of a machine.
pub(crate) fn observed(id: &str, wanted: &Known, status: &str, directory: Value) -> Observed {
    let computed = [
        ("id", Value::from(id)),
        ("address", "127.0.0.1".into()),
        ("directory", directory),
        ("status", status.into()),
    ];
    let entries = wanted.value().as_entries().into_iter().flatten();
    let set = entries
        .filter(|(name, _)| &***name != "password")
        .map(|(name, value)| (name.clone(), value.clone()));
    let computed = computed.map(|(name, value)| (name.into(), value));
    let attributes = Known::try_from(Value::object(set.chain(computed)));
    Observed {
        id: id.into(),
        attributes: attributes.unwrap_or_else(|_| Known::empty()),
    }
}

/// Returns what can be read back: all but the password.
fn readable(wanted: &Known) -> Result<Known, Error> {
    let entries = wanted.value().as_entries().into_iter().flatten();
    let set = entries
        .filter(|(name, _)| &***name != "password")
        .map(|(name, value)| (name.clone(), value.clone()));
    Known::try_from(Value::object(set)).map_err(|error| Error::rejected(error.to_string()))
}

/// Empties a machine's directory, but for what the provider itself needs, and the logs.
fn wipe(dir: &Path) -> Result<(), RecordError> {
    const KEPT: &[&str] = &["record.json", "next-user-data", "logs"];
    let failed = |path: &Path| RecordError::io("wipe", path.to_owned());
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let entry = entry.map_err(failed(dir))?;
        if KEPT.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|it| it.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(failed(&path))?;
    }
    Ok(())
}

fn is_up(place: &Place, record: &Record) -> bool {
    !record.has_agent || process::agent(&place.dir, record.agent.as_ref()).is_some()
}

fn vanished(token: &Token) -> Error {
    Error::InDoubt(format!("{} went away meanwhile", id_of(token)))
}
