//! What an apply does to the state, without any effect: a pure function.

use std::collections::BTreeSet;
use std::sync::Arc;

use gobs::lang::{Config, Evaluator, Inputs, Schemas};
use gobs::plan::machine_object;
use gobs::plan::{Action, Drift, Grant, HOB, Options, Plan, Step, StepId, binding_object};
use gobs_model::{Address, Block, Change, Kind, Known, ProviderSchema, Role, Value};
use gobs_state::{Phase, Row, RowKind, Snapshot};

/// All that a plan depends on, beside the configuration.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) inputs: Inputs,
    pub(crate) schemas: Schemas,
    pub(crate) snapshot: Snapshot,
    pub(crate) options: Options,
    pub(crate) drift: Vec<Drift>,
}

/// Which of the steps that could start is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pick {
    /// The first: the order of the plan's list.
    First,
    /// The last: as unlike the list as the edges allow.
    Last,
}

/// Returns the state after at most so many steps of a plan.
///
/// Expressions are evaluated again before each step, as apply does, with what is really there:
/// a step that starts too early meets an unknown here, and a value that was known in the plan
/// must be the same.
pub(crate) fn apply(
    world: &World,
    config: &Config,
    plan: &Plan,
    pick: Pick,
    steps_max: usize,
) -> Snapshot {
    let evaluator = Evaluator::new(config, &world.inputs, &world.schemas).expect("as planned");
    let mut apply = Apply {
        world,
        evaluator,
        snapshot: world.snapshot.clone(),
    };
    world.snapshot.rows.values().for_each(|row| apply.show(row));
    // What a step has yet to make known is unknown until then.
    for step in plan.steps.iter().filter(|step| !step.planned.is_null()) {
        apply
            .evaluator
            .set_object(step.address.clone(), step.planned.clone());
    }
    let mut waiting: BTreeSet<StepId> = plan.steps.iter().map(|step| step.id).collect();
    for _ in 0..steps_max.min(plan.steps.len()) {
        let mut ready = waiting.iter().filter(|id| {
            let step = plan.step(**id).expect("a step");
            step.after.iter().all(|before| !waiting.contains(before))
        });
        let next = match pick {
            Pick::First => ready.next(),
            Pick::Last => ready.next_back(),
        };
        let next = *next.expect("a step can start");
        waiting.remove(&next);
        apply.step(plan.step(next).expect("a step"));
    }
    if waiting.is_empty() {
        for output in &plan.outputs {
            match &output.after {
                None => apply.snapshot.outputs.remove(&output.name),
                Some(planned) => {
                    let real = apply.evaluator.output(&output.name).expect("as planned");
                    agree(planned, &real);
                    apply
                        .snapshot
                        .outputs
                        .insert(output.name.clone(), known(real))
                }
            };
        }
    }
    apply.snapshot
}

struct Apply<'a> {
    world: &'a World,
    evaluator: Evaluator<'a>,
    snapshot: Snapshot,
}

