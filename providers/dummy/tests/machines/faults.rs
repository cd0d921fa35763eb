//! Faults on demand do what they say, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gobs_model::{Known, Value};
use gobs_provider::{Error, Provider, Token};
use gobs_provider_dummy::Dummy;

use crate::host::{Host, LOOK_EVERY, PATIENCE, create, text, token};

fn fault(text: &str) -> [(&str, Value); 1] {
    [("fault", text.into())]
}

#[tokio::test]
async fn errors_before_the_effect_leave_nothing() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    for (kind, expected) in [
        (
            "fail",
            Error::rejected("the fault create:fail-once was asked for"),
        ),
        (
            "deny",
            Error::Denied("the fault create:deny-once was asked for".into()),
        ),
        (
            "lose-request",
            Error::InDoubt("the fault create:lose-request-once was asked for".into()),
        ),
        (
            "busy",
            Error::Busy {
                message: "the fault create:busy-once was asked for".into(),
                after: Duration::from_millis(100),
            },
        ),
    ] {
        let request = create(&token, fault(&format!("create:{kind}-once")));
        assert_eq!(dummy.create(request, Arc::new(drop)).await, Err(expected));
        assert_eq!(dummy.find(&token).await, Ok(None));
    }
    // Each has happened, and another process would know it too.
    let all = "create:fail-once,create:deny-once,create:lose-request-once,create:busy-once";
    let made = host
        .dummy()
        .create(create(&token, fault(all)), Arc::new(drop))
        .await;
    let made = made.expect("a machine");
    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn an_answer_that_is_lost_leaves_the_effect() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let faults = "create:lose-answer delete:lose-answer-once";
    let lost = dummy
        .create(create(&token, fault(faults)), Arc::new(drop))
        .await;
    assert!(matches!(lost, Err(Error::InDoubt(_))), "{lost:?}");
    let made = dummy
        .find(&token)
        .await
        .expect("found")
        .expect("the machine");
    assert_eq!(text(&made, "status"), "running");
    let lost = dummy.delete(&made, Arc::new(drop)).await;
    assert!(matches!(lost, Err(Error::InDoubt(_))), "{lost:?}");
    assert_eq!(dummy.read(&made).await, Ok(None));
    dummy
        .delete(&made, Arc::new(drop))
        .await
        .expect("deleted again");
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_call_that_hangs_ends_when_it_is_cancelled() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let hang = dummy.create(create(&token, fault("create:hang")), Arc::new(drop));
    let hung = tokio::time::timeout(Duration::from_secs(1), hang).await;
    assert!(hung.is_err(), "{hung:?}");
    assert_eq!(dummy.find(&token).await, Ok(None));
    let hang = dummy.create(create(&token, fault("create:hang-after")), Arc::new(drop));
    tokio::select! {
        done = hang => panic!("it does not hang: {done:?}"),
        () = found(&dummy, &token) => {}
    }
}

/// Waits until a machine is found.
async fn found(dummy: &Dummy, token: &Token) {
    let looking = async {
        while dummy.find(token).await.expect("an answer").is_none() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.expect("a machine");
}

#[tokio::test]
async fn a_list_that_lags_shows_a_machine_later() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let lag = dummy.schema().list_lag;
    let text = format!("list:lag={0}ms find:lag={0}ms", lag.as_millis());
    let settings = Known::try_from(Value::object([("faults", Value::from(text))])).expect("known");
    dummy.configure(&settings).await.expect("configured");
    let begun = Instant::now();
    dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("a machine");
    let (seen, listed) = (dummy.find(&token).await, dummy.list().await);
    // On a host that stands still for so long, it shows at once.
    if begun.elapsed() < lag {
        assert_eq!((seen, listed), (Ok(None), Ok(vec![])));
    }
    found(&dummy, &token).await;
    assert_eq!(dummy.list().await.expect("listed").len(), 1);
}
