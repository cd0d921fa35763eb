//! Objects of OCapN, anywhere: reached by the exporter's hob, and lent to the receiver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use ocapn::{Broken, Caretaker, Passable, Peer, Reference, Sturdyref};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Lease, ServiceError};
use crate::grant::Chain;
use crate::protocol::Generation;

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
    /// Waits for the grant's end.
    end: AbortHandle,
}

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

    /// Lends the object to the receiver of a grant, until its end.
    pub(super) fn lend(
        self: &Arc<Self>,
        uri: &str,
        lease: &Lease,
        mut revoked: watch::Receiver<bool>,
    ) -> BoxFuture<'static, Result<Passable, Broken>> {
        let (objects, uri, lease) = (Arc::clone(self), uri.to_owned(), lease.clone());
        Box::pin(async move {
            let Lease {
                generation, rights, ..
            } = lease;
            if let Some(guarded) = objects.lent_to(&generation, &uri) {
                return Ok(guarded.into());
            }
            let (peer, object) = objects.reach(&uri).await?;
            let mut caretaker = Caretaker::new(peer.vat());
            if let Some(methods) = &rights.methods {
                caretaker = caretaker.allow(methods.iter().map(String::as_str));
            }
            let guarded = caretaker.guard(&object);
            let ending = (Arc::clone(&objects), generation.clone(), caretaker.clone());
            let end = tokio::spawn(async move {
                let (objects, generation, caretaker) = ending;
                // The sender is gone with the grant.
                let _ = revoked.wait_for(|revoked| *revoked).await;
                caretaker.revoke();
                objects.lent().remove(&generation);
            });
            let lent = Lent {
                caretaker,
                guarded: guarded.clone(),
                end: end.abort_handle(),
            };
            if let Some(before) = objects.lent().insert(generation, lent) {
                before.end.abort();
                before.caretaker.revoke();
            }
            Ok(guarded.into())
        })
    }

    /// Returns what a grant has been lent, while the object can still be reached through it.
    fn lent_to(&self, generation: &Generation, uri: &str) -> Option<Reference> {
        let sturdyref = parse(uri).ok()?;
        let stands = self.peer.get()?.has_session(&sturdyref.peer.designator);
        let lent = self.lent();
        stands.then(|| lent.get(generation).map(|lent| lent.guarded.clone()))?
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
