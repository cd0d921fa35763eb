//! The driver over real sockets.

mod hostile;
mod sessions;
mod support;
