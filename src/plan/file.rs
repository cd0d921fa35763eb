//! The plan file: a plan that is applied later, exactly or not at all.
//!
//! One JSON document: a header and the plan in clear, with every sensitive value in it sealed;
//! sources and inputs sealed whole, since a secret may stand in any of them. The seal covers the
//! clear part too, so a file that somebody edited does not open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use gobs_model::Address;
use gobs_state::{DataKey, SealedBlob, Snapshot};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::lang::{Assignment, Files, Inputs, Source};

use super::Plan;

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// A plan with all that it takes to apply it later.
#[derive(Clone, Debug)]
pub struct PlanFile {
    /// The version of gobs that planned.
    pub gobs: String,
    /// The project that it is for: the state's lineage, empty where there was no state yet.
    pub lineage: String,
    /// The texts that were planned.
    pub sources: Vec<Source>,
    /// What their expressions read from outside.
    pub inputs: RecordedInputs,
    /// The plan.
    pub plan: Plan,
}

/// What expressions read from outside, as it was then.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordedInputs {
    /// Values for variables; a later one wins.
    pub variables: Vec<Assignment>,
    /// What was read, or why nothing was.
    pub files: RecordedFiles,
    /// The time of the plan, in seconds since 1970, UTC.
    pub now_s: u64,
    /// The workspace's name.
    pub workspace: String,
    /// The project's directory.
    pub root: PathBuf,
}

/// Files as they were when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordedFiles(BTreeMap<PathBuf, RecordedFile>);

/// One file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedFile {
    /// Its bytes.
    Content(Arc<[u8]>),
    /// Why it could not be read: `no such file`.
    Unreadable(String),
}

/// Why a plan file is not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanFileError {
    /// It is not one.
    #[error("it is not a plan file: {0}")]
    NotAPlan(String),
    /// Another version of gobs wrote it in another format.
    #[error("it is a plan file of format {found}, and this version reads format {FORMAT}")]
    OtherFormat {
        /// The format that it has.
        found: u64,
    },
    /// Another version of gobs planned it.
    #[error("gobs {planned} made this plan, and this is gobs {running}; plan again")]
    OtherVersion {
        /// Which.
        planned: String,
        /// Which this is.
        running: String,
    },
    /// It is for another project.
    #[error("it was made for another project's state")]
    OtherProject,
    /// What it rests on has changed since.
    #[error("the state has moved on since this plan was made: {}; plan again", .0.join(", "))]
    Moved(Vec<String>),
    /// It cannot be sealed or opened.
    #[error(transparent)]
    Seal(#[from] gobs_state::SealError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    gobs: String,
    lineage: String,
    plan: Json,
    sealed: SealedBlob,
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    sources: Vec<(String, String)>,
    inputs: RecordedInputs,
}

impl PlanFile {
    /// Returns the text of the file.
    ///
    /// # Errors
    /// When it cannot be sealed, or holds a value too deep to be read again.
    pub fn seal(&self, key: &DataKey) -> Result<String, PlanFileError> {
        let broken = |error: serde_json::Error| PlanFileError::NotAPlan(error.to_string());
        let mut plan = serde_json::to_value(&self.plan).map_err(broken)?;
        seal_sensitive(key, &mut plan, &mut 0)?;
        let sources = self.sources.iter();
        let sealed = Sealed {
            sources: sources
                .map(|it| (it.name.to_string(), it.text.to_string()))
                .collect(),
            inputs: self.inputs.clone(),
        };
        let sealed = zeroize::Zeroizing::new(serde_json::to_vec(&sealed).map_err(broken)?);
        let purpose = purpose(&self.gobs, &self.lineage, &plan);
        let document = Document {
            format: FORMAT,
            gobs: self.gobs.clone(),
            lineage: self.lineage.clone(),
            plan,
            sealed: key.seal(&purpose, &sealed)?,
        };
        let text = serde_json::to_string(&document).map_err(broken)?;
        // A reader bounds the depth of what it reads: what it would refuse is not written.
        serde_json::from_str::<Document>(&text).map_err(broken)?;
        Ok(text)
    }

