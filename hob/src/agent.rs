//! The agent: claims once, stays registered while there is a boss, and serves bindings always.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ocapn::{
    Broken, EnlivenError, Identity, Passable, Peer, PeerId, PeerLocator, Reference, SessionEvent,
    Sturdyref, SturdyrefTable, Swissnum, TlsRpk, TlsRpkOptions, Vat,
};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::lookup_host;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::advertise::advertised;
use crate::binding::Bindings;
use crate::client::{self, ClientPresence};
use crate::grant::{Chain, Grants};
use crate::layout::{Layout, Machine, MachineError};
use crate::local;
use crate::logs;
use crate::process::start_time;
use crate::programs::{Programs, Wanted, environment};
use crate::protocol::{
    BYTES_ALPN, Generation, HobStatus, Malformed, Offer, PROTOCOL, Register, RegisterReply, code,
    method, to_passable,
};
use crate::store::{Store, StoreError, swissnum_hash};
use crate::units::{self, Units};
use crate::user_data;

/// Pauses between tries to reach the boss grow between these; each is cut by full jitter.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(500);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long the boss may take to answer `register`: it writes to its disk.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);

/// Byte connections that wait for the task that serves them.
const INCOMING_MAX: usize = 64;

/// What the client presence's durable name is derived for.
const CLIENT_PURPOSE: &str = "client presence";

/// What the parts of a running agent share.
pub(crate) struct Hob {
    pub(crate) store: Arc<Store>,
    pub(crate) grants: Arc<Grants>,
    pub(crate) bindings: Arc<Bindings>,
    pub(crate) locator: PeerLocator,
    layout: Layout,
    peer: Peer,
    programs: Arc<Programs>,
    machine: watch::Sender<Machine>,
    wanted: watch::Sender<Wanted>,
    wanted_units: watch::Sender<Option<units::Wanted>>,
    boss_connected: AtomicBool,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the user data cannot be used")]
    UserData(#[from] Malformed),
    #[error("there is no user data at {} and no state of an earlier claim", .0.display())]
    NoUserData(PathBuf),
    #[error("another hob runs in this directory (process {0})")]
    Locked(String),
    #[error("{} is not a directory of this user's own", .0.display())]
    Runtime(PathBuf),
    #[error("{address} cannot be listened on")]
    Listen { address: String, source: io::Error },
    #[error("cannot use {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the hob cannot run")]
    Start(#[from] io::Error),
}

/// Runs the agent of the machine in a directory, until it is told to end.
///
/// `services` are where the user data comes from when the directory has none.
pub(crate) async fn run(layout: Layout, services: &[String]) -> Result<(), AgentError> {
    if !services.is_empty() {
        user_data::describe(&layout)?;
    }
    let machine = layout.read_machine()?;
    // Before the lock names this process to those who may send it signals.
    let mut signals = Signals::new()?;
    let _lock = lock(&layout)?;
    make_runtime(&machine.runtime)?;
    let store = Arc::new(Store::open(&layout)?);
    let supervisor = std::env::var_os("NOTIFY_SOCKET");
    if store.contents().bindings.is_empty() {
        // Without one there is no socket to wait for, and user data may take its time.
        units::tell_ready(supervisor.as_deref());
    }
    tokio::select! {
        taken = user_data::take(&layout, &store, services) => taken?,
        () = signals.end() => return Ok(()),
    }
    let files_max = raise_files_max();

    let listen = store.contents().listen.clone();
    let (sender, incoming) = mpsc::channel(INCOMING_MAX);
    let netlayer = listen_on(&store, &listen, sender).await?;
    let dialer = netlayer.stream_dialer();
    let grants = Arc::new(Grants::new(Arc::clone(&store)));
    let table = Arc::new(Table::default());
    let peer = Peer::builder()
        .netlayer(netlayer)
        .sturdyrefs(table.clone())
        .spawn();
    grants.reach_by(&peer);
    let root = machine.bindings();
    let units = Units::new(store.clone(), layout.clone(), machine.units.clone());
    let units = Arc::new(units);
    let bindings = Bindings::start(
        store.clone(),
        peer.clone(),
        dialer,
        root,
        layout.clone(),
        units.clone(),
    );
    let bindings = bindings.await;
    let programs = Programs::new(
        Arc::clone(&store),
        machine.token.clone(),
        &layout,
        files_max,
    );
    let hob = Arc::new(Hob {
        locator: peer.locator(),
        layout: layout.clone(),
        store,
        grants,
        bindings,
        peer: peer.clone(),
        programs: Arc::new(programs),
        machine: watch::Sender::new(machine.clone()),
        wanted: watch::Sender::default(),
        wanted_units: watch::Sender::default(),
        boss_connected: AtomicBool::new(false),
    });
    table
        .inside
        .send_replace(Some((Arc::clone(&hob), peer.vat().clone())));
    let socket = machine.local_socket();
    let listener = local::listen(&socket).map_err(|source| AgentError::Io {
        path: socket.clone(),
        source,
    })?;

    hob.want();
    let programs = Arc::clone(&hob.programs);
    let tasks = [
        tokio::spawn(Arc::clone(&hob.grants).serve(incoming)),
        tokio::spawn(Arc::clone(&hob.grants).serve_near()),
        tokio::spawn(Arc::clone(&hob.grants).clear()),
        tokio::spawn(Arc::clone(&hob.grants).expire()),
        tokio::spawn(programs.keep(hob.wanted.subscribe())),
        tokio::spawn(units.keep(hob.wanted_units.subscribe())),
        tokio::spawn(local::serve(listener, Arc::clone(&hob))),
        tokio::spawn(Arc::clone(&hob).follow_changes()),
        tokio::spawn(Arc::clone(&hob.bindings).stay_whole()),
        tokio::spawn(Arc::clone(&hob).stay(layout.clone())),
    ];
    tracing::info!(locator = %hob.locator, "hob runs");
    units::tell_ready(supervisor.as_deref());
    signals.wait_for_end(&layout, &hob).await;
    for task in tasks {
        task.abort();
    }
    peer.close().await;
    // The next hob makes it anew; gone or not, nothing depends on it.
    let _ = fs::remove_file(socket);
    tracing::info!("hob ends; its programs go on");
    Ok(())
}

/// What the agent is told by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for SIGTERM or SIGINT. SIGHUP: reads `machine.json` again.
    async fn wait_for_end(mut self, layout: &Layout, hob: &Hob) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => match layout.read_machine() {
                    Ok(machine) => {
                        tracing::info!("machine description read again");
                        hob.machine.send_replace(machine);
                        hob.want();
                    }
                    Err(error) => tracing::error!(error = %Chain(&error), "keeping the old one"),
                },
            }
        }
    }
}

