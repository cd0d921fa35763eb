//! Listeners on real sockets, and who sends to them.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ocapn::netlayer::Incoming;
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::netlayer::tls_rpk::{CAPTP_ALPN, TlsRpk};
use ocapn::{Identity, Netlayer, PeerLocator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::{Random, VALUES, mutate};

/// A loopback address with a port of the system's choice.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How long nothing must come before a connection is opened for large messages.
const SILENCE: Duration = Duration::from_millis(20);

/// Reads to the end, also what may only come once the session stands.
async fn read_all(incoming: &mut dyn Incoming, received: &mut Vec<Bytes>) {
    loop {
        match tokio::time::timeout(SILENCE, incoming.read(received)).await {
            Ok(Ok(true)) => {}
            Ok(_) => return,
            Err(_) => incoming.session_up(),
        }
    }
}

/// A listener of the framed netlayer, and who sends to it.
pub(crate) struct Frames {
    runtime: Runtime,
    netlayer: TcpTesting,
    address: SocketAddr,
}

impl Frames {
    pub(crate) fn new(runtime: Runtime) -> std::io::Result<Self> {
        let bind = TcpTesting::bind("fuzz", LISTEN, TcpFraming::Netstring);
        let netlayer = runtime.block_on(bind)?;
        let port = netlayer.locator().addresses().first().map_or(0, |to| to.1);
        Ok(Self {
            runtime,
            netlayer,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        })
    }

    pub(crate) fn attempt(&self, random: &mut Random) {
        let mut input = Vec::new();
        for _ in 0..1 + random.below(20) {
            let message = random.one(&VALUES);
            input.extend_from_slice(format!("{}:", message.len()).as_bytes());
            input.extend_from_slice(message);
        }
        mutate(random, &mut input);
        let mut stream = std::net::TcpStream::connect(self.address).expect("a connection");
        stream.write_all(&input).expect("room in the socket");
        drop(stream);
        self.runtime.block_on(async {
            let mut connection = self.netlayer.accept().await.expect("a connection");
            let mut received = Vec::new();
            read_all(connection.incoming.as_mut(), &mut received).await;
            let length: usize = received.iter().map(Bytes::len).sum();
            assert!(length <= input.len(), "{length} of {} bytes", input.len());
        });
    }
}

/// What a dialler of `tls-rpk` sends when all goes well.
const SENT: &[&[u8]] = &[VALUES[0], VALUES[3], VALUES[1]];

/// A listener of `tls-rpk`, a dialler, and somebody on the way between them.
pub(crate) struct Tls {
    runtime: Runtime,
    listener: TlsRpk,
    dialler: TlsRpk,
    between: TcpListener,
    /// Leads to the listener by way of `between`.
    detour: PeerLocator,
}

impl Tls {
    pub(crate) fn new(runtime: Runtime) -> Result<Self, Box<dyn std::error::Error>> {
        let bind = TlsRpk::bind(Identity::generate()?, LISTEN, Default::default());
        let listener = runtime.block_on(bind)?;
        let dialler = {
            let _entered = runtime.enter();
            TlsRpk::dial_only(Identity::generate()?, Default::default())?
        };
        let between = runtime.block_on(TcpListener::bind(LISTEN))?;
        let address = between.local_addr()?;
        let detour = listener.locator();
        let detour = detour.with_addresses([(address.ip().to_string(), address.port())]);
        Ok(Self {
            runtime,
            listener,
            dialler,
            between,
            detour,
        })
    }

    pub(crate) fn attempt(&self, random: &mut Random) {
        if random.below(2) == 0 {
            self.runtime.block_on(self.frames(random));
        } else {
            let exchange = async {
                let damage = (random.below(2), random.below(5));
                let relay = self.relay(random, damage);
                tokio::join!(self.dial(), relay);
            };
            self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.serve() => {}
                    () = exchange => {}
                }
            });
        }
    }

    /// A dialler that keeps to TLS, but not to the frames inside.
    async fn frames(&self, random: &mut Random) {
        let mut input = Vec::new();
        for _ in 0..1 + random.below(20) {
            let message: &[u8] = match random.below(8) {
                0 => b"",
                _ => random.one(&VALUES),
            };
            input.extend_from_slice(&(message.len() as u32).to_be_bytes());
            input.extend_from_slice(message);
        }
        mutate(random, &mut input);
        let to = self.listener.locator();
        let dialler = self.dialler.stream_dialer();
        let mut stream = dialler.dial(&to, CAPTP_ALPN).await.expect("a stream");
        stream.write_all(&input).await.expect("room in the socket");
        // Without it the end of the stream is one that was cut off.
        if random.below(2) == 0 {
            stream.shutdown().await.expect("an end");
        }
        let from = stream.get_ref().0.local_addr().ok();
        drop(stream);
        // One of an earlier input may have got through when nobody waited for it any more.
        let mut connection = loop {
            let connection = self.listener.accept().await.expect("a connection");
            if connection.address == from {
                break connection;
            }
        };
        let mut received = Vec::new();
        read_all(connection.incoming.as_mut(), &mut received).await;
        let length: usize = received.iter().map(Bytes::len).sum();
        assert!(length <= input.len(), "{length} of {} bytes", input.len());
    }

    /// Takes connections: what comes through is what was sent, perhaps not all of it.
    async fn serve(&self) {
        let sent = SENT.concat();
        while let Some(mut connection) = self.listener.accept().await {
            let mut received = Vec::new();
            read_all(connection.incoming.as_mut(), &mut received).await;
            assert!(sent.starts_with(&received.concat()), "{received:?}");
        }
    }

    async fn dial(&self) {
        let Ok(mut connection) = self.dialler.dial(&self.detour).await else {
            return;
        };
        let mut messages: Vec<_> = SENT.iter().copied().map(Bytes::from_static).collect();
        let _ = connection.outgoing.write(&mut messages).await;
        let _ = connection.outgoing.close().await;
        let mut received = Vec::new();
        read_all(connection.incoming.as_mut(), &mut received).await;
        assert!(received.is_empty(), "{received:?}");
    }

    /// Passes on what both ends send; the `damage.1`th piece for end `damage.0` is damaged, and
    /// nothing follows it.
    async fn relay(&self, random: &mut Random, damage: (usize, usize)) {
        let (near, _) = self.between.accept().await.expect("a connection");
        let to = self.listener.local_addr().expect("an address");
        let far = TcpStream::connect(to).await.expect("a connection");
        let (near, far) = (near.into_split(), far.into_split());
        let mut other = Random::new(0);
        let (good, bad) = (usize::MAX, damage.1);
        match damage.0 {
            0 => tokio::join!(
                pass(random, bad, near.0, far.1),
                pass(&mut other, good, far.0, near.1)
            ),
            _ => tokio::join!(
                pass(&mut other, good, near.0, far.1),
                pass(random, bad, far.0, near.1)
            ),
        };
    }
}

