//! The driver over real sockets.

mod hostile;
mod recovery;
mod sessions;
mod support;
