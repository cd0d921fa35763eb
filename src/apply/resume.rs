//! A binding whose run was cut off while it was granted, again perhaps: what works stays in use.

use std::time::Duration;

use gobs_model::{Address, Instance, Value};
use gobs_state::{Phase, Row, RowChange, RowKind, Snapshot};
use hob::protocol::Attenuate;
use tokio::sync::watch;

use crate::boss::{BindRequest, Boss, BossError, Bound, UnbindRequest, Unbound};

use super::act::pending;
use super::prepare::{Granting, service_of, with_bound};
use super::teller::Teller;

/// How a grant that was begun has ended.
pub(super) enum Resumed {
    /// Programs have it, and this is true since.
    InUse(Vec<RowChange>),
    /// It is taken back, and this is true since.
    TakenBack(Vec<RowChange>),
}

/// Settles a grant that may have been made: one that programs were switched to is kept, and what
/// it took the place of is revoked; another is taken back, and what programs have stays.
///
/// # Errors
/// Why it cannot be settled now, as a fragment.
pub(super) async fn resume(
    boss: &Boss,
    snapshot: &Snapshot,
    granting: Granting,
    teller: &Teller,
) -> Result<Resumed, String> {
    let binding = &teller.address;
    let row = snapshot.rows.get(binding).map(|row| &**row);
    let begun = Begun::of(snapshot, binding, granting);
    let Some(importer) = &begun.importer else {
        return begun.take_back(boss, row).await;
    };
    let held = boss.held(importer, binding).await;
    let Some((generation, bound)) = held.map_err(|error| error.to_string())? else {
        return begun.take_back(boss, row).await;
    };
    let earlier = row.and_then(|row| Earlier::of(snapshot, row));
    let may_stay = row.is_none() || earlier.is_some();
    if generation == begun.granting.generation && may_stay {
        return begun.keep(boss, (row, earlier), bound, teller).await;
    }
    match earlier {
        Some(earlier) if earlier.generation == generation => begun.abandon(boss, row).await,
        _ => begun.take_back(boss, row).await,
    }
}

/// A grant that may have been made, and its machines as far as they are still what they were.
struct Begun {
    binding: Address,
    granting: Granting,
    exporter: Option<(Instance, u64)>,
    importer: Option<(Instance, u64)>,
}

/// A grant that another one was to take the place of.
struct Earlier {
    generation: u64,
    /// Where it came from, if that is still there.
    exporter: Option<(Instance, u64)>,
}

impl Earlier {
    /// Returns the grant that a row says is in use.
    fn of(snapshot: &Snapshot, row: &Row) -> Option<Self> {
        let RowKind::Binding {
            generation,
            from_incarnation,
            phase: Phase::Granted,
            ..
        } = row.kind
        else {
            return None;
        };
        let from = |name| row.wanted.get(name).and_then(Value::as_ref_address);
        let from = from("service").or_else(|| from("from"))?;
        let exporter = alive(snapshot, from, from_incarnation);
        Some(Self {
            generation,
            exporter,
        })
    }
}

impl Begun {
    fn of(snapshot: &Snapshot, binding: &Address, granting: Granting) -> Self {
        Self {
            binding: binding.clone(),
            exporter: alive(snapshot, &granting.from, granting.from_incarnation),
            importer: alive(snapshot, &granting.to, granting.to_incarnation),
            granting,
        }
    }

    fn request(&self) -> UnbindRequest {
        UnbindRequest {
            binding: self.binding.clone(),
            generation: self.granting.generation,
            exporter: self.exporter.clone(),
            importer: self.importer.clone(),
        }
    }

