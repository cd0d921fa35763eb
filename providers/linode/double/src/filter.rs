//! Lists: `X-Filter`, order and pages.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use crate::reply::Refusal;

/// How deep `+and` and `+or` may nest: more than any client sends.
const DEPTH_MAX: usize = 16;

/// Returns the page of a list that a request asks for.
pub(crate) fn page(
    items: Vec<Value>,
    filterable: &[&str],
    filter: Option<&str>,
    query: &str,
) -> Result<Value, Refusal> {
    let items = select(items, filterable, filter)?;
    let number = |name: &str, default: usize| -> Result<usize, Refusal> {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        match pairs.find(|(key, _)| *key == name) {
            None => Ok(default),
            Some((_, text)) => text
                .parse()
                .map_err(|_| Refusal::of(400, Some(name), "Must be an integer.")),
        }
    };
    let (page, size) = (number("page", 1)?, number("page_size", 100)?);
    if !(25..=500).contains(&size) {
        return Err(Refusal::of(400, Some("page_size"), "Must be 25-500"));
    }
    let pages = items.len().div_ceil(size).max(1);
    if page < 1 || page > pages {
        return Err(Refusal::not_found());
    }
    let results = items.len();
    let data: Vec<Value> = items
        .into_iter()
        .skip((page - 1) * size)
        .take(size)
        .collect();
    Ok(json!({"data": data, "page": page, "pages": pages, "results": results}))
}

fn select(
    mut items: Vec<Value>,
    filterable: &[&str],
    filter: Option<&str>,
) -> Result<Vec<Value>, Refusal> {
    let Some(text) = filter.filter(|it| !it.trim().is_empty()) else {
        return Ok(items);
    };
    let wrong = |reason: &str| Refusal::of(400, Some("X-Filter"), reason);
    let Ok(Value::Object(mut filter)) = serde_json::from_str(text) else {
        return Err(wrong("Filter must be valid JSON"));
    };
    let order_by = filter.remove("+order_by");
    let order = filter.remove("+order");
    let filter = Value::Object(filter);
    verify(&filter, filterable, 0)?;
    items.retain(|item| holds(&filter, item));
    if let Some(field) = order_by.as_ref().and_then(Value::as_str) {
        if !filterable.contains(&field) {
            return Err(wrong(&format!("Cannot order by {field}")));
        }
        items.sort_by(|a, b| compare(&field_of(a, field), &field_of(b, field)));
    }
    if order.as_ref().and_then(Value::as_str) == Some("desc") {
        items.reverse();
    }
    Ok(items)
}

fn verify(filter: &Value, filterable: &[&str], depth: usize) -> Result<(), Refusal> {
    let wrong = |reason: String| Refusal::of(400, Some("X-Filter"), &reason);
    if depth > DEPTH_MAX {
        return Err(wrong("Filter is nested too deeply".into()));
    }
    for (key, value) in filter.as_object().into_iter().flatten() {
        match key.as_str() {
            "+and" | "+or" => {
                let parts = value.as_array();
                for part in parts.ok_or_else(|| wrong(format!("{key} must be a list")))? {
                    verify(part, filterable, depth + 1)?;
                }
            }
            _ if filterable.contains(&key.as_str()) => {}
            _ => return Err(wrong(format!("Cannot filter on {key}"))),
        }
    }
    Ok(())
}

fn holds(filter: &Value, item: &Value) -> bool {
    let parts = |value: &Value| value.as_array().cloned().unwrap_or_default();
    filter
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, wanted)| match key.as_str() {
            "+and" => parts(wanted).iter().all(|part| holds(part, item)),
            "+or" => parts(wanted).iter().any(|part| holds(part, item)),
            field => {
                let seen = field_of(item, field);
                match wanted {
                    Value::Object(operators) => operators_hold(operators, &seen),
                    plain => equal(&seen, plain),
                }
            }
        })
}

fn operators_hold(operators: &Map<String, Value>, seen: &Value) -> bool {
    operators.iter().all(|(operator, wanted)| {
        let order = compare(seen, wanted);
        match operator.as_str() {
            "+gt" => order.is_gt(),
            "+gte" => order.is_ge(),
            "+lt" => order.is_lt(),
            "+lte" => order.is_le(),
            "+neq" => !equal(seen, wanted),
            "+contains" => match (seen.as_str(), wanted.as_str()) {
                (Some(seen), Some(part)) => seen.to_lowercase().contains(&part.to_lowercase()),
                _ => false,
            },
            _ => false,
        }
    })
}

/// Returns whether a field is what is sought, or a list that has it; texts whatever their case.
fn equal(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Array(items), wanted) => items.iter().any(|item| equal(item, wanted)),
        (Value::String(a), Value::String(b)) => a.eq_ignore_ascii_case(b),
        (a, b) => a == b,
    }
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => a
            .as_str()
            .unwrap_or_default()
            .cmp(b.as_str().unwrap_or_default()),
    }
}

fn field_of(item: &Value, field: &str) -> Value {
    let found = field
        .split('.')
        .try_fold(item, |value, name| value.get(name));
    found.cloned().unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filter: Value, expected: &[u64]) {
        let items = (1..=4)
            .map(|id| json!({"id": id, "label": format!("web-{id}"), "tags": [format!("T{id}")]}));
        let fields = ["id", "label", "tags"];
        let page = page(
            items.collect(),
            &fields,
            Some(&filter.to_string()),
            "page_size=25",
        );
        let ids = |page: &Value| -> Vec<u64> {
            let data = page["data"].as_array().cloned().unwrap_or_default();
            data.iter().filter_map(|item| item["id"].as_u64()).collect()
        };
        assert_eq!(page.map(|page| ids(&page)).unwrap_or_default(), expected);
    }

    #[test]
    fn filters_select_and_order() {
        check(json!({"label": "web-2"}), &[2]);
        check(json!({"tags": "t3"}), &[3]);
        check(
            json!({"id": {"+gte": 3}, "+order_by": "id", "+order": "desc"}),
            &[4, 3],
        );
        check(
            json!({"+or": [{"id": 1}, {"label": {"+contains": "-4"}}]}),
            &[1, 4],
        );
    }

    #[test]
    fn what_cannot_be_filtered_is_refused() {
        let refused = page(Vec::new(), &["id"], Some(r#"{"status":"running"}"#), "");
        let refused = refused.expect_err("status is not filterable");
        assert_eq!(
            refused.body()["errors"][0]["reason"],
            "Cannot filter on status"
        );
        assert!(page(Vec::new(), &[], None, "page_size=20").is_err());
        assert!(page(Vec::new(), &[], None, "page=2").is_err());
    }
}
