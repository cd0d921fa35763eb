//! `tls-rpk` over real sockets: who is let in, who is not, and what a stranger can disturb.

#![expect(
    clippy::disallowed_methods,
    reason = "tests of the driver use sockets and tasks"
)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ocapn::Identity;
use ocapn::PeerLocator;
use ocapn::netlayer::tls_rpk::{IncomingStream, TlsRpk, TlsRpkOptions};
use ocapn::netlayer::{Connection, DialError, Netlayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn listener(options: TlsRpkOptions) -> TlsRpk {
    TlsRpk::bind(Identity::generate().unwrap(), ANY_PORT, options)
        .await
        .unwrap()
}

fn dialler() -> TlsRpk {
    TlsRpk::dial_only(Identity::generate().unwrap(), TlsRpkOptions::default()).unwrap()
}

async fn send(connection: &mut Connection, text: &'static str) {
    let mut messages = vec![Bytes::from_static(text.as_bytes())];
    connection.outgoing.write(&mut messages).await.unwrap();
}

async fn receive(connection: &mut Connection) -> Bytes {
    let mut messages = Vec::new();
    assert!(
        connection.incoming.read(&mut messages).await.unwrap(),
        "the connection ended"
    );
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

/// Shows that the listener serves a new peer, whatever others did before.
async fn serves(listener: &TlsRpk) {
    let dialler = dialler();
    let locator = listener.locator();
    let (near, far) = tokio::join!(dialler.dial(&locator), listener.accept());
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.proven, Some(listener.locator().designator));
    assert_eq!(far.proven, Some(dialler.locator().designator));
    send(&mut near, "ping").await;
    assert_eq!(receive(&mut far).await, "ping");
    send(&mut far, "pong").await;
    assert_eq!(receive(&mut near).await, "pong");
}

#[tokio::test]
async fn c1_both_ends_prove_their_keys() {
    serves(&listener(TlsRpkOptions::default()).await).await;
}

#[tokio::test]
async fn c2_a_wrong_pin_fails_before_any_byte_of_captp() {
    let listener = listener(TlsRpkOptions::default()).await;
    let mut wrong = listener.locator();
    wrong.designator = Identity::generate().unwrap().designator();
    let error = dialler().dial(&wrong).await.err().unwrap();
    assert!(matches!(error, DialError::WrongPeer(_)), "{error}");
    // The listener has nothing of it: the first connection it hands out is the next dialler's.
    serves(&listener).await;
}

#[tokio::test]
async fn every_address_is_tried() {
    let listener = listener(TlsRpkOptions::default()).await;
    let other = self::listener(TlsRpkOptions::default()).await;
    let unused = TcpListener::bind(ANY_PORT)
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let addresses = [
        unused,
        other.local_addr().unwrap(),
        listener.local_addr().unwrap(),
    ]
    .map(|address| (address.ip().to_string(), address.port()));
    let to = |addresses: &[(String, u16)]| {
        PeerLocator::new("tls-rpk", listener.locator().designator)
            .with_addresses(addresses.iter().cloned())
    };
    assert!(dialler().dial(&to(&addresses)).await.is_ok());
    let error = dialler().dial(&to(&addresses[..1])).await.err().unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    let error = dialler().dial(&to(&[])).await.err().unwrap();
    assert!(matches!(error, DialError::NoAddress), "{error}");
    let error = dialler()
        .dial(&PeerLocator::new("onion", "abc"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, DialError::Transport(_)), "{error}");
    let error = dialler()
        .dial(&PeerLocator::new("tls-rpk", "abc"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, DialError::Designator(_)), "{error}");
}

#[tokio::test]
async fn c4_hostile_bytes_disturb_nobody() {
    let listener = listener(TlsRpkOptions {
        handshake_timeout: Duration::from_secs(1),
        frame_bytes_max: 1000,
        ..TlsRpkOptions::default()
    })
    .await;
    let address = listener.local_addr().unwrap();

    // A session from before, which must go on.
    let (dialler, locator) = (dialler(), listener.locator());
    let (near, far) = tokio::join!(dialler.dial(&locator), listener.accept());
    let (mut near, mut far) = (near.unwrap(), far.unwrap());

    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(&[b'x'; 5000]).await.unwrap();
    ended(&mut garbage).await;

    let mut silent = TcpStream::connect(address).await.unwrap();
    ended(&mut silent).await;

    let mut slow = TcpStream::connect(address).await.unwrap();
    let drip = async {
        for byte in b"\x16\x03\x01\x01\x00".iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() || slow.read(&mut [0; 9]).await.is_ok() {
                return;
            }
        }
    };
    drip.await;

    let wrong_alpn = dialler.stream_dialer().dial(&locator, b"other/1").await;
    if let Ok(mut stream) = wrong_alpn {
        assert!(
            stream.read(&mut [0; 9]).await.is_err(),
            "an unknown protocol was served"
        );
    }

    let (hostile, its_end) = tokio::join!(dialler.dial(&locator), listener.accept());
    let (mut hostile, mut its_end) = (hostile.unwrap(), its_end.unwrap());
    hostile
        .outgoing
        .write(&mut vec![Bytes::from(vec![0; 1001])])
        .await
        .unwrap();
    let error = its_end.incoming.read(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);

    send(&mut near, "still here").await;
    assert_eq!(receive(&mut far).await, "still here");
    serves(&listener).await;
}

