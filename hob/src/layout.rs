//! Where things are in a machine's directory.
//!
//! ```text
//! DIR/machine.json    written by the provider, read by the hob at its start and at SIGHUP:
//!                     {"format": 1, "token": "…", "runtime": "/run/…", "run": ["shell line", …],
//!                     "units": "/etc/systemd/system"}
//! DIR/user-data       0600, written by the provider; erased by the hob after the claim
//! DIR/hob/            0700, the hob's own
//!   key               its key
//!   state.json        what it keeps across reboots
//!   lock              held while it runs; its text is PID and start time (field 22 of
//!                     /proc/PID/stat), apart by a space
//! DIR/environment/    NAME.env: a binding's environment, for `EnvironmentFile=` of systemd
//! DIR/logs/           hob.log (the provider's redirection), run-N.log of each program
//! RUNTIME/            short, since a socket's path is limited; made 0711 by the hob
//!   hob.sock          where `hob status`, `hob list` and the like ask
//!   bindings/NAME/    a binding's files, and `..run/socket` unless it is exposed otherwise
//! ```
//!
//! Whoever ends a machine ends every process whose environment holds `GOBS_MACHINE_TOKEN=TOKEN`:
//! the hob gives it to all programs. The hob itself is the process that its lock names.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The version of `machine.json`.
pub const MACHINE_FORMAT: u32 = 1;

/// The longest path that a unix socket can be bound to: the kernel's `sun_path` less its end.
pub const SOCKET_PATH_SIZE_MAX: usize = 107;

/// Where a machine's sockets are when nothing says.
pub const RUNTIME_DEFAULT: &str = "/run/gobs";

/// What follows a binding's name in the name of the file with its environment.
pub(crate) const ENVIRONMENT_SUFFIX: &str = ".env";

/// The name of the socket for programs on the machine.
pub(crate) const LOCAL_SOCKET: &str = "hob.sock";

/// The paths of one machine.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

/// `machine.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// [`MACHINE_FORMAT`].
    pub format: u32,
    /// The provider's token of the machine; not a secret.
    pub token: String,
    /// The runtime directory.
    pub runtime: PathBuf,
    /// Shell lines to be kept running.
    #[serde(default)]
    pub run: Vec<String>,
    /// Where drop-ins of systemd's units go. None: the machine has no systemd of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<PathBuf>,
    /// Where cloud-init says how far it is. None: the machine has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<PathBuf>,
}

impl Machine {
    /// Returns whether cloud-init is at its work: what this boot is to make may not be there yet.
    pub fn is_booting(&self) -> bool {
        let has = |name: &str| {
            let dir = self.cloud_init.as_ref();
            dir.is_some_and(|dir| dir.join(name).symlink_metadata().is_ok())
        };
        has("enabled") && !has("result.json")
    }
}

/// Why `machine.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{} is no machine description", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It was written for another version.
    #[error("{} has format {format}, and this hob reads format {MACHINE_FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
}

impl Layout {
    /// Returns the paths under `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns the machine's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of `machine.json`.
    pub fn machine(&self) -> PathBuf {
        self.dir.join("machine.json")
    }

    /// Returns the path of the user data.
    pub fn user_data(&self) -> PathBuf {
        self.dir.join("user-data")
    }

    /// Returns the hob's own directory.
    pub fn hob(&self) -> PathBuf {
        self.dir.join("hob")
    }

    /// Returns the path of the lock.
    pub fn lock(&self) -> PathBuf {
        self.hob().join("lock")
    }

    /// Returns the path of the file with a binding's environment.
    pub fn environment(&self, name: &str) -> PathBuf {
        self.environments()
            .join(format!("{name}{ENVIRONMENT_SUFFIX}"))
    }

    /// Returns the directory of these files.
    pub(crate) fn environments(&self) -> PathBuf {
        self.dir.join("environment")
    }

    /// Returns the directory of the logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Returns the end of the logs, for people.
    pub fn log_tail(&self) -> String {
        crate::logs::tail(&self.logs())
    }

    /// Reads `machine.json`.
    pub fn read_machine(&self) -> Result<Machine, MachineError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = self.machine();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(MachineError::Read { path, source }),
        };
        match serde_json::from_slice::<Format>(&text) {
            Ok(Format {
                format: MACHINE_FORMAT,
            }) => {}
            Ok(Format { format }) => return Err(MachineError::Format { path, format }),
            Err(source) => return Err(MachineError::Malformed { path, source }),
        }
        serde_json::from_slice(&text).map_err(|source| MachineError::Malformed { path, source })
    }
}

impl Machine {
    /// Returns the directory that `SERVICE_BINDING_ROOT` names.
    pub fn bindings(&self) -> PathBuf {
        self.runtime.join("bindings")
    }

    /// Returns the path of the socket for programs on the machine.
    pub fn local_socket(&self) -> PathBuf {
        self.runtime.join(LOCAL_SOCKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_descriptions_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert!(matches!(
            layout.read_machine(),
            Err(MachineError::Read { .. })
        ));
        let machine = Machine {
            format: MACHINE_FORMAT,
            token: "t".into(),
            runtime: "/r".into(),
            run: vec!["true".into()],
            units: None,
            cloud_init: None,
        };
        std::fs::write(layout.machine(), serde_json::to_vec(&machine).unwrap()).unwrap();
        assert_eq!(layout.read_machine().unwrap(), machine);
        std::fs::write(layout.machine(), r#"{"format":2}"#).unwrap();
        assert!(matches!(
            layout.read_machine(),
            Err(MachineError::Format { format: 2, .. })
        ));
        std::fs::write(layout.machine(), r#"{"format":1}"#).unwrap();
        assert!(matches!(
            layout.read_machine(),
            Err(MachineError::Malformed { .. })
        ));
    }
}
