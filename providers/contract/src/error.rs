//! Errors by what gobs should do about them.

use std::time::Duration;

/// Why a provider did not do as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Error {
    /// The request itself is wrong: the same again fails again. Nothing was changed.
    #[error("{message}")]
    Rejected {
        /// What the provider said.
        message: String,
        /// The attribute that it was about, where it said so.
        attribute: Option<String>,
    },
    /// The credentials do not allow it. Nothing was changed.
    #[error("{0}")]
    Denied(String),
    /// Not now. Nothing was changed; the same again may succeed after the wait.
    #[error("{message}")]
    Busy {
        /// What the provider said.
        message: String,
        /// How long to wait before the next try.
        after: Duration,
    },
    /// Nobody knows whether it was done: look before anything else.
    #[error("{0}")]
    InDoubt(String),
}

impl Error {
    /// Returns a rejection that is about no attribute in particular.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::Rejected {
            message: message.into(),
            attribute: None,
        }
    }
}
