//! The values of blocks: what a schema asks, filled from what is declared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gobs_model::{
    Address, Attribute as AttributeSchema, Block as BlockSchema, Diagnostic, Hosts, Kind, Name,
    Nesting, Role, Type, UserDataForm, Value,
};

use crate::boot;

use super::address;
use super::config::{BindingValues, Machine, MachineValues, ServiceKind, ServiceValues};
use super::eval::Eval;
use super::evaluator::{Evaluator, finish};
use super::hob_block;
use super::names::{Each, Names};
use super::object::{self, Source, source};
use super::source::Span;
use super::syntax::{Attribute, Block, Body, Expr};
use super::{service, suggest};

/// Arguments of a machine that are gobs' own, for suggestions.
const MACHINE_ARGUMENTS: [&str; 4] = ["provider", "count", "for_each", "depends_on"];
const MACHINE_BLOCKS: [&str; 3] = ["hob", "service", "lifecycle"];

/// Returns the object that a body makes by its schema: defaults filled in, `null` where something
/// optional is not set, without what only the provider computes. `own` are further names to
/// suggest.
pub(super) fn block(
    eval: &mut Eval<'_>,
    schema: &BlockSchema,
    body: &Body,
    header: Option<Span>,
    what: &str,
    own: &[&str],
) -> Value {
    let mut entries: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    let mut given: BTreeMap<&str, &Attribute> = BTreeMap::new();
    for attribute in &body.attributes {
        let name = &*attribute.name.text;
        if schema.attributes.contains_key(name) {
            given.insert(name, attribute);
            continue;
        }
        eval.eval(&attribute.expr);
        let (detail, hint) = if schema.blocks.contains_key(name) {
            let detail = format!("\"{name}\" is a block, not an argument.");
            (
                detail,
                Some(format!("Write {name} {{ … }}, without an equals sign.")),
            )
        } else {
            let known = schema
                .attributes
                .keys()
                .map(String::as_str)
                .chain(own.iter().copied());
            let detail = sentence(&format!("{what} has no argument named \"{name}\"."));
            (detail, suggest::did_you_mean(name, known))
        };
        eval.fail_at(attribute.name.span, "Unsupported argument", detail, hint);
    }
    for (name, schema) in &schema.attributes {
        let value = match given.get(name.as_str()) {
            Some(attribute) => set(eval, name, schema, attribute),
            None if schema.role == Role::Required => {
                missing(eval, header, name, what);
                continue;
            }
            None if schema.role == Role::Computed => continue,
            None if schema.role == Role::Admits => Value::NULL,
            None => schema.default.clone().unwrap_or(Value::NULL),
        };
        entries.insert(name.as_str().into(), value.sensitive_if(schema.sensitive));
    }
    nested(eval, schema, body, what, &mut entries);
    Kind::Object(Arc::new(entries)).into()
}

/// Returns a text with its first letter as a capital.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|it| it.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn set(eval: &mut Eval<'_>, name: &str, schema: &AttributeSchema, attribute: &Attribute) -> Value {
    if matches!(schema.role, Role::Computed | Role::Admits) {
        let who = match schema.role {
            Role::Admits => "gobs",
            _ => "the provider",
        };
        let detail = format!("\"{name}\" is decided by {who} and cannot be set.");
        let summary = "Value for computed attribute";
        eval.fail_at(attribute.name.span, summary, detail, None);
    }
    let what = format!("The value of \"{name}\"");
    let value = eval.typed(&attribute.expr, &schema.ty, &what);
    if value.is_null() {
        if schema.role == Role::Required {
            let detail = format!("\"{name}\" is required, so it must not be null.");
            eval.fail(
                &attribute.expr,
                attribute.expr.span,
                "Missing required argument",
                detail,
            );
        }
        return schema.default.clone().unwrap_or(value);
    }
    if name == "user_data" && value.contains_sensitive() {
        let detail = "Every process on a machine can read its user data, so it must hold no \
                      secret.";
        let (expr, summary) = (&attribute.expr, "Sensitive value in user_data");
        let hint = "Give the machine a binding to a service of kind \"secret\" instead: only the \
                    program that needs it gets it, and it can be taken back.";
        fail_with_hint(eval, expr, summary, detail.into(), hint);
    }
    value
}

