//! The machine's programs.

use rustix::process::Signal;

use crate::support::{Boss, Host, Pair, connect, echo, eventually, generation, ping};

/// A line that says what it was given and stays.
const LINE: &str =
    r#"echo "pid=$$ root=$SERVICE_BINDING_ROOT db=$DB_ADDRESS socket=$DB_SOCKET"; exec sleep 1000"#;

fn said(host: &Host) -> Vec<String> {
    let log = std::fs::read_to_string(host.layout.logs().join("run-0.log"));
    let log = log.unwrap_or_default();
    let whole = log
        .split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'));
    whole.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_start_with_their_bindings_and_are_never_two() {
    let orders = echo().await;
    let pair = Pair::start(&orders).await;
    let Pair {
        mut app,
        importer,
        boss,
        exporter,
        db,
    } = pair;
    app.describe(&[LINE]);
    app.signal(Signal::HUP);
    eventually("the description is read", async || {
        app.log().contains("read again")
    })
    .await;
    // `db` was announced and is not there.
    assert_eq!(
        importer
            .status()
            .await
            .programs
            .iter()
            .filter_map(|p| p.pid)
            .count(),
        0
    );

    let pair = Pair {
        app: Host::start(&boss.invite("machine.spare", &[]), &[]),
        importer,
        boss,
        exporter,
        db,
    };
    let held = pair.bind(1, &[]).await;
    eventually("started", async || said(&app).len() == 1).await;
    let socket = held.address.strip_prefix("unix:").unwrap();
    let line = &said(&app)[0];
    let root = app.runtime.join("bindings");
    let expected = format!(
        "root={} db={} socket={socket}",
        root.display(),
        held.address
    );
    assert!(line.ends_with(&expected), "{line}");
    let running = app.programs();
    assert_eq!(running.len(), 1);

    // A hob that dies leaves it, the next one adopts it, and one that is asked to end too.
    app.kill();
    app.start_again();
    eventually("adopted", async || app.log().contains("program adopted")).await;
    assert_eq!(app.terminate(), Some(0));
    assert_eq!(app.programs(), running);
    app.start_again();
    let importer = pair.boss.client("machine.app").await;
    eventually("adopted again", async || {
        importer
            .status()
            .await
            .programs
            .first()
            .and_then(|program| program.pid)
            == Some(running[0].as_raw_nonzero().get().cast_unsigned())
    })
    .await;
    assert_eq!((said(&app).len(), app.programs()), (1, running.clone()));
    ping(&mut connect(&held.address).await).await.unwrap();

    // One that ends is started again; one whose environment changes too.
    rustix::process::kill_process(running[0], Signal::KILL).unwrap();
    eventually("started again", async || {
        said(&app).len() == 2 && app.programs().len() == 1
    })
    .await;
    importer.unregister(&generation(1)).await;
    eventually("without the binding", async || {
        let said = said(&app);
        said.len() == 3 && said[2].ends_with("db= socket=")
    })
    .await;
    assert_eq!(app.programs().len(), 1);
    app.describe(&[]);
    app.signal(Signal::HUP);
    eventually("ended", async || app.programs().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_goes_while_no_hob_runs_is_ended() {
    let boss = Boss::new().await;
    let mut host = Host::start(&boss.invite("machine.db", &[]), &[LINE, "exec sleep 1000"]);
    eventually("both run", async || host.programs().len() == 2).await;
    host.kill();
    host.describe(&[LINE]);
    host.start_again();
    eventually("one is left", async || host.programs().len() == 1).await;
    assert_eq!(said(&host).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_has_started_is_left_alone_by_the_next_hob() {
    let boss = Boss::new().await;
    // As a database server does: a helper in a session of its own.
    let line = "setsid sleep 1000 & echo started; exec sleep 1001";
    let mut host = Host::start(&boss.invite("machine.db", &[]), &[line]);
    eventually("both run", async || host.programs().len() == 2).await;
    let running = host.programs();
    host.kill();
    host.start_again();
    eventually("adopted", async || host.log().contains("program adopted")).await;
    eventually("registered", async || {
        host.log().matches("registered machine").count() == 2
    })
    .await;
    assert_eq!((host.programs(), said(&host).len()), (running.clone(), 1));

    host.describe(&["exec sleep 1002"]);
    host.signal(Signal::HUP);
    // The line's own process is replaced; the helper left its group on purpose.
    eventually("another line", async || {
        let now = host.programs();
        now.len() == 2 && now.iter().filter(|pid| running.contains(pid)).count() == 1
    })
    .await;

    // A hob that was killed before it could write knows the program all the same.
    let running = host.programs();
    host.kill();
    let state = host.layout.hob().join("state.json");
    let mut contents: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    contents["programs"] = serde_json::json!({});
    std::fs::write(&state, contents.to_string()).unwrap();
    host.start_again();
    eventually("registered", async || {
        host.log().matches("registered machine").count() == 3
    })
    .await;
    eventually("adopted", async || {
        host.log().matches("program adopted").count() == 2
    })
    .await;
    assert_eq!(host.programs(), running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_hides_its_environment_is_adopted_all_the_same() {
    let boss = Boss::new().await;
    // As Redis does: its title takes the place of the marks.
    let line = r#"echo started; exec perl -e '$0 = "t" x 8000; sleep 1000'"#;
    let mut host = Host::start(&boss.invite("machine.db", &[]), &[line]);
    eventually("its marks are gone", async || {
        said(&host).len() == 1 && host.programs().is_empty()
    })
    .await;
    host.kill();
    host.start_again();
    eventually("adopted", async || host.log().contains("program adopted")).await;
    assert_eq!(said(&host).len(), 1);
    host.describe(&[]);
    host.signal(Signal::HUP);
    eventually("it is ended", async || {
        host.log().contains("program stopped")
    })
    .await;
}
