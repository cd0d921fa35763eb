//! `for` expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use gobs_model::{Kind, Type, Value};

use super::convert::convert;
use super::eval::{Eval, wrong};
use super::syntax::{Expr, For};

impl Eval<'_> {
    pub(crate) fn for_expr(&mut self, expr: &Expr, it: &For) -> Value {
        let source = self.eval(&it.collection);
        let mut sensitive = source.sensitive;
        let Some(elements) = self.elements(&it.collection, &source) else {
            return wrong().sensitive_if(sensitive);
        };
        let mut unknown = false;
        let mut tuple = Vec::new();
        let mut object: BTreeMap<Arc<str>, Value> = BTreeMap::new();
        let mut groups: BTreeMap<Arc<str>, Vec<Value>> = BTreeMap::new();
        for (k, v) in elements {
            let depth = self.bind(it.key.as_ref(), &it.value, k, v);
            let before = self.errors.len();
            let keep = match &it.condition {
                Some(condition) => {
                    let value = self.for_condition(condition);
                    sensitive |= value.sensitive;
                    unknown |= value.is_unknown();
                    value.as_bool() == Some(true)
                }
                None => true,
            };
            if keep {
                self.for_item(expr, it, &mut tuple, &mut object, &mut groups, |flags| {
                    sensitive |= flags.sensitive;
                    unknown |= flags.unknown;
                });
            }
            self.unbind(depth);
            // One element's mistake is every element's: the first is enough.
            if self.errors.len() > before {
                return wrong().sensitive_if(sensitive);
            }
        }
        if unknown {
            return wrong().sensitive_if(sensitive);
        }
        let result = match (&it.key_expr, it.group) {
            (None, _) => Value::tuple(tuple),
            (Some(_), false) => Kind::Object(Arc::new(object)).into(),
            (Some(_), true) => Value::object(groups.into_iter().map(|(k, v)| (k, Value::tuple(v)))),
        };
        result.sensitive_if(sensitive)
    }

    fn for_condition(&mut self, condition: &Expr) -> Value {
        let value = self.eval(condition);
        if value.is_null() {
            let detail = "The \"if\" clause must not be null.";
            return self.fail(condition, condition.span, "Condition is null", detail);
        }
        convert(&value, &Type::Bool).unwrap_or_else(|error| {
            let detail = format!("The \"if\" clause is wrong: {}.", error.message);
            self.fail(
                condition,
                condition.span,
                "Invalid \"for\" condition",
                detail,
            )
        })
    }

    fn for_item(
        &mut self,
        expr: &Expr,
        it: &For,
        tuple: &mut Vec<Value>,
        object: &mut BTreeMap<Arc<str>, Value>,
        groups: &mut BTreeMap<Arc<str>, Vec<Value>>,
        mut note: impl FnMut(Flags),
    ) {
        let Some(key_expr) = &it.key_expr else {
            tuple.push(self.eval(&it.value_expr));
            return;
        };
        let key = self.eval(key_expr);
        let value = self.eval(&it.value_expr);
        let text = self.object_key(key_expr, &key);
        note(Flags {
            sensitive: key.sensitive,
            unknown: text.is_none(),
        });
        let Some(text) = text else { return };
        if it.group {
            groups.entry(text).or_default().push(value);
            return;
        }
        let std::collections::btree_map::Entry::Vacant(entry) = object.entry(text) else {
            let shown = if key.sensitive {
                "a sensitive value".into()
            } else {
                super::eval::describe(&key).replacen("is ", "", 1)
            };
            let detail = format!(
                "Two items have the key {shown}. To gather the values of a key, put \"...\" after \
                 the value."
            );
            self.fail(expr, key_expr.span, "Duplicate object key", detail);
            return;
        };
        entry.insert(value);
    }
}

struct Flags {
    sensitive: bool,
    unknown: bool,
}
