//! `gobs output`

use std::collections::BTreeMap;

use gobs_model::{Diagnostic, Known, Name, Value};

use super::view::{self, state};
use super::{Context, Failure, Outcome, exit, remembered};

/// Shows the outputs of the last apply
///
/// What is sensitive is masked, unless it is asked for by name with --raw or --json.
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// Shows this one alone
    name: Option<String>,
    /// As JSON; all of them with their types
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The text of one string, number or bool, with nothing around it
    #[arg(long, requires = "name")]
    raw: bool,
}

impl Output {
    pub(super) fn run(&self, context: &mut Context) -> Outcome {
        let outputs = remembered(context)?.1.outputs;
        let text = match &self.name {
            None => self.all(&outputs),
            Some(name) => self.one(name, &outputs)?,
        };
        if text.is_empty() {
            let detail = "The state has no outputs: none is declared, or nothing was applied yet.";
            context
                .terminal
                .diagnose(&[Diagnostic::warning("No outputs", detail)]);
        }
        context.terminal.out(&text);
        Ok(exit::DONE)
    }

    fn all(&self, outputs: &BTreeMap<Name, Known>) -> String {
        let outputs = outputs
            .iter()
            .map(|(name, value)| (name.as_str(), value.value()));
        if self.json {
            let json: serde_json::Map<_, _> = outputs
                .map(|(name, value)| (name.to_owned(), state::output_json(value, false)))
                .collect();
            return format!("{:#}\n", serde_json::Value::Object(json));
        }
        outputs
            .map(|(name, value)| format!("{name} = {}\n", view::apply::output(value)))
            .collect()
    }

    fn one(&self, name: &str, outputs: &BTreeMap<Name, Known>) -> Result<String, Failure> {
        let found = outputs.iter().find(|(it, _)| it.as_str() == name);
        let Some((_, value)) = found else {
            let detail = format!("The state has no output {name:?}.");
            let error = Diagnostic::error("No such output", detail);
            let names: Vec<&str> = outputs.keys().map(Name::as_str).collect();
            return Err(match names.as_slice() {
                [] => error,
                _ => error.hint(format!("There are: {}.", names.join(", "))),
            }
            .into());
        };
        let value = value.value();
        if self.raw {
            return raw(name, value);
        }
        Ok(if self.json {
            format!("{}\n", state::json(value, true))
        } else {
            format!("{}\n", view::apply::output(value))
        })
    }
}

/// Returns a scalar's text; this is where a secret may be asked for.
fn raw(name: &str, value: &Value) -> Result<String, Failure> {
    match state::json(value, true) {
        serde_json::Value::String(text) => Ok(text),
        json @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(json.to_string()),
        _ => {
            let detail = format!("The output {name:?} is not one string, number or bool.");
            let error = Diagnostic::error("Output has no raw form", detail);
            Err(error.hint("Use --json.").into())
        }
    }
}
