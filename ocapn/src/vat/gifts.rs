//! The bootstrap object, and third-party handoffs in their three roles.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::VatEvent;
use super::dials::Dials;
use super::dispatch::Inner;
use super::sessions::key;
use super::wire::{Args, Desc};
use crate::captp::broken::Broken;
use crate::captp::crypto::{Envelope, PublicKey, SessionKeys};
use crate::captp::handoff::{Give, Receive, sign_receive};
use crate::captp::message::{Gift, as_envelope, refused};
use crate::captp::promise::{Delivery, Node, Reference, Resolver, Route};
use crate::captp::session::{GREETING_SIZE_MAX, Link, Session};
use crate::captp::tables::BOOTSTRAP;
use crate::captp::usage::{Charge, TOO_MUCH_KEPT};
use crate::captp::{Place, SessionId};
use crate::locator::{PeerLocator, Swissnum};
use crate::passable::Passable;
use crate::syrup::{self, Mode};

/// Bytes of the encoding of a gift's id, which is kept as long as the gift is. Known peers use 32
/// random bytes, the oldest an integer.
const GIFT_ID_MAX: usize = 256;

/// Bytes of a gifter's certificate. The longest part is a location, which has to fit in a greeting
/// as well.
const CERTIFICATE_SIZE_MAX: usize = 2 * GREETING_SIZE_MAX;

/// Sessions that one receiver may have had with one gifter, while its session with us and the
/// gifter's last: what was withdrawn is remembered for each, against replay.
const RECEIVER_KEYS_MAX: usize = 1_024;

/// Counts that are remembered for each, the highest ones. Every peer counts upwards, and withdraws
/// in that order but for some whose way took longer; so what is lower is taken for used.
const COUNTS_MAX: usize = 256;

/// Withdrawals that were accepted, of one gifter: by the receiver's session and its side towards
/// the gifter. Goblins counts per session of gifter and receiver, Endo per session of exporter and
/// receiver; this accepts both, and neither twice.
type Withdrawn = HashMap<SessionId, HashMap<[u8; 32], Used>>;

/// Counts that were used.
#[derive(Default)]
struct Used {
    highest: BTreeSet<u64>,
    /// All below it count as used.
    floor: u64,
}

impl Used {
    fn has(&self, count: u64) -> bool {
        count < self.floor || self.highest.contains(&count)
    }

    fn add(&mut self, count: u64) {
        self.highest.insert(count);
        if self.highest.len() > COUNTS_MAX
            && let Some(lowest) = self.highest.pop_first()
        {
            self.floor = lowest.saturating_add(1);
        }
    }
}

#[derive(Default)]
pub(super) struct Gifts {
    /// As exporter: what gifters deposited, by the gifter's session.
    deposits: HashMap<SessionId, HashMap<Bytes, Deposit>>,
    /// How many deposits there were.
    deposited: u64,
    /// As exporter: withdrawals that came before their gift, by the gifter's session.
    awaited: HashMap<SessionId, HashMap<Bytes, Awaited>>,
    /// As exporter: what was withdrawn, by the gifter's session.
    withdrawn: HashMap<SessionId, Withdrawn>,
    /// As receiver: certificates whose exporter is being dialled.
    waiting: HashMap<(String, String), Vec<Parked>>,
    dials: Dials,
}

struct Deposit {
    gift: Reference,
    /// Counts the deposits: the lowest is the oldest.
    number: u64,
    /// Whether it waited at the last expiry already.
    is_old: bool,
}

/// A withdrawal that waits for its gift, at the cost of the receiver.
struct Awaited {
    answer: Option<Reference>,
    receiver: SessionId,
    is_old: bool,
    _charge: Option<Charge>,
}

struct Waiting {
    give: Bytes,
    /// Our keys in the session with the gifter, which may end meanwhile.
    keys: Arc<SessionKeys>,
    promise: Reference,
}

/// One that waits, at the cost of the gifter.
struct Parked {
    gift: Waiting,
    /// Where the exporter is, as this gifter says. Another may say something wrong of the same
    /// peer, and that must not decide here.
    exporter: PeerLocator,
    charge: Charge,
}

/// A receiver's request for a gift.
pub(super) struct Withdrawal {
    outer: Envelope,
    receive: Receive,
    give: Give,
}

