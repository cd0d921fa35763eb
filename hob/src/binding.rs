//! The importer's side of bindings: names, the grants behind them, and the streams through them.

mod call;
pub(crate) mod deliver;
mod listen;
mod shown;
mod stream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ocapn::{Broken, Passable, Peer, Promise, Reference, StreamDialer, Sturdyref};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::expose::{ExposeError, Socket};
use crate::files;
use crate::front;
use crate::grant::Chain;
use crate::layout::Layout;
use crate::near;
use crate::protocol::{
    Check, Described, Generation, HOST_SIZE, Held, Malformed, Registration, code, from_passable,
    method,
};
use crate::service::Local;
use crate::slot::Slot;
use crate::store::{BindingRow, Span, Store};
use crate::units::Units;

use deliver::Fetched;
use stream::OpenError;

/// How long a program's connection waits for its grant to be live.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// How long a handed-over grant may take to arrive, before its durable name is tried.
const HANDOFF_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `check-binding` may take; its caller asks again.
const CHECK_TIMEOUT: Duration = Duration::from_secs(12);

/// Streams of one binding that are being opened at one time; others wait. The exporter lets so many
/// connections from one address be in their handshake, and a few hundred tickets be unused: a
/// crowd beyond that is refused.
const OPENINGS_MAX: usize = 64;

/// Letters of a name: it becomes a directory.
pub(crate) const NAME_SIZE_MAX: usize = 64;

/// All bindings that the machine holds.
pub(crate) struct Bindings {
    store: Arc<Store>,
    peer: Peer,
    dialer: StreamDialer,
    /// Whose hobs take programs' sockets, if this one lends any.
    host: Option<[u8; HOST_SIZE]>,
    root: PathBuf,
    layout: Layout,
    units: Arc<Units>,
    /// Where secrets are.
    secrets: Arc<deliver::Home>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Held by one change at a time, so that sockets and files follow what is on disk.
    changing: tokio::sync::Mutex<()>,
    changed: watch::Sender<()>,
}

/// One grant behind a name.
pub(crate) struct Link {
    generation: Generation,
    sturdyref: Sturdyref,
    /// Of the service: how programs are spoken to.
    pub(crate) kind: String,
    /// Whether somebody sees to the delivery of a secret.
    delivering: AtomicBool,
    /// Set when nothing may be delivered any more; held while something is.
    over: Arc<Mutex<bool>>,
    live: Mutex<Option<Reference>>,
    /// Held by one attempt to make it live, so that a crowd makes one.
    enlivening: tokio::sync::Mutex<()>,
    /// Whether the exporter was on this host when it last gave a ticket.
    is_near: AtomicBool,
    /// Places of streams that are being opened.
    openings: Semaphore,
    closed: watch::Sender<bool>,
    streams: watch::Sender<usize>,
}

impl Bindings {
    /// Takes up the bindings that the store has, and the names that are expected: their sockets
    /// are there when this returns.
    pub(crate) async fn start(
        store: Arc<Store>,
        peer: Peer,
        dialer: StreamDialer,
        root: PathBuf,
        layout: Layout,
        units: Arc<Units>,
    ) -> Arc<Self> {
        let bindings = Arc::new(Self {
            store,
            peer,
            dialer,
            host: near::host(),
            root,
            layout,
            units,
            slots: Mutex::default(),
            secrets: Arc::new(deliver::Home::from_env()),
            changing: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(()),
        });
        if let Err(error) = files::make_dir(&bindings.root, true) {
            tracing::error!(%error, "no directory for bindings");
        }
        bindings.sweep();
        bindings.sweep_sockets().await;
        bindings.secrets.sweep();
        for (name, row) in &bindings.store.contents().bindings {
            let slot = bindings.slot(name);
            slot.set_kind(&row.service.kind);
            slot.replace(Link::new(row, None));
            match slot.owner_of(row) {
                Ok(owner) => bindings.deliver(&slot, owner),
                Err(error) => tracing::error!(%name, %error, "not delivered"),
            }
            bindings.slots().insert(name.clone(), slot);
        }
        bindings.expect().await;
        bindings
    }

