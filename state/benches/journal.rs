//! How fast steps are journalled: `cargo bench -p gobs-state --bench journal`.

use std::error::Error;
use std::io::{Write, stdout};
use std::time::{Instant, SystemTime};

use gobs_model::{Address, Known, Value};
use gobs_state::{
    DataKey, Finished, Intent, Lock, Outcome, Phase, Reader, Row, RowChange, RowKind, Store,
};

const STEPS: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    for batch in [1, 10, 100, 1_000] {
        let directory = tempfile::tempdir_in(".")?;
        let state = directory.path().join("state.db");
        let key = DataKey::generate()?;
        let now = SystemTime::now();
        let lock = Lock::acquire(&directory.path().join("lock"), "bench", now)?;
        let mut store = Store::open(&state, &key, lock)?;
        let _ = store.begin_run("bench", now)?;

        let begun = Instant::now();
        let mut finished: Vec<Finished> = Vec::new();
        for first in (0..STEPS).step_by(batch) {
            let intents = (first..first + batch)
                .map(intent)
                .collect::<Result<_, _>>()?;
            let started = store.commit(std::mem::take(&mut finished), intents)?;
            finished.extend(started.into_iter().map(|started| Finished {
                changes: vec![RowChange::PutRow(Box::new(row(
                    &started.intent().address,
                    true,
                )))],
                started,
                outcome: Outcome::Done,
            }));
        }
        let none = store.commit(finished, Vec::new())?;
        let took = begun.elapsed();
        debug_assert!(none.is_empty());

        let begun = Instant::now();
        let rows = Reader::open(&state, &key)?.snapshot()?.rows.len();
        let load = begun.elapsed();
        let begun = Instant::now();
        store.backup(&directory.path().join("backups"), now)?;
        writeln!(
            stdout(),
            "{STEPS} steps in batches of {batch:>4}: {took:>8.3?}, {:>8.0} steps/s; \
             {rows} rows loaded in {load:.3?}, backed up in {:.3?}",
            STEPS as f64 / took.as_secs_f64(),
            begun.elapsed(),
        )?;
    }
    load()
}

/// Loads a large project: each machine with two bindings, one machine in ten with a secret.
fn load() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir_in(".")?;
    let state = directory.path().join("state.db");
    let key = DataKey::generate()?;
    let now = SystemTime::now();
    let lock = Lock::acquire(&directory.path().join("lock"), "bench", now)?;
    let mut store = Store::open(&state, &key, lock)?;
    let _ = store.begin_run("bench", now)?;
    let mut changes = Vec::new();
    for number in 0..STEPS {
        let address: Address = format!("machine.m[{number}]").parse()?;
        changes.push(RowChange::PutRow(Box::new(row(&address, number % 10 == 0))));
        for end in ["a", "b"] {
            let binding = Row {
                address: format!("binding.{end}[{number}]").parse()?,
                kind: RowKind::Binding {
                    generation: 1,
                    from_incarnation: 1,
                    to_incarnation: 1,
                    parent: None,
                    phase: Phase::Granted,
                },
                ..row(&address, false)
            };
            changes.push(RowChange::PutRow(Box::new(binding)));
        }
    }
    let mut started = store.commit(Vec::new(), vec![intent(0)?])?;
    let finished = started.drain(..).map(|started| Finished {
        started,
        outcome: Outcome::Done,
        changes: std::mem::take(&mut changes),
    });
    let begun = Instant::now();
    let none = store.commit(finished.collect(), Vec::new())?;
    debug_assert!(none.is_empty());
    let written = begun.elapsed();
    let begun = Instant::now();
    let rows = Reader::open(&state, &key)?.snapshot()?.rows.len();
    writeln!(
        stdout(),
        "{rows} rows written in one commit in {written:.3?}, loaded in {:.3?}",
        begun.elapsed()
    )?;
    Ok(())
}

fn intent(number: usize) -> Result<Intent, Box<dyn Error>> {
    Ok(Intent {
        address: format!("machine.m[{number}]").parse()?,
        action: "create".into(),
        token: Some("abcdefghijklmnopqrstuvwxyz".into()),
        claim: None,
        detail: serde_json::json!({"wanted": {"size": "small"}, "user_data": "x".repeat(300)}),
    })
}

fn row(address: &Address, secret: bool) -> Row {
    let wanted = Value::object([
        ("size", Value::from("small")),
        ("password", Value::from("hunter2").sensitive_if(secret)),
        ("tags", Value::set(["a".into(), "b".into()])),
    ]);
    let wanted = Known::try_from(wanted).unwrap_or_else(|_| Known::empty());
    Row {
        address: address.clone(),
        observed: wanted.clone(),
        wanted,
        depends_on: vec![address.clone()],
        version: 0,
        kind: RowKind::Machine {
            provider: "dummy".into(),
            id: "1".into(),
            token: "abcdefghijklmnopqrstuvwxyz".into(),
            incarnation: 1,
            enrolled: None,
        },
    }
}
