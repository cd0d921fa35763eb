//! What the operator can ask of the boss, over CapTP and over its socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gobs::boss::{Machines, ask_status, operator_identity, operator_sturdyref};
use gobs_model::Address;
use hob::protocol::{HobStatus, code, from_passable, method};
use ocapn::{Broken, Identity, Passable, Reference, Swissnum};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::home::{
    Home, Host, PATIENCE, Pair, enliven, eventually, peer, refusal, registered, stranger, sturdyref,
};

/// Makes what it is asked for, but for one, and remembers what that was.
struct Maker {
    home: Arc<Home>,
    boss: gobs::boss::Boss,
    asked: Arc<Mutex<Vec<String>>>,
    made: Arc<Mutex<Vec<Host>>>,
}

impl Machines for Maker {
    fn create(&self, machine: Address) -> BoxFuture<'static, Result<(), String>> {
        let machine = machine.to_string();
        self.asked.lock().expect("no panic").push(machine.clone());
        let (home, boss, made) = (self.home.clone(), self.boss.clone(), self.made.clone());
        async move {
            if machine == "machine.undeclared" {
                return Err("it is not declared".into());
            }
            let host = Host::start(&home.invite(&boss, &machine));
            made.lock().expect("no panic").push(host);
            registered(&boss, &machine).await;
            Ok(())
        }
        .boxed()
    }
}

async fn call(object: &Reference, method: &str, args: &[&str]) -> Result<Passable, Broken> {
    let args: Vec<_> = args.iter().map(|arg| Passable::from(*arg)).collect();
    timeout(PATIENCE, object.call(method, args))
        .await
        .expect("an answer")
}

/// Waits until a machine's hob has heard which machine it is, which follows its registration.
async fn says_it_is(machine: &Reference, name: &str) {
    eventually("the hob has heard its name", async || {
        let status = call(machine, method::STATUS, &[]).await.expect("answered");
        let status: HobStatus = from_passable("status", &status).expect("a status");
        status.machine == name
    })
    .await;
}

