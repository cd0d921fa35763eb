//! Grants: made, moved, and seen in another way.

use std::sync::Arc;
use std::time::Duration;

use gobs_model::{Address, Diagnostic, Known, Name, Path, Value};
use gobs_state::{Intent, Phase, Row, RowChange, RowKind};
use tokio::sync::watch;

use crate::boss::{BindRequest, Boss, BossError, UnbindRequest, Unbound};
use crate::lang::rights;
use crate::plan::{Action, Grant, Held, Step};

use super::Walk;
use super::act::{Ended, Work, asked_to_stop, not_ready, pending, refusal};
use super::prepare::{
    Detail, Granting, GrantingRow, Prepared, bug, detail, first, incarnation_of, known, service_of,
    with_bound,
};
use super::promise::keeps_promise;
use super::retire::take_back;
use super::teller::{Teller, last_of};

/// A grant, and what it takes the place of.
pub(super) struct BindWork {
    pub(super) boss: Boss,
    pub(super) request: BindRequest,
    /// Whether the grant is there already, and only how programs see it changes.
    pub(super) is_held: bool,
    pub(super) revokes: Option<UnbindRequest>,
    /// That grant at its exporter, where that one ends later in this run: it is let end, and taken
    /// back as far as that can be done.
    pub(super) ends: Option<UnbindRequest>,
    /// How long live streams may go on before that.
    pub(super) drain: Duration,
    /// The row that the binding has until now.
    pub(super) old: Option<Arc<Row>>,
    pub(super) name: Name,
    pub(super) row: Row,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) teller: Teller,
}

