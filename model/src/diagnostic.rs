//! Diagnostics: what is wrong, where, why, and what to do.

use std::fmt;
use std::sync::Arc;

use crate::{Address, Path};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing goes on.
    Error,
    /// It goes on, and somebody should look.
    Warning,
}

/// A place in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// From 0, in bytes.
    pub byte: usize,
    /// From 1.
    pub line: usize,
    /// From 1, in grapheme clusters, as HCL counts.
    pub column: usize,
}

/// The smallest piece of a source that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceSpan {
    /// The file's name as the user would type it.
    pub file: Arc<str>,
    /// Where it starts.
    pub start: Position,
    /// Where it ends, exclusive.
    pub end: Position,
    /// The whole text of the lines from `start.line` to `end.line` (at most a few), without the
    /// last line end.
    pub snippet: Arc<str>,
}

/// Where it is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a source text.
    Source(SourceSpan),
    /// In an object, where no text says it.
    Object {
        /// The object.
        address: Address,
        /// Where inside it.
        path: Path,
    },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Constant words without names: `Unsupported argument`.
    pub summary: String,
    /// Full sentences: what is wrong and why.
    pub detail: String,
    /// Where.
    pub place: Option<Place>,
    /// What to do, where that can be said: `Did you mean "size"?`
    pub hint: Option<String>,
    /// What the references in the expression were: (`var.size`, `is "huge"`), never a secret.
    pub values: Vec<(String, String)>,
}

impl Diagnostic {
    /// Returns an error.
    pub fn error(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            summary: summary.into(),
            detail: detail.into(),
            place: None,
            hint: None,
            values: Vec::new(),
        }
    }

    /// Returns a warning.
    pub fn warning(summary: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::error(summary, detail)
        }
    }

    /// Returns this diagnostic at a place in a source.
    #[must_use]
    pub fn at(mut self, span: SourceSpan) -> Self {
        self.place = Some(Place::Source(span));
        self
    }

    /// Returns this diagnostic about an object.
    #[must_use]
    pub fn about(mut self, address: Address, path: Path) -> Self {
        self.place = Some(Place::Object { address, path });
        self
    }

    /// Returns this diagnostic with what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns whether nothing can go on.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// One line, for logs and tests; people see the layout of `src/cli/view`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place::Source(span)) => {
                write!(
                    f,
                    "{}:{}:{}: ",
                    span.file, span.start.line, span.start.column
                )?;
            }
            Some(Place::Object { address, path }) if path.0.is_empty() => write!(f, "{address}: ")?,
            Some(Place::Object { address, path }) => write!(f, "{address} {path}: ")?,
            None => {}
        }
        write!(f, "{}: {}", self.summary, self.detail)?;
        self.hint
            .as_ref()
            .map_or(Ok(()), |hint| write!(f, " {hint}"))
    }
}
