//! The evaluator of expressions, with unknown, sensitive and reference values.
//!
//! A mistake is noted and evaluation goes on with an unknown value, so that every mistake of an
//! expression is found and none causes a second message.

use std::sync::Arc;

use gobs_model::{Address, Diagnostic, Kind, Number, Type, Value};

use super::access::{self, AccessError};
use super::convert::{self, convert, friendly, unify};
use super::functions;
use super::inputs::Inputs;
use super::source::{Sources, Span};
use super::syntax::{
    Access, AccessKind, Binary, Call, Conditional, Expr, ExprKind, Key, Operator, Reference, Splat,
    SplatEach, Word,
};
use super::template::Rendered;

/// The longest text that a template or a function makes: doubling in a chain of locals must not
/// take the machine's memory.
pub(crate) const STRING_BYTES_MAX: usize = 16 << 20;
/// The most references whose values an error shows.
const SHOWN_MAX: usize = 6;
/// The longest text that an error shows of a value, in characters.
const SHOWN_CHARS_MAX: usize = 80;
/// The parser nests at most 64 levels and 128 operators; this bounds what evaluation adds.
const DEPTH_MAX: usize = 512;

/// What an expression can refer to.
pub(crate) trait Scope {
    /// Returns what a reference starts with, and how many steps of its path are used up.
    fn resolve(&self, reference: &Reference) -> Result<(Value, usize), Vec<Diagnostic>>;

    /// Returns an attribute of a machine, service or binding; the error is a detail and a hint.
    fn attribute(&self, of: &Address, name: &str) -> Result<Value, AccessError>;

    /// Returns what functions read from outside.
    fn inputs(&self) -> Option<&Inputs>;
}

pub(crate) struct Eval<'s> {
    pub(crate) scope: &'s dyn Scope,
    pub(crate) sources: &'s Sources,
    pub(crate) errors: Vec<Diagnostic>,
    /// The variables of the `for` expressions around.
    names: Vec<(Arc<str>, Value)>,
    depth: usize,
    /// Whether values of references are gathered for errors.
    explain: bool,
}

/// The value that stands for a mistake.
pub(crate) fn wrong() -> Value {
    Value::unknown(Type::Any)
}

impl<'s> Eval<'s> {
    pub(crate) fn new(scope: &'s dyn Scope, sources: &'s Sources) -> Self {
        Self {
            scope,
            sources,
            errors: Vec::new(),
            names: Vec::new(),
            depth: 0,
            explain: true,
        }
    }

    /// Returns the value of an expression as a type asks.
    pub(crate) fn typed(&mut self, expr: &Expr, ty: &Type, what: &str) -> Value {
        let value = self.eval(expr);
        match convert(&value, ty) {
            Ok(value) => value,
            Err(error) => {
                let place = if error.path.0.is_empty() {
                    String::new()
                } else {
                    format!(" at {}", error.path)
                };
                let detail = format!("{what} is not right{place}: {}.", error.message);
                self.fail(expr, expr.span, "Incorrect attribute value type", detail)
            }
        }
    }

    /// Notes a mistake, with the values of what the expression refers to.
    pub(crate) fn fail(
        &mut self,
        expr: &Expr,
        span: Span,
        summary: &str,
        detail: impl Into<String>,
    ) -> Value {
        let mut error = self.sources.error(span, summary, detail);
        if self.explain {
            error.values = self.values(expr);
        }
        self.errors.push(error);
        wrong()
    }

    /// Notes a mistake at which no value could be of help.
    pub(crate) fn fail_at(
        &mut self,
        span: Span,
        summary: &str,
        detail: impl Into<String>,
        hint: Option<String>,
    ) -> Value {
        let mut error = self.sources.error(span, summary, detail);
        error.hint = hint;
        self.errors.push(error);
        wrong()
    }

    fn access_error(&mut self, expr: &Expr, span: Span, error: AccessError) -> Value {
        self.fail(expr, span, error.summary, error.detail);
        if let Some(last) = self.errors.last_mut() {
            last.hint = error.hint;
        }
        wrong()
    }