/// Looks at what a machine is to boot with: cloud-init must know what it is, and there is little
/// room.
fn user_data(eval: &mut Eval<'_>, machine: &Machine, hosts: &Hosts, attributes: &Value) {
    let given = machine.body.attributes.iter();
    let given = given.into_iter().find(|it| &*it.name.text == "user_data");
    let (Some(attribute), Some(text)) =
        (given, attributes.get("user_data").and_then(Value::as_str))
    else {
        return;
    };
    let expr = &attribute.expr;
    if let Err(why) = boot::kind_of(text) {
        let hint = "A cloud-config begins with the line #cloud-config, a script with #!/bin/sh.";
        let detail = format!("{why}.");
        return fail_with_hint(eval, expr, "Unknown kind of user_data", detail, hint);
    }
    if let Some(bytes_max) = hosts.user_data_bytes_max
        && let Err(error) = boot::fits(text, bytes_max)
    {
        let detail = format!("With the part that installs the hob, {error}.");
        fail_with_hint(
            eval,
            expr,
            "User data too large",
            detail,
            boot::TOO_LARGE_HINT,
        );
    }
}

fn fail_with_hint(eval: &mut Eval<'_>, expr: &Expr, summary: &str, detail: String, hint: &str) {
    eval.fail(expr, expr.span, summary, detail);
    if let Some(error) = eval.errors.last_mut() {
        error.hint.get_or_insert_with(|| hint.into());
    }
}

fn missing(eval: &mut Eval<'_>, header: Option<Span>, name: &str, what: &str) {
    let detail = format!("The argument \"{name}\" is required in {what}, but it is not set.");
    let summary = "Missing required argument";
    match header {
        Some(span) => drop(eval.fail_at(span, summary, detail, None)),
        None => eval.errors.push(Diagnostic::error(summary, detail)),
    }
}

fn nested(
    eval: &mut Eval<'_>,
    schema: &BlockSchema,
    body: &Body,
    what: &str,
    entries: &mut BTreeMap<Arc<str>, Value>,
) {
    for inner in &body.blocks {
        let name = &*inner.keyword.text;
        if !schema.blocks.contains_key(name) {
            let (detail, hint) = if schema.attributes.contains_key(name) {
                let detail = format!("\"{name}\" is an argument, not a block.");
                (
                    detail,
                    Some(format!("Write {name} = …, with an equals sign.")),
                )
            } else {
                let detail = sentence(&format!("{what} has no blocks of type \"{name}\"."));
                let known = schema
                    .blocks
                    .keys()
                    .map(String::as_str)
                    .chain(MACHINE_BLOCKS);
                (detail, suggest::did_you_mean(name, known))
            };
            eval.fail_at(inner.keyword.span, "Unsupported block type", detail, hint);
        }
    }
    for (name, schema) in &schema.blocks {
        let mut found = Vec::new();
        for inner in body.blocks.iter().filter(|it| *it.keyword.text == **name) {
            let wants = usize::from(schema.nesting == Nesting::Labelled);
            if inner.labels.len() != wants {
                let detail = match wants {
                    0 => format!("A \"{name}\" block has no labels."),
                    _ => format!("A \"{name}\" block has one label, its name."),
                };
                eval.fail_at(inner.header(), "Wrong labels for block", detail, None);
                continue;
            }
            let what = format!("a \"{name}\" block");
            let value = block(
                eval,
                &schema.block,
                &inner.body,
                Some(inner.header()),
                &what,
                &[],
            );
            found.push((inner, value));
        }
        let value = match schema.nesting {
            Nesting::Single => {
                if let Some((second, _)) = found.get(1) {
                    let detail = format!("There can be one \"{name}\" block only.");
                    eval.fail_at(second.header(), "Duplicate block", detail, None);
                }
                found
                    .into_iter()
                    .next()
                    .map_or(Value::NULL, |(_, value)| value)
            }
            Nesting::List => Value::list(found.into_iter().map(|(_, value)| value)),
            Nesting::Labelled => labelled(eval, found),
        };
        entries.insert(name.as_str().into(), value);
    }
}

fn labelled(eval: &mut Eval<'_>, found: Vec<(&Block, Value)>) -> Value {
    let mut entries: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    for (block, value) in found {
        let Some(label) = block.labels.first() else {
            continue;
        };
        if entries.insert(label.text.clone(), value).is_some() {
            let detail = format!(
                "There are two such blocks with the label \"{}\".",
                label.text
            );
            eval.fail_at(label.span, "Duplicate block", detail, None);
        }
    }
    Kind::Map(Arc::new(entries)).into()
}

