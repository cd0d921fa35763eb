//! Type expressions: what `type = …` of a variable says.

use std::collections::BTreeMap;

use gobs_model::{ObjectField, Type};

use super::convert::convert;
use super::decode::Decoder;
use super::suggest;
use super::syntax::{Call, Expr, ExprKind, Key};

const KEYWORDS: [&str; 7] = [
    "string", "number", "bool", "any", "machine", "service", "binding",
];
const CONSTRUCTORS: [&str; 6] = ["list", "set", "map", "object", "tuple", "optional"];

const INVALID: &str = "Invalid type specification";

/// Returns the type that an expression names; reports what is wrong.
pub(super) fn parse(decoder: &mut Decoder<'_>, expr: &Expr) -> Option<Type> {
    match &expr.kind {
        ExprKind::Parens(inner) => parse(decoder, inner),
        ExprKind::Reference(reference) if reference.path.is_empty() => {
            let ty = match &*reference.root.text {
                "string" => Type::String,
                "number" => Type::Number,
                "bool" => Type::Bool,
                "any" => Type::Any,
                "machine" => Type::Machine,
                "service" => Type::Service,
                "binding" => Type::Binding,
                // As Terraform: a collection without its element type.
                "list" => Type::list(Type::Any),
                "set" => Type::set(Type::Any),
                "map" => Type::map(Type::Any),
                other => {
                    let detail = format!("There is no type named \"{other}\".");
                    decoder.error(expr.span, INVALID, detail);
                    let known = KEYWORDS.into_iter().chain(CONSTRUCTORS);
                    decoder.hint(suggest::did_you_mean(other, known));
                    return None;
                }
            };
            Some(ty)
        }
        ExprKind::Call(call) => constructor(decoder, expr, call),
        ExprKind::Literal(value) if value.as_str().is_some() => {
            let text = value.as_str().unwrap_or_default();
            decoder.error(expr.span, INVALID, "A type is named without quotes.");
            decoder.hint(
                KEYWORDS
                    .contains(&text)
                    .then(|| format!("Write type = {text}.")),
            );
            None
        }
        _ => {
            let detail = "A type is a keyword such as string, or a call such as list(string).";
            decoder.error(expr.span, INVALID, detail);
            None
        }
    }
}

fn constructor(decoder: &mut Decoder<'_>, expr: &Expr, call: &Call) -> Option<Type> {
    let name = &*call.name.text;
    match (name, call.arguments.as_slice()) {
        ("list" | "set" | "map", [of]) => {
            let of = parse(decoder, of)?;
            Some(match name {
                "list" => Type::list(of),
                "set" => Type::set(of),
                _ => Type::map(of),
            })
        }
        (
            "tuple",
            [
                Expr {
                    kind: ExprKind::Tuple(types),
                    ..
                },
            ],
        ) => {
            let types: Vec<Option<Type>> = types.iter().map(|it| parse(decoder, it)).collect();
            types.into_iter().collect::<Option<_>>().map(Type::Tuple)
        }
        (
            "object",
            [
                Expr {
                    kind: ExprKind::Object(items),
                    ..
                },
            ],
        ) => {
            let mut fields = BTreeMap::new();
            let mut right = true;
            for (key, expr) in items {
                let Key::Word(name) = key else {
                    decoder.error(expr.span, INVALID, "An attribute's name must be a word.");
                    right = false;
                    continue;
                };
                match field(decoder, expr) {
                    Some(field) => drop(fields.insert(name.text.to_string(), field)),
                    None => right = false,
                }
            }
            right.then_some(Type::Object(fields))
        }
        ("optional", _) => {
            let detail = "\"optional\" can only stand around the type of an object's attribute.";
            decoder.error(call.name.span, INVALID, detail);
            None
        }
        ("list" | "set" | "map" | "tuple" | "object", _) => {
            let example = match name {
                "tuple" => "tuple([string, number])".into(),
                "object" => "object({ name = string })".into(),
                name => format!("{name}(string)"),
            };
            decoder.error(
                expr.span,
                INVALID,
                format!("One argument is needed: {example}."),
            );
            None
        }
        (other, _) => {
            let detail = format!("There is no type constructor named \"{other}\".");
            decoder.error(call.name.span, INVALID, detail);
            decoder.hint(suggest::did_you_mean(other, CONSTRUCTORS));
            None
        }
    }
}

fn field(decoder: &mut Decoder<'_>, expr: &Expr) -> Option<ObjectField> {
    let ExprKind::Call(call) = &expr.kind else {
        return required(decoder, expr);
    };
    if &*call.name.text != "optional" {
        return required(decoder, expr);
    }
    let (ty, default) = match call.arguments.as_slice() {
        [ty] => (ty, None),
        [ty, default] => (ty, Some(default)),
        _ => {
            let detail = "optional needs a type, and may have a default: optional(string, \"x\").";
            decoder.error(expr.span, INVALID, detail);
            return None;
        }
    };
    let ty = parse(decoder, ty)?;
    let default = match default {
        None => None,
        Some(expr) => {
            let value = decoder.constant(expr, &Type::Any, "The default")?;
            match convert(&value, &ty) {
                Ok(value) => Some(value).filter(|it| !it.is_null()),
                Err(error) => {
                    let detail = format!("This default does not fit its type: {}.", error.message);
                    decoder.error(expr.span, "Invalid default for optional attribute", detail);
                    return None;
                }
            }
        }
    };
    Some(ObjectField {
        ty,
        optional: true,
        default,
    })
}

fn required(decoder: &mut Decoder<'_>, expr: &Expr) -> Option<ObjectField> {
    Some(ObjectField {
        ty: parse(decoder, expr)?,
        optional: false,
        default: None,
    })
}
