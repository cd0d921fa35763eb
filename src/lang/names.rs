//! What expressions of a configuration can refer to.

use gobs_model::{Address, Diagnostic, Instance, Name, ObjectField, Type, Value};

use super::access::AccessError;
use super::config::BlockId;
use super::eval::Scope;
use super::evaluator::Evaluator;
use super::inputs::Inputs;
use super::suggest;
use super::syntax::{AccessKind, Reference};

/// The words that references start with.
pub(crate) const ROOTS: [&str; 9] = [
    "var", "local", "machine", "binding", "each", "count", "path", "gobs", "self",
];
/// What a reference to a binding shows.
const BINDING_ATTRIBUTES: [&str; 4] = ["id", "as", "address", "directory"];
/// What a machine shows beside its provider's attributes.
const MACHINE_ATTRIBUTES: [&str; 3] = ["id", "hob", "service"];

/// What `each` and `count` are.
#[derive(Clone, Debug)]
pub(crate) enum Each {
    None,
    Count(Value),
    Entry(Value, Value),
}

/// The names in scope of one instance of a block.
pub(crate) struct Names<'e, 'a> {
    evaluator: &'e Evaluator<'a>,
    each: Each,
}

impl<'e, 'a> Names<'e, 'a> {
    pub(crate) fn new(evaluator: &'e Evaluator<'a>, each: Each) -> Self {
        Self { evaluator, each }
    }

    fn error(&self, reference: &Reference, summary: &str, detail: String) -> Box<Diagnostic> {
        let start = reference.root.span;
        let span = reference.path.first().map_or(start, |it| start.to(it.span));
        Box::new(self.evaluator.config.sources.error(span, summary, detail))
    }

    /// Returns the block that a reference names, or what is wrong with it.
    pub(crate) fn declared(
        &self,
        reference: &Reference,
    ) -> Result<Option<BlockId>, Box<Diagnostic>> {
        let root = &*reference.root.text;
        let config = self.evaluator.config;
        let (what, words): (&str, &[&str]) = match root {
            "var" => ("variable", &[]),
            "local" => ("local value", &[]),
            "machine" | "binding" => (root, &[]),
            "each" => ("", &["key", "value"]),
            "count" => ("", &["index"]),
            "path" => ("", &["module", "root"]),
            "gobs" => ("", &["workspace"]),
            _ => return Err(self.unknown_root(reference)),
        };
        let Some(AccessKind::Attribute(name)) = reference.path.first().map(|it| &it.kind) else {
            let detail = format!(
                "\"{root}\" cannot be used alone; it must be followed by a dot and a name."
            );
            return Err(self.error(reference, "Invalid reference", detail));
        };
        let block = super::reference::block_of(reference);
        let declared = match &block {
            Some(BlockId::Variable(name)) => config.variables.contains_key(name),
            Some(BlockId::Local(name)) => config.locals.contains_key(name),
            Some(BlockId::Machine(name)) => config.machines.contains_key(name),
            Some(BlockId::Binding(name)) => config.bindings.contains_key(name),
            _ => words.contains(&&**name),
        };
        if declared {
            return Ok(block);
        }
        let (summary, detail) = if words.is_empty() {
            (
                format!("Reference to undeclared {what}"),
                format!("No {what} named \"{name}\" is declared."),
            )
        } else {
            (
                "Invalid reference".to_owned(),
                format!("There is no {root}.{name}."),
            )
        };
        let mut error = self.error(reference, &summary, detail);
        let nearest = match root {
            "var" => suggest::nearest(name, config.variables.keys().map(Name::as_str)),
            "local" => suggest::nearest(name, config.locals.keys().map(Name::as_str)),
            "machine" => suggest::nearest(name, config.machines.keys().map(Name::as_str)),
            "binding" => suggest::nearest(name, config.bindings.keys().map(Name::as_str)),
            _ => suggest::nearest(name, words.iter().copied()),
        };
        error.hint = nearest.map(|it| format!("Did you mean {root}.{it}?"));
        Err(error)
    }

    fn unknown_root(&self, reference: &Reference) -> Box<Diagnostic> {
        let root = &*reference.root.text;
        let config = self.evaluator.config;
        if root == "module" || root == "self" || root == "data" {
            let detail = format!("This version of gobs has no \"{root}\" references yet.");
            return self.error(reference, "Not supported yet", detail);
        }
        let detail = format!(
            "Nothing named \"{root}\" is in scope. References start with var, local, machine, \
             binding, each, count, path or gobs."
        );
        let mut error = self.error(reference, "Invalid reference", detail);
        let blocks = [
            (
                "machine",
                Name::new(root).is_ok_and(|it| config.machines.contains_key(&it)),
            ),
            (
                "binding",
                Name::new(root).is_ok_and(|it| config.bindings.contains_key(&it)),
            ),
            (
                "local",
                Name::new(root).is_ok_and(|it| config.locals.contains_key(&it)),
            ),
            (
                "var",
                Name::new(root).is_ok_and(|it| config.variables.contains_key(&it)),
            ),
        ];
        error.hint = match blocks.iter().find(|(_, there)| *there) {
            Some((kind, _)) => Some(format!("Did you mean {kind}.{root}?")),
            None => suggest::did_you_mean(root, ROOTS).or_else(|| {
                reference
                    .path
                    .is_empty()
                    .then(|| format!("If this is a text, put it in quotes: \"{root}\"."))
            }),
        };
        error
    }

