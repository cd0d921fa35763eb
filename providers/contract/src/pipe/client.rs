//! gobs' end of the pipe.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gobs_model::{Address, Known, ProviderSchema};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::conceal::{conceal, veil};
use super::process::{Listener, NotSent, Process, lock};
use super::wire::{
    Adopted, Call, Configured, Hello, KnownMachine, LINE_BYTES_MAX, Lacks, Listed, Made, Methods,
    Nothing, Objects, Odd, Reply, Request, Seen, VERSION, Version,
};
use crate::deadline::within;
use crate::{
    CreateRequest, Deadlines, Error, Intended, Objection, Observed, Oddity, Progress, Proposal,
    Provider, Token, UpdateRequest, adopt_own,
};

/// How long a plugin may take to say hello: an interpreter's start on a loaded machine.
const HELLO_WAIT: Duration = Duration::from_secs(10);

/// How long it may take until the end of a plugin is known that reads no more, and how often that
/// is looked at: the system tells it within milliseconds.
const END_KNOWN_WITHIN: Duration = Duration::from_secs(1);
const END_LOOK: Duration = Duration::from_millis(5);

/// How long to wait before another try where a plugin reads too slowly.
const FULL_WAIT: Duration = Duration::from_secs(1);

/// How many lines of progress one call may send: one a second for the longest deadline of most.
const PROGRESS_MAX: u32 = 10_000;

/// How much of a line of progress is shown.
const PROGRESS_CHARS_MAX: usize = 500;

/// How much of a line that is no answer is shown.
const GARBAGE_CHARS_MAX: usize = 80;

/// Why a plugin is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot be run.
    #[error("it cannot be started: {0}")]
    Spawn(#[from] std::io::Error),
    /// It did not say hello, but something else, or nothing.
    #[error("{why}{last_words}")]
    NoHello {
        /// What it did instead.
        why: String,
        /// The last line of its stderr.
        last_words: String,
    },
    /// It said nothing.
    #[error("it did not answer `hello` within {} s", .0.as_secs_f64())]
    Silent(Duration),
    /// It cannot talk with this gobs.
    #[error("it speaks version {0} of the protocol, this gobs version {VERSION}")]
    Version(u32),
    /// It is another provider.
    #[error("it calls itself {0:?}")]
    Name(String),
}

/// A provider that runs as a process of its own.
///
/// It needs a tokio runtime with time. Its process is not started again when it ends: every call
/// then says why it ended. Dropped, it ends the process.
pub struct Client {
    schema: ProviderSchema,
    deadlines: Deadlines,
    methods: Methods,
    is_simulated: AtomicBool,
    link: Arc<Link>,
}

/// What the client shares with the thread that reads.
struct Link {
    process: Arc<Process>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    last_id: u64,
    waiting: HashMap<u64, Waiting>,
    /// Sent, and nobody waits for the answer any more.
    ignored: HashMap<u64, u32>,
    ended: Option<String>,
    is_greeted: bool,
}

/// What is done with an answer; `Err` says why none will come.
type Deliver = Box<dyn FnOnce(Result<Result<Json, Error>, String>) + Send>;

struct Waiting {
    deliver: Deliver,
    progress: Progress,
    progress_seen: u32,
}

/// A call that nobody waits for any more is cancelled.
struct Sent<'a> {
    link: &'a Link,
    id: u64,
}

impl Client {
    /// Starts the plugin of this provider, and waits for its hello; blocks meanwhile.
    ///
    /// # Errors
    /// When it is of no use; nothing of it runs then.
    pub fn start(name: &str, command: Command) -> Result<Self, StartError> {
        Self::start_within(name, command, HELLO_WAIT)
    }

    /// Starts a plugin as [`start`](Self::start) does, with another wait for its hello.
    ///
    /// # Errors
    /// When it is of no use; nothing of it runs then.
    pub fn start_within(name: &str, command: Command, wait: Duration) -> Result<Self, StartError> {
        let process = Process::start(name, command)?;
        let link = Arc::new(Link {
            process: process.clone(),
            calls: Mutex::default(),
        });
        process.listen(link.clone());
        let hello = link.hello(wait);
        let hello = hello.and_then(|hello| {
            let schema = ProviderSchema::from(hello.schema);
            match schema.name == name {
                true => Ok((schema, Deadlines::from(hello.deadlines_s), hello.methods)),
                false => Err(StartError::Name(schema.name)),
            }
        });
        let (schema, deadlines, methods) = hello.inspect_err(|_| process.end())?;
        Ok(Self {
            schema,
            deadlines,
            methods,
            is_simulated: AtomicBool::new(false),
            link,
        })
    }

