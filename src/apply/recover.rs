//! What a run that was cut off has left: settled before anything else is done.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;
use gobs_model::{Address, Diagnostic, Kind, Known, Value};
use gobs_provider::{Observed, Provider, Token};
use gobs_state::{Doubt, Finished, Outcome, Row, RowChange, RowKind, Snapshot, Store, StoreError};

use crate::boss::Boss;
use crate::plan::without_additions;

use super::act::unsettled;
use super::bind::unseen;
use super::left::{ended_as, look_for, only_made, perhaps};
use super::prepare::{Detail, observed_of, provider_wanted, with_observed};
use super::resume::{Resumed, resume};
use super::teller::Teller;
use super::{Event, Events, Providers, home};

/// How many steps are settled at once: most of them wait, and a provider takes this many reads.
const SETTLING_MAX: usize = 64;

/// What recovery came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// How many steps were in doubt and are settled now.
    pub settled: usize,
    /// Steps that cannot be settled now; nothing may be planned on what they left.
    pub unsettled: Vec<Diagnostic>,
}

/// Settles every step that an earlier run left without a known end.
///
/// # Errors
/// When the state file cannot be read or written.
pub async fn recover(
    store: &mut Store,
    providers: &Providers,
    boss: Option<&Boss>,
    events: &Events,
) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered::default();
    let doubts = store.in_doubt()?;
    if doubts.is_empty() {
        return Ok(recovered);
    }
    let snapshot = store.snapshot()?;
    let (mut finished, mut told) = (Vec::new(), Vec::new());
    let settled = settle_all(doubts, &snapshot, providers, (boss, Some(events)));
    for (doubt, verdict) in settled.await {
        match verdict {
            Ok(Verdict {
                outcome,
                changes,
                what,
            }) => {
                let address = doubt.started.intent().address.clone();
                let run = doubt.run;
                finished.push(Finished {
                    started: doubt.started,
                    outcome,
                    changes,
                });
                recovered.settled += 1;
                if !matches!(address, Address::Output(_)) {
                    let what = what.into();
                    told.push(Event::Recovered { address, run, what });
                }
            }
            Err(diagnostic) => recovered.unsettled.push(*diagnostic),
        }
    }
    store.commit(finished, Vec::new())?;
    for event in told {
        let _ = events.send(event);
    }
    Ok(recovered)
}

/// Settles what an earlier run left, in memory only: for `plan`, which writes nothing.
///
/// Returns the rows as they will be once an apply has settled them, and what to look at.
///
/// # Errors
/// When a provider cannot say what is there.
pub async fn recover_in_memory(
    mut snapshot: Snapshot,
    mut doubts: Vec<Doubt>,
    providers: &Providers,
) -> Result<(Snapshot, Vec<Diagnostic>), Vec<Diagnostic>> {
    doubts.retain(|doubt| !matches!(doubt.started.intent().address, Address::Output(_)));
    let Some(first) = doubts.first() else {
        return Ok((snapshot, Vec::new()));
    };
    let detail = format!(
        "Run {} left {} of {} without a known end, and {} more; the next apply settles that first.",
        first.run,
        first.started.intent().action,
        first.started.intent().address,
        doubts.len() - 1
    );
    let warnings = vec![Diagnostic::warning("Steps in doubt", detail)];
    // Only an apply can ask the hobs; until then the rows say what is known.
    doubts.retain(|doubt| !matches!(doubt.started.intent().action.as_str(), "bind" | "move"));
    let mut errors = Vec::new();
    let last = snapshot.clone();
    for (_, verdict) in settle_all(doubts, &last, providers, (None, None)).await {
        let changes = match verdict {
            Ok(verdict) => verdict.changes,
            Err(diagnostic) => {
                errors.push(*diagnostic);
                continue;
            }
        };
        for change in changes {
            match change {
                RowChange::PutRow(row) => {
                    snapshot.rows.insert(row.address.clone(), Arc::from(row));
                }
                RowChange::RemoveRow(address) => {
                    snapshot.rows.remove(&address);
                }
                RowChange::PutOutput(..) => {}
            }
        }
    }
    if errors.is_empty() {
        Ok((snapshot, warnings))
    } else {
        Err(errors)
    }
}

/// Settles many at once: each may have to wait until a provider's list shows what is new. Whoever
/// only looks, and tells nobody, takes nothing away that an apply would.
async fn settle_all(
    doubts: Vec<Doubt>,
    snapshot: &Snapshot,
    providers: &Providers,
    (boss, acts): (Option<&Boss>, Option<&Events>),
) -> Vec<(Doubt, Result<Verdict, Box<Diagnostic>>)> {
    let settling = doubts.into_iter().map(|doubt| async move {
        let verdict = settle(&doubt, snapshot, providers, (boss, acts)).await;
        (doubt, verdict)
    });
    stream::iter(settling)
        .buffered(SETTLING_MAX)
        .collect()
        .await
}

