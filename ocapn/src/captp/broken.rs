//! Why promises break.

use std::fmt;
use std::sync::Arc;

use crate::passable::{Passable, Struct};

/// Why a promise broke: a reason somebody gave, or the end of the session it depended on.
#[derive(Clone, PartialEq)]
pub struct Broken(Arc<Why>);

#[derive(PartialEq)]
enum Why {
    Reason(Passable),
    Severed(String),
}

/// The name under which a severed session is told to further peers.
const SEVERED: &str = "severed";

impl Broken {
    /// Returns a break with a code for programs and a text for people. Both cross the wire, so
    /// neither may tell what the peer should not know.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let reason = Struct::new()
            .with("code", code)
            .with("message", message.into());
        Self::with(Passable::Struct(reason))
    }

    /// Returns a break as [`Broken::new`] does, with a number by which its report can be found.
    pub(crate) fn numbered(code: &str, message: impl Into<String>, id: &str) -> Self {
        let reason = Struct::new()
            .with("code", code)
            .with("message", message.into())
            .with("id", id);
        Self::with(Passable::Struct(reason))
    }

    /// Returns a break with any value as its reason.
    pub fn with(reason: impl Into<Passable>) -> Self {
        Self(Arc::new(Why::Reason(reason.into())))
    }

    /// Returns a break by the end of a session.
    pub fn severed(reason: impl Into<String>) -> Self {
        Self(Arc::new(Why::Severed(reason.into())))
    }

    /// Returns whether the session ended, so that nobody knows whether the message arrived.
    pub fn is_severed(&self) -> bool {
        matches!(&*self.0, Why::Severed(_))
    }

    /// Returns the reason as it travels; every shape used here is read by the known peers.
    pub fn reason(&self) -> Passable {
        match &*self.0 {
            Why::Reason(reason) => reason.clone(),
            // Why one of our other sessions ended is none of the peer's business.
            Why::Severed(_) => Passable::symbol(SEVERED),
        }
    }

    /// Returns the reason that was given, if one was.
    pub(crate) fn given(&self) -> Option<&Passable> {
        match &*self.0 {
            Why::Reason(reason) => Some(reason),
            Why::Severed(_) => None,
        }
    }

    /// Returns the code for programs: that of [`Broken::new`], or a symbol given as the reason.
    pub fn code(&self) -> Option<&str> {
        match &*self.0 {
            Why::Reason(Passable::Struct(reason)) => reason.get("code").and_then(Passable::as_str),
            Why::Reason(reason) => reason.as_symbol(),
            Why::Severed(_) => Some(SEVERED),
        }
    }

    /// Returns the number under which whoever broke the promise has logged why, if it gave one.
    pub fn correlation_id(&self) -> Option<&str> {
        match &*self.0 {
            Why::Reason(Passable::Struct(reason)) => reason.get("id").and_then(Passable::as_str),
            _ => None,
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Why::Severed(reason) => write!(f, "session severed: {reason}"),
            Why::Reason(Passable::String(text)) => f.write_str(text),
            Why::Reason(Passable::Error(error)) => f.write_str(&error.message),
            Why::Reason(reason) => {
                let message = reason.as_struct().and_then(|fields| fields.get("message"));
                match (self.code(), message.and_then(Passable::as_str)) {
                    (Some(code), Some(message)) => write!(f, "{message} ({code})"),
                    (Some(code), None) => f.write_str(code),
                    _ => write!(f, "broken: {reason:?}"),
                }
            }
        }
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broken({self})")
    }
}

impl std::error::Error for Broken {}
