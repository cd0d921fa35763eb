//! Functions: Terraform's, with their names, arguments and results.

mod collection;
mod encoding;
mod format;
mod number;
mod sets;
mod string;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use gobs_model::{Kind, Type, Value};

use super::convert::{convert, friendly};
use super::eval::{Eval, STRING_BYTES_MAX, wrong};
use super::inputs::Inputs;
use super::suggest;
use super::syntax::{Call, Expr};

/// A function that gets evaluated arguments.
struct Function {
    name: &'static str,
    parameters: &'static [Parameter],
    /// What any further arguments are.
    rest: Option<Parameter>,
    /// How many of `parameters` may be left out.
    optional: usize,
    returns: Kinds,
    /// Whether elements pass through: then an unknown or sensitive element stays one in the
    /// result; otherwise it makes the whole result so.
    passes: bool,
    run: Run,
}

type Run = fn(&Arguments<'_>) -> Result<Value, Failure>;

/// The arguments of a call, converted as the parameters ask.
struct Arguments<'a> {
    values: Vec<Value>,
    inputs: Option<&'a Inputs>,
}

#[derive(Clone, Copy)]
struct Parameter {
    name: &'static str,
    kind: Kinds,
    /// Whether `null` is an argument like others.
    nullable: bool,
}

/// Types that a constant can name.
#[derive(Clone, Copy, PartialEq)]
enum Kinds {
    Any,
    String,
    Number,
    Bool,
    List,
    Strings,
    Numbers,
    Bools,
    Set,
    Map,
    ListsOfStrings,
}

impl Kinds {
    fn to_type(self) -> Type {
        match self {
            Self::Any => Type::Any,
            Self::String => Type::String,
            Self::Number => Type::Number,
            Self::Bool => Type::Bool,
            Self::List => Type::list(Type::Any),
            Self::Strings => Type::list(Type::String),
            Self::Numbers => Type::list(Type::Number),
            Self::Bools => Type::list(Type::Bool),
            Self::Set => Type::set(Type::Any),
            Self::Map => Type::map(Type::Any),
            Self::ListsOfStrings => Type::map(Type::list(Type::String)),
        }
    }
}

/// Why a call has no result.
struct Failure {
    argument: Option<usize>,
    message: String,
}

impl Failure {
    fn at(argument: usize, message: impl Into<String>) -> Self {
        Self {
            argument: Some(argument),
            message: message.into(),
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self {
            argument: None,
            message,
        }
    }
}

impl From<&str> for Failure {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl Arguments<'_> {
    fn text(&self, at: usize) -> &str {
        self.values
            .get(at)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn elements(&self, at: usize) -> &[Value] {
        self.values
            .get(at)
            .and_then(Value::as_elements)
            .unwrap_or_default()
    }

    fn integer(&self, at: usize) -> Result<i64, Failure> {
        self.values
            .get(at)
            .and_then(Value::as_i64)
            .ok_or_else(|| Failure::at(at, "a whole number is required"))
    }
}

const fn parameter(name: &'static str, kind: Kinds) -> Parameter {
    Parameter {
        name,
        kind,
        nullable: false,
    }
}

const fn nullable(name: &'static str, kind: Kinds) -> Parameter {
    Parameter {
        name,
        kind,
        nullable: true,
    }
}

/// A function of its whole arguments.
const fn plain(
    name: &'static str,
    parameters: &'static [Parameter],
    returns: Kinds,
    run: Run,
) -> Function {
    Function {
        name,
        parameters,
        rest: None,
        optional: 0,
        returns,
        passes: false,
        run,
    }
}

/// A function that lets elements pass.
const fn passing(
    name: &'static str,
    parameters: &'static [Parameter],
    returns: Kinds,
    run: Run,
) -> Function {
    Function {
        passes: true,
        ..plain(name, parameters, returns, run)
    }
}

impl Function {
    const fn rest(self, rest: Parameter) -> Self {
        Self {
            rest: Some(rest),
            ..self
        }
    }

    const fn optional(self, optional: usize) -> Self {
        Self { optional, ..self }
    }

    fn signature(&self) -> String {
        let required = self.parameters.len() - self.optional;
        let rest = self.rest.map(|it| it.name);
        let mut names: Vec<String> = self
            .parameters
            .iter()
            .filter(|it| Some(it.name) != rest)
            .enumerate()
            .map(|(at, it)| {
                let mark = if at < required { "" } else { "?" };
                format!("{}{mark}", it.name)
            })
            .collect();
        names.extend(self.rest.iter().map(|it| format!("{}...", it.name)));
        format!("{}({})", self.name, names.join(", "))
    }

