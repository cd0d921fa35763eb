//! The exporter's side of bindings: a forwarder for each grant, which can be cut off.
//!
//! A grant is a membrane: every stream through it is counted here and ends with it. It answers
//! the receiver's key only, whoever else may hold a reference. Byte streams arrive on connections
//! of their own and present a ticket that the grant gave out a moment before; from a hob on this
//! host the program's own socket may come instead.
//!
//! A grant may be made from another one: it is narrower, its streams count there too, and it ends
//! with that one.

mod leaving;
mod live;
mod near;
mod object;
mod stream;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use ocapn::{Broken, Object, Peer, PeerId, PeerLocator, Sturdyref, Swissnum};
use tokio::sync::Notify;

use crate::protocol::{
    Attenuate, Check, Generation, Grant, GrantStatus, HOST_SIZE, NEAR_NAME_SIZE, Offer, Probe,
    ServiceKind, ServiceSpec, code,
};
use crate::service::{GrantSecret, Lease, ServiceError, Services};
use crate::store::{GrantRefused, Span, Store, StoreError, swissnum_hash};

use live::{Live, Membrane};

/// Services that one machine offers; more are refused.
const OFFERS_MAX: usize = 1_000;

/// All grants of the machine.
pub(crate) struct Grants {
    store: Arc<Store>,
    services: Services,
    /// The designator of this hob's key; there once it runs.
    own: OnceLock<String>,
    live: Mutex<Live>,
    /// Held by one grant or revocation at a time, so that what is live follows what is on disk.
    changing: tokio::sync::Mutex<()>,
    /// By binding, held while something is made or taken away at a server for it.
    minting: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    streams: AtomicUsize,
    /// Where sockets are taken from hobs on this host: the host, and the listener's name.
    near: OnceLock<([u8; HOST_SIZE], [u8; NEAR_NAME_SIZE])>,
    /// Told when something was left at a server.
    left: Notify,
    /// Told when a grant with an end was made.
    ending: Notify,
}

