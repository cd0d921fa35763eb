//! What is left of a call of which nobody knows how far it came.
//!
//! What is added to a machine once it is there (a firewall, a record, a volume) may have been made
//! by a call that failed in its midst or was cut off. The machine's row then says that it may be
//! there: as asked in `observed`, so that whoever ends the machine looks for it, and as a block
//! without attributes in `wanted`, so that the next plan differs whether or not it is declared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gobs_model::{Block, Change, Known, NestedBlock, Nesting, Value};
use gobs_provider::{Error, Observed, Provider, Token};
use gobs_state::Row;

use crate::plan::without_additions;

use super::act::BUSY_WAIT_MAX;
use super::prepare::observed_of;

/// How long a machine whose creation is in doubt is looked for beyond the provider's list lag,
/// and how often.
const LOOK_MARGIN: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Returns the row of a machine that was made, and of which nothing else is known.
pub(super) fn only_made(schema: &Block, row: Row, asked: &Known) -> Row {
    let bare = without_additions(schema, asked.value());
    // A part of what is known is known.
    let wanted = Known::try_from(bare).unwrap_or_else(|_| asked.clone());
    let row = Row { wanted, ..row };
    perhaps(schema, &row, asked).unwrap_or(row)
}

/// Returns a machine's row with what a change that asked for this may have added to it; nothing
/// where it adds nothing.
pub(crate) fn perhaps(schema: &Block, row: &Row, asked: &Known) -> Option<Row> {
    let mut wanted = row.wanted.value().as_entries()?.clone();
    let mut observed = row.observed.value().as_entries()?.clone();
    let mut adds = false;
    for (name, nested) in &schema.blocks {
        let Some(asked) = asked.get(name) else {
            continue;
        };
        if nested.change != Change::InPlace || asked.is_null() {
            continue;
        }
        let of = |map: &BTreeMap<Arc<str>, Value>| map.get(&**name).cloned().unwrap_or(Value::NULL);
        let was = (of(&wanted), of(&observed));
        if let Some((is, seen)) = with_additions(nested, &was, asked) {
            wanted.insert(name.as_str().into(), is);
            observed.insert(name.as_str().into(), seen);
            adds = true;
        }
    }
    let known = |value: &Value, entries| {
        let value = Value::object::<Arc<str>>(entries).sensitive_if(value.sensitive);
        Known::try_from(value).ok()
    };
    adds.then_some(Row {
        wanted: known(row.wanted.value(), wanted)?,
        observed: known(row.observed.value(), observed)?,
        ..row.clone()
    })
}

/// Returns a block as a row has it, `wanted` and `observed`, with what may have been added.
fn with_additions(
    nested: &NestedBlock,
    (wanted, observed): &(Value, Value),
    asked: &Value,
) -> Option<(Value, Value)> {
    match nested.nesting {
        Nesting::Single => {
            let is_seen = !observed.is_null();
            if !wanted.is_null() && is_seen {
                return None;
            }
            let is = if wanted.is_null() {
                nothing_of(asked)
            } else {
                wanted.clone()
            };
            Some((
                is,
                if is_seen {
                    observed.clone()
                } else {
                    asked.clone()
                },
            ))
        }
        Nesting::List => {
            let mut is = wanted.as_elements().unwrap_or_default().to_vec();
            let mut seen = observed.as_elements().unwrap_or_default().to_vec();
            let mut adds = false;
            for one in asked.as_elements()? {
                let at = is.iter().position(|it| it.same(one)).unwrap_or(is.len());
                if at == is.len() {
                    is.push(nothing_of(one));
                }
                // Each stands in the same place on both sides.
                if seen.len() <= at {
                    seen.resize(at + 1, Value::NULL);
                }
                if seen[at].is_null() {
                    seen[at] = one.clone();
                    adds = true;
                }
            }
            adds.then(|| (Value::list(is), Value::list(seen)))
        }
        Nesting::Labelled => {
            let mut is = wanted.as_entries().cloned().unwrap_or_default();
            let mut seen = observed.as_entries().cloned().unwrap_or_default();
            let mut adds = false;
            for (label, one) in asked.as_entries()? {
                is.entry(label.clone()).or_insert_with(|| nothing_of(one));
                seen.entry(label.clone()).or_insert_with(|| {
                    adds = true;
                    one.clone()
                });
            }
            adds.then(|| (Value::map::<Arc<str>>(is), Value::map::<Arc<str>>(seen)))
        }
    }
}