    fn machine_attribute(&self, machine: &Instance, name: &str) -> Result<Value, AccessError> {
        let config = self.evaluator.config.machines.get(&machine.name);
        if name == "service" {
            let services = config.map(|it| it.services.keys()).into_iter().flatten();
            return Ok(Value::object(services.map(|service| {
                let address = Address::Service {
                    machine: machine.clone(),
                    service: service.clone(),
                };
                (service.as_str(), Value::from(address))
            })));
        }
        let address = Address::Machine(machine.clone());
        if let Some(value) = self
            .evaluator
            .objects
            .get(&address)
            .and_then(|it| it.get(name))
        {
            return Ok(value.clone());
        }
        if name == "hob" {
            let text = || ObjectField {
                ty: Type::String,
                optional: false,
                default: None,
            };
            let fields = ["fingerprint", "designator"].map(|it| (it.to_owned(), text()));
            return Ok(Value::unknown(Type::Object(fields.into())));
        }
        let provider = config.and_then(|it| it.provider.split('.').next());
        let Some(schema) = provider.and_then(|it| self.evaluator.schemas.get(it)) else {
            // The provider is reported where it is named.
            return Ok(Value::unknown(Type::Any));
        };
        if let Some(attribute) = schema.machine.attributes.get(name) {
            return Ok(Value::unknown(attribute.ty.clone()).sensitive_if(attribute.sensitive));
        }
        if schema.machine.blocks.contains_key(name) {
            return Ok(Value::unknown(Type::Any));
        }
        if name == "id" {
            return Ok(Value::unknown(Type::String));
        }
        let detail = format!(
            "A machine of provider \"{}\" has no attribute named \"{name}\".",
            schema.name
        );
        let known = schema
            .machine
            .attributes
            .keys()
            .chain(schema.machine.blocks.keys());
        let known = known.map(String::as_str).chain(MACHINE_ATTRIBUTES);
        Err(AccessError::new("Unsupported attribute", detail)
            .hint(suggest::did_you_mean(name, known)))
    }
}

impl Scope for Names<'_, '_> {
    fn resolve(&self, reference: &Reference) -> Result<(Value, usize), Vec<Diagnostic>> {
        let block = self.declared(reference).map_err(|error| vec![*error])?;
        let value = match block {
            Some(BlockId::Variable(name)) => {
                let value = self.evaluator.variables.get(&name);
                // A variable without a right value was reported.
                value.cloned().unwrap_or_else(|| Value::unknown(Type::Any))
            }
            Some(BlockId::Local(name)) => self.evaluator.local(&name)?,
            Some(id @ (BlockId::Machine(_) | BlockId::Binding(_))) => {
                self.evaluator.block_value(&id)?
            }
            _ => {
                let name = match reference.path.first().map(|it| &it.kind) {
                    Some(AccessKind::Attribute(name)) => &**name,
                    _ => "",
                };
                self.builtin(&reference.root.text, name).ok_or_else(|| {
                    let argument = if &*reference.root.text == "each" {
                        "for_each"
                    } else {
                        "count"
                    };
                    let detail = format!(
                        "\"{}\" can be used only in a block that has \"{argument}\".",
                        reference.root.text
                    );
                    vec![*self.error(reference, "Invalid reference", detail)]
                })?
            }
        };
        Ok((value, 1))
    }

    fn attribute(&self, of: &Address, name: &str) -> Result<Value, AccessError> {
        let looks = match of {
            Address::Machine(_) => name != "service",
            Address::Binding(_) => true,
            Address::Service { .. } | Address::Output(_) => false,
        };
        if looks {
            self.evaluator.reads.note(of);
        }
        match of {
            Address::Machine(machine) => self.machine_attribute(machine, name),
            Address::Binding(binding) => {
                if let Some(value) = self.evaluator.objects.get(of).and_then(|it| it.get(name)) {
                    return Ok(value.clone());
                }
                if BINDING_ATTRIBUTES.contains(&name) {
                    return Ok(Value::unknown(Type::String));
                }
                let detail = format!("binding.{binding} has no attribute named \"{name}\".");
                Err(AccessError::new("Unsupported attribute", detail)
                    .hint(suggest::did_you_mean(name, BINDING_ATTRIBUTES)))
            }
            Address::Service { .. } | Address::Output(_) => {
                let detail = format!("{of} is a {}, which has no attributes.", of.kind());
                Err(AccessError::new("Unsupported attribute", detail))
            }
        }
    }

    fn inputs(&self) -> Option<&Inputs> {
        self.evaluator.inputs
    }
}

impl Names<'_, '_> {
    fn builtin(&self, root: &str, name: &str) -> Option<Value> {
        let inputs = self.evaluator.inputs;
        Some(match (root, name, &self.each) {
            ("each", "key", Each::Entry(key, _)) => key.clone(),
            ("each", "value", Each::Entry(_, value)) => value.clone(),
            ("count", "index", Each::Count(index)) => index.clone(),
            ("path", _, _) => inputs.map_or(Value::unknown(Type::String), |it| {
                it.root.to_string_lossy().as_ref().into()
            }),
            ("gobs", _, _) => inputs.map_or(Value::unknown(Type::String), |it| {
                it.workspace.as_str().into()
            }),
            _ => return None,
        })
    }
}
