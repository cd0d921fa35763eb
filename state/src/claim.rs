//! The words of enrollment: one-time claims, their outcomes, and what is told of refused ones.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use gobs_model::Address;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// How long a claim may be used after the provider accepted the machine, or was last seen
/// provisioning it: longer than a slow boot, shorter than user data lies about.
pub const CLAIM_TTL: Duration = Duration::from_secs(30 * 60);

/// The longest that provisioning can keep a claim open.
pub const CLAIM_LIFETIME_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// The SHA-256 of a swissnum: all of it that is ever stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwissnumHash(pub [u8; 32]);

impl SwissnumHash {
    /// Returns the hash of a swissnum.
    pub fn of(swissnum: &[u8]) -> Self {
        Self(Sha256::digest(swissnum).into())
    }
}

/// A one-time invitation that is about to be handed to a provider in user data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClaim {
    /// By which it is found.
    pub swissnum_hash: SwissnumHash,
    /// The machine that it is for.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// When it was minted; the time to use it counts from here until the provider accepts.
    pub minted_at: SystemTime,
}

/// What a claim came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// The key is bound now, and durably so.
    Bound(Claim),
    /// The key was bound before; it gets what it got then.
    Again(Claim),
    /// Not to be had by this key. The reason is for our own records: every refusal gets the same
    /// reply.
    Refused(Refusal),
}

/// Why a claim was refused; never sent to the claimer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such swissnum.
    Unknown,
    /// Nobody claimed it in time.
    Expired,
    /// It was withdrawn.
    Revoked,
    /// Another key claimed it; an alert was recorded.
    OtherKey,
}

/// A claim as it is remembered, for the life of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// By which it is found.
    pub swissnum_hash: SwissnumHash,
    /// The machine that it is for.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// Until when it can be claimed; once bound, this only tells a contest from a mere alert.
    pub expires_at: SystemTime,
    /// The designator of the key that claimed it.
    pub bound_key: Option<String>,
    /// From where it was claimed.
    pub first_address: Option<SocketAddr>,
    /// When it was claimed.
    pub first_time: Option<SystemTime>,
    /// When it was withdrawn.
    pub revoked_at: Option<SystemTime>,
    /// Whether another key tried within the time to claim: grants not yet delivered are held.
    pub contested: bool,
}

/// Something that an operator must see: another key tried a claim that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// For `ack`.
    pub id: u64,
    /// The machine whose claim it was.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// The designator of the key that has the claim.
    pub bound_key: String,
    /// From where the claim was made.
    pub bound_address: Option<SocketAddr>,
    /// When the claim was made.
    pub bound_time: Option<SystemTime>,
    /// The designator of the key that was refused.
    pub other_key: String,
    /// From where it tried last.
    pub other_address: Option<SocketAddr>,
    /// When it tried first.
    pub first_time: SystemTime,
    /// When it tried last.
    pub last_time: SystemTime,
    /// How often it tried.
    pub count: u64,
    /// Whether it tried while the claim was open, so that the machine is contested.
    pub contested: bool,
    /// When an operator acknowledged it.
    pub acknowledged_at: Option<SystemTime>,
}

/// A hob that registered.
#[derive(Clone, PartialEq, Eq)]
pub struct HobRow {
    /// The machine that it runs on.
    pub machine: Address,
    /// The incarnation of that machine.
    pub incarnation: u64,
    /// The designator of its key.
    pub designator: String,
    /// Where it can be dialled, as a locator's URI.
    pub locator: String,
    /// The sturdyref of its client presence, as a URI: sealed, since it is a capability.
    pub presence: Option<Zeroizing<String>>,
    /// When it was last connected.
    pub last_seen: SystemTime,
    /// When a stale join sequence locked it, if one did.
    pub locked_at: Option<SystemTime>,
}

impl std::fmt::Debug for HobRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HobRow")
            .field("machine", &self.machine)
            .field("incarnation", &self.incarnation)
            .field("designator", &self.designator)
            .field("locator", &self.locator)
            .field("last_seen", &self.last_seen)
            .field("locked_at", &self.locked_at)
            .finish_non_exhaustive()
    }
}

/// What a presented join sequence came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinOutcome {
    /// Welcome; the number to present next time.
    Welcome(u64),
    /// A stale number from the right key: there are two copies of it, and both are locked.
    Locked,
    /// No such hob.
    Unknown,
}
