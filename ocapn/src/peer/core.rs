//! What the tasks of one peer share: its vat, its connections, its dials under way.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use super::connection::serve;
use super::{ConnectError, SessionEvent, SturdyrefTable};
use crate::captp::SessionId;
use crate::captp::promise::Resolver;
use crate::locator::{PeerId, PeerLocator, Swissnum};
use crate::netlayer::quota::{Place, Quota};
use crate::netlayer::{Connection, Netlayer};
use crate::syrup::Mode;
use crate::vat::{Dialect, Direction, Greet, Limits, Opening, Vat, VatEvent, VatOptions};

/// Connections from others that are not sessions yet; more are closed at once.
const SETUPS_MAX: usize = 512;

/// The same for one address: a host full of peers may start them all at once.
const SETUPS_PER_ADDRESS_MAX: usize = 256;

/// Connections of all kinds from others; more are closed at once. Each costs about 20 KiB when
/// idle.
const INBOUND_MAX: usize = 8192;

/// The same for one address: a fleet behind one router fits in, and no single host can take the
/// places of all others.
const INBOUND_PER_ADDRESS_MAX: usize = 2560;

/// Session events that a slow receiver may fall behind by before it loses the oldest. Every peer
/// has room for as many from the start, 9 KiB.
const EVENTS_MAX: usize = 64;

/// Fetches that are looked up at a time, each perhaps with a durable write; more wait.
const FETCHES_AT_ONCE_MAX: usize = 256;

/// Exporters that are dialled at a time for what others handed over; more wait. A dial that
/// nobody answers keeps its socket for minutes.
const DIALS_AT_ONCE_MAX: usize = 256;

/// Refused fetches after which a session is ended: nobody guesses swissnums, so whoever asks for
/// so many unknown ones only makes work.
const REFUSALS_MAX: usize = 100;

/// How long after a lost dial the peer's own connection is waited for: of two crossed dials one is
/// given up, and the end that gives up may learn of it before the other connection stands.
const CROSSING_GRACE: Duration = Duration::from_secs(1);

/// How long after a session came up the peer's own dial may turn out to have crossed ours. Its
/// greeting may have been underway all the time; a peer that restarts so soon is refused if its
/// new key is the lower one, and tries again.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How long a peer that proves nothing waits to be let in while there is a session under its name:
/// the end of that one may be on its way, and is not ordered with what the peer sends on its new
/// connection. On a loopback it comes within a millisecond.
const CONTEST_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a gift surely waits for its receiver; twice as long at most. A receiver has to dial
/// the exporter in that time, several addresses perhaps.
const GIFT_LIFE: Duration = Duration::from_secs(300);

/// How long closing waits for the last words to reach the other peers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Chooses what single peers may use.
pub(super) type LimitsOf = dyn Fn(&PeerId) -> Option<Limits> + Send + Sync;

/// What a peer may be told beyond its netlayer.
pub(super) struct Settings {
    pub(super) sturdyrefs: Arc<dyn SturdyrefTable>,
    pub(super) limits: Limits,
    pub(super) limits_of: Arc<LimitsOf>,
    pub(super) dialect: Dialect,
    pub(super) mode: Mode,
    pub(super) setup_timeout: Duration,
}

pub(super) struct Core {
    pub(super) vat: Vat,
    pub(super) locator: PeerLocator,
    pub(super) settings: Settings,
    pub(super) events: broadcast::Sender<SessionEvent>,
    netlayer: Box<dyn Netlayer>,
    registry: Mutex<Registry>,
    /// Marked whenever a session comes or a connection goes.
    changed: watch::Sender<()>,
    closing: watch::Sender<bool>,
    setups: Arc<Quota>,
    inbound: Arc<Quota>,
    fetches: Semaphore,
    dials: Semaphore,
}

#[derive(Default)]
struct Registry {
    /// The sessions that are up, by transport and designator.
    up: HashMap<(String, String), (SessionId, PeerId)>,
    /// Every connection that is served.
    connections: HashMap<SessionId, Link>,
    /// Dials under way, which all wait for who want the same. Two locators of one peer are
    /// dialled apart, since one may lead nowhere.
    dials: HashMap<PeerLocator, Dial>,
    /// The peers for whom a connection that we opened is about to become a session.
    greeted: HashSet<(String, String)>,
    /// Refused fetches of the sessions that are up.
    refusals: HashMap<(String, String), usize>,
}

