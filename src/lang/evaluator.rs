//! From declarations to values.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use gobs_model::{Address, Diagnostic, Instance, Key, Kind, Name, ProviderSchema, Type, Value};

use super::config::{
    BindingValues, BlockId, Config, Expansion, Import, MachineValues, ProviderConfig, Repeat,
};
use super::eval::{Eval, describe, wrong};
use super::inputs::{self, Inputs};
use super::names::{Each, Names};
use super::reads::Reads;
use super::source::Span;
use super::syntax::Expr;

/// What is known of each provider, by its name.
pub type Schemas = BTreeMap<String, ProviderSchema>;

/// The most instances of one block: more is a mistake in `count`.
const INSTANCES_MAX: i64 = 100_000;
/// The most blocks whose `for_each` refer to each other in a chain.
const EXPANDING_MAX: usize = 32;
/// The deepest value that a local may have: values are gone through by recursion.
const DEPTH_MAX: usize = 128;
/// The most values that a local may hold, shared ones counted each time they stand there:
/// doubling in a chain of locals must not take for ever.
const NODES_MAX: usize = 2_000_000;

type Failed = Vec<Diagnostic>;

/// Evaluates declarations, each when what it refers to has been set.
pub struct Evaluator<'a> {
    pub(crate) config: &'a Config,
    pub(crate) schemas: &'a Schemas,
    /// Nothing while only what can be said without state is checked: then variables are unknown.
    pub(crate) inputs: Option<&'a Inputs>,
    pub(crate) variables: BTreeMap<Name, Value>,
    warnings: Vec<Diagnostic>,
    pub(crate) objects: HashMap<Address, Value>,
    locals: RefCell<HashMap<Name, Result<Value, Failed>>>,
    /// What was looked at for each of `locals` and `expansions`, for whoever uses them.
    local_reads: RefCell<HashMap<Name, Arc<[Address]>>>,
    expansion_reads: RefCell<HashMap<BlockId, Arc<[Address]>>>,
    pub(super) reads: Reads,
    expansions: RefCell<HashMap<BlockId, Arc<Expansion>>>,
    expanding: RefCell<Vec<BlockId>>,
    /// The locals that depend on a machine or binding.
    dependents: HashMap<BlockId, Vec<Name>>,
}

impl<'a> Evaluator<'a> {
    /// Returns an evaluator.
    ///
    /// # Errors
    /// When a variable has no value, a wrong one, or one that its validation refuses.
    pub fn new(
        config: &'a Config,
        inputs: &'a Inputs,
        schemas: &'a Schemas,
    ) -> Result<Self, Vec<Diagnostic>> {
        let given = inputs::variables(config, inputs);
        let mut evaluator = Self::with(config, schemas, Some(inputs), given.values);
        evaluator.warnings = given.warnings;
        let mut errors = given.errors;
        if errors.is_empty() {
            errors = evaluator.validate();
        }
        if errors.is_empty() {
            Ok(evaluator)
        } else {
            Err(errors)
        }
    }

    /// Returns an evaluator for which every variable is unknown.
    pub(crate) fn without_inputs(config: &'a Config, schemas: &'a Schemas) -> Self {
        let unknown = config.variables.iter().map(|(name, variable)| {
            let value = Value::unknown(variable.ty.clone());
            (name.clone(), value.sensitive_if(variable.sensitive))
        });
        Self::with(config, schemas, None, unknown.collect())
    }

    fn with(
        config: &'a Config,
        schemas: &'a Schemas,
        inputs: Option<&'a Inputs>,
        variables: BTreeMap<Name, Value>,
    ) -> Self {
        Self {
            config,
            schemas,
            inputs,
            variables,
            warnings: Vec::new(),
            objects: HashMap::new(),
            locals: RefCell::default(),
            local_reads: RefCell::default(),
            expansion_reads: RefCell::default(),
            reads: Reads::default(),
            expansions: RefCell::default(),
            expanding: RefCell::default(),
            dependents: config.dependent_locals(),
        }
    }

    /// Returns the time of the plan, in seconds since 1970, where it is known.
    pub(crate) fn now_s(&self) -> Option<u64> {
        self.inputs.map(|it| it.now_s)
    }