/// Returns a block that nothing is said of, as secret as another.
fn nothing_of(block: &Value) -> Value {
    Value::object::<Arc<str>>([]).sensitive_if(block.sensitive)
}

/// Returns a machine that ends, as it was last seen, whose data ends as was asked; where another
/// machine takes the place, as is `declared` for that.
pub(super) fn ended_as(schema: &Block, row: &Row, declared: Option<&Value>) -> Observed {
    const DELETE: &str = "delete";
    let mut last = observed_of(row);
    let Some(mut entries) = last.attributes.value().as_entries().cloned() else {
        return last;
    };
    let outlives = |it: &NestedBlock| it.outlives && it.nesting == Nesting::Labelled;
    for (name, _) in schema.blocks.iter().filter(|(_, it)| outlives(it)) {
        let all = |of: Option<&Value>| of.and_then(Value::as_entries).cloned().unwrap_or_default();
        let mut seen = all(entries.get(&**name));
        let asked = all(row.wanted.get(name));
        let next = all(declared.and_then(|it| it.get(name)));
        // What is not seen now, because it is detached, is not to be forgotten.
        for label in asked.keys() {
            let none = Value::object::<Arc<str>>([]);
            seen.entry(label.clone()).or_insert(none);
        }
        for (label, it) in &mut seen {
            let says = |of: &Value| of.get(DELETE).and_then(Value::as_bool);
            let delete = match next.get(label) {
                // What is not known yet destroys nothing.
                Some(next) => says(next).or(Some(false)),
                None => asked.get(label).and_then(says).or_else(|| says(it)),
            };
            let mut fields = it.as_entries().cloned().unwrap_or_default();
            fields.insert(DELETE.into(), delete.unwrap_or(false).into());
            *it = Value::object::<Arc<str>>(fields).sensitive_if(it.sensitive);
        }
        if !seen.is_empty() {
            entries.insert(name.as_str().into(), Value::map::<Arc<str>>(seen));
        }
    }
    if let Ok(attributes) = Known::try_from(Value::object::<Arc<str>>(entries)) {
        last.attributes = attributes;
    }
    last
}

/// Returns an error as what it is after answers that were lost: a later refusal says nothing about
/// what an earlier try has done.
pub(super) fn after_lost(lost: u32, error: Error) -> Error {
    match error {
        Error::InDoubt(_) => error,
        _ if lost == 0 => error,
        _ => Error::InDoubt(format!("an answer was lost, and then: {error}")),
    }
}

