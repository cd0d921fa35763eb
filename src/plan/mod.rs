//! Configuration × snapshot × schemas → [`Plan`]: a graph of steps that leaves nothing to decide.
//!
//! Planning is pure: no I/O, no clock, no provider. The same arguments give the same plan.
//!
//! Blocks are evaluated in the order in which they need each other (`graph`). `machines` and
//! `services` decide what becomes of each by what `diff` finds, and `bindings` what becomes of
//! each binding once all machines are decided. They put steps and edges into the `draft`, which
//! orders them. `review` trusts nobody and looks at the result; `file` keeps it for later.

mod admits;
mod binding_checks;
mod bindings;
mod diff;
mod draft;
mod file;
mod graph;
mod lineage;
mod machines;
mod reach;
mod review;
mod services;
mod step;

use std::collections::{BTreeMap, BTreeSet};

use gobs_model::{Address, Diagnostic, Instance, Name, Value};
use gobs_state::Snapshot;

use crate::lang::{BlockId, Config, Evaluator, HobValues, Inputs, Schemas};

pub use bindings::{binding_object, made_stale};
pub use diff::{HOB, change_of, drift, fingerprint, machine_object};
pub use file::{PlanFile, PlanFileError, RecordedFile, RecordedFiles, RecordedInputs};
pub use review::{ImpossiblePlan, review};
pub use step::{
    Action, Because, BlockShape, Counts, Drift, DriftKind, DriftedAttribute, Grant, Held, Holding,
    Options, OutputChange, Plan, Step, StepId, Via, Whom,
};

pub(crate) use diff::without_additions;
pub(crate) use machines::wanted_of;

use draft::{Draft, Node};
use machines::{Failed, MachinePlan};