impl Walk<'_> {
    pub(super) fn bind_work(
        &self,
        step: &Step,
        grant: &Grant,
        revokes: Option<&Held>,
        simulated: bool,
        intent: &mut Intent,
    ) -> Prepared<Work> {
        let mut grant = grant.clone();
        if grant.attenuate.contains_unknown() || grant.expose.contains_unknown() {
            let Address::Binding(instance) = &step.address else {
                return Err(bug(step));
            };
            let values = self.apply.evaluator.binding(instance).map_err(first)?;
            keeps_promise(step, &grant.attenuate, &values.attenuate)?;
            keeps_promise(step, &grant.expose, &values.expose)?;
            (grant.attenuate, grant.expose) = (values.attenuate, values.expose);
        }
        let row = Row {
            address: step.address.clone(),
            wanted: known(step, grant.wanted())?,
            observed: Known::empty(),
            depends_on: step.depends_on.clone(),
            version: 0,
            kind: RowKind::Binding {
                generation: grant.generation,
                from_incarnation: grant.from_incarnation,
                to_incarnation: grant.to_incarnation,
                parent: grant.via.as_ref().map(|via| via.generation),
                phase: Phase::Granted,
            },
        };
        let is_held = matches!(step.action, Action::Expose { .. });
        // Rights that are narrowed end at once; it is another service that takes over.
        let drain_s = match &step.action {
            Action::Move { .. } => grant.drain_s,
            _ => 0,
        };
        // Nothing has to be taken back where its end is not known: the grant is there.
        if !is_held {
            intent.detail = detail(&Detail::Bind(Granting {
                generation: grant.generation,
                from: grant.from.clone(),
                from_incarnation: grant.from_incarnation,
                to: grant.to.clone(),
                to_incarnation: grant.to_incarnation,
                row: Some(GrantingRow {
                    wanted: row.wanted.clone(),
                    depends_on: row.depends_on.clone(),
                    parent: grant.via.as_ref().map(|via| via.generation),
                    ready_s: grant.ready_s,
                    drain_s,
                }),
            }));
        }
        if simulated {
            let row = with_bound(row, grant.name.as_str(), "simulated", "simulated");
            return Ok(Work::Rows(vec![RowChange::PutRow(Box::new(row))]));
        }
        let (Some((exporter, service)), Address::Machine(importer)) =
            (service_of(&grant.from), grant.to.clone())
        else {
            return Err(bug(step));
        };
        let request = BindRequest {
            binding: step.address.clone(),
            generation: grant.generation,
            exporter: (exporter, grant.from_incarnation),
            service,
            parent: grant.via.clone().map(|via| (via.binding, via.generation)),
            importer: (importer, grant.to_incarnation),
            name: grant.name.clone(),
            attenuate: rights(&grant.attenuate).ok_or_else(|| bug(step))?,
            expose: grant.expose.clone(),
            ready: Duration::from_secs(grant.ready_s),
            replaces: revokes.is_some(),
        };
        Ok(Work::Bind(Box::new(BindWork {
            boss: self.boss(step)?,
            request,
            old: self.rows.get(&step.address).cloned(),
            is_held,
            ends: revokes.and_then(|held| self.ends(&step.address, held)),
            revokes: revokes.map(|held| {
                let mut request = self.unbind_request(&step.address, held);
                // The receiver has switched to the new grant by then.
                if held.to == grant.to && held.name == grant.name {
                    request.importer = None;
                }
                request
            }),
            drain: Duration::from_secs(drain_s),
            name: grant.name,
            row,
            stop: self.apply.stop.clone(),
            teller: self.teller(step),
        })))
    }

    /// Returns a grant at an exporter that is there now and ends later in this run.
    fn ends(&self, binding: &Address, held: &Held) -> Option<UnbindRequest> {
        let mut request = self.unbind_request(binding, held);
        let Some(RowKind::Binding {
            from_incarnation, ..
        }) = self.rows.get(binding).map(|row| &row.kind)
        else {
            return None;
        };
        let machine = held.from.as_machine()?;
        let row = self.rows.get(&Address::Machine(machine.clone()))?;
        let is_there = incarnation_of(row) == Some(*from_incarnation);
        request.exporter = Some((machine.clone(), *from_incarnation));
        request.importer = None;
        Some(request).filter(|_| held.settled_by_delete && is_there)
    }

    pub(super) fn unbind_request(&self, binding: &Address, held: &Held) -> UnbindRequest {
        let kind = self.rows.get(binding).map(|row| row.kind.clone());
        let (from_incarnation, to_incarnation) = match kind {
            Some(RowKind::Binding {
                from_incarnation,
                to_incarnation,
                ..
            }) => (from_incarnation, to_incarnation),
            _ => (0, 0),
        };
        let machine = |address: &Address, incarnation, gone: bool| {
            address
                .as_machine()
                .filter(|_| !gone)
                .map(|it| (it.clone(), incarnation))
        };
        UnbindRequest {
            binding: binding.clone(),
            generation: held.generation,
            exporter: machine(&held.from, from_incarnation, held.settled_by_delete),
            importer: machine(&held.to, to_incarnation, held.importer_gone),
        }
    }
}

