//! What of the grants is in memory: who may use them, tickets, and places of streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use ocapn::{Broken, PeerId};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use super::{Grants, now};
use crate::protocol::{
    Generation, GrantStatus, Near, Opened, PROOF_SIZE, ServiceKind, StreamReply, TICKET_LIFETIME,
    TICKET_SIZE, code,
};
use crate::service::ServiceError;
use crate::store::{GrantRow, Span, swissnum_hash};

/// Tickets that one grant may have outstanding: a storm of connections takes one each for the
/// moment of a dial. More are refused as busy.
pub(super) const TICKETS_MAX: usize = 1_024;

/// Streams that all grants of a machine may have open; the file descriptors are two for each, or
/// three where the importer is on this host.
const STREAMS_MAX: usize = 16_384;

#[derive(Default)]
pub(super) struct Live {
    pub(super) grants: HashMap<Generation, Arc<Membrane>>,
    pub(super) by_swissnum: HashMap<String, Arc<Membrane>>,
    /// By hash, so that a lookup's time tells nothing of a ticket.
    tickets: HashMap<String, Ticket>,
    /// Those that have left, until nothing of them is open any more.
    ending: Vec<Weak<Membrane>>,
}

/// One grant.
pub(super) struct Membrane {
    pub(super) row: GrantRow,
    /// Set once, before anything is cut.
    pub(super) revoked: watch::Sender<bool>,
    /// How many streams are open, those of grants made from it among them.
    pub(super) streams: watch::Sender<usize>,
    /// How many tickets are outstanding.
    tickets: AtomicUsize,
    /// Whether all that was open is cut, or why that is not known; there once it was waited for.
    cut: OnceCell<Result<(), ServiceError>>,
}

struct Ticket {
    membrane: Arc<Membrane>,
    /// What the importer is shown where it presents the ticket on this host.
    proof: [u8; PROOF_SIZE],
    expires: Instant,
}

/// One stream's place under the limits, given back when dropped.
pub(super) struct Place<'a> {
    grants: &'a Grants,
    /// The grant, and those that it was made from.
    entered: Vec<Arc<Membrane>>,
    /// Whether it is over the limit of connections, for a stream that is none.
    pub(super) crowded: bool,
}

impl Grants {
    /// Waits until nothing is open of a grant that has left.
    pub(super) async fn cut(&self, membrane: &Membrane) -> Result<(), ServiceError> {
        let cut = || async {
            // The sender is the membrane's, so this ends only by the condition.
            let mut streams = membrane.streams.subscribe();
            let _ = streams.wait_for(|streams| *streams == 0).await;
            self.services.end(&membrane.row.grant.generation()).await
        };
        membrane.cut.get_or_init(cut).await.clone()
    }

    /// Takes a ticket out, if it is this peer's and still good.
    pub(super) fn redeem(
        &self,
        ticket: &[u8],
        from: &PeerId,
        now: Instant,
    ) -> Option<Arc<Membrane>> {
        // A foreign key must not use up what is not its own.
        let taken = self.take_out(ticket, |membrane| membrane.answers(Some(from)), now);
        taken.map(|ticket| ticket.membrane)
    }

    /// Takes a ticket out that is presented on this host, where it alone says whose it is: it was
    /// given to the receiver's key only. Returns what proves to the importer who took it, too.
    pub(super) fn redeem_near(
        &self,
        ticket: &[u8],
        now: Instant,
    ) -> Option<(Arc<Membrane>, [u8; PROOF_SIZE])> {
        let taken = self.take_out(ticket, |_| true, now)?;
        Some((taken.membrane, taken.proof))
    }

    fn take_out(
        &self,
        ticket: &[u8],
        may: impl FnOnce(&Membrane) -> bool,
        now: Instant,
    ) -> Option<Ticket> {
        let hash = swissnum_hash(ticket);
        let mut live = self.live();
        live.tickets
            .get(&hash)
            .filter(|ticket| may(&ticket.membrane))?;
        let ticket = live.tickets.remove(&hash)?;
        ticket.membrane.tickets.fetch_sub(1, Ordering::Relaxed);
        (ticket.expires > now).then_some(ticket)
    }

