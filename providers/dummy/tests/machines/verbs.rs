//! Each verb, and what it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;

use gobs_model::{Change, Known, Value};
use gobs_provider::{CreateRequest, Error, Observed, Provider, Token};
use gobs_provider_dummy::{Dummy, DummyHost};

use crate::host::{Host, create, text, token, update, wait_for};

#[tokio::test]
async fn a_machine_is_a_directory_and_an_agent_apart_from_us() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let run = Value::list(["exec true".into()]);
    let set = [
        ("size", "big".into()),
        ("run", run),
        ("password", Value::from("hunter2").sensitive()),
    ];
    let made = dummy
        .create(create(&token, set), Arc::new(drop))
        .await
        .expect("a machine");
    host.wait_started(&token, 1);

    assert_eq!(made.id, format!("dummy-{token}"));
    let dir = host.dir(&token);
    assert_eq!(text(&made, "directory"), dir.display().to_string());
    assert_eq!(
        ["address", "status", "size", "password"].map(|name| text(&made, name)),
        ["127.0.0.1", "running", "big", ""]
    );
    let user_data = dir.join("user-data");
    assert_eq!(
        fs::read_to_string(&user_data).expect("user data"),
        "first secret"
    );
    let mode = fs::metadata(&user_data)
        .expect("user data")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let description = fs::read_to_string(dir.join("machine.json")).expect("a description");
    let runtime = host.runtime_root.join(&token.0[..12]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&description).expect("JSON"),
        serde_json::json!({
            "format": 1, "token": token.0, "runtime": runtime, "run": ["exec true"],
        })
    );
    assert!(runtime.is_dir());

    let agent = agent(&host, &token);
    let stat = fs::read_to_string(format!("/proc/{agent}/stat")).expect("its state");
    let session = stat.rsplit(") ").next().and_then(|it| it.split(' ').nth(3));
    assert_eq!(
        session,
        Some(agent.to_string().as_str()),
        "it leads a session"
    );
    let stdin = fs::read_link(format!("/proc/{agent}/fd/0")).expect("its input");
    assert_eq!(stdin.to_str(), Some("/dev/null"));
    let environment = fs::read(format!("/proc/{agent}/environ")).expect("its environment");
    let environment = String::from_utf8_lossy(&environment);
    assert!(environment.contains(&format!("GOBS_MACHINE_TOKEN={token}")));
    assert!(!environment.contains("CARGO_"), "{environment}");
    let grep = Command::new("grep")
        .arg("-r")
        .arg("hunter2")
        .arg(&dir)
        .output()
        .expect("grep");
    assert_eq!(
        grep.status.code(),
        Some(1),
        "the password is written nowhere"
    );

    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(host.leftovers(), [""; 0]);
}

async fn with_dead_agent(host: &Host, dummy: &Dummy, token: &Token) -> Observed {
    let made = dummy
        .create(create(token, []), Arc::new(drop))
        .await
        .expect("a machine");
    host.wait_started(token, 1);
    kill(agent(host, token));
    wait_for("the agent's end", || !is_alive(host, token));
    made
}

#[tokio::test]
async fn an_agent_that_died_is_seen_and_started_again() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let made = with_dead_agent(&host, &dummy, &token).await;
    let seen = dummy
        .read(&made)
        .await
        .expect("read")
        .expect("still a machine");
    assert_eq!(text(&seen, "status"), "stopped");
    assert_eq!(dummy.find(&token).await.expect("found"), Some(seen));

    let again = dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("again");
    host.wait_started(&token, 2);
    assert_eq!(text(&again, "status"), "running");
    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(
        host.leftovers(),
        [""; 0],
        "what the dead agent left is gone too"
    );
}

