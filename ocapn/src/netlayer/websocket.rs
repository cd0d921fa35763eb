//! `websocket`: binary frames over `ws://` or `wss://`, as Goblins 0.18 and Endo speak it.
//!
//! It was run against Endo 1.1, and not against Goblins yet.
//!
//! Each CapTP message is one binary frame. Before the first, the dialler sends 32 random bytes in a
//! record `init:peer-auth`, and the listener returns that record signed by the key that its
//! designator is (unpadded lower-case base32). The hint `url` says where to dial.
//!
//! # What it does not prove
//!
//! - **Nothing of the dialler.** An incoming connection may claim any designator.
//! - **The listener's proof is not tied to the channel.** Whoever sits in between can pass the
//!   challenge on to the real listener and its answer back, and then reads and changes every
//!   message. `wss://` does not change that: its certificate is that of the host in the hint
//!   `url`, and whoever hands out a locator may write a host of their own there.
//!
//! So no session is authenticated, whoever dialled ([`Connection::proven`] is `None`), and what is
//! bound to a key is not given over any. The challenge tells a wrong listener, not a hostile one.
//!
//! Between peers of this crate [`tls_rpk`](super::tls_rpk) has neither weakness.
//!
//! Listening is by `ws://`: for `wss://` a reverse proxy stands in front, and
//! [`WebSocketOptions::url`] says how it is reached.

mod gate;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, accept_async_with_config, client_async_with_config};

use self::gate::{Gate, Passage};
use super::listening::Listening;
use super::quota::{Place, Quota};
use super::{CONNECT_TIMEOUT, Connection, DialError, Incoming, Netlayer, Outgoing, connect_tcp};
use crate::captp::crypto::{Envelope, PublicKey, SessionKeys};
use crate::identity::{Identity, key_of_designator};
use crate::locator::PeerLocator;
use crate::syrup::{Mode, Reader, SyrupError, SyrupErrorKind, Writer};

/// The transport's name in locators.
pub const TRANSPORT: &str = "websocket";

/// The hint that says where to dial.
pub const URL_HINT: &str = "url";

/// The record of the challenge, and its random bytes.
const CHALLENGE: &str = "init:peer-auth";
const CHALLENGE_BYTES: usize = 32;

/// The largest frame before the challenge is answered, in bytes; a challenge has about 60, a signed
/// one about 200.
const HANDSHAKE_BYTES_MAX: usize = 1024;

/// What is read at a time, in bytes. Every connection keeps as much, however silent it is.
const READ_BYTES: usize = 8 << 10;

/// How long the other end may take no bytes before it is taken for dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(45);

/// What a [`WebSocket`] may be told beyond its key and its port.
#[derive(Clone)]
pub struct WebSocketOptions {
    /// Where others dial. Default: `ws://` and the bound address, or none where the port is bound
    /// on all addresses at once.
    pub url: Option<String>,
    /// How certificates are checked when a `wss://` peer is dialled. Default: such peers are not
    /// dialled, since this crate brings no list of authorities.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// How many connections may be in their handshake. Default 512. More make the address with
    /// the most lose its oldest.
    pub handshakes_max: usize,
    /// How many of them may come from one address. Default 128; behind a proxy all do.
    pub handshakes_per_address_max: usize,
    /// How long the handshake of both layers may take, at either end. Default 10 s.
    pub handshake_timeout: Duration,
    /// After how much silence of ours a ping is sent. Default 15 s; `None` for never.
    pub keepalive: Option<Duration>,
    /// After how much silence the peer is taken for dead. Default `None`, for never: not every
    /// peer answers pings, as it should. With a peer that does, 45 s are three pings lost.
    pub dead_after: Option<Duration>,
    /// The largest message that is accepted, in bytes. Default 16 MiB.
    pub frame_bytes_max: usize,
}

