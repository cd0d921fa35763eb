//! How programs on a machine see a binding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The permissions of a socket and of files that name none: their owner's alone.
pub const MODE_DEFAULT: u32 = 0o600;

/// One way for programs on the machine to reach a binding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawExpose", into = "RawExpose")]
pub struct Expose {
    /// Where it is listened. Default: a unix socket in the binding's directory.
    pub place: Option<Place>,
    /// The user who owns the socket and the files, by name or number. Default: the hob's own.
    pub user: Option<String>,
    /// Their group, by name or number. Default: the user's own.
    pub group: Option<String>,
    /// The permissions of the socket; files get the same without those to execute. Default:
    /// [`MODE_DEFAULT`].
    pub mode: Option<u32>,
    /// A systemd unit that gets the environment, and is restarted when that changes.
    pub unit: Option<String>,
    /// Variables of the environment, each with the file of the binding's directory that it holds.
    pub env: BTreeMap<String, String>,
}

/// Where a binding is listened for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// On a unix socket at this path.
    Unix(PathBuf),
    /// On TCP at `host:port`.
    Tcp(String),
}

/// As [`Expose`] is written. What is not known here is refused: it may be a condition.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpose {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unix: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
}

impl Expose {
    /// Returns a unix socket at this path.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self {
            place: Some(Place::Unix(path.into())),
            ..Self::default()
        }
    }

    /// Returns a TCP listener at `host:port`.
    pub fn tcp(address: impl Into<String>) -> Self {
        Self {
            place: Some(Place::Tcp(address.into())),
            ..Self::default()
        }
    }
}

/// Returns the names of the files that a binding has, by its service's kind and how it is exposed.
pub fn entry_names(kind: &str, is_tcp: bool) -> &'static [&'static str] {
    match (kind, is_tcp) {
        ("postgres", true) => &[
            "database", "host", "port", "provider", "type", "uri", "username",
        ],
        ("postgres", false) => &[
            "database", "host", "path", "port", "provider", "type", "uri", "username",
        ],
        ("secret", _) => &["path", "provider", "type"],
        ("sturdyref", _) => &["provider", "type"],
        (_, true) => &["host", "port", "provider", "type", "uri"],
        (_, false) => &["path", "provider", "type", "uri"],
    }
}

/// Reads permissions as people write them: three or four octal digits, as in `0640`.
pub fn mode(text: &str) -> Option<u32> {
    let octal = text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(text, 8).ok()?;
    (octal && (3..=4).contains(&text.len()) && mode <= 0o777).then_some(mode)
}

impl TryFrom<RawExpose> for Expose {
    type Error = &'static str;

    fn try_from(raw: RawExpose) -> Result<Self, Self::Error> {
        let place = match (raw.unix, raw.tcp) {
            (Some(path), None) => Some(Place::Unix(path)),
            (None, Some(address)) => Some(Place::Tcp(address)),
            (None, None) => None,
            (Some(_), Some(_)) => return Err("an expose has one of unix and tcp"),
        };
        let mode = match raw.mode {
            Some(text) => Some(mode(&text).ok_or("a mode is octal, as 0640")?),
            None => None,
        };
        let variable = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
        if !raw.env.keys().all(variable) {
            return Err("a variable's name is neither empty nor contains =");
        }
        Ok(Self {
            place,
            user: raw.user,
            group: raw.group,
            mode,
            unit: raw.unit,
            env: raw.env,
        })
    }
}

impl From<Expose> for RawExpose {
    fn from(expose: Expose) -> Self {
        let (unix, tcp) = match expose.place {
            Some(Place::Unix(path)) => (Some(path), None),
            Some(Place::Tcp(address)) => (None, Some(address)),
            None => (None, None),
        };
        Self {
            unix,
            tcp,
            user: expose.user,
            group: expose.group,
            mode: expose.mode.map(|mode| format!("{mode:04o}")),
            unit: expose.unit,
            env: expose.env,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposes_are_read_as_written_and_unknown_wishes_are_refused() {
        let text = r#"{"unix":"/run/s","user":"app","mode":"0660","unit":"app.service","env":{"URL":"uri"}}"#;
        let expose: Expose = serde_json::from_str(text).unwrap();
        assert_eq!(expose.mode, Some(0o660));
        assert_eq!(serde_json::to_string(&expose).unwrap(), text);
        assert_eq!(
            serde_json::from_str::<Expose>("{}").unwrap(),
            Expose::default()
        );
        for wrong in [
            r#"{"unix":"/s","tcp":"h:1"}"#,
            r#"{"mode":"u+x"}"#,
            r#"{"mode":"7777"}"#,
            r#"{"env":{"A=B":"uri"}}"#,
            r#"{"label":"x"}"#,
        ] {
            assert!(serde_json::from_str::<Expose>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            [mode("600"), mode("+60"), mode("9"), mode("00600")],
            [Some(0o600), None, None, None]
        );
    }
}
