//! The tokio driver: one peer on a network.
//!
//! A [`Peer`] joins a [`Vat`], which knows the protocol and does no I/O, to a [`Netlayer`], which
//! moves bytes: it listens, dials, keeps one session for each peer whoever dialled, and runs what
//! the vat hands out. One task serves each connection; one more serves the vat's events.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use ocapn::{Identity, Peer, Sturdyref};
//! # use ocapn::netlayer::tls_rpk::{TlsRpk, TlsRpkOptions};
//! # async fn example(sturdyref: Sturdyref) -> Result<(), Box<dyn std::error::Error>> {
//! let netlayer = TlsRpk::dial_only(Identity::generate()?, TlsRpkOptions::default())?;
//! let peer = Peer::builder().netlayer(netlayer).spawn();
//! let greeter = peer.enliven(&sturdyref).await?;
//! println!("{:?}", greeter.call("greet", ["world".into()]).await?);
//! peer.close().await;
//! # Ok(())
//! # }
//! ```

mod connection;
mod core;
mod keep;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::broadcast;

use self::core::{Core, Settings};
use crate::captp::broken::Broken;
use crate::captp::promise::Reference;
use crate::locator::{PeerId, PeerLocator, Sturdyref};
use crate::netlayer::{Connection, DialError, Netlayer};
use crate::syrup::Mode;
use crate::vat::{Dialect, Inspection, Limits, Object, Retained, Vat};
pub use keep::Kept;

/// How often a sturdyref is fetched before giving up. A session that looked alive may turn out to
/// be the ghost of a peer that restarted, or lose against the peer's own dial: its end is the sign
/// to fetch anew.
const FETCHES_MAX: usize = 3;

/// What the bootstrap object's `fetch` answers from.
pub trait SturdyrefTable: Send + Sync + 'static {
    /// Returns the object that a swissnum names for this peer.
    ///
    /// `from` is the peer as the netlayer knows it; what is bound to a key must not be given where
    /// `from.authenticated` is false. `None` stands for every kind of refusal, and the peer gets
    /// the same reply for each. The future may take its time, for a durable write say.
    fn fetch(&self, swissnum: Bytes, from: &PeerId) -> BoxFuture<'static, Option<Reference>>;
}

/// A table without entries, for peers that only enliven what others export.
struct NoSturdyrefs;

impl SturdyrefTable for NoSturdyrefs {
    fn fetch(&self, _swissnum: Bytes, _from: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        async { None }.boxed()
    }
}

/// Something that happened to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// A session with this peer stands.
    Up(PeerId),
    /// The session with this peer is over, for the reason given; its promises are broken. Where
    /// another takes its place, this comes first.
    Down(PeerId, String),
}

/// How it stands with one session.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionInspection {
    /// Whom it is with.
    pub peer: PeerId,
    /// How much it holds.
    pub tables: Inspection,
    /// What the peer keeps alive here.
    pub retained: Vec<Retained>,
    /// Bytes that wait to be sent.
    pub backlog_bytes: usize,
}

/// Why there is no session with a peer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The peer could not be dialled.
    #[error(transparent)]
    Dial(Arc<DialError>),
    /// The connection ended before a session stood.
    #[error("the connection ended before the session began: {0}")]
    Refused(String),
    /// The locator is our own.
    #[error("the locator is this peer's own")]
    Itself,
    /// This peer is closed.
    #[error("this peer is closed")]
    Closed,
}

/// Why a sturdyref gave no reference.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnlivenError {
    /// There is no session with the peer that has the object.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer refused, or went away meanwhile.
    #[error("the peer did not give the object: {0}")]
    Refused(Broken),
    /// The peer answered something that is no reference.
    #[error("the peer answered with something that is no object")]
    NoReference,
}

/// What a [`Peer`] is made of.
pub struct PeerBuilder<N = ()> {
    netlayer: N,
    settings: Settings,
}

impl<N> PeerBuilder<N> {
    /// Sets how the peer reaches others and is reached.
    pub fn netlayer<M: Netlayer>(self, netlayer: M) -> PeerBuilder<M> {
        PeerBuilder {
            netlayer,
            settings: self.settings,
        }
    }

    /// Sets what `fetch` answers from. Default: every swissnum is unknown.
    #[must_use]
    pub fn sturdyrefs(mut self, sturdyrefs: Arc<dyn SturdyrefTable>) -> Self {
        self.settings.sturdyrefs = sturdyrefs;
        self
    }

    /// Sets what each session may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Sets what single peers may use: `limits_of` is asked for each connection, with the peer as
    /// the netlayer knows it, and `None` stands for [`PeerBuilder::limits`]. A designator that is
    /// not authenticated is empty here, since nothing has been said yet.
    #[must_use]
    pub fn limits_of(
        mut self,
        limits_of: impl Fn(&PeerId) -> Option<Limits> + Send + Sync + 'static,
    ) -> Self {
        self.settings.limits_of = Arc::new(limits_of);
        self
    }

    /// Sets the dialect spoken with every peer.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.settings.dialect = dialect;
        self
    }

    /// Takes what peers really send ([`Mode::Lenient`]): unsorted and repeated keys, leading
    /// zeros, sets, 32-bit floats. Default: only the canonical encoding, so that what was signed
    /// and what was read cannot differ.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.settings.mode = Mode::Lenient;
        self
    }

    /// Sets how long a connection may take to become a session, after the netlayer's own
    /// handshake. Default 30 s: long enough for a peer that is busy, short enough that silent
    /// connections do not pile up.
    #[must_use]
    pub fn setup_timeout(mut self, setup_timeout: Duration) -> Self {
        self.settings.setup_timeout = setup_timeout;
        self
    }
}

