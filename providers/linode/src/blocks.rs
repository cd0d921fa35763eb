//! What belongs to a machine beside the machine itself: its firewall, its records, its volumes.
//!
//! Each carries a mark of whose it is: of the project, the machine's address and its own name.
//! By that it is found again, whatever became of the run that made it, and of the machine. So
//! each step here looks before it acts, and may be repeated. What was asked for by a run that was
//! cut off is *doubted*: it was seen without an identifier, and its absence counts only once a
//! list would show it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use gobs_model::{Address, Known, Value};
use gobs_provider::{Error, Progress};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

use crate::api::{Api, Fail};
use crate::machine::{LOOK_EVERY, Machines};
use crate::marks::Mark;
use crate::observe::{json_of, tags};
use crate::pace::Class;
use crate::schema::LIST_LAG;

/// How often something is made, each time after a look that found nothing.
const MAKES_MAX: u32 = 4;

/// The machine that something belongs to, as it is asked for.
pub(crate) struct Owner<'a> {
    pub(crate) address: &'a Address,
    pub(crate) mark: Mark,
    /// The machine's identifier.
    pub(crate) id: &'a str,
    /// The machine as the API shows it.
    pub(crate) instance: &'a Json,
    pub(crate) wanted: &'a Known,
    /// What was asked last; empty where the machine is new.
    pub(crate) was: &'a Known,
    /// What was seen last; where the machine is new, of the one whose place it takes.
    pub(crate) seen: &'a Known,
    /// Whether the machine was made by a try that nobody saw the end of.
    pub(crate) adopted: bool,
}

impl Owner<'_> {
    /// Returns whether a thing that was last seen so may be there though nobody saw it.
    pub(crate) fn doubts(&self, seen: Option<&Value>) -> bool {
        self.adopted || seen.is_some_and(is_doubted)
    }
}

/// Returns whether a thing was asked for by a run that did not see it made.
pub(crate) fn is_doubted(seen: &Value) -> bool {
    !seen.is_null() && text(seen, "id").is_none()
}

/// Returns a label for a thing of a machine that no other has: the mark's hash makes it so.
pub(crate) fn label_of(address: &Address, name: &str, mark: &str, chars_max: usize) -> String {
    let hash: String = mark
        .rsplit(':')
        .next()
        .unwrap_or(mark)
        .chars()
        .take(8)
        .collect();
    let mut label = String::from("gobs-");
    let text = format!(
        "{}-{name}",
        address.to_string().trim_start_matches("machine.")
    );
    for letter in text.chars().take(chars_max.saturating_sub(15)) {
        // Nothing but letters and digits may stand twice in a row, and little else at all.
        if letter.is_ascii_alphanumeric() {
            label.push(letter);
        } else if !label.ends_with('-') {
            label.push('-');
        }
    }
    format!("{}-{hash}", label.trim_end_matches('-'))
}

/// Turns at the machines of an account, so that what is looked for and then made is not made
/// twice at the same time.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<BTreeMap<Address, Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

