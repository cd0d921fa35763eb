//! From a planned step to an intent and an effect. No effect happens here.

use std::sync::Arc;
use std::time::Duration;

use gobs_model::{Address, Diagnostic, Instance, Known, Name, Path, Value};
use gobs_provider::{CreateRequest, Observed, Provider, Token, UpdateRequest};
use gobs_state::{Intent, Row, RowChange, RowKind};
use serde::{Deserialize, Serialize};

use crate::boss::Boss;
use crate::lang::HobValues;
use crate::plan::{Action, Because, HOB, Step, made_stale, wanted_of};

use super::act::{MachineWork, Work};
use super::home::{self, Awaited, Invited};
use super::left::ended_as;
use super::promise::keeps_promise;
use super::teller::Teller;
use super::{Walk, mark_of};

pub(super) type Prepared<T> = Result<T, Box<Diagnostic>>;

/// What recovery needs to know of a step in doubt: the journal seals it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub(super) enum Detail {
    /// The row that the machine gets once it is found.
    Create {
        /// The provider's name.
        provider: String,
        /// The row's `wanted`.
        wanted: Known,
        /// The row's incarnation.
        incarnation: u64,
        /// The row's direct dependencies.
        depends_on: Vec<Address>,
    },
    /// What the machine is to be.
    Update {
        /// The row's `wanted`.
        wanted: Known,
        /// The row's incarnation.
        incarnation: u64,
        /// Whether its disk is written anew, so that another hob enrolls.
        rebuilt: bool,
    },
    /// The grant that may have been made.
    Bind(Granting),
    /// Nothing beside the row is needed.
    Other {},
}

/// A grant that is about to be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Granting {
    /// Its generation.
    pub(super) generation: u64,
    /// The service.
    pub(super) from: Address,
    /// The incarnation of its machine.
    pub(super) from_incarnation: u64,
    /// The machine that gets it.
    pub(super) to: Address,
    /// Its incarnation.
    pub(super) to_incarnation: u64,
    /// The rest of what is needed to end what was begun; not in journals of older versions.
    #[serde(default)]
    pub(super) row: Option<GrantingRow>,
}

/// What the row of a binding becomes, and how its grant comes into use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct GrantingRow {
    /// The row's `wanted`.
    pub(super) wanted: Known,
    /// The row's direct dependencies.
    pub(super) depends_on: Vec<Address>,
    /// The generation of the binding that it is made from.
    pub(super) parent: Option<u64>,
    /// How long the service may take until it answers.
    pub(super) ready_s: u64,
    /// How long streams of the grant before may go on.
    pub(super) drain_s: u64,
}

/// Returns the intent of writing outputs, which have no effect outside.
pub(super) fn outputs_intent() -> Intent {
    Intent {
        // The journal wants an address; outputs as a whole have none of their own.
        address: Address::Output(gobs_model::Name::new("all").unwrap_or_else(|_| unreachable!())),
        action: "output".into(),
        token: None,
        claim: None,
        detail: detail(&Detail::Other {}),
    }
}

pub(super) fn detail(detail: &Detail) -> serde_json::Value {
    // The enum has text keys only: this cannot fail.
    serde_json::to_value(detail).unwrap_or_default()
}

