//! The netlayer `websocket` over real sockets: as peers use it, byte by byte, and misused.

#![expect(
    clippy::disallowed_methods,
    reason = "tests of the driver use sockets and tasks"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use ocapn::netlayer::websocket::{WebSocket, WebSocketOptions};
use ocapn::netlayer::{DialError, Netlayer};
use ocapn::{ConnectError, EnlivenError, Identity, Methods, Peer, Sturdyref, Sturdyrefs, Turn};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// No wait of a test is for a time, but none may last for ever either.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it took too long")
}

async fn netlayer(options: WebSocketOptions) -> WebSocket {
    let identity = Identity::generate().unwrap();
    WebSocket::bind(identity, ANY_PORT, options).await.unwrap()
}

/// A listening peer with an object that says who asks.
async fn server() -> (Peer, Sturdyref) {
    let table = Arc::new(Sturdyrefs::new());
    let peer = Peer::builder()
        .netlayer(netlayer(WebSocketOptions::default()).await)
        .sturdyrefs(table.clone())
        .spawn();
    let object = Methods::new()
        .on("echo", |_: &Turn, (text,): (String,)| Ok(text))
        .on("proven", |turn: &Turn, ()| {
            Ok(turn.peer().is_some_and(|peer| peer.authenticated))
        });
    let sturdyref = table.export(&peer.locator(), &peer.export(object));
    (peer, sturdyref.unwrap())
}

fn client() -> Peer {
    let identity = Identity::generate().unwrap();
    let netlayer = WebSocket::dial_only(&identity, WebSocketOptions::default());
    Peer::builder().netlayer(netlayer).spawn()
}

async fn serves(sturdyref: &Sturdyref) {
    let client = client();
    let object = soon(client.enliven(sturdyref)).await.unwrap();
    let big = "x".repeat(300_000);
    let echo = object.ask::<String>("echo", (big.as_str(),));
    assert_eq!(soon(echo).await, Ok(big));
    assert_eq!(soon(object.ask::<bool>("proven", ())).await, Ok(false));
    client.close().await;
}

#[tokio::test]
async fn peers_call_each_other_and_prove_no_more_than_they_can() {
    let (peer, sturdyref) = server().await;
    assert!(peer.locator().hints["url"].starts_with("ws://127.0.0.1:"));
    serves(&sturdyref).await;
    serves(&sturdyref).await;
    let client = client();
    let who = soon(client.connect(&peer.locator())).await.unwrap();
    assert!(!who.authenticated, "over ws:// anybody may sit in between");
}

/// Speaks TLS at a port of its own, and passes everything on to `to`. Its certificate is for
/// 127.0.0.1; the key is known to everybody.
async fn relay(to: SocketAddr) -> SocketAddr {
    let certificate = CertificateDer::from(&include_bytes!("data/relay-certificate.der")[..]);
    let key = PrivatePkcs8KeyDer::from(&include_bytes!("data/relay-key.der")[..]);
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut dialler = acceptor.accept(tcp).await.unwrap();
        let mut real = TcpStream::connect(to).await.unwrap();
        // How it ends is no matter.
        let _ = tokio::io::copy_bidirectional(&mut dialler, &mut real).await;
    });
    address
}

#[tokio::test]
async fn c2_a_relay_with_a_valid_certificate_is_taken_for_nobody() {
    let (peer, mut sturdyref) = server().await;
    let real = peer.locator().hints["url"].clone();
    let between = relay(real.strip_prefix("ws://").unwrap().parse().unwrap()).await;
    let hints = &mut sturdyref.peer.hints;
    hints.insert("url".into(), format!("wss://{between}"));

    let mut authorities = rustls::RootCertStore::empty();
    let certificate = &include_bytes!("data/relay-certificate.der")[..];
    authorities.add(CertificateDer::from(certificate)).unwrap();
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(authorities)
        .with_no_client_auth();
    let options = WebSocketOptions {
        tls: Some(Arc::new(tls)),
        ..WebSocketOptions::default()
    };
    let identity = Identity::generate().unwrap();
    let client = Peer::builder()
        .netlayer(WebSocket::dial_only(&identity, options))
        .spawn();
    let who = soon(client.connect(&sturdyref.peer)).await.unwrap();
    assert_eq!(who.designator, peer.locator().designator);
    assert!(!who.authenticated, "the relay reads all of this");
    // What needs no proof goes on.
    let object = soon(client.enliven(&sturdyref)).await.unwrap();
    let echo = object.ask::<String>("echo", ("heard",));
    assert_eq!(soon(echo).await, Ok("heard".to_owned()));
}

