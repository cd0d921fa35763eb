//! What differs, by schema: config against what was asked last, and what a provider says now
//! against what it said.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{
    Attribute, Block, Change, Kind, Known, NestedBlock, Nesting, Path, ProviderSchema, Role,
    Segment, Type, Value,
};
use gobs_state::{Row, RowKind};

use super::{Drift, DriftKind, DriftedAttribute};

/// The attribute of a machine's `wanted` that is gobs' own: the settings of its `hob` block.
pub const HOB: &str = "hob";

/// The settings of the `hob` block that a running hob has from its user data: only a fresh
/// enrollment changes them.
const HOB_FROM_USER_DATA: [&str; 4] = ["enabled", "listen", "advertise", "user"];

/// One attribute that is asked for otherwise than last time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    pub(crate) path: Path,
    pub(crate) change: Change,
}

/// Returns how what is asked now differs from what was asked last.
///
/// An attribute that the provider chooses where nobody does keeps its value when it is no longer
/// asked for; and to ask for what it chose, by what was observed, changes nothing. A value that is
/// not known yet differs: it cannot be promised to be the same.
pub(crate) fn differences(
    block: &Block,
    was: &Value,
    observed: &Value,
    wanted: &Value,
) -> Vec<Difference> {
    let mut found = Vec::new();
    compare_block(block, was, wanted, &Path::default(), &mut found);
    found.retain(|it| {
        let [Segment::Attribute(name)] = &it.path.0[..] else {
            return true;
        };
        let role = block.attributes.get(name).map(|it| it.role);
        let was_chosen = role == Some(Role::OptionalComputed) && field(was, name).is_null();
        !(was_chosen && field(observed, name).same(field(wanted, name)))
    });
    found
}

/// Returns the costliest change from what was asked to what is asked now, if they differ.
pub fn change_of(block: &Block, was: &Value, wanted: &Value) -> Option<Change> {
    let found = differences(block, was, &Value::NULL, wanted);
    found.into_iter().map(|it| it.change).max()
}

/// Returns what a fresh enrollment costs: a rebuild where the provider has such a thing, and a
/// replacement where it has not.
pub(crate) fn afresh(block: &Block) -> Change {
    let rebuilds = block
        .attributes
        .values()
        .any(|it| it.change == Change::Rebuild);
    match rebuilds {
        true => Change::Rebuild,
        false => Change::Replace,
    }
}

/// Returns how the settings of the `hob` block differ. A fresh enrollment is a rebuild where the
/// provider has such a thing, and a replacement where it has not.
pub(crate) fn hob_differences(block: &Block, was: &Value, wanted: &Value) -> Vec<Difference> {
    let afresh = afresh(block);
    let at = Path::attribute(HOB);
    let none = BTreeMap::new();
    let (was, wanted) = (was.as_entries(), wanted.as_entries());
    let (was, wanted) = (was.unwrap_or(&none), wanted.unwrap_or(&none));
    let mut names: Vec<_> = was.keys().chain(wanted.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| {
            let (was, wanted) = (was.get(*name), wanted.get(*name));
            !was.unwrap_or(&Value::NULL)
                .same(wanted.unwrap_or(&Value::NULL))
        })
        .map(|name| Difference {
            path: at.join(name),
            change: match HOB_FROM_USER_DATA.contains(&&**name) {
                true => afresh,
                false => Change::InPlace,
            },
        })
        .collect()
}

/// Returns what has changed outside gobs in a machine, on what its configuration sets; `now` is
/// what the provider says, nothing where the machine is gone.
pub fn drift(schema: &ProviderSchema, row: &Row, now: Option<&Known>) -> Option<Drift> {
    let kind = match now {
        None => DriftKind::Gone,
        Some(now) => {
            let mut drifted = Vec::new();
            let (was, now) = (row.observed.value(), now.value());
            let (wanted, at) = (row.wanted.value(), Path::default());
            drift_in(&schema.machine, wanted, was, now, &at, &mut drifted);
            if drifted.is_empty() {
                return None;
            }
            DriftKind::Changed(drifted)
        }
    };
    let address = row.address.clone();
    Some(Drift { address, kind })
}