/// Waits until the other end has closed the connection.
async fn ended(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn c4_connections_that_prove_nothing_are_limited() {
    let listener = listener(TlsRpkOptions {
        handshakes_per_address_max: 3,
        ..TlsRpkOptions::default()
    })
    .await;
    let address = listener.local_addr().unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    ended(&mut TcpStream::connect(address).await.unwrap()).await;
    drop(idle);
    // The places come back as soon as the listener has seen the ends.
    let dialler = dialler();
    while dialler.dial(&listener.locator()).await.is_err() {
        tokio::task::yield_now().await;
    }
    serves_after_one(&listener).await;
}

/// Takes the connection that is waiting, then shows that the listener serves.
async fn serves_after_one(listener: &TlsRpk) {
    assert!(listener.accept().await.is_some());
    serves(listener).await;
}

#[tokio::test]
async fn c5_a_silent_peer_is_taken_for_dead_and_a_keepalive_prevents_it() {
    let listener = listener(TlsRpkOptions {
        dead_after: Duration::from_secs(1),
        ..TlsRpkOptions::default()
    })
    .await;
    let (dialler, locator) = (dialler(), listener.locator());
    let (near, far) = tokio::join!(dialler.dial(&locator), listener.accept());
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.outgoing.keepalive(), Some(Duration::from_secs(15)));

    let mut messages = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(300));
    let error = {
        let mut read = far.incoming.read(&mut messages);
        // Longer than `dead_after` in all.
        for _ in 0..5 {
            near.outgoing.write(&mut Vec::new()).await.unwrap();
            tokio::select! {
                early = &mut read => panic!("a keepalive is no message, no end: {early:?}"),
                _ = ticks.tick() => {}
            }
        }
        read.await.unwrap_err()
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(messages.is_empty());
}

#[tokio::test]
async fn byte_streams_share_the_port() {
    let (sender, mut streams) = mpsc::channel(1);
    let listener = listener(TlsRpkOptions {
        stream_protocol: Some((b"bytes/1".to_vec(), sender)),
        ..TlsRpkOptions::default()
    })
    .await;
    let dialler = dialler();
    let dialled = dialler
        .stream_dialer()
        .dial(&listener.locator(), b"bytes/1")
        .await;
    let mut near = dialled.unwrap();
    let IncomingStream {
        peer,
        stream: mut far,
    } = streams.recv().await.unwrap();
    assert!(peer.authenticated);
    assert_eq!(peer.designator, dialler.locator().designator);

    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (write, received) = tokio::join!(
        async {
            near.write_all(&sent).await?;
            near.shutdown().await
        },
        async {
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.map(|_| received)
        }
    );
    write.unwrap();
    assert!(received.unwrap() == sent, "bytes were lost or changed");
    serves(&listener).await;
}