#[tokio::test]
async fn a_listener_with_another_key_is_refused_before_any_captp() {
    let (peer, sturdyref) = server().await;
    let mut other = sturdyref.clone();
    other.peer.designator = Identity::generate().unwrap().designator();
    let error = soon(client().enliven(&other)).await.unwrap_err();
    let EnlivenError::Connect(ConnectError::Dial(error)) = error else {
        panic!("{error}");
    };
    assert!(matches!(&*error, DialError::WrongPeer(_)), "{error}");
    assert!(peer.sessions().is_empty());
    serves(&sturdyref).await;
}

#[tokio::test]
async fn locators_that_lead_nowhere_are_told_apart() {
    let identity = Identity::generate().unwrap();
    let dialler = WebSocket::dial_only(&identity, WebSocketOptions::default());
    let to = dialler.locator();
    let refused = |result: Result<_, DialError>| result.err().unwrap();
    assert!(matches!(
        refused(soon(dialler.dial(&to)).await),
        DialError::NoAddress
    ));
    let http = to.clone().with_hint("url", "http://127.0.0.1/");
    assert!(matches!(
        refused(soon(dialler.dial(&http)).await),
        DialError::NoAddress
    ));
    let mut nobody = to.clone().with_hint("url", "ws://127.0.0.1:1/");
    let error = refused(soon(dialler.dial(&nobody)).await);
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    nobody.designator = "nobody".into();
    let error = refused(soon(dialler.dial(&nobody)).await);
    assert!(matches!(error, DialError::Designator(_)), "{error}");
    // Certificates cannot be checked here, so nothing is dialled in the hope that they are right.
    let (peer, _) = server().await;
    let secure = peer.locator().hints["url"].replace("ws://", "wss://");
    let error = refused(soon(dialler.dial(&peer.locator().with_hint("url", secure))).await);
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn whoever_dials_under_a_peers_name_is_not_shown_its_swissnums() {
    let victim = Peer::builder()
        .netlayer(netlayer(WebSocketOptions::default()).await)
        .spawn();
    // The name is all that the claimant has of the other peer, but here it may as well be its own.
    let identity = Identity::generate().unwrap();
    let table = Arc::new(Sturdyrefs::new());
    let claimant = Peer::builder()
        .netlayer(WebSocket::dial_only(&identity, WebSocketOptions::default()))
        .sturdyrefs(table.clone())
        .spawn();
    let object = claimant.export(Methods::new());
    let sturdyref = table.export(&claimant.locator(), &object).unwrap();
    soon(claimant.connect(&victim.locator())).await.unwrap();
    let mut events = victim.session_events();
    while !victim.has_session(&identity.designator()) {
        soon(events.recv()).await.unwrap();
    }
    // It would have answered.
    let error = soon(victim.enliven(&sturdyref)).await.unwrap_err();
    assert!(matches!(error, EnlivenError::Connect(_)), "{error}");
    assert!(victim.has_session(&identity.designator()));
}

async fn upgrade(peer: &Peer) -> WebSocketStream<TcpStream> {
    let url = peer.locator().hints["url"].clone();
    let tcp = TcpStream::connect(url.strip_prefix("ws://").unwrap());
    let upgraded = tokio_tungstenite::client_async(&url, tcp.await.unwrap());
    soon(upgraded).await.unwrap().0
}

/// Reads until the end, and returns the binary frames.
async fn frames(socket: &mut WebSocketStream<TcpStream>) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(Ok(message)) = soon(socket.next()).await {
        if let Message::Binary(bytes) = message {
            frames.push(bytes);
        }
    }
    frames
}

#[tokio::test]
async fn the_challenge_is_signed_as_it_came() {
    let (peer, _) = server().await;
    let mut socket = upgrade(&peer).await;
    let challenge = [&b"<14'init:peer-auth32:"[..], &[7; 32], b">"].concat();
    socket
        .send(Message::Binary(challenge.clone().into()))
        .await
        .unwrap();
    let Some(Ok(Message::Binary(answer))) = soon(socket.next()).await else {
        panic!("an answer is a binary frame")
    };
    let start = [
        &b"<17'desc:sig-envelope"[..],
        &challenge,
        b"[7'sig-val[5'eddsa[1'r32:",
    ]
    .concat();
    assert_eq!(answer[..start.len()], start);
    assert_eq!(
        answer.len(),
        start.len() + 32 + b"][1's32:".len() + 32 + b"]]]>".len()
    );
}

