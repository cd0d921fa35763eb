//! Functions of lists and maps.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Kind, Type, Value};
use unicode_segmentation::UnicodeSegmentation;

use super::Kinds::{Any, Bool, Bools, List, Map, Number, String as Str, Strings};
use super::{
    Arguments, Failure, Function, as_type, common, is_sequence, nullable, parameter, passing, plain,
};
use crate::lang::access::equal;

pub(super) const FUNCTIONS: &[Function] = &[
    passing("alltrue", &[parameter("list", Bools)], Bool, |a| {
        Ok(every(a, false))
    }),
    passing("anytrue", &[parameter("list", Bools)], Bool, |a| {
        Ok(every(a, true))
    }),
    passing(
        "chunklist",
        &[parameter("list", List), parameter("size", Number)],
        List,
        chunklist,
    ),
    passing("coalesce", &[nullable("values", Any)], Any, coalesce).rest(nullable("values", Any)),
    passing("coalescelist", &[nullable("lists", Any)], Any, coalescelist)
        .rest(nullable("lists", Any)),
    passing("compact", &[parameter("list", Strings)], Strings, compact),
    passing("concat", &[parameter("lists", Any)], Any, concat).rest(parameter("lists", Any)),
    plain(
        "contains",
        &[parameter("list", Any), nullable("value", Any)],
        Bool,
        contains,
    ),
    plain("distinct", &[parameter("list", List)], List, distinct),
    passing(
        "element",
        &[parameter("list", Any), parameter("index", Number)],
        Any,
        element,
    ),
    passing("flatten", &[parameter("list", Any)], Any, flatten),
    plain(
        "index",
        &[parameter("list", Any), nullable("value", Any)],
        Number,
        index,
    ),
    passing("keys", &[parameter("map", Any)], Strings, keys),
    passing("values", &[parameter("map", Any)], Any, values),
    passing("length", &[parameter("value", Any)], Number, length),
    passing(
        "lookup",
        &[
            parameter("map", Any),
            parameter("key", Str),
            nullable("default", Any),
        ],
        Any,
        lookup,
    )
    .optional(1),
    passing("merge", &[], Any, merge).rest(nullable("maps", Any)),
    passing("one", &[parameter("list", Any)], Any, one),
    passing("reverse", &[parameter("list", Any)], Any, reverse),
    passing(
        "slice",
        &[
            parameter("list", Any),
            parameter("start", Number),
            parameter("end", Number),
        ],
        Any,
        slice,
    ),
    plain("sort", &[parameter("list", Strings)], Strings, sort),
    plain(
        "transpose",
        &[parameter("map", super::Kinds::ListsOfStrings)],
        Map,
        transpose,
    ),
    passing(
        "zipmap",
        &[parameter("keys", Strings), parameter("values", Any)],
        Any,
        zipmap,
    ),
    passing("tolist", &[nullable("value", Any)], List, |a| {
        super::encoding::to(a, &Type::list(Type::Any))
    }),
    passing("tomap", &[nullable("value", Any)], Map, |a| {
        super::encoding::to(a, &Type::map(Type::Any))
    }),
];

/// Whether an element decides; unknown while one that could is unknown.
fn every(a: &Arguments<'_>, decides: bool) -> Value {
    let elements = a.elements(0);
    let sensitive = elements.iter().any(|it| it.sensitive);
    // A null counts as false.
    let is = |it: &Value| it.as_bool().unwrap_or(false) == decides && !it.is_unknown();
    let result = if elements.iter().any(is) {
        decides.into()
    } else if elements.iter().any(Value::is_unknown) {
        Value::unknown(Type::Bool)
    } else {
        Value::from(!decides)
    };
    result.sensitive_if(sensitive)
}

fn count(a: &Arguments<'_>, at: usize) -> Result<usize, Failure> {
    usize::try_from(a.integer(at)?).map_err(|_| Failure::at(at, "it must not be negative"))
}

fn chunklist(a: &Arguments<'_>) -> Result<Value, Failure> {
    let elements = a.elements(0);
    let size = match count(a, 1)? {
        0 => elements.len().max(1),
        size => size,
    };
    Ok(Value::list(
        elements
            .chunks(size)
            .map(|it| Value::list(it.iter().cloned()))
            .collect::<Vec<_>>(),
    ))
}

fn coalesce(a: &Arguments<'_>) -> Result<Value, Failure> {
    let ty = common(&a.values)?;
    let found = a
        .values
        .iter()
        .find(|it| !it.is_null() && it.as_str().is_none_or(|text| !text.is_empty()));
    found
        .map(|it| as_type(it, &ty))
        .ok_or_else(|| "no argument is neither null nor an empty string".into())
}

fn coalescelist(a: &Arguments<'_>) -> Result<Value, Failure> {
    for (at, value) in a.values.iter().enumerate() {
        if value.is_null() {
            continue;
        }
        match value.as_elements() {
            Some([]) => {}
            Some(_) => return Ok(value.clone()),
            None => return Err(Failure::at(at, "a list is required")),
        }
    }
    Err("no argument is a list with elements".into())
}

