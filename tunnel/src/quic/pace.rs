//! How much may be under way on a connection: what the path carries in its shortest round trip, and a little more. Pure: time comes in.
//!
//! A home's uplink is narrow, lossy and has a deep queue. Loss says little there, so it is not what decides; a queue that we fill ourselves makes
//! every token late, so we do not fill it. As BBR does, we measure what arrives per round trip and the shortest round trip, and go once in
//! a while above to see whether there is more, then below to see how short the way really is. Unlike quinn's BBR, whose window
//! is twice that product, we stay at it while nobody else fills the queue; when somebody does, twice it is our share.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory};

/// So much may be under way before anything is known.
const INITIAL_PACKETS: u64 = 32;
const MIN_PACKETS: u64 = 8;
/// So much more than the path carries, in time: acknowledgements come late and in bursts (timers tick in milliseconds, programs wait for a
/// core), and a window that is too small then measures itself smaller and smaller. Every token pays for it at most once.
const HEADROOM: Duration = Duration::from_millis(12);
const HEADROOM_MIN: Duration = Duration::from_micros(500);
/// Rounds shorter than this measure the scheduler.
const ROUND_MIN: Duration = Duration::from_millis(2);
/// Rounds whose best one counts; more than a cycle.
const RATES: usize = 12;
/// A shortest round trip is believed for so long.
const SHORTEST_FOR: Duration = Duration::from_secs(20);
/// Rounds of a cycle: one above, one below, and six as measured.
const CYCLE: u32 = 8;
const ABOVE: f64 = 1.25;
const BELOW: f64 = 0.75;
/// The share of a path that others fill.
const AMONG_RIVALS: f64 = 2.0;
/// More loss than this in a round, and not by one bad moment, comes from a queue that is too short for what we sent.
const LOSS_MAX: f64 = 0.05;
const LOSS_MIN_PACKETS: u64 = 6;
/// A round that brings so much more than the best before is worth another one above.
const GROWTH: f64 = 1.1;
/// Rounds without growth that end the first phase.
const FLAT_ROUNDS: u32 = 2;

/// Makes a [`Pace`] for each connection.
pub(super) struct PaceConfig;

impl ControllerFactory for PaceConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Pace::new(mtu, now))
    }
}

/// What a connection knows of its path.
#[derive(Clone)]
struct Pace {
    mtu: u64,
    phase: Phase,
    /// Bytes per second of the last rounds in which there was enough to send.
    rates: VecDeque<f64>,
    /// The shortest way there and back, and when it was seen.
    shortest: Option<(Duration, Instant)>,
    headroom: Duration,
    rivals: bool,
    round: Round,
    last_sent: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Twice as much every round, until that brings nothing more.
    Opening { window: u64, flat: u32 },
    /// So many rounds into the cycle.
    Cycle(u32),
}

/// What happened since the round began.
#[derive(Clone)]
struct Round {
    began: Instant,
    /// The last packet sent before; its acknowledgement ends the round.
    last: u64,
    delivered: u64,
    lost: u64,
    is_limited: bool,
    shortest: Option<Duration>,
}

impl Round {
    fn new(last: u64, now: Instant) -> Self {
        Self {
            began: now,
            last,
            delivered: 0,
            lost: 0,
            is_limited: false,
            shortest: None,
        }
    }
}

impl Pace {
    fn new(mtu: u16, now: Instant) -> Self {
        let mtu = u64::from(mtu);
        Self {
            mtu,
            phase: opening(INITIAL_PACKETS * mtu),
            rates: VecDeque::with_capacity(RATES),
            shortest: None,
            headroom: HEADROOM,
            rivals: false,
            round: Round::new(0, now),
            last_sent: 0,
        }
    }