    /// Asks, and waits for the answer.
    async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        deadline: Duration,
        call: Call,
        progress: Option<Progress>,
    ) -> Result<T, Error> {
        let is_effect = matches!(
            call,
            Call::Create(_)
                | Call::Adopt { .. }
                | Call::Abandon { .. }
                | Call::Update(_)
                | Call::Delete { .. }
        );
        let lost = |why: String| match is_effect {
            true => Error::InDoubt(format!("{what} was not answered: {why}")),
            false => Error::rejected(format!("{what} was not answered: {why}")),
        };
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting {
            deliver: Box::new(move |answer| drop(sender.send(answer))),
            progress: progress.unwrap_or_else(|| Arc::new(drop)),
            progress_seen: 0,
        };
        let sent = self.link.send(deadline, call, waiting)?;
        let answer = within(deadline, what, async {
            match receiver.await {
                Ok(Ok(answer)) => answer,
                Ok(Err(why)) => Err(lost(why)),
                Err(_) => Err(lost("nobody reads its answers any more".into())),
            }
        })
        .await?;
        drop(sent);
        serde_json::from_value(answer).map_err(|error| {
            lost(format!(
                "what came is no answer to it: {}",
                harmless(&error)
            ))
        })
    }
}

impl Client {
    /// Takes a machine as the plugin says it is.
    fn seen(&self, machine: Observed) -> Result<Observed, String> {
        conceal(&self.schema.machine, machine)
            .ok_or_else(|| "the plugin gave a machine whose attributes are no object".into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.link.process.end();
    }
}

#[async_trait]
impl Provider for Client {
    fn schema(&self) -> &ProviderSchema {
        &self.schema
    }

    fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    async fn configure(&self, settings: &Known) -> Result<(), Error> {
        let settings = settings.clone();
        let call = Call::Configure { settings };
        let configured: Configured = self
            .call("configure", self.deadlines.configure, call, None)
            .await?;
        self.is_simulated
            .store(configured.simulated, Ordering::Release);
        Ok(())
    }

    fn is_simulated(&self) -> bool {
        self.is_simulated.load(Ordering::Acquire)
    }

    async fn create(&self, request: CreateRequest, progress: Progress) -> Result<Observed, Error> {
        let call = Call::Create(request);
        let made: Made = self
            .call("create", self.deadlines.create, call, Some(progress))
            .await?;
        self.seen(made.machine).map_err(Error::InDoubt)
    }

    async fn find(&self, token: &Token) -> Result<Option<Observed>, Error> {
        let token = token.clone();
        let call = Call::Find { token };
        let seen: Seen = self.call("find", self.deadlines.look, call, None).await?;
        let machine = seen.machine.map(|machine| self.seen(machine));
        machine.transpose().map_err(Error::rejected)
    }

    async fn read(&self, last: &Observed) -> Result<Option<Observed>, Error> {
        let last = last.clone();
        let call = Call::Read { last };
        let seen: Seen = self.call("read", self.deadlines.look, call, None).await?;
        let machine = seen.machine.map(|machine| self.seen(machine));
        machine.transpose().map_err(Error::rejected)
    }

    async fn import(&self, id: &str) -> Result<Option<Observed>, Error> {
        let call = Call::Import { id: id.into() };
        let seen: Seen = self.call("import", self.deadlines.look, call, None).await?;
        let machine = seen.machine.map(|machine| self.seen(machine));
        machine.transpose().map_err(Error::rejected)
    }

    async fn adopt(&self, id: &str, token: &Token) -> Result<Option<(Token, Observed)>, Error> {
        if !self.methods.adopt {
            return adopt_own(self, id).await;
        }
        let (id, token) = (id.into(), token.clone());
        let call = Call::Adopt { id, token };
        let Adopted { adopted } = self.call("adopt", self.deadlines.look, call, None).await?;
        let machine = adopted.map(|it| Ok((it.token, self.seen(it.machine)?)));
        machine.transpose().map_err(Error::InDoubt)
    }

    async fn lacking(&self, plan: &[Intended]) -> Result<Vec<String>, Error> {
        if !self.methods.lacking {
            return Ok(Vec::new());
        }
        // What is not known yet may be anything; so may a secret, which is not needed here.
        let plan = plan.iter().map(|one| Intended {
            before: veil(&one.before),
            after: veil(&one.after),
            anew: one.anew,
        });
        let plan = plan.collect();
        let call = Call::Lacking { plan };
        let deadline = self.deadlines.look;
        let Lacks { lacking } = self.call("lacking", deadline, call, None).await?;
        Ok(lacking)
    }

