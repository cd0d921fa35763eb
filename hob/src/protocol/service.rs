//! What services are, and how a grant of one is narrowed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::service::{http, redis};

/// What a service is: as in the language, `{tcp = "127.0.0.1:5432"}` or
/// `{postgres = {database = "orders"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawService", into = "RawService")]
pub struct ServiceSpec {
    /// What it speaks, and how it is reached from its machine.
    pub kind: ServiceKind,
    /// What programs are told it is (the file `type`).
    pub r#type: Option<String>,
}

/// What a service speaks, and how it is reached from its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Bytes, by TCP at `host:port`.
    Tcp(String),
    /// Bytes, by a unix socket at this path.
    Unix(PathBuf),
    /// A database of a PostgreSQL server.
    Postgres(Postgres),
    /// A Redis server.
    Redis(Redis),
    /// An HTTP server.
    Http(Http),
    /// A secret that is delivered to the receiver's memory.
    Secret(Secret),
    /// Any OCapN object, by its sturdyref as a URI: a secret.
    Sturdyref(String),
}

/// A database of a PostgreSQL server on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// The database.
    pub database: String,
    /// Whether it is made where there is none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// The directory of the server's sockets, or the socket itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The role that the hob is known by to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_user: Option<String>,
}

/// A Redis server on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The server's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// A file on the machine with the name and password of its administrator. Default: the server
    /// takes the hob for its administrator without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_file: Option<PathBuf>,
}

/// An HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Where it listens: `host:port`.
    pub address: String,
    /// A file on the machine with the header that authorises requests: `name: value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_file: Option<PathBuf>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Secret {
    /// The contents of a file.
    File(PathBuf),
    /// What a command writes: a program and its arguments.
    Command(Vec<String>),
}

/// As [`ServiceSpec`] is written. What is not known here is refused: it may be a condition.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unix: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    postgres: Option<Postgres>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redis: Option<Redis>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http: Option<Http>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sturdyref: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
}

impl TryFrom<RawService> for ServiceSpec {
    type Error = &'static str;

    fn try_from(raw: RawService) -> Result<Self, Self::Error> {
        let mut kinds = [
            raw.tcp.map(ServiceKind::Tcp),
            raw.unix.map(ServiceKind::Unix),
            raw.postgres.map(ServiceKind::Postgres),
            raw.redis.map(ServiceKind::Redis),
            raw.http.map(ServiceKind::Http),
            raw.secret.map(ServiceKind::Secret),
            raw.sturdyref.map(ServiceKind::Sturdyref),
        ]
        .into_iter()
        .flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(Self {
                kind,
                r#type: raw.r#type,
            }),
            _ => Err("a service has exactly one kind"),
        }
    }
}

impl From<ServiceSpec> for RawService {
    fn from(spec: ServiceSpec) -> Self {
        let mut raw = Self {
            r#type: spec.r#type,
            ..Self::default()
        };
        match spec.kind {
            ServiceKind::Tcp(address) => raw.tcp = Some(address),
            ServiceKind::Unix(path) => raw.unix = Some(path),
            ServiceKind::Postgres(postgres) => raw.postgres = Some(postgres),
            ServiceKind::Redis(redis) => raw.redis = Some(redis),
            ServiceKind::Http(http) => raw.http = Some(http),
            ServiceKind::Secret(secret) => raw.secret = Some(secret),
            ServiceKind::Sturdyref(uri) => raw.sturdyref = Some(uri),
        }
        raw
    }
}

/// The kinds whose grants leave something at the server: [`ServiceKind::mints`].
pub const MINTING: [&str; 2] = ["postgres", "redis"];

impl ServiceSpec {
    /// Returns the service as anyone may see it: a sturdyref without its secret part.
    #[must_use]
    pub fn shown(&self) -> Self {
        let kind = match &self.kind {
            ServiceKind::Sturdyref(uri) => {
                let end = uri.find("/s/").map_or(0, |at| at + "/s/".len());
                ServiceKind::Sturdyref(format!("{}…", &uri[..end]))
            }
            other => other.clone(),
        };
        Self {
            kind,
            r#type: self.r#type.clone(),
        }
    }
}