impl Hob {
    /// Returns where the boss is.
    pub(crate) fn boss(&self) -> Option<PeerLocator> {
        self.store
            .contents()
            .presence
            .as_ref()
            .map(|presence| presence.peer.clone())
    }

    /// Returns the end of the machine's logs.
    pub(crate) async fn log(&self) -> String {
        let logs = self.layout.logs();
        let read = tokio::task::spawn_blocking(move || logs::tail(&logs));
        read.await.unwrap_or_default()
    }

    /// Returns why a binding cannot be exposed: a machine that boots may get later what it lacks.
    pub(crate) fn excused(&self, refused: Broken) -> Broken {
        if refused.code() != Some(code::EXPOSE) || !self.machine.borrow().is_booting() {
            return refused;
        }
        let reason = refused.reason();
        let why = reason.as_struct().and_then(|it| it.get("message"));
        let why = why.and_then(Passable::as_str).unwrap_or_default();
        tracing::info!(why, "not exposed yet; the first boot may still change that");
        Broken::new(code::BOOTING, format!("{why}, and its first boot goes on"))
    }

    /// Returns what an operator may see.
    pub(crate) fn status(&self) -> HobStatus {
        let contents = self.store.contents();
        let offers = contents.offers.iter();
        let revoked = contents.revoked.iter();
        HobStatus {
            machine: contents.machine.clone(),
            designator: self.locator.designator.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            boss_connected: self.boss_connected.load(Ordering::Relaxed),
            offers: offers
                .map(|(service, spec)| Offer {
                    service: service.clone(),
                    spec: spec.shown(),
                })
                .collect(),
            grants: self.grants.status(),
            revoked: revoked
                .map(|(binding, last)| Generation {
                    binding: binding.clone(),
                    generation: *last,
                })
                .collect(),
            leaving: contents
                .leaving
                .iter()
                .map(|row| row.generation.clone())
                .collect(),
            bindings: self.bindings.status(),
            programs: self.programs.status(),
            units: self.bindings.failing_units(),
        }
    }

    /// Works out anew what the programs should be.
    fn want(&self) {
        let machine = self.machine.borrow().clone();
        let variables = self.bindings.variables();
        let environment = self.is_complete().then(|| self.environment(variables));
        let wanted = Wanted {
            lines: machine.run,
            environment,
        };
        let units = self.is_complete().then(|| self.bindings.units());
        self.wanted_units.send_if_modified(|before| {
            let changed = *before != units;
            *before = units;
            changed
        });
        self.wanted.send_if_modified(|before| {
            let changed = *before != wanted;
            *before = wanted;
            changed
        });
    }

    /// Returns whether every binding that the boss has announced is granted.
    pub(crate) fn is_complete(&self) -> bool {
        let contents = self.store.contents();
        contents.registered
            && self.bindings.has_all(&contents.expects)
            && self.bindings.waits_for().is_empty()
    }

