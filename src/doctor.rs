//! What is wrong around a project, and how it is mended: looks, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use gobs_model::{Address, Diagnostic, Known};
use gobs_provider::{Observed, Provider, Token};
use gobs_state::{Reader, RowKind, Snapshot};
use serde::Serialize;

use crate::apply::{mark_of, observed_of};
use crate::project::{Project, store_error};

/// How many strays are named; an account may have thousands of machines of other projects.
const NAMED_MAX: usize = 100;

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Good,
    /// Worth knowing; nothing need be done.
    Note,
    /// A person has to look.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was found, as a sentence.
    pub what: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self::new(Level::Good, what, None)
    }

    /// Returns something that a person has to look at.
    pub fn problem(what: impl Into<String>, mend: &str) -> Self {
        Self::new(Level::Problem, what, Some(mend))
    }

    fn new(level: Level, what: impl Into<String>, mend: Option<&str>) -> Self {
        Self {
            level,
            what: what.into(),
            mend: mend.map(str::to_owned),
        }
    }

    fn of(diagnostic: &Diagnostic) -> Self {
        Self {
            level: Level::Problem,
            what: format!("{}: {}", diagnostic.summary, diagnostic.detail),
            mend: diagnostic.hint.clone(),
        }
    }
}

/// Looks at the state, its key, the clock, and at every provider's machines.
pub async fn examine(project: &Project) -> Vec<Finding> {
    let mut found = Vec::new();
    let reader = match project.reader() {
        Ok(Some(reader)) => reader,
        Ok(None) => {
            found.push(Finding::good("There is no state yet."));
            let nothing = Doubted::default();
            providers(project, &Snapshot::default(), &nothing, &mut found).await;
            return found;
        }
        Err(error) => return vec![Finding::of(&error)],
    };
    let snapshot = match reader.snapshot() {
        Ok(snapshot) => snapshot,
        Err(error) => return vec![Finding::of(&store_error(&error))],
    };
    let doubted = match state(&reader, &snapshot, &mut found) {
        Ok(doubted) => doubted,
        Err(error) => return vec![Finding::of(&error)],
    };
    providers(project, &snapshot, &doubted, &mut found).await;
    found
}

/// What steps in doubt are about: their tokens and their addresses.
type Doubted = (BTreeSet<String>, BTreeSet<Address>);

/// Looks at the state file; returns what steps in doubt are about.
fn state(
    reader: &Reader,
    snapshot: &Snapshot,
    found: &mut Vec<Finding>,
) -> Result<Doubted, Box<Diagnostic>> {
    let unusable = |error| store_error(&error);
    let broken = reader.check().map_err(unusable)?;
    for what in &broken {
        let what = format!("The state file is damaged: {what}.");
        found.push(Finding::problem(
            what,
            "Restore a backup from .gobs/backups.",
        ));
    }
    if broken.is_empty() {
        let (rows, serial) = (snapshot.rows.len(), snapshot.serial);
        let what =
            format!("The state is sound, and its key opens it: serial {serial}, {rows} rows.");
        found.push(Finding::good(what));
    }
    let doubts = reader.in_doubt().map_err(unusable)?;
    for doubt in &doubts {
        let intent = doubt.started.intent();
        let what = format!(
            "Run {} left {} of {} without a known end.",
            doubt.run, intent.action, intent.address
        );
        found.push(Finding::problem(
            what,
            "`gobs apply` settles it before anything else.",
        ));
    }
    let last = reader.runs().map_err(unusable)?.into_iter().next();
    match last {
        Some(run) if run.started_at > SystemTime::now() => {
            let what = format!(
                "Run {} is of a time that is yet to come by this host's clock.",
                run.number
            );
            found.push(Finding::problem(
                what,
                "Set the clock: claims and limits go by it.",
            ));
        }
        _ => found.push(Finding::good("The clock is not behind the last run.")),
    }
    let intents = || doubts.iter().map(|it| it.started.intent());
    let tokens = intents().filter_map(|it| it.token.clone()).collect();
    Ok((tokens, intents().map(|it| it.address.clone()).collect()))
}

/// Asks every provider for what carries a token, and for what the state has.
async fn providers(
    project: &Project,
    snapshot: &Snapshot,
    (doubted, in_doubt): &Doubted,
    found: &mut Vec<Finding>,
) {
    let providers = match project.providers(snapshot).await {
        Ok(providers) => providers,
        Err(errors) => return found.extend(errors.iter().map(Finding::of)),
    };
    let providers: BTreeMap<_, _> = providers.into_iter().collect();
    let mark = mark_of(&snapshot.lineage);
    for (name, provider) in &providers {
        if provider.is_simulated() {
            continue;
        }
        match provider.list().await {
            Ok(listed) => {
                missing(name, &**provider, snapshot, &listed, found).await;
                let known = (snapshot, doubted, mark.as_str());
                strays(name, known, &listed, found);
                oddities(name, &**provider, (snapshot, in_doubt), found).await;
            }
            Err(error) => found.push(Finding::problem(
                format!("The provider {name} cannot be asked: {error}."),
                "Look at its token, its address and the network.",
            )),
        }
    }
}

