//! A session that is made again whenever it ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::core::Core;
use super::{Peer, SessionEvent};
use crate::locator::PeerLocator;

/// Pauses between tries grow between these, doubling; each is cut by full jitter, so that peers
/// that lost the same session do not come back together.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Keeps a session up until it is dropped; the session itself stays then.
///
/// It does not keep the peer: that ends with its own last handle.
#[derive(Debug)]
#[must_use = "dropping it ends the keeping"]
pub struct Kept {
    task: AbortHandle,
    now: Arc<Notify>,
}

impl Kept {
    /// Tries at once, whatever pause is under way: the network came back, say.
    pub fn retry_now(&self) {
        self.now.notify_one();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peer {
    /// Keeps a session with the peer at `to`: dials it now, and again whenever the session has
    /// ended, after a pause of random length up to 0.5 s, doubling to 60 s while it fails.
    ///
    /// References of the old session stay broken: what they named is enlivened anew, on
    /// [`SessionEvent::Up`].
    pub fn keep(&self, to: &PeerLocator) -> Kept {
        let now = Arc::new(Notify::new());
        let (core, events) = (Arc::downgrade(self.core()), self.session_events());
        let task = tokio::spawn(keep(core, events, to.clone(), Arc::clone(&now)));
        Kept {
            task: task.abort_handle(),
            now,
        }
    }
}

async fn keep(
    core: Weak<Core>,
    mut events: broadcast::Receiver<SessionEvent>,
    to: PeerLocator,
    now: Arc<Notify>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(peer) = core.upgrade() else { return };
        if peer.is_closing() {
            return;
        }
        let connected = peer.connect(&to).await;
        drop(peer);
        match connected {
            Ok(_) => {
                pause = PAUSE_MIN;
                if !ended(&core, &mut events, &to).await {
                    return;
                }
            }
            Err(error) => tracing::debug!(peer = to.designator, %error, "no session"),
        }
        // A peer that comes back by itself ends the pause.
        tokio::select! {
            () = sleep(jitter(pause)) => {}
            () = now.notified() => {}
            () = up(&mut events, &to) => {}
        }
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// Waits until there is no session with the peer; false once we are closed.
async fn ended(
    core: &Weak<Core>,
    events: &mut broadcast::Receiver<SessionEvent>,
    to: &PeerLocator,
) -> bool {
    loop {
        match core.upgrade() {
            Some(core) if core.session_with(to).is_none() => return true,
            Some(_) => {}
            None => return false,
        }
        if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
            return false;
        }
    }
}

async fn up(events: &mut broadcast::Receiver<SessionEvent>, to: &PeerLocator) {
    loop {
        match events.recv().await {
            Ok(SessionEvent::Up(peer)) if peer.is(&to.transport, &to.designator) => return,
            // The next try sees that we are closed.
            Err(broadcast::error::RecvError::Closed) => return,
            _ => {}
        }
    }
}

/// Returns a random part of a pause.
fn jitter(pause: Duration) -> Duration {
    let mut random = [0; 4];
    match getrandom::fill(&mut random) {
        Ok(()) => pause.mul_f64(f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX)),
        // The whole pause is a part of it.
        Err(_) => pause,
    }
}
