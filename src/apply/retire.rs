//! What a machine that ends has left at servers that may outlive it.

use std::sync::Arc;

use gobs_model::{Address, Instance, Value};
use gobs_state::{Row, RowChange, RowKind};
use hob::protocol::MINTING;

use crate::boss::Boss;

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

    /// Returns what to do before a machine's hob of this incarnation ends, if there is anything.
    pub(super) fn retirement(&self, machine: &Address, incarnation: u64) -> Option<Retirement> {
        let mints = |row: &Arc<Row>| {
            row.kind == RowKind::Service { incarnation }
                && MINTING
                    .iter()
                    .any(|kind| row.wanted.get(kind).is_some_and(|it| !it.is_null()))
        };
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
