//! What is said beforehand of a plan, and what of the project's things is not as its rows have it.

use std::collections::{BTreeMap, BTreeSet};

use gobs_model::{Address, Known, Value};
use gobs_provider::{Error, Objection, Observed, Oddity, Proposal};
use serde_json::Value as Json;

use crate::api::Fail;
use crate::blocks::{Owner, elements, entries, is_id, text};
use crate::dns::seen_addresses;
use crate::machine::Machines;
use crate::marks::{Mark, of_project};
use crate::observe::tags;
use crate::{firewall, volume};

impl Machines {
    /// Returns why a machine could not become what is proposed, for its volumes' sake.
    pub(crate) async fn objections_to_volumes(
        &self,
        proposal: &Proposal,
    ) -> Result<Vec<Objection>, Error> {
        let (wanted, nothing) = (known_part(&proposal.wanted), Known::empty());
        if entries(&wanted, "volume").is_empty() {
            return Ok(Vec::new());
        }
        let before = proposal.before.as_ref();
        let owner = Owner {
            address: &proposal.address,
            mark: Mark::of(&self.project, &proposal.address),
            id: before.map_or("", |it| &it.id),
            instance: &Json::Null,
            wanted: &wanted,
            was: &nothing,
            seen: before.map_or(&nothing, |it| &it.attributes),
            adopted: false,
        };
        self.unfit_volumes(&owner).await
    }

    /// Returns what belongs to machines of the project and is not as these were last seen.
    pub(crate) async fn oddities(
        &self,
        known: &[(Address, Observed)],
    ) -> Result<Vec<Oddity>, Error> {
        let mut found = Vec::new();
        self.odd_firewalls(known, &mut found).await?;
        self.odd_volumes(known, &mut found).await?;
        self.odd_records(known, &mut found).await?;
        Ok(found)
    }

    async fn odd_firewalls(
        &self,
        known: &[(Address, Observed)],
        found: &mut Vec<Oddity>,
    ) -> Result<(), Error> {
        let ids = |seen: &Observed| {
            let id = seen.attributes.get("firewall")?;
            text(id, "id").map(str::to_owned)
        };
        let has_any = known.iter().any(|(_, seen)| ids(seen).is_some());
        let all = self.listed("/networking/firewalls", has_any).await?;
        let mut ours = BTreeSet::new();
        for (address, seen) in known {
            let mark = Mark::of(&self.project, address).thing(firewall::MARK, "");
            if let Some(id) = ids(seen) {
                let there = all.iter().find(|it| is_id(&it["id"], &id));
                found.extend(lost("firewall", (address, &id, ""), there, &mark));
            }
            ours.insert(mark);
        }
        for it in &all {
            let tag = of_project(it, firewall::MARK, &self.project);
            if tag.is_some_and(|tag| !ours.contains(tag)) {
                found.push(Oddity {
                    what: format!(
                        "{} carries this project's mark, and no row has it.",
                        named(it)
                    ),
                    mend: "Delete it at Linode, unless something else is under it by now.".into(),
                    is_problem: true,
                });
            }
        }
        Ok(())
    }

    async fn odd_volumes(
        &self,
        known: &[(Address, Observed)],
        found: &mut Vec<Oddity>,
    ) -> Result<(), Error> {
        let has_any = known
            .iter()
            .any(|(_, seen)| !entries(&seen.attributes, "volume").is_empty());
        let all = self.listed("/volumes", has_any).await?;
        let mut ours = BTreeSet::new();
        for (address, seen) in known {
            let mark = Mark::of(&self.project, address);
            for (name, id) in entries(&seen.attributes, "volume_ids") {
                let mark = mark.thing(volume::MARK, name);
                let id = id.as_str().unwrap_or_default();
                let there = all.iter().find(|it| is_id(&it["id"], id));
                let name = format!(" {name:?}");
                found.extend(lost("volume", (address, id, &name), there, &mark));
                ours.insert(mark);
            }
            // What a run that was cut off had asked for.
            let asked = entries(&seen.attributes, "volume").keys();
            ours.extend(asked.map(|name| mark.thing(volume::MARK, name)));
        }
        for it in &all {
            let tag = of_project(it, volume::MARK, &self.project);
            if tag.is_some_and(|tag| !ours.contains(tag)) {
                found.push(Oddity {
                    what: format!(
                        "{} carries this project's mark, and no row has it: it was kept when its \
                         machine or its block went.",
                        named(it)
                    ),
                    mend: "Declare it again to use it, or delete it at Linode: it costs.".into(),
                    is_problem: false,
                });
            }
        }
        Ok(())
    }