impl ServiceKind {
    /// Returns the word for it, in the language and on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Unix(_) => "unix",
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
            Self::Http(_) => "http",
            Self::Secret(_) => "secret",
            Self::Sturdyref(_) => "sturdyref",
        }
    }

    /// Returns whether a grant leaves something at the server that must be taken away again: a
    /// role, a user.
    pub fn mints(&self) -> bool {
        MINTING.contains(&self.name())
    }

    /// Returns whether both are the same server, however it is administered: what a grant has left
    /// at one is at the other.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Redis(one), Self::Redis(other)) => one.socket == other.socket,
            (Self::Postgres(one), Self::Postgres(other)) => {
                (&one.socket, &one.database) == (&other.socket, &other.database)
            }
            (one, other) => one == other,
        }
    }

    /// Returns how many streams a grant may have over its limit of connections, since not each is
    /// one: a PostgreSQL client cancels a statement by a connection of its own, and must be able to
    /// when all others are in use. The kind then tells them apart.
    pub(crate) fn streams_spare(&self) -> usize {
        match self {
            Self::Postgres(_) => 8,
            _ => 0,
        }
    }

    /// Checks that a grant of this kind can be held to these limits.
    ///
    /// # Errors
    /// The first limit that cannot be enforced.
    pub fn enforces(&self, attenuate: &Attenuate) -> Result<(), Unenforceable> {
        let able = enforced_by(self.name());
        match attenuate.asked().into_iter().find(|it| !able.contains(it)) {
            None => Ok(()),
            Some(limit) => Err(Unenforceable {
                kind: self.name(),
                limit,
            }),
        }
    }
}

/// Checks what a limit lists, as far as that goes without a server.
///
/// # Errors
/// What is wrong, for people: "cannot have …".
pub fn check_limit(kind: &str, limit: &str, listed: &[String]) -> Result<(), String> {
    let mut rights = Attenuate::default();
    let place = match limit {
        "keys" => &mut rights.keys,
        "commands" => &mut rights.commands,
        "channels" => &mut rights.channels,
        "methods" => &mut rights.methods,
        "paths" => &mut rights.paths,
        _ => return Ok(()),
    };
    *place = Some(listed.to_vec());
    check_limits(kind, &rights).map_err(|why| {
        why.strip_prefix(limit)
            .unwrap_or(&why)
            .trim_start()
            .to_owned()
    })
}

/// Checks limits as they are together, as far as that goes without a server.
///
/// # Errors
/// Which of them is wrong, and why, for people: "cannot have …".
pub fn check_together(kind: &str, rights: &Attenuate) -> Result<(), (String, String)> {
    let split = |text: String| match text.split_once(' ') {
        Some((limit, why)) => (limit.to_owned(), why.to_owned()),
        None => (text, String::new()),
    };
    check_limits(kind, rights).map_err(split)
}

/// Checks what limits list, as far as that goes without a server.
///
/// # Errors
/// What is wrong, for people; it begins with the limit's name.
pub(crate) fn check_limits(kind: &str, rights: &Attenuate) -> Result<(), String> {
    match kind {
        "postgres" => postgres_limits(rights),
        "redis" => redis::check_rights(rights),
        "http" => http::check_rights(rights),
        _ => Ok(()),
    }
}

/// A role that owns the database has all of its schemas.
fn postgres_limits(rights: &Attenuate) -> Result<(), String> {
    match rights.access {
        Some(Access::Owner) if rights.schemas.is_some() => {
            Err("schemas cannot narrow access = \"owner\", which has the whole database".into())
        }
        _ => Ok(()),
    }
}

