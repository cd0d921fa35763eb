//! What a plan showed is what is done.

use gobs_model::{Path, Value};

use crate::plan::Step;

use super::prepare::{Prepared, about};

/// Refuses a value that differs from what the plan showed where the plan knew it.
pub(super) fn keeps_promise(step: &Step, planned: &Value, real: &Value) -> Prepared<()> {
    match broken_promise(planned, real, &Path::default()) {
        None => Ok(()),
        Some(path) => {
            let detail = format!(
                "The plan showed another value for {path} of {}: what it was made from has \
                 changed since. Nothing was done to it.",
                step.address
            );
            Err(Box::new(
                about(step, "Plan not kept", detail).hint("Plan again."),
            ))
        }
    }
}

fn broken_promise(planned: &Value, real: &Value, at: &Path) -> Option<Path> {
    if planned.is_unknown() {
        return None;
    }
    if let (Some(planned), Some(real)) = (planned.as_entries(), real.as_entries()) {
        if planned.len() != real.len() {
            return Some(at.clone());
        }
        return planned
            .iter()
            .find_map(|(name, planned)| match real.get(name) {
                None => Some(at.join(name)),
                Some(real) => broken_promise(planned, real, &at.join(name)),
            });
    }
    if let (Some(planned), Some(real)) = (planned.as_elements(), real.as_elements()) {
        if planned.len() != real.len() {
            // A set whose elements were unknown may shrink when two turn out to be the same.
            let may_shrink = planned.iter().any(Value::contains_unknown);
            return (!may_shrink).then(|| at.clone());
        }
        let mut pairs = planned.iter().zip(real).enumerate();
        return pairs.find_map(|(i, (planned, real))| broken_promise(planned, real, &at.index(i)));
    }
    (!planned.same(real)).then(|| at.clone())
}
