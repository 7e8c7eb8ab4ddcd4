//! Token buckets: one for everybody, or one per source prefix in a bounded table.
//!
//! A bucket is the single instant at which it is full again (GCRA), so that a full bucket and an absent one are the same thing and can
//! be forgotten.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// A table is swept at most this often, so that a flood cannot buy full scans.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// One more token per this time.
    pub(crate) interval: Duration,
    pub(crate) burst: u32,
}

impl Rate {
    /// So many a second, all at once if need be; `None` for none at all.
    pub(crate) fn per_second(count: u64) -> Option<Self> {
        let burst = u32::try_from(count).unwrap_or(u32::MAX);
        let interval = Duration::from_secs(1).checked_div(burst)?;
        Some(Self {
            interval: interval.max(Duration::from_nanos(1)),
            burst,
        })
    }

    /// Whether there is a token in the bucket that is full again at `full_at`.
    pub(crate) fn has(self, full_at: Instant, now: Instant) -> bool {
        let next = full_at.max(now) + self.interval;
        next.duration_since(now) <= self.interval * self.burst
    }

    /// Takes a token out of the bucket that is full again at `full_at`.
    pub(crate) fn take(self, full_at: &mut Instant, now: Instant) -> bool {
        let is_there = self.has(*full_at, now);
        if is_there {
            *full_at = (*full_at).max(now) + self.interval;
        }
        is_there
    }
}

/// One bucket.
#[derive(Debug)]
pub(crate) struct Budget {
    rate: Rate,
    full_at: Instant,
}

impl Budget {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full_at: now }
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.rate.take(&mut self.full_at, now)
    }
}

/// What counts as one source: a whole IPv6 /64 belongs to one customer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Prefix {
    V4([u8; 4]),
    V6([u8; 8]),
    /// Everybody who found the table full.
    Rest,
}

impl Prefix {
    fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let mut head = [0; 8];
                head.copy_from_slice(&ip.octets()[..8]);
                Self::V6(head)
            }
        }
    }
}

/// What happens to sources that find a table full.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WhenFull {
    /// They share one bucket.
    Share,
    /// They are not limited here.
    Pass,
}

/// A bounded table of buckets, one per source prefix.
#[derive(Debug)]
pub(crate) struct Sources {
    full_at: HashMap<Prefix, Instant>,
    max: usize,
    rate: Rate,
    when_full: WhenFull,
    swept_at: Instant,
}

impl Sources {
    pub(crate) fn new(max: usize, rate: Rate, when_full: WhenFull, now: Instant) -> Self {
        Self {
            full_at: HashMap::new(),
            max,
            rate,
            when_full,
            swept_at: now,
        }
    }

    /// Takes one token of the source; false when it has none left.
    pub(crate) fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let mut prefix = Prefix::of(ip);
        if !self.full_at.contains_key(&prefix) && self.full_at.len() >= self.max {
            self.sweep(now);
            if self.full_at.len() >= self.max {
                if self.when_full == WhenFull::Pass {
                    return true;
                }
                prefix = Prefix::Rest;
            }
        }
        let full_at = self.full_at.entry(prefix).or_insert(now);
        self.rate.take(full_at, now)
    }

    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept_at) >= SWEEP_INTERVAL {
            self.swept_at = now;
            self.full_at.retain(|_, full_at| *full_at > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const RATE: Rate = Rate {
        interval: Duration::from_millis(20),
        burst: 128,
    };

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    fn sources(max: usize, now: Instant) -> Sources {
        Sources::new(max, RATE, WhenFull::Share, now)
    }

    #[test]
    fn a_source_gets_its_burst_and_then_its_rate() {
        let now = Instant::now();
        let mut sources = sources(10, now);
        let burst = (0..1000).filter(|_| sources.take(v4(1), now)).count();
        assert_eq!(burst, RATE.burst as usize);
        assert!(sources.take(v4(2), now), "another source is not affected");
        let later = now + RATE.interval * 3;
        assert_eq!((0..10).filter(|_| sources.take(v4(1), later)).count(), 3);
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_a_budget() {
        let now = Instant::now();
        let mut sources = sources(10, now);
        let taken = (0u16..1000)
            .map(|host| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host)))
            .filter(|ip| sources.take(*ip, now))
            .count();
        assert_eq!(taken, RATE.burst as usize);
    }

    #[test]
    fn a_flood_of_sources_neither_grows_the_table_nor_is_unlimited() {
        let now = Instant::now();
        let mut sources = sources(100, now);
        let taken = (0..10_000).filter(|n| sources.take(v4(*n), now)).count();
        assert!(sources.full_at.len() <= 101, "bounded");
        assert_eq!(
            taken,
            100 + RATE.burst as usize,
            "the rest share one budget"
        );
        let later = now + Duration::from_secs(10);
        assert!(sources.take(v4(20_000), later));
        assert!(sources.full_at.len() <= 2, "forgotten when full again");
    }

    #[test]
    fn so_many_a_second_are_so_many_a_second() {
        let now = Instant::now();
        for count in [1u64, 250, 10_000] {
            let mut budget = Budget::new(Rate::per_second(count).unwrap(), now);
            let tokens = 0..count * 2;
            let at_once = tokens.clone().filter(|_| budget.take(now)).count() as u64;
            assert_eq!(at_once, count);
            let later = now + Duration::from_secs(1);
            assert_eq!(tokens.filter(|_| budget.take(later)).count() as u64, count);
        }
        assert!(Rate::per_second(0).is_none());
    }
}