/// Returns the limits that a kind of service can hold its grants to, by the kind's name.
pub fn enforced_by(kind: &str) -> &'static [&'static str] {
    match kind {
        "tcp" | "unix" => &["connections_max", "expires"],
        "postgres" => &["connections_max", "expires", "access", "schemas"],
        "redis" => &["connections_max", "expires", "keys", "commands", "channels"],
        "http" => &["connections_max", "expires", "methods", "paths"],
        "sturdyref" => &["expires", "methods"],
        // A secret has no connections; it is given or not.
        _ => &["expires"],
    }
}

/// What a kind of service cannot enforce is refused, never ignored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("services of kind {kind} cannot enforce {limit}")]
pub struct Unenforceable {
    /// The kind.
    pub kind: &'static str,
    /// The limit, as it is written.
    pub limit: &'static str,
}

/// What a role may do with a database. Each includes what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read tables.
    Read,
    /// Change what is in tables.
    Write,
    /// Make, change and drop tables.
    Owner,
}

/// How a grant is narrower than its service, or than the grant it was made from. What cannot be
/// enforced is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attenuate {
    /// Streams at one time. Default: no limit but the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u32>,
    /// When it ends, in seconds since 1970 by the exporter's clock. Default: when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// postgres: what the role may do. Default: [`Access::Owner`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// postgres: in which schemas. Default: all of the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schemas: Option<Vec<String>>,
    /// redis: on keys that match one of these patterns. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// redis: with these commands. Default: all that are not the administrator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Vec<String>>,
    /// redis: on channels that match one of these patterns. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// http: requests with these methods; sturdyref: calls of these methods. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// http: requests of paths that match one of these patterns. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
}

/// A grant that was to be made from another one asks for more than that one has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} asks for more than the grant it is made from has")]
pub struct Wider {
    /// The limit, as it is written.
    pub limit: &'static str,
}

impl Attenuate {
    /// Returns the names of the limits that are set.
    pub fn asked(&self) -> Vec<&'static str> {
        [
            ("connections_max", self.connections_max.is_some()),
            ("expires", self.expires.is_some()),
            ("access", self.access.is_some()),
            ("schemas", self.schemas.is_some()),
            ("keys", self.keys.is_some()),
            ("commands", self.commands.is_some()),
            ("channels", self.channels.is_some()),
            ("methods", self.methods.is_some()),
            ("paths", self.paths.is_some()),
        ]
        .into_iter()
        .filter_map(|(limit, set)| set.then_some(limit))
        .collect()
    }

    /// Returns the limits of a grant made from one that has these: its own where it has some, and
    /// these where it does not say.
    ///
    /// # Errors
    /// When it asks for more. It is a mistake of whoever asks, so it is not cut silently.
    pub fn narrowed(&self, own: &Self) -> Result<Self, Wider> {
        // Who has some keys has no channels but those that are listed.
        let asked = own.channels.as_ref().is_some_and(|all| !all.is_empty());
        if asked && self.keys.is_some() && self.channels.is_none() {
            return Err(Wider { limit: "channels" });
        }
        let same = |held: &str, asked: &str| held == asked;
        Ok(Self {
            connections_max: within(
                "connections_max",
                &self.connections_max,
                &own.connections_max,
                |held, asked| asked <= held,
            )?,
            expires: within("expires", &self.expires, &own.expires, |held, asked| {
                asked <= held
            })?,
            access: within("access", &self.access, &own.access, |held, asked| {
                asked <= held
            })?,
            schemas: all_within("schemas", &self.schemas, &own.schemas, same)?,
            keys: all_within("keys", &self.keys, &own.keys, covers)?,
            commands: all_within("commands", &self.commands, &own.commands, |held, asked| {
                held.eq_ignore_ascii_case(asked)
            })?,
            channels: all_within("channels", &self.channels, &own.channels, covers)?,
            methods: all_within("methods", &self.methods, &own.methods, same)?,
            paths: all_within("paths", &self.paths, &own.paths, covers)?,
        })
    }
}

