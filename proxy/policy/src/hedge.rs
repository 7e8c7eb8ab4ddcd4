//! When a second backend is asked for the same answer: how long each backend takes until its first token, and how many requests may
//! ask twice. Asks nobody. Everything is bounded: a table of as many backends as there are, a histogram of fixed size for each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::settings::proxy::Hedge;
use config::tier::Tier;

/// Each bucket ends so much later than the one before: an estimate is at most this much above what was measured.
const GROWTH: f64 = 1.05;
/// From 1 ms to ten minutes: `ln(600_000) / ln(1.05)`, and one for what takes longer.
const BUCKETS: usize = 275;
/// At so many samples all count half, so that a backend is what it was lately.
const SAMPLES_MAX: u32 = 1_024;
/// The share of requests that is slower than what a backend is allowed.
const QUANTILE: f64 = 0.95;
/// Nobody asks twice before: a request costs more than that.
const AFTER_MIN: Duration = Duration::from_millis(20);
/// The window of the budget, in as many slots.
const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_secs(6);

/// How long a backend takes until its first token: a histogram whose buckets grow by 5 %.
#[derive(Clone, Debug)]
pub struct Times {
    buckets: Box<[u32; BUCKETS]>,
    total: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            buckets: Box::new([0; BUCKETS]),
            total: 0,
        }
    }
}

impl Times {
    /// Takes one measurement.
    pub fn add(&mut self, took: Duration) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(took)) {
            *bucket += 1;
            self.total += 1;
        }
        if self.total >= SAMPLES_MAX {
            for bucket in self.buckets.iter_mut() {
                *bucket /= 2;
            }
            self.total = self.buckets.iter().sum();
        }
    }

    /// How many measurements count.
    pub const fn samples(&self) -> u32 {
        self.total
    }

    /// What this share of the measurements does not exceed: at most 5 % too much, and never too little. `None` without any.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (f64::from(self.total) * share).ceil().max(1.0);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if f64::from(seen) >= wanted {
                return Some(end_of(index));
            }
        }
        None
    }
}