    /// Returns what should be looked at, though nothing stops for it.
    pub fn warnings(&self) -> &[Diagnostic] {
        &self.warnings
    }

    /// Sets what a reference to a machine's or binding's instance shows: the planned value with
    /// its unknowns, at apply the real one.
    pub fn set_object(&mut self, address: Address, value: Value) {
        let block = match &address {
            Address::Machine(it) | Address::Service { machine: it, .. } => {
                BlockId::Machine(it.name.clone())
            }
            Address::Binding(it) => BlockId::Binding(it.name.clone()),
            Address::Output(_) => return,
        };
        if let Some(names) = self.dependents.get(&block) {
            let locals = self.locals.get_mut();
            for name in names {
                locals.remove(name);
            }
        }
        self.objects.insert(address, value);
    }

    /// Returns the instances of a machine block.
    ///
    /// # Errors
    /// When `count` or `for_each` is wrong or not known yet.
    pub fn expand_machine(&self, name: &Name) -> Result<Arc<Expansion>, Vec<Diagnostic>> {
        self.expand(&BlockId::Machine(name.clone()))
    }

    /// Returns the instances of a binding block.
    ///
    /// # Errors
    /// As [`Evaluator::expand_machine`].
    pub fn expand_binding(&self, name: &Name) -> Result<Arc<Expansion>, Vec<Diagnostic>> {
        self.expand(&BlockId::Binding(name.clone()))
    }

