//! The dummy provider: a machine is a directory and an agent's process on this host.
//!
//! It needs no account, and still everything about it is real: its machines outlive gobs, run
//! programs, are found by their token after a crash, and fail in every way that a test asks for
//! (see [`Point`] and [`Verb`]). With `simulated = true` they are rows in the state only: nothing
//! is made, so nothing is ever found, and a create may be repeated at will.

mod fault;
mod machine;
mod process;
mod record;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use gobs_model::{Attribute, Block, Change, Known, ProviderSchema, Type, Value};
use gobs_provider::{CreateRequest, Error, Observed, Progress, Provider, Token, UpdateRequest};

use crate::fault::{Fault, Faults, Ledger};
pub use crate::fault::{Point, Verb};
use crate::machine::{Machines, STOPPED, id_of, observed};
use crate::record::now_ms;

/// How long a list may lag: only a fault makes it, so as long as a fault may usefully ask for.
const LIST_LAG: Duration = Duration::from_secs(2);

/// Whom the faults of calls that are about no machine count for.
const NO_MACHINE: &str = "provider";

/// What the provider must be told about the host that it runs on.
#[derive(Clone, Debug)]
pub struct DummyHost {
    /// Where machines live unless the provider's `directory` says otherwise: `.gobs/dummy`.
    pub root: PathBuf,
    /// The agent's command; `--dir DIR` is added to it.
    pub agent: Vec<OsString>,
    /// Where machines have their sockets: short, for a socket's path has 107 bytes at most; made
    /// where it is missing, and removed with the last machine, so it must be gobs' own.
    pub runtime_root: PathBuf,
}

/// The provider.
pub struct Dummy {
    schema: ProviderSchema,
    host: DummyHost,
    setup: RwLock<Arc<Setup>>,
}

/// What the `provider` block came to.
struct Setup {
    simulated: bool,
    machines: Machines,
    faults: Vec<Fault>,
    ledger: Ledger,
}

impl Dummy {
    /// Returns the provider with the settings of an empty `provider` block.
    pub fn new(host: DummyHost) -> Self {
        let setup = Setup::new(&host, None, false, Vec::new());
        Self {
            schema: schema(),
            host,
            setup: RwLock::new(Arc::new(setup)),
        }
    }

    fn setup(&self) -> Arc<Setup> {
        self.setup
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Setup {
    fn new(host: &DummyHost, root: Option<PathBuf>, simulated: bool, faults: Vec<Fault>) -> Self {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let root = absolute(root.unwrap_or_else(|| host.root.clone()));
        let machines = Machines {
            root,
            agent: host.agent.clone(),
            runtime_root: absolute(host.runtime_root.clone()),
        };
        let ledger = if simulated {
            Ledger::Memory(Mutex::new(BTreeSet::new()))
        } else {
            Ledger::Directory(machines.faults_dir())
        };
        Self {
            simulated,
            machines,
            faults,
            ledger,
        }
    }

    /// Returns the faults that hold for a call about a machine with these attributes.
    fn faults(&self, who: String, attributes: Option<&Known>) -> Result<Faults<'_>, Error> {
        let text = attributes
            .and_then(|it| it.get("fault"))
            .and_then(Value::as_str);
        let mut faults = self.faults.clone();
        faults.extend(parse_faults(text.unwrap_or_default(), "fault")?);
        Ok(Faults {
            faults,
            ledger: &self.ledger,
            who,
        })
    }
}

#[async_trait]
impl Provider for Dummy {
    fn schema(&self) -> &ProviderSchema {
        &self.schema
    }

    async fn configure(&self, settings: &Known) -> Result<(), Error> {
        let text = |name| settings.get(name).and_then(Value::as_str);
        let simulated = settings
            .get("simulated")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let faults = parse_faults(text("faults").unwrap_or_default(), "faults")?;
        let setup = Setup::new(
            &self.host,
            text("directory").map(PathBuf::from),
            simulated,
            faults,
        );
        *self.setup.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(setup);
        Ok(())
    }

    fn is_simulated(&self) -> bool {
        self.setup().simulated
    }

    async fn create(&self, request: CreateRequest, _: Progress) -> Result<Observed, Error> {
        let setup = self.setup();
        let faults = setup.faults(request.address.to_string(), Some(&request.wanted))?;
        faults.before(Verb::Create).await?;
        let seen = if setup.simulated {
            simulated(&id_of(&request.token), &request.wanted)
        } else {
            let crash = faults.crash(Verb::Create);
            let machines = setup.machines.clone();
            blocking(move || machines.create(&request, crash)).await?
        };
        faults.after(Verb::Create).await?;
        Ok(seen)
    }

    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        let setup = self.setup();
        if setup.simulated {
            setup.faults(id_of(token), None)?.before(Verb::Find).await?;
            return Ok(None);
        }
        let (machines, sought) = (setup.machines.clone(), token.clone());
        let found = blocking(move || machines.find(&sought)).await?;
        let record = found.as_ref().map(|(record, _)| record);
        let faults = setup.faults(id_of(token), record.map(|it| &it.wanted))?;
        faults.before(Verb::Find).await?;
        let lag = faults.lag(Verb::Find);
        let shown = found.filter(|(record, _)| is_older(record.created_ms, lag));
        faults.after(Verb::Find).await?;
        Ok(shown.map(|(_, observed)| observed))
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        let setup = self.setup();
        let faults = setup.faults(last.id.clone(), Some(&last.attributes))?;
        faults.before(Verb::Read).await?;
        let seen = if setup.simulated {
            Some(last.clone())
        } else {
            let (machines, id) = (setup.machines.clone(), last.id.clone());
            blocking(move || machines.read(&id)).await?
        };
        faults.after(Verb::Read).await?;
        Ok(seen)
    }

