//! The exporter's side of bindings: a forwarder for each grant, which can be cut off.
//!
//! A grant is a membrane: every stream through it is counted here and ends with it. It answers
//! the receiver's key only, whoever else may hold a reference. Byte streams arrive on connections
//! of their own and present a ticket that the grant gave out a moment before.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use ocapn::{
    Answer, Broken, IncomingStream, Object, Passable, PeerId, PeerLocator, Sturdyref, Swissnum,
    Turn,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::protocol::{
    Args, BYTES_VERSION, Described, Generation, Grant, GrantStatus, StreamReply, TICKET_LIFETIME,
    TICKET_SIZE, code, method, to_passable,
};
use crate::service;
use crate::splice::splice;
use crate::store::{GrantRow, Store, StoreError, swissnum_hash};

/// Tickets that one grant may have outstanding: a storm of connections takes one each for the
/// moment of a dial. More are refused as busy.
const TICKETS_MAX: usize = 1_024;

/// Streams that all grants of a machine may have open; the file descriptors are two for each.
const STREAMS_MAX: usize = 16_384;

/// Connections that have not yet presented a ticket. More wait in the netlayer, under its quota.
const UNTICKETED_MAX: usize = 256;

/// How long a connection may take to present its ticket.
const TICKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a refusal may take to be taken: its reader may be hostile.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// All grants of the machine.
pub(crate) struct Grants {
    store: Arc<Store>,
    live: Mutex<Live>,
    /// Held by one grant or revocation at a time, so that what is live follows what is on disk.
    changing: tokio::sync::Mutex<()>,
    streams: AtomicUsize,
}

#[derive(Default)]
struct Live {
    grants: HashMap<Generation, Arc<Membrane>>,
    by_swissnum: HashMap<String, Arc<Membrane>>,
    /// By hash, so that a lookup's time tells nothing of a ticket.
    tickets: HashMap<String, Ticket>,
}

/// One grant.
struct Membrane {
    grant: Grant,
    swissnum_hash: String,
    /// Set once, before anything is cut.
    revoked: watch::Sender<bool>,
    /// How many streams are open.
    streams: watch::Sender<usize>,
    /// How many tickets are outstanding.
    tickets: AtomicUsize,
}

struct Ticket {
    membrane: Arc<Membrane>,
    expires: Instant,
}

/// One stream's place under the limits, given back when dropped.
struct Place<'a> {
    grants: &'a Grants,
    membrane: &'a Membrane,
}

/// The grant as its receiver sees it.
struct GrantObject {
    grants: Weak<Grants>,
    membrane: Arc<Membrane>,
}