    /// Returns what an instance of a machine is to be.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn machine(&self, instance: &Instance) -> Result<MachineValues, Vec<Diagnostic>> {
        let id = BlockId::Machine(instance.name.clone());
        let each = self.each(&id, instance)?;
        let (values, reads) = self.reads.during(|| {
            self.note_expansion(&id);
            self.machine_values(&instance.name, each)
        });
        let mut values = values?;
        values.reads = reads;
        Ok(values)
    }

    /// Returns what an instance of a binding is to be.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn binding(&self, instance: &Instance) -> Result<BindingValues, Vec<Diagnostic>> {
        let id = BlockId::Binding(instance.name.clone());
        let each = self.each(&id, instance)?;
        let (values, reads) = self.reads.during(|| {
            self.note_expansion(&id);
            self.binding_values(&instance.name, each)
        });
        // Without inputs there may be none, with them what is unknown is an error.
        let mut values = values?.ok_or_else(Vec::new)?;
        values.reads = reads;
        Ok(values)
    }

    /// Returns an output's value.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn output(&self, name: &Name) -> Result<Value, Vec<Diagnostic>> {
        let Some(output) = self.config.outputs.get(name) else {
            return Err(undeclared(&format!("output.{name}")));
        };
        let names = Names::new(self, Each::None);
        let mut eval = Eval::new(&names, &self.config.sources);
        let value = eval.eval(&output.value);
        if !output.sensitive && value.contains_sensitive() {
            let detail = "To keep a secret from being shown by mistake, an output whose value \
                          comes from sensitive values must say so.";
            let hint = "Add sensitive = true to the output, or take the mark away on purpose with \
                        nonsensitive(…).";
            eval.fail_at(
                output.value.span,
                "Output refers to sensitive values",
                detail,
                Some(hint.into()),
            );
        }
        finish(eval.errors, value.sensitive_if(output.sensitive))
    }

    /// Returns the machines that a block imports, each with what it is called at its provider.
    ///
    /// # Errors
    /// Everything that is wrong with that, and that it is not known before an apply.
    pub fn imported(&self, import: &Import) -> Result<Vec<(Instance, String)>, Vec<Diagnostic>> {
        let Some((expr, key)) = &import.each else {
            let id = self.import_id(import, Each::None)?;
            return Ok(vec![(import.to.clone(), id)]);
        };
        let names = Names::new(self, Each::None);
        let mut eval = Eval::new(&names, &self.config.sources);
        let all = for_each(&mut eval, expr);
        let all = finish(eval.errors, all)?.unwrap_or_default();
        let (mut imported, mut errors) = (Vec::new(), Vec::new());
        for (at, value) in all {
            let each = || Each::Entry(Kind::String(at.clone()).into(), value.clone());
            let names = Names::new(self, each());
            let mut eval = Eval::new(&names, &self.config.sources);
            let found = super::decode_import::key_of(&eval.eval(key));
            if eval.errors.is_empty() && found.is_none() {
                let detail = "The key of an imported machine is text or a number that is known.";
                eval.fail_at(key.span, "Invalid import target", detail, None);
            }
            errors.extend(eval.errors);
            match self.import_id(import, each()) {
                Ok(id) => {
                    let name = import.to.name.clone();
                    imported.push((Instance { name, key: found }, id));
                }
                Err(wrong) => errors.extend(wrong),
            }
        }
        finish(errors, imported)
    }

    fn import_id(&self, import: &Import, each: Each) -> Result<String, Vec<Diagnostic>> {
        let names = Names::new(self, each);
        let mut eval = Eval::new(&names, &self.config.sources);
        let value = eval.typed(&import.id, &Type::String, "\"id\"");
        let id = value.as_str().unwrap_or_default().to_owned();
        if eval.errors.is_empty() && id.is_empty() {
            let detail = "What is imported must be known when it is planned, and this is empty, or \
                          known only after an apply.";
            eval.fail_at(import.id.span, "Invalid import id", detail, None);
        }
        if value.contains_sensitive() {
            let detail = "What is imported is shown and kept in clear, so it cannot be sensitive.";
            eval.fail_at(import.id.span, "Invalid import id", detail, None);
        }
        finish(eval.errors, id)
    }

    /// Returns the settings of a provider, `dummy` or `dummy.alias`: an object, complete by its
    /// schema.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn provider_settings(&self, provider: &str) -> Result<Value, Vec<Diagnostic>> {
        let config = self.config.providers.get(provider);
        let name = provider.split('.').next().unwrap_or_default();
        let Some(schema) = self.schemas.get(name) else {
            return Err(vec![self.unknown_provider(name, config.map(|it| it.span))]);
        };
        let nothing = super::syntax::Body::default();
        let body = config.map_or(&nothing, |it: &ProviderConfig| &it.body);
        let names = Names::new(self, Each::None);
        let mut eval = Eval::new(&names, &self.config.sources);
        let span = config.map(|it| it.span);
        let what = format!("the provider \"{name}\"");
        let value = super::values::block(&mut eval, &schema.settings, body, span, &what, &[]);
        finish(eval.errors, value)
    }

    /// Returns a variable's value.
    pub fn variable(&self, name: &Name) -> Option<&Value> {
        self.variables.get(name)
    }

    fn validate(&self) -> Vec<Diagnostic> {
        let mut errors = Vec::new();
        for (name, variable) in &self.config.variables {
            for validation in &variable.validations {
                let names = Names::new(self, Each::None);
                let mut eval = Eval::new(&names, &self.config.sources);
                let what = "The validation's condition";
                let condition = eval.typed(&validation.condition, &Type::Bool, what);
                if condition.as_bool() == Some(false) {
                    let message = eval.typed(&validation.error_message, &Type::String, "It");
                    let message = if message.sensitive {
                        "The value is not valid; its message is sensitive."
                    } else {
                        message.as_str().unwrap_or("The value is not valid.")
                    };
                    let mut error = self.config.sources.error(
                        validation.condition.span,
                        "Invalid value for variable",
                        message,
                    );
                    if let Some(value) = self.variables.get(name) {
                        error.values.push((format!("var.{name}"), describe(value)));
                    }
                    errors.push(error);
                }
                errors.append(&mut eval.errors);
            }
        }
        errors
    }

    /// Returns the error for a provider that does not exist.
    pub(crate) fn unknown_provider(&self, name: &str, span: Option<Span>) -> Diagnostic {
        let known: Vec<&str> = self.schemas.keys().map(String::as_str).collect();
        let detail = format!(
            "There is no provider named \"{name}\". This gobs has: {}.",
            known.join(", ")
        );
        let mut error = match span {
            Some(span) => self.config.sources.error(span, "Unknown provider", detail),
            None => Diagnostic::error("Unknown provider", detail),
        };
        error.hint = super::suggest::did_you_mean(name, known);
        error
    }

    /// Returns a local's value. What it depends on is evaluated first, without recursion, so that
    /// a long chain needs no stack.
    pub(crate) fn local(&self, name: &Name) -> Result<Value, Failed> {
        let value = self.evaluated_local(name);
        if let Some(reads) = self.local_reads.borrow().get(name) {
            self.reads.note_all(reads);
        }
        value
    }

    fn evaluated_local(&self, name: &Name) -> Result<Value, Failed> {
        if let Some(known) = self.locals.borrow().get(name) {
            return known.clone();
        }
        let mut path: Vec<(Name, Vec<(Name, Span)>)> = vec![(name.clone(), self.needs(name))];
        let mut visiting: HashSet<Name> = HashSet::from([name.clone()]);
        while let Some((current, needs)) = path.last_mut() {
            let current = current.clone();
            let Some((next, span)) = needs.pop() else {
                let (value, reads) = self.reads.during(|| self.evaluate_local(&current));
                self.local_reads.borrow_mut().insert(current.clone(), reads);
                self.locals.borrow_mut().insert(current.clone(), value);
                visiting.remove(&current);
                path.pop();
                continue;
            };
            if self.locals.borrow().contains_key(&next) {
                continue;
            }
            if !visiting.insert(next.clone()) {
                let start = path.iter().position(|(it, _)| *it == next).unwrap_or(0);
                let mut names: Vec<String> = path[start..]
                    .iter()
                    .map(|(it, _)| format!("local.{it}"))
                    .collect();
                names.push(format!("local.{next}"));
                let detail = format!("These refer to each other: {}.", names.join(" -> "));
                let error = self.config.sources.error(span, "Cycle", detail);
                // Every one of the circle has no value, for this one reason.
                for (it, _) in &path[start..] {
                    self.locals
                        .borrow_mut()
                        .insert(it.clone(), Err(vec![error.clone()]));
                }
                for (it, _) in path.drain(start..) {
                    visiting.remove(&it);
                }
                continue;
            }
            let needs = self.needs(&next);
            path.push((next, needs));
        }
        self.locals
            .borrow()
            .get(name)
            .cloned()
            .unwrap_or_else(|| Ok(wrong()))
    }

    /// The locals that a local's expression names, last first.
    fn needs(&self, name: &Name) -> Vec<(Name, Span)> {
        let direct = self.config.direct(&BlockId::Local(name.clone()));
        let locals = direct.into_iter().filter_map(|(id, span)| match id {
            BlockId::Local(name) if self.config.locals.contains_key(&name) => Some((name, span)),
            _ => None,
        });
        let mut locals: Vec<_> = locals.collect();
        locals.reverse();
        locals
    }

    fn evaluate_local(&self, name: &Name) -> Result<Value, Failed> {
        let Some(local) = self.config.locals.get(name) else {
            return Ok(wrong());
        };
        let names = Names::new(self, Each::None);
        let mut eval = Eval::new(&names, &self.config.sources);
        let value = eval.eval(&local.expr);
        let mut left = NODES_MAX;
        if !small(&value, DEPTH_MAX, &mut left) {
            let detail = format!(
                "A local value may be nested {DEPTH_MAX} levels deep and hold {NODES_MAX} values."
            );
            eval.fail_at(local.expr.span, "Value too large", detail, None);
        }
        finish(eval.errors, value)
    }

    /// Returns what a reference to all of a block shows.
    pub(crate) fn block_value(&self, id: &BlockId) -> Result<Value, Failed> {
        self.expand(id).map(|it| it.value.clone())
    }

    /// Notes what was looked at to know a block's instances, for each of them.
    fn note_expansion(&self, id: &BlockId) {
        if let Some(reads) = self.expansion_reads.borrow().get(id) {
            self.reads.note_all(reads);
        }
    }

    fn expand(&self, id: &BlockId) -> Result<Arc<Expansion>, Failed> {
        if let Some(known) = self.expansions.borrow().get(id) {
            return Ok(known.clone());
        }
        let repeat = match id {
            BlockId::Machine(name) => self.config.machines.get(name).map(|it| &it.repeat),
            BlockId::Binding(name) => self.config.bindings.get(name).map(|it| &it.repeat),
            _ => None,
        };
        let Some(repeat) = repeat else {
            return Err(undeclared(&id.to_string()));
        };
        let expr = match repeat {
            Repeat::Once => None,
            Repeat::Count(expr) | Repeat::ForEach(expr) => Some(expr),
        };
        if let Some(expr) = expr {
            let expanding = self.expanding.borrow();
            if expanding.contains(id) || expanding.len() >= EXPANDING_MAX {
                let mut chain: Vec<String> = expanding.iter().map(BlockId::to_string).collect();
                chain.push(id.to_string());
                let detail = format!(
                    "Which instances there are must not depend on itself: {}.",
                    chain.join(" -> ")
                );
                return Err(vec![self.config.sources.error(expr.span, "Cycle", detail)]);
            }
        }
        self.expanding.borrow_mut().push(id.clone());
        let (result, reads) = self.reads.during(|| self.expansion(id, repeat));
        self.expanding.borrow_mut().pop();
        self.expansion_reads.borrow_mut().insert(id.clone(), reads);
        let expansion = Arc::new(result?);
        self.expansions
            .borrow_mut()
            .insert(id.clone(), expansion.clone());
        Ok(expansion)
    }

    fn expansion(&self, id: &BlockId, repeat: &Repeat) -> Result<Expansion, Failed> {
        let (name, is_machine) = match id {
            BlockId::Machine(name) => (name, true),
            BlockId::Binding(name) => (name, false),
            _ => return Err(undeclared(&id.to_string())),
        };
        let instance = |key: Option<Key>| Instance {
            name: name.clone(),
            key,
        };
        let shown = |instance: &Instance| {
            Value::from(if is_machine {
                Address::Machine(instance.clone())
            } else {
                Address::Binding(instance.clone())
            })
        };
        let names = Names::new(self, Each::None);
        let mut eval = Eval::new(&names, &self.config.sources);
        let of = if is_machine {
            Type::Machine
        } else {
            Type::Binding
        };
        let expansion = match repeat {
            Repeat::Once => {
                let instance = instance(None);
                Expansion {
                    value: shown(&instance),
                    instances: vec![instance],
                    each: BTreeMap::new(),
                }
            }
            Repeat::Count(expr) => match count(&mut eval, expr) {
                Some(count) => {
                    let instances: Vec<Instance> = (0..count)
                        .map(|at| instance(Some(Key::Index(at))))
                        .collect();
                    Expansion {
                        value: Value::tuple(instances.iter().map(shown)),
                        instances,
                        each: BTreeMap::new(),
                    }
                }
                None => unknown_expansion(Type::list(of)),
            },
            Repeat::ForEach(expr) => match for_each(&mut eval, expr) {
                Some(each) => {
                    let key = |it: &Arc<str>| instance(Some(Key::Text(it.clone())));
                    let instances: Vec<Instance> = each.keys().map(key).collect();
                    let value = each.keys().cloned().zip(instances.iter().map(shown));
                    Expansion {
                        value: Value::object(value),
                        instances,
                        each,
                    }
                }
                None => unknown_expansion(Type::map(of)),
            },
        };
        finish(eval.errors, expansion)
    }

    /// Returns `each` and `count` of an instance.
    fn each(&self, id: &BlockId, instance: &Instance) -> Result<Each, Failed> {
        let expansion = self.expand(id)?;
        let none = || {
            let name = match id {
                BlockId::Machine(_) => "machine",
                _ => "binding",
            };
            undeclared(&format!("{name}.{instance}"))
        };
        match &instance.key {
            None if expansion.instances.iter().any(|it| it.key.is_none()) => Ok(Each::None),
            Some(Key::Index(at)) if (*at as usize) < expansion.instances.len() => {
                Ok(Each::Count(i64::try_from(*at).unwrap_or(i64::MAX).into()))
            }
            Some(Key::Text(key)) => {
                let value = expansion.each.get(key).cloned().ok_or_else(none)?;
                Ok(Each::Entry(Kind::String(key.clone()).into(), value))
            }
            _ => Err(none()),
        }
    }
}

