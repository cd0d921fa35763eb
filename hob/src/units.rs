//! Systemd units that get the environment of bindings, and are restarted when it changes.
//!
//! A unit has one drop-in of the hob's, which names the environment files of its bindings. What a
//! unit was restarted with last is on disk, so that a restart of the hob, or of the machine, is
//! none of the unit.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::binding::lock;
use crate::files;
use crate::grant::Chain;
use crate::layout::Layout;
use crate::owner::{Capability, may};
use crate::protocol::UnitStatus;
use crate::store::{Store, StoreError};

/// What talks to systemd, found in the hob's `PATH`.
const SYSTEMCTL: &str = "systemctl";

/// How long it may take: nothing is waited for that a unit does.
const SYSTEMCTL_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the drop-in in the directory of a unit's.
const DROP_IN: &str = "50-gobs.conf";

/// The hob's own unit, where it has one; the sockets of bindings are there after it.
const HOB_UNIT: &str = "gobs-hob.service";

/// How long it is waited before what systemd refused is tried again, and before it is looked how a
/// unit has started: it doubles with each try, up to where a person has long been told by
/// `gobs status`.
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(2);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Bytes of systemd's own words that are passed on.
const WORDS_MAX: usize = 400;

/// Why a unit cannot get an environment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("the unit {unit} cannot be told: this machine is not described as one with systemd")]
    None { unit: String },
    #[error("this machine has no unit {0}")]
    Missing(String),
    #[error("the unit {unit} cannot be used: systemd says it is {state}")]
    State { unit: String, state: String },
    #[error("it failed when it was restarted with its bindings: journalctl -u {0} says why")]
    Failed(String),
    #[error("systemd cannot be asked")]
    Systemctl(#[from] io::Error),
    #[error("systemctl {command} failed: {words}")]
    Refused { command: String, words: String },
    #[error("the change of {0} was not recorded")]
    Store(String, #[source] StoreError),
}

/// What units are to get: for each the environments of its bindings, by name.
pub(crate) type Wanted = BTreeMap<String, BTreeMap<String, String>>;

/// The units of the machine.
pub(crate) struct Units {
    store: Arc<Store>,
    layout: Layout,
    /// Where drop-ins go; nowhere, if the machine has no systemd.
    dir: Option<PathBuf>,
    /// Units that are not as they are wanted, each with why.
    failing: Mutex<BTreeMap<String, String>>,
    /// Units that were restarted, until they are seen to run.
    starting: Mutex<BTreeSet<String>>,
}

impl Units {
    /// Returns the units of a machine.
    pub(crate) fn new(store: Arc<Store>, layout: Layout, dir: Option<PathBuf>) -> Self {
        Self {
            store,
            layout,
            dir,
            failing: Mutex::default(),
            starting: Mutex::default(),
        }
    }

    /// Returns the units that are not as they are wanted: systemd refuses.
    pub(crate) fn failing(&self) -> Vec<UnitStatus> {
        let failing = lock(&self.failing);
        let all = failing.iter().map(|(unit, error)| UnitStatus {
            unit: unit.clone(),
            error: error.clone(),
        });
        all.collect()
    }

    /// Checks that a unit is there.
    pub(crate) async fn check(&self, unit: &str) -> Result<(), UnitError> {
        if self.dir.is_none() {
            return Err(UnitError::None { unit: unit.into() });
        }
        // It becomes a part of a path.
        if unit.contains('/') || unit.starts_with('.') {
            return Err(UnitError::Missing(unit.into()));
        }
        match show(unit, "LoadState").await?.trim() {
            "loaded" => Ok(()),
            "not-found" => Err(UnitError::Missing(unit.into())),
            state => Err(UnitError::State {
                unit: unit.into(),
                state: state.into(),
            }),
        }
    }

    /// Keeps units as they are wanted, for as long as the sender lives. While nothing is wanted,
    /// not all bindings are there, and units stay as they are.
    pub(crate) async fn keep(self: Arc<Self>, mut wanted: watch::Receiver<Option<Wanted>>) {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let now = wanted.borrow_and_update().clone();
            let settled = match now {
                None => Ok(()),
                Some(now) => self.settle(&now).await,
            };
            let is_settled = settled.is_ok() && lock(&self.starting).is_empty();
            if let Err(error) = settled {
                tracing::error!(error = %Chain(&error), ?pause, "units not told; trying again");
            }
            let again = async {
                match is_settled {
                    true => std::future::pending().await,
                    false => sleep(pause).await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => match changed {
                    // What is wanted now may be possible.
                    Ok(()) => pause = RETRY_PAUSE_MIN,
                    Err(_) => return,
                },
                () = again => pause = RETRY_PAUSE_MAX.min(pause * 2),
            }
        }
    }

    /// Makes every unit what it is to be; one that fails does not keep the others from it.
    async fn settle(&self, wanted: &Wanted) -> Result<(), UnitError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let recorded = self.store.contents().units.clone();
        let mut result = Ok(());
        let gone = recorded.keys().filter(|unit| !wanted.contains_key(*unit));
        let none = BTreeMap::new();
        let all = wanted.iter().chain(gone.map(|unit| (unit, &none)));
        for (unit, environments) in all {
            let settled = self
                .settle_one(dir, unit, environments, recorded.get(unit))
                .await;
            let mut failing = lock(&self.failing);
            match &settled {
                Ok(()) => drop(failing.remove(unit)),
                Err(error) => drop(failing.insert(unit.clone(), Chain(error).to_string())),
            }
            drop(failing);
            result = result.and(settled);
        }
        lock(&self.failing)
            .retain(|unit, _| wanted.contains_key(unit) || recorded.contains_key(unit));
        result
    }

    async fn settle_one(
        &self,
        dir: &Path,
        unit: &str,
        environments: &BTreeMap<String, String>,
        recorded: Option<&String>,
    ) -> Result<(), UnitError> {
        let drop_ins = dir.join(format!("{unit}.d"));
        let path = drop_ins.join(DROP_IN);
        let text = self.drop_in(environments);
        let changed = match environments.is_empty() {
            true => remove(&drop_ins, &path)?,
            false => {
                std::fs::create_dir_all(&drop_ins)?;
                let changed = files::write_file(&path, &text)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
                changed
            }
        };
        let digest = (!environments.is_empty()).then(|| digest(&text, environments));
        let is_settled = digest.as_ref() == recorded;
        // The last try may have ended between the two.
        if changed || !is_settled {
            systemctl(&["daemon-reload"]).await?;
        }
        if is_settled {
            return self.check_start(unit).await;
        }
        lock(&self.starting).remove(unit);
        // A unit that could not start without its bindings is started; one that loses them goes on
        // only if it runs, and is there.
        let verb = match digest {
            Some(_) => Some("restart"),
            None => (show(unit, "LoadState").await?.trim() == "loaded").then_some("try-restart"),
        };
        if let Some(verb) = verb {
            systemctl(&["--no-block", verb, "--", unit]).await?;
            tracing::info!(unit, verb, "the unit's bindings have changed");
        }
        if digest.is_some() {
            lock(&self.starting).insert(unit.to_owned());
        }
        let (key, name) = (unit.to_owned(), unit.to_owned());
        let written = self.store.write(move |contents| match digest {
            Some(digest) => contents.units.insert(key, digest),
            None => contents.units.remove(&key),
        });
        let written = written.await.map(drop);
        written.map_err(|error| UnitError::Store(name, error))
    }

    /// Looks how a unit has started that was restarted: nobody waited for it.
    async fn check_start(&self, unit: &str) -> Result<(), UnitError> {
        if !lock(&self.starting).contains(unit) {
            return Ok(());
        }
        let state = show(unit, "ActiveState,SubState").await?;
        match state.split_whitespace().collect::<Vec<_>>()[..] {
            ["failed", _] | [_, "auto-restart"] => Err(UnitError::Failed(unit.to_owned())),
            ["activating" | "deactivating" | "reloading", _] => Ok(()),
            _ => {
                lock(&self.starting).remove(unit);
                Ok(())
            }
        }
    }

    fn drop_in(&self, environments: &BTreeMap<String, String>) -> String {
        let mut text = format!(
            "# Written by gobs for the bindings of this machine; changes are lost.\n[Unit]\n\
             After={HOB_UNIT}\n\n[Service]\n"
        );
        for name in environments.keys() {
            let path = self.layout.environment(name).display().to_string();
            // What begins with % is replaced by systemd.
            text.push_str(&format!("EnvironmentFile={}\n", path.replace('%', "%%")));
        }
        text
    }
}

