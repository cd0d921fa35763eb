//! What each verb asks of the API, and what it makes of the answers.

use gobs_linode_double::{Double, Options};
use gobs_model::{Change, Known, Value};
use gobs_provider::{Error, Observed, Provider, UserData};
use gobs_provider_linode::{Linode, LinodeHost};
use serde_json::json;

use crate::host::{create, provider, quiet, start, text, update, wanted};

#[track_caller]
fn rejected(result: Result<Observed, Error>) -> (String, Option<String>) {
    match result {
        Err(Error::Rejected { message, attribute }) => (message, attribute),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_machine_carries_its_token_and_its_name() {
    let (double, linode) = start(1).await;
    let request = create("web", wanted([("private_ip", true.into())]));
    let seen = linode.create(request.clone(), quiet()).await.expect("made");
    let shown = &double.instances()[0];
    let tags = shown["tags"].as_array().expect("tags");
    assert!(
        tags.contains(&json!(format!("gobs:{}", request.token))),
        "{tags:?}"
    );
    assert_eq!(
        text(&seen, "label"),
        format!("gobs-web-{}", &request.token.0[..12])
    );
    let ours = Value::set(["Blue".into(), "abc".into()]);
    assert_eq!(seen.attributes.get("tags"), Some(&ours));
    assert_eq!(seen.attributes.get("private_ip"), Some(&true.into()));
    assert_eq!(seen.attributes.get("root_pass"), None);
    assert_eq!(seen.attributes.get("gpus"), Some(&0.into()));
    let found = linode
        .find(&request.token)
        .await
        .expect("asked")
        .expect("found");
    assert_eq!(found.id, seen.id);
}

#[tokio::test]
async fn a_foreign_label_is_not_adopted() {
    let (double, linode) = start(1).await;
    let labelled = wanted([("label", "shared".into())]);
    linode
        .create(create("web", labelled.clone()), quiet())
        .await
        .expect("made");
    let (message, attribute) = rejected(linode.create(create("web", labelled), quiet()).await);
    assert!(message.contains("is that of Linode"), "{message}");
    assert_eq!(
        (attribute.as_deref(), double.instances().len()),
        (Some("label"), 1)
    );
}

#[tokio::test]
async fn what_linode_refuses_is_said_with_its_attribute() {
    let (_double, linode) = start(1).await;
    let small = wanted([("type", "tiny".into())]);
    let (message, attribute) = rejected(linode.create(create("web", small), quiet()).await);
    let why = "Linode says: type: A valid plan type by that ID was not found";
    assert_eq!(
        (message.as_str(), attribute.as_deref()),
        (why, Some("type"))
    );
    let mut large = create("web", wanted([]));
    large.user_data = Some(UserData("x".repeat(16_385)));
    let (message, _) = rejected(linode.create(large, quiet()).await);
    assert_eq!(
        message,
        "its user data has 16385 bytes, and Linode machines take 16384"
    );
}

#[tokio::test]
async fn scopes_that_lack_are_named() {
    let tokens = [("reader".to_owned(), "linodes:read_only".to_owned())].into();
    let options = Options {
        tokens,
        ..Options::default()
    };
    let double = Double::start(options).expect("listens");
    let reader = provider(&double, "reader").await;
    assert_eq!(reader.list().await, Ok(vec![]));
    match reader.create(create("web", wanted([])), quiet()).await {
        Err(Error::Denied(why)) => assert_eq!(
            why,
            "Linode says: Your OAuth token is not authorized to use this endpoint (the token has \
             linodes:read_only, this needs linodes:read_write)"
        ),
        other => panic!("{other:?}"),
    }
    match provider(&double, "nobody's").await.list().await {
        Err(Error::Denied(why)) => assert_eq!(why, "Linode says: Invalid Token"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn updates_are_seen_and_ours_stays_marked() {
    let (double, linode) = start(3).await;
    let first = wanted([]);
    let request = create("web", first.clone());
    let seen = linode.create(request.clone(), quiet()).await.expect("made");
    let next = wanted([
        ("label", "renamed".into()),
        ("tags", Value::set(["green".into()])),
        ("backups", true.into()),
        ("private_ip", true.into()),
        ("booted", false.into()),
        ("root_pass", Value::from("another long one").sensitive()),
        ("region", "us-south".into()),
    ]);
    let change = update(&seen, Change::Migrate, first, next.clone());
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(
        (text(&seen, "label"), text(&seen, "status")),
        ("renamed", "offline")
    );
    // The API has another name for it, and that is no drift.
    assert_eq!(text(&seen, "region"), "us-south");
    assert_eq!(double.instances()[0]["region"], "us-central");
    for (name, value) in [("backups", true), ("private_ip", true), ("booted", false)] {
        assert_eq!(seen.attributes.get(name), Some(&value.into()), "{name}");
    }
    assert_eq!(
        seen.attributes.get("tags"),
        Some(&Value::set(["green".into()]))
    );
    assert!(linode.find(&request.token).await.expect("asked").is_some());
    let fewer = update(
        &seen,
        Change::InPlace,
        next,
        wanted([("private_ip", false.into())]),
    );
    let (message, _) = rejected(linode.update(fewer, quiet()).await);
    assert_eq!(message, "Linode takes no private address away");
}

#[tokio::test]
async fn a_machine_that_others_deleted_is_gone() {
    let (double, linode) = start(1).await;
    let seen = linode
        .create(create("web", wanted([])), quiet())
        .await
        .expect("made");
    let id = seen.id.parse().expect("a number");
    double.meddle(id, None).expect("deleted");
    double.advance(std::time::Duration::from_secs(60));
    assert_eq!(linode.read(&seen).await, Ok(None));
    assert_eq!(linode.delete(&seen, quiet()).await, Ok(()));
}

#[tokio::test]
async fn tokens_come_from_the_host_or_an_allowed_command() {
    let (double, _) = start(1).await;
    let words = ["printf", "double\\n"].map(Value::from);
    let settings = Value::object([("token_command", Value::list(words))]);
    let settings = Known::try_from(settings).expect("known");
    let host = |allow_commands| LinodeHost {
        allow_commands,
        url: Some(double.url()),
        ..LinodeHost::default()
    };
    let refused = Linode::new(host(false)).configure(&settings).await;
    assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    let allowed = Linode::new(host(true));
    allowed.configure(&settings).await.expect("configured");
    assert_eq!(allowed.list().await, Ok(vec![]));
    // Nothing is asked while nothing is configured.
    let bare = Linode::new(host(false));
    bare.configure(&Known::empty()).await.expect("configured");
    assert!(matches!(bare.list().await, Err(Error::Denied(_))));
}

#[tokio::test]
async fn a_token_is_not_sent_in_clear() {
    let settings = Value::object([("url", "http://api.example.com/v4".into())]);
    let settings = Known::try_from(settings).expect("known");
    let host = LinodeHost {
        allow_commands: true,
        ..LinodeHost::default()
    };
    let refused = Linode::new(host).configure(&settings).await;
    assert!(
        matches!(refused, Err(Error::Rejected { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn x6_an_address_of_the_tree_does_not_get_the_token() {
    let address = |url: &str| {
        let settings = Value::object([("url", url.into())]);
        Known::try_from(settings).expect("known")
    };
    let linode = Linode::new(LinodeHost {
        token: Some("secret".to_owned().into()),
        ..LinodeHost::default()
    });
    for url in [
        "https://example.com/v4",
        "https://api.linode.com.example.com/v4",
    ] {
        let refused = linode.configure(&address(url)).await;
        assert!(matches!(refused, Err(Error::Denied(_))), "{refused:?}");
    }
    let beta = address("https://api.linode.com/v4beta");
    assert_eq!(linode.configure(&beta).await, Ok(()));
}

#[tokio::test]
async fn a1_a_resize_that_a_dead_run_began_is_waited_for_and_is_enough() {
    let (double, linode) = start(1).await;
    let first = wanted([]);
    let request = create("web", first.clone());
    let seen = linode.create(request, quiet()).await.expect("made");
    double.advance(std::time::Duration::from_secs(3_600));
    let path = format!("/linode/instances/{}/resize", seen.id);
    let body = json!({"type": "g6-standard-1"});
    double.ask("POST", &path, &body).expect("begun");
    let larger = wanted([("type", "g6-standard-1".into())]);
    let change = update(&seen, Change::Resize, first, larger);
    let seen = linode.update(change, quiet()).await.expect("updated");
    assert_eq!(text(&seen, "type"), "g6-standard-1");
    assert_eq!(double.events("linode_resize"), 1);
}
