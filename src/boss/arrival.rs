//! A machine's first call home: waited for, looked at, or made by the boss itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use gobs_model::Address;
use gobs_state::{StoreError, SwissnumHash};
use hob::server::ServerPresence;
use ocapn::PeerId;

use super::enroll::Presence;
use super::{Boss, BossError, Key, RETRY_MAX, RETRY_MIN, lock};

/// How long a hob that the boss has called may take to claim its place over that session, before
/// it is called again.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a hob that has claimed its place may still take to register, whatever the time: it
/// writes to its disk in between.
const REGISTER_GRACE: Duration = Duration::from_secs(60);

/// A hob that called home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The designator of its key.
    pub designator: String,
    /// From where it claimed its place, where that is none of the machine's addresses.
    pub unexpected: Option<IpAddr>,
}

/// From where a machine's hob is expected to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The machine's addresses, once its provider has said them; empty where it says none.
    pub addresses: Option<Vec<IpAddr>>,
    /// Whether another address is refused, and not only told of.
    pub required: bool,
}

/// From where the hob of one incarnation of a machine is expected to call.
pub type Home = (Address, u64, Expected);

/// What is known of a machine's addresses and of who called.
#[derive(Debug, Default)]
pub(super) struct Caller {
    expected: Expected,
    unexpected: Option<IpAddr>,
    refused: Option<IpAddr>,
}

pub(super) fn callers(homes: Vec<Home>) -> HashMap<Key, Caller> {
    let caller = |(machine, incarnation, expected)| {
        let caller = Caller {
            expected,
            ..Caller::default()
        };
        ((machine, incarnation), caller)
    };
    homes.into_iter().map(caller).collect()
}

impl Expected {
    /// Returns whether a hob may be at this address, as far as is known.
    fn is_met_by(&self, from: IpAddr) -> Option<bool> {
        let addresses = self.addresses.as_ref()?;
        let from = from.to_canonical();
        // A whole one: at Linode, a /64 of IPv6 is that of many machines, of other people too.
        Some(addresses.iter().any(|it| it.to_canonical() == from))
    }
}

impl Boss {
    /// Says from where a machine's hob is expected to call.
    pub fn expect_from(&self, machine: &Address, incarnation: u64, expected: Expected) {
        let mut homes = lock(&self.0.homes);
        homes
            .entry((machine.clone(), incarnation))
            .or_default()
            .expected = expected;
    }

    /// Returns whether whoever asks for a claim may have it from where it asks.
    ///
    /// One that must come from the machine's address is refused until that is known: it asks
    /// again, and nothing is used up.
    pub(super) fn is_at_home(&self, hash: SwissnumHash, from: &PeerId) -> Result<bool, StoreError> {
        let Some(address) = from.address.map(|it| it.ip().to_canonical()) else {
            return Ok(true);
        };
        let Some(claim) = self.0.store.claim_of(hash)? else {
            return Ok(true);
        };
        if claim.bound_key.is_some() {
            return Ok(true);
        }
        let mut homes = lock(&self.0.homes);
        let Some(home) = homes.get_mut(&(claim.machine.clone(), claim.incarnation)) else {
            return Ok(true);
        };
        let met = home.expected.is_met_by(address);
        if met == Some(true) {
            return Ok(true);
        }
        if home.expected.required {
            if met == Some(false) {
                tracing::warn!(machine = %claim.machine, %address, "a claim from elsewhere refused");
                home.refused = Some(address);
            }
            return Ok(false);
        }
        if met == Some(false) {
            tracing::warn!(machine = %claim.machine, %address, "a claim from elsewhere");
            home.unexpected = Some(address);
        }
        Ok(true)
    }

