use proptest::prelude::*;

use super::Rate;

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
            seen_us: NOW,
        }
    }

    fn take(&mut self, rate: Rate, cost: u64, now_us: u64) -> bool {
        self.level_us = (self.level_us + (now_us - self.seen_us)).min(rate.burst_us());
        self.seen_us = now_us;
        let price = rate.interval_us() * cost;
        if price > self.level_us {
            return false;
        }
        self.level_us -= price;
        true
    }
}

/// Takes if it fits.
fn take(tat: &mut u64, rate: Rate, cost: u64, now: u64) -> bool {
    let fits = cost <= rate.room(*tat, now);
    if fits {
        *tat = rate.charge(*tat, cost, now);
    }
    fits
}

#[test]
fn thirty_a_minute_is_a_burst_of_thirty_then_one_each_two_seconds() {
    let mut tat = 0;
    for left in (0..30).rev() {
        assert!(take(&mut tat, TEXT, 1, NOW), "within the burst");
        assert_eq!(TEXT.room(tat, NOW), left);
    }
    assert!(!take(&mut tat, TEXT, 1, NOW), "the 31st");
    assert_eq!(TEXT.wait_us(tat, 1, NOW), Some(2 * SECOND));
    assert_eq!(tat - NOW, 60 * SECOND);
    assert!(!take(&mut tat, TEXT, 1, NOW + 2 * SECOND - 1));
    assert!(take(&mut tat, TEXT, 1, NOW + 2 * SECOND));
}

#[test]
fn a_limit_of_zero_admits_nothing_and_no_wait_helps() {
    let none = Rate { limit: 0, ..TEXT };
    assert_eq!((none.room(0, NOW), none.wait_us(0, 1, NOW)), (0, None));
}

#[test]
fn more_than_the_burst_never_fits() {
    assert_eq!(TEXT.wait_us(0, 31, NOW), None);
    assert_eq!(TEXT.wait_us(0, 30, NOW), Some(0));
    assert_eq!(TEXT.room(0, NOW), 30, "the bucket itself is full");
}

#[test]
fn a_clock_set_back_locks_nobody_out_for_longer_than_two_windows() {
    let year = 365 * 86_400 * SECOND;
    assert_eq!(TEXT.room(NOW + year, NOW), 0);
    let wait = TEXT.wait_us(NOW + year, 1, NOW).expect("a wait");
    assert_eq!(wait, 62 * SECOND);
    assert_eq!(TEXT.room(NOW + 120 * SECOND, NOW + wait), 1);
}

#[test]
fn a_charge_above_the_burst_is_a_debt_that_time_pays() {
    let tat = TEXT.charge(0, 45, NOW);
    assert_eq!(TEXT.room(tat, NOW), 0);
    assert_eq!(TEXT.wait_us(tat, 1, NOW), Some(32 * SECOND));
    assert_eq!(TEXT.room(tat, NOW + 32 * SECOND), 1);
}

#[test]
fn a_limit_that_does_not_divide_its_window_rounds_against_the_caller() {
    let seven = Rate { limit: 7, ..TEXT };
    assert!(seven.interval_us() * 7 >= seven.period_us());
    assert!((seven.interval_us() - 1) * 7 < seven.period_us());
}

#[test]
fn a_refund_that_is_late_gives_back_only_what_time_did_not() {
    let charged = TEXT.charge(0, 10, NOW);
    assert_eq!(
        TEXT.refund(charged, 10, charged, NOW),
        NOW,
        "at once: all of it"
    );
    let later = NOW + 15 * SECOND;
    assert_eq!(
        TEXT.room(TEXT.refund(charged, 10, charged, later), later),
        30
    );
    let drained = NOW + 20 * SECOND;
    let again = TEXT.charge(charged, 5, drained);
    assert_eq!(
        TEXT.refund(again, 10, charged, drained),
        again,
        "the ten had come back by themselves: the five stay charged"
    );
}

