//! `tcp-testing-only`: plain TCP, as the conformance suite and other implementations speak it.
//!
//! Nothing is encrypted and nobody proves anything, so it binds and dials loopback addresses only.

use std::io;
use std::net::SocketAddr;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::framing::{FrameLimits, FramedIncoming, FramedOutgoing, Framing};
use super::{
    ACCEPT_PAUSE, CONNECT_TIMEOUT, Connection, DialError, Netlayer, address_text, connect_tcp,
    first_success,
};
use crate::locator::PeerLocator;

/// The transport's name in locators.
pub const TRANSPORT: &str = "tcp-testing-only";

/// The largest framed message that is accepted, in bytes, where there are frames at all.
const FRAME_BYTES_MAX: usize = 16 << 20;

const LIMITS: FrameLimits = FrameLimits {
    frame_bytes_max: FRAME_BYTES_MAX,
    keepalive: None,
    dead_after: None,
};

/// How messages are marked off on the wire, which differs between implementations of different age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpFraming {
    /// Syrup follows on Syrup, as up to the summer of 2026.
    #[default]
    Unframed,
    /// Each message after its length in decimal digits and a colon, as later.
    Netstring,
}

/// The netlayer `tcp-testing-only`.
#[derive(Debug)]
pub struct TcpTesting {
    listener: TcpListener,
    locator: PeerLocator,
    framing: Framing,
    closed: watch::Sender<bool>,
}

impl TcpTesting {
    /// Binds a port of a loopback address and listens, under a designator that proves nothing.
    ///
    /// # Errors
    /// When the address is not a loopback address, or the port cannot be bound.
    pub async fn bind(
        designator: impl Into<String>,
        listen: SocketAddr,
        framing: TcpFraming,
    ) -> io::Result<Self> {
        if !listen.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "tcp-testing-only is for loopback addresses",
            ));
        }
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            locator: PeerLocator::new(TRANSPORT, designator)
                .with_addresses([(address.ip().to_string(), address.port())]),
            framing: match framing {
                TcpFraming::Unframed => Framing::None,
                TcpFraming::Netstring => Framing::Netstring,
            },
            closed: watch::Sender::new(false),
        })
    }

    fn connection(&self, stream: TcpStream) -> Connection {
        let address = stream.peer_addr().ok();
        let (read, write) = stream.into_split();
        Connection {
            proven: None,
            address,
            incoming: Box::new(FramedIncoming::new(read, self.framing, LIMITS)),
            outgoing: Box::new(FramedOutgoing::new(write, self.framing, LIMITS)),
        }
    }
}

impl Netlayer for TcpTesting {
    fn transport(&self) -> &str {
        TRANSPORT
    }

    fn locator(&self) -> PeerLocator {
        self.locator.clone()
    }

    fn dial<'a>(&'a self, to: &'a PeerLocator) -> BoxFuture<'a, Result<Connection, DialError>> {
        async move {
            if to.transport != TRANSPORT {
                return Err(DialError::Transport(to.transport.clone()));
            }
            first_success(to.addresses(), |host, port| async move {
                let stream = connect_tcp(&host, port, CONNECT_TIMEOUT).await?;
                match stream.peer_addr() {
                    Ok(address) if address.ip().is_loopback() => Ok(self.connection(stream)),
                    _ => Err(DialError::Unreachable {
                        address: address_text(&host, port),
                        source: io::Error::other("not a loopback address"),
                    }),
                }
            })
            .await
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Connection>> {
        async move {
            let mut closed = self.closed.subscribe();
            loop {
                let accepted = tokio::select! {
                    biased;
                    _ = closed.wait_for(|closed| *closed) => return None,
                    accepted = self.listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) if stream.set_nodelay(true).is_ok() => {
                        return Some(self.connection(stream));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
        .boxed()
    }

    fn believes_claims(&self) -> bool {
        // The conformance suite has gifts fetched over the sessions that it opened.
        true
    }

    fn close(&self) {
        self.closed.send_replace(true);
    }
}
