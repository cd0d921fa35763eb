//! A9: whatever is wrong with the file or its directory is said clearly, and nothing is lost.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use gobs_model::Value;
use gobs_state::{Fault, Lock, OpenError, StoreError};

use crate::processes::{child_directory, child_of, shared_key};
use crate::*;

/// Returns what the three ways to open a state file say.
fn refusals(project: &Project) -> [OpenError; 3] {
    [
        Reader::open(&project.state(), &project.key).expect_err("refused"),
        Store::open(&project.state(), &project.key, project.lock()).expect_err("refused"),
        BossStore::open(&project.state(), &project.key).expect_err("refused"),
    ]
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let project = Project::new();
    drop(project.store());
    project
        .sql()
        .pragma_update(None, "user_version", 3)
        .expect("changed");
    let before = fs::read(project.state()).expect("there");
    for error in refusals(&project) {
        assert!(
            matches!(
                error,
                OpenError::Newer {
                    found: 3,
                    known: 2,
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("has format 3, and this gobs knows formats up to 2"),
            "{text}"
        );
    }
    assert_eq!(fs::read(project.state()).expect("there"), before);
}

#[test]
fn what_is_not_a_state_is_refused_and_left_alone() {
    let project = Project::new();
    let text = b"not a database, but long enough to have what would be a header of one".repeat(20);
    fs::write(project.state(), &text).expect("written");
    for error in refusals(&project) {
        assert!(matches!(error, OpenError::NotAState(_)), "{error}");
    }
    assert_eq!(fs::read(project.state()).expect("there"), text);

    fs::remove_file(project.state()).expect("removed");
    project
        .sql()
        .execute_batch("CREATE TABLE theirs (x)")
        .expect("made");
    let before = fs::read(project.state()).expect("there");
    for error in refusals(&project) {
        assert!(matches!(error, OpenError::NotAState(_)), "{error}");
    }
    assert_eq!(fs::read(project.state()).expect("there"), before);

    fs::remove_file(project.state()).expect("removed");
    fs::create_dir(project.state()).expect("made");
    for error in refusals(&project) {
        let unopenable = matches!(
            &error,
            OpenError::Store(StoreError {
                fault: Fault::Unopenable | Fault::Io(_) | Fault::ReadOnly,
                ..
            })
        );
        assert!(unopenable, "{error}");
    }
}

#[test]
fn a_missing_file_is_no_state_yet_and_an_empty_one_was_emptied() {
    let project = Project::new();
    let missing = || Reader::open(&project.state(), &project.key).expect_err("none");
    assert!(matches!(missing(), OpenError::Missing(_)));
    fs::write(project.state(), "").expect("written");
    let emptied = |error: OpenError| match error {
        OpenError::Store(error) => matches!(error.fault, Fault::Corrupt(_)),
        _ => false,
    };
    assert!(emptied(missing()));
    let store = Store::open(&project.state(), &project.key, project.lock());
    assert!(emptied(store.expect_err("taken for a new project")));
    project
        .sql()
        .pragma_update(None, "journal_mode", "WAL")
        .expect("changed");
    assert!(
        matches!(missing(), OpenError::Missing(_)),
        "cut short while it was made"
    );
    drop(project.store());
    assert_eq!(project.reader().snapshot().expect("readable").serial, 0);
}

#[test]
fn a_wal_without_its_file_is_not_written_into_a_new_one() {
    let project = Project::new();
    let mut store = project.running();
    write(&mut store, vec![put(machine_row("machine.a", Value::NULL))]);
    let wal = fs::read(project.path("state.db-wal")).expect("there");
    drop(store);
    fs::rename(project.state(), project.path("moved.db")).expect("moved");
    fs::write(project.path("state.db-wal"), &wal).expect("written");
    let error = Store::open(&project.state(), &project.key, project.lock());
    let error = error.expect_err("refused");
    assert!(matches!(error, OpenError::Leftover(_)), "{error}");
    assert!(!project.state().exists());
    fs::rename(project.path("moved.db"), project.state()).expect("moved back");
    assert_eq!(project.reader().snapshot().expect("readable").rows.len(), 1);
}

#[test]
fn many_may_make_the_file_at_once() {
    for _ in 0..10 {
        let project = Project::new();
        let barrier = std::sync::Barrier::new(8);
        let lineages: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        project.boss().lineage()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect()
        });
        assert_eq!(lineages.len(), 1);
        // SQLite's own files stay where two connections close at the same moment.
        let own = ["state.db", "state.db-wal", "state.db-shm"];
        let left = fs::read_dir(project.directory.path()).expect("there");
        let names = left.map(|it| it.expect("an entry").file_name());
        let left: Vec<_> = names
            .filter(|name| !own.iter().any(|own| name == own))
            .collect();
        assert!(left.is_empty(), "beside the file stay {left:?}");
    }
}

