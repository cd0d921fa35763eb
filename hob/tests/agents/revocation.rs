//! Taking a binding away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, Pair, connect, echo, ends, eventually, generation, grant, ping, registration,
};

/// Storms of connections that are revoked in the middle, and the programs of each.
const STORMS: u64 = 30;
const PROGRAMS: usize = 12;

/// Numbers that a program sends on one connection, in eight bytes each, and hears back.
const NUMBERS: usize = 20;

/// What one side stamps its bytes with, counted before they are sent, and the last number that
/// the other one has heard.
#[derive(Default)]
struct Stamps {
    sent: AtomicU64,
    heard: AtomicU64,
}

impl Stamps {
    async fn send(&self, stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        stream.write_u64(number).await?;
        stream.flush().await
    }

    async fn hear(&self, stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
        let number = stream.read_u64().await?;
        self.heard.fetch_max(number, Ordering::SeqCst);
        Ok(())
    }
}

/// A service and its programs, whose every byte is stamped, in both directions.
#[derive(Default)]
struct Stamped {
    of_programs: Stamps,
    of_service: Stamps,
    /// Connections that the service has taken, and those that are open there.
    taken: AtomicUsize,
    open: AtomicUsize,
}

impl Stamped {
    /// Starts the service; returns its address.
    async fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let service = Arc::clone(&service);
                service.taken.fetch_add(1, Ordering::SeqCst);
                service.open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    // It talks too, so that both directions are cut while busy.
                    while service.of_programs.hear(&mut stream).await.is_ok()
                        && service.of_service.send(&mut stream).await.is_ok()
                    {}
                    service.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        address
    }

    /// Connects again and again, until nobody answers on a new connection.
    async fn storm(&self, address: &str) {
        let mut is_answered = true;
        while is_answered {
            let (mut read, mut write) = tokio::io::split(connect(address).await);
            is_answered = false;
            let send = async {
                for _ in 0..NUMBERS {
                    self.of_programs.send(&mut write).await?;
                }
                std::io::Result::Ok(())
            };
            let hear = async {
                for _ in 0..NUMBERS {
                    self.of_service.hear(&mut read).await?;
                    is_answered = true;
                }
                std::io::Result::Ok(())
            };
            // One that is cut is made anew, as programs do.
            let _ = tokio::join!(send, hear);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_nothing_survives_a_storm_and_no_byte_arrives_after_the_acknowledgement() {
    let stamped = Arc::new(Stamped::default());
    let orders = stamped.serve().await;
    let pair = Pair::start(&orders).await;
    let mut held = pair.bind(1, &[]).await;
    for storm in 1..=STORMS {
        if storm > 1 {
            held = pair.bind(storm, &[]).await;
        }
        let before = stamped.taken.load(Ordering::SeqCst);
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|_| {
                let (address, stamped) = (held.address.clone(), Arc::clone(&stamped));
                tokio::spawn(async move { stamped.storm(&address).await })
            })
            .collect();
        eventually("the storm blows", async || {
            stamped.taken.load(Ordering::SeqCst) > before + 3 * PROGRAMS
        })
        .await;
        pair.exporter.revoke(&generation(storm)).await.unwrap();
        let directions = [&stamped.of_programs, &stamped.of_service];
        let sent = directions.map(|it| it.sent.load(Ordering::SeqCst));
        let status = pair.exporter.status().await;
        assert_eq!(
            (status.grants, status.revoked),
            (vec![], vec![generation(storm)]),
            "storm {storm}"
        );
        for program in programs {
            timeout(PATIENCE, program)
                .await
                .expect("it is cut")
                .unwrap();
        }
        eventually("nothing is open", async || {
            stamped.open.load(Ordering::SeqCst) == 0
        })
        .await;
        let heard = directions.map(|it| it.heard.load(Ordering::SeqCst));
        let late = heard.iter().zip(&sent).any(|(heard, sent)| heard > sent);
        assert!(!late, "storm {storm}: {heard:?} of {sent:?}");
    }

    // The listener of the importer lets nobody through, and then is gone.
    assert!(ends(&mut connect(&held.address).await).await);
    pair.importer.unregister(&generation(STORMS)).await;
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