#[tokio::test]
async fn an_agent_that_a_person_started_again_is_the_machines() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let made = with_dead_agent(&host, &dummy, &token).await;

    // As the true agent does: its lock says who it is; the token is not in its environment.
    let lock = host.dir(&token).join("hob/lock");
    let line = r#"echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" > "$0"; exec sleep 300"#;
    let mut by_hand = Command::new("sh")
        .args(["-c", line])
        .arg(&lock)
        .spawn()
        .expect("sh");
    wait_for("its lock", || {
        fs::read_to_string(&lock).is_ok_and(|it| it.ends_with('\n'))
    });
    let seen = dummy.read(&made).await.expect("read").expect("a machine");
    assert_eq!(text(&seen, "status"), "running");
    dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("again");
    assert_eq!(host.starts(&token), 1);

    // Reaped by the provider or by us: it is our child, and its end is what counts.
    let delete = dummy.delete(&made, Arc::new(drop));
    delete.await.expect("deleted");
    let _ = by_hand.wait();
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_change_in_place_tells_the_agent_and_keeps_it() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let made = dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("a machine");
    host.wait_started(&token, 1);
    let run = Value::list(["exec sleep 1".into()]);
    let request = update(
        &made,
        Change::InPlace,
        [("size", "big".into()), ("run", run)],
    );
    let seen = dummy
        .update(request.clone(), Arc::new(drop))
        .await
        .expect("updated");
    assert_eq!((&*seen.id, text(&seen, "size")), (&*made.id, "big"));
    let reloaded = host.dir(&token).join("reloaded");
    wait_for("the agent to read it again", || {
        fs::read_to_string(&reloaded).is_ok_and(|it| it.contains("exec sleep 1"))
    });
    let again = dummy
        .update(request, Arc::new(drop))
        .await
        .expect("updated again");
    assert_eq!(again, seen);
    assert_eq!(host.starts(&token), 1);
}

#[tokio::test]
async fn a_rebuild_keeps_the_machine_and_nothing_on_it() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let made = dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("a machine");
    host.wait_started(&token, 1);
    let before = host.working_in(&token);
    fs::write(host.dir(&token).join("hob/claimed"), "by the old one").expect("written");

    let costlier = update(&made, Change::InPlace, [("image", "new".into())]);
    let refused = dummy.update(costlier, Arc::new(drop)).await;
    assert!(
        matches!(&refused, Err(Error::Rejected { attribute: Some(it), .. }) if it == "image"),
        "{refused:?}"
    );
    let request = update(&made, Change::Rebuild, [("image", "new".into())]);
    let seen = dummy
        .update(request, Arc::new(drop))
        .await
        .expect("rebuilt");
    host.wait_started(&token, 2);
    assert_eq!((&*seen.id, text(&seen, "image")), (&*made.id, "new"));
    assert!(!host.dir(&token).join("hob/claimed").exists());
    let user_data = fs::read_to_string(host.dir(&token).join("user-data"));
    assert_eq!(user_data.expect("user data"), "second secret");
    assert!(
        host.working_in(&token).is_disjoint(&before),
        "nothing old runs"
    );
}

#[tokio::test]
async fn a_program_that_will_not_end_is_ended() {
    let host = Host::new();
    let token = token();
    let stubborn = "trap '' TERM; while :; do sleep 300; done";
    let dummy = Dummy::new(DummyHost {
        agent: ["/bin/sh", "-c", stubborn, "agent"].map(Into::into).into(),
        ..host.host()
    });
    let made = dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("a machine");
    wait_for("the agent", || host.working_in(&token).len() >= 2);
    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_program_that_hides_is_ended() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let run = [("run", Value::list(["clean-session".into()]))];
    // Once when it surely runs, and once while it is being started.
    for patient in [true, false] {
        let token = if patient {
            token.clone()
        } else {
            crate::host::token()
        };
        let made = dummy
            .create(create(&token, run.clone()), Arc::new(drop))
            .await
            .expect("made");
        if patient {
            wait_for("all its programs", || host.working_in(&token).len() >= 4);
        } else {
            wait_for("the agent", || host.starts(&token) == 1);
        }
        dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
        assert_eq!(host.leftovers(), [""; 0], "patient: {patient}");
    }
}

#[tokio::test]
async fn a_program_that_hides_is_ended_after_its_agents_death() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let run = [("run", Value::list(["clean-here".into()]))];
    let made = dummy
        .create(create(&token, run), Arc::new(drop))
        .await
        .expect("a machine");
    wait_for("all its programs", || host.working_in(&token).len() >= 4);
    kill(agent(&host, &token));
    wait_for("the agent's end", || !is_alive(&host, &token));
    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(host.leftovers(), [""; 0]);
}

