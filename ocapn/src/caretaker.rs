//! Access that is narrowed, and can be taken back: a membrane around an object.
//!
//! What goes through a [`Caretaker`] in either direction is replaced by its like on the other
//! side: references by forwarders, promises by promises. So what was reached through it ends with
//! it, however it was reached.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use futures_util::future::{Either, select};
use tokio::sync::watch;

use crate::captp::broken::Broken;
use crate::captp::promise::{Kind, Node, Promise, Reference};
use crate::passable::{Opaque, Passable, Struct, Tagged};
use crate::vat::{Answer, Object, Turn, Vat};

/// Containers inside each other in one argument or result: twice what a session lets through.
const DEPTH_MAX: usize = 128;

/// Guards an object: lets chosen methods through, until it is revoked.
///
/// Revoking breaks the calls under way and lets go of everything, on both sides of it: the object,
/// what the object gave out through it, and what callers passed to the object. It cannot take
/// back what a value says. Sturdyrefs do not pass, since they could be enlivened around it.
///
/// Dropping the caretaker revokes nothing: the reference works as long as somebody holds it.
///
/// ```
/// # use ocapn::{Caretaker, Methods, PeerLocator, Turn, Vat, VatOptions};
/// # let vat = Vat::new(VatOptions {
/// #     location: PeerLocator::new("none", "here"), limits: Default::default(),
/// # });
/// let file = vat.export(
///     Methods::new()
///         .on("read", |_: &Turn, ()| Ok("text".to_owned()))
///         .on("erase", |_: &Turn, ()| Ok(())),
/// );
/// let caretaker = Caretaker::new(&vat).allow(["read"]);
/// let guarded = caretaker.guard(&file);
///
/// let erased = guarded.ask::<()>("erase", ());
/// # vat.run();
/// assert_eq!(erased.now().unwrap().unwrap_err().code(), Some("not-allowed"));
///
/// caretaker.revoke();
/// let read = guarded.ask::<String>("read", ());
/// # vat.run();
/// assert_eq!(read.now().unwrap().unwrap_err().code(), Some("revoked"));
/// ```
#[derive(Clone)]
pub struct Caretaker(Arc<Membrane>);

struct Membrane {
    vat: Vat,
    /// The methods that the guarded object takes; `None` for all.
    allowed: Option<HashSet<String>>,
    revoked: watch::Sender<bool>,
    forwarders: Mutex<Forwarders>,
}

/// The two sides: where the guarded object is, and where its callers are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Side {
    Inside,
    Outside,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }
}

#[derive(Default)]
struct Forwarders {
    /// The forwarder for a target, by the side of the target and the address of its node, which
    /// stays its own as long as `by_address` keeps the target.
    by_target: HashMap<(Side, usize), usize>,
    /// What each forwarder leads to, by the address of the forwarder's node.
    by_address: HashMap<usize, Forwarded>,
    /// The objects that are guarded themselves, not only reached.
    guarded: Vec<Reference>,
}

struct Forwarded {
    side: Side,
    target: Reference,
    /// Keeps the address from being used again while the entry stands.
    forwarder: Weak<Node>,
}

impl Caretaker {
    /// Returns a caretaker that lets every method through.
    pub fn new(vat: &Vat) -> Self {
        Self(Arc::new(Membrane {
            vat: vat.clone(),
            allowed: None,
            revoked: watch::Sender::new(false),
            forwarders: Mutex::default(),
        }))
    }

    /// Lets only these methods of the guarded object through. What they give out takes every
    /// method.
    #[must_use]
    pub fn allow<M: Into<String>>(self, methods: impl IntoIterator<Item = M>) -> Self {
        let allowed = methods.into_iter().map(Into::into).collect();
        Self(Arc::new(Membrane {
            vat: self.0.vat.clone(),
            allowed: Some(allowed),
            revoked: watch::Sender::new(false),
            forwarders: Mutex::default(),
        }))
    }

