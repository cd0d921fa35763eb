//! Configuration × snapshot × schemas → [`Plan`]: a graph of steps that leaves nothing to decide.
//!
//! Planning is pure: no I/O, no clock, no provider. The same arguments give the same plan.

mod step;

pub use step::{
    Action, Because, Counts, Drift, DriftKind, DriftedAttribute, Grant, Held, Options,
    OutputChange, Plan, Step, StepId,
};