/// Looks for a machine by its token until its absence means something.
pub(super) async fn look_for(
    provider: &dyn Provider,
    token: &Token,
) -> Result<Option<Observed>, Error> {
    if provider.is_simulated() {
        // A row only: there is nothing that a list could show late.
        return provider.find(token).await;
    }
    let until = Instant::now() + provider.schema().list_lag + LOOK_MARGIN;
    loop {
        match provider.find(token).await {
            Ok(Some(observed)) => return Ok(Some(observed)),
            Ok(None) if Instant::now() >= until => return Ok(None),
            Err(Error::Busy { after, .. }) if Instant::now() < until + BUSY_WAIT_MAX => {
                tokio::time::sleep(after.min(BUSY_WAIT_MAX)).await;
            }
            Err(Error::InDoubt(_)) | Ok(None) if Instant::now() < until => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use gobs_model::{Address, Attribute, Name, Type};
    use gobs_state::RowKind;

    use super::*;

    fn schema() -> Block {
        let text = || Attribute::optional(Type::String, Change::InPlace, "");
        let inner = Block::of([("name", text()), ("delete", text())]);
        let nested = |nesting, change| NestedBlock::new(nesting, change, inner.clone());
        let blocks = [
            ("wall", nested(Nesting::Single, Change::InPlace)),
            ("record", nested(Nesting::List, Change::InPlace)),
            (
                "disk",
                nested(Nesting::Labelled, Change::InPlace).outlives(),
            ),
            ("boot", nested(Nesting::Single, Change::Rebuild)),
        ];
        Block {
            blocks: blocks.map(|(name, it)| (name.to_owned(), it)).into(),
            ..Block::default()
        }
    }

    fn named(name: &str) -> Value {
        Value::object([("name", name.into())])
    }

    fn known(value: Value) -> Known {
        Known::try_from(value).expect("known")
    }

    fn row(wanted: Value, observed: Value) -> Row {
        Row {
            address: Address::machine(Name::new("m").expect("a name"), None),
            wanted: known(wanted),
            observed: known(observed),
            depends_on: Vec::new(),
            version: 1,
            kind: RowKind::Machine {
                provider: "cloud".into(),
                id: "1".into(),
                token: "t".into(),
                incarnation: 1,
                enrolled: None,
            },
        }
    }

    #[test]
    fn what_may_have_been_added_is_looked_for_and_asked_for_again() {
        let none = || Value::object::<Arc<str>>([]);
        let lists = |records: &[Value]| Value::list(records.iter().cloned());
        let before = row(
            Value::object([("record", lists(&[named("a")]))]),
            Value::object([("record", lists(&[Value::NULL])), ("id", "1".into())]),
        );
        let asked = Value::object([
            ("wall", named("w")),
            ("boot", named("b")),
            ("record", lists(&[named("b"), named("a")])),
            ("disk", Value::map([("data", named("d"))])),
        ]);
        let left = perhaps(&schema(), &before, &known(asked)).expect("more");
        let wanted = Value::object([
            ("wall", none()),
            ("record", lists(&[named("a"), none()])),
            ("disk", Value::map([("data", none())])),
        ]);
        let observed = Value::object([
            ("id", "1".into()),
            ("wall", named("w")),
            ("record", lists(&[named("a"), named("b")])),
            ("disk", Value::map([("data", named("d"))])),
        ]);
        assert_eq!(
            (left.wanted, left.observed),
            (known(wanted), known(observed))
        );
        // What is there already is no addition.
        let same = Value::object([("record", lists(&[named("a")])), ("wall", Value::NULL)]);
        let seen = row(same.clone(), same.clone());
        assert!(perhaps(&schema(), &seen, &known(same)).is_none());
    }

    #[test]
    fn data_ends_as_is_declared_last() {
        let disk = |delete: Value| Value::object([("name", "d".into()), ("delete", delete)]);
        let disks = |delete: Value| Value::object([("disk", Value::map([("data", disk(delete))]))]);
        let ended = |was: Value, is: Option<Value>| {
            let row = row(disks(was.clone()), disks(was));
            ended_as(&schema(), &row, is.map(disks).as_ref()).attributes
        };
        let no = || known(disks(false.into()));
        assert_eq!(ended(true.into(), None), known(disks(true.into())));
        assert_eq!(ended(true.into(), Some(false.into())), no());
        assert_eq!(
            ended(false.into(), Some(true.into())),
            known(disks(true.into()))
        );
        let unknown = Value::unknown(Type::Bool);
        assert_eq!(ended(true.into(), Some(unknown)), no());
        // What is detached by now goes too.
        let detached = row(disks(true.into()), Value::object::<Arc<str>>([]));
        let seen = ended_as(&schema(), &detached, None).attributes;
        let disk = seen.get("disk").and_then(|it| it.get("data"));
        assert_eq!(disk.and_then(|it| it.get("delete")), Some(&true.into()));
    }
}
