//! The socket where programs on the machine ask the hob, and the commands that do.
//!
//! One line of JSON is asked, one line of JSON is answered, and the connection ends.

use std::io::{self, Write as _};
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
use crate::protocol::{BindingStatus, HobStatus};

/// Connections served at one time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 32;

/// Bytes of a question.
const QUESTION_BYTES_MAX: u64 = 4 << 10;

/// Bytes of an answer: a machine with all the grants it may give out.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// How long a question and its answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long accepting pauses after a failure such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Question {
    Status,
    List,
    Get(String),
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Status(Box<HobStatus>),
    Bindings(Vec<BindingStatus>),
    Unknown,
}

/// Listens; what was there before is of a hob that has ended, which the lock has shown.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers for as long as the hob runs.
pub(crate) async fn serve(listener: UnixListener, hob: Arc<Hob>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let hob = Arc::clone(&hob);
                tokio::spawn(async move {
                    // Whoever asks and goes away harms nobody.
                    let _ = timeout(TIMEOUT, answer(stream, &hob)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, hob: &Hob) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(QUESTION_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    let reply = match serde_json::from_str(&line)? {
        Question::Status => Reply::Status(Box::new(hob.status())),
        Question::List => Reply::Bindings(hob.bindings.status()),
        Question::Get(name) => {
            let mut found = hob.bindings.status();
            found.retain(|binding| binding.name == name);
            if found.is_empty() {
                Reply::Unknown
            } else {
                Reply::Bindings(found)
            }
        }
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Asks the hob at `socket` and writes the answer for people; an error is a sentence.
pub(crate) async fn ask(socket: &Path, question: &Question) -> Result<(), String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut text = serde_json::to_vec(question)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut reply = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut reply)
            .await?;
        Ok::<Reply, io::Error>(serde_json::from_slice(&reply)?)
    };
    let reply = timeout(TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| format!("no hob answers at {}: {error}", socket.display()))?;
    let mut out = io::stdout().lock();
    let written = match (question, reply) {
        (_, Reply::Status(status)) => serde_json::to_writer_pretty(&mut out, &status)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
        (Question::Get(_), Reply::Bindings(found)) => found
            .iter()
            .try_for_each(|binding| writeln!(out, "{}", binding.address)),
        (_, Reply::Bindings(all)) => all.iter().try_for_each(|binding| {
            writeln!(
                out,
                "{}\t{}\t{}",
                binding.name, binding.address, binding.directory
            )
        }),
        (_, Reply::Unknown) => return Err("no binding has this name".into()),
    };
    match written {
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}
