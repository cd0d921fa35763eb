//! What becomes of each service: offered, offered again, withdrawn.

use std::collections::BTreeMap;

use gobs_model::{Address, Change, Diagnostic, Instance, Name, Path, Value};
use gobs_state::RowKind;

use crate::lang::{BindingValues, BlockId, ServiceValues};

use super::draft::{NewStep, Node};
use super::machines::MachinePlan;
use super::{Action, Because, Need, Planner};

/// What the bindings from a service must know of it.
#[derive(Debug)]
pub(crate) struct ServicePlan {
    /// The step that offers it, if one does.
    pub(crate) offer: Option<Node>,
    /// How long to wait until it answers, in seconds.
    pub(crate) ready_s: u64,
    /// Whether what bindings have at it is of no use any more: it is another server, or database.
    pub(crate) moved: bool,
}

/// Returns whether bindings from a service have something of it, a role, a user or an object that
/// is lent to them, that is not what the service is now.
fn moves(was: &Value, now: &Value) -> bool {
    let given = |spec: &Value| {
        ["postgres", "redis", "sturdyref"]
            .iter()
            .any(|it| spec.get(it).is_some())
    };
    (given(was) || given(now)) && !was.same(now)
}

impl Planner<'_> {
    /// Plans the services of a declared machine.
    pub(crate) fn services(
        &mut self,
        machine: &Instance,
        plan: &mut MachinePlan,
        services: &BTreeMap<Name, ServiceValues>,
        needs: &[Need],
    ) {
        if !plan.hob && !services.is_empty() {
            let warning = Diagnostic::warning(
                "Service without a hob",
                format!(
                    "machine.{machine} declares services, but has `hob {{ enabled = false }}`: \
                     nobody on it can offer them."
                ),
            );
            let block = BlockId::Machine(machine.name.clone());
            self.warnings.push(match self.config.declared_at(&block) {
                Some(span) => warning.at(span),
                None => warning,
            });
        }
        for (name, service) in services {
            self.service_of(machine, plan, (name, service), needs, None);
        }
    }

    /// Plans the service that an object is for the one binding from it, on the machine that gets
    /// it. Returns whether its name is free there; where there is no such machine, nothing is
    /// planned, and that is said of the binding.
    pub(super) fn object(&mut self, instance: &Instance, values: &BindingValues) -> bool {
        let (Some(object), Address::Service { machine, service }) = (&values.object, &values.from)
        else {
            return true;
        };
        self.objects.insert(values.from.clone());
        let Some(mut plan) = self.machines.remove(machine) else {
            return true;
        };
        let block = BlockId::Binding(instance.name.clone());
        let needs = self.needs(&block, &values.reads);
        let is_free = !plan.services.contains_key(service);
        if !is_free {
            let error = Diagnostic::error(
                "Two services of one name",
                format!(
                    "binding.{instance} is from an object, which is the service {:?} of \
                     machine.{machine} for it; but that machine has a service of this name.",
                    service.as_str()
                ),
            );
            let hint = "Give the binding another label, or the service another name.";
            self.report(&block, vec![error.hint(hint)]);
        } else {
            let of = Some(Address::Binding(instance.clone()));
            self.service_of(machine, &mut plan, (service, object), &needs, of);
        }
        self.machines.insert(machine.clone(), plan);
        is_free
    }

    fn service_of(
        &mut self,
        machine: &Instance,
        plan: &mut MachinePlan,
        (name, service): (&Name, &ServiceValues),
        needs: &[Need],
        of: Option<Address>,
    ) {
        let address = Address::Service {
            machine: machine.clone(),
            service: name.clone(),
        };
        let row = self.snapshot.rows.get(&address);
        let offer = match row.map(|row| (&row.kind, row.wanted.value())) {
            _ if !plan.hob => None,
            None => Some(Because::Declared),
            Some((RowKind::Service { incarnation, .. }, _)) if *incarnation != plan.incarnation => {
                Some(Because::NewIncarnation {
                    machine: Address::Machine(machine.clone()),
                })
            }
            Some((RowKind::Service { unsettled, .. }, was)) if was.same(&service.spec) => {
                unsettled.then_some(Because::OfferUnsettled)
            }
            Some(_) => Some(Because::Changed {
                path: Path::default(),
                change: Change::InPlace,
            }),
        };
        let before = row.map_or(Value::NULL, |row| row.wanted.value().clone());
        let moved = row.is_some() && moves(&before, &service.spec);
        let ready_s = service.ready.as_secs();
        let node = offer.map(|because| {
            let incarnation = plan.incarnation;
            let simulated = plan.simulated;
            let spec = service.spec.clone();
            let node = self.draft.step(NewStep {
                address,
                action: Action::Offer {
                    spec: spec.clone(),
                    incarnation,
                    ready_s,
                    of,
                    simulated,
                },
                because: vec![because],
                depends_on: vec![Address::Machine(machine.clone())],
                before,
                planned: spec,
            });
            plan.ready
                .iter()
                .for_each(|ready| self.draft.wait(*ready, node));
            // A machine that stays as it is does not wait for what its services need.
            if service.spec.contains_unknown() {
                self.wait_for(needs, node);
            }
            node
        });
        let service = ServicePlan {
            offer: node,
            ready_s,
            moved,
        };
        plan.services.insert(name.clone(), service);
    }

    /// Plans the end of every service that has a row and is not declared.
    pub(crate) fn services_not_declared(&mut self) {
        let snapshot = self.snapshot;
        for row in snapshot.rows.values() {
            let (Address::Service { machine, service }, RowKind::Service { incarnation, .. }) =
                (&row.address, &row.kind)
            else {
                continue;
            };
            let plan = self.machines.get(machine);
            let hob = plan.is_some_and(|it| it.hob);
            if self.is_failed(machine)
                || hob && plan.is_some_and(|it| it.services.contains_key(service))
            {
                continue;
            }
            let lives_on = plan.and_then(|it| it.lives_on) == Some(*incarnation);
            let simulated = plan.is_some_and(|it| it.simulated);
            let because = match plan.is_some_and(|it| it.stays) {
                true => self.why_gone(false),
                false => Because::MachineGone {
                    machine: Address::Machine(machine.clone()),
                },
            };
            let ends = plan.and_then(|it| it.ends);
            let node = self.draft.step(NewStep {
                address: row.address.clone(),
                action: Action::Withdraw {
                    settled_by_delete: !lives_on,
                    simulated,
                },
                because: vec![because],
                depends_on: Vec::new(),
                before: row.wanted.value().clone(),
                planned: Value::NULL,
            });
            ends.into_iter()
                .for_each(|ends| self.draft.wait(node, ends));
            self.withdrawn.insert(row.address.clone(), node);
        }
    }
}
