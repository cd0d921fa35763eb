//! From `service` and `attenuate` blocks to declarations.

use std::collections::BTreeMap;

use super::config::{Machine, Service, ServiceKind};
use super::decode::Decoder;
use super::suggest;
use super::syntax::{Attribute, Block, Body};

/// What `attenuate` may say; which of it a service can be held to, its kind tells.
pub(crate) const LIMITS: [&str; 9] = [
    "connections_max",
    "expires",
    "access",
    "schemas",
    "keys",
    "commands",
    "channels",
    "methods",
    "paths",
];

/// The kinds, for people.
const KINDS: &str = "\"tcp\", \"unix\", \"postgres\", \"redis\", \"http\", \"secret\" or \
                     \"sturdyref\"";

impl Decoder<'_> {
    pub(super) fn service(&mut self, block: &Block, machine: &mut Machine) {
        let Some(name) = self.name(block) else { return };
        let span = block.header();
        if let Some(first) = machine.services.get(&name) {
            let first = first.span;
            let what = format!("A service named \"{name}\" on this machine");
            return self.duplicate(span, first, &what, "Duplicate service");
        }
        let kind_of = |word: &str| ServiceKind::ALL.into_iter().find(|it| it.as_str() == word);
        let mut found = Vec::new();
        let mut rest = Body::default();
        for attribute in &block.body.attributes {
            match kind_of(&attribute.name.text) {
                Some(kind) => {
                    if kind.block().is_some() {
                        let detail = format!("\"{}\" is a block.", kind.as_str());
                        self.error(attribute.name.span, "Unsupported argument", detail);
                        self.hint(Some(format!("Write {} {{ … }}.", kind.as_str())));
                        return;
                    }
                    found.push((kind, attribute.name.span, vec![attribute.clone()]));
                }
                None => rest.attributes.push(attribute.clone()),
            }
        }
        for inner in &block.body.blocks {
            let kind = kind_of(&inner.keyword.text);
            match kind.and_then(|kind| Some((kind, kind.block()?))) {
                Some((kind, known)) => {
                    self.no_labels(inner);
                    self.only_blocks(&inner.body, &[]);
                    let arguments = self.arguments(&inner.body, known);
                    let arguments = arguments.into_values().cloned().collect();
                    found.push((kind, inner.keyword.span, arguments));
                }
                None if kind.is_some() => {
                    let word = &inner.keyword.text;
                    let detail = format!("\"{word}\" is an argument.");
                    self.error(inner.keyword.span, "Unsupported block type", detail);
                    self.hint(Some(format!("Write {word} = \"…\".")));
                    return;
                }
                None => {
                    let word = &*inner.keyword.text;
                    let detail = format!("Blocks of type \"{word}\" are not expected here.");
                    self.error(inner.keyword.span, "Unsupported block type", detail);
                    let blocks = ServiceKind::ALL
                        .into_iter()
                        .filter(|it| it.block().is_some());
                    let blocks = blocks.map(ServiceKind::as_str);
                    self.hint(suggest::did_you_mean(word, blocks));
                }
            }
        }
        let arguments = self.service_arguments(&rest);
        let mut found = found.into_iter();
        let (kind, at, own) = match (found.next(), found.next()) {
            (Some(one), None) => one,
            (None, _) => {
                let detail = format!("A service is of exactly one kind: set {KINDS}.");
                return self.error(span, "Missing service kind", detail);
            }
            (Some(_), Some((_, second, _))) => {
                let detail = "A service is of exactly one kind, and this is a second one.";
                return self.error(second, "Conflicting service kinds", detail);
            }
        };
        let has = |argument: &str| own.iter().any(|it| &*it.name.text == argument);
        let missing = match kind {
            ServiceKind::Postgres => Some("database").filter(|it| !has(it)),
            ServiceKind::Http => Some("address").filter(|it| !has(it)),
            ServiceKind::Secret if has("file") == has("command") => {
                let detail = "A secret comes from a \"file\" or from a \"command\": set one of \
                              them.";
                return self.error(at, "Invalid secret", detail);
            }
            _ => None,
        };
        if let Some(argument) = missing {
            let detail = format!(
                "The argument \"{argument}\" is required in a \"{}\" block, but it is not set.",
                kind.as_str()
            );
            return self.error(at, "Missing required argument", detail);
        }
        let service = Service {
            kind,
            arguments: own,
            type_name: arguments.get("type").map(|it| it.expr.clone()),
            ready: arguments.get("ready").map(|it| it.expr.clone()),
            span,
        };
        machine.services.insert(name, service);
    }

    /// Takes what every kind may have; a kind that is written almost right is suggested.
    fn service_arguments<'b>(&mut self, rest: &'b Body) -> BTreeMap<&'b str, &'b Attribute> {
        let mut result = BTreeMap::new();
        for attribute in &rest.attributes {
            let name = &*attribute.name.text;
            if matches!(name, "ready" | "type") {
                result.insert(name, attribute);
                continue;
            }
            let detail = format!("An argument named \"{name}\" is not expected here.");
            self.error(attribute.name.span, "Unsupported argument", detail);
            let kinds = ServiceKind::ALL.into_iter().map(ServiceKind::as_str);
            self.hint(suggest::did_you_mean(name, kinds.chain(["ready", "type"])));
        }
        result
    }

    pub(super) fn attenuate(&mut self, block: &Block) -> Vec<Attribute> {
        self.no_labels(block);
        self.only_blocks(&block.body, &[]);
        let arguments = self.arguments(&block.body, &LIMITS);
        arguments.into_values().cloned().collect()
    }
}
