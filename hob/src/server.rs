//! The half beside the boss: what a machine's hob looks like from there.
//!
//! A presence is `Pending` from the invitation until the hob registers, then `Active` for good.
//! A turn consumes the presence and returns the next one; it does no I/O, so the boss writes down
//! what has changed and only then lets the reply go out.

use ocapn::{PeerId, PeerLocator, Sturdyref};

use crate::protocol::{PROTOCOL, Register, code};

/// A machine's hob as the boss knows it. `C` is how it calls the hob: a live reference.
#[derive(Clone, Debug)]
pub enum ServerPresence<C> {
    /// The hob has not registered yet.
    Pending(Pending),
    /// The hob has registered.
    Active(Active<C>),
}

/// A hob that was claimed for a key and has not registered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The designator that the claim is bound to.
    pub key: String,
}

/// A hob that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active<C> {
    /// The designator that the presence is bound to.
    pub key: String,
    /// Where the hob can be dialled.
    pub locator: PeerLocator,
    /// The durable name of its client presence, bound to the boss's key.
    pub sturdyref: Sturdyref,
    /// Its client presence while a session stands.
    pub client: Option<C>,
    /// The join sequence that the hob has proved to have on disk. The one after it is on offer.
    pub confirmed: u64,
}

/// What happens to a presence.
#[derive(Clone, Debug)]
pub enum Call<C> {
    /// The hob says who it is.
    Register(Box<Registering<C>>),
    /// The session with the hob is over.
    Severed,
}

/// A hob that says who it is.
#[derive(Clone, Debug)]
pub struct Registering<C> {
    /// Who says it, as the netlayer knows.
    pub from: PeerId,
    /// What it says.
    pub register: Register,
    /// Its client presence.
    pub client: C,
    /// The durable name of it.
    pub sturdyref: Sturdyref,
}

/// What a turn answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The hob is registered; this join sequence is to be given to it.
    Registered {
        /// To be presented next time.
        join_sequence: u64,
    },
    /// Nothing has changed and the caller is refused.
    Refused(Refused),
    /// Nothing is to be said.
    Noted,
}

/// Why `register` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The caller's key is not the one that the presence is bound to, or is not proven.
    #[error("this presence answers another key")]
    NotYours,
    /// The locators do not name the caller.
    #[error("the locators do not name the caller")]
    Locator,
    /// The hob speaks another version.
    #[error("the boss speaks version {PROTOCOL} of the protocol")]
    Version,
    /// The hob's join sequence is older than one that the same key has presented: two machines
    /// have that key. To be reported.
    #[error("the machine's state is older than what was seen of it")]
    Stale,
}

impl Refused {
    /// Returns the code on the wire.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotYours => code::NOT_YOURS,
            Self::Locator => code::MALFORMED,
            Self::Version => code::VERSION,
            Self::Stale => code::STALE,
        }
    }
}

impl<C> ServerPresence<C> {
    /// Returns the presence of a hob that has claimed with this key.
    pub fn pending(key: impl Into<String>) -> Self {
        Self::Pending(Pending { key: key.into() })
    }

    /// Returns the designator that the presence is bound to.
    pub fn key(&self) -> &str {
        match self {
            Self::Pending(pending) => &pending.key,
            Self::Active(active) => &active.key,
        }
    }

    /// Takes one call and returns the presence that is left, with the reply.
    #[must_use]
    pub fn turn(self, call: Call<C>) -> (Self, Reply) {
        match (self, call) {
            (presence, Call::Register(hob)) => {
                if let Err(refused) = presence.accepts(&hob) {
                    return (presence, Reply::Refused(refused));
                }
                // A repeat of the confirmed one means that the last reply was lost: it gets the
                // same again. A later one is what the hob has on disk, though this boss may be
                // younger: its state was restored, and the hob is right.
                let confirmed = presence.confirmed().max(hob.register.join_sequence);
                let active = Active {
                    key: hob.from.designator,
                    locator: hob.register.locator,
                    sturdyref: hob.sturdyref,
                    client: Some(hob.client),
                    confirmed,
                };
                let join_sequence = confirmed.saturating_add(1);
                (Self::Active(active), Reply::Registered { join_sequence })
            }
            (Self::Active(active), Call::Severed) => (
                Self::Active(Active {
                    client: None,
                    ..active
                }),
                Reply::Noted,
            ),
            (pending @ Self::Pending(_), Call::Severed) => (pending, Reply::Noted),
        }
    }