fn within<T: Clone>(
    limit: &'static str,
    held: &Option<T>,
    own: &Option<T>,
    fits: impl Fn(&T, &T) -> bool,
) -> Result<Option<T>, Wider> {
    match (held, own) {
        (Some(held), Some(own)) if !fits(held, own) => Err(Wider { limit }),
        (_, Some(own)) => Ok(Some(own.clone())),
        (held, None) => Ok(held.clone()),
    }
}

fn all_within(
    limit: &'static str,
    held: &Option<Vec<String>>,
    own: &Option<Vec<String>>,
    covers: impl Fn(&str, &str) -> bool,
) -> Result<Option<Vec<String>>, Wider> {
    within(limit, held, own, |held, own| {
        own.iter()
            .all(|asked| held.iter().any(|held| covers(held, asked)))
    })
}

/// Returns whether everything that the pattern `asked` matches is matched by `held`: surely so, or
/// not. Only a final `*` is understood; other wildcards fit what is written the same.
fn covers(held: &str, asked: &str) -> bool {
    let wild = |text: &str| text.contains(['*', '?', '[', ']', '\\']);
    match held.strip_suffix('*') {
        _ if held == asked => true,
        Some(prefix) if !wild(prefix) => asked.starts_with(prefix),
        _ => false,
    }
}

