//! Steps into values: attributes, indexes; and equality.

use std::sync::Arc;

use gobs_model::{Kind, Type, Value};

use super::convert::{convert, friendly};
use super::eval::Scope;
use super::suggest;

/// Why there is nothing at a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccessError {
    pub(crate) summary: &'static str,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
}

impl AccessError {
    pub(crate) fn new(summary: &'static str, detail: impl Into<String>) -> Self {
        Self {
            summary,
            detail: detail.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

const UNSUPPORTED: &str = "Unsupported attribute";
const INVALID_INDEX: &str = "Invalid index";

/// Returns `value.name`.
pub(crate) fn attribute(
    scope: &dyn Scope,
    value: &Value,
    name: &str,
) -> Result<Value, AccessError> {
    let found = match &value.kind {
        Kind::Object(entries) => entries.get(name).cloned().ok_or_else(|| {
            let names = entries.keys().map(|it| &**it);
            AccessError::new(
                UNSUPPORTED,
                format!("This object does not have an attribute named \"{name}\"."),
            )
            .hint(suggest::did_you_mean(name, names))
        }),
        Kind::Map(entries) => entries.get(name).cloned().ok_or_else(|| {
            let names = entries.keys().map(|it| &**it);
            AccessError::new(
                "Missing map element",
                format!("This map does not have an element with the key \"{name}\"."),
            )
            .hint(suggest::did_you_mean(name, names))
        }),
        Kind::Ref(address) => scope.attribute(address, name),
        Kind::Unknown(Type::Any | Type::Machine | Type::Service | Type::Binding) => {
            Ok(Value::unknown(Type::Any))
        }
        Kind::Unknown(Type::Map(of)) => Ok(Value::unknown((**of).clone())),
        Kind::Unknown(Type::Object(fields)) => match fields.get(name) {
            Some(field) => Ok(Value::unknown(field.ty.clone())),
            None => Err(AccessError::new(
                UNSUPPORTED,
                format!("This object does not have an attribute named \"{name}\"."),
            )
            .hint(suggest::did_you_mean(
                name,
                fields.keys().map(String::as_str),
            ))),
        },
        Kind::Null => Err(AccessError::new(
            "Attempt to get attribute from null value",
            format!("This value is null, so it does not have an attribute named \"{name}\"."),
        )),
        Kind::List(_)
        | Kind::Set(_)
        | Kind::Tuple(_)
        | Kind::Unknown(Type::List(_) | Type::Set(_) | Type::Tuple(_)) => Err(AccessError::new(
            UNSUPPORTED,
            format!(
                "A value of type {} does not have attributes.",
                friendly(&value.type_of())
            ),
        )
        .hint(Some(format!(
            "For the attribute \"{name}\" of every element, write [*].{name}."
        )))),
        _ => Err(AccessError::new(
            UNSUPPORTED,
            format!(
                "A value of type {} does not have attributes.",
                friendly(&value.type_of())
            ),
        )),
    };
    found.map(|it| it.sensitive_if(value.sensitive))
}

/// Returns `value[key]`.
pub(crate) fn index(scope: &dyn Scope, value: &Value, key: &Value) -> Result<Value, AccessError> {
    let sensitive = value.sensitive || key.sensitive;
    if value.is_null() {
        let detail = "This value is null, so it does not have any elements.";
        return Err(AccessError::new("Attempt to index null value", detail));
    }
    if key.is_null() {
        let detail = "A null value cannot be used as an index.";
        return Err(AccessError::new(INVALID_INDEX, detail));
    }
    let found = match &value.kind {
        Kind::Unknown(Type::Any) => Ok(Value::unknown(Type::Any)),
        Kind::List(elements) | Kind::Tuple(elements) => match position(key)? {
            Some(at) => element(elements, at, key),
            None => Ok(Value::unknown(match value.type_of() {
                Type::List(of) => *of,
                _ => Type::Any,
            })),
        },
        Kind::Map(entries) | Kind::Object(entries) => {
            let is_map = matches!(value.kind, Kind::Map(_));
            match text(key)? {
                Some(name) => entries.get(&name).cloned().ok_or_else(|| {
                    let shown = if key.sensitive {
                        "The given (sensitive) key".into()
                    } else {
                        format!("The given key {name:?}")
                    };
                    let names = entries.keys().map(|it| &**it);
                    let hint = if sensitive {
                        None
                    } else {
                        suggest::did_you_mean(&name, names)
                    };
                    AccessError::new(
                        INVALID_INDEX,
                        format!(
                            "{shown} does not identify an element in this {}.",
                            if is_map { "map" } else { "object" }
                        ),
                    )
                    .hint(hint)
                }),
                None => Ok(Value::unknown(match value.type_of() {
                    Type::Map(of) => *of,
                    // All instances of a machine are machines.
                    _ if entries.values().all(|it| it.type_of() == Type::Machine)
                        && !entries.is_empty() =>
                    {
                        Type::Machine
                    }
                    _ => Type::Any,
                })),
            }
        }
        Kind::Unknown(Type::List(of)) => position(key).map(|_| Value::unknown((**of).clone())),
        Kind::Unknown(Type::Map(of)) => text(key).map(|_| Value::unknown((**of).clone())),
        Kind::Unknown(Type::Tuple(types)) => position(key).and_then(|at| match at {
            None => Ok(Value::unknown(Type::Any)),
            Some(at) => types
                .get(at)
                .cloned()
                .map(Value::unknown)
                .ok_or_else(|| out_of_range(types.len(), key)),
        }),
        Kind::Unknown(Type::Object(_)) | Kind::Ref(_) => match text(key)? {
            Some(name) => attribute(scope, value, &name),
            None => Ok(Value::unknown(Type::Any)),
        },
        Kind::Unknown(Type::Machine | Type::Service | Type::Binding) => {
            Ok(Value::unknown(Type::Any))
        }
        Kind::Set(_) | Kind::Unknown(Type::Set(_)) => Err(AccessError::new(
            INVALID_INDEX,
            "The elements of a set have no order, so they cannot be reached by an index.",
        )
        .hint(Some("tolist(…) makes a list of a set.".into()))),
        _ => Err(AccessError::new(
            INVALID_INDEX,
            "This value does not have any indices.",
        )),
    };
    found.map(|it| it.sensitive_if(sensitive))
}

fn element(elements: &[Value], at: usize, key: &Value) -> Result<Value, AccessError> {
    elements
        .get(at)
        .cloned()
        .ok_or_else(|| out_of_range(elements.len(), key))
}

fn out_of_range(length: usize, key: &Value) -> AccessError {
    let why = if length == 0 {
        "the collection has no elements".into()
    } else if key.sensitive {
        "there is no such element".into()
    } else {
        format!(
            "the collection has {length} element{}, counted from 0",
            if length == 1 { "" } else { "s" }
        )
    };
    AccessError::new(
        INVALID_INDEX,
        format!("The given key does not identify an element in this collection: {why}."),
    )
}

/// Returns a key as a position; nothing while it is unknown.
fn position(key: &Value) -> Result<Option<usize>, AccessError> {
    let number = convert(key, &Type::Number).map_err(|_| {
        AccessError::new(
            INVALID_INDEX,
            "The given key does not identify an element in this collection: a number is required.",
        )
    })?;
    match number.as_number() {
        None => Ok(None),
        Some(number) => match number.to_i64().map(usize::try_from) {
            Some(Ok(at)) => Ok(Some(at)),
            _ => Err(AccessError::new(
                INVALID_INDEX,
                "The given key does not identify an element in this collection: a whole number \
                 from 0 on is required.",
            )),
        },
    }
}

/// Returns a key as text; nothing while it is unknown.
fn text(key: &Value) -> Result<Option<Arc<str>>, AccessError> {
    match convert(key, &Type::String) {
        Ok(Value {
            kind: Kind::String(text),
            ..
        }) => Ok(Some(text)),
        Ok(_) => Ok(None),
        Err(_) => Err(AccessError::new(
            INVALID_INDEX,
            "The given key does not identify an element in this collection: a string is required.",
        )),
    }
}

/// Returns whether two values are equal, if that can be said already. Values of different types
/// are not equal.
pub(crate) fn equal(a: &Value, b: &Value) -> Option<bool> {
    let all = |mut pairs: Box<dyn Iterator<Item = (&Value, &Value)> + '_>| {
        let mut sure = true;
        let differs = pairs.any(|(a, b)| match equal(a, b) {
            Some(same) => !same,
            None => {
                sure = false;
                false
            }
        });
        if differs {
            Some(false)
        } else {
            sure.then_some(true)
        }
    };
    match (&a.kind, &b.kind) {
        (Kind::Unknown(x), Kind::Unknown(y)) => may_equal(x, y),
        (Kind::Unknown(_), Kind::Null) | (Kind::Null, Kind::Unknown(_)) => None,
        (Kind::Unknown(ty), _) => may_equal(ty, &b.type_of()),
        (_, Kind::Unknown(ty)) => may_equal(ty, &a.type_of()),
        (Kind::List(x), Kind::List(y))
        | (Kind::Set(x), Kind::Set(y))
        | (Kind::Tuple(x), Kind::Tuple(y)) => {
            if Arc::ptr_eq(x, y) && !a.contains_unknown() {
                return Some(true);
            }
            if x.len() == y.len() {
                all(Box::new(x.iter().zip(y.iter())))
            } else if a.contains_unknown() && matches!(a.kind, Kind::Set(_)) {
                None
            } else {
                Some(false)
            }
        }
        (Kind::Map(x), Kind::Map(y)) | (Kind::Object(x), Kind::Object(y)) => {
            if x.keys().eq(y.keys()) {
                all(Box::new(x.values().zip(y.values())))
            } else {
                Some(false)
            }
        }
        (a, b) => Some(a == b),
    }
}

fn may_equal(a: &Type, b: &Type) -> Option<bool> {
    let simple = |ty: &Type| {
        matches!(
            ty,
            Type::String
                | Type::Number
                | Type::Bool
                | Type::Machine
                | Type::Service
                | Type::Binding
        )
    };
    (simple(a) && simple(b) && a != b).then_some(false)
}