impl Grants {
    /// Takes up the grants that the store has.
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let mut live = Live::default();
        for row in &store.contents().grants {
            live.enter(row.clone());
        }
        Self {
            store,
            services: Services::default(),
            own: OnceLock::new(),
            live: Mutex::new(live),
            changing: tokio::sync::Mutex::default(),
            minting: Mutex::default(),
            streams: AtomicUsize::new(0),
            near: OnceLock::new(),
            left: Notify::new(),
            ending: Notify::new(),
        }
    }

    /// Says what reaches objects elsewhere, and whose key is this hob's own.
    pub(crate) fn reach_by(&self, peer: &Peer) {
        self.services.reach_by(peer);
        // There is one peer in a hob.
        let _ = self.own.set(peer.locator().designator);
    }

    /// Returns whether a grant is for this machine itself: of an object that its own hob reaches.
    fn is_own(&self, membrane: &Membrane) -> bool {
        self.own.get() == Some(&membrane.row.grant.receiver)
    }

    /// Lets a service be granted from now on.
    pub(crate) async fn offer(&self, Offer { service, spec }: Offer) -> Result<(), Broken> {
        self.services.check(&spec)?;
        let full = self.store.write(move |contents| {
            let known = contents.offers.contains_key(&service);
            let full = !known && contents.offers.len() >= OFFERS_MAX;
            if !full {
                // What the project declares is no longer the machine's own affair.
                contents.offered_here.remove(&service);
                contents.offers.insert(service, spec);
            }
            full
        });
        match full.await? {
            true => Err(Broken::new(
                code::BUSY,
                "this machine offers no more services",
            )),
            false => Ok(()),
        }
    }

    /// Lets a service be granted that somebody on the machine offers; without `spec`, no more, and
    /// what was given of it ends. An error is a sentence.
    pub(crate) async fn offer_here(
        self: &Arc<Self>,
        service: String,
        spec: Option<ServiceSpec>,
    ) -> Result<(), String> {
        if !matches!(
            spec.as_ref().map(|it| &it.kind),
            None | Some(ServiceKind::Tcp(_) | ServiceKind::Unix(_))
        ) {
            return Err("services of other kinds are declared in the project".into());
        }
        let written = self.store.write(move |contents| {
            let is_known = contents.offers.contains_key(&service);
            let is_full = contents.offers.len() >= OFFERS_MAX;
            match spec {
                _ if is_known && !contents.offered_here.contains(&service) => {
                    return Err(format!("the project declares the service {service}"));
                }
                None if !is_known => return Err(format!("no service {service} is offered")),
                Some(_) if !is_known && is_full => {
                    return Err("this machine offers no more services".into());
                }
                None => {
                    contents.offers.remove(&service);
                    contents.offered_here.remove(&service);
                    let given = contents.grants.iter().map(|row| &row.grant);
                    let given = given.filter(|grant| grant.service == service);
                    let given: Vec<_> = given.map(Grant::generation).collect();
                    // At once with the offer: a hob that dies now has none of them when it is back.
                    for generation in &given {
                        contents.revoke(generation, Span::Alone);
                    }
                    return Ok(given);
                }
                Some(spec) => {
                    contents.offers.insert(service.clone(), spec);
                    contents.offered_here.insert(service);
                }
            }
            Ok(Vec::new())
        });
        let said = |error: Broken| error.to_string();
        let given: Vec<Generation> = written.await.map_err(|error| said(error.into()))??;
        // One that cannot be cut must not keep the others in use.
        let given = given.into_iter();
        let revoked = given.map(|generation| self.revoke(generation, Span::Alone));
        let revoked = futures_util::future::join_all(revoked).await;
        revoked.into_iter().collect::<Result<(), _>>().map_err(said)
    }

    /// Asks a service whether it answers its protocol.
    pub(crate) async fn probe(&self, asked: Probe) -> Result<Check, Broken> {
        let spec = self.store.contents().offers.get(&asked.service).cloned();
        let unknown = || Broken::new(code::UNKNOWN, "no such service is offered here");
        let answer = self.services.probe(&spec.ok_or_else(unknown)?).await;
        Ok(Check {
            answers: answer.is_ok(),
            detail: answer.err().map(|it| it.to_string()).unwrap_or_default(),
        })
    }

    /// Makes a grant, or finds it made already; it is on disk, and what it needs at its server is
    /// there, when this returns.
    pub(crate) async fn grant(
        self: &Arc<Self>,
        own: &PeerLocator,
        grant: Grant,
    ) -> Result<(impl Object + use<>, Sturdyref), Broken> {
        let minting = self.minting(&grant.binding);
        let minting = minting.lock_owned().await;
        let generation = grant.generation.to_string();
        let parts = [&grant.binding, &generation, &grant.receiver].map(String::as_str);
        let swissnum = self.store.derive("grant", &parts);
        let hash = swissnum_hash(swissnum.as_slice());
        let (membrane, is_first) = {
            let _changing = self.changing.lock().await;
            let now = now();
            let written = self.store.write(move |contents| {
                let before = contents.grants.len();
                let admitted = contents.admit(grant, hash, now);
                (admitted, contents.grants.len() > before)
            });
            let (admitted, is_first) = written.await?;
            let refused = |refused: GrantRefused| Broken::new(refused.code(), refused.to_string());
            (self.live().enter(admitted.map_err(refused)?), is_first)
        };
        if membrane.row.rights.expires.is_some() {
            self.ending.notify_one();
        }
        if membrane.row.minted.is_some() {
            let lease = self.lease(&membrane)?;
            let grants = Arc::clone(self);
            // A task of its own, since it must not be dropped on the way.
            let minted = tokio::spawn(async move {
                let minted = grants.services.mint(&lease).await;
                grants.store.step();
                if let Err(ServiceError::Absent(_)) = &minted
                    && is_first
                {
                    grants.forget(&lease.generation).await;
                }
                drop(minting);
                minted
            });
            let failed = || Broken::new(code::SERVICE, "the service's module failed");
            minted.await.map_err(|_| failed())??;
        }
        let swissnum = Swissnum::new(swissnum.as_slice());
        let sturdyref = Sturdyref {
            peer: own.clone(),
            swissnum,
        };
        Ok((self.object(membrane), sturdyref))
    }

    /// Forgets a grant of which nobody has been told, and for which nothing was made: another try
    /// begins anew, with the service as it is offered then.
    async fn forget(&self, generation: &Generation) {
        let _changing = self.changing.lock().await;
        let gone = generation.clone();
        let written = self
            .store
            .write(move |contents| contents.grants.retain(|row| !row.grant.is(&gone)))
            .await;
        match written {
            Ok(()) => self.live().forget(generation),
            // It is taken away as one for which something was made.
            Err(error) => tracing::warn!(error = %Chain(&error), "a grant is kept"),
        }
    }

    /// Ends a generation, alone or with all before it, and what was made from them. When this
    /// returns, that is on disk, nothing is admitted, no byte flows any more, and nothing is left
    /// at the server.
    ///
    /// # Errors
    /// [`code::PENDING`] where only the last is still to come.
    pub(crate) async fn revoke(
        self: &Arc<Self>,
        revoked: Generation,
        span: Span,
    ) -> Result<(), Broken> {
        let (written, ending) = {
            let _changing = self.changing.lock().await;
            let entry = revoked.clone();
            let written = self
                .store
                .write(move |contents| contents.revoke(&entry, span))
                .await;
            // Even if the disk failed, what can be cut is cut; the error has the caller come again.
            let mut live = self.live();
            let ended = live.leave(&revoked, span);
            for membrane in &ended {
                membrane.revoked.send_replace(true);
            }
            // Who asks again while it ends waits for the end as well.
            (written, live.ending(&revoked, &ended))
        };
        let cut = ending.iter().map(|membrane| self.cut(membrane));
        let cut = futures_util::future::join_all(cut).await;
        let ended = written.map_err(Broken::from)?;
        self.take_away(&revoked, &ended).await?;
        let late = cut.into_iter().find_map(Result::err);
        late.map_or(Ok(()), |why| {
            Err(Broken::new(code::PENDING, why.to_string()))
        })
    }

    /// Returns the grant that a swissnum names for this peer.
    pub(crate) fn find(self: &Arc<Self>, swissnum: &[u8], from: &PeerId) -> Option<impl Object> {
        let membrane = self
            .live()
            .by_swissnum
            .get(&swissnum_hash(swissnum))
            .cloned()?;
        membrane.answers(Some(from)).then(|| self.object(membrane))
    }

    /// Returns how many streams of a grant are open.
    pub(crate) fn streams(&self, asked: &Generation) -> u64 {
        let live = self.live();
        let found = live.grants.get(asked);
        found.map_or(0, |membrane| *membrane.streams.borrow() as u64)
    }

    /// Returns what an operator may see.
    pub(crate) fn status(&self) -> Vec<GrantStatus> {
        let live = self.live();
        let mut all: Vec<_> = live
            .grants
            .values()
            .map(|membrane| membrane.status())
            .collect();
        drop(live);
        all.sort_by(|a, b| (&a.binding, a.generation).cmp(&(&b.binding, b.generation)));
        all
    }

    /// Returns a grant as the kinds see it, while its service is offered.
    fn lease(&self, membrane: &Membrane) -> Result<Lease, Broken> {
        let row = &membrane.row;
        let offers = &self.store.contents().offers;
        let gone = || Broken::new(code::UNKNOWN, "the service is not offered any more");
        let offered = offers.get(&row.grant.service).ok_or_else(gone)?;
        let spec = row.minted.as_ref().unwrap_or(offered).clone();
        Ok(self.lease_of(spec, row.grant.generation(), row.rights.clone()))
    }

    /// Returns a grant as the kinds see it, at the server where it was made: at another one it is
    /// of no use. How that server is administered may have been said anew.
    fn lease_of(&self, made: ServiceSpec, generation: Generation, rights: Attenuate) -> Lease {
        let contents = self.store.contents();
        let mut offers = contents.offers.values();
        let offered = offers.find(|offered| offered.kind.is_same_server(&made.kind));
        let spec = offered.cloned().unwrap_or(made);
        let parts = [&generation.binding, &generation.generation.to_string()];
        let secret = self.store.derive("service", &parts.map(String::as_str));
        Lease {
            spec,
            generation,
            rights,
            secret: GrantSecret(secret),
            crowded: false,
        }
    }

    /// Returns what is held while something is made or taken away for a binding.
    fn minting(&self, binding: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.minting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get(binding).and_then(Weak::upgrade) {
            return held;
        }
        all.retain(|_, held| held.strong_count() > 0);
        let held = Arc::default();
        all.insert(binding.to_owned(), Arc::downgrade(&held));
        held
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time in seconds since 1970, by this machine's clock.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Grant {
    /// Returns which generation of which binding this is.
    pub fn generation(&self) -> Generation {
        Generation {
            binding: self.binding.clone(),
            generation: self.generation,
        }
    }

    /// Returns whether this is that generation of that binding.
    pub fn is(&self, generation: &Generation) -> bool {
        self.binding == generation.binding && self.generation == generation.generation
    }
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %Chain(&error), "state not written");
        // The path is in the machine's own log.
        let why = match &error {
            StoreError::Io { source, .. } => source.to_string(),
            _ => "its log says why".into(),
        };
        Self::new(
            code::STORE,
            format!("the machine could not write its state: {why}"),
        )
    }
}

/// An error with its causes, for one line of log.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
