//! The messages that both halves know: the boss with its presences, and the agents on machines.
//!
//! A call is `[method-symbol, data, references…]`. The data of each message is one of the structs
//! below; it travels as a struct of strings, numbers, lists and structs ([`to_passable`],
//! [`from_passable`]). Live references and sturdyrefs are arguments of their own, never data.
//! Fields that a reader does not know are ignored where a later version may add them, and refused
//! where ignoring them would widen a right ([`Attenuate`]) or drop a wish ([`ServiceSpec`],
//! [`Expose`]).
//!
//! | on | method | arguments | answer |
//! |---|---|---|---|
//! | server presence | `register` | [`Register`], client presence, its sturdyref | [`Registered`], sturdyref of the presence: [`RegisterReply`] |
//! | client presence | `offer` | [`Offer`] | null |
//! | | `withdraw` | [`Withdraw`] | null |
//! | | `probe` | [`Probe`] | [`Check`] |
//! | | `grant` | [`Grant`] | [`Granted`] |
//! | | `streams` | [`Generation`] | how many streams of the grant are open |
//! | | `log` | [`Probe`] | the end of the machine's logs, as text |
//! | | `revoke` | [`Generation`] | null, once nothing flows any more and nothing is left of it |
//! | | `retire` | | null, once nothing is left at any server |
//! | | `register-binding` | [`Registration`], the grant, its sturdyref | [`Held`] |
//! | | `unregister-binding` | [`Generation`] | null |
//! | | `check-binding` | [`Generation`] | [`Check`] |
//! | | `list-bindings` | | list of [`BindingStatus`] |
//! | | `get-binding` | name | the grant |
//! | | `status` | | [`HobStatus`] |
//! | grant | `describe` | | [`Described`] |
//! | | `open` | | [`Opened`]: a one-time ticket, and where it may be presented on the same host |
//! | grant of a secret | `fetch` | the digest held, if one is | `{digest, secret}`; null if it is the same after [`DELIVERY_HOLD`] |
//! | grant of an object | `capability` | | the object, as long as the grant stands |

mod convert;
mod expose;
mod service;
mod stream;
mod user_data;

use std::collections::BTreeMap;
use std::time::Duration;

use ocapn::{Broken, PeerLocator, Reference, Sturdyref};
use serde::{Deserialize, Serialize};

pub use convert::{Args, from_passable, to_passable};
pub(crate) use convert::{json_to_passable, sturdyref_text, text};
pub use expose::{Expose, MODE_DEFAULT, Place, entry_names, mode};
pub(crate) use service::check_limits;
pub use service::{
    Access, Attenuate, Http, MINTING, Postgres, Redis, Secret, ServiceKind, ServiceSpec,
    Unenforceable, Wider, check_limit, check_together, enforced_by,
};
pub use stream::{
    BYTES_ALPN, BYTES_VERSION, EARLY_BYTES_MAX, HOST_SIZE, NEAR_NAME_SIZE, NEAR_VERSION, Near,
    Opened, PROOF_SIZE, StreamReply, TICKET_LIFETIME, TICKET_SIZE,
};
pub use user_data::{USER_DATA_FORMAT, USER_DATA_HEADER, UserData, host_and_port};

/// The version of these messages. A presence and a hob that differ refuse `register`.
pub const PROTOCOL: u32 = 1;

