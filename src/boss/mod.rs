//! The boss: keeps the machines' hobs, and hands each what its bindings declare.
//!
//! `gobs apply` hosts a [`Boss`] for its run. The boss listens for hobs, dials those that it
//! knows, and is in no binding's path: what it has handed over works without it.
//!
//! | file | what it does |
//! |---|---|
//! | `arrival.rs` | waits for machines, calls those that cannot, looks from where they come |
//! | `enroll.rs` | one-time claims, presences pending → active, sturdyrefs bound to keys |
//! | `bind.rs` | offers, grants, hand-overs, revocations |
//! | `program.rs` | serves its own `hob` to machines that have none |
//! | `lend.rs` | services for people, for a while |
//! | `operator.rs` | the posts' `get-machine`, `list-machines`, `create-machine` over CapTP |
//! | `status.rs` | what an operator sees, and the socket that shows it beside a running apply |

mod arrival;
mod bind;
mod enroll;
mod lend;
mod operator;
mod program;
mod status;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gobs_model::{Address, Instance};
use gobs_state::{BossStore, StoreError};
use hob::protocol::{self, host_and_port};
use ocapn::netlayer::tls_rpk::{TlsRpk, TlsRpkOptions};
use ocapn::{Identity, Limits, Netlayer, Peer, PeerLocator, SessionEvent, StreamDialer, Sturdyref};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use arrival::{Expected, Home, Registered};
pub use bind::{BindRequest, Bound, UnbindRequest, Unbound};
pub use enroll::Invitation;
pub use lend::Loan;
pub use operator::{Machines, operator_identity, operator_sturdyref};
pub use status::{AlertReport, HobReport, StatusReport, ask_status};

use crate::clock::Clock;

use enroll::Presence;

/// How long one call to a hob may take before it is tried again on another session: far longer
/// than a round trip and a write to a slow disk.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The pause between tries to reach a hob: it starts short, since most are there already, and
/// doubles up to the second.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long a port that is taken is tried: far longer than a process takes to end, and short
/// enough for whoever waits to be told.
const PORT_WAIT: Duration = Duration::from_secs(2);

/// What one hob may use of the boss: a hob needs a presence and a few calls at a time.
fn limits() -> Limits {
    Limits {
        message_size_max: 1 << 20,
        exports_max: 10_000,
        imports_max: 10_000,
        answers_max: 10_000,
        queue_max: 10_000,
        pending_max: 10_000,
        output_max: 16 << 20,
        ..Limits::default()
    }
}

/// How a boss is reached.
#[derive(Clone, Debug)]
pub struct BossOptions {
    /// Where it listens: `127.0.0.1:0`, `[::]:7462`. Port 0 is chosen once, then kept.
    pub listen: String,
    /// The addresses that hobs dial, `host:port` or `host`; empty: the one listened on.
    pub advertise: Vec<String>,
    /// The socket on which other processes of this project ask it: `.gobs/boss.sock`.
    pub socket: PathBuf,
    /// The program that it serves to machines that need a hob: a `gobs`, which is one where it is
    /// called so, and of the boss's own version.
    pub program: Option<PathBuf>,
    /// What time it is.
    pub clock: Clock,
    /// From where hobs are to call that have not registered yet.
    pub homes: Vec<Home>,
    /// How many things hobs do for it before this process dies, in tests of crash safety.
    pub dies_after: Option<u64>,
}

