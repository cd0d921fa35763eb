//! `expose` blocks: how programs on the receiving machine see a binding.

use std::collections::BTreeMap;

use gobs_model::{Diagnostic, Type, Value};
use hob::protocol::{entry_names, mode};

use super::config::{Binding, ServiceKind};
use super::decode::Decoder;
use super::eval::Eval;
use super::evaluator::Evaluator;
use super::suggest;
use super::syntax::{Block, Expr};
use super::values::place;

/// What an `expose` block may set.
const ARGUMENTS: [&str; 7] = ["unix", "tcp", "user", "group", "mode", "unit", "env"];

/// What the name of a systemd unit ends with that runs programs.
const UNIT_SUFFIXES: [&str; 1] = [".service"];

/// The unit of the hob, which would restart itself for ever.
const HOB_UNIT: &str = "gobs-hob.service";

impl Decoder<'_> {
    /// Returns an `expose` block that sets what it may.
    pub(super) fn expose(&mut self, block: &Block) -> Option<Block> {
        self.no_labels(block);
        self.only_blocks(&block.body, &[]);
        let arguments = self.arguments(&block.body, &ARGUMENTS);
        if let (Some(_), Some(tcp)) = (arguments.get("unix"), arguments.get("tcp")) {
            let detail = "An \"expose\" block sets \"unix\" or \"tcp\"; repeat the block to have \
                          both.";
            self.error(tcp.name.span, "Conflicting arguments", detail);
            return None;
        }
        if let Some(tcp) = arguments.get("tcp") {
            let warning = Diagnostic::warning(
                "Every user of the machine may connect",
                "Any program on the machine can connect to a TCP port, whoever runs it. A unix \
                 socket is for its owner only.",
            );
            let hint = "Use `unix` where the program can, or have no other users on the machine.";
            self.warn(warning.hint(hint), tcp.name.span);
        }
        Some(block.clone())
    }
}

impl Evaluator<'_> {
    /// Returns how a binding from a service of this kind is seen: a list of objects.
    pub(super) fn exposes(
        &self,
        eval: &mut Eval<'_>,
        binding: &Binding,
        kind: Option<ServiceKind>,
    ) -> Value {
        let blocks = binding.expose.iter();
        let exposes: Vec<Value> = blocks.map(|block| expose(eval, block, kind)).collect();
        Value::list(exposes)
    }
}

fn expose(eval: &mut Eval<'_>, block: &Block, kind: Option<ServiceKind>) -> Value {
    let attributes = &block.body.attributes;
    let is_tcp = attributes.iter().any(|it| &*it.name.text == "tcp");
    let set = attributes.iter().map(|it| {
        let value = match &*it.name.text {
            "unix" => place(eval, &it.expr, "unix", ServiceKind::Unix),
            "tcp" => place(eval, &it.expr, "tcp", ServiceKind::Tcp),
            "env" => env(eval, &it.expr, kind, is_tcp),
            name => {
                let wrong = match name {
                    "mode" => wrong_mode,
                    "unit" => wrong_unit,
                    _ => wrong_name,
                };
                word(eval, &it.expr, name, wrong)
            }
        };
        (it.name.text.clone(), value)
    });
    let set: Vec<_> = set.collect();
    Value::object(set.into_iter().filter(|(_, value)| !value.is_null()))
}

/// Returns a text of which nothing is known to be wrong; it may still be unknown.
fn word(
    eval: &mut Eval<'_>,
    expr: &Expr,
    name: &str,
    wrong: impl Fn(&str) -> Option<String>,
) -> Value {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::String, &format!("\"{name}\""));
    if eval.errors.len() > before {
        return value;
    }
    let wrong = match value.as_str() {
        _ if value.sensitive => Some("it must not be sensitive".to_owned()),
        Some(text) => wrong(text),
        None => None,
    };
    if let Some(why) = wrong {
        let detail = format!("\"{name}\" is not right: {why}.");
        eval.fail(expr, expr.span, "Invalid value", detail);
    }
    value
}

/// A name of a user or group, or a number.
fn wrong_name(text: &str) -> Option<String> {
    let plain = |letter: char| !letter.is_whitespace() && !letter.is_control() && letter != ':';
    let right = !text.is_empty() && text.chars().all(plain);
    (!right).then(|| format!("{text:?} is no name of a user or group"))
}

fn wrong_mode(text: &str) -> Option<String> {
    match mode(text) {
        None => Some(format!("{text:?} is no octal mode such as \"0660\"")),
        Some(bits) if bits & 0o600 != 0o600 => Some(format!("{text:?} keeps the owner itself out")),
        Some(_) => None,
    }
}

fn wrong_unit(text: &str) -> Option<String> {
    let letter = |letter: char| letter.is_ascii_alphanumeric() || ":_.\\@-".contains(letter);
    let suffix = UNIT_SUFFIXES.iter().any(|suffix| text.ends_with(suffix));
    match text.chars().all(letter) && !text.starts_with('.') {
        true if text == HOB_UNIT => Some(format!("{text:?} is the hob's own")),
        true if text.ends_with("@.service") => Some(format!(
            "{text:?} is a template: name a unit that is made of it, such as {}",
            text.replace("@.", "@1.")
        )),
        true if suffix => None,
        true => Some(format!(
            "{text:?} is no service: a unit is named like app.service"
        )),
        false => Some(format!("{text:?} is no name of a unit")),
    }
}

/// Returns variables with the files that they hold.
fn env(eval: &mut Eval<'_>, expr: &Expr, kind: Option<ServiceKind>, is_tcp: bool) -> Value {
    let before = eval.errors.len();
    let value = eval.typed(expr, &Type::map(Type::String), "\"env\"");
    if eval.errors.len() > before {
        return value;
    }
    if value.sensitive {
        let detail = "\"env\" names files; it must not be sensitive.";
        return eval.fail(expr, expr.span, "Invalid value", detail);
    }
    let entries: BTreeMap<String, String> = value
        .as_entries()
        .into_iter()
        .flatten()
        .filter_map(|(name, file)| Some((name.to_string(), file.as_str()?.to_owned())))
        .collect();
    for (variable, file) in entries {
        if !is_variable(&variable) {
            let detail = format!(
                "{variable:?} is no name of an environment variable: letters, digits and _, not \
                 beginning with a digit."
            );
            eval.fail(expr, expr.span, "Invalid variable name", detail);
        }
        let Some(kind) = kind else { continue };
        let known = entry_names(kind.as_str(), is_tcp);
        if !known.contains(&file.as_str()) {
            let detail = format!(
                "{variable} is to hold {file:?}, but a binding of this kind, exposed so, has {}.",
                known.join(", ")
            );
            let hint = suggest::did_you_mean(&file, known.iter().copied());
            eval.fail_at(expr.span, "Unknown file in \"env\"", detail, hint);
        }
    }
    value
}

fn is_variable(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(letter) && !name.is_empty() && !name.as_bytes()[0].is_ascii_digit()
}