struct Link {
    task: Option<AbortHandle>,
    /// Told when the session is up.
    up: Option<oneshot::Sender<()>>,
}

/// A dial under way, and what comes of it.
type Dial = watch::Receiver<Option<Result<PeerId, ConnectError>>>;

/// How it stands with a peer.
enum Standing {
    /// There is no session.
    Absent,
    /// There is a session whose event has not been seen to yet.
    Untold,
    /// There is a session.
    Up(PeerId),
}

impl Core {
    pub(super) fn new(netlayer: Box<dyn Netlayer>, settings: Settings) -> Arc<Self> {
        let locator = netlayer.locator();
        let limits = settings.limits.clone();
        let vat = Vat::new(VatOptions {
            location: locator.clone(),
            limits,
        });
        vat.set_mode(settings.mode);
        vat.set_claims_believed(netlayer.believes_claims());
        Arc::new(Self {
            vat,
            locator,
            settings,
            events: broadcast::Sender::new(EVENTS_MAX),
            netlayer,
            registry: Mutex::default(),
            changed: watch::Sender::new(()),
            closing: watch::Sender::new(false),
            setups: Arc::new(Quota::new(SETUPS_MAX, SETUPS_PER_ADDRESS_MAX)),
            inbound: Arc::new(Quota::new(INBOUND_MAX, INBOUND_PER_ADDRESS_MAX)),
            fetches: Semaphore::new(FETCHES_AT_ONCE_MAX),
            dials: Semaphore::new(DIALS_AT_ONCE_MAX),
        })
    }

    pub(super) fn start(self: &Arc<Self>) {
        tokio::spawn(Arc::clone(self).accept_connections());
        tokio::spawn(Arc::clone(self).serve_vat());
    }

    /// Takes connections from others until the peer closes.
    async fn accept_connections(self: Arc<Self>) {
        while let Some(connection) = self.netlayer.accept().await {
            let address = connection.address.map(|address| address.ip());
            // In this order: for what finds no place, nobody else has to give way.
            let place = self.inbound.take(address);
            let places = place.and_then(|place| Some((self.setups.take_fair(address)?, place)));
            let Some((setup, place)) = places else {
                tracing::debug!(?address, "connection refused: too many");
                continue;
            };
            let opened = self.open(connection, Direction::Inbound, Some(setup), Some(place));
            if let Err(error) = opened {
                tracing::warn!(%error, "cannot take a connection");
            }
        }
    }

    /// Does what the vat asks for, until the peer is closed and its last connection gone.
    async fn serve_vat(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        // An object that panics in a turn of ours must not take the peer with it.
        while AssertUnwindSafe(self.serve_events(&mut tasks))
            .catch_unwind()
            .await
            .is_err()
        {
            tracing::error!("an object panicked in its turn");
        }
    }

    async fn serve_events(self: &Arc<Self>, tasks: &mut JoinSet<()>) {
        let mut changed = self.changed.subscribe();
        let mut expiry = interval(GIFT_LIFE);
        loop {
            if *self.closing.borrow() && self.registry().connections.is_empty() {
                return;
            }
            let event = tokio::select! {
                event = self.vat.next_event() => event,
                Some(_) = tasks.join_next() => continue,
                _ = changed.changed() => continue,
                _ = expiry.tick() => {
                    self.vat.expire_gifts();
                    continue;
                }
            };
            match event {
                VatEvent::Spawn(task) => {
                    tasks.spawn(task);
                }
                VatEvent::Fetch {
                    swissnum,
                    from,
                    answer,
                } => {
                    tasks.spawn(Arc::clone(self).fetch(swissnum, from, answer));
                }
                VatEvent::Dial(to) => {
                    let core = Arc::clone(self);
                    tasks.spawn(async move {
                        let _turn = core.dials.acquire().await;
                        if let Err(error) = core.connect(&to).await {
                            core.vat.dial_failed(&to, &error.to_string());
                        }
                    });
                }
                VatEvent::Contested(session) => {
                    let vat = self.vat.clone();
                    tasks.spawn(async move {
                        sleep(CONTEST_TIMEOUT).await;
                        vat.decide(session);
                    });
                }
                VatEvent::Up(session, peer) => self.session_up(session, peer),
                VatEvent::Down(session, peer, reason) => self.session_down(session, peer, reason),
            }
        }
    }

