//! The language: from text to declarations, from declarations to values.
//!
//! Everything here is pure: no I/O, no clock. What an expression reads from outside comes through
//! [`Inputs`]. Every mistake that can be found is reported, not the first alone.

#[expect(dead_code, reason = "the evaluator that reads these fields follows")]
mod config;
mod evaluator;
mod inputs;
#[expect(dead_code, reason = "the parser that makes spans follows")]
mod source;
#[expect(dead_code, reason = "the evaluator that reads these fields follows")]
mod syntax;

use gobs_model::Diagnostic;

pub use config::{
    Binding, BindingValues, BlockId, Config, Dependency, Dial, Expansion, HobValues, IgnoreChanges,
    Lifecycle, Local, Machine, MachineValues, Output, ProviderConfig, Service, ServiceKind,
    ServiceValues, Settings, Variable,
};
pub use evaluator::{Evaluator, Schemas};
pub use inputs::{Assignment, Files, Given, Inputs, NoFiles, Origin, parse_vars};
pub use source::Source;

/// What [`load`] found.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The declarations that are right.
    pub config: Config,
    /// What is wrong with the others.
    pub diagnostics: Vec<Diagnostic>,
}

/// Returns what the files of a project declare; their order does not matter.
pub fn load(sources: &[Source]) -> Loaded {
    let config = Config {
        sources: source::Sources::new(sources),
        ..Config::default()
    };
    Loaded {
        config,
        diagnostics: Vec::new(),
    }
}

/// Returns everything that is wrong with a configuration that can be said without state.
pub fn check(config: &Config, schemas: &Schemas) -> Vec<Diagnostic> {
    let _ = (config, schemas);
    Vec::new()
}

impl Config {
    /// Returns the machines and bindings that a block refers to, through variables and locals.
    pub fn dependencies(&self, block: &BlockId) -> Vec<Dependency> {
        let _ = block;
        Vec::new()
    }
}