    async fn objections(&self, proposal: &Proposal) -> Result<Vec<Objection>, Error> {
        if !self.methods.objections {
            return Ok(Vec::new());
        }
        let proposal = Proposal {
            wanted: veil(&proposal.wanted),
            ..proposal.clone()
        };
        let call = Call::Objections { proposal };
        let deadline = self.deadlines.look;
        let Objects { objections } = self.call("objections", deadline, call, None).await?;
        Ok(objections)
    }

    async fn abandon(&self, address: &Address) -> Result<(), Error> {
        if !self.methods.abandon {
            return Ok(());
        }
        let address = address.clone();
        let call = Call::Abandon { address };
        let Nothing {} = self
            .call("abandon", self.deadlines.look, call, None)
            .await?;
        Ok(())
    }

    async fn oddities(&self, known: &[(Address, Observed)]) -> Result<Vec<Oddity>, Error> {
        if !self.methods.oddities {
            return Ok(Vec::new());
        }
        let known = known.iter().cloned();
        let known = known.map(|(address, machine)| KnownMachine { address, machine });
        let known = known.collect();
        let call = Call::Oddities { known };
        let Odd { oddities } = self
            .call("oddities", self.deadlines.look, call, None)
            .await?;
        Ok(oddities)
    }

    async fn update(&self, request: UpdateRequest, progress: Progress) -> Result<Observed, Error> {
        let call = Call::Update(request);
        let made: Made = self
            .call("update", self.deadlines.update, call, Some(progress))
            .await?;
        self.seen(made.machine).map_err(Error::InDoubt)
    }

    async fn delete(&self, last: &Observed, progress: Progress) -> Result<(), Error> {
        let last = last.clone();
        let call = Call::Delete { last };
        let Nothing {} = self
            .call("delete", self.deadlines.delete, call, Some(progress))
            .await?;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Token, Observed)>, Error> {
        let listed: Listed = self
            .call("list", self.deadlines.look, Call::List {}, None)
            .await?;
        let machines = listed.machines.into_iter();
        let machines = machines.map(|it| Ok((it.token, self.seen(it.machine)?)));
        machines
            .collect::<Result<_, _>>()
            .map_err(|why: String| Error::rejected(why))
    }
}

impl Link {
    fn hello(&self, wait: Duration) -> Result<Hello, StartError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let call = Call::Hello {
            versions: vec![VERSION],
            gobs: env!("CARGO_PKG_VERSION").into(),
        };
        let waiting = Waiting {
            deliver: Box::new(move |answer| drop(sender.send(answer))),
            progress: Arc::new(drop),
            progress_seen: 0,
        };
        let no_hello = |why: String| {
            let last_words = match self.process.last_words() {
                words if words.is_empty() => words,
                words => format!("; the last it said: {words}"),
            };
            StartError::NoHello { why, last_words }
        };
        let sent = match self.send(wait, call, waiting) {
            Ok(sent) => sent,
            // It ended before it was asked; how is told by whoever reads its output.
            Err(error) => return Err(no_hello(self.how_it_ended(&error))),
        };
        let answer = match receiver.recv_timeout(wait) {
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(error))) => {
                return Err(no_hello(format!("it answered `hello` with: {error}")));
            }
            Ok(Err(why)) => return Err(no_hello(why)),
            Err(_) => return Err(StartError::Silent(wait)),
        };
        drop(sent);
        // The rest of another version's hello is not ours to judge.
        match serde_json::from_value::<Version>(answer.clone()) {
            Ok(Version { version: VERSION }) => {}
            Ok(Version { version }) => return Err(StartError::Version(version)),
            Err(error) => return Err(no_hello(format!("its hello is wrong: {error}"))),
        }
        let hello = serde_json::from_value(answer)
            .map_err(|error| no_hello(format!("its hello is wrong: {error}")))?;
        lock(&self.calls).is_greeted = true;
        Ok(hello)
    }

    /// Returns how the plugin ended; the error stands where that is not known in time.
    fn how_it_ended(&self, error: &Error) -> String {
        let until = Instant::now() + END_KNOWN_WITHIN;
        loop {
            if let Some(why) = &lock(&self.calls).ended {
                return why.clone();
            }
            if Instant::now() >= until {
                return error.to_string();
            }
            std::thread::sleep(END_LOOK);
        }
    }

    fn send(&self, deadline: Duration, call: Call, waiting: Waiting) -> Result<Sent<'_>, Error> {
        let mut calls = lock(&self.calls);
        if let Some(why) = &calls.ended {
            return Err(Error::rejected(format!("the plugin does not run: {why}")));
        }
        calls.last_id += 1;
        let id = calls.last_id;
        let line = line(&Request {
            id,
            deadline_s: deadline.as_secs_f64(),
            call,
        })?;
        self.process.send(line).map_err(|not_sent| match not_sent {
            NotSent::Full => Error::Busy {
                message: "the plugin has not read earlier requests yet".into(),
                after: FULL_WAIT,
            },
            NotSent::Closed => Error::rejected("the plugin does not run: it stopped reading"),
        })?;
        calls.waiting.insert(id, waiting);
        Ok(Sent { link: self, id })
    }

    /// Takes a reply; what is not about a call of ours is an error.
    fn reply(&self, reply: Reply) -> Result<(), String> {
        let mut calls = lock(&self.calls);
        let id = reply.id;
        let answer = match (reply.result, reply.error, reply.progress) {
            (Some(result), None, None) => Ok(result),
            (None, Some(failure), None) => Err(Error::from(failure)),
            (None, None, Some(text)) => {
                let progress = calls.progress(id)?;
                drop(calls);
                if let Some(progress) = progress {
                    progress(text.chars().take(PROGRESS_CHARS_MAX).collect());
                }
                return Ok(());
            }
            _ => return Err("it sent a line that is not one of result, error, progress".into()),
        };
        if calls.ignored.remove(&id).is_some() {
            return Ok(());
        }
        let Some(waiting) = calls.waiting.remove(&id) else {
            return Err(format!("it answered a request that it was not asked: {id}"));
        };
        drop(calls);
        (waiting.deliver)(Ok(answer));
        Ok(())
    }
}

