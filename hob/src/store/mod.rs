//! What the machine's half keeps across reboots: its key, and one file with everything else.
//!
//! A change is on disk when [`Store::update`] returns: the whole file is written beside the old
//! one, synced, and put in its place. There is no database, since the hob has to stay small, and
//! what it keeps is small too.

mod dying;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ocapn::Sturdyref;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::layout::Layout;
use crate::protocol::{Expose, ServiceSpec};

pub use rows::{BindingRow, GrantRefused, GrantRow, LeavingRow, ProgramRow, Span};

/// The version of the file.
const FORMAT: u32 = 1;

/// Bytes of the key file: an Ed25519 seed.
const SEED_SIZE: usize = 32;

/// Everything but the key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    format: u32,
    /// The machine's address in the project; empty before the first registration.
    pub machine: String,
    /// The names that the boss announced at the last registration.
    pub expects: Vec<String>,
    /// How those are exposed before they are granted.
    #[serde(default)]
    pub exposes: BTreeMap<String, Vec<Expose>>,
    /// Where the hob listens, with the port that it has chosen.
    pub listen: String,
    /// What it tells others to dial; empty: where it listens.
    pub advertise: Vec<String>,
    /// What the boss gave to be presented next time.
    pub join_sequence: u64,
    /// The presence beside the boss: the one-time name before the claim, then the one that is
    /// bound to the key.
    #[serde(with = "optional_sturdyref")]
    pub presence: Option<Sturdyref>,
    /// Whether `presence` is the one bound to the key.
    pub registered: bool,
    /// The services offered.
    pub offers: BTreeMap<String, ServiceSpec>,
    /// Those of them that somebody on the machine offers, and no project declares.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub offered_here: BTreeSet<String>,
    /// The grants given out.
    pub grants: Vec<GrantRow>,
    /// The last revoked generation of each binding.
    pub revoked: BTreeMap<String, u64>,
    /// The revoked grants of which something may be left at a server.
    #[serde(default)]
    pub leaving: Vec<LeavingRow>,
    /// The bindings held, by name.
    pub bindings: BTreeMap<String, BindingRow>,
    /// Where sockets were made outside of the directories of bindings: one whose listener died
    /// stays there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sockets: BTreeSet<PathBuf>,
    /// What systemd's units were restarted with last, as a digest of it.
    #[serde(default)]
    pub units: BTreeMap<String, String>,
    /// The programs that were started last, by the position of their line.
    pub programs: BTreeMap<usize, ProgramRow>,
}

/// Why a machine's own state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is damaged. Its text may be secret and is not shown.
    #[error("{} is damaged at line {line} column {column}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// The file was written by another version.
    #[error("{} has format {format}, and this hob reads format {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// The key file is no key.
    #[error("{} is not {SEED_SIZE} bytes long", path.display())]
    Key {
        /// The file.
        path: PathBuf,
    },
}

/// A machine's own state. One process has it open, which the lock of the layout ensures.
pub struct Store {
    path: PathBuf,
    seed: Zeroizing<[u8; SEED_SIZE]>,
    /// What is on disk.
    contents: Mutex<Arc<Contents>>,
    /// Held while the file is written, so that readers need not wait for the disk.
    writing: Mutex<()>,
}