    fn values(&mut self, expr: &Expr) -> Vec<(String, String)> {
        let mut references = Vec::new();
        super::reference::references(expr, &mut |reference, span| {
            if references.len() < SHOWN_MAX {
                references.push((reference.clone(), span));
            }
        });
        self.explain = false;
        let mut shown: Vec<(String, String)> = Vec::new();
        for (reference, span) in references {
            let text = self.sources.text(span).to_owned();
            if shown.iter().any(|(other, _)| *other == text) {
                continue;
            }
            let before = self.errors.len();
            let whole = Expr {
                kind: ExprKind::Reference(reference),
                span,
            };
            let value = self.eval(&whole);
            // Without inputs every variable is unknown, which is no news.
            let news = !value.is_unknown()
                || (self.scope.inputs().is_some() && value.type_of() != Type::Any);
            if self.errors.len() == before && news {
                shown.push((text, describe(&value)));
            }
            self.errors.truncate(before);
        }
        self.explain = true;
        shown
    }

    /// Runs with mistakes kept apart; returns them.
    pub(crate) fn apart<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> (T, Vec<Diagnostic>) {
        let before = self.errors.len();
        let result = run(self);
        (result, self.errors.split_off(before))
    }

    pub(crate) fn eval(&mut self, expr: &Expr) -> Value {
        if self.depth >= DEPTH_MAX {
            return self.fail_at(
                expr.span,
                "Expression too deep",
                "This is nested too deeply to be evaluated.",
                None,
            );
        }
        self.depth += 1;
        let value = self.dispatch(expr);
        self.depth -= 1;
        value
    }

    // Small, so that deep nesting needs little stack: each kind has a function of its own.
    fn dispatch(&mut self, expr: &Expr) -> Value {
        match &expr.kind {
            ExprKind::Literal(value) => value.clone(),
            ExprKind::Parens(inner) => self.eval(inner),
            ExprKind::Reference(reference) => self.reference(expr, reference),
            ExprKind::Access(base, path) => {
                let base = self.eval(base);
                self.path(expr, base, path)
            }
            ExprKind::Template(template) => self.template(expr, template),
            ExprKind::Tuple(elements) => {
                Value::tuple(elements.iter().map(|it| self.eval(it)).collect::<Vec<_>>())
            }
            ExprKind::Object(items) => self.object(items),
            ExprKind::Splat(splat) => self.splat(expr, splat),
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::Not(inner) => self.not(inner),
            ExprKind::Negate(inner) => self.negate(inner),
            ExprKind::Binary(binary) => self.binary(expr, binary),
            ExprKind::Conditional(it) => self.conditional(expr, it),
            ExprKind::For(it) => self.for_expr(expr, it),
            ExprKind::Wrong => wrong(),
        }
    }

    fn reference(&mut self, expr: &Expr, reference: &Reference) -> Value {
        let root = &reference.root.text;
        if let Some((_, value)) = self.names.iter().rev().find(|(name, _)| name == root) {
            let value = value.clone();
            return self.path(expr, value, &reference.path);
        }
        match self.scope.resolve(reference) {
            Ok((value, used)) => self.path(expr, value, &reference.path[used..]),
            Err(errors) => {
                // A wrong local that is named twice is still one mistake.
                for error in errors {
                    if !self.errors.contains(&error) {
                        self.errors.push(error);
                    }
                }
                wrong()
            }
        }
    }

    pub(crate) fn path(&mut self, expr: &Expr, base: Value, path: &[Access]) -> Value {
        let mut value = base;
        // The machine whose services are named next.
        let mut offering = None;
        for access in path {
            let next = match &access.kind {
                AccessKind::Attribute(name) => {
                    access::attribute(self.scope, &value, name).map_err(|error| match &offering {
                        Some(machine) => no_service(machine, name, error),
                        None => error,
                    })
                }
                AccessKind::Index(key) => {
                    let key = self.eval(key);
                    access::index(self.scope, &value, &key)
                }
            };
            offering = match (&value.kind, &access.kind) {
                (Kind::Ref(address), AccessKind::Attribute(name))
                    if matches!(**address, Address::Machine(_)) && &**name == "service" =>
                {
                    Some(Address::clone(address))
                }
                _ => None,
            };
            value = match next {
                Ok(value) => value,
                Err(error) => return self.access_error(expr, access.span, error),
            };
        }
        value
    }

    fn object(&mut self, items: &[(Key, Expr)]) -> Value {
        let mut entries = std::collections::BTreeMap::new();
        let mut sensitive = false;
        let mut unknown = false;
        for (key, expr) in items {
            let value = self.eval(expr);
            let key = match key {
                Key::Word(word) => word.text.clone(),
                Key::Expr(expr) => {
                    let key = self.eval(expr);
                    sensitive |= key.sensitive;
                    match self.object_key(expr, &key) {
                        Some(key) => key,
                        None => {
                            unknown = true;
                            continue;
                        }
                    }
                }
            };
            entries.insert(key, value);
        }
        if unknown {
            return wrong().sensitive_if(sensitive);
        }
        Value::from(Kind::Object(Arc::new(entries))).sensitive_if(sensitive)
    }

