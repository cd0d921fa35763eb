//! `tls-rpk`: TLS 1.3 over TCP, with raw Ed25519 public keys at both ends (RFC 7250).
//!
//! The designator is the key. The dialler pins the key of the locator that it dials, and fails
//! before any byte of CapTP when another key is shown; the listener lets any Ed25519 key in, under
//! a quota, and leaves it to whoever is asked for something to look at the key. There are no
//! tickets, no resumption, no early data and no server name on the wire.
//!
//! One port serves several protocols, told apart by ALPN: [`CAPTP_ALPN`] for CapTP, whose messages
//! travel in frames with a big-endian 32-bit length (a frame of length 0 is the keepalive), and one
//! more of the owner's choice for plain byte streams (see [`StreamDialer`]). A third may be for
//! programs that know nothing of raw keys: they show none, and get ours in a certificate that it
//! has signed for itself (see [`TlsRpkOptions::public_protocol`]).
//!
//! A refusal by the listener reaches the dialler only at its first read: a connection that was
//! dialled is good once something has been read from it, not before.

mod verify;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use rustls::pki_types::ServerName;
use rustls::server::{Acceptor, ClientHello};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use super::framing::{FrameLimits, FramedIncoming, FramedOutgoing, Framing};
use super::listening::Listening;
use super::quota::{Place, Quota};
use super::{
    CONNECT_TIMEOUT, Connection, DialError, Netlayer, address_text, connect_tcp, first_success,
};
use crate::identity::{Identity, designator_of, key_of_designator, key_of_spki};
use crate::locator::{PeerId, PeerLocator};

/// The transport's name in locators.
pub const TRANSPORT: &str = "tls-rpk";

/// The ALPN of a connection that carries CapTP.
pub const CAPTP_ALPN: &[u8] = b"ocapn/1";

/// What a [`TlsRpk`] may be told beyond its key and its port.
#[derive(Clone, Debug)]
pub struct TlsRpkOptions {
    /// The addresses that the locator gives to others, best first; port 0 stands for the bound
    /// one. Default: the bound address, or none where the port is bound on all addresses at once.
    pub advertise: Vec<(String, u16)>,
    /// The ALPN of plain byte streams, and where those that others open go. Default: none. A
    /// stream that finds the channel full waits for the rest of its handshake's time.
    pub stream_protocol: Option<(Vec<u8>, mpsc::Sender<IncomingStream>)>,
    /// The ALPN of streams from programs that show no key, such as `http/1.1`, and where those go.
    /// They get our key in a self-signed certificate, to be pinned
    /// ([`Identity::subject_public_key_info`]). A program that names no ALPN at all is taken for
    /// one of them. Default: none. A stream that finds the channel full waits for the rest of its
    /// handshake's time.
    pub public_protocol: Option<(Vec<u8>, mpsc::Sender<PublicStream>)>,
    /// How many connections may be in their handshake. Default 512, about 10 MiB. More are closed
    /// at once.
    pub handshakes_max: usize,
    /// How many of them may come from one address (IPv6: from one /64). Default 128: a host full of
    /// peers may start them all at once.
    pub handshakes_per_address_max: usize,
    /// How long a handshake may take, at either end. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long one address may take to accept a connection. Default 10 s.
    pub connect_timeout: Duration,
    /// After how much silence of ours a keepalive is sent. Default 15 s.
    pub keepalive: Duration,
    /// After how much silence the peer is taken for dead. Default 45 s: three keepalives lost.
    pub dead_after: Duration,
    /// The largest message that is accepted, in bytes. Default 16 MiB.
    pub frame_bytes_max: usize,
}

impl Default for TlsRpkOptions {
    fn default() -> Self {
        Self {
            advertise: Vec::new(),
            stream_protocol: None,
            public_protocol: None,
            handshakes_max: 512,
            handshakes_per_address_max: 128,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: CONNECT_TIMEOUT,
            keepalive: Duration::from_secs(15),
            dead_after: Duration::from_secs(45),
            frame_bytes_max: 16 << 20,
        }
    }
}

/// A byte stream that another peer opened.
#[derive(Debug)]
pub struct IncomingStream {
    /// Who opened it; always authenticated.
    pub peer: PeerId,
    /// The stream itself.
    pub stream: TlsStream<TcpStream>,
}

/// A byte stream from a program that showed no key.
#[derive(Debug)]
pub struct PublicStream {
    /// From where it came.
    pub address: SocketAddr,
    /// The stream itself.
    pub stream: TlsStream<TcpStream>,
}

