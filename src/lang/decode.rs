//! From syntax trees to declarations.

use std::collections::BTreeMap;

use gobs_model::{Address, Diagnostic, Name, Type, Value};

use super::access::AccessError;
use super::config::{
    BlockId, Config, Local, Output, ProviderConfig, Settings, Validation, Variable,
};
use super::eval::{Eval, Scope};
use super::inputs::Inputs;
use super::source::{Sources, Span};
use super::suggest;
use super::syntax::{AccessKind, Attribute, Block, Body, Expr, ExprKind, Reference};
use super::{convert, type_expr, version};

/// Blocks that the language has and this version does not.
const LATER: [&str; 5] = ["module", "moved", "removed", "check", "data"];
const BLOCKS: [&str; 8] = [
    "gobs", "variable", "locals", "provider", "machine", "binding", "output", "import",
];

pub(super) struct Decoder<'d> {
    pub(super) sources: &'d Sources,
    pub(super) config: Config,
    pub(super) errors: Vec<Diagnostic>,
    settings: Option<Span>,
}

/// Adds what the bodies of all files declare to a configuration.
pub(super) fn decode(sources: &Sources, bodies: Vec<Body>) -> (Config, Vec<Diagnostic>) {
    let mut decoder = Decoder {
        sources,
        config: Config {
            sources: sources.clone(),
            ..Config::default()
        },
        errors: Vec::new(),
        settings: None,
    };
    for body in bodies {
        for attribute in &body.attributes {
            let name = &attribute.name.text;
            let detail = format!("An argument named \"{name}\" is not expected outside a block.");
            decoder.error(attribute.name.span, "Unsupported argument", detail);
            decoder.hint(Some(
                "To name a value, put it in a block: locals { … }.".into(),
            ));
        }
        for block in body.blocks {
            decoder.block(block);
        }
    }
    decoder.imports_to_nothing();
    (decoder.config, decoder.errors)
}