/// Returns what a reference to a machine shows, as its row has it: what was asked, what the
/// provider chose, and `hob` with the pinned key.
pub fn machine_object(schema: &ProviderSchema, row: &Row) -> Value {
    let enrolled = match &row.kind {
        RowKind::Machine { enrolled, .. } => enrolled.as_deref(),
        RowKind::Service { .. } | RowKind::Binding { .. } => None,
    };
    let (wanted, observed) = (row.wanted.value(), Some(row.observed.value()));
    let mut entries = planned_block(&schema.machine, wanted, observed, true);
    entries.insert(HOB.into(), hob_object(wanted, enrolled));
    Value::object(entries)
}

/// Returns what a reference to a machine will show; what the provider has not said is unknown.
pub(crate) fn planned_machine(
    block: &Block,
    wanted: &Value,
    observed: Option<&Value>,
    enrolled: Option<&str>,
) -> Value {
    let mut entries = planned_block(block, wanted, observed, false);
    entries.insert(HOB.into(), hob_object(wanted, enrolled));
    Value::object(entries)
}

/// Returns what a block will show. Where all is `settled`, what was never said is `null`; else
/// the provider has yet to say it.
fn planned_block(
    block: &Block,
    wanted: &Value,
    observed: Option<&Value>,
    settled: bool,
) -> BTreeMap<Arc<str>, Value> {
    let attribute = |(name, attribute): (&String, &Attribute)| {
        let asked = wanted.get(name).filter(|value| !value.is_null());
        let said = observed.and_then(|observed| observed.get(name));
        let value = match (attribute.role, asked, observed) {
            (Role::Required | Role::Optional | Role::Admits, asked, _) => {
                asked.cloned().unwrap_or(Value::NULL)
            }
            (Role::OptionalComputed, Some(asked), _) => asked.clone(),
            (_, _, None) if !settled => Value::unknown(attribute.ty.clone()),
            (_, _, _) => said.cloned().unwrap_or(Value::NULL),
        };
        (
            name.as_str().into(),
            value.sensitive_if(attribute.sensitive),
        )
    };
    let blocks = block.blocks.iter().map(|(name, nested)| {
        let said = observed.and_then(|observed| observed.get(name));
        let value = planned_nested(nested, field(wanted, name), said, settled);
        (name.as_str().into(), value)
    });
    let attributes = block.attributes.iter().map(attribute);
    attributes.chain(blocks).collect()
}

fn planned_nested(
    nested: &NestedBlock,
    wanted: &Value,
    observed: Option<&Value>,
    settled: bool,
) -> Value {
    let one = |wanted: &Value, observed: Option<&Value>| {
        let Kind::Object(_) = wanted.kind else {
            return wanted.clone();
        };
        let observed = observed.filter(|it| it.as_entries().is_some());
        let entries = planned_block(&nested.block, wanted, observed, settled);
        Value::object(entries).sensitive_if(wanted.sensitive)
    };
    let value = match (&wanted.kind, nested.nesting) {
        (Kind::List(elements), Nesting::List) => {
            let said = observed.and_then(Value::as_elements).unwrap_or_default();
            let each = elements.iter().enumerate();
            Value::list(each.map(|(at, wanted)| one(wanted, said.get(at))))
        }
        (Kind::Map(entries), Nesting::Labelled) => {
            let each = entries.iter();
            let said = |label: &str| observed.and_then(|it| it.get(label));
            Value::map(each.map(|(label, it)| (label.clone(), one(it, said(label)))))
        }
        _ => return one(wanted, observed),
    };
    value.sensitive_if(wanted.sensitive)
}