    /// Returns a key as text; nothing when it is unknown, or wrong and reported.
    pub(crate) fn object_key(&mut self, expr: &Expr, key: &Value) -> Option<Arc<str>> {
        if key.is_null() {
            self.fail(
                expr,
                expr.span,
                "Invalid object key",
                "A key must not be null.",
            );
            return None;
        }
        match convert(key, &Type::String) {
            Ok(Value {
                kind: Kind::String(text),
                ..
            }) => Some(text),
            Ok(_) => None,
            Err(error) => {
                let detail = format!("This cannot be a key: {}.", error.message);
                self.fail(expr, expr.span, "Invalid object key", detail);
                None
            }
        }
    }

    pub(crate) fn bind(&mut self, key: Option<&Word>, value: &Word, k: Value, v: Value) -> usize {
        let depth = self.names.len();
        if let Some(key) = key {
            self.names.push((key.text.clone(), k));
        }
        self.names.push((value.text.clone(), v));
        depth
    }

    pub(crate) fn unbind(&mut self, depth: usize) {
        self.names.truncate(depth);
    }

    /// Returns keys and values to go through; nothing when unknown, or wrong and reported.
    pub(crate) fn elements(&mut self, expr: &Expr, value: &Value) -> Option<Vec<(Value, Value)>> {
        match &value.kind {
            Kind::List(elements) | Kind::Tuple(elements) => {
                let each = elements.iter().enumerate();
                Some(
                    each.map(|(at, it)| (Number::from(at).into(), it.clone()))
                        .collect(),
                )
            }
            Kind::Set(elements) => {
                Some(elements.iter().map(|it| (it.clone(), it.clone())).collect())
            }
            Kind::Map(entries) | Kind::Object(entries) => {
                let each = entries.iter();
                Some(
                    each.map(|(k, v)| (Kind::String(k.clone()).into(), v.clone()))
                        .collect(),
                )
            }
            Kind::Null => {
                let detail = "A null value cannot be gone through.";
                self.fail(expr, expr.span, "Iteration over null value", detail);
                None
            }
            Kind::Unknown(
                Type::Any
                | Type::List(_)
                | Type::Set(_)
                | Type::Map(_)
                | Type::Tuple(_)
                | Type::Object(_),
            ) => None,
            _ => {
                let ty = friendly(&value.type_of());
                let detail = format!("A value of type {ty} cannot be gone through.");
                self.fail(expr, expr.span, "Iteration over non-iterable value", detail);
                None
            }
        }
    }

    fn splat(&mut self, expr: &Expr, splat: &Splat) -> Value {
        let source = self.eval(&splat.source);
        self.splat_each(expr, &source, &splat.each)
    }

    fn splat_each(&mut self, expr: &Expr, source: &Value, each: &SplatEach) -> Value {
        let sensitive = source.sensitive;
        let is_list = matches!(
            source.kind,
            Kind::List(_) | Kind::Set(_) | Kind::Unknown(Type::List(_) | Type::Set(_))
        );
        let result = match &source.kind {
            Kind::Null => Value::tuple([]),
            Kind::Unknown(Type::Any) => wrong(),
            Kind::Unknown(Type::List(of) | Type::Set(of)) => {
                let one = self.splat_one(expr, &Value::unknown((**of).clone()), each);
                Value::unknown(Type::list(one.type_of()))
            }
            Kind::Unknown(Type::Tuple(types)) => {
                let one = |ty: &Type| self.splat_one(expr, &Value::unknown(ty.clone()), each);
                Value::unknown(Type::Tuple(
                    types.iter().map(one).map(|v| v.type_of()).collect(),
                ))
            }
            // Whether it is null decides between no element and one.
            Kind::Unknown(_) => {
                self.splat_one(expr, source, each);
                wrong()
            }
            Kind::List(elements) | Kind::Set(elements) | Kind::Tuple(elements) => {
                let each = elements.iter().map(|it| self.splat_one(expr, it, each));
                let elements: Vec<Value> = each.collect();
                if is_list {
                    Value::list(elements)
                } else {
                    Value::tuple(elements)
                }
            }
            _ => Value::tuple([self.splat_one(expr, source, each)]),
        };
        result.sensitive_if(sensitive)
    }

