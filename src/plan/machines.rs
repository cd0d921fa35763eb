//! What becomes of each machine and of its hob.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gobs_model::{Address, Block, Change, Diagnostic, Instance, Name, Network, Path};
use gobs_model::{ProviderSchema, Segment, UserDataForm, Value};
use gobs_state::{Row, RowKind};

use crate::lang::{BlockId, HobUser, HobValues, IgnoreChanges, MachineValues};

use super::admits::{self, Derived};
use super::diff::{self, HOB};
use super::draft::{NewStep, Node};
use super::reach::{self, Place};
use super::services::ServicePlan;
use super::{Action, Because, DriftKind, Need, Planner};

/// What the bindings at a machine must know of it.
#[derive(Debug, Default)]
pub(crate) struct MachinePlan {
    /// Whether it is declared, and so is there afterwards.
    pub(crate) stays: bool,
    /// Whether it has a hob afterwards.
    pub(crate) hob: bool,
    /// Whether it is a row only.
    pub(crate) simulated: bool,
    /// Whether its hob runs as a user of its own, who restarts no units.
    pub(crate) confined: bool,
    /// The networks among machines in which it says where it is.
    pub(crate) networks: Vec<Network>,
    /// Where it is, and from where its hob can be dialled.
    pub(crate) place: Place,
    /// Its incarnation afterwards.
    pub(crate) incarnation: u64,
    /// The incarnation that is there before and is not ended by this plan.
    pub(crate) lives_on: Option<u64>,
    /// Its services afterwards.
    pub(crate) services: BTreeMap<Name, ServicePlan>,
    /// The steps after which its hob serves: a change of the machine, its enrollment.
    pub(crate) ready: Vec<Node>,
    /// The step that ends the hob that was there.
    pub(crate) ends: Option<Node>,
    /// Whether that step makes it go for good, so that it can wait for whoever still uses it.
    pub(crate) goes: bool,
    /// Whether it may be at another address afterwards.
    pub(crate) moves: bool,
}

/// What becomes of a machine that is declared.
enum Fate {
    Keep,
    Create(Vec<Because>),
    Update(Change, Vec<Because>),
    Replace(Vec<Because>),
}

/// A machine that is declared, evaluated.
struct Declared {
    address: Address,
    provider: String,
    simulated: bool,
    depends_on: Vec<Address>,
    wanted: Value,
    before: Value,
    planned: Value,
    /// The incarnation that a new hob has.
    fresh: u64,
}

impl Declared {
    fn step(&self, action: Action, because: Vec<Because>) -> NewStep {
        NewStep {
            address: self.address.clone(),
            action,
            because,
            depends_on: self.depends_on.clone(),
            before: self.before.clone(),
            planned: self.planned.clone(),
        }
    }

    fn create(&self, replaces: bool) -> Action {
        Action::Create {
            provider: self.provider.clone(),
            wanted: self.wanted.clone(),
            incarnation: self.fresh,
            replaces,
            simulated: self.simulated,
        }
    }
}

/// A machine's row, taken apart.
struct Existing<'a> {
    row: &'a Arc<Row>,
    provider: &'a str,
    incarnation: u64,
    enrolled: Option<&'a str>,
}

impl<'a> Existing<'a> {
    fn of(row: &'a Arc<Row>) -> Option<Self> {
        match &row.kind {
            RowKind::Machine {
                provider,
                incarnation,
                enrolled,
                ..
            } => Some(Self {
                row,
                provider,
                incarnation: *incarnation,
                enrolled: enrolled.as_deref(),
            }),
            RowKind::Service { .. } | RowKind::Binding { .. } => None,
        }
    }
}

