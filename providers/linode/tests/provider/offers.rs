//! What Linode does not offer or take is said before; and passwords, which it takes from what is
//! off.

use gobs_linode_double::{Double, Fault};
use gobs_model::{Change, Known, Value};
use gobs_provider::{Error, Proposal, Provider};
use gobs_provider_linode::Linode;
use serde_json::json;

use crate::blocks::made;
use crate::faults::every_fault;
use crate::host::{address, create, quiet, start, update, wanted};
use crate::network::updated;

#[tokio::test]
async fn what_linode_does_not_offer_is_said_before() {
    let (double, linode) = start(81).await;
    let first = create("web", wanted([("private_ip", true.into())]));
    let seen = made(&linode, &first).await.expect("made");
    let said = async |wanted: Known, is_new: bool| -> Vec<String> {
        let proposal = Proposal {
            address: address("web"),
            wanted: wanted.value().clone(),
            is_new,
            before: Some(seen.clone()),
        };
        let found = linode.objections(&proposal).await.expect("looked at");
        let texts = found
            .into_iter()
            .map(|it| format!("{}: {}", it.attribute, it.message));
        texts.collect()
    };
    let nowhere = wanted([
        ("region", "mars".into()),
        ("type", "g0-none".into()),
        ("label", "x".into()),
        ("tags", Value::set(["fine".into(), "ab".into()])),
        ("root_pass", "short".into()),
    ]);
    let lengths = [
        "label: label has 3 to 64 characters",
        "tags: tags has 3 to 50 characters",
        "root_pass: root_pass has 7 to 128 characters",
    ];
    let names = [
        "region: Linode has no region \"mars\"",
        "type: Linode has no type \"g0-none\"",
    ];
    let expected = [&names[..], &lengths[..]].concat();
    assert_eq!(said(nowhere.clone(), true).await, expected);
    // Each is asked once.
    let before = double.stats().requests;
    assert_eq!(said(nowhere, true).await, expected);
    assert_eq!(double.stats().requests, before);
    let alias = [("region", "us-south".into())];
    assert_eq!(said(wanted(alias), true).await, [""; 0]);
    let lone = wanted([("private_ip", false.into())]);
    let kept = ["private_ip: Linode takes no private address away"];
    assert_eq!(said(lone.clone(), false).await, kept);
    assert_eq!(said(lone, true).await, [""; 0]);
    let image = "linode/kali";
    let deaf = wanted([("image", image.into()), ("user_data", "#!/bin/sh".into())]);
    let why = "image: the image linode/kali has no cloud-init, so it reads no user data";
    assert_eq!(said(deaf, true).await, [why]);

    // With a hob there is user data too, though the block has none.
    let before = double.stats().create_requests;
    let deaf = create("deaf", wanted([("image", image.into())]));
    match linode.create(deaf.clone(), quiet()).await {
        Err(Error::Rejected { attribute, .. }) => assert_eq!(attribute.as_deref(), Some("image")),
        other => panic!("{other:?}"),
    }
    assert_eq!(double.stats().create_requests, before);
    let mut alone = deaf;
    alone.user_data = None;
    linode
        .create(alone, quiet())
        .await
        .expect("made without a hob");
}

fn with_password(password: &str) -> Known {
    wanted([("root_pass", password.into())])
}

fn is_left(double: &Double) -> Result<(), String> {
    let instance = double.instances().remove(0);
    let is_marked = instance["tags"].to_string().contains("gobs-off");
    match instance["status"] == "running" && !is_marked {
        true => Ok(()),
        false => Err(format!("it is left so: {instance:#}")),
    }
}

async fn live(double: &Double, linode: &Linode, fault: &Fault) -> Result<(), String> {
    double.fault(fault.clone());
    let (first, second) = (
        with_password("correct horse"),
        with_password("battery staple"),
    );
    let seen = made(linode, &create("web", first.clone())).await?;
    updated(linode, &seen, Change::PowerCycle, (&first, &second)).await?;
    is_left(double)?;
    match double.unused_faults() {
        0 => Ok(()),
        _ => Err("the fault was never met".into()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_every_fault_converges_at_a_password() {
    let requests = [
        ("PUT", "/linode/instances/*"),
        ("POST", "/linode/instances/*/shutdown"),
        ("POST", "/linode/instances/*/password"),
        ("POST", "/linode/instances/*/boot"),
    ];
    every_fault(&requests, 1_100, 24, live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_password_is_refused_runs_again() {
    let (double, linode) = start(82).await;
    let (first, weak) = (with_password("correct horse"), with_password("password"));
    let seen = made(&linode, &create("web", first.clone()))
        .await
        .expect("made");
    let change = update(&seen, Change::PowerCycle, first.clone(), weak);
    let refused = linode.update(change, quiet()).await;
    assert!(
        matches!(refused, Err(Error::Rejected { .. })),
        "{refused:?}"
    );
    assert_eq!(is_left(&double), Ok(()));
    // A run that died had marked it, and turned it off.
    let own = double.instances()[0]["tags"]
        .as_array()
        .expect("tags")
        .clone();
    let tags: Vec<_> = own.into_iter().chain([json!("gobs-off")]).collect();
    let path = format!("/linode/instances/{}", seen.id);
    double
        .ask("PUT", &path, &json!({"tags": tags}))
        .expect("marked");
    double
        .ask("POST", &format!("{path}/shutdown"), &json!({}))
        .expect("turned off");
    let second = with_password("battery staple");
    let change = (&first, &second);
    updated(&linode, &seen, Change::PowerCycle, change)
        .await
        .expect("set");
    assert_eq!(is_left(&double), Ok(()));
}
