//! Real hobs on this host, with a boss made of the same parts.

mod bindings;
mod enrollment;
mod exposing;
mod http;
mod metadata;
mod near;
mod objects;
mod postgres;
mod programs;
mod redis;
mod revocation;
mod secret;
mod support;
mod units;

/// Returns whether hobs stay apart, as those of two hosts do: see `tests/apart`.
fn apart() -> bool {
    false
}