impl Store {
    /// Opens the state, and makes the key where there is none: it is on disk when this returns.
    pub fn open(layout: &Layout) -> Result<Self, StoreError> {
        let dir = layout.hob();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(at("create", &dir))?;
        let seed = open_key(&dir.join("key"))?;
        let path = dir.join("state.json");
        let contents = match fs::read(&path) {
            Ok(text) => Contents::decode(&Zeroizing::new(text), &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => return Err(at("read", &path)(error)),
        };
        let contents = Mutex::new(Arc::new(contents));
        Ok(Self {
            path,
            seed,
            contents,
            writing: Mutex::new(()),
        })
    }

    /// Returns the key's seed.
    pub fn seed(&self) -> &[u8; SEED_SIZE] {
        &self.seed
    }

    /// Returns the state as it is on disk.
    pub fn contents(&self) -> Arc<Contents> {
        self.contents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes the state; it is on disk when this returns, and unchanged after an error. Waits
    /// for the disk: from asynchronous code use [`Store::write`].
    pub fn update<R>(&self, change: impl FnOnce(&mut Contents) -> R) -> Result<R, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut contents = Contents::clone(&self.contents());
        let result = change(&mut contents);
        dying::step(&self.path);
        write_file(&self.path, &contents.encode())?;
        dying::step(&self.path);
        *self.contents.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(contents);
        Ok(result)
    }

    /// Says that something was done elsewhere that is not on disk here, for tests that kill the
    /// hob between its steps.
    pub(crate) fn step(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        dying::step(&self.path);
    }

    /// Changes the state without holding up the caller's thread.
    pub async fn write<R: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut Contents) -> R + Send + 'static,
    ) -> Result<R, StoreError> {
        let store = Arc::clone(self);
        match tokio::task::spawn_blocking(move || store.update(change)).await {
            Ok(result) => result,
            Err(gone) => Err(at("write", &self.path)(io::Error::other(gone))),
        }
    }

    /// Returns a secret that only this machine can compute, the same each time. So a repeated
    /// call gets the same answer although no secret that was given out is kept.
    pub fn derive(&self, purpose: &str, parts: &[&str]) -> Zeroizing<[u8; 32]> {
        let mut inner = Sha256::new();
        inner.update(self.seed.as_slice());
        for part in [purpose].iter().chain(parts) {
            inner.update((part.len() as u64).to_be_bytes());
            inner.update(part.as_bytes());
        }
        // Twice, so that no result is the beginning of another.
        Zeroizing::new(Sha256::digest(inner.finalize()).into())
    }
}

/// Returns how a swissnum is remembered.
pub fn swissnum_hash(swissnum: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(swissnum))
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            format: FORMAT,
            machine: String::new(),
            expects: Vec::new(),
            exposes: BTreeMap::new(),
            listen: String::new(),
            advertise: Vec::new(),
            join_sequence: 0,
            presence: None,
            registered: false,
            offers: BTreeMap::new(),
            offered_here: BTreeSet::new(),
            grants: Vec::new(),
            revoked: BTreeMap::new(),
            leaving: Vec::new(),
            bindings: BTreeMap::new(),
            sockets: BTreeSet::new(),
            units: BTreeMap::new(),
            programs: BTreeMap::new(),
        }
    }
}

impl Contents {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Text keys and plain values only: this cannot fail.
        Zeroizing::new(serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    fn decode(text: &[u8], path: &Path) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
        };
        let Format { format } = serde_json::from_slice(text).map_err(damaged)?;
        if format != u64::from(FORMAT) {
            return Err(StoreError::Format {
                path: path.to_owned(),
                format,
            });
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    /// Returns how a name is exposed: as its binding asks, or as was announced.
    pub fn exposes_of(&self, name: &str) -> &[Expose] {
        let held = self.bindings.get(name);
        let held = held.map(|row| &row.registration.expose);
        held.or_else(|| self.exposes.get(name))
            .map_or(&[], Vec::as_slice)
    }
}

fn open_key(path: &Path) -> Result<Zeroizing<[u8; SEED_SIZE]>, StoreError> {
    match fs::read(path).map(Zeroizing::new) {
        Ok(bytes) => <[u8; SEED_SIZE]>::try_from(bytes.as_slice())
            .map(Zeroizing::new)
            .map_err(|_| StoreError::Key {
                path: path.to_owned(),
            }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut seed = Zeroizing::new([0; SEED_SIZE]);
            getrandom::fill(seed.as_mut_slice())
                .map_err(|error| at("fill", path)(io::Error::other(error.to_string())))?;
            write_file(path, seed.as_slice())?;
            Ok(seed)
        }
        Err(error) => Err(at("read", path)(error)),
    }
}

/// Puts a file in the place of another, durably: both it and its name are synced.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        sync_dir(path)
    };
    write().map_err(at("write", path))
}

