//! The published JSON Schema, read for as much of JSON Schema as it uses.

use serde_json::{Map, Value as Json};

pub(crate) struct Schema(Json);

impl Schema {
    pub(crate) fn published() -> Self {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/provider-protocol.schema.json"
        );
        let text = std::fs::read_to_string(path).expect("the schema");
        Self(serde_json::from_str(&text).expect("JSON"))
    }

    /// Fails where a message is not as this definition says.
    #[track_caller]
    pub(crate) fn check(&self, definition: &str, message: &Json) {
        if let Some(why) = self.wrong(definition, message) {
            panic!("{why}\nin {message}");
        }
    }

    /// Returns what is wrong with a message.
    pub(crate) fn wrong(&self, definition: &str, message: &Json) -> Option<String> {
        self.validate(&self.0["$defs"][definition], message).err()
    }

    fn validate(&self, schema: &Json, value: &Json) -> Result<(), String> {
        for (keyword, rule) in schema.as_object().expect("a schema is an object") {
            let is_right = match keyword.as_str() {
                "$ref" => {
                    let name = rule.as_str().and_then(|it| it.strip_prefix("#/$defs/"));
                    let target = &self.0["$defs"][name.expect("a definition")];
                    self.validate(target, value)?;
                    true
                }
                "oneOf" => self.matches(rule, value) == 1,
                "anyOf" => self.matches(rule, value) > 0,
                "const" => value == rule,
                "enum" => rule.as_array().expect("a list").contains(value),
                "type" => match rule {
                    Json::Array(names) => names.iter().any(|name| is_a(value, name)),
                    name => is_a(value, name),
                },
                "minimum" => value.as_f64().is_none_or(|it| Some(it) >= rule.as_f64()),
                "minProperties" => members(value).count() as u64 >= rule.as_u64().expect("a count"),
                "maxProperties" => members(value).count() as u64 <= rule.as_u64().expect("a count"),
                "required" => {
                    let mut names = rule.as_array().expect("a list").iter();
                    names.all(|name| value.get(name.as_str().expect("a name")).is_some())
                }
                "properties" => {
                    for (name, rule) in members(rule) {
                        if let Some(member) = value.get(name) {
                            self.validate(rule, member)
                                .map_err(|why| format!("{name}: {why}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    let known = schema.get("properties");
                    let others = members(value)
                        .filter(|(name, _)| known.is_none_or(|it| it.get(name).is_none()));
                    for (name, member) in others {
                        match rule {
                            Json::Bool(may) if !may => return Err(format!("{name} is too much")),
                            rule => self.validate(rule, member)?,
                        }
                    }
                    true
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        self.validate(rule, item)?;
                    }
                    true
                }
                "description" | "default" => true,
                other => panic!("this test does not know {other}"),
            };
            if !is_right {
                return Err(format!("it breaks {keyword} {rule}"));
            }
        }
        Ok(())
    }

    fn matches(&self, schemas: &Json, value: &Json) -> usize {
        let schemas = schemas.as_array().expect("a list").iter();
        schemas
            .filter(|schema| self.validate(schema, value).is_ok())
            .count()
    }
}

fn is_a(value: &Json, name: &Json) -> bool {
    match name.as_str().expect("a name of a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("this test does not know the type {other}"),
    }
}

fn members(value: &Json) -> impl Iterator<Item = (&String, &Json)> {
    value.as_object().into_iter().flat_map(Map::iter)
}
