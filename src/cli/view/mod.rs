//! What people see. Everything here is a pure function to text with colours in it; the
//! [`Terminal`](super::terminal::Terminal) takes the colours away where they are not wanted.

pub mod apply;
pub mod diagnostic;
mod nested;
pub mod plan;
pub mod state;
pub mod status;
pub(super) mod text;
mod value;
pub(super) mod who;
