//! gobs: declarative machines and the bindings between their services.

pub mod apply;
pub mod boot;
pub mod boss;
pub mod cli;
pub mod clock;
pub mod doctor;
pub mod import;
pub mod lang;
mod live;
pub mod plan;
pub mod plugins;
pub mod project;
pub mod refresh;
mod rights;
pub mod run;