/// Tells systemd that units after the hob's may start: the sockets of bindings are listened on.
/// `socket` is the environment's `NOTIFY_SOCKET`; without one, nobody waits to be told.
pub(crate) fn tell_ready(socket: Option<&OsStr>) {
    let Some(socket) = socket.filter(|it| !it.is_empty()) else {
        return;
    };
    let told = || {
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(socket)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)
    };
    if let Err(error) = told() {
        tracing::warn!(%error, "systemd is not told that the hob runs");
    }
}

/// Returns what a unit was restarted with.
fn digest(text: &str, environments: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    for part in [text]
        .into_iter()
        .chain(environments.values().map(String::as_str))
    {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    data_encoding::HEXLOWER.encode(&digest.finalize()[..16])
}

/// Removes a drop-in, and its directory if nothing else is in it; returns whether it was there.
fn remove(drop_ins: &Path, path: &Path) -> io::Result<bool> {
    let was_there = path.symlink_metadata().is_ok();
    files::remove_if_there(std::fs::remove_file(path))?;
    // One that is not empty, or not there, stays so.
    let _ = std::fs::remove_dir(drop_ins);
    Ok(was_there)
}

/// Returns properties of a unit, each in a line.
async fn show(unit: &str, properties: &str) -> Result<String, UnitError> {
    let properties = format!("--property={properties}");
    systemctl(&["show", &properties, "--value", "--", unit]).await
}

/// Asks systemd, and returns what it says.
async fn systemctl(args: &[&str]) -> Result<String, UnitError> {
    let mut command = Command::new(SYSTEMCTL);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    // Systemd listens to root.
    if !rustix::process::geteuid().is_root() && may(Capability::Setuid) {
        command.uid(0).gid(0);
    }
    let output = timeout(SYSTEMCTL_TIMEOUT, command.output()).await;
    let Output {
        status,
        stdout,
        stderr,
    } = output.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&stderr);
    Err(UnitError::Refused {
        command: args.join(" "),
        words: words.trim().chars().take(WORDS_MAX).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_on_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = format!("@gobs-test-{}", std::process::id());
        let name = abstract_name.trim_start_matches('@');
        let address = SocketAddr::from_abstract_name(name).unwrap();
        for (socket, named) in [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str()),
            (
                UnixDatagram::bind_addr(&address).unwrap(),
                OsStr::new(&abstract_name),
            ),
        ] {
            tell_ready(Some(named));
            let mut told = [0; 16];
            let length = socket.recv(&mut told).unwrap();
            assert_eq!(&told[..length], b"READY=1");
        }
        // Nobody listens, and nobody is to be told.
        tell_ready(Some(dir.path().join("none").as_os_str()));
        tell_ready(None);
    }
}
