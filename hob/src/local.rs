//! The socket where programs on the machine ask the hob.
//!
//! One line of JSON is asked, one line of JSON is answered, and the connection ends. Any program
//! may ask; one of another user is told of the bindings that are exposed to that user, no more.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::agent::Hob;
use crate::files::remove_if_there;
use crate::protocol::{BindingStatus, HobStatus, ServiceSpec};

/// Connections served at one time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 32;

/// How many of those may be of other users, who must not keep the operator out; more are closed.
const STRANGERS_MAX: usize = 24;

/// Bytes of a question.
const QUESTION_BYTES_MAX: u64 = 64 << 10;

/// How long a question and its answer may take: an object may be called, on another machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// How long accepting pauses after a failure such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The permissions of the socket: who asks is asked for.
const MODE: u32 = 0o666;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Question {
    Status,
    List,
    Get(String),
    Environment,
    /// Offers a service, or withdraws it where it says none.
    Offer {
        service: String,
        spec: Option<ServiceSpec>,
    },
    Call {
        name: String,
        method: String,
        args: Vec<serde_json::Value>,
    },
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    Status(Box<HobStatus>),
    Bindings(Vec<BindingStatus>),
    Environment {
        variables: BTreeMap<String, String>,
        /// The names that have no grant yet.
        waits_for: Vec<String>,
        /// Whether nothing is to come any more.
        complete: bool,
    },
    /// It is offered or withdrawn, or why it is not.
    Offered(Result<(), String>),
    /// What an object has answered, or why it has not.
    Called(Result<serde_json::Value, String>),
    Unknown,
    /// It is another user's business.
    Refused,
}

/// Listens; what was there before is of a hob that has ended, which the lock has shown.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    remove_if_there(std::fs::remove_file(path))?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Answers for as long as the hob runs.
pub(crate) async fn serve(listener: UnixListener, hob: Arc<Hob>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(peer) = stream.peer_cred() else {
                    continue;
                };
                let own = [0, rustix::process::geteuid().as_raw()];
                let stranger = (!own.contains(&peer.uid())).then_some(peer.uid());
                let second = stranger.map(|_| Arc::clone(&strangers).try_acquire_owned());
                if matches!(second, Some(Err(_))) {
                    continue;
                }
                let hob = Arc::clone(&hob);
                tokio::spawn(async move {
                    // Whoever asks and goes away harms nobody.
                    let _ = timeout(TIMEOUT, answer(stream, stranger, hob)).await;
                    drop((place, second));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, stranger: Option<u32>, hob: Arc<Hob>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(QUESTION_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let question = serde_json::from_str(&line)?;
    let reply = match question {
        Question::Call { name, method, args } => match stranger {
            Some(uid) if !hob.bindings.may_call(&name, uid) => Reply::Unknown,
            _ => Reply::Called(hob.bindings.call(&name, &method, args).await),
        },
        Question::Offer { .. } if stranger.is_some() => Reply::Refused,
        Question::Offer { service, spec } => {
            Reply::Offered(hob.grants.offer_here(service, spec).await)
        }
        // Whose a socket is may be asked of a database on a network.
        question => tokio::task::spawn_blocking(move || reply(question, stranger, &hob))
            .await
            .map_err(io::Error::other)?,
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    write.write_all(&text).await
}

fn reply(question: Question, stranger: Option<u32>, hob: &Hob) -> Reply {
    let bindings = || match stranger {
        None => hob.bindings.status(),
        Some(uid) => hob.bindings.status_shown_to(uid),
    };
    match question {
        // Answered elsewhere.
        Question::Call { .. } | Question::Offer { .. } => Reply::Unknown,
        Question::Status if stranger.is_some() => Reply::Refused,
        Question::Status => Reply::Status(Box::new(hob.status())),
        Question::List => Reply::Bindings(bindings()),
        Question::Get(name) => {
            let mut found = bindings();
            found.retain(|binding| binding.name == name);
            if found.is_empty() {
                Reply::Unknown
            } else {
                Reply::Bindings(found)
            }
        }
        Question::Environment => {
            let variables = match stranger {
                None => hob.bindings.variables(),
                Some(uid) => hob.bindings.variables_shown_to(uid),
            };
            Reply::Environment {
                variables: hob.environment(variables),
                waits_for: hob.bindings.waits_for(),
                complete: hob.is_complete(),
            }
        }
    }
}
