//! Which objects were looked at while something was evaluated: what a step must wait for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gobs_model::{Address, Instance, Name};

/// More instances of one block than this are named as the whole block: n instances that look at
/// m others would be n × m dependencies.
const INSTANCES_MAX: usize = 64;

/// The objects looked at so far.
#[derive(Debug, Default)]
pub(super) struct Reads(RefCell<BTreeSet<Address>>);

impl Reads {
    /// Notes that an attribute of this object was looked at.
    pub(super) fn note(&self, address: &Address) {
        let mut reads = self.0.borrow_mut();
        if !reads.contains(address) {
            reads.insert(address.clone());
        }
    }

    /// Notes what was looked at before, for a value that was kept.
    pub(super) fn note_all(&self, addresses: &[Address]) {
        addresses.iter().for_each(|address| self.note(address));
    }

    /// Returns what a function returns, and what was looked at in it and nowhere else.
    pub(super) fn during<T>(&self, act: impl FnOnce() -> T) -> (T, Arc<[Address]>) {
        let outer = self.0.take();
        let result = act();
        let own = self.0.replace(outer);
        (result, whole_blocks(own))
    }
}

/// Returns the addresses, sorted; where there are many of one block, the block's instead: its
/// address without a key.
fn whole_blocks(reads: BTreeSet<Address>) -> Arc<[Address]> {
    if reads.len() <= INSTANCES_MAX {
        return reads.into_iter().collect();
    }
    let block = |address: &Address| {
        let whole = |name: &Name| Instance {
            name: name.clone(),
            key: None,
        };
        match address {
            Address::Machine(it) => Address::Machine(whole(&it.name)),
            Address::Binding(it) => Address::Binding(whole(&it.name)),
            other => other.clone(),
        }
    };
    let mut count: BTreeMap<Address, usize> = BTreeMap::new();
    for address in &reads {
        *count.entry(block(address)).or_default() += 1;
    }
    let settle = |address: Address| {
        let whole = block(&address);
        let many = count
            .get(&whole)
            .is_some_and(|count| *count > INSTANCES_MAX);
        if many { whole } else { address }
    };
    let settled: BTreeSet<Address> = reads.into_iter().map(settle).collect();
    settled.into_iter().collect()
}