    /// Returns a reference that leads to `object` through this caretaker.
    pub fn guard(&self, object: &Reference) -> Reference {
        let end = object.shortened().unwrap_or_else(|_| object.clone());
        if !self.is_revoked() {
            self.0.forwarders().guarded.push(end.clone());
        }
        Membrane::forwarder(&self.0, Side::Inside, &end)
    }

    /// Cuts everything that goes through, for good.
    pub fn revoke(&self) {
        self.0.revoked.send_replace(true);
        let all = std::mem::take(&mut *self.0.forwarders());
        // What falls out of it may come back to the lock.
        drop(all);
    }

    /// Returns whether it was revoked.
    pub fn is_revoked(&self) -> bool {
        *self.0.revoked.borrow()
    }
}

fn revoked() -> Broken {
    Broken::new("revoked", "the access was revoked")
}

impl Membrane {
    fn forwarders(&self) -> MutexGuard<'_, Forwarders> {
        self.forwarders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the forwarder on the other side for a target on `side`.
    fn forwarder(this: &Arc<Self>, side: Side, target: &Reference) -> Reference {
        let mut forwarders = this.forwarders();
        let key = (side, target.address());
        let known = forwarders.by_target.get(&key);
        let known =
            known.and_then(|address| forwarders.by_address.get(address)?.forwarder.upgrade());
        if let Some(forwarder) = known {
            return Reference(forwarder);
        }
        let address = Arc::new(OnceLock::new());
        let forwarder = this.vat.export(Forwarder {
            membrane: Arc::clone(this),
            side,
            address: Arc::clone(&address),
        });
        if *this.revoked.borrow() {
            return forwarder;
        }
        let at = forwarder.address();
        // Nobody has set it before.
        let _ = address.set(at);
        forwarders.by_target.insert(key, at);
        let forwarded = Forwarded {
            side,
            target: target.clone(),
            forwarder: Arc::downgrade(&forwarder.0),
        };
        forwarders.by_address.insert(at, forwarded);
        forwarder
    }

    /// Returns what stands on the other side for a reference on `side`.
    fn pass_reference(this: &Arc<Self>, side: Side, reference: &Reference) -> Reference {
        let end = reference.shortened().unwrap_or_else(|_| reference.clone());
        if let Some(forwarded) = this.forwarders().by_address.get(&end.address())
            && forwarded.side != side
        {
            // It comes back to where it is from.
            return forwarded.target.clone();
        }
        if !matches!(end.0.kind, Kind::Promise(..)) {
            return Self::forwarder(this, side, &end);
        }
        let (promise, resolver) = this.vat.promise();
        let (membrane, inner) = (Arc::clone(this), end.resolution());
        this.vat.spawn(async move {
            resolver.settle(Self::result(&membrane, side, inner).await);
        });
        promise.into()
    }

    /// Waits for the result of a promise on `side`, and returns it as it is on the other one.
    async fn result(this: &Arc<Self>, side: Side, promise: Promise) -> Result<Passable, Broken> {
        let mut ended = this.revoked.subscribe();
        let cut = std::pin::pin!(ended.wait_for(|revoked| *revoked));
        let result = match select(cut, promise).await {
            Either::Left(_) => return Err(revoked()),
            Either::Right((result, _)) => result,
        };
        match result {
            Ok(value) => Self::pass(this, side, value, 0),
            Err(broken) if broken.is_severed() => Err(broken),
            Err(broken) => match Self::pass(this, side, broken.reason(), 0) {
                Ok(reason) => Err(Broken::with(reason)),
                Err(refused) => Err(refused),
            },
        }
    }

