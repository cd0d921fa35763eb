//! The boss as an object: `get-machine`, `list-machines`, `create-machine`.
//!
//! It answers one key, the operator's, which is computed from the boss's seed: whoever can open
//! the project's state can be the operator, and nobody else can. A machine's hob answers its boss
//! alone, so what the operator gets of a machine is an object of the boss's that asks the hob.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use gobs_model::Address;
use gobs_state::{BossStore, StoreError};
use hob::protocol::{Args, code, method};
use hob::server::ServerPresence;
use ocapn::{
    Answer, Broken, Identity, Object, Passable, PeerLocator, Reference, Struct, Sturdyref,
    Swissnum, Turn,
};
use sha2::{Digest, Sha256};

use super::bind::HOB_DEADLINE;
use super::{Boss, BossError, Inner, Key, lock};

/// Makes a declared machine: the boss is asked to, and `apply` does it.
pub trait Machines: Send + Sync {
    /// Applies one declared machine with everything that it needs; returns why it could not.
    fn create(&self, machine: Address) -> BoxFuture<'static, Result<(), String>>;
}

/// Returns the operator's key.
///
/// # Errors
/// When the state file cannot be read.
pub fn operator_identity(store: &BossStore) -> Result<Identity, StoreError> {
    Ok(Identity::from_seed(&derive(
        &*store.seed()?,
        "operator key",
    )))
}

/// Returns the durable name of the boss's own object, for the operator's key alone.
///
/// # Errors
/// When the state file cannot be read.
pub fn operator_sturdyref(
    store: &BossStore,
    locator: PeerLocator,
) -> Result<Sturdyref, StoreError> {
    let swissnum = Swissnum::new(derive(&*store.seed()?, "operator swissnum").to_vec());
    Ok(Sturdyref {
        peer: locator,
        swissnum,
    })
}

fn derive(seed: &[u8; 32], purpose: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"gobs 1\0");
    hash.update(purpose);
    hash.update([0]);
    hash.update(seed);
    hash.finalize().into()
}

impl Boss {
    /// Sets who makes machines when the operator asks for it.
    pub fn set_machines(&self, machines: Arc<dyn Machines>) {
        *lock(&self.0.machines) = Some(machines);
    }

    /// Returns the boss's own object if this is its swissnum and the operator asks.
    pub(super) fn operator_object(&self, swissnum: &[u8], designator: &str) -> Option<Reference> {
        let seed = self.0.identity.seed();
        let operator = Identity::from_seed(&derive(&seed, "operator key")).designator();
        if designator != operator || derive(&seed, "operator swissnum") != *swissnum {
            return None;
        }
        Some(self.peer()?.export(BossObject(Arc::downgrade(&self.0))))
    }

    fn list_machines(&self) -> Passable {
        let mut machines: Vec<_> = lock(&self.0.presences)
            .iter()
            .map(|((address, incarnation), presence)| {
                (address.clone(), *incarnation, is_active(&presence.state))
            })
            .collect();
        machines.sort();
        let entry = |(address, incarnation, active): (Address, u64, bool)| {
            Passable::Struct(
                Struct::new()
                    .with("machine", address.to_string())
                    .with("incarnation", incarnation)
                    .with("active", active),
            )
        };
        Passable::List(machines.into_iter().map(entry).collect())
    }

    fn get_machine(&self, machine: &Address) -> Result<Passable, Broken> {
        let newest = lock(&self.0.presences)
            .keys()
            .filter(|(address, _)| address == machine)
            .max_by_key(|(_, incarnation)| *incarnation)
            .cloned();
        let unknown = || Broken::new(code::UNKNOWN, format!("there is no {machine}"));
        let key = newest.ok_or_else(unknown)?;
        let boss = Arc::downgrade(&self.0);
        let peer = self.peer().ok_or_else(stopping)?;
        Ok(peer.export(MachineObject { boss, key }).into())
    }
}

fn stopping() -> Broken {
    Broken::new(code::UNKNOWN, "the boss is stopping")
}

fn is_active(state: &ServerPresence<Reference>) -> bool {
    matches!(state, ServerPresence::Active(_))
}

/// The boss, as its operator reaches it.
struct BossObject(Weak<Inner>);

impl Object for BossObject {
    fn deliver(&self, _turn: &Turn, args: Vec<Passable>) -> Answer {
        let Some(boss) = self.0.upgrade().map(Boss) else {
            return Answer::Now(Err(stopping()));
        };
        let mut args = match Args::read(args) {
            Ok(args) => args,
            Err(error) => return Answer::Now(Err(error.into())),
        };
        if args.method() == "list-machines" {
            return Answer::Now(Ok(boss.list_machines()));
        }
        let method = args.method().to_owned();
        let machine = match args
            .data::<String>("machine")
            .map(|text| text.parse::<Address>())
        {
            Ok(Ok(machine @ Address::Machine(_))) => machine,
            Ok(_) => return Answer::broken(code::MALFORMED, "that is no machine's address"),
            Err(error) => return Answer::Now(Err(error.into())),
        };
        match method.as_str() {
            "get-machine" => Answer::Now(boss.get_machine(&machine)),
            "create-machine" => {
                let Some(machines) = lock(&boss.0.machines).clone() else {
                    return Answer::broken(code::BUSY, "nothing is being applied now");
                };
                Answer::later(async move {
                    let made = machines.create(machine.clone()).await;
                    made.map_err(|why| Broken::new(code::UNREACHABLE, why))?;
                    boss.get_machine(&machine)
                })
            }
            other => Answer::broken(code::MALFORMED, format!("the boss has no method {other}")),
        }
    }
}

/// A machine, as the operator reaches it: what its hob says of itself.
struct MachineObject {
    boss: Weak<Inner>,
    key: Key,
}

impl Object for MachineObject {
    fn deliver(&self, _turn: &Turn, args: Vec<Passable>) -> Answer {
        let Some(boss) = self.boss.upgrade().map(Boss) else {
            return Answer::Now(Err(stopping()));
        };
        let asked = match Args::read(args) {
            Ok(args) => args.method().to_owned(),
            Err(error) => return Answer::Now(Err(error.into())),
        };
        if ![method::STATUS, method::LIST_BINDINGS].contains(&asked.as_str()) {
            return Answer::broken(code::MALFORMED, format!("a machine has no method {asked}"));
        }
        let key = self.key.clone();
        Answer::later(async move {
            let call = boss.call(&key, &asked, Vec::new(), HOB_DEADLINE);
            call.await.map_err(|error| {
                let code = match &error {
                    BossError::Refused {
                        code: Some(code), ..
                    } => code.clone(),
                    _ => code::UNREACHABLE.to_owned(),
                };
                Broken::new(&code, error.to_string())
            })
        })
    }
}
