//! What is wrong with a binding that its expressions do not tell.

use gobs_model::{Address, Diagnostic, Instance, Name, Value};

use crate::lang::{BindingValues, BlockId};

use super::Planner;

/// The longest path that a unix socket can be bound to, in bytes: `sockaddr_un` has 108 with the
/// final zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Planner<'_> {
    /// Returns the incarnations of the machines at both ends, or reports why there is no binding.
    pub(super) fn check_ends(
        &mut self,
        instance: &Instance,
        values: &BindingValues,
    ) -> Option<[u64; 2]> {
        let mut errors = Vec::new();
        let mut incarnations = [0; 2];
        let from = machine_of(&values.from).unwrap_or_else(|| values.from.clone());
        let is_own = from == values.to;
        for (at, end) in [&from, &values.to].into_iter().enumerate() {
            if is_own && at == 1 {
                // Nothing is said twice.
                incarnations[1] = incarnations[0];
                break;
            }
            let machine = end.as_machine();
            if machine.is_some_and(|it| self.failed.contains(&BlockId::Machine(it.name.clone()))) {
                return None;
            }
            let Some(plan) = machine
                .and_then(|it| self.machines.get(it))
                .filter(|it| it.stays)
            else {
                errors.push(Diagnostic::error(
                    "Binding to nothing",
                    format!("binding.{instance} needs {end}, which is not declared."),
                ));
                continue;
            };
            incarnations[at] = plan.incarnation;
            if !plan.hob {
                let error = Diagnostic::error(
                    "Binding without a hob",
                    format!(
                        "binding.{instance} needs the hob of {end}, but that machine has \
                         `hob {{ enabled = false }}`: nobody on it can give or hold a capability."
                    ),
                );
                errors.push(error.hint("Enable the hob, or remove the binding."));
            }
        }
        if is_own && !self.objects.contains(&values.from) {
            let error = Diagnostic::error(
                "Binding of a machine to itself",
                format!(
                    "binding.{instance} gives {} to the machine that offers it.",
                    values.from
                ),
            );
            errors.push(error.hint("Programs on that machine reach the service without it."));
        }
        let missing = from
            .as_machine()
            .and_then(|it| self.machines.get(it))
            .filter(|plan| {
                let Address::Service { service, .. } = &values.from else {
                    return true;
                };
                plan.stays && !plan.services.contains_key(service)
            });
        if let Some(plan) = missing {
            let names: Vec<&str> = plan.services.keys().map(Name::as_str).collect();
            let declares = match names.as_slice() {
                [] => "declares no services".to_owned(),
                names => format!("declares {}", names.join(", ")),
            };
            errors.push(Diagnostic::error(
                "Service is not declared",
                format!(
                    "binding.{instance} is from {}, but {from} {declares}.",
                    values.from
                ),
            ));
        }
        if self.is_simulated(&from) != self.is_simulated(&values.to) && errors.is_empty() {
            errors.push(Diagnostic::error(
                "Binding between a simulated and a real machine",
                format!(
                    "binding.{instance} is from {} to {}, of which only one is simulated: a \
                     simulated machine is a row only, and can neither give nor hold a capability.",
                    values.from, values.to
                ),
            ));
        }
        for path in sockets(&values.expose).filter(|it| it.len() > SOCKET_PATH_BYTES_MAX) {
            let error = Diagnostic::error(
                "Socket path is too long",
                format!(
                    "binding.{instance} is to listen on {path}, which has {} bytes; a unix \
                     socket's path can have {SOCKET_PATH_BYTES_MAX}.",
                    path.len()
                ),
            );
            errors.push(error.hint("Choose a shorter directory, such as one below /run."));
        }
        if errors.is_empty() {
            return Some(incarnations);
        }
        self.report(&BlockId::Binding(instance.name.clone()), errors);
        None
    }

    /// Reports a binding that would be known by another one's name on the same machine.
    pub(super) fn check_name(&mut self, instance: &Instance, values: &BindingValues) {
        let name = (values.to.clone(), values.name.clone());
        let Some(other) = self.names.insert(name, instance.clone()) else {
            return;
        };
        let error = Diagnostic::error(
            "Two bindings of one name",
            format!(
                "binding.{other} and binding.{instance} are both known as {:?} on {}.",
                values.name.as_str(),
                values.to
            ),
        );
        let error = error.hint("Give one of them another name with `as`.");
        self.report(&BlockId::Binding(instance.name.clone()), vec![error]);
    }

    /// Reports a binding that would listen where another one on the same machine does, or set a
    /// variable that another one sets.
    pub(super) fn check_exposed(&mut self, instance: &Instance, values: &BindingValues) {
        for expose in values.expose.as_elements().unwrap_or_default() {
            // Where, or what, is taken by one binding only.
            let place = ["unix", "tcp"].into_iter().find_map(|kind| {
                let text = expose.get(kind)?.as_str()?;
                Some(format!("{kind} = {text:?}"))
            });
            let variables = expose.get("env").and_then(Value::as_entries);
            let variables = variables.into_iter().flatten().map(|(name, _)| name);
            let taken = place.into_iter().map(|place| (place, true));
            for (what, listens) in taken.chain(variables.map(|name| (name.to_string(), false))) {
                let key = (values.to.clone(), what.clone());
                let Some(other) = self.exposed.insert(key, instance.clone()) else {
                    continue;
                };
                let (on, verb) = (&values.to, if listens { "say" } else { "set" });
                let who = match other == *instance {
                    true => format!("binding.{instance} {verb}s twice"),
                    false => format!("binding.{other} and binding.{instance} both {verb}"),
                };
                let (summary, detail) = match listens {
                    true => (
                        "Two bindings at one address",
                        format!("{who} `{what}` on {on}; only one can listen there."),
                    ),
                    false => (
                        "Two bindings set one variable",
                        format!("{who} the variable {what} on {on}."),
                    ),
                };
                let error = Diagnostic::error(summary, detail);
                self.report(&BlockId::Binding(instance.name.clone()), vec![error]);
            }
        }
    }
}

impl Planner<'_> {
    /// Reports a unit that the hob of the receiving machine may not restart.
    pub(super) fn check_units(&mut self, instance: &Instance, values: &BindingValues) {
        let to = values.to.as_machine().and_then(|it| self.machines.get(it));
        if !to.is_some_and(|it| it.confined) {
            return;
        }
        let exposes = values.expose.as_elements().unwrap_or_default();
        for (at, expose) in exposes.iter().enumerate() {
            let Some(unit) = expose.get("unit") else {
                continue;
            };
            let unit = unit.as_str().unwrap_or("a unit");
            let to = &values.to;
            let detail = format!(
                "binding.{instance} is to be given to {unit} on {to}, whose hob runs as the user \
                 gobs: units are restarted by root alone."
            );
            let hint = format!(
                "Set user = \"root\" in the hob block of {to}; or take unit out, and let the \
                 program read the binding's files by itself."
            );
            let error = Diagnostic::error("Hob may not restart units", detail).hint(hint);
            let error = match self.config.unit_at(&instance.name, at) {
                Some(place) => error.at(place),
                None => error,
            };
            self.report(&BlockId::Binding(instance.name.clone()), vec![error]);
        }
    }
}

pub(super) fn machine_of(address: &Address) -> Option<Address> {
    address.as_machine().cloned().map(Address::Machine)
}

fn sockets(expose: &Value) -> impl Iterator<Item = &str> {
    let elements = expose.as_elements().unwrap_or_default().iter();
    elements.filter_map(|it| it.get("unix").and_then(Value::as_str))
}
