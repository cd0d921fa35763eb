//! The planner's cases: each a folder that is planned, applied in a simulation, and planned again.
//!
//! | file | what it is |
//! |---|---|
//! | `main.gobs.hcl` | what is planned |
//! | `before.gobs.hcl` | what was applied before, if anything |
//! | `state.txt` | what happened to the state since, a line each (see [`edit`]) |
//! | `expected.txt` | the plan, or what is wrong |
//!
//! A configuration that begins with `# with FILE` has that file of this folder before it.
//!
//! What was found instead of the expected is written to `target/tmp/plan`, to be read, and copied
//! over the expectation where it is right: `cp -r target/tmp/plan tests/`.

mod random;
mod render;
mod sabotage;
mod simulation;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gobs::lang::{Config, Inputs, Source};
use gobs::plan::{Holding, Options, Plan};
use gobs_model::{Address, Attribute, Block, Change, Diagnostic, Known, NestedBlock, Nesting};
use gobs_model::{ProviderSchema, Type, Value};
use gobs_provider::Provider;
use gobs_state::{Phase, Row, RowKind, Snapshot};

use simulation::{Pick, World, apply};

/// The time of every plan: 2027-01-15T08:00:00Z.
const NOW_S: u64 = 1_800_000_000;

/// The cases that are there must not get fewer by an accident of the file system.
const CASES_MIN: usize = 30;

#[test]
fn every_case_is_planned_as_expected_and_then_settled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan");
    let folders = std::fs::read_dir(&root)
        .expect("the cases")
        .map(|it| it.expect("one").path());
    let mut cases: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    cases.sort();
    assert!(
        cases.len() >= CASES_MIN,
        "only {} cases are there",
        cases.len()
    );
    let wrong: Vec<String> = cases.iter().filter_map(|case| check(case).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Plans one case, compares the whole plan, and ends with «plan again: nothing».
fn check(case: &Path) -> Result<(), String> {
    let name = case.file_name().and_then(|it| it.to_str()).expect("a name");
    let read = |file: &str| std::fs::read_to_string(case.join(file)).ok();
    let config = |file: &str| read(file).map(|text| with_shared(case, text));
    let main = config("main.gobs.hcl").ok_or_else(|| format!("{name}: no main.gobs.hcl"))?;
    let mut world = World::default();
    let edits = read("state.txt").unwrap_or_default();
    if let Some(before) = config("before.gobs.hcl") {
        let config = world
            .load(&before)
            .map_err(|it| format!("{name}: before: {it:?}"))?;
        let plan = world
            .plan(&config)
            .map_err(|it| format!("{name}: before: {it:?}"))?;
        let steps = edits.lines().find_map(|line| line.strip_prefix("steps "));
        let steps = steps.map_or(usize::MAX, |text| text.parse().expect("a number of steps"));
        world.snapshot = apply(&world, &config, &plan, Pick::First, steps);
    }
    edits.lines().for_each(|line| edit(&mut world, line));
    let planned = world
        .load(&main)
        .and_then(|config| Ok((world.plan(&config)?, config)));
    let found = match &planned {
        Ok((plan, _)) => render::plan(plan),
        Err(diagnostics) => render::diagnostics(diagnostics),
    };
    let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap_or_default();
    if found != expected {
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("plan")
            .join(name);
        std::fs::create_dir_all(&tmp).expect("a directory");
        std::fs::write(tmp.join("expected.txt"), &found).expect("written");
        let diff = similar::TextDiff::from_lines(&expected, &found);
        let diff = diff.unified_diff().header("expected", "found").to_string();
        return Err(format!("{name}: another plan than expected\n{diff}"));
    }
    if let Ok((plan, config)) = planned {
        for pick in [Pick::First, Pick::Last] {
            settles(&world, &config, &plan, pick).map_err(|it| format!("{name}: {it}"))?;
        }
    }
    Ok(())
}

/// Returns a configuration with what it shares with other cases before it.
fn with_shared(case: &Path, text: String) -> String {
    let first = text.lines().next().unwrap_or_default();
    let Some(file) = first.strip_prefix("# with ") else {
        return text;
    };
    let shared = std::fs::read_to_string(case.with_file_name(file)).expect("the shared file");
    shared + &text
}

/// Applies a plan and plans again: nothing must be left to do.
fn settles(world: &World, config: &Config, plan: &Plan, pick: Pick) -> Result<(), String> {
    let mut after = world.clone();
    after.snapshot = apply(world, config, plan, pick, usize::MAX);
    after.drift.clear();
    after.options.holdings.clear();
    let again = after.plan(config).map_err(|it| render::diagnostics(&it))?;
    match again.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "planned again ({pick:?}):\n{}",
            render::plan(&again)
        )),
    }
}