fn rates() -> impl Strategy<Value = Rate> {
    (1_u64..200, 1_u64..100_000).prop_map(|(limit, period_ms)| Rate { limit, period_ms })
}

/// Gaps between requests: bursts, about the interval, long pauses.
fn gaps() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let gap = prop_oneof![
        Just(0_u64),
        1_u64..1_000,
        1_000_u64..3_000_000,
        1_000_000_u64..200_000_000
    ];
    proptest::collection::vec((gap, 1_u64..4), 1..120)
}

proptest! {
    #[test]
    fn decides_as_a_token_bucket_does(rate in rates(), gaps in gaps()) {
        let mut bucket = Bucket::full(rate);
        let (mut tat, mut now) = (0, NOW);
        for (gap, cost) in gaps {
            now += gap;
            prop_assert_eq!(take(&mut tat, rate, cost, now), bucket.take(rate, cost, now));
            prop_assert_eq!(rate.room(tat, now), bucket.level_us / rate.interval_us());
            prop_assert_eq!(rate.tat_us(tat, now) - now, rate.burst_us() - bucket.level_us);
        }
    }

    #[test]
    fn no_window_admits_more_than_limit_and_refill(rate in rates(), gaps in gaps(), window_us in 1_u64..100_000_000) {
        let (mut tat, mut now) = (0, NOW);
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for (gap, cost) in gaps {
            now += gap;
            if take(&mut tat, rate, cost, now) {
                admitted.push((now, cost));
            }
        }
        for (start, _) in &admitted {
            let within = admitted.iter().filter(|(at, _)| (*start..=start + window_us).contains(at));
            let sum: u64 = within.map(|(_, cost)| cost).sum();
            prop_assert!(sum <= rate.limit + window_us / rate.interval_us());
        }
    }

    #[test]
    fn hints_are_true_to_the_microsecond(rate in rates(), gaps in gaps(), cost in 1_u64..4) {
        let (mut tat, mut now) = (0, NOW);
        for (gap, cost) in gaps {
            now += gap;
            take(&mut tat, rate, cost, now);
        }
        match rate.wait_us(tat, cost, now) {
            None => prop_assert!(cost > rate.limit),
            Some(0) => prop_assert!(cost <= rate.room(tat, now)),
            Some(wait) => {
                prop_assert!(cost <= rate.room(tat, now + wait), "it fits when the hint says");
                prop_assert!(cost > rate.room(tat, now + wait - 1), "and not a microsecond before");
            }
        }
    }

    /// Refunds of any order and delay never leave more than if the refunded units had never been charged.
    #[test]
    fn a_refund_never_gives_more_than_was_taken(rate in rates(), gaps in gaps(), (cost, back, late) in (1_u64..6, 0_u64..6, 0_u64..60)) {
        prop_assume!(back <= cost);
        let (mut with, mut without, mut now) = (0_u64, 0_u64, NOW);
        with = rate.charge(with, cost, now);
        without = rate.charge(without, cost - back, now);
        let charged_to = with;
        for (gap, cost) in gaps.into_iter().take(usize::try_from(late).unwrap()) {
            now += gap;
            // Others take what fits in both worlds.
            if cost <= rate.room(with, now) {
                with = rate.charge(with, cost, now);
                without = rate.charge(without, cost, now);
            }
        }
        let refunded = rate.refund(with, back, charged_to, now);
        prop_assert!(rate.tat_us(refunded, now) >= rate.tat_us(without, now).min(refunded.max(now)));
        prop_assert!(refunded.max(now) >= without.max(now), "{refunded} {without}");
    }

    #[test]
    fn no_number_makes_it_panic(tat: u64, limit: u64, period_ms: u64, cost: u64, now: u64) {
        let rate = Rate { limit, period_ms };
        prop_assert!(rate.room(tat, now) <= limit);
        let charged = rate.charge(tat, cost, now);
        let _ = rate.wait_us(tat, cost, now);
        rate.refund(charged, cost, charged, now);
    }
}