    /// Returns the environment of programs to which bindings add these.
    pub(crate) fn environment(
        &self,
        variables: BTreeMap<String, BTreeMap<String, String>>,
    ) -> BTreeMap<String, String> {
        environment(&self.machine.borrow().bindings(), variables)
    }

    async fn follow_changes(self: Arc<Self>) {
        let mut changes = self.bindings.changes();
        while changes.changed().await.is_ok() {
            self.want();
        }
    }

    /// Keeps the presence beside the boss, whenever there is a boss.
    async fn stay(self: Arc<Self>, layout: Layout) {
        let mut pause = RECONNECT_PAUSE_MIN;
        let mut told = false;
        loop {
            let mut events = self.peer.session_events();
            let boss = self.boss();
            match self.join(&layout).await {
                Ok(machine) => {
                    tracing::info!(machine, "registered");
                    self.boss_connected.store(true, Ordering::Relaxed);
                    pause = RECONNECT_PAUSE_MIN;
                    let reason = down(&mut events, boss.as_ref()).await;
                    self.boss_connected.store(false, Ordering::Relaxed);
                    tracing::info!(reason, "the session with the boss is over");
                    told = false;
                    if boss
                        .as_ref()
                        .is_some_and(|boss| self.peer.has_session(&boss.designator))
                    {
                        continue;
                    }
                }
                // Once is enough: a boss may be away for weeks.
                Err(error) if told => tracing::debug!(error = %Chain(&error), "not registered"),
                Err(error) => {
                    tracing::info!(error = %Chain(&error), "not registered; trying on");
                    told = true;
                }
            }
            // A boss that comes back dials us: nobody waits out a pause then.
            tokio::select! {
                () = sleep(jitter(pause)) => {}
                () = up(&mut events, boss.as_ref()) => {}
            }
            pause = RECONNECT_PAUSE_MAX.min(pause * 2);
        }
    }