fn hob_object(wanted: &Value, enrolled: Option<&str>) -> Value {
    if !hob_enabled(wanted) {
        return Value::NULL;
    }
    let said =
        |text: Option<String>| text.map_or_else(|| Value::unknown(Type::String), Value::from);
    Value::object([
        ("designator", said(enrolled.map(str::to_owned))),
        ("fingerprint", said(enrolled.map(fingerprint))),
    ])
}

/// Returns whether a machine's `wanted` says that it has a hob.
pub(crate) fn hob_enabled(wanted: &Value) -> bool {
    let enabled = wanted.get(HOB).and_then(|hob| hob.get("enabled"));
    enabled.and_then(Value::as_bool).unwrap_or(true)
}

/// Returns the fingerprint of the key that a designator is: `SHA256:` and base64, as ssh has it.
pub fn fingerprint(designator: &str) -> String {
    use data_encoding::{BASE32_NOPAD, BASE64_NOPAD};
    use sha2::{Digest, Sha256};
    // A simulated hob has no key: its designator's own text stands in for one.
    let key = BASE32_NOPAD
        .decode(designator.to_ascii_uppercase().as_bytes())
        .unwrap_or_else(|_| designator.as_bytes().to_vec());
    format!("SHA256:{}", BASE64_NOPAD.encode(&Sha256::digest(key)))
}

fn compare_block(
    block: &Block,
    was: &Value,
    wanted: &Value,
    at: &Path,
    found: &mut Vec<Difference>,
) {
    for (name, attribute) in &block.attributes {
        let (was, wanted) = (field(was, name), field(wanted, name));
        let kept = attribute.role == Role::OptionalComputed && wanted.is_null();
        // Who is let in has steps of its own.
        let is_ours = matches!(attribute.role, Role::Computed | Role::Admits);
        if is_ours || kept || was.same(wanted) {
            continue;
        }
        let (path, change) = (at.join(name), attribute.change_to(wanted));
        found.push(Difference { path, change });
    }
    for (name, nested) in &block.blocks {
        let (was, wanted) = (field(was, name), field(wanted, name));
        if !was.same(wanted) {
            compare_nested(nested, was, wanted, &at.join(name), found);
        }
    }
}

fn compare_nested(
    nested: &NestedBlock,
    was: &Value,
    wanted: &Value,
    at: &Path,
    found: &mut Vec<Difference>,
) {
    let whole = |at: Path, found: &mut Vec<Difference>| {
        let change = nested.change;
        found.push(Difference { path: at, change });
    };
    // What is not known, or is not of the schema's shape, differs as a whole.
    let shaped = |value: &Value| match nested.nesting {
        Nesting::Single => value.is_null() || value.as_entries().is_some(),
        Nesting::List => value.is_null() || value.as_elements().is_some(),
        Nesting::Labelled => value.is_null() || value.as_entries().is_some(),
    };
    if !shaped(was) || !shaped(wanted) {
        return whole(at.clone(), found);
    }
    let pair = |was: &Value, wanted: &Value, at: Path, found: &mut Vec<Difference>| {
        let appears = was.is_null() != wanted.is_null();
        if appears {
            return whole(at, found);
        }
        let before = found.len();
        compare_block(&nested.block, was, wanted, &at, found);
        if found.len() == before && !was.same(wanted) && !is_object_alike(was, wanted) {
            whole(at, found);
        }
    };
    match nested.nesting {
        Nesting::Single => pair(was, wanted, at.clone(), found),
        Nesting::List => {
            let (was, wanted) = (was.as_elements(), wanted.as_elements());
            let (was, wanted) = (was.unwrap_or_default(), wanted.unwrap_or_default());
            for index in 0..was.len().max(wanted.len()) {
                let of = |list: &[Value]| list.get(index).cloned().unwrap_or(Value::NULL);
                pair(&of(was), &of(wanted), at.index(index), found);
            }
        }
        Nesting::Labelled => {
            let none = BTreeMap::new();
            let was = was.as_entries().unwrap_or(&none);
            let wanted = wanted.as_entries().unwrap_or(&none);
            let gone = was.keys().filter(|label| !wanted.contains_key(*label));
            for label in wanted.keys().chain(gone) {
                let of = |map: &BTreeMap<_, Value>| map.get(label).cloned().unwrap_or(Value::NULL);
                pair(&of(was), &of(wanted), at.join(label), found);
            }
        }
    }
}

