//! Taking a binding away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, Pair, connect, echo, ends, eventually, generation, grant, ping, registration,
};

/// A service that remembers the largest number among the eight-byte numbers it was sent.
async fn recorder() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let last = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&last);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                while let Ok(number) = stream.read_u64().await {
                    seen.fetch_max(number, Ordering::SeqCst);
                    // It talks too, so that both directions are cut while busy.
                    if stream.write_u64(number).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, last)
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_no_byte_arrives_after_the_acknowledgement() {
    let (orders, last) = recorder().await;
    let pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    // Every number that a client sends is counted before it is sent.
    let stamp = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (address, stamp) = (held.address.clone(), Arc::clone(&stamp));
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(connect(&address).await);
                let sink = async { tokio::io::copy(&mut read, &mut tokio::io::sink()).await };
                let send = async {
                    loop {
                        write
                            .write_u64(stamp.fetch_add(1, Ordering::SeqCst) + 1)
                            .await?;
                    }
                };
                tokio::select! {
                    _ = sink => {}
                    sent = send => { let _: std::io::Result<()> = sent; }
                }
            })
        })
        .collect();
    eventually("all streams are busy", async || {
        let streams = pair.exporter.status().await.grants[0].streams;
        streams == 8 && last.load(Ordering::SeqCst) > 10_000
    })
    .await;
    pair.exporter.revoke(&generation(1)).await.unwrap();
    let acknowledged = stamp.load(Ordering::SeqCst);
    for client in clients {
        timeout(PATIENCE, client).await.expect("it is cut").unwrap();
    }
    let status = pair.exporter.status().await;
    assert_eq!(
        (status.grants, status.revoked),
        (vec![], vec![generation(1)])
    );
    assert!(last.load(Ordering::SeqCst) <= acknowledged);

    // The listener of the importer lets nobody through, and then is gone.
    assert!(ends(&mut connect(&held.address).await).await);
    pair.importer.unregister(&generation(1)).await;
    let path = held.address.strip_prefix("unix:").unwrap();
    assert!(!std::path::Path::new(path).exists());
    assert!(!std::path::Path::new(&held.directory).exists());
    assert_eq!(pair.importer.status().await.bindings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn s5_what_is_revoked_stays_revoked() {
    let orders = echo().await;
    let mut pair = Pair::start(&orders).await;
    let receiver = pair.importer.designator.clone();
    let granted = pair.exporter.grant(&grant(3, &receiver)).await.unwrap();
    pair.importer
        .register(&registration(3, &[]), &granted)
        .await
        .unwrap();
    let code = async |pair: &Pair, number| {
        let refused = pair.exporter.grant(&grant(number, &receiver)).await;
        refused
            .err()
            .and_then(|broken| broken.code().map(str::to_owned))
    };
    assert_eq!(
        code(&pair, 2).await.as_deref(),
        Some("revoked"),
        "lower than one that is granted"
    );
    for _ in 0..2 {
        pair.exporter.revoke(&generation(3)).await.unwrap();
    }
    // One that was never seen is remembered as well.
    pair.exporter.revoke(&generation(7)).await.unwrap();
    pair.exporter.revoke(&generation(5)).await.unwrap();

    pair.db.kill();
    pair.db.start_again();
    let down = pair.exporter.clone();
    eventually("the old session ends", async || {
        down.hob
            .call(hob::protocol::method::STATUS, [])
            .await
            .is_err()
    })
    .await;
    pair.exporter = pair.boss.client("machine.db").await;
    for number in [3, 5, 7] {
        assert_eq!(
            code(&pair, number).await.as_deref(),
            Some("revoked"),
            "{number}"
        );
    }
    assert!(!pair.importer.check(&generation(3)).await.answers);
    let held = pair.bind(8, &[]).await;
    ping(&mut connect(&held.address).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn s6_the_receiver_closes_its_side_alone() {
    let orders = echo().await;
    let mut pair = Pair::start(&orders).await;
    let held = pair.bind(1, &[]).await;
    let mut stream = connect(&held.address).await;
    ping(&mut stream).await.unwrap();
    pair.db.signal(rustix::process::Signal::STOP);
    timeout(PATIENCE, pair.importer.unregister(&generation(1)))
        .await
        .unwrap();
    assert!(timeout(PATIENCE, ends(&mut stream)).await.unwrap());
    pair.db.signal(rustix::process::Signal::CONT);
    pair.db.kill();
}
