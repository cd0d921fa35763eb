//! What a configuration is given from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gobs_model::{Diagnostic, Kind, Name, Place, SourceSpan, Type, Value};
use serde::{Deserialize, Serialize};

use super::config::{Config, Variable};
use super::convert::convert;
use super::decode::Constants;
use super::eval::Eval;
use super::source::{Source, Sources};
use super::syntax::Expr;
use super::{parse, suggest};

/// All that an expression may read from outside; with it, evaluation is pure and repeatable.
#[derive(Clone)]
pub struct Inputs {
    /// Values for variables; a later one wins.
    pub variables: Vec<Assignment>,
    /// The files that `file` and its like read, relative to `root`.
    pub files: Arc<dyn Files>,
    /// The time of the plan, in seconds since 1970, UTC.
    pub now_s: u64,
    /// The workspace's name: `gobs.workspace`.
    pub workspace: String,
    /// The project's directory: `path.root`.
    pub root: PathBuf,
}

/// Where files are read, by the effect side; what was read is recorded there.
pub trait Files: Send + Sync {
    /// Returns a file's bytes.
    ///
    /// # Errors
    /// A fragment that says why there are none: `no such file`.
    fn read(&self, path: &Path) -> Result<Arc<[u8]>, String>;

    /// Returns whether there is such a file.
    fn exists(&self, path: &Path) -> bool;
}

/// No files at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _path: &Path) -> Result<Arc<[u8]>, String> {
        Err("no files can be read here".into())
    }

    fn exists(&self, _path: &Path) -> bool {
        false
    }
}

/// A value for a variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The variable's name.
    pub name: String,
    /// The value.
    pub value: Given,
    /// Who said so.
    pub origin: Origin,
    /// Where, if a file did.
    #[serde(skip)]
    pub span: Option<SourceSpan>,
}

/// How a value was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Given {
    /// As text: itself for a string, an HCL expression for any other type.
    Text(String),
    /// Already evaluated.
    Value(Value),
}

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// `GOBS_VAR_name`
    Environment,
    /// `gobs.gobsvars` and its like.
    File(String),
    /// `--var name=value`
    CommandLine,
}

impl Default for Inputs {
    fn default() -> Self {
        Self {
            variables: Vec::new(),
            files: Arc::new(NoFiles),
            now_s: 0,
            workspace: "default".into(),
            root: PathBuf::from("."),
        }
    }
}

impl std::fmt::Debug for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are left out: a variable may be sensitive.
        let names = self.variables.iter().map(|given| &given.name);
        f.debug_struct("Inputs")
            .field("variables", &names.collect::<Vec<_>>())
            .field("workspace", &self.workspace)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Returns the values that a `.gobsvars` file gives, and what is wrong with it.
pub fn parse_vars(source: &Source) -> (Vec<Assignment>, Vec<Diagnostic>) {
    let sources = Sources::new(std::slice::from_ref(source));
    let mut errors = Vec::new();
    let body = parse::body(&sources, 0, &mut errors);
    for block in &body.blocks {
        let detail = "A file of variables holds arguments only: name = value.";
        errors.push(sources.error(block.header(), "Unexpected block", detail));
    }
    let mut result = Vec::new();
    for attribute in &body.attributes {
        if let Some(value) = constant(&sources, &attribute.expr, &mut errors) {
            result.push(Assignment {
                name: attribute.name.text.to_string(),
                value: Given::Value(value),
                origin: Origin::File(source.name.to_string()),
                span: Some(sources.place(attribute.expr.span)),
            });
        }
    }
    (result, errors)
}

/// What [`variables`] found.
pub(crate) struct Variables {
    pub(crate) values: BTreeMap<Name, Value>,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) errors: Vec<Diagnostic>,
}