    /// Returns what a file holds.
    ///
    /// # Errors
    /// When it is not a plan file of this version's format, or was sealed with another key or
    /// changed since.
    pub fn open(text: &str, key: &DataKey) -> Result<Self, PlanFileError> {
        let broken = |error: serde_json::Error| PlanFileError::NotAPlan(error.to_string());
        let json: Json = serde_json::from_str(text).map_err(broken)?;
        match json.get("format").and_then(Json::as_u64) {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => return Err(PlanFileError::OtherFormat { found }),
            None => return Err(PlanFileError::NotAPlan("it names no format".into())),
        }
        let mut document: Document = serde_json::from_value(json).map_err(broken)?;
        let purpose = purpose(&document.gobs, &document.lineage, &document.plan);
        let clear = key.open(&purpose, &document.sealed)?;
        let sealed: Sealed = serde_json::from_slice(&clear).map_err(broken)?;
        open_sensitive(key, &mut document.plan, &mut 0)?;
        let sources = sealed.sources.into_iter();
        Ok(Self {
            gobs: document.gobs,
            lineage: document.lineage,
            sources: sources
                .map(|(name, text)| Source::new(name, text))
                .collect(),
            inputs: sealed.inputs,
            plan: serde_json::from_value(document.plan).map_err(broken)?,
        })
    }

    /// Checks that the plan can still be applied as it is: by this version of gobs, to this
    /// project, while every row that it read is as it was.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check(&self, running: &str, snapshot: &Snapshot) -> Result<(), PlanFileError> {
        if self.gobs != running {
            let (planned, running) = (self.gobs.clone(), running.to_owned());
            return Err(PlanFileError::OtherVersion { planned, running });
        }
        // Planned before there was a state: whatever was created since shows in the rows.
        if !self.lineage.is_empty() && self.lineage != snapshot.lineage {
            return Err(PlanFileError::OtherProject);
        }
        let moved = moved(&self.plan, snapshot);
        match moved.is_empty() {
            true => Ok(()),
            false => Err(PlanFileError::Moved(moved)),
        }
    }
}

/// Returns which rows a plan read that are no longer as they were, and how.
fn moved(plan: &Plan, snapshot: &Snapshot) -> Vec<String> {
    let how = |(address, version): &(Address, u64)| {
        let how = match (version, snapshot.rows.get(address).map(|row| row.version)) {
            (0, None) => return None,
            (0, Some(_)) => "exists now",
            (_, None) => "is gone",
            (was, Some(is)) if *was == is => return None,
            (_, Some(_)) => "has changed",
        };
        Some(format!("{address} {how}"))
    };
    plan.reads.iter().filter_map(how).collect()
}

fn purpose(gobs: &str, lineage: &str, plan: &Json) -> String {
    let mut digest = Sha256::new();
    for part in [gobs, lineage, &plan.to_string()] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    format!("plan file {FORMAT} {}", HEXLOWER.encode(&digest.finalize()))
}

/// Replaces every `{"sensitive": VALUE}` by `{"sensitive": CIPHERTEXT}`; `count` numbers them, so
/// that two of them cannot be swapped.
fn seal_sensitive(key: &DataKey, json: &mut Json, count: &mut u64) -> Result<(), PlanFileError> {
    each_sensitive(json, &mut |value| {
        let clear = zeroize::Zeroizing::new(value.to_string());
        let sealed = key.seal(&value_purpose(count), clear.as_bytes())?;
        *value = Json::String(BASE64.encode(sealed.as_bytes()));
        Ok(())
    })
}

fn open_sensitive(key: &DataKey, json: &mut Json, count: &mut u64) -> Result<(), PlanFileError> {
    each_sensitive(json, &mut |value| {
        let sealed = value
            .as_str()
            .and_then(|text| BASE64.decode(text.as_bytes()).ok());
        let sealed = sealed.ok_or(gobs_state::SealError::Unopenable)?;
        let clear = key.open(&value_purpose(count), &SealedBlob::from_bytes(sealed))?;
        *value = serde_json::from_slice(&clear)
            .map_err(|error| PlanFileError::NotAPlan(error.to_string()))?;
        Ok(())
    })
}