/// How one step in doubt is settled.
struct Verdict {
    outcome: Outcome,
    changes: Vec<RowChange>,
    /// For people: `adopted`, `not created`.
    what: &'static str,
}

impl Verdict {
    fn again(what: &'static str) -> Self {
        let outcome = Outcome::Failed(format!("the run was cut off; {what}"));
        Self {
            outcome,
            changes: Vec::new(),
            what,
        }
    }

    fn done(what: &'static str, changes: Vec<RowChange>) -> Self {
        Self {
            outcome: Outcome::Done,
            changes,
            what,
        }
    }
}

async fn settle(
    doubt: &Doubt,
    snapshot: &Snapshot,
    providers: &Providers,
    (boss, acts): (Option<&Boss>, Option<&Events>),
) -> Result<Verdict, Box<Diagnostic>> {
    let intent = doubt.started.intent();
    let address = &intent.address;
    let row = snapshot.rows.get(address).map(|row| &**row);
    let cannot = |detail: String| {
        let text = format!(
            "Run {} left {} {address} in doubt: {detail}",
            doubt.run, intent.action
        );
        let hint = "Nothing is planned until it is settled; run the command again.";
        Box::new(Diagnostic::error("Step in doubt", text).hint(hint))
    };
    let find_provider = |name: &str| -> Result<&dyn Provider, Box<Diagnostic>> {
        let found = providers.get(name).map(|provider| &**provider);
        found.ok_or_else(|| cannot(format!("there is no provider {name:?} to ask.")))
    };
    match (intent.action.as_str(), Detail::read(&intent.detail)) {
        (
            "create",
            Some(Detail::Create {
                provider: name,
                wanted,
                incarnation,
                depends_on,
            }),
        ) => {
            let provider = find_provider(&name)?;
            let token = Token(intent.token.clone().unwrap_or_default());
            let found = look_for(provider, &token).await;
            match found.map_err(|error| cannot(format!("{error}.")))? {
                None => {
                    let bare = without_additions(&provider.schema().machine, wanted.value());
                    if acts.is_some() && bare != *wanted.value() {
                        // Something may have been made for it, which comes before it.
                        let gone = provider.abandon(address).await;
                        gone.map_err(|error| cannot(format!("{error}.")))?;
                    }
                    Ok(Verdict::again("not created"))
                }
                Some(observed) => {
                    if let (Some(boss), Some(claim)) = (boss, &intent.claim)
                        && let Err(error) =
                            boss.accepted(claim.swissnum_hash, home::hob_of(&wanted).deadline)
                    {
                        tracing::warn!(%error, machine = %address, "an acceptance was not noted");
                    }
                    let row = Row {
                        address: address.clone(),
                        wanted: Known::empty(),
                        observed: Known::empty(),
                        depends_on,
                        version: 0,
                        kind: RowKind::Machine {
                            provider: name,
                            id: String::new(),
                            token: token.0,
                            incarnation,
                            enrolled: None,
                        },
                    };
                    // What comes after the machine may be missing: the next plan asks for it.
                    let row = with_observed(row, observed);
                    let row = only_made(&provider.schema().machine, row, &wanted);
                    Ok(Verdict::done(
                        "adopted",
                        vec![RowChange::PutRow(Box::new(row))],
                    ))
                }
            }
        }
        ("delete", _) => {
            let Some((row, name)) = row.and_then(with_provider) else {
                return Ok(Verdict::done("deleted", Vec::new()));
            };
            let (provider, last) = (find_provider(name)?, observed_of(row));
            let seen = provider.read(&last).await;
            match seen.map_err(|error| cannot(format!("{error}.")))? {
                Some(_) => Ok(Verdict::again("still there")),
                None => {
                    if acts.is_some() {
                        // What belonged to it may not have gone with it.
                        let last = ended_as(&provider.schema().machine, row, None);
                        let gone = provider.delete(&last, Arc::new(drop)).await;
                        gone.map_err(|error| cannot(format!("{error}.")))?;
                    }
                    forget(boss, row);
                    let services = services_of(snapshot, address).map(RowChange::RemoveRow);
                    let gone = RowChange::RemoveRow(address.clone());
                    Ok(Verdict::done("deleted", services.chain([gone]).collect()))
                }
            }
        }
        (
            "update" | "admit" | "narrow",
            Some(Detail::Update {
                wanted,
                incarnation,
                rebuilt,
            }),
        ) => {
            let Some((row, name)) = row.and_then(with_provider) else {
                return Ok(Verdict::again("gone"));
            };
            let provider = find_provider(name)?;
            let left = perhaps(&provider.schema().machine, row, &wanted);
            let last = left.as_ref().unwrap_or(row);
            let seen = provider.read(&observed_of(last)).await;
            let seen = seen.map_err(|error| cannot(format!("{error}.")))?;
            let is_done =
                |seen: &Observed| left.is_none() && shows(seen.attributes.value(), &wanted);
            let Some(observed) = seen.filter(is_done) else {
                let left = left.map(|it| RowChange::PutRow(Box::new(it)));
                return Ok(Verdict {
                    changes: left.into_iter().collect(),
                    ..Verdict::again("to be changed again")
                });
            };
            if rebuilt {
                forget(boss, row);
            }
            let mut row = with_observed(row.clone(), observed);
            row.wanted = wanted;
            if let RowKind::Machine {
                incarnation: kept,
                enrolled,
                ..
            } = &mut row.kind
            {
                *kept = incarnation;
                if rebuilt {
                    *enrolled = None;
                }
            }
            Ok(Verdict::done(
                "changed",
                vec![RowChange::PutRow(Box::new(row))],
            ))
        }
        ("bind" | "move", Some(Detail::Bind(granting))) => {
            let (Some(boss), Some(events)) = (boss, acts) else {
                return Err(cannot("its hobs can only be asked by an apply.".into()));
            };
            let teller = Teller {
                events: events.clone(),
                address: address.clone(),
            };
            let resumed = resume(boss, snapshot, granting, &teller).await;
            Ok(match resumed.map_err(|why| cannot(format!("{why}.")))? {
                Resumed::InUse(changes) => Verdict::done("granted", changes),
                Resumed::TakenBack(changes) => Verdict {
                    changes,
                    ..Verdict::again("taken back")
                },
            })
        }
        ("expose", _) => Ok(Verdict {
            changes: unseen(row),
            ..Verdict::again("to be done again")
        }),
        ("offer", _) => Ok(Verdict {
            changes: unsettled(row),
            ..Verdict::again("to be done again")
        }),
        // Waits, withdrawals and revocations are asked for again: each is idempotent.
        _ => Ok(Verdict::again("to be done again")),
    }
}

