//! Rows, outputs, the journal and backups.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use gobs_model::{Name, Value};
use gobs_state::{BACKUPS_KEPT, Fault, Finished, Outcome, Reader, RowChange, Started};
use proptest::prelude::*;

use crate::*;

#[test]
fn a_row_comes_back_as_it_was_put() {
    let project = Project::new();
    let mut store = project.running();
    let wanted = Value::object([
        ("size", Value::from(3)),
        ("tags", Value::set(["b".into(), "a".into()])),
        (
            "sensitive",
            Value::map([("sealed", Value::from("not a mark"))]),
        ),
        ("password", Value::list(["x".into()]).sensitive()),
        ("of", Value::from(address("machine.other[0]"))),
    ]);
    let machine = machine_row("machine.a[\"b.service.c\"]", wanted);
    let binding = binding_row("binding.x", &["machine.b", "machine.a[\"b.service.c\"]"]);
    write(&mut store, vec![put(machine.clone()), put(binding.clone())]);

    let snapshot = store.snapshot().expect("readable");
    assert_eq!((snapshot.serial, snapshot.generation), (1, 1));
    let rows: Vec<_> = snapshot.rows.values().map(|row| (**row).clone()).collect();
    let version = 1;
    assert_eq!(
        rows,
        [Row { version, ..machine }, Row { version, ..binding }]
    );
}

#[test]
fn a_version_is_the_serial_of_the_commit_that_wrote_the_row() {
    let project = Project::new();
    let mut store = project.running();
    let url = Name::new("url").expect("a name");
    write(&mut store, vec![put(machine_row("machine.a", Value::NULL))]);
    write(&mut store, vec![put(machine_row("machine.b", Value::NULL))]);
    write(&mut store, Vec::new());
    write(&mut store, vec![RowChange::RemoveRow(address("machine.a"))]);
    let output = known(Value::from("x").sensitive());
    write(
        &mut store,
        vec![
            put(machine_row("machine.a", Value::NULL)),
            RowChange::PutOutput(url.clone(), Some(output.clone())),
        ],
    );
    let snapshot = store.snapshot().expect("readable");
    let versions: Vec<_> = snapshot.rows.values().map(|row| row.version).collect();
    assert_eq!((snapshot.serial, versions), (4, vec![4, 2]));
    assert_eq!(snapshot.outputs, BTreeMap::from([(url.clone(), output)]));

    write(&mut store, vec![RowChange::PutOutput(url, None)]);
    assert!(store.snapshot().expect("readable").outputs.is_empty());
}

#[test]
fn a_refused_commit_leaves_no_trace() {
    let project = Project::new();
    let mut store = project.store();
    let refused = store.commit(Vec::new(), vec![intent("machine.a")]);
    assert!(matches!(refused.expect_err("no run").fault, Fault::NoRun));

    let _ = store.begin_run("apply", at(0)).expect("a run");
    let deep = (0..200).fold(Value::NULL, |inner, _| Value::tuple([inner]));
    let wrong_kind = Row {
        address: address("binding.a"),
        ..machine_row("machine.a", Value::NULL)
    };
    for bad in [machine_row("machine.a", deep), wrong_kind] {
        let started = start(&mut store, intent("machine.a"));
        let changes = vec![put(machine_row("machine.good", Value::NULL)), put(bad)];
        let refused = store.commit(vec![done(started, changes)], vec![intent("machine.b")]);
        let fault = refused.expect_err("unstorable").fault;
        assert!(matches!(fault, Fault::Unstorable { .. }), "{fault}");
    }
    let snapshot = store.snapshot().expect("readable");
    assert_eq!((snapshot.serial, snapshot.rows.len()), (0, 0));
    let doubts = store.in_doubt().expect("readable");
    let in_doubt: Vec<_> = doubts.iter().map(|doubt| doubt.started.id()).collect();
    assert_eq!(in_doubt, [1, 2], "the two that were to be finished");
}

