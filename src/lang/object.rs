//! Bindings from objects of OCapN: a sturdyref in place of a service.
//!
//! The hob of the receiving machine reaches the object itself, so it is a service of that machine,
//! which is there for the one binding alone.

use gobs_model::{Address, Kind, Name, Type, Value};
use sha2::{Digest, Sha256};

use super::config::{Binding, ServiceKind, ServiceValues};
use super::eval::Eval;
use super::names::Each;
use super::service::check_sturdyref;
use super::syntax::Expr;
use super::values::{referred, time};

/// What every sturdyref begins with as text.
pub(super) const SCHEME: &str = "ocapn://";

/// Bytes of a hash in the name of a service: few enough to be read, and a clash is an error.
const HASH_BYTES: usize = 4;

/// What a binding leads to.
pub(super) enum Source {
    /// A service of a machine, or a binding.
    Service(Address),
    /// An object; what a hob is told of it: `{sturdyref = "ocapn://…"}`.
    Object(Value),
}

/// Returns what a binding leads to; nothing where it is wrong, or unknown while nothing is known.
pub(super) fn source(eval: &mut Eval<'_>, expr: &Expr) -> Option<Source> {
    let before = eval.errors.len();
    let value = eval.eval(expr);
    if eval.errors.len() > before {
        return None;
    }
    let is_object = match &value.kind {
        // Any other text is a service in quotes rather than a sturdyref.
        Kind::String(text) => value.sensitive || text.starts_with(SCHEME),
        Kind::Unknown(ty) => *ty == Type::String,
        _ => false,
    };
    if !is_object {
        return referred(eval, expr, &value, &Type::Service).map(Source::Service);
    }
    check_sturdyref(eval, expr, &value);
    // It is a secret, whatever it came from.
    let spec = [(ServiceKind::Sturdyref.as_str(), value.sensitive_if(true))];
    (eval.errors.len() == before).then(|| Source::Object(Value::object(spec)))
}

/// Returns how long an object may take to answer. Of a service, the service says it.
pub(super) fn ready(
    eval: &mut Eval<'_>,
    binding: &Binding,
    from: Option<&Source>,
) -> std::time::Duration {
    let default = ServiceValues::READY_DEFAULT;
    let Some(expr) = &binding.ready else {
        return default;
    };
    if let Some(Source::Service(from)) = from {
        let detail = format!("How long {from} may take to answer is said where it is declared.");
        let hint = "Set \"ready\" in the service block.".to_owned();
        eval.fail_at(expr.span, "Unsupported argument", detail, Some(hint));
        return default;
    }
    time(eval, expr, "\"ready\"").unwrap_or(default)
}

/// Returns the address of the service that an object is on the machine that gets it.
pub(super) fn address(to: &Address, service: Name) -> Option<Address> {
    let machine = to.as_machine()?.clone();
    Some(Address::Service { machine, service })
}

/// Returns the name of the service that an object is for one instance of a binding. It stays the
/// same for the instance, whatever else is said of it.
pub(super) fn service_name(binding: &Name, each: &Each) -> Name {
    let key = match each {
        Each::None => None,
        Each::Count(index) => index.as_i64().map(|it| it.to_string()),
        Each::Entry(key, _) => key.as_str().map(str::to_owned),
    };
    let Some(key) = key else {
        return binding.clone();
    };
    Name::new(&format!("{binding}-{key}")).unwrap_or_else(|_| {
        let hash = Sha256::digest(format!("{binding} {key}").as_bytes());
        let hash = data_encoding::HEXLOWER.encode(&hash[..HASH_BYTES]);
        let room = Name::BYTES_MAX - hash.len() - 1;
        let head = &binding.as_str()[..binding.as_str().len().min(room)];
        // A name is ASCII, and a part of one with digits behind it is a name.
        Name::new(&format!("{head}-{hash}")).unwrap_or_else(|_| binding.clone())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_of_a_binding_has_a_service_of_its_own() {
        let check = |binding: &str, key: Value, expected: &str| {
            let each = Each::Entry(key, Value::NULL);
            let name = service_name(&Name::new(binding).unwrap(), &each);
            assert_eq!(name.as_str(), expected);
        };
        check("chat", "blue".into(), "chat-blue");
        check("chat", "a b".into(), "chat-cf9839e7");
        check(
            &"x".repeat(63),
            "k".into(),
            &format!("{}-4c9fc1ad", "x".repeat(54)),
        );
        let plain = service_name(&Name::new("chat").unwrap(), &Each::None);
        assert_eq!(plain.as_str(), "chat");
    }
}