    /// Returns a value of `side` as it is on the other one.
    fn pass(
        this: &Arc<Self>,
        side: Side,
        value: Passable,
        depth: usize,
    ) -> Result<Passable, Broken> {
        if depth > DEPTH_MAX {
            return Err(Broken::new("too-deep", "the value is too deep"));
        }
        let pass = |value| Self::pass(this, side, value, depth + 1);
        Ok(match value {
            Passable::Reference(reference) => {
                Passable::Reference(Self::pass_reference(this, side, &reference))
            }
            Passable::List(values) => {
                Passable::List(values.into_iter().map(pass).collect::<Result<_, _>>()?)
            }
            Passable::Struct(entries) => {
                let entries = entries.into_iter();
                let entries: Result<Struct, Broken> = entries
                    .map(|(key, value)| Ok((key, pass(value)?)))
                    .collect();
                Passable::Struct(entries?)
            }
            Passable::Tagged(tagged) => {
                let Tagged { tag, value } = *tagged;
                let value = pass(value)?;
                Passable::Tagged(Box::new(Tagged { tag, value }))
            }
            Passable::Opaque(opaque) => {
                let values = opaque.into_values().into_iter().map(pass);
                let opaque = Opaque::of(values.collect::<Result<_, _>>()?);
                opaque.map_or(Passable::Undefined, Passable::Opaque)
            }
            Passable::Sturdyref(_) => {
                return Err(Broken::new(
                    "not-allowed",
                    "sturdyrefs do not pass a caretaker",
                ));
            }
            plain => plain,
        })
    }
}

/// Stands on one side of a membrane for a target on the other.
struct Forwarder {
    membrane: Arc<Membrane>,
    /// The side of the target.
    side: Side,
    /// The address of this forwarder's node.
    address: Arc<OnceLock<usize>>,
}

impl Forwarder {
    /// Returns what the forwarder leads to, unless it was cut off.
    fn target(&self) -> Option<Reference> {
        let forwarders = self.membrane.forwarders();
        let forwarded = forwarders.by_address.get(self.address.get()?)?;
        Some(forwarded.target.clone())
    }

    /// Returns whether a message goes through: to what is guarded only the allowed methods do,
    /// whichever way the guarded object was come by.
    fn is_allowed(&self, target: &Reference, args: &[Passable]) -> bool {
        let Some(allowed) = &self.membrane.allowed else {
            return true;
        };
        let target = target.shortened();
        let guarded = self.membrane.forwarders().guarded.clone();
        let mut guarded = guarded.iter().map(Reference::shortened);
        if self.side == Side::Outside || !guarded.any(|end| end.is_ok() && end == target) {
            return true;
        }
        let method = args.first().and_then(Passable::as_symbol);
        method.is_some_and(|method| allowed.contains(method))
    }
}

impl Object for Forwarder {
    fn deliver(&self, _turn: &Turn, args: Vec<Passable>) -> Answer {
        let Some(target) = self.target() else {
            return Answer::Now(Err(revoked()));
        };
        if !self.is_allowed(&target, &args) {
            return Answer::broken("not-allowed", "this method is not let through");
        }
        let callers = self.side.other();
        let args = args
            .into_iter()
            .map(|arg| Membrane::pass(&self.membrane, callers, arg, 0));
        match args.collect() {
            Ok(args) => {
                let promise = target.call_raw(args);
                let (membrane, side) = (Arc::clone(&self.membrane), self.side);
                Answer::later(async move { Membrane::result(&membrane, side, promise).await })
            }
            Err(broken) => Answer::Now(Err(broken)),
        }
    }

    fn label(&self) -> &str {
        "caretaker"
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let Some(address) = self.address.get() else {
            return;
        };
        let mut forwarders = self.membrane.forwarders();
        let gone = forwarders.by_address.remove(address);
        if let Some(forwarded) = &gone {
            let key = (forwarded.side, forwarded.target.address());
            if forwarders.by_target.get(&key) == Some(address) {
                forwarders.by_target.remove(&key);
            }
        }
        drop(forwarders);
        // The target is let go of outside of the lock.
        drop(gone);
    }
}