    async fn fetch(self: Arc<Self>, swissnum: Swissnum, from: PeerId, answer: Resolver) {
        let Ok(_place) = self.fetches.acquire().await else {
            return;
        };
        let bytes = Bytes::copy_from_slice(swissnum.reveal());
        if let Some(object) = self.settings.sturdyrefs.fetch(bytes, &from).await {
            return answer.fulfill(object);
        }
        tracing::debug!(peer = from.designator, "fetch refused");
        drop(answer);
        let key = (from.transport, from.designator);
        let mut registry = self.registry();
        let Some((session, _)) = registry.up.get(&key) else {
            return;
        };
        let session = *session;
        let refusals = registry.refusals.entry(key).or_default();
        *refusals += 1;
        if *refusals >= REFUSALS_MAX {
            drop(registry);
            self.vat.abort(session, "too many refused fetches");
        }
    }

    fn session_up(&self, session: SessionId, peer: PeerId) {
        let mut registry = self.registry();
        if let Some(up) = registry
            .connections
            .get_mut(&session)
            .and_then(|link| link.up.take())
        {
            // Nobody is left to be told when the connection's setup has just been given up.
            let _ = up.send(());
        }
        registry
            .up
            .insert(key_of_peer(&peer), (session, peer.clone()));
        drop(registry);
        self.tell(SessionEvent::Up(peer));
    }

    fn session_down(&self, session: SessionId, peer: PeerId, reason: String) {
        let mut registry = self.registry();
        let key = key_of_peer(&peer);
        if registry.up.get(&key).is_some_and(|(up, _)| *up == session) {
            registry.up.remove(&key);
            registry.refusals.remove(&key);
        }
        drop(registry);
        self.tell(SessionEvent::Down(peer, reason));
    }

    fn tell(&self, event: SessionEvent) {
        // An event that nobody listens to is no error.
        let _ = self.events.send(event);
        self.changed.send_replace(());
    }

