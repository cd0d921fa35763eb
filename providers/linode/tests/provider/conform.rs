//! The provider passes the kit.

use gobs_model::Change;
use gobs_provider::UserData;
use gobs_provider::conformance::{Fixture, check};

use crate::host::{start, wanted};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linode_machines_keep_the_contract() {
    let (double, linode) = start(11).await;
    let bigger = ("type", "g6-standard-1".into());
    let newer = ("image", "linode/debian12".into());
    let fixture = Fixture {
        wanted: wanted([(
            "root_pass",
            gobs_model::Value::from("correct horse").sensitive(),
        )]),
        changes: vec![
            (Change::InPlace, wanted([("label", "renamed".into())])),
            (
                Change::Resize,
                wanted([("label", "renamed".into()), bigger.clone()]),
            ),
            (
                Change::Rebuild,
                wanted([("label", "renamed".into()), bigger, newer]),
            ),
        ],
        refused: Some(wanted([("region", "nowhere".into())])),
        // It is not lost on this provider: it looks, and adopts. See the matrix of faults.
        loses_answer: None,
        user_data: Some(UserData("the way home".into())),
    };
    let outcomes = check(&linode, &fixture).await;
    let broken: Vec<_> = outcomes.iter().filter(|it| it.result.is_err()).collect();
    assert!(broken.is_empty() && !outcomes.is_empty(), "{broken:#?}");
    assert_eq!(double.instances(), [serde_json::Value::Null; 0]);
}
