//! A plugin's end of the pipe.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::process::lock;
use super::wire::{
    Adopted, Call, Configured, Hello, LINE_BYTES_MAX, Lacks, Listed, ListedMachine, Made, Methods,
    Nothing, Objects, Odd, Reply, Request, Seen, VERSION, seconds,
};
use crate::deadline::within;
use crate::{Error, Progress, Provider};

/// How many answers may wait to be written; those who answer wait then.
const QUEUE_MAX: usize = 1_024;

/// How many requests are worked on at once: more than any parallelism of gobs.
const CALLS_MAX: usize = 1_024;

/// How long to wait where that many are worked on.
const CALLS_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// Serves a provider as a plugin until its input ends: over `tokio::io`'s standard input and
/// output, of which nothing else may use the latter.
///
/// # Errors
/// When the other side speaks something else, or the pipe breaks.
pub async fn serve(
    provider: Arc<dyn Provider>,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin + Send + 'static,
) -> io::Result<()> {
    let (answers, mut lines) = mpsc::channel::<String>(QUEUE_MAX);
    let writer = tokio::spawn(async move {
        while let Some(mut line) = lines.recv().await {
            line.push('\n');
            output.write_all(line.as_bytes()).await?;
            output.flush().await?;
        }
        Ok::<(), io::Error>(())
    });
    let served = serve_lines(provider, input, answers).await;
    let written = writer
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    served.and(written)
}

async fn serve_lines(
    provider: Arc<dyn Provider>,
    input: impl AsyncRead + Unpin,
    answers: mpsc::Sender<String>,
) -> io::Result<()> {
    let mut input = BufReader::new(input);
    let mut running = JoinSet::new();
    let cancels: Cancels = Arc::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut input).take(LINE_BYTES_MAX as u64);
        limited.read_until(b'\n', &mut line).await?;
        if line.pop_if(|last| *last == b'\n').is_none() {
            // What nobody waits for any more is dropped here, as any cancelled call.
            return match line.is_empty() {
                true => Ok(()),
                false => Err(invalid("the input ends within a line")),
            };
        }
        let request: Request =
            serde_json::from_slice(&line).map_err(|_| invalid("a line is no request"))?;
        while running.try_join_next().is_some() {}
        let mut answer = Answer {
            id: request.id,
            answers: answers.clone(),
            cancels: cancels.clone(),
            is_given: false,
        };
        if let Call::Cancel { id } = request.call {
            let call = lock(&cancels).remove(&id);
            if let Some(call) = call {
                call.abort();
            }
            answer.give(Ok(Nothing {})).await;
        } else if running.len() >= CALLS_MAX {
            let busy = Error::Busy {
                message: format!("{CALLS_MAX} requests are worked on already"),
                after: CALLS_WAIT,
            };
            answer.give::<Nothing>(Err(busy)).await;
        } else {
            let (id, provider) = (request.id, provider.clone());
            // Held until it is noted, so that it cannot end before.
            let mut noted = lock(&cancels);
            let call = running.spawn(work(provider, request, answer));
            noted.insert(id, call);
        }
    }
}