    /// Makes a session of a connection and starts to serve it. `setup` is let go of when the
    /// session is up, `place` when the connection ends.
    fn open(
        self: &Arc<Self>,
        connection: Connection,
        direction: Direction,
        setup: Option<Place>,
        place: Option<Place>,
    ) -> Result<JoinHandle<String>, ConnectError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|error| ConnectError::Refused(format!("no randomness: {error}")))?;
        let authenticated = connection.proven.is_some();
        let peer = PeerId {
            transport: self.netlayer.transport().to_owned(),
            designator: connection.proven.clone().unwrap_or_default(),
            authenticated,
            address: connection.address,
        };
        let greet = match direction {
            Direction::Inbound if authenticated => Greet::AfterPeer,
            _ => Greet::AtOnce,
        };
        let dialect = self.settings.dialect;
        let limits = (self.settings.limits_of)(&peer);
        let opening = Opening {
            seed,
            direction,
            peer: Some(peer),
            dialect,
            greet,
        };
        let session = self.vat.open_limited(opening, limits);

        let (up, is_up) = oneshot::channel();
        self.registry().connections.insert(
            session,
            Link {
                task: None,
                up: Some(up),
            },
        );
        let served = Served {
            core: Arc::clone(self),
            session,
        };
        let task = tokio::spawn(async move {
            let _place = place;
            serve(&served.core.vat, served.session, connection).await
        });
        if let Some(link) = self.registry().connections.get_mut(&session) {
            link.task = Some(task.abort_handle());
        }
        let (vat, limit) = (self.vat.clone(), self.settings.setup_timeout);
        let mut closing = self.closing.subscribe();
        tokio::spawn(async move {
            let evicted = async {
                match &setup {
                    Some(setup) => setup.evicted().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                begun = timeout(limit, is_up) => match begun {
                    Ok(Ok(())) => {}
                    // The connection ended before.
                    Ok(Err(_)) => return,
                    Err(_) => return vat.abort(session, "the session did not begin in time"),
                },
                () = evicted => return vat.abort(session, "others need the place"),
            }
            drop(setup);
            tokio::select! {
                () = sleep(SETTLED_AFTER) => vat.settled(session),
                _ = closing.wait_for(|closing| *closing) => {}
            }
        });
        // A peer that closed meanwhile did not see this connection among those to end.
        if *self.closing.borrow() {
            self.vat.abort(session, CLOSING);
        }
        Ok(task)
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Returns the sessions that are up.
    pub(super) fn up(&self) -> Vec<(SessionId, PeerId)> {
        self.registry().up.values().cloned().collect()
    }

    pub(super) async fn connect(
        self: &Arc<Self>,
        to: &PeerLocator,
    ) -> Result<PeerId, ConnectError> {
        if to.same_peer(&self.locator) {
            return Err(ConnectError::Itself);
        }
        let mut changed = self.changed.subscribe();
        loop {
            match self.standing(to) {
                Standing::Up(peer) => return Ok(peer),
                Standing::Untold => {
                    // Its event is on the way, and marks the change.
                    let _ = changed.changed().await;
                    continue;
                }
                Standing::Absent => {}
            }
            if *self.closing.borrow() {
                return Err(ConnectError::Closed);
            }
            let mut dial = self.dial(to);
            let outcome = loop {
                tokio::select! {
                    outcome = dial.wait_for(Option::is_some) => {
                        break outcome.ok().and_then(|outcome| outcome.clone());
                    }
                    _ = changed.changed() => if let Standing::Up(peer) = self.standing(to) {
                        return Ok(peer);
                    }
                }
            };
            return outcome.unwrap_or(Err(ConnectError::Closed));
        }
    }

    /// Returns the dial of this locator that is under way, or a new one.
    fn dial(self: &Arc<Self>, to: &PeerLocator) -> Dial {
        let mut registry = self.registry();
        if let Some(dial) = registry.dials.get(to) {
            return dial.clone();
        }
        let (sender, dial) = watch::channel(None);
        registry.dials.insert(to.clone(), dial.clone());
        let (core, to) = (Arc::clone(self), to.clone());
        tokio::spawn(async move {
            let outcome = core.dial_once(&to).await;
            core.registry().dials.remove(&to);
            sender.send_replace(Some(outcome));
        });
        dial
    }

    async fn dial_once(self: &Arc<Self>, to: &PeerLocator) -> Result<PeerId, ConnectError> {
        let mut closing = self.closing.subscribe();
        let connection = tokio::select! {
            dialled = self.netlayer.dial(to) => {
                dialled.map_err(|error| ConnectError::Dial(Arc::new(error)))?
            }
            _ = closing.wait_for(|closing| *closing) => return Err(ConnectError::Closed),
        };
        self.take_up(to, connection).await
    }

    /// Makes a session of a connection that we opened.
    pub(super) async fn take_up(
        self: &Arc<Self>,
        to: &PeerLocator,
        connection: Connection,
    ) -> Result<PeerId, ConnectError> {
        let mut changed = self.changed.subscribe();
        let _greeting = loop {
            // The peer was quicker, or another dial of ours; a second session of ours would only
            // replace the one that stands.
            if self.session_with(to).is_some() {
                let told = timeout(CROSSING_GRACE, self.wait_for_peer(to)).await;
                return told.map_err(|_| ConnectError::Refused("it ended at once".to_owned()));
            }
            if let Some(greeting) = Greeting::begin(self, to) {
                break greeting;
            }
            let _ = changed.changed().await;
        };
        let served = self.open(connection, Direction::Outbound(to.clone()), None, None)?;
        let reason = tokio::select! {
            peer = self.wait_for_peer(to) => return Ok(peer),
            reason = served => reason.unwrap_or_else(|_| CLOSING.to_owned()),
        };
        match timeout(CROSSING_GRACE, self.wait_for_peer(to)).await {
            Ok(peer) => Ok(peer),
            Err(_) => Err(ConnectError::Refused(reason)),
        }
    }

    async fn wait_for_peer(&self, to: &PeerLocator) -> PeerId {
        let mut changed = self.changed.subscribe();
        loop {
            if let Standing::Up(peer) = self.standing(to) {
                return peer;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns how it stands with a peer. The vat knows first; the registry follows its events.
    fn standing(&self, to: &PeerLocator) -> Standing {
        let Some(session) = self.session_with(to) else {
            return Standing::Absent;
        };
        let key = (to.transport.clone(), to.designator.clone());
        match self.registry().up.get(&key) {
            Some((up, peer)) if *up == session => Standing::Up(peer.clone()),
            _ => Standing::Untold,
        }
    }

    /// Returns the session with this peer that what is meant for it may be sent over.
    pub(super) fn session_with(&self, to: &PeerLocator) -> Option<SessionId> {
        self.vat.session_reached(&to.transport, &to.designator)
    }

    pub(super) fn sessions(&self) -> Vec<PeerId> {
        self.registry()
            .up
            .values()
            .map(|(_, peer)| peer.clone())
            .collect()
    }

    pub(super) fn has_session(&self, designator: &str) -> bool {
        self.vat
            .session_with(self.netlayer.transport(), designator)
            .is_some()
    }

    pub(super) fn disconnect(&self, designator: &str, reason: &str) {
        if let Some(session) = self.vat.session_with(self.netlayer.transport(), designator) {
            self.vat.abort(session, reason);
        }
    }

    /// Stops listening and ends all sessions, without waiting for it.
    pub(super) fn begin_close(&self) {
        self.closing.send_replace(true);
        self.netlayer.close();
        let sessions: Vec<_> = self.registry().connections.keys().copied().collect();
        for session in sessions {
            self.vat.abort(session, CLOSING);
        }
        self.changed.send_replace(());
    }

    pub(super) async fn close(&self) {
        self.begin_close();
        let mut changed = self.changed.subscribe();
        let all_ended = async {
            while !self.registry().connections.is_empty() && changed.changed().await.is_ok() {}
            self.netlayer.freed().await;
        };
        if timeout(CLOSE_TIMEOUT, all_ended).await.is_err() {
            let links: Vec<_> = self.registry().connections.drain().collect();
            links
                .into_iter()
                .filter_map(|(_, link)| link.task)
                .for_each(|task| task.abort());
            self.changed.send_replace(());
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a session ends when its peer closes.
const CLOSING: &str = "the peer is closing";

/// The right to make a session with a peer of a connection that we opened. One at a time has it,
/// until it is dropped.
struct Greeting {
    core: Arc<Core>,
    peer: (String, String),
}

impl Greeting {
    fn begin(core: &Arc<Core>, to: &PeerLocator) -> Option<Self> {
        let peer = (to.transport.clone(), to.designator.clone());
        let is_first = core.registry().greeted.insert(peer.clone());
        is_first.then(|| Self {
            core: Arc::clone(core),
            peer,
        })
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.core.registry().greeted.remove(&self.peer);
        self.core.changed.send_replace(());
    }
}

/// A connection that is served; takes it off the books when its task ends, however it does.
struct Served {
    core: Arc<Core>,
    session: SessionId,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.core
            .vat
            .closed(self.session, "the connection was given up");
        self.core.registry().connections.remove(&self.session);
        self.core.changed.send_replace(());
    }
}

fn key_of_peer(peer: &PeerId) -> (String, String) {
    (peer.transport.clone(), peer.designator.clone())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::netlayer::memory::MemoryNetwork;

    #[tokio::test]
    async fn one_address_cannot_take_the_places_of_all_others() {
        let network = MemoryNetwork::new(1, Duration::ZERO..Duration::ZERO);
        let peer = super::super::Peer::builder()
            .netlayer(network.netlayer("alice"))
            .spawn();
        let inbound = &peer.core().inbound;
        let take_all = |address: IpAddr| -> Vec<Place> {
            std::iter::from_fn(|| inbound.take(Some(address))).collect()
        };
        let greedy = take_all([192, 0, 2, 1].into());
        assert_eq!(greedy.len(), INBOUND_PER_ADDRESS_MAX);
        let second = take_all([192, 0, 2, 2].into());
        assert_eq!(second.len(), INBOUND_PER_ADDRESS_MAX);
        assert!(inbound.take(Some([192, 0, 2, 3].into())).is_some());
    }
}