impl Default for World {
    fn default() -> Self {
        let dummy = gobs_provider_dummy::Dummy::new(gobs_provider_dummy::DummyHost {
            root: "unused".into(),
            agent: Vec::new(),
            runtime_root: "unused".into(),
        });
        let schemas = [dummy.schema().clone(), cloud(), far(), lan()];
        Self {
            inputs: Inputs {
                now_s: NOW_S,
                ..Inputs::default()
            },
            schemas: schemas.map(|schema| (schema.name.clone(), schema)).into(),
            snapshot: Snapshot::default(),
            options: Options {
                destroy: false,
                simulated: BTreeSet::from(["dummy.rows".to_owned()]),
                unclaimed: BTreeSet::new(),
                holdings: BTreeMap::new(),
                imports: BTreeSet::new(),
            },
            drift: Vec::new(),
        }
    }
}

impl World {
    pub(crate) fn load(&self, text: &str) -> Result<Config, Vec<Diagnostic>> {
        let loaded = gobs::lang::load(&[Source::new("main.gobs.hcl", text)]);
        let mut errors: Vec<Diagnostic> = loaded.diagnostics;
        errors.extend(gobs::lang::check(&loaded.config, &self.schemas));
        match errors.iter().any(Diagnostic::is_error) {
            true => Err(errors),
            false => Ok(loaded.config),
        }
    }

    /// Plans, and lets the plan's own checker look at it.
    pub(crate) fn plan(&self, config: &Config) -> Result<Plan, Vec<Diagnostic>> {
        let Self {
            inputs,
            schemas,
            snapshot,
            options,
            drift,
        } = self;
        let plan = gobs::plan::plan(config, inputs, snapshot, schemas, options, drift.clone())?;
        if let Err(error) = gobs::plan::review(config, schemas, snapshot, &plan) {
            panic!("{error}\n{}", render::plan(&plan));
        }
        Ok(plan)
    }

    fn change(&mut self, address: &str, change: impl FnOnce(&mut Row)) {
        let address: Address = address.parse().expect("an address");
        let row = self.snapshot.rows.get_mut(&address);
        let row = row.unwrap_or_else(|| panic!("no row {address}"));
        self.snapshot.serial += 1;
        let row = Arc::make_mut(row);
        row.version = self.snapshot.serial;
        change(row);
    }
}

/// Does one line of `state.txt`.
fn edit(world: &mut World, line: &str) {
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    match words.as_slice() {
        // What an apply that was cut short has left.
        ["steps", _] | [""] | ["#", ..] => {}
        ["unenroll", address] => world.change(address, |row| {
            let RowKind::Machine { enrolled, .. } = &mut row.kind else {
                panic!("a machine")
            };
            *enrolled = None;
        }),
        ["unclaimed", address] => {
            edit(world, &format!("unenroll {address}"));
            let address = address.parse().expect("an address");
            world.options.unclaimed.insert(address);
        }
        // What hobs say: a machine that has not the grant, and the highest generation of all.
        ["lost", address, machine, generation] => {
            let holding = Holding {
                generation: generation.parse().expect("a number"),
                lost_at: Some(machine.parse().expect("an address")),
            };
            let address = address.parse().expect("an address");
            world.options.holdings.insert(address, holding);
        }
        ["forget", address] => {
            world
                .snapshot
                .rows
                .remove(&address.parse::<Address>().expect("an address"));
        }
        ["revoke-pending", address] => world.change(address, |row| {
            let RowKind::Binding { phase, .. } = &mut row.kind else {
                panic!("a binding")
            };
            *phase = Phase::RevokePending;
        }),
        // What a refresh finds: a machine that is gone, an attribute that was changed.
        ["gone", address] => drift(world, address, |_| None),
        ["observe", address, name, json] => drift(world, address, |was| {
            let json = serde_json::from_str(json).expect("JSON");
            let value = Value::from_json(json).expect("an encoded value");
            let mut now = was.value().as_entries().cloned().expect("an object");
            now.insert((*name).into(), value);
            Some(Known::try_from(Value::object::<Arc<str>>(now)).expect("known"))
        }),
        ["needs", address, needed] => world.change(address, |row| {
            row.depends_on = vec![needed.parse().expect("an address")];
        }),
        ["destroy"] => world.options.destroy = true,
        ["simulated", provider] => {
            world.options.simulated.insert((*provider).to_owned());
        }
        _ => panic!("unknown line {line:?}"),
    }
}