    fn confirmed(&self) -> u64 {
        match self {
            Self::Pending(_) => 0,
            Self::Active(active) => active.confirmed,
        }
    }

    fn accepts(&self, hob: &Registering<C>) -> Result<(), Refused> {
        let Registering {
            from,
            register,
            sturdyref,
            ..
        } = hob;
        if !from.authenticated || from.designator != self.key() {
            return Err(Refused::NotYours);
        }
        if register.protocol != PROTOCOL {
            return Err(Refused::Version);
        }
        for locator in [&register.locator, &sturdyref.peer] {
            if !from.is(&locator.transport, &locator.designator) {
                return Err(Refused::Locator);
            }
        }
        if register.join_sequence < self.confirmed() {
            return Err(Refused::Stale);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ocapn::Swissnum;

    use super::*;

    fn register(key: &str, join_sequence: u64) -> Call<u8> {
        let locator = PeerLocator::new("tls-rpk", key);
        let sturdyref = Sturdyref {
            peer: locator.clone(),
            swissnum: Swissnum::new(*b"x"),
        };
        let from = PeerId {
            transport: "tls-rpk".into(),
            designator: key.into(),
            authenticated: true,
            address: None,
        };
        let version = "0".into();
        let register = Register {
            protocol: PROTOCOL,
            locator,
            join_sequence,
            version,
        };
        Call::Register(Box::new(Registering {
            from,
            register,
            client: 7,
            sturdyref,
        }))
    }

    fn given(reply: Reply) -> u64 {
        let Reply::Registered { join_sequence } = reply else {
            panic!("{reply:?}")
        };
        join_sequence
    }

    #[test]
    fn a_hob_registers_and_lost_replies_harm_nobody() {
        let (presence, reply) = ServerPresence::pending("k").turn(register("k", 0));
        assert_eq!(given(reply), 1);
        let ServerPresence::Active(active) = &presence else {
            panic!("{presence:?}")
        };
        assert_eq!(
            (active.client, active.locator.designator.as_str()),
            (Some(7), "k")
        );
        let (presence, reply) = presence.turn(register("k", 0));
        assert_eq!(given(reply), 1, "the reply was lost");
        let (presence, reply) = presence.turn(register("k", 1));
        assert_eq!(given(reply), 2);
        let (presence, reply) = presence.turn(Call::Severed);
        assert_eq!(reply, Reply::Noted);
        let ServerPresence::Active(active) = &presence else {
            panic!("{presence:?}")
        };
        assert_eq!(active.client, None);
        let (_, reply) = presence.turn(register("k", 1));
        assert_eq!(given(reply), 2);
    }

    #[test]
    fn whoever_is_refused_changes_nothing() {
        let (presence, _) = ServerPresence::pending("k").turn(register("k", 5));
        let changed = |change: &dyn Fn(&mut PeerId, &mut Register, &mut Sturdyref)| {
            let mut call = register("k", 5);
            if let Call::Register(hob) = &mut call {
                change(&mut hob.from, &mut hob.register, &mut hob.sturdyref);
            }
            call
        };
        for (call, refused) in [
            (register("other", 5), Refused::NotYours),
            (
                changed(&|from, _, _| from.authenticated = false),
                Refused::NotYours,
            ),
            (
                changed(&|_, register, _| register.protocol = 9),
                Refused::Version,
            ),
            (
                changed(&|_, r, _| r.locator.designator = "x".into()),
                Refused::Locator,
            ),
            (
                changed(&|_, _, s| s.peer.transport = "x".into()),
                Refused::Locator,
            ),
            (register("k", 4), Refused::Stale),
        ] {
            let (after, reply) = presence.clone().turn(call);
            assert_eq!(reply, Reply::Refused(refused));
            assert!(matches!(after, ServerPresence::Active(active) if active.confirmed == 5));
        }
        let (pending, reply) = ServerPresence::<u8>::pending("k").turn(Call::Severed);
        assert_eq!(reply, Reply::Noted);
        assert!(matches!(pending, ServerPresence::Pending(_)));
    }
}
