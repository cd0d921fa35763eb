//! What services are to be, and how bindings narrow them.

use gobs_model::{Type, Value};
use hob::protocol::{Access, Attenuate, check_limit, check_together, enforced_by};
use ocapn::Sturdyref;

use super::config::{Service, ServiceKind, ServiceValues};
use super::eval::Eval;
use super::syntax::{Attribute, Expr};
use super::time as calendar;
use super::values::{place, time};

/// Bytes of PostgreSQL's names; it cuts longer ones off silently.
const POSTGRES_NAME_BYTES_MAX: usize = 63;

/// Elements of a list of rights. Each is part of every grant, and read for every request.
const RIGHTS_MAX: usize = 256;

/// The netlayer of hobs.
const TRANSPORT: &str = "tls-rpk";

/// Bytes of one of them.
const RIGHT_BYTES_MAX: usize = 1_024;

/// Returns what a service is to be. Parts of it may still be unknown.
pub(super) fn service(eval: &mut Eval<'_>, service: &Service) -> ServiceValues {
    let kind = service.kind;
    let own = |eval: &mut Eval<'_>| {
        let mut fields = Vec::new();
        for attribute in &service.arguments {
            let value = argument(eval, kind, attribute);
            if !value.is_null() {
                fields.push((attribute.name.text.clone(), value));
            }
        }
        fields
    };
    let value = match kind {
        ServiceKind::Tcp | ServiceKind::Unix | ServiceKind::Sturdyref => {
            let own = own(eval).into_iter().next();
            own.map_or(Value::NULL, |(_, value)| value)
        }
        _ => Value::object(own(eval)),
    };
    let mut spec = vec![(kind.as_str(), value)];
    if let Some(expr) = &service.type_name {
        let value = checked(eval, expr, "type", |text| match is_plain(text) {
            true => Ok(()),
            false => Err("it must be a word, such as mysql".into()),
        });
        if !value.is_null() {
            spec.push(("type", value));
        }
    }
    let ready = service
        .ready
        .as_ref()
        .and_then(|expr| time(eval, expr, "\"ready\""));
    ServiceValues {
        spec: Value::object(spec),
        ready: ready.unwrap_or(ServiceValues::READY_DEFAULT),
    }
}

fn argument(eval: &mut Eval<'_>, kind: ServiceKind, attribute: &Attribute) -> Value {
    let expr = &attribute.expr;
    match (kind, &*attribute.name.text) {
        (_, "tcp" | "address") => place(eval, expr, &attribute.name.text, ServiceKind::Tcp),
        (_, "unix") => place(eval, expr, "unix", ServiceKind::Unix),
        (_, name @ ("socket" | "file" | "header_file" | "admin_file")) => {
            checked(eval, expr, name, |text| match text.starts_with('/') {
                true => Ok(()),
                false => Err("it must be an absolute path on the machine".into()),
            })
        }
        (_, "create") => eval.typed(expr, &Type::Bool, "\"create\""),
        (_, name @ ("database" | "admin_user")) => checked(eval, expr, name, |text| {
            if !is_plain(text) {
                return Err("it must be a name".into());
            }
            if text.len() > POSTGRES_NAME_BYTES_MAX {
                let length = text.len();
                return Err(format!(
                    "it has {length} bytes, and PostgreSQL's names have {POSTGRES_NAME_BYTES_MAX} \
                     at most"
                ));
            }
            Ok(())
        }),
        (_, "command") => command(eval, expr),
        // What is left is the sturdyref. It is a secret, whatever it came from.
        _ => sturdyref(eval, expr),
    }
}

/// Returns whether a text can be in every file and environment that it is told in: systemd leaves
/// out a variable with control characters.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// Evaluates a text that is no secret, and checks it.
fn checked(
    eval: &mut Eval<'_>,
    expr: &Expr,
    name: &str,
    check: impl Fn(&str) -> Result<(), String>,
) -> Value {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::String, &format!("\"{name}\""));
    if eval.errors.len() > before {
        return value;
    }
    let wrong = match value.as_str() {
        _ if value.sensitive => Some("it must not be sensitive".to_owned()),
        Some(text) => check(text).err(),
        None => None,
    };
    if let Some(why) = wrong {
        let detail = format!("\"{name}\" is not right: {why}.");
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    value
}

