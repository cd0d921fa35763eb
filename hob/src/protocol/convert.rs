//! How the messages travel: their data as passable values, and the arguments of calls.

use ocapn::{Passable, Reference, Struct, Sturdyref};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Granted, Malformed, RegisterReply};

/// Returns a message's data as it travels.
pub fn to_passable(data: &impl Serialize) -> Passable {
    // The messages have text keys and finite numbers only: this cannot fail.
    json_to_passable(serde_json::to_value(data).unwrap_or_default())
}

/// Reads a message's data.
pub fn from_passable<T: DeserializeOwned>(
    what: &'static str,
    value: &Passable,
) -> Result<T, Malformed> {
    let json = passable_to_json(value).map_err(|why| Malformed { what, why })?;
    serde_json::from_value(json).map_err(|error| Malformed {
        what,
        why: error.to_string(),
    })
}

pub(crate) fn json_to_passable(value: serde_json::Value) -> Passable {
    use serde_json::Value;
    match value {
        Value::Null => Passable::Null,
        Value::Bool(b) => b.into(),
        Value::Number(n) => match (n.as_u64(), n.as_i64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => n.as_f64().unwrap_or_default().into(),
        },
        Value::String(text) => text.into(),
        Value::Array(values) => Passable::List(values.into_iter().map(json_to_passable).collect()),
        Value::Object(fields) => Passable::Struct(
            fields
                .into_iter()
                .map(|(key, value)| (key, json_to_passable(value)))
                .collect(),
        ),
    }
}

/// The depth is bounded by that of a message, which the session limits.
fn passable_to_json(value: &Passable) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        Passable::Null | Passable::Undefined => Value::Null,
        Passable::Bool(b) => (*b).into(),
        Passable::Int(n) => match (n.to_u64(), n.to_i64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => return Err("an integer is too large".into()),
        },
        Passable::Float64(x) => (*x).into(),
        Passable::String(text) => text.as_str().into(),
        Passable::List(values) => Value::Array(
            values
                .iter()
                .map(passable_to_json)
                .collect::<Result<_, _>>()?,
        ),
        Passable::Struct(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| Ok((key.to_owned(), passable_to_json(value)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => return Err(format!("a {} is no data", other.kind())),
    })
}

impl RegisterReply {
    /// Returns the answer as it travels.
    pub fn to_passable(&self) -> Passable {
        let fields = Struct::new()
            .with("registered", to_passable(&self.registered))
            .with("presence", self.presence.clone());
        Passable::Struct(fields)
    }

    /// Reads the answer.
    pub fn from_passable(value: &Passable) -> Result<Self, Malformed> {
        let what = "register's answer";
        let registered = from_passable(what, field(what, value, "registered")?)?;
        Ok(Self {
            registered,
            presence: sturdyref(what, field(what, value, "presence")?)?,
        })
    }
}

impl Granted {
    /// Returns the answer as it travels.
    pub fn to_passable(&self) -> Passable {
        let fields = Struct::new()
            .with("grant", &self.grant)
            .with("sturdyref", self.sturdyref.clone());
        Passable::Struct(fields)
    }

    /// Reads the answer.
    pub fn from_passable(value: &Passable) -> Result<Self, Malformed> {
        let what = "grant's answer";
        let grant = reference(what, field(what, value, "grant")?)?;
        Ok(Self {
            grant,
            sturdyref: sturdyref(what, field(what, value, "sturdyref")?)?,
        })
    }
}

/// The arguments of one call, read from first to last.
#[derive(Debug)]
pub struct Args {
    method: String,
    rest: std::vec::IntoIter<Passable>,
}

impl Args {
    /// Reads the method's name.
    pub fn read(args: Vec<Passable>) -> Result<Self, Malformed> {
        let mut rest = args.into_iter();
        match rest.next() {
            Some(Passable::Symbol(method)) => Ok(Self {
                method: method.as_str().to_owned(),
                rest,
            }),
            _ => Err(Malformed {
                what: "call",
                why: "no method is named".into(),
            }),
        }
    }

    /// Returns the method's name.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Reads the data of a message.
    pub fn data<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, Malformed> {
        from_passable(what, &self.next(what)?)
    }

    /// Reads a live reference.
    pub fn reference(&mut self, what: &'static str) -> Result<Reference, Malformed> {
        reference(what, &self.next(what)?)
    }

    /// Reads a sturdyref.
    pub fn sturdyref(&mut self, what: &'static str) -> Result<Sturdyref, Malformed> {
        sturdyref(what, &self.next(what)?)
    }

    /// Returns the arguments that were not read.
    pub fn rest(self) -> Vec<Passable> {
        self.rest.collect()
    }

    fn next(&mut self, what: &'static str) -> Result<Passable, Malformed> {
        self.rest.next().ok_or_else(|| Malformed {
            what,
            why: "an argument is missing".into(),
        })
    }
}

fn field<'a>(
    what: &'static str,
    value: &'a Passable,
    name: &str,
) -> Result<&'a Passable, Malformed> {
    let found = value.as_struct().and_then(|fields| fields.get(name));
    found.ok_or_else(|| Malformed {
        what,
        why: format!("no field {name}"),
    })
}

fn reference(what: &'static str, value: &Passable) -> Result<Reference, Malformed> {
    let why = || Malformed {
        what,
        why: format!("a {} is no reference", value.kind()),
    };
    value.as_reference().cloned().ok_or_else(why)
}

fn sturdyref(what: &'static str, value: &Passable) -> Result<Sturdyref, Malformed> {
    let why = || Malformed {
        what,
        why: format!("a {} is no sturdyref", value.kind()),
    };
    value.as_sturdyref().cloned().ok_or_else(why)
}

/// Anything with `Display` and `FromStr` as text.
pub(crate) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A sturdyref as text, secret included: only for the user data and the machine's own store.
pub(crate) mod sturdyref_text {
    use ocapn::Sturdyref;
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        value: &Sturdyref,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&value.to_uri())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Sturdyref, D::Error> {
        super::text::deserialize(deserializer)
    }
}