#[test]
fn a_step_ends_once() {
    let project = Project::new();
    let mut store = project.running();
    let started = start(&mut store, intent("machine.a"));
    let id = started.id();
    let same = store.in_doubt().expect("readable").remove(0).started;
    assert_eq!(same, started);
    let _ = store
        .commit(vec![done(started, Vec::new())], Vec::new())
        .expect("committed");
    let again = store.commit(vec![done(same, Vec::new())], Vec::new());
    let fault = again.expect_err("ended").fault;
    assert!(
        matches!(fault, Fault::AlreadyEnded(ended) if ended == id),
        "{fault}"
    );
}

#[test]
fn a2_an_intent_and_its_claim_are_in_the_files_before_commit_returns() {
    let project = Project::new();
    let mut store = project.running();
    let invited = Intent {
        claim: Some(claim(b"swissnum", "machine.a")),
        ..intent("machine.a")
    };
    let started = start(&mut store, invited.clone());
    // What another process, or this one after a crash, would find: the files as they are now.
    let copy = Project::new();
    for name in ["state.db", "state.db-wal"] {
        std::fs::copy(project.path(name), copy.path(name)).expect("copied");
    }
    let reader = Reader::open(&copy.state(), &project.key).expect("a state file");
    let doubts = reader.in_doubt().expect("readable");
    assert_eq!(doubts.len(), 1);
    assert_eq!(doubts[0].started, started);
    assert_eq!(doubts[0].started.intent(), &invited);
    assert_eq!(doubts[0].run, 1);
    let mode: String = copy
        .sql()
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .expect("a pragma");
    assert_eq!(mode, "wal");
}

#[test]
fn runs_are_numbered_and_a_doubt_names_its_run() {
    let project = Project::new();
    for number in 1..=3 {
        let mut store = project.store();
        assert_eq!(store.begin_run("apply", at(number)).expect("a run"), number);
        if number == 2 {
            drop(start(&mut store, intent("machine.a")));
        }
    }
    let reader = project.reader();
    let runs = reader.runs().expect("readable");
    assert_eq!(
        runs.iter().map(|run| run.number).collect::<Vec<_>>(),
        [3, 2, 1]
    );
    assert_eq!(runs[0].started_at, at(3));
    assert_eq!(reader.in_doubt().expect("readable")[0].run, 2);
    assert_eq!(reader.snapshot().expect("readable").generation, 3);
}

#[test]
fn history_says_how_each_step_ended() {
    let project = Project::new();
    let mut store = project.running();
    let [a, b] = ["machine.a", "machine.b"].map(|name| start(&mut store, intent(name)));
    drop(start(&mut store, intent("machine.c")));
    let why = Outcome::Failed("the provider refused".into());
    let failed = Finished {
        started: a,
        outcome: why.clone(),
        changes: Vec::new(),
    };
    let none = store.commit(vec![failed, done(b, Vec::new())], Vec::new());
    assert_eq!(none.expect("committed"), []);
    let entries = store.history(1).expect("readable");
    let ended: Vec<_> = entries
        .iter()
        .map(|entry| {
            (
                entry.address.to_string(),
                entry.ended.clone().map(|(_, how)| how),
            )
        })
        .collect();
    let expected = [
        ("machine.a".to_owned(), Some(why)),
        ("machine.b".to_owned(), Some(Outcome::Done)),
        ("machine.c".to_owned(), None),
    ];
    assert_eq!(ended, expected);
    assert!(entries.iter().all(|entry| entry.action == "create"));
    assert_eq!(store.history(2).expect("readable"), []);
}

