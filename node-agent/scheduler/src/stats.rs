//! Speeds and times, from numbers that others measured.

use std::time::Duration;
use std::time::Instant;

/// Work that is this much older counts half.
const HALF_LIFE_SECS: f64 = 5.0;

/// A recent average of "things per second while there were any".
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    count: f64,
    seconds: f64,
    total: u64,
}

impl Meter {
    /// Notes that `count` things took `elapsed`. Time in which nothing was made does not count.
    pub fn observe(&mut self, count: usize, elapsed: Duration) {
        if count == 0 {
            return;
        }
        let seconds = elapsed.as_secs_f64();
        let keep = 0.5_f64.powf(seconds / HALF_LIFE_SECS);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.count = self.count * keep + f64::from(count);
        self.seconds = self.seconds * keep + seconds;
        self.total += u64::from(count);
    }

    /// Things per second; 0 before the first.
    pub fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.count / self.seconds
        } else {
            0.0
        }
    }

    /// All things ever.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// The moments of one job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct JobTimes {
    arrived: Instant,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl JobTimes {
    /// A job that came at `arrived` got its slot.
    pub fn started(arrived: Instant, now: Instant) -> Self {
        Self {
            arrived,
            started: now,
            first_token: None,
            last_token: None,
        }
    }

    /// It made a token.
    pub fn token(&mut self, now: Instant) {
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    /// Time spent waiting for the slot.
    pub fn queued(&self) -> Duration {
        self.started.saturating_duration_since(self.arrived)
    }

    /// From the slot to the first token, or to `now` if there was none.
    pub fn prompt(&self, now: Instant) -> Duration {
        self.first_token
            .unwrap_or(now)
            .saturating_duration_since(self.started)
    }

    /// From the first token to the last.
    pub fn predicted(&self) -> Duration {
        match (self.first_token, self.last_token) {
            (Some(first), Some(last)) => last.saturating_duration_since(first),
            (None, _) | (_, None) => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_forgets_an_old_speed_and_ignores_idle_time() {
        let mut meter = Meter::default();
        assert!(meter.per_second().abs() < f64::EPSILON);
        for _step in 0..100 {
            meter.observe(10, Duration::from_secs(1));
        }
        meter.observe(0, Duration::from_secs(1_000));
        assert!((meter.per_second() - 10.0).abs() < 1e-6);
        for _step in 0..100 {
            meter.observe(20, Duration::from_secs(1));
        }
        assert!(
            (meter.per_second() - 20.0).abs() < 0.01,
            "{}",
            meter.per_second()
        );
        assert_eq!(meter.total(), 3_000);
    }
}
