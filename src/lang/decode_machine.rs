//! From `machine` and `binding` blocks to declarations.

use std::collections::BTreeMap;

use gobs_model::Name;

use super::config::{IgnoreChanges, Lifecycle, Machine, Repeat};
use super::decode::{Decoder, dotted};
use super::source::Span;
use super::suggest;
use super::syntax::{Attribute, Block, Body, Expr, ExprKind};

const LATER_LIFECYCLE: [&str; 4] = [
    "create_before_destroy",
    "replace_triggered_by",
    "precondition",
    "postcondition",
];

impl Decoder<'_> {
    pub(super) fn later(&mut self, span: Span, what: &str) {
        let detail = format!("This version of gobs has no {what} yet.");
        self.error(span, "Not supported yet", detail);
    }

    /// Takes `count` and `for_each` from arguments.
    fn repeat(&mut self, arguments: &mut Vec<Attribute>) -> Repeat {
        let count = take(arguments, "count");
        let for_each = take(arguments, "for_each");
        match (count, for_each) {
            (Some(count), Some(_)) => {
                let detail = "\"count\" and \"for_each\" exclude each other: one of them says \
                              which instances there are.";
                self.error(
                    count.name.span,
                    "Invalid combination of \"count\" and \"for_each\"",
                    detail,
                );
                Repeat::Once
            }
            (Some(count), None) => Repeat::Count(count.expr),
            (None, Some(for_each)) => Repeat::ForEach(for_each.expr),
            (None, None) => Repeat::Once,
        }
    }

    pub(super) fn machine(&mut self, mut block: Block) {
        let Some(name) = self.name(&block) else {
            return;
        };
        let span = block.header();
        if let Some(first) = self.config.machines.get(&name) {
            let first = first.span;
            let what = format!("A machine named \"{name}\"");
            return self.duplicate(span, first, &what, "Duplicate machine");
        }
        let mut arguments = std::mem::take(&mut block.body.attributes);
        let repeat = self.repeat(&mut arguments);
        let depends_on = take(&mut arguments, "depends_on");
        let depends_on = depends_on
            .map(|it| self.depends_on(&it))
            .unwrap_or_default();
        let Some(provider) = take(&mut arguments, "provider") else {
            self.missing(&block, "provider");
            return self.hint(Some("For example: provider = dummy.".into()));
        };
        let Some(provider_name) = self.provider_reference(&provider.expr) else {
            return;
        };
        let mut machine = Machine {
            provider: provider_name,
            lifecycle: Lifecycle::default(),
            services: BTreeMap::new(),
            provider_span: provider.expr.span,
            repeat,
            body: Body {
                attributes: arguments,
                blocks: Vec::new(),
            },
            hob: None,
            depends_on,
            span,
        };
        for inner in std::mem::take(&mut block.body.blocks) {
            match &*inner.keyword.text {
                "hob" => {
                    self.no_labels(&inner);
                    if machine.hob.is_some() {
                        let detail = "A machine has one \"hob\" block at most.";
                        self.error(inner.header(), "Duplicate \"hob\" block", detail);
                    }
                    machine.hob = Some(inner);
                }
                "service" => self.service(&inner, &mut machine),
                "lifecycle" => self.lifecycle(&inner, &mut machine.lifecycle),
                _ => machine.body.blocks.push(inner),
            }
        }
        self.config.machines.insert(name, machine);
    }

    fn provider_reference(&mut self, expr: &Expr) -> Option<String> {
        if let Some(name) = dotted(expr).filter(|it| it.matches('.').count() <= 1) {
            return Some(name);
        }
        let detail = "A provider is named without quotes: dummy, or dummy.alias for a second \
                      configuration of it.";
        self.error(expr.span, "Invalid provider reference", detail);
        if let ExprKind::Literal(value) = &expr.kind
            && let Some(text) = value.as_str().filter(|it| Name::new(it).is_ok())
        {
            self.hint(Some(format!("Write provider = {text}.")));
        }
        None
    }

    fn lifecycle(&mut self, block: &Block, lifecycle: &mut Lifecycle) {
        self.no_labels(block);
        let mut rest = Body::default();
        for attribute in &block.body.attributes {
            if LATER_LIFECYCLE.contains(&&*attribute.name.text) {
                self.later(attribute.name.span, &format!("\"{}\"", attribute.name.text));
            } else {
                rest.attributes.push(attribute.clone());
            }
        }
        for inner in &block.body.blocks {
            if LATER_LIFECYCLE.contains(&&*inner.keyword.text) {
                self.later(inner.keyword.span, &format!("\"{}\"", inner.keyword.text));
            } else {
                rest.blocks.push(inner.clone());
            }
        }
        let arguments = self.arguments(&rest, &["prevent_destroy", "ignore_changes"]);
        self.only_blocks(&rest, &[]);
        if let Some(it) = arguments.get("prevent_destroy") {
            lifecycle.prevent_destroy = self.constant_bool(it).unwrap_or(true);
        }
        if let Some(it) = arguments.get("ignore_changes") {
            lifecycle.ignore_changes = self.ignore_changes(&it.expr);
        }
    }

    fn ignore_changes(&mut self, expr: &Expr) -> IgnoreChanges {
        if dotted(expr).as_deref() == Some("all") {
            return IgnoreChanges::All;
        }
        let mut names = Vec::new();
        if let ExprKind::Tuple(elements) = &expr.kind {
            for element in elements {
                match dotted(element).filter(|it| !it.contains('.')) {
                    Some(name) => names.push(name),
                    None => {
                        let detail = "Attributes are named without quotes: [size, image].";
                        self.error(element.span, "Invalid ignore_changes", detail);
                    }
                }
            }
        } else {
            let detail = "A list of attribute names is needed, or the word all.";
            self.error(expr.span, "Invalid ignore_changes", detail);
        }
        IgnoreChanges::Attributes(names)
    }

    pub(super) fn binding(&mut self, mut block: Block) {
        let Some(name) = self.name(&block) else {
            return;
        };
        let span = block.header();
        if let Some(first) = self.config.bindings.get(&name) {
            let first = first.span;
            let what = format!("A binding named \"{name}\"");
            return self.duplicate(span, first, &what, "Duplicate binding");
        }
        let mut arguments = std::mem::take(&mut block.body.attributes);
        let repeat = self.repeat(&mut arguments);
        let depends_on = take(&mut arguments, "depends_on");
        let depends_on = depends_on
            .map(|it| self.depends_on(&it))
            .unwrap_or_default();
        let rest = Body {
            attributes: arguments,
            blocks: std::mem::take(&mut block.body.blocks),
        };
        let arguments = self.arguments(&rest, &["from", "to", "as", "drain", "ready"]);
        for needed in ["from", "to"] {
            if !arguments.contains_key(needed) {
                self.missing(&block, needed);
            }
        }
        let mut attenuate = None;
        let mut expose = Vec::new();
        for inner in &rest.blocks {
            match &*inner.keyword.text {
                "attenuate" if attenuate.is_some() => {
                    let detail = "A binding has one \"attenuate\" block at most.";
                    self.error(inner.header(), "Duplicate \"attenuate\" block", detail);
                }
                "attenuate" => attenuate = Some(self.attenuate(inner)),
                "expose" => expose.extend(self.expose(inner)),
                "lifecycle" => self.later(inner.keyword.span, "\"lifecycle\" of a binding"),
                other => {
                    let detail = format!("Blocks of type \"{other}\" are not expected here.");
                    self.error(inner.keyword.span, "Unsupported block type", detail);
                    self.hint(suggest::did_you_mean(other, ["attenuate", "expose"]));
                }
            }
        }
        let (Some(from), Some(to)) = (arguments.get("from"), arguments.get("to")) else {
            return;
        };
        let binding = super::config::Binding {
            repeat,
            from: from.expr.clone(),
            to: to.expr.clone(),
            name: arguments.get("as").map(|it| it.expr.clone()),
            drain: arguments.get("drain").map(|it| it.expr.clone()),
            ready: arguments.get("ready").map(|it| it.expr.clone()),
            attenuate,
            expose,
            depends_on,
            span,
        };
        self.config.bindings.insert(name, binding);
    }
}

fn take(arguments: &mut Vec<Attribute>, name: &str) -> Option<Attribute> {
    let at = arguments.iter().position(|it| &*it.name.text == name)?;
    Some(arguments.remove(at))
}