impl Turns {
    /// Waits for the turn at one machine.
    pub(crate) async fn at(&self, address: &Address) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(address).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::new(Turn::default());
                turns.insert(address.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

impl Machines {
    /// Makes what belongs to a machine as it is asked for. Returns what is asked, with the
    /// identifiers of what there is now, to be observed by.
    pub(crate) async fn belongings(
        &self,
        owner: &Owner<'_>,
        progress: &Progress,
    ) -> Result<Known, Error> {
        let mut set = owner
            .wanted
            .value()
            .as_entries()
            .cloned()
            .unwrap_or_default();
        let firewall = self.firewall(owner, progress).await?;
        set.insert("firewall".into(), firewall);
        let volumes = self.volumes(owner, progress).await?;
        set.insert("volume".into(), volumes);
        let records = self.records(owner, progress).await?;
        set.insert("dns".into(), records);
        Known::try_from(Value::object(set)).map_err(|error| Error::InDoubt(error.to_string()))
    }

    /// Returns what belongs to a machine as it is now, of what was there last.
    pub(crate) async fn observe_belongings(
        &self,
        instance: &Json,
        set: &Known,
    ) -> Result<Vec<(&'static str, Value)>, Error> {
        let id = instance["id"].to_string();
        Ok(vec![
            ("firewall", self.observe_firewall(instance, set).await?),
            ("volume", self.observe_volumes(&id, set).await?),
            ("volume_ids", volume_ids(set)),
            ("dns", self.observe_records(set).await?),
        ])
    }

    /// Puts the machine into its placement group, and out of the one it was in.
    pub(crate) async fn place_in_group(&self, owner: &Owner<'_>) -> Result<(), Error> {
        let asked = json_of(owner.wanted, "placement_group");
        let is = owner.instance["placement_group"]["id"].as_u64();
        let was_asked = json_of(owner.was, "placement_group").is_some();
        if asked.as_ref().and_then(Json::as_u64) == is || asked.is_none() && !was_asked {
            return Ok(());
        }
        let linode: u64 = owner.id.parse().unwrap_or_default();
        let body = json!({"linodes": [linode]});
        let steps = [
            (is, "unassign"),
            (asked.as_ref().and_then(Json::as_u64), "assign"),
        ];
        for (group, verb) in steps {
            let Some(group) = group else { continue };
            let path = format!("/placement/groups/{group}/{verb}");
            match self.api.post(&path, Class::Other, &body).await {
                Ok(_) => {}
                // To be in it, or out of it, twice is the same.
                Err(Fail::Lost(_)) => drop(self.api.post(&path, Class::Other, &body).await?),
                Err(fail) => return Err(about("placement_group", fail)),
            }
        }
        Ok(())
    }
}

impl Api {
    /// Makes a thing that is found by a mark among its tags; what is there is taken as it is.
    pub(crate) async fn ensure(
        &self,
        path: &str,
        class: Class,
        (mark, doubted): (&str, bool),
        body: &Json,
    ) -> Result<Json, Error> {
        let mut doubt = match self.sought(path, mark, doubted).await? {
            Some(found) => return Ok(found),
            None => String::new(),
        };
        for _ in 0..MAKES_MAX {
            match self.post(path, class, body).await {
                Ok(made) => return Ok(made),
                Err(Fail::Lost(why)) => doubt = why,
                Err(Fail::Refused(reasons))
                    if reasons
                        .iter()
                        .any(|it| it.text.to_lowercase().contains("must be unique")) =>
                {
                    doubt = format!("the label {} is taken", body["label"]);
                }
                Err(fail) => return Err(fail.into()),
            }
            // Never made twice: a list may only lag.
            if let Some(found) = self.sought(path, mark, true).await? {
                return Ok(found);
            }
            if doubt.ends_with("is taken") {
                return Err(Error::Rejected {
                    message: format!("{doubt} by something that is not of this machine"),
                    attribute: Some("label".into()),
                });
            }
        }
        Err(Error::InDoubt(doubt))
    }

    /// Returns what carries a mark among its tags; where that is doubted, for as long as a list may
    /// lag.
    pub(crate) async fn sought(
        &self,
        path: &str,
        mark: &str,
        doubted: bool,
    ) -> Result<Option<Json>, Fail> {
        let filter = json!({"tags": mark});
        let until = Instant::now() + self.time.here(LIST_LAG);
        loop {
            // Only a look that began after the lag tells that there is nothing.
            let tells = !doubted || Instant::now() >= until;
            let found = self.list(path, Some(&filter)).await?;
            let mut ours = found
                .into_iter()
                .filter(|it| tags(it).any(|tag| tag == mark));
            let first = ours.next();
            if first.is_some() || tells {
                return Ok(first);
            }
            self.time.sleep(LOOK_EVERY).await;
        }
    }

    /// Returns what is at a path; nothing where it is gone.
    pub(crate) async fn look(&self, path: &str) -> Result<Option<Json>, Fail> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(Fail::Gone) => Ok(None),
            Err(fail) => Err(fail),
        }
    }

    /// Deletes what is at a path; what is gone is a success.
    pub(crate) async fn remove(&self, path: &str) -> Result<(), Fail> {
        match self.delete(path).await {
            Ok(_) | Err(Fail::Gone) => Ok(()),
            Err(fail) => Err(fail),
        }
    }
}

/// Returns an error that names the attribute it is about.
pub(crate) fn about(attribute: &str, fail: Fail) -> Error {
    match Error::from(fail) {
        Error::Rejected { message, .. } => Error::Rejected {
            message,
            attribute: Some(attribute.into()),
        },
        other => other,
    }
}

/// Returns the identifiers of a machine's volumes, also of those that are not attached any more:
/// by them what is lost is told from what never was.
fn volume_ids(set: &Known) -> Value {
    let known = entries(set, "volume_ids").iter();
    let seen = entries(set, "volume").iter();
    let seen = seen.filter_map(|(name, it)| Some((name.clone(), text(it, "id")?.into())));
    Value::map(
        known
            .map(|(name, id)| (name.clone(), id.clone()))
            .chain(seen),
    )
}

/// Returns a labelled block's entries.
pub(crate) fn entries<'a>(of: &'a Known, name: &str) -> &'a BTreeMap<Arc<str>, Value> {
    static NONE: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    of.get(name).and_then(Value::as_entries).unwrap_or(&NONE)
}

/// Returns a repeated block's elements.
pub(crate) fn elements<'a>(of: &'a Known, name: &str) -> &'a [Value] {
    of.get(name)
        .and_then(Value::as_elements)
        .unwrap_or_default()
}

/// Returns whether an identifier of the API's is the one that a row has as text.
pub(crate) fn is_id(of: &Json, id: &str) -> bool {
    of.as_u64().is_some_and(|number| id.parse() == Ok(number))
}

/// Returns a text of a block.
pub(crate) fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name).and_then(Value::as_str)
}

/// Returns a block with one attribute more.
pub(crate) fn with(of: &Value, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut entries = of.as_entries().cloned().unwrap_or_default();
    entries.extend(more.into_iter().map(|(name, value)| (name.into(), value)));
    Value::object(entries).sensitive_if(of.sensitive)
}

#[cfg(test)]
mod tests {
    use gobs_model::Name;

    use super::*;

    #[test]
    fn a_label_says_whose_a_thing_is() {
        let db = Address::machine(Name::new("db").expect("a name"), None);
        let ours = Mark::of("p", &db).thing("gobs-volume:", "data");
        let label = label_of(&db, "data", &ours, 32);
        assert!(
            label.starts_with("gobs-db-data-") && label.len() <= 32,
            "{label}"
        );
        let long = label_of(&db, &"x".repeat(99), &ours, 32);
        assert!(long.len() <= 32, "{long}");
    }
}
