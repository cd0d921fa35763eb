//! The language: from text to declarations, from declarations to values.
//!
//! Everything here is pure: no I/O, no clock. What an expression reads from outside comes through
//! [`Inputs`]. Every mistake that can be found is reported, not the first alone.

mod access;
mod address;
mod check;
mod config;
mod convert;
mod decode;
mod decode_import;
mod decode_machine;
mod decode_service;
mod eval;
mod evaluator;
mod expose;
mod for_expr;
mod functions;
mod hob_block;
mod inputs;
mod lower;
mod names;
mod object;
mod parse;
mod reads;
mod reference;
mod scan;
mod service;
mod source;
mod suggest;
mod syntax;
mod template;
mod time;
mod type_expr;
mod values;
mod version;

use gobs_model::Diagnostic;

pub(crate) use address::duration;
pub use check::{check, unique};
pub use config::{
    Binding, BindingValues, BlockId, BossPlace, Config, Dependency, Dial, Expansion, HobSource,
    HobUser, HobValues, IgnoreChanges, Import, Lifecycle, Local, MACHINE_WORDS, Machine,
    MachineValues, Output, PROVIDER_WORDS, ProviderConfig, Service, ServiceKind, ServiceValues,
    Settings, Variable,
};
pub use evaluator::{Evaluator, Schemas};
pub use inputs::{Assignment, Files, Given, Inputs, NoFiles, Origin, parse_vars};
pub use service::rights;
pub use source::Source;
pub use time::rfc3339;

/// What [`load`] found.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The declarations that are right.
    pub config: Config,
    /// What is wrong with the others.
    pub diagnostics: Vec<Diagnostic>,
}

/// Returns what the files of a project declare; their order does not matter.
pub fn load(files: &[Source]) -> Loaded {
    let sources = source::Sources::new(files);
    let mut diagnostics = Vec::new();
    let bodies = (0..source::narrow(files.len()))
        .map(|source| parse::body(&sources, source, &mut diagnostics))
        .collect();
    let (config, mut errors) = decode::decode(&sources, bodies);
    diagnostics.append(&mut errors);
    Loaded {
        config,
        diagnostics,
    }
}

#[cfg(test)]
mod tests;
