//! CapTP among vats connected in memory, without sockets or tasks.

mod calls;
mod hostile;
mod simulation;
mod support;
