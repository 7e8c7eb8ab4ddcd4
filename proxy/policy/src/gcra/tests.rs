use proptest::prelude::*;

use super::{Rate, Step, give_back, step};

const TEXT: Rate = Rate {
    limit: 30,
    period_ms: 60_000,
};
const SECOND: u64 = 1_000_000;
const NOW: u64 = 1_800_000_000 * SECOND;

/// The textbook token bucket: a level that fills with time and that requests drain.
struct Bucket {
    level_us: u64,
    seen_us: u64,
}

impl Bucket {
    fn full(rate: Rate) -> Self {
        Self {
            level_us: rate.burst_us(),
            seen_us: 0,
        }
    }

    fn take(&mut self, rate: Rate, cost: u32, now_us: u64) -> bool {
        self.level_us = (self.level_us + (now_us - self.seen_us)).min(rate.burst_us());
        self.seen_us = now_us;
        let price = rate.interval_us() * u64::from(cost);
        if price > self.level_us {
            return false;
        }
        self.level_us -= price;
        true
    }
}

#[test]
fn thirty_a_minute_is_a_burst_of_thirty_then_one_each_two_seconds() {
    let mut tat = 0;
    for left in (0..30).rev() {
        let found = step(tat, TEXT, 1, NOW);
        assert!(found.admitted, "within the burst");
        assert_eq!(found.remaining, left);
        tat = found.tat_us;
    }
    let refused = step(tat, TEXT, 1, NOW);
    assert!(!refused.admitted, "the 31st");
    assert_eq!(refused.retry_after_us, 2 * SECOND);
    assert_eq!(refused.reset_after_us, 60 * SECOND);
    assert_eq!(refused.tat_us, tat, "a refusal costs nothing");
    assert!(!step(tat, TEXT, 1, NOW + 2 * SECOND - 1).admitted);
    assert!(step(tat, TEXT, 1, NOW + 2 * SECOND).admitted);
}

#[test]
fn a_limit_of_zero_admits_nothing_and_hints_a_window() {
    let none = Rate { limit: 0, ..TEXT };
    let found = step(0, none, 1, NOW);
    let expected = Step {
        admitted: false,
        tat_us: NOW,
        remaining: 0,
        retry_after_us: 60 * SECOND,
        reset_after_us: 0,
    };
    assert_eq!(found, expected);
}

#[test]
fn more_than_the_burst_never_fits() {
    let found = step(0, TEXT, 31, NOW);
    assert!(!found.admitted);
    assert_eq!(found.retry_after_us, TEXT.period_us());
    assert_eq!(found.remaining, 30, "the bucket itself is full");
}

#[test]
fn a_clock_set_back_locks_nobody_out_for_longer_than_a_window() {
    let year = 365 * 86_400 * SECOND;
    let found = step(NOW + year, TEXT, 1, NOW);
    assert!(!found.admitted);
    assert_eq!(found.retry_after_us, 2 * SECOND);
    assert!(step(found.tat_us, TEXT, 1, NOW + 2 * SECOND).admitted);
}

#[test]
fn a_limit_that_does_not_divide_its_window_rounds_against_the_caller() {
    let seven = Rate { limit: 7, ..TEXT };
    assert!(seven.interval_us() * 7 >= seven.period_us());
    assert!((seven.interval_us() - 1) * 7 < seven.period_us());
}

fn rates() -> impl Strategy<Value = Rate> {
    (1_u32..200, 1_u64..100_000).prop_map(|(limit, period_ms)| Rate { limit, period_ms })
}

/// Gaps between requests: bursts, about the interval, long pauses.
fn gaps() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let gap = prop_oneof![
        Just(0_u64),
        1_u64..1_000,
        1_000_u64..3_000_000,
        1_000_000_u64..200_000_000
    ];
    proptest::collection::vec((gap, 1_u32..4), 1..120)
}

proptest! {
    #[test]
    fn decides_as_a_token_bucket_does(rate in rates(), gaps in gaps()) {
        let mut bucket = Bucket::full(rate);
        bucket.seen_us = NOW;
        let (mut tat, mut now) = (0, NOW);
        for (gap, cost) in gaps {
            now += gap;
            let found = step(tat, rate, cost, now);
            prop_assert_eq!(found.admitted, bucket.take(rate, cost, now));
            prop_assert_eq!(u64::from(found.remaining), bucket.level_us / rate.interval_us());
            prop_assert_eq!(found.reset_after_us, rate.burst_us() - bucket.level_us);
            tat = found.tat_us;
        }
    }

    #[test]
    fn no_window_admits_more_than_limit_and_refill(rate in rates(), gaps in gaps(), window_us in 1_u64..100_000_000) {
        let (mut tat, mut now) = (0, NOW);
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (gap, cost) in gaps {
            now += gap;
            let found = step(tat, rate, cost, now);
            if found.admitted {
                admitted.push((now, u64::from(cost)));
            }
            tat = found.tat_us;
        }
        for (start, _) in &admitted {
            let within = admitted.iter().filter(|(at, _)| (*start..=start + window_us).contains(at));
            let sum: u64 = within.map(|(_, cost)| cost).sum();
            prop_assert!(sum <= u64::from(rate.limit) + window_us / rate.interval_us());
        }
    }

    #[test]
    fn hints_are_true_to_the_microsecond(rate in rates(), gaps in gaps(), cost in 1_u32..4) {
        let (mut tat, mut now) = (0, NOW);
        for (gap, cost) in gaps {
            now += gap;
            tat = step(tat, rate, cost, now).tat_us;
        }
        let found = step(tat, rate, cost, now);
        if !found.admitted && cost <= rate.limit {
            let at = now + found.retry_after_us;
            prop_assert!(step(tat, rate, cost, at).admitted, "admitted when the hint says");
            prop_assert!(!step(tat, rate, cost, at - 1).admitted, "and not a microsecond before");
        }
        let full = now + found.reset_after_us;
        prop_assert_eq!(step(found.tat_us, rate, 0, full).remaining, rate.limit);
        if found.reset_after_us > 0 {
            prop_assert!(step(found.tat_us, rate, 0, full - 1).remaining < rate.limit);
        }
    }

    #[test]
    fn what_is_given_back_was_never_taken(rate in rates(), gaps in gaps(), cost in 1_u32..4) {
        let (mut tat, mut now) = (0, NOW);
        for (gap, cost) in gaps {
            now += gap;
            tat = step(tat, rate, cost, now).tat_us;
        }
        let found = step(tat, rate, cost, now);
        prop_assume!(found.admitted);
        let returned = give_back(found.tat_us, rate, cost);
        for later in [now, now + 1, now + rate.period_us()] {
            prop_assert_eq!(step(returned, rate, 1, later), step(tat, rate, 1, later));
        }
    }

    #[test]
    fn no_number_makes_it_panic(tat: u64, limit: u32, period_ms: u64, cost: u32, now: u64) {
        let rate = Rate { limit, period_ms };
        let found = step(tat, rate, cost, now);
        prop_assert!(found.remaining <= limit);
        give_back(found.tat_us, rate, cost);
    }
}
