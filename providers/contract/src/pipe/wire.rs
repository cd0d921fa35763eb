//! The messages, as they stand in a line.

use std::time::Duration;

use gobs_model::{Address, Block, Hosts, Known, ProviderSchema};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    CreateRequest, Deadlines, Error, Intended, Objection, Observed, Oddity, Proposal, Token,
    UpdateRequest,
};

/// The version of the protocol that this gobs speaks.
pub const VERSION: u32 = 1;

/// The longest line, its end included: a list of 10,000 machines of 1.5 KiB each. What sends a
/// longer one is out of its mind, and must not fill our memory.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// The longest deadline that a plugin may ask for, and the longest wait of a `busy`: a day is no
/// wait, it is a hang.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// What gobs sends.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) id: u64,
    /// After how many seconds nobody waits for the answer any more.
    pub(super) deadline_s: f64,
    #[serde(flatten)]
    pub(super) call: Call,
}

/// What is asked.
#[derive(Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "snake_case")]
pub(super) enum Call {
    Hello { versions: Vec<u32>, gobs: String },
    Configure { settings: Known },
    Create(CreateRequest),
    Find { token: Token },
    Read { last: Observed },
    Import { id: String },
    Adopt { id: String, token: Token },
    Lacking { plan: Vec<Intended> },
    Objections { proposal: Proposal },
    Abandon { address: Address },
    Oddities { known: Vec<KnownMachine> },
    Update(UpdateRequest),
    Delete { last: Observed },
    List {},
    Cancel { id: u64 },
}

/// What a plugin sends: about one request, exactly one of the three.
#[derive(Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) progress: Option<String>,
}

/// An error of a provider.
#[derive(Serialize, Deserialize)]
pub(super) struct Failure {
    kind: FailureKind,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attribute: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after_s: Option<f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FailureKind {
    Rejected,
    Denied,
    Busy,
    InDoubt,
}

/// The part of the answer to `hello` that every version has.
#[derive(Deserialize)]
pub(super) struct Version {
    pub(super) version: u32,
}

/// The answer to `hello`.
#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) schema: Schema,
    #[serde(default)]
    pub(super) deadlines_s: DeadlinesS,
    /// What the plugin has beside what every plugin must have.
    #[serde(default)]
    pub(super) methods: Methods,
}

/// The methods that a plugin need not have.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Methods {
    pub(super) adopt: bool,
    pub(super) lacking: bool,
    pub(super) objections: bool,
    pub(super) abandon: bool,
    pub(super) oddities: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Schema {
    name: String,
    #[serde(default)]
    settings: Block,
    machine: Block,
    /// How long a list may not yet show what exists.
    #[serde(default)]
    list_lag_s: f64,
    /// Where machines are, and how their agents come to them.
    #[serde(default)]
    hosts: Hosts,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct DeadlinesS {
    configure: Option<f64>,
    look: Option<f64>,
    create: Option<f64>,
    update: Option<f64>,
    delete: Option<f64>,
}

/// The answer to `configure`.
#[derive(Serialize, Deserialize)]
pub(super) struct Configured {
    #[serde(default)]
    pub(super) simulated: bool,
}

/// The answer to `create` and `update`.
#[derive(Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) machine: Observed,
}

/// The answer to `find`, `read` and `import`; `null` must be written.
#[derive(Serialize, Deserialize)]
pub(super) struct Seen {
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) machine: Option<Observed>,
}

/// The answer to `list`.
#[derive(Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) machines: Vec<ListedMachine>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ListedMachine {
    pub(super) token: Token,
    pub(super) machine: Observed,
}

/// The answer to `adopt`; `null` must be written.
#[derive(Serialize, Deserialize)]
pub(super) struct Adopted {
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) adopted: Option<ListedMachine>,
}

/// The answer to `lacking`.
#[derive(Serialize, Deserialize)]
pub(super) struct Lacks {
    pub(super) lacking: Vec<String>,
}

/// A machine that the project has, as it was last seen.
#[derive(Serialize, Deserialize)]
pub(super) struct KnownMachine {
    pub(super) address: Address,
    pub(super) machine: Observed,
}

/// The answer to `objections`.
#[derive(Serialize, Deserialize)]
pub(super) struct Objects {
    pub(super) objections: Vec<Objection>,
}

/// The answer to `oddities`.
#[derive(Serialize, Deserialize)]
pub(super) struct Odd {
    pub(super) oddities: Vec<Oddity>,
}

/// The answer to `delete` and `abandon`.
#[derive(Serialize, Deserialize)]
pub(super) struct Nothing {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (kind, message, attribute, after_s) = match error {
            Error::Rejected { message, attribute } => {
                (FailureKind::Rejected, message, attribute, None)
            }
            Error::Denied(message) => (FailureKind::Denied, message, None, None),
            Error::Busy { message, after } => {
                (FailureKind::Busy, message, None, Some(after.as_secs_f64()))
            }
            Error::InDoubt(message) => (FailureKind::InDoubt, message, None, None),
        };
        Self {
            kind,
            message,
            attribute,
            after_s,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let message = failure.message;
        match failure.kind {
            FailureKind::Rejected => Self::Rejected {
                message,
                attribute: failure.attribute,
            },
            FailureKind::Denied => Self::Denied(message),
            FailureKind::Busy => Self::Busy {
                message,
                after: seconds(failure.after_s.unwrap_or(1.0)),
            },
            FailureKind::InDoubt => Self::InDoubt(message),
        }
    }
}

impl From<&ProviderSchema> for Schema {
    fn from(schema: &ProviderSchema) -> Self {
        Self {
            name: schema.name.clone(),
            settings: schema.settings.clone(),
            machine: schema.machine.clone(),
            list_lag_s: schema.list_lag.as_secs_f64(),
            hosts: schema.hosts.clone(),
        }
    }
}

impl From<Schema> for ProviderSchema {
    fn from(schema: Schema) -> Self {
        Self {
            name: schema.name,
            settings: schema.settings,
            machine: schema.machine,
            list_lag: seconds(schema.list_lag_s),
            hosts: schema.hosts,
        }
    }
}

impl From<Deadlines> for DeadlinesS {
    fn from(deadlines: Deadlines) -> Self {
        let some = |duration: Duration| Some(duration.as_secs_f64());
        Self {
            configure: some(deadlines.configure),
            look: some(deadlines.look),
            create: some(deadlines.create),
            update: some(deadlines.update),
            delete: some(deadlines.delete),
        }
    }
}

impl From<DeadlinesS> for Deadlines {
    fn from(asked: DeadlinesS) -> Self {
        let usual = Self::default();
        let or = |asked: Option<f64>, usual| asked.map_or(usual, seconds);
        Self {
            configure: or(asked.configure, usual.configure),
            look: or(asked.look, usual.look),
            create: or(asked.create, usual.create),
            update: or(asked.update, usual.update),
            delete: or(asked.delete, usual.delete),
        }
    }
}

/// Returns a duration that somebody else chose, within bounds: what is no number is no wait.
pub(super) fn seconds(count: f64) -> Duration {
    let bounded = count.clamp(0.0, WAIT_MAX.as_secs_f64());
    Duration::try_from_secs_f64(bounded).unwrap_or_default()
}
