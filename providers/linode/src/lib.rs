//! The Linode provider: machines of an account at Linode.
//!
//! Linode has no idempotency key, so each machine carries its token as a tag, and a label that
//! is unique in the account. A create whose answer was lost is looked up by them and adopted;
//! what is asked again under the same label is refused by Linode itself. Work is waited for by
//! its events, since the answers of actions tell the state before them.

mod adopt;
mod api;
mod blocks;
mod disks;
mod dns;
mod ends;
mod firewall;
mod interfaces;
mod jobs;
mod limits;
mod machine;
mod marks;
mod moves;
mod observe;
mod offers;
mod pace;
mod power;
mod schema;
mod scopes;
mod strays;
mod token;
mod volume;

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use gobs_model::{Address, Known, ProviderSchema, Value};
use gobs_provider::{
    CreateRequest, Error, Intended, Objection, Observed, Oddity, Progress, Proposal, Provider,
    Token, UpdateRequest,
};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::api::Api;
use crate::blocks::Turns;
use crate::machine::Machines;
use crate::pace::Time;

/// Where the API is.
const URL: &str = "https://api.linode.com/v4";

/// Who may get the token in any case.
const ORIGIN: &str = "https://api.linode.com/";

/// What the provider must be told by whoever hosts it. It has no `Debug`: it holds the token.
#[derive(Clone, Default)]
pub struct LinodeHost {
    /// The token of the account: `LINODE_TOKEN`. It comes before `token_command`.
    pub token: Option<Zeroizing<String>>,
    /// Where the API is, unless the provider's `url` says otherwise.
    pub url: Option<String>,
    /// Whether commands that the configuration names may run, and addresses that it names may
    /// get the token.
    pub allow_commands: bool,
    /// How much faster than this host's the API's clock runs: 1 (as 0 means too), but for tests
    /// against the double.
    pub clock_scale: u32,
    /// Whose machines they are: what outlives a machine is found again by it. The same for the
    /// life of a project, and no other's.
    pub project: String,
}

/// The provider.
pub struct Linode {
    schema: ProviderSchema,
    host: LinodeHost,
    machines: RwLock<Option<Arc<Machines>>>,
}

impl Linode {
    /// Returns the provider; it asks nobody anything yet.
    pub fn new(host: LinodeHost) -> Self {
        let lag = Time::new(host.clock_scale).here(schema::LIST_LAG);
        let machines = RwLock::new(None);
        let elsewhere = !host.url.as_deref().is_some_and(is_local);
        Self {
            schema: schema::schema(lag, elsewhere),
            host,
            machines,
        }
    }

    /// Returns what to ask with, so that planning new machines needs no token.
    fn machines(&self) -> Result<Arc<Machines>, Error> {
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.clone().ok_or_else(|| {
            Error::Denied("there is no token: set LINODE_TOKEN, or token_command".into())
        })
    }

    async fn token(&self, settings: &Known) -> Result<Option<Zeroizing<String>>, Error> {
        if let Some(token) = &self.host.token {
            return Ok(Some(token.clone()));
        }
        let words = settings.get("token_command").and_then(Value::as_elements);
        let words: Vec<&str> = words
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if words.is_empty() {
            return Ok(None);
        }
        if !self.host.allow_commands {
            let why = "token_command is a command that the configuration names, and such are not \
                       allowed to run; allow it, or set LINODE_TOKEN";
            return Err(Error::Denied(why.into()));
        }
        token::ask(&words).await.map(Some)
    }
}

/// Returns whether an address is one of this host: a double's.
fn is_local(url: &str) -> bool {
    let local = ["http://127.0.0.1:", "http://[::1]:", "http://localhost:"];
    local.iter().any(|it| url.starts_with(it))
}

#[async_trait]
impl Provider for Linode {
    fn schema(&self) -> &ProviderSchema {
        &self.schema
    }

    async fn configure(&self, settings: &Known) -> Result<(), Error> {
        let asked = settings.get("url").and_then(Value::as_str);
        let is_known = |url: &str| url.starts_with(ORIGIN) || self.host.url.as_deref() == Some(url);
        if asked.is_some_and(|url| !is_known(url)) && !self.host.allow_commands {
            let why = "url is an address that the configuration names, and such do not get the \
                       token; allow it, or set LINODE_URL";
            return Err(Error::Denied(why.into()));
        }
        let url = asked.or(self.host.url.as_deref()).unwrap_or(URL);
        if !url.starts_with("https://") && !is_local(url) {
            return Err(Error::Rejected {
                message: format!("{url} would carry the token in clear"),
                attribute: Some("url".into()),
            });
        }
        let token = self.token(settings).await?;
        let time = Time::new(self.host.clock_scale);
        let machines = match token {
            Some(token) => Some(Arc::new(Machines {
                api: Api::new(url, token, time)?,
                project: self.host.project.clone(),
                turns: Turns::default(),
                defaults: OnceCell::new(),
                offers: offers::Offers::default(),
            })),
            None => None,
        };
        *self
            .machines
            .write()
            .unwrap_or_else(PoisonError::into_inner) = machines;
        Ok(())
    }

    async fn lacking(&self, plan: &[Intended]) -> Result<Vec<String>, Error> {
        self.machines()?.lacking(plan).await
    }

    async fn objections(&self, proposal: &Proposal) -> Result<Vec<Objection>, Error> {
        self.machines()?.objections(proposal).await
    }

    async fn create(&self, request: CreateRequest, progress: Progress) -> Result<Observed, Error> {
        self.machines()?.create(&request, &progress).await
    }

    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        self.machines()?.find(token).await
    }

    async fn abandon(&self, address: &Address) -> Result<(), Error> {
        self.machines()?.abandon(address).await
    }

    async fn oddities(&self, known: &[(Address, Observed)]) -> Result<Vec<Oddity>, Error> {
        self.machines()?.oddities(known).await
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        self.machines()?.read(last).await
    }

    async fn adopt(&self, id: &str, token: &Token) -> Result<Option<(Token, Observed)>, Error> {
        self.machines()?.adopt(id, token).await
    }

    async fn update(&self, request: UpdateRequest, progress: Progress) -> Result<Observed, Error> {
        self.machines()?.update(&request, &progress).await
    }

    async fn delete(&self, last: &Observed, progress: Progress) -> Result<(), Error> {
        self.machines()?.delete(last, &progress).await
    }

    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        self.machines()?.list().await
    }
}
