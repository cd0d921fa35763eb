//! The one encoding of values as JSON: in state cells, plan files and on a plugin's pipe.
//!
//! | value | JSON |
//! |---|---|
//! | null, bool, string | themselves |
//! | an integer that fits 64 bits | a JSON number |
//! | any other number | `{"number": "0.5"}` |
//! | tuple | an array |
//! | list, set | `{"list": [..]}`, `{"set": [..]}` |
//! | map, object | `{"map": {..}}`, `{"object": {..}}` |
//! | a reference | `{"ref": "machine.db"}` |
//! | unknown | `{"unknown": TYPE}` |
//! | anything sensitive | `{"sensitive": VALUE}` |
//!
//! `sensitive` is a wrapper, so that whoever stores the encoding can seal what is inside it.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value as Json;

use crate::shared::shared;
use crate::{Kind, Known, Value};

/// Why a JSON document is not an encoded value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an encoded value: {0}")]
pub struct DecodeError(String);

impl Value {
    /// Returns the encoding described at the top of this file.
    pub fn to_json(&self) -> Json {
        let tagged = |tag: &str, content: Json| {
            Json::Object([(tag.to_owned(), content)].into_iter().collect())
        };
        let array = |elements: &[Self]| Json::Array(elements.iter().map(Self::to_json).collect());
        let object = |entries: &std::collections::BTreeMap<Arc<str>, Self>| {
            Json::Object(
                entries
                    .iter()
                    .map(|(k, v)| (k.to_string(), v.to_json()))
                    .collect(),
            )
        };
        let plain = match &self.kind {
            Kind::Null => Json::Null,
            Kind::Bool(value) => Json::Bool(*value),
            Kind::String(text) => Json::String(text.to_string()),
            Kind::Number(number) => match number.to_i64() {
                Some(integer) => integer.into(),
                None => tagged("number", number.to_string().into()),
            },
            Kind::Tuple(elements) => array(elements),
            Kind::List(elements) => tagged("list", array(elements)),
            Kind::Set(elements) => tagged("set", array(elements)),
            Kind::Map(entries) => tagged("map", object(entries)),
            Kind::Object(entries) => tagged("object", object(entries)),
            Kind::Ref(address) => tagged("ref", address.to_string().into()),
            Kind::Unknown(ty) => tagged(
                "unknown",
                serde_json::to_value(ty).unwrap_or(Json::String("any".into())),
            ),
        };
        if self.sensitive {
            tagged("sensitive", plain)
        } else {
            plain
        }
    }

    /// Returns the value that was encoded.
    ///
    /// # Errors
    /// When the document is not such an encoding. Its depth is bounded by the JSON parser's.
    pub fn from_json(json: Json) -> Result<Self, DecodeError> {
        let elements = |json: Json| match json {
            Json::Array(elements) => elements.into_iter().map(Self::from_json).collect(),
            _ => Err(DecodeError("expected an array".into())),
        };
        let entries = |json: Json| match json {
            Json::Object(entries) => entries
                .into_iter()
                .map(|(name, value)| Ok((shared(&name), Self::from_json(value)?)))
                .collect::<Result<_, DecodeError>>(),
            _ => Err(DecodeError("expected an object".into())),
        };
        let kind = match json {
            Json::Null => Kind::Null,
            Json::Bool(value) => Kind::Bool(value),
            Json::String(text) => Kind::String(shared(&text)),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Kind::Number(integer.into()),
                None => Kind::Number(parse_number(&number.to_string())?),
            },
            Json::Array(_) => Kind::Tuple(Arc::new(elements(json)?)),
            Json::Object(map) => {
                let mut map = map.into_iter();
                let (Some((tag, content)), None) = (map.next(), map.next()) else {
                    return Err(DecodeError("expected one tag".into()));
                };
                match tag.as_str() {
                    "sensitive" => return Ok(Self::from_json(content)?.sensitive()),
                    "number" => Kind::Number(parse_number(content.as_str().unwrap_or_default())?),
                    "list" => Kind::List(Arc::new(elements(content)?)),
                    "set" => return Ok(Self::set(elements(content)?)),
                    "map" => Kind::Map(Arc::new(entries(content)?)),
                    "object" => Kind::Object(Arc::new(entries(content)?)),
                    "ref" => {
                        let text = content.as_str().unwrap_or_default();
                        let address: crate::Address =
                            text.parse().map_err(|error: crate::ParseAddressError| {
                                DecodeError(error.to_string())
                            })?;
                        Kind::Ref(Arc::new(address))
                    }
                    "unknown" => Kind::Unknown(
                        serde_json::from_value(content)
                            .map_err(|error| DecodeError(error.to_string()))?,
                    ),
                    other => return Err(DecodeError(format!("unknown tag {other:?}"))),
                }
            }
        };
        Ok(kind.into())
    }
}

fn parse_number(text: &str) -> Result<crate::Number, DecodeError> {
    text.parse()
        .map_err(|error: crate::NumberError| DecodeError(error.to_string()))
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(Json::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Known {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Known {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Number, Type};
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::NULL),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |x| Number::from_f64(x).map(Value::from)),
            any::<String>().prop_map(Value::from),
            Just(Value::unknown(Type::list(Type::String))),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            let many = prop::collection::vec(inner.clone(), 0..4);
            let named = prop::collection::vec((".*", inner), 0..4);
            (many, named, 0..5u8, any::<bool>()).prop_map(|(many, named, shape, sensitive)| {
                match shape {
                    0 => Value::list(many),
                    1 => Value::set(many),
                    2 => Value::tuple(many),
                    3 => Value::map(named),
                    _ => Value::object(named),
                }
                .sensitive_if(sensitive)
            })
        })
    }

    proptest! {
        #[test]
        fn a_value_survives_its_encoding(value in value()) {
            let text = value.to_json().to_string();
            let back = Value::from_json(serde_json::from_str(&text).expect("JSON"));
            prop_assert_eq!(back, Ok(value));
        }
    }

    #[test]
    fn what_is_not_a_value_is_refused() {
        for text in [
            "{}",
            r#"{"a":1,"b":2}"#,
            r#"{"list":3}"#,
            r#"{"ref":"x"}"#,
            r#"{"what":1}"#,
        ] {
            let json = serde_json::from_str(text).expect("JSON");
            assert!(Value::from_json(json).is_err(), "{text}");
        }
    }
}
