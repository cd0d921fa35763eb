//! What a plugin says of a machine, with what its schema calls sensitive marked so: a plugin that
//! forgets the mark must not bring a secret into the state in clear.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Block, Kind, Known, Nesting, Type, Value};

use crate::Observed;

/// Returns a machine with its secrets marked; nothing where its attributes are no object.
pub(super) fn conceal(schema: &Block, machine: Observed) -> Option<Observed> {
    let attributes = machine.attributes.into_value();
    attributes.as_entries()?;
    let attributes = Known::try_from(within(schema, &attributes)).ok()?;
    Some(Observed {
        id: machine.id,
        attributes,
    })
}

/// Returns a value in which what is sensitive is not known.
pub(super) fn veil(value: &Value) -> Value {
    if value.sensitive {
        return Value::unknown(Type::Any).sensitive();
    }
    changed(value, &|_, value| veil(value), &veil)
}

/// Marks a block, or each of a list of them; goes as deep as the schema does.
fn within(schema: &Block, value: &Value) -> Value {
    changed(
        value,
        &|name, value| marked(schema, name, value),
        &|element| within(schema, element),
    )
}

fn marked(schema: &Block, name: &str, value: &Value) -> Value {
    if let Some(attribute) = schema.attributes.get(name) {
        return value.clone().sensitive_if(attribute.sensitive);
    }
    match schema.blocks.get(name) {
        Some(nested) if nested.nesting == Nesting::Labelled => {
            let each = |value: &Value| within(&nested.block, value);
            changed(value, &|_, value| each(value), &each)
        }
        Some(nested) => within(&nested.block, value),
        None => value.clone(),
    }
}

/// Returns a value with its entries or its elements changed, whichever it has.
fn changed(
    value: &Value,
    entry: &dyn Fn(&str, &Value) -> Value,
    element: &dyn Fn(&Value) -> Value,
) -> Value {
    let entries = |entries: &BTreeMap<Arc<str>, Value>| {
        let entries = entries.iter();
        Arc::new(
            entries
                .map(|(name, value)| (name.clone(), entry(name, value)))
                .collect(),
        )
    };
    let elements = |elements: &[Value]| Arc::new(elements.iter().map(element).collect());
    let kind = match &value.kind {
        Kind::Object(it) => Kind::Object(entries(it)),
        Kind::Map(it) => Kind::Map(entries(it)),
        Kind::List(it) => Kind::List(elements(it)),
        Kind::Tuple(it) => Kind::Tuple(elements(it)),
        Kind::Set(it) => return Value::set(it.iter().map(element)).sensitive_if(value.sensitive),
        other => other.clone(),
    };
    Value::from(kind).sensitive_if(value.sensitive)
}

#[cfg(test)]
mod tests {
    use gobs_model::{Attribute, Change, NestedBlock};

    use super::*;

    fn check(said: &str, expected: &str) {
        let text = || Attribute::optional(Type::String, Change::InPlace, "Text.");
        let mut schema = Block::of([("size", text()), ("password", text().secret())]);
        for (name, nesting) in [
            ("one", Nesting::Single),
            ("many", Nesting::List),
            ("named", Nesting::Labelled),
        ] {
            let block = Block::of([("key", text().secret())]);
            let nested = NestedBlock::new(nesting, Change::InPlace, block);
            schema.blocks.insert(name.into(), nested);
        }
        let machine = Observed {
            id: "m".into(),
            attributes: serde_json::from_str(said).expect("a value"),
        };
        let seen = conceal(&schema, machine).expect("an object").attributes;
        let expected: Known = serde_json::from_str(expected).expect("a value");
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_the_schema_calls_sensitive_is_marked() {
        check(
            r#"{"object": {"size": "s", "password": "p", "other": "o"}}"#,
            r#"{"object": {"size": "s", "password": {"sensitive": "p"}, "other": "o"}}"#,
        );
        check(
            r#"{"object": {"password": {"sensitive": "p"}}}"#,
            r#"{"object": {"password": {"sensitive": "p"}}}"#,
        );
    }

    #[test]
    fn a_veil_hides_what_is_sensitive() {
        let secret = || Value::from("p").sensitive();
        let list = Value::list([Value::object([("key", secret())]), "open".into()]);
        let veiled = veil(&Value::object([("size", "s".into()), ("list", list)])).to_json();
        let unknown = r#"{"sensitive":{"unknown":"any"}}"#;
        let expected = format!(
            r#"{{"object":{{"list":{{"list":[{{"object":{{"key":{unknown}}}}},"open"]}},"size":"s"}}}}"#
        );
        assert_eq!(veiled.to_string(), expected);
    }

    #[test]
    fn nested_blocks_are_marked_too() {
        let said = r#"{"object": {
            "one": {"object": {"key": "k"}},
            "many": {"list": [{"object": {"key": "k"}}]},
            "named": {"map": {"key": {"object": {"key": "k"}}}}}}"#;
        check(
            said,
            &said.replace(r#""key": "k""#, r#""key": {"sensitive": "k"}"#),
        );
        let said = r#"{"object": {
            "one": {"map": {"key": "k"}},
            "many": [{"object": {"key": "k"}}],
            "named": {"object": {"key": {"map": {"key": "k"}}}}}}"#;
        check(
            said,
            &said.replace(r#""key": "k""#, r#""key": {"sensitive": "k"}"#),
        );
    }
}
