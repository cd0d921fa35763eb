//! Functions that convert, encode and read.

use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use gobs_model::{Kind, Number, Type, Value};
use sha2::{Digest, Sha256};

use super::Kinds::{Any, Bool, String as Str};
use super::{Arguments, Failure, Function, nullable, parameter, plain};
use crate::lang::convert::{convert, friendly};
use crate::lang::lower::nfc;

pub(super) const FUNCTIONS: &[Function] = &[
    plain("base64decode", &[parameter("text", Str)], Str, |a| {
        let bytes = BASE64
            .decode(a.text(0).as_bytes())
            .map_err(|_| Failure::at(0, "it is not base64"))?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Failure::at(0, "what it decodes to is not UTF-8 text"))?;
        Ok(Kind::String(nfc(&text)).into())
    }),
    plain("base64encode", &[parameter("text", Str)], Str, |a| {
        Ok(BASE64.encode(a.text(0).as_bytes()).as_str().into())
    }),
    plain("jsondecode", &[parameter("text", Str)], Any, |a| {
        let json =
            serde_json::from_str(a.text(0)).map_err(|error| Failure::at(0, error.to_string()))?;
        from_json(json).ok_or_else(|| Failure::at(0, "a number in it is out of range"))
    }),
    plain("jsonencode", &[nullable("value", Any)], Str, |a| {
        let mut text = String::new();
        write_json(&a.values[0], &mut text)?;
        Ok(text.as_str().into())
    }),
    plain("urlencode", &[parameter("text", Str)], Str, urlencode),
    plain("sha256", &[parameter("text", Str)], Str, |a| {
        Ok(HEXLOWER
            .encode(&Sha256::digest(a.text(0).as_bytes()))
            .as_str()
            .into())
    }),
    plain("file", &[parameter("path", Str)], Str, file),
    plain("fileexists", &[parameter("path", Str)], Bool, |a| {
        match a.inputs {
            Some(inputs) => Ok(inputs.files.exists(std::path::Path::new(a.text(0))).into()),
            None => Ok(Value::unknown(Type::Bool)),
        }
    }),
    plain("tobool", &[nullable("value", Any)], Bool, |a| {
        to(a, &Type::Bool)
    }),
    plain("tostring", &[nullable("value", Any)], Str, |a| {
        to(a, &Type::String)
    }),
];

/// Returns the one argument as a type.
pub(super) fn to(a: &Arguments<'_>, ty: &Type) -> Result<Value, Failure> {
    let value = &a.values[0];
    convert(value, ty).map_err(|error| {
        let have = friendly(&value.type_of());
        Failure::at(
            0,
            format!(
                "cannot convert {have} to {}: {}",
                friendly(ty),
                error.message
            ),
        )
    })
}

/// The largest file that becomes a value.
const FILE_BYTES_MAX: usize = 16 << 20;

fn file(a: &Arguments<'_>) -> Result<Value, Failure> {
    let Some(inputs) = a.inputs else {
        // Without state, what a file holds is not known.
        return Ok(Value::unknown(Type::String));
    };
    let path = a.text(0);
    let bytes = inputs
        .files
        .read(std::path::Path::new(path))
        .map_err(|why| Failure::at(0, format!("cannot read {path:?}: {why}")))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Failure::at(0, format!("{path:?} has more than 16 MiB")));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Failure::at(0, format!("{path:?} is not UTF-8 text")))?;
    Ok(Kind::String(nfc(text)).into())
}

fn from_json(json: serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;
    Some(match json {
        Json::Null => Value::NULL,
        Json::Bool(value) => value.into(),
        Json::Number(number) => number.to_string().parse::<Number>().ok()?.into(),
        Json::String(text) => Kind::String(nfc(&text)).into(),
        Json::Array(elements) => {
            let elements: Option<Vec<Value>> = elements.into_iter().map(from_json).collect();
            Value::tuple(elements?)
        }
        Json::Object(entries) => {
            let entries: Option<std::collections::BTreeMap<Arc<str>, Value>> = entries
                .into_iter()
                .map(|(key, value)| Some((nfc(&key), from_json(value)?)))
                .collect();
            Kind::Object(Arc::new(entries?)).into()
        }
    })
}

/// Returns the JSON of a known value, or a fragment that says why there is none.
pub(super) fn json_text(value: &Value) -> Result<String, String> {
    let mut text = String::new();
    write_json(value, &mut text).map_err(|failure| failure.message)?;
    Ok(text)
}

/// Writes as Go's encoder does, which Terraform uses: `<`, `>` and `&` are escaped.
fn write_json(value: &Value, out: &mut String) -> Result<(), Failure> {
    match &value.kind {
        Kind::Null => out.push_str("null"),
        Kind::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Kind::Number(number) => out.push_str(&number.to_string()),
        Kind::String(text) => write_text(text, out),
        Kind::List(elements) | Kind::Set(elements) | Kind::Tuple(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(element, out)?;
            }
            out.push(']');
        }
        Kind::Map(entries) | Kind::Object(entries) => {
            out.push('{');
            for (at, (key, element)) in entries.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_json(element, out)?;
            }
            out.push('}');
        }
        Kind::Ref(address) => {
            let message = format!(
                "{address} is a {}, which cannot become text; use its attributes",
                address.kind()
            );
            return Err(Failure::at(0, message));
        }
        Kind::Unknown(_) => return Err("a value is not known yet".into()),
    }
    Ok(())
}

fn write_text(text: &str, out: &mut String) {
    let quoted = serde_json::Value::from(text).to_string();
    for char in quoted.chars() {
        match char {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            char => out.push(char),
        }
    }
}

/// As Go's `url.QueryEscape`.
fn urlencode(a: &Arguments<'_>) -> Result<Value, Failure> {
    let mut out = String::new();
    for byte in a.text(0).bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out.as_str().into())
}
