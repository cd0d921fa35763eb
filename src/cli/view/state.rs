//! What exists, as the state has it: HCL to read, JSON to work with.

use gobs_model::{Address, Kind, Type, Value};
use serde_json::{Map, Value as Json, json};

use super::text::{BOLD, printable_line, styled};
use super::value::{Layout, Mark, Names, line, literal};

/// Returns each object as a block under its address.
pub fn objects<'a>(objects: impl IntoIterator<Item = (&'a Address, &'a Value)>) -> String {
    objects
        .into_iter()
        .map(|(address, value)| object(address, value))
        .collect()
}

fn object(address: &Address, value: &Value) -> String {
    let (kind, name) = match address {
        Address::Machine(it) => ("machine", &it.name),
        Address::Service { service, .. } => ("service", service),
        Address::Binding(it) => ("binding", &it.name),
        Address::Output(name) => ("output", name),
    };
    let heading = format!("# {}:", printable_line(&address.to_string()));
    let mut out = format!("{}\n{kind} \"{name}\" {{\n", styled(BOLD, heading));
    let layout = Layout {
        indent: 0,
        always: &[],
        names: Names::Attributes,
        arrow_null: false,
        noun: "attribute",
    };
    let entries = value.as_entries().into_iter().flatten();
    let shown: Vec<(String, &Value)> = entries
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (layout.name(name), value))
        .collect();
    let width = shown.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    for (name, value) in shown {
        out += &line(
            Mark::Keep,
            4,
            &format!("{name:width$} = {}", literal(value, 4)),
        );
    }
    out + "}\n\n"
}

/// Returns a value as plain JSON, as Terraform's `output -json` has it. What is sensitive is
/// `null`, unless the caller was asked for it by name.
pub fn json(value: &Value, reveal: bool) -> Json {
    if value.sensitive && !reveal {
        return Json::Null;
    }
    match &value.kind {
        Kind::Unknown(_) | Kind::Null => Json::Null,
        Kind::Bool(value) => Json::Bool(*value),
        Kind::Number(number) => {
            // A number that JSON's readers would round stays exact as text.
            let text = number.to_string();
            let parsed = serde_json::from_str::<serde_json::Number>(&text);
            match parsed {
                Ok(it) if it.to_string() == text => Json::Number(it),
                _ => Json::String(text),
            }
        }
        Kind::String(text) => Json::String(text.to_string()),
        Kind::List(it) | Kind::Set(it) | Kind::Tuple(it) => {
            Json::Array(it.iter().map(|value| json(value, reveal)).collect())
        }
        Kind::Map(it) | Kind::Object(it) => {
            let entries = it.iter();
            let entries = entries.map(|(name, value)| (name.to_string(), json(value, reveal)));
            Json::Object(entries.collect::<Map<_, _>>())
        }
        Kind::Ref(address) => Json::String(address.to_string()),
    }
}

/// Returns an output as Terraform's JSON has it: whether it is sensitive, its type, its value.
pub fn output_json(value: &Value, reveal: bool) -> Json {
    json!({
        "sensitive": value.contains_sensitive(),
        "type": type_json(&value.type_of()),
        "value": json(value, reveal),
    })
}

/// Returns a type as cty's JSON has it: `"string"`, `["list", "string"]`.
fn type_json(ty: &Type) -> Json {
    match ty {
        Type::Any => json!("dynamic"),
        Type::String | Type::Machine | Type::Service | Type::Binding => json!("string"),
        Type::Number => json!("number"),
        Type::Bool => json!("bool"),
        Type::List(of) => json!(["list", type_json(of)]),
        Type::Set(of) => json!(["set", type_json(of)]),
        Type::Map(of) => json!(["map", type_json(of)]),
        Type::Tuple(of) => json!(["tuple", of.iter().map(type_json).collect::<Vec<_>>()]),
        Type::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, field)| (name.clone(), type_json(&field.ty)));
            json!(["object", fields.collect::<Map<_, _>>()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_a_block_under_its_address() {
        let address = "machine.web[\"a\"]".parse().expect("an address");
        let value = Value::object([
            ("id", "i-1".into()),
            ("password", Value::from("hunter2").sensitive()),
            ("run", Value::list(["a".into()])),
            ("zone", Value::NULL),
        ]);
        assert_eq!(
            anstream::adapter::strip_str(&objects([(&address, &value)])).to_string(),
            "# machine.web[\"a\"]:
machine \"web\" {
    id       = \"i-1\"
    password = (sensitive value)
    run      = [
        \"a\",
    ]
}

"
        );
    }

    #[test]
    fn json_has_types_exact_numbers_and_no_secret_unasked() {
        let number = |text: &str| text.parse::<gobs_model::Number>().expect("a number");
        let value = Value::object([
            ("exact", number("0.5").into()),
            ("huge", number("123456789012345678901234567890").into()),
            ("list", Value::list([1.into(), 2.into()])),
            ("secret", Value::from("hunter2").sensitive()),
        ]);
        assert_eq!(
            output_json(&value, false),
            json!({
                "sensitive": true,
                "type": ["object", {
                    "exact": "number",
                    "huge": "number",
                    "list": ["list", "number"],
                    "secret": "string",
                }],
                "value": {
                    "exact": 0.5,
                    "huge": "123456789012345678901234567890",
                    "list": [1, 2],
                    "secret": null,
                },
            })
        );
        assert_eq!(json(&value, true)["secret"], "hunter2");
    }
}
