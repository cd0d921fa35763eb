//! A plan as people read it: Terraform's layout, and a block for the bindings.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use gobs_model::{Address, Change, Instance, Key, Name, Path, Value};

use crate::plan::{
    Action, Because, BlockShape, Drift, DriftKind, Grant, Held, OutputChange, Plan, Step,
};

use super::nested::{self, End};
use super::text::{BOLD, CYAN, GREEN, RED, YELLOW, printable_line, styled};
use super::value::{Field, Layout, Mark, Names, block, fields, hidden_line, line};

/// What is said where nothing is to be done.
pub const NO_CHANGES: &str = "No changes. Your infrastructure matches the configuration.";

/// Returns the whole plan, from what has drifted to the two lines that count.
pub fn plan(plan: &Plan) -> String {
    let mut out = drift(&plan.drift);
    if plan.is_empty() {
        let style = GREEN.bold();
        let _ = writeln!(out, "{style}{NO_CHANGES}{style:#}");
        return out;
    }
    let items = items(plan);
    if !items.is_empty() {
        out += &legend(&items);
        out += "gobs will perform the following actions:\n\n";
        items.iter().for_each(|item| out += &item.text);
    }
    if !plan.outputs.is_empty() {
        out += &outputs(&plan.outputs);
    }
    let counts = plan.counts();
    if items.is_empty() {
        out += "These output values can be saved without changing any machine or binding.\n";
    } else {
        out += &styled(BOLD, counts.machines_planned());
        out.push('\n');
    }
    if let Some(bindings) = counts.bindings_planned() {
        out += &styled(BOLD, bindings);
        out.push('\n');
    }
    out
}

/// What is done to one object, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Symbol {
    Create,
    Import,
    Update,
    Delete,
    DeleteThenCreate,
    CreateThenDelete,
}

impl Symbol {
    fn shown(self) -> String {
        match self {
            Self::Create => format!("  {}", styled(GREEN, "+")),
            Self::Import => format!("  {}", styled(CYAN, "=")),
            Self::Update => format!("  {}", styled(YELLOW, "~")),
            Self::Delete => format!("  {}", styled(RED, "-")),
            Self::DeleteThenCreate => format!("{}/{}", styled(RED, "-"), styled(GREEN, "+")),
            Self::CreateThenDelete => format!("{}/{}", styled(GREEN, "+"), styled(RED, "-")),
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Import => "import, and leave as it is",
            Self::Update => "update in-place (current -> planned)",
            Self::Delete => "destroy",
            Self::DeleteThenCreate => "destroy and then create replacement",
            Self::CreateThenDelete => "create replacement and then destroy",
        }
    }
}

/// One object's part of the plan, with an empty line behind it.
struct Item {
    symbol: Symbol,
    text: String,
}

fn legend(items: &[Item]) -> String {
    let mut symbols: Vec<Symbol> = items.iter().map(|item| item.symbol).collect();
    symbols.sort();
    symbols.dedup();
    let mut out = String::from(
        "gobs used the selected providers to generate the following execution\n\
         plan. Resource actions are indicated with the following symbols:\n",
    );
    for symbol in symbols {
        let _ = writeln!(out, "{} {}", symbol.shown(), symbol.meaning());
    }
    out + "\n"
}

/// All that a plan does to one machine.
#[derive(Default)]
struct MachineSteps<'a> {
    /// The steps on the machine itself, in the plan's order.
    own: Vec<&'a Step>,
    /// The steps on its services.
    services: Vec<&'a Step>,
}

