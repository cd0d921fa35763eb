//! Netlayers: how bytes get from one peer to another, and how far a peer's name is proved on the
//! way.
//!
//! A netlayer dials locators of its transport and accepts connections from others; what travels
//! over a [`Connection`] is the business of CapTP alone. In CapTP nothing proves who a peer is, so
//! what a netlayer says in [`Connection::proven`] is all that authorisation can stand on.
//!
//! | module | transport | proves |
//! |---|---|---|
//! | [`tls_rpk`] | `tls-rpk` | both ends, by Ed25519 keys over TLS 1.3 |
//! | [`tcp_testing`] | `tcp-testing-only` | nothing; loopback addresses only |
//! | `websocket` (a cargo feature) | `websocket` | neither end: a proof can be relayed |
//! | [`memory`] | `memory` | both ends, since they live in one process |

pub mod memory;
pub mod tcp_testing;
pub mod tls_rpk;
pub mod trace;
#[cfg(feature = "websocket")]
pub mod websocket;

mod framing;
mod listening;
pub(crate) mod quota;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

pub use crate::captp::session::GREETING_SIZE_MAX;
use crate::locator::PeerLocator;

/// How many addresses of one locator are tried. A locator may come from a stranger, and must not
/// turn one dial into a scan of a network.
pub const ADDRESSES_MAX: usize = 8;

/// How long one address may take to accept a connection, by default. Three tries of a lost SYN
/// (1 s, 3 s, 7 s) fit.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the listener rests when the operating system refuses to accept (no descriptors left,
/// say): the cause does not go away by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A way to reach peers and to be reached.
///
/// Third parties can implement it: a driver asks for nothing but this trait.
pub trait Netlayer: Send + Sync + 'static {
    /// Returns the transport's name, as it stands in locators.
    fn transport(&self) -> &str;

    /// Returns the locator by which others reach this peer.
    fn locator(&self) -> PeerLocator;

    /// Opens a connection to the peer that `to` names, trying its addresses in turn.
    ///
    /// A netlayer that can prove the other end fails here if it is not the peer that `to` names.
    fn dial<'a>(&'a self, to: &'a PeerLocator) -> BoxFuture<'a, Result<Connection, DialError>>;

    /// Waits for the next connection that another peer opened; `None` once the netlayer is closed.
    ///
    /// A netlayer that does not listen never answers until it is closed.
    fn accept(&self) -> BoxFuture<'_, Option<Connection>>;

    /// Stops listening. Connections that were handed out go on.
    fn close(&self);

    /// Returns whether connections from others are taken for whom they claim to be, where nothing
    /// proves it. Default: no, so what is meant for a peer goes to it only if it was dialled or
    /// has proved its name. Yes is for transports that are for tests.
    fn believes_claims(&self) -> bool {
        false
    }

    /// Waits, once closed, until the port is free. Default: it is free when the netlayer is gone.
    fn freed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One connection to another peer, before anything of CapTP has been said.
pub struct Connection {
    /// The designator that the other end has proved to own; `None` where nothing was proved.
    pub proven: Option<String>,
    /// Where the other end's packets come from, if they come from an address.
    pub address: Option<SocketAddr>,
    /// What the other end sends.
    pub incoming: Box<dyn Incoming>,
    /// What is sent to the other end.
    pub outgoing: Box<dyn Outgoing>,
}

/// The receiving half of a connection.
pub trait Incoming: Send {
    /// Waits for bytes, and appends all that have arrived to `into`, in order.
    ///
    /// The boundaries of the chunks mean nothing: a message may be split or share a chunk. Returns
    /// false at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// When the connection is broken, the framing is wrong, or the other end is taken for dead; the
    /// half is of no use afterwards.
    fn read<'a>(&'a mut self, into: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<bool>>;

    /// Tells that the session stands. Until then anybody may be at the other end, and what comes
    /// is a greeting, for which [`GREETING_SIZE_MAX`] bytes are enough: a netlayer that gathers
    /// whole messages should gather no larger ones, but let them wait. Default: does nothing.
    fn session_up(&mut self) {}
}

/// The sending half of a connection.
pub trait Outgoing: Send {
    /// Sends whole messages in as few packets as it can, and takes them out of `messages`.
    ///
    /// No messages at all is the sign of life that [`Outgoing::keepalive`] asks for.
    ///
    /// # Errors
    /// When the connection is broken or takes no more; the half is of no use afterwards.
    fn write<'a>(&'a mut self, messages: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<()>>;

    /// Returns after how much silence of ours a sign of life is due; `None` if never.
    fn keepalive(&self) -> Option<Duration> {
        None
    }

    /// Says that nothing more will come.
    fn close(&mut self) -> BoxFuture<'_, io::Result<()>>;
}

/// Why a peer could not be dialled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The locator is of a transport that this netlayer does not speak.
    #[error("transport `{0}` is not spoken here")]
    Transport(String),
    /// The designator names nothing in this transport.
    #[error("`{0}` is not a designator of this transport")]
    Designator(String),
    /// The locator has no address to try, or none that may be tried.
    #[error("the locator has no usable address")]
    NoAddress,
    /// Somebody answered who is not the peer that the locator names.
    #[error("the peer at {0} proved another key than the locator's")]
    WrongPeer(String),
    /// No address led to the peer; the error is of the last one tried.
    #[error("no address of the peer answered, last {address}")]
    Unreachable {
        /// The last address that was tried.
        address: String,
        /// What went wrong there.
        source: io::Error,
    },
}

/// Tries each address in turn, and returns the first success of `attempt`.
///
/// An address where another peer answered does not end the search, since hints may be old, but it
/// is what is reported if no other address led to the peer.
async fn first_success<T, F>(
    addresses: Vec<(String, u16)>,
    attempt: impl Fn(String, u16) -> F,
) -> Result<T, DialError>
where
    F: Future<Output = Result<T, DialError>>,
{
    let mut failure = DialError::NoAddress;
    for (host, port) in addresses.into_iter().take(ADDRESSES_MAX) {
        match attempt(host, port).await {
            Ok(success) => return Ok(success),
            Err(_) if matches!(failure, DialError::WrongPeer(_)) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Opens a TCP connection within `timeout`, with small writes sent at once.
async fn connect_tcp(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, DialError> {
    let unreachable = |source| DialError::Unreachable {
        address: address_text(host, port),
        source,
    };
    let stream = tokio::time::timeout(timeout, TcpStream::connect((host, port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
        .map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}

/// Returns an address as a reader expects it, with brackets around IPv6.
fn address_text(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