fn command(eval: &mut Eval<'_>, expr: &Expr) -> Value {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::list(Type::String), "\"command\"");
    let first = value.as_elements().map(<[Value]>::first);
    if eval.errors.len() == before
        && let Some(first) = first
        && first.is_none_or(|it| it.as_str() == Some(""))
    {
        let detail = "\"command\" is a program of the machine and its arguments: [\"pass\", \
                      \"show\", \"key\"].";
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    if value.contains_sensitive() && eval.errors.len() == before {
        let detail = "\"command\" must not be sensitive: every process of the machine can read \
                      the arguments of another.";
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    value
}

fn sturdyref(eval: &mut Eval<'_>, expr: &Expr) -> Value {
    let before = eval.errors.len();
    let value = eval
        .typed(expr, &Type::String, "\"sturdyref\"")
        .sensitive_if(true);
    if eval.errors.len() == before {
        check_sturdyref(eval, expr, &value);
    }
    value
}

/// Reports a text that names no object which hobs can reach. It is not repeated: it may be a
/// secret with a mistake in it.
pub(super) fn check_sturdyref(eval: &mut Eval<'_>, expr: &Expr, value: &Value) {
    let Some(text) = value.as_str() else { return };
    let Ok(sturdyref) = text.parse::<Sturdyref>() else {
        let detail = "A sturdyref has the form ocapn://PEER.TRANSPORT/s/SECRET.";
        eval.fail_at(expr.span, "Invalid sturdyref", detail, None);
        return;
    };
    let transport = &*sturdyref.peer.transport;
    if transport != TRANSPORT {
        let detail = format!(
            "The object is reached by {}, and hobs speak {TRANSPORT} only.",
            transport.escape_debug()
        );
        let hint = format!("Ask whoever gave it to you for one of the netlayer {TRANSPORT}.");
        eval.fail_at(expr.span, "Object out of reach", detail, Some(hint));
    }
}

/// Returns the limits of a binding: an object. Where the kind of its service is known, limits that
/// it cannot enforce are mistakes.
pub(super) fn attenuate(
    eval: &mut Eval<'_>,
    arguments: &[Attribute],
    kind: Option<ServiceKind>,
) -> Value {
    let mut limits = Vec::new();
    let before = eval.errors.len();
    for attribute in arguments {
        let name = &*attribute.name.text;
        if let Some(why) = kind.and_then(|kind| unenforceable(kind.as_str(), name)) {
            let hint = enforceable(kind.map_or("", ServiceKind::as_str));
            eval.fail_at(
                attribute.name.span,
                "Unenforceable attenuation",
                why,
                Some(hint),
            );
        }
        let value = limit(eval, name, &attribute.expr, kind);
        if !value.is_null() {
            limits.push((attribute.name.text.clone(), value));
        }
    }
    let limits = Value::object(limits);
    if eval.errors.len() == before
        && let (Some(kind), Some(rights)) = (kind, rights(&limits))
        && let Err((limit, why)) = check_together(kind.as_str(), &rights)
        && let Some(of) = arguments.iter().find(|it| *it.name.text == *limit)
    {
        let detail = format!("\"{limit}\" {why}.");
        eval.fail(&of.expr, of.expr.span, "Invalid value", detail);
    }
    limits
}

/// Returns why services of this kind cannot be held to a limit, if they cannot.
pub(crate) fn unenforceable(kind: &str, limit: &str) -> Option<String> {
    if enforced_by(kind).contains(&limit) {
        return None;
    }
    let able: Vec<&str> = ServiceKind::ALL
        .into_iter()
        .map(ServiceKind::as_str)
        .filter(|kind| enforced_by(kind).contains(&limit))
        .collect();
    Some(format!(
        "Services of kind {kind} cannot enforce \"{limit}\", so it must not be asked of them; \
         services of kind {} can.",
        able.join(", ")
    ))
}

/// Returns what services of a kind can be held to, as a hint.
pub(crate) fn enforceable(kind: &str) -> String {
    format!(
        "Services of kind {kind} can be held to {}.",
        enforced_by(kind).join(", ")
    )
}

fn limit(eval: &mut Eval<'_>, name: &str, expr: &Expr, kind: Option<ServiceKind>) -> Value {
    let before = eval.errors.len();
    let ty = match name {
        "connections_max" => Type::Number,
        "expires" | "access" => Type::String,
        _ => Type::set(Type::String),
    };
    let value = eval.typed(expr, &ty, &format!("\"{name}\""));
    if eval.errors.len() > before || value.contains_unknown() {
        return value;
    }
    let text = value.as_str();
    let wrong = match name {
        _ if value.is_null() => None,
        _ if value.contains_sensitive() => Some("must not be sensitive: plans show it".to_owned()),
        "connections_max" => {
            let right = value
                .as_i64()
                .is_some_and(|it| (1..=i64::from(u32::MAX)).contains(&it));
            (!right).then(|| "must be a whole number from 1 on".to_owned())
        }
        "expires" => text
            .and_then(calendar::parse)
            .is_none()
            .then(|| "must be a time as RFC 3339 has it, such as 2026-12-31T23:59:00Z".to_owned()),
        "access" => access(text)
            .is_none()
            .then(|| "must be \"read\", \"write\" or \"owner\"".to_owned()),
        _ => list(name, value.as_elements().unwrap_or_default(), kind).err(),
    };
    if let Some(why) = wrong {
        let detail = format!("\"{name}\" {why}.");
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    value
}

fn access(text: Option<&str>) -> Option<Access> {
    match text? {
        "read" => Some(Access::Read),
        "write" => Some(Access::Write),
        "owner" => Some(Access::Owner),
        _ => None,
    }
}

/// Checks a list of rights; what only the kind can judge is left to it.
fn list(name: &str, elements: &[Value], kind: Option<ServiceKind>) -> Result<(), String> {
    if elements.is_empty() {
        return Err("is empty: nothing would be allowed; remove the binding instead".into());
    }
    if elements.len() > RIGHTS_MAX {
        return Err(format!("has more than {RIGHTS_MAX} elements"));
    }
    for text in elements.iter().map(|it| it.as_str().unwrap_or_default()) {
        let control = text.contains(char::is_control);
        if text.is_empty() || text.len() > RIGHT_BYTES_MAX || control {
            return Err("has an element that is empty, too long, or has control characters".into());
        }
        let right = match name {
            "paths" => text.starts_with('/'),
            "methods" | "commands" => !text.contains(char::is_whitespace),
            _ => true,
        };
        if !right && name == "paths" {
            return Err(format!("has {text:?}, which does not begin with /"));
        }
        if !right {
            return Err(format!("has {text:?}, which is not one word"));
        }
    }
    let texts = elements.iter().filter_map(|it| it.as_str().map(Into::into));
    match kind {
        Some(kind) => check_limit(kind.as_str(), name, &texts.collect::<Vec<String>>()),
        None => Ok(()),
    }
}

/// Returns the limits of a binding as a hob is told them; nothing while something is unknown, or
/// not as this version knows it: a limit is never dropped.
pub fn rights(attenuate: &Value) -> Option<Attenuate> {
    let mut rights = Attenuate::default();
    let Some(limits) = attenuate.as_entries() else {
        return attenuate.is_null().then_some(rights);
    };
    for (name, value) in limits.iter().filter(|(_, value)| !value.is_null()) {
        let texts = || -> Option<Vec<String>> {
            let elements = value.as_elements()?.iter();
            elements.map(|it| it.as_str().map(Into::into)).collect()
        };
        match &**name {
            "connections_max" => {
                rights.connections_max = Some(u32::try_from(value.as_i64()?).ok()?);
            }
            "expires" => rights.expires = Some(calendar::parse(value.as_str()?)?),
            "access" => rights.access = Some(access(value.as_str())?),
            "schemas" => rights.schemas = Some(texts()?),
            "keys" => rights.keys = Some(texts()?),
            "commands" => rights.commands = Some(texts()?),
            "channels" => rights.channels = Some(texts()?),
            "methods" => rights.methods = Some(texts()?),
            "paths" => rights.paths = Some(texts()?),
            _ => return None,
        }
    }
    Some(rights)
}