impl Planner<'_> {
    /// Plans one instance of a declared machine.
    pub(crate) fn machine(&mut self, instance: &Instance) {
        let values = match self.evaluator.machine(instance) {
            Ok(values) => values,
            Err(errors) => return self.fail(BlockId::Machine(instance.name.clone()), errors),
        };
        let address = Address::Machine(instance.clone());
        let schemas = self.schemas;
        let Some(schema) = schemas.get(provider_name(&values.provider)) else {
            let detail = format!("There is no provider named {:?}.", values.provider);
            let error = Diagnostic::error("Unknown provider", detail);
            return self.fail(BlockId::Machine(instance.name.clone()), vec![error]);
        };
        let block = &schema.machine;
        let snapshot = self.snapshot;
        let row = snapshot.rows.get(&address);
        let existing = row.and_then(Existing::of);
        let last = existing.as_ref().map(|it| it.row.wanted.value());
        let mut attributes = attributes_of(&values, last);
        let derived = self.derived(instance, schema, &values, row.map(|it| &**it));
        if let Some((_, was)) = &derived {
            attributes = admits::admitting(block, &attributes, was);
        }
        let hob = self.hob_settings(&values.hob);
        let fate = match &existing {
            None => Fate::Create(vec![Because::Declared]),
            Some(existing) => self.fate(existing, (&attributes, &hob), &values, block),
        };
        self.refuse_destruction(&address, &values, &fate);

        let referenced = self.is_referenced(&BlockId::Machine(instance.name.clone()));
        let mut declared = Declared {
            simulated: self.options.simulated.contains(&values.provider),
            fresh: self.fresh(existing.as_ref().map(|it| it.incarnation)),
            address,
            provider: values.provider,
            depends_on: Vec::new(),
            wanted: Value::NULL,
            before: Value::NULL,
            planned: Value::NULL,
        };
        let needs = self.needs(&BlockId::Machine(instance.name.clone()), &values.reads);
        let row = existing.as_ref().map(|it| it.row);
        // A machine that stays as it is shares its values with its row, and takes no room.
        if let (Fate::Keep, Some(row)) = (&fate, row) {
            if referenced {
                let object = diff::machine_object(schema, row);
                self.evaluator.set_object(declared.address.clone(), object);
            }
        } else {
            declared.wanted = with_hob(&attributes, hob);
            declared.before = row.map_or(Value::NULL, |row| diff::machine_object(schema, row));
            let (observed, enrolled) = match (&existing, &fate) {
                (Some(it), Fate::Keep | Fate::Update(..)) => {
                    let rebuilt = matches!(fate, Fate::Update(Change::Rebuild, _));
                    let enrolled = if rebuilt { None } else { it.enrolled };
                    (Some(it.row.observed.value()), enrolled)
                }
                _ => (None, None),
            };
            declared.planned = diff::planned_machine(block, &declared.wanted, observed, enrolled);
            if matches!(&fate, Fate::Update(_, because) if because.iter().any(migrates)) {
                declared.planned = admits::moved(schema, declared.planned);
            }
            let (address, object) = (declared.address.clone(), declared.planned.clone());
            self.evaluator.set_object(address, object);
        }
        declared.depends_on = needed(&needs);
        let mut machine = MachinePlan {
            stays: true,
            hob: values.hob.enabled,
            simulated: declared.simulated,
            confined: schema.hosts.user_data == UserDataForm::CloudInit
                && values.hob.user == HobUser::Own,
            networks: admits::networks_of(schema, &values.attributes),
            place: reach::place(&values.hob, &schema.hosts),
            ..MachinePlan::default()
        };
        if !declared.simulated {
            self.check_home(&declared.address, &values.hob, &schema.hosts);
        }
        machine.moves = match &fate {
            Fate::Keep => false,
            Fate::Update(change, _) => *change >= Change::Resize,
            Fate::Create(_) | Fate::Replace(_) => true,
        };
        if let Some((whom, was)) = derived {
            let (before, planned) = match (&fate, row) {
                (Fate::Keep, Some(row)) => {
                    let object = diff::machine_object(schema, row);
                    (object.clone(), object)
                }
                _ => (declared.before.clone(), declared.planned.clone()),
            };
            let derived = Derived {
                provider: declared.provider.clone(),
                whom,
                was,
                before,
                planned,
                importers: BTreeSet::new(),
                binds: Vec::new(),
                unbinds: Vec::new(),
            };
            self.derived.insert(instance.clone(), derived);
        }
        let import = self.import(&declared, &fate, existing.as_ref(), schema);
        let main = self.carry_out(&declared, fate, existing.as_ref(), &mut machine);
        if let (Some(import), Some(main)) = (import, main) {
            self.draft.wait(import, main);
        }
        let main = main.or(import);
        if let Some(main) = main {
            self.wait_for(&needs, main);
            machine.ready.push(main);
        }
        let enrolled = existing.is_some_and(|it| it.enrolled.is_some());
        if machine.hob && !(enrolled && machine.lives_on.is_some()) {
            let action = Action::Enroll {
                incarnation: machine.incarnation,
                deadline_s: values.hob.deadline.as_secs(),
                simulated: machine.simulated,
            };
            let enroll = self.draft.step(NewStep {
                before: Value::NULL,
                planned: Value::NULL,
                ..declared.step(action, vec![Because::NotEnrolled])
            });
            main.into_iter()
                .for_each(|main| self.draft.wait(main, enroll));
            machine.ready.push(enroll);
        }
        self.services(instance, &mut machine, &values.services, &needs);
        self.machines.insert(instance.clone(), machine);
    }

    /// Adds the step that takes a machine over, where one is; whatever changes it comes after.
    fn import(
        &mut self,
        declared: &Declared,
        fate: &Fate,
        existing: Option<&Existing<'_>>,
        schema: &ProviderSchema,
    ) -> Option<Node> {
        let existing = existing.filter(|it| self.options.imports.contains(&it.row.address))?;
        let RowKind::Machine { id, .. } = &existing.row.kind else {
            return None;
        };
        if let Fate::Replace(because) = fate {
            self.refuse_replaced_import(&declared.address, because);
            return None;
        }
        let object = diff::machine_object(schema, existing.row);
        let action = Action::Import {
            provider: existing.provider.to_owned(),
            id: id.clone(),
            wanted: existing.row.wanted.value().clone(),
            incarnation: existing.incarnation,
        };
        let because = vec![Because::Imported { id: id.clone() }];
        Some(self.draft.step(NewStep {
            before: object.clone(),
            planned: object,
            ..declared.step(action, because)
        }))
    }

    /// Says that a machine would be taken over and then destroyed.
    fn refuse_replaced_import(&mut self, address: &Address, because: &[Because]) {
        let paths = because.iter().filter_map(|it| match it {
            Because::Changed { path, change } if *change == Change::Replace => {
                Some(path.to_string())
            }
            _ => None,
        });
        let detail = format!(
            "{address} is to be imported, and its block says what no machine can become without \
             being made anew: {}. The one that is imported would be destroyed.",
            paths.collect::<Vec<_>>().join(", ")
        );
        let hint = "Declare it as it is, or name this in ignore_changes of its lifecycle block.";
        let error = Diagnostic::error("Import would be replaced", detail).hint(hint);
        let to = address.as_machine();
        let mut imports = self.config.imports.iter();
        let import = imports.find(|it| to.is_some_and(|to| it.leads_to(to)));
        self.errors.push(match import {
            Some(import) => error.at(self.config.import_at(import)[0].clone()),
            None => error.about(address.clone(), Path::default()),
        });
    }

    /// Adds the steps that make a machine what it is to be; returns the last of them.
    fn carry_out(
        &mut self,
        declared: &Declared,
        fate: Fate,
        existing: Option<&Existing<'_>>,
        machine: &mut MachinePlan,
    ) -> Option<Node> {
        let was = existing.map_or(declared.fresh, |it| it.incarnation);
        machine.incarnation = declared.fresh;
        match fate {
            Fate::Keep => {
                machine.incarnation = was;
                machine.lives_on = Some(was);
                None
            }
            Fate::Create(because) => {
                let create = declared.step(declared.create(false), because);
                Some(self.draft.step(create))
            }
            Fate::Update(change, because) => {
                let rebuilt = change == Change::Rebuild;
                if !rebuilt {
                    machine.incarnation = was;
                    machine.lives_on = Some(was);
                }
                let action = Action::Update {
                    provider: declared.provider.clone(),
                    wanted: declared.wanted.clone(),
                    change,
                    incarnation: machine.incarnation,
                    calls_provider: rebuilt || because.iter().any(is_for_provider),
                    simulated: declared.simulated,
                };
                let node = self.draft.step(declared.step(action, because));
                machine.ends = rebuilt.then_some(node);
                Some(node)
            }
            Fate::Replace(because) => {
                let provider = existing.map_or(&*declared.provider, |it| it.provider);
                let delete = Action::Delete {
                    provider: provider.to_owned(),
                    replaced: true,
                    simulated: self.options.simulated.contains(provider),
                };
                let delete = self.draft.step(NewStep {
                    planned: Value::NULL,
                    depends_on: Vec::new(),
                    ..declared.step(delete, because.clone())
                });
                machine.ends = Some(delete);
                let create = self.draft.step(NewStep {
                    before: Value::NULL,
                    ..declared.step(declared.create(true), because)
                });
                self.draft.wait(delete, create);
                Some(create)
            }
        }
    }

    fn fate(
        &self,
        existing: &Existing<'_>,
        (attributes, hob): (&Value, &Value),
        values: &MachineValues,
        block: &Block,
    ) -> Fate {
        let drift = self
            .drift
            .get(&existing.row.address)
            .map(|drift| &drift.kind);
        if drift == Some(&DriftKind::Gone) {
            return Fate::Create(vec![Because::Gone]);
        }
        if existing.provider != values.provider {
            let was = existing.provider.to_owned();
            return Fate::Replace(vec![Because::ProviderChanged { was }]);
        }
        let was = existing.row.wanted.value();
        let observed = existing.row.observed.value();
        let mut found = diff::differences(block, was, observed, attributes);
        let was_hob = was.get(HOB).unwrap_or(&Value::NULL);
        found.extend(diff::hob_differences(block, was_hob, hob));
        let mut because: Vec<Because> = found
            .iter()
            .map(|it| Because::Changed {
                path: it.path.clone(),
                change: it.change,
            })
            .collect();
        let mut costliest = found.iter().map(|it| it.change).max();
        if let Some(DriftKind::Changed(drifted)) = drift {
            let seen = |path: &Path| found.iter().any(|it| it.path.0.first() == path.0.first());
            for path in drifted.iter().map(|it| &it.path) {
                if seen(path) || is_ignored(&values.lifecycle.ignore_changes, path) {
                    continue;
                }
                let change = diff::cost_of(block, path);
                because.push(Because::Drifted {
                    path: path.clone(),
                    change,
                });
                costliest = costliest.max(Some(change));
            }
        }
        let hob_is_wanted = values.hob.enabled && existing.enrolled.is_none();
        if hob_is_wanted && self.options.unclaimed.contains(&existing.row.address) {
            because.push(Because::Unclaimed);
            costliest = costliest.max(Some(diff::afresh(block)));
        }
        match costliest {
            None => Fate::Keep,
            Some(Change::Replace) => Fate::Replace(because),
            Some(change) => Fate::Update(change, because),
        }
    }

    /// Returns the settings of a hob as rows keep them; most machines have the same.
    fn hob_settings(&mut self, hob: &HobValues) -> Value {
        match &self.last_hob {
            Some((last, value)) if last == hob => value.clone(),
            _ => {
                let value = hob.to_value();
                self.last_hob = Some((hob.clone(), value.clone()));
                value
            }
        }
    }

    fn refuse_destruction(&mut self, address: &Address, values: &MachineValues, fate: &Fate) {
        let what = match fate {
            Fate::Replace(_) => "replace it",
            Fate::Update(Change::Rebuild, _) => "rebuild it, which writes its disk anew",
            _ => return,
        };
        if values.lifecycle.prevent_destroy {
            self.refuse(address, what);
        }
    }

    /// Reports that `prevent_destroy` stands against the plan.
    pub(crate) fn refuse(&mut self, address: &Address, what: &str) {
        let detail =
            format!("{address} has lifecycle.prevent_destroy set, but the plan calls to {what}.");
        let hint = "Take back the change that causes this, or set prevent_destroy to false.";
        let error = Diagnostic::error("Machine cannot be destroyed", detail).hint(hint);
        let block = address
            .as_machine()
            .map(|it| BlockId::Machine(it.name.clone()));
        let span = block.and_then(|block| self.config.declared_at(&block));
        self.errors.push(match span {
            Some(span) => error.at(span),
            None => error.about(address.clone(), Path::default()),
        });
    }

    /// Plans the end of every machine that has a row and is not declared, or of all of them.
    pub(crate) fn machines_not_declared(&mut self) {
        let snapshot = self.snapshot;
        for row in snapshot.rows.values() {
            let Some(instance) = row.address.as_machine() else {
                continue;
            };
            let Some(existing) = Existing::of(row) else {
                continue;
            };
            if self.machines.contains_key(instance) || self.is_failed(instance) {
                continue;
            }
            let declared = self.config.machines.get(&instance.name);
            let gone = self.is_gone(&row.address);
            if !gone && declared.is_some_and(|it| it.lifecycle.prevent_destroy) {
                self.refuse(&row.address, "destroy it");
            }
            let provider = existing.provider.to_owned();
            let simulated = self.options.simulated.contains(&provider);
            let (wanted, observed) = (row.wanted.value(), row.observed.value());
            let schema = self.schemas.get(provider_name(&provider));
            let before = schema.map_or_else(
                || wanted.clone(),
                |it| {
                    let enrolled = existing.enrolled;
                    diff::planned_machine(&it.machine, wanted, Some(observed), enrolled)
                },
            );
            let mut because = vec![self.why_gone(declared.is_some())];
            because.extend(gone.then_some(Because::Gone));
            let node = self.draft.step(NewStep {
                address: row.address.clone(),
                action: Action::Delete {
                    provider,
                    replaced: false,
                    simulated,
                },
                because,
                depends_on: Vec::new(),
                before,
                planned: Value::NULL,
            });
            let plan = MachinePlan {
                simulated,
                incarnation: existing.incarnation,
                ends: Some(node),
                goes: true,
                ..MachinePlan::default()
            };
            self.machines.insert(instance.clone(), plan);
        }
    }

    pub(crate) fn why_gone(&self, block_declared: bool) -> Because {
        match (self.options.destroy, block_declared) {
            (true, _) => Because::Destroy,
            (false, true) => Because::KeyGone,
            (false, false) => Because::NotDeclared,
        }
    }

    fn is_gone(&self, address: &Address) -> bool {
        self.drift
            .get(address)
            .is_some_and(|drift| drift.kind == DriftKind::Gone)
    }

    pub(crate) fn is_failed(&self, machine: &Instance) -> bool {
        self.failed
            .contains(&BlockId::Machine(machine.name.clone()))
    }
}

