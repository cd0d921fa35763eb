//! What becomes of each binding: granted, granted again, moved, revoked.

use gobs_model::{Address, Change, Diagnostic, Instance, Kind, Known, Name, Path, Type, Value};
use gobs_state::{Phase, Row, RowKind};

use crate::lang::{BindingValues, BlockId, ServiceKind};

use super::binding_checks;
use super::draft::{NewStep, Node};
use super::machines::needed;
use super::services::ServicePlan;
use super::{Action, Because, Grant, Held, Planner};

/// A declared binding that is not as it was granted; its step is made once every machine's fate
/// is known.
#[derive(Debug)]
pub(crate) struct ToGrant {
    instance: Instance,
    /// With the service at the root as `from`.
    values: BindingValues,
    /// The binding that it is given on from, where it is.
    via: Option<Instance>,
    /// The incarnations of the machines at both ends.
    ends: [u64; 2],
    because: Vec<Because>,
}

impl ToGrant {
    pub(super) fn instance(&self) -> &Instance {
        &self.instance
    }

    /// Says why it is granted.
    pub(super) fn because(&mut self, because: Because) {
        self.because.push(because);
    }
}

/// A binding's row, taken apart.
struct Existing<'a> {
    row: &'a Row,
    generation: u64,
    from_incarnation: u64,
    to_incarnation: u64,
    phase: Phase,
    from: &'a Address,
    via: Option<&'a Address>,
    to: &'a Address,
    name: Name,
}

impl<'a> Existing<'a> {
    fn of(row: &'a Row) -> Option<Self> {
        let RowKind::Binding {
            generation,
            from_incarnation,
            to_incarnation,
            phase,
            ..
        } = row.kind
        else {
            return None;
        };
        let from = row.wanted.get("from")?.as_ref_address()?;
        let service = row.wanted.get("service").and_then(Value::as_ref_address);
        Some(Self {
            row,
            generation,
            from_incarnation,
            to_incarnation,
            phase,
            from: service.unwrap_or(from),
            via: service.is_some().then_some(from),
            to: row.wanted.get("to")?.as_ref_address()?,
            name: Name::new(row.wanted.get("as")?.as_str()?).ok()?,
        })
    }
}

impl Existing<'_> {
    fn asked(&self, field: &str) -> &Value {
        self.row.wanted.get(field).unwrap_or(&Value::NULL)
    }

    /// Returns whether the importer's programs find the binding where they found it: its listener
    /// stays, whoever it leads to, unless services of the kind that it leads to have none.
    fn serves(
        &self,
        values: &BindingValues,
        kind: Option<ServiceKind>,
        [_, to_incarnation]: [u64; 2],
    ) -> bool {
        let address = self.row.observed.get("address").and_then(Value::as_str);
        let was = address.and_then(|it| match it.split_once(':')?.0 {
            "hob" => Some(ServiceKind::Sturdyref),
            "file" => Some(ServiceKind::Secret),
            _ => None,
        });
        let unlistened =
            |it: &ServiceKind| matches!(it, ServiceKind::Sturdyref | ServiceKind::Secret);
        self.phase == Phase::Granted
            && was == kind.filter(unlistened)
            && *self.to == values.to
            && self.to_incarnation == to_incarnation
            && self.name == values.name
            && self.asked("expose").same(&values.expose)
    }
}

/// Returns why a binding must be granted again, or moved.
fn differences(
    existing: &Existing<'_>,
    values: &BindingValues,
    via: Option<&Address>,
    ends: [u64; 2],
) -> Vec<Because> {
    if existing.phase == Phase::RevokePending {
        return vec![Because::RevokePending];
    }
    if *existing.to != values.to {
        let was = existing.to.clone();
        return vec![Because::ToChanged { was }];
    }
    let mut because = Vec::new();
    let mut new = |was: u64, now: u64, machine: Option<&Instance>| {
        let machine = machine
            .filter(|_| was != now)
            .cloned()
            .map(Address::Machine);
        because.extend(machine.map(|machine| Because::NewIncarnation { machine }));
    };
    let (was, now) = (existing.from.as_machine(), values.from.as_machine());
    new(
        existing.from_incarnation,
        ends[0],
        now.filter(|_| was == now),
    );
    new(existing.to_incarnation, ends[1], values.to.as_machine());
    let differ = [
        ("as", existing.name != values.name),
        (
            "attenuate",
            !existing.asked("attenuate").same(&values.attenuate),
        ),
        ("expose", !existing.asked("expose").same(&values.expose)),
    ];
    for (field, _) in differ.into_iter().filter(|(_, differs)| *differs) {
        let (path, change) = (Path::attribute(field), Change::InPlace);
        because.push(Because::Changed { path, change });
    }
    if *existing.from != values.from || existing.via != via {
        let was = existing.via.unwrap_or(existing.from).clone();
        because.insert(0, Because::FromChanged { was });
    }
    because
}

