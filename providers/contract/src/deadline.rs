//! Deadlines: no call of a provider lasts forever.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gobs_model::{Address, Known, ProviderSchema};

use crate::{
    CreateRequest, Error, Intended, Objection, Observed, Oddity, Progress, Proposal, Provider,
    Token, UpdateRequest,
};

/// How long each verb of a provider may take. What lasts longer is abandoned, and in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Taking settings: a login, at most.
    pub configure: Duration,
    /// `find`, `read`, `import`, `adopt`, `list`, `lacking`, `objections`,
    /// `abandon`, `oddities`: pages of a slow list, at most.
    pub look: Duration,
    /// Until a machine exists.
    pub create: Duration,
    /// Until a machine is changed: a resize copies its disk.
    pub update: Duration,
    /// Until a machine is gone.
    pub delete: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        Self {
            configure: minutes(1),
            look: minutes(5),
            create: minutes(15),
            update: minutes(120),
            delete: minutes(15),
        }
    }
}

/// Waits for a call until its deadline; `what` names it: `create`.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| {
        let message = format!(
            "{what} was not answered within its deadline of {} s",
            deadline.as_secs_f64()
        );
        Err(Error::InDoubt(message))
    };
    tokio::time::timeout(deadline, call)
        .await
        .unwrap_or_else(late)
}

/// A provider whose every call ends by its own deadline.
pub struct Bounded(pub Arc<dyn Provider>);

#[async_trait]
impl Provider for Bounded {
    fn schema(&self) -> &ProviderSchema {
        self.0.schema()
    }

    async fn configure(&self, settings: &Known) -> Result<(), Error> {
        let deadline = self.deadlines().configure;
        within(deadline, "configure", self.0.configure(settings)).await
    }

    fn is_simulated(&self) -> bool {
        self.0.is_simulated()
    }

    fn deadlines(&self) -> Deadlines {
        self.0.deadlines()
    }

    async fn lacking(&self, plan: &[Intended]) -> Result<Vec<String>, Error> {
        within(self.deadlines().look, "lacking", self.0.lacking(plan)).await
    }

    async fn objections(&self, proposal: &Proposal) -> Result<Vec<Objection>, Error> {
        let objections = self.0.objections(proposal);
        within(self.deadlines().look, "objections", objections).await
    }

    async fn create(&self, request: CreateRequest, progress: Progress) -> Result<Observed, Error> {
        let deadline = self.deadlines().create;
        within(deadline, "create", self.0.create(request, progress)).await
    }

    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        within(self.deadlines().look, "find", self.0.find(token)).await
    }

    async fn abandon(&self, address: &Address) -> Result<(), Error> {
        within(self.deadlines().look, "abandon", self.0.abandon(address)).await
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        within(self.deadlines().look, "read", self.0.read(last)).await
    }

    async fn import(&self, id: &str) -> Result<Option<Observed>, Error> {
        within(self.deadlines().look, "import", self.0.import(id)).await
    }

    async fn adopt(&self, id: &str, token: &Token) -> Result<Option<(Token, Observed)>, Error> {
        within(self.deadlines().look, "adopt", self.0.adopt(id, token)).await
    }

    async fn update(&self, request: UpdateRequest, progress: Progress) -> Result<Observed, Error> {
        let deadline = self.deadlines().update;
        within(deadline, "update", self.0.update(request, progress)).await
    }

    async fn delete(&self, last: &Observed, progress: Progress) -> Result<(), Error> {
        let deadline = self.deadlines().delete;
        within(deadline, "delete", self.0.delete(last, progress)).await
    }

    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        within(self.deadlines().look, "list", self.0.list()).await
    }

    async fn oddities(&self, known: &[(Address, Observed)]) -> Result<Vec<Oddity>, Error> {
        within(self.deadlines().look, "oddities", self.0.oddities(known)).await
    }
}
