//! Everything that is wrong with a configuration and can be said without state or network.

use gobs_model::{Diagnostic, Place, Type, Value};

use super::config::{BlockId, Config, Repeat};
use super::evaluator::{Evaluator, Schemas};
use super::functions;
use super::names::{Each, Names};
use super::reference;

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
    unique(errors)
}

fn blocks(config: &Config) -> Vec<BlockId> {
    let locals = config.locals.keys().cloned().map(BlockId::Local);
    let providers = config.providers.keys().cloned().map(BlockId::Provider);
    let machines = config.machines.keys().cloned().map(BlockId::Machine);
    let bindings = config.bindings.keys().cloned().map(BlockId::Binding);
    let outputs = config.outputs.keys().cloned().map(BlockId::Output);
    locals
        .chain(providers)
        .chain(machines)
        .chain(bindings)
        .chain(outputs)
        .collect()
}

/// Checks every name, also in what evaluation leaves out.
fn names(evaluator: &Evaluator<'_>, id: &BlockId, errors: &mut Vec<Diagnostic>) {
    let config = evaluator.config;
    let names = Names::new(evaluator, Each::None);
    config.exprs(id, &mut |expr| {
        reference::references(expr, &mut |reference, _| {
            errors.extend(names.declared(reference).err().map(|it| *it));
        });
        reference::calls(expr, &mut |call| {
            let name = &*call.name.text;
            if !functions::exists(name) {
                errors.push(unknown_function(config, call.name.span, name));
            }
        });
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

fn unknown_function(config: &Config, span: super::source::Span, name: &str) -> Diagnostic {
    let detail = functions::unknown_detail(name);
    let mut error = config
        .sources
        .error(span, functions::UNKNOWN_FUNCTION, detail);
    error.hint = functions::suggestion(name);
    error
}

fn values(evaluator: &Evaluator<'_>, id: &BlockId) -> Vec<Diagnostic> {
    let config = evaluator.config;
    let any = |repeat: &Repeat, errors: &mut Vec<Diagnostic>| {
        let expansion = match id {
            BlockId::Machine(name) => evaluator.expand_machine(name),
            BlockId::Binding(name) => evaluator.expand_binding(name),
            _ => return Each::None,
        };
        let value = match expansion {
            // All instances alike: what is wrong with one is found with the first.
            Ok(expansion) => expansion.each.values().next().cloned(),
            Err(mut wrong) => {
                errors.append(&mut wrong);
                None
            }
        };
        match repeat {
            Repeat::Once => Each::None,
            Repeat::Count(_) => Each::Count(Value::unknown(Type::Number)),
            Repeat::ForEach(_) => {
                let value = value.map_or(Type::Any, |it| it.type_of());
                Each::Entry(Value::unknown(Type::String), Value::unknown(value))
            }
        }
    };
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
                let each = any(&machine.repeat, &mut errors);
                let wrong = evaluator.machine_values(name, each).err();
                errors.extend(wrong.unwrap_or_default());
            }
        }
        BlockId::Binding(name) => {
            if let Some(binding) = config.bindings.get(name) {
                let each = any(&binding.repeat, &mut errors);
                let wrong = evaluator.binding_values(name, each).err();
                errors.extend(wrong.unwrap_or_default());
            }
        }
        BlockId::Output(name) => {
            errors.extend(evaluator.output(name).err().unwrap_or_default());
        }
    }
    errors
}

/// Takes out what says the same of the same place, and puts the rest in the order of the sources.
pub(crate) fn unique(errors: Vec<Diagnostic>) -> Vec<Diagnostic> {
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