/// Returns the machines in the order of their addresses, then the bindings.
fn items(plan: &Plan) -> Vec<Item> {
    let mut machines = BTreeMap::<&Instance, MachineSteps<'_>>::new();
    let mut bindings = BTreeMap::<&Instance, Vec<&Step>>::new();
    for step in &plan.steps {
        match &step.address {
            Address::Machine(it) => machines.entry(it).or_default().own.push(step),
            Address::Service { machine, .. } => {
                machines.entry(machine).or_default().services.push(step);
            }
            Address::Binding(it) => bindings.entry(it).or_default().push(step),
            Address::Output(_) => {}
        }
    }
    let shapes = |steps: &MachineSteps<'_>| {
        let mut providers = steps.own.iter().filter_map(|step| match &step.action {
            Action::Create { provider, .. }
            | Action::Import { provider, .. }
            | Action::Update { provider, .. }
            | Action::Delete { provider, .. }
            | Action::Admit { provider, .. } => Some(provider),
            _ => None,
        });
        providers
            .find_map(|it| plan.blocks_of(it))
            .unwrap_or(&NO_BLOCKS)
    };
    let machines = machines
        .iter()
        .map(|(it, steps)| machine(it, steps, shapes(steps)));
    let bindings = bindings
        .iter()
        .flat_map(|(it, steps)| steps.iter().map(|step| binding(it, step, &plan.streams)));
    machines.chain(bindings).collect()
}

/// What most machines have of nested blocks.
static NO_BLOCKS: BTreeMap<String, BlockShape> = BTreeMap::new();

fn machine(
    instance: &Instance,
    steps: &MachineSteps<'_>,
    shapes: &BTreeMap<String, BlockShape>,
) -> Item {
    let find = |wanted: fn(&Action) -> bool| {
        let own = steps.own.iter().enumerate();
        own.clone()
            .find(|(_, step)| wanted(&step.action))
            .map(|(at, step)| (at, *step))
    };
    let create = find(|it| matches!(it, Action::Create { .. }));
    let update = find(|it| matches!(it, Action::Update { .. }));
    let delete = find(|it| matches!(it, Action::Delete { .. }));
    let admit = find(|it| matches!(it, Action::Admit { .. })).map(|it| it.1);
    let import = find(|it| matches!(it, Action::Import { .. })).map(|it| it.1);
    let (symbol, what, step, before) = match (create, update, delete) {
        (Some((created, create)), _, Some((deleted, delete))) => {
            let symbol = if created < deleted {
                Symbol::CreateThenDelete
            } else {
                Symbol::DeleteThenCreate
            };
            let what = format!("must be {}", styled(RED.bold(), "replaced"));
            (symbol, what, Some(create), &delete.before)
        }
        (Some((_, create)), ..) => {
            let what = "will be created".into();
            (Symbol::Create, what, Some(create), &create.before)
        }
        (_, Some((_, update)), _) => (
            Symbol::Update,
            updated(&update.action),
            Some(update),
            &update.before,
        ),
        (_, _, Some((_, delete))) => {
            let what = format!("will be {}", styled(RED.bold(), "destroyed"));
            (Symbol::Delete, what, Some(delete), &delete.before)
        }
        (None, None, None) => match import.or(admit) {
            Some(import) if matches!(import.action, Action::Import { .. }) => {
                let what = "will be imported".into();
                (Symbol::Import, what, Some(import), &import.before)
            }
            Some(admit) => {
                let what = "will be updated in-place".into();
                (Symbol::Update, what, Some(admit), &admit.before)
            }
            None => (Symbol::Update, only_hob(steps).into(), None, &Value::NULL),
        },
    };
    let planned = step.map(|step| admitting(step, admit));
    let mut text = header(&format!("machine.{instance}"), &what);
    let replaced = create.is_some() && delete.is_some();
    // A replacement's two steps have their reasons apart.
    let alone = steps.own.first().copied().filter(|_| step.is_none());
    let reasons = [
        import.filter(|_| update.is_some()),
        step,
        delete.map(|(_, step)| step).filter(|_| replaced),
        alone,
    ];
    let because: Vec<&Because> = reasons
        .into_iter()
        .flatten()
        .flat_map(|it| &it.because)
        .collect();
    text += &reasons_of(&because, instance);
    if let Some(planned) = &planned
        && symbol == Symbol::Update
    {
        text += &unseen(&because, before, planned, shapes);
    }
    if let Some(planned) = &planned {
        let end = match symbol {
            Symbol::Delete => End::Deleted,
            Symbol::DeleteThenCreate | Symbol::CreateThenDelete => End::Replaced,
            Symbol::Create | Symbol::Import | Symbol::Update => End::None,
        };
        text += &nested::data(before, planned, shapes, end);
    }
    if step.is_some_and(|step| step.action.is_simulated()) {
        text += "  # (simulated: a row only, no machine)\n";
    }
    text += &opening(symbol, "machine", &instance.name);
    let step_shown = step.is_some();
    if let Some(planned) = &planned {
        text += &machine_fields(symbol, before, planned, &because, shapes);
    }
    // A service of a machine that ends goes with it, unsaid.
    if symbol != Symbol::Delete {
        for (at, step) in steps.services.iter().enumerate() {
            let gap = if at > 0 || step_shown { "\n" } else { "" };
            text += gap;
            text += &service(step);
        }
    }
    text += "    }\n\n";
    Item { symbol, text }
}