impl Apply<'_> {
    fn step(&mut self, step: &Step) {
        match &step.action {
            Action::Create {
                provider,
                wanted,
                incarnation,
                ..
            } => {
                let asked = self.asked(step, wanted);
                let kind = RowKind::Machine {
                    provider: provider.clone(),
                    id: format!("{}-{incarnation}", step.address),
                    token: format!("token-{}-{incarnation}", step.address),
                    incarnation: *incarnation,
                    enrolled: None,
                };
                let observed = observe(self.schema(provider), &step.address, *incarnation, &asked);
                self.put(step, asked, observed, kind);
            }
            // What is taken over has its row already, as it was seen.
            Action::Import { .. } => {
                assert!(self.snapshot.rows.contains_key(&step.address), "no row");
            }
            Action::Update {
                provider,
                wanted,
                change,
                incarnation,
                ..
            } => {
                let asked = self.asked(step, wanted);
                let row = self.snapshot.rows[&step.address].clone();
                let RowKind::Machine {
                    id,
                    token,
                    enrolled,
                    incarnation: was,
                    ..
                } = &row.kind
                else {
                    panic!("{} is no machine", step.address)
                };
                let rebuilt = *change == Change::Rebuild;
                assert_eq!(rebuilt, was != incarnation, "{}", step.address);
                let kind = RowKind::Machine {
                    provider: provider.clone(),
                    id: id.clone(),
                    token: token.clone(),
                    incarnation: *incarnation,
                    enrolled: enrolled.clone().filter(|_| !rebuilt),
                };
                let fresh = observe(self.schema(provider), &step.address, *incarnation, &asked);
                let kept = row
                    .observed
                    .value()
                    .as_entries()
                    .cloned()
                    .unwrap_or_default();
                let asked_for = fresh.value().as_entries().cloned().unwrap_or_default();
                let asked_for = asked_for
                    .into_iter()
                    .filter(|(name, _)| asked.get(name).is_some_and(|value| !value.is_null()));
                let observed = Value::object(kept.into_iter().chain(asked_for));
                self.put(step, asked, known(observed), kind);
            }
            Action::Admit { whom, .. } => {
                let rows = &self.snapshot.rows;
                let admits = whom.resolve(|it| Some(rows.get(it)?.observed.value()));
                let mut row = Row::clone(&self.snapshot.rows[&step.address]);
                row.wanted = known(whom.put_into(row.wanted.value(), admits));
                self.write(row);
            }
            Action::Enroll { incarnation, .. } => {
                let mut row = Row::clone(&self.snapshot.rows[&step.address]);
                let RowKind::Machine {
                    incarnation: is,
                    enrolled,
                    ..
                } = &mut row.kind
                else {
                    panic!("{} is no machine", step.address)
                };
                assert_eq!(is, incarnation, "{}", step.address);
                *enrolled = Some(format!("hob-{}-{incarnation}", step.address));
                self.write(row);
            }
            Action::Offer {
                spec,
                incarnation,
                of,
                ..
            } => {
                let Address::Service { machine, service } = &step.address else {
                    panic!("{} is no service", step.address)
                };
                let real = match of {
                    Some(Address::Binding(binding)) => {
                        let values = self.evaluator.binding(binding).expect("as planned");
                        values.object.expect("an object").spec
                    }
                    _ => {
                        let values = self.evaluator.machine(machine).expect("as planned");
                        values.services[service].spec.clone()
                    }
                };
                agree(spec, &real);
                let kind = RowKind::Service {
                    incarnation: *incarnation,
                    unsettled: false,
                };
                self.put(step, real, Known::empty(), kind);
            }
            Action::Bind { grant, .. }
            | Action::Move { grant, .. }
            | Action::Expose { grant, .. } => self.grant(step, grant),
            Action::Delete { .. } | Action::Withdraw { .. } | Action::Unbind { .. } => {
                self.snapshot.serial += 1;
                self.snapshot
                    .rows
                    .remove(&step.address)
                    .expect("what is taken away is there");
            }
        }
    }

    fn grant(&mut self, step: &Step, grant: &Grant) {
        let Address::Binding(instance) = &step.address else {
            panic!("{} is no binding", step.address)
        };
        let values = self.evaluator.binding(instance).expect("as planned");
        agree(&grant.attenuate, &values.attenuate);
        agree(&grant.expose, &values.expose);
        let mut real = grant.clone();
        (real.attenuate, real.expose) = (values.attenuate, values.expose);
        let from = self.snapshot.rows.get(&grant.from);
        let is_object = from.is_some_and(|row| row.wanted.get("sturdyref").is_some());
        let address = match is_object {
            true => format!("hob:{}", grant.name),
            false => format!("unix:/run/{}/{}", grant.to, grant.name),
        };
        let observed = Value::object([
            ("id", Value::from(step.address.to_string())),
            ("address", address.into()),
            ("directory", format!("/run/{}", grant.to).into()),
        ]);
        let kind = RowKind::Binding {
            generation: grant.generation,
            from_incarnation: grant.from_incarnation,
            to_incarnation: grant.to_incarnation,
            parent: grant.via.as_ref().map(|via| via.generation),
            phase: Phase::Granted,
        };
        self.put(step, real.wanted(), known(observed), kind);
    }

    /// Returns what is asked now that everything before is there; what was known is the same.
    fn asked(&self, step: &Step, planned: &Value) -> Value {
        let Address::Machine(instance) = &step.address else {
            panic!("{} is no machine", step.address)
        };
        let values = self.evaluator.machine(instance).expect("as planned");
        let mut real = values.attributes.as_entries().cloned().expect("an object");
        real.insert(HOB.into(), values.hob.to_value());
        // `ignore_changes` is the plan's, and so is whom a firewall lets in: where it knows a
        // value, that is asked.
        let entries = real.into_iter().map(|(name, value)| {
            let planned = planned.get(&name).expect("planned");
            let ignored = !planned.contains_unknown()
                && (&*name == "firewall"
                    || !values.lifecycle.ignore_changes.eq(&Default::default()));
            (name, if ignored { planned.clone() } else { value })
        });
        let real = Value::object(entries.collect::<Vec<_>>());
        agree(planned, &real);
        real
    }

    fn schema(&self, provider: &str) -> &ProviderSchema {
        &self.world.schemas[provider.split('.').next().unwrap_or_default()]
    }

    fn put(&mut self, step: &Step, wanted: Value, observed: Known, kind: RowKind) {
        self.write(Row {
            address: step.address.clone(),
            wanted: known(wanted),
            observed,
            depends_on: step.depends_on.clone(),
            version: 0,
            kind,
        });
    }

    fn write(&mut self, mut row: Row) {
        self.snapshot.serial += 1;
        row.version = self.snapshot.serial;
        self.show(&row);
        self.snapshot
            .rows
            .insert(row.address.clone(), Arc::new(row));
    }

    fn show(&mut self, row: &Row) {
        let object = match &row.kind {
            RowKind::Machine { provider, .. } => machine_object(self.schema(provider), row),
            RowKind::Binding { .. } => binding_object(row),
            RowKind::Service { .. } => return,
        };
        self.evaluator.set_object(row.address.clone(), object);
    }
}