#[test]
fn history_is_bounded_and_doubts_are_never_forgotten() {
    const STEPS: usize = 10_500;
    let project = Project::new();
    let mut store = project.running();
    let doubted = start(&mut store, intent("machine.doubt"));
    let intents = (0..STEPS).map(|_| intent("machine.a")).collect();
    let started = store.commit(Vec::new(), intents).expect("committed");
    let finished = started.into_iter().map(|started| done(started, Vec::new()));
    let _ = store
        .commit(finished.collect(), Vec::new())
        .expect("committed");
    let _ = store.begin_run("apply", at(1)).expect("a run");
    let entries: i64 = project
        .sql()
        .query_row("SELECT count(*) FROM journal", [], |row| row.get(0))
        .expect("a count");
    assert_eq!(entries, 10_000 + 1);
    assert_eq!(store.in_doubt().expect("readable")[0].started, doubted);
    assert_eq!(store.runs().expect("readable").len(), 2);
    // Numbers are never used again, whatever was forgotten.
    assert_eq!(
        start(&mut store, intent("machine.b")).id(),
        2 + STEPS as i64
    );
}

#[test]
fn a_reader_sees_whole_commits_beside_a_writer() {
    let project = Project::new();
    let mut store = project.running();
    let pair = || ["machine.a", "machine.b"].map(|name| put(machine_row(name, Value::NULL)));
    write(&mut store, pair().into());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let reader = project.reader();
            let mut serials = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let snapshot = reader.snapshot().expect("readable");
                let versions: Vec<_> = snapshot.rows.values().map(|row| row.version).collect();
                assert_eq!(versions, [snapshot.serial; 2]);
                serials.push(snapshot.serial);
            }
            serials
        });
        for _ in 0..200 {
            write(&mut store, pair().into());
        }
        over.store(true, Ordering::Relaxed);
        let serials = reading.join().expect("no panic");
        assert!(serials.is_sorted());
    });
    assert_eq!(project.reader().snapshot().expect("readable").serial, 201);
}

#[test]
fn a8_backups_are_private_checked_and_ten() {
    let project = Project::new();
    let mut store = project.running();
    let directory = project.path("backups");
    std::fs::create_dir(&directory).expect("a directory");
    std::fs::write(directory.join("state-1.db.unfinished"), "cut short").expect("written");
    std::fs::write(directory.join("mine.db"), "not a backup").expect("written");
    let mut last = directory.clone();
    for seconds in 0..12 {
        write(
            &mut store,
            vec![put(machine_row("machine.a", Value::from(seconds)))],
        );
        last = store
            .backup(&directory, at(seconds as u64))
            .expect("a backup");
    }
    let then = store.snapshot().expect("readable");
    write(&mut store, vec![RowChange::RemoveRow(address("machine.a"))]);
    drop(store);

    let names = || {
        let entries = std::fs::read_dir(&directory).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        names
    };
    let backups = names();
    assert_eq!(
        backups.len(),
        BACKUPS_KEPT + 1,
        "ten and a file that is not ours: {backups:?}"
    );
    assert!(backups.contains(&directory.join("mine.db")));
    assert_eq!(backups.last(), Some(&last));
    let mode = std::fs::metadata(&last)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // Restored as the documentation says: copied over the state file while nothing runs.
    std::fs::copy(&last, project.state()).expect("copied");
    assert_eq!(project.store().snapshot().expect("readable"), then);
    assert_eq!(
        project.reader().check().expect("readable"),
        Vec::<String>::new()
    );
}

/// What the model test does, one after another.
#[derive(Clone, Debug)]
enum Act {
    Start(u8),
    /// Finishes one of the open steps, with changes, and maybe starts another in the same commit.
    Finish(prop::sample::Index, Vec<Change>, Option<u8>),
    /// Closes the store, as a crash would, and recovers what is in doubt.
    Reopen,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u8, i64, bool, Vec<u8>),
    Remove(u8),
    Output(u8, Option<i64>),
}

