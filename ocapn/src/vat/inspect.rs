//! How much the sessions hold, for reports and tests.

use std::fmt;

use super::Vat;
use super::dispatch::Inner;
use crate::captp::SessionId;
use crate::captp::promise::{Kind, Reference};

/// How much one session holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Objects and promises of ours that the peer holds, the resolvers of our calls included.
    pub exports: usize,
    /// Objects and promises of the peer that we hold.
    pub imports: usize,
    /// Answers of ours that the peer has not collected.
    pub answers: usize,
    /// Gifts that the peer deposited, or for which somebody waits.
    pub gifts: usize,
    /// Bytes that are kept for the peer, as [`Limits::retained_max`](crate::Limits) has it.
    pub retained_bytes: usize,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            exports,
            imports,
            answers,
            gifts,
            retained_bytes,
        } = self;
        write!(
            f,
            "{exports} exports, {imports} imports, {answers} answers, {gifts} gifts, \
             {retained_bytes} bytes"
        )
    }
}

/// Something of ours that a peer keeps alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    /// Its position in the session's table.
    pub position: u64,
    /// What the object calls itself ([`crate::Object::label`]), or `promise` or `resolver`.
    pub label: String,
    /// How often it was mentioned to the peer and not given back.
    pub mentions: u64,
}

impl Vat {
    /// Returns how much a session holds; `None` when it is not open.
    pub fn inspect(&self, session: SessionId) -> Option<Inspection> {
        self.0.with(|inner| inner.inspect(session))
    }

    /// Returns what the peer of a session keeps alive here, by position; `None` when it is not
    /// open.
    pub fn retained(&self, session: SessionId) -> Option<Vec<Retained>> {
        let exports = self.0.with(|inner| inner.exports(session))?;
        // The objects name themselves outside of the lock.
        let retained = exports.into_iter().map(|(position, reference, mentions)| {
            let label = match &reference.0.kind {
                Kind::Object(Some(object)) => object.label(),
                Kind::Promise(..) => "promise",
                Kind::Resolver(_) => "resolver",
                _ => "reference",
            };
            Retained {
                position,
                label: label.to_owned(),
                mentions,
            }
        });
        let mut retained: Vec<_> = retained.collect();
        retained.sort_by_key(|retained| retained.position);
        Some(retained)
    }
}

impl Inner {
    fn inspect(&self, id: SessionId) -> Option<Inspection> {
        let session = self.session(id)?;
        let (exports, imports, answers) = session.tables.sizes();
        Some(Inspection {
            exports,
            imports,
            answers,
            gifts: self.gifts.of(id),
            retained_bytes: session.usage.bytes(),
        })
    }

    fn exports(&self, id: SessionId) -> Option<Vec<(u64, Reference, u64)>> {
        Some(self.session(id)?.tables.retained())
    }
}
