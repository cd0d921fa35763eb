//! Addresses: what a declaration, a row or a step is about.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A declared name: a letter or `_`, then letters, digits, `_` or `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The most bytes a name may have: names become file names and label parts.
    pub const BYTES_MAX: usize = 63;

    /// Returns the name, or what is wrong with it.
    ///
    /// # Errors
    /// When the text is empty, too long, or has a character that a name cannot have.
    pub fn new(text: &str) -> Result<Self, ParseAddressError> {
        let mut bytes = text.bytes();
        let head = bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let tail = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if head && tail && text.len() <= Self::BYTES_MAX {
            Ok(Self(crate::shared::shared(text)))
        } else {
            Err(ParseAddressError {
                text: text.into(),
                expected: Self::RULE,
            })
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    const RULE: &'static str =
        "a name of at most 63 letters, digits, `_` or `-` that starts with a letter or `_`";
}

/// Which of a block's instances: made by `count` or by `for_each`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `[0]`, from `count`.
    Index(u64),
    /// `["blue"]`, from `for_each`.
    Text(Arc<str>),
}

/// One instance of a named block: `web`, `web[0]`, `web["blue"]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    /// The block's label.
    pub name: Name,
    /// The instance's key where the block has `count` or `for_each`.
    pub key: Option<Key>,
}

/// What a declaration, a row or a step is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// `machine.web["blue"]`
    Machine(Instance),
    /// `machine.db.service.orders`
    Service {
        /// The machine that offers it.
        machine: Instance,
        /// The service's name on that machine.
        service: Name,
    },
    /// `binding.db["blue"]`
    Binding(Instance),
    /// `output.url`
    Output(Name),
}

/// Why a text is not a name or an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseAddressError {
    text: String,
    expected: &'static str,
}

impl Address {
    /// Returns the address of a machine.
    pub fn machine(name: Name, key: Option<Key>) -> Self {
        Self::Machine(Instance { name, key })
    }

    /// Returns the address of a binding.
    pub fn binding(name: Name, key: Option<Key>) -> Self {
        Self::Binding(Instance { name, key })
    }

    /// Returns the machine that this address is, or that offers it.
    pub fn as_machine(&self) -> Option<&Instance> {
        match self {
            Self::Machine(machine) | Self::Service { machine, .. } => Some(machine),
            Self::Binding(_) | Self::Output(_) => None,
        }
    }

    /// Returns the word for this kind of thing: `machine`, `service`, `binding`, `output`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Machine(_) => "machine",
            Self::Service { .. } => "service",
            Self::Binding(_) => "binding",
            Self::Output(_) => "output",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Name {
    type Err = ParseAddressError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "[{index}]"),
            // JSON's string syntax, so that quotes and control characters survive the round trip.
            Self::Text(text) => {
                write!(f, "[{}]", serde_json::Value::String(text.to_string()))
            }
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, "{key}"))
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(instance) => write!(f, "machine.{instance}"),
            Self::Service { machine, service } => write!(f, "machine.{machine}.service.{service}"),
            Self::Binding(instance) => write!(f, "binding.{instance}"),
            Self::Output(name) => write!(f, "output.{name}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Instance {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseAddressError {
            text: text.into(),
            expected: "an instance such as `web`, `web[0]` or `web[\"blue\"]`",
        };
        let Some(open) = text.find('[') else {
            return Ok(Self {
                name: Name::new(text)?,
                key: None,
            });
        };
        let name = Name::new(&text[..open])?;
        let inner = text[open + 1..].strip_suffix(']').ok_or_else(bad)?;
        let key = if inner.starts_with('"') {
            let key: String = serde_json::from_str(inner).map_err(|_| bad())?;
            Key::Text(crate::shared::shared(&key))
        } else if inner.bytes().all(|b| b.is_ascii_digit()) {
            Key::Index(inner.parse().map_err(|_| bad())?)
        } else {
            return Err(bad());
        };
        Ok(Self {
            name,
            key: Some(key),
        })
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseAddressError {
            text: text.into(),
            expected: "an address such as `machine.db`, `machine.web[\"a\"].service.http` \
                       or `binding.db`",
        };
        let (kind, rest) = text.split_once('.').ok_or_else(bad)?;
        match kind {
            "machine" => {
                // A key may itself hold `.service.`, so the split is the last one after the key.
                let after_key = rest.rfind(']').map_or(0, |at| at + 1);
                match rest[after_key..].split_once(".service.") {
                    Some((head, service)) => Ok(Self::Service {
                        machine: rest[..after_key + head.len()].parse()?,
                        service: Name::new(service)?,
                    }),
                    None => Ok(Self::Machine(rest.parse()?)),
                }
            }
            "binding" => Ok(Self::Binding(rest.parse()?)),
            "output" => Ok(Self::Output(Name::new(rest)?)),
            _ => Err(bad()),
        }
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Name, Instance, Address);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn instance() -> impl Strategy<Value = Instance> {
        let name = "[a-z_][a-z0-9_-]{0,20}".prop_map(|text| Name::new(&text).expect("BUG: a name"));
        let key = prop_oneof![
            any::<u64>().prop_map(Key::Index),
            any::<String>().prop_map(|text| Key::Text(text.into())),
        ];
        (name, proptest::option::of(key)).prop_map(|(name, key)| Instance { name, key })
    }

    proptest! {
        #[test]
        fn an_address_survives_its_text(machine in instance(), service in "[a-z]{1,9}") {
            let service = Name::new(&service).expect("a name");
            for address in [
                Address::Machine(machine.clone()),
                Address::Binding(machine.clone()),
                Address::Service { machine: machine.clone(), service },
            ] {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Address>();
            let _ = format!("machine.{text}").parse::<Address>();
        }
    }

    #[test]
    fn a_bad_name_says_what_a_name_is() {
        let error = "machine.9lives".parse::<Address>().expect_err("not a name");
        assert_eq!(
            error.to_string(),
            "\"9lives\" is not a name of at most 63 letters, digits, `_` or `-` that starts with \
             a letter or `_`"
        );
    }
}