/// The names of the methods.
pub mod method {
    /// On the server presence: the hob says who it is.
    pub const REGISTER: &str = "register";
    /// On the client presence: a service of the machine may be granted from now on.
    pub const OFFER: &str = "offer";
    /// On the client presence: the opposite of [`OFFER`].
    pub const WITHDRAW: &str = "withdraw";
    /// On the client presence of the exporter: whether a service answers its protocol.
    pub const PROBE: &str = "probe";
    /// On the client presence of the exporter: how many streams of a grant are open.
    pub const STREAMS: &str = "streams";
    /// On the client presence: the end of the machine's logs.
    pub const LOG: &str = "log";
    /// On the client presence of the exporter: makes a grant.
    pub const GRANT: &str = "grant";
    /// On the client presence of the exporter: ends a generation and all before it.
    pub const REVOKE: &str = "revoke";
    /// On the client presence of the exporter: ends a generation that did not come into use, and
    /// none before it.
    pub const ABANDON: &str = "abandon";
    /// On the client presence of an exporter that ends: revokes all that has left something at a
    /// server.
    pub const RETIRE: &str = "retire";
    /// On the client presence of the importer: takes a grant under a name.
    pub const REGISTER_BINDING: &str = "register-binding";
    /// Boss → client presence: [`Registration`](super::Registration) of a grant that is held, to
    /// be seen in another way; answered with [`Held`](super::Held). Its streams go on.
    pub const EXPOSE_BINDING: &str = "expose-binding";
    /// On the client presence of the importer: gives a name up.
    pub const UNREGISTER_BINDING: &str = "unregister-binding";
    /// On the client presence of the importer: gives a generation up; answered with whether one
    /// before it is held, which then stays.
    pub const ABANDON_BINDING: &str = "abandon-binding";
    /// On the client presence of the importer: whether the service answers through the binding.
    pub const CHECK_BINDING: &str = "check-binding";
    /// On the client presence: the bindings that the machine holds.
    pub const LIST_BINDINGS: &str = "list-bindings";
    /// On the client presence: the capability under a name.
    pub const GET_BINDING: &str = "get-binding";
    /// On the client presence: everything an operator may want to see.
    pub const STATUS: &str = "status";
    /// On a grant: what it is.
    pub const DESCRIBE: &str = "describe";
    /// On a grant: one more stream to the service.
    pub const OPEN: &str = "open";
    /// On a grant of a secret: the secret, once it is another than the one that is held.
    pub const FETCH: &str = "fetch";
    /// On a grant of an object: the object.
    pub const CAPABILITY: &str = "capability";
}

/// The codes that a refused call breaks with ([`Broken::code`]).
pub mod code {
    /// The message is none of this protocol.
    pub const MALFORMED: &str = "malformed";
    /// The caller is not the one this object answers.
    pub const NOT_YOURS: &str = "not-yours";
    /// The other half speaks another version.
    pub const VERSION: &str = "version";
    /// The hob's state is older than what the boss has seen of it: a copied disk.
    pub const STALE: &str = "stale";
    /// No such service, binding or generation here.
    pub const UNKNOWN: &str = "unknown";
    /// The generation is revoked, or a later one is known.
    pub const REVOKED: &str = "revoked";
    /// The name is held by another binding.
    pub const TAKEN: &str = "taken";
    /// The socket or port cannot be listened on.
    pub const EXPOSE: &str = "expose";
    /// The same while the machine still boots: its first boot may make the user, or the unit, that
    /// is not there yet. Worth another try.
    pub const BOOTING: &str = "booting";
    /// The other machine or its service does not answer. Worth another try.
    pub const UNREACHABLE: &str = "unreachable";
    /// A limit is reached, such as `connections_max`. Worth another try.
    pub const BUSY: &str = "busy";
    /// The service refuses what a grant needs of it: something must be set right there.
    pub const SERVICE: &str = "service";
    /// A limit cannot be enforced, or asks for more than there is to give.
    pub const RIGHTS: &str = "rights";
    /// The grant is cut off, and its role or user is still to be taken away at the server. The hob
    /// goes on trying.
    pub const PENDING: &str = "pending";
    /// The machine could not write its state: nothing was changed.
    pub const STORE: &str = "store";
}

/// Why a message is none of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Malformed {
    /// Which message.
    pub what: &'static str,
    /// What is wrong with it. Holds no value of the message, which may be secret.
    pub why: String,
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self::new(code::MALFORMED, malformed.to_string())
    }
}

// ---- register --------------------------------------------------------------------------------

/// What a hob says of itself, each time it has a session with the boss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// The version it speaks: [`PROTOCOL`].
    pub protocol: u32,
    /// Where it can be dialled.
    #[serde(with = "text")]
    pub locator: PeerLocator,
    /// The join sequence of the last [`Registered`] that it has on disk; 0 at first.
    pub join_sequence: u64,
    /// The version of the program, for people.
    pub version: String,
}

/// What the boss answers to [`Register`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The machine's address in the project, such as `machine.db`.
    pub machine: String,
    /// To be presented next time.
    pub join_sequence: u64,
    /// The names under which the machine is about to get bindings: its programs wait for them.
    #[serde(default)]
    pub expects: Vec<String>,
    /// How programs will see those: their sockets are there from now on, and connections wait.
    /// A name that is not here is seen in the default way.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exposes: BTreeMap<String, Vec<Expose>>,
}

