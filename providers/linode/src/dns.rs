//! Records in domains of the account: they follow their machine's address.

use gobs_model::{Known, Number, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::api::Fail;
use crate::blocks::{Owner, about, elements, is_doubted, text, with};
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
                let addresses = public_addresses(owner.instance);
                self.remove_record(seen, &addresses).await?;
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
        let mut seen = elements(owner.seen, "dns").iter();
        let last = seen.find(|it| key(it) == key(asked));
        let known = self.known_record(last).await?;
        let path = match &known {
            Some((path, _)) => Some(path.clone()),
            None => self.records_of(domain).await?,
        };
        let Some(path) = path else {
            return Err(rejected(format!("the account has no domain {domain}")));
        };
        let mut body = json!({"type": kind, "name": name, "target": target});
        if let Some(ttl_s) = asked.get("ttl").and_then(Value::as_i64) {
            body["ttl_sec"] = ttl_s.into();
        }
        let shown = |record: &Json| (id_of(&path, record), target.clone());
        // Nothing makes records unique, so what may have been asked for is looked for until it
        // would show.
        let mut found = match known {
            Some((_, record)) => Some(record),
            None => {
                let doubted = owner.doubts(last);
                self.sought_record(&path, &body, doubted).await?
            }
        };
        let mut doubt = String::new();
        for _ in 0..MAKES_MAX {
            if found.is_some() {
                break;
            }
            match self.api.post(&path, Class::Other, &body).await {
                Ok(record) => return Ok(shown(&record)),
                Err(Fail::Lost(why)) => doubt = why,
                Err(fail) => return Err(about("dns", fail)),
            }
            found = self.sought_record(&path, &body, true).await?;
        }
        match found {
            None => Err(Error::InDoubt(doubt)),
            Some(record) => {
                self.set_record(&path, &record, &body).await?;
                Ok(shown(&record))
            }
        }
    }

    /// Returns the path of a domain's records.
    async fn records_of(&self, domain: &str) -> Result<Option<String>, Fail> {
        let filter = json!({"domain": domain});
        let domains = self.api.list("/domains", Some(&filter)).await?;
        let found = domains.iter().find(|it| it["domain"] == domain);
        Ok(found.map(|it| format!("/domains/{}/records", it["id"])))
    }

    /// Returns a record that was seen, where it is still that one, with the path of its domain's.
    async fn known_record(&self, last: Option<&Value>) -> Result<Option<(String, Json)>, Fail> {
        let Some(last) = last else { return Ok(None) };
        let Some((domain, id)) = text(last, "id").and_then(|it| it.split_once('/')) else {
            return Ok(None);
        };
        let path = format!("/domains/{domain}/records");
        let found = self.api.look(&format!("{path}/{id}")).await?;
        let Key { name, kind, .. } = key(last);
        let found = found.filter(|it| it["name"] == name && it["type"] == kind);
        Ok(found.map(|it| (path, it)))
    }

    /// Finds a record that leads where it is to lead; where that is doubted, for as long as a list
    /// may lag.
    async fn sought_record(
        &self,
        path: &str,
        body: &Json,
        doubted: bool,
    ) -> Result<Option<Json>, Fail> {
        let filter = json!({"name": body["name"], "type": body["type"]});
        let until = Instant::now() + self.api.time.here(LIST_LAG);
        loop {
            let tells = !doubted || Instant::now() >= until;
            let records = self.api.list(path, Some(&filter)).await?;
            let mut leading = records.into_iter();
            let found = leading.find(|it| it["target"] == body["target"]);
            if found.is_some() || tells {
                return Ok(found);
            }
            self.api.time.sleep(LOOK_EVERY).await;
        }
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

    /// Takes a record away; one that nobody saw made is the one that leads to these addresses.
    async fn remove_record(
        &self,
        seen: &Value,
        addresses: &[Option<String>; 2],
    ) -> Result<(), Error> {
        let Key { domain, name, kind } = key(seen);
        let path = match text(seen, "id").and_then(|it| it.split_once('/')) {
            Some((domain, record)) => format!("/domains/{domain}/records/{record}"),
            None if domain.is_empty() => return Ok(()),
            None => {
                let Some(path) = self.records_of(domain).await? else {
                    return Ok(());
                };
                let target = &addresses[usize::from(kind == "AAAA")];
                let body = json!({"type": kind, "name": name, "target": target});
                match self.sought_record(&path, &body, true).await? {
                    Some(record) => format!("{path}/{}", record["id"]),
                    None => return Ok(()),
                }
            }
        };
        let done = self.api.remove(&path).await;
        done.map_err(|fail| about("dns", fail))
    }

    /// Takes every record of a machine away: none may lead to an address that is given up.
    pub(crate) async fn remove_records(&self, last: &Known) -> Result<(), Error> {
        let addresses = seen_addresses(last);
        for seen in elements(last, "dns") {
            self.remove_record(seen, &addresses).await?;
        }
        Ok(())
    }

    /// Returns the records that are there, of those that were there last; `null` for the others.
    pub(crate) async fn observe_records(&self, set: &Known) -> Result<Value, Error> {
        let mut seen = Vec::new();
        for last in elements(set, "dns") {
            let id = text(last, "id").and_then(|it| it.split_once('/'));
            let Some((domain, record)) = id else {
                // It may be there, and is looked for by whoever changes it.
                let is_known = is_doubted(last) && text(last, "domain").is_some();
                seen.push(if is_known { last.clone() } else { Value::NULL });
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

/// Returns a record's identifier, as its block has it: with that of its domain.
fn id_of(path: &str, record: &Json) -> String {
    let domain = path.split('/').nth(2).unwrap_or_default();
    format!("{domain}/{}", record["id"])
}

/// Returns the first public address of each family that a machine was seen with.
pub(crate) fn seen_addresses(last: &Known) -> [Option<String>; 2] {
    let v6 = last.get("ipv6").and_then(Value::as_str);
    let v6 = v6.and_then(|it| it.split('/').next());
    let v4 = last.get("address").and_then(Value::as_str);
    [v4, v6].map(|it| it.map(str::to_owned))
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
