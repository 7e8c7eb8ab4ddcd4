//! The limiter in front of any crypto: so many requests of one address, whoever sends them. Protects the proxy's CPU, not
//! anyone's quota. The table is bounded; a full one forgets whoever has been quiet for longest.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};

use super::client_address::Subnet;

/// Entries looked at to find one to forget: enough to be close to the oldest, cheap enough to do under a flood.
const EVICTION_SAMPLE: usize = 16;

/// The limiter, shared by all connections.
#[derive(Debug)]
pub(crate) struct Guard<C: Clock = DefaultClock> {
    limiter: RateLimiter<Subnet, Table, C, NoOpMiddleware<C::Instant>>,
}

impl Guard {
    /// `per_minute` in the long run, `burst` at once, `table_max` addresses remembered.
    pub(crate) fn new(per_minute: u32, burst: u32, table_max: usize) -> Self {
        Self::with_clock((per_minute, burst), table_max, DefaultClock::default())
    }
}

impl<C: Clock> Guard<C> {
    fn with_clock((per_minute, burst): (u32, u32), table_max: usize, clock: C) -> Self {
        let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
        let table = Table {
            room: table_max.max(1),
            seen: Mutex::default(),
        };
        Self {
            limiter: RateLimiter::new(quota, table, clock),
        }
    }

    /// Counts one request, or says how long to wait.
    pub(crate) fn admit(&self, subnet: Subnet) -> Result<(), Duration> {
        self.limiter
            .check_key(&subnet)
            .map_err(|until| until.wait_time_from(self.limiter.clock().now()))
    }
}

/// When each address is free again (its theoretical arrival time), never more than `room` of them.
#[derive(Debug)]
struct Table {
    room: usize,
    seen: Mutex<HashMap<Subnet, Nanos>>,
}

impl StateStore for Table {
    type Key = Subnet;

    fn measure_and_replace<T, F, E>(&self, key: &Subnet, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (outcome, next) = f(seen.get(key).copied())?;
        if seen.len() >= self.room && !seen.contains_key(key) {
            let oldest = seen
                .iter()
                .take(EVICTION_SAMPLE)
                .min_by_key(|entry| *entry.1);
            if let Some(oldest) = oldest.map(|entry| *entry.0) {
                seen.remove(&oldest);
            }
        }
        seen.insert(*key, next);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use governor::clock::FakeRelativeClock;

    use super::*;

    fn subnet(last: u8) -> Subnet {
        Subnet::of(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let clock = FakeRelativeClock::default();
        let guard = Guard::with_clock((60, 3), 10, clock.clone());
        assert!((0..3).all(|_| guard.admit(subnet(1)).is_ok()));
        let wait = guard.admit(subnet(1)).unwrap_err();
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
        assert!(
            guard.admit(subnet(2)).is_ok(),
            "another address is not affected"
        );
        clock.advance(Duration::from_secs(1));
        assert!(guard.admit(subnet(1)).is_ok());
        assert!(guard.admit(subnet(1)).is_err());
    }

    #[test]
    fn a_flood_of_addresses_does_not_grow_the_table() {
        let guard = Guard::with_clock((60, 1), 8, FakeRelativeClock::default());
        for last in 0..=255 {
            assert!(guard.admit(subnet(last)).is_ok());
        }
        assert_eq!(
            guard
                .limiter
                .into_state_store()
                .seen
                .into_inner()
                .unwrap()
                .len(),
            8
        );
    }
}