/// Looks for what cannot be set without something else.
fn needs(
    eval: &mut Eval<'_>,
    schema: &BlockSchema,
    (machine_name, machine): (&Name, &Machine),
    attributes: &Value,
    has_hob: bool,
) {
    // What is not known yet may be set, and may be not.
    if attributes.as_entries().is_none() {
        return;
    }
    let is_set = |it: &Value| !it.is_null() && !it.is_unknown();
    let may_be_set = |it: &Value| {
        let is_empty = it.as_elements().is_some_and(<[_]>::is_empty);
        !it.is_null() && !is_empty
    };
    for rule in &schema.needs {
        let is_asked = match rule.with == "hob" {
            true => has_hob,
            false => attributes.get(&rule.with).is_some_and(is_set),
        };
        let one_of = rule.one_of.iter();
        let mut values = one_of.clone().filter_map(|name| attributes.get(name));
        if !is_asked || values.any(may_be_set) {
            continue;
        }
        let names: Vec<String> = one_of.map(|name| format!("\"{name}\"")).collect();
        let detail = format!(
            "machine.{machine_name} has \"{}\", and so {} must be set.",
            rule.with,
            names.join(" or "),
        );
        let mut set = machine.body.attributes.iter();
        let set = set.find(|it| *it.name.text == *rule.with);
        let span = set.map_or(machine.span, |it| it.name.span);
        let hint = Some(rule.hint.clone()).filter(|it| !it.is_empty());
        eval.fail_at(span, "Missing required argument", detail, hint);
    }
}

impl Evaluator<'_> {
    pub(crate) fn machine_values(
        &self,
        name: &Name,
        each: Each,
    ) -> Result<MachineValues, Vec<Diagnostic>> {
        let Some(machine) = self.config.machines.get(name) else {
            let detail = format!("The configuration declares no machine.{name}.");
            return Err(vec![Diagnostic::error(
                "Reference to undeclared machine",
                detail,
            )]);
        };
        let names = Names::new(self, each);
        let mut eval = Eval::new(&names, &self.config.sources);
        let attributes = self.attributes(&mut eval, machine);
        let hob = hob_block::values(&mut eval, machine.hob.as_ref());
        let provider = machine.provider.split('.').next().unwrap_or_default();
        if let Some(schema) = self.schemas.get(provider) {
            needs(
                &mut eval,
                &schema.machine,
                (name, machine),
                &attributes,
                hob.enabled,
            );
        }
        let mut services = BTreeMap::new();
        for (name, declared) in &machine.services {
            services.insert(name.clone(), service::service(&mut eval, declared));
        }
        finish(
            eval.errors,
            MachineValues {
                provider: machine.provider.clone(),
                attributes,
                hob,
                services,
                lifecycle: machine.lifecycle.clone(),
                reads: Arc::new([]),
            },
        )
    }

    fn attributes(&self, eval: &mut Eval<'_>, machine: &Machine) -> Value {
        let mut parts = machine.provider.splitn(2, '.');
        let provider = parts.next().unwrap_or_default();
        let Some(schema) = self.schemas.get(provider) else {
            eval.errors
                .push(self.unknown_provider(provider, Some(machine.provider_span)));
            return super::eval::wrong();
        };
        if parts.next().is_some() && !self.config.providers.contains_key(&machine.provider) {
            let known = self.config.providers.keys().map(String::as_str);
            let hint = suggest::did_you_mean(&machine.provider, known);
            let detail = format!(
                "No provider configuration \"{}\" is declared.",
                machine.provider
            );
            let summary = "Undeclared provider configuration";
            eval.fail_at(machine.provider_span, summary, detail, hint);
        }
        let what = format!("a machine of provider \"{provider}\"");
        let span = Some(machine.span);
        let attributes = block(
            eval,
            &schema.machine,
            &machine.body,
            span,
            &what,
            &MACHINE_ARGUMENTS,
        );
        if schema.hosts.user_data == UserDataForm::CloudInit {
            user_data(eval, machine, &schema.hosts, &attributes);
        }
        attributes
    }

    /// Returns nothing where something is not known and nothing need be.
    pub(crate) fn binding_values(
        &self,
        name: &Name,
        each: Each,
    ) -> Result<Option<BindingValues>, Vec<Diagnostic>> {
        let Some(binding) = self.config.bindings.get(name) else {
            let detail = format!("The configuration declares no binding.{name}.");
            return Err(vec![Diagnostic::error(
                "Reference to undeclared binding",
                detail,
            )]);
        };
        let service_name = object::service_name(name, &each);
        let names = Names::new(self, each);
        let mut eval = Eval::new(&names, &self.config.sources);
        let from = source(&mut eval, &binding.from);
        let to = reference(&mut eval, &binding.to, &Type::Machine);
        let kind = match &from {
            Some(Source::Service(address)) => self.kind_of(address),
            Some(Source::Object(_)) => Some(ServiceKind::Sturdyref),
            None => None,
        };
        let under = match &binding.name {
            None => Some(name.clone()),
            Some(expr) => text(&mut eval, expr, "\"as\"").and_then(|text| {
                Name::new(&text)
                    .map_err(|error| {
                        eval.fail(expr, expr.span, "Invalid name", format!("{error}."));
                    })
                    .ok()
            }),
        };
        let attenuate = match &binding.attenuate {
            None => Value::NULL,
            Some(arguments) => service::attenuate(&mut eval, arguments, kind),
        };
        let expose = self.exposes(&mut eval, binding, kind);
        let drain = binding
            .drain
            .as_ref()
            .and_then(|expr| time(&mut eval, expr, "\"drain\""));
        let ready = object::ready(&mut eval, binding, from.as_ref());
        finish(eval.errors, ())?;
        let (Some(from), Some(to), Some(name)) = (from, to, under) else {
            return Ok(None);
        };
        let (from, object) = match from {
            Source::Service(from) => (from, None),
            Source::Object(spec) => match object::address(&to, service_name) {
                Some(from) => (from, Some(ServiceValues { spec, ready })),
                None => return Ok(None),
            },
        };
        Ok(Some(BindingValues {
            from,
            object,
            to,
            name,
            drain: drain.unwrap_or(BindingValues::DRAIN_DEFAULT),
            attenuate,
            expose,
            reads: Arc::new([]),
        }))
    }
}