/// Returns whether both are objects: then only what the schema names counts.
fn is_object_alike(a: &Value, b: &Value) -> bool {
    matches!(a.kind, Kind::Object(_)) && matches!(b.kind, Kind::Object(_))
}

fn drift_in(
    block: &Block,
    wanted: &Value,
    was: &Value,
    now: &Value,
    at: &Path,
    drifted: &mut Vec<DriftedAttribute>,
) {
    let names = block
        .attributes
        .iter()
        .filter(|(name, it)| it.role != Role::Computed && !field(wanted, name).is_null());
    for (name, attribute) in names {
        // What the provider never shows (a password) cannot be seen to drift.
        let (Some(was), Some(now)) = (was.get(name), now.get(name)) else {
            continue;
        };
        let sensitive = attribute.sensitive || field(wanted, name).contains_sensitive();
        note_drift(at.join(name), was, now, sensitive, drifted);
    }
    for (name, nested) in &block.blocks {
        let (Some(was), Some(now)) = (was.get(name), now.get(name)) else {
            continue;
        };
        let wanted = field(wanted, name);
        drift_of_nested(nested, wanted, was, now, &at.join(name), drifted);
    }
}

fn drift_of_nested(
    nested: &NestedBlock,
    wanted: &Value,
    was: &Value,
    now: &Value,
    at: &Path,
    drifted: &mut Vec<DriftedAttribute>,
) {
    let mut one = |wanted: &Value, was: &Value, now: &Value, at: Path| {
        let inside = [wanted, was, now]
            .iter()
            .all(|it| it.as_entries().is_some());
        if inside {
            drift_in(&nested.block, wanted, was, now, &at, drifted);
        } else if !wanted.is_null() {
            note_drift(at, was, now, wanted.contains_sensitive(), drifted);
        }
    };
    match nested.nesting {
        Nesting::Single => one(wanted, was, now, at.clone()),
        Nesting::List => {
            let [wanted, was, now] = [wanted, was, now].map(|it| it.as_elements());
            let (wanted, was) = (wanted.unwrap_or_default(), was.unwrap_or_default());
            let now = now.unwrap_or_default();
            for (index, wanted) in wanted.iter().enumerate() {
                let [was, now] = [was, now].map(|it| it.get(index).unwrap_or(&Value::NULL));
                one(wanted, was, now, at.index(index));
            }
        }
        Nesting::Labelled => {
            for (label, wanted) in wanted.as_entries().into_iter().flatten() {
                one(wanted, field(was, label), field(now, label), at.join(label));
            }
        }
    }
}

fn note_drift(
    path: Path,
    was: &Value,
    now: &Value,
    sensitive: bool,
    drifted: &mut Vec<DriftedAttribute>,
) {
    if !was.same(now) {
        drifted.push(DriftedAttribute {
            path,
            was: was.clone().sensitive_if(sensitive),
            now: now.clone().sensitive_if(sensitive),
        });
    }
}

/// Returns what changing the attribute or block at this path costs.
pub(crate) fn cost_of(block: &Block, path: &Path) -> Change {
    let mut segments = path.0.iter();
    let (mut block, mut cost) = (block, Change::default());
    while let Some(Segment::Attribute(name)) = segments.next() {
        if let Some(attribute) = block.attributes.get(name) {
            return attribute.change;
        }
        let Some(nested) = block.blocks.get(name) else {
            return cost;
        };
        (block, cost) = (&nested.block, nested.change);
        if nested.nesting != Nesting::Single {
            // Which of them it is: an index or a label.
            segments.next();
        }
    }
    cost
}