impl Walk<'_> {
    /// Returns a step's intent, and its effect for when the intent is on disk.
    pub(super) fn prepare(&self, step: &Step) -> Prepared<(Intent, Work)> {
        let mut intent = Intent {
            address: step.address.clone(),
            action: step.action.name().into(),
            token: None,
            claim: None,
            detail: detail(&Detail::Other {}),
        };
        let work = match &step.action {
            Action::Create {
                provider,
                wanted,
                incarnation,
                simulated,
                ..
            } => {
                let wanted = self.machine_wanted(step, provider, wanted)?;
                let token = Token::random().map_err(|error| randomness(step, &error.into()))?;
                let token = token.marked(&mark_of(self.apply.store.lineage()));
                intent.token = Some(token.0.clone());
                intent.detail = detail(&Detail::Create {
                    provider: provider.clone(),
                    wanted: wanted.clone(),
                    incarnation: *incarnation,
                    depends_on: step.depends_on.clone(),
                });
                let user_data = if *simulated {
                    None
                } else {
                    let machine = (&wanted, None);
                    self.user_data(step, provider, machine, *incarnation, &mut intent.claim)?
                };
                let request = CreateRequest {
                    token: token.clone(),
                    address: step.address.clone(),
                    wanted: provider_wanted(&wanted),
                    user_data,
                    before: self.predecessor(step, provider)?,
                };
                let row = Row {
                    address: step.address.clone(),
                    wanted,
                    observed: Known::empty(),
                    depends_on: step.depends_on.clone(),
                    version: 0,
                    kind: RowKind::Machine {
                        provider: provider.clone(),
                        id: String::new(),
                        token: token.0,
                        incarnation: *incarnation,
                        enrolled: None,
                    },
                };
                self.machine_work(step, provider, &intent, home::hob_of(&row.wanted), |work| {
                    Work::Create { work, request, row }
                })?
            }
            Action::Import { .. } => self.prepare_import(step, &mut intent)?,
            Action::Update {
                provider,
                wanted,
                change,
                incarnation,
                calls_provider,
                simulated,
            } => {
                let wanted = self.machine_wanted(step, provider, wanted)?;
                let row = self.row(step, &step.address)?;
                let (mut next, before) = (Row::clone(&row), observed_of(&row));
                let was_wanted = provider_wanted(&row.wanted);
                next.wanted = wanted;
                next.depends_on.clone_from(&step.depends_on);
                let rebuilt = *change == gobs_model::Change::Rebuild;
                if let RowKind::Machine {
                    incarnation: kept,
                    enrolled,
                    ..
                } = &mut next.kind
                {
                    *kept = *incarnation;
                    if rebuilt {
                        *enrolled = None;
                    }
                }
                if *calls_provider {
                    intent.detail = detail(&Detail::Update {
                        wanted: next.wanted.clone(),
                        incarnation: *incarnation,
                        rebuilt,
                    });
                    let token = Token::random().map_err(|error| randomness(step, &error.into()))?;
                    intent.token = Some(token.0.clone());
                    let user_data = if rebuilt && !simulated {
                        let machine = (&next.wanted, Some(&row.observed));
                        self.user_data(step, provider, machine, *incarnation, &mut intent.claim)?
                    } else {
                        None
                    };
                    let request = UpdateRequest {
                        token,
                        address: step.address.clone(),
                        before,
                        was_wanted,
                        wanted: provider_wanted(&next.wanted),
                        change: *change,
                        user_data,
                    };
                    let ended = rebuilt.then(|| incarnation_of(&row)).flatten();
                    self.machine_work(
                        step,
                        provider,
                        &intent,
                        home::hob_of(&next.wanted),
                        |work| Work::Update {
                            work,
                            request,
                            old: row,
                            row: next,
                            ended,
                        },
                    )?
                } else {
                    Work::Rows(vec![RowChange::PutRow(Box::new(next))])
                }
            }
            Action::Delete { provider, .. } => {
                let row = self.row(step, &step.address)?;
                let mut changes = vec![RowChange::RemoveRow(step.address.clone())];
                let services = self.services_of(&step.address);
                changes.extend(services.map(|row| RowChange::RemoveRow(row.address.clone())));
                let ended = incarnation_of(&row).unwrap_or_default();
                let before = self.ending(step, provider, &row)?;
                self.machine_work(step, provider, &intent, HobValues::default(), |work| {
                    Work::Delete {
                        work,
                        before,
                        ended,
                        changes,
                    }
                })?
            }
            Action::Admit {
                provider,
                whom,
                simulated,
                ..
            } => self.admit_work(step, provider, whom, *simulated, &mut intent)?,
            Action::Enroll {
                incarnation,
                simulated,
                deadline_s,
            } => {
                let mut row = Row::clone(&*self.row(step, &step.address)?);
                if *simulated {
                    // A row only: nobody calls home, and nothing is left to wait for.
                    set_enrolled(&mut row, "simulated");
                    Work::Rows(vec![RowChange::PutRow(Box::new(row))])
                } else {
                    let RowKind::Machine { provider, .. } = &row.kind else {
                        return Err(bug(step));
                    };
                    let provider = Arc::clone(self.provider(step, provider)?);
                    let (hob, schema) = (home::hob_of(&row.wanted), provider.schema());
                    let seen = &row.observed;
                    let boss = self.boss(step)?;
                    home::expect(&boss, &step.address, *incarnation, &hob, schema, Some(seen));
                    Work::Enroll {
                        awaited: Box::new(Awaited {
                            call: home::call(&hob, schema, seen),
                            seen: observed_of(&row),
                            ttl: Duration::from_secs(*deadline_s),
                            provider,
                        }),
                        boss,
                        incarnation: *incarnation,
                        row,
                        stop: self.apply.stop.clone(),
                        teller: self.teller(step),
                    }
                }
            }
            Action::Offer {
                spec,
                incarnation,
                ready_s,
                of,
                simulated,
            } => {
                let spec = self.service_spec(step, spec, of.as_ref())?;
                let row = Row {
                    address: step.address.clone(),
                    wanted: spec.clone(),
                    observed: Known::empty(),
                    depends_on: step.depends_on.clone(),
                    version: 0,
                    kind: RowKind::Service {
                        incarnation: *incarnation,
                        unsettled: false,
                    },
                };
                let mut changes = vec![RowChange::PutRow(Box::new(row))];
                changes.extend(self.stale(&step.address));
                match (simulated, service_of(&step.address)) {
                    (false, Some((machine, service))) => Work::Offer {
                        boss: self.boss(step)?,
                        machine: (machine, *incarnation),
                        service,
                        spec,
                        ready: Duration::from_secs(*ready_s),
                        changes,
                        old: self.rows.get(&step.address).cloned(),
                        stop: self.apply.stop.clone(),
                        teller: self.teller(step),
                    },
                    _ => Work::Rows(changes),
                }
            }
            Action::Withdraw {
                settled_by_delete,
                simulated,
            } => {
                let changes = vec![RowChange::RemoveRow(step.address.clone())];
                let row = self.rows.get(&step.address);
                let incarnation = row.and_then(|row| match row.kind {
                    RowKind::Service { incarnation, .. } => Some(incarnation),
                    _ => None,
                });
                match (service_of(&step.address), incarnation) {
                    (Some((machine, service)), Some(incarnation))
                        if !settled_by_delete && !simulated =>
                    {
                        let boss = self.boss(step)?;
                        Work::Withdraw {
                            boss,
                            machine: (machine, incarnation),
                            service,
                            changes,
                        }
                    }
                    _ => Work::Rows(changes),
                }
            }
            Action::Bind {
                grant,
                revokes,
                simulated,
            } => self.bind_work(step, grant, revokes.as_ref(), *simulated, &mut intent)?,
            Action::Move {
                grant,
                revokes,
                simulated,
            } => self.bind_work(step, grant, Some(revokes), *simulated, &mut intent)?,
            Action::Expose { grant, simulated } => {
                self.bind_work(step, grant, None, *simulated, &mut intent)?
            }
            Action::Unbind { held, simulated } => {
                let row = self.rows.get(&step.address).cloned();
                if *simulated {
                    Work::Rows(vec![RowChange::RemoveRow(step.address.clone())])
                } else {
                    let request = self.unbind_request(&step.address, held);
                    Work::Unbind {
                        boss: self.boss(step)?,
                        leftover: self.leftover(held, row.as_deref()),
                        request,
                        row,
                        teller: self.teller(step),
                    }
                }
            }
        };
        Ok((intent, work))
    }

    /// Returns the machine whose place a new one takes, as it was when this was planned.
    fn predecessor(&self, step: &Step, provider: &str) -> Prepared<Option<Observed>> {
        let row = self.apply.snapshot.rows.get(&step.address);
        let is_same = |row: &&Arc<Row>| match &row.kind {
            RowKind::Machine { provider: of, .. } => of == provider,
            _ => false,
        };
        let row = row.filter(is_same);
        row.map(|row| self.ending(step, provider, row)).transpose()
    }

    /// Returns a machine that ends, as it was last seen; where another one takes its place, what
    /// is declared now says what becomes of its data.
    fn ending(&self, step: &Step, provider: &str, row: &Row) -> Prepared<Observed> {
        let schema = &self.provider(step, provider)?.schema().machine;
        let mut steps = self.apply.plan.steps.iter();
        let next = steps.find_map(|it| match &it.action {
            Action::Create { wanted, .. } if it.address == step.address => Some(wanted),
            _ => None,
        });
        Ok(ended_as(schema, row, next))
    }

    /// Returns the rows of bindings that are to be granted again since their service becomes
    /// another one: once it has, only that tells whoever plans after a run that went no further.
    fn stale(&self, service: &Address) -> impl Iterator<Item = RowChange> {
        let says = move |because: &Because| match because {
            Because::ServiceChanged { service: it } => it == service,
            _ => false,
        };
        let steps = self.apply.plan.steps.iter();
        let again = steps.filter(move |it| it.because.iter().any(says));
        let rows = again.filter_map(|it| self.rows.get(&it.address));
        rows.map(|row| RowChange::PutRow(Box::new(made_stale(row))))
    }

    /// Returns what a machine is to be: as planned, with what was not known then.
    fn machine_wanted(&self, step: &Step, provider: &str, planned: &Value) -> Prepared<Known> {
        if !planned.contains_unknown() {
            return known(step, planned.clone());
        }
        let Address::Machine(instance) = &step.address else {
            return Err(bug(step));
        };
        let values = self.apply.evaluator.machine(instance).map_err(first)?;
        let block = &self.provider(step, provider)?.schema().machine;
        let wanted = wanted_of(block, &values, Some(planned));
        keeps_promise(step, planned, &wanted)?;
        known(step, wanted)
    }

    /// Returns what a service is, declared by its machine or by a binding `of` it: as planned, with
    /// what was not known then.
    fn service_spec(&self, step: &Step, planned: &Value, of: Option<&Address>) -> Prepared<Known> {
        if !planned.contains_unknown() {
            return known(step, planned.clone());
        }
        let Some((machine, service)) = service_of(&step.address) else {
            return Err(bug(step));
        };
        let evaluator = &self.apply.evaluator;
        let values = match of {
            Some(Address::Binding(binding)) => evaluator.binding(binding).map_err(first)?.object,
            _ => {
                let mut machine = evaluator.machine(&machine).map_err(first)?;
                machine.services.remove(&service)
            }
        };
        let values = values.ok_or_else(|| bug(step))?;
        keeps_promise(step, planned, &values.spec)?;
        known(step, values.spec)
    }

    pub(super) fn machine_work(
        &self,
        step: &Step,
        provider: &str,
        intent: &Intent,
        hob: HobValues,
        work: impl FnOnce(MachineWork) -> Work,
    ) -> Prepared<Work> {
        let row = self.rows.get(&step.address);
        let incarnation = row.and_then(|row| incarnation_of(row));
        Ok(work(MachineWork {
            provider: Arc::<dyn Provider>::clone(self.provider(step, provider)?),
            retirement: incarnation.and_then(|it| self.retirement(&step.address, it)),
            boss: self.apply.boss.clone(),
            invited: intent.claim.as_ref().map(|claim| Invited {
                claim: claim.swissnum_hash,
                incarnation: claim.incarnation,
                hob,
            }),
            stop: self.apply.stop.clone(),
            teller: self.teller(step),
        }))
    }

    pub(super) fn provider(&self, step: &Step, name: &str) -> Prepared<&Arc<dyn Provider>> {
        self.apply.providers.get(name).ok_or_else(|| {
            let detail = format!("{} needs the provider {name:?}.", step.address);
            Box::new(about(step, "Unknown provider", detail))
        })
    }

    pub(super) fn teller(&self, step: &Step) -> Teller {
        Teller {
            events: self.apply.events.clone(),
            address: step.address.clone(),
        }
    }

    pub(super) fn boss(&self, step: &Step) -> Prepared<Boss> {
        self.apply.boss.clone().ok_or_else(|| bug(step))
    }

    pub(super) fn row(&self, step: &Step, address: &Address) -> Prepared<Arc<Row>> {
        self.rows.get(address).cloned().ok_or_else(|| bug(step))
    }
}