/// Returns what must be done so that what exists is what is declared.
///
/// `snapshot` is the state as it is now, with what the providers said a moment ago as `observed`;
/// `drift` is how that differs from what they said before (see [`drift`](fn@drift)). A machine
/// that is gone keeps its row in the snapshot.
///
/// # Errors
/// Everything that is wrong, with warnings among it.
pub fn plan(
    config: &Config,
    inputs: &Inputs,
    snapshot: &Snapshot,
    schemas: &Schemas,
    options: &Options,
    drift: Vec<Drift>,
) -> Result<Plan, Vec<Diagnostic>> {
    let evaluator = Evaluator::new(config, inputs, schemas)?;
    let mut planner = Planner {
        config,
        snapshot,
        schemas,
        options,
        drift: drift.iter().map(|drift| (&drift.address, drift)).collect(),
        evaluator,
        refers_to: BTreeMap::new(),
        failed: Failed::new(),
        machines: BTreeMap::new(),
        bindings: BTreeSet::new(),
        to_grant: Vec::new(),
        given_on: Vec::new(),
        traced: BTreeMap::new(),
        generations: BTreeMap::new(),
        unbinds: Vec::new(),
        names: BTreeMap::new(),
        exposed: BTreeMap::new(),
        released: BTreeMap::new(),
        taken: Vec::new(),
        referenced: BTreeSet::new(),
        last_hob: None,
        out_of_reach: BTreeSet::new(),
        withdrawn: BTreeMap::new(),
        objects: BTreeSet::new(),
        derived: admits::AllDerived::new(),
        bind_steps: Vec::new(),
        gates: BTreeMap::new(),
        draft: Draft::default(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    if !options.destroy {
        planner.evaluate();
    }
    planner.machines_not_declared();
    planner.services_not_declared();
    planner.bindings();
    planner.admissions();
    let outputs = planner.outputs();
    planner.finish(outputs, &drift)
}

/// Returns the cycles among machines and bindings, each as an error with its path.
pub fn check_cycles(config: &Config) -> Vec<Diagnostic> {
    block_order(config).errors
}

/// One run of [`plan`].
struct Planner<'a> {
    config: &'a Config,
    snapshot: &'a Snapshot,
    schemas: &'a Schemas,
    options: &'a Options,
    drift: BTreeMap<&'a Address, &'a Drift>,
    evaluator: Evaluator<'a>,
    /// What each block refers to, as far as the text tells.
    refers_to: BTreeMap<BlockId, Vec<BlockId>>,
    /// Blocks that could not be evaluated; what needs them is not tried.
    failed: Failed,
    machines: BTreeMap<Instance, MachinePlan>,
    /// Machines with derived firewalls.
    derived: admits::AllDerived,
    /// Bindings that are declared, and those of them that are granted, again or anew.
    bindings: BTreeSet<Instance>,
    to_grant: Vec<bindings::ToGrant>,
    /// Bindings made from others that stay as they are, unless what they are made from does not.
    given_on: Vec<bindings::ToGrant>,
    /// Where each declared binding comes from.
    traced: BTreeMap<Instance, lineage::Traced>,
    /// The generations of the bindings that are granted.
    generations: BTreeMap<Instance, u64>,
    /// The steps that revoke bindings.
    unbinds: Vec<(Instance, Node)>,
    /// The names by which machines know their bindings.
    names: BTreeMap<(Address, Name), Instance>,
    /// Which binding listens at an address of a machine: `tcp` or `unix`, and the text.
    exposed: BTreeMap<(Address, String), Instance>,
    /// The steps that give up a name on a machine.
    released: BTreeMap<(Address, Name), (Instance, Node)>,
    /// The steps that take a name on a machine.
    taken: Vec<((Address, Name), Instance, Node)>,
    /// The machine and binding blocks that something refers to: only their objects are shown.
    referenced: BTreeSet<BlockId>,
    last_hob: Option<(HobValues, Value)>,
    /// The blocks of which was said that somebody cannot be dialled.
    out_of_reach: BTreeSet<BlockId>,
    withdrawn: BTreeMap<Address, Node>,
    /// The services that objects are, each for the one binding from it.
    objects: BTreeSet<Address>,
    /// The steps that grant bindings.
    bind_steps: Vec<(Instance, Node)>,
    gates: BTreeMap<Need, Node>,
    draft: Draft,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

/// What must be there before a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    /// A machine or a binding; without a key, every instance of its block.
    on: Address,
    /// Whether `depends_on` says so: then a machine's services count too.
    explicit: bool,
}

impl Planner<'_> {
    /// Evaluates every block after what it needs, and plans its machines.
    fn evaluate(&mut self) {
        let order = block_order(self.config);
        self.errors.extend(order.errors);
        self.failed = order.in_cycles;
        self.refers_to = order.refers_to;
        let outputs = self.config.outputs.keys().cloned().map(BlockId::Output);
        let outputs = outputs.flat_map(|output| self.config.dependencies(&output));
        let blocks = self.refers_to.values().flatten().cloned();
        self.referenced = blocks.chain(outputs.map(|it| it.on)).collect();
        for block in order.sequence {
            let refers_to = self.refers_to.get(&block);
            if refers_to.is_some_and(|it| it.iter().any(|on| self.failed.contains(on))) {
                self.failed.insert(block);
                continue;
            }
            let expansion = match &block {
                BlockId::Machine(name) => self.evaluator.expand_machine(name),
                BlockId::Binding(name) => self.evaluator.expand_binding(name),
                _ => continue,
            };
            match expansion {
                Err(errors) => self.fail(block, errors),
                Ok(expansion) => {
                    for instance in &expansion.instances {
                        match &block {
                            BlockId::Machine(_) => self.machine(instance),
                            _ => self.binding(instance),
                        }
                    }
                }
            }
        }
    }

    fn outputs(&mut self) -> Vec<OutputChange> {
        let mut changes = Vec::new();
        let destroy = self.options.destroy;
        for name in self.config.outputs.keys().filter(|_| !destroy) {
            let block = BlockId::Output(name.clone());
            let needs = self.config.dependencies(&block);
            if needs.iter().any(|need| self.failed.contains(&need.on)) {
                continue;
            }
            let after = match self.evaluator.output(name) {
                Ok(after) => after,
                Err(errors) => {
                    self.fail(block, errors);
                    continue;
                }
            };
            let before = self.snapshot.outputs.get(name);
            let alike = before.is_some_and(|before| {
                let before = before.value();
                before.same(&after) && before.contains_sensitive() == after.contains_sensitive()
            });
            if !alike {
                let (name, before) = (name.clone(), before.cloned());
                changes.push(OutputChange {
                    name,
                    before,
                    after: Some(after),
                });
            }
        }
        for (name, before) in &self.snapshot.outputs {
            if destroy || !self.config.outputs.contains_key(name) {
                let (name, before) = (name.clone(), Some(before.clone()));
                changes.push(OutputChange {
                    name,
                    before,
                    after: None,
                });
            }
        }
        changes.sort_by(|a, b| a.name.cmp(&b.name));
        changes
    }

    fn finish(
        mut self,
        outputs: Vec<OutputChange>,
        drift: &[Drift],
    ) -> Result<Plan, Vec<Diagnostic>> {
        self.warnings
            .extend(self.evaluator.warnings().iter().cloned());
        if !self.errors.is_empty() {
            self.errors.append(&mut self.warnings);
            return Err(self.errors);
        }
        self.open_gates();
        let mut reads: BTreeMap<Address, u64> = BTreeMap::new();
        for row in self.snapshot.rows.values() {
            reads.insert(row.address.clone(), row.version);
        }
        if !self.draft.is_empty() {
            self.draft.wait_for_dependents(self.snapshot);
        }
        let steps = self.draft.finish().map_err(|addresses| {
            let path: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            vec![Diagnostic::error(
                "Steps wait for each other",
                format!(
                    "No order can be found for the steps of {}.",
                    path.join(", ")
                ),
            )]
        })?;
        for step in &steps {
            reads.entry(step.address.clone()).or_insert(0);
        }
        Ok(Plan {
            streams: BTreeMap::new(),
            blocks: shapes(self.schemas, &steps),
            destroy: self.options.destroy,
            serial: self.snapshot.serial,
            reads: reads.into_iter().collect(),
            steps,
            drift: drift.to_vec(),
            outputs,
            warnings: self.warnings,
        })
    }

    fn is_referenced(&self, block: &BlockId) -> bool {
        self.referenced.contains(block)
    }

    /// Lets every gate that was waited for open when all that it stands for is done.
    fn open_gates(&mut self) {
        let mut opens: Vec<(Node, Node)> = Vec::new();
        for (instance, machine) in &self.machines {
            let offers = machine.services.values().filter_map(|it| it.offer);
            for (gate, explicit) in self.gates_of(instance, Address::Machine) {
                let offers = offers.clone().filter(|_| explicit);
                opens.extend(
                    machine
                        .ready
                        .iter()
                        .copied()
                        .chain(offers)
                        .map(|it| (it, gate)),
                );
            }
        }
        for (instance, node) in &self.bind_steps {
            let gates = self.gates_of(instance, Address::Binding);
            opens.extend(gates.map(|(gate, _)| (*node, gate)));
        }
        for (node, gate) in opens {
            self.draft.wait(node, gate);
        }
    }

    /// Returns the gates at which an instance is waited for, and whether `depends_on` says so.
    fn gates_of(
        &self,
        instance: &Instance,
        of: fn(Instance) -> Address,
    ) -> impl Iterator<Item = (Node, bool)> {
        let block = Instance {
            name: instance.name.clone(),
            key: None,
        };
        let block = instance.key.is_some().then_some(block);
        let named = block.into_iter().chain([instance.clone()]);
        named.flat_map(move |instance| {
            let on = of(instance);
            [false, true].into_iter().filter_map(move |explicit| {
                let gate = self.gates.get(&Need {
                    on: on.clone(),
                    explicit,
                })?;
                Some((*gate, explicit))
            })
        })
    }

    /// Lets a step wait for what it needs.
    fn wait_for(&mut self, needs: &[Need], node: Node) {
        for need in needs {
            let draft = &mut self.draft;
            let gate = *self
                .gates
                .entry(need.clone())
                .or_insert_with(|| draft.gate());
            self.draft.wait(gate, node);
        }
    }

    /// Returns what an instance needs: what was looked at for it, and what `depends_on` names.
    fn needs(&self, block: &BlockId, reads: &[Address]) -> Vec<Need> {
        let explicit = explicit_needs(self.config, block)
            .into_iter()
            .filter_map(|on| match on {
                BlockId::Machine(name) => Some(Address::machine(name.clone(), None)),
                BlockId::Binding(name) => Some(Address::binding(name.clone(), None)),
                _ => None,
            });
        let explicit = explicit.map(|on| Need { on, explicit: true });
        let reads = reads.iter().map(|on| Need {
            on: on.clone(),
            explicit: false,
        });
        explicit.chain(reads).collect()
    }

    /// Returns a number that this object never had. Every run raises the generation, and neither
    /// number ever falls, so whatever an earlier run numbered has a lower number, even where
    /// nothing came of it and no row tells.
    fn fresh(&self, last: Option<u64>) -> u64 {
        let Snapshot {
            serial, generation, ..
        } = self.snapshot;
        serial
            .saturating_add(*generation)
            .max(last.unwrap_or(0))
            .saturating_add(1)
    }

    /// Reports what is wrong with a block, and that what needs it cannot be planned.
    fn fail(&mut self, block: BlockId, errors: Vec<Diagnostic>) {
        self.report(&block, errors);
        self.failed.insert(block);
    }

    fn report(&mut self, block: &BlockId, errors: Vec<Diagnostic>) {
        for error in errors {
            let declared = self
                .config
                .declared_at(block)
                .filter(|_| error.place.is_none());
            let error = match declared {
                Some(span) => error.at(span),
                None => error,
            };
            if error.is_error() {
                self.errors.push(error);
            } else {
                self.warnings.push(error);
            }
        }
    }
}