/// Returns each declared variable's value.
pub(crate) fn variables(config: &Config, inputs: &Inputs) -> Variables {
    let mut result = Variables {
        values: BTreeMap::new(),
        warnings: Vec::new(),
        errors: Vec::new(),
    };
    let mut last: BTreeMap<&str, &Assignment> = BTreeMap::new();
    for given in &inputs.variables {
        last.insert(&given.name, given);
        if !Name::new(&given.name).is_ok_and(|name| config.variables.contains_key(&name)) {
            undeclared(config, given, &mut result);
        }
    }
    for (name, variable) in &config.variables {
        let value = match last.get(name.as_str()) {
            Some(given) => match assigned(name, variable, given) {
                Ok(value) if value.is_null() && !variable.nullable => variable.default.clone(),
                Ok(value) => Some(value),
                Err(error) => {
                    result.errors.push(*error);
                    continue;
                }
            },
            None => variable.default.clone(),
        };
        match value {
            Some(value) => {
                let value = value.sensitive_if(variable.sensitive);
                result.values.insert(name.clone(), value);
            }
            None => {
                let detail = format!(
                    "The variable \"{name}\" has no default, and no value was given for it."
                );
                let error = config
                    .sources
                    .error(variable.span, "No value for variable", detail);
                let hint = format!("Give one with --var '{name}=…', or set GOBS_VAR_{name}.");
                result.errors.push(error.hint(hint));
            }
        }
    }
    result
}

fn undeclared(config: &Config, given: &Assignment, result: &mut Variables) {
    let name = &given.name;
    let detail = match &given.origin {
        // The environment may be meant for another project.
        Origin::Environment => return,
        Origin::File(file) => {
            format!("{file} gives a value for \"{name}\", but no such variable is declared.")
        }
        Origin::CommandLine => {
            format!("--var gives a value for \"{name}\", but no such variable is declared.")
        }
    };
    let summary = "Value for undeclared variable";
    let known = config.variables.keys().map(Name::as_str);
    let mut diagnostic = match given.origin {
        Origin::CommandLine => Diagnostic::error(summary, detail),
        _ => Diagnostic::warning(summary, detail),
    };
    diagnostic.hint = suggest::did_you_mean(name, known);
    diagnostic.place = given.span.clone().map(Place::Source);
    if diagnostic.is_error() {
        result.errors.push(diagnostic);
    } else {
        result.warnings.push(diagnostic);
    }
}

fn assigned(
    name: &Name,
    variable: &Variable,
    given: &Assignment,
) -> Result<Value, Box<Diagnostic>> {
    let origin = match &given.origin {
        Origin::Environment => format!("GOBS_VAR_{name}"),
        Origin::File(file) => file.clone(),
        Origin::CommandLine => "--var".into(),
    };
    let wrong = |why: String| {
        // A reason may quote a secret.
        let why = if variable.sensitive {
            "the value is sensitive, so the reason is not shown".into()
        } else {
            why
        };
        let detail = format!("The value for \"{name}\" from {origin} is not right: {why}.");
        let mut error = Diagnostic::error("Invalid value for variable", detail);
        let ty = &variable.ty;
        error.hint = Some(format!("The variable's type is {ty}."));
        if !variable.sensitive {
            error.place = given.span.clone().map(Place::Source);
        }
        Box::new(error)
    };
    let value = match &given.value {
        Given::Value(value) => value.clone(),
        Given::Text(text) => match variable.ty {
            Type::String | Type::Number | Type::Bool => text_value(text),
            Type::Any => parse_text(text).unwrap_or_else(|_| text_value(text)),
            _ => parse_text(text).map_err(wrong)?,
        },
    };
    let value = convert(&value, &variable.ty).map_err(|error| {
        let place = if error.path.0.is_empty() {
            String::new()
        } else {
            format!("at {}: ", error.path)
        };
        wrong(format!("{place}{}", error.message))
    })?;
    Ok(value)
}

fn text_value(text: &str) -> Value {
    Kind::String(super::lower::nfc(text)).into()
}

/// Returns the value of a text that is an expression without references.
fn parse_text(text: &str) -> Result<Value, String> {
    let sources = Sources::new(&[Source::new("value", text)]);
    let mut errors = Vec::new();
    let value = parse::expression(&sources, 0, &mut errors)
        .and_then(|expr| constant(&sources, &expr, &mut errors));
    value.ok_or_else(|| {
        let why = errors.first().map_or("", |error| error.detail.as_str());
        why.trim_end_matches('.').to_owned()
    })
}

fn constant(sources: &Sources, expr: &Expr, errors: &mut Vec<Diagnostic>) -> Option<Value> {
    let constants = Constants { sources };
    let mut eval = Eval::new(&constants, sources);
    let value = eval.eval(expr);
    let failed = !eval.errors.is_empty() || value.contains_unknown();
    errors.append(&mut eval.errors);
    (!failed).then_some(value)
}