impl Default for WebSocketOptions {
    fn default() -> Self {
        Self {
            url: None,
            tls: None,
            handshakes_max: 512,
            handshakes_per_address_max: 128,
            handshake_timeout: Duration::from_secs(10),
            keepalive: Some(Duration::from_secs(15)),
            dead_after: None,
            frame_bytes_max: 16 << 20,
        }
    }
}

impl fmt::Debug for WebSocketOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketOptions")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// The netlayer `websocket`.
pub struct WebSocket {
    locator: PeerLocator,
    local_address: Option<SocketAddr>,
    options: WebSocketOptions,
    listening: Listening,
}

impl WebSocket {
    /// Binds the port and starts to listen.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn bind(
        identity: Identity,
        listen: SocketAddr,
        options: WebSocketOptions,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let reachable = !address.ip().is_unspecified();
        let url = options
            .url
            .clone()
            .or_else(|| reachable.then(|| format!("ws://{address}")));
        let (sender, listening) = Listening::new();
        let netlayer = Self::new(&identity, Some(address), url, listening, options);
        let door = Arc::new(Door {
            // CapTP's form of a signature is that of session keys, too.
            keys: SessionKeys::new(&identity.seed()),
            options: netlayer.options.clone(),
            sessions: sender,
        });
        let options = &netlayer.options;
        let quota = Quota::new(options.handshakes_max, options.handshakes_per_address_max);
        let admit = move |tcp, address, place| Arc::clone(&door).admit(tcp, address, place);
        netlayer.listening.start(listener, quota, admit);
        Ok(netlayer)
    }

    /// Returns a netlayer that does not listen: it dials, and peers call back over its sessions.
    pub fn dial_only(identity: &Identity, options: WebSocketOptions) -> Self {
        let listening = Listening::none();
        Self::new(identity, None, options.url.clone(), listening, options)
    }

    /// Returns the address that is listened on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_address
    }

    fn new(
        identity: &Identity,
        local_address: Option<SocketAddr>,
        url: Option<String>,
        listening: Listening,
        options: WebSocketOptions,
    ) -> Self {
        let mut locator = PeerLocator::new(TRANSPORT, identity.designator());
        if let Some(url) = url {
            locator = locator.with_hint(URL_HINT, url);
        }
        Self {
            locator,
            local_address,
            options,
            listening,
        }
    }

    async fn dial_url(&self, to: &PeerLocator, url: &str) -> Result<Connection, DialError> {
        let key = key_of_designator(&to.designator);
        let key = key.and_then(|key| PublicKey::of(&key));
        let key = key.ok_or_else(|| DialError::Designator(to.designator.clone()))?;
        let target = Target::of(url).ok_or(DialError::NoAddress)?;
        let tcp = connect_tcp(&target.host, target.port, CONNECT_TIMEOUT).await?;
        let address = tcp.peer_addr().ok();
        let unreachable = |source| DialError::Unreachable {
            address: url.to_owned(),
            source,
        };
        let dial = async {
            if !target.secure {
                return self.greet(url, tcp, &key, address).await;
            }
            let tls = self.options.tls.clone().ok_or_else(|| {
                io::Error::other("wss:// is dialled only where certificates can be checked")
            })?;
            let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            self.greet(url, stream, &key, address).await
        };
        let greeted = timeout(self.options.handshake_timeout, dial).await;
        match greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(Some(connection)) => Ok(connection),
            Ok(None) => Err(DialError::WrongPeer(url.to_owned())),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// Goes through the handshake as the dialler; `None` if the listener has another key.
    async fn greet<S>(
        &self,
        url: &str,
        stream: S,
        key: &PublicKey,
        address: Option<SocketAddr>,
    ) -> io::Result<Option<Connection>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let config = Some(config(self.options.frame_bytes_max));
        let passage = Arc::new(Passage::default());
        let stream = Gate::new(stream, Arc::clone(&passage));
        let upgraded = client_async_with_config(url, stream, config).await;
        let (mut socket, _) = upgraded.map_err(io_error)?;
        let mut random = [0; CHALLENGE_BYTES];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let mut writer = Writer::new();
        writer.record(CHALLENGE).bytes(&random).end_record();
        let challenge = writer.take().freeze();
        socket
            .send(Message::Binary(challenge.clone()))
            .await
            .map_err(io_error)?;
        let answer = next_binary(&mut socket).await?;
        let answer = answer.filter(|answer| answer.len() <= HANDSHAKE_BYTES_MAX);
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut reader = Reader::new(&answer, Mode::Strict);
        let envelope = Envelope::read(&mut reader).map_err(io::Error::other)?;
        if envelope.signed != challenge || !envelope.is_by(key) {
            return Ok(None);
        }
        Ok(Some(connection(socket, passage, address, &self.options)))
    }
}

