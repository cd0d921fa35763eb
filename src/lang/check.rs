//! Everything that is wrong with a configuration and can be said without state or network.

use std::sync::Arc;

use gobs_model::{Diagnostic, Kind, Number, Place, Type, Value};

use super::config::{BlockId, Config, IgnoreChanges, Machine, Repeat};
use super::evaluator::{Evaluator, Schemas};
use super::names::{Each, Names};
use super::syntax::Expr;
use super::{functions, reference, suggest};

/// Returns everything that is wrong with a configuration that can be said without state: what is
/// referred to and not declared, arguments that do not exist or are missing, values of a wrong
/// type. What depends on variables is checked as far as their types tell.
pub fn check(config: &Config, schemas: &Schemas) -> Vec<Diagnostic> {
    let evaluator = Evaluator::without_inputs(config, schemas);
    let mut errors = Vec::new();
    let blocks = blocks(config);
    for id in &blocks {
        names(&evaluator, id, &mut errors);
    }
    for id in &blocks {
        errors.extend(values(&evaluator, id));
    }
    for import in &config.imports {
        let each = || match &import.each {
            None => Each::None,
            Some(_) => Each::Entry(Value::unknown(Type::String), Value::unknown(Type::Any)),
        };
        names_in(&evaluator, (&import.id, each()), &mut errors);
        if let Some((for_each, key)) = &import.each {
            names_in(&evaluator, (for_each, Each::None), &mut errors);
            names_in(&evaluator, (key, each()), &mut errors);
        }
    }
    unique(errors)
}

fn blocks(config: &Config) -> Vec<BlockId> {
    let variables = config.variables.keys().cloned().map(BlockId::Variable);
    let locals = config.locals.keys().cloned().map(BlockId::Local);
    let providers = config.providers.keys().cloned().map(BlockId::Provider);
    let machines = config.machines.keys().cloned().map(BlockId::Machine);
    let bindings = config.bindings.keys().cloned().map(BlockId::Binding);
    let outputs = config.outputs.keys().cloned().map(BlockId::Output);
    variables
        .chain(locals)
        .chain(providers)
        .chain(machines)
        .chain(bindings)
        .chain(outputs)
        .collect()
}

/// Checks every name, also in what evaluation leaves out.
fn names(evaluator: &Evaluator<'_>, id: &BlockId, errors: &mut Vec<Diagnostic>) {
    let config = evaluator.config;
    config.exprs(id, &mut |expr| {
        names_in(evaluator, (expr, Each::None), errors);
    });
    let depends_on = match id {
        BlockId::Machine(name) => config.machines.get(name).map(|it| &it.depends_on),
        BlockId::Binding(name) => config.bindings.get(name).map(|it| &it.depends_on),
        BlockId::Output(name) => config.outputs.get(name).map(|it| &it.depends_on),
        _ => None,
    };
    for (id, span) in depends_on.into_iter().flatten() {
        let declared = match id {
            BlockId::Machine(name) => config.machines.contains_key(name),
            BlockId::Binding(name) => config.bindings.contains_key(name),
            _ => true,
        };
        if !declared {
            let detail = format!("{id} is not declared.");
            errors.push(config.sources.error(*span, "Invalid depends_on", detail));
        }
    }
}

/// Checks every name of an expression.
fn names_in(evaluator: &Evaluator<'_>, (expr, each): (&Expr, Each), errors: &mut Vec<Diagnostic>) {
    let config = evaluator.config;
    let names = Names::new(evaluator, each);
    reference::references(expr, &mut |reference, _| {
        errors.extend(names.declared(reference).err().map(|it| *it));
    });
    reference::calls(expr, &mut |call| {
        let name = &*call.name.text;
        if !functions::exists(name) {
            errors.push(unknown_function(config, call.name.span, name));
        }
    });
}

fn unknown_function(config: &Config, span: super::source::Span, name: &str) -> Diagnostic {
    let detail = functions::unknown_detail(name);
    let mut error = config
        .sources
        .error(span, functions::UNKNOWN_FUNCTION, detail);
    error.hint = functions::suggestion(name);
    error
}

/// How many instances of a block are evaluated: with what is wrong they are mostly alike.
const INSTANCES_CHECKED_MAX: usize = 20;

