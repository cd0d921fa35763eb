//! Who holds what over one session, counted as the wire counts.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::promise::{Kind, Node, Reference, Route};
use super::usage::{Usage, keep};
use super::{Place, SessionId};
use crate::vat::Shared;

/// The position of the bootstrap object on both sides.
pub(crate) const BOOTSTRAP: u64 = 0;

pub(crate) struct Tables {
    session: SessionId,
    vat: Weak<Shared>,
    usage: Arc<Usage>,
    exports: HashMap<u64, Export>,
    /// Positions by the address of the node, which the export keeps alive.
    positions: HashMap<usize, u64>,
    next_export: u64,
    imports: HashMap<u64, Import>,
    /// The peer's questions, by the position it chose.
    pub(crate) answers: HashMap<u64, Reference>,
    next_question: u64,
    /// Exports mentioned by the message that is being written.
    mentioned: Vec<u64>,
}

struct Export {
    reference: Reference,
    /// Mentions sent minus those the peer gave back.
    count: u64,
}

struct Import {
    node: Weak<Node>,
    /// Mentions received since they were last given back.
    received: u64,
}

impl Tables {
    pub(crate) fn new(session: SessionId, vat: Weak<Shared>, usage: Arc<Usage>) -> Self {
        let bootstrap = Node::reference(&vat, Kind::Bootstrap(session));
        Self {
            session,
            usage,
            positions: HashMap::from([(bootstrap.address(), BOOTSTRAP)]),
            // The peer has the bootstrap object without a mention, so it is never given back.
            exports: HashMap::from([(
                BOOTSTRAP,
                Export {
                    reference: bootstrap,
                    count: 0,
                },
            )]),
            next_export: BOOTSTRAP + 1,
            imports: HashMap::new(),
            answers: HashMap::new(),
            next_question: 0,
            mentioned: Vec::new(),
            vat,
        }
    }

    /// Returns what the peer means by an export.
    pub(crate) fn exported(&self, position: u64) -> Option<&Reference> {
        Some(&self.exports.get(&position)?.reference)
    }

    pub(crate) fn exports(&self) -> impl Iterator<Item = &Reference> {
        self.exports.values().map(|export| &export.reference)
    }

    /// Returns the exports but for the bootstrap object, with the mentions that stand.
    pub(crate) fn retained(&self) -> Vec<(u64, Reference, u64)> {
        let exports = self.exports.iter().filter(|(at, _)| **at != BOOTSTRAP);
        exports
            .map(|(at, export)| (*at, export.reference.clone(), export.count))
            .collect()
    }

    /// Returns whether no further object can be exported.
    pub(crate) fn is_full(&self, exports_max: usize) -> bool {
        self.exports.len() >= exports_max
    }

    /// Counts one more mention of `reference` and returns its position; `None` at a limit.
    pub(crate) fn mention(&mut self, reference: &Reference, exports_max: usize) -> Option<u64> {
        let position = match self.positions.get(&reference.address()) {
            Some(position) => *position,
            None if self.is_full(exports_max) => return None,
            None if !keep(reference, &self.usage) => return None,
            None => {
                let position = self.next_export;
                self.next_export += 1;
                self.positions.insert(reference.address(), position);
                let export = Export {
                    reference: reference.clone(),
                    count: 0,
                };
                self.exports.insert(position, export);
                position
            }
        };
        self.exports.get_mut(&position)?.count += 1;
        self.mentioned.push(position);
        Some(position)
    }

    /// The message was sent: its mentions stand.
    pub(crate) fn keep_mentions(&mut self) {
        self.mentioned.clear();
    }

    /// The message was not sent: its mentions never were.
    pub(crate) fn forget_mentions(&mut self) {
        for position in std::mem::take(&mut self.mentioned) {
            let _ = self.release(position, 1);
        }
    }

    /// Takes `delta` mentions back, and returns the reference if those were the last. An error
    /// is a peer that gives back more than it got.
    pub(crate) fn release(&mut self, position: u64, delta: u64) -> Result<Option<Reference>, ()> {
        let export = self.exports.get_mut(&position).ok_or(())?;
        if position == BOOTSTRAP {
            // Some peers count the bootstrap object from one, others from nought.
            export.count = export.count.saturating_sub(delta);
            return Ok(None);
        }
        export.count = export.count.checked_sub(delta).ok_or(())?;
        if export.count > 0 {
            return Ok(None);
        }
        Ok(self.exports.remove(&position).map(|export| {
            self.positions.remove(&export.reference.address());
            export.reference
        }))
    }

    /// Counts one more mention of the peer's object or promise; `None` at the limit.
    pub(crate) fn import(
        &mut self,
        position: u64,
        promise: bool,
        imports_max: usize,
    ) -> Option<Reference> {
        let full = self.imports.len() >= imports_max;
        let import = match self.imports.entry(position) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(_) if full => return None,
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Import {
                node: Weak::new(),
                received: 0,
            }),
        };
        import.received += 1;
        Some(Self::live(
            &mut import.node,
            &self.vat,
            self.session,
            position,
            promise,
        ))
    }

    /// Returns the peer's bootstrap object, which is no mention.
    pub(crate) fn bootstrap(&mut self) -> Reference {
        let import = self.imports.entry(BOOTSTRAP);
        let import = import.or_insert(Import {
            node: Weak::new(),
            received: 0,
        });
        Self::live(&mut import.node, &self.vat, self.session, BOOTSTRAP, false)
    }

    fn live(
        node: &mut Weak<Node>,
        vat: &Weak<Shared>,
        session: SessionId,
        position: u64,
        promise: bool,
    ) -> Reference {
        if let Some(node) = node.upgrade() {
            return Reference(node);
        }
        let place = Place { session, position };
        let reference = if promise {
            Node::promise(vat, Route::Import(place))
        } else {
            Node::reference(vat, Kind::Remote(place))
        };
        *node = Arc::downgrade(&reference.0);
        reference
    }

    /// The last reference to an import was dropped: returns how many mentions go back to the
    /// peer, unless a new one came meanwhile.
    pub(crate) fn dropped_import(&mut self, position: u64) -> Option<u64> {
        let import = self.imports.get(&position)?;
        if import.node.strong_count() > 0 {
            return None;
        }
        let received = import.received;
        self.imports.remove(&position);
        Some(received).filter(|received| *received > 0)
    }

    /// Returns the position of a new question of ours.
    pub(crate) fn question(&mut self) -> u64 {
        self.next_question += 1;
        self.next_question - 1
    }

    /// Returns the promises of the peer that are held here.
    pub(crate) fn imported_promises(&self) -> Vec<Reference> {
        let live = self
            .imports
            .values()
            .filter_map(|import| import.node.upgrade());
        live.filter(|node| matches!(node.kind, Kind::Promise(..)))
            .map(Reference)
            .collect()
    }

    /// Returns the numbers of exports (without the bootstrap object), imports and answers.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (
            self.exports.len().saturating_sub(1),
            self.imports.len(),
            self.answers.len(),
        )
    }

    /// Forgets all, and returns it to be dropped elsewhere.
    pub(crate) fn clear(&mut self) -> Vec<Reference> {
        self.positions.clear();
        self.imports.clear();
        let exports = self.exports.drain().map(|(_, export)| export.reference);
        exports
            .chain(self.answers.drain().map(|(_, answer)| answer))
            .collect()
    }
}
