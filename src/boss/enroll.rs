//! Enrollment: the claim is the fetch of a one-time swissnum.
//!
//! Objects do not see who calls them; the netlayer does. So the sturdyref table consults the
//! session's authenticated peer: the first fetch of a claim's swissnum binds the key, durably and
//! before the reply; the same key gets the same presence again; another key gets what an unknown
//! swissnum gets. Later sessions name the presence by a swissnum that is computed from the boss's
//! seed and the hob's key, so that nothing of it has to be stored.

use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gobs_model::{Address, Name, Value};
use gobs_state::{ClaimOutcome, HobRow, JoinOutcome, NewClaim, StoreError, SwissnumHash};
use hob::protocol::{self, Args, Registered as RegisteredData, code, method};
use hob::server::{Active, Call, Refused, Registering, Reply, ServerPresence};
use ocapn::{
    Answer, Broken, Object, Passable, PeerId, PeerLocator, Reference, Sturdyref, SturdyrefTable,
    Swissnum, Turn,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::bind::to_passable;
use crate::lang::Dial;

use super::{Boss, BossError, Inner, Key, lock};

/// What a new machine is given, and what must be on disk before anybody gets it.
pub struct Invitation {
    /// For the machine; holds the one-time secret.
    pub user_data: protocol::UserData,
    /// For the journal; holds its hash.
    pub claim: NewClaim,
}

/// One machine's hob as this boss has it.
pub(super) struct Presence {
    pub(super) state: ServerPresence<Reference>,
    object: Reference,
}

impl Boss {
    /// Returns an invitation for a machine's hob.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn mint_invitation(
        &self,
        machine: &Address,
        incarnation: u64,
        dial: Dial,
        listen: &str,
        advertise: Vec<String>,
        expects: &[(Name, Value)],
    ) -> Result<Invitation, std::io::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(std::io::Error::from)?;
        let claim = NewClaim {
            swissnum_hash: SwissnumHash::of(&*secret),
            machine: machine.clone(),
            incarnation,
            minted_at: self.0.clock.now(),
        };
        let sturdyref = Sturdyref {
            peer: match dial {
                Dial::Hob => self.locator(),
                // It waits to be called, and has nothing to dial in vain.
                Dial::Boss => {
                    let own = self.locator();
                    PeerLocator::new(own.transport, own.designator)
                }
            },
            swissnum: Swissnum::new(*secret),
        };
        let user_data = protocol::UserData {
            format: protocol::USER_DATA_FORMAT,
            sturdyref,
            listen: listen.to_owned(),
            advertise,
        };
        self.expect_bindings(machine, incarnation, expects);
        Ok(Invitation { user_data, claim })
    }

    /// Says under which names a machine is about to get bindings, and how they will be exposed;
    /// its programs wait for them.
    pub fn expect_bindings(&self, machine: &Address, incarnation: u64, names: &[(Name, Value)]) {
        let exposes = |expose: &Value| {
            // What is not known yet is listened on when it is.
            let travels = to_passable(expose);
            protocol::from_passable("expose", &travels).unwrap_or_default()
        };
        let names = names.iter();
        let names = names.map(|(name, expose)| (name.to_string(), exposes(expose)));
        lock(&self.0.expects).insert((machine.clone(), incarnation), names.collect());
    }

    /// Refuses to give anything to a machine whose claim another key tried in time.
    pub(super) fn refuse_contested(
        &self,
        machine: &Address,
        incarnation: u64,
    ) -> Result<(), BossError> {
        let contested = self
            .0
            .store
            .claims(machine, incarnation)?
            .iter()
            .any(|it| it.contested);
        if contested {
            Err(BossError::Contested {
                machine: machine.clone(),
            })
        } else {
            Ok(())
        }
    }

    /// Forgets a machine that is deleted or rebuilt: its claim and its presence end.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn forget(&self, machine: &Address, incarnation: u64) -> Result<(), StoreError> {
        self.0
            .store
            .forget_machine(machine, incarnation, self.0.clock.now())?;
        lock(&self.0.presences).retain(|(at, age), _| at != machine || *age > incarnation);
        Ok(())
    }

    /// Returns the live client presence of a machine's hob, dialling it where need be; nothing
    /// where it has not registered.
    ///
    /// # Errors
    /// When this one try fails, with what it said.
    pub(super) async fn reach(&self, key: &Key) -> Result<Option<Reference>, String> {
        let sturdyref = match lock(&self.0.presences).get(key).map(|it| &it.state) {
            Some(ServerPresence::Active(active)) => match &active.client {
                Some(client) => return Ok(Some(client.clone())),
                None => active.sturdyref.clone(),
            },
            Some(ServerPresence::Pending(_)) | None => return Ok(None),
        };
        let client = self.enliven(&sturdyref).await?;
        self.set_client(key, &client);
        Ok(Some(client))
    }

    /// Forgets a live reference that proved dead.
    pub(super) fn drop_client(&self, key: &Key, dead: &Reference) {
        if let Some(Presence {
            state: ServerPresence::Active(active),
            ..
        }) = lock(&self.0.presences).get_mut(key)
            && active.client.as_ref() == Some(dead)
        {
            active.client = None;
        }
    }

    pub(super) fn severed(&self, designator: &str) {
        let mut presences = lock(&self.0.presences);
        let keys: Vec<Key> = presences
            .iter()
            .filter(|(_, presence)| presence.state.key() == designator)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            if let Some(presence) = presences.remove(&key) {
                let (state, _) = presence.state.turn(Call::Severed);
                presences.insert(key, Presence { state, ..presence });
            }
        }
    }

    /// Makes the presences of the hobs that have registered with an earlier run.
    pub(super) fn restore_presences(&self) -> Result<(), StoreError> {
        for hob in self.0.store.hobs()? {
            let Some(sturdyref) = hob.presence.as_ref().and_then(|uri| uri.parse().ok()) else {
                continue;
            };
            let Ok(locator) = hob.locator.parse() else {
                continue;
            };
            let state = ServerPresence::Active(Active {
                key: hob.designator,
                locator,
                sturdyref,
                client: None,
                // The state file is what judges join sequences.
                confirmed: 0,
            });
            let key = (hob.machine, hob.incarnation);
            let Some(object) = self.export_presence(&key) else {
                continue;
            };
            lock(&self.0.presences).insert(key, Presence { state, object });
        }
        Ok(())
    }

    /// Dials every hob that has registered: nobody waits out another's backoff.
    pub(super) fn dial_known(&self) {
        let keys: Vec<Key> = lock(&self.0.presences).keys().cloned().collect();
        for key in keys {
            let boss = self.clone();
            let task = tokio::spawn(async move {
                // One try: whoever needs the hob later tries again, and the hob dials too.
                let _ = boss.reach(&key).await;
            });
            lock(&self.0.tasks).push(task);
        }
    }

    fn set_client(&self, key: &Key, client: &Reference) {
        if let Some(Presence {
            state: ServerPresence::Active(active),
            ..
        }) = lock(&self.0.presences).get_mut(key)
        {
            active.client = Some(client.clone());
        }
    }

    fn export_presence(&self, key: &Key) -> Option<Reference> {
        let object = PresenceObject {
            boss: Arc::downgrade(&self.0),
            key: key.clone(),
        };
        Some(self.peer()?.export(object))
    }

    /// Returns the presence that a claim's key gets, made at the first fetch.
    ///
    /// A machine may have two claims, where a crash made a second invitation necessary. The key
    /// that has registered stays: whoever comes with the other claim gets nothing.
    fn presence_of_claim(&self, key: Key, designator: &str) -> Option<Reference> {
        let object = self.export_presence(&key)?;
        let mut presences = lock(&self.0.presences);
        match presences.get(&key) {
            Some(presence) if presence.state.key() == designator => {
                return Some(presence.object.clone());
            }
            Some(Presence {
                state: ServerPresence::Active(_),
                ..
            }) => {
                tracing::warn!(machine = %key.0, peer = designator, "another hob has registered");
                return None;
            }
            _ => {}
        }
        let presence = Presence {
            state: ServerPresence::pending(designator),
            object: object.clone(),
        };
        presences.insert(key, presence);
        Some(object)
    }

    /// The swissnum under which a registered hob finds its presence again.
    fn durable_swissnum(&self, (machine, incarnation): &Key, designator: &str) -> Swissnum {
        let mut hash = Sha256::new();
        hash.update(b"gobs presence 1\0");
        hash.update(*self.0.identity.seed());
        for part in [
            machine.to_string().as_str(),
            &incarnation.to_string(),
            designator,
        ] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Swissnum::new(hash.finalize().to_vec())
    }

    fn find(&self, swissnum: &[u8], from: &PeerId) -> Result<Option<Reference>, StoreError> {
        if !from.authenticated {
            return Ok(None);
        }
        if let Some(object) = self.operator_object(swissnum, &from.designator) {
            return Ok(Some(object));
        }
        let own: Vec<(Key, Reference)> = lock(&self.0.presences)
            .iter()
            .filter(|(_, presence)| presence.state.key() == from.designator)
            .map(|(key, presence)| (key.clone(), presence.object.clone()))
            .collect();
        for (key, object) in own {
            if self.durable_swissnum(&key, &from.designator).reveal() == swissnum {
                return Ok(Some(object));
            }
        }
        let hash = SwissnumHash::of(swissnum);
        let at_home = self.is_at_home(hash, from)?;
        if !at_home {
            return Ok(None);
        }
        let outcome =
            self.0
                .store
                .claim(hash, &from.designator, from.address, self.0.clock.now())?;
        match outcome {
            ClaimOutcome::Bound(claim) | ClaimOutcome::Again(claim) => {
                let key = (claim.machine, claim.incarnation);
                Ok(self.presence_of_claim(key, &from.designator))
            }
            ClaimOutcome::Refused(reason) => {
                tracing::warn!(peer = %from.designator, ?reason, "fetch refused");
                Ok(None)
            }
        }
    }

    /// Takes a registration: judged, on disk, and only then answered.
    fn register(&self, key: &Key, call: Registering<Reference>) -> Result<Passable, Broken> {
        let from = call.from.clone();
        let presented = call.register.join_sequence;
        let (locator, sturdyref) = (call.register.locator.to_string(), call.sturdyref.to_uri());
        // A copy takes the turn: it becomes the presence once the state file has it.
        let state = lock(&self.0.presences)
            .get(key)
            .map(|presence| presence.state.clone())
            .ok_or_else(|| Broken::new(code::UNKNOWN, "this machine is gone"))?;
        let (next, reply) = state.turn(Call::Register(Box::new(call)));
        let now = self.0.clock.now();
        match reply {
            Reply::Refused(Refused::Stale) => {
                // The state file notes it too: there is a copy of the hob, and both are locked.
                self.0
                    .store
                    .join(&key.0, presented, now)
                    .map_err(unwritten)?;
                return Err(Broken::new(
                    Refused::Stale.code(),
                    Refused::Stale.to_string(),
                ));
            }
            Reply::Refused(refused) => {
                return Err(Broken::new(refused.code(), refused.to_string()));
            }
            Reply::Registered { .. } | Reply::Noted => {}
        }
        let row = HobRow {
            machine: key.0.clone(),
            incarnation: key.1,
            designator: from.designator.clone(),
            locator,
            presence: Some(sturdyref),
            last_seen: now,
            locked_at: None,
        };
        let stored = self
            .0
            .store
            .put_hob(&row)
            .and_then(|offered| match offered {
                Some(_) => self.0.store.join(&key.0, presented, now),
                None => Ok(JoinOutcome::Unknown),
            });
        let join_sequence = match stored {
            Ok(JoinOutcome::Welcome(join_sequence)) => join_sequence,
            Ok(JoinOutcome::Unknown) => {
                return Err(Broken::new(
                    code::UNKNOWN,
                    "a later incarnation has registered",
                ));
            }
            Ok(JoinOutcome::Locked) => {
                return Err(Broken::new(
                    Refused::Stale.code(),
                    Refused::Stale.to_string(),
                ));
            }
            Err(error) => return Err(unwritten(error)),
        };
        if let Some(presence) = lock(&self.0.presences).get_mut(key) {
            presence.state = next;
        }
        self.0
            .registrations
            .send_modify(|count| *count = count.wrapping_add(1));
        let exposes = lock(&self.0.expects).get(key).cloned().unwrap_or_default();
        let registered = RegisteredData {
            machine: key.0.to_string(),
            join_sequence,
            expects: exposes.keys().cloned().collect(),
            exposes,
        };
        let swissnum = self.durable_swissnum(key, &from.designator);
        let presence = Sturdyref {
            peer: self.locator(),
            swissnum,
        };
        Ok(protocol::RegisterReply {
            registered,
            presence,
        }
        .to_passable())
    }
}

