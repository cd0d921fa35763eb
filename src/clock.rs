//! The time of day, which a test can turn by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

/// How long a wait for a time of day sleeps at most before it looks at the clock again: it may
/// be set, and a laptop may be closed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A clock. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<watch::Sender<SystemTime>>>);

impl Clock {
    /// Returns the system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// Returns a clock that stands until it is turned.
    pub fn manual(now: SystemTime) -> Self {
        Self(Some(Arc::new(watch::Sender::new(now))))
    }

    /// Returns the time.
    pub fn now(&self) -> SystemTime {
        match &self.0 {
            None => SystemTime::now(),
            Some(hand) => *hand.borrow(),
        }
    }

    /// Turns a clock that was made to be turned; the system's goes on as it goes.
    pub fn advance(&self, by: Duration) {
        if let Some(hand) = &self.0 {
            hand.send_modify(|now| *now += by);
        }
    }

    /// Waits until it is as late as this.
    pub async fn sleep_until(&self, until: SystemTime) {
        let Some(hand) = &self.0 else {
            while let Ok(left) = until.duration_since(SystemTime::now()) {
                // A wait of no time would never let anybody else run.
                let left = left.clamp(Duration::from_millis(1), LOOK_EVERY);
                tokio::time::sleep(left).await;
            }
            return;
        };
        let mut hand = hand.subscribe();
        // The sender lives in this clock.
        let _ = hand.wait_for(|now| *now >= until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_is_turned_by_hand() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let clock = Clock::manual(start);
        let day = Duration::from_secs(86_400);
        let (waits, until) = (clock.clone(), start + day);
        let waiter = tokio::spawn(async move { waits.sleep_until(until).await });
        clock.advance(day / 2);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        clock.advance(day / 2);
        waiter.await.unwrap();
        assert_eq!(clock.now(), until);
        Clock::system().sleep_until(start).await;
    }
}
