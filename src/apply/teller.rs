//! What a step tells while it runs.

use std::sync::Arc;

use gobs_model::Address;
use gobs_provider::Progress;

use super::{Event, Events};

/// Tells of one step.
#[derive(Clone)]
pub(super) struct Teller {
    pub(super) events: Events,
    pub(super) address: Address,
}

impl Teller {
    pub(super) fn waiting(&self, what: &str) {
        let _ = self.events.send(Event::Waiting {
            address: self.address.clone(),
            what: what.into(),
        });
    }

    pub(super) fn say(&self, text: String) {
        let _ = self.events.send(Event::Progress {
            address: self.address.clone(),
            text,
        });
    }

    pub(super) fn progress(&self) -> Progress {
        let teller = self.clone();
        Arc::new(move |text| {
            let _ = teller.events.send(Event::Progress {
                address: teller.address.clone(),
                text,
            });
        })
    }
}