/// The detail stays here; the hob tries again.
fn unwritten(error: StoreError) -> Broken {
    tracing::error!(%error, "a registration was not stored");
    Broken::new(code::STORE, "the boss cannot write its state")
}

/// Returns the table that answers `fetch`.
pub(super) fn table(inner: &Arc<Inner>) -> Arc<dyn SturdyrefTable> {
    Arc::new(Table(Arc::downgrade(inner)))
}

struct Table(Weak<Inner>);

impl SturdyrefTable for Table {
    fn fetch(
        &self,
        swissnum: bytes::Bytes,
        from: &PeerId,
    ) -> BoxFuture<'static, Option<Reference>> {
        let Some(boss) = self.0.upgrade().map(Boss) else {
            return async { None }.boxed();
        };
        let from = from.clone();
        // The claim is a durable write, so it has a thread of its own.
        let task = tokio::task::spawn_blocking(move || {
            boss.find(&swissnum, &from).unwrap_or_else(|error| {
                tracing::error!(%error, "a fetch could not be answered from the state file");
                None
            })
        });
        async move { task.await.ok().flatten() }.boxed()
    }
}

/// What a hob finds at the end of its sturdyref.
struct PresenceObject {
    boss: Weak<Inner>,
    key: Key,
}

impl Object for PresenceObject {
    fn deliver(&self, turn: &Turn, args: Vec<Passable>) -> Answer {
        let (Some(boss), Some(from)) = (self.boss.upgrade().map(Boss), turn.peer().cloned()) else {
            return Answer::broken(code::UNKNOWN, "the boss is stopping");
        };
        let read = || -> Result<Registering<Reference>, Broken> {
            let mut args = Args::read(args)?;
            if args.method() != method::REGISTER {
                let text = format!("a presence has no method {}", args.method());
                return Err(Broken::new(code::MALFORMED, text));
            }
            let register = args.data("register")?;
            let client = args.reference("register")?;
            let sturdyref = args.sturdyref("register")?;
            Ok(Registering {
                from,
                register,
                client,
                sturdyref,
            })
        };
        let key = self.key.clone();
        match read() {
            Err(broken) => Answer::Now(Err(broken)),
            Ok(call) => Answer::later(async move {
                let task = tokio::task::spawn_blocking(move || boss.register(&key, call));
                task.await
                    .unwrap_or_else(|_| Err(Broken::new(code::STORE, "the boss failed")))
            }),
        }
    }
}
