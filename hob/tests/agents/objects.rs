//! Objects elsewhere: called through a binding, until that is revoked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::future::BoxFuture;
use hob::protocol::{Attenuate, ServiceKind, code, method};
use ocapn::{
    Identity, Methods, Object, Peer, PeerId, Reference, Sturdyref, SturdyrefTable, Swissnum,
    TlsRpk, TlsRpkOptions, Turn,
};
use tokio::time::timeout;

use crate::support::{Host, PATIENCE, Pair, eventually, generation, grant, stranger};

/// Grants of an object that is called all the time, each revoked in the middle.
const STORMS: u64 = 30;

/// Who calls it at one time, and how many calls of each are under way.
const CALLERS: usize = 4;
const CALLS_AT_ONCE: usize = 64;

/// Somebody's object, anywhere.
struct Elsewhere(std::sync::OnceLock<Reference>);

impl SturdyrefTable for Elsewhere {
    fn fetch(&self, swissnum: Bytes, _: &PeerId) -> BoxFuture<'static, Option<Reference>> {
        let found = (&*swissnum == b"sesame")
            .then(|| self.0.get().cloned())
            .flatten();
        Box::pin(async move { found })
    }
}

async fn elsewhere(object: impl Object) -> (Peer, Sturdyref) {
    let identity = Identity::generate().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let netlayer = TlsRpk::bind(identity, listen, TlsRpkOptions::default())
        .await
        .unwrap();
    let table = Arc::new(Elsewhere(std::sync::OnceLock::new()));
    let peer = Peer::builder()
        .netlayer(netlayer)
        .sturdyrefs(table.clone())
        .spawn();
    let object = peer.export(object);
    table.0.set(object).ok().unwrap();
    let sturdyref = Sturdyref {
        peer: peer.locator(),
        swissnum: Swissnum::new(b"sesame".to_vec()),
    };
    (peer, sturdyref)
}

async fn call(host: &Host, args: &[&str]) -> String {
    let mut command = host.command();
    command.arg("call").args(args);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_elsewhere_is_called_until_it_is_revoked() {
    let methods = Methods::new()
        .on("add", |_: &Turn, (a, b): (i64, i64)| Ok(a + b))
        .on("greet", |_: &Turn, (name,): (String,)| {
            Ok(format!("hello {name}"))
        })
        .on("erase", |_: &Turn, ()| Ok("erased".to_owned()));
    let (peer, sturdyref) = elsewhere(methods).await;
    let uri = sturdyref.to_uri().to_string();
    let pair = Pair::of(ServiceKind::Sturdyref(uri)).await;
    let narrow = Attenuate {
        methods: Some(vec!["add".into(), "greet".into()]),
        ..Attenuate::default()
    };
    let held = pair.bind_narrowed(1, &[], narrow).await;
    assert_eq!(held.address, "hob:db");
    assert!(pair.importer.check(&generation(1)).await.answers);
    assert_eq!(call(&pair.app, &["db", "add", "2", "40"]).await, "42");
    assert_eq!(
        call(&pair.app, &["db", "greet", "it's"]).await,
        "\"hello it's\""
    );
    let refused = call(&pair.app, &["db", "erase"]).await;
    assert!(refused.contains("not-allowed"), "{refused}");
    let unknown = call(&pair.app, &["nothing", "add"]).await;
    assert_eq!(unknown, "hob: no binding has this name");
    // A new session with the object is found by itself.
    peer.disconnect(&pair.exporter.designator, "test");
    eventually("it is called again", async || {
        call(&pair.app, &["db", "add", "1", "1"]).await == "2"
    })
    .await;
    pair.exporter.revoke(&generation(1)).await.unwrap();
    let revoked = call(&pair.app, &["db", "add", "1", "1"]).await;
    assert!(revoked.contains("revoked"), "{revoked}");
    let logs = pair.db.log() + &pair.app.log();
    assert!(
        !logs.contains(&BASE64.encode(b"sesame")),
        "the sturdyref is in no log"
    );
}

/// What an object has seen of its calls.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    /// Set when a revocation is acknowledged, until the next grant.
    is_over: AtomicBool,
    late: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn s4_no_call_reaches_a_lent_object_after_the_acknowledgement() {
    let seen = Arc::new(Seen::default());
    let sees = Arc::clone(&seen);
    let methods = Methods::new().on("note", move |_: &Turn, ()| {
        sees.calls.fetch_add(1, Ordering::SeqCst);
        if sees.is_over.load(Ordering::SeqCst) {
            sees.late.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let (_peer, sturdyref) = elsewhere(methods).await;
    let kind = ServiceKind::Sturdyref(sturdyref.to_uri().to_string());
    let pair = Pair::of(kind).await;
    // A program that has the grant itself, and need not go through its machine's hob.
    let (receiver, _, designator) = stranger();
    for storm in 1..=STORMS {
        seen.is_over.store(false, Ordering::SeqCst);
        let granted = pair
            .exporter
            .grant(&grant(storm, &designator))
            .await
            .unwrap();
        let granted = receiver.enliven(&granted.sturdyref).await.unwrap();
        let lent = granted.call(method::CAPABILITY, []).await.unwrap();
        let lent = lent.as_reference().unwrap().clone();
        let before = seen.calls.load(Ordering::SeqCst);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let lent = lent.clone();
                tokio::spawn(async move {
                    loop {
                        let calls = (0..CALLS_AT_ONCE).map(|_| lent.call("note", []));
                        let calls: Vec<_> = calls.collect();
                        for call in calls {
                            if let Err(broken) = call.await {
                                return broken;
                            }
                        }
                    }
                })
            })
            .collect();
        eventually("the object is called", async || {
            seen.calls.load(Ordering::SeqCst) > before + (CALLERS * CALLS_AT_ONCE) as u64
        })
        .await;
        pair.exporter.revoke(&generation(storm)).await.unwrap();
        seen.is_over.store(true, Ordering::SeqCst);
        for caller in callers {
            let broken = timeout(PATIENCE, caller).await.unwrap().unwrap();
            assert_eq!(broken.code(), Some(code::REVOKED), "storm {storm}");
        }
        let again = lent.call("note", []).await.unwrap_err();
        assert_eq!(again.code(), Some(code::REVOKED), "storm {storm}");
        let late = seen.late.load(Ordering::SeqCst);
        assert_eq!(late, 0, "storm {storm}: calls after the acknowledgement");
    }
}
