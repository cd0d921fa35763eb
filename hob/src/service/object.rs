//! Objects of OCapN, anywhere: reached by the exporter's hob, and lent to the receiver.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use ocapn::{Broken, Caretaker, Methods, Passable, Peer, Reference, SessionId, Sturdyref};
use tokio::time::timeout;

use super::{Lease, ServiceError};
use crate::grant::Chain;
use crate::protocol::Generation;

/// How long the machine of an object may take to say that it has taken every call that was made
/// before the end: a message there and back, within the 5 s that a revocation has.
const TAKEN_TIMEOUT: Duration = Duration::from_secs(3);

/// The objects that are lent.
#[derive(Default)]
pub(super) struct Objects {
    /// What reaches them; there once the hob runs.
    peer: OnceLock<Peer>,
    lent: Mutex<HashMap<Generation, Lent>>,
}

/// An object that one grant has.
struct Lent {
    caretaker: Caretaker,
    /// What the receiver is given.
    guarded: Reference,
    /// What is behind it, and how that was reached.
    object: Sturdyref,
    way: Way,
}

/// How an object is reached: in a session, or without one where it is this hob's own.
type Way = Option<SessionId>;

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Objects")
    }
}

impl Objects {
    /// Says what reaches objects.
    pub(super) fn reach_by(&self, peer: &Peer) {
        // There is one peer in a hob.
        let _ = self.peer.set(peer.clone());
    }

    /// Checks that an object can be reached from here, as far as its name tells.
    pub(super) fn check(&self, uri: &str) -> Result<(), ServiceError> {
        let sturdyref = parse(uri)?;
        let (there, here) = (&sturdyref.peer.transport, self.peer.get());
        match here.map(|peer| peer.locator().transport) {
            Some(here) if here != *there => Err(ServiceError::Refused(format!(
                "the object is reached by {there}, and this hob speaks {here} only"
            ))),
            _ => Ok(()),
        }
    }

    /// Reaches the object once.
    pub(super) async fn probe(&self, uri: &str) -> Result<(), ServiceError> {
        self.reach(uri).await.map(drop)
    }

    /// Lends the object to the receiver of a grant, until [`Objects::end`].
    pub(super) fn lend(
        self: &Arc<Self>,
        uri: &str,
        lease: &Lease,
    ) -> BoxFuture<'static, Result<Passable, Broken>> {
        let (objects, uri, lease) = (Arc::clone(self), uri.to_owned(), lease.clone());
        Box::pin(async move {
            let Lease {
                generation, rights, ..
            } = lease;
            let sturdyref = parse(&uri)?;
            let held = |way: Option<Way>| {
                let all = objects.lent();
                let lent = all.get(&generation)?;
                let is_it = way == Some(lent.way) && lent.object == sturdyref;
                is_it.then(|| lent.guarded.clone())
            };
            if let Some(guarded) = held(objects.way(&sturdyref)) {
                return Ok(guarded.into());
            }
            let (peer, object) = objects.reach(&uri).await?;
            let way = objects.way(&sturdyref);
            let away = || ServiceError::Away("the session with the object's machine ended".into());
            let way = way.ok_or_else(away)?;
            let mut caretaker = Caretaker::new(peer.vat());
            if let Some(methods) = &rights.methods {
                caretaker = caretaker.allow(methods.iter().map(String::as_str));
            }
            let guarded = caretaker.guard(&object);
            let lent = Lent {
                caretaker,
                guarded: guarded.clone(),
                object: sturdyref.clone(),
                way,
            };
            match objects.lent().entry(generation) {
                // Another call was faster.
                Entry::Occupied(held)
                    if held.get().way == way && held.get().object == sturdyref =>
                {
                    return Ok(held.get().guarded.clone().into());
                }
                // What was lent in a session that is over leads nowhere; or it is another object.
                Entry::Occupied(mut held) => held.insert(lent).caretaker.revoke(),
                Entry::Vacant(place) => {
                    place.insert(lent);
                }
            }
            Ok(guarded.into())
        })
    }

    /// Ends what a grant was lent, while nothing more is lent to it: no call through it reaches the
    /// object once this returns.
    ///
    /// # Errors
    /// When the object's machine does not say that it has taken the calls before.
    pub(super) async fn end(&self, generation: &Generation) -> Result<(), ServiceError> {
        let lent = self.lent().remove(generation);
        let (Some(lent), Some(peer)) = (lent, self.peer.get()) else {
            return Ok(());
        };
        lent.caretaker.revoke();
        let taken = async {
            // Turns run one at a time: at this one's, what was passing the caretaker has passed.
            let _ = peer.export(Methods::new()).call("", []).await;
            // Messages of one session are taken in order: whatever this answers, those before it
            // have had their turn. With the session they are lost.
            if let Some(session) = lent.way
                && self.way(&lent.object) == Some(lent.way)
            {
                let _ = peer.vat().fetch(session, &lent.object.swissnum).await;
            }
        };
        timeout(TAKEN_TIMEOUT, taken).await.map_err(|_| {
            let seconds = TAKEN_TIMEOUT.as_secs();
            let text =
                format!("calls before may still arrive: its machine was silent for {seconds} s");
            ServiceError::Away(text)
        })
    }

    /// Returns how an object would be reached now; nothing while there is no session.
    fn way(&self, object: &Sturdyref) -> Option<Way> {
        let (peer, there) = (self.peer.get()?, &object.peer);
        if peer.locator().same_peer(there) {
            return Some(None);
        }
        let session = peer
            .vat()
            .session_reached(&there.transport, &there.designator);
        session.map(Some)
    }

    async fn reach(&self, uri: &str) -> Result<(&Peer, Reference), ServiceError> {
        self.check(uri)?;
        let sturdyref = parse(uri)?;
        let away = |text: String| ServiceError::Away(format!("the object is not reached: {text}"));
        let peer = self
            .peer
            .get()
            .ok_or_else(|| away("the hob is starting".into()))?;
        let object = peer.enliven(&sturdyref).await;
        let object = object.map_err(|error| away(Chain(&error).to_string()))?;
        Ok((peer, object))
    }

    fn lent(&self) -> MutexGuard<'_, HashMap<Generation, Lent>> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the name; an error does not repeat it, since it is a secret.
fn parse(uri: &str) -> Result<Sturdyref, ServiceError> {
    uri.parse()
        .map_err(|_| ServiceError::Refused("the sturdyref cannot be read".into()))
}