fn code_of(answer: Result<Passable, Broken>) -> String {
    let broken = answer.expect_err("refused");
    broken.code().expect("a code").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_key_alone_reaches_the_boss() {
    let home = Arc::new(Home::new());
    let boss = home.boss().await;
    let tables = home.tables();
    let sturdyref_of_boss = operator_sturdyref(&tables, boss.locator()).expect("readable");
    let mut unknown = sturdyref_of_boss.clone();
    unknown.swissnum = Swissnum::new([7; 32]);
    let mut hob = Host::start(&home.invite(&boss, "machine.db"));
    registered(&boss, "machine.db").await;
    let claimed = Identity::generate().expect("a key");
    let claim = sturdyref(&home.invite(&boss, "machine.app"));
    enliven(&peer(&claimed), &claim).await;
    for other in [stranger(), peer(&claimed)] {
        let said = refusal(&other, &sturdyref_of_boss).await;
        assert_eq!(said, refusal(&other, &unknown).await);
    }

    let operator = peer(&operator_identity(&tables).expect("readable"));
    // Its key opens nothing but the boss.
    refusal(&operator, &unknown).await;
    let object = enliven(&operator, &sturdyref_of_boss).await;
    let listed = call(&object, "list-machines", &[]).await.expect("listed");
    let listed: Vec<_> = listed.as_list().expect("a list").iter().collect();
    let field = |n: usize, name: &str| {
        let entry: &Passable = listed[n];
        entry
            .as_struct()
            .and_then(|it| it.get(name))
            .expect("there")
            .clone()
    };
    assert_eq!(listed.len(), 2);
    assert_eq!(field(0, "machine").as_str(), Some("machine.app"));
    assert_eq!(field(0, "active").as_bool(), Some(false));
    assert_eq!(field(1, "machine").as_str(), Some("machine.db"));
    assert_eq!(field(1, "active").as_bool(), Some(true));

    let machine = call(&object, "get-machine", &["machine.db"])
        .await
        .expect("given");
    let machine = machine.as_reference().expect("an object").clone();
    says_it_is(&machine, "machine.db").await;
    let held = call(&machine, method::LIST_BINDINGS, &[])
        .await
        .expect("answered");
    assert_eq!(held.as_list().map(<[_]>::len), Some(0));
    // What hands out or takes back is apply's alone.
    for forbidden in [
        method::GRANT,
        method::REVOKE,
        method::OFFER,
        method::GET_BINDING,
    ] {
        assert_eq!(
            code_of(call(&machine, forbidden, &[]).await),
            code::MALFORMED
        );
    }
    hob.kill();
    hob.start_again();
    eventually("the object outlives the session", async || {
        call(&machine, method::STATUS, &[]).await.is_ok()
    })
    .await;

    for (method, args, expected) in [
        ("get-machine", &["machine.none"][..], code::UNKNOWN),
        ("get-machine", &["binding.db"], code::MALFORMED),
        ("get-machine", &["machine."], code::MALFORMED),
        ("get-machine", &[], code::MALFORMED),
        ("burn-machine", &["machine.db"], code::MALFORMED),
        ("create-machine", &["machine.web"], code::BUSY),
    ] {
        let code = code_of(call(&object, method, args).await);
        assert_eq!(code, expected, "{method} {args:?}");
    }
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_machine_makes_what_is_declared() {
    let home = Arc::new(Home::new());
    let boss = home.boss().await;
    let tables = home.tables();
    let (asked, made) = (Arc::default(), Arc::default());
    boss.set_machines(Arc::new(Maker {
        home: home.clone(),
        boss: boss.clone(),
        asked: Arc::clone(&asked),
        made,
    }));
    let operator = peer(&operator_identity(&tables).expect("readable"));
    let sturdyref = operator_sturdyref(&tables, boss.locator()).expect("readable");
    let object = enliven(&operator, &sturdyref).await;
    let web = "machine.web[\"a\"]";
    let machine = call(&object, "create-machine", &[web]).await.expect("made");
    says_it_is(machine.as_reference().expect("an object"), web).await;
    let refused = call(&object, "create-machine", &["machine.undeclared"]).await;
    let refused = refused.expect_err("refused").to_string();
    assert!(refused.contains("it is not declared"), "{refused}");
    assert_eq!(
        *asked.lock().expect("no panic"),
        [web, "machine.undeclared"]
    );
    boss.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_asks_the_boss_for_its_status() {
    let mut pair = Pair::start().await;
    let bound = pair.bind(1).await.expect("bound");
    let socket = pair.home.socket();
    let mode = std::fs::metadata(&socket)
        .expect("a socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = async || {
        ask_status(&socket)
            .await
            .expect("answered")
            .expect("a boss runs")
    };
    // The stream that tried the service is still ending.
    eventually("both say the same", async || {
        ask().await == pair.boss.status().await.expect("a report")
    })
    .await;
    let report = ask().await;
    let machines: Vec<_> = report.hobs.iter().map(|hob| hob.machine.as_str()).collect();
    assert_eq!(machines, ["machine.app", "machine.db"]);
    let app = report.hobs[0].status.as_ref().expect("reached");
    assert_eq!(app.bindings[0].address, bound.address);
    let db = report.hobs[1].status.as_ref().expect("reached");
    assert_eq!((db.grants[0].generation, db.offers.len()), (1, 1));
    assert!(report.alerts.is_empty());

    // Whoever says nonsense, too much or nothing is answered, cut or left, and harms nobody.
    let silent = UnixStream::connect(&socket).await.expect("a listener");
    for (request, answered) in [(&b"nonsense\n"[..], true), (&[b'x'; 10_000][..], false)] {
        let mut stream = UnixStream::connect(&socket).await.expect("a listener");
        // It may be cut while it is still talking.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("an end");
        if answered {
            read.expect("readable");
            let answer = String::from_utf8(answer).expect("text");
            assert!(answer.contains("not a request"), "{answer}");
        }
    }
    refusal(&stranger(), &sturdyref(&pair.invitation)).await;
    pair.db.kill();
    eventually("the dead hob is told apart", async || {
        let report = ask().await;
        report.hobs[1].status.is_none() && report.hobs[0].status.is_some()
    })
    .await;
    let report = ask().await;
    assert_eq!(report.alerts.len(), 1);
    assert_eq!(report.alerts[0].machine, "machine.app");
    drop(silent);
    pair.boss.shutdown().await;
    assert!(ask_status(&socket).await.expect("no boss").is_none());
}