impl Withdrawal {
    /// Reads the arguments of `withdraw-gift`.
    pub(super) fn read(args: Vec<Passable>, mode: Mode) -> Result<Self, Broken> {
        let malformed = |_| refused("malformed certificate");
        let envelope = match args.as_slice() {
            [_, certificate] => as_envelope(certificate),
            _ => None,
        };
        let envelope = envelope.ok_or_else(|| refused("not a certificate"))?;
        let (outer, receive) = Receive::read(envelope, mode).map_err(malformed)?;
        let give = Give::read(&receive.give, mode).map_err(malformed)?;
        Ok(Self {
            outer,
            receive,
            give,
        })
    }

    /// Checks that the gifter signed the one certificate and the receiver the other.
    pub(super) fn check_signatures(&self, gifter: &PublicKey) -> Result<(), Broken> {
        if !self.receive.give.is_by(gifter) {
            return Err(refused("the gifter did not sign this"));
        }
        if !self.outer.is_by(&self.give.receiver_key) {
            return Err(refused("the receiver did not sign this"));
        }
        Ok(())
    }
}

fn check_gift_id(encoding: &[u8]) -> Result<(), Broken> {
    if encoding.len() > GIFT_ID_MAX {
        return Err(refused("the gift id is too long"));
    }
    Ok(())
}

/// Returns whether a message to the bootstrap object asks for a gift.
pub(super) fn is_withdrawal(delivery: &Delivery) -> bool {
    let method = delivery.args.first().and_then(Passable::as_symbol);
    method == Some("withdraw-gift")
}

/// Returns whether a message to a bootstrap object waits for its turn, behind what came before it:
/// a withdrawal, since it takes long, and a fetch, since its answer tells the peer that all that
/// was sent before has been taken.
pub(super) fn waits_for_its_turn(delivery: &Delivery) -> bool {
    let method = delivery.args.first().and_then(Passable::as_symbol);
    matches!(method, Some("withdraw-gift" | "fetch"))
}

impl Gifts {
    /// Returns the number of gifts of a gifter's session, those that somebody waits for included.
    pub(super) fn of(&self, gifter: SessionId) -> usize {
        let deposits = self.deposits.get(&gifter).map_or(0, HashMap::len);
        deposits + self.awaited.get(&gifter).map_or(0, HashMap::len)
    }
}

impl Inner {
    /// Runs one message to the bootstrap object as the peer of session `id` has it, but a
    /// withdrawal.
    pub(super) fn bootstrap_turn(&mut self, id: SessionId, delivery: Delivery) {
        let Delivery {
            args,
            answer,
            charge,
            ..
        } = delivery;
        let mut args = args.into_iter();
        let method = args.next();
        let method = method
            .as_ref()
            .and_then(Passable::as_symbol)
            .unwrap_or_default();
        let result = match (method, args.next(), args.next(), args.next()) {
            ("fetch", Some(Passable::Bytes(swissnum)), None, None) => {
                return self.fetch(id, &swissnum, answer, charge);
            }
            ("deposit-gift", Some(gift_id), Some(Passable::Reference(gift)), None) => {
                self.deposit(id, &gift_id, gift)
            }
            _ => Err(Broken::new(
                "wrong-call",
                "not a method of the bootstrap object",
            )),
        };
        if let Some(answer) = answer {
            self.settle(answer, result);
        }
    }

    fn fetch(
        &mut self,
        id: SessionId,
        swissnum: &Bytes,
        answer: Option<Reference>,
        charge: Option<Charge>,
    ) {
        let Some(link) = self.session(id).and_then(Session::link) else {
            if let Some(answer) = answer {
                self.settle(answer, Err(Broken::severed("the session is over")));
            }
            return;
        };
        let from = (*link.peer).clone();
        let swissnum = Swissnum::new(&swissnum[..]);
        let answer = answer.unwrap_or_else(|| Node::promise(&self.vat, Route::Here));
        let answer = Resolver::charged(answer, charge);
        self.event(VatEvent::Fetch {
            swissnum,
            from,
            answer,
        });
    }