impl Calls {
    /// Counts a line of progress, and returns whom to tell.
    fn progress(&mut self, id: u64) -> Result<Option<Progress>, String> {
        let (seen, progress) = match self.waiting.get_mut(&id) {
            Some(waiting) => (&mut waiting.progress_seen, Some(waiting.progress.clone())),
            None => {
                let seen = self.ignored.get_mut(&id).ok_or_else(|| {
                    format!("it sent progress of a request that it was not asked: {id}")
                })?;
                (seen, None)
            }
        };
        *seen += 1;
        match *seen > PROGRESS_MAX {
            true => Err(format!(
                "it sent more than {PROGRESS_MAX} lines of progress for one request"
            )),
            false => Ok(progress),
        }
    }
}

impl Listener for Link {
    fn line(&self, line: &[u8]) -> Result<(), String> {
        let reply = serde_json::from_slice::<Reply>(line).map_err(|error| {
            if lock(&self.calls).is_greeted {
                return format!("it sent a line that is no answer: {}", harmless(&error));
            }
            // It has been given nothing yet that must not be shown.
            let text = String::from_utf8_lossy(line);
            let text: String = text.chars().take(GARBAGE_CHARS_MAX).collect();
            format!("it sent a line that is no answer: {text:?}")
        })?;
        self.reply(reply)
    }

    fn ended(&self, why: &str) {
        let mut calls = lock(&self.calls);
        calls.ended = Some(why.into());
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        if !waiting.is_empty() {
            tracing::warn!(
                calls = waiting.len(),
                "a plugin left calls unanswered: {why}"
            );
        }
        for (_, waiting) in waiting {
            (waiting.deliver)(Err(why.into()));
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let mut calls = lock(&self.link.calls);
        let Some(waiting) = calls.waiting.remove(&self.id) else {
            return;
        };
        calls.ignored.insert(self.id, waiting.progress_seen);
        calls.last_id += 1;
        let id = calls.last_id;
        let request = Request {
            id,
            deadline_s: 0.0,
            call: Call::Cancel { id: self.id },
        };
        // A plugin that does not read is not told.
        if let Ok(line) = line(&request)
            && self.link.process.send(line).is_ok()
        {
            calls.ignored.insert(id, 0);
        }
    }
}

fn line(request: &Request) -> Result<String, Error> {
    let line = serde_json::to_string(request)
        .map_err(|error| Error::rejected(format!("the request cannot be written: {error}")))?;
    match line.len() < LINE_BYTES_MAX {
        true => Ok(line),
        false => Err(Error::rejected(format!(
            "the request is longer than {} MiB",
            LINE_BYTES_MAX >> 20
        ))),
    }
}

/// Returns what is wrong without the words of the text, in which there may be secrets.
fn harmless(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.starts_with("missing field") {
        true => text,
        false => match error.classify() {
            serde_json::error::Category::Syntax => {
                format!("it is no JSON at column {}", error.column())
            }
            serde_json::error::Category::Eof => "its JSON ends too early".into(),
            _ => "it does not fit the protocol".into(),
        },
    }
}