/// Returns what `each` and `count` are for the instances to check: the real ones where they are
/// known, else unknown ones.
fn instances(
    evaluator: &Evaluator<'_>,
    id: &BlockId,
    repeat: &Repeat,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Each> {
    let expansion = match id {
        BlockId::Machine(name) => evaluator.expand_machine(name),
        BlockId::Binding(name) => evaluator.expand_binding(name),
        _ => return vec![Each::None],
    };
    let expansion = expansion
        .map_err(|mut wrong| errors.append(&mut wrong))
        .ok();
    let found: Vec<Each> = match repeat {
        Repeat::Once => return vec![Each::None],
        Repeat::Count(_) => {
            let count = expansion.map_or(0, |it| it.instances.len());
            let indexes = (0..count).take(INSTANCES_CHECKED_MAX);
            indexes
                .map(|at| Each::Count(Number::from(at).into()))
                .collect()
        }
        Repeat::ForEach(_) => {
            let entries = expansion.iter().flat_map(|it| &it.each);
            let entry = |(key, value): (&Arc<str>, &Value)| {
                Each::Entry(Kind::String(key.clone()).into(), value.clone())
            };
            entries.take(INSTANCES_CHECKED_MAX).map(entry).collect()
        }
    };
    match (found.is_empty(), repeat) {
        (false, _) => found,
        (true, Repeat::Count(_)) => vec![Each::Count(Value::unknown(Type::Number))],
        (true, _) => vec![Each::Entry(
            Value::unknown(Type::String),
            Value::unknown(Type::Any),
        )],
    }
}

fn values(evaluator: &Evaluator<'_>, id: &BlockId) -> Vec<Diagnostic> {
    let config = evaluator.config;
    let mut errors = Vec::new();
    match id {
        BlockId::Variable(_) => {}
        BlockId::Local(name) => errors.extend(evaluator.local(name).err().unwrap_or_default()),
        BlockId::Provider(name) => {
            let wrong = evaluator.provider_settings(name).err();
            errors.extend(wrong.unwrap_or_default());
        }
        BlockId::Machine(name) => {
            if let Some(machine) = config.machines.get(name) {
                for each in instances(evaluator, id, &machine.repeat, &mut errors) {
                    let wrong = evaluator.machine_values(name, each).err();
                    errors.extend(wrong.unwrap_or_default());
                }
                errors.extend(ignored(evaluator, machine));
            }
        }
        BlockId::Binding(name) => {
            if let Some(binding) = config.bindings.get(name) {
                for each in instances(evaluator, id, &binding.repeat, &mut errors) {
                    let wrong = evaluator.binding_values(name, each).err();
                    errors.extend(wrong.unwrap_or_default());
                }
            }
        }
        BlockId::Output(name) => {
            errors.extend(evaluator.output(name).err().unwrap_or_default());
        }
    }
    errors
}

/// Checks that what `ignore_changes` names is there.
fn ignored(evaluator: &Evaluator<'_>, machine: &Machine) -> Vec<Diagnostic> {
    let IgnoreChanges::Attributes(names) = &machine.lifecycle.ignore_changes else {
        return Vec::new();
    };
    let provider = machine.provider.split('.').next().unwrap_or_default();
    let Some(schema) = evaluator.schemas.get(provider).map(|it| &it.machine) else {
        return Vec::new();
    };
    let known = || {
        let attributes = schema.attributes.keys();
        attributes.chain(schema.blocks.keys()).map(String::as_str)
    };
    let unknown = names
        .iter()
        .filter(|name| !known().any(|it| it == name.as_str()));
    unknown
        .map(|name| {
            let detail = format!(
                "ignore_changes names \"{name}\", but a machine of provider \"{provider}\" has no \
                 such attribute."
            );
            let sources = &evaluator.config.sources;
            let mut error = sources.error(machine.span, "Invalid ignore_changes", detail);
            error.hint = suggest::did_you_mean(name, known());
            error
        })
        .collect()
}

/// Returns diagnostics in the order of the sources, without what says the same of the same place:
/// a wrong local is wrong for every block that uses it.
pub fn unique(errors: Vec<Diagnostic>) -> Vec<Diagnostic> {
    let mut result: Vec<Diagnostic> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for error in errors {
        if seen.insert((
            error.summary.clone(),
            error.detail.clone(),
            error.place.clone(),
        )) {
            result.push(error);
        }
    }
    result.sort_by(|a, b| key(a).cmp(&key(b)));
    result
}

fn key(error: &Diagnostic) -> (&str, usize) {
    match &error.place {
        Some(Place::Source(span)) => (&span.file, span.start.byte),
        _ => ("", 0),
    }
}