async fn work(provider: Arc<dyn Provider>, request: Request, mut answer: Answer) {
    let deadline = seconds(request.deadline_s);
    let progress = answer.progress();
    match request.call {
        Call::Hello { versions, .. } => {
            let hello = match versions.contains(&VERSION) {
                true => Ok(Hello {
                    version: VERSION,
                    schema: provider.schema().into(),
                    deadlines_s: provider.deadlines().into(),
                    methods: Methods {
                        adopt: true,
                        lacking: true,
                        objections: true,
                        abandon: true,
                        oddities: true,
                    },
                }),
                false => Err(Error::rejected(format!(
                    "this plugin speaks version {VERSION} of the protocol alone"
                ))),
            };
            answer.give(hello).await;
        }
        Call::Configure { settings } => {
            let done = within(deadline, "configure", provider.configure(&settings)).await;
            let simulated = provider.is_simulated();
            answer.give(done.map(|()| Configured { simulated })).await;
        }
        Call::Create(request) => {
            let made = within(deadline, "create", provider.create(request, progress)).await;
            answer.give(made.map(|machine| Made { machine })).await;
        }
        Call::Find { token } => {
            let seen = within(deadline, "find", provider.find(&token)).await;
            answer.give(seen.map(|machine| Seen { machine })).await;
        }
        Call::Read { last } => {
            let seen = within(deadline, "read", provider.read(&last)).await;
            answer.give(seen.map(|machine| Seen { machine })).await;
        }
        Call::Import { id } => {
            let seen = within(deadline, "import", provider.import(&id)).await;
            answer.give(seen.map(|machine| Seen { machine })).await;
        }
        Call::Adopt { id, token } => {
            let adopted = within(deadline, "adopt", provider.adopt(&id, &token)).await;
            let machine = |(token, machine)| ListedMachine { token, machine };
            let adopted = adopted.map(|it| it.map(machine));
            answer
                .give(adopted.map(|adopted| Adopted { adopted }))
                .await;
        }
        Call::Lacking { plan } => {
            let lacking = within(deadline, "lacking", provider.lacking(&plan)).await;
            answer.give(lacking.map(|lacking| Lacks { lacking })).await;
        }
        Call::Objections { proposal } => {
            let asked = provider.objections(&proposal);
            let found = within(deadline, "objections", asked).await;
            answer
                .give(found.map(|objections| Objects { objections }))
                .await;
        }
        Call::Abandon { address } => {
            let done = within(deadline, "abandon", provider.abandon(&address)).await;
            answer.give(done.map(|()| Nothing {})).await;
        }
        Call::Oddities { known } => {
            let known: Vec<_> = known
                .into_iter()
                .map(|it| (it.address, it.machine))
                .collect();
            let found = within(deadline, "oddities", provider.oddities(&known)).await;
            answer.give(found.map(|oddities| Odd { oddities })).await;
        }
        Call::Update(request) => {
            let made = within(deadline, "update", provider.update(request, progress)).await;
            answer.give(made.map(|machine| Made { machine })).await;
        }
        Call::Delete { last } => {
            let done = within(deadline, "delete", provider.delete(&last, progress)).await;
            answer.give(done.map(|()| Nothing {})).await;
        }
        Call::List {} => {
            let listed = within(deadline, "list", provider.list()).await;
            let machine = |(token, machine)| ListedMachine { token, machine };
            let listed = listed.map(|it| Listed {
                machines: it.into_iter().map(machine).collect(),
            });
            answer.give(listed).await;
        }
        Call::Cancel { .. } => answer.give(Ok(Nothing {})).await,
    }
}

type Cancels = Arc<Mutex<HashMap<u64, tokio::task::AbortHandle>>>;

/// The one answer to a request: where the work is given up, that is the answer.
struct Answer {
    id: u64,
    answers: mpsc::Sender<String>,
    cancels: Cancels,
    is_given: bool,
}

impl Answer {
    fn progress(&self) -> Progress {
        let (id, answers) = (self.id, self.answers.clone());
        Arc::new(move |text| {
            let reply = Reply {
                id,
                result: None,
                error: None,
                progress: Some(text),
            };
            // Progress that nobody has time to read is not worth a wait.
            if let Ok(line) = serde_json::to_string(&reply) {
                let _ = answers.try_send(line);
            }
        })
    }

    async fn give<T: Serialize>(&mut self, outcome: Result<T, Error>) {
        let line = self.line(outcome);
        self.is_given = true;
        // Without a reader there is nobody to answer.
        let _ = self.answers.send(line).await;
    }

    fn line<T: Serialize>(&self, outcome: Result<T, Error>) -> String {
        let id = self.id;
        let result = outcome.and_then(|result| {
            serde_json::to_value(result)
                .map_err(|error| Error::InDoubt(format!("the answer cannot be written: {error}")))
        });
        let line = match result {
            Ok(result) => Reply {
                id,
                result: Some(result),
                error: None,
                progress: None,
            },
            Err(error) => failed(id, error),
        };
        match serde_json::to_string(&line) {
            Ok(line) if line.len() < LINE_BYTES_MAX => line,
            _ => {
                let error = Error::InDoubt(format!(
                    "the answer is longer than {} MiB",
                    LINE_BYTES_MAX >> 20
                ));
                serde_json::to_string(&failed(id, error)).unwrap_or_default()
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        lock(&self.cancels).remove(&self.id);
        if !self.is_given {
            let given_up = Error::InDoubt("the plugin gave up in the midst of it".into());
            let line = self.line::<Nothing>(Err(given_up));
            // Where the queue is full, the deadline says the same.
            let _ = self.answers.try_send(line);
        }
    }
}

fn failed(id: u64, error: Error) -> Reply {
    Reply {
        id,
        result: None,
        error: Some(error.into()),
        progress: None,
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