/// Returns what a step leaves, with whom a later one lets in.
fn admitting(step: &Step, admit: Option<&Step>) -> Value {
    let Some(Step {
        action: Action::Admit { whom, .. },
        planned,
        ..
    }) = admit
    else {
        return step.planned.clone();
    };
    let admits = planned
        .get(&whom.block)
        .and_then(|it| it.get(&whom.attribute));
    whom.put_into(&step.planned, admits.cloned().unwrap_or(Value::NULL))
}

fn updated(action: &Action) -> String {
    let Action::Update { change, .. } = action else {
        return String::new();
    };
    match change {
        Change::InPlace | Change::Replace => "will be updated in-place".into(),
        Change::PowerCycle => "will be updated (downtime: it is shut down and started)".into(),
        Change::Resize => "will be resized (downtime: minutes; the disk is kept)".into(),
        Change::Migrate => {
            "will be migrated (downtime: minutes to hours, while its disk is copied; \
                            its addresses change)"
                .into()
        }
        Change::Rebuild => format!(
            "will be {} (downtime; the data on its disk will be lost)",
            styled(RED.bold(), "rebuilt")
        ),
    }
}

/// Returns what happens to a machine that stays as it is itself.
fn only_hob(steps: &MachineSteps<'_>) -> &'static str {
    if steps.own.is_empty() {
        "has changes to its services"
    } else {
        "will be enrolled"
    }
}

/// Returns the machine's attributes and nested blocks; its services are shown apart.
fn machine_fields(
    symbol: Symbol,
    before: &Value,
    after: &Value,
    because: &[&Because],
    shapes: &BTreeMap<String, BlockShape>,
) -> String {
    let before = before.as_entries().filter(|_| symbol != Symbol::Create);
    let after = after.as_entries().filter(|_| symbol != Symbol::Delete);
    let layout = Layout {
        indent: 4,
        always: &["id"],
        names: Names::Attributes,
        arrow_null: symbol == Symbol::Delete || before.is_some(),
        noun: "attribute",
    };
    nested::body(before, after, shapes, because, &Path::default(), layout)
}

/// Returns what changes although no attribute shows it: the settings of the `hob` block.
fn unseen(
    because: &[&Because],
    before: &Value,
    after: &Value,
    shapes: &BTreeMap<String, BlockShape>,
) -> String {
    let mut out = String::new();
    for because in because {
        let Because::Changed { path, .. } = because else {
            continue;
        };
        let Some(gobs_model::Segment::Attribute(name)) = path.0.first() else {
            continue;
        };
        if nested::is_within(path, shapes) {
            continue;
        }
        let null = Value::NULL;
        let (was, is) = (
            before.get(name).unwrap_or(&null),
            after.get(name).unwrap_or(&null),
        );
        if was.same(is) {
            let cost = nested::cost(because, &Path::attribute(name));
            let cost = cost.map_or(String::new(), |cost| format!(", which {cost}"));
            let _ = writeln!(out, "  # ({path} changes{cost})");
        }
    }
    out
}

/// Returns a service as a block within its machine.
fn service(step: &Step) -> String {
    let Address::Service { service, .. } = &step.address else {
        return String::new();
    };
    let before = step.before.as_entries();
    let (mark, after) = match &step.action {
        Action::Offer { spec, .. } if before.is_some() => (Mark::Change, spec.as_entries()),
        Action::Offer { spec, .. } => (Mark::Add, spec.as_entries()),
        Action::Withdraw { .. } => (Mark::Remove, None),
        _ => return String::new(),
    };
    let unsettled = matches!(step.because[..], [Because::OfferUnsettled]);
    let why = match unsettled {
        true => "        # (offered again: an earlier offer did not end well)\n",
        false => "",
    };
    let opening = why.to_owned() + &line(mark, 8, &format!("service \"{service}\" {{"));
    let layout = Layout {
        indent: 8,
        always: &[],
        names: Names::Attributes,
        arrow_null: false,
        noun: "attribute",
    };
    format!(
        "{opening}{}        }}\n",
        block(&fields(before, after), layout)
    )
}

/// Returns what becomes of the streams that go through a grant which ends, or does not.
fn live_streams(step: &Step, streams: &BTreeMap<Address, Option<u64>>) -> String {
    let drain_s = match &step.action {
        Action::Move { grant, .. } => grant.drain_s,
        _ => 0,
    };
    let live = match (streams.get(&step.address), &step.action) {
        (_, Action::Expose { .. }) => "live streams go on".into(),
        (None, _) => return String::new(),
        (Some(None), _) => "live streams: unknown, its hob cannot be reached".into(),
        (Some(Some(0)), _) => "no live streams".into(),
        (Some(Some(count)), _) => {
            let (streams, end) = match count {
                1 => ("live stream", "ends"),
                _ => ("live streams", "end"),
            };
            match (drain_s, count) {
                (0, _) => format!("{count} {streams} {end}"),
                (_, 1) => format!("{count} {streams} drains for {drain_s}s"),
                _ => format!("{count} {streams} drain for {drain_s}s"),
            }
        }
    };
    format!("  # ({live})\n")
}

fn binding(instance: &Instance, step: &Step, streams: &BTreeMap<Address, Option<u64>>) -> Item {
    let entries = |value: &Value| value.as_entries().cloned().unwrap_or_default();
    let (symbol, what, before, after) = match &step.action {
        Action::Bind {
            grant,
            revokes: None,
            ..
        } => {
            let after = granted(grant, &step.planned);
            (Symbol::Create, "will be granted", None, Some(after))
        }
        Action::Bind {
            grant,
            revokes: Some(held),
            ..
        } => {
            let symbol = if held.settled_by_delete {
                Symbol::DeleteThenCreate
            } else {
                Symbol::CreateThenDelete
            };
            let before = held_fields(held, &step.before, step);
            let after = granted(grant, &step.planned);
            (symbol, "will be granted again", Some(before), Some(after))
        }
        Action::Move { grant, revokes, .. } => {
            let before = held_fields(revokes, &step.before, step);
            let after = granted(grant, &step.planned);
            (Symbol::Update, "will be moved", Some(before), Some(after))
        }
        Action::Expose { grant, .. } => {
            let before = entries(&step.before);
            let after = granted(grant, &step.planned);
            let what = "will be updated in-place";
            (Symbol::Update, what, Some(before), Some(after))
        }
        Action::Unbind { held, .. } => {
            let mut before = entries(&step.before);
            let from = declared_from(&before, held);
            before.extend(ends(&from, &held.to, &held.name));
            (Symbol::Delete, "will be revoked", Some(before), None)
        }
        _ => (Symbol::Update, "changes", None, None),
    };
    let mut text = header(&format!("binding.{instance}"), what);
    let because: Vec<&Because> = step.because.iter().collect();
    text += &reasons_of(&because, instance);
    text += &live_streams(step, streams);
    if step.action.is_simulated() {
        text += "  # (simulated: a row only, no grant)\n";
    }
    text += &opening(symbol, "binding", &instance.name);
    let mut fields = binding_fields(before.as_ref(), after.as_ref());
    let hidden = fields.len();
    if before.is_some() && after.is_some() {
        // What is the same in a grant that follows another is of no interest, but what it is
        // about is.
        fields.retain(|field| matches!(field.name, "from" | "to") || field_changes(field));
    }
    let hidden = hidden - fields.len();
    let layout = Layout {
        indent: 4,
        always: &["from", "to"],
        names: Names::Attributes,
        arrow_null: false,
        noun: "attribute",
    };
    text += &block(&fields, layout);
    if hidden > 0 {
        text += &hidden_line(hidden, "attribute", 8);
    }
    text += "    }\n\n";
    Item { symbol, text }
}

type Entries = BTreeMap<Arc<str>, Value>;

/// Returns the two ends of a binding and the name that it goes by.
fn ends(from: &Address, to: &Address, name: &Name) -> [(Arc<str>, Value); 3] {
    [
        ("from".into(), from.clone().into()),
        ("to".into(), to.clone().into()),
        ("as".into(), name.as_str().into()),
    ]
}

/// Returns what a grant is made of, and what is known of the binding then.
fn granted(grant: &Grant, planned: &Value) -> Entries {
    let mut all = planned.as_entries().cloned().unwrap_or_default();
    all.extend(ends(grant.declared_from(), &grant.to, &grant.name));
    if grant.via.is_some() {
        all.insert("service".into(), grant.from.clone().into());
    }
    all.insert("attenuate".into(), grant.attenuate.clone());
    let is_default = grant.expose.as_elements().is_some_and(<[Value]>::is_empty);
    if !is_default {
        all.insert("expose".into(), grant.expose.clone());
    }
    all
}

/// Returns what was granted. Of what only the new grant says, it is taken to be the same, unless
/// the plan says that it is why.
fn held_fields(held: &Held, before: &Value, step: &Step) -> Entries {
    let (Action::Bind { grant, .. } | Action::Move { grant, .. }) = &step.action else {
        return Entries::new();
    };
    let mut all = granted(grant, &Value::NULL);
    for because in &step.because {
        if let Because::Changed { path, .. } = because
            && let Some(gobs_model::Segment::Attribute(name)) = path.0.first()
        {
            all.remove(name.as_str());
        }
    }
    let before = before.as_entries().cloned().unwrap_or_default();
    let from = declared_from(&before, held);
    if !before.contains_key("service") {
        all.remove("service");
    }
    all.extend(before);
    all.extend(ends(&from, &held.to, &held.name));
    all
}

/// Returns what the configuration named: the service, or the binding that it was given on from.
fn declared_from(before: &Entries, held: &Held) -> Address {
    let from = before.get("from").and_then(Value::as_ref_address);
    from.unwrap_or(&held.from).clone()
}

/// Returns the fields of a binding: what it leads from and to comes first.
fn binding_fields<'a>(before: Option<&'a Entries>, after: Option<&'a Entries>) -> Vec<Field<'a>> {
    let mut fields = fields(before, after);
    fields.sort_by_key(|field| match field.name {
        "from" => 0,
        "to" => 1,
        "as" => 2,
        _ => 3,
    });
    fields
}

fn field_changes(field: &Field<'_>) -> bool {
    let null = Value::NULL;
    let (before, after) = (field.before.unwrap_or(&null), field.after.unwrap_or(&null));
    !before.same(after)
}

fn header(address: &str, what: &str) -> String {
    let address = printable_line(address);
    format!("{BOLD}  # {address}{BOLD:#} {what}\n")
}

fn opening(symbol: Symbol, kind: &str, name: &Name) -> String {
    format!("{} {kind} \"{name}\" {{\n", symbol.shown())
}

/// Returns why, a line for each reason that the attributes below do not show.
fn reasons_of(because: &[&Because], instance: &Instance) -> String {
    let mut lines: Vec<String> = because
        .iter()
        .filter_map(|it| reason(it, instance))
        .collect();
    lines.dedup();
    lines
        .iter()
        .map(|it| format!("  # ({})\n", printable_line(it)))
        .collect()
}

fn reason(because: &Because, instance: &Instance) -> Option<String> {
    Some(match because {
        Because::Declared | Because::Destroy | Because::Changed { .. } => return None,
        Because::FromChanged { .. } | Because::ToChanged { .. } => return None,
        Because::Imported { id } => format!("imported from {id:?}"),
        Because::NotDeclared => "because it is not in configuration".into(),
        Because::KeyGone => match &instance.key {
            Some(Key::Index(index)) => {
                format!("because index [{index}] is out of range for count")
            }
            Some(key) => format!("because key {key} is not in for_each map"),
            None => "because its block has count or for_each now".into(),
        },
        Because::Drifted { path, .. } => {
            format!("because {path} was changed outside of gobs")
        }
        Because::Gone => "because it was deleted outside of gobs".into(),
        Because::ProviderChanged { was } => format!("because its provider was {was}"),
        Because::NotEnrolled => "because its hob has not registered yet".into(),
        Because::Unclaimed => "because its hob never called home".into(),
        Because::OfferUnsettled => "because an earlier offer of it did not end well".into(),
        Because::NewIncarnation { machine } => format!("because {machine} begins anew"),
        Because::ServiceChanged { service } => {
            format!("because {service} is another one, where nothing of it is yet")
        }
        Because::ParentGranted { parent } => {
            format!("because it is made from {parent}, which is granted again")
        }
        Because::RevokePending => "because an earlier grant is still to be taken back".into(),
        Because::Lost { machine } => format!("because {machine} does not have it any more"),
        Because::MachineGone { machine } => format!("because {machine} goes away"),
    })
}

fn drift(drift: &[Drift]) -> String {
    if drift.is_empty() {
        return String::new();
    }
    let mut out = format!(
        "{}\n\ngobs detected the following changes made outside of gobs since the\n\
         last \"gobs apply\":\n\n",
        styled(CYAN.bold(), "Note: Objects have changed outside of gobs")
    );
    for Drift { address, kind } in drift {
        let (Address::Machine(instance) | Address::Binding(instance)) = address else {
            continue;
        };
        match kind {
            DriftKind::Gone => {
                out += &header(&address.to_string(), "has been deleted");
                out += &opening(Symbol::Delete, address.kind(), &instance.name);
            }
            DriftKind::Changed(attributes) => {
                out += &header(&address.to_string(), "has changed");
                out += &opening(Symbol::Update, address.kind(), &instance.name);
                let paths: Vec<String> = attributes.iter().map(|it| it.path.to_string()).collect();
                let pairs = attributes.iter().zip(&paths);
                let fields: Vec<Field<'_>> = pairs
                    .map(|(it, path)| Field {
                        name: path,
                        before: Some(&it.was),
                        after: Some(&it.now),
                        note: None,
                    })
                    .collect();
                let layout = Layout {
                    indent: 4,
                    always: &[],
                    names: Names::Paths,
                    arrow_null: true,
                    noun: "attribute",
                };
                out += &block(&fields, layout);
            }
        }
        out += "    }\n\n";
    }
    out + &"─".repeat(RULE_COLUMNS) + "\n\n"
}

/// As wide as Terraform's line.
const RULE_COLUMNS: usize = 77;

fn outputs(changes: &[OutputChange]) -> String {
    let fields: Vec<Field<'_>> = changes
        .iter()
        .map(|change| Field {
            name: change.name.as_str(),
            before: change.before.as_ref().map(gobs_model::Known::value),
            after: change.after.as_ref(),
            note: None,
        })
        .collect();
    let layout = Layout {
        indent: 0,
        always: &[],
        names: Names::Attributes,
        arrow_null: true,
        noun: "output",
    };
    let lines = block(&fields, layout);
    if lines.is_empty() {
        return String::new();
    }
    format!("Changes to Outputs:\n{lines}\n")
}

#[cfg(test)]
mod tests;
