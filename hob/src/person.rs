//! A service for a person: a local socket that leads to a grant until its time is over. It is an
//! importer for one grant, with a key of its own, and keeps nothing.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocapn::netlayer::tls_rpk::{TlsRpk, TlsRpkOptions};
use ocapn::{
    Broken, EnlivenError, Identity, Peer, PeerLocator, Reference, StreamDialer, Sturdyref,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::front;
use crate::grant::Chain;
use crate::protocol::{
    self, BYTES_ALPN, BYTES_VERSION, Described, Malformed, StreamReply, TICKET_SIZE, from_passable,
    method,
};
use crate::service::{self, Local};
use crate::splice::splice;

/// How long the other machine may take to give the grant, or a stream of it.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a program may take to be told why there is no stream for it.
const DECLINE_TIMEOUT: Duration = Duration::from_secs(1);

/// Connections at one time: a person has a few tools open, not a fleet.
const CONNECTIONS_MAX: usize = 256;

/// Why a person gets no service.
#[derive(Debug, thiserror::Error)]
pub enum PersonError {
    /// The operating system refuses.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The machine that gives it cannot be reached.
    #[error("the other machine cannot be reached")]
    Enliven(#[from] EnlivenError),
    /// The grant refuses.
    #[error("the grant gave no answer: {0}")]
    Refused(#[from] Broken),
    /// The grant's answer cannot be read.
    #[error("the grant's answer cannot be read")]
    Malformed(#[from] Malformed),
    /// The other machine does not answer.
    #[error("the other machine gave no answer in {} s", OPEN_TIMEOUT.as_secs())]
    TimedOut,
}

/// A person, by a key made for the moment.
pub struct Person {
    designator: String,
    peer: Peer,
    dialer: StreamDialer,
}

/// What a person was given.
pub struct Opened {
    grant: Reference,
    locator: PeerLocator,
    dialer: StreamDialer,
    /// What it is.
    pub described: Described,
}

/// A socket that leads to what a person was given.
pub struct Listening {
    opened: Arc<Opened>,
    listener: UnixListener,
    _socket: Gone,
}

impl Person {
    /// Makes the key.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn new() -> Result<Self, PersonError> {
        let failed = |source| PersonError::Io {
            what: "no key can be made".into(),
            source,
        };
        let identity =
            Identity::generate().map_err(|it| failed(io::Error::other(it.to_string())))?;
        let designator = identity.designator();
        let netlayer = TlsRpk::dial_only(identity, TlsRpkOptions::default())
            .map_err(|it| failed(io::Error::other(it.to_string())))?;
        let dialer = netlayer.stream_dialer();
        let peer = Peer::builder().netlayer(netlayer).spawn();
        Ok(Self {
            designator,
            peer,
            dialer,
        })
    }

    /// Returns the key's designator: whom the grant is to be for.
    pub fn designator(&self) -> &str {
        &self.designator
    }

    /// Takes the grant that a sturdyref names.
    ///
    /// # Errors
    /// When the machine that gives it does not answer, or refuses.
    pub async fn take(&self, sturdyref: &Sturdyref) -> Result<Opened, PersonError> {
        let taken = async {
            let grant = self.peer.enliven(sturdyref).await?;
            let described = grant.call(method::DESCRIBE, []).await?;
            Ok(Opened {
                grant,
                locator: sturdyref.peer.clone(),
                dialer: self.dialer.clone(),
                described: from_passable("describe", &described)?,
            })
        };
        timeout(OPEN_TIMEOUT, taken)
            .await
            .unwrap_or(Err(PersonError::TimedOut))
    }
}

impl Opened {
    /// Listens at a path, for the user that this process runs as.
    ///
    /// # Errors
    /// When nothing can listen there.
    pub fn listen(self, path: &Path) -> Result<Listening, PersonError> {
        let failed = |source| PersonError::Io {
            what: format!("cannot listen at {}", path.display()),
            source,
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Gone(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Listening {
            opened: Arc::new(self),
            listener,
            _socket: socket,
        })
    }

    async fn carry(&self, mut local: Local) {
        let kind = &self.described.kind;
        let Ok(Some(first)) = front::greet(kind, &mut local).await else {
            return;
        };
        let opened = timeout(OPEN_TIMEOUT, self.open()).await;
        let done = match opened.unwrap_or(Err(PersonError::TimedOut)) {
            Ok(mut stream) => {
                let joined = async {
                    stream.write_all(&first).await?;
                    splice(&mut local, &mut stream).await
                };
                joined
                    .await
                    .inspect_err(|_| service::cut(stream.get_ref().0))
            }
            Err(error) => {
                let why = Chain(&error).to_string();
                let told = front::decline(kind, &mut local, &why);
                let _ = timeout(DECLINE_TIMEOUT, told).await;
                Err(io::Error::other(why))
            }
        };
        if let Err(error) = done {
            tracing::info!(%error, "connection ended");
        }
    }

    async fn open(&self) -> Result<tokio_rustls::TlsStream<tokio::net::TcpStream>, PersonError> {
        let failed = |source| PersonError::Io {
            what: "the connection to the other machine failed".into(),
            source,
        };
        let opened = self.grant.call(method::OPEN, []).await?;
        let ticket = protocol::Opened::from_passable(&opened)?.ticket;
        let dialled = self.dialer.dial(&self.locator, BYTES_ALPN).await;
        let mut stream = dialled.map_err(|it| failed(io::Error::other(it.to_string())))?;
        service::tune(stream.get_ref().0).map_err(failed)?;
        let mut hello = [BYTES_VERSION; 1 + TICKET_SIZE];
        hello[1..].copy_from_slice(&ticket);
        stream.write_all(&hello).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let why = match StreamReply::from_byte(stream.read_u8().await.map_err(failed)?) {
            Some(StreamReply::Open) => return Ok(stream),
            Some(StreamReply::Busy) => "as many connections as the grant allows are open",
            Some(StreamReply::Unreachable) => "the service on the other machine does not answer",
            Some(StreamReply::Refused) | None => "the grant has ended",
        };
        Err(failed(io::Error::other(why)))
    }
}

impl Listening {
    /// Carries connections until `end`. Every one is cut, and the socket is gone, when this
    /// returns.
    ///
    /// # Errors
    /// When no more connections can be taken.
    pub async fn serve(self, end: impl Future<Output = ()>) -> Result<(), PersonError> {
        let mut carried = JoinSet::new();
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                Some(_) = carried.join_next() => {}
                accepted = self.listener.accept(), if carried.len() < CONNECTIONS_MAX => {
                    let (stream, _) = accepted.map_err(|source| PersonError::Io {
                        what: "no more connections can be taken".into(),
                        source,
                    })?;
                    if !is_own(&stream) {
                        tracing::warn!("a program of another user was refused");
                        continue;
                    }
                    let opened = Arc::clone(&self.opened);
                    carried.spawn(async move { opened.carry(Local::Unix(stream)).await });
                }
            }
        }
    }
}

/// Returns whether the process at the other end is of the user that this one runs as: the socket's
/// mode is set a moment after it is there, and does not keep out who is passed the path of it.
fn is_own(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own)
}

/// Removes a socket's path when dropped.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // Gone or not, nobody listens there.
        let _ = fs::remove_file(&self.0);
    }
}
