//! A session that is made again whenever it ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::core::Core;
use super::{Peer, SessionEvent};
use crate::locator::PeerLocator;

/// Pauses between tries grow between these, doubling; each is cut by full jitter, so that peers
/// that lost the same session do not come back together.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a session must have stood for its end to be answered quickly. A peer that takes
/// connections and hangs up, under load say, is none that came back: the pause grows on. As long
/// as the longest pause, so that no peer is dialled more often than it would be while it fails.
const STOOD: Duration = PAUSE_MAX;

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
    /// ended, after a pause of random length up to 0.5 s, doubling to 60 s while it fails or the
    /// session ends within a minute.
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
                let up = Instant::now();
                if !ended(&core, &mut events, &to).await {
                    return;
                }
                if up.elapsed() >= STOOD {
                    pause = PAUSE_MIN;
                }
            }
            Err(error) => tracing::debug!(peer = to.designator, %error, "no session"),
        }
        // A peer that comes back by itself ends the pause.
        tokio::select! {
            () = sleep(jitter(pause)) => {}
            () = now.notified() => {}
            () = up(&core, &mut events, &to) => {}
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

/// Waits until there is a session with the peer, or we are closed. What the events say may be of
/// a session that is over: they are only the sign to look.
async fn up(core: &Weak<Core>, events: &mut broadcast::Receiver<SessionEvent>, to: &PeerLocator) {
    while let Some(core) = core.upgrade() {
        if core.session_with(to).is_some() {
            return;
        }
        drop(core);
        if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
            return;
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