    fn splat_one(&mut self, expr: &Expr, element: &Value, each: &SplatEach) -> Value {
        let value = self.path(expr, element.clone(), &each.path);
        match &each.then {
            Some(then) => self.splat_each(expr, &value, then),
            None => value,
        }
    }

    fn call(&mut self, expr: &Expr, call: &Call) -> Value {
        functions::call(self, expr, call)
    }

    fn not(&mut self, inner: &Expr) -> Value {
        let value = self.operand(inner, &Type::Bool);
        match value.kind {
            Kind::Bool(it) => Value::from(!it).sensitive_if(value.sensitive),
            _ => value,
        }
    }

    fn negate(&mut self, inner: &Expr) -> Value {
        let value = self.operand(inner, &Type::Number);
        match &value.kind {
            Kind::Number(it) => Value::from(it.neg()).sensitive_if(value.sensitive),
            _ => value,
        }
    }

    /// Returns an operand of a type; unknown of that type after a mistake.
    fn operand(&mut self, expr: &Expr, ty: &Type) -> Value {
        let value = self.eval(expr);
        if value.is_null() {
            self.fail(
                expr,
                expr.span,
                "Invalid operand",
                "An operand must not be null.",
            );
            return Value::unknown(ty.clone());
        }
        convert(&value, ty).unwrap_or_else(|error| {
            let detail = format!("This operand is not right: {}.", error.message);
            self.fail(expr, expr.span, "Invalid operand", detail);
            Value::unknown(ty.clone())
        })
    }

    fn binary(&mut self, expr: &Expr, binary: &Binary) -> Value {
        match binary.operator {
            Operator::And => self.logical(binary, false),
            Operator::Or => self.logical(binary, true),
            Operator::Equal | Operator::NotEqual => {
                let left = self.eval(&binary.left);
                let right = self.eval(&binary.right);
                let sensitive = left.contains_sensitive() || right.contains_sensitive();
                let result = match access::equal(&left, &right) {
                    Some(equal) => Value::from(equal == (binary.operator == Operator::Equal)),
                    None => Value::unknown(Type::Bool),
                };
                result.sensitive_if(sensitive)
            }
            _ => self.arithmetic(expr, binary),
        }
    }

    /// `&&` and `||`: `decides` is the operand that settles the result alone. Mistakes of an
    /// operand that does not matter are not reported.
    fn logical(&mut self, binary: &Binary, decides: bool) -> Value {
        let (left, mut left_errors) = self.apart(|eval| eval.operand(&binary.left, &Type::Bool));
        if left.as_bool() == Some(decides) {
            self.errors.append(&mut left_errors);
            return left;
        }
        let (right, mut right_errors) = self.apart(|eval| eval.operand(&binary.right, &Type::Bool));
        if right.as_bool() == Some(decides) {
            return right.sensitive_if(left.sensitive);
        }
        let sensitive = left.sensitive || right.sensitive;
        if left.is_unknown() && left_errors.is_empty() {
            // The left one may turn out to settle it.
            return Value::unknown(Type::Bool).sensitive_if(sensitive);
        }
        self.errors.append(&mut left_errors);
        self.errors.append(&mut right_errors);
        if left.is_unknown() || right.is_unknown() {
            Value::unknown(Type::Bool).sensitive_if(sensitive)
        } else {
            Value::from(!decides).sensitive_if(sensitive)
        }
    }

    fn arithmetic(&mut self, expr: &Expr, binary: &Binary) -> Value {
        let left = self.operand(&binary.left, &Type::Number);
        let right = self.operand(&binary.right, &Type::Number);
        let sensitive = left.sensitive || right.sensitive;
        let compares = matches!(
            binary.operator,
            Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual
        );
        let (Some(a), Some(b)) = (left.as_number(), right.as_number()) else {
            let ty = if compares { Type::Bool } else { Type::Number };
            return Value::unknown(ty).sensitive_if(sensitive);
        };
        let result = match binary.operator {
            Operator::Less => Ok(Value::from(a < b)),
            Operator::LessOrEqual => Ok(Value::from(a <= b)),
            Operator::Greater => Ok(Value::from(a > b)),
            Operator::GreaterOrEqual => Ok(Value::from(a >= b)),
            Operator::Subtract => a.sub(b).map(Value::from),
            Operator::Multiply => a.mul(b).map(Value::from),
            Operator::Divide => a.div(b).map(Value::from),
            Operator::Remainder => a.rem(b).map(Value::from),
            _ => a.add(b).map(Value::from),
        };
        match result {
            Ok(value) => value.sensitive_if(sensitive),
            Err(error) => {
                let summary = match error {
                    gobs_model::NumberError::DivisionByZero => "Division by zero",
                    _ => "Operation failed",
                };
                let detail = format!("This operation has no result: {error}.");
                self.fail(expr, expr.span, summary, detail);
                Value::unknown(Type::Number)
            }
        }
    }