fn value_purpose(count: &mut u64) -> String {
    *count += 1;
    format!("plan file {FORMAT} value {count}")
}

/// Calls `act` with the content of every `{"sensitive": …}`, outermost only. A map of the user's
/// with just that key looks the same, and is sealed and opened the same.
fn each_sensitive(
    json: &mut Json,
    act: &mut dyn FnMut(&mut Json) -> Result<(), PlanFileError>,
) -> Result<(), PlanFileError> {
    match json {
        Json::Array(elements) => elements
            .iter_mut()
            .try_for_each(|it| each_sensitive(it, act)),
        Json::Object(entries) => {
            if entries.len() == 1
                && let Some(value) = entries.get_mut("sensitive")
            {
                return act(value);
            }
            entries
                .values_mut()
                .try_for_each(|it| each_sensitive(it, act))
        }
        _ => Ok(()),
    }
}

impl RecordedInputs {
    /// Returns what the evaluator takes.
    pub fn to_inputs(&self) -> Inputs {
        Inputs {
            variables: self.variables.clone(),
            files: Arc::new(self.files.clone()),
            now_s: self.now_s,
            workspace: self.workspace.clone(),
            root: self.root.clone(),
        }
    }
}

impl RecordedFiles {
    /// Records what came of reading a file.
    pub fn record(&mut self, path: PathBuf, file: RecordedFile) {
        self.0.insert(path, file);
    }
}

impl Files for RecordedFiles {
    fn read(&self, path: &Path) -> Result<Arc<[u8]>, String> {
        match self.0.get(path) {
            Some(RecordedFile::Content(bytes)) => Ok(bytes.clone()),
            Some(RecordedFile::Unreadable(why)) => Err(why.clone()),
            None => Err("the plan did not read it".into()),
        }
    }

    fn exists(&self, path: &Path) -> bool {
        matches!(self.0.get(path), Some(RecordedFile::Content(_)))
    }
}

impl std::fmt::Debug for RecordedInputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are left out: a variable or a file may hold a secret.
        f.debug_struct("RecordedInputs")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecordedFileText {
    Base64(String),
    Unreadable(String),
}

impl Serialize for RecordedFile {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self {
            Self::Content(bytes) => RecordedFileText::Base64(BASE64.encode(bytes)),
            Self::Unreadable(why) => RecordedFileText::Unreadable(why.clone()),
        };
        text.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RecordedFile {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match RecordedFileText::deserialize(deserializer)? {
            RecordedFileText::Base64(text) => {
                let bytes = BASE64
                    .decode(text.as_bytes())
                    .map_err(serde::de::Error::custom)?;
                Self::Content(bytes.into())
            }
            RecordedFileText::Unreadable(why) => Self::Unreadable(why),
        })
    }
}

#[cfg(test)]
mod tests {
    use gobs_model::{Known, Type, Value};
    use gobs_state::{Row, RowKind};

    use super::*;
    use crate::lang::{Given, Origin};
    use crate::plan::{Action, Because, Step, StepId};

    const CANARY: &str = "hunter2-canary";

    fn machine() -> Address {
        "machine.db".parse().expect("an address")
    }

    fn file() -> PlanFile {
        let wanted = Value::object([
            ("password", Value::from(CANARY).sensitive()),
            (
                "labels",
                Value::map([("sensitive", "no")].map(|(k, v)| (k, Value::from(v)))),
            ),
        ]);
        let create = Step {
            id: StepId(0),
            address: machine(),
            action: Action::Create {
                provider: "dummy".into(),
                wanted: wanted.clone(),
                incarnation: 1,
                replaces: false,
                simulated: false,
            },
            because: vec![Because::Declared],
            after: Vec::new(),
            depends_on: Vec::new(),
            before: Value::NULL,
            planned: Value::object([("id", Value::unknown(Type::String)), ("wanted", wanted)]),
        };
        let mut inputs = RecordedInputs::default();
        inputs.variables.push(Assignment {
            name: "password".into(),
            value: Given::Text(CANARY.into()),
            origin: Origin::Environment,
            span: None,
        });
        let content = RecordedFile::Content(CANARY.as_bytes().into());
        inputs.files.record("key.pem".into(), content);
        PlanFile {
            gobs: "0.1.0".into(),
            lineage: "here".into(),
            sources: vec![Source::new("main.gobs.hcl", format!("# {CANARY}"))],
            inputs,
            plan: Plan {
                reads: vec![(machine(), 3)],
                steps: vec![create],
                ..Plan::default()
            },
        }
    }

