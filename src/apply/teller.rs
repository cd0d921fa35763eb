//! What a step tells while it runs.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use gobs_model::Address;
use gobs_provider::Progress;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Event, Events};

/// How long something may keep one waiting before it is said why, and then before another reason
/// is: what only starts does not answer for some seconds either.
const REASON_AFTER: Duration = Duration::from_secs(5);

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

    /// Says why it is still waited for something, when that has taken a while and each time it is
    /// for another reason.
    pub(super) async fn reasons(&self, reason: &watch::Sender<String>) -> Infallible {
        let (mut reasons, mut said) = (reason.subscribe(), String::new());
        loop {
            sleep(REASON_AFTER).await;
            let another = reasons.wait_for(|it| *it != said).await;
            let Ok(text) = another.map(|it| it.clone()) else {
                return pending().await;
            };
            self.say(text.clone());
            said = text;
        }
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

/// Returns what was waited for in vain, as a part of a sentence; empty where nothing is known.
pub(super) fn last_of(reason: &watch::Sender<String>) -> String {
    let reason = reason.borrow();
    match reason.is_empty() {
        true => String::new(),
        false => format!(" ({})", *reason),
    }
}
