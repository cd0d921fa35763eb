//! Effects: each runs only when its intent is on disk.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use gobs_model::{Address, Block, Diagnostic, Instance, Known, Name, Path};
use gobs_provider::{CreateRequest, Error, Observed, Provider, Token, UpdateRequest};
use gobs_state::{Phase, Row, RowChange, RowKind, Started};
use tokio::sync::watch;

use crate::boss::{Boss, BossError, UnbindRequest, Unbound};
use crate::plan::without_additions;

use super::bind::BindWork;
use super::home::{Awaited, Invited};
use super::left::{after_lost, look_for, only_made, perhaps};
use super::prepare::{set_enrolled, with_observed};
use super::retire::{Retirement, take_back};
use super::teller::{Teller, last_of};

/// How often a call that the provider was too busy for is made: with the waits that providers
/// ask for, a quarter of an hour and more.
const BUSY_TRIES_MAX: u32 = 60;

/// The longest wait that a provider may ask for; a longer one is cut to this.
pub(super) const BUSY_WAIT_MAX: Duration = Duration::from_secs(120);

/// How often a change whose answer was lost, and of which nothing is to be seen, is asked for
/// again before the step is left in doubt.
const LOST_TRIES_MAX: u32 = 3;

/// What a step does.
pub(super) enum Work {
    /// Changes rows only.
    Rows(Vec<RowChange>),
    Create {
        work: MachineWork,
        request: CreateRequest,
        row: Row,
    },
    /// `mark` is what tells this project's machines from others'.
    Import {
        work: MachineWork,
        row: Row,
        mark: String,
    },
    /// `old` is the row until then, `ended` the incarnation whose hob a rebuild ends.
    Update {
        work: MachineWork,
        request: UpdateRequest,
        old: Arc<Row>,
        row: Row,
        ended: Option<u64>,
    },
    Delete {
        work: MachineWork,
        before: Observed,
        ended: u64,
        changes: Vec<RowChange>,
    },
    Enroll {
        boss: Boss,
        incarnation: u64,
        awaited: Box<Awaited>,
        row: Row,
        stop: watch::Receiver<bool>,
        teller: Teller,
    },
    Offer {
        boss: Boss,
        machine: (Instance, u64),
        service: Name,
        spec: Known,
        ready: Duration,
        changes: Vec<RowChange>,
        /// The row that the service has until now.
        old: Option<Arc<Row>>,
        stop: watch::Receiver<bool>,
        teller: Teller,
    },
    Withdraw {
        boss: Boss,
        machine: (Instance, u64),
        service: Name,
        changes: Vec<RowChange>,
    },
    Bind(Box<BindWork>),
    Unbind {
        boss: Boss,
        leftover: Option<UnbindRequest>,
        request: UnbindRequest,
        row: Option<Arc<Row>>,
        teller: Teller,
    },
}

/// What every call of a provider needs.
pub(super) struct MachineWork {
    pub(super) provider: Arc<dyn Provider>,
    pub(super) boss: Option<Boss>,
    /// The invitation that the machine's hob is given, if it is given one.
    pub(super) invited: Option<Invited>,
    /// What to do before the machine's hob ends.
    pub(super) retirement: Option<Retirement>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) teller: Teller,
}

/// How a step ended.
pub(super) enum Ended {
    Done(Vec<RowChange>),
    Failed {
        diagnostic: Box<Diagnostic>,
        changes: Vec<RowChange>,
    },
    /// Nobody knows whether it was done.
    InDoubt(Box<Diagnostic>),
}

