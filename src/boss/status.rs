//! What an operator sees, and the socket that shows it beside a running apply.
//!
//! The socket is the project's own (0600): one line of JSON asks, one line answers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use hob::protocol::{self, HobStatus, method};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{Boss, BossError, Key};

/// How long a hob may take to answer for a status: who watches wants to see who is away.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// How long another process's boss may take to answer: it asks its hobs, and then reads its state.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a connection that could not be taken: the process may be out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The longest request line: the one there is has 20 bytes.
const REQUEST_BYTES_MAX: u64 = 4_096;

/// The longest answer: 10,000 hobs with a kilobyte each, and room.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Everything that an operator may want to see. No secret is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The hobs that have registered, by machine.
    pub hobs: Vec<HobReport>,
    /// What needs a person, newest first.
    pub alerts: Vec<AlertReport>,
    /// The machines, each with its incarnation, whose hob did not call home in time. Some may
    /// never have been made.
    #[serde(default)]
    pub unclaimed: Vec<(String, u64)>,
}

/// One hob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HobReport {
    /// Its machine's address.
    pub machine: String,
    /// The machine's incarnation.
    pub incarnation: u64,
    /// The designator of its key.
    pub designator: String,
    /// When it last registered, in seconds since 1970.
    pub last_seen_s: u64,
    /// Whether a stale join sequence locked it: two machines have its key.
    pub locked: bool,
    /// What it says now; nothing where it could not be reached.
    pub status: Option<HobStatus>,
}

/// Another key tried a claim that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertReport {
    /// Names it among the alerts.
    pub id: u64,
    /// The machine whose claim it was.
    pub machine: String,
    /// The designator of the key that has the claim.
    pub bound_key: String,
    /// The designator of the key that was refused.
    pub other_key: String,
    /// From where it tried last.
    pub other_address: Option<String>,
    /// When it tried last, in seconds since 1970.
    pub last_time_s: u64,
    /// How often it tried.
    pub count: u64,
    /// Whether it tried while the claim was open.
    pub contested: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    Status,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Response {
    Status(StatusReport),
    Error(String),
}

impl Boss {
    /// Returns what an operator may want to see; asks every hob, briefly.
    ///
    /// # Errors
    /// When the state file cannot be read.
    pub async fn status(&self) -> Result<StatusReport, BossError> {
        let hobs = self.0.store.hobs()?.into_iter().map(|hob| async move {
            let key: Key = (hob.machine.clone(), hob.incarnation);
            HobReport {
                machine: hob.machine.to_string(),
                incarnation: hob.incarnation,
                designator: hob.designator,
                last_seen_s: seconds(hob.last_seen),
                locked: hob.locked_at.is_some(),
                status: self.hob_status(&key).await,
            }
        });
        let hobs = join_all(hobs).await;
        let alerts = self.0.store.alerts()?;
        let open = alerts
            .into_iter()
            .filter(|alert| alert.acknowledged_at.is_none());
        let alerts = open
            .map(|alert| AlertReport {
                id: alert.id,
                machine: alert.machine.to_string(),
                bound_key: alert.bound_key,
                other_key: alert.other_key,
                other_address: alert.other_address.map(|address| address.to_string()),
                last_time_s: seconds(alert.last_time),
                count: alert.count,
                contested: alert.contested,
            })
            .collect();
        let unclaimed = self.0.store.unclaimed(self.0.clock.now())?.into_iter();
        let unclaimed = unclaimed.map(|(machine, incarnation)| (machine.to_string(), incarnation));
        Ok(StatusReport {
            hobs,
            alerts,
            unclaimed: unclaimed.collect(),
        })
    }

    /// Returns what these hobs say, as far as they can be reached within a moment.
    pub async fn statuses(&self, of: &BTreeSet<Key>) -> BTreeMap<Key, HobStatus> {
        let asked = of.iter().map(|key| async move {
            let answer = self
                .call(key, method::STATUS, Vec::new(), STATUS_TIMEOUT)
                .await;
            let status = protocol::from_passable("status's answer", &answer.ok()?).ok()?;
            Some((key.clone(), status))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn hob_status(&self, key: &Key) -> Option<HobStatus> {
        let ask = async {
            let client = self.reach(key).await.ok()??;
            let answer = client.call(method::STATUS, []).await.ok()?;
            protocol::from_passable("status's answer", &answer).ok()
        };
        tokio::time::timeout(STATUS_TIMEOUT, ask)
            .await
            .ok()
            .flatten()
    }
}

/// Asks the boss that another process of this project runs; nothing where none runs.
///
/// # Errors
/// When one runs and cannot answer.
pub async fn ask_status(socket: &Path) -> io::Result<Option<StatusReport>> {
    let answer = async {
        let Some(mut stream) = connect(socket).await? else {
            return Ok(None);
        };
        let mut line = serde_json::to_vec(&Request::Status)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream)
            .take(ANSWER_BYTES_MAX)
            .read_line(&mut answer)
            .await?;
        match serde_json::from_str(&answer)? {
            Response::Status(report) => Ok(Some(report)),
            Response::Error(text) => Err(io::Error::other(text)),
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The socket, with its file: a clean end leaves nothing.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever starts next replaces what could not be removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket; refuses where another process answers on it, and replaces what a killed one
/// has left.
pub(super) async fn bind(path: &Path) -> Result<Socket, BossError> {
    let failed = |source| BossError::Socket {
        path: path.to_owned(),
        source,
    };
    if connect(path).await.map_err(failed)?.is_some() {
        return Err(BossError::Running(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let (_directory, short) = reachable(path).map_err(failed)?;
    let socket = Socket {
        listener: UnixListener::bind(short).map_err(failed)?,
        path: path.to_owned(),
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(socket)
}

pub(super) async fn serve(boss: Boss, socket: Socket) {
    loop {
        let stream = match socket.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection on the boss's socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let boss = boss.clone();
        tokio::spawn(async move {
            // Whoever asked and went away needs no answer.
            let _ = answer(&boss, stream).await;
        });
    }
}

async fn answer(boss: &Boss, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut request = String::new();
    BufReader::new(reader)
        .take(REQUEST_BYTES_MAX)
        .read_line(&mut request)
        .await?;
    let response = match serde_json::from_str(&request) {
        Ok(Request::Status) => match boss.status().await {
            Ok(report) => Response::Status(report),
            Err(error) => Response::Error(error.to_string()),
        },
        Err(error) => Response::Error(format!("not a request: {error}")),
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// Connects to whoever listens on the socket; nothing where nobody does.
async fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let connected = match reachable(path) {
        Ok((_directory, short)) => UnixStream::connect(short).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            _ => Err(error),
        },
    }
}

/// Returns a name of a socket that is short enough for the kernel: a path over 107 bytes is
/// reached through its open directory, which must stay open meanwhile.
fn reachable(path: &Path) -> io::Result<(Option<std::fs::File>, PathBuf)> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= hob::layout::SOCKET_PATH_SIZE_MAX {
        return Ok((None, path.to_owned()));
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((Some(directory), short))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