/// The netlayer `tls-rpk`.
pub struct TlsRpk {
    dialer: StreamDialer,
    captp: Arc<rustls::ClientConfig>,
    locator: PeerLocator,
    local_address: Option<SocketAddr>,
    listening: Listening,
    limits: FrameLimits,
}

/// The ports that a port 0 is chosen from: below the ephemeral range of Linux and of IANA.
const CHOSEN_PORTS: std::ops::Range<u16> = 20_000..32_768;

/// How many of them are tried before the system chooses: with half of them taken, one is found
/// all the same.
const CHOSEN_TRIES: usize = 32;

async fn bind_port(listen: SocketAddr) -> io::Result<TcpListener> {
    if listen.port() != 0 {
        return TcpListener::bind(listen).await;
    }
    for _ in 0..CHOSEN_TRIES {
        let mut random = [0; 2];
        getrandom::fill(&mut random).map_err(io::Error::from)?;
        let span = CHOSEN_PORTS.end - CHOSEN_PORTS.start;
        let port = CHOSEN_PORTS.start + u16::from_le_bytes(random) % span;
        match TcpListener::bind((listen.ip(), port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    TcpListener::bind(listen).await
}

impl TlsRpk {
    /// Binds the port and starts to listen. For port 0 one is chosen below those from which
    /// systems take the ports of outgoing connections, so that a peer that keeps it finds it free
    /// when it comes back.
    ///
    /// # Errors
    /// When the port cannot be bound, or the key cannot be used.
    pub async fn bind(
        identity: Identity,
        listen: SocketAddr,
        options: TlsRpkOptions,
    ) -> io::Result<Self> {
        let listener = bind_port(listen).await?;
        let address = listener.local_addr()?;
        let mut advertise = options.advertise.clone();
        if advertise.is_empty() && !address.ip().is_unspecified() {
            advertise.push((address.ip().to_string(), address.port()));
        }
        for (_, port) in advertise.iter_mut().filter(|(_, port)| *port == 0) {
            *port = address.port();
        }
        let (sender, listening) = Listening::new();
        let netlayer = Self::new(identity, Some(address), &advertise, listening, &options)?;
        let alpns = std::iter::once(CAPTP_ALPN.to_vec())
            .chain(options.stream_protocol.iter().map(|(alpn, _)| alpn.clone()))
            .collect();
        let config =
            verify::server_config(&netlayer.dialer.identity, alpns).map_err(io::Error::other)?;
        let public = options.public_protocol.map(|(alpn, streams)| {
            let config = verify::public_config(&netlayer.dialer.identity, &alpn)?;
            Ok(Public {
                config: Arc::new(config),
                alpn,
                streams,
            })
        });
        let door = Arc::new(Door {
            config: Arc::new(config),
            public: public
                .transpose()
                .map_err(io::Error::other::<rustls::Error>)?,
            handshake_timeout: options.handshake_timeout,
            limits: netlayer.limits,
            sessions: sender,
            streams: options.stream_protocol,
        });
        let quota = Quota::new(options.handshakes_max, options.handshakes_per_address_max);
        let admit = move |tcp, address, place| Arc::clone(&door).admit(tcp, address, place);
        netlayer.listening.start(listener, quota, admit);
        Ok(netlayer)
    }

    /// Returns a netlayer that dials and never listens; its locator has no addresses.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub fn dial_only(identity: Identity, options: TlsRpkOptions) -> io::Result<Self> {
        let listening = Listening::none();
        Self::new(identity, None, &options.advertise, listening, &options)
    }

    fn new(
        identity: Identity,
        local_address: Option<SocketAddr>,
        advertise: &[(String, u16)],
        listening: Listening,
        options: &TlsRpkOptions,
    ) -> io::Result<Self> {
        let captp = verify::client_config(&identity, CAPTP_ALPN).map_err(io::Error::other)?;
        let locator = PeerLocator::new(TRANSPORT, identity.designator())
            .with_addresses(advertise.iter().cloned());
        let limits = FrameLimits {
            frame_bytes_max: options.frame_bytes_max,
            keepalive: Some(options.keepalive),
            dead_after: Some(options.dead_after),
        };
        Ok(Self {
            dialer: StreamDialer {
                identity,
                config: Arc::default(),
                connect_timeout: options.connect_timeout,
                handshake_timeout: options.handshake_timeout,
                limits,
            },
            captp: Arc::new(captp),
            locator,
            local_address,
            listening,
            limits,
        })
    }

    /// Returns the bound address; `None` for a peer that only dials.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_address
    }

    /// Returns a dialler of plain byte streams, which lives on its own.
    pub fn stream_dialer(&self) -> StreamDialer {
        self.dialer.clone()
    }
}

impl Netlayer for TlsRpk {
    fn transport(&self) -> &str {
        TRANSPORT
    }

    fn locator(&self) -> PeerLocator {
        self.locator.clone()
    }

    fn dial<'a>(&'a self, to: &'a PeerLocator) -> BoxFuture<'a, Result<Connection, DialError>> {
        async move {
            let stream = self.dialer.dial_with(to, &self.captp).await?;
            Ok(connection(stream, &to.designator, self.limits))
        }
        .boxed()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Connection>> {
        self.listening.next().boxed()
    }

    fn close(&self) {
        self.listening.close();
    }

    fn freed(&self) -> BoxFuture<'_, ()> {
        self.listening.freed().boxed()
    }
}

impl fmt::Debug for TlsRpk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsRpk")
            .field("identity", &self.dialer.identity)
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}

