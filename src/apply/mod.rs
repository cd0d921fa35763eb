//! Apply: walks a plan's steps, every effect behind an intent on disk.

mod event;

pub use event::{Event, Summary, Verb};
