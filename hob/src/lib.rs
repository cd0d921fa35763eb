//! The agent of gobs, both halves.
//!
//! On a machine, [`run`] keeps the agent running: it claims its place with the boss, offers the
//! machine's services as capabilities, and gives the machine's programs the bindings it holds.
//! Beside the boss, [`server`] is what a machine looks like from there. [`protocol`] is what the
//! two say to each other; [`layout`] is what a provider has to know.

pub mod layout;
pub mod protocol;
pub mod server;
pub mod store;