fn compact(a: &Arguments<'_>) -> Result<Value, Failure> {
    let elements = a.elements(0);
    if elements.iter().any(Value::is_unknown) {
        return Ok(Value::unknown(Type::list(Type::String)));
    }
    // Whether a secret is empty shows in the length of the result.
    let sensitive = elements.iter().any(|it| it.sensitive);
    let kept = elements
        .iter()
        .filter(|it| it.as_str().is_some_and(|text| !text.is_empty()));
    Ok(Value::list(kept.cloned().collect::<Vec<_>>()).sensitive_if(sensitive))
}

fn concat(a: &Arguments<'_>) -> Result<Value, Failure> {
    if let Some(at) = a.values.iter().position(|it| !is_sequence(it)) {
        return Err(Failure::at(at, "a list or a tuple is required"));
    }
    let all = a.values.iter().filter_map(Value::as_elements).flatten();
    let all: Vec<Value> = all.cloned().collect();
    if a.values.iter().all(|it| matches!(it.kind, Kind::List(_)))
        && let Ok(ty) = common(&all)
    {
        return Ok(Value::list(all.iter().map(|it| as_type(it, &ty))));
    }
    Ok(Value::tuple(all))
}

fn contains(a: &Arguments<'_>) -> Result<Value, Failure> {
    let elements = sequence(a, 0)?;
    Ok(elements
        .iter()
        .any(|it| equal(it, &a.values[1]) == Some(true))
        .into())
}

/// The elements of a list, a set or a tuple.
fn sequence<'a>(a: &'a Arguments<'_>, at: usize) -> Result<&'a [Value], Failure> {
    a.values[at]
        .as_elements()
        .ok_or_else(|| Failure::at(at, "a list, a set or a tuple is required"))
}

fn distinct(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut seen = std::collections::HashSet::new();
    let kept = a.elements(0).iter().filter(|it| seen.insert((*it).clone()));
    Ok(Value::list(kept.cloned().collect::<Vec<_>>()))
}

fn element(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (Kind::List(elements) | Kind::Tuple(elements)) = &a.values[0].kind else {
        return Err(Failure::at(0, "a list or a tuple is required"));
    };
    let length = i64::try_from(elements.len()).unwrap_or(i64::MAX);
    if length == 0 {
        return Err(Failure::at(0, "an empty list has no elements"));
    }
    let at = a.integer(1)?.rem_euclid(length);
    Ok(elements[usize::try_from(at).unwrap_or(0)].clone())
}

fn flatten(a: &Arguments<'_>) -> Result<Value, Failure> {
    fn add(value: &Value, sensitive: bool, out: &mut Vec<Value>) -> Option<()> {
        let sensitive = sensitive || value.sensitive;
        match &value.kind {
            Kind::List(it) | Kind::Set(it) | Kind::Tuple(it) => {
                it.iter().try_for_each(|it| add(it, sensitive, out))
            }
            // It may turn out to be a list with any number of elements.
            Kind::Unknown(Type::Any | Type::List(_) | Type::Set(_) | Type::Tuple(_)) => None,
            _ => {
                out.push(value.clone().sensitive_if(sensitive));
                Some(())
            }
        }
    }
    let mut out = Vec::new();
    for value in sequence(a, 0)? {
        if add(value, false, &mut out).is_none() {
            return Ok(Value::unknown(Type::Any));
        }
    }
    Ok(Value::tuple(out))
}

fn index(a: &Arguments<'_>) -> Result<Value, Failure> {
    let elements = sequence(a, 0)?;
    elements
        .iter()
        .position(|it| equal(it, &a.values[1]) == Some(true))
        .map(|at| gobs_model::Number::from(at).into())
        .ok_or_else(|| Failure::at(1, "the list has no such element"))
}

fn entries<'a>(a: &'a Arguments<'_>) -> Result<&'a BTreeMap<Arc<str>, Value>, Failure> {
    a.values[0]
        .as_entries()
        .ok_or_else(|| Failure::at(0, "a map or an object is required"))
}

fn keys(a: &Arguments<'_>) -> Result<Value, Failure> {
    let keys = entries(a)?.keys().map(|it| Kind::String(it.clone()).into());
    let keys: Vec<Value> = keys.collect();
    Ok(match a.values[0].kind {
        Kind::Map(_) => Value::list(keys),
        _ => Value::tuple(keys),
    })
}

fn values(a: &Arguments<'_>) -> Result<Value, Failure> {
    let values: Vec<Value> = entries(a)?.values().cloned().collect();
    Ok(match a.values[0].kind {
        Kind::Map(_) => Value::list(values),
        _ => Value::tuple(values),
    })
}