impl<N: Netlayer> PeerBuilder<N> {
    /// Starts the peer's tasks on the current tokio runtime.
    pub fn spawn(self) -> Peer {
        let core = Core::new(Box::new(self.netlayer), self.settings);
        core.start();
        Peer(Arc::new(Handle(core)))
    }
}

/// One peer on a network: its objects, its sessions, its listener.
///
/// Clones are the same peer. It ends when it is closed or its last clone is dropped; references
/// that are still held are broken then.
#[derive(Clone)]
pub struct Peer(Arc<Handle>);

/// Ends the peer when the last clone goes.
struct Handle(Arc<Core>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.begin_close();
    }
}

impl Peer {
    /// Returns what a new peer is made of, to be completed with a netlayer.
    pub fn builder() -> PeerBuilder {
        PeerBuilder {
            netlayer: (),
            settings: Settings {
                sturdyrefs: Arc::new(NoSturdyrefs),
                limits: Limits::default(),
                limits_of: Arc::new(|_| None),
                dialect: Dialect::default(),
                mode: Mode::Strict,
                setup_timeout: Duration::from_secs(30),
            },
        }
    }

    /// Returns where this peer can be reached.
    pub fn locator(&self) -> PeerLocator {
        self.core().locator.clone()
    }

    /// Returns the peer's vat, to make promises and whatever else needs no network.
    pub fn vat(&self) -> &Vat {
        &self.core().vat
    }

    /// Returns a new reference to a local object.
    pub fn export(&self, object: impl Object) -> Reference {
        self.vat().export(object)
    }

    /// Returns a live reference to the object that a sturdyref names.
    ///
    /// A session with its peer serves if we dialled it or the peer is authenticated; if there is
    /// none, the peer is dialled, so that the swissnum reaches nobody who only claims its name. A
    /// sturdyref of our own is looked up without a network.
    ///
    /// # Errors
    /// When there is no session and none can be made, or the peer refuses.
    pub async fn enliven(&self, sturdyref: &Sturdyref) -> Result<Reference, EnlivenError> {
        if sturdyref.peer.same_peer(&self.core().locator) {
            return self.enliven_own(sturdyref).await;
        }
        let mut fetches = 0;
        loop {
            fetches += 1;
            self.connect(&sturdyref.peer).await?;
            let fetched = match self.core().session_with(&sturdyref.peer) {
                Some(session) => self.vat().fetch(session, &sturdyref.swissnum).await,
                None => Err(Broken::severed("the session ended")),
            };
            match fetched {
                Ok(value) => {
                    return value
                        .as_reference()
                        .cloned()
                        .ok_or(EnlivenError::NoReference);
                }
                Err(broken) if broken.is_severed() && fetches < FETCHES_MAX => {}
                Err(broken) => return Err(EnlivenError::Refused(broken)),
            }
        }
    }

    async fn enliven_own(&self, sturdyref: &Sturdyref) -> Result<Reference, EnlivenError> {
        let ourselves = PeerId {
            transport: sturdyref.peer.transport.clone(),
            designator: sturdyref.peer.designator.clone(),
            authenticated: true,
            address: None,
        };
        let swissnum = Bytes::copy_from_slice(sturdyref.swissnum.reveal());
        let unknown = || EnlivenError::Refused(Broken::new("unknown", "no such object"));
        self.core()
            .settings
            .sturdyrefs
            .fetch(swissnum, &ourselves)
            .await
            .ok_or_else(unknown)
    }

    /// Makes sure that there is a session with a peer that we dialled or that is authenticated,
    /// and returns the peer as the netlayer knows it. Waits for a dial that is under way instead
    /// of making a second one.
    ///
    /// # Errors
    /// When there is no session and none can be made.
    pub async fn connect(&self, to: &PeerLocator) -> Result<PeerId, ConnectError> {
        self.core().connect(to).await
    }

    /// Takes up a connection that was opened elsewhere, as one that we dialled, and waits until its
    /// session stands. Where there is a session with that peer already, the connection is dropped.
    ///
    /// # Errors
    /// When no session comes of it.
    pub async fn take_up(
        &self,
        to: &PeerLocator,
        connection: Connection,
    ) -> Result<PeerId, ConnectError> {
        self.core().take_up(to, connection).await
    }

    /// Returns the peers there is a session with.
    pub fn sessions(&self) -> Vec<PeerId> {
        self.core().sessions()
    }

    /// Returns whether there is a session with the peer of this name on our transport.
    pub fn has_session(&self, designator: &str) -> bool {
        self.core().has_session(designator)
    }

    /// Returns what each session holds, and what its peer keeps alive here.
    pub fn inspect(&self) -> Vec<SessionInspection> {
        let up = self.core().up().into_iter();
        up.filter_map(|(session, peer)| {
            Some(SessionInspection {
                peer,
                tables: self.vat().inspect(session)?,
                retained: self.vat().retained(session)?,
                backlog_bytes: self.vat().backlog(session),
            })
        })
        .collect()
    }

    /// Returns a receiver of what happens to sessions from now on.
    ///
    /// A receiver that falls behind by more than 64 events is told that it lagged, and should
    /// look at [`Peer::sessions`].
    pub fn session_events(&self) -> broadcast::Receiver<SessionEvent> {
        self.core().events.subscribe()
    }

    /// Ends the session with the peer of this name on our transport, if there is one. The peer is
    /// told the reason.
    pub fn disconnect(&self, designator: &str, reason: &str) {
        self.core().disconnect(designator, reason);
    }

    /// Ends all sessions, stops listening, and waits until that is done, 2 s at most.
    pub async fn close(self) {
        self.core().close().await;
    }

    fn core(&self) -> &Arc<Core> {
        &self.0.0
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.core().locator.designator)
    }
}