/// Opens byte streams of their own to peers of `tls-rpk`, with the same proof of both ends.
///
/// What a stream is for is said inside it, under an ALPN that both ends have agreed on. Cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct StreamDialer {
    identity: Identity,
    /// What streams were configured with last: whoever dials them dials one protocol, and the
    /// configuration takes a good part of a handshake's time to make.
    config: Arc<Mutex<Option<Arc<rustls::ClientConfig>>>>,
    connect_timeout: Duration,
    handshake_timeout: Duration,
    limits: FrameLimits,
}

impl StreamDialer {
    /// Opens a stream to the peer that `to` names, trying its addresses in turn.
    ///
    /// # Errors
    /// When no address leads to the peer. A refusal by the other end (its quota, or an ALPN that it
    /// does not know) may also come as an error of the first read.
    pub async fn dial(
        &self,
        to: &PeerLocator,
        alpn: &[u8],
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let config = self.config(alpn).map_err(|error| DialError::Unreachable {
            address: to.designator.clone(),
            source: io::Error::other(error),
        })?;
        self.dial_with(to, &config).await
    }

    fn config(&self, alpn: &[u8]) -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
        let mut last = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*last
            && config.alpn_protocols == [alpn]
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(verify::client_config(&self.identity, alpn)?);
        *last = Some(Arc::clone(&config));
        Ok(config)
    }

    /// Opens a connection for CapTP to whoever answers at one of these addresses, and returns it
    /// with the locator of the key that was proved there: for a first meeting with a peer whose
    /// key is not known yet. It proves nothing about the address: what is given to the peer must
    /// rest on more, such as a secret that only it can know.
    ///
    /// # Errors
    /// When nobody answers who holds an Ed25519 key.
    pub async fn meet(
        &self,
        addresses: &[(String, u16)],
    ) -> Result<(PeerLocator, Connection), DialError> {
        let own = self.identity.designator();
        let failed = |source| DialError::Unreachable {
            address: own.clone(),
            source,
        };
        let config = verify::stranger_config(&self.identity, CAPTP_ALPN);
        let config = config.map_err(|error| failed(io::Error::other(error)))?;
        // Asked for nowhere, and never sent: the name has to be some name.
        let name = ServerName::try_from(own.clone());
        let name = name.map_err(|error| failed(io::Error::other(error)))?;
        let config = Arc::new(config);
        let stream = self.dial_first(addresses.to_vec(), &name, &config).await?;
        let designator = shown(&stream).ok_or_else(|| failed(no_key()))?;
        let locator = PeerLocator::new(TRANSPORT, designator.clone())
            .with_addresses(addresses.iter().cloned());
        Ok((locator, connection(stream, &designator, self.limits)))
    }

    async fn dial_with(
        &self,
        to: &PeerLocator,
        config: &Arc<rustls::ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        if to.transport != TRANSPORT {
            return Err(DialError::Transport(to.transport.clone()));
        }
        let pin = key_of_designator(&to.designator)
            .and_then(|_| ServerName::try_from(to.designator.clone()).ok())
            .ok_or_else(|| DialError::Designator(to.designator.clone()))?;
        self.dial_first(to.addresses(), &pin, config).await
    }

    async fn dial_first(
        &self,
        addresses: Vec<(String, u16)>,
        pin: &ServerName<'static>,
        config: &Arc<rustls::ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        first_success(addresses, |host, port| {
            let connector = TlsConnector::from(Arc::clone(config));
            let pin = pin.clone();
            async move {
                let tcp = connect_tcp(&host, port, self.connect_timeout).await?;
                let stream = timeout(self.handshake_timeout, connector.connect(pin, tcp))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map_err(|error| handshake_error(address_text(&host, port), error))?;
                // rustls checks the answer against our offer, but lets a listener answer nothing.
                if stream.get_ref().1.alpn_protocol()
                    != config.alpn_protocols.first().map(Vec::as_slice)
                {
                    let source = io::Error::other("the listener chose no protocol");
                    return Err(DialError::Unreachable {
                        address: address_text(&host, port),
                        source,
                    });
                }
                Ok(stream.into())
            }
        })
        .await
    }
}