fn length(a: &Arguments<'_>) -> Result<Value, Failure> {
    let value = &a.values[0];
    let length = match &value.kind {
        Kind::String(text) => text.graphemes(true).count(),
        Kind::List(it) | Kind::Tuple(it) => it.len(),
        // Unknown elements may turn out to be equal.
        Kind::Set(it) if it.len() > 1 && it.iter().any(Value::contains_unknown) => {
            return Ok(Value::unknown(Type::Number));
        }
        Kind::Set(it) => it.len(),
        Kind::Map(it) | Kind::Object(it) => it.len(),
        _ => {
            return Err(Failure::at(
                0,
                "a text, a collection or an object is required",
            ));
        }
    };
    Ok(gobs_model::Number::from(length).into())
}

fn lookup(a: &Arguments<'_>) -> Result<Value, Failure> {
    let key = a.text(1);
    match (entries(a)?.get(key), a.values.get(2)) {
        (Some(found), _) => Ok(found.clone()),
        (None, Some(default)) => Ok(match a.values[0].type_of() {
            Type::Map(of) => as_type(default, &of),
            _ => default.clone(),
        }),
        (None, None) => Err(Failure::at(1, format!("the map has no key {key:?}"))),
    }
}

fn merge(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut result = BTreeMap::new();
    let mut maps = true;
    for (at, value) in a.values.iter().enumerate() {
        if value.is_null() {
            continue;
        }
        let entries = value
            .as_entries()
            .ok_or_else(|| Failure::at(at, "a map or an object is required"))?;
        maps &= matches!(value.kind, Kind::Map(_));
        result.extend(entries.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    let all: Vec<Value> = result.values().cloned().collect();
    if maps
        && !a.values.is_empty()
        && let Ok(ty) = common(&all)
    {
        return Ok(Value::map(
            result.into_iter().map(|(k, v)| (k, as_type(&v, &ty))),
        ));
    }
    Ok(Kind::Object(Arc::new(result)).into())
}

fn one(a: &Arguments<'_>) -> Result<Value, Failure> {
    match sequence(a, 0)? {
        [] => Ok(Value::NULL),
        [one] => Ok(one.clone()),
        _ => Err(Failure::at(0, "it must have no element or one")),
    }
}

fn reverse(a: &Arguments<'_>) -> Result<Value, Failure> {
    let elements: Vec<Value> = sequence(a, 0)?.iter().rev().cloned().collect();
    Ok(match a.values[0].kind {
        Kind::Tuple(_) => Value::tuple(elements),
        _ => Value::list(elements),
    })
}

fn slice(a: &Arguments<'_>) -> Result<Value, Failure> {
    if !is_sequence(&a.values[0]) {
        return Err(Failure::at(0, "a list or a tuple is required"));
    }
    let elements = a.elements(0);
    let (start, end) = (count(a, 1)?, count(a, 2)?);
    if end > elements.len() {
        return Err(Failure::at(2, "it must not be beyond the end of the list"));
    }
    if start > end {
        return Err(Failure::at(1, "it must not be above the end index"));
    }
    let elements = elements[start..end].to_vec();
    Ok(match a.values[0].kind {
        Kind::Tuple(_) => Value::tuple(elements),
        _ => Value::list(elements),
    })
}

fn sort(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut elements = a.elements(0).to_vec();
    if elements.iter().any(Value::is_null) {
        return Err(Failure::at(0, "a null value cannot be sorted"));
    }
    elements.sort_by(Value::set_order);
    Ok(Value::list(elements))
}

fn transpose(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut result: BTreeMap<Arc<str>, Vec<Value>> = BTreeMap::new();
    for (key, list) in entries(a)? {
        for value in list.as_elements().unwrap_or_default() {
            let text = value
                .as_str()
                .ok_or_else(|| Failure::at(0, "a null value cannot be a key"))?;
            result
                .entry(text.into())
                .or_default()
                .push(Kind::String(key.clone()).into());
        }
    }
    Ok(Value::map(
        result
            .into_iter()
            .map(|(key, list)| (key, Value::list(list))),
    ))
}

fn zipmap(a: &Arguments<'_>) -> Result<Value, Failure> {
    let (keys, values) = (a.elements(0), sequence(a, 1)?);
    if keys.len() != values.len() {
        return Err(format!("there are {} keys and {} values", keys.len(), values.len()).into());
    }
    if keys.iter().any(Value::is_unknown) {
        return Ok(Value::unknown(Type::Any));
    }
    let sensitive = keys.iter().any(|it| it.sensitive);
    let mut entries = Vec::new();
    for (key, value) in keys.iter().zip(values) {
        let key = key
            .as_str()
            .ok_or_else(|| Failure::at(0, "a key must not be null"))?;
        entries.push((key, value.clone()));
    }
    let result = match a.values[1].kind {
        Kind::Tuple(_) => Value::object(entries),
        _ => Value::map(entries),
    };
    Ok(result.sensitive_if(sensitive))
}
