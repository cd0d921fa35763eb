//! CapTP among vats connected in memory, without sockets or tasks.

mod by_hand;
mod calls;
mod claims;
mod handoffs;
mod hostile;
mod limits;
mod retained;
mod simulation;
mod support;
