//! The environment, read once.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// The variables of the process's environment.
#[derive(Debug, Default)]
pub(super) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Reads the process's own.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is where the environment is read"
    )]
    pub(super) fn read() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// Returns a variable that is set to something.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        let value = self.0.get(OsStr::new(name))?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns whether a switch is on: set to anything but `0` and `false`.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|it| it != "0" && it != "false")
    }

    /// Returns whether a switch is set, and is off.
    pub(super) fn is_off(&self, name: &str) -> bool {
        self.get(name).is_some_and(|it| it == "0" || it == "false")
    }

    /// Returns all of it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns the variables whose names begin so, by the rest of their names; empty values too.
    pub(super) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &OsStr)> {
        self.0.iter().filter_map(move |(name, value)| {
            let rest = name.to_str()?.strip_prefix(prefix)?;
            Some((rest, value.as_os_str()))
        })
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(
            variables
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
        )
    }
}