    /// Takes a place for a stream, or for a call that gives something out.
    pub(super) fn enter(&self, membrane: &Arc<Membrane>) -> Result<Place<'_>, StreamReply> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(StreamReply::Busy);
        }
        let mut place = Place {
            grants: self,
            entered: Vec::new(),
            crowded: false,
        };
        let lineage = self.live().lineage(membrane).ok_or(StreamReply::Refused)?;
        for membrane in lineage {
            let max = membrane.row.rights.connections_max;
            let max = max.map_or(usize::MAX, |max| max as usize);
            let kind = membrane.row.minted.as_ref().map(|spec| &spec.kind);
            let spare = kind.map_or(0, ServiceKind::streams_spare);
            let entered = membrane.streams.send_if_modified(|streams| {
                let room = *streams < max.saturating_add(spare);
                *streams += usize::from(room);
                place.crowded |= *streams > max;
                room
            });
            if !entered {
                return Err(StreamReply::Busy);
            }
            place.entered.push(membrane);
        }
        // After the count, since a revocation sets the mark before it looks at the count.
        match place.entered.iter().any(|it| self.is_over(it)) {
            true => Err(StreamReply::Refused),
            false => Ok(place),
        }
    }

    /// Returns whether a grant is revoked, or its time is over: then it is about to be revoked,
    /// whatever the clock has been set to meanwhile.
    fn is_over(&self, membrane: &Membrane) -> bool {
        let end = membrane.row.rights.expires;
        let has_expired = end.is_some_and(|end| end <= now());
        if has_expired {
            self.ending.notify_one();
        }
        has_expired || *membrane.revoked.borrow()
    }

    /// Gives out one more ticket.
    pub(super) fn ticket(&self, membrane: &Arc<Membrane>) -> Result<Opened, Broken> {
        if self.is_over(membrane) {
            return Err(Broken::new(code::REVOKED, "this grant is revoked"));
        }
        let mut live = self.live();
        if membrane.tickets.load(Ordering::Relaxed) >= TICKETS_MAX {
            live.forget_expired(Instant::now());
        }
        if membrane.tickets.load(Ordering::Relaxed) >= TICKETS_MAX {
            return Err(Broken::new(
                code::BUSY,
                "too many tickets of this grant are unused",
            ));
        }
        let (mut ticket, mut proof) = ([0; TICKET_SIZE], [0; PROOF_SIZE]);
        getrandom::fill(&mut ticket)
            .and_then(|()| getrandom::fill(&mut proof))
            .map_err(|_| Broken::new(code::BUSY, "the machine has no randomness"))?;
        membrane.tickets.fetch_add(1, Ordering::Relaxed);
        let expires = Instant::now() + TICKET_LIFETIME;
        let entry = Ticket {
            membrane: Arc::clone(membrane),
            proof,
            expires,
        };
        live.tickets.insert(swissnum_hash(&ticket), entry);
        let near = self.near.get();
        let near = near.map(|&(host, name)| Near { host, name, proof });
        Ok(Opened { ticket, near })
    }
}

impl Live {
    /// Takes a grant up, or finds it.
    pub(super) fn enter(&mut self, row: GrantRow) -> Arc<Membrane> {
        let generation = row.grant.generation();
        let membrane = self.grants.entry(generation).or_insert_with(|| {
            Arc::new(Membrane {
                row,
                revoked: watch::Sender::new(false),
                streams: watch::Sender::new(0),
                tickets: AtomicUsize::new(0),
                cut: OnceCell::new(),
            })
        });
        let membrane = Arc::clone(membrane);
        self.by_swissnum
            .insert(membrane.row.swissnum_hash.clone(), Arc::clone(&membrane));
        membrane
    }