impl Work {
    /// Does it. The proof is not read; it is asked for so that nothing starts without one.
    pub(super) async fn run(self, _proof: &Started) -> Ended {
        match self {
            Self::Rows(changes) => Ended::Done(changes),
            Self::Create { work, request, row } => work.create(request, row).await,
            Self::Import { work, row, mark } => work.adopt(row, &mark).await,
            Self::Update {
                work,
                request,
                old,
                row,
                ended,
            } => work.update(request, (&old, row), ended).await,
            Self::Delete {
                work,
                before,
                ended,
                changes,
            } => work.delete(before, ended, changes).await,
            Self::Enroll {
                boss,
                incarnation,
                awaited,
                mut row,
                mut stop,
                teller,
            } => {
                teller.waiting("the hob");
                let machine = row.address.clone();
                let visits = async {
                    if !awaited.call.is_empty() {
                        boss.visit(&machine, incarnation, &awaited.call).await;
                    }
                    // Whoever waits for the arrival ends this.
                    std::future::pending::<Infallible>().await
                };
                let registered = tokio::select! {
                    registered = boss.wait_registered(&machine, incarnation, awaited.ttl) => {
                        registered
                    }
                    never = visits => match never {},
                    diagnostic = awaited.look_after(&boss, &machine, incarnation) => {
                        return Ended::Failed { diagnostic, changes: Vec::new() };
                    }
                    // Waiting changes nothing, so it need not be finished.
                    () = asked_to_stop(&mut stop) => return Ended::Failed {
                        diagnostic: Box::new(Diagnostic::error(
                            "Stopped waiting",
                            format!("The hob on {machine} had not called home yet. The next apply \
                                     waits for it again."),
                        )),
                        changes: Vec::new(),
                    },
                };
                match registered {
                    Ok(registered) => {
                        if let Some(from) = registered.unexpected {
                            teller.say(format!(
                                "Its hob called from {from}, which is none of its addresses: see \
                                 that nobody else has its place (require_address refuses that)"
                            ));
                        }
                        set_enrolled(&mut row, &registered.designator);
                        Ended::Done(vec![RowChange::PutRow(Box::new(row))])
                    }
                    Err(error) => refused("Enrollment failed", &machine, &error),
                }
            }
            Self::Offer {
                boss,
                machine,
                service,
                spec,
                ready,
                changes,
                old,
                mut stop,
                teller,
            } => {
                teller.waiting("the service");
                let address = teller.address.clone();
                let reason = watch::Sender::default();
                let offer = boss.offer(&machine, &service, &spec, ready, &reason);
                let done = tokio::select! {
                    done = offer => done,
                    never = teller.reasons(&reason) => match never {},
                    // What was offered is offered again by the next apply.
                    () = asked_to_stop(&mut stop) => return Ended::Failed {
                        diagnostic: Box::new(Diagnostic::error(
                            "Stopped waiting",
                            format!("{address} did not answer yet{}. The next apply waits for it \
                                     again.", last_of(&reason)),
                        )),
                        changes: unsettled(old.as_deref()),
                    },
                };
                let diagnostic = match done {
                    Ok(()) => return Ended::Done(changes),
                    Err(error @ BossError::NotReady { .. }) => {
                        Box::new(not_ready(&address, &error))
                    }
                    Err(error) => refusal("Offer failed", &address, &error),
                };
                Ended::Failed {
                    diagnostic,
                    changes: unsettled(old.as_deref()),
                }
            }
            Self::Withdraw {
                boss,
                machine,
                service,
                changes,
            } => {
                let done = boss.withdraw(&machine, &service).await;
                let address = Address::Service {
                    machine: machine.0,
                    service,
                };
                settled("Withdrawal failed", &address, done, changes)
            }
            Self::Bind(work) => work.run().await,
            Self::Unbind {
                boss,
                leftover,
                request,
                row,
                teller,
            } => {
                if let Some(leftover) = leftover {
                    take_back(&boss, leftover).await;
                }
                let binding = request.binding.clone();
                match boss.unbind(request).await {
                    Ok(Unbound::Done) => Ended::Done(vec![RowChange::RemoveRow(binding)]),
                    Ok(Unbound::Pending(why) | Unbound::Left(why)) => {
                        teller.progress()(format!("revoke pending: {why}"));
                        Ended::Done(pending(row.as_deref()))
                    }
                    Err(error) => refused("Revocation failed", &binding, &error),
                }
            }
        }
    }
}

impl MachineWork {
    fn schema(&self) -> &Block {
        &self.provider.schema().machine
    }

    async fn create(self, request: CreateRequest, row: Row) -> Ended {
        let mut lost = 0;
        let bare = without_additions(self.schema(), row.wanted.value());
        loop {
            let answer = self
                .unless_busy(|| {
                    self.provider
                        .create(request.clone(), self.teller.progress())
                })
                .await;
            let error = match answer {
                Ok(observed) => {
                    self.accepted(&observed);
                    return created(row, observed);
                }
                Err(error) => after_lost(lost, error),
            };
            let Error::InDoubt(_) = &error else {
                // A refusal changes nothing, and of a plain machine there is nothing beside it.
                if !matches!(error, Error::Busy { .. }) || bare == *row.wanted.value() {
                    return self.failed("Creation failed", &error);
                }
                // What was made for the machine that is not goes too; else the next run does that.
                let error = match self.provider.abandon(&self.teller.address).await {
                    Ok(()) => error,
                    Err(left) => Error::InDoubt(format!("{error}, and then: {left}")),
                };
                return self.failed("Creation failed", &error);
            };
            lost += 1;
            // Never repeated blindly: it may exist.
            match self.look_for(&request.token).await {
                Ok(Some(observed)) if bare == *row.wanted.value() => {
                    self.accepted(&observed);
                    return created(row, observed);
                }
                // It is there, but perhaps not all that comes after it: a repeat makes only that.
                Ok(Some(_)) if lost < LOST_TRIES_MAX => {}
                Ok(Some(observed)) => {
                    self.accepted(&observed);
                    let asked = row.wanted.clone();
                    let row = only_made(self.schema(), with_observed(row, observed), &asked);
                    return self.incomplete(&error, row);
                }
                Ok(None) if lost < LOST_TRIES_MAX => {}
                Ok(None) | Err(_) => return self.failed("Creation in doubt", &error),
            }
        }
    }