#[tokio::test]
async fn nothing_else_is_signed_and_hostile_bytes_disturb_nobody() {
    let (peer, sturdyref) = server().await;
    let long = [&b"<14'init:peer-auth64:"[..], &[7; 64], b">"].concat();
    let trailing = [&b"<14'init:peer-auth32:"[..], &[7; 32], b">t"].concat();
    for wrong in [
        &b""[..],
        b"garbage",
        b"<11'my-location<10'ocapn-peer>>",
        b"<14'init:peer-auth>",
        b"<14'init:peer-auth999999999999999999:",
        &long,
        &trailing,
    ] {
        let mut socket = upgrade(&peer).await;
        socket
            .send(Message::Binary(Bytes::copy_from_slice(wrong)))
            .await
            .unwrap();
        assert_eq!(frames(&mut socket).await, Vec::<Bytes>::new(), "{wrong:?}");
    }
    let mut text = upgrade(&peer).await;
    text.send(Message::Text("hello".into())).await.unwrap();
    assert!(frames(&mut text).await.is_empty());

    let url = peer.locator().hints["url"].clone();
    let address = url.strip_prefix("ws://").unwrap();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 70_000],
        b"\x16\x03\x01",
    ] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        // The other end may have had enough before all is written.
        let _ = tcp.write_all(bytes).await;
        let _ = tcp.shutdown().await;
        let _ = soon(tcp.read_to_end(&mut Vec::new())).await;
    }

    // A frame that announces more than is accepted, once the session could begin; or just more
    // than a greeting has.
    for length in [[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0x50, 0]] {
        let mut huge = upgrade(&peer).await;
        let challenge = [&b"<14'init:peer-auth32:"[..], &[7; 32], b">"].concat();
        huge.send(Message::Binary(challenge.into())).await.unwrap();
        assert!(soon(huge.next()).await.unwrap().is_ok());
        let header = [&[0x82, 0xff][..], &length, &[0; 4]].concat();
        huge.get_mut().write_all(&header).await.unwrap();
        frames(&mut huge).await;
    }
    serves(&sturdyref).await;
}

#[tokio::test]
async fn c4_connections_that_never_begin_make_room_or_are_refused() {
    let listener = netlayer(WebSocketOptions {
        handshakes_per_address_max: 2,
        ..WebSocketOptions::default()
    })
    .await;
    let address = listener.local_addr().unwrap();
    let idle = [
        TcpStream::connect(address).await.unwrap(),
        TcpStream::connect(address).await.unwrap(),
    ];
    let mut third = TcpStream::connect(address).await.unwrap();
    let _ = soon(third.read(&mut [0])).await;
    drop(idle);
    let dialler = WebSocket::dial_only(&Identity::generate().unwrap(), WebSocketOptions::default());
    // The places come back as soon as the listener has seen the ends.
    while soon(dialler.dial(&listener.locator())).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_silent_peer_is_taken_for_dead_unless_it_answers_pings() {
    let listener = netlayer(WebSocketOptions {
        keepalive: Some(Duration::from_millis(200)),
        dead_after: Some(Duration::from_secs(1)),
        ..WebSocketOptions::default()
    })
    .await;
    let dialler = WebSocket::dial_only(&Identity::generate().unwrap(), WebSocketOptions::default());
    let locator = listener.locator();
    let (near, far) = tokio::join!(dialler.dial(&locator), listener.accept());
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let (mut ignored, mut messages) = (Vec::new(), Vec::new());
    {
        // The near end reads, and so answers.
        let mut answering = near.incoming.read(&mut ignored);
        let mut waiting = far.incoming.read(&mut messages);
        for _ in 0..10 {
            far.outgoing.write(&mut Vec::new()).await.unwrap();
            let tick = tokio::time::sleep(Duration::from_millis(200));
            tokio::select! {
                early = &mut answering => panic!("a ping is no message, no end: {early:?}"),
                early = &mut waiting => panic!("a pong is a sign of life: {early:?}"),
                () = tick => {}
            }
        }
        let error = soon(waiting).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}

#[tokio::test]
async fn a_closed_listener_lets_its_port_go() {
    let listener = netlayer(WebSocketOptions::default()).await;
    let address = listener.local_addr().unwrap();
    listener.close();
    soon(listener.freed()).await;
    assert!(soon(listener.accept()).await.is_none());
    let again = WebSocket::bind(
        Identity::generate().unwrap(),
        address,
        WebSocketOptions::default(),
    );
    again.await.unwrap();
}