    fn deposit(
        &mut self,
        gifter: SessionId,
        gift_id: &Passable,
        gift: Reference,
    ) -> Result<Passable, Broken> {
        let gift_id = syrup::encode(gift_id).ok_or_else(|| refused("not a gift id"))?;
        check_gift_id(&gift_id)?;
        let awaited = self.gifts.awaited.get_mut(&gifter);
        if let Some(awaited) = awaited.and_then(|awaited| awaited.remove(&gift_id)) {
            if let Some(answer) = awaited.answer {
                self.settle(answer, Ok(gift.into()));
            }
            return Ok(Passable::Undefined);
        }
        let limit = self.gifts_max(gifter);
        let deposits = self.gifts.deposits.entry(gifter).or_default();
        if deposits.contains_key(&gift_id) {
            return Err(refused("the gift id is in use"));
        }
        if deposits.len() >= limit {
            // A receiver that never fetches what it is given must not use up the places of all
            // to whom the same peer gives something: those who fetch do it soon.
            let oldest = deposits.iter().min_by_key(|(_, deposit)| deposit.number);
            let oldest = oldest.map(|(gift_id, _)| gift_id.clone());
            let oldest = oldest.ok_or_else(|| refused("too many gifts"))?;
            deposits.remove(&oldest);
        }
        self.gifts.deposited += 1;
        let deposit = Deposit {
            gift,
            number: self.gifts.deposited,
            is_old: false,
        };
        deposits.insert(gift_id, deposit);
        Ok(Passable::Undefined)
    }

    /// Returns the key of the gifter that a withdrawal by the peer of session `receiver` names.
    pub(super) fn gifter(
        &self,
        receiver: SessionId,
        withdrawal: &Withdrawal,
    ) -> Result<PublicKey, Broken> {
        self.find_gifter(receiver, withdrawal)
            .map(|(_, link)| link.key.clone())
    }

    /// Checks all of a withdrawal but its signatures.
    fn find_gifter(
        &self,
        receiver: SessionId,
        withdrawal: &Withdrawal,
    ) -> Result<(SessionId, &Link), Broken> {
        let Withdrawal { receive, give, .. } = withdrawal;
        let link = self.session(receiver).and_then(Session::link);
        let link = link.ok_or_else(|| Broken::severed("the session is over"))?;
        if receive.session != link.id[..] || receive.receiver_side != link.key.side[..] {
            return Err(refused("the certificate is for another session"));
        }
        // The gifter's session is found by its id, so who signed is who deposits.
        let gifter = self.peers.values().find_map(|id| {
            let link = self.session(*id).and_then(Session::link)?;
            (give.session == link.id[..]).then_some((*id, link))
        });
        let (gifter, link) = gifter.ok_or_else(|| refused("no session with the gifter"))?;
        if give.gifter_side != link.key.side[..] {
            return Err(refused("the gifter did not sign this"));
        }
        if !give.exporter.same_peer(&self.location) {
            return Err(refused("the gift is at another peer"));
        }
        Ok((gifter, link))
    }

    /// Settles the answer of a withdrawal whose signatures were checked.
    pub(super) fn withdraw(
        &mut self,
        receiver: SessionId,
        withdrawal: Result<Withdrawal, Broken>,
        answer: Option<Reference>,
        charge: Option<Charge>,
    ) {
        let awaited = Awaited {
            answer: answer.clone(),
            receiver,
            is_old: false,
            _charge: charge,
        };
        let withdrawn = withdrawal
            .and_then(|withdrawal| self.take_gift(withdrawal, awaited))
            .transpose();
        if let (Some(answer), Some(result)) = (answer, withdrawn) {
            self.settle(answer, result.map(Passable::from));
        }
    }