    /// Returns what tells of every change of names or addresses.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes a grant under a name. It works and is on disk when this returns.
    pub(crate) async fn register(
        self: &Arc<Self>,
        registration: Registration,
        capability: Reference,
        sturdyref: Sturdyref,
    ) -> Result<Held, Broken> {
        check_name(&registration.name)?;
        let (live, described) = self.take_over(capability, &sturdyref).await?;
        let generation = registration.generation();
        if described.binding != generation.binding || described.generation != generation.generation
        {
            return Err(Broken::new(
                code::MALFORMED,
                "the grant is of another binding",
            ));
        }
        // Before anything is held, since it may take a while.
        let secret = match described.kind.as_str() {
            deliver::KIND => deliver::fetch(&live).await?,
            _ => None,
        };
        let name = registration.name.clone();
        let row = BindingRow {
            registration,
            grant: sturdyref,
            bound: Vec::new(),
            service: described,
        };
        self.check_units(&row.registration).await?;
        let _changing = self.changing.lock().await;
        let held = self.slots().get(&name).cloned();
        let slot = held.unwrap_or_else(|| self.slot(&name));
        if let Some(link) = slot.link() {
            let last = &link.generation;
            if last.binding != generation.binding {
                let message = format!("the name is held by {}", last.binding);
                return Err(Broken::new(code::TAKEN, message));
            }
            if last.generation > generation.generation {
                return Err(Broken::new(code::REVOKED, "a later generation is held"));
            }
        }
        self.hold(slot, row, Some(live), secret).await
    }

    /// Lets programs see what is held in another way; it is on disk when this returns. The grant
    /// stays, and so do its streams.
    pub(crate) async fn expose(
        self: &Arc<Self>,
        registration: Registration,
    ) -> Result<Held, Broken> {
        self.check_units(&registration).await?;
        let _changing = self.changing.lock().await;
        let unknown = || Broken::new(code::UNKNOWN, "this generation is not held here");
        let slot = self.slots().get(&registration.name).cloned();
        let slot = slot.ok_or_else(unknown)?;
        let row = self
            .store
            .contents()
            .bindings
            .get(&registration.name)
            .cloned();
        let row = row.filter(|row| row.registration.generation() == registration.generation());
        let link = slot.link().ok_or_else(unknown)?;
        let secret = link.delivered(slot.directory.clone()).await;
        let row = BindingRow {
            registration,
            bound: Vec::new(),
            ..row.ok_or_else(unknown)?
        };
        self.hold(slot, row, link.live(), secret).await
    }

    async fn check_units(&self, registration: &Registration) -> Result<(), ExposeError> {
        let exposes = registration.expose.iter();
        for unit in exposes.filter_map(|it| it.unit.as_ref()) {
            self.units.check(unit).await?;
        }
        Ok(())
    }

    /// Makes a row what programs see, and keeps it; called by one at a time.
    async fn hold(
        self: &Arc<Self>,
        slot: Arc<Slot>,
        mut row: BindingRow,
        live: Option<Reference>,
        secret: Fetched,
    ) -> Result<Held, Broken> {
        let name = row.registration.name.clone();
        slot.set_kind(&row.service.kind);
        slot.check(&row)?;
        let owner = slot.owner_of(&row)?;
        if row.service.kind == deliver::KIND {
            let checked = self.secrets.check(slot.directory.clone()).await;
            checked.map_err(|error| Broken::new(code::EXPOSE, error.to_string()))?;
        }
        let link = Link::new(&row, live);
        let before = self.store.contents().bindings.get(&name).cloned();
        // The sockets that the row asked for before stay as they are.
        let mut kept = std::mem::take(&mut *lock(&slot.sockets));
        let exposes = &row.registration.expose;
        let opened = self.open_sockets(&slot, exposes, &row.bound, &mut kept);
        let sockets = match opened.await {
            (sockets, None) => sockets,
            (sockets, Some(error)) => {
                // Back to how it was: what was kept is listened on still.
                kept.extend(sockets);
                kept.retain(|socket| self.is_stored(&slot, &name, &socket.asked));
                *lock(&slot.sockets) = kept;
                return Err(error.into());
            }
        };
        *lock(&slot.sockets) = sockets;
        row.bound = slot.bound_of(&row);
        let written = {
            let (name, row) = (name.clone(), row.clone());
            self.store
                .write(move |contents| contents.bindings.insert(name, row))
                .await
        };
        if let Err(error) = written {
            let is_stored = |socket: &Socket| self.is_stored(&slot, &name, &socket.asked);
            lock(&slot.sockets).retain(is_stored);
            return Err(error.into());
        }
        drop(kept);
        if let Some(last) = slot.link() {
            last.stop_delivering().await;
        }
        slot.replace(link);
        let generation = row.registration.generation;
        let is_another = |before: &BindingRow| before.registration.generation != generation;
        if let Some(before) = before.filter(is_another) {
            // One that came back has nothing before it.
            let is_earlier = before.registration.generation < generation;
            *lock(&slot.before) = Some(before).filter(|_| is_earlier);
        }
        let mut result = slot.write_files(&row).await;
        if let Some(secret) = secret
            && let Some(link) = slot.link()
        {
            let put = link.put(&self.secrets, slot.directory.clone(), secret, owner);
            result = result.and(put.await);
        }
        self.deliver(&slot, owner);
        let held = slot.held();
        self.slots().insert(name, slot);
        self.changed.send_replace(());
        result.map_err(|error| {
            tracing::error!(%error, "binding files not written");
            Broken::new(
                code::EXPOSE,
                format!("cannot write the binding's files: {error}"),
            )
        })?;
        Ok(held)
    }