/// Returns whether a provider shows everything that was asked for, as far as it shows it at all.
fn shows(observed: &Value, wanted: &Known) -> bool {
    let wanted = provider_wanted(wanted);
    let Some(wanted) = wanted.value().as_entries() else {
        return false;
    };
    let asked = wanted.iter().filter(|(_, value)| !value.is_null());
    let mut shown = asked.filter_map(|(name, value)| Some((observed.get(name)?, value)));
    shown.all(|(observed, wanted)| covers(observed, wanted))
}

/// Returns whether a value is what was asked for, or that with more that was not asked for.
fn covers(observed: &Value, wanted: &Value) -> bool {
    if let (Kind::Object(wanted), Some(_)) = (&wanted.kind, observed.as_entries()) {
        let mut asked = wanted.iter().filter(|(_, value)| !value.is_null());
        return asked.all(|(name, it)| observed.get(name).is_some_and(|seen| covers(seen, it)));
    }
    if let (Kind::List(seen), Kind::List(wanted)) = (&observed.kind, &wanted.kind) {
        let mut pairs = seen.iter().zip(wanted.iter());
        return seen.len() == wanted.len() && pairs.all(|(seen, it)| covers(seen, it));
    }
    if let (Kind::Map(seen), Kind::Map(wanted)) = (&observed.kind, &wanted.kind) {
        let mut asked = wanted.iter();
        return seen.len() == wanted.len()
            && asked.all(|(label, it)| seen.get(label).is_some_and(|seen| covers(seen, it)));
    }
    observed.same(wanted)
}

/// Ends the claim and the presence of a hob that is gone.
fn forget(boss: Option<&Boss>, row: &Row) {
    if let (Some(boss), RowKind::Machine { incarnation, .. }) = (boss, &row.kind)
        && let Err(error) = boss.forget(&row.address, *incarnation)
    {
        tracing::warn!(%error, machine = %row.address, "a claim was not withdrawn");
    }
}

fn with_provider(row: &Row) -> Option<(&Row, &str)> {
    match &row.kind {
        RowKind::Machine { provider, .. } => Some((row, provider)),
        _ => None,
    }
}

fn services_of<'a>(
    snapshot: &'a Snapshot,
    machine: &'a Address,
) -> impl Iterator<Item = Address> + 'a {
    let of_machine = move |address: &&Address| match address {
        Address::Service { machine: on, .. } => machine.as_machine() == Some(on),
        _ => false,
    };
    snapshot.rows.keys().filter(of_machine).cloned()
}