    fn parameter(&self, at: usize) -> Option<&Parameter> {
        self.parameters.get(at).or(self.rest.as_ref())
    }
}

static TABLE: LazyLock<BTreeMap<&str, &Function>> = LazyLock::new(|| {
    [
        number::FUNCTIONS,
        string::FUNCTIONS,
        format::FUNCTIONS,
        collection::FUNCTIONS,
        sets::FUNCTIONS,
        encoding::FUNCTIONS,
    ]
    .into_iter()
    .flatten()
    .map(|function| (function.name, function))
    .collect()
});

/// The functions that look at their arguments themselves, with their signatures.
const LAZY: [(&str, &str); 6] = [
    ("can", "can(expression)"),
    ("try", "try(expressions...)"),
    ("sensitive", "sensitive(value)"),
    ("nonsensitive", "nonsensitive(value)"),
    ("issensitive", "issensitive(value)"),
    ("type", "type(value)"),
];

/// Returns whether there is such a function.
pub(crate) fn exists(name: &str) -> bool {
    TABLE.contains_key(name) || LAZY.iter().any(|(lazy, _)| *lazy == name)
}

/// Returns the function's name that a wrong one may stand for, as a hint.
pub(crate) fn suggestion(name: &str) -> Option<String> {
    let lazy = LAZY.iter().map(|(name, _)| *name);
    suggest::did_you_mean(name, TABLE.keys().copied().chain(lazy))
}

pub(crate) const UNKNOWN_FUNCTION: &str = "Call to unknown function";

/// Returns the detail for an unknown function.
pub(crate) fn unknown_detail(name: &str) -> String {
    format!("There is no function named \"{name}\".")
}

/// Returns what a call yields.
pub(crate) fn call(eval: &mut Eval<'_>, expr: &Expr, call: &Call) -> Value {
    let name = &*call.name.text;
    if let Some((_, signature)) = LAZY.iter().find(|(lazy, _)| *lazy == name) {
        return lazy(eval, expr, call, signature);
    }
    let Some(function) = TABLE.get(name) else {
        let hint = suggestion(name);
        return eval.fail_at(call.name.span, UNKNOWN_FUNCTION, unknown_detail(name), hint);
    };
    let before = eval.errors.len();
    let mut sensitive = false;
    let Some(values) = arguments(eval, call, &mut sensitive) else {
        return Value::unknown(function.returns.to_type()).sensitive_if(sensitive);
    };
    let few = values.len() < function.parameters.len() - function.optional;
    let many = function.rest.is_none() && values.len() > function.parameters.len();
    if few || many {
        let (summary, how) = if few {
            ("Not enough function arguments", "few")
        } else {
            ("Too many function arguments", "many")
        };
        let detail = format!("Too {how} arguments: {}.", function.signature());
        return eval.fail_at(expr.span, summary, detail, None);
    }
    let values = converted(eval, expr, call, function, values);
    if eval.errors.len() > before {
        return Value::unknown(function.returns.to_type());
    }
    let hidden =
        |value: &Value| value.sensitive || (!function.passes && value.contains_sensitive());
    sensitive |= values.iter().any(hidden);
    let unknown =
        |value: &Value| value.is_unknown() || (!function.passes && value.contains_unknown());
    if values.iter().any(unknown) {
        return Value::unknown(function.returns.to_type()).sensitive_if(sensitive);
    }
    let arguments = Arguments {
        values,
        inputs: eval.scope.inputs(),
    };
    match (function.run)(&arguments) {
        Ok(value) => {
            if value
                .as_str()
                .is_some_and(|text| text.len() > STRING_BYTES_MAX)
            {
                let detail = "A text may have at most 16 MiB.";
                return eval.fail_at(expr.span, "Text too long", detail, None);
            }
            value.sensitive_if(sensitive)
        }
        Err(failure) => {
            let hidden = sensitive || arguments.values.iter().any(Value::contains_sensitive);
            failed(eval, expr, call, function, &failure, hidden)
        }
    }
}

/// Evaluates arguments; nothing when the last, to be expanded, is not known or wrong.
fn arguments(eval: &mut Eval<'_>, call: &Call, sensitive: &mut bool) -> Option<Vec<Value>> {
    let mut values: Vec<Value> = call.arguments.iter().map(|it| eval.eval(it)).collect();
    if !call.expand {
        return Some(values);
    }
    let last = values.pop()?;
    *sensitive |= last.sensitive;
    let expr = call.arguments.last()?;
    if last.is_unknown() {
        return None;
    }
    let Some(elements) = last.as_elements() else {
        let detail = "What is expanded with \"...\" must be a list, a set or a tuple.";
        eval.fail(expr, expr.span, "Invalid expanding argument value", detail);
        return None;
    };
    values.extend(elements.iter().cloned());
    Some(values)
}

fn converted(
    eval: &mut Eval<'_>,
    expr: &Expr,
    call: &Call,
    function: &Function,
    values: Vec<Value>,
) -> Vec<Value> {
    let mut result = Vec::with_capacity(values.len());
    for (at, value) in values.into_iter().enumerate() {
        let Some(parameter) = function.parameter(at) else {
            break;
        };
        if value.is_null() {
            if !parameter.nullable {
                let failure = Failure::at(at, "argument must not be null");
                failed(eval, expr, call, function, &failure, false);
            }
            result.push(value);
            continue;
        }
        match convert(&value, &parameter.kind.to_type()) {
            Ok(value) => result.push(value),
            Err(error) => {
                let failure = Failure::at(at, error.message);
                failed(eval, expr, call, function, &failure, false);
                result.push(wrong());
            }
        }
    }
    result
}

fn failed(
    eval: &mut Eval<'_>,
    expr: &Expr,
    call: &Call,
    function: &Function,
    failure: &Failure,
    hidden: bool,
) -> Value {
    let message = if hidden {
        "the reason is not shown, since it would tell a sensitive value"
    } else {
        &failure.message
    };
    let signature = function.signature();
    match failure.argument {
        Some(at) => {
            let name = function.parameter(at).map_or("", |it| it.name);
            let place = call.arguments.get(at).or(call.arguments.last());
            let place = place.unwrap_or(expr);
            let detail = format!("Invalid value for \"{name}\" of {signature}: {message}.");
            eval.fail(place, place.span, "Invalid function argument", detail);
        }
        None => {
            let detail = format!("The call to {signature} failed: {message}.");
            eval.fail(expr, expr.span, "Error in function call", detail);
        }
    }
    Value::unknown(function.returns.to_type())
}

fn lazy(eval: &mut Eval<'_>, expr: &Expr, call: &Call, signature: &str) -> Value {
    let name = &*call.name.text;
    if name == "try" {
        return first_of(eval, expr, call);
    }
    let [argument] = call.arguments.as_slice() else {
        let summary = if call.arguments.is_empty() {
            "Not enough function arguments"
        } else {
            "Too many function arguments"
        };
        let detail = format!("One argument is needed: {signature}.");
        return eval.fail_at(expr.span, summary, detail, None);
    };
    if name == "can" {
        let (value, errors) = eval.apart(|eval| eval.eval(argument));
        return if !errors.is_empty() {
            false.into()
        } else if value.contains_unknown() {
            Value::unknown(Type::Bool)
        } else {
            true.into()
        };
    }
    let value = eval.eval(argument);
    match name {
        "sensitive" => value.sensitive(),
        "nonsensitive" => revealed(&value),
        "issensitive" if value.is_unknown() && !value.sensitive => Value::unknown(Type::Bool),
        "issensitive" => value.sensitive.into(),
        // `type`
        _ if value.is_unknown() && value.type_of() == Type::Any => Value::unknown(Type::String),
        _ => type_text(&value).as_str().into(),
    }
}

fn type_text(value: &Value) -> String {
    match value.type_of() {
        Type::Any if value.is_null() => "null".into(),
        ty => ty.to_string(),
    }
}

/// Takes the mark from a value; marks of what is in it stay.
fn revealed(value: &Value) -> Value {
    Value::from(value.kind.clone())
}

fn first_of(eval: &mut Eval<'_>, expr: &Expr, call: &Call) -> Value {
    let mut last = Vec::new();
    for argument in &call.arguments {
        let (value, errors) = eval.apart(|eval| eval.eval(argument));
        if errors.is_empty() {
            // What is not known yet may still turn out to fail.
            return if value.is_unknown()
                && argument.span != call.arguments[call.arguments.len() - 1].span
            {
                wrong().sensitive_if(value.sensitive)
            } else {
                value
            };
        }
        last = errors;
    }
    let why = last.first().map_or_else(String::new, |error| {
        format!(" The last one: {}", error.detail)
    });
    let detail = format!("No argument of try(expressions...) has a value.{why}");
    eval.fail(expr, expr.span, "Error in function call", detail)
}

/// Returns the one type of several values, or an error that says what they are.
fn common(values: &[Value]) -> Result<Type, Failure> {
    let mut result: Option<Type> = None;
    for value in values.iter().filter(|it| !it.is_null()) {
        let ty = value.type_of();
        result = Some(match result {
            None => ty,
            Some(other) => super::convert::unify(&other, &ty).ok_or_else(|| {
                Failure::from(format!(
                    "all values must have one type, but there are {} and {}",
                    friendly(&other),
                    friendly(&ty)
                ))
            })?,
        });
    }
    Ok(result.unwrap_or(Type::Any))
}

/// Returns a value in another type that is known to fit; itself where it does not.
fn as_type(value: &Value, ty: &Type) -> Value {
    convert(value, ty).unwrap_or_else(|_| value.clone())
}

/// Returns whether a value is ordered: a list or a tuple.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind, Kind::List(_) | Kind::Tuple(_))
}
