//! How many connections may stand that have not shown yet who they are.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Counts connections overall and for each address.
pub(crate) struct Quota {
    connections_max: usize,
    per_address_max: usize,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    last: u64,
    taken: HashMap<u64, Taken>,
    /// The places of each address, the oldest first.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

struct Taken {
    address: Option<IpAddr>,
    evicted: Arc<Notify>,
}

/// One place under the quota; free again when dropped.
pub(crate) struct Place {
    quota: Arc<Quota>,
    number: u64,
    evicted: Arc<Notify>,
}

impl Quota {
    pub(crate) fn new(connections_max: usize, per_address_max: usize) -> Self {
        Self {
            connections_max,
            per_address_max,
            places: Mutex::default(),
        }
    }

    /// Takes a place, unless none is left. What has no address counts overall only.
    pub(crate) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let address = address.map(network_of);
        let mut places = self.places();
        if places.taken.len() >= self.connections_max || places.of(address) >= self.per_address_max
        {
            return None;
        }
        Some(places.add(self, address))
    }

    /// Takes a place. If none is left, the address that has the most loses its oldest, provided
    /// that it has more than the new one: so a few addresses cannot shut out all others, and who
    /// is quick to begin is not hit by who never begins.
    pub(crate) fn take_fair(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let address = address.map(network_of);
        let mut places = self.places();
        let own = places.of(address);
        if own >= self.per_address_max {
            return None;
        }
        if places.taken.len() >= self.connections_max {
            let by_address = places.by_address.values();
            let most = by_address.max_by_key(|of_address| of_address.len())?;
            let oldest = *most.first().filter(|_| most.len() > own)?;
            let evicted = places.remove(oldest)?;
            evicted.evicted.notify_one();
        }
        Some(places.add(self, address))
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn of(&self, address: Option<IpAddr>) -> usize {
        let places = address.and_then(|address| self.by_address.get(&address));
        places.map_or(0, BTreeSet::len)
    }

    fn add(&mut self, quota: &Arc<Quota>, address: Option<IpAddr>) -> Place {
        self.last += 1;
        let (number, evicted) = (self.last, Arc::new(Notify::new()));
        let taken = Taken {
            address,
            evicted: Arc::clone(&evicted),
        };
        self.taken.insert(number, taken);
        if let Some(address) = address {
            self.by_address.entry(address).or_default().insert(number);
        }
        Place {
            quota: Arc::clone(quota),
            number,
            evicted,
        }
    }

    fn remove(&mut self, number: u64) -> Option<Taken> {
        let taken = self.taken.remove(&number)?;
        if let Some(address) = taken.address
            && let Some(of_address) = self.by_address.get_mut(&address)
        {
            of_address.remove(&number);
            if of_address.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(taken)
    }
}

impl Place {
    /// Waits until the place is taken away for another connection.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.quota.places().remove(self.number);
    }
}

/// Returns what counts as one address: one customer commonly has a whole /64 of IPv6.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_overall_and_by_address() {
        let quota = Arc::new(Quota::new(3, 2));
        let address = |text: &str| Some(text.parse().unwrap());
        let first = quota.take(address("2001:db8::1"));
        let second = quota.take(address("2001:db8::2"));
        assert!(first.is_some() && second.is_some());
        assert!(
            quota.take(address("2001:db8::3")).is_none(),
            "the same network"
        );
        let third = quota.take(address("192.0.2.1"));
        assert!(third.is_some());
        assert!(
            quota.take(address("::ffff:192.0.2.2")).is_none(),
            "three overall"
        );
        drop(first);
        assert!(quota.take(address("2001:db8::3")).is_some());
        drop((second, third));
        assert!(quota.places().by_address.is_empty());
        assert!(quota.places().taken.is_empty());
    }

    #[tokio::test]
    async fn the_greediest_address_makes_room() {
        let quota = Arc::new(Quota::new(4, 3));
        let address = |text: &str| Some(text.parse().unwrap());
        let mut greedy: Vec<_> = (0..3)
            .map(|_| quota.take_fair(address("192.0.2.1")).unwrap())
            .collect();
        let modest = quota.take_fair(address("192.0.2.2")).unwrap();
        assert!(
            quota.take_fair(address("192.0.2.1")).is_none(),
            "it has its share"
        );
        let late = quota.take_fair(address("192.0.2.3")).unwrap();
        greedy.remove(0).evicted().await;
        let more = quota.take_fair(address("192.0.2.3")).unwrap();
        greedy.remove(0).evicted().await;
        assert!(
            quota.take_fair(address("192.0.2.3")).is_none(),
            "nobody has more"
        );
        drop((greedy, modest, late, more));
        assert!(quota.places().taken.is_empty());
    }
}