/// The blocks in the order in which they are evaluated.
struct BlockOrder {
    sequence: Vec<BlockId>,
    refers_to: BTreeMap<BlockId, Vec<BlockId>>,
    in_cycles: Failed,
    errors: Vec<Diagnostic>,
}

fn block_order(config: &Config) -> BlockOrder {
    let machines = config.machines.keys().cloned().map(BlockId::Machine);
    let bindings = config.bindings.keys().cloned().map(BlockId::Binding);
    let blocks: Vec<BlockId> = machines.chain(bindings).collect();
    let places: BTreeMap<&BlockId, usize> = blocks
        .iter()
        .enumerate()
        .map(|(at, block)| (block, at))
        .collect();
    let mut edges = Vec::new();
    let mut refers_to = BTreeMap::new();
    for (then, block) in blocks.iter().enumerate() {
        let mut on: Vec<BlockId> = config
            .dependencies(block)
            .into_iter()
            .map(|it| it.on)
            .collect();
        on.sort();
        on.dedup();
        let firsts = on.iter().filter_map(|on| places.get(on));
        edges.extend(firsts.map(|first| graph::Edge {
            first: *first,
            then,
            strength: graph::Strength::Needed,
        }));
        refers_to.insert(block.clone(), on);
    }
    let mut order = BlockOrder {
        sequence: Vec::new(),
        refers_to,
        in_cycles: Failed::new(),
        errors: Vec::new(),
    };
    // Every round takes the blocks of one cycle out, so there are at most as many as blocks.
    loop {
        match graph::order(blocks.len(), edges.iter().copied()) {
            Ok(found) => {
                let sequence = found.sequence.into_iter().map(|at| blocks[at].clone());
                order.sequence = sequence
                    .filter(|it| !order.in_cycles.contains(it))
                    .collect();
                return order;
            }
            Err(graph::Cycle(path)) => {
                edges.retain(|edge| !path.contains(&edge.then));
                let path: Vec<&BlockId> = path.into_iter().map(|at| &blocks[at]).collect();
                order.errors.push(cycle_error(config, &path));
                order.in_cycles.extend(path.into_iter().cloned());
            }
        }
    }
}

