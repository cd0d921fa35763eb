//! What a token must be allowed for what is planned.

use gobs_model::Value;
use gobs_provider::Error;

use crate::api::Fail;
use crate::machine::Machines;

/// What every change of a machine needs: its end is told by an event.
const ALWAYS: [&str; 2] = ["linodes:read_write", "events:read_only"];

/// What a machine needs beside that, by the block that it has.
const BLOCKS: [(&str, &str); 3] = [
    ("firewall", "firewall:read_write"),
    ("dns", "domains:read_write"),
    ("volume", "volumes:read_write"),
];

impl Machines {
    /// Returns the scopes that the token lacks; none where the API does not tell what it has.
    pub(crate) async fn lacking(&self, wanted: &[Value]) -> Result<Vec<String>, Error> {
        if self.api.scopes().is_none() {
            // Any token may ask this, and the answer's head says what the token is for.
            match self.api.get("/profile").await {
                Ok(_) | Err(Fail::Refused(_) | Fail::Gone) => {}
                // It is no token for profiles; what it is for was said all the same.
                Err(Fail::Denied(_)) if self.api.scopes().is_some_and(|it| it.contains(':')) => {}
                Err(fail) => return Err(fail.into()),
            }
        }
        let Some(held) = self.api.scopes() else {
            return Ok(Vec::new());
        };
        let blocks = BLOCKS
            .iter()
            .filter(|(name, _)| wanted.iter().any(|it| has(it, name)));
        let needed = ALWAYS.into_iter().chain(blocks.map(|(_, scope)| *scope));
        let lacking = needed.filter(|scope| !allows(&held, scope));
        Ok(lacking.map(|scope| format!("scope {scope}")).collect())
    }
}

/// Returns whether a machine has such a block, or may have one.
fn has(machine: &Value, block: &str) -> bool {
    machine.get(block).is_some_and(|it| {
        let is_empty = it.as_elements().is_some_and(<[_]>::is_empty)
            || it.as_entries().is_some_and(|it| it.is_empty());
        !it.is_null() && !is_empty
    })
}

/// Returns whether scopes, apart by spaces or commas, allow what one of them would.
fn allows(held: &str, needed: &str) -> bool {
    let (area, needs) = needed.split_once(':').unwrap_or((needed, ""));
    let mut held = held.split([' ', ',']).filter(|it| !it.is_empty());
    held.any(|scope| match scope.split_once(':') {
        None => scope == "*",
        Some((of, may)) => {
            (of == area || of == "*") && (may == needs || may == "read_write" || may == "*")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_to_write_is_one_to_read_and_not_the_other_way() {
        for (held, needed, expected) in [
            ("*", "linodes:read_write", true),
            (
                "linodes:read_write events:read_only",
                "events:read_only",
                true,
            ),
            ("events:read_write", "events:read_only", true),
            ("linodes:read_only", "linodes:read_write", false),
            (
                "images:read_write,linodes:read_write",
                "linodes:read_write",
                true,
            ),
            ("", "events:read_only", false),
        ] {
            assert_eq!(allows(held, needed), expected, "{held} for {needed}");
        }
    }
}
