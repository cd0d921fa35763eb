//! How long planning takes and how much it holds: `cargo bench -p gobs --bench plan`.
//!
//! The plan that has nothing to do is made by a process of its own, from the state file on, so
//! that its time and its memory are those of `gobs plan --refresh=false`.

#[expect(dead_code, reason = "the tests apply in another order too")]
#[path = "../tests/plan/simulation.rs"]
mod simulation;

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{Write, stdout};
use std::path::Path;
use std::process::Command;
use std::time::{Instant, SystemTime};

use gobs::lang::{Inputs, Source};
use gobs::plan::{Options, plan, review};
use gobs_provider::Provider;
use gobs_provider_dummy::{Dummy, DummyHost};
use gobs_state::{DataKey, Finished, Intent, Lock, Outcome, Reader, RowChange, Snapshot, Store};

use simulation::{Pick, World, apply};

/// What a process plans that is given a directory; see [`PLAN`].
const PLAN: &str = "plan-in";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, directory, machines] = arguments.as_slice()
        && mode == PLAN
    {
        return plan_in(Path::new(directory), machines.parse()?);
    }
    for machines in [1_000, 10_000] {
        prepare(machines)?;
    }
    Ok(())
}

/// Two bindings for each machine: from its neighbour's service, and from one that all share.
fn text(machines: usize) -> String {
    format!(
        r#"
provider "dummy" {{
  simulated = true
}}
machine "hub" {{
  provider = dummy
  service "queue" {{ tcp = "127.0.0.1:5672" }}
}}
machine "app" {{
  count    = {machines} - 1
  provider = dummy
  size     = "s${{count.index % 3}}"
  image    = "debian-${{machine.hub.id == "" ? "none" : "13"}}"
  service "http" {{ tcp = "127.0.0.1:${{8000 + count.index % 1000}}" }}
}}
binding "queue" {{
  for_each = {{ for k, m in machine.app : k => m }}
  from     = machine.hub.service.queue
  to       = each.value
}}
binding "peer" {{
  count = {machines} - 1
  from  = machine.app[(count.index + 1) % ({machines} - 1)].service.http
  to    = machine.app[count.index]
  attenuate {{ connections_max = 20 }}
}}
"#
    )
}

fn world(snapshot: Snapshot) -> World {
    let dummy = Dummy::new(DummyHost {
        root: "unused".into(),
        agent: Vec::new(),
        runtime_root: "unused".into(),
    });
    World {
        inputs: Inputs::default(),
        schemas: [("dummy".to_owned(), dummy.schema().clone())].into(),
        snapshot,
        options: Options {
            destroy: false,
            simulated: BTreeSet::from(["dummy".to_owned()]),
            ..Options::default()
        },
        drift: Vec::new(),
    }
}

/// Plans everything anew, applies that in a simulation, and lets another process plan again.
fn prepare(machines: usize) -> Result<(), Box<dyn Error>> {
    let text = text(machines);
    let config = gobs::lang::load(&[Source::new("main.gobs.hcl", text.as_str())]).config;
    let mut world = world(Snapshot::default());
    let World {
        inputs,
        schemas,
        snapshot,
        options,
        ..
    } = &world;
    let begun = Instant::now();
    let planned = plan(&config, inputs, snapshot, schemas, options, Vec::new());
    let planned = planned.map_err(|it| format!("{it:?}"))?;
    let took = begun.elapsed();
    let begun = Instant::now();
    review(&config, schemas, snapshot, &planned)?;
    writeln!(
        stdout(),
        "{machines} machines: {} steps planned in {took:?}, reviewed in {:?}",
        planned.steps.len(),
        begun.elapsed()
    )?;
    world.snapshot = apply(&world, &config, &planned, Pick::First, usize::MAX);

    let directory = tempfile::tempdir_in(".")?;
    let key = DataKey::load_or_create(
        &directory.path().join("key"),
        &directory.path().join("state.db"),
    )?;
    let lock = Lock::acquire(&directory.path().join("lock"), "bench", SystemTime::now())?;
    let mut store = Store::open(&directory.path().join("state.db"), &key, lock)?;
    let _ = store.begin_run("bench", SystemTime::now())?;
    let intent = Intent {
        address: "machine.hub".parse()?,
        action: "create".into(),
        token: None,
        claim: None,
        detail: serde_json::Value::Null,
    };
    let rows = world.snapshot.rows.values();
    let changes: Vec<_> = rows
        .map(|row| RowChange::PutRow(Box::new((**row).clone())))
        .collect();
    for started in store.commit(Vec::new(), vec![intent])? {
        let changes = changes.clone();
        let finished = Finished {
            started,
            outcome: Outcome::Done,
            changes,
        };
        let _ = store.commit(vec![finished], Vec::new())?;
    }
    drop(store);
    let status = Command::new(std::env::current_exe()?)
        .args([
            PLAN,
            &directory.path().to_string_lossy(),
            &machines.to_string(),
        ])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("the plan failed".into())
    }
}

/// Loads the state and plans: there must be nothing to do.
fn plan_in(directory: &Path, machines: usize) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let key = DataKey::load(&directory.join("key"))?;
    let snapshot = Reader::open(&directory.join("state.db"), &key)?.snapshot()?;
    let loaded = begun.elapsed();
    let state = status("VmRSS:")?;
    let config = gobs::lang::load(&[Source::new("main.gobs.hcl", text(machines).as_str())]).config;
    let world = world(snapshot);
    let World {
        inputs,
        schemas,
        snapshot,
        options,
        ..
    } = &world;
    let begun = Instant::now();
    let planned = plan(&config, inputs, snapshot, schemas, options, Vec::new());
    let planned = planned.map_err(|it| format!("{it:?}"))?;
    let took = begun.elapsed();
    let begun = Instant::now();
    review(&config, schemas, snapshot, &planned)?;
    let reviewed = begun.elapsed();
    writeln!(
        stdout(),
        "{machines} machines, {} rows: {} steps; state loaded in {loaded:?} ({state}), nothing to \
         do found in {took:?}, reviewed in {reviewed:?}; peak memory {}",
        snapshot.rows.len(),
        planned.steps.len(),
        status("VmHWM:")?
    )?;
    if planned.is_empty() {
        Ok(())
    } else {
        Err("something was left to do".into())
    }
}

/// Returns what the kernel says of this process.
fn status(field: &str) -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.unwrap_or("unknown").trim().to_owned())
}
