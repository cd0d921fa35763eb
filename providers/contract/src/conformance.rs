//! The kit that every provider must pass, in process or through a pipe.
//!
//! Each check makes a machine of its own under a fresh token and deletes it afterwards, whatever
//! it found. The kit needs a tokio runtime with time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gobs_model::{Address, Change, Known, Name, Role, Value};

use crate::{
    CreateRequest, Error, Intended, Observed, Proposal, Provider, Token, UpdateRequest, UserData,
};

/// How long a provider may go on answering `Busy`: a slow real provider's minute, and then some.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often something that may not show yet is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// At which moments calls are abandoned: at once, early, and when most providers have begun.
const ABANDON_AFTER: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(20),
];

/// What the kit must know of a provider to test it.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Attributes of a machine that can be created, complete by the schema.
    pub wanted: Known,
    /// Attributes that such a machine can be updated to, and what that costs.
    pub changes: Vec<(Change, Known)>,
    /// Attributes that are refused, if there are such.
    pub refused: Option<Known>,
    /// Attributes with which the machine is made and the answer lost, if that can be provoked.
    pub loses_answer: Option<Known>,
    /// For the machine's agent, where machines are to have one.
    pub user_data: Option<UserData>,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The promise that was checked.
    pub check: &'static str,
    /// Nothing, or what was broken.
    pub result: Result<(), String>,
}

/// Returns what every check found, in a fixed order.
pub async fn check(provider: &dyn Provider, fixture: &Fixture) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (check, run) in CHECKS {
        let result = match Case::new(provider, fixture) {
            Ok(case) => {
                let result = run(&case).await;
                let cleaned = case.clean_up().await;
                result.and(cleaned)
            }
            Err(error) => Err(error),
        };
        outcomes.push(Outcome { check, result });
    }
    outcomes
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(()) => write!(f, "ok      {}", self.check),
            Err(why) => write!(f, "broken  {}: {why}", self.check),
        }
    }
}

type Found = Result<(), String>;
type Check = for<'a> fn(&'a Case<'a>) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>>;

const CHECKS: [(&str, Check); 17] = [
    ("a machine that was created can be read", |it| {
        Box::pin(it.create_read())
    }),
    ("what is observed is in the schema, and no secret", |it| {
        Box::pin(it.observed())
    }),
    ("a create that is repeated makes one machine", |it| {
        Box::pin(it.create_twice())
    }),
    ("creates at the same time make one machine", |it| {
        Box::pin(it.create_at_once())
    }),
    ("a machine is found by its token", |it| Box::pin(it.find())),
    ("a token that was never used finds nothing", |it| {
        Box::pin(it.find_nothing())
    }),
    ("a machine is imported by its identifier", |it| {
        Box::pin(it.import())
    }),
    (
        "a machine that is adopted is found by the token it has",
        |it| Box::pin(it.adopt()),
    ),
    ("asking for rights that are lacking changes nothing", |it| {
        Box::pin(it.lacking())
    }),
    (
        "objections and oddities are none where all is well, and asking changes nothing",
        |it| Box::pin(it.at_ease()),
    ),
    (
        "a machine that is there keeps what belongs to it when abandoned",
        |it| Box::pin(it.abandon_nothing()),
    ),
    ("an update that is repeated changes nothing more", |it| {
        Box::pin(it.update_twice())
    }),
    (
        "a deleted machine is gone, and may be deleted again",
        |it| Box::pin(it.delete_twice()),
    ),
    ("what is refused leaves nothing", |it| {
        Box::pin(it.refused())
    }),
    ("a create whose answer was lost is found", |it| {
        Box::pin(it.lost_answer())
    }),
    (
        "a create that was abandoned is found or was never made",
        |it| Box::pin(it.abandoned_create()),
    ),
    ("a delete that was abandoned can be repeated", |it| {
        Box::pin(it.abandoned_delete())
    }),
];

/// One check's machine.
struct Case<'a> {
    provider: &'a dyn Provider,
    fixture: &'a Fixture,
    token: Token,
    address: Address,
}

impl<'a> Case<'a> {
    fn new(provider: &'a dyn Provider, fixture: &'a Fixture) -> Result<Self, String> {
        let name = Name::new("conformance").map_err(|error| error.to_string())?;
        Ok(Self {
            provider,
            fixture,
            token: Token::random().map_err(|error| error.to_string())?,
            address: Address::machine(name, None),
        })
    }

    async fn create_read(&self) -> Found {
        let made = self.create().await?;
        let read = self.read(&made).await?;
        self.same_machine(&made, read.as_ref())
    }

