//! The netlayers that never leave the machine: `memory` and `tcp-testing-only`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ocapn::PeerLocator;
use ocapn::netlayer::memory::MemoryNetwork;
use ocapn::netlayer::tcp_testing::{TcpFraming, TcpTesting};
use ocapn::netlayer::{Connection, DialError, Netlayer};
use tokio::time::Instant;

async fn connect(dialler: &dyn Netlayer, listener: &dyn Netlayer) -> (Connection, Connection) {
    let locator = listener.locator();
    let (near, far) = tokio::join!(dialler.dial(&locator), listener.accept());
    (near.unwrap(), far.unwrap())
}

/// Sends numbered messages one way and returns what arrived, run together.
async fn carry(from: &mut Connection, to: &mut Connection, count: u16) -> Vec<u8> {
    let mut messages: Vec<Bytes> = (0..count)
        .map(|n| Bytes::copy_from_slice(&n.to_be_bytes()))
        .collect();
    from.outgoing.write(&mut messages).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.iter().map(Bytes::len).sum::<usize>() < usize::from(count) * 2 {
        assert!(to.incoming.read(&mut arrived).await.unwrap());
    }
    arrived.concat()
}

fn numbers(count: u16) -> Vec<u8> {
    (0..count).flat_map(u16::to_be_bytes).collect()
}

#[tokio::test]
async fn tcp_carries_bytes_with_and_without_frames() {
    for framing in [TcpFraming::Unframed, TcpFraming::Netstring] {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let one = TcpTesting::bind("one", any, framing).await.unwrap();
        let two = TcpTesting::bind("two", any, framing).await.unwrap();
        let (mut near, mut far) = connect(&one, &two).await;
        assert_eq!(
            (&near.proven, &far.proven),
            (&None, &None),
            "TCP proves nothing"
        );
        assert_eq!(carry(&mut near, &mut far, 500).await, numbers(500));
        assert_eq!(carry(&mut far, &mut near, 500).await, numbers(500));
        near.outgoing.close().await.unwrap();
        assert!(!far.incoming.read(&mut Vec::new()).await.unwrap());
        two.close();
        assert!(two.accept().await.is_none());
    }
}

#[tokio::test]
async fn tcp_keeps_to_the_loopback() {
    let any = "0.0.0.0:0".parse().unwrap();
    assert!(
        TcpTesting::bind("one", any, TcpFraming::Unframed)
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn memory_delays_by_its_seed_and_keeps_order() {
    async fn time_taken(seed: u64) -> Duration {
        let network =
            MemoryNetwork::new(seed, Duration::from_millis(1)..Duration::from_millis(100));
        let (one, two) = (network.netlayer("one"), network.netlayer("two"));
        let (mut near, mut far) = connect(&one, &two).await;
        assert_eq!(near.proven.as_deref(), Some("two"));
        assert_eq!(far.proven.as_deref(), Some("one"));
        let begun = Instant::now();
        assert_eq!(carry(&mut near, &mut far, 3).await, numbers(3));
        begun.elapsed()
    }
    let first = time_taken(1).await;
    assert!(first >= Duration::from_millis(1) && first <= Duration::from_millis(101));
    assert_eq!(first, time_taken(1).await);
    assert_ne!(first, time_taken(2).await);
}

#[tokio::test]
async fn memory_cuts_and_joins() {
    let network = MemoryNetwork::new(7, Duration::ZERO..Duration::ZERO);
    let (one, two) = (network.netlayer("one"), network.netlayer("two"));
    let three = network.netlayer("three");
    let (mut near, mut far) = connect(&one, &two).await;
    let (mut near3, mut far3) = connect(&three, &two).await;

    network.sever("two", "one");
    assert!(near.incoming.read(&mut Vec::new()).await.is_err());
    assert!(far.incoming.read(&mut Vec::new()).await.is_err());
    assert!(
        far.outgoing
            .write(&mut vec![Bytes::from_static(b"x")])
            .await
            .is_err()
    );
    let error = one.dial(&two.locator()).await.err().unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    assert_eq!(carry(&mut near3, &mut far3, 10).await, numbers(10));

    network.join("one", "two");
    let (mut near, mut far) = connect(&one, &two).await;
    assert_eq!(carry(&mut far, &mut near, 10).await, numbers(10));
    let error = one
        .dial(&PeerLocator::new("memory", "nobody"))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
}
