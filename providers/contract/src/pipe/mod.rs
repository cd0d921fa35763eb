//! A provider in a process of its own, over its standard input and output.
//!
//! Each line is one JSON object; `docs/provider-protocol.schema.json` says what they hold, and
//! `docs/plugins.md` how to write a plugin. gobs asks, `{"id": 2, "method": "find", "deadline_s":
//! 300, "params": {..}}`, and the plugin answers each request once, in any order, with
//! `{"id": 2, "result": {..}}` or `{"id": 2, "error": {..}}`; before that it may say how far it
//! is, `{"id": 2, "progress": "booting"}`. The first request is `hello`, then `configure`, then
//! the verbs of [`Provider`](crate::Provider); `cancel` says that nobody waits for an answer any
//! more. The end of its input is the end of a plugin.

mod client;
mod conceal;
mod process;
mod serve;
mod wire;

pub use client::{Client, StartError};
pub use serve::serve;
pub use wire::{LINE_BYTES_MAX, VERSION};
