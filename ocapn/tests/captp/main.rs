//! CapTP among vats connected in memory, without sockets or tasks.

mod calls;
mod hostile;
mod limits;
mod simulation;
mod support;