/// Returns a provider's name without its alias.
pub(crate) fn provider_name(provider: &str) -> &str {
    provider.split_once('.').map_or(provider, |(name, _)| name)
}

/// Returns what a machine's row keeps as asked; where `ignore_changes` says so, what was asked
/// last stays. Apply gives what was planned as the last.
pub(crate) fn wanted_of(block: &Block, values: &MachineValues, last: Option<&Value>) -> Value {
    let attributes = attributes_of(values, last);
    let last = last.unwrap_or(&Value::NULL);
    let attributes = admits::admitting_as(block, &attributes, last);
    with_hob(&attributes, values.hob.to_value())
}

fn with_hob(attributes: &Value, hob: Value) -> Value {
    let mut wanted = attributes.as_entries().cloned().unwrap_or_default();
    wanted.insert(HOB.into(), hob);
    Value::object::<Arc<str>>(wanted).sensitive_if(attributes.sensitive)
}

/// Returns the provider's attributes, those that are ignored as they were asked last.
fn attributes_of(values: &MachineValues, last: Option<&Value>) -> Value {
    let (attributes, ignored) = (&values.attributes, &values.lifecycle.ignore_changes);
    let (Some(last), Some(entries)) = (last, attributes.as_entries()) else {
        return attributes.clone();
    };
    if matches!(ignored, IgnoreChanges::Attributes(names) if names.is_empty()) {
        return attributes.clone();
    }
    let kept = entries.iter().map(|(name, value)| {
        let ignore = is_ignored(ignored, &Path::attribute(name));
        let last = last
            .get(name)
            .filter(|last| ignore && !last.contains_unknown());
        (name.clone(), last.unwrap_or(value).clone())
    });
    Value::object::<Arc<str>>(kept).sensitive_if(attributes.sensitive)
}

fn is_ignored(ignored: &IgnoreChanges, path: &Path) -> bool {
    match (ignored, path.0.first()) {
        (IgnoreChanges::All, _) => true,
        (IgnoreChanges::Attributes(names), Some(Segment::Attribute(name))) => names.contains(name),
        _ => false,
    }
}

/// Returns whether a reason is about what the provider keeps, not about gobs' own settings.
fn is_for_provider(because: &Because) -> bool {
    match because {
        Because::Changed { path, .. } => {
            *path.0.first().unwrap_or(&Segment::Index(0)) != Segment::Attribute(HOB.into())
        }
        _ => true,
    }
}

fn migrates(because: &Because) -> bool {
    let (Because::Changed { change, .. } | Because::Drifted { change, .. }) = because else {
        return false;
    };
    *change == Change::Migrate
}

/// Returns the addresses that are needed, as rows keep them.
pub(crate) fn needed(needs: &[Need]) -> Vec<Address> {
    let mut addresses: Vec<Address> = needs.iter().map(|need| need.on.clone()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// The blocks whose evaluation failed.
pub(crate) type Failed = BTreeSet<BlockId>;