impl Grants {
    /// Takes up the grants that the store has.
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let mut live = Live::default();
        for row in &store.contents().grants {
            live.enter(row.clone());
        }
        Self {
            store,
            live: Mutex::new(live),
            changing: tokio::sync::Mutex::default(),
            streams: AtomicUsize::new(0),
        }
    }

    /// Makes a grant, or finds it made already; it is on disk when this returns.
    pub(crate) async fn grant(
        self: &Arc<Self>,
        own: &PeerLocator,
        grant: Grant,
    ) -> Result<(impl Object, Sturdyref), Broken> {
        let _changing = self.changing.lock().await;
        let generation = grant.generation.to_string();
        let parts = [&grant.binding, &generation, &grant.receiver].map(String::as_str);
        let swissnum = self.store.derive("grant", &parts);
        let row = GrantRow {
            grant,
            swissnum_hash: swissnum_hash(swissnum.as_slice()),
        };
        let entered = row.clone();
        self.store
            .write(move |contents| contents.admit(row.grant, row.swissnum_hash))
            .await?
            .map_err(|refused| Broken::new(refused.code(), refused.to_string()))?;
        let membrane = self.live().enter(entered);
        let swissnum = Swissnum::new(swissnum.as_slice());
        let sturdyref = Sturdyref {
            peer: own.clone(),
            swissnum,
        };
        Ok((self.object(membrane), sturdyref))
    }

    /// Ends a generation and all before it. When this returns, that is on disk, nothing is
    /// admitted, and no byte flows any more.
    pub(crate) async fn revoke(&self, revoked: Generation) -> Result<(), Broken> {
        let _changing = self.changing.lock().await;
        let entry = revoked.clone();
        let written = self
            .store
            .write(move |contents| contents.revoke(&entry))
            .await;
        // Even if the disk failed, what can be cut is cut; the error has the caller come again.
        let ended = self.live().leave(&revoked);
        for membrane in &ended {
            membrane.revoked.send_replace(true);
        }
        for membrane in ended {
            // The sender is ours, so this ends only by the condition.
            let _ = membrane
                .streams
                .subscribe()
                .wait_for(|streams| *streams == 0)
                .await;
        }
        written.map_err(Broken::from)
    }

    /// Returns the grant that a swissnum names for this peer.
    pub(crate) fn find(self: &Arc<Self>, swissnum: &[u8], from: &PeerId) -> Option<impl Object> {
        let membrane = self
            .live()
            .by_swissnum
            .get(&swissnum_hash(swissnum))
            .cloned()?;
        membrane.answers(Some(from)).then(|| self.object(membrane))
    }

    /// Returns what an operator may see.
    pub(crate) fn status(&self) -> Vec<GrantStatus> {
        let live = self.live();
        let mut all: Vec<_> = live
            .grants
            .values()
            .map(|membrane| membrane.status())
            .collect();
        drop(live);
        all.sort_by(|a, b| (&a.binding, a.generation).cmp(&(&b.binding, b.generation)));
        all
    }

    /// Serves the byte connections that arrive, for as long as they are sent.
    pub(crate) async fn serve(self: Arc<Self>, mut incoming: mpsc::Receiver<IncomingStream>) {
        let unticketed = Arc::new(Semaphore::new(UNTICKETED_MAX));
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&unticketed).acquire_owned().await
            && let Some(stream) = incoming.recv().await
        {
            let grants = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = grants.admit(stream, permit).await {
                    tracing::debug!(%error, "stream ended");
                }
            });
        }
    }

    /// Takes one connection from its ticket to its end.
    async fn admit(
        &self,
        incoming: IncomingStream,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let IncomingStream { peer, mut stream } = incoming;
        service::tune(stream.get_ref().0)?;
        let mut hello = [0; 1 + TICKET_SIZE];
        timeout(TICKET_TIMEOUT, stream.read_exact(&mut hello)).await??;
        drop(permit);
        let redeemed = match hello {
            [BYTES_VERSION, ticket @ ..] => self.redeem(&ticket, &peer),
            _ => None,
        };
        let entered = match &redeemed {
            Some(membrane) => self.enter(membrane).map(|place| (place, membrane)),
            None => Err(StreamReply::Refused),
        };
        let (place, membrane) = match entered {
            Ok(entered) => entered,
            Err(reply) => {
                let refusal = async {
                    stream.write_all(&[reply.to_byte()]).await?;
                    stream.shutdown().await
                };
                return timeout(REFUSAL_TIMEOUT, refusal).await?;
            }
        };
        let mut service = None;
        let mut revoked = membrane.revoked.subscribe();
        let carried = tokio::select! {
            biased;
            _ = revoked.wait_for(|revoked| *revoked) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "revoked"))
            }
            carried = async {
                let spec = self.store.contents().offers.get(&membrane.grant.service).cloned();
                let dialled = match &spec {
                    Some(spec) => service::dial(&spec.kind).await,
                    None => Err(io::Error::other("the service is not offered any more")),
                };
                match dialled {
                    Ok(dialled) => {
                        let service = service.insert(dialled);
                        stream.write_all(&[StreamReply::Open.to_byte()]).await?;
                        stream.flush().await?;
                        splice(&mut stream, service).await
                    }
                    Err(error) => {
                        let binding = &membrane.grant.binding;
                        let service = &membrane.grant.service;
                        tracing::warn!(%binding, %service, %error, "service does not answer");
                        stream.write_all(&[StreamReply::Unreachable.to_byte()]).await?;
                        stream.shutdown().await
                    }
                }
            } => carried,
        };
        if carried.is_err() {
            service::cut(stream.get_ref().0);
            if let Some(service) = &service {
                service.cut();
            }
        }
        // Both ends are closed before the stream counts as ended.
        drop((stream, service));
        drop(place);
        carried
    }

    /// Takes a ticket out, if it is this peer's and still good.
    fn redeem(&self, ticket: &[u8], from: &PeerId) -> Option<Arc<Membrane>> {
        let hash = swissnum_hash(ticket);
        let mut live = self.live();
        // A foreign key must not use up what is not its own.
        live.tickets
            .get(&hash)
            .filter(|ticket| ticket.membrane.answers(Some(from)))?;
        let ticket = live.tickets.remove(&hash)?;
        ticket.membrane.tickets.fetch_sub(1, Ordering::Relaxed);
        (ticket.expires > Instant::now()).then_some(ticket.membrane)
    }

    fn enter<'a>(&'a self, membrane: &'a Membrane) -> Result<Place<'a>, StreamReply> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(StreamReply::Busy);
        }
        let max = membrane
            .grant
            .attenuate
            .connections_max
            .map_or(usize::MAX, |max| max as usize);
        let entered = membrane.streams.send_if_modified(|streams| {
            let room = *streams < max;
            *streams += usize::from(room);
            room
        });
        if !entered {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(StreamReply::Busy);
        }
        let place = Place {
            grants: self,
            membrane,
        };
        // After the count, since a revocation sets the mark before it looks at the count.
        if *membrane.revoked.borrow() {
            Err(StreamReply::Refused)
        } else {
            Ok(place)
        }
    }

    fn ticket(&self, membrane: &Arc<Membrane>) -> Result<Bytes, Broken> {
        if *membrane.revoked.borrow() {
            return Err(Broken::new(code::REVOKED, "this grant is revoked"));
        }
        let mut live = self.live();
        if membrane.tickets.load(Ordering::Relaxed) >= TICKETS_MAX {
            live.forget_expired(Instant::now());
        }
        if membrane.tickets.load(Ordering::Relaxed) >= TICKETS_MAX {
            return Err(Broken::new(
                code::BUSY,
                "too many tickets of this grant are unused",
            ));
        }
        let mut ticket = [0; TICKET_SIZE];
        getrandom::fill(&mut ticket)
            .map_err(|_| Broken::new(code::BUSY, "the machine has no randomness"))?;
        membrane.tickets.fetch_add(1, Ordering::Relaxed);
        let expires = Instant::now() + TICKET_LIFETIME;
        let entry = Ticket {
            membrane: Arc::clone(membrane),
            expires,
        };
        live.tickets.insert(swissnum_hash(&ticket), entry);
        Ok(Bytes::copy_from_slice(&ticket))
    }

    fn object(self: &Arc<Self>, membrane: Arc<Membrane>) -> GrantObject {
        GrantObject {
            grants: Arc::downgrade(self),
            membrane,
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn enter(&mut self, row: GrantRow) -> Arc<Membrane> {
        let generation = row.grant.generation();
        let membrane = self.grants.entry(generation).or_insert_with(|| {
            Arc::new(Membrane {
                grant: row.grant,
                swissnum_hash: row.swissnum_hash,
                revoked: watch::Sender::new(false),
                streams: watch::Sender::new(0),
                tickets: AtomicUsize::new(0),
            })
        });
        let membrane = Arc::clone(membrane);
        self.by_swissnum
            .insert(membrane.swissnum_hash.clone(), Arc::clone(&membrane));
        membrane
    }

    fn leave(&mut self, revoked: &Generation) -> Vec<Arc<Membrane>> {
        let ends = |membrane: &Membrane| {
            membrane.grant.binding == revoked.binding
                && membrane.grant.generation <= revoked.generation
        };
        self.by_swissnum.retain(|_, membrane| !ends(membrane));
        self.tickets.retain(|_, ticket| !ends(&ticket.membrane));
        self.grants
            .extract_if(|_, membrane| ends(membrane))
            .map(|(_, ended)| ended)
            .collect()
    }

    fn forget_expired(&mut self, now: Instant) {
        self.tickets.retain(|_, ticket| {
            let good = ticket.expires > now;
            if !good {
                ticket.membrane.tickets.fetch_sub(1, Ordering::Relaxed);
            }
            good
        });
    }
}

impl Membrane {
    /// Returns whether this is the peer that the grant was made for. An object does not see who
    /// calls it, so the netlayer's proof is asked each time.
    fn answers(&self, peer: Option<&PeerId>) -> bool {
        peer.is_some_and(|peer| peer.authenticated && peer.designator == self.grant.receiver)
    }

    fn status(&self) -> GrantStatus {
        GrantStatus {
            binding: self.grant.binding.clone(),
            generation: self.grant.generation,
            service: self.grant.service.clone(),
            receiver: self.grant.receiver.clone(),
            streams: *self.streams.borrow() as u64,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.grants.streams.fetch_sub(1, Ordering::Relaxed);
        self.membrane.streams.send_modify(|streams| *streams -= 1);
    }
}

impl Object for GrantObject {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        Answer::Now(self.turn(turn.peer(), args))
    }
}

impl GrantObject {
    fn turn(&self, from: Option<&PeerId>, args: Vec<Passable>) -> Result<Passable, Broken> {
        let args = Args::read(args)?;
        if !self.membrane.answers(from) {
            return Err(Broken::new(
                code::NOT_YOURS,
                "this grant answers another key",
            ));
        }
        let gone = || Broken::new(code::UNREACHABLE, "the machine is shutting down");
        let grants = self.grants.upgrade().ok_or_else(gone)?;
        match args.method() {
            method::OPEN => Ok(Passable::bytes(grants.ticket(&self.membrane)?)),
            method::DESCRIBE => {
                let Grant {
                    binding,
                    generation,
                    service,
                    ..
                } = &self.membrane.grant;
                let offers = &grants.store.contents().offers;
                Ok(to_passable(&Described {
                    binding: binding.clone(),
                    generation: *generation,
                    r#type: offers.get(service).and_then(|spec| spec.r#type.clone()),
                }))
            }
            _ => Err(Broken::new(code::MALFORMED, "a grant has no such method")),
        }
    }
}

impl Grant {
    /// Returns which generation of which binding this is.
    pub fn generation(&self) -> Generation {
        Generation {
            binding: self.binding.clone(),
            generation: self.generation,
        }
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %Chain(&error), "state not written");
        // The path and the reason are in the machine's own log.
        Self::new(code::STORE, "the machine could not write its state")
    }
}

