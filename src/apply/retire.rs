//! What a machine that ends has left at servers that may outlive it.

use std::sync::Arc;

use gobs_model::{Address, Instance, Value};
use gobs_state::{Row, RowChange, RowKind};
use hob::protocol::MINTING;

use crate::boss::{Boss, UnbindRequest, Unbound};
use crate::plan::Held;

use super::Walk;
use super::act::pending;

/// A hob that has made roles or users for its grants, and ends.
pub(super) struct Retirement {
    boss: Boss,
    machine: (Instance, u64),
    /// What it has granted.
    bindings: Vec<Arc<Row>>,
}

impl Retirement {
    /// Has the hob take back all that it made, as far as it can be reached: a server that ends
    /// with the machine needs no more, and one that is elsewhere cannot be cleared without it.
    pub(super) async fn run(&self) {
        let (machine, incarnation) = &self.machine;
        if let Err(error) = self.boss.retire(&self.machine).await {
            tracing::warn!(%machine, incarnation, %error,
                "roles or users that its grants had may be left at servers elsewhere");
        }
    }

    /// Returns what is true of the bindings when the machine stays after all: they are cut.
    pub(super) fn undone(&self) -> Vec<RowChange> {
        self.bindings
            .iter()
            .flat_map(|row| pending(Some(row)))
            .collect()
    }
}

/// Has an exporter that ends take back what a grant has left at its server.
pub(super) async fn take_back(boss: &Boss, leftover: UnbindRequest) {
    let binding = leftover.binding.clone();
    let why = match boss.unbind(leftover).await {
        Ok(Unbound::Done) => return,
        Ok(Unbound::Pending(why) | Unbound::Left(why)) => why,
        Err(error) => error.to_string(),
    };
    tracing::warn!(%binding, %why, "its role or user may be left at the server");
}

impl Walk<'_> {
    /// Returns the rows of a machine's services.
    pub(super) fn services_of(&self, machine: &Address) -> impl Iterator<Item = &Arc<Row>> {
        let machine = machine.as_machine();
        self.rows
            .iter()
            .filter(move |(address, _)| match address {
                Address::Service { machine: on, .. } => machine == Some(on),
                _ => false,
            })
            .map(|(_, row)| row)
    }

    /// Returns what an exporter that ends in this run is to take back all the same, as far as it
    /// can be reached.
    pub(super) fn leftover(&self, held: &Held, row: Option<&Row>) -> Option<UnbindRequest> {
        let RowKind::Binding {
            from_incarnation, ..
        } = row?.kind
        else {
            return None;
        };
        let left = held.settled_by_delete && self.mints(&held.from, from_incarnation);
        Some(UnbindRequest {
            binding: row?.address.clone(),
            generation: held.generation,
            exporter: Some((held.from.as_machine()?.clone(), from_incarnation)),
            importer: None,
        })
        .filter(|_| left)
    }

    /// Returns whether the grants of a service leave something at its server.
    pub(super) fn mints(&self, service: &Address, incarnation: u64) -> bool {
        self.rows.get(service).is_some_and(|row| {
            let is_set = |kind: &&str| row.wanted.get(kind).is_some_and(|it| !it.is_null());
            let of_it = |kind: &RowKind| match kind {
                RowKind::Service {
                    incarnation: is, ..
                } => *is == incarnation,
                _ => false,
            };
            of_it(&row.kind) && MINTING.iter().any(is_set)
        })
    }

    /// Returns what to do before a machine's hob of this incarnation ends, if there is anything.
    pub(super) fn retirement(&self, machine: &Address, incarnation: u64) -> Option<Retirement> {
        let mints = |row: &Arc<Row>| self.mints(&row.address, incarnation);
        if !self.services_of(machine).any(mints) {
            return None;
        }
        let instance = machine.as_machine()?;
        let granted = |row: &&Arc<Row>| match row.kind {
            RowKind::Binding {
                from_incarnation, ..
            } => from_incarnation == incarnation && exporter(row) == Some(instance),
            _ => false,
        };
        Some(Retirement {
            boss: self.apply.boss.clone()?,
            machine: (instance.clone(), incarnation),
            bindings: self.rows.values().filter(granted).cloned().collect(),
        })
    }
}

fn exporter(row: &Row) -> Option<&Instance> {
    let from = |name| row.wanted.get(name).and_then(Value::as_ref_address);
    from("service").or_else(|| from("from"))?.as_machine()
}