impl Evaluator<'_> {
    /// Returns the kind of a declared service.
    pub(super) fn kind_of(&self, service: &Address) -> Option<ServiceKind> {
        let Address::Service { machine, service } = service else {
            return None;
        };
        let machine = self.config.machines.get(&machine.name)?;
        Some(machine.services.get(service)?.kind)
    }
}

/// Returns the address that an expression names, which must be known when anything is.
fn reference(eval: &mut Eval<'_>, expr: &Expr, ty: &Type) -> Option<Address> {
    let before = eval.errors.len();
    let value = eval.eval(expr);
    if eval.errors.len() > before {
        return None;
    }
    referred(eval, expr, &value, ty)
}

/// Returns the address that a value is, or says what it should be.
pub(super) fn referred(
    eval: &mut Eval<'_>,
    expr: &Expr,
    value: &Value,
    ty: &Type,
) -> Option<Address> {
    let example = match ty {
        Type::Service => "a service, as machine.db.service.orders",
        _ => "a machine, as machine.app",
    };
    let detail = match &value.kind {
        Kind::Ref(address) if value.type_of() == *ty => return Some((**address).clone()),
        Kind::Ref(address) if matches!(**address, Address::Binding(_)) && *ty == Type::Service => {
            return Some((**address).clone());
        }
        Kind::Ref(address) => format!("This must be {example}; {address} is a {}.", address.kind()),
        Kind::Unknown(have) if super::convert::convertible(have, ty) => {
            eval.scope.inputs()?;
            format!("This must be {example}, and known before apply; which one it is, is not.")
        }
        Kind::Object(_) | Kind::Tuple(_) if *ty == Type::Machine => {
            format!("This must be {example}; for several, give the binding a for_each.")
        }
        _ => {
            let have = super::convert::friendly(&value.type_of());
            format!("This must be {example}, not {have}.")
        }
    };
    eval.fail(expr, expr.span, "Invalid binding end", detail);
    None
}

/// Returns a known text; nothing when it is wrong, or unknown while nothing need be known.
pub(super) fn text(eval: &mut Eval<'_>, expr: &Expr, what: &str) -> Option<String> {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::String, what);
    if eval.errors.len() > before {
        return None;
    }
    let why = match value.as_str() {
        _ if value.sensitive => "must not be sensitive",
        Some(text) => return Some(text.to_owned()),
        None if value.is_null() => "must not be null",
        None => {
            eval.scope.inputs()?;
            "must be known before apply"
        }
    };
    eval.fail(expr, expr.span, "Invalid value", format!("{what} {why}."));
    None
}

pub(super) fn time(eval: &mut Eval<'_>, expr: &Expr, what: &str) -> Option<Duration> {
    let text = text(eval, expr, what)?;
    match address::duration(&text) {
        Ok(time) => Some(time),
        Err(why) => {
            eval.fail(expr, expr.span, "Invalid time", format!("{why}."));
            None
        }
    }
}

/// Returns the address of a service or a listener; it may still be unknown.
pub(super) fn place(eval: &mut Eval<'_>, expr: &Expr, name: &str, kind: ServiceKind) -> Value {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::String, &format!("\"{name}\""));
    if eval.errors.len() > before {
        return value;
    }
    let wrong = match value.as_str() {
        _ if value.sensitive => Some(format!("\"{name}\" must not be sensitive")),
        None if value.is_null() => Some(format!("\"{name}\" must not be null")),
        None => None,
        Some(text) => match kind {
            ServiceKind::Tcp => address::socket(text, false).err(),
            _ => address::unix(text).err(),
        },
    };
    if let Some(why) = wrong {
        let summary = match kind {
            ServiceKind::Tcp => "Invalid address",
            _ => "Invalid socket path",
        };
        eval.fail(expr, expr.span, summary, format!("{why}."));
    }
    value
}
