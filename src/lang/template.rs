//! Templates: texts with interpolations and directives.

use gobs_model::{Kind, Type, Value};

use super::convert::convert;
use super::eval::{Eval, STRING_BYTES_MAX};
use super::syntax::{Expr, Part, Template};

/// What is known of a text beside its words.
#[derive(Default)]
pub(crate) struct Rendered {
    pub(crate) unknown: bool,
    pub(crate) sensitive: bool,
}

impl Eval<'_> {
    pub(crate) fn template(&mut self, expr: &Expr, template: &Template) -> Value {
        let mut text = String::new();
        let mut state = Rendered::default();
        self.render(template, &mut text, &mut state);
        if text.len() > STRING_BYTES_MAX {
            return self.too_long(expr);
        }
        if state.unknown {
            return Value::unknown(Type::String).sensitive_if(state.sensitive);
        }
        Value::from(Kind::String(super::lower::nfc(&text))).sensitive_if(state.sensitive)
    }

    fn too_long(&mut self, expr: &Expr) -> Value {
        let detail = "A text may have at most 16 MiB.";
        self.fail_at(expr.span, "Text too long", detail, None)
    }

    fn render(&mut self, template: &Template, out: &mut String, state: &mut Rendered) {
        for part in &template.parts {
            if out.len() > STRING_BYTES_MAX {
                return;
            }
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Value(expr) => self.interpolate(expr, out, state),
                Part::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let Some(chosen) = self.condition(condition, "if", state) else {
                        state.unknown = true;
                        continue;
                    };
                    let (taken, other) = if chosen {
                        (then, otherwise)
                    } else {
                        (otherwise, then)
                    };
                    self.render(taken, out, state);
                    // That a secret was left out tells something of it, so the mark stays.
                    let mut unseen = Rendered::default();
                    self.apart(|eval| {
                        eval.render(other, &mut String::new(), &mut unseen);
                    });
                    state.sensitive |= unseen.sensitive;
                }
                Part::For {
                    key,
                    value,
                    collection,
                    body,
                } => {
                    let source = self.eval(collection);
                    state.sensitive |= source.sensitive;
                    let Some(elements) = self.elements(collection, &source) else {
                        state.unknown = true;
                        continue;
                    };
                    for (k, v) in elements {
                        if out.len() > STRING_BYTES_MAX {
                            return;
                        }
                        let depth = self.bind(key.as_ref(), value, k, v);
                        self.render(body, out, state);
                        self.unbind(depth);
                    }
                }
            }
        }
    }

    fn interpolate(&mut self, expr: &Expr, out: &mut String, state: &mut Rendered) {
        let value = self.eval(expr);
        state.sensitive |= value.sensitive;
        if value.is_null() {
            let detail = "The expression is null: a text cannot hold it.";
            self.fail(expr, expr.span, "Invalid template value", detail);
            state.unknown = true;
            return;
        }
        match convert(&value, &Type::String) {
            Ok(Value {
                kind: Kind::String(text),
                ..
            }) => out.push_str(&text),
            Ok(_) => state.unknown = true,
            Err(error) => {
                let detail = match &value.kind {
                    Kind::Ref(address) => format!(
                        "{address} is a {}, which cannot become text; use one of its attributes.",
                        address.kind()
                    ),
                    _ => format!("This cannot become text: {}.", error.message),
                };
                self.fail(expr, expr.span, "Invalid template value", detail);
                state.unknown = true;
            }
        }
    }

    pub(crate) fn condition(
        &mut self,
        expr: &Expr,
        what: &str,
        state: &mut Rendered,
    ) -> Option<bool> {
        let value = self.eval(expr);
        state.sensitive |= value.sensitive;
        if value.is_null() {
            let detail = format!("The condition of \"{what}\" must not be null.");
            self.fail(expr, expr.span, "Condition is null", detail);
            return None;
        }
        match convert(&value, &Type::Bool) {
            Ok(value) => value.as_bool(),
            Err(error) => {
                let detail = format!("The condition is wrong: {}.", error.message);
                self.fail(expr, expr.span, "Incorrect condition type", detail);
                None
            }
        }
    }
}