    async fn odd_records(
        &self,
        known: &[(Address, Observed)],
        found: &mut Vec<Oddity>,
    ) -> Result<(), Error> {
        let mut rows: BTreeMap<&str, (&Address, &Value)> = BTreeMap::new();
        // Records have no tags: what leads to a machine is told by that.
        let mut machines: BTreeMap<String, &Address> = BTreeMap::new();
        for (address, seen) in known {
            let records = elements(&seen.attributes, "dns").iter();
            rows.extend(records.filter_map(|it| Some((text(it, "id")?, (address, it)))));
            let addresses = seen_addresses(&seen.attributes).into_iter().flatten();
            machines.extend(addresses.map(|it| (it, address)));
        }
        for domain in self.listed("/domains", !rows.is_empty()).await? {
            let path = format!("/domains/{}/records", domain["id"]);
            for record in self.listed(&path, !rows.is_empty()).await? {
                let id = format!("{}/{}", domain["id"], record["id"]);
                let target = record["target"].as_str().unwrap_or_default();
                let is_ours = rows.remove(&*id).is_some();
                if let Some(machine) = machines.get(target).filter(|_| !is_ours) {
                    let (name, domain) = (&record["name"], &domain["domain"]);
                    found.push(Oddity {
                        what: format!(
                            "the record {name} in {domain} ({id}) leads to {machine}, and no row \
                             has it."
                        ),
                        mend: "Delete it at Linode, unless you made it by hand.".into(),
                        is_problem: false,
                    });
                }
            }
        }
        for (id, (machine, record)) in rows {
            let of = |name| text(record, name).unwrap_or_default();
            found.push(Oddity {
                what: format!(
                    "the record {:?} in {:?} of {machine} ({id}) is gone.",
                    of("name"),
                    of("domain")
                ),
                mend: "`gobs apply` makes it again.".into(),
                is_problem: true,
            });
        }
        Ok(())
    }

    /// Returns a list whole. A token that may not see it shows none, where nothing known is of it.
    async fn listed(&self, path: &str, is_used: bool) -> Result<Vec<Json>, Error> {
        match self.api.list(path, None).await {
            Err(Fail::Denied(_)) if !is_used => Ok(Vec::new()),
            // A domain that went meanwhile has none.
            Err(Fail::Gone) => Ok(Vec::new()),
            listed => Ok(listed?),
        }
    }
}

/// Returns what is wrong with a thing that a row has: it is gone, or its mark is.
fn lost(
    kind: &str,
    (machine, id, name): (&Address, &str, &str),
    there: Option<&Json>,
    mark: &str,
) -> Option<Oddity> {
    let (what, mend) = match there {
        None => (
            format!("the {kind}{name} of {machine} ({id}) is gone."),
            match kind {
                "volume" => "Its data is gone too; `gobs plan` says how to begin anew.",
                _ => "`gobs apply` makes it again.",
            },
        ),
        Some(it) if tags(it).all(|tag| tag != mark) => (
            format!("the {kind}{name} of {machine} ({id}) has lost its mark {mark}."),
            "Put it back: without it, it is not found after a crash.",
        ),
        Some(_) => return None,
    };
    Some(Oddity {
        what,
        mend: mend.into(),
        is_problem: true,
    })
}

fn named(it: &Json) -> String {
    let label = it["label"].as_str().unwrap_or_default();
    format!("{} ({label})", it["id"])
}

/// Returns what is known of a value that is only planned.
fn known_part(planned: &Value) -> Known {
    fn part(value: &Value) -> Value {
        if !value.contains_unknown() {
            return value.clone();
        }
        match value.as_entries() {
            Some(entries) => {
                let each = entries.iter().map(|(name, it)| (name.clone(), part(it)));
                Value::object::<std::sync::Arc<str>>(each)
            }
            None => Value::NULL,
        }
    }
    Known::try_from(part(planned)).unwrap_or_else(|_| Known::empty())
}

#[cfg(test)]
mod tests {
    use gobs_model::Type;

    use super::*;

    #[test]
    fn what_is_not_known_yet_is_left_out() {
        let planned = Value::object([
            ("region", "eu".into()),
            ("size", Value::unknown(Type::Number)),
            (
                "inner",
                Value::object([("a", Value::unknown(Type::String)), ("b", 1.into())]),
            ),
        ]);
        let known = known_part(&planned);
        assert_eq!(known.get("region"), Some(&"eu".into()));
        assert_eq!(known.get("size"), Some(&Value::NULL));
        let inner = known.get("inner").expect("an object");
        assert_eq!(
            (inner.get("a"), inner.get("b")),
            (Some(&Value::NULL), Some(&1.into()))
        );
    }
}