fn drift(world: &mut World, address: &str, now: impl FnOnce(&Known) -> Option<Known>) {
    let address: Address = address.parse().expect("an address");
    let row = world.snapshot.rows.get_mut(&address).expect("a row");
    let RowKind::Machine { provider, .. } = &row.kind else {
        panic!("a machine")
    };
    let schema = &world.schemas[provider.split('.').next().unwrap_or_default()];
    let now = now(&row.observed);
    world
        .drift
        .extend(gobs::plan::drift(schema, row, now.as_ref()));
    if let Some(now) = now {
        Arc::make_mut(row).observed = now;
    }
}

/// A provider whose machines are elsewhere, and boot with cloud-init.
fn far() -> ProviderSchema {
    let mut cloud = cloud();
    let region = Attribute::required(Type::String, Change::Migrate, "");
    cloud.machine.attributes.insert("region".into(), region);
    ProviderSchema {
        name: "far".into(),
        hosts: gobs_model::Hosts {
            elsewhere: true,
            user_data: gobs_model::UserDataForm::CloudInit,
            addresses: vec!["ipv4".into()],
            ..cloud.hosts.clone()
        },
        ..cloud
    }
}

/// A provider whose machines have networks among themselves: one behind their firewalls, one not.
fn lan() -> ProviderSchema {
    let mut lan = cloud();
    lan.name = "lan".into();
    let text = || Attribute::optional(Type::String, Change::InPlace, "");
    let flag = Attribute::optional(Type::Bool, Change::InPlace, "");
    let interface = Block::of([
        ("vpc", text()),
        ("vlan", text()),
        ("subnet", text()),
        ("primary", flag),
    ]);
    let interface = NestedBlock::new(Nesting::List, Change::InPlace, interface);
    lan.machine.blocks.insert("interface".into(), interface);
    let network = |address: &str, filtered| gobs_model::Network {
        block: "interface".into(),
        address: address.into(),
        part: "subnet".into(),
        route: "primary".into(),
        filtered,
    };
    lan.hosts.networks = vec![network("vpc", true), network("vlan", false)];
    lan
}

/// A provider with everything that the dummy has not: required, chosen by the provider, resized,
/// sets, nested blocks, and no rebuild.
fn cloud() -> ProviderSchema {
    let text = || Type::String;
    let mut machine = Block::of([
        ("region", Attribute::required(text(), Change::Replace, "")),
        ("type", Attribute::required(text(), Change::Resize, "")),
        (
            "tags",
            Attribute::optional(Type::set(text()), Change::InPlace, ""),
        ),
        (
            "label",
            Attribute::optional_computed(text(), Change::InPlace, ""),
        ),
        (
            "backups",
            Attribute::optional(Type::Bool, Change::PowerCycle, "").with_default(false),
        ),
        ("ipv4", Attribute::computed(text(), "")),
        ("id", Attribute::computed(text(), "")),
    ]);
    let disk = Block::of([("gb", Attribute::required(Type::Number, Change::Resize, ""))]);
    machine.blocks.insert(
        "disk".into(),
        NestedBlock::new(Nesting::List, Change::Replace, disk),
    );
    let volume = Block::of([
        (
            "size",
            Attribute::required(Type::Number, Change::InPlace, ""),
        ),
        (
            "delete",
            Attribute::optional(Type::Bool, Change::InPlace, "").with_default(false),
        ),
        ("id", Attribute::computed(text(), "")),
    ]);
    let volume = NestedBlock::new(Nesting::Labelled, Change::InPlace, volume).outlives();
    machine.blocks.insert("volume".into(), volume);
    let flag = Attribute::optional(Type::Bool, Change::InPlace, "").with_default(false);
    let firewall = Block::of([("derived", flag), ("admits", Attribute::admits(""))]);
    let firewall = NestedBlock::new(Nesting::Single, Change::InPlace, firewall);
    machine.blocks.insert("firewall".into(), firewall);
    ProviderSchema {
        name: "cloud".into(),
        settings: Block::default(),
        machine,
        list_lag: Duration::ZERO,
        hosts: gobs_model::Hosts::default(),
    }
}