/// What stands behind the port.
struct Door {
    config: Arc<rustls::ServerConfig>,
    public: Option<Public>,
    handshake_timeout: Duration,
    limits: FrameLimits,
    sessions: mpsc::Sender<Connection>,
    streams: Option<(Vec<u8>, mpsc::Sender<IncomingStream>)>,
}

/// What programs that show no key are given.
struct Public {
    config: Arc<rustls::ServerConfig>,
    alpn: Vec<u8>,
    streams: mpsc::Sender<PublicStream>,
}

impl Public {
    /// Returns whether a greeting is from such a program.
    fn is_for(&self, hello: &ClientHello<'_>) -> bool {
        match hello.alpn() {
            Some(mut offered) => offered.any(|alpn| alpn == self.alpn),
            None => true,
        }
    }
}

impl Door {
    /// Takes one connection through its handshake and to whom it is for. The place is held
    /// until it has been taken up.
    async fn admit(self: Arc<Self>, tcp: TcpStream, address: SocketAddr, place: Place) {
        let deadline = Instant::now() + self.handshake_timeout;
        let admitted = timeout_at(deadline, async {
            tcp.set_nodelay(true)?;
            let greeted = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
            match &self.public {
                Some(public) if public.is_for(&greeted.client_hello()) => {
                    let stream = greeted.into_stream(Arc::clone(&public.config)).await?;
                    let stream = PublicStream {
                        address,
                        stream: stream.into(),
                    };
                    public.streams.send(stream).await.map_err(|_| gone())
                }
                _ => {
                    let stream = greeted.into_stream(Arc::clone(&self.config)).await?;
                    self.route(stream.into(), address).await
                }
            }
        });
        let admitted = tokio::select! {
            admitted = admitted => admitted,
            () = place.evicted() => {
                return tracing::debug!(%address, "connection refused: others need the place");
            }
        };
        match admitted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%address, %error, "connection refused"),
            Err(_) => tracing::debug!(%address, "connection refused: the handshake took too long"),
        }
    }

    async fn route(&self, stream: TlsStream<TcpStream>, address: SocketAddr) -> io::Result<()> {
        let designator = shown(&stream).ok_or_else(no_key)?;
        match (stream.get_ref().1.alpn_protocol(), &self.streams) {
            (Some(CAPTP_ALPN), _) => {
                let connection = connection(stream, &designator, self.limits);
                self.sessions.send(connection).await.map_err(|_| gone())
            }
            (Some(alpn), Some((streams_alpn, streams))) if alpn == streams_alpn => {
                let peer = PeerId {
                    transport: TRANSPORT.to_owned(),
                    designator,
                    authenticated: true,
                    address: Some(address),
                };
                streams
                    .send(IncomingStream { peer, stream })
                    .await
                    .map_err(|_| gone())
            }
            _ => Err(io::Error::other("no protocol was chosen")),
        }
    }
}

/// Returns the designator of the key that the other end has proved.
fn shown(stream: &TlsStream<TcpStream>) -> Option<String> {
    let keys = stream.get_ref().1.peer_certificates()?;
    key_of_spki(keys.first()?).map(|key| designator_of(&key))
}

fn no_key() -> io::Error {
    io::Error::other("no key was shown")
}

fn gone() -> io::Error {
    io::Error::other("nobody takes connections any more")
}

fn connection(stream: TlsStream<TcpStream>, designator: &str, limits: FrameLimits) -> Connection {
    let address = stream.get_ref().0.peer_addr().ok();
    let (read, write) = tokio::io::split(stream);
    Connection {
        proven: Some(designator.to_owned()),
        address,
        incoming: Box::new(FramedIncoming::new(read, Framing::Length32, limits)),
        outgoing: Box::new(FramedOutgoing::new(write, Framing::Length32, limits)),
    }
}

/// Tells a wrong key from all other ways in which a handshake fails.
fn handshake_error(address: String, error: io::Error) -> DialError {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_)) => DialError::WrongPeer(address),
        _ => DialError::Unreachable {
            address,
            source: error,
        },
    }
}