#[tokio::test]
async fn a_closed_listener_lets_its_port_go() {
    let listener = listener(TlsRpkOptions::default()).await;
    let address = listener.local_addr().unwrap();
    listener.close();
    assert!(listener.accept().await.is_none());
    while TcpListener::bind(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    let idle = dialler();
    idle.close();
    assert!(idle.accept().await.is_none());
}

/// Runs curl, which knows certificates only, and returns its exit code and what it printed.
async fn curl(url: String, pin: &[u8]) -> (Option<i32>, String) {
    let digest = <sha2::Sha256 as sha2::Digest>::digest(pin);
    let pin = format!("sha256//{}", data_encoding::BASE64.encode(&digest));
    let run = tokio::task::spawn_blocking(move || {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sSk", "--noproxy", "*", "--pinnedpubkey", &pin, &url]);
        curl.output().unwrap()
    });
    let output = run.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn programs_that_know_certificates_get_the_key_in_one() {
    let identity = Identity::generate().unwrap();
    let (sender, mut streams) = mpsc::channel(4);
    let options = TlsRpkOptions {
        public_protocol: Some((b"http/1.1".to_vec(), sender)),
        ..TlsRpkOptions::default()
    };
    let listener = TlsRpk::bind(identity.clone(), ANY_PORT, options)
        .await
        .unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let mut served = 0;
        while let Some(mut public) = streams.recv().await {
            let mut head = [0; 4096];
            let n = public.stream.read(&mut head).await.unwrap_or(0);
            if n == 0 {
                continue;
            }
            assert!(head.starts_with(b"GET / HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello";
            public.stream.write_all(answer).await.unwrap();
            public.stream.shutdown().await.unwrap();
            served += 1;
        }
        served
    });
    let spki = identity.subject_public_key_info();
    assert_eq!(curl(url.clone(), &spki).await, (Some(0), "hello".into()));
    let other = Identity::generate().unwrap().subject_public_key_info();
    let (code, said) = curl(url, &other).await;
    assert_eq!(code, Some(90), "{said}");
    // Those with keys of their own come through the same port, as ever.
    serves(&listener).await;
    drop(listener);
    assert_eq!(
        served.await.unwrap(),
        1,
        "nothing was asked with a wrong pin"
    );
}

#[tokio::test]
async fn without_a_public_protocol_such_programs_get_nothing() {
    let listener = listener(TlsRpkOptions::default()).await;
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let (code, said) = curl(url, b"").await;
    assert_eq!(code, Some(35), "{said}");
    serves(&listener).await;
}

#[tokio::test]
async fn whoever_answers_is_met_and_proves_its_key() {
    let listener = listener(TlsRpkOptions::default()).await;
    let address = listener.local_addr().unwrap();
    let dialler = dialler();
    let nowhere = ("127.0.0.1".to_owned(), 1);
    let addresses = [nowhere.clone(), (address.ip().to_string(), address.port())];
    let meets = dialler.stream_dialer();
    let (meeting, far) = tokio::join!(meets.meet(&addresses), async {
        listener.accept().await.unwrap()
    });
    let (locator, near) = meeting.unwrap();
    assert_eq!(near.proven, Some(listener.locator().designator));
    assert!(locator.same_peer(&listener.locator()));
    assert_eq!(far.proven, Some(dialler.locator().designator));
    let refused = dialler
        .stream_dialer()
        .meet(&[nowhere])
        .await
        .err()
        .unwrap();
    assert!(
        matches!(refused, DialError::Unreachable { .. }),
        "{refused}"
    );
}
