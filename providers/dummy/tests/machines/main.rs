//! The dummy provider on real processes.

mod conformance;
mod crash;
mod faults;
mod host;
mod pipe;
mod schema;
mod verbs;
