//! Conversion of values to types, and the one type that several have in common, as HCL does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Kind, ObjectField, Path, Type, Value};

/// Why a value cannot become a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// Where in the value.
    pub(crate) path: Path,
    /// A fragment: `string required, but have bool`.
    pub(crate) message: String,
}

/// Returns the word for a type in messages.
pub(crate) fn friendly(ty: &Type) -> String {
    match ty {
        Type::Any => "any value".into(),
        Type::Object(_) => "object".into(),
        Type::Tuple(_) => "tuple".into(),
        Type::List(of) if **of == Type::Any => "list".into(),
        Type::Set(of) if **of == Type::Any => "set".into(),
        Type::Map(of) if **of == Type::Any => "map".into(),
        Type::List(of) => format!("list of {}", friendly(of)),
        Type::Set(of) => format!("set of {}", friendly(of)),
        Type::Map(of) => format!("map of {}", friendly(of)),
        other => other.to_string(),
    }
}

/// Returns the value as the type asks.
pub(crate) fn convert(value: &Value, ty: &Type) -> Result<Value, Mismatch> {
    at(value, ty, &Path::default())
}

fn at(value: &Value, ty: &Type, path: &Path) -> Result<Value, Mismatch> {
    let mark = |kind: Kind| Value::from(kind).sensitive_if(value.sensitive);
    let wrong = || mismatch(path, ty, &value.type_of());
    if value.is_null() {
        return Ok(value.clone());
    }
    if let Kind::Unknown(have) = &value.kind {
        if !convertible(have, ty) {
            return Err(wrong());
        }
        let ty = if *ty == Type::Any { have } else { ty };
        return Ok(Value::unknown(ty.clone()).sensitive_if(value.sensitive));
    }
    match (ty, &value.kind) {
        (Type::Any, _)
        | (Type::String, Kind::String(_))
        | (Type::Number, Kind::Number(_))
        | (Type::Bool, Kind::Bool(_)) => Ok(value.clone()),
        (Type::Machine | Type::Service | Type::Binding, Kind::Ref(_)) => {
            if value.type_of() == *ty {
                Ok(value.clone())
            } else {
                Err(wrong())
            }
        }
        (Type::String, Kind::Number(number)) => {
            Ok(mark(Kind::String(number.to_string().as_str().into())))
        }
        (Type::String, Kind::Bool(value)) => Ok(mark(Kind::String(
            if *value { "true" } else { "false" }.into(),
        ))),
        (Type::Number, Kind::String(text)) => {
            let number = text.parse().map_err(|_| Mismatch {
                path: path.clone(),
                message: "a number is required".into(),
            })?;
            Ok(mark(Kind::Number(number)))
        }
        (Type::Bool, Kind::String(text)) => match &**text {
            "true" | "1" => Ok(mark(Kind::Bool(true))),
            "false" | "0" => Ok(mark(Kind::Bool(false))),
            other => {
                let lower = other.to_lowercase();
                let hint = if lower == "true" || lower == "false" {
                    format!("; to convert from string, use lowercase \"{lower}\"")
                } else {
                    String::new()
                };
                Err(Mismatch {
                    path: path.clone(),
                    message: format!("a bool is required{hint}"),
                })
            }
        },
        (Type::List(of), _) => {
            let elements = value.as_elements().ok_or_else(wrong)?;
            let of = element_type(of, elements.iter()).ok_or_else(|| uneven(path))?;
            let elements = sequence(elements, &of, path)?;
            Ok(mark(Kind::List(Arc::new(elements))))
        }
        (Type::Set(of), _) => {
            let elements = value.as_elements().ok_or_else(wrong)?;
            let of = element_type(of, elements.iter()).ok_or_else(|| uneven(path))?;
            let elements = sequence(elements, &of, path)?;
            // Whatever is in a set is found by its value: a secret in it is a secret of the set.
            let hidden = elements.iter().any(|it| it.sensitive);
            Ok(Value::set(elements).sensitive_if(value.sensitive || hidden))
        }
        (Type::Tuple(types), Kind::Tuple(elements)) if types.len() == elements.len() => {
            let each = elements.iter().zip(types).enumerate();
            let elements: Result<_, _> = each
                .map(|(index, (value, ty))| at(value, ty, &path.index(index)))
                .collect();
            Ok(mark(Kind::Tuple(Arc::new(elements?))))
        }
        (Type::Map(of), _) => {
            let entries = value.as_entries().ok_or_else(wrong)?;
            let of = element_type(of, entries.values()).ok_or_else(|| uneven(path))?;
            let entries: Result<BTreeMap<_, _>, _> = entries
                .iter()
                .map(|(key, value)| Ok((key.clone(), at(value, &of, &path.join(key))?)))
                .collect();
            Ok(mark(Kind::Map(Arc::new(entries?))))
        }
        (Type::Object(fields), _) => {
            let entries = value.as_entries().ok_or_else(wrong)?;
            Ok(mark(Kind::Object(Arc::new(object(entries, fields, path)?))))
        }
        _ => Err(wrong()),
    }
}