impl Decoder<'_> {
    pub(super) fn error(&mut self, span: Span, summary: &str, detail: impl Into<String>) {
        self.errors.push(self.sources.error(span, summary, detail));
    }

    /// Adds what should be looked at.
    pub(super) fn warn(&mut self, warning: Diagnostic, span: Span) {
        self.errors.push(warning.at(self.sources.place(span)));
    }

    /// Adds what to do to the last error.
    pub(super) fn hint(&mut self, hint: Option<String>) {
        if let Some(error) = self.errors.last_mut() {
            error.hint = hint;
        }
    }

    fn block(&mut self, block: Block) {
        match &*block.keyword.text {
            "gobs" => self.settings(&block),
            "variable" => self.variable(&block),
            "locals" => self.locals(block),
            "provider" => self.provider(block),
            "machine" => self.machine(block),
            "binding" => self.binding(block),
            "output" => self.output(block),
            "import" => self.import(&block),
            later if LATER.contains(&later) => {
                let detail = format!("This version of gobs has no \"{later}\" blocks yet.");
                self.error(block.header(), "Block not supported yet", detail);
            }
            other => {
                let detail = format!("Blocks of type \"{other}\" are not expected here.");
                let hint = match other {
                    "terraform" => Some("In gobs this block is called \"gobs\".".into()),
                    "resource" => {
                        Some("In gobs a machine is declared: machine \"name\" { … }.".into())
                    }
                    _ => suggest::did_you_mean(other, BLOCKS),
                };
                self.error(block.keyword.span, "Unsupported block type", detail);
                self.hint(hint);
            }
        }
    }

    /// Returns a block's only label as a name.
    pub(super) fn name(&mut self, block: &Block) -> Option<Name> {
        let keyword = &block.keyword.text;
        let Some(label) = block.labels.first() else {
            let detail = format!("A \"{keyword}\" block needs a name: {keyword} \"name\" {{ … }}.");
            self.error(block.keyword.span, "Missing name for block", detail);
            return None;
        };
        if let Some(extra) = block.labels.get(1) {
            let detail = format!("A \"{keyword}\" block has one label, its name.");
            self.error(extra.span, "Extraneous label for block", detail);
        }
        match Name::new(&label.text) {
            Ok(name) => Some(name),
            Err(error) => {
                self.error(label.span, "Invalid name", format!("{error}."));
                None
            }
        }
    }

    pub(super) fn no_labels(&mut self, block: &Block) {
        if let Some(label) = block.labels.first() {
            let detail = format!("A \"{}\" block has no labels.", block.keyword.text);
            self.error(label.span, "Extraneous label for block", detail);
        }
    }

    /// Returns the arguments of a body by name; reports those that are not known.
    pub(super) fn arguments<'b>(
        &mut self,
        body: &'b Body,
        known: &[&str],
    ) -> BTreeMap<&'b str, &'b Attribute> {
        let mut result = BTreeMap::new();
        for attribute in &body.attributes {
            let name = &*attribute.name.text;
            if known.contains(&name) {
                result.insert(name, attribute);
            } else {
                let detail = format!("An argument named \"{name}\" is not expected here.");
                self.error(attribute.name.span, "Unsupported argument", detail);
                self.hint(suggest::did_you_mean(name, known.iter().copied()));
            }
        }
        result
    }

    /// Reports the blocks of a body that are not known.
    pub(super) fn only_blocks(&mut self, body: &Body, known: &[&str]) {
        for block in &body.blocks {
            let name = &*block.keyword.text;
            if !known.contains(&name) {
                let detail = format!("Blocks of type \"{name}\" are not expected here.");
                self.error(block.keyword.span, "Unsupported block type", detail);
                self.hint(suggest::did_you_mean(name, known.iter().copied()));
            }
        }
    }

    pub(super) fn missing(&mut self, block: &Block, argument: &str) {
        let detail = format!(
            "The argument \"{argument}\" is required in a \"{}\" block, but it is not set.",
            block.keyword.text
        );
        self.error(block.header(), "Missing required argument", detail);
    }

    pub(super) fn duplicate(&mut self, span: Span, first: Span, what: &str, summary: &str) {
        let first = self.sources.place(first);
        let detail = format!(
            "{what} was declared already, at {}:{}. Names must be unique.",
            first.file, first.start.line
        );
        self.error(span, summary, detail);
    }

    /// Returns the value of an expression that may refer to nothing.
    pub(super) fn constant(&mut self, expr: &Expr, ty: &Type, what: &str) -> Option<Value> {
        let constants = Constants {
            sources: self.sources,
        };
        let mut eval = Eval::new(&constants, self.sources);
        let value = eval.typed(expr, ty, what);
        let failed = !eval.errors.is_empty();
        self.errors.append(&mut eval.errors);
        (!failed && !value.contains_unknown()).then_some(value)
    }

    pub(super) fn constant_text(&mut self, attribute: &Attribute) -> Option<String> {
        let what = format!("\"{}\"", attribute.name.text);
        let value = self.constant(&attribute.expr, &Type::String, &what)?;
        value.as_str().map(str::to_owned)
    }

    pub(super) fn constant_bool(&mut self, attribute: &Attribute) -> Option<bool> {
        let what = format!("\"{}\"", attribute.name.text);
        self.constant(&attribute.expr, &Type::Bool, &what)?
            .as_bool()
    }

    fn settings(&mut self, block: &Block) {
        self.no_labels(block);
        if let Some(first) = self.settings {
            return self.duplicate(
                block.header(),
                first,
                "A \"gobs\" block",
                "Duplicate \"gobs\" block",
            );
        }
        self.settings = Some(block.header());
        let arguments = self.arguments(&block.body, &["required_version"]);
        if let Some(required) = arguments.get("required_version")
            && let Some(text) = self.constant_text(required)
        {
            match version::satisfies(env!("CARGO_PKG_VERSION"), &text) {
                Ok(true) => {}
                Ok(false) => {
                    let detail = format!(
                        "This configuration needs gobs {text}, and this is gobs {}.",
                        env!("CARGO_PKG_VERSION")
                    );
                    self.error(required.expr.span, "Unsupported gobs version", detail);
                }
                Err(why) => {
                    let detail = format!("This is not a version constraint: {why}.");
                    self.error(required.expr.span, "Invalid version constraint", detail);
                }
            }
        }
        self.only_blocks(&block.body, &["state", "boss"]);
        let mut settings = Settings::default();
        for inner in &block.body.blocks {
            match &*inner.keyword.text {
                "state" => {
                    let arguments = self.arguments(&inner.body, &["path"]);
                    if let Some(path) = arguments.get("path").and_then(|it| self.constant_text(it))
                    {
                        settings.state_path = path;
                    }
                }
                "boss" => self.boss(inner, &mut settings),
                _ => {}
            }
        }
        self.config.settings = settings;
    }

    fn boss(&mut self, block: &Block, settings: &mut Settings) {
        let arguments = self.arguments(&block.body, &["listen", "advertise"]);
        self.only_blocks(&block.body, &[]);
        if let Some(listen) = arguments.get("listen")
            && let Some(text) = self.constant_text(listen)
        {
            match super::address::socket(&text, true) {
                Ok(()) => settings.boss_listen = text,
                Err(why) => self.error(listen.expr.span, "Invalid address", format!("{why}.")),
            }
        }
        if let Some(advertise) = arguments.get("advertise")
            && let Some(list) =
                self.constant(&advertise.expr, &Type::list(Type::String), "\"advertise\"")
        {
            let texts = list.as_elements().unwrap_or_default().iter();
            settings.boss_advertise = texts.filter_map(|it| it.as_str().map(Into::into)).collect();
            for text in settings.boss_advertise.clone() {
                if let Err(why) = super::address::socket(&text, false) {
                    self.error(advertise.expr.span, "Invalid address", format!("{why}."));
                }
            }
        }
    }

    fn variable(&mut self, block: &Block) {
        let Some(name) = self.name(block) else { return };
        if let Some(first) = self.config.variables.get(&name) {
            let first = first.span;
            let what = format!("A variable named \"{name}\"");
            return self.duplicate(block.header(), first, &what, "Duplicate variable");
        }
        let known = ["type", "default", "description", "sensitive", "nullable"];
        let arguments = self.arguments(&block.body, &known);
        self.only_blocks(&block.body, &["validation"]);
        let ty = match arguments.get("type") {
            Some(attribute) => match type_expr::parse(self, &attribute.expr) {
                Some(ty) => ty,
                None => return,
            },
            None => Type::Any,
        };
        let mut variable = Variable {
            default: None,
            description: String::new(),
            sensitive: false,
            nullable: true,
            validations: Vec::new(),
            span: block.header(),
            ty,
        };
        if let Some(it) = arguments.get("description") {
            variable.description = self.constant_text(it).unwrap_or_default();
        }
        if let Some(it) = arguments.get("sensitive") {
            variable.sensitive = self.constant_bool(it).unwrap_or(true);
        }
        if let Some(it) = arguments.get("nullable") {
            variable.nullable = self.constant_bool(it).unwrap_or(true);
        }
        if let Some(it) = arguments.get("default") {
            // A default of another type is wrong; the declaration stays, with any value.
            variable.default = self
                .constant(&it.expr, &Type::Any, "\"default\"")
                .and_then(|value| match convert::convert(&value, &variable.ty) {
                    Ok(value) => Some(value),
                    Err(error) => {
                        let detail = format!(
                            "This default does not fit the variable's type: {}.",
                            error.message
                        );
                        self.error(it.expr.span, "Invalid default value for variable", detail);
                        None
                    }
                })
                .or_else(|| Some(Value::unknown(variable.ty.clone())));
        }
        for inner in &block.body.blocks {
            if &*inner.keyword.text == "validation" {
                self.validation(inner, &name, &mut variable);
            }
        }
        self.config.variables.insert(name, variable);
    }

    fn validation(&mut self, block: &Block, name: &Name, variable: &mut Variable) {
        let arguments = self.arguments(&block.body, &["condition", "error_message"]);
        self.only_blocks(&block.body, &[]);
        for needed in ["condition", "error_message"] {
            if !arguments.contains_key(needed) {
                self.missing(block, needed);
            }
        }
        let (Some(condition), Some(message)) =
            (arguments.get("condition"), arguments.get("error_message"))
        else {
            return;
        };
        let mut refers = false;
        super::reference::references(&condition.expr, &mut |reference, _| {
            refers |=
                super::reference::block_of(reference) == Some(BlockId::Variable(name.clone()));
        });
        if !refers {
            let detail = format!("The condition must refer to var.{name}, which it checks.");
            return self.error(
                condition.expr.span,
                "Invalid variable validation condition",
                detail,
            );
        }
        variable.validations.push(Validation {
            condition: condition.expr.clone(),
            error_message: message.expr.clone(),
        });
    }

    fn locals(&mut self, block: Block) {
        self.no_labels(&block);
        self.only_blocks(&block.body, &[]);
        for attribute in block.body.attributes {
            let span = attribute.name.span;
            let name = match Name::new(&attribute.name.text) {
                Ok(name) => name,
                Err(error) => {
                    self.error(span, "Invalid name", format!("{error}."));
                    continue;
                }
            };
            if let Some(first) = self.config.locals.get(&name) {
                let first = first.span;
                let what = format!("A local value named \"{name}\"");
                self.duplicate(span, first, &what, "Duplicate local value");
                continue;
            }
            let expr = attribute.expr;
            self.config.locals.insert(name, Local { expr, span });
        }
    }

    fn provider(&mut self, mut block: Block) {
        let Some(provider) = self.name(&block) else {
            return;
        };
        let mut alias = None;
        if let Some(at) = block
            .body
            .attributes
            .iter()
            .position(|it| &*it.name.text == "alias")
        {
            let attribute = block.body.attributes.remove(at);
            let Some(text) = self.constant_text(&attribute) else {
                return;
            };
            match Name::new(&text) {
                Ok(name) => alias = Some(name),
                Err(error) => {
                    return self.error(attribute.expr.span, "Invalid name", format!("{error}."));
                }
            }
        }
        let mut command = None;
        let position = |it: &Attribute| &*it.name.text == "command";
        if let Some(at) = block.body.attributes.iter().position(position) {
            let attribute = block.body.attributes.remove(at);
            let Some(words) = self.command(&attribute) else {
                return;
            };
            command = Some(words);
        }
        let mut environment = Vec::new();
        let position = |it: &Attribute| &*it.name.text == "environment";
        if let Some(at) = block.body.attributes.iter().position(position) {
            let attribute = block.body.attributes.remove(at);
            let Some(names) = self.environment(&attribute) else {
                return;
            };
            environment = names;
        }
        let key = match &alias {
            Some(alias) => format!("{provider}.{alias}"),
            None => provider.to_string(),
        };
        let span = block.header();
        if let Some(first) = self.config.providers.get(&key) {
            let first = first.span;
            let what = format!("A configuration of provider \"{key}\"");
            self.duplicate(span, first, &what, "Duplicate provider configuration");
            return self.hint(Some("A second one needs an alias of its own.".into()));
        }
        let config = ProviderConfig {
            provider: provider.to_string(),
            alias,
            command,
            environment,
            body: block.body,
            span,
        };
        self.config.providers.insert(key, config);
    }

    /// Returns names of variables.
    fn environment(&mut self, attribute: &Attribute) -> Option<Vec<String>> {
        let names = Type::list(Type::String);
        let value = self.constant(&attribute.expr, &names, "\"environment\"")?;
        let names = value.as_elements()?.iter();
        let is_name = |it: &String| !it.is_empty() && !it.contains(['=', '\0']);
        let names: Option<Vec<String>> = names
            .map(|it| it.as_str().map(str::to_owned).filter(is_name))
            .collect();
        if names.is_none() {
            let detail = "These are names of variables: [\"PAPER_TOKEN\"].";
            self.error(attribute.expr.span, "Invalid environment", detail);
        }
        names
    }

    /// Returns a program and its arguments.
    fn command(&mut self, attribute: &Attribute) -> Option<Vec<String>> {
        let value = self.constant(&attribute.expr, &Type::list(Type::String), "\"command\"")?;
        let words = value.as_elements()?.iter();
        let words: Option<Vec<_>> = words.map(|it| it.as_str().map(str::to_owned)).collect();
        let is_right = |words: &Vec<String>| {
            words.first().is_some_and(|program| !program.is_empty())
                && !words.iter().any(|word| word.contains('\0'))
        };
        let words = words.filter(is_right);
        if words.is_none() {
            let detail = "A command is a program and its arguments: [\"./provider.py\"].";
            self.error(attribute.expr.span, "Invalid command", detail);
        }
        words
    }

    fn output(&mut self, block: Block) {
        let Some(name) = self.name(&block) else {
            return;
        };
        let span = block.header();
        if let Some(first) = self.config.outputs.get(&name) {
            let first = first.span;
            let what = format!("An output named \"{name}\"");
            return self.duplicate(span, first, &what, "Duplicate output");
        }
        let known = ["value", "description", "sensitive", "depends_on"];
        let arguments = self.arguments(&block.body, &known);
        self.only_blocks(&block.body, &[]);
        let Some(value) = arguments.get("value") else {
            return self.missing(&block, "value");
        };
        let description = arguments
            .get("description")
            .and_then(|it| self.constant_text(it));
        let sensitive = arguments
            .get("sensitive")
            .and_then(|it| self.constant_bool(it));
        let depends_on = arguments.get("depends_on").map(|it| self.depends_on(it));
        let output = Output {
            description: description.unwrap_or_default(),
            sensitive: sensitive.unwrap_or(false),
            value: value.expr.clone(),
            depends_on: depends_on.unwrap_or_default(),
            span,
        };
        self.config.outputs.insert(name, output);
    }

    /// Returns the blocks that a `depends_on` lists.
    pub(super) fn depends_on(&mut self, attribute: &Attribute) -> Vec<(BlockId, Span)> {
        let ExprKind::Tuple(elements) = &attribute.expr.kind else {
            let detail = "A list of references is needed: [machine.db, binding.cache].";
            self.error(attribute.expr.span, "Invalid depends_on", detail);
            return Vec::new();
        };
        let mut result = Vec::new();
        for element in elements {
            let id = match &element.kind {
                ExprKind::Reference(reference) => super::reference::block_of(reference),
                _ => None,
            };
            match id {
                Some(id @ (BlockId::Machine(_) | BlockId::Binding(_))) => {
                    result.push((id, element.span));
                }
                _ => {
                    let detail = "Only machines and bindings can be waited for, as machine.db.";
                    self.error(element.span, "Invalid depends_on", detail);
                }
            }
        }
        result
    }
}

/// Returns `a` or `a.b` of an expression that is just that.
pub(super) fn dotted(expr: &Expr) -> Option<String> {
    let ExprKind::Reference(reference) = &expr.kind else {
        return None;
    };
    let mut text = reference.root.text.to_string();
    for access in &reference.path {
        let AccessKind::Attribute(name) = &access.kind else {
            return None;
        };
        text.push('.');
        text.push_str(name);
    }
    Some(text)
}

/// The scope of what is known before anything is evaluated.
pub(super) struct Constants<'s> {
    pub(super) sources: &'s Sources,
}

impl Scope for Constants<'_> {
    fn resolve(&self, reference: &Reference) -> Result<(Value, usize), Vec<Diagnostic>> {
        let detail = format!(
            "Nothing can be referred to here, as \"{}\" does: the value must be known before \
             anything else.",
            reference.root.text
        );
        Err(vec![self.sources.error(
            reference.root.span,
            "References not allowed",
            detail,
        )])
    }

    fn attribute(&self, _of: &Address, _name: &str) -> Result<Value, AccessError> {
        Err(AccessError::new(
            "Unsupported attribute",
            "Nothing can be referred to here.",
        ))
    }

    fn inputs(&self) -> Option<&Inputs> {
        None
    }
}