/// Why the boss could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BossError {
    /// It cannot listen.
    #[error("the boss cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: String,
        /// Why.
        source: io::Error,
    },
    /// An address is none.
    #[error("{0:?} is not an address to listen on, such as 127.0.0.1:0 or [::]:7462")]
    Address(String),
    /// It listens on all addresses and does not know which of them lead to it.
    #[error("the boss listens on {0}, which is no address that a hob can dial: advertise one")]
    NoAddress(String),
    /// Its socket cannot be made.
    #[error("cannot make the socket {}: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses the boss's key.
    #[error("another process of this project runs the boss (it answers on {})", .0.display())]
    Running(PathBuf),
    /// The state file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The hob cannot be reached in time.
    #[error("the hob on {machine} was not reached within {} s: {detail}", waited.as_secs())]
    Unreachable {
        /// Its machine.
        machine: Address,
        /// How long it was waited for.
        waited: Duration,
        /// What the last try said.
        detail: String,
    },
    /// The machine never claimed, or claimed and never registered.
    #[error("the hob on {machine} did not call home in time{}", elsewhere(refused.as_ref()))]
    Unclaimed {
        /// The machine.
        machine: Address,
        /// From where somebody called who was refused for that address.
        refused: Option<IpAddr>,
    },
    /// Another key tried the machine's claim while it was open: nothing is given to it until an
    /// operator has looked.
    #[error("another key tried to claim {machine} while its claim was open")]
    Contested {
        /// The machine.
        machine: Address,
    },
    /// The hob refused.
    #[error("the hob on {machine} refused: {message}")]
    Refused {
        /// Its machine.
        machine: Address,
        /// The code on the wire (`hob::protocol::code`), where there is one.
        code: Option<String>,
        /// What it said.
        message: String,
    },
    /// The service does not answer.
    #[error("the service did not answer within {} s: {detail}", waited.as_secs())]
    NotReady {
        /// How long it was tried.
        waited: Duration,
        /// What the last try said.
        detail: String,
        /// The machine that offers it.
        machine: Instance,
        /// The end of that machine's logs; empty where they cannot be had.
        log: String,
    },
}

fn elsewhere(refused: Option<&IpAddr>) -> String {
    refused.map_or_else(String::new, |from| {
        format!("; a call from {from} was refused, which is none of its addresses")
    })
}

/// A machine of one incarnation.
type Key = (Address, u64);

/// The boss. Clones are the same boss; it ends with [`Boss::shutdown`].
#[derive(Clone)]
pub struct Boss(Arc<Inner>);

