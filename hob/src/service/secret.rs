//! Secrets: a file of the machine, or what a command writes, given out over the session alone.
//!
//! There are no streams. The receiver's hob asks for the secret, and asks again with the digest of
//! what it has: that question is answered when the secret is another one, or after a while.

use std::collections::HashMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use ocapn::{Broken, Passable, Struct};
use rustix::process::{Pid, Signal, kill_process_group};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

use super::{ServiceError, read_file};
use crate::protocol::{DELIVERY_HOLD, Malformed, SECRET_BYTES_MAX, Secret};

/// How long a command may take: it may ask a vault over the network.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a file is looked at while somebody waits for it to change.
const FILE_PAUSE: Duration = Duration::from_secs(1);

/// How often a command is run while somebody waits for its answer to change.
const COMMAND_PAUSE: Duration = Duration::from_secs(30);

/// How long what was read serves those who ask meanwhile: many receivers cost one command.
const FILE_FRESH: Duration = Duration::from_millis(500);
const COMMAND_FRESH: Duration = Duration::from_secs(10);

/// What was read, for those who ask at the same time.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    read: Mutex<HashMap<Secret, Arc<AsyncMutex<Option<Known>>>>>,
}

/// A secret as it was a moment ago.
#[derive(Clone)]
struct Known {
    text: Arc<Zeroizing<Vec<u8>>>,
    since: Instant,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Known(…)")
    }
}

impl Secrets {
    /// Reads the secret once.
    pub(super) async fn probe(&self, secret: &Secret) -> Result<(), ServiceError> {
        self.read(secret).await.map(drop)
    }

    /// Answers one question: the secret, unless it is still the one that has this digest.
    pub(super) fn fetch(
        self: &Arc<Self>,
        secret: &Secret,
        args: &[Passable],
    ) -> BoxFuture<'static, Result<Passable, Broken>> {
        let held = match args {
            [] => Ok(None),
            [Passable::Bytes(digest)] => Ok(Some(digest.clone())),
            _ => Err(Malformed {
                what: "fetch",
                why: "it takes a digest, or nothing".into(),
            }),
        };
        let (secrets, secret) = (Arc::clone(self), secret.clone());
        Box::pin(async move {
            let held = held?;
            let until = Instant::now() + DELIVERY_HOLD;
            let pause = match secret {
                Secret::File(_) => FILE_PAUSE,
                Secret::Command(_) => COMMAND_PAUSE,
            };
            loop {
                match secrets.read(&secret).await {
                    Ok(text) => {
                        let digest = Sha256::digest(text.as_slice());
                        if held.as_ref().is_none_or(|held| **held != *digest) {
                            let answer = Struct::new()
                                .with("digest", Passable::bytes(digest.to_vec()))
                                .with("secret", Passable::bytes(text.to_vec()));
                            return Ok(Passable::Struct(answer));
                        }
                    }
                    // Whoever has one keeps it.
                    Err(error) if held.is_some() => tracing::warn!(%error, "secret not read"),
                    Err(error) => return Err(error.into()),
                }
                if Instant::now() + pause > until {
                    sleep(until.saturating_duration_since(Instant::now())).await;
                    return Ok(Passable::Null);
                }
                sleep(pause).await;
            }
        })
    }

    async fn read(&self, secret: &Secret) -> Result<Arc<Zeroizing<Vec<u8>>>, ServiceError> {
        let slot = {
            let mut all = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody has asked for lately is not kept in memory.
            all.retain(|kept, slot| {
                kept == secret
                    || slot.try_lock().map_or(true, |known| {
                        known
                            .as_ref()
                            .is_some_and(|it| it.since.elapsed() < COMMAND_FRESH)
                    })
            });
            Arc::clone(all.entry(secret.clone()).or_default())
        };
        let mut known = slot.lock().await;
        let fresh = match secret {
            Secret::File(_) => FILE_FRESH,
            Secret::Command(_) => COMMAND_FRESH,
        };
        if let Some(known) = known.as_ref().filter(|it| it.since.elapsed() < fresh) {
            return Ok(Arc::clone(&known.text));
        }
        *known = None;
        let text = match secret {
            Secret::File(path) => {
                let (path, shown) = (path.clone(), path.display().to_string());
                let read = tokio::task::spawn_blocking(move || read_file(&path, SECRET_BYTES_MAX));
                let read = read
                    .await
                    .unwrap_or_else(|gone| Err(std::io::Error::other(gone)));
                read.map_err(|error| {
                    let text = format!("the secret's file {shown} cannot be read: {error}");
                    ServiceError::Refused(text)
                })?
            }
            Secret::Command(argv) => run(argv).await?,
        };
        if text.is_empty() {
            return Err(ServiceError::Refused(format!("{} is empty", name(secret))));
        }
        let text = Arc::new(text);
        *known = Some(Known {
            text: Arc::clone(&text),
            since: Instant::now(),
        });
        Ok(text)
    }
}

fn name(secret: &Secret) -> String {
    match secret {
        Secret::File(path) => format!("the secret's file {}", path.display()),
        Secret::Command(argv) => {
            let program = argv.first().map_or("", String::as_str);
            format!("what the secret's command {program} writes")
        }
    }
}

