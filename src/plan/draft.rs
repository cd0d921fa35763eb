//! Steps while they are collected: in any order, with edges between them; then the finished list.

use std::collections::BTreeMap;

use gobs_model::{Address, Instance, Value};
use gobs_state::Snapshot;

use super::graph::{Cycle, Edge, Strength, order};
use super::{Action, Because, Step, StepId};

/// A step's place in the draft; edges are between these, and ids are given at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(usize);

/// Steps and edges.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// What stands in the graph: a step, or a block whose instances are waited for together.
    nodes: Vec<Option<Step>>,
    edges: Vec<Edge>,
    /// The step that makes or changes an address last.
    makes: BTreeMap<Address, Node>,
    /// The step that takes an address away.
    takes: BTreeMap<Address, Node>,
}

/// What a step is, apart from its place.
#[derive(Debug)]
pub(crate) struct NewStep {
    pub(crate) address: Address,
    pub(crate) action: Action,
    pub(crate) because: Vec<Because>,
    pub(crate) depends_on: Vec<Address>,
    pub(crate) before: Value,
    pub(crate) planned: Value,
}

impl Draft {
    pub(crate) fn is_empty(&self) -> bool {
        self.makes.is_empty() && self.takes.is_empty()
    }

    /// Adds a step.
    pub(crate) fn step(&mut self, new: NewStep) -> Node {
        let node = Node(self.nodes.len());
        let takes = matches!(
            new.action,
            Action::Delete { .. } | Action::Unbind { .. } | Action::Withdraw { .. }
        );
        let by_address = if takes {
            &mut self.takes
        } else {
            &mut self.makes
        };
        by_address.insert(new.address.clone(), node);
        self.nodes.push(Some(Step {
            id: StepId(0),
            address: new.address,
            action: new.action,
            because: new.because,
            after: Vec::new(),
            depends_on: new.depends_on,
            before: new.before,
            planned: new.planned,
        }));
        node
    }

    /// Adds a place where the instances of a block are waited for together, so that n instances
    /// that need m others take n + m edges.
    pub(crate) fn gate(&mut self) -> Node {
        self.nodes.push(None);
        Node(self.nodes.len() - 1)
    }

    /// Says that a step waits for another.
    pub(crate) fn wait(&mut self, first: Node, then: Node) {
        self.edge(first, then, Strength::Needed);
    }

    /// Says that a step had better wait for another, which spares a pause.
    pub(crate) fn had_better_wait(&mut self, first: Node, then: Node) {
        self.edge(first, then, Strength::Graceful);
    }

    fn edge(&mut self, first: Node, then: Node, strength: Strength) {
        let (first, then) = (first.0, then.0);
        self.edges.push(Edge {
            first,
            then,
            strength,
        });
    }

    /// Lets what goes away go in the reverse order of what the rows depend on, and after what
    /// still uses it until it is changed.
    pub(crate) fn wait_for_dependents(&mut self, snapshot: &Snapshot) {
        if self.takes.is_empty() {
            return;
        }
        let mut edges = Vec::new();
        for row in snapshot.rows.values() {
            let (taken, made) = (self.takes.get(&row.address), self.makes.get(&row.address));
            for needed in row.depends_on.iter().flat_map(|it| self.taken(it)) {
                // A replaced one is made again: its dependents wait for that instead.
                let replaced = self
                    .address_of(needed)
                    .is_some_and(|it| self.makes.contains_key(it));
                match (taken, made) {
                    (Some(first), _) if *first != needed => {
                        edges.push((*first, needed, Strength::Remembered));
                    }
                    (None, Some(first)) if !replaced => {
                        edges.push((*first, needed, Strength::Graceful));
                    }
                    _ => {}
                }
            }
        }
        for (first, then, strength) in edges {
            self.edge(first, then, strength);
        }
    }

    /// Returns the steps that take an address away; without a key it names a whole block.
    fn taken(&self, needed: &Address) -> Vec<Node> {
        let whole = |name: &gobs_model::Name, of: fn(Instance) -> Address| {
            let first = of(Instance {
                name: name.clone(),
                key: None,
            });
            self.takes
                .range(first..)
                .take_while(|(address, _)| match address {
                    Address::Machine(it) | Address::Binding(it) => it.name == *name,
                    _ => false,
                })
                .map(|(_, node)| *node)
                .collect()
        };
        match needed {
            Address::Machine(it) if it.key.is_none() => whole(&it.name, Address::Machine),
            Address::Binding(it) if it.key.is_none() => whole(&it.name, Address::Binding),
            exact => self.takes.get(exact).copied().into_iter().collect(),
        }
    }

    fn address_of(&self, node: Node) -> Option<&Address> {
        self.nodes[node.0].as_ref().map(|step| &step.address)
    }

    /// Returns the steps in order, with their ids and what they wait for.
    ///
    /// # Errors
    /// The addresses of steps that wait for each other.
    pub(crate) fn finish(self) -> Result<Vec<Step>, Vec<Address>> {
        let mut nodes = self.nodes;
        let order = order(nodes.len(), self.edges).map_err(|Cycle(path)| {
            let steps = path.into_iter().filter_map(|node| nodes[node].as_ref());
            steps.map(|step| step.address.clone()).collect::<Vec<_>>()
        })?;
        let mut ids: Vec<Option<StepId>> = vec![None; nodes.len()];
        let mut behind_gate: Vec<Vec<StepId>> = vec![Vec::new(); nodes.len()];
        let mut steps = Vec::new();
        for node in order.sequence {
            let mut after = Vec::new();
            for before in &order.waits_for[node] {
                match ids[*before] {
                    Some(id) => after.push(id),
                    None => after.extend_from_slice(&behind_gate[*before]),
                }
            }
            after.sort_unstable();
            after.dedup();
            match nodes[node].take() {
                None => behind_gate[node] = after,
                Some(step) => {
                    let id = StepId(u32::try_from(steps.len()).unwrap_or(u32::MAX));
                    ids[node] = Some(id);
                    steps.push(Step { id, after, ..step });
                }
            }
        }
        Ok(steps)
    }
}
