//! Which exporters are dialled for gifts, and which wait for their turn.

use std::collections::{HashMap, VecDeque};

use crate::captp::SessionId;
use crate::locator::PeerLocator;

/// Exporters that are dialled at a time for one gifter. Each dial takes a socket, perhaps for
/// minutes, and a gifter may name any addresses.
const DIALS_MAX: usize = 32;

#[derive(Default)]
pub(super) struct Dials {
    /// The exporters that are being dialled, with the gifter at whose cost.
    under_way: HashMap<PeerLocator, SessionId>,
    /// The exporters that are dialled later, by the gifter: as soon as another of its dials ends,
    /// so as long as there is one here, one of the same gifter is under way.
    waiting: HashMap<SessionId, VecDeque<PeerLocator>>,
}

impl Dials {
    /// Returns whether an exporter is to be dialled now. If not, it is dialled already, or has
    /// its turn later.
    pub(super) fn begin(&mut self, gifter: SessionId, exporter: &PeerLocator) -> bool {
        if self.under_way.contains_key(exporter) {
            return false;
        }
        let own = self.under_way.values().filter(|of| **of == gifter);
        if own.count() >= DIALS_MAX {
            let waiting = self.waiting.entry(gifter).or_default();
            waiting.push_back(exporter.clone());
            return false;
        }
        self.under_way.insert(exporter.clone(), gifter);
        true
    }

    /// Ends the dials that are over, and returns the exporters to be dialled in their place.
    pub(super) fn end(
        &mut self,
        is_over: impl Fn(&PeerLocator) -> bool,
        is_wanted: impl Fn(&PeerLocator) -> bool,
    ) -> Vec<PeerLocator> {
        let over = self.under_way.extract_if(|exporter, _| is_over(exporter));
        let gifters: Vec<_> = over.map(|(_, gifter)| gifter).collect();
        let mut begun = Vec::new();
        for gifter in gifters {
            let Some(waiting) = self.waiting.get_mut(&gifter) else {
                continue;
            };
            while let Some(next) = waiting.pop_front() {
                if is_wanted(&next) && !self.under_way.contains_key(&next) {
                    self.under_way.insert(next.clone(), gifter);
                    begun.push(next);
                    break;
                }
            }
            if waiting.is_empty() {
                self.waiting.remove(&gifter);
            }
        }
        begun
    }
}