    /// Says that a provider has accepted the machine of an invitation: the time to claim counts
    /// from here.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn accepted(&self, invitation: SwissnumHash, ttl: Duration) -> Result<(), StoreError> {
        let now = self.0.clock.now();
        self.0.store.accepted(invitation, now, ttl)
    }

    /// Says that a provider is still making a machine: the time to claim begins anew, up to a
    /// stop.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn provisioning(
        &self,
        machine: &Address,
        incarnation: u64,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let now = self.0.clock.now();
        for claim in self.0.store.claims(machine, incarnation)? {
            self.0.store.provisioning(claim.swissnum_hash, now, ttl)?;
        }
        Ok(())
    }

    /// Waits by this boss's clock.
    pub async fn pause(&self, pause: Duration) {
        let clock = &self.0.clock;
        clock.sleep_until(clock.now() + pause).await;
    }

    /// Waits until the hob of a machine has registered.
    ///
    /// The wait ends with the time to claim; a machine that has no claim is waited for as long as
    /// `deadline`.
    ///
    /// # Errors
    /// When it has not registered by then, or its claim is contested.
    pub async fn wait_registered(
        &self,
        machine: &Address,
        incarnation: u64,
        deadline: Duration,
    ) -> Result<Registered, BossError> {
        let key = (machine.clone(), incarnation);
        let begun = self.0.clock.now();
        let mut registrations = self.0.registrations.subscribe();
        let registered = loop {
            if let Some(registered) = self.registered(&key) {
                break registered;
            }
            let until = self.time_to_claim(&key, begun, deadline)?;
            tokio::select! {
                // The sender lives as long as this boss.
                _ = registrations.changed() => {}
                () = self.0.clock.sleep_until(until) => {
                    // Meanwhile it may have been extended, or claimed at the last moment.
                    if self.time_to_claim(&key, begun, deadline)? <= self.0.clock.now() {
                        let refused = lock(&self.0.homes).get(&key).and_then(|it| it.refused);
                        let machine = machine.clone();
                        return Err(BossError::Unclaimed { machine, refused });
                    }
                }
            }
        };
        self.refuse_contested(machine, incarnation)?;
        Ok(registered)
    }

    fn registered(&self, key: &Key) -> Option<Registered> {
        let designator = match lock(&self.0.presences).get(key) {
            Some(Presence {
                state: ServerPresence::Active(active),
                ..
            }) => active.key.clone(),
            _ => return None,
        };
        let unexpected = lock(&self.0.homes).get(key).and_then(|it| it.unexpected);
        Some(Registered {
            designator,
            unexpected,
        })
    }

    /// Returns until when a machine's hob is waited for.
    fn time_to_claim(
        &self,
        (machine, incarnation): &Key,
        begun: SystemTime,
        deadline: Duration,
    ) -> Result<SystemTime, StoreError> {
        let claims = self.0.store.claims(machine, *incarnation)?;
        let open = claims.iter().filter(|claim| claim.revoked_at.is_none());
        let until = open.map(|claim| match &claim.bound_key {
            None => claim.expires_at,
            Some(_) => claim.expires_at.max(begun + REGISTER_GRACE),
        });
        Ok(until.max().unwrap_or(begun + deadline))
    }

    /// Calls a machine at these addresses until its hob has registered: one that waits to be
    /// called, since it cannot reach this boss. Whose key is there is not known before the claim
    /// is made over that session, by which the hob shows that it is the one that was invited.
    pub async fn visit(&self, machine: &Address, incarnation: u64, addresses: &[(String, u16)]) {
        let key = (machine.clone(), incarnation);
        let mut pause = RETRY_MIN;
        let mut told = false;
        while self.registered(&key).is_none() {
            match self.visit_once(addresses).await {
                Ok(()) => {
                    let mut registrations = self.0.registrations.subscribe();
                    let arrival = async {
                        while self.registered(&key).is_none() {
                            // The sender lives as long as this boss.
                            let _ = registrations.changed().await;
                        }
                    };
                    // Past the time it is called again.
                    let _ = tokio::time::timeout(CLAIM_TIMEOUT, arrival).await;
                }
                Err(error) if told => tracing::debug!(%machine, error, "not reached"),
                Err(error) => {
                    tracing::info!(%machine, error, "not reached; trying on");
                    told = true;
                }
            }
            tokio::time::sleep(pause).await;
            pause = RETRY_MAX.min(pause * 2);
        }
    }

    async fn visit_once(&self, addresses: &[(String, u16)]) -> Result<(), String> {
        let met = self.0.dialer.meet(addresses).await;
        let (locator, connection) = met.map_err(|error| error.to_string())?;
        let peer = self.peer().ok_or("the boss is stopping")?;
        let up = peer.take_up(&locator, connection).await;
        up.map(drop).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_known_by_its_addresses() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = Expected {
            addresses: Some(vec![address("203.0.113.7"), address("2001:db8:1:2::1")]),
            required: true,
        };
        let check = |from: &str, met: bool| {
            assert_eq!(expected.is_met_by(address(from)), Some(met), "{from}");
        };
        check("203.0.113.7", true);
        check("::ffff:203.0.113.7", true);
        check("203.0.113.8", false);
        check("2001:db8:1:2::1", true);
        check("2001:db8:1:2:a:b:c:d", false);
        check("2001:db8:1:3::1", false);
        assert_eq!(Expected::default().is_met_by(address("203.0.113.7")), None);
    }
}
