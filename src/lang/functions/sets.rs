//! Functions of sets.

use gobs_model::{Kind, Type, Value};

use super::Kinds::{Any, Set};
use super::{Arguments, Failure, Function, as_type, common, nullable, parameter, passing, plain};

pub(super) const FUNCTIONS: &[Function] = &[
    plain("setintersection", &[parameter("sets", Set)], Set, |a| {
        combine(a, |one, others| others.iter().all(|other| has(other, one)))
    })
    .rest(parameter("sets", Set)),
    plain(
        "setsubtract",
        &[parameter("a", Set), parameter("b", Set)],
        Set,
        |a| combine(a, |one, others| !others.iter().any(|other| has(other, one))),
    ),
    plain("setunion", &[parameter("sets", Set)], Set, |a| {
        let all = a.values.iter().filter_map(Value::as_elements).flatten();
        let all: Vec<Value> = all.cloned().collect();
        let ty = common(&all)?;
        Ok(Value::set(all.iter().map(|it| as_type(it, &ty))))
    })
    .rest(parameter("sets", Set)),
    plain(
        "setproduct",
        &[parameter("sets", Any), parameter("sets", Any)],
        Any,
        setproduct,
    )
    .rest(parameter("sets", Any)),
    passing("toset", &[nullable("value", Any)], Set, |a| {
        super::encoding::to(a, &Type::set(Type::Any))
    }),
];

fn has(set: &[Value], one: &Value) -> bool {
    set.binary_search_by(|it| it.set_order(one)).is_ok()
}

fn combine(a: &Arguments<'_>, keep: fn(&Value, &[Vec<Value>]) -> bool) -> Result<Value, Failure> {
    let all = a.values.iter().filter_map(Value::as_elements).flatten();
    let ty = common(&all.cloned().collect::<Vec<_>>())?;
    let mut sets = a.values.iter().map(|set| {
        let elements = set.as_elements().unwrap_or_default();
        let set = Value::set(elements.iter().map(|it| as_type(it, &ty)));
        set.as_elements().unwrap_or_default().to_vec()
    });
    let first = sets.next().unwrap_or_default();
    let others: Vec<Vec<Value>> = sets.collect();
    Ok(Value::set(
        first.into_iter().filter(|one| keep(one, &others)),
    ))
}

/// The most combinations that are made: a mistake must not take the machine's memory.
const PRODUCT_MAX: usize = 1_000_000;

fn setproduct(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut product: Vec<Vec<Value>> = vec![Vec::new()];
    for (at, set) in a.values.iter().enumerate() {
        let elements = set
            .as_elements()
            .ok_or_else(|| Failure::at(at, "a list or a set is required"))?;
        if product.len().saturating_mul(elements.len()) > PRODUCT_MAX {
            return Err(format!("there are more than {PRODUCT_MAX} combinations").into());
        }
        product = product
            .iter()
            .flat_map(|head| {
                elements.iter().map(|element| {
                    let mut combination = head.clone();
                    combination.push(element.clone());
                    combination
                })
            })
            .collect();
    }
    let tuples = product.into_iter().map(Value::tuple);
    Ok(
        if a.values.iter().all(|it| matches!(it.kind, Kind::Set(_))) {
            Value::set(tuples)
        } else {
            Value::list(tuples)
        },
    )
}