    async fn update(&self, request: UpdateRequest, _: Progress) -> Result<Observed, Error> {
        let setup = self.setup();
        let faults = setup.faults(request.before.id.clone(), Some(&request.wanted))?;
        faults.before(Verb::Update).await?;
        let seen = if setup.simulated {
            simulated(&request.before.id, &request.wanted)
        } else {
            let crash = faults.crash(Verb::Update);
            let machines = setup.machines.clone();
            blocking(move || machines.update(&request, crash)).await?
        };
        faults.after(Verb::Update).await?;
        Ok(seen)
    }

    async fn delete(&self, last: &Observed, _: Progress) -> Result<(), Error> {
        let setup = self.setup();
        let faults = setup.faults(last.id.clone(), Some(&last.attributes))?;
        faults.before(Verb::Delete).await?;
        if !setup.simulated {
            let crash = faults.crash(Verb::Delete);
            let (machines, id) = (setup.machines.clone(), last.id.clone());
            blocking(move || machines.delete(&id, crash)).await?;
        }
        faults.after(Verb::Delete).await?;
        // Only an answer that arrives ends a machine's story.
        setup.ledger.forget(&last.id);
        if !setup.simulated {
            setup.machines.tidy();
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        let setup = self.setup();
        let faults = setup.faults(NO_MACHINE.into(), None)?;
        faults.before(Verb::List).await?;
        if setup.simulated {
            return Ok(Vec::new());
        }
        let machines = setup.machines.clone();
        let mut seen = Vec::new();
        for (record, observed) in blocking(move || machines.list()).await? {
            let own = setup.faults(record.address.to_string(), Some(&record.wanted))?;
            if is_older(record.created_ms, own.lag(Verb::List)) {
                seen.push((record.token, observed));
            }
        }
        faults.after(Verb::List).await?;
        Ok(seen)
    }
}

/// Does what waits for disks and processes on a thread that may; a caller that goes away does
/// not stop it, as a request that was sent cannot be called back.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::InDoubt(format!("the work was given up: {error}"))))
}

fn simulated(id: &str, wanted: &Known) -> Observed {
    observed(id, wanted, "simulated", Value::NULL)
}

fn is_older(created_ms: u64, lag: Duration) -> bool {
    u128::from(now_ms().saturating_sub(created_ms)) >= lag.as_millis()
}

fn parse_faults(text: &str, attribute: &str) -> Result<Vec<Fault>, Error> {
    fault::parse(text).map_err(|error| Error::Rejected {
        message: error.to_string(),
        attribute: Some(attribute.into()),
    })
}

fn schema() -> ProviderSchema {
    let text = |change, about: &str| Attribute::optional(Type::String, change, about);
    ProviderSchema {
        name: "dummy".into(),
        settings: Block::of([
            (
                "simulated",
                Attribute::optional(
                    Type::Bool,
                    Change::InPlace,
                    "Machines and bindings are rows in the state only.",
                )
                .with_default(false),
            ),
            (
                "directory",
                text(
                    Change::InPlace,
                    "Where machines live; relative to the directory that gobs runs in.",
                ),
            ),
            (
                "faults",
                text(
                    Change::InPlace,
                    "Faults of every machine, for tests: create:fail-once.",
                ),
            ),
        ]),
        machine: Block::of([
            (
                "size",
                text(Change::InPlace, "How big the machine says it is."),
            ),
            (
                "image",
                text(Change::Rebuild, "What its disk is written from."),
            ),
            ("zone", text(Change::Replace, "Where it says it is.")),
            (
                "password",
                text(Change::InPlace, "A secret that nobody can read back.").secret(),
            ),
            (
                "run",
                Attribute::optional(
                    Type::list(Type::String),
                    Change::InPlace,
                    "Shell lines that start programs on it, its bindings in their environment.",
                ),
            ),
            (
                "fault",
                text(Change::InPlace, "Its faults, for tests: delete:busy-once."),
            ),
            ("id", Attribute::computed(Type::String, "Its identifier.")),
            (
                "address",
                Attribute::computed(Type::String, "How it is reached."),
            ),
            (
                "directory",
                Attribute::computed(Type::String, "Where it lives on this host."),
            ),
            (
                "status",
                Attribute::computed(Type::String, "Whether its agent runs: running or stopped."),
            ),
        ]),
        list_lag: LIST_LAG,
        hosts: gobs_model::Hosts {
            addresses: vec!["address".into()],
            ended: vec![STOPPED.into()],
            ..gobs_model::Hosts::default()
        },
    }
}
