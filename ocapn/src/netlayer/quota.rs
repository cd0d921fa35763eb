//! How many connections may stand that have not shown yet who they are.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts connections overall and for each address.
pub(crate) struct Quota {
    connections_max: usize,
    per_address_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    overall: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place under the quota; free again when dropped.
pub(crate) struct Place {
    quota: Arc<Quota>,
    address: Option<IpAddr>,
}

impl Quota {
    pub(crate) fn new(connections_max: usize, per_address_max: usize) -> Self {
        Self {
            connections_max,
            per_address_max,
            counts: Mutex::default(),
        }
    }

    /// Takes a place, unless none is left. What has no address counts overall only.
    pub(crate) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> Option<Place> {
        let address = address.map(network_of);
        let mut counts = self.counts();
        if counts.overall >= self.connections_max {
            return None;
        }
        if let Some(address) = address {
            let of_address = counts.by_address.get(&address).copied().unwrap_or(0);
            if of_address >= self.per_address_max {
                return None;
            }
            counts.by_address.insert(address, of_address + 1);
        }
        counts.overall += 1;
        Some(Place {
            quota: Arc::clone(self),
            address,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.quota.counts();
        counts.overall -= 1;
        let Some(address) = self.address else { return };
        if let Some(of_address) = counts.by_address.get_mut(&address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&address);
            }
        }
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
        assert!(quota.counts().by_address.is_empty());
        assert_eq!(quota.counts().overall, 0);
    }
}
