//! gobs: declares machines and the bindings between their services, and makes them so.

pub mod apply;
pub mod plan;