/// Finds what the state has and the provider has not.
async fn missing(
    name: &str,
    provider: &dyn Provider,
    snapshot: &Snapshot,
    listed: &[(Token, Observed)],
    found: &mut Vec<Finding>,
) {
    let rows = snapshot.rows.values().filter_map(|row| match &row.kind {
        RowKind::Machine {
            provider,
            id,
            token,
            ..
        } if provider == name => Some((row, id, token)),
        _ => None,
    });
    let mut there = 0;
    for (row, id, token) in rows {
        if listed
            .iter()
            .any(|(it, seen)| it.0 == *token && seen.id == *id)
        {
            there += 1;
            continue;
        }
        match provider.read(&observed_of(row)).await {
            Ok(None) => found.push(Finding::problem(
                format!(
                    "{} is gone: {name} has no machine {id} any more.",
                    row.address
                ),
                "`gobs apply` makes it again; `gobs state rm` forgets it.",
            )),
            Ok(Some(_)) => found.push(Finding::problem(
                format!("{} ({name} {id}) has lost its mark {token}.", row.address),
                "Put it back: without it, the machine is not found after a crash.",
            )),
            Err(error) => found.push(Finding::problem(
                format!(
                    "Whether {} is still there is not known: {error}.",
                    row.address
                ),
                "Try again.",
            )),
        }
    }
    found.push(Finding::good(format!(
        "{name} has {there} machines of the state."
    )));
}

/// Finds what belongs to machines and is not as the state has it; of machines of which a step is in
/// doubt, that is not known.
async fn oddities(
    name: &str,
    provider: &dyn Provider,
    (snapshot, in_doubt): (&Snapshot, &BTreeSet<Address>),
    found: &mut Vec<Finding>,
) {
    let rows = snapshot.rows.values().filter(|row| match &row.kind {
        RowKind::Machine { provider, .. } => provider == name,
        _ => false,
    });
    let mut known: BTreeMap<Address, Observed> = rows
        .map(|row| (row.address.clone(), observed_of(row)))
        .collect();
    for address in in_doubt {
        known.entry(address.clone()).or_insert_with(|| Observed {
            id: String::new(),
            attributes: Known::empty(),
        });
    }
    let known: Vec<_> = known.into_iter().collect();
    match provider.oddities(&known).await {
        Ok(odd) => {
            for it in odd.iter().take(NAMED_MAX) {
                let level = match it.is_problem {
                    true => Level::Problem,
                    false => Level::Note,
                };
                let what = format!("{name}: {}", it.what);
                found.push(Finding::new(level, what, Some(&it.mend)));
            }
            if odd.len() > NAMED_MAX {
                let what = format!("{name} has {} more of these.", odd.len() - NAMED_MAX);
                found.push(Finding::new(Level::Note, what, None));
            }
        }
        Err(error) => found.push(Finding::problem(
            format!("What belongs to the machines of {name} cannot be asked: {error}."),
            "Look at its token, its address and the network.",
        )),
    }
}

/// Finds what carries a token and is not in the state.
fn strays(
    name: &str,
    (snapshot, doubted, mark): (&Snapshot, &BTreeSet<String>, &str),
    listed: &[(Token, Observed)],
    found: &mut Vec<Finding>,
) {
    let known: BTreeSet<&str> = (snapshot.rows.values())
        .filter_map(|row| match &row.kind {
            RowKind::Machine { token, .. } => Some(token.as_str()),
            _ => None,
        })
        .collect();
    let strays = listed
        .iter()
        .filter(|(token, _)| !known.contains(&*token.0) && !doubted.contains(&token.0));
    let (ours, others): (Vec<_>, Vec<_>) = strays.partition(|(token, _)| token.has_mark(mark));
    for (token, seen) in ours.iter().take(NAMED_MAX) {
        let label = seen.attributes.get("label").and_then(|it| it.as_str());
        let label = label.map_or_else(String::new, |it| format!(" ({it})"));
        found.push(Finding::problem(
            format!(
                "{name} {}{label} carries this project's mark {token}, and no row has it.",
                seen.id
            ),
            "Declare it and `gobs import` it, or delete it at the provider.",
        ));
    }
    if ours.len() > NAMED_MAX {
        let what = format!("{name} has {} more of these.", ours.len() - NAMED_MAX);
        found.push(Finding::new(Level::Note, what, None));
    }
    if !others.is_empty() {
        let what = format!(
            "{name} has {} machines of other projects of gobs.",
            others.len()
        );
        found.push(Finding::new(Level::Note, what, None));
    }
}