    async fn observed(&self) -> Found {
        let made = self.create().await?;
        let schema = &self.provider.schema().machine;
        let entries = made.attributes.value().as_entries();
        for (name, value) in entries.ok_or("its attributes are no object")? {
            let name = &**name;
            match schema.attributes.get(name) {
                Some(attribute) if attribute.sensitive && !value.is_null() && !value.sensitive => {
                    return Err(format!("{name} is observed in clear"));
                }
                None if !schema.blocks.contains_key(name) => {
                    return Err(format!("{name} is not in the schema"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn create_twice(&self) -> Found {
        let first = self.create().await?;
        let second = self.create().await?;
        self.same_machine(&first, Some(&second))?;
        self.listed_once().await
    }

    async fn create_at_once(&self) -> Found {
        let (first, second) = tokio::join!(self.create(), self.create());
        self.same_machine(&first?, Some(&second?))?;
        self.listed_once().await
    }

    async fn find(&self) -> Found {
        let made = self.create().await?;
        if self.provider.is_simulated() {
            return Ok(());
        }
        let found = self.find_within_lag().await?;
        self.same_machine(&made, found.as_ref())
    }

    async fn find_nothing(&self) -> Found {
        match self.provider.find(&self.token).await {
            Ok(None) => Ok(()),
            other => Err(format!("it answered {other:?}")),
        }
    }

    async fn import(&self) -> Found {
        let made = self.create().await?;
        if self.provider.is_simulated() {
            return Ok(());
        }
        let import = patiently(|| self.provider.import(&made.id)).await;
        let imported = import.map_err(|error| format!("import: {error}"))?;
        self.same_machine(&made, imported.as_ref())?;
        self.delete(&made).await?;
        match patiently(|| self.provider.import(&made.id)).await {
            Ok(None) => Ok(()),
            other => Err(format!("of a machine that is gone: {other:?}")),
        }
    }

    async fn adopt(&self) -> Found {
        let made = self.create().await?;
        if self.provider.is_simulated() {
            return Ok(());
        }
        let other = Token::random().map_err(|error| error.to_string())?;
        let deadline = Instant::now() + self.provider.schema().list_lag;
        for _ in 0..2 {
            let adopt = loop {
                match patiently(|| self.provider.adopt(&made.id, &other)).await {
                    // That it has a token may not show yet.
                    Err(Error::Rejected { .. }) if Instant::now() < deadline => {
                        tokio::time::sleep(LOOK_EVERY).await;
                    }
                    done => break done,
                }
            };
            let adopted = adopt.map_err(|error| format!("adopt: {error}"))?;
            let (token, seen) = adopted.ok_or("it is not there to be adopted")?;
            self.same_machine(&made, Some(&seen))?;
            if token != self.token {
                return Err("it has a token already, and got another one".into());
            }
        }
        let found = self.find_within_lag().await?;
        self.same_machine(&made, found.as_ref())?;
        self.delete(&made).await?;
        match patiently(|| self.provider.adopt(&made.id, &other)).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err("one that is gone was adopted".into()),
            Err(error) => Err(format!("of a machine that is gone: {error}")),
        }
    }

    async fn lacking(&self) -> Found {
        let made = self.create().await?;
        let wanted = self.fixture.wanted.value();
        let intended = |before: &Value, after: &Value, anew| Intended {
            before: before.clone(),
            after: after.clone(),
            anew,
        };
        let plan = [
            intended(&Value::NULL, wanted, true),
            intended(made.attributes.value(), wanted, false),
            intended(made.attributes.value(), &Value::NULL, false),
        ];
        let lacking = patiently(|| self.provider.lacking(&plan)).await;
        match lacking.map_err(|error| format!("lacking: {error}"))? {
            none if none.is_empty() => {}
            some => return Err(format!("it did, and lacks {}", some.join(", "))),
        }
        let read = self.read(&made).await?;
        self.same_machine(&made, read.as_ref())?;
        self.listed_once().await
    }

    async fn at_ease(&self) -> Found {
        let made = self.create().await?;
        for (is_new, before) in [(true, None), (false, Some(made.clone()))] {
            let proposal = Proposal {
                address: self.address.clone(),
                wanted: self.fixture.wanted.value().clone(),
                is_new,
                before,
            };
            let found = patiently(|| self.provider.objections(&proposal)).await;
            let found = found.map_err(|error| format!("objections: {error}"))?;
            if let Some(first) = found.first() {
                return Err(format!("it objects to what it made: {}", first.message));
            }
        }
        let known = [(self.address.clone(), made.clone())];
        let found = patiently(|| self.provider.oddities(&known)).await;
        let found = found.map_err(|error| format!("oddities: {error}"))?;
        if let Some(first) = found.iter().find(|it| it.is_problem) {
            return Err(format!(
                "it finds a problem with what it made: {}",
                first.what
            ));
        }
        let read = self.read(&made).await?;
        self.same_machine(&made, read.as_ref())?;
        self.listed_once().await
    }

    async fn abandon_nothing(&self) -> Found {
        let made = self.create().await?;
        for _ in 0..2 {
            let done = patiently(|| self.provider.abandon(&self.address)).await;
            done.map_err(|error| format!("abandon: {error}"))?;
        }
        let read = self.read(&made).await?;
        self.same_machine(&made, read.as_ref())?;
        match self.set_otherwise(&self.fixture.wanted, &made, &read.unwrap_or(made.clone())) {
            Some(name) => Err(format!("abandon changed {name}")),
            None => self.listed_once().await,
        }
    }

    async fn update_twice(&self) -> Found {
        let mut before = self.create().await?;
        let mut was_wanted = self.fixture.wanted.clone();
        for (change, wanted) in &self.fixture.changes {
            let request = UpdateRequest {
                token: Token::random().map_err(|error| error.to_string())?,
                address: self.address.clone(),
                before: before.clone(),
                was_wanted,
                wanted: wanted.clone(),
                change: *change,
                user_data: self.fixture.user_data.clone(),
            };
            let update = || self.provider.update(request.clone(), Arc::new(drop));
            let first = patiently(update)
                .await
                .map_err(|error| format!("{change:?}: {error}"))?;
            let second = patiently(update)
                .await
                .map_err(|error| format!("again: {error}"))?;
            self.same_machine(&before, Some(&first))?;
            self.same_machine(&first, Some(&second))?;
            if let Some(name) = self.set_otherwise(wanted, &first, &second) {
                return Err(format!(
                    "{change:?} gave another {name} when it was repeated"
                ));
            }
            was_wanted = wanted.clone();
            before = second;
        }
        self.listed_once().await
    }

    async fn delete_twice(&self) -> Found {
        let made = self.create().await?;
        self.delete(&made).await?;
        self.gone(&made).await?;
        self.delete(&made)
            .await
            .map_err(|error| format!("again: {error}"))
    }

    async fn refused(&self) -> Found {
        let Some(refused) = &self.fixture.refused else {
            return Ok(());
        };
        match self
            .provider
            .create(self.request(refused), Arc::new(drop))
            .await
        {
            Err(Error::Rejected { .. } | Error::Denied(_)) => {}
            other => return Err(format!("it answered {other:?}")),
        }
        // What may lag is not there yet, whatever `find` says before.
        tokio::time::sleep(self.provider.schema().list_lag).await;
        self.find_nothing().await
    }

    async fn lost_answer(&self) -> Found {
        let Some(loses_answer) = &self.fixture.loses_answer else {
            return Ok(());
        };
        if self.provider.is_simulated() {
            return Ok(());
        }
        match self
            .provider
            .create(self.request(loses_answer), Arc::new(drop))
            .await
        {
            Err(Error::InDoubt(_)) => {}
            other => return Err(format!("it answered {other:?}")),
        }
        let found = self.find_within_lag().await?.ok_or("it is not found")?;
        self.listed_once().await?;
        self.delete(&found).await?;
        self.gone(&found).await
    }

    async fn abandoned_create(&self) -> Found {
        for after in ABANDON_AFTER {
            // A token stands for one machine, so each moment has one of its own.
            let case = Self::new(self.provider, self.fixture)?;
            let found = case.abandon_create(after).await;
            found
                .and(case.clean_up().await)
                .map_err(|error| format!("{after:?}: {error}"))?;
        }
        Ok(())
    }

    async fn abandon_create(&self, after: Duration) -> Found {
        let create = self
            .provider
            .create(self.request(&self.fixture.wanted), Arc::new(drop));
        // Whether it came to its end in that time is not what is asked.
        let _ = tokio::time::timeout(after, create).await;
        let seen = self.find_within_lag().await?;
        let made = self.create().await?;
        if let Some(seen) = seen {
            self.same_machine(&seen, Some(&made))?;
        }
        self.listed_once().await
    }

    async fn abandoned_delete(&self) -> Found {
        for after in ABANDON_AFTER {
            let case = Self::new(self.provider, self.fixture)?;
            let found = case.abandon_delete(after).await;
            found
                .and(case.clean_up().await)
                .map_err(|error| format!("{after:?}: {error}"))?;
        }
        Ok(())
    }

    async fn abandon_delete(&self, after: Duration) -> Found {
        let made = self.create().await?;
        let delete = self.provider.delete(&made, Arc::new(drop));
        let _ = tokio::time::timeout(after, delete).await;
        self.delete(&made).await?;
        self.gone(&made).await
    }

    fn request(&self, wanted: &Known) -> CreateRequest {
        CreateRequest {
            token: self.token.clone(),
            address: self.address.clone(),
            wanted: wanted.clone(),
            user_data: self.fixture.user_data.clone(),
            before: None,
        }
    }

    async fn create(&self) -> Result<Observed, String> {
        let request = self.request(&self.fixture.wanted);
        patiently(|| self.provider.create(request.clone(), Arc::new(drop)))
            .await
            .map_err(|error| format!("create: {error}"))
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, String> {
        patiently(|| self.provider.read(last))
            .await
            .map_err(|error| format!("read: {error}"))
    }

    async fn delete(&self, last: &Observed) -> Found {
        patiently(|| self.provider.delete(last, Arc::new(drop)))
            .await
            .map_err(|error| format!("delete: {error}"))
    }

    async fn list(&self) -> Result<Vec<Observed>, String> {
        let listed = patiently(|| self.provider.list()).await;
        let listed = listed.map_err(|error| format!("list: {error}"))?;
        let ours = listed.into_iter().filter(|(token, _)| *token == self.token);
        Ok(ours.map(|(_, observed)| observed).collect())
    }

    /// Looks for the machine for as long as it may be hidden.
    async fn find_within_lag(&self) -> Result<Option<Observed>, String> {
        let deadline = Instant::now() + self.provider.schema().list_lag;
        loop {
            let found = patiently(|| self.provider.find(&self.token)).await;
            let found = found.map_err(|error| format!("find: {error}"))?;
            if found.is_some() || Instant::now() >= deadline {
                return Ok(found);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn listed_once(&self) -> Found {
        if self.provider.is_simulated() {
            return Ok(());
        }
        let deadline = Instant::now() + self.provider.schema().list_lag;
        loop {
            let listed = self.list().await?;
            match listed.len() {
                1 => return Ok(()),
                0 if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
                count => return Err(format!("the list has it {count} times")),
            }
        }
    }

    async fn gone(&self, last: &Observed) -> Found {
        if self.provider.is_simulated() {
            return Ok(());
        }
        if let Some(read) = self.read(last).await? {
            return Err(format!("it can still be read: {read:?}"));
        }
        // A list may also go on showing for a while what is gone.
        let deadline = Instant::now() + self.provider.schema().list_lag;
        loop {
            let found = patiently(|| self.provider.find(&self.token)).await;
            let found = found.map_err(|error| format!("find: {error}"))?;
            if found.is_none() && self.list().await?.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err("it is still found or listed".into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn same_machine(&self, expected: &Observed, seen: Option<&Observed>) -> Found {
        match seen {
            Some(seen) if seen.id == expected.id => Ok(()),
            Some(seen) => Err(format!("{} became {}", expected.id, seen.id)),
            None => Err(format!("{} is not there", expected.id)),
        }
    }

    /// Returns an attribute that the configuration may set and that differs; what the provider
    /// computes may change by itself, and what it did not know while it made the machine, such as
    /// whether that runs, it may know later.
    fn set_otherwise(&self, wanted: &Known, first: &Observed, second: &Observed) -> Option<&str> {
        let attributes = &self.provider.schema().machine.attributes;
        let is_set = |known: &Known, name| known.get(name).is_some_and(|it| !it.is_null());
        attributes
            .iter()
            .filter(|(_, attribute)| attribute.role != Role::Computed)
            .map(|(name, _)| name.as_str())
            .filter(|name| is_set(wanted, name) || is_set(&first.attributes, name))
            .find(|name| first.attributes.get(name) != second.attributes.get(name))
    }

    /// Deletes whatever a check left.
    async fn clean_up(&self) -> Found {
        match patiently(|| self.provider.find(&self.token)).await {
            Ok(Some(left)) => self.delete(&left).await,
            Ok(None) => Ok(()),
            Err(error) => Err(format!("find, to clean up: {error}")),
        }
    }
}

/// Repeats a call for as long as the provider is busy.
async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(Error::Busy { after, .. }) if Instant::now() + after < deadline => {
                tokio::time::sleep(after).await;
            }
            done => return done,
        }
    }
}