impl BindWork {
    pub(super) async fn run(self) -> Ended {
        if self.is_held {
            return self.expose().await;
        }
        self.teller.waiting("the service");
        let binding = self.request.binding.clone();
        let mut stop = self.stop.clone();
        let reason = watch::Sender::default();
        let bound = tokio::select! {
            bound = self.boss.bind(self.request.clone(), &reason) => bound,
            never = self.teller.reasons(&reason) => match never {},
            () = asked_to_stop(&mut stop) => {
                let detail = format!(
                    "{binding} was not in use yet{}; what was granted is taken back.",
                    last_of(&reason)
                );
                let diagnostic = Diagnostic::error("Stopped waiting", detail);
                return self.abandon(Box::new(diagnostic)).await;
            }
        };
        let bound = match bound {
            Ok(bound) => bound,
            Err(error @ BossError::NotReady { .. }) => {
                let diagnostic = not_ready(&binding, &error);
                return self.abandon(Box::new(diagnostic)).await;
            }
            Err(error) => {
                let diagnostic = refusal("Binding failed", &binding, &error);
                return self.abandon(diagnostic).await;
            }
        };
        if let Some(revokes) = self.revokes {
            if !self.drain.is_zero() {
                self.teller.waiting("live streams to end");
                tokio::select! {
                    () = self.boss.drain(self.ends.as_ref().unwrap_or(&revokes), self.drain) => {}
                    // The rest of the time is not given then.
                    () = asked_to_stop(&mut stop) => {}
                }
            }
            if let Some(ends) = self.ends {
                take_back(&self.boss, ends).await;
            }
            let detail = match self.boss.unbind(revokes).await {
                // The access is cut; the hob takes away the rest, whoever asks it.
                Ok(Unbound::Done | Unbound::Left(_)) => None,
                Ok(Unbound::Pending(detail)) => Some(detail),
                Err(error) => Some(error.to_string()),
            };
            if let Some(detail) = detail {
                let detail = format!(
                    "The new grant of {binding} is in use, but the old one could not be revoked: \
                     {detail}. The next apply revokes it; if it still cannot, it takes both back \
                     and grants {binding} afresh."
                );
                let diagnostic = Diagnostic::error("Old grant not revoked", detail)
                    .about(binding, Path::default());
                return Ended::InDoubt(Box::new(diagnostic));
            }
        }
        let row = with_bound(
            self.row,
            self.name.as_str(),
            &bound.address,
            &bound.directory,
        );
        Ended::Done(vec![RowChange::PutRow(Box::new(row))])
    }

    async fn expose(self) -> Ended {
        match self.boss.expose(self.request).await {
            Ok(bound) => {
                let (address, directory) = (&bound.address, &bound.directory);
                let row = with_bound(self.row, self.name.as_str(), address, directory);
                Ended::Done(vec![RowChange::PutRow(Box::new(row))])
            }
            Err(error) => Ended::Failed {
                diagnostic: refusal("Binding not updated", &self.row.address, &error),
                changes: unseen(self.old.as_deref()),
            },
        }
    }

    /// Takes back what may have been granted: a binding that failed leaves no capability behind.
    /// What it was to take the place of goes on, unless programs have been led away from it.
    async fn abandon(self, mut diagnostic: Box<Diagnostic>) -> Ended {
        let request = UnbindRequest {
            binding: self.request.binding,
            generation: self.request.generation,
            exporter: Some(self.request.exporter),
            importer: Some(self.request.importer),
        };
        let taken_back = match self.request.replaces {
            true => self.boss.abandon(request).await,
            false => self.boss.unbind(request).await.map(Some),
        };
        match taken_back {
            Ok(None) => {
                let stays = ["What it had before stays in use."].into_iter();
                let hint: Vec<&str> = stays.chain(diagnostic.hint.as_deref()).collect();
                diagnostic.hint = Some(hint.join(" "));
                Ended::Failed {
                    diagnostic,
                    changes: Vec::new(),
                }
            }
            Ok(Some(Unbound::Done | Unbound::Left(_))) => Ended::Failed {
                diagnostic,
                changes: pending(self.old.as_deref()),
            },
            // The intent stays in the journal, and the next run takes it back.
            Ok(Some(Unbound::Pending(_))) | Err(_) => Ended::InDoubt(diagnostic),
        }
    }
}

/// Returns the row of a binding of which nobody knows how programs see it.
pub(super) fn unseen(row: Option<&Row>) -> Vec<RowChange> {
    let Some(mut row) = row.cloned() else {
        return Vec::new();
    };
    let mut wanted = row.wanted.value().as_entries().cloned().unwrap_or_default();
    wanted.insert("expose".into(), Value::NULL);
    // What is known stays known without a part of it.
    row.wanted = Known::try_from(Value::object(wanted)).unwrap_or(row.wanted);
    vec![RowChange::PutRow(Box::new(row))]
}