/// [`Registered`] with the durable name of the presence, which only the hob's key can use.
#[derive(Clone, Debug)]
pub struct RegisterReply {
    /// The data.
    pub registered: Registered,
    /// The presence, for later sessions.
    pub presence: Sturdyref,
}

// ---- exporter --------------------------------------------------------------------------------

/// A service of the machine: `offer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its name on the machine.
    pub service: String,
    /// What it is. Offering again replaces it.
    pub spec: ServiceSpec,
}

/// A service that is offered no longer: `withdraw`. Grants of it stay, and open nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdraw {
    /// Its name on the machine.
    pub service: String,
}

/// Asks whether a service answers its protocol: `probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its name on the machine.
    pub service: String,
}

/// A capability to be made: `grant`. Granting the same again gives the same capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The service's name on this machine.
    pub service: String,
    /// The binding's address in the project, such as `binding.db["blue"]`.
    pub binding: String,
    /// Counts the grants of this binding; a lower one than was seen is refused.
    pub generation: u64,
    /// The designator of the hob that may use it.
    pub receiver: String,
    /// How it is narrowed; where it is made from another grant, beyond that one's limits.
    #[serde(default)]
    pub attenuate: Attenuate,
    /// The grant of the same service that it is made from, and ends with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Generation>,
}

/// The answer to [`Grant`].
#[derive(Clone, Debug)]
pub struct Granted {
    /// The live capability, to be handed to the receiver.
    pub grant: Reference,
    /// Its durable name, which only the receiver's key can use.
    pub sturdyref: Sturdyref,
}

/// One generation of a binding: `revoke`, `unregister-binding`, `check-binding`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The binding's address in the project.
    pub binding: String,
    /// Which grant of it.
    pub generation: u64,
}

// ---- importer --------------------------------------------------------------------------------

/// A grant to be held under a name: `register-binding`. A higher generation of the same binding
/// takes the place of the one before; its live streams go on until they end or are revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The name on this machine (`as`).
    pub name: String,
    /// The binding's address in the project.
    pub binding: String,
    /// Which grant of it.
    pub generation: u64,
    /// How programs see it. Empty: a unix socket in the binding's directory.
    #[serde(default)]
    pub expose: Vec<Expose>,
}

/// The answer to [`Registration`], once it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How a program reaches it: `unix:/path` or `host:port`; the first of several.
    pub address: String,
    /// The directory of its servicebinding.io files.
    pub directory: String,
}

/// The answer to `check-binding` and `probe`: the service answered, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Whether the service answered.
    pub answers: bool,
    /// Why not, for people.
    #[serde(default)]
    pub detail: String,
}

/// The answer to `describe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// The binding's address in the project.
    pub binding: String,
    /// Which grant of it.
    pub generation: u64,
    /// The kind of the service, such as `postgres`: how the importer speaks to programs.
    pub kind: String,
    /// The service's type, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// The database that programs land in, where the kind has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Whom the server takes programs for, where the kind has users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

// ---- status ----------------------------------------------------------------------------------

/// Everything that an operator may want to see of a hob. No secret is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HobStatus {
    /// The machine's address in the project; empty before the first registration.
    pub machine: String,
    /// The hob's key.
    pub designator: String,
    /// The version of the program.
    pub version: String,
    /// Whether a session with the boss stands.
    pub boss_connected: bool,
    /// The services offered.
    #[serde(default)]
    pub offers: Vec<Offer>,
    /// The grants given out.
    #[serde(default)]
    pub grants: Vec<GrantStatus>,
    /// The last revoked generation of each binding that has one.
    #[serde(default)]
    pub revoked: Vec<Generation>,
    /// The revoked grants of which something is left at the server: a role, a user.
    #[serde(default)]
    pub leaving: Vec<Generation>,
    /// The bindings held.
    #[serde(default)]
    pub bindings: Vec<BindingStatus>,
    /// The machine's programs.
    #[serde(default)]
    pub programs: Vec<ProgramStatus>,
    /// The units that systemd refuses to change or to restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitStatus>,
}

/// A unit that does not have what its bindings give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its name.
    pub unit: String,
    /// What systemd said last.
    pub error: String,
}