fn change() -> impl Strategy<Value = Change> {
    let needs = prop::collection::vec(0..4u8, 0..3);
    prop_oneof![
        (0..4u8, any::<i64>(), any::<bool>(), needs)
            .prop_map(|(name, value, secret, needs)| Change::Put(name, value, secret, needs)),
        (0..4u8).prop_map(Change::Remove),
        (0..2u8, any::<Option<i64>>()).prop_map(|(name, value)| Change::Output(name, value)),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..4u8).prop_map(Act::Start),
        3 => (any::<prop::sample::Index>(), prop::collection::vec(change(), 0..4),
              any::<Option<u8>>())
            .prop_map(|(which, changes, next)| Act::Finish(which, changes, next)),
        1 => Just(Act::Reopen),
    ]
}

/// What the store should remember.
#[derive(Default)]
struct Model {
    serial: u64,
    rows: BTreeMap<Address, Row>,
    outputs: BTreeMap<Name, Known>,
}

impl Model {
    fn apply(&mut self, changes: &[Change]) -> Vec<RowChange> {
        self.serial += u64::from(!changes.is_empty());
        let changes = changes.iter().map(|change| match change {
            Change::Put(name, value, secret, needs) => {
                let value = Value::object([("v", Value::from(*value).sensitive_if(*secret))]);
                let row = Row {
                    depends_on: needs.iter().map(|need| numbered(*need)).collect(),
                    address: numbered(*name),
                    ..machine_row("machine.unused", value)
                };
                let version = self.serial;
                let kept = Row {
                    version,
                    ..row.clone()
                };
                self.rows.insert(row.address.clone(), kept);
                put(row)
            }
            Change::Remove(name) => {
                self.rows.remove(&numbered(*name));
                RowChange::RemoveRow(numbered(*name))
            }
            Change::Output(name, value) => {
                let name = Name::new(&format!("o{name}")).expect("a name");
                let value = value.map(|value| known(Value::from(value).sensitive()));
                match &value {
                    Some(value) => self.outputs.insert(name.clone(), value.clone()),
                    None => self.outputs.remove(&name),
                };
                RowChange::PutOutput(name, value)
            }
        });
        changes.collect()
    }

    fn check(&self, store: &Reader, open: &[Started]) {
        let snapshot = store.snapshot().expect("readable");
        let rows: BTreeMap<_, _> = snapshot
            .rows
            .iter()
            .map(|(address, row)| (address.clone(), (**row).clone()))
            .collect();
        assert_eq!(snapshot.serial, self.serial);
        assert_eq!(rows, self.rows);
        assert_eq!(snapshot.outputs, self.outputs);
        let doubts = store.in_doubt().expect("readable");
        let mut open: Vec<_> = open.iter().collect();
        open.sort_by_key(|started| started.id());
        assert_eq!(
            doubts
                .iter()
                .map(|doubt| &doubt.started)
                .collect::<Vec<_>>(),
            open
        );
    }
}

fn numbered(name: u8) -> Address {
    address(&format!("machine.m{name}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_store_remembers_what_a_model_remembers(acts in prop::collection::vec(act(), 1..24)) {
        let project = Project::new();
        let mut store = project.running();
        let mut model = Model::default();
        let mut open: Vec<Started> = Vec::new();
        for act in acts {
            match act {
                Act::Start(name) => {
                    open.push(start(&mut store, intent(&numbered(name).to_string())));
                }
                Act::Finish(_, _, _) if open.is_empty() => {}
                Act::Finish(which, changes, next) => {
                    let started = open.swap_remove(which.index(open.len()));
                    let outcome = match changes.len() {
                        1 => Outcome::Failed("refused".into()),
                        _ => Outcome::Done,
                    };
                    let changes = model.apply(&changes);
                    let finished = Finished { started, outcome, changes };
                    let next = next.map(|name| intent(&numbered(name).to_string()));
                    let started = store.commit(vec![finished], next.into_iter().collect());
                    open.extend(started.expect("committed"));
                }
                Act::Reopen => {
                    drop(store);
                    store = project.running();
                    let doubts = store.in_doubt().expect("readable");
                    open = doubts.into_iter().map(|doubt| doubt.started).collect();
                }
            }
            model.check(&store, &open);
        }
    }
}
