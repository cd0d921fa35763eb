//! Bytes through bindings.

use hob::protocol::{Attenuate, Expose, Grant, Opened, StreamReply, method};
use ocapn::Swissnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::postgres::cluster::free_port;
use crate::support::{
    Host, Pair, connect, echo, ends, eventually, exchange, generation, grant, mirror, pattern,
    ping, registration, stranger,
};

/// A promise of the issue: 10 MB both ways, every byte checked.
const BYTES: usize = 10 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn s9_bytes_flow_with_a_boss_without_one_and_after_reboots() {
    let (orders, _) = mirror().await;
    let mut pair = Pair::start(&orders).await;
    let port = format!("127.0.0.1:{}", free_port());
    let unix = pair.app.runtime.join("own.sock");
    let held = pair
        .bind(1, &[Expose::tcp(port.clone()), Expose::unix(unix.clone())])
        .await;
    assert_eq!(held.address, port);
    assert_eq!(
        pair.importer.check(&generation(1)).await,
        hob::protocol::Check {
            answers: true,
            detail: String::new()
        }
    );
    let read = |file: &str| std::fs::read_to_string(format!("{}/{file}", held.directory)).unwrap();
    assert_eq!(
        (read("type"), read("uri")),
        ("orders".into(), format!("tcp://{port}"))
    );

    let sent = pattern(BYTES, 1);
    exchange(connect(&port).await, &sent).await;
    exchange(
        connect(&format!("unix:{}", unix.display())).await,
        &sent[..1000],
    )
    .await;
    // The same again is the same.
    assert_eq!(
        pair.bind(1, &[Expose::tcp(port.clone()), Expose::unix(unix)])
            .await,
        held
    );

    let granted = pair
        .exporter
        .grant(&grant(1, &pair.importer.designator))
        .await
        .unwrap();
    pair.boss.peer.close().await;
    exchange(connect(&port).await, &sent).await;

    pair.db.kill();
    pair.app.kill();
    pair.app.start_again();
    pair.db.start_again();
    eventually("listening again", async || {
        std::net::TcpStream::connect(&port).is_ok()
    })
    .await;
    exchange(connect(&port).await, &sent).await;
    let get = pair.app.command().args(["get", "db"]).output().unwrap();
    assert_eq!(String::from_utf8(get.stdout).unwrap().trim(), port);

    // X1: what was secret is in no log, although all of it was logged that ever is.
    let logs = [pair.db.log(), pair.app.log()];
    let key = std::fs::read(pair.db.layout.hob().join("key")).unwrap();
    for secret in [&key, granted.sturdyref.swissnum.reveal()] {
        let texts = [
            data_encoding::HEXLOWER.encode(secret),
            data_encoding::BASE64.encode(secret),
            data_encoding::BASE64URL_NOPAD.encode(secret),
            data_encoding::BASE32_NOPAD
                .encode(secret)
                .to_ascii_lowercase(),
            format!("{secret:?}").trim_matches(['[', ']']).to_owned(),
        ];
        for text in texts {
            assert!(logs.iter().all(|log| !log.contains(&text)));
        }
    }
    assert!(
        !logs[1].contains("was not handed over"),
        "the grant came by handoff"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_for_an_exporter_that_starts_later() {
    let (orders, _) = mirror().await;
    let mut pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    assert!(
        held.address.ends_with("/bindings/db/..run/socket"),
        "{}",
        held.address
    );
    pair.db.kill();
    pair.app.kill();
    pair.app.start_again();
    let path = held.address.strip_prefix("unix:").unwrap();
    eventually("listening", async || {
        std::os::unix::net::UnixStream::connect(path).is_ok()
    })
    .await;
    let waiting = connect(&held.address).await;
    let sent = pattern(1000, 2);
    let exchanged = tokio::spawn(async move { exchange(waiting, &sent).await });
    pair.db.start_again();
    exchanged.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_for_one_key_and_one_time() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let (receiver, dialer, designator) = stranger();
    let granted = pair.exporter.grant(&grant(1, &designator)).await.unwrap();
    let again = pair.exporter.grant(&grant(1, &designator)).await.unwrap();
    assert_eq!(
        granted.sturdyref, again.sturdyref,
        "the same grant has the same name"
    );

    let (other, foreign_dialer, _) = stranger();
    assert!(other.enliven(&granted.sturdyref).await.is_err());
    // Not even the boss may use what it hands over.
    let broken = granted.grant.call(method::OPEN, []).await.unwrap_err();
    assert_eq!(broken.code(), Some("not-yours"));

    let live = receiver.enliven(&granted.sturdyref).await.unwrap();
    let opened = live.call(method::OPEN, []).await.unwrap();
    let ticket = Opened::from_passable(&opened).unwrap().ticket;
    let mut hello = vec![hob::protocol::BYTES_VERSION];
    hello.extend_from_slice(&ticket);
    let alpn = hob::protocol::BYTES_ALPN;
    let present = async |dialer: &ocapn::StreamDialer, hello: &[u8]| {
        let mut stream = dialer.dial(&granted.sturdyref.peer, alpn).await.unwrap();
        stream.write_all(hello).await.unwrap();
        stream.flush().await.unwrap();
        let reply = StreamReply::from_byte(stream.read_u8().await.unwrap()).unwrap();
        (reply, stream)
    };
    // What comes with a ticket is lost with it, or begins the stream.
    let early = [&hello[..], b"early"].concat();
    assert_eq!(
        present(&foreign_dialer, &early).await.0,
        StreamReply::Refused
    );
    let (reply, mut stream) = present(&dialer, &early).await;
    assert_eq!(reply, StreamReply::Open);
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"early");
    ping(&mut stream).await.unwrap();
    assert_eq!(
        present(&dialer, &hello).await.0,
        StreamReply::Refused,
        "a replay"
    );
    hello[0] = 9;
    assert_eq!(
        present(&dialer, &hello).await.0,
        StreamReply::Refused,
        "another version"
    );

    let mut guessed = granted.sturdyref.clone();
    guessed.swissnum = Swissnum::new([0; 32]);
    assert!(receiver.enliven(&guessed).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_max_holds_at_the_exporter() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let attenuate = Attenuate {
        connections_max: Some(2),
        ..Attenuate::default()
    };
    let narrow = Grant {
        attenuate,
        ..grant(1, &pair.importer.designator)
    };
    let granted = pair.exporter.grant(&narrow).await.unwrap();
    let held = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await
        .unwrap();
    let (mut one, mut two) = (connect(&held.address).await, connect(&held.address).await);
    ping(&mut one).await.unwrap();
    ping(&mut two).await.unwrap();
    assert!(
        ends(&mut connect(&held.address).await).await,
        "the third is one too many"
    );
    assert_eq!(pair.exporter.status().await.grants[0].streams, 2);
    // Registered again, as after a lost answer, it is the same binding with the same streams.
    let again = pair
        .importer
        .register(&registration(1, &[]), &granted)
        .await
        .unwrap();
    assert_eq!(again, held);
    eventually("two streams are left", async || {
        pair.importer.status().await.bindings[0].streams == 2
    })
    .await;
    let check = pair.importer.check(&generation(1)).await;
    assert!(
        !check.answers && check.detail.contains("as many connections"),
        "{check:?}"
    );
    drop(one);
    eventually("a place again", async || {
        let mut next = connect(&held.address).await;
        ping(&mut next).await.is_ok()
    })
    .await;
    ping(&mut two).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_down_is_told() {
    let pair = Pair::start("127.0.0.1:1").await;
    let held = pair.bind(1, &[]).await;
    let check = pair.importer.check(&generation(1)).await;
    assert!(
        !check.answers && check.detail.contains("service"),
        "{check:?}"
    );
    assert!(ends(&mut connect(&held.address).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_moves_and_its_address_stays() {
    let first = echo().await;
    let pair = Pair::start(&first).await;
    let held = pair.bind(1, &[]).await;
    let mut before = connect(&held.address).await;
    ping(&mut before).await.unwrap();

    let (second, _) = mirror().await;
    let other = Host::start(&pair.boss.invite("machine.other", &[]), &[]);
    let exporter = pair.boss.client("machine.other").await;
    exporter
        .offer("orders", hob::protocol::ServiceKind::Tcp(second))
        .await;
    let granted = exporter
        .grant(&grant(2, &pair.importer.designator))
        .await
        .unwrap();
    let moved = pair
        .importer
        .register(&registration(2, &[]), &granted)
        .await
        .unwrap();
    assert_eq!(moved, held);
    exchange(connect(&held.address).await, b"to the other").await;
    ping(&mut before).await.unwrap();
    // The grant of before is good still, and does not take the name back.
    let asked = grant(1, &pair.importer.designator);
    let earlier = pair.exporter.grant(&asked).await.unwrap();
    let late = registration(1, &[]);
    let late = pair.importer.register(&late, &earlier).await.unwrap_err();
    assert_eq!(late.code(), Some("revoked"));
    exchange(connect(&held.address).await, b"to the other yet").await;
    pair.exporter.revoke(&generation(1)).await.unwrap();
    assert!(ends(&mut before).await);
    exchange(connect(&held.address).await, b"to the other still").await;

    // What is late changes nothing.
    pair.importer.unregister(&generation(1)).await;
    exchange(connect(&held.address).await, b"to the other for good").await;
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_cannot_be_exposed_says_why_and_leaves_nothing() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let granted = pair
        .exporter
        .grant(&grant(1, &pair.importer.designator))
        .await
        .unwrap();
    let unix = Expose::unix(pair.app.runtime.join("s"));
    let tried = registration(1, &[unix, Expose::tcp(address.clone())]);
    let broken = pair.importer.register(&tried, &granted).await.unwrap_err();
    assert_eq!(broken.code(), Some("expose"));
    assert!(broken.to_string().contains(&address), "{broken}");
    assert!(!pair.app.runtime.join("s").exists());
    assert_eq!(pair.importer.status().await.bindings, []);
    drop(taken);
    pair.importer.register(&tried, &granted).await.unwrap();
    ping(&mut connect(&address).await).await.unwrap();

    let other = hob::protocol::Registration {
        binding: "binding.other".into(),
        ..registration(1, &[])
    };
    let mut grant = grant(1, &pair.importer.designator);
    grant.binding = "binding.other".into();
    let granted = pair.exporter.grant(&grant).await.unwrap();
    let broken = pair.importer.register(&other, &granted).await.unwrap_err();
    assert_eq!(broken.code(), Some("taken"));
    // Under a name of its own binding, a grant of another one is not taken either.
    let crossed = registration(2, &[]);
    let broken = pair
        .importer
        .register(&crossed, &granted)
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Some("malformed"));
    ping(&mut connect(&address).await).await.unwrap();
}