/// A grant given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantStatus {
    /// The binding's address in the project.
    pub binding: String,
    /// Which grant of it.
    pub generation: u64,
    /// The service's name on this machine.
    pub service: String,
    /// The designator of the hob that may use it.
    pub receiver: String,
    /// Streams open now.
    pub streams: u64,
    /// What limits hold, its parents' among them.
    #[serde(default)]
    pub rights: Attenuate,
    /// The grant that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Generation>,
    /// When it was granted, in seconds since 1970.
    #[serde(default)]
    pub since: u64,
}

/// A binding held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingStatus {
    /// The name on this machine.
    pub name: String,
    /// The binding's address in the project.
    pub binding: String,
    /// Which grant of it.
    pub generation: u64,
    /// How a program reaches it.
    pub address: String,
    /// The directory of its files.
    pub directory: String,
    /// Whether the grant is live now. One that is not becomes so when a program connects.
    pub live: bool,
    /// Streams open now.
    pub streams: u64,
}

/// One of the machine's programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// Its line's position in `run`.
    pub index: u64,
    /// Its process, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// How often it was started again since the hob began.
    pub restarts: u64,
}

// ---- secrets ---------------------------------------------------------------------------------

/// Bytes of a secret: a key or a certificate with its chain, not a file of data.
pub const SECRET_BYTES_MAX: u64 = 1 << 20;

/// How long a `fetch` is held while nothing changes: a session shows its life more often than
/// that, and a receiver that is gone is not waited for much longer.
pub const DELIVERY_HOLD: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use ocapn::{Passable, Struct, Swissnum};
    use serde::de::DeserializeOwned;

    use super::convert::json_to_passable;
    use super::*;

    fn round_trip<T>(value: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let back: T = from_passable("message", &to_passable(value)).unwrap();
        assert_eq!(&back, value);
    }

    pub(super) fn named(secret: &[u8]) -> Sturdyref {
        let peer = PeerLocator::new("tls-rpk", "abc").with_addresses([("127.0.0.1", 7)]);
        Sturdyref {
            peer,
            swissnum: Swissnum::new(secret),
        }
    }

    #[test]
    fn messages_travel() {
        let spec = ServiceSpec {
            kind: ServiceKind::Unix("/s".into()),
            r#type: Some("x".into()),
        };
        round_trip(&Offer {
            service: "orders".into(),
            spec,
        });
        round_trip(&Grant {
            service: "orders".into(),
            binding: "binding.db[\"blue\"]".into(),
            generation: u64::MAX,
            receiver: "abc".into(),
            attenuate: Attenuate {
                connections_max: Some(20),
                ..Attenuate::default()
            },
            parent: Some(Generation {
                binding: "binding.all".into(),
                generation: 3,
            }),
        });
        round_trip(&Registration {
            name: "db".into(),
            binding: "binding.db".into(),
            generation: 1,
            expose: vec![Expose::unix("/run/x"), Expose::tcp("127.0.0.1:1")],
        });
        round_trip(&Register {
            protocol: PROTOCOL,
            locator: named(b"").peer,
            join_sequence: 3,
            version: "0.1.0".into(),
        });
        let registered = Registered {
            machine: "machine.db".into(),
            join_sequence: 4,
            expects: vec![],
            exposes: BTreeMap::new(),
        };
        let reply = RegisterReply {
            registered,
            presence: named(b"secret"),
        };
        let back = RegisterReply::from_passable(&reply.to_passable()).unwrap();
        assert_eq!(
            (back.registered, back.presence),
            (reply.registered, reply.presence)
        );
    }

    #[test]
    fn services_and_rights_that_are_not_known_are_refused() {
        let read = |json: &str| {
            let value = json_to_passable(serde_json::from_str(json).unwrap());
            let service = from_passable::<ServiceSpec>("service", &value).map(|_| ());
            service.map_err(|error| error.why)
        };
        assert_eq!(read(r#"{"tcp":"h:1","unix":null,"type":null}"#), Ok(()));
        for wrong in [
            "{}",
            r#"{"tcp":"h:1","unix":"/x"}"#,
            r#"{"postgres":{}}"#,
            r#"{"smtp":{}}"#,
            "[]",
            "7",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let wider = Passable::Struct(Struct::new().with("tables", "orders"));
        assert!(from_passable::<Attenuate>("attenuate", &wider).is_err());
    }
}
