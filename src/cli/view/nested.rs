//! Nested blocks of a machine, as they are written; and what becomes of the data of those that
//! outlive it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gobs_model::{Change, Nesting, Path, Segment, Value};

use crate::plan::{Because, BlockShape};

use super::text::{RED, printable_line, styled};
use super::value::{Field, Layout, Mark, Names, block, fields, hidden_line, line};

type Entries = BTreeMap<Arc<str>, Value>;
type Shapes = BTreeMap<String, BlockShape>;

/// Returns the fields of a block, then its nested blocks, each behind an empty line.
pub(super) fn body(
    before: Option<&Entries>,
    after: Option<&Entries>,
    shapes: &Shapes,
    because: &[&Because],
    at: &Path,
    layout: Layout<'_>,
) -> String {
    let mut fields = fields(before, after);
    let is_written = |field: &Field<'_>| {
        let shape = shapes.get(field.name);
        shape.is_some_and(|shape| {
            let shaped = |value: Option<&Value>| value.is_none_or(|it| is_shaped(it, shape));
            shaped(field.before) && shaped(field.after)
        })
    };
    let blocks: Vec<usize> = (0..fields.len())
        .filter(|index| is_written(&fields[*index]))
        .collect();
    let mut blocks: Vec<Field<'_>> = blocks
        .into_iter()
        .rev()
        .map(|it| fields.remove(it))
        .collect();
    blocks.reverse();
    for field in &mut fields {
        let path = at.join(field.name);
        field.note = because.iter().find_map(|it| cost(it, &path));
    }
    let mut out = block(&fields, layout);
    let (mut hidden, indent) = (0, layout.indent + 4);
    for field in blocks {
        let Some(shape) = shapes.get(field.name) else {
            continue;
        };
        for Pair {
            label,
            path,
            before,
            after,
        } in pairs(&field, shape, &at.join(field.name))
        {
            let mark = match (before, after) {
                (Some(before), Some(after)) if before.same(after) => {
                    hidden += 1;
                    continue;
                }
                (Some(_), Some(_)) => Mark::Change,
                (Some(_), None) => Mark::Remove,
                _ => Mark::Add,
            };
            let label = label.map_or(String::new(), |it| format!(" {:?}", printable_line(it)));
            out += if out.is_empty() { "" } else { "\n" };
            out += &line(mark, indent, &format!("{}{label} {{", field.name));
            let entries = |value: Option<&'_ Value>| value.and_then(Value::as_entries).cloned();
            let (before, after) = (entries(before), entries(after));
            let inner = Layout {
                indent,
                always: &[],
                names: Names::Attributes,
                arrow_null: mark == Mark::Remove && layout.arrow_null,
                noun: "attribute",
            };
            let (before, after) = (before.as_ref(), after.as_ref());
            out += &body(before, after, &shape.blocks, because, &path, inner);
            out += &format!("{:indent$}}}\n", "");
        }
    }
    if hidden > 0 {
        out += "\n";
        out += &hidden_line(hidden, "block", indent);
    }
    out
}

/// Returns what a change of what is at this path costs, where that is more than nothing; what
/// changes deeper within counts as well.
pub(super) fn cost(because: &Because, at: &Path) -> Option<String> {
    let (Because::Changed { path, change } | Because::Drifted { path, change }) = because else {
        return None;
    };
    let cost = match change {
        Change::InPlace => return None,
        Change::PowerCycle => "forces a restart",
        Change::Resize => "forces a resize",
        Change::Migrate => "forces a migration",
        Change::Rebuild => "forces a rebuild",
        Change::Replace => "forces replacement",
    };
    path.0.starts_with(&at.0).then(|| cost.to_owned())
}

/// One block before and after.
struct Pair<'a> {
    label: Option<&'a str>,
    path: Path,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
}

fn is_shaped(value: &Value, shape: &BlockShape) -> bool {
    value.is_null()
        || match shape.nesting {
            Nesting::List => value.as_elements().is_some(),
            Nesting::Single | Nesting::Labelled => value.as_entries().is_some(),
        }
}

fn pairs<'a>(field: &Field<'a>, shape: &BlockShape, at: &Path) -> Vec<Pair<'a>> {
    let present = |value: Option<&'a Value>| value.filter(|it| !it.is_null());
    let (before, after) = (present(field.before), present(field.after));
    match shape.nesting {
        Nesting::Single if before.is_none() && after.is_none() => Vec::new(),
        Nesting::Single => vec![Pair {
            label: None,
            path: at.clone(),
            before,
            after,
        }],
        Nesting::List => {
            let [before, after] =
                [before, after].map(|it| it.and_then(Value::as_elements).unwrap_or_default());
            let pair = |index| Pair {
                label: None,
                path: at.index(index),
                before: before.get(index),
                after: after.get(index),
            };
            (0..before.len().max(after.len())).map(pair).collect()
        }
        Nesting::Labelled => {
            let [before, after] = [before, after].map(|it| it.and_then(Value::as_entries));
            let labels = [before, after]
                .into_iter()
                .flatten()
                .flat_map(BTreeMap::keys);
            let labels: BTreeSet<&'a Arc<str>> = labels.collect();
            let pair = |label: &'a Arc<str>| Pair {
                label: Some(label),
                path: at.join(label),
                before: before.and_then(|it| it.get(label)),
                after: after.and_then(|it| it.get(label)),
            };
            labels.into_iter().map(pair).collect()
        }
    }
}

/// What becomes of a machine, for the data that outlives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It stays, or begins.
    None,
    /// Another one takes its place.
    Replaced,
    /// It goes.
    Deleted,
}

/// Returns a line for each thing that outlives its block: whether its data is kept or lost.
pub(super) fn data(before: &Value, after: &Value, shapes: &Shapes, end: End) -> String {
    let mut out = String::new();
    for (name, shape) in shapes.iter().filter(|(_, shape)| shape.outlives) {
        let (was, is) = (before.get(name), after.get(name));
        let field = Field {
            name,
            before: was,
            after: is,
            note: None,
        };
        for pair in pairs(&field, shape, &Path::attribute(name)) {
            let Some(it) = pair.before else { continue };
            let text = |name| it.get(name).and_then(Value::as_str);
            let called = text("label").or(text("id")).unwrap_or("unnamed");
            let label = pair.label.map_or(String::new(), |it| format!(" {it:?}"));
            let what = printable_line(&format!("{name}{label}, {called}")).into_owned();
            // Another machine has what is declared now.
            let says = pair.after.filter(|_| end == End::Replaced).unwrap_or(it);
            let is_deleted = says.get("delete").and_then(Value::as_bool) == Some(true);
            let told = match (end, pair.after) {
                (End::None, Some(_)) => continue,
                _ if is_deleted => styled(RED.bold(), "data will be lost"),
                (End::Replaced, Some(_)) => "is kept, for the new machine".into(),
                _ => "is kept; nothing manages it then".into(),
            };
            out += &format!("  # ({what}: {told})\n");
        }
    }
    out
}

/// Returns whether a path is of a nested block, which shows its own changes.
pub(super) fn is_within(path: &Path, shapes: &Shapes) -> bool {
    matches!(path.0.first(), Some(Segment::Attribute(name)) if shapes.contains_key(name))
}