/// The last machine takes the directories with it, while the next one is being made in them.
#[tokio::test(flavor = "multi_thread")]
async fn machines_come_and_go_at_once() {
    let host = Host::new();
    let dummy = Arc::new(host.dummy());
    let lives = (0..40).map(|_| {
        let (dummy, token) = (dummy.clone(), token());
        tokio::spawn(async move {
            let made = dummy.create(create(&token, []), Arc::new(drop)).await?;
            let found = dummy.find(&token).await?;
            let deleted = dummy.delete(&made, Arc::new(drop)).await;
            deleted.map(|()| (made, found))
        })
    });
    for life in lives.collect::<Vec<_>>() {
        let (made, found) = life.await.expect("no panic").expect("a whole life");
        assert_eq!(found.map(|it| it.id), Some(made.id));
    }
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_machine_without_an_agent_runs_nothing() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let bare = |request| CreateRequest {
        user_data: None,
        ..request
    };
    let run = [("run", Value::list(["true".into()]))];
    let refused = dummy
        .create(bare(create(&token, run)), Arc::new(drop))
        .await;
    assert!(
        matches!(&refused, Err(Error::Rejected { attribute: Some(it), .. }) if it == "run"),
        "{refused:?}"
    );
    let made = dummy
        .create(bare(create(&token, [])), Arc::new(drop))
        .await
        .expect("a machine");
    assert_eq!((text(&made, "status"), host.starts(&token)), ("running", 0));
    dummy.delete(&made, Arc::new(drop)).await.expect("deleted");
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_nothing_is_touched() {
    let host = Host::new();
    let dummy = host.dummy();
    for wrong in ["", "../x", "a/b", ".new-x", &"x".repeat(65)] {
        let wrong = Token(wrong.into());
        let refused = dummy.create(create(&wrong, []), Arc::new(drop)).await;
        assert!(
            matches!(refused, Err(Error::Rejected { .. })),
            "{wrong}: {refused:?}"
        );
    }
    let refused = dummy
        .create(create(&token(), [("fault", "x".into())]), Arc::new(drop))
        .await;
    assert!(
        matches!(&refused, Err(Error::Rejected { attribute: Some(it), .. }) if it == "fault"),
        "{refused:?}"
    );
    let missing = Dummy::new(DummyHost {
        agent: vec!["/nowhere/hob".into()],
        ..host.host()
    });
    let refused = missing.create(create(&token(), []), Arc::new(drop)).await;
    assert_eq!(
        refused,
        Err(Error::rejected("the agent /nowhere/hob does not exist"))
    );
    assert_eq!(host.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_said_and_kept() {
    let (host, token) = (Host::new(), token());
    let dummy = host.dummy();
    let made = dummy
        .create(create(&token, []), Arc::new(drop))
        .await
        .expect("a machine");
    let path = host.dir(&token).join("record.json");
    let whole = fs::read(&path).expect("a record");
    for (text, message) in [
        (&whole[..whole.len() / 2], "is damaged"),
        (
            b"{\"format\": 2}",
            "has format 2, and this version knows format 1",
        ),
    ] {
        fs::write(&path, text).expect("written");
        let read = dummy.read(&made).await;
        let refused = dummy.delete(&made, Arc::new(drop)).await;
        let said = |error: Error| {
            let text = error.to_string();
            assert!(
                text.contains(&path.display().to_string()) && text.contains(message),
                "{text}"
            );
        };
        read.map_err(said).expect_err("not readable");
        refused.map_err(said).expect_err("not deleted blindly");
        assert_eq!(fs::read(&path).expect("kept"), text);
    }
    fs::write(&path, whole).expect("written");
}

#[tokio::test]
async fn simulated_machines_are_nothing_but_what_is_returned() {
    let host = Host::new();
    let dummy = host.dummy();
    let settings = Known::try_from(Value::object([("simulated", true.into())])).expect("known");
    dummy.configure(&settings).await.expect("configured");
    assert!(dummy.is_simulated());
    for _ in 0..10_000 {
        let token = token();
        let size = [("size", "big".into())];
        let made = dummy
            .create(create(&token, size), Arc::new(drop))
            .await
            .expect("made");
        assert_eq!(made.id, format!("dummy-{token}"));
        assert_eq!(dummy.read(&made).await, Ok(Some(made)));
        assert_eq!(dummy.find(&token).await, Ok(None));
    }
    assert_eq!(host.leftovers(), [""; 0]);
}

fn agent(host: &Host, token: &Token) -> i32 {
    let text = fs::read(host.dir(token).join("record.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let pid = record["agent"]["process"]["pid"]
        .as_i64()
        .expect("an agent");
    i32::try_from(pid).expect("a process id")
}

/// Returns whether the agent runs; one that ended may wait to be reaped by this process.
fn is_alive(host: &Host, token: &Token) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", agent(host, token)));
    status.is_ok_and(|text| !text.contains("State:\tZ"))
}

fn kill(pid: i32) {
    let killed = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(killed.expect("kill").success());
}