/// An error with its causes, for one line of log.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::protocol::{Attenuate, ServiceKind, ServiceSpec};

    fn grant(generation: u64) -> Grant {
        Grant {
            service: "orders".into(),
            binding: "binding.db".into(),
            generation,
            receiver: "receiver".into(),
            attenuate: Attenuate {
                connections_max: Some(2),
            },
        }
    }

    fn peer(designator: &str, authenticated: bool) -> PeerId {
        PeerId {
            transport: "tls-rpk".into(),
            designator: designator.into(),
            authenticated,
            address: None,
        }
    }

    fn offering(layout: &Layout) -> Arc<Grants> {
        let store = Arc::new(Store::open(layout).unwrap());
        let kind = ServiceKind::Tcp("127.0.0.1:1".into());
        let spec = ServiceSpec { kind, r#type: None };
        store
            .update(|contents| contents.offers.insert("orders".into(), spec))
            .unwrap();
        Arc::new(Grants::new(store))
    }

    async fn made(grants: &Arc<Grants>, generation: u64) -> (Arc<Membrane>, Sturdyref) {
        let own = PeerLocator::new("tls-rpk", "own");
        let (object, sturdyref) = grants.grant(&own, grant(generation)).await.unwrap();
        drop(object);
        let membrane = Arc::clone(&grants.live().grants[&grant(generation).generation()]);
        (membrane, sturdyref)
    }

    #[tokio::test]
    async fn s4_a_revocation_is_on_disk_before_it_cuts_and_cuts_before_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let grants = offering(&layout);
        let (membrane, sturdyref) = made(&grants, 1).await;
        let (later, _) = made(&grants, 2).await;
        let ticket = grants.ticket(&membrane).unwrap();
        let place = grants.enter(&membrane).unwrap();

        let revoking = grants.revoke(grant(1).generation());
        tokio::pin!(revoking);
        let mut marked = membrane.revoked.subscribe();
        tokio::select! {
            _ = marked.wait_for(|revoked| *revoked) => {}
            _ = &mut revoking => panic!("acknowledged while a stream is open"),
        }
        let on_disk: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.hob().join("state.json")).unwrap())
                .unwrap();
        assert_eq!(on_disk["revoked"]["binding.db"], 1);
        assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Refused));
        assert!(grants.ticket(&membrane).is_err());
        let receiver = peer("receiver", true);
        assert!(grants.redeem(&ticket, &receiver).is_none());
        assert!(
            grants
                .find(sturdyref.swissnum.reveal(), &receiver)
                .is_none()
        );
        drop(place);
        revoking.await.unwrap();
        assert!(grants.enter(&later).is_ok(), "a later generation goes on");
        assert_eq!(grants.streams.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_disk_that_fails_does_not_keep_a_stream_open() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let grants = offering(&layout);
        let (membrane, _) = made(&grants, 1).await;
        std::fs::create_dir(layout.hob().join("state.new")).unwrap();
        let broken = grants.revoke(grant(1).generation()).await.unwrap_err();
        assert_eq!(broken.code(), Some(code::STORE));
        assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Refused));
    }

    #[tokio::test]
    async fn places_and_tickets_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let grants = offering(&Layout::new(dir.path()));
        let (membrane, sturdyref) = made(&grants, 1).await;
        let first = grants.enter(&membrane).unwrap();
        let second = grants.enter(&membrane).unwrap();
        assert_eq!(grants.enter(&membrane).err(), Some(StreamReply::Busy));
        drop(first);
        drop((grants.enter(&membrane).unwrap(), second));
        assert_eq!(*membrane.streams.borrow(), 0);

        let tickets: Vec<_> = (0..TICKETS_MAX)
            .map(|_| grants.ticket(&membrane).unwrap())
            .collect();
        let refused = grants.ticket(&membrane).unwrap_err();
        assert_eq!(refused.code(), Some(code::BUSY));
        grants
            .live()
            .forget_expired(Instant::now() + TICKET_LIFETIME);
        assert!(
            grants
                .redeem(&tickets[0], &peer("receiver", true))
                .is_none(),
            "expired"
        );
        let ticket = grants.ticket(&membrane).unwrap();
        for stranger in [peer("stranger", true), peer("receiver", false)] {
            assert!(grants.redeem(&ticket, &stranger).is_none());
            assert!(
                grants
                    .find(sturdyref.swissnum.reveal(), &stranger)
                    .is_none()
            );
        }
        assert!(grants.redeem(&ticket, &peer("receiver", true)).is_some());
        assert!(
            grants.redeem(&ticket, &peer("receiver", true)).is_none(),
            "used"
        );
    }
}