impl Detail {
    /// Reads what an earlier run, perhaps of another version, wrote.
    pub(super) fn read(json: &serde_json::Value) -> Option<Self> {
        serde_json::from_value(json.clone()).ok()
    }
}

/// Returns what the provider is asked for: the row's `wanted` without what is gobs' own.
pub(super) fn provider_wanted(wanted: &Known) -> Known {
    let Some(entries) = wanted.value().as_entries() else {
        return wanted.clone();
    };
    let theirs = entries.iter().filter(|(name, _)| &***name != HOB);
    let theirs = theirs.map(|(name, value)| (name.clone(), value.clone()));
    // A part of what is known is known.
    Known::try_from(Value::object(theirs)).unwrap_or_else(|_| Known::empty())
}

/// Returns a machine as its row last saw it.
pub(crate) fn observed_of(row: &Row) -> Observed {
    let id = match &row.kind {
        RowKind::Machine { id, .. } => id.clone(),
        _ => String::new(),
    };
    Observed {
        id,
        attributes: row.observed.clone(),
    }
}

/// Returns a machine's row with what the provider says.
pub(super) fn with_observed(mut row: Row, observed: Observed) -> Row {
    if let RowKind::Machine { id, .. } = &mut row.kind {
        *id = observed.id;
    }
    row.observed = observed.attributes;
    row
}