    fn conditional(&mut self, expr: &Expr, it: &Conditional) -> Value {
        let (then, mut then_errors) = self.apart(|eval| eval.eval(&it.then));
        let (otherwise, mut otherwise_errors) = self.apart(|eval| eval.eval(&it.otherwise));
        let mut state = Rendered::default();
        let before = self.errors.len();
        let chosen = self.condition(&it.condition, "?", &mut state);
        let failed = self.errors.len() > before;
        let ty = if then.is_null() || yields(&then, &otherwise) {
            Some(otherwise.type_of())
        } else if otherwise.is_null() || yields(&otherwise, &then) {
            Some(then.type_of())
        } else {
            unify(&then.type_of(), &otherwise.type_of())
        };
        let Some(ty) = ty else {
            let detail = format!(
                "Both results must have one type; the true result is {}, the false result is {}.",
                friendly(&then.type_of()),
                friendly(&otherwise.type_of())
            );
            return self.fail(
                expr,
                expr.span,
                "Inconsistent conditional result types",
                detail,
            );
        };
        let result = match chosen {
            Some(true) => {
                self.errors.append(&mut then_errors);
                then
            }
            Some(false) => {
                self.errors.append(&mut otherwise_errors);
                otherwise
            }
            None => {
                let sensitive = then.sensitive || otherwise.sensitive || state.sensitive;
                if !failed && settled(&then, &otherwise) {
                    return then.sensitive_if(sensitive);
                }
                return Value::unknown(ty).sensitive_if(sensitive);
            }
        };
        let result = convert::convert(&result, &ty).unwrap_or(result);
        result.sensitive_if(state.sensitive)
    }
}

fn no_service(machine: &Address, name: &str, error: AccessError) -> AccessError {
    AccessError {
        summary: "Reference to undeclared service",
        detail: format!("{machine} declares no service named \"{name}\"."),
        ..error
    }
}

/// Whether a value is an empty collection, which is of the other's element type as well.
fn yields(empty: &Value, other: &Value) -> bool {
    let is_empty = match &empty.kind {
        Kind::List(it) | Kind::Set(it) => it.is_empty(),
        Kind::Map(it) => it.is_empty(),
        _ => false,
    };
    let other = other.type_of();
    is_empty && other != Type::Any && convert::convertible(&empty.type_of(), &other)
}

/// Whether both results of an undecided conditional are one value: null, a number, or an empty
/// collection, as the reference implementation's refinements find out.
fn settled(a: &Value, b: &Value) -> bool {
    a.same(b)
        && match &a.kind {
            Kind::Null | Kind::Number(_) => true,
            Kind::List(_) | Kind::Set(_) => a.as_elements().is_some_and(<[Value]>::is_empty),
            Kind::Map(entries) => entries.is_empty(),
            _ => false,
        }
}

/// Returns a value for people, in an error: `is "huge"`, never a secret.
pub(crate) fn describe(value: &Value) -> String {
    let plural =
        |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    if value.sensitive {
        return "has a sensitive value".into();
    }
    match &value.kind {
        Kind::Unknown(ty) => format!("is a {}, known only after apply", friendly(ty)),
        Kind::Null => "is null".into(),
        Kind::Bool(value) => format!("is {value}"),
        Kind::Number(number) => format!("is {number}"),
        Kind::String(text) => {
            let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            format!("is {short:?}")
        }
        Kind::List(it) => format!("is a list with {}", plural(it.len(), "element")),
        Kind::Set(it) => format!("is a set with {}", plural(it.len(), "element")),
        Kind::Tuple(it) => format!("is a tuple with {}", plural(it.len(), "element")),
        Kind::Map(it) => format!("is a map with {}", plural(it.len(), "element")),
        Kind::Object(it) => format!("is an object with {}", plural(it.len(), "attribute")),
        Kind::Ref(address) => format!("is {address}"),
    }
}