    /// Claims or takes up the presence, registers, and keeps what the boss says.
    async fn join(self: &Arc<Self>, layout: &Layout) -> Result<String, JoinError> {
        let contents = self.store.contents();
        let presence = contents.presence.as_ref().ok_or(JoinError::NoPresence)?;
        let server = self.peer.enliven(presence).await?;
        let register = Register {
            protocol: PROTOCOL,
            locator: self.locator.clone(),
            join_sequence: contents.join_sequence,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let client = self.peer.export(ClientPresence::new(Arc::clone(self)));
        let swissnum = self
            .store
            .derive(CLIENT_PURPOSE, &[&presence.peer.designator]);
        let swissnum = Swissnum::new(swissnum.as_slice());
        let sturdyref = Sturdyref {
            peer: self.locator.clone(),
            swissnum,
        };
        let args = [to_passable(&register), client.into(), sturdyref.into()];
        let answer = timeout(REGISTER_TIMEOUT, server.call(method::REGISTER, args)).await;
        let answer = answer.map_err(|_| JoinError::TimedOut)??;
        let RegisterReply {
            registered,
            presence: bound,
        } = RegisterReply::from_passable(&answer)?;
        if !bound.peer.same_peer(&presence.peer) {
            return Err(JoinError::OtherBoss);
        }
        let mut bound = bound;
        if presence.peer.addresses().is_empty() {
            // Invited to wait for the boss's call, it goes on waiting: what the boss says of its
            // own addresses leads nowhere from here.
            let boss = &presence.peer;
            bound.peer = PeerLocator::new(boss.transport.clone(), boss.designator.clone());
        }
        let machine = registered.machine.clone();
        self.store
            .write(move |contents| {
                contents.machine = registered.machine;
                contents.expects = registered.expects;
                contents.exposes = registered.exposes;
                contents.join_sequence = registered.join_sequence;
                contents.presence = Some(bound);
                contents.registered = true;
            })
            .await?;
        user_data::erase(layout);
        self.bindings.expect().await;
        self.want();
        Ok(machine)
    }
}

/// Why the hob is not registered.
#[derive(Debug, thiserror::Error)]
enum JoinError {
    #[error("no presence is known")]
    NoPresence,
    #[error("the boss cannot be reached, or refuses")]
    Enliven(#[from] EnlivenError),
    #[error("the boss refused to register this hob: {0}")]
    Refused(#[from] Broken),
    #[error("the boss did not answer in {} s", REGISTER_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the boss's answer cannot be read")]
    Malformed(#[from] Malformed),
    #[error("the boss named another boss")]
    OtherBoss,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `fetch` on this hob's bootstrap object answers from.
#[derive(Default)]
struct Table {
    /// There once the hob is complete; who asks earlier waits, since a refusal would be final.
    inside: watch::Sender<Option<(Arc<Hob>, Vat)>>,
}

impl SturdyrefTable for Table {
    fn fetch(&self, swissnum: Bytes, from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let mut inside = self.inside.subscribe();
        let from = from.clone();
        Box::pin(async move {
            let inside = inside.wait_for(Option::is_some).await.ok()?.clone();
            let (hob, vat) = inside?;
            if let Some(object) = hob.grants.find(&swissnum, &from) {
                return Some(vat.export(object));
            }
            let client = hob.store.derive(CLIENT_PURPOSE, &[&hob.boss()?.designator]);
            let named = swissnum_hash(&swissnum) == swissnum_hash(client.as_slice());
            (named && client::answers(&hob, &from)).then(|| vat.export(ClientPresence::new(hob)))
        })
    }
}

/// Waits for the end of the session with the boss.
async fn down(
    events: &mut broadcast::Receiver<SessionEvent>,
    boss: Option<&PeerLocator>,
) -> String {
    loop {
        match events.recv().await {
            Ok(SessionEvent::Down(peer, reason)) if is(&peer, boss) => return reason,
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

/// Waits for a session that the boss has begun.
async fn up(events: &mut broadcast::Receiver<SessionEvent>, boss: Option<&PeerLocator>) {
    loop {
        match events.recv().await {
            Ok(SessionEvent::Up(peer)) if is(&peer, boss) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            _ => {}
        }
    }
}

fn is(peer: &PeerId, boss: Option<&PeerLocator>) -> bool {
    boss.is_some_and(|boss| peer.is(&boss.transport, &boss.designator))
}

/// Returns a random part of a pause, so that those who wait together do not come together.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let mut random = [0; 4];
    match getrandom::fill(&mut random) {
        Ok(()) => pause.mul_f64(f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX)),
        // The whole pause is a part of it.
        Err(_) => pause,
    }
}

/// Makes sure that one hob runs in a directory. The lock dies with the process.
fn lock(layout: &Layout) -> Result<File, AgentError> {
    let path = layout.lock();
    let failed = |source| AgentError::Io {
        path: path.clone(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(layout.hob())
        .map_err(failed)?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(failed)?;
        return Err(AgentError::Locked(
            holder.split(' ').next().unwrap_or_default().to_owned(),
        ));
    }
    let started = start_time().unwrap_or_default();
    file.set_len(0).map_err(failed)?;
    file.rewind().map_err(failed)?;
    write!(file, "{} {started}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Makes the runtime directory. It may stand where others can write, so it must be our own.
fn make_runtime(path: &Path) -> Result<(), AgentError> {
    let failed = |source| AgentError::Io {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(AgentError::Runtime(path.to_owned()));
    }
    // Others may pass through to what they are given, and see nothing else.
    fs::set_permissions(path, fs::Permissions::from_mode(0o711)).map_err(failed)
}

/// Binds the port, and keeps the one that was chosen.
async fn listen_on(
    store: &Arc<Store>,
    listen: &str,
    streams: mpsc::Sender<ocapn::IncomingStream>,
) -> Result<TlsRpk, AgentError> {
    let failed = |source| AgentError::Listen {
        address: listen.to_owned(),
        source,
    };
    let mut address = lookup_host(listen)
        .await
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let contents = store.contents();
    if address.port() == 0 {
        // Chosen before the netlayer is made, since its locator names the port. Whoever takes it
        // in between has it: that is an error, and the next start chooses again.
        let chosen = tokio::net::TcpListener::bind(address)
            .await
            .map_err(failed)?;
        address = chosen.local_addr().map_err(failed)?;
        let kept = address.to_string();
        store.update(|contents| contents.listen = kept)?;
    }
    let boss = contents
        .presence
        .as_ref()
        .map(|presence| presence.peer.addresses());
    let options = TlsRpkOptions {
        advertise: advertised(address, &contents.advertise, &boss.unwrap_or_default()).await,
        stream_protocol: Some((BYTES_ALPN.to_vec(), streams)),
        ..TlsRpkOptions::default()
    };
    let identity = Identity::from_seed(store.seed());
    TlsRpk::bind(identity, address, options)
        .await
        .map_err(failed)
}

/// Lets this process open as many files as it may: in a hob each stream takes two, in the boss each
/// hob one. Returns the limit before, where it was lower: a hob's programs get that.
pub fn raise_files_max() -> Option<u64> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if before.current == before.maximum {
        return None;
    }
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.current,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hob_runs_in_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let held = lock(&layout).unwrap();
        let refused = lock(&layout).unwrap_err().to_string();
        let pid = std::process::id();
        assert_eq!(
            refused,
            format!("another hob runs in this directory (process {pid})")
        );
        drop(held);
        lock(&layout).unwrap();
        let text = fs::read_to_string(layout.lock()).unwrap();
        assert_eq!(text, format!("{pid} {}", start_time().unwrap()));
    }
}