/// What a provider says: what was asked, in its own spelling, and what it chose.
fn observe(schema: &ProviderSchema, address: &Address, incarnation: u64, asked: &Value) -> Known {
    known(observe_block(
        &schema.machine,
        &format!("{address}-{incarnation}"),
        asked,
    ))
}

fn observe_block(block: &Block, suffix: &str, asked: &Value) -> Value {
    let attributes = block.attributes.iter().map(|(name, attribute)| {
        let value = asked.get(name).filter(|value| !value.is_null()).cloned();
        let chosen = || match attribute.role {
            Role::Computed | Role::OptionalComputed => format!("{name}-{suffix}").into(),
            Role::Required | Role::Optional | Role::Admits => Value::NULL,
        };
        (name.as_str(), value.unwrap_or_else(chosen))
    });
    let blocks = block.blocks.iter().filter_map(|(name, nested)| {
        let one = |suffix: &str, asked: &Value| observe_block(&nested.block, suffix, asked);
        let value = match &asked.get(name)?.kind {
            Kind::List(elements) => Value::list(elements.iter().map(|it| one(suffix, it))),
            Kind::Map(entries) => Value::map(
                entries
                    .iter()
                    .map(|(label, it)| (label.clone(), one(&format!("{label}-{suffix}"), it))),
            ),
            Kind::Object(_) => one(suffix, asked.get(name)?),
            _ => Value::NULL,
        };
        Some((name.as_str(), value))
    });
    Value::object(attributes.chain(blocks))
}

fn known(value: Value) -> Known {
    Known::try_from(value).unwrap_or_else(|error| panic!("a step starts too early: {error}"))
}

/// Checks that what was known in the plan is what is there now.
fn agree(planned: &Value, real: &Value) {
    if planned.is_unknown() {
        return;
    }
    match (planned.as_entries(), real.as_entries()) {
        (Some(planned), Some(real)) => {
            assert!(
                planned.keys().eq(real.keys()),
                "{planned:?} became {real:?}"
            );
            planned
                .iter()
                .for_each(|(name, value)| agree(value, &real[name]));
        }
        _ if planned.contains_unknown() => {}
        _ => assert!(planned.same(real), "{planned:?} became {real:?}"),
    }
}
