//! When to send the next handshake initiation.
//!
//! boringtun waits 5 s before the first retry, gives up after 90 s and then stays silent. We retry
//! after 1 s, never give up, and add jitter so that many nodes do not answer a returning hub at once.

use std::time::{Duration, Instant};

/// While an outage is young, retries stay below boringtun's own 5 s timer.
const YOUNG: Duration = Duration::from_secs(90);
const YOUNG_DELAY_MAX: Duration = Duration::from_secs(4);
const DELAY_MIN: Duration = Duration::from_secs(1);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// The schedule of one peer's initiations.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    attempt: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    first_at: Instant,
    next_at: Instant,
    count: u32,
}

impl Retry {
    /// Whether a handshake is under way.
    pub(crate) fn is_active(&self) -> bool {
        self.attempt.is_some()
    }

    /// When the next initiation may be sent; `None`: nothing is under way.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.attempt.as_ref().map(|attempt| attempt.next_at)
    }

    /// When the handshake under way was begun.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.attempt.as_ref().map(|attempt| attempt.first_at)
    }

    /// Whether an initiation may be sent now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.attempt
            .as_ref()
            .is_none_or(|attempt| attempt.next_at <= now)
    }

    /// Whether the handshake has been tried for so long that the peer is surely away.
    pub(crate) fn is_old(&self, now: Instant) -> bool {
        self.attempt
            .as_ref()
            .is_some_and(|attempt| now.duration_since(attempt.first_at) >= YOUNG)
    }

    /// Notes that an initiation was sent. `jitter` is uniform in 0..1.
    pub(crate) fn sent(&mut self, jitter: f64, now: Instant) {
        let attempt = self.attempt.get_or_insert(Attempt {
            first_at: now,
            next_at: now,
            count: 0,
        });
        let doubled = DELAY_MIN * 2u32.pow(attempt.count.min(5));
        let max = if now.duration_since(attempt.first_at) < YOUNG {
            YOUNG_DELAY_MAX
        } else {
            DELAY_MAX
        };
        let delay = doubled.min(max).mul_f64(0.8 + 0.2 * jitter.clamp(0.0, 1.0));
        attempt.count = attempt.count.saturating_add(1);
        attempt.next_at = now + delay;
    }

    /// Notes that a session was made, or that none is wanted any more.
    pub(crate) fn done(&mut self) {
        self.attempt = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    #[test]
    fn a_lost_first_initiation_is_retried_after_about_a_second() {
        let now = Instant::now();
        let mut retry = Retry::default();
        assert!(retry.is_due(now));
        retry.sent(0.5, now);
        assert!(!retry.is_due(now + Duration::from_millis(700)));
        assert!(retry.is_due(now + Duration::from_millis(1200)));
    }

    #[test]
    fn a_finished_handshake_starts_the_schedule_over() {
        let now = Instant::now();
        let mut retry = Retry::default();
        for _ in 0..8 {
            retry.sent(0.5, now);
        }
        retry.done();
        assert!(retry.is_due(now) && !retry.is_active());
    }

    #[test]
    fn nodes_that_lost_their_hub_together_come_back_one_by_one() {
        let began = Instant::now();
        let mut random = StdRng::seed_from_u64(8);
        let mut slots = std::collections::HashMap::new();
        for _ in 0..1_000 {
            let mut retry = Retry::default();
            let mut now = began;
            while now < began + Duration::from_mins(3) {
                retry.sent(random.random(), now);
                now = retry.next_at().unwrap();
                *slots.entry((now - began).as_millis() / 50).or_insert(0u32) += 1;
            }
        }
        let most = |from: Duration| {
            let late = slots
                .iter()
                .filter(|(slot, _)| **slot * 50 >= from.as_millis());
            late.map(|(_, count)| *count).max().unwrap()
        };
        // 200 ms hold all first repeats; a hub answers as many in 50 ms.
        assert!(most(Duration::ZERO) <= 350, "{}", most(Duration::ZERO));
        let later = most(Duration::from_secs(20));
        assert!(later <= 60, "{later} of 1000 in 50 ms");
    }

    proptest! {
        #[test]
        fn an_outage_of_any_length_is_probed_every_1_to_30_seconds(
            jitters in proptest::collection::vec(0.0f64..1.0, 1..200),
        ) {
            let mut now = Instant::now();
            let start = now;
            let mut retry = Retry::default();
            for jitter in jitters {
                retry.sent(jitter, now);
                let mut waited = Duration::ZERO;
                while !retry.is_due(now + waited) {
                    waited += Duration::from_millis(50);
                }
                prop_assert!(waited >= Duration::from_millis(800));
                prop_assert!(waited <= Duration::from_millis(30_050));
                if now.duration_since(start) < YOUNG {
                    prop_assert!(waited < Duration::from_secs(5));
                }
                now += waited;
            }
        }
    }
}