impl Netlayer for WebSocket {
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
            let url = to.hints.get(URL_HINT).ok_or(DialError::NoAddress)?;
            self.dial_url(to, url).await
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

impl fmt::Debug for WebSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebSocket({})", self.locator)
    }
}

/// Where a URL leads.
struct Target {
    secure: bool,
    host: String,
    port: u16,
}

impl Target {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "ws" => false,
            "wss" => true,
            _ => return None,
        };
        let host = uri.host()?;
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        Some(Self {
            secure,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
        })
    }
}

/// What stands behind the port.
struct Door {
    keys: SessionKeys,
    options: WebSocketOptions,
    sessions: mpsc::Sender<Connection>,
}

impl Door {
    async fn admit(self: Arc<Self>, tcp: TcpStream, address: SocketAddr, place: Place) {
        let admitted = async {
            match timeout(self.options.handshake_timeout, self.answer(tcp, address)).await {
                Ok(answered) => answered,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        let admitted = tokio::select! {
            admitted = admitted => admitted,
            () = place.evicted() => Err(io::Error::other("others need the place")),
        };
        if let Err(error) = admitted {
            tracing::debug!(%address, %error, "connection refused");
        }
    }

    /// Goes through the handshake as the listener, and hands the connection on.
    async fn answer(&self, tcp: TcpStream, address: SocketAddr) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let config = Some(config(self.options.frame_bytes_max));
        let passage = Arc::new(Passage::default());
        let stream = Gate::new(tcp, Arc::clone(&passage));
        let upgraded = accept_async_with_config(stream, config).await;
        let mut socket = upgraded.map_err(io_error)?;
        let challenge = next_binary(&mut socket).await?;
        let challenge = challenge.ok_or(io::ErrorKind::UnexpectedEof)?;
        // Nothing but a challenge is signed: whoever could have anything signed could speak in
        // our name elsewhere.
        check_challenge(&challenge).map_err(io::Error::other)?;
        let answer = self.keys.envelope(&challenge);
        socket
            .send(Message::Binary(answer))
            .await
            .map_err(io_error)?;
        let connection = connection(socket, passage, Some(address), &self.options);
        let gone = |_| io::Error::other("nobody takes connections any more");
        self.sessions.send(connection).await.map_err(gone)
    }
}

fn check_challenge(challenge: &Bytes) -> Result<(), SyrupError> {
    let mut reader = Reader::new(challenge, Mode::Strict);
    reader.record_of(CHALLENGE)?;
    if reader.bytes()?.len() != CHALLENGE_BYTES {
        return Err(reader.error(SyrupErrorKind::Kind));
    }
    reader.end()?;
    match reader.offset() == challenge.len() {
        true => Ok(()),
        false => Err(reader.error(SyrupErrorKind::Trailing)),
    }
}

fn config(frame_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .max_message_size(Some(frame_bytes_max))
        .max_frame_size(Some(frame_bytes_max))
}

fn connection<S>(
    socket: WebSocketStream<Gate<S>>,
    passage: Arc<Passage>,
    address: Option<SocketAddr>,
    options: &WebSocketOptions,
) -> Connection
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (write, read) = socket.split();
    Connection {
        // Neither end proves that it is at the other end of this very channel.
        proven: None,
        address,
        incoming: Box::new(Frames {
            socket: read,
            passage: Arc::clone(&passage),
            dead_after: options.dead_after,
        }),
        outgoing: Box::new(Sending {
            socket: write,
            passage,
            keepalive: options.keepalive,
        }),
    }
}

