//! Tests of the state file through its public face, on real files and real processes.

mod bad_files;
mod boss;
mod processes;
mod secrecy;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gobs_model::{Address, Known, Value};
use gobs_state::{
    BossStore, DataKey, Finished, Intent, Lock, NewClaim, Outcome, Phase, Reader, Row, RowChange,
    RowKind, Started, Store, SwissnumHash,
};

/// A project's state in a directory of its own.
struct Project {
    directory: tempfile::TempDir,
    key: DataKey,
}

impl Project {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let key = DataKey::generate().expect("a key");
        Self { directory, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state.db")
    }

    fn lock(&self) -> Lock {
        Lock::acquire(&self.path("lock"), "test", SystemTime::now()).expect("a free lock")
    }

    fn store(&self) -> Store {
        Store::open(&self.state(), &self.key, self.lock()).expect("a state file")
    }

    /// A store with a run begun.
    fn running(&self) -> Store {
        let mut store = self.store();
        let _ = store.begin_run("apply", at(0)).expect("a run");
        store
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.state(), &self.key).expect("a state file")
    }

    fn boss(&self) -> BossStore {
        BossStore::open(&self.state(), &self.key).expect("a state file")
    }

    fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.state()).expect("a database")
    }
}

/// A moment, so many seconds after an arbitrary one.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

fn known(value: Value) -> Known {
    Known::try_from(value).expect("nothing unknown")
}

fn machine_row(name: &str, wanted: Value) -> Row {
    Row {
        address: address(name),
        wanted: known(wanted),
        observed: Known::empty(),
        depends_on: Vec::new(),
        version: 0,
        kind: RowKind::Machine {
            provider: "dummy".into(),
            id: "1".into(),
            token: "abc".into(),
            incarnation: 1,
            enrolled: None,
        },
    }
}

fn binding_row(name: &str, needs: &[&str]) -> Row {
    Row {
        depends_on: needs.iter().map(|need| address(need)).collect(),
        address: address(name),
        kind: RowKind::Binding {
            generation: 3,
            from_incarnation: 1,
            to_incarnation: 2,
            parent: None,
            phase: Phase::RevokePending,
        },
        ..machine_row("machine.unused", Value::object([("as", "db".into())]))
    }
}

fn put(row: Row) -> RowChange {
    RowChange::PutRow(Box::new(row))
}

fn intent(name: &str) -> Intent {
    Intent {
        address: address(name),
        action: "create".into(),
        token: Some("abc".into()),
        claim: None,
        detail: serde_json::json!({"name": name}),
    }
}

fn claim(swissnum: &[u8], machine: &str) -> NewClaim {
    NewClaim {
        swissnum_hash: SwissnumHash::of(swissnum),
        machine: address(machine),
        incarnation: 1,
        minted_at: at(0),
    }
}

fn start(store: &mut Store, intent: Intent) -> Started {
    let mut started = store.commit(Vec::new(), vec![intent]).expect("committed");
    started.pop().expect("one started")
}

fn done(started: Started, changes: Vec<RowChange>) -> Finished {
    Finished {
        started,
        outcome: Outcome::Done,
        changes,
    }
}

/// Writes changes as one step that succeeds.
fn write(store: &mut Store, changes: Vec<RowChange>) {
    let started = start(store, intent("machine.step"));
    let none = store.commit(vec![done(started, changes)], Vec::new());
    assert_eq!(none.expect("committed"), Vec::new());
}

fn row(store: &Reader, name: &str) -> Option<Arc<Row>> {
    let snapshot = store.snapshot().expect("readable");
    snapshot.rows.get(&address(name)).cloned()
}