struct Inner {
    store: BossStore,
    identity: Identity,
    peer: Mutex<Option<Peer>>,
    locator: Mutex<PeerLocator>,
    presences: Mutex<HashMap<Key, Presence>>,
    /// The names under which a machine is about to get bindings.
    expects: Mutex<HashMap<Key, BTreeMap<String, Vec<protocol::Expose>>>>,
    machines: Mutex<Option<Arc<dyn Machines>>>,
    program: program::OwnProgram,
    clock: Clock,
    /// Dials those whose key is not known yet.
    dialer: StreamDialer,
    /// From where machines are expected to call.
    homes: Mutex<HashMap<Key, arrival::Caller>>,
    /// Counts registrations, for whoever waits for one.
    registrations: watch::Sender<u64>,
    /// For tests of crash safety.
    dies_after: Option<u64>,
    /// How many things hobs have done for it.
    done: AtomicU64,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Boss {
    /// Starts the boss: listens, answers on its socket, and dials every hob that it knows.
    ///
    /// # Errors
    /// When another process runs it, or an address or the socket cannot be had.
    pub async fn start(store: BossStore, options: BossOptions) -> Result<Self, BossError> {
        let socket = status::bind(&options.socket).await?;
        // It may have more hobs to dial than a shell lets it open files.
        let _ = hob::raise_files_max();
        let identity = Identity::from_seed(&*store.seed()?);
        let kept = store.port()?;
        let listen = listen_address(&options.listen, kept).await?;
        let advertise = options.advertise.iter();
        let (public, fetchers) = mpsc::channel(program::WAITING_MAX);
        let netlayer_options = TlsRpkOptions {
            public_protocol: Some((program::ALPN.to_vec(), public)),
            // Port 0 stands for the one that is bound.
            advertise: advertise.map(|text| host_and_port(text, 0)).collect(),
            ..TlsRpkOptions::default()
        };
        let netlayer = bind_netlayer(&identity, listen, &netlayer_options)
            .await
            .map_err(|source| BossError::Listen {
                listen: listen.to_string(),
                source,
            })?;
        if netlayer.locator().addresses().is_empty() {
            return Err(BossError::NoAddress(options.listen));
        }
        if let Some(bound) = netlayer.local_addr()
            && kept != Some(bound.port())
        {
            store.set_port(bound.port())?;
        }
        let inner = Arc::new(Inner {
            store,
            identity,
            peer: Mutex::new(None),
            locator: Mutex::new(PeerLocator::new("", "")),
            presences: Mutex::default(),
            expects: Mutex::default(),
            machines: Mutex::default(),
            program: program::OwnProgram::new(options.program),
            clock: options.clock,
            dialer: netlayer.stream_dialer(),
            homes: Mutex::new(arrival::callers(options.homes)),
            registrations: watch::Sender::new(0),
            dies_after: options.dies_after,
            done: AtomicU64::new(0),
            tasks: Mutex::default(),
        });
        let peer = Peer::builder()
            .netlayer(netlayer)
            .sturdyrefs(enroll::table(&inner))
            .limits(limits())
            .spawn();
        *lock(&inner.locator) = peer.locator();
        let events = peer.session_events();
        *lock(&inner.peer) = Some(peer);
        let boss = Self(inner);
        boss.restore_presences()?;
        let watcher = tokio::spawn(watch_sessions(boss.clone(), events));
        let server = tokio::spawn(status::serve(boss.clone(), socket));
        let downloads = tokio::spawn(program::serve(boss.clone(), fetchers));
        lock(&boss.0.tasks).extend([watcher, server, downloads]);
        boss.dial_known();
        Ok(boss)
    }

    /// Returns where the boss is reached.
    pub fn locator(&self) -> PeerLocator {
        lock(&self.0.locator).clone()
    }

    /// Stops: closes sessions, the listener and the socket.
    pub async fn shutdown(self) {
        let tasks = std::mem::take(&mut *lock(&self.0.tasks));
        for task in tasks {
            task.abort();
            // It holds the socket, so it has to be gone; how it ended says nothing.
            let _ = task.await;
        }
        lock(&self.0.presences).clear();
        *lock(&self.0.machines) = None;
        let peer = lock(&self.0.peer).take();
        if let Some(peer) = peer {
            peer.close().await;
        }
    }

    /// Counts what a hob has done; dies here, as by SIGKILL, where a test has asked for it.
    fn step(&self) {
        let done = self.0.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.0.dies_after == Some(done) {
            use rustix::process::{Signal, getpid, kill_process};
            // No destructor may run, as none would.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn peer(&self) -> Option<Peer> {
        lock(&self.0.peer).clone()
    }

    async fn enliven(&self, sturdyref: &Sturdyref) -> Result<ocapn::Reference, String> {
        let Some(peer) = self.peer() else {
            return Err("the boss is stopping".into());
        };
        match tokio::time::timeout(CALL_TIMEOUT, peer.enliven(sturdyref)).await {
            Ok(Ok(reference)) => Ok(reference),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }
}

/// Binds the port. The run before may have ended a moment ago, and a process that is just being
/// started may still hold what it was about to drop: a port that is taken is tried for a while.
async fn bind_netlayer(
    identity: &Identity,
    listen: SocketAddr,
    options: &TlsRpkOptions,
) -> io::Result<TlsRpk> {
    let deadline = Instant::now() + PORT_WAIT;
    loop {
        match TlsRpk::bind(identity.clone(), listen, options.clone()).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(RETRY_MIN).await;
            }
            bound => return bound,
        }
    }
}

/// Locks a mutex whose data is whole between any two statements, whoever panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the address to bind: the kept port in place of port 0, so that the sturdyref in
/// yesterday's user data still leads here.
async fn listen_address(listen: &str, kept: Option<u16>) -> Result<SocketAddr, BossError> {
    let mut found = tokio::net::lookup_host(listen)
        .await
        .map_err(|_| BossError::Address(listen.to_owned()))?;
    let mut address = found
        .next()
        .ok_or_else(|| BossError::Address(listen.to_owned()))?;
    if address.port() == 0 {
        address.set_port(kept.unwrap_or(0));
    }
    Ok(address)
}

async fn watch_sessions(boss: Boss, mut events: tokio::sync::broadcast::Receiver<SessionEvent>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(SessionEvent::Down(peer, _)) => boss.severed(&peer.designator),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