/// Returns the next binary frame; `None` at the end of the stream. Pings are answered by the
/// socket itself.
async fn next_binary<T>(socket: &mut T) -> io::Result<Option<Bytes>>
where
    T: futures_util::Stream<Item = Result<Message, WsError>> + Unpin,
{
    loop {
        match socket.next().await {
            None | Some(Ok(Message::Close(_)) | Err(WsError::ConnectionClosed)) => return Ok(None),
            Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a frame is not binary",
                ));
            }
            Some(Err(error)) => return Err(io_error(error)),
        }
    }
}

struct Frames<S> {
    socket: SplitStream<WebSocketStream<S>>,
    passage: Arc<Passage>,
    dead_after: Option<Duration>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Incoming for Frames<S> {
    fn read<'a>(&'a mut self, into: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<bool>> {
        async move {
            // Pongs are a sign of life, too: so each frame has the time anew.
            loop {
                let frame = self.socket.next();
                let frame = match self.dead_after {
                    None => frame.await,
                    Some(limit) => timeout(limit, frame).await.map_err(|_| {
                        io::Error::new(io::ErrorKind::TimedOut, "the peer fell silent")
                    })?,
                };
                match frame {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => {
                        let mut one = futures_util::stream::iter(other);
                        let Some(bytes) = next_binary(&mut one).await? else {
                            return Ok(false);
                        };
                        into.push(bytes);
                        return Ok(true);
                    }
                }
            }
        }
        .boxed()
    }

    fn session_up(&mut self) {
        self.passage.open();
    }
}

struct Sending<S> {
    socket: SplitSink<WebSocketStream<S>, Message>,
    passage: Arc<Passage>,
    keepalive: Option<Duration>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Outgoing for Sending<S> {
    fn write<'a>(&'a mut self, messages: &'a mut Vec<Bytes>) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let Self {
                socket, passage, ..
            } = self;
            let mut sent = pin!(async {
                if messages.is_empty() {
                    socket.feed(Message::Ping(Bytes::new())).await?;
                }
                for message in messages.drain(..) {
                    socket.feed(Message::Binary(message)).await?;
                }
                socket.flush().await
            });
            loop {
                let before = passage.written();
                match timeout(WRITE_TIMEOUT, &mut sent).await {
                    Ok(sent) => return sent.map_err(io_error),
                    // Much at once takes its time on a slow link.
                    Err(_) if passage.written() > before => {}
                    Err(_) => {
                        let text = "the peer takes no bytes";
                        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                    }
                }
            }
        }
        .boxed()
    }

    fn keepalive(&self) -> Option<Duration> {
        self.keepalive
    }

    fn close(&mut self) -> BoxFuture<'_, io::Result<()>> {
        async move { self.socket.close().await.map_err(io_error) }.boxed()
    }
}

fn io_error(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::time::sleep;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_slow_link_is_not_taken_for_a_dead_peer() {
        let (near, mut far) = tokio::io::duplex(1_000);
        let passage = Arc::new(Passage::default());
        let gate = Gate::new(near, Arc::clone(&passage));
        let socket = WebSocketStream::from_raw_socket(gate, Role::Client, None).await;
        let (socket, _reading) = socket.split();
        let mut sending = Sending {
            socket,
            passage,
            keepalive: None,
        };
        let message = Bytes::from(vec![7; 10_000]);
        let slow = async {
            for _ in 0..10 {
                sleep(WRITE_TIMEOUT * 2 / 3).await;
                far.read_exact(&mut [0; 1_000]).await.unwrap();
            }
        };
        let mut messages = vec![message.clone()];
        let (sent, ()) = tokio::join!(sending.write(&mut messages), slow);
        sent.unwrap();
        // Now nobody reads any more.
        let error = sending.write(&mut vec![message]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