/// Returns whether the hobs have not what the row says, so that nothing of it is relied on.
fn is_lost(because: &[Because]) -> bool {
    because.iter().any(|it| matches!(it, Because::Lost { .. }))
}

/// Returns whether a binding differs only in how programs see it, which the exporter has no part
/// in.
fn is_exposure(because: &[Because]) -> bool {
    let expose = Path::attribute("expose");
    matches!(because, [Because::Changed { path, .. }] if *path == expose)
}

impl Grant {
    /// Returns what the binding's row keeps as asked.
    pub fn wanted(&self) -> Value {
        let asked = [
            ("from", self.declared_from().clone().into()),
            ("to", self.to.clone().into()),
            ("as", self.name.as_str().into()),
            ("attenuate", self.attenuate.clone()),
            ("expose", self.expose.clone()),
        ];
        let service = self.via.as_ref().map(|_| self.from.clone().into());
        Value::object(asked.into_iter().chain(service.map(|it| ("service", it))))
    }

    /// Returns what the configuration names: the service, or the binding that it is given on from.
    pub fn declared_from(&self) -> &Address {
        self.via.as_ref().map_or(&self.from, |via| &via.binding)
    }
}

/// In what is kept of a grant: its service has become another one since. It is of no concern to
/// whoever refers to the binding.
const STALE: &str = "stale";

/// Returns the row of a binding whose service has become another one: it is granted again, by this
/// run or a later one.
pub fn made_stale(row: &Row) -> Row {
    let mut observed = row.observed.value().as_entries().cloned();
    let observed = observed.get_or_insert_default();
    observed.insert(STALE.into(), true.into());
    let mut row = row.clone();
    // What is known stays known with one more field.
    row.observed = Known::try_from(Value::object(observed.clone())).unwrap_or(row.observed);
    row
}

/// Returns what a reference to a binding shows, as its row has it.
pub fn binding_object(row: &Row) -> Value {
    object(
        row.wanted.get("as").cloned().unwrap_or(Value::NULL),
        Some(row),
    )
}

fn object(name: Value, row: Option<&Row>) -> Value {
    let said = |field: &str| {
        let unknown = || Value::unknown(Type::String);
        row.map_or_else(unknown, |row| {
            row.observed.get(field).cloned().unwrap_or(Value::NULL)
        })
    };
    let computed = ["id", "address", "directory"].map(|field| (field, said(field)));
    Value::object(computed.into_iter().chain([("as", name)]))
}