/// Returns a binding's row with where programs find it.
pub(super) fn with_bound(mut row: Row, name: &str, address: &str, directory: &str) -> Row {
    let id = match row.kind {
        RowKind::Binding { generation, .. } => format!("{}#{generation}", row.address),
        _ => row.address.to_string(),
    };
    let observed = [
        ("id", id.as_str()),
        ("as", name),
        ("address", address),
        ("directory", directory),
    ];
    let observed = Value::object(observed.map(|(field, text)| (field, Value::from(text))));
    row.observed = Known::try_from(observed).unwrap_or_else(|_| Known::empty());
    row
}

pub(super) fn set_enrolled(row: &mut Row, designator: &str) {
    if let RowKind::Machine { enrolled, .. } = &mut row.kind {
        *enrolled = Some(designator.to_owned());
    }
}

pub(super) fn incarnation_of(row: &Row) -> Option<u64> {
    match row.kind {
        RowKind::Machine { incarnation, .. } => Some(incarnation),
        _ => None,
    }
}

pub(super) fn service_of(address: &Address) -> Option<(Instance, Name)> {
    match address {
        Address::Service { machine, service } => Some((machine.clone(), service.clone())),
        _ => None,
    }
}

pub(super) fn known(step: &Step, value: Value) -> Prepared<Known> {
    Known::try_from(value).map_err(|unknown| {
        let detail = format!(
            "{} of {} is still not known, though everything that it refers to exists.",
            if unknown.0.0.is_empty() {
                "The value".into()
            } else {
                format!("The value at {}", unknown.0)
            },
            step.address
        );
        Box::new(about(step, "Value not known", detail))
    })
}

pub(super) fn first(diagnostics: Vec<Diagnostic>) -> Box<Diagnostic> {
    let error = diagnostics.into_iter().find(Diagnostic::is_error);
    Box::new(
        error.unwrap_or_else(|| Diagnostic::error("Evaluation failed", "No value came of it.")),
    )
}

pub(super) fn randomness(step: &Step, error: &std::io::Error) -> Box<Diagnostic> {
    let detail = format!("The system gave no random bytes: {error}.");
    Box::new(about(step, "No randomness", detail))
}

pub(super) fn bug(step: &Step) -> Box<Diagnostic> {
    let detail = format!(
        "The step {} of {} lacks what it needs. This is a mistake in gobs; please report it.",
        step.action.name(),
        step.address
    );
    Box::new(about(step, "Impossible step", detail))
}

pub(super) fn about(step: &Step, summary: &str, detail: String) -> Diagnostic {
    Diagnostic::error(summary, detail).about(step.address.clone(), Path::default())
}