#[test]
fn a_file_that_others_could_read_is_closed_to_them() {
    let project = Project::new();
    drop(project.store());
    fs::set_permissions(project.state(), PermissionsExt::from_mode(0o644)).expect("changed");
    drop(project.store());
    let mode = fs::metadata(project.state())
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Uses everything that a file can be used for; returns how many uses failed.
fn use_everything(project: &Project) -> usize {
    let mut failures = 0;
    let mut note = |failed: bool| failures += usize::from(failed);
    match Reader::open(&project.state(), &project.key) {
        Err(error) => note(!error.to_string().is_empty()),
        Ok(reader) => {
            note(reader.snapshot().is_err());
            note(reader.in_doubt().is_err());
            note(reader.runs().is_err());
            note(reader.history(1).is_err());
            note(reader.check().is_err());
        }
    }
    match BossStore::open(&project.state(), &project.key) {
        Err(error) => note(!error.to_string().is_empty()),
        Ok(boss) => {
            note(boss.seed().is_err());
            note(boss.port().is_err());
            note(boss.hobs().is_err());
            note(boss.alerts().is_err());
            note(
                boss.claim(SwissnumHash::of(b"s"), "other", None, at(3))
                    .is_err(),
            );
        }
    }
    match Store::open(&project.state(), &project.key, project.lock()) {
        Err(error) => note(!error.to_string().is_empty()),
        Ok(mut store) => {
            note(store.begin_run("apply", at(0)).is_err());
            note(store.commit(Vec::new(), vec![intent("machine.a")]).is_err());
            note(store.backup(&project.path("backups"), at(0)).is_err());
        }
    }
    failures
}

#[test]
fn damage_anywhere_is_an_error_and_never_a_panic() {
    let project = Project::new();
    let mut store = project.running();
    let rows = (0..40).map(|number| {
        let wanted = Value::object([("p", Value::from("secret").sensitive())]);
        put(machine_row(&format!("machine.m[{number}]"), wanted))
    });
    write(&mut store, rows.collect());
    write(
        &mut store,
        vec![put(binding_row(
            "binding.b",
            &["machine.m[1]", "machine.m[2]"],
        ))],
    );
    let invited = Intent {
        claim: Some(claim(b"s", "machine.a")),
        ..intent("machine.a")
    };
    drop(start(&mut store, invited));
    let boss = project.boss();
    let _ = boss.seed().expect("a seed");
    let _ = boss
        .claim(SwissnumHash::of(b"s"), "mine", None, at(1))
        .expect("decided");
    drop((boss, store));
    assert_eq!(use_everything(&project), 0, "sound to begin with");
    let sound = fs::read(project.state()).expect("there");

    // A fixed sequence (Knuth's MMIX generator), so that a failure comes back.
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut failures = 0;
    for round in 0..200 {
        let mut bytes = sound.clone();
        if round % 8 == 7 {
            bytes.truncate(random(sound.len()));
        }
        for _ in 0..1 << random(6) {
            // Every fourth hit goes to the header and schema, where most depends on it.
            let reach = if random(4) == 0 {
                bytes.len().min(200)
            } else {
                bytes.len()
            };
            if reach > 0 {
                let at = random(reach);
                bytes[at] = random(256) as u8;
            }
        }
        for name in ["state.db-wal", "state.db-shm"] {
            let _ = fs::remove_file(project.path(name));
        }
        fs::write(project.state(), &bytes).expect("written");
        failures += use_everything(&project);
    }
    assert!(failures > 100, "most damage is noticed: {failures}");
}

#[test]
fn a_disk_that_is_full_is_told_from_other_failures() {
    let error = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .and_then(|mut full| full.write_all(b"x"))
        .expect_err("always full");
    assert!(matches!(Fault::from(error), Fault::DiskFull));
}

#[test]
fn a_directory_that_cannot_be_written_can_be_read_and_says_so_to_writers() {
    let key = shared_key();
    if let Some(directory) = child_directory() {
        let state = directory.join("state.db");
        let reader = Reader::open(&state, &key).expect("readable");
        assert_eq!(reader.snapshot().expect("readable").rows.len(), 1);
        let elsewhere = Project::new();
        let error = Store::open(&state, &key, elsewhere.lock()).expect_err("refused");
        let fault = match &error {
            OpenError::Store(StoreError { fault, .. }) => fault,
            other => panic!("{other}"),
        };
        assert!(
            matches!(fault, Fault::ReadOnly | Fault::Unopenable),
            "{fault}"
        );
        assert!(
            error.to_string().contains("check the permissions"),
            "{error}"
        );
        let error = Store::open(&directory.join("new.db"), &key, elsewhere.lock());
        let error = error.expect_err("refused");
        assert!(matches!(error, OpenError::Create { .. }), "{error}");
        let error = Lock::acquire(&directory.join("lock"), "apply", at(0)).err();
        assert!(
            error
                .expect("refused")
                .to_string()
                .starts_with("cannot lock")
        );
        writeln!(std::io::stdout(), "@all as expected").expect("written");
        return;
    }
    let project = Project {
        key,
        ..Project::new()
    };
    write(
        &mut project.running(),
        vec![put(machine_row("machine.a", Value::NULL))],
    );
    let root = project.directory.path();
    let allow = |path: PathBuf, mode: u32| {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("changed");
    };
    // Root may write anything, so where this test is root, the child is nobody.
    let program = project.path("test");
    // By a process of its own: children of other tests would have it open to write for a moment.
    let mut copy = std::process::Command::new("cp");
    copy.arg(std::env::current_exe().expect("this binary"))
        .arg(&program);
    assert!(copy.status().expect("started").success());
    fs::remove_file(project.path("lock")).expect("removed");
    allow(program.clone(), 0o755);
    allow(project.state(), 0o444);
    allow(root.into(), 0o555);
    let test = "bad_files::a_directory_that_cannot_be_written_can_be_read_and_says_so_to_writers";
    let mut child = child_of(&program, test, root);
    if rustix::process::geteuid().is_root() {
        child.uid(65_534).gid(65_534);
    }
    let output = child.output().expect("started");
    allow(root.into(), 0o755);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("@all as expected"),
        "{said}"
    );
}