    fn snapshot(version: u64) -> Snapshot {
        let row = Row {
            address: machine(),
            wanted: Known::empty(),
            observed: Known::empty(),
            depends_on: Vec::new(),
            version,
            kind: RowKind::Service {
                incarnation: 1,
                unsettled: false,
            },
        };
        Snapshot {
            lineage: "here".into(),
            rows: [(machine(), Arc::new(row))].into(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_plan_survives_its_file_and_shows_no_secret() {
        let key = DataKey::generate().expect("a key");
        let file = file();
        let text = file.seal(&key).expect("sealed");
        for form in [CANARY.to_owned(), BASE64.encode(CANARY.as_bytes())] {
            assert!(!text.contains(&form), "{form} is in the file");
        }
        let opened = PlanFile::open(&text, &key).expect("opened");
        assert_eq!(opened.plan, file.plan);
        assert_eq!(opened.inputs, file.inputs);
        assert_eq!(opened.sources, file.sources);
        let inputs = opened.inputs.to_inputs();
        assert_eq!(
            &*inputs.files.read(Path::new("key.pem")).expect("read"),
            CANARY.as_bytes()
        );
    }

    #[test]
    fn a_plan_that_was_changed_or_is_another_keys_does_not_open() {
        let key = DataKey::generate().expect("a key");
        let text = file().seal(&key).expect("sealed");
        let unopenable = PlanFileError::Seal(gobs_state::SealError::Unopenable);
        let other = DataKey::generate().expect("a key");
        assert_eq!(
            PlanFile::open(&text, &other).expect_err("another key"),
            unopenable
        );
        let edited = text.replace("\"incarnation\":1", "\"incarnation\":2");
        assert_ne!(edited, text);
        assert_eq!(
            PlanFile::open(&edited, &key).expect_err("edited"),
            unopenable
        );
        let newer = text.replace("\"format\":1", "\"format\":2");
        let error = PlanFile::open(&newer, &key).expect_err("newer");
        assert_eq!(error, PlanFileError::OtherFormat { found: 2 });
        let error = PlanFile::open("{}", &key).expect_err("not a plan");
        assert_eq!(
            error.to_string(),
            "it is not a plan file: it names no format"
        );
    }

    #[test]
    fn a_plan_is_refused_with_the_reason() {
        let check = |version, snapshot: &Snapshot| {
            let refusal = file().check(version, snapshot);
            refusal.map_err(|error| error.to_string()).err()
        };
        assert_eq!(check("0.1.0", &snapshot(3)), None);
        assert_eq!(
            check("0.1.0", &snapshot(4)).as_deref(),
            Some(
                "the state has moved on since this plan was made: machine.db has changed; plan \
                  again"
            )
        );
        assert_eq!(
            check(
                "0.1.0",
                &Snapshot {
                    rows: [].into(),
                    ..snapshot(3)
                }
            )
            .as_deref(),
            Some("the state has moved on since this plan was made: machine.db is gone; plan again")
        );
        assert_eq!(
            check("0.2.0", &snapshot(3)).as_deref(),
            Some("gobs 0.1.0 made this plan, and this is gobs 0.2.0; plan again")
        );
        let elsewhere = Snapshot {
            lineage: "there".into(),
            ..snapshot(3)
        };
        assert_eq!(
            check("0.1.0", &elsewhere).as_deref(),
            Some("it was made for another project's state")
        );
    }
}