/// The first bucket that ends at this time or later.
fn bucket_of(took: Duration) -> usize {
    // By the ends themselves: a logarithm would put what lies on an edge on either side.
    let (mut low, mut high) = (0, BUCKETS - 1);
    while low < high {
        let middle = usize::midpoint(low, high);
        if end_of(middle) >= took {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

fn end_of(index: usize) -> Duration {
    let power = i32::try_from(index).unwrap_or(i32::MAX);
    Duration::from_secs_f64(1e-3 * GROWTH.powi(power))
}

/// Requests, and second requests, of the last minute.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    slots: [Slot; SLOTS],
    began: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    number: u64,
    requests: u32,
    hedges: u32,
}

impl Budget {
    /// One request was begun.
    pub fn request(&mut self, now: Instant) {
        let slot = self.slot(now);
        slot.requests = slot.requests.saturating_add(1);
    }

    /// Takes a second request, if they stay below this share of all.
    pub fn take(&mut self, percent: u32, now: Instant) -> bool {
        let current = self.slot(now).number;
        let window = u64::try_from(SLOTS).unwrap_or(u64::MAX);
        let (mut requests, mut hedges) = (0_u64, 1_u64);
        for slot in &self.slots {
            if slot.number + window > current {
                requests += u64::from(slot.requests);
                hedges += u64::from(slot.hedges);
            }
        }
        let fits = hedges * 100 <= requests * u64::from(percent);
        if fits {
            let slot = self.slot(now);
            slot.hedges = slot.hedges.saturating_add(1);
        }
        fits
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let began = *self.began.get_or_insert(now);
        let since = now.saturating_duration_since(began).as_secs() / SLOT.as_secs();
        let slots = u64::try_from(SLOTS).unwrap_or(1);
        let index = usize::try_from(since % slots).unwrap_or(0);
        let slot = &mut self.slots[index];
        if slot.number != since {
            *slot = Slot {
                number: since,
                ..Slot::default()
            };
        }
        slot
    }
}

/// How fast every backend is, and what may be asked twice.
#[derive(Debug)]
pub struct Speed {
    rules: Hedge,
    times: HashMap<BackendId, Times>,
    budget: Budget,
}

impl Speed {
    /// Nothing measured yet.
    pub fn new(rules: &Hedge) -> Self {
        Self {
            rules: rules.clone(),
            times: HashMap::new(),
            budget: Budget::default(),
        }
    }

    /// Whether requests of this tier and size are asked twice at all.
    pub fn covers(&self, tier: Tier, prompt_tokens: u64) -> bool {
        self.rules.enabled
            && self.rules.tiers.contains(&tier)
            && prompt_tokens <= u64::from(self.rules.prompt_tokens_max)
    }

    /// A request of a covered tier was begun.
    pub fn request(&mut self, now: Instant) {
        self.budget.request(now);
    }

    /// A backend began to answer after this, or was left while it had not.
    pub fn measured(&mut self, backend: &BackendId, took: Duration) {
        if self.rules.enabled {
            self.times.entry(backend.clone()).or_default().add(took);
        }
    }

    /// After which a second backend is asked; `None`: too little is known of the first.
    pub fn after(&self, backend: &BackendId) -> Option<Duration> {
        let times = self.times.get(backend)?;
        let known = times.samples() >= self.rules.min_samples.max(1);
        known
            .then(|| times.quantile(QUANTILE))
            .flatten()
            .map(|after| after.max(AFTER_MIN))
    }

    /// Takes a second request from the budget.
    pub fn take(&mut self, now: Instant) -> bool {
        self.budget.take(self.rules.budget_percent, now)
    }

    /// The node is gone for good.
    pub fn forget(&mut self, node: &NodeId) {
        self.times.retain(|backend, _| backend.node != *node);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::start;

    proptest! {
        #[test]
        fn a_quantile_is_never_too_small_and_at_most_five_percent_too_large(
            mut ms in proptest::collection::vec(1u64..600_000, 1..1_000),
            share in 0.01f64..=1.0,
        ) {
            let mut times = Times::default();
            for one in &ms {
                times.add(Duration::from_millis(*one));
            }
            ms.sort_unstable();
            #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a thousand samples")]
            let rank = (ms.len() as f64 * share).ceil().max(1.0) as usize;
            let exact = Duration::from_millis(ms[rank - 1]);
            let estimate = times.quantile(share).unwrap();
            prop_assert!(estimate >= exact, "{estimate:?} < {exact:?}");
            prop_assert!(estimate <= exact.mul_f64(GROWTH) + Duration::from_nanos(10), "{estimate:?} > {exact:?}");
        }

        #[test]
        fn second_requests_never_exceed_their_share_of_any_minute(
            gaps_ms in proptest::collection::vec(0u64..2_000, 1..400),
            percent in 0u32..=100,
        ) {
            let (base, mut budget) = (start(), Budget::default());
            let (mut now_ms, mut asked) = (0, Vec::new());
            for gap in gaps_ms {
                now_ms += if asked.is_empty() { 0 } else { gap };
                let now = base + Duration::from_millis(now_ms);
                budget.request(now);
                asked.push((now_ms, budget.take(percent, now)));
                // The window ends with the slot that runs: it is 54 to 60 s long.
                let window: Vec<&(u64, bool)> =
                    asked.iter().filter(|(at, _)| at / 6_000 + 10 > now_ms / 6_000).collect();
                let hedges = window.iter().filter(|(_, hedged)| *hedged).count();
                if asked.last().is_some_and(|(_, hedged)| *hedged) {
                    prop_assert!(hedges * 100 <= window.len() * usize::try_from(percent).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_backend_that_became_slow_is_known_as_slow() {
        let mut times = Times::default();
        for _ in 0..10_000 {
            times.add(Duration::from_millis(10));
        }
        for _ in 0..100 {
            times.add(Duration::from_secs(1));
        }
        assert!(times.samples() <= SAMPLES_MAX);
        assert!(times.quantile(QUANTILE).unwrap() >= Duration::from_secs(1));
        assert!(times.quantile(0.5).unwrap() <= Duration::from_millis(11));
    }

    #[test]
    fn what_takes_longer_than_anything_lies_in_the_last_bucket() {
        let mut times = Times::default();
        times.add(Duration::from_hours(24));
        assert_eq!(times.quantile(1.0), Some(end_of(BUCKETS - 1)));
        assert!(end_of(BUCKETS - 1) >= Duration::from_mins(10));
        assert_eq!(Times::default().quantile(0.5), None);
    }
}