/// Returns the result, or the errors if there are any.
pub(crate) fn finish<T>(errors: Vec<Diagnostic>, result: T) -> Result<T, Failed> {
    if errors.is_empty() {
        Ok(result)
    } else {
        Err(errors)
    }
}

fn undeclared(what: &str) -> Failed {
    let detail = format!("The configuration declares no {what}.");
    vec![Diagnostic::error("Reference to undeclared object", detail)]
}

fn unknown_expansion(ty: Type) -> Expansion {
    Expansion {
        instances: Vec::new(),
        each: BTreeMap::new(),
        value: Value::unknown(ty),
    }
}

fn small(value: &Value, depth: usize, left: &mut usize) -> bool {
    if depth == 0 || *left == 0 {
        return false;
    }
    *left -= 1;
    value.children().all(|it| small(it, depth - 1, left))
}

const LATER: &str = "it depends on what is known only after apply, so it cannot be said now how \
                     many instances there are";

/// Returns how many instances a block has; nothing when that is wrong, or not known while nothing
/// is.
fn count(eval: &mut Eval<'_>, expr: &Expr) -> Option<u64> {
    let value = eval.typed(expr, &Type::Number, "\"count\"");
    let what = match value.as_i64() {
        _ if value.sensitive => "it must not be sensitive, since addresses show it",
        Some(count) if (0..=INSTANCES_MAX).contains(&count) => return u64::try_from(count).ok(),
        Some(count) if count < 0 => "it must not be negative",
        Some(_) => "there are at most 100000 instances",
        None if value.is_null() => "it must not be null",
        None if value.is_unknown()
            && (eval.scope.inputs().is_none() || !eval.errors.is_empty()) =>
        {
            return None;
        }
        None if value.is_unknown() => LATER,
        None => "it must be a whole number",
    };
    let detail = format!("This \"count\" cannot be used: {what}.");
    eval.fail(expr, expr.span, "Invalid count argument", detail);
    None
}