    /// Returns the gift of a certificate, or `None` if it was not deposited yet: then it is
    /// awaited.
    fn take_gift(
        &mut self,
        withdrawal: Withdrawal,
        awaited: Awaited,
    ) -> Result<Option<Reference>, Broken> {
        let receiver = awaited.receiver;
        // The sessions may have ended while the signatures were checked. Another session has
        // another id, so the same id is still the same keys.
        let (gifter, _) = self.find_gifter(receiver, &withdrawal)?;
        let Withdrawal { receive, give, .. } = withdrawal;
        check_gift_id(&give.gift_id)?;
        // A part of the message would keep the whole of it.
        let gift_id = Bytes::copy_from_slice(&give.gift_id);
        let side = give.receiver_key.side;
        let withdrawn = self.gifts.withdrawn.entry(gifter).or_default();
        let withdrawn = withdrawn.entry(receiver).or_default();
        match withdrawn.get(&side) {
            Some(used) if used.has(receive.count) => {
                return Err(refused("the certificate was used"));
            }
            None if withdrawn.len() >= RECEIVER_KEYS_MAX => {
                return Err(refused("too many receivers"));
            }
            _ => {}
        }
        let deposits = self.gifts.deposits.get_mut(&gifter);
        let gift = match deposits.and_then(|deposits| deposits.remove(&gift_id)) {
            Some(deposit) => Some(deposit.gift),
            None => {
                let all = self.gifts.awaited.entry(gifter).or_default();
                if all.contains_key(&gift_id) {
                    return Err(refused("somebody else waits for the gift"));
                }
                all.insert(gift_id, awaited);
                None
            }
        };
        withdrawn.entry(side).or_default().add(receive.count);
        Ok(gift)
    }

    /// A session ended: gifts die with the gifter's, waiting with the receiver's.
    pub(super) fn end_gifts(&mut self, id: SessionId) {
        self.gifts.withdrawn.remove(&id);
        for withdrawn in self.gifts.withdrawn.values_mut() {
            withdrawn.remove(&id);
        }
        self.gifts.deposits.remove(&id);
        for (_, awaited) in self.gifts.awaited.remove(&id).into_iter().flatten() {
            if let Some(answer) = awaited.answer {
                self.settle(answer, Err(refused("the gifter's session is over")));
            }
        }
        self.gifts.awaited.retain(|_, awaited| {
            awaited.retain(|_, awaited| awaited.receiver != id);
            !awaited.is_empty()
        });
        self.bound_orphans(id);
    }

    /// Breaks what a gifter that left has handed over, if too much of those that left waits for an
    /// exporter: with every new session a gifter has new places.
    fn bound_orphans(&mut self, left: SessionId) {
        let waiting = self.gifts.waiting.values().flatten();
        let orphans = waiting.filter(|parked| !self.is_up(parked.charge.session()));
        if orphans.count() <= self.limits.gifts_max {
            return;
        }
        let mut broken = Vec::new();
        for waiting in self.gifts.waiting.values_mut() {
            broken.extend(waiting.extract_if(.., |parked| parked.charge.session() == left));
        }
        self.gifts.waiting.retain(|_, waiting| !waiting.is_empty());
        for parked in broken {
            let reason = "the gifter left, and too many gifts wait";
            self.settle(parked.gift.promise, Err(refused(reason)));
        }
    }

    /// Returns how many gifts may wait that the peer of this session deposits.
    fn gifts_max(&self, gifter: SessionId) -> usize {
        let session = self.session(gifter);
        session.map_or(0, |session| session.limits.gifts_max)
    }

    /// Lets go of the gifts, and of those who wait for one, that have waited since the last call.
    pub(super) fn expire_gifts(&mut self) {
        self.gifts.deposits.retain(|_, deposits| {
            deposits.retain(|_, deposit| !mem::replace(&mut deposit.is_old, true));
            !deposits.is_empty()
        });
        let mut expired = Vec::new();
        self.gifts.awaited.retain(|_, awaited| {
            let old = awaited.extract_if(|_, awaited| mem::replace(&mut awaited.is_old, true));
            expired.extend(old.filter_map(|(_, awaited)| awaited.answer));
            !awaited.is_empty()
        });
        for answer in expired {
            self.settle(answer, Err(refused("the gift did not come in time")));
        }
    }