    fn rate(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn acked(&mut self, now: Instant, sent: Instant, (bytes, is_limited): (u64, bool)) {
        self.round.delivered += bytes;
        self.round.is_limited |= is_limited;
        if let Phase::Opening { window, .. } = &mut self.phase
            && !is_limited
        {
            *window += bytes;
        }
        self.note_round_trip(now.saturating_duration_since(sent), now);
    }

    fn note_round_trip(&mut self, took: Duration, now: Instant) {
        let shorter = self.round.shortest.is_none_or(|known| took < known);
        if shorter {
            self.round.shortest = Some(took);
        }
        let is_news = self
            .shortest
            .is_none_or(|(known, seen)| took <= known || now.duration_since(seen) >= SHORTEST_FOR);
        if is_news {
            self.shortest = Some((took, now));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn end_round(&mut self, now: Instant) {
        let took = now.duration_since(self.round.began).as_secs_f64();
        let round = std::mem::replace(&mut self.round, Round::new(self.last_sent, now));
        let rate = round.delivered as f64 / took.max(1e-6);
        let best = self.rate();
        if !round.is_limited || rate > best {
            if self.rates.len() >= RATES {
                self.rates.pop_front();
            }
            self.rates.push_back(rate);
        }
        let overflow = self.heed_loss(&round);
        let grew = rate > best * GROWTH;
        self.phase = match self.phase {
            Phase::Opening { window, flat } => {
                self.opened((window, flat), &round, (grew, overflow))
            }
            // What is limited by its program says nothing about the path.
            Phase::Cycle(at) if round.is_limited => Phase::Cycle(at.max(2)),
            Phase::Cycle(0) if grew => Phase::Cycle(0),
            Phase::Cycle(2) => {
                self.look_for_rivals(&round);
                Phase::Cycle(3)
            }
            Phase::Cycle(at) => Phase::Cycle((at + 1) % CYCLE),
        };
    }

    fn opened(
        &self,
        (window, flat): (u64, u32),
        round: &Round,
        (grew, overflow): (bool, bool),
    ) -> Phase {
        let flat = match (grew, round.is_limited) {
            (true, _) => 0,
            (false, true) => flat,
            (false, false) => flat + 1,
        };
        let waits = match (round.shortest, self.shortest) {
            (Some(took), Some((shortest, _))) => took > shortest + slack(shortest),
            _ => false,
        };
        // What is limited by its program may wait for other reasons.
        if flat >= FLAT_ROUNDS || overflow || (waits && !round.is_limited) {
            // One round below takes away what the last doubling has put into the queue.
            Phase::Cycle(1)
        } else {
            Phase::Opening { window, flat }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a share")]
    /// Whether the round has overflown a queue.
    fn heed_loss(&mut self, round: &Round) -> bool {
        let share = round.lost as f64 / (round.lost + round.delivered).max(1) as f64;
        let is_overflow = share > LOSS_MAX && round.lost >= LOSS_MIN_PACKETS * self.mtu;
        self.headroom = if is_overflow {
            (self.headroom / 2).max(HEADROOM_MIN)
        } else {
            (self.headroom + HEADROOM / 32).min(HEADROOM)
        };
        is_overflow
    }

    /// After a round below, the queue that we made is gone; what is left is made by others.
    fn look_for_rivals(&mut self, round: &Round) {
        if let (Some(took), Some((shortest, _))) = (round.shortest, self.shortest) {
            self.rivals = took > shortest + slack(shortest);
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes, far below 2^53"
    )]
    fn bytes(&self, gain: f64) -> u64 {
        let shortest = self.shortest.map_or(Duration::ZERO, |(took, _)| took);
        let long = shortest.mul_f64(gain) + self.headroom;
        (self.rate() * long.as_secs_f64()) as u64
    }
}

const fn opening(window: u64) -> Phase {
    Phase::Opening { window, flat: 0 }
}

/// A round trip longer than the shortest by this is one that waits in a queue.
fn slack(shortest: Duration) -> Duration {
    (shortest / 4).max(Duration::from_millis(12))
}

impl Controller for Pace {
    fn on_sent(&mut self, _: Instant, _: u64, number: u64) {
        self.last_sent = number;
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        is_limited: bool,
        _: &RttEstimator,
    ) {
        self.acked(now, sent, (bytes, is_limited));
    }

    fn on_end_acks(&mut self, now: Instant, _: u64, is_limited: bool, largest: Option<u64>) {
        self.round.is_limited |= is_limited;
        let is_over = largest.is_some_and(|largest| largest >= self.round.last);
        if is_over && now.duration_since(self.round.began) >= ROUND_MIN {
            self.end_round(now);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, _: Instant, is_persistent: bool, lost: u64) {
        self.round.lost += lost;
        if is_persistent {
            // Nothing has come through for long: the path may be another one.
            self.rates.clear();
            self.phase = opening(MIN_PACKETS * self.mtu);
            self.round = Round::new(self.last_sent, now);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
    }

    fn window(&self) -> u64 {
        let window = match self.phase {
            Phase::Opening { window, .. } => window,
            Phase::Cycle(0) => self.bytes(if self.rivals { AMONG_RIVALS } else { ABOVE }),
            Phase::Cycle(1) => self.bytes(BELOW),
            Phase::Cycle(_) => self.bytes(if self.rivals { AMONG_RIVALS } else { 1.0 }),
        };
        window.max(MIN_PACKETS * self.mtu)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MTU: u64 = 1_232;

    /// A link with a queue, and a sender that always has more to send.
    struct Link {
        bytes_per_second: f64,
        delay: Duration,
        queue: Duration,
        /// Every so many packets one is lost.
        lose_every: u64,
        /// What others keep in the queue from the second second on.
        others: Duration,
    }

    const HOME: Link = Link {
        bytes_per_second: 12.5e6,
        delay: Duration::from_millis(20),
        queue: Duration::from_millis(40),
        lose_every: u64::MAX,
        others: Duration::ZERO,
    };

    /// Runs for so many seconds; the share of the link that was used and the mean wait in the queue, both after the first second.
    #[expect(clippy::cast_precision_loss, reason = "shares of a link")]
    fn run(link: &Link, seconds: u64) -> (f64, Duration) {
        let start = Instant::now();
        let end = start + Duration::from_secs(seconds);
        let mut pace = Pace::new(u16::try_from(MTU).unwrap(), start);
        let mut now = start;
        let mut free_at = start;
        let mut number = 0;
        let mut under_way: VecDeque<(u64, Instant, Option<Instant>)> = VecDeque::new();
        let takes = Duration::from_secs_f64(MTU as f64 / link.bytes_per_second);
        let (mut delivered, mut waits, mut count) = (0, Duration::ZERO, 0);
        while now < end {
            let settled = now > start + Duration::from_secs(1);
            while under_way.len() as u64 * MTU < pace.window() {
                number += 1;
                pace.on_sent(now, MTU, number);
                let others = if settled { link.others } else { Duration::ZERO };
                let wait = free_at.saturating_duration_since(now);
                let lost = wait > link.queue || number % link.lose_every == 0;
                let arrives = if lost {
                    None
                } else {
                    free_at = free_at.max(now) + takes;
                    Some(free_at + others + 2 * link.delay)
                };
                if settled {
                    waits += wait;
                    count += 1;
                }
                under_way.push_back((number, now, arrives));
            }
            match under_way.pop_front() {
                Some((number, sent, Some(at))) => {
                    now = now.max(at);
                    delivered += u64::from(settled) * MTU;
                    pace.acked(now, sent, (MTU, false));
                    pace.on_end_acks(now, 0, false, Some(number));
                }
                Some((_, sent, None)) => pace.on_congestion_event(now, sent, false, MTU),
                None => now += Duration::from_millis(1),
            }
        }
        let used = delivered as f64 / (link.bytes_per_second * (seconds - 1) as f64);
        (used, waits / count.max(1))
    }

    #[test]
    fn a_clean_link_is_used_without_filling_its_queue() {
        let (used, wait) = run(&HOME, 8);
        assert!(used > 0.93, "{used}");
        assert!(wait < Duration::from_millis(20), "{wait:?}");
    }

    #[test]
    fn a_narrow_link_with_a_deep_queue_stays_quick_for_tokens() {
        let link = Link {
            bytes_per_second: 2.5e6,
            queue: Duration::from_millis(500),
            ..HOME
        };
        let (used, wait) = run(&link, 8);
        assert!(used > 0.9, "{used}");
        assert!(wait < Duration::from_millis(25), "{wait:?}");
    }

    #[test]
    fn random_loss_does_not_slow_it_down() {
        for lose_every in [1000, 100, 30] {
            let (used, _) = run(&Link { lose_every, ..HOME }, 8);
            assert!(used > 0.85, "one in {lose_every}: {used}");
        }
    }

    #[test]
    fn a_short_queue_is_not_overflown_for_long() {
        let link = Link {
            queue: Duration::from_millis(3),
            ..HOME
        };
        let (used, _) = run(&link, 8);
        assert!(used > 0.8, "{used}");
    }

    #[test]
    fn a_queue_that_others_fill_does_not_starve_it() {
        let others = Duration::from_millis(60);
        let (used, _) = run(&Link { others, ..HOME }, 8);
        assert!(used > 0.6, "{used}");
    }

    proptest! {
        #[test]
        fn whatever_happens_the_window_stays_sane(events in proptest::collection::vec((0u8..4, 0u64..100_000, 1u64..1_000), 1..400)) {
            let start = Instant::now();
            let mut pace = Pace::new(1_232, start);
            let mut now = start;
            for (number, (kind, bytes, millis)) in (1..).zip(events) {
                pace.on_sent(now, MTU, number);
                let sent = now;
                now += Duration::from_millis(millis);
                match kind {
                    0 => pace.on_congestion_event(now, sent, bytes % 7 == 0, bytes),
                    _ => pace.acked(now, sent, (bytes, kind == 1)),
                }
                pace.on_end_acks(now, 0, kind == 1, Some(number));
                prop_assert!(pace.window() >= MIN_PACKETS * MTU);
                prop_assert!(pace.window() < 1 << 40);
            }
        }
    }
}
