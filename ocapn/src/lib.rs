#![doc = include_str!("../README.md")]
#![doc = "# Inside"]
//!
//! `passable` is the data model and `syrup` its encoding, `captp` one session without I/O, `vat`
//! the objects and sessions of one peer. A driver (`peer`) brings sockets and tasks.

pub mod captp;
mod caretaker;
mod certificate;
#[expect(clippy::disallowed_methods, reason = "keys are generated here")]
mod identity;
mod locator;
#[expect(
    clippy::disallowed_methods,
    reason = "sockets and their tasks live here"
)]
pub mod netlayer;
mod passable;
#[expect(
    clippy::disallowed_methods,
    reason = "the driver spawns, and knows the clock"
)]
mod peer;
#[expect(clippy::disallowed_methods, reason = "correlation ids are random")]
mod report;
#[expect(clippy::disallowed_methods, reason = "swissnums are random")]
mod sturdyrefs;
pub mod syrup;
mod typed;
mod vat;

pub use captp::SessionId;
pub use captp::broken::Broken;
pub use captp::promise::{Promise, Reference, Resolver};
pub use caretaker::Caretaker;
pub use identity::Identity;
pub use locator::{LocatorError, PeerId, PeerLocator, Sturdyref, Swissnum};
pub use netlayer::tls_rpk::{IncomingStream, PublicStream, StreamDialer, TlsRpk, TlsRpkOptions};
pub use netlayer::{DialError, Netlayer};
pub use passable::{ErrorValue, Integer, Opaque, Passable, Struct, Symbol, Tagged};
pub use peer::{
    ConnectError, EnlivenError, Kept, Peer, PeerBuilder, SessionEvent, SessionInspection,
    SturdyrefTable,
};
pub use sturdyrefs::Sturdyrefs;
#[doc(hidden)]
pub use typed::__private;
pub use typed::{
    AnswerOf, FromArgs, FromPassable, IntoArgs, IntoPassable, Methods, Reply, TypedPromise,
    WrongType,
};
pub use vat::{
    Answer, Dialect, Direction, Greet, Inspection, Limits, Object, Opening, Output, Over, Retained,
    Turn, Vat, VatEvent, VatOptions,
};