    /// Takes a certificate that came in session `id`: its promise becomes the gift.
    pub(super) fn receive_gift(&mut self, id: SessionId, gift: Gift) {
        let Gift { envelope, promise } = gift;
        let checked = match (self.session(id), Give::read(&envelope, self.mode)) {
            (None, _) | (_, Err(_)) => Err("malformed certificate"),
            _ if envelope.encoding.len() > CERTIFICATE_SIZE_MAX => {
                Err("the certificate is too long")
            }
            (Some(session), Ok(give)) if give.receiver_key != session.keys.public => {
                Err("the certificate is for another receiver")
            }
            (_, Ok(give)) if give.exporter.same_peer(&self.location) => {
                Err("the gift is at the receiver itself")
            }
            (Some(session), Ok(give)) => Ok((give.exporter, Arc::clone(&session.keys))),
        };
        let (exporter, keys) = match checked {
            Ok(checked) => checked,
            Err(reason) => return self.settle(promise, Err(refused(reason))),
        };
        let gift = Waiting {
            // A part of the message would keep the whole of it.
            give: Bytes::copy_from_slice(&envelope.encoding),
            keys,
            promise,
        };
        if let Some(up) = self.session_with(&exporter.transport, &exporter.designator) {
            return self.redeem(up, gift);
        }
        // Each gifter for itself, so that none can take the places of all others.
        let waiting = self.gifts.waiting.values().flatten();
        let own = waiting.filter(|parked| parked.charge.session() == id);
        if own.count() >= self.gifts_max(id) {
            return self.settle(gift.promise, Err(refused("too many gifts")));
        }
        let usage = self.session(id).map(|session| &session.usage);
        // The exporter's locator is a part of the certificate, and kept beside it.
        let charge = usage.and_then(|usage| usage.call(2 * gift.give.len()).ok());
        let Some(charge) = charge else {
            return self.settle(gift.promise, Err(refused(TOO_MUCH_KEPT)));
        };
        let waiting = self.gifts.waiting.entry(key(&exporter)).or_default();
        waiting.push(Parked {
            gift,
            exporter: exporter.clone(),
            charge,
        });
        if self.gifts.dials.begin(id, &exporter) {
            self.event(VatEvent::Dial(exporter));
        }
    }

    /// Ends the dials that are over, and begins those that waited for it.
    fn end_dials(&mut self, is_over: impl Fn(&PeerLocator) -> bool) {
        let Gifts { waiting, dials, .. } = &mut self.gifts;
        let is_wanted = |exporter: &PeerLocator| {
            let mut parked = waiting.get(&key(exporter)).into_iter().flatten();
            parked.any(|parked| parked.exporter == *exporter)
        };
        for exporter in dials.end(is_over, is_wanted) {
            self.event(VatEvent::Dial(exporter));
        }
    }

    /// A session came up: what waited for its peer is withdrawn, if that is who it is.
    pub(super) fn redeem_waiting(&mut self, id: SessionId, peer: &PeerLocator) {
        for parked in self.gifts.waiting.remove(&key(peer)).unwrap_or_default() {
            self.redeem(id, parked.gift);
        }
        self.end_dials(|exporter| exporter.same_peer(peer));
    }

    pub(super) fn dial_failed(&mut self, peer: &PeerLocator, reason: &str) {
        let waiting = self.gifts.waiting.get_mut(&key(peer));
        let failed: Vec<_> = waiting
            .into_iter()
            .flat_map(|waiting| waiting.extract_if(.., |parked| parked.exporter == *peer))
            .collect();
        self.gifts.waiting.retain(|_, waiting| !waiting.is_empty());
        for parked in failed {
            let broken = Broken::severed(format!("cannot reach the exporter: {reason}"));
            self.settle(parked.gift.promise, Err(broken));
        }
        self.end_dials(|exporter| exporter == peer);
    }

    /// Asks the exporter for a gift; messages to its promise follow at once.
    fn redeem(&mut self, exporter: SessionId, gift: Waiting) {
        let Waiting {
            give,
            keys,
            promise,
        } = gift;
        // Anybody may dial us under the exporter's name, to get the certificate and the messages
        // that follow it.
        if !self.is_reached(exporter) {
            let reason = "the exporter dialled us and did not prove who it is";
            return self.settle(promise, Err(refused(reason)));
        }
        let Some(session) = self.session_up(exporter) else {
            return self.settle(
                promise,
                Err(Broken::severed("the exporter's session is over")),
            );
        };
        let side = session.keys.public.side;
        let Some(link) = session.link_mut() else {
            return;
        };
        let certificate = sign_receive(&keys, &link.id, &side, link.handoffs, &give);
        link.handoffs += 1;
        let place = Place {
            session: exporter,
            position: BOOTSTRAP,
        };
        let asked = self.write_any(
            Desc::Export,
            place,
            &Args::Withdraw(certificate),
            true,
            None,
        );
        let severed = || Broken::severed("the exporter's session is over");
        let result = asked.and_then(|question| question.ok_or_else(severed));
        self.settle(promise, result.map(Passable::from));
    }
}