    /// Puts a grant behind a name again that another one took the place of; programs are let in
    /// all the while.
    async fn put_back(self: &Arc<Self>, slot: Arc<Slot>, row: BindingRow) -> Result<(), Broken> {
        let secret = match row.service.kind.as_str() {
            deliver::KIND => {
                let late = || Broken::new(code::UNREACHABLE, "the secret does not come");
                let link = Link::new(&row, None);
                let live = timeout(HANDOFF_TIMEOUT, self.live(&link)).await;
                let live = live.map_err(|_| late())?.map_err(|_| late())?;
                deliver::fetch(&live).await?
            }
            _ => None,
        };
        self.hold(slot, row, None, secret).await.map(drop)
    }

    /// Gives a generation up, alone or with all before it: its streams are closed when this
    /// returns. Returns whether another one is held, which stays: alone, one leaves the name to
    /// the grant whose place it took.
    pub(crate) async fn unregister(
        self: &Arc<Self>,
        given_up: Generation,
        span: Span,
    ) -> Result<bool, Broken> {
        let _changing = self.changing.lock().await;
        let found = self.slots().iter().find_map(|(name, slot)| {
            let link = slot.link()?;
            let same = link.generation.binding == given_up.binding;
            same.then(|| (name.clone(), Arc::clone(slot), link))
        });
        let Some((name, slot, link)) = found else {
            return Ok(false);
        };
        let goes = span.has(&given_up, &link.generation);
        if !goes && span == Span::Alone {
            return Ok(true);
        }
        let before = lock(&slot.before).take();
        if span == Span::Alone
            && let Some(before) = before
        {
            match self.put_back(Arc::clone(&slot), before).await {
                Ok(()) => {
                    link.close().await;
                    return Ok(true);
                }
                Err(error) => tracing::warn!(%name, %error, "what was before is not put back"),
            }
        }
        let written = if goes {
            self.slots().remove(&name);
            lock(&slot.sockets).clear();
            let name = name.clone();
            self.store
                .write(move |contents| {
                    contents.bindings.remove(&name);
                    contents.exposes.remove(&name);
                    contents.expects.retain(|expected| *expected != name);
                })
                .await
        } else {
            Ok(())
        };
        let former = std::mem::take(&mut *lock(&slot.former));
        for ended in former
            .iter()
            .filter_map(Weak::upgrade)
            .chain(goes.then_some(link))
        {
            if ended.generation.generation <= given_up.generation {
                ended.close().await;
                // A later generation's is left alone.
                if goes && let Err(error) = ended.withdraw(slot.directory.clone()).await {
                    tracing::warn!(%name, %error, "secret not removed");
                }
            } else {
                lock(&slot.former).push(Arc::downgrade(&ended));
            }
        }
        if goes {
            if let Err(error) = slot.remove_files().await {
                tracing::warn!(%name, %error, "binding files not removed");
            }
            self.changed.send_replace(());
        }
        written?;
        Ok(!goes)
    }

    /// Opens one whole stream to the service and closes it.
    pub(crate) async fn check(self: Arc<Self>, asked: Generation) -> Result<Check, Broken> {
        let found = self
            .slots()
            .values()
            .filter_map(|slot| slot.link())
            .find(|link| link.generation == asked)
            .ok_or_else(|| Broken::new(code::UNKNOWN, "this generation is not held here"))?;
        let opened = timeout(CHECK_TIMEOUT, async {
            if !front::has_streams(&found.kind) {
                return self.check_object(&found).await;
            }
            let mut stream = self.open_apart(&found).await?;
            front::check(&found.kind, &mut stream).await?;
            Ok::<_, OpenError>(())
        });
        let opened = opened
            .await
            .unwrap_or(Err(OpenError::TimedOut(CHECK_TIMEOUT)));
        let detail = opened.err().map(|error| Chain(&error).to_string());
        Ok(Check {
            answers: detail.is_none(),
            detail: detail.unwrap_or_default(),
        })
    }