fn object(
    entries: &BTreeMap<Arc<str>, Value>,
    fields: &BTreeMap<String, ObjectField>,
    path: &Path,
) -> Result<BTreeMap<Arc<str>, Value>, Mismatch> {
    let missing: Vec<String> = fields
        .iter()
        .filter(|(name, field)| !field.optional && !entries.contains_key(name.as_str()))
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    if !missing.is_empty() {
        let noun = if missing.len() == 1 {
            "attribute"
        } else {
            "attributes"
        };
        let verb = if missing.len() == 1 { "is" } else { "are" };
        return Err(Mismatch {
            path: path.clone(),
            message: format!("{noun} {} {verb} required", missing.join(", ")),
        });
    }
    let mut result = BTreeMap::new();
    for (name, field) in fields {
        let given = entries.get(name.as_str()).unwrap_or(&Value::NULL);
        let value = match &field.default {
            Some(default) if given.is_null() => default,
            _ => given,
        };
        result.insert(
            Arc::from(name.as_str()),
            at(value, &field.ty, &path.join(name))?,
        );
    }
    Ok(result)
}

fn sequence(elements: &[Value], of: &Type, path: &Path) -> Result<Vec<Value>, Mismatch> {
    elements
        .iter()
        .enumerate()
        .map(|(index, value)| at(value, of, &path.index(index)))
        .collect()
}

/// The type for the elements: what is asked, or what they have in common.
fn element_type<'v>(of: &Type, values: impl Iterator<Item = &'v Value>) -> Option<Type> {
    if *of != Type::Any {
        return Some(of.clone());
    }
    let mut common = None;
    for value in values.filter(|value| !value.is_null()) {
        let ty = value.type_of();
        common = Some(match common {
            None => ty,
            Some(common) if common == ty => ty,
            Some(common) => unify(&common, &ty)?,
        });
    }
    Some(common.unwrap_or(Type::Any))
}

fn uneven(path: &Path) -> Mismatch {
    Mismatch {
        path: path.clone(),
        message: "all elements must have the same type".into(),
    }
}

fn mismatch(path: &Path, want: &Type, have: &Type) -> Mismatch {
    Mismatch {
        path: path.clone(),
        message: format!("{} required, but have {}", friendly(want), friendly(have)),
    }
}

/// Returns whether a value of one type may turn out to convert to the other.
pub(crate) fn convertible(from: &Type, to: &Type) -> bool {
    match (from, to) {
        (Type::Any, _)
        | (_, Type::Any)
        | (Type::String, Type::Number | Type::Bool)
        | (Type::Number | Type::Bool, Type::String) => true,
        (Type::List(a) | Type::Set(a), Type::List(b) | Type::Set(b))
        | (Type::Map(a), Type::Map(b)) => convertible(a, b),
        (Type::Tuple(types), Type::List(of) | Type::Set(of)) => {
            types.iter().all(|ty| convertible(ty, of))
        }
        (Type::Tuple(a), Type::Tuple(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| convertible(a, b))
        }
        (Type::Object(fields), Type::Map(of)) => {
            fields.values().all(|field| convertible(&field.ty, of))
        }
        (Type::Map(of), Type::Object(fields)) => {
            fields.values().all(|field| convertible(of, &field.ty))
        }
        (Type::Object(a), Type::Object(b)) => b.iter().all(|(name, field)| match a.get(name) {
            Some(have) => convertible(&have.ty, &field.ty),
            None => field.optional,
        }),
        (a, b) => a == b,
    }
}

/// Returns the type that values of both types convert to, if there is one.
pub(crate) fn unify(a: &Type, b: &Type) -> Option<Type> {
    if a == b {
        return Some(a.clone());
    }
    match (a, b) {
        (Type::Any, _) | (_, Type::Any) => Some(Type::Any),
        (Type::String, Type::Number | Type::Bool) | (Type::Number | Type::Bool, Type::String) => {
            Some(Type::String)
        }
        (Type::Tuple(x), Type::Tuple(y)) if x.len() == y.len() => {
            let each = x.iter().zip(y).map(|(x, y)| unify(x, y));
            each.collect::<Option<_>>().map(Type::Tuple)
        }
        (Type::Tuple(x), Type::Tuple(y)) => {
            let mut all = x.iter().chain(y);
            let first = all.next()?.clone();
            all.try_fold(first, |common, ty| unify(&common, ty))
                .map(Type::list)
        }
        (Type::List(x), Type::List(y) | Type::Set(y)) | (Type::Set(x), Type::List(y)) => {
            unify(x, y).map(Type::list)
        }
        (Type::Set(x), Type::Set(y)) => unify(x, y).map(Type::set),
        (Type::List(of), Type::Tuple(types)) | (Type::Tuple(types), Type::List(of)) => types
            .iter()
            .try_fold((**of).clone(), |common, ty| unify(&common, ty))
            .map(Type::list),
        (Type::Set(of), Type::Tuple(types)) | (Type::Tuple(types), Type::Set(of)) => types
            .iter()
            .try_fold((**of).clone(), |common, ty| unify(&common, ty))
            .map(Type::set),
        (Type::Map(x), Type::Map(y)) => unify(x, y).map(Type::map),
        (Type::Map(of), Type::Object(fields)) | (Type::Object(fields), Type::Map(of)) => fields
            .values()
            .try_fold((**of).clone(), |common, field| unify(&common, &field.ty))
            .map(Type::map),
        (Type::Object(x), Type::Object(y)) if x.keys().eq(y.keys()) => {
            let each = x.iter().zip(y.values()).map(|((name, x), y)| {
                let ty = unify(&x.ty, &y.ty)?;
                let field = ObjectField {
                    ty,
                    optional: false,
                    default: None,
                };
                Some((name.clone(), field))
            });
            each.collect::<Option<_>>().map(Type::Object)
        }
        (Type::Object(x), Type::Object(y)) => {
            let mut all = x.values().chain(y.values());
            let first = all.next()?.ty.clone();
            all.try_fold(first, |common, field| unify(&common, &field.ty))
                .map(Type::map)
        }
        _ => None,
    }
}