/// Returns what was asked of a machine without what is added to it once it is there: of a machine
/// that was only just made, nobody knows how much of that has come about.
pub(crate) fn without_additions(block: &Block, wanted: &Value) -> Value {
    let Some(entries) = wanted.as_entries() else {
        return wanted.clone();
    };
    let bare = entries.iter().map(|(name, value)| {
        let added = block.blocks.get(&**name);
        let value = match added.filter(|it| it.change == Change::InPlace) {
            None => value.clone(),
            Some(nested) => match nested.nesting {
                Nesting::Single => Value::NULL,
                Nesting::List => Value::list([]),
                Nesting::Labelled => Value::map::<Arc<str>>([]),
            },
        };
        (name.clone(), value)
    });
    Value::object::<Arc<str>>(bare).sensitive_if(wanted.sensitive)
}

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.get(name).unwrap_or(&Value::NULL)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gobs_model::Name;

    use super::*;

    fn schema() -> ProviderSchema {
        let text = Type::String;
        let machine = Block::of([
            (
                "size",
                Attribute::required(text.clone(), Change::InPlace, ""),
            ),
            (
                "image",
                Attribute::optional(text.clone(), Change::Rebuild, ""),
            ),
            (
                "zone",
                Attribute::optional(text.clone(), Change::Replace, ""),
            ),
            (
                "tags",
                Attribute::optional(Type::set(text.clone()), Change::InPlace, ""),
            ),
            (
                "host",
                Attribute::optional_computed(text.clone(), Change::Replace, ""),
            ),
            (
                "password",
                Attribute::optional(text.clone(), Change::InPlace, "").secret(),
            ),
            ("ipv4", Attribute::computed(text.clone(), "")),
        ]);
        let disk = Block::of([("gb", Attribute::required(Type::Number, Change::Resize, ""))]);
        let nested = |nesting| NestedBlock::new(nesting, Change::Rebuild, disk.clone());
        let blocks = [
            ("disk".to_owned(), nested(Nesting::List)),
            ("boot".to_owned(), nested(Nesting::Single)),
            ("volume".to_owned(), nested(Nesting::Labelled)),
        ];
        ProviderSchema {
            name: "cloud".into(),
            settings: Block::default(),
            machine: Block {
                blocks: blocks.into(),
                ..machine
            },
            list_lag: Duration::ZERO,
            hosts: gobs_model::Hosts::default(),
        }
    }

    fn check(was: Value, wanted: Value, expected: &[(&str, Change)]) {
        let found = differences(&schema().machine, &was, &Value::NULL, &wanted);
        let found: Vec<(String, Change)> = found
            .iter()
            .map(|it| (it.path.to_string(), it.change))
            .collect();
        let found: Vec<(&str, Change)> = found.iter().map(|it| (it.0.as_str(), it.1)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_differs_is_named_with_its_cost() {
        let was = Value::object([
            ("size", "s".into()),
            ("image", "a".into()),
            ("zone", "x".into()),
        ]);
        let same = was.clone();
        check(was.clone(), same, &[]);
        let now = Value::object([("size", "l".into()), ("image", "a".into())]);
        check(
            was,
            now,
            &[("size", Change::InPlace), ("zone", Change::Replace)],
        );
    }

    #[test]
    fn a_set_has_no_order_and_a_mark_is_no_difference() {
        let was = Value::object([("tags", Value::set(["a".into(), "b".into()]))]);
        let now = Value::object([("tags", Value::set(["b".into(), "a".into()]).sensitive())]);
        check(was, now, &[]);
    }

    #[test]
    fn an_unknown_differs_and_what_the_provider_chose_stays() {
        let was = Value::object([("size", "s".into()), ("host", "h1".into())]);
        let now = Value::object([
            ("size", Value::unknown(Type::String)),
            ("host", Value::NULL),
        ]);
        check(was.clone(), now, &[("size", Change::InPlace)]);
        check(
            was,
            Value::object([("size", "s".into()), ("host", "h2".into())]),
            &[("host", Change::Replace)],
        );
    }

    #[test]
    fn to_ask_for_what_the_provider_chose_changes_nothing() {
        let was = Value::object([("size", "s".into())]);
        let observed = Value::object([("size", "l".into()), ("host", "h1".into())]);
        let asked = |host: &str| Value::object([("size", "s".into()), ("host", host.into())]);
        let found = |host| differences(&schema().machine, &was, &observed, &asked(host));
        assert_eq!(found("h1"), []);
        assert_eq!(found("h2").len(), 1);
        // What was asked counts, where it was.
        let grown = Value::object([("size", "l".into())]);
        assert_eq!(
            differences(&schema().machine, &was, &observed, &grown).len(),
            1
        );
    }

    #[test]
    fn nested_blocks_are_compared_inside() {
        let disk = |gb: i64| Value::object([("gb", gb.into())]);
        let was = Value::object([
            ("disk", Value::list([disk(1), disk(2)])),
            ("boot", disk(1)),
            ("volume", Value::map([("data", disk(1)), ("old", disk(1))])),
        ]);
        let now = Value::object([
            ("disk", Value::list([disk(1), disk(3), disk(4)])),
            ("boot", Value::NULL),
            ("volume", Value::map([("data", disk(2)), ("new", disk(1))])),
        ]);
        check(
            was,
            now,
            &[
                ("boot", Change::Rebuild),
                ("disk[1].gb", Change::Resize),
                ("disk[2]", Change::Rebuild),
                ("volume.data.gb", Change::Resize),
                ("volume.new", Change::Rebuild),
                ("volume.old", Change::Rebuild),
            ],
        );
    }

    fn row(wanted: Value, observed: Value) -> Row {
        let known = |value| Known::try_from(value).expect("known");
        Row {
            address: gobs_model::Address::machine(Name::new("m").expect("a name"), None),
            wanted: known(wanted),
            observed: known(observed),
            depends_on: Vec::new(),
            version: 1,
            kind: RowKind::Machine {
                provider: "cloud".into(),
                id: "1".into(),
                token: "t".into(),
                incarnation: 1,
                enrolled: Some("mfrggzdf".into()),
            },
        }
    }

    #[test]
    fn drift_is_told_only_of_what_is_set_and_seen() {
        let wanted = Value::object([("size", "s".into()), ("password", "p".into())]);
        let row = row(
            wanted,
            Value::object([("size", "S".into()), ("ipv4", "1".into())]),
        );
        let now = |size: &str| {
            let now = Value::object([
                ("size", size.into()),
                ("zone", "new".into()),
                ("password", "q".into()),
                ("ipv4", "2".into()),
            ]);
            Known::try_from(now).expect("known")
        };
        assert_eq!(drift(&schema(), &row, Some(&now("S"))), None);
        let drifted = drift(&schema(), &row, Some(&now("L"))).expect("drift");
        let DriftKind::Changed(changed) = drifted.kind else {
            panic!("it is there")
        };
        let paths: Vec<String> = changed.iter().map(|it| it.path.to_string()).collect();
        assert_eq!(paths, ["size"]);
        let gone = drift(&schema(), &row, None).expect("drift");
        assert_eq!(gone.kind, DriftKind::Gone);
    }

    #[test]
    fn an_object_shows_what_was_asked_and_what_the_provider_chose() {
        let wanted = Value::object([("size", "s".into()), ("password", "p".into())]);
        let observed = [
            ("size", "S".into()),
            ("host", "h".into()),
            ("ipv4", "1".into()),
        ];
        let object = machine_object(&schema(), &row(wanted, Value::object(observed)));
        assert_eq!(
            format!("{object:?}"),
            r#"{"boot": null, "disk": null, "hob": {"designator": "mfrggzdf", "fingerprint": "#
                .to_owned()
                + r#""SHA256:NrvlDtloQdEEQ7y2cNZVTwo0t2G+Z+ycSorSwMRMpCw"}, "host": "h", "#
                + r#""image": null, "ipv4": "1", "password": (sensitive value), "size": "s", "#
                + r#""tags": null, "volume": null, "zone": null}"#
        );
    }
}
