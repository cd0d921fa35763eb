//! The commands that ask the hob of this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::local::{Question, Reply, TIMEOUT};

/// Bytes of an answer: a machine with all the grants it may give out.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// How long a program that is to be run waits for its bindings, unless it is told otherwise: they
/// come when an apply gives them, and whoever starts programs starts them again.
pub(crate) const WAIT_DEFAULT: Duration = Duration::from_mins(5);

/// How often it is asked whether the bindings are there.
const POLL_PAUSE: Duration = Duration::from_millis(200);

/// Why a question has no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no hob answers at {socket}")]
    NoHob { socket: String, source: io::Error },
    #[error("no binding has this name")]
    Unknown,
    #[error("{0}")]
    Call(String),
    #[error("the hob tells this to root and to its own user only")]
    Refused,
    #[error("the hob has given another answer than was asked for; is it of another version?")]
    Odd,
    #[error("the bindings are not there after {} s: {}", .waited.as_secs(), names(.missing))]
    Waited {
        waited: Duration,
        missing: Vec<String>,
    },
    #[error("cannot write")]
    Write(#[from] io::Error),
}

/// Asks the hob at `socket` and writes the answer for people, or as JSON.
pub(crate) async fn ask(socket: &Path, question: Question, json: bool) -> Result<(), AskError> {
    let is_get = matches!(question, Question::Get(_));
    let mut out = io::stdout().lock();
    let written = match put(socket, &question).await? {
        Reply::Status(status) => pretty(&mut out, &status),
        Reply::Bindings(mut found) if json && is_get && found.len() == 1 => {
            pretty(&mut out, &found.remove(0))
        }
        Reply::Bindings(all) if json => pretty(&mut out, &all),
        Reply::Bindings(found) if is_get => found
            .iter()
            .try_for_each(|binding| writeln!(out, "{}", binding.address)),
        Reply::Bindings(all) => all.iter().try_for_each(|binding| {
            let name = &binding.name;
            writeln!(out, "{name}\t{}\t{}", binding.address, binding.directory)
        }),
        Reply::Environment { variables, .. } if json => pretty(&mut out, &variables),
        Reply::Environment { variables, .. } => variables
            .iter()
            .try_for_each(|(name, value)| writeln!(out, "export {name}={}", quoted(value))),
        Reply::Called(Ok(answer)) => pretty(&mut out, &answer),
        Reply::Offered(Ok(())) => Ok(()),
        Reply::Called(Err(why)) | Reply::Offered(Err(why)) => return Err(AskError::Call(why)),
        Reply::Unknown => return Err(AskError::Unknown),
        Reply::Refused => return Err(AskError::Refused),
    };
    match written {
        // Whoever closed the pipe has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Waits until every binding that is expected is granted, and returns the environment of programs.
pub(crate) async fn environment(
    socket: &Path,
    wait: Duration,
) -> Result<BTreeMap<String, String>, AskError> {
    let begun = Instant::now();
    loop {
        let missing = match put(socket, &Question::Environment).await? {
            Reply::Environment {
                variables,
                complete: true,
                ..
            } => return Ok(variables),
            Reply::Environment { waits_for, .. } => waits_for,
            _ => return Err(AskError::Odd),
        };
        if begun.elapsed() >= wait {
            return Err(AskError::Waited {
                waited: wait,
                missing,
            });
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Becomes the command; returns why it cannot.
pub(crate) fn become_command(argv: &[OsString], variables: &BTreeMap<String, String>) -> io::Error {
    match argv.split_first() {
        Some((program, args)) => Command::new(program).args(args).envs(variables).exec(),
        None => io::ErrorKind::InvalidInput.into(),
    }
}

async fn put(socket: &Path, question: &Question) -> Result<Reply, AskError> {
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
    let reply = timeout(TIMEOUT, asked).await;
    let reply = reply.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    reply.map_err(|source| AskError::NoHob {
        socket: socket.display().to_string(),
        source,
    })
}

fn pretty(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Returns a value as a shell takes it for one word.
fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@%+,".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

fn names(missing: &[String]) -> String {
    match missing {
        [] => "the machine is not registered yet".to_owned(),
        missing => format!("{} is not granted", missing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_one_word_of_a_shell() {
        let values = [
            "unix:/run/x",
            "",
            "a b",
            "it's",
            "'\\''",
            "$(id)`id`$HOME\\",
            "a\nb",
            "é*?[a]{a,b}",
            "-n ~ =ls !! ^a^b ; & | #",
            "~",
            "=ls",
        ];
        let mut shells = 0;
        for shell in ["sh", "dash", "bash", "zsh", "busybox"] {
            for value in values {
                let line = r#"eval "$SAID"; printf %s "$V""#;
                let mut command = Command::new(shell);
                command.env("SAID", format!("export V={}", quoted(value)));
                let applet = (shell == "busybox").then_some("sh");
                let output = match command.args(applet).args(["-c", line]).output() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    output => output.unwrap(),
                };
                shells += 1;
                let read = String::from_utf8(output.stdout).unwrap();
                assert_eq!(read, value, "{shell}");
            }
        }
        assert!(shells >= values.len(), "no shell was there");
        assert_eq!(quoted("unix:/run/x"), "unix:/run/x");
    }
}
