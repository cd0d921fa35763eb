//! What a run that was cut off has left: settled before anything else is done.

use std::sync::Arc;

use gobs_model::{Address, Diagnostic, Known, Value};
use gobs_provider::{Provider, Token};
use gobs_state::{
    Doubt, Finished, Outcome, Phase, Row, RowChange, RowKind, Snapshot, Store, StoreError,
};

use crate::boss::{Boss, UnbindRequest, Unbound};

use super::act::look_for;
use super::prepare::{Detail, observed_of, provider_wanted, with_observed};
use super::{Event, Events, Providers};

/// What recovery came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// How many steps were in doubt and are settled now.
    pub settled: usize,
    /// Steps that cannot be settled now; nothing may be planned on what they left.
    pub unsettled: Vec<Diagnostic>,
}

/// Settles what an earlier run left, in memory only: for `plan`, which writes nothing.
///
/// Returns the rows as they will be once an apply has settled them, and what to look at.
///
/// # Errors
/// When a provider cannot say what is there.
pub async fn recover_in_memory(
    mut snapshot: Snapshot,
    doubts: Vec<Doubt>,
    providers: &Providers,
) -> Result<(Snapshot, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    for doubt in doubts {
        let intent = doubt.started.intent();
        if let Address::Output(_) = intent.address {
            continue;
        }
        let detail = format!(
            "Run {} left {} {} without a known end; the next apply settles it first.",
            doubt.run, intent.action, intent.address
        );
        warnings.push(Diagnostic::warning("Step in doubt", detail));
        if matches!(intent.action.as_str(), "bind" | "move") {
            // Only an apply can ask the hobs; until then the rows say what is known.
            continue;
        }
        match settle(&doubt, &snapshot, providers, None).await {
            Ok(verdict) => {
                for change in verdict.changes {
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
            Err(diagnostic) => errors.push(*diagnostic),
        }
    }
    if errors.is_empty() {
        Ok((snapshot, warnings))
    } else {
        Err(errors)
    }
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
    for doubt in store.in_doubt()? {
        let snapshot = store.snapshot()?;
        match settle(&doubt, &snapshot, providers, boss).await {
            Ok(verdict) => {
                let Verdict {
                    outcome,
                    changes,
                    what,
                } = verdict;
                let address = doubt.started.intent().address.clone();
                let (run, quiet) = (doubt.run, matches!(address, Address::Output(_)));
                store.commit(
                    vec![Finished {
                        started: doubt.started,
                        outcome,
                        changes,
                    }],
                    vec![],
                )?;
                recovered.settled += 1;
                if !quiet {
                    let _ = events.send(Event::Recovered {
                        address,
                        run,
                        what: what.into(),
                    });
                }
            }
            Err(diagnostic) => recovered.unsettled.push(*diagnostic),
        }
    }
    Ok(recovered)
}

async fn settle(
    doubt: &Doubt,
    snapshot: &Snapshot,
    providers: &Providers,
    boss: Option<&Boss>,
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
                None => Ok(Verdict::again("not created")),
                Some(observed) => {
                    let row = Row {
                        address: address.clone(),
                        wanted,
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
                    let row = RowChange::PutRow(Box::new(with_observed(row, observed)));
                    Ok(Verdict::done("adopted", vec![row]))
                }
            }
        }
        ("delete", _) => {
            let Some((row, name)) = row.and_then(with_provider) else {
                return Ok(Verdict::done("deleted", Vec::new()));
            };
            let seen = find_provider(name)?.read(&observed_of(row)).await;
            match seen.map_err(|error| cannot(format!("{error}.")))? {
                Some(_) => Ok(Verdict::again("still there")),
                None => {
                    let services = services_of(snapshot, address).map(RowChange::RemoveRow);
                    let gone = RowChange::RemoveRow(address.clone());
                    Ok(Verdict::done("deleted", services.chain([gone]).collect()))
                }
            }
        }
        (
            "update",
            Some(Detail::Update {
                wanted,
                incarnation,
                rebuilt,
            }),
        ) => {
            let Some((row, name)) = row.and_then(with_provider) else {
                return Ok(Verdict::again("gone"));
            };
            let seen = find_provider(name)?.read(&observed_of(row)).await;
            let seen = seen.map_err(|error| cannot(format!("{error}.")))?;
            let Some(observed) = seen.filter(|seen| shows(seen.attributes.value(), &wanted)) else {
                return Ok(Verdict::again("to be changed again"));
            };
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
        ("bind" | "move", Some(detail @ Detail::Bind { .. })) => {
            let Some(boss) = boss else {
                return Err(cannot("its hobs can only be asked by an apply.".into()));
            };
            if let Some(request) = revocation(snapshot, address, detail) {
                match boss.unbind(request).await {
                    Ok(Unbound::Done) => {}
                    Ok(Unbound::Pending(why)) => return Err(cannot(format!("{why}."))),
                    Err(error) => return Err(cannot(format!("{error}."))),
                }
            }
            // What the binding had before is not in use any more, and is granted afresh. The row
            // is written in any case, so that the next generation is a new one.
            let change = match row {
                Some(row) => {
                    let mut row = row.clone();
                    if let RowKind::Binding { phase, .. } = &mut row.kind {
                        *phase = Phase::RevokePending;
                    }
                    RowChange::PutRow(Box::new(row))
                }
                None => RowChange::RemoveRow(address.clone()),
            };
            Ok(Verdict {
                changes: vec![change],
                ..Verdict::again("taken back")
            })
        }
        // Waits, offers, withdrawals and revocations are asked for again: each is idempotent.
        _ => Ok(Verdict::again("to be done again")),
    }
}

/// Returns how the grant that may have been made is taken back; nothing where neither machine is
/// what it was then.
fn revocation(snapshot: &Snapshot, binding: &Address, detail: Detail) -> Option<UnbindRequest> {
    let Detail::Bind {
        generation,
        from,
        from_incarnation,
        to,
        to_incarnation,
    } = detail
    else {
        return None;
    };
    let alive = |address: &Address, then: u64| {
        let machine = address.as_machine()?;
        match snapshot.rows.get(&Address::Machine(machine.clone()))?.kind {
            RowKind::Machine {
                incarnation,
                enrolled: Some(_),
                ..
            } if incarnation == then => Some((machine.clone(), then)),
            _ => None,
        }
    };
    let (exporter, importer) = (alive(&from, from_incarnation), alive(&to, to_incarnation));
    if exporter.is_none() && importer.is_none() {
        return None;
    }
    Some(UnbindRequest {
        binding: binding.clone(),
        generation,
        exporter,
        importer,
    })
}

/// Returns whether a provider shows everything that was asked for, as far as it shows it at all.
fn shows(observed: &Value, wanted: &Known) -> bool {
    let wanted = provider_wanted(wanted);
    let Some(wanted) = wanted.value().as_entries() else {
        return false;
    };
    let asked = wanted.iter().filter(|(_, value)| !value.is_null());
    let mut shown = asked.filter_map(|(name, value)| Some((observed.get(name)?, value)));
    shown.all(|(observed, wanted)| observed.same(wanted))
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
