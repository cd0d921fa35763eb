//! The driver over real sockets.

#![expect(
    clippy::disallowed_methods,
    reason = "tests of the driver use sockets and tasks"
)]

mod bound;
mod hostile;
mod keeping;
mod recovery;
mod sessions;
mod support;