impl std::fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Postgres(postgres) => write!(f, "PostgreSQL's {}", postgres.database),
            Self::Http(http) => write!(f, "http://{}", http.address),
            Self::Redis(Redis {
                socket: Some(path), ..
            }) => write!(f, "Redis at {}", path.display()),
            Self::Redis(_) => f.write_str("Redis"),
            Self::Secret(Secret::File(path)) => write!(f, "the file {}", path.display()),
            Self::Secret(Secret::Command(argv)) => {
                write!(f, "the command {}", argv.first().map_or("", String::as_str))
            }
            Self::Sturdyref(_) => f.write_str("an object behind a sturdyref"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(json: &str) -> Result<ServiceSpec, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_is_read_back_and_tells_no_secret() {
        for json in [
            r#"{"tcp":"127.0.0.1:5432","type":"postgresql"}"#,
            r#"{"unix":"/run/s"}"#,
            r#"{"postgres":{"database":"o","create":true,"socket":"/run","admin_user":"g"}}"#,
            r#"{"postgres":{"database":"orders"}}"#,
            r#"{"redis":{}}"#,
            r#"{"http":{"address":"127.0.0.1:80","header_file":"/etc/key"}}"#,
            r#"{"secret":{"file":"/etc/key"}}"#,
            r#"{"secret":{"command":["pass","x"]}}"#,
            r#"{"sturdyref":"ocapn://abc.tls-rpk/s/c2VjcmV0"}"#,
        ] {
            let read = spec(json).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), json);
            assert!(!format!("{} {:?}", read.kind, read.shown()).contains("c2VjcmV0"));
        }
        for wrong in [
            "{}",
            "[]",
            r#"{"tcp":"h:1","unix":"/x"}"#,
            r#"{"postgres":{}}"#,
            r#"{"redis":{"password":"x"}}"#,
            r#"{"secret":{"file":"/x","command":["y"]}}"#,
            r#"{"smtp":{}}"#,
        ] {
            assert!(spec(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_kind_cannot_enforce_is_named() {
        let read = Attenuate {
            access: Some(Access::Read),
            ..Attenuate::default()
        };
        let postgres = spec(r#"{"postgres":{"database":"orders"}}"#).unwrap();
        assert_eq!(postgres.kind.enforces(&read), Ok(()));
        let redis = spec(r#"{"redis":{}}"#).unwrap();
        assert_eq!(
            redis.kind.enforces(&read).unwrap_err().to_string(),
            "services of kind redis cannot enforce access"
        );
    }

    #[test]
    fn patterns_cover_what_they_surely_match() {
        for (held, asked, fits) in [
            ("*", "anything*", true),
            ("app:*", "app:users:*", true),
            ("app:*", "app:*", true),
            ("app:*", "app:?", true),
            ("app:*", "ap*", false),
            ("app:*", "*", false),
            ("app:users", "app:users", true),
            ("app:users", "app:users2", false),
            ("a[bc]*", "ab*", false),
            // One star, and a class that is still open: not a beginning with anything after it.
            ("a\\*", "a\\bc", false),
            ("a[*", "a[bc]", false),
            ("a?*", "a?*", true),
        ] {
            assert_eq!(covers(held, asked), fits, "{held} {asked}");
        }
    }

    fn limits() -> impl Strategy<Value = Attenuate> {
        let names = || prop::option::of(prop::collection::vec("[ab]{0,2}[*]?", 0..3));
        let words = || prop::option::of(prop::collection::vec("[aAb]", 0..3));
        let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Owner)];
        (
            prop::option::of(1..5_u32),
            prop::option::of(0..5_u64),
            prop::option::of(access),
            (words(), words(), words()),
            (names(), names(), names()),
        )
            .prop_map(|(connections_max, expires, access, words, names)| {
                let (schemas, commands, methods) = words;
                let (keys, channels, paths) = names;
                Attenuate {
                    connections_max,
                    expires,
                    access,
                    schemas,
                    keys,
                    commands,
                    channels,
                    methods,
                    paths,
                }
            })
    }

    /// A glob with `*` only, as the patterns above have it.
    fn matches(pattern: &str, text: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == text,
            Some((prefix, rest)) => text
                .strip_prefix(prefix)
                .is_some_and(|text| (0..=text.len()).any(|at| matches(rest, &text[at..]))),
        }
    }

    proptest! {
        /// S7: whatever a chain of grants asks for, each may do no more than the one before it.
        #[test]
        fn s7_rights_of_a_child_are_within_its_parents(
            chain in prop::collection::vec(limits(), 2..8),
        ) {
            let (first, rest) = chain.split_first().unwrap();
            let mut parent = first.clone();
            for own in rest {
                let Ok(child) = parent.narrowed(own) else { continue };
                let most = |limit: Option<u32>| limit.unwrap_or(u32::MAX);
                prop_assert!(most(child.connections_max) <= most(parent.connections_max));
                let end = |it: &Attenuate| it.expires.unwrap_or(u64::MAX);
                prop_assert!(end(&child) <= end(&parent));
                let access = |it: &Attenuate| it.access.unwrap_or(Access::Owner);
                prop_assert!(access(&child) <= access(&parent));
                for text in ["", "a", "A", "b", "ab", "ba", "aab", "b*"] {
                    let may = |it: &Attenuate| {
                        let globs = |list: &[String]| list.iter().any(|it| matches(it, text));
                        let names = |list: &[String]| list.iter().any(|it| it == text);
                        let words =
                            |list: &[String]| list.iter().any(|it| it.eq_ignore_ascii_case(text));
                        // Who has some keys has no channels but those that are listed.
                        let channels = match (&it.channels, &it.keys) {
                            (None, keys) => keys.is_none(),
                            (Some(list), _) => globs(list),
                        };
                        [
                            it.keys.as_deref().is_none_or(globs),
                            it.paths.as_deref().is_none_or(globs),
                            it.schemas.as_deref().is_none_or(names),
                            it.methods.as_deref().is_none_or(names),
                            it.commands.as_deref().is_none_or(words),
                            channels,
                        ]
                    };
                    let both = may(&child).into_iter().zip(may(&parent));
                    for (child_may, parent_may) in both {
                        prop_assert!(
                            !child_may || parent_may,
                            "{text}: {child:?} of {parent:?}"
                        );
                    }
                }
                parent = child;
            }
        }
    }
}