/// Returns how the nested blocks of the machines in these steps are written.
fn shapes(schemas: &Schemas, steps: &[Step]) -> BTreeMap<String, BTreeMap<String, BlockShape>> {
    let providers = steps.iter().filter_map(|step| match &step.action {
        Action::Create { provider, .. }
        | Action::Import { provider, .. }
        | Action::Update { provider, .. }
        | Action::Delete { provider, .. }
        | Action::Admit { provider, .. } => Some(machines::provider_name(provider)),
        _ => None,
    });
    let shapes = |kind: &str| {
        let shapes = BlockShape::of(&schemas.get(kind)?.machine);
        (!shapes.is_empty()).then(|| (kind.to_owned(), shapes))
    };
    let kinds: BTreeSet<&str> = providers.collect();
    kinds.into_iter().filter_map(shapes).collect()
}

/// Returns what `depends_on` names.
fn explicit_needs<'a>(config: &'a Config, block: &BlockId) -> Vec<&'a BlockId> {
    let named = match block {
        BlockId::Machine(name) => config.machines.get(name).map(|it| &it.depends_on),
        BlockId::Binding(name) => config.bindings.get(name).map(|it| &it.depends_on),
        _ => None,
    };
    named.into_iter().flatten().map(|(on, _)| on).collect()
}

/// Each block of the path is needed by the one after it, the last by the first.
fn cycle_error(config: &Config, path: &[&BlockId]) -> Diagnostic {
    let mut links = Vec::new();
    let mut first_place = None;
    for at in (0..path.len()).rev() {
        let (block, on) = (path[at], path[(at + path.len() - 1) % path.len()]);
        let dependencies = config.dependencies(block);
        let span = dependencies
            .into_iter()
            .find(|it| it.on == *on)
            .map(|it| it.span);
        let place = span.as_ref().map_or_else(String::new, |span| {
            format!(" ({}:{})", span.file, span.start.line)
        });
        links.push(format!("{block} needs {on}{place}"));
        first_place = first_place.or(span);
    }
    let detail = format!(
        "These blocks need each other, so none of them can be first: {}.",
        links.join(", ")
    );
    let error = Diagnostic::error("Dependency cycle", detail)
        .hint("Remove one of these references; a binding may connect machines both ways.");
    match first_place {
        Some(span) => error.at(span),
        None => error,
    }
}