/// Runs a command, and returns what it writes. What it says on stderr may be secret too, and is
/// not kept.
async fn run(argv: &[String]) -> Result<Zeroizing<Vec<u8>>, ServiceError> {
    let [program, args @ ..] = argv else {
        return Err(ServiceError::Refused(
            "the secret's command is empty".into(),
        ));
    };
    let failed =
        |what: String| ServiceError::Refused(format!("the secret's command {program} {what}"));
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    // A group of its own, so that what it has started ends with it.
    command.process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot be run: {error}")))?;
    let group = Pid::from_child(&child);
    let stdout = child.stdout.take();
    let reading = tokio::task::spawn_blocking(move || {
        let mut text = Zeroizing::new(Vec::new());
        if let Some(stdout) = stdout {
            stdout.take(SECRET_BYTES_MAX + 1).read_to_end(&mut text)?;
        }
        let long = text.len() as u64 > SECRET_BYTES_MAX;
        if long {
            // Nobody reads the rest.
            let _ = kill_process_group(group, Signal::KILL);
        }
        Ok::<_, std::io::Error>((text, child.wait()?, long))
    });
    // Dropped or late: the reader ends when the group does.
    let group = Group(Some(group));
    let Ok(read) = timeout(COMMAND_TIMEOUT, reading).await else {
        let seconds = COMMAND_TIMEOUT.as_secs();
        return Err(failed(format!("has not ended after {seconds} s")));
    };
    let read = read.unwrap_or_else(|gone| Err(std::io::Error::other(gone)));
    let (text, status, long) = read.map_err(|error| failed(format!("failed: {error}")))?;
    group.done();
    if long {
        return Err(failed(format!("writes more than {SECRET_BYTES_MAX} bytes")));
    }
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    Ok(text)
}

/// A process group that is ended when this is dropped before it is done.
struct Group(Option<Pid>);

impl Group {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // One that has ended is ended enough.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn command(line: &str) -> Secret {
        Secret::Command(["sh", "-c", line].map(str::to_owned).to_vec())
    }

    async fn why(secret: &Secret) -> String {
        let read = Secrets::default().read(secret).await;
        read.err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[tokio::test]
    async fn what_gives_no_secret_says_why_and_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("empty"), "").unwrap();
        std::fs::write(at("large"), vec![b'x'; SECRET_BYTES_MAX as usize + 1]).unwrap();
        let check = async |secret: Secret, expected: &str| {
            let why = why(&secret).await;
            assert!(why.ends_with(expected), "{why}");
            assert!(!why.contains("sesame"), "{why}");
        };
        let file = |path: &Path| Secret::File(path.to_owned());
        check(file(&at("none")), "No such file or directory (os error 2)").await;
        check(file(&at("empty")), "/empty is empty").await;
        check(file(&at("large")), "it is longer than 1048576 bytes").await;
        check(file(dir.path()), "it is no file").await;
        check(
            command("echo sesame >&2; exit 3"),
            "sh failed: exit status: 3",
        )
        .await;
        check(
            command("true"),
            "what the secret's command sh writes is empty",
        )
        .await;
        check(command("yes"), "sh writes more than 1048576 bytes").await;
        check(
            Secret::Command(vec!["/nowhere".into()]),
            "No such file or directory (os error 2)",
        )
        .await;
        check(Secret::Command(Vec::new()), "is empty").await;
    }

    #[tokio::test]
    async fn a_command_that_nobody_waits_for_ends_with_all_it_has_started() {
        let dir = tempfile::tempdir().unwrap();
        let started = dir.path().join("pid");
        let line = format!("sleep 1000 & echo $! > {}; wait", started.display());
        let secrets = Arc::new(Secrets::default());
        let running = tokio::spawn({
            let secrets = Arc::clone(&secrets);
            async move { secrets.fetch(&command(&line), &[]).await }
        });
        let pid = loop {
            match std::fs::read_to_string(&started) {
                Ok(pid) if pid.ends_with('\n') => break pid.trim().to_owned(),
                _ => sleep(Duration::from_millis(5)).await,
            }
        };
        running.abort();
        let is_there = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while is_there() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_question_is_answered_when_the_secret_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "one").unwrap();
        let (secrets, secret) = (Arc::new(Secrets::default()), Secret::File(path.clone()));
        let answer = |answer: &Passable| {
            let answer = answer.as_struct().unwrap();
            let field = |name| {
                answer
                    .get(name)
                    .and_then(Passable::as_bytes)
                    .unwrap()
                    .clone()
            };
            (field("digest"), field("secret"))
        };
        let (digest, text) = answer(&secrets.fetch(&secret, &[]).await.unwrap());
        assert_eq!(&*text, b"one");
        let asked = secrets.fetch(&secret, &[Passable::Bytes(digest)]);
        let change = async {
            std::fs::write(&path, "two").unwrap();
        };
        let (later, ()) = tokio::join!(asked, change);
        assert_eq!(&*answer(&later.unwrap()).1, b"two");
    }
}