/// Returns keys and values of a block's instances, as [`count`] does.
fn for_each(eval: &mut Eval<'_>, expr: &Expr) -> Option<BTreeMap<Arc<str>, Value>> {
    let value = eval.eval(expr);
    let lenient = eval.scope.inputs().is_none() || !eval.errors.is_empty();
    let mut hint = None;
    let what: String = match &value.kind {
        _ if value.sensitive => "it must not be sensitive, since addresses show its keys".into(),
        Kind::Null => "it must not be null".into(),
        Kind::Unknown(Type::Any | Type::Map(_) | Type::Object(_) | Type::Set(_)) if lenient => {
            return None;
        }
        Kind::Unknown(Type::Any | Type::Map(_) | Type::Object(_) | Type::Set(_)) => LATER.into(),
        Kind::Map(entries) | Kind::Object(entries) if entries.len() as i64 <= INSTANCES_MAX => {
            return Some((**entries).clone());
        }
        Kind::Set(elements) if elements.len() as i64 <= INSTANCES_MAX => match set_keys(elements) {
            Ok(keys) => return Some(keys),
            Err(_) if lenient && elements.iter().any(Value::is_unknown) => return None,
            Err(why) => why.into(),
        },
        Kind::Map(_) | Kind::Object(_) | Kind::Set(_) => {
            "there are at most 100000 instances".into()
        }
        Kind::List(_) | Kind::Tuple(_) | Kind::Unknown(Type::List(_) | Type::Tuple(_)) => {
            hint = Some("toset(…) makes a set of a list of strings.".to_owned());
            "a map or a set of strings is required, and this is a list".into()
        }
        Kind::Ref(address) => {
            hint = Some("A single one needs no for_each; or write toset([\"name\"]).".to_owned());
            format!(
                "a map or a set of strings is required, and this is one {}",
                address.kind()
            )
        }
        _ => {
            let have = super::convert::friendly(&value.type_of());
            format!("a map or a set of strings is required, and this is {have}")
        }
    };
    let detail = format!("This \"for_each\" cannot be used: {what}.");
    eval.fail(expr, expr.span, "Invalid for_each argument", detail);
    if let Some(error) = eval.errors.last_mut() {
        error.hint = hint;
    }
    None
}

fn set_keys(elements: &[Value]) -> Result<BTreeMap<Arc<str>, Value>, &'static str> {
    let mut keys = BTreeMap::new();
    for element in elements {
        match &element.kind {
            _ if element.sensitive => return Err("its elements must not be sensitive"),
            Kind::String(text) => keys.insert(text.clone(), element.clone()),
            Kind::Unknown(_) => return Err(LATER),
            _ => return Err("the elements of a set must be strings, and not null"),
        };
    }
    Ok(keys)
}

impl std::fmt::Debug for Evaluator<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").finish_non_exhaustive()
    }
}