/// Makes the names in a file's directory durable.
pub(crate) fn sync_dir(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { verb, path, source }
}

mod optional_sturdyref {
    use ocapn::Sturdyref;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Text(#[serde(with = "crate::protocol::sturdyref_text")] Sturdyref);

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Sturdyref>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(sturdyref) => serializer.serialize_some(sturdyref.to_uri().as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Sturdyref>, D::Error> {
        Ok(Option::<Text>::deserialize(deserializer)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::protocol::{Attenuate, Described, Grant, Registration, ServiceKind};

    pub(super) fn grant(binding: &str, generation: u64) -> Grant {
        Grant {
            service: "orders".into(),
            binding: binding.into(),
            generation,
            receiver: "abc".into(),
            attenuate: Attenuate::default(),
            parent: None,
        }
    }

    pub(super) fn offering() -> Contents {
        let kind = ServiceKind::Tcp("127.0.0.1:1".into());
        let spec = ServiceSpec { kind, r#type: None };
        let offers = BTreeMap::from([("orders".into(), spec)]);
        Contents {
            offers,
            ..Contents::default()
        }
    }

    #[test]
    fn what_was_written_is_read_back_by_the_next_hob() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let store = Store::open(&layout).unwrap();
        let name: Sturdyref = "ocapn://abc.tls-rpk/s/c2VjcmV0?host=h&port=1"
            .parse()
            .unwrap();
        let registration = Registration {
            name: "db".into(),
            binding: "binding.db".into(),
            generation: 2,
            expose: Vec::new(),
        };
        let row = BindingRow {
            registration,
            grant: name.clone(),
            bound: Vec::new(),
            service: Described {
                binding: "binding.db".into(),
                generation: 2,
                kind: "tcp".into(),
                r#type: None,
                database: None,
                username: None,
            },
        };
        store
            .update(|contents| {
                *contents = offering();
                contents.presence = Some(name.clone());
                contents.bindings.insert("db".into(), row.clone());
                contents
                    .admit(grant("binding.db", 1), "hash".into(), 0)
                    .unwrap();
            })
            .unwrap();
        let again = Store::open(&layout).unwrap();
        assert_eq!(again.seed(), store.seed());
        let contents = again.contents();
        assert_eq!(contents.presence, Some(name));
        assert_eq!(contents.bindings["db"], row);
        assert_eq!(contents.grants.len(), 1);
        for file in ["key", "state.json"] {
            let mode = fs::metadata(layout.hob().join(file))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        let parts = ["binding.db", "1"];
        assert_eq!(store.derive("grant", &parts), again.derive("grant", &parts));
        assert_ne!(
            store.derive("grant", &parts),
            store.derive("grant", &["binding.db1", ""])
        );
    }

    #[test]
    fn files_that_cannot_be_used_are_told_apart_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        drop(Store::open(&layout).unwrap());
        let state = layout.hob().join("state.json");
        for (text, error) in [
            (
                "{\"format\":1,",
                "state.json is damaged at line 1 column 12",
            ),
            (
                "{\"format\":1}",
                "state.json is damaged at line 1 column 12",
            ),
            (
                "{\"format\":2}",
                "state.json has format 2, and this hob reads format 1",
            ),
        ] {
            fs::write(&state, text).unwrap();
            let message = Store::open(&layout).err().unwrap().to_string();
            assert!(message.ends_with(error), "{message}");
            assert_eq!(fs::read_to_string(&state).unwrap(), text);
        }
        fs::remove_file(&state).unwrap();
        fs::write(layout.hob().join("key"), "short").unwrap();
        let message = Store::open(&layout).err().unwrap().to_string();
        assert!(message.ends_with("key is not 32 bytes long"), "{message}");
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let store = Store::open(&layout).unwrap();
        // A directory where the new file is written first.
        fs::create_dir(layout.hob().join("state.new")).unwrap();
        let result = store.update(|contents| contents.machine = "machine.db".into());
        assert!(matches!(result, Err(StoreError::Io { verb: "write", .. })));
        assert_eq!(store.contents().machine, "");
    }
}