    /// Keeps a machine that was made, though not all that belongs to it.
    fn incomplete(&self, error: &Error, row: Row) -> Ended {
        let address = &self.teller.address;
        let detail = format!("{address} was made, but not all of its blocks: {error}.");
        let diagnostic = Diagnostic::error("Creation incomplete", detail)
            .about(address.clone(), Path::default())
            .hint("The next apply makes what is missing.");
        Ended::Failed {
            diagnostic: Box::new(diagnostic),
            changes: vec![RowChange::PutRow(Box::new(row))],
        }
    }

    async fn update(
        self,
        request: UpdateRequest,
        (old, row): (&Row, Row),
        ended: Option<u64>,
    ) -> Ended {
        let mut lost = 0;
        if ended.is_some() {
            self.retire().await;
        }
        loop {
            let answer = self
                .unless_busy(|| {
                    self.provider
                        .update(request.clone(), self.teller.progress())
                })
                .await;
            match answer {
                Ok(observed) => {
                    self.accepted(&observed);
                    self.forget(ended);
                    let row = with_observed(row, observed);
                    return Ended::Done(vec![RowChange::PutRow(Box::new(row))]);
                }
                // The request carries its token, so that a repeat is no second change.
                Err(Error::InDoubt(_)) if lost < LOST_TRIES_MAX => lost += 1,
                Err(error) => {
                    let mut failed = self.failed("Change failed", &after_lost(lost, error));
                    if let Ended::Failed { changes, .. } = &mut failed {
                        // It failed in its midst, perhaps: what it was to add may be there.
                        let left = perhaps(self.schema(), old, &row.wanted);
                        changes.extend(left.map(|it| RowChange::PutRow(Box::new(it))));
                    }
                    return if ended.is_some() {
                        self.stays(failed)
                    } else {
                        failed
                    };
                }
            }
        }
    }

    async fn delete(self, before: Observed, ended: u64, changes: Vec<RowChange>) -> Ended {
        let mut lost = 0;
        self.retire().await;
        loop {
            let answer = self
                .unless_busy(|| self.provider.delete(&before, self.teller.progress()))
                .await;
            match answer {
                Ok(()) => break,
                // Deleting what is gone is a success, so a repeat tells.
                Err(Error::InDoubt(_)) if lost < LOST_TRIES_MAX => lost += 1,
                Err(error) => {
                    let failed = self.failed("Deletion failed", &after_lost(lost, error));
                    return self.stays(failed);
                }
            }
        }
        self.forget(Some(ended));
        Ended::Done(changes)
    }

    async fn retire(&self) {
        if let Some(retirement) = &self.retirement {
            self.teller.waiting("the hob, to take back what it made");
            retirement.run().await;
        }
    }

    /// Says with a failure that the machine goes on, but what it had granted is cut.
    fn stays(&self, mut failed: Ended) -> Ended {
        if let (Ended::Failed { changes, .. }, Some(retirement)) = (&mut failed, &self.retirement) {
            changes.extend(retirement.undone());
        }
        failed
    }

    fn accepted(&self, seen: &Observed) {
        if let (Some(boss), Some(invited)) = (&self.boss, &self.invited) {
            invited.accepted(boss, &self.teller.address, self.provider.schema(), seen);
        }
    }

    /// Ends the claim and the presence of a hob that is gone.
    fn forget(&self, ended: Option<u64>) {
        if let (Some(boss), Some(ended)) = (&self.boss, ended)
            && let Err(error) = boss.forget(&self.teller.address, ended)
        {
            // The machine is gone all the same; a claim of it only lives until its time is over.
            tracing::warn!(%error, machine = %self.teller.address, "a claim was not withdrawn");
        }
    }