    /// Does what the run would have done next: sees that the service answers, and ends what was
    /// before.
    async fn keep(
        self,
        boss: &Boss,
        (row, earlier): (Option<&Row>, Option<Earlier>),
        bound: Bound,
        teller: &Teller,
    ) -> Result<Resumed, String> {
        // Of a journal that an older version wrote, what was granted is not known.
        let (Some(request), Some(is)) = (self.bind_request(), &self.granting.row) else {
            return self.take_back(boss, row).await;
        };
        let reason = watch::Sender::default();
        let answers = tokio::select! {
            answers = boss.check(&request, &reason) => answers,
            never = teller.reasons(&reason) => match never {},
        };
        match answers {
            Ok(()) => {}
            Err(BossError::NotReady { .. }) => return self.abandon(boss, row).await,
            Err(error) => return Err(error.to_string()),
        }
        if let Some(Earlier {
            generation,
            exporter: Some(exporter),
        }) = earlier
        {
            let request = UnbindRequest {
                binding: self.binding.clone(),
                generation,
                exporter: Some(exporter),
                // It has switched.
                importer: None,
            };
            if is.drain_s > 0 {
                teller.say("waiting for live streams to end".into());
                boss.drain(&request, Duration::from_secs(is.drain_s)).await;
            }
            match boss.unbind(request).await {
                Ok(Unbound::Done | Unbound::Left(_)) => {}
                // One that cannot be revoked is known to its row alone, which then has to stay.
                Ok(Unbound::Pending(_)) => return self.take_back(boss, row).await,
                Err(error) => return Err(error.to_string()),
            }
        }
        let kept = Row {
            address: self.binding.clone(),
            wanted: is.wanted.clone(),
            observed: gobs_model::Known::empty(),
            depends_on: is.depends_on.clone(),
            version: 0,
            kind: RowKind::Binding {
                generation: self.granting.generation,
                from_incarnation: self.granting.from_incarnation,
                to_incarnation: self.granting.to_incarnation,
                parent: is.parent,
                phase: Phase::Granted,
            },
        };
        let kept = with_bound(
            kept,
            request.name.as_str(),
            &bound.address,
            &bound.directory,
        );
        Ok(Resumed::InUse(vec![RowChange::PutRow(Box::new(kept))]))
    }

    /// Returns what is asked of a grant that is there; nothing where its machine is not.
    fn bind_request(&self) -> Option<BindRequest> {
        let row = self.granting.row.as_ref()?;
        let (_, service) = service_of(&self.granting.from)?;
        let name = row.wanted.get("as")?.as_str()?;
        Some(BindRequest {
            binding: self.binding.clone(),
            generation: self.granting.generation,
            exporter: self.exporter.clone()?,
            service,
            parent: None,
            importer: self.importer.clone()?,
            name: gobs_model::Name::new(name).ok()?,
            attenuate: Attenuate::default(),
            expose: Value::NULL,
            ready: Duration::from_secs(row.ready_s),
            replaces: true,
        })
    }

    /// Takes it back alone: what programs have stays.
    async fn abandon(self, boss: &Boss, row: Option<&Row>) -> Result<Resumed, String> {
        if self.exporter.is_none() {
            // What it was made at is gone, and programs have something else.
            return Ok(Resumed::TakenBack(Vec::new()));
        }
        match boss.abandon(self.request()).await {
            Ok(None) => Ok(Resumed::TakenBack(Vec::new())),
            Ok(Some(Unbound::Done | Unbound::Left(_))) => Ok(ended(&self.binding, row)),
            Ok(Some(Unbound::Pending(why))) => Err(why),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes it back with all that was before: programs have none of it, or none that is known.
    async fn take_back(self, boss: &Boss, row: Option<&Row>) -> Result<Resumed, String> {
        if self.exporter.is_some() || self.importer.is_some() {
            match boss.unbind(self.request()).await {
                Ok(Unbound::Done | Unbound::Left(_)) => {}
                Ok(Unbound::Pending(why)) => return Err(why),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(ended(&self.binding, row))
    }
}

/// Returns what is true when nothing of a binding is in use any more: it is granted afresh.
fn ended(binding: &Address, row: Option<&Row>) -> Resumed {
    Resumed::TakenBack(match row {
        Some(row) => pending(Some(row)),
        None => vec![RowChange::RemoveRow(binding.clone())],
    })
}

/// Returns the machine of an address, if it is there and still what it was then.
fn alive(snapshot: &Snapshot, of: &Address, then: u64) -> Option<(Instance, u64)> {
    let machine = of.as_machine()?;
    let row = snapshot.rows.get(&Address::Machine(machine.clone()))?;
    match row.kind {
        RowKind::Machine {
            incarnation,
            enrolled: Some(_),
            ..
        } if incarnation == then => Some((machine.clone(), then)),
        _ => None,
    }
}