impl Planner<'_> {
    /// Evaluates one instance of a declared binding.
    pub(crate) fn binding(&mut self, instance: &Instance) {
        let mut values = match self.evaluator.binding(instance) {
            Ok(values) => values,
            Err(errors) => return self.fail(BlockId::Binding(instance.name.clone()), errors),
        };
        self.check_name(instance, &values);
        self.check_exposed(instance, &values);
        self.check_units(instance, &values);
        self.bindings.insert(instance.clone());
        let Some(via) = self.trace(instance, &mut values) else {
            return;
        };
        if !self.object(instance, &values) {
            return;
        }
        let Some(ends) = self.check_ends(instance, &values) else {
            return;
        };
        let from = binding_checks::machine_of(&values.from).unwrap_or_else(|| values.from.clone());
        // What a machine reaches by itself needs no way from one to another.
        if from != values.to {
            self.check_edge(instance, &from, &values.to);
            let exporter = values.from.as_machine();
            if let Some(derived) = exporter.and_then(|it| self.derived.get_mut(it)) {
                derived.importers.insert(values.to.clone());
            }
        }
        let address = Address::Binding(instance.clone());
        let snapshot = self.snapshot;
        let existing = match snapshot.rows.get(&address) {
            None => None,
            Some(row) => match self.existing(row) {
                Some(existing) => Some(existing),
                None => return,
            },
        };
        let because = match &existing {
            None => vec![Because::Declared],
            Some(existing) => {
                let parent = via.clone().map(Address::Binding);
                let mut because = differences(existing, &values, parent.as_ref(), ends);
                let moved = self.service(&values.from).is_some_and(|it| it.moved)
                    || existing.row.observed.get(STALE).is_some();
                if moved && (because.is_empty() || is_exposure(&because)) {
                    let service = values.from.clone();
                    because.push(Because::ServiceChanged { service });
                }
                let holding = self.options.holdings.get(&address);
                let lost_at = holding.and_then(|it| it.lost_at.clone());
                because.extend(lost_at.map(|machine| Because::Lost { machine }));
                because
            }
        };
        self.check_expiry(instance, because.is_empty());
        if self.is_referenced(&BlockId::Binding(instance.name.clone())) {
            let kind = self.kind_of(&values.from);
            let kept = existing.filter(|it| it.serves(&values, kind, ends) && !is_lost(&because));
            let name = Value::from(values.name.as_str());
            let object = object(name, kept.map(|it| it.row));
            self.evaluator.set_object(address, object);
        }
        let binding = ToGrant {
            instance: instance.clone(),
            values,
            via,
            ends,
            because,
        };
        match (binding.because.is_empty(), &binding.via) {
            (false, _) => self.to_grant.push(binding),
            (true, Some(_)) => self.given_on.push(binding),
            (true, None) => {}
        }
    }

    /// Plans the declared bindings, then the end of those that are not declared.
    pub(crate) fn bindings(&mut self) {
        self.follow_parents();
        let mut to_grant = std::mem::take(&mut self.to_grant);
        // What is given on comes after what it is made from.
        to_grant.sort_by_key(|it| self.depth(&it.instance));
        for binding in to_grant {
            self.grant(&binding);
        }
        let snapshot = self.snapshot;
        for row in snapshot.rows.values() {
            let Address::Binding(instance) = &row.address else {
                continue;
            };
            let block = BlockId::Binding(instance.name.clone());
            if self.bindings.contains(instance) || self.failed.contains(&block) {
                continue;
            }
            let Some(existing) = self.existing(row) else {
                continue;
            };
            let because = match (self.options.destroy, existing.phase) {
                (true, _) => Because::Destroy,
                (false, Phase::RevokePending) => Because::RevokePending,
                (false, Phase::Granted) if self.config.bindings.contains_key(&instance.name) => {
                    Because::KeyGone
                }
                (false, Phase::Granted) => Because::NotDeclared,
            };
            self.unbind(&existing, vec![because]);
        }
        self.end_children_first();
        self.hand_names_over();
    }

    /// Adds the step that grants a binding, anew or again.
    fn grant(&mut self, binding: &ToGrant) {
        let ToGrant {
            instance,
            values,
            via,
            ends,
            because,
        } = binding;
        let snapshot = self.snapshot;
        let row = snapshot.rows.get(&Address::Binding(instance.clone()));
        let existing = row.and_then(|row| Existing::of(row));
        let existing = existing.as_ref();
        // Another machine, another name there, or a revocation that is not over: first the end,
        // then the beginning.
        let ended = existing.filter(|it| {
            it.phase != Phase::Granted || *it.to != values.to || it.name != values.name
        });
        let unbind = ended.map(|it| self.unbind(it, because.clone()));
        let [from_incarnation, to_incarnation] = *ends;
        let holding = self
            .options
            .holdings
            .get(&Address::Binding(instance.clone()));
        let heard_of = holding.map(|it| it.generation);
        let via = via.as_ref();
        // The grant stays where only programs there see it otherwise.
        let stays = existing.filter(|_| !self.is_granted_again(binding));
        let grant = Grant {
            generation: match stays {
                Some(existing) => existing.generation,
                None => self.fresh(existing.map(|it| it.generation).max(heard_of)),
            },
            from: values.from.clone(),
            via: via.map(|parent| self.via(parent)),
            to: values.to.clone(),
            name: values.name.clone(),
            attenuate: values.attenuate.clone(),
            expose: values.expose.clone(),
            from_incarnation,
            to_incarnation,
            ready_s: self.service(&values.from).map_or(0, |it| it.ready_s),
            drain_s: values.drain.as_secs(),
        };
        self.generations.insert(instance.clone(), grant.generation);
        let needs = self.needs(&BlockId::Binding(instance.name.clone()), &values.reads);
        let mut depends_on = vec![grant.from.clone(), grant.to.clone()];
        depends_on.extend(grant.via.iter().map(|via| via.binding.clone()));
        let needed = needed(&needs).into_iter();
        depends_on.extend(needed.filter(|it| *it != grant.to && it != grant.declared_from()));
        let kind = self.kind_of(&values.from);
        let listener = existing.filter(|it| it.serves(values, kind, *ends) && !is_lost(because));
        let shown = object(grant.name.as_str().into(), listener.map(|it| it.row));
        let planned = merged(&grant.wanted(), &shown);
        let simulated = self.is_simulated(&grant.to);
        // What an Unbind before this step has revoked is no longer held.
        let held = existing.filter(|_| unbind.is_none());
        let moved = held.filter(|it| *it.from != grant.from);
        let action = match (moved, held.map(|it| (it, self.held(it)))) {
            _ if stays.is_some() => Action::Expose { grant, simulated },
            (Some(_), Some((_, revokes))) => Action::Move {
                grant,
                revokes,
                simulated,
            },
            (_, held) => Action::Bind {
                // Whoever has ended need not be told: the exporter's end is the revocation, and
                // an importer that goes on just switches.
                revokes: held
                    .map(|(_, held)| held)
                    .filter(|held| !held.settled_by_delete),
                grant,
                simulated,
            },
        };
        let node = self.draft.step(NewStep {
            address: Address::Binding(instance.clone()),
            action,
            because: because.clone(),
            depends_on,
            before: existing.map_or(Value::NULL, |it| {
                merged(it.row.wanted.value(), &binding_object(it.row))
            }),
            planned,
        });
        self.wait_for(&needs, node);
        for end in [&values.from, &values.to] {
            let machine = end.as_machine().and_then(|it| self.machines.get(it));
            for ready in machine.into_iter().flat_map(|it| &it.ready) {
                self.draft.wait(*ready, node);
            }
        }
        let offer = self.service(&values.from).and_then(|it| it.offer);
        let parent = via.and_then(|parent| {
            let found = self.bind_steps.iter().find(|(it, _)| it == parent);
            found.map(|(_, node)| *node)
        });
        for first in offer.into_iter().chain(unbind).chain(parent) {
            self.draft.wait(first, node);
        }
        if let Some(moved) = moved {
            self.leave(moved, node);
        }
        self.bind_steps.push((instance.clone(), node));
        let exporter = values.from.as_machine();
        if let Some(derived) = exporter.and_then(|it| self.derived.get_mut(it)) {
            derived.binds.push(node);
        }
        if let Some(left) = moved.and_then(|it| it.from.as_machine())
            && let Some(derived) = self.derived.get_mut(left)
        {
            derived.unbinds.push(node);
        }
        let name = (values.to.clone(), values.name.clone());
        self.taken.push((name, instance.clone(), node));
    }

    /// Returns whether a binding that is not as it was granted gets another grant; one that is made
    /// from a grant that ends does, whatever else is the matter with it.
    pub(super) fn is_granted_again(&self, binding: &ToGrant) -> bool {
        let Some(parent) = &binding.via else {
            return !is_exposure(&binding.because);
        };
        let mut waiting = self.to_grant.iter();
        let waiting = waiting.find(|it| it.instance == *parent);
        !is_exposure(&binding.because)
            || waiting.is_some_and(|parent| self.is_granted_again(parent))
            || self.parent_of(&binding.instance) != Some(self.via(parent).generation)
    }

    /// Lets a name on a machine be given up by one binding before another one takes it.
    fn hand_names_over(&mut self) {
        for (name, taker, node) in &self.taken {
            match self.released.get(name) {
                Some((giver, released)) if giver != taker => self.draft.wait(*released, *node),
                _ => {}
            }
        }
    }

    /// Lets what the binding led to until now stay until the binding leads elsewhere.
    fn leave(&mut self, existing: &Existing<'_>, node: Node) {
        let withdrawn = self.withdrawn.get(existing.from).copied();
        let machine = existing
            .from
            .as_machine()
            .and_then(|it| self.machines.get(it));
        let ends = machine.filter(|it| it.goes).and_then(|it| it.ends);
        for then in withdrawn.into_iter().chain(ends) {
            self.draft.had_better_wait(node, then);
        }
    }

    fn unbind(&mut self, existing: &Existing<'_>, because: Vec<Because>) -> Node {
        let held = self.held(existing);
        let simulated = self.is_simulated(existing.to) || self.is_simulated(existing.from);
        let node = self.draft.step(NewStep {
            address: existing.row.address.clone(),
            action: Action::Unbind { held, simulated },
            because,
            depends_on: Vec::new(),
            before: merged(existing.row.wanted.value(), &binding_object(existing.row)),
            planned: Value::NULL,
        });
        let exporter = existing.from.as_machine();
        if let Some(derived) = exporter.and_then(|it| self.derived.get_mut(it)) {
            derived.unbinds.push(node);
        }
        if let Address::Binding(instance) = &existing.row.address {
            self.unbinds.push((instance.clone(), node));
            let name = (existing.to.clone(), existing.name.clone());
            self.released.insert(name, (instance.clone(), node));
        }
        // Whoever is told is still there.
        let machines = [existing.from, existing.to]
            .into_iter()
            .filter_map(Address::as_machine);
        let ends = machines
            .filter_map(|it| self.machines.get(it))
            .filter_map(|it| it.ends);
        for then in ends
            .chain(self.withdrawn.get(existing.from).copied())
            .collect::<Vec<_>>()
        {
            self.draft.wait(node, then);
        }
        node
    }

    fn held(&self, existing: &Existing<'_>) -> Held {
        let gone = |address: &Address, incarnation: u64| {
            let machine = address.as_machine().and_then(|it| self.machines.get(it));
            machine.and_then(|it| it.lives_on) != Some(incarnation)
        };
        Held {
            generation: existing.generation,
            from: existing.from.clone(),
            to: existing.to.clone(),
            name: existing.name.clone(),
            settled_by_delete: gone(existing.from, existing.from_incarnation),
            importer_gone: gone(existing.to, existing.to_incarnation),
        }
    }

    fn existing<'b>(&mut self, row: &'b Row) -> Option<Existing<'b>> {
        let existing = Existing::of(row);
        if existing.is_none() {
            let error = Diagnostic::error(
                "Binding in the state cannot be read",
                format!(
                    "The state's row of {} does not say what it binds.",
                    row.address
                ),
            );
            let hint = "This is a bug in gobs, or the state was edited; bring back a backup from \
                        `.gobs/backups`.";
            self.errors
                .push(error.about(row.address.clone(), Path::default()).hint(hint));
        }
        existing
    }

    pub(super) fn is_simulated(&self, address: &Address) -> bool {
        let machine = address.as_machine().and_then(|it| self.machines.get(it));
        machine.is_some_and(|it| it.simulated)
    }

    /// Returns of which kind a service is.
    pub(super) fn kind_of(&self, service: &Address) -> Option<ServiceKind> {
        match self.objects.contains(service) {
            true => Some(ServiceKind::Sturdyref),
            false => self.config.kind_of(service),
        }
    }

    pub(super) fn service(&self, service: &Address) -> Option<&ServicePlan> {
        let Address::Service { machine, service } = service else {
            return None;
        };
        self.machines.get(machine)?.services.get(service)
    }
}

fn merged(wanted: &Value, object: &Value) -> Value {
    let entries = [wanted, object]
        .into_iter()
        .filter_map(Value::as_entries)
        .flatten();
    Kind::Object(std::sync::Arc::new(
        entries
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    ))
    .into()
}
