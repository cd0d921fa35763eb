//! The role of one grant: its name, its keys, and what a program's start-up becomes.

use data_encoding::HEXLOWER;

use super::scram::{Keys, mac};
use super::wire::{Parameters, Report, Startup};
use crate::protocol::{Access, Generation, Postgres};
use crate::service::{GrantSecret, Lease, ServiceError};

/// Letters of a role's name that come from its binding's; a name has 63 in all.
const BINDING_LETTERS_MAX: usize = 32;

/// Parameters of a start-up that are kept: what a client says of itself and of its formats. All
/// else a program can set once it is in, as its role.
const PARAMETERS: [&[u8]; 14] = [
    b"application_name",
    b"client_encoding",
    b"client_min_messages",
    b"datestyle",
    b"intervalstyle",
    b"timezone",
    b"extra_float_digits",
    b"bytea_output",
    b"search_path",
    b"statement_timeout",
    b"lock_timeout",
    b"idle_in_transaction_session_timeout",
    b"default_transaction_isolation",
    b"standard_conforming_strings",
];

/// The role of one grant.
pub(super) struct Role {
    pub(super) name: String,
    pub(super) keys: Keys,
}

impl Role {
    pub(super) fn of(lease: &Lease) -> Self {
        Self {
            name: role_name(&lease.generation, &lease.secret),
            keys: Keys::new(&lease.secret.0),
        }
    }

    /// Returns the start-up that the server gets.
    pub(super) fn startup(&self, spec: &Postgres, version: u32, parameters: Parameters) -> Startup {
        let own = [("user", &self.name), ("database", &spec.database)];
        let mut startup = Startup::new(&own.map(|(name, value)| (name, value.as_str())));
        startup.version = version;
        startup.parameters.extend(parameters);
        startup
    }
}

/// Returns what the role may do, as `gobs.mint` has it.
pub(super) fn access(lease: &Lease) -> Result<&'static str, ServiceError> {
    let refused = |text: &str| Err(ServiceError::Refused(text.into()));
    match (lease.rights.access, lease.rights.schemas.as_deref()) {
        (_, Some([])) => refused("a binding with no schemas could do nothing"),
        (Some(Access::Owner), Some(_)) => refused(
            "access = \"owner\" is to the whole database; with schemas it is \"read\" or \"write\"",
        ),
        (Some(Access::Read), _) => Ok("read"),
        (Some(Access::Write), _) | (None, Some(_)) => Ok("write"),
        (Some(Access::Owner) | None, None) => Ok("owner"),
    }
}

/// Returns the name of a generation's role: for people, and different for each hob, since several
/// may hand out databases of one server.
pub(crate) fn role_name(generation: &Generation, secret: &GrantSecret) -> String {
    let Generation {
        binding,
        generation,
    } = generation;
    let mut letters = String::new();
    for letter in binding.strip_prefix("binding.").unwrap_or(binding).chars() {
        match letter.to_ascii_lowercase() {
            letter @ ('a'..='z' | '0'..='9') => letters.push(letter),
            _ if letters.ends_with('_') => {}
            _ => letters.push('_'),
        }
    }
    letters.truncate(BINDING_LETTERS_MAX);
    let letters = letters.trim_matches('_');
    let own = HEXLOWER.encode(&mac(&secret.0, &[b"Role"])[..4]);
    format!("gobs_{letters}_{generation}_{own}")
}

impl Startup {
    /// Returns the parameters that a program may choose itself.
    pub(super) fn narrowed(&self) -> Result<Parameters, Report> {
        let off: [&[u8]; 4] = [b"false", b"off", b"no", b"0"];
        let mut kept = Vec::new();
        for (name, value) in &self.parameters {
            if name == b"replication" && !off.contains(&&*value.to_ascii_lowercase()) {
                let text = "a binding gives no replication connections";
                return Err(Report::fatal("0A000", text));
            }
            // Names of settings have no case; protocol extensions begin so.
            let known = PARAMETERS.contains(&&*name.to_ascii_lowercase());
            if known || name.starts_with(b"_pq_.") {
                kept.push((name.clone(), value.clone()));
            }
        }
        Ok(kept)
    }
}