    /// Lets a grant go that nobody has.
    pub(super) fn forget(&mut self, generation: &Generation) {
        if let Some(gone) = self.grants.remove(generation) {
            self.by_swissnum.remove(&gone.row.swissnum_hash);
        }
    }

    /// Lets a generation go, perhaps with all before it, and what was made from them.
    pub(super) fn leave(&mut self, revoked: &Generation, span: Span) -> Vec<Arc<Membrane>> {
        let mut ended = Vec::new();
        let mut next = vec![revoked.clone()];
        while let Some(revoked) = next.pop() {
            let within = |it: &Generation| span.has(&revoked, it);
            ended.extend(self.grants.extract_if(|it, _| within(it)).map(|(_, it)| it));
            let children = self
                .grants
                .iter()
                .filter(|(_, membrane)| membrane.row.grant.parent.as_ref().is_some_and(within));
            next.extend(children.map(|(generation, _)| generation.clone()));
        }
        let ends = |membrane: &Arc<Membrane>| ended.iter().any(|it| Arc::ptr_eq(it, membrane));
        if !ended.is_empty() {
            self.by_swissnum.retain(|_, membrane| !ends(membrane));
            self.tickets.retain(|_, ticket| !ends(&ticket.membrane));
        }
        self.ending
            .retain(|it| it.upgrade().is_some_and(|it| !it.cut.initialized()));
        self.ending.extend(ended.iter().map(Arc::downgrade));
        ended
    }

    /// Returns what is still ending of a generation and all before it, and of these.
    pub(super) fn ending(
        &self,
        revoked: &Generation,
        ended: &[Arc<Membrane>],
    ) -> Vec<Arc<Membrane>> {
        let of = |membrane: &Arc<Membrane>| {
            let it = membrane.row.grant.generation();
            it.binding == revoked.binding && it.generation <= revoked.generation
                || ended.iter().any(|ended| Arc::ptr_eq(ended, membrane))
        };
        self.ending
            .iter()
            .filter_map(Weak::upgrade)
            .filter(of)
            .collect()
    }

    /// Returns a grant with those that it was made from; nothing where one of them has ended.
    fn lineage(&self, membrane: &Arc<Membrane>) -> Option<Vec<Arc<Membrane>>> {
        let mut lineage = vec![Arc::clone(membrane)];
        while let Some(parent) = &lineage.last()?.row.grant.parent {
            let parent = Arc::clone(self.grants.get(parent)?);
            lineage.push(parent);
        }
        Some(lineage)
    }

    pub(super) fn forget_expired(&mut self, now: Instant) {
        self.tickets.retain(|_, ticket| {
            let good = ticket.expires > now;
            if !good {
                ticket.membrane.tickets.fetch_sub(1, Ordering::Relaxed);
            }
            good
        });
    }
}

impl Membrane {
    /// Returns whether this is the peer that the grant was made for. An object does not see who
    /// calls it, so the netlayer's proof is asked each time.
    pub(super) fn answers(&self, peer: Option<&PeerId>) -> bool {
        let receiver = &self.row.grant.receiver;
        peer.is_some_and(|peer| peer.authenticated && peer.designator == *receiver)
    }

    pub(super) fn status(&self) -> GrantStatus {
        let GrantRow {
            grant,
            rights,
            since,
            ..
        } = &self.row;
        GrantStatus {
            binding: grant.binding.clone(),
            generation: grant.generation,
            service: grant.service.clone(),
            receiver: grant.receiver.clone(),
            streams: *self.streams.borrow() as u64,
            rights: rights.clone(),
            parent: grant.parent.clone(),
            since: *since,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.grants.streams.fetch_sub(1, Ordering::Relaxed);
        for membrane in &self.entered {
            membrane.streams.send_modify(|streams| *streams -= 1);
        }
    }
}
