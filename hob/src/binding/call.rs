//! Objects under a name: called for the operator and for programs on the machine.

use data_encoding::BASE64;
use ocapn::{Passable, Reference};
use serde_json::{Value, json};

use super::{Bindings, Link, OpenError};
use crate::binding::deliver;
use crate::grant::Chain;
use crate::owner::Owner;
use crate::protocol::{Malformed, json_to_passable, method};

/// The kind of the services that are called.
const KIND: &str = "sturdyref";

impl Bindings {
    /// Calls the object under a name; an error is a sentence.
    pub(crate) async fn call(
        &self,
        name: &str,
        method: &str,
        args: Vec<Value>,
    ) -> Result<Value, String> {
        let link = self.slots().get(name).and_then(|slot| slot.link());
        let link = link.ok_or("no binding has this name")?;
        if link.kind != KIND {
            let kind = &link.kind;
            return Err(format!(
                "{name} is a binding of kind {kind}, which is not called"
            ));
        }
        let object = self.object(&link).await;
        let object = object.map_err(|error| Chain(&error).to_string())?;
        let args = args.into_iter().map(json_to_passable);
        let answer = object.call(method, args).await;
        answer
            .map(|answer| shown(&answer))
            .map_err(|broken| broken.to_string())
    }

    /// Returns whether programs of this user may call the object under a name.
    pub(crate) fn may_call(&self, name: &str, uid: u32) -> bool {
        let contents = self.store.contents();
        let exposes = contents.exposes_of(name).iter();
        let mut owners = exposes.filter_map(|expose| Owner::of(expose).ok());
        owners.any(|owner| owner.shows(uid))
    }

    /// Asks once for what a grant without streams gives.
    pub(super) async fn check_object(&self, link: &Link) -> Result<(), OpenError> {
        match link.kind.as_str() {
            deliver::KIND => self.fetch_live(link, None).await.map(drop),
            _ => self.object(link).await.map(drop),
        }
    }

    async fn object(&self, link: &Link) -> Result<Reference, OpenError> {
        match self.object_once(link).await {
            // A session that was over already, which this has shown: there may be another one.
            Err(OpenError::Ticket(broken)) if broken.is_severed() => self.object_once(link).await,
            asked => asked,
        }
    }

    async fn object_once(&self, link: &Link) -> Result<Reference, OpenError> {
        let grant = self.live(link).await?;
        let answer = link.ask(grant.call(method::CAPABILITY, []), &grant).await;
        let answer = answer.map_err(OpenError::Ticket)?;
        let reference = answer.as_reference().cloned();
        let none = || Malformed {
            what: "capability's answer",
            why: "it is no object".into(),
        };
        Ok(reference.ok_or_else(none)?)
    }
}

/// Returns a value as JSON, for people and scripts. What JSON has no word for is an object with
/// one key that begins with `@`.
fn shown(value: &Passable) -> Value {
    match value {
        Passable::Null | Passable::Undefined => Value::Null,
        Passable::Bool(b) => (*b).into(),
        Passable::Int(n) => match (n.to_u64(), n.to_i64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            (None, None) => json!({ "@integer": n.to_big().to_string() }),
        },
        Passable::Float64(x) => match serde_json::Number::from_f64(*x) {
            Some(number) => Value::Number(number),
            None => json!({ "@float": x.to_string() }),
        },
        Passable::String(text) => text.as_str().into(),
        Passable::Symbol(symbol) => symbol.as_str().into(),
        Passable::Bytes(bytes) => json!({ "@bytes": BASE64.encode(bytes) }),
        Passable::List(values) => values.iter().map(shown).collect(),
        Passable::Struct(entries) => {
            let entries = entries.iter();
            Value::Object(
                entries
                    .map(|(key, value)| (key.to_owned(), shown(value)))
                    .collect(),
            )
        }
        // Nobody outside the hob could use it.
        other => json!({ "@reference": other.kind() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_object_answers_is_shown() {
        let list = vec![
            Passable::Null,
            Passable::symbol("word"),
            Passable::bytes(b"\x00\x01".to_vec()),
            Passable::Float64(f64::NAN),
            (-7_i64).into(),
        ];
        let expected = r#"[null,"word",{"@bytes":"AAE="},{"@float":"NaN"},-7]"#;
        assert_eq!(
            shown(&Passable::List(list.into_iter().collect())).to_string(),
            expected
        );
    }
}
