//! Values as cells: the JSON encoding of `gobs-model`, with everything sensitive sealed.

use data_encoding::BASE64URL_NOPAD;
use gobs_model::{Address, Known, Value};
use serde_json::Value as Json;
use zeroize::Zeroizing;

use crate::error::Fault;
use crate::seal::DataKey;

/// The deepest JSON that is stored: the parser refuses documents deeper than 128, and what can be
/// written must be readable.
const DEPTH_MAX: usize = 100;

/// One cell of the state file: with its version, the place that a sealed part belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Cell<'a> {
    pub(crate) table: &'static str,
    pub(crate) row: &'a str,
    pub(crate) column: &'static str,
    pub(crate) version: i64,
}

impl Cell<'_> {
    /// Returns a text sealed whole for this cell.
    pub(crate) fn seal(&self, key: &DataKey, clear: &[u8]) -> Result<Vec<u8>, Fault> {
        self.seal_part(key, "", clear)
    }

    /// Returns what this cell holds.
    pub(crate) fn open(&self, key: &DataKey, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.open_part(key, "", blob)
    }

    /// Returns the value as text in which only what is not sensitive can be read.
    pub(crate) fn encode(
        &self,
        key: &DataKey,
        address: &Address,
        value: &Known,
    ) -> Result<String, Fault> {
        let json = value.value().to_json();
        check_depth(address, &json)?;
        if !value.value().contains_sensitive() {
            return Ok(json.to_string());
        }
        let sealed = self.seal_sensitive(key, json, &mut String::new())?;
        Ok(sealed.to_string())
    }

    /// Returns the value of a text.
    pub(crate) fn decode(&self, key: &DataKey, text: &str) -> Result<Known, Fault> {
        let mut json = serde_json::from_str(text).map_err(|error| self.corrupt(error))?;
        // Most cells hold no secret; the walk rebuilds the whole document.
        if text.contains("\"sealed\"") {
            json = self.open_sensitive(key, json, &mut String::new())?;
        }
        let value = Value::from_json(json).map_err(|error| self.corrupt(error))?;
        Known::try_from(value).map_err(|error| self.corrupt(error))
    }

    /// Returns the JSON document sealed whole for this cell.
    pub(crate) fn seal_json(
        &self,
        key: &DataKey,
        address: &Address,
        json: &Json,
    ) -> Result<Vec<u8>, Fault> {
        check_depth(address, json)?;
        let text = Zeroizing::new(json.to_string());
        self.seal(key, text.as_bytes())
    }

    /// Returns the JSON document that this cell holds.
    pub(crate) fn open_json(&self, key: &DataKey, blob: &[u8]) -> Result<Json, Fault> {
        serde_json::from_slice(&self.open(key, blob)?).map_err(|error| self.corrupt(error))
    }

    fn seal_part(&self, key: &DataKey, path: &str, clear: &[u8]) -> Result<Vec<u8>, Fault> {
        let version = self.version.to_le_bytes();
        let sealed = key.seal_at(&self.place(path, &version), clear)?;
        Ok(sealed.as_bytes().to_vec())
    }

    fn open_part(
        &self,
        key: &DataKey,
        path: &str,
        blob: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let version = self.version.to_le_bytes();
        key.open_at(&self.place(path, &version), blob)
            .map_err(|_| Fault::Tampered(self.name()))
    }

    fn place<'b>(&'b self, path: &'b str, version: &'b [u8; 8]) -> [&'b [u8]; 5] {
        [
            self.table.as_bytes(),
            self.row.as_bytes(),
            self.column.as_bytes(),
            version,
            path.as_bytes(),
        ]
    }

    fn seal_sensitive(&self, key: &DataKey, json: Json, path: &mut String) -> Result<Json, Fault> {
        if let Json::Object(map) = &json
            && let Some(secret) = map.get("sensitive")
        {
            let text = Zeroizing::new(secret.to_string());
            let sealed = self.seal_part(key, path, text.as_bytes())?;
            return Ok(tagged("sealed", BASE64URL_NOPAD.encode(&sealed).into()));
        }
        each_part(json, path, &mut |part, path| {
            self.seal_sensitive(key, part, path)
        })
    }

    fn open_sensitive(&self, key: &DataKey, json: Json, path: &mut String) -> Result<Json, Fault> {
        if let Json::Object(map) = &json
            && let Some(sealed) = map.get("sealed")
        {
            let blob = sealed
                .as_str()
                .and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok())
                .ok_or_else(|| Fault::Tampered(self.name()))?;
            let text = self.open_part(key, path, &blob)?;
            let secret = serde_json::from_slice(&text).map_err(|error| self.corrupt(error))?;
            return Ok(tagged("sensitive", secret));
        }
        each_part(json, path, &mut |part, path| {
            self.open_sensitive(key, part, path)
        })
    }

    fn corrupt(&self, error: impl std::fmt::Display) -> Fault {
        Fault::Corrupt(format!("{}: {error}", self.name()))
    }

    fn name(&self) -> String {
        format!("{}.{} of {:?}", self.table, self.column, self.row)
    }
}

/// Applies a function to the encoded values directly in one, each with its path.
///
/// What is directly in a map's or object's tag are its entries: an attribute that happens to be
/// called `sensitive` is not a mark.
fn each_part(json: Json, path: &mut String, apply: &mut Apply<'_>) -> Result<Json, Fault> {
    match json {
        Json::Array(parts) => each_element(parts, path, apply),
        Json::Object(map) => map
            .into_iter()
            .map(|(tag, content)| {
                let content = match (tag.as_str(), content) {
                    ("list" | "set", Json::Array(parts)) => each_element(parts, path, apply)?,
                    ("map" | "object", Json::Object(entries)) => entries
                        .into_iter()
                        .map(|(name, part)| {
                            let part = inside(path, &name, part, apply)?;
                            Ok((name, part))
                        })
                        .collect::<Result<Json, Fault>>()?,
                    (_, content) => content,
                };
                Ok((tag, content))
            })
            .collect(),
        leaf => Ok(leaf),
    }
}

type Apply<'a> = dyn FnMut(Json, &mut String) -> Result<Json, Fault> + 'a;

fn each_element(parts: Vec<Json>, path: &mut String, apply: &mut Apply<'_>) -> Result<Json, Fault> {
    parts
        .into_iter()
        .enumerate()
        .map(|(index, part)| inside(path, &index.to_string(), part, apply))
        .collect()
}

fn inside(path: &mut String, name: &str, part: Json, apply: &mut Apply<'_>) -> Result<Json, Fault> {
    let length = path.len();
    // The length keeps `a/b` apart from `a` then `b`.
    path.push_str(&format!("/{}:{name}", name.len()));
    let result = apply(part, path);
    path.truncate(length);
    result
}

fn tagged(tag: &str, content: Json) -> Json {
    Json::Object([(tag.to_owned(), content)].into_iter().collect())
}

fn check_depth(address: &Address, json: &Json) -> Result<(), Fault> {
    fn fits(json: &Json, left: usize) -> bool {
        match json {
            Json::Array(parts) => left > 0 && parts.iter().all(|part| fits(part, left - 1)),
            Json::Object(parts) => left > 0 && parts.values().all(|part| fits(part, left - 1)),
            _ => true,
        }
    }
    if fits(json, DEPTH_MAX) {
        Ok(())
    } else {
        Err(Fault::Unstorable {
            address: address.clone(),
            reason: format!("it is nested more than {DEPTH_MAX} deep"),
        })
    }
}