    pub(super) async fn unless_busy<'a, T, F>(&'a self, call: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + 'a,
    {
        let mut tries = 0;
        loop {
            match call().await {
                Err(Error::Busy { after, .. }) if tries < BUSY_TRIES_MAX => {
                    tries += 1;
                    self.teller.waiting("the provider, which is busy");
                    let mut stop = self.stop.clone();
                    tokio::select! {
                        () = tokio::time::sleep(after.min(BUSY_WAIT_MAX)) => {}
                        // Nothing was changed, and another try would be a new call.
                        () = asked_to_stop(&mut stop) => {
                            let message = "stopped while the provider was busy".into();
                            return Err(Error::Busy { message, after });
                        }
                    }
                }
                other => return other,
            }
        }
    }

    /// Looks for a machine until its absence means something.
    async fn look_for(&self, token: &Token) -> Result<Option<Observed>, Error> {
        look_for(&*self.provider, token).await
    }

    pub(super) fn failed(&self, summary: &str, error: &Error) -> Ended {
        let (path, hint) = match error {
            Error::Rejected { attribute, .. } => (
                attribute
                    .as_deref()
                    .map(Path::attribute)
                    .unwrap_or_default(),
                None,
            ),
            Error::Denied(_) => (
                Path::default(),
                Some("Check the provider's credentials and what they allow."),
            ),
            Error::Busy { .. } => (Path::default(), Some("Try again later.")),
            Error::InDoubt(_) => (
                Path::default(),
                Some("Nobody knows whether it was done: the next run looks before it acts."),
            ),
        };
        let detail = format!("{}: {error}.", self.teller.address);
        let mut diagnostic =
            Diagnostic::error(summary, detail).about(self.teller.address.clone(), path);
        diagnostic.hint = hint.map(ToOwned::to_owned);
        let diagnostic = Box::new(diagnostic);
        match error {
            Error::InDoubt(_) => Ended::InDoubt(diagnostic),
            _ => Ended::Failed {
                diagnostic,
                changes: Vec::new(),
            },
        }
    }
}

fn created(row: Row, observed: Observed) -> Ended {
    Ended::Done(vec![RowChange::PutRow(Box::new(with_observed(
        row, observed,
    )))])
}

/// Returns the row of a binding whose revocation is not over.
pub(super) fn pending(row: Option<&Row>) -> Vec<RowChange> {
    let Some(mut row) = row.cloned() else {
        return Vec::new();
    };
    if let RowKind::Binding { phase, .. } = &mut row.kind {
        *phase = Phase::RevokePending;
    }
    vec![RowChange::PutRow(Box::new(row))]
}

/// Returns the row of a service of which nobody knows what its hob has: what was to be offered
/// did not answer, and may be there all the same.
pub(super) fn unsettled(row: Option<&Row>) -> Vec<RowChange> {
    let Some(mut row) = row.cloned() else {
        return Vec::new();
    };
    if let RowKind::Service { unsettled, .. } = &mut row.kind {
        *unsettled = true;
    }
    vec![RowChange::PutRow(Box::new(row))]
}

fn settled(
    summary: &str,
    address: &Address,
    done: Result<(), BossError>,
    changes: Vec<RowChange>,
) -> Ended {
    match done {
        Ok(()) => Ended::Done(changes),
        Err(error) => refused(summary, address, &error),
    }
}

fn refused(summary: &str, address: &Address, error: &BossError) -> Ended {
    Ended::Failed {
        diagnostic: refusal(summary, address, error),
        changes: Vec::new(),
    }
}

pub(super) fn refusal(summary: &str, address: &Address, error: &BossError) -> Box<Diagnostic> {
    let hint = match error {
        BossError::Unclaimed { .. } => Some(
            "Look at the machine's own log (journalctl -u gobs-hob, its console). The next apply \
             offers to begin anew with a fresh secret.",
        ),
        BossError::Unreachable { .. } => {
            Some("See `gobs status`, and whether the machine runs. The next apply tries again.")
        }
        BossError::Contested { .. } => {
            Some("Look at `gobs status`: another key tried to be this machine.")
        }
        _ => None,
    };
    let mut diagnostic = Diagnostic::error(summary, format!("{address}: {error}."))
        .about(address.clone(), Path::default());
    diagnostic.hint = hint.map(ToOwned::to_owned);
    Box::new(diagnostic)
}

pub(super) fn not_ready(address: &Address, error: &BossError) -> Diagnostic {
    let mut detail = format!("{address}: {error}.");
    if let BossError::NotReady { machine, log, .. } = error
        && !log.is_empty()
    {
        let machine = Address::Machine(machine.clone());
        detail += &format!("\nThe end of the logs of {machine}:\n{}", log.trim_end());
    }
    Diagnostic::error("Service does not answer", detail)
        .about(address.clone(), Path::default())
        .hint("The next apply tries again.")
}

pub(super) async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone will never ask.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
