//! Records in domains of the account: they follow their machine's address.

use gobs_model::{Known, Number, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::api::Fail;
use crate::blocks::{Owner, about, elements, text, with};
use crate::machine::{LOOK_EVERY, Machines};
use crate::observe::public_addresses;
use crate::pace::Class;
use crate::schema::LIST_LAG;

/// How often a record is made, each time after a look that found none.
const MAKES_MAX: u32 = 4;

/// What a record is, whatever it leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key<'a> {
    domain: &'a str,
    name: &'a str,
    kind: &'a str,
}

fn key(record: &Value) -> Key<'_> {
    Key {
        domain: text(record, "domain").unwrap_or_default(),
        name: text(record, "name").unwrap_or_default(),
        kind: text(record, "type").unwrap_or("A"),
    }
}

impl Machines {
    /// Lets a machine's records lead to it, and takes away those that are not asked for any more.
    pub(crate) async fn records(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<Value, Error> {
        let mut records = Vec::new();
        for asked in elements(owner.wanted, "dns") {
            let Key { domain, name, .. } = key(asked);
            progress(format!("looks after {name} in {domain}"));
            let (id, target) = self.record(owner, asked).await?;
            let target = target.as_str().into();
            records.push(with(asked, [("id", id.into()), ("target", target)]));
        }
        let wanted: Vec<Key<'_>> = elements(owner.wanted, "dns").iter().map(key).collect();
        for seen in elements(owner.seen, "dns") {
            if !wanted.contains(&key(seen)) {
                self.remove_record(seen).await?;
            }
        }
        Ok(Value::list(records))
    }

    /// Returns the identifier of a record that leads to the machine, and where that is.
    async fn record(&self, owner: &Owner<'_>, asked: &Value) -> Result<(String, String), Error> {
        let Key { domain, name, kind } = key(asked);
        let [v4, v6] = public_addresses(owner.instance);
        let target = if kind == "AAAA" { v6 } else { v4 };
        let target = target.ok_or_else(|| {
            rejected(format!(
                "this machine has no address for a record of type {kind}"
            ))
        })?;
        let filter = json!({"domain": domain});
        let domains = self.api.list("/domains", Some(&filter)).await?;
        let found = domains.iter().find(|it| it["domain"] == domain);
        let Some(found) = found else {
            return Err(rejected(format!("the account has no domain {domain}")));
        };
        let path = format!("/domains/{}/records", found["id"]);
        let mut body = json!({"type": kind, "name": name, "target": target});
        if let Some(ttl_s) = asked.get("ttl").and_then(Value::as_i64) {
            body["ttl_sec"] = ttl_s.into();
        }
        let shown = |record: &Json| (format!("{}/{}", found["id"], record["id"]), target.clone());
        let last = elements(owner.seen, "dns")
            .iter()
            .find(|it| key(it) == key(asked));
        let mut doubt = String::new();
        for tries in 0..MAKES_MAX {
            // Nothing makes records unique, so what was asked for is looked for until it would
            // show.
            let until = Instant::now() + self.api.time.here(LIST_LAG);
            loop {
                let ours = self.find_record(&path, &body, last).await?;
                if let Some(record) = ours {
                    return self
                        .set_record(&path, &record, &body)
                        .await
                        .map(|()| shown(&record));
                }
                if tries == 0 || Instant::now() >= until {
                    break;
                }
                self.api.time.sleep(LOOK_EVERY).await;
            }
            match self.api.post(&path, Class::Other, &body).await {
                Ok(record) => return Ok(shown(&record)),
                Err(Fail::Lost(why)) => doubt = why,
                Err(fail) => return Err(about("dns", fail)),
            }
        }
        Err(Error::InDoubt(doubt))
    }

    /// Finds the record that was made last, or one that leads where this one is to lead.
    async fn find_record(
        &self,
        path: &str,
        body: &Json,
        last: Option<&Value>,
    ) -> Result<Option<Json>, Error> {
        let filter = json!({"name": body["name"], "type": body["type"]});
        let records = self.api.list(path, Some(&filter)).await?;
        let id = last
            .and_then(|it| text(it, "id"))
            .and_then(|it| it.split_once('/'));
        let is_last =
            |record: &&Json| id.is_some_and(|it| record["id"].as_u64() == it.1.parse().ok());
        let leads = |record: &&Json| record["target"] == body["target"];
        let found = records
            .iter()
            .find(is_last)
            .or_else(|| records.iter().find(leads));
        Ok(found.cloned())
    }

    async fn set_record(&self, path: &str, record: &Json, body: &Json) -> Result<(), Error> {
        let is_same = |name: &str| body[name].is_null() || record[name] == body[name];
        if is_same("target") && is_same("ttl_sec") {
            return Ok(());
        }
        let path = format!("{path}/{}", record["id"]);
        let mut change = json!({"target": body["target"]});
        if !body["ttl_sec"].is_null() {
            change["ttl_sec"] = body["ttl_sec"].clone();
        }
        let done = self.api.put(&path, &change).await;
        done.map(drop).map_err(|fail| about("dns", fail))
    }

    async fn remove_record(&self, seen: &Value) -> Result<(), Error> {
        let id = text(seen, "id").and_then(|it| it.split_once('/'));
        let Some((domain, record)) = id else {
            return Ok(());
        };
        let path = format!("/domains/{domain}/records/{record}");
        self.api
            .remove(&path)
            .await
            .map_err(|fail| about("dns", fail))
    }

    /// Takes every record of a machine away: none may lead to an address that is given up.
    pub(crate) async fn remove_records(&self, last: &Known) -> Result<(), Error> {
        for seen in elements(last, "dns") {
            self.remove_record(seen).await?;
        }
        Ok(())
    }

    /// Returns the records that are there, of those that were there last; `null` for the others.
    pub(crate) async fn observe_records(&self, set: &Known) -> Result<Value, Error> {
        let mut seen = Vec::new();
        for last in elements(set, "dns") {
            let id = text(last, "id").and_then(|it| it.split_once('/'));
            let Some((domain, record)) = id else {
                seen.push(Value::NULL);
                continue;
            };
            let path = format!("/domains/{domain}/records/{record}");
            let Some(found) = self.api.look(&path).await? else {
                seen.push(Value::NULL);
                continue;
            };
            let text = |it: &Json| it.as_str().map_or(Value::NULL, Value::from);
            seen.push(with(
                last,
                [
                    ("name", text(&found["name"])),
                    ("type", text(&found["type"])),
                    ("ttl", ttl(last, &found["ttl_sec"])),
                    ("target", text(&found["target"])),
                ],
            ));
        }
        Ok(Value::list(seen))
    }
}

/// Returns a time to live as it was asked for where the API has only rounded it up.
fn ttl(last: &Value, seen: &Json) -> Value {
    let asked = last.get("ttl").and_then(Value::as_i64);
    let seen = seen.as_i64().unwrap_or_default();
    match asked {
        Some(asked) if rounded(asked) == seen => Number::from(asked).into(),
        None if seen == 0 => Value::NULL,
        _ => Number::from(seen).into(),
    }
}

/// Returns the time to live that the API makes of another: the next one that it has.
fn rounded(ttl_s: i64) -> i64 {
    const TTLS_S: [i64; 15] = [
        0, 30, 120, 300, 3_600, 7_200, 14_400, 28_800, 57_600, 86_400, 172_800, 345_600, 604_800,
        1_209_600, 2_419_200,
    ];
    let next = TTLS_S.iter().find(|it| **it >= ttl_s);
    next.copied().unwrap_or(TTLS_S[TTLS_S.len() - 1])
}

fn rejected(message: String) -> Error {
    Error::Rejected {
        message,
        attribute: Some("dns".into()),
    }
}