async fn pass(random: &mut Random, last: usize, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut room = [0; 4096];
    for piece in 0.. {
        let count = from.read(&mut room).await.unwrap_or(0);
        let mut bytes = room[..count].to_vec();
        if piece == last {
            mutate(random, &mut bytes);
        }
        if to.write_all(&bytes).await.is_err() || count == 0 || piece == last {
            break;
        }
    }
    // Whoever it was for may be gone.
    let _ = to.shutdown().await;
}

/// A listener of `websocket`, and what a dialler sends to it.
#[cfg(feature = "websocket")]
pub(crate) struct WebSockets {
    runtime: Runtime,
    netlayer: ocapn::netlayer::websocket::WebSocket,
    address: SocketAddr,
}

#[cfg(feature = "websocket")]
impl WebSockets {
    pub(crate) fn new(runtime: Runtime) -> Result<Self, Box<dyn std::error::Error>> {
        let identity = Identity::generate()?;
        let bind =
            ocapn::netlayer::websocket::WebSocket::bind(identity, LISTEN, Default::default());
        let netlayer = runtime.block_on(bind)?;
        let address = netlayer.local_addr().ok_or("no address")?;
        Ok(Self {
            runtime,
            netlayer,
            address,
        })
    }

    /// Returns a frame as a dialler sends it; the mask of nought changes nothing.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | short as u8),
            long => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(long as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        frame
    }

    pub(crate) fn attempt(&self, random: &mut Random) {
        let mut input = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
            Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
        if random.below(4) == 0 {
            mutate(random, &mut input);
        }
        let challenge = [b"<14'init:peer-auth32:", &[7; 32][..], b">"].concat();
        let mut frames = Self::frame(0x82, &challenge);
        for _ in 0..random.below(6) {
            let kind = [0x82, 0x02, 0x00, 0x80, 0x81, 0x88, 0x89, 0x8a][random.below(8)];
            frames.extend(Self::frame(kind, random.one(&VALUES)));
        }
        mutate(random, &mut frames);
        input.extend(frames);
        self.runtime.block_on(async {
            let connect = TcpStream::connect(self.address);
            let mut stream = connect.await.expect("a connection");
            // The listener may have closed it before the end.
            let _ = stream.write_all(&input).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let answered = async { drop(stream.read_to_end(&mut answer).await) };
            tokio::pin!(answered);
            loop {
                tokio::select! {
                    biased;
                    Some(mut connection) = self.netlayer.accept() => {
                        let mut received = Vec::new();
                        read_all(connection.incoming.as_mut(), &mut received).await;
                        let length: usize = received.iter().map(Bytes::len).sum();
                        assert!(length <= input.len(), "{length} of {}", input.len());
                    }
                    () = &mut answered => return,
                }
            }
        });
    }
}
