//! The provider passes the kit, with real machines and with simulated ones.

use gobs_model::{Change, Known, Value};
use gobs_provider::conformance::{Fixture, check};
use gobs_provider::{Provider, UserData};

use crate::host::{Host, wanted};

pub(crate) fn fixture() -> Fixture {
    let run = Value::list(["exec true".into()]);
    Fixture {
        wanted: wanted([("password", Value::from("hunter2").sensitive())]),
        changes: vec![
            (Change::InPlace, wanted([("size", "big".into())])),
            (
                Change::InPlace,
                wanted([("size", "big".into()), ("run", run)]),
            ),
            (Change::Rebuild, wanted([("image", "new".into())])),
        ],
        refused: Some(wanted([("fault", "create:fail".into())])),
        loses_answer: Some(wanted([("fault", "create:lose-answer".into())])),
        user_data: Some(UserData("a secret".into())),
    }
}

async fn check_all(settings: [(&str, Value); 1]) {
    let host = Host::new();
    let dummy = host.dummy();
    let settings = Known::try_from(Value::object(settings)).expect("known");
    dummy.configure(&settings).await.expect("configured");
    let outcomes = check(&dummy, &fixture()).await;
    let broken: Vec<_> = outcomes.iter().filter(|it| it.result.is_err()).collect();
    assert!(broken.is_empty() && !outcomes.is_empty(), "{broken:#?}");
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn real_machines_keep_the_contract() {
    check_all([("simulated", false.into())]).await;
}

#[tokio::test]
async fn simulated_machines_keep_the_contract() {
    check_all([("simulated", true.into())]).await;
}