    /// Returns the live grant under a name.
    pub(crate) async fn get(self: Arc<Self>, name: String) -> Result<Reference, Broken> {
        let unknown = || Broken::new(code::UNKNOWN, "no binding has this name");
        let link = self
            .slots()
            .get(&name)
            .and_then(|slot| slot.link())
            .ok_or_else(unknown)?;
        self.live(&link)
            .await
            .map_err(|error| Broken::new(code::UNREACHABLE, Chain(&error).to_string()))
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Slot>>> {
        lock(&self.slots)
    }

    /// Carries one connection of a program, which waits for the grant where there is none yet.
    fn take(self: Arc<Self>, slot: &Arc<Slot>, local: Local) {
        let slot = Arc::clone(slot);
        let place = match slot.link() {
            Some(_) => None,
            // Here and not in the task, so that of too many the last are closed, and none that
            // has waited already.
            None => match Arc::clone(&slot.waiting).try_acquire_owned() {
                Ok(place) => Some(place),
                Err(_) => return,
            },
        };
        tokio::spawn(async move {
            // A program that is told nothing for longer has given up; it may come again.
            if let Ok(Some(link)) = timeout(CONNECT_DEADLINE, slot.granted()).await {
                drop(place);
                self.carry(&link, local).await;
            }
        });
    }

    /// Returns the live grant, made live by its durable name if it is not.
    async fn live(&self, link: &Link) -> Result<Reference, OpenError> {
        if let Some(live) = link.live() {
            return Ok(live);
        }
        let _enlivening = link.enlivening.lock().await;
        if let Some(live) = link.live() {
            return Ok(live);
        }
        let live = self
            .peer
            .enliven(&link.sturdyref)
            .await
            .map_err(OpenError::Enliven)?;
        *lock(&link.live) = Some(live.clone());
        Ok(live)
    }

    /// Returns the grant that was handed over, or what its durable name leads to.
    async fn take_over(
        &self,
        capability: Reference,
        sturdyref: &Sturdyref,
    ) -> Result<(Reference, Described), Broken> {
        let handed = timeout(HANDOFF_TIMEOUT, capability.call(method::DESCRIBE, [])).await;
        let error = match handed {
            Ok(Ok(described)) => return Ok((capability, from_passable("describe", &described)?)),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::info!(%error, "a grant was not handed over; trying its durable name");
        let enlivened = timeout(HANDOFF_TIMEOUT, async {
            let live = self
                .peer
                .enliven(sturdyref)
                .await
                .map_err(OpenError::Enliven)?;
            let described = live
                .call(method::DESCRIBE, [])
                .await
                .map_err(OpenError::Ticket)?;
            Ok::<_, OpenError>((live, from_passable("describe", &described)?))
        });
        enlivened
            .await
            .unwrap_or(Err(OpenError::TimedOut(HANDOFF_TIMEOUT)))
            .map_err(|error| Broken::new(code::UNREACHABLE, Chain(&error).to_string()))
    }
}

impl Link {
    fn new(row: &BindingRow, live: Option<Reference>) -> Arc<Self> {
        Arc::new(Self {
            generation: row.registration.generation(),
            sturdyref: row.grant.clone(),
            kind: row.service.kind.clone(),
            delivering: AtomicBool::new(false),
            over: Arc::default(),
            live: Mutex::new(live),
            enlivening: tokio::sync::Mutex::default(),
            is_near: AtomicBool::new(false),
            openings: Semaphore::new(OPENINGS_MAX),
            closed: watch::Sender::new(false),
            streams: watch::Sender::new(0),
        })
    }

    fn live(&self) -> Option<Reference> {
        lock(&self.live).clone()
    }

    /// Returns whether both are the same grant under the same name.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.generation == other.generation && self.sturdyref == other.sturdyref
    }

    /// Takes over what another link to the same grant has live.
    pub(crate) fn take_live(&self, other: &Self) {
        *lock(&self.live) = other.live();
    }

    /// Waits for an answer of the live grant; a broken one is forgotten if its session is over.
    async fn ask(&self, answer: Promise, grant: &Reference) -> Result<Passable, Broken> {
        let answer = answer.await;
        if answer.as_ref().is_err_and(Broken::is_severed) {
            let mut live = lock(&self.live);
            if live.as_ref() == Some(grant) {
                *live = None;
            }
        }
        answer
    }

    async fn close(&self) {
        self.closed.send_replace(true);
        // The sender is ours, so this ends only by the condition.
        let _ = self
            .streams
            .subscribe()
            .wait_for(|streams| *streams == 0)
            .await;
    }
}

impl Registration {
    /// Returns which generation of which binding this is.
    pub fn generation(&self) -> Generation {
        Generation {
            binding: self.binding.clone(),
            generation: self.generation,
        }
    }
}

/// A name becomes a directory and a part of environment variables.
fn check_name(name: &str) -> Result<(), Malformed> {
    let why = || "a name has up to 64 letters, digits, _ and -, and begins with a letter or _";
    is_name(name).then_some(()).ok_or_else(|| Malformed {
        what: "register-binding",
        why: why().into(),
    })
}

/// Returns whether a binding or a service can be called so.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_SIZE_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Locks what no panic can have left half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
