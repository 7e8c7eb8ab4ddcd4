//! How long a model takes to load, to say how far one is that is being loaded and when it will answer. llama.cpp does not say; the time that it took before
//! does, and before the first time the size of its file. An estimate, for people who wait: never quite a hundred percent, and never no time at all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reading speed that is assumed before the first load: a SATA disk's.
const BYTES_PER_SECOND: u64 = 400_000_000;
/// Starting a worker takes this much however small the model is.
const AT_LEAST: Duration = Duration::from_millis(500);
/// A load that takes longer than was expected takes this part of it more.
const OVERDUE_PART: u32 = 10;
const PERCENT_MAX: u128 = 99;

/// The loads of one tier.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Loads>);

#[derive(Debug, Default)]
struct Loads {
    /// The load under way.
    began: Option<Instant>,
    /// It waits for memory since then; that says nothing about how long a load takes.
    held: Option<Instant>,
    /// Bytes of what is being loaded, once known.
    size: Option<u64>,
    /// How long the last one took, and of how many bytes it was.
    took: Option<(Duration, u64)>,
}

impl Loads {
    /// How long a load of so many bytes will probably take: as the last one, with a model of another size as much longer.
    fn expected(&self, known: u64) -> Duration {
        let size = self.size.unwrap_or(known);
        let expected = match self.took {
            Some((took, before)) if before == size => took,
            Some((took, before)) if before > 0 && size > 0 => {
                let millis = took.as_millis().saturating_mul(u128::from(size)) / u128::from(before);
                Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
            }
            Some(_) | None => from_size(size),
        };
        expected.max(AT_LEAST)
    }

    /// How long the load under way has been at work.
    fn since(&self, now: Instant) -> Option<Duration> {
        let until = self.held.unwrap_or(now);
        Some(until.saturating_duration_since(self.began?))
    }
}

impl Pace {
    /// A load begins, unless one is under way.
    pub(super) fn begin(&self, now: Instant) {
        self.loads().began.get_or_insert(now);
    }

    /// What is being loaded has so many bytes.
    pub(super) fn is_of(&self, bytes: u64) {
        self.loads().size = (bytes > 0).then_some(bytes);
    }

    /// The load under way waits, for memory or for answers that still run.
    pub(super) fn hold(&self, now: Instant) {
        self.loads().held.get_or_insert(now);
    }

    /// It goes on.
    pub(super) fn go_on(&self, now: Instant) {
        let mut loads = self.loads();
        if let (Some(began), Some(held)) = (loads.began, loads.held.take()) {
            loads.began = Some(began + now.saturating_duration_since(held));
        }
    }

    /// The load under way has ended, with a model of so many bytes or without.
    pub(super) fn end(&self, loaded: Option<u64>, now: Instant) {
        let mut loads = self.loads();
        let took = loads.since(now);
        let size = loads.size.take();
        loads.began = None;
        loads.held = None;
        if let (Some(bytes), Some(took)) = (loaded, took) {
            loads.took = Some((took, size.unwrap_or(bytes)));
        }
    }

    /// How far the load under way is, in percent; `None`: there is none.
    pub(super) fn percent(&self, known: u64, now: Instant) -> Option<u8> {
        let loads = self.loads();
        let since = loads.since(now)?;
        let expected = loads.expected(known);
        let percent = since.as_millis() * 100 / expected.as_millis().max(1);
        u8::try_from(percent.min(PERCENT_MAX)).ok()
    }

    /// How long until a model of so many bytes answers: what is left of the load under way, or a whole one.
    pub(super) fn left(&self, known: u64, now: Instant) -> Duration {
        let loads = self.loads();
        let expected = loads.expected(known);
        let since = loads.since(now).unwrap_or_default();
        let overdue = (expected / OVERDUE_PART).max(AT_LEAST);
        expected.saturating_sub(since).max(overdue)
    }

    fn loads(&self) -> MutexGuard<'_, Loads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn from_size(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1_000) / BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 4_000_000_000;

    #[test]
    fn the_second_load_goes_by_the_first() {
        let pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.percent(SIZE, start), None);
        assert_eq!(pace.left(SIZE, start), Duration::from_secs(10));
        pace.begin(start);
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(pace.percent(SIZE, after(5)), Some(50));
        assert_eq!(pace.left(SIZE, after(4)), Duration::from_secs(6));
        assert_eq!(pace.percent(SIZE, after(500)), Some(99));
        assert_eq!(
            pace.left(SIZE, after(500)),
            Duration::from_secs(1),
            "never none"
        );
        pace.end(Some(SIZE), after(20));
        assert_eq!(pace.left(SIZE, after(50)), Duration::from_secs(20));
        pace.begin(after(100));
        assert_eq!(pace.percent(SIZE, after(105)), Some(25));
        pace.end(None, after(101));
        assert_eq!(pace.percent(SIZE, after(102)), None);
        assert_eq!(
            pace.left(SIZE, after(102)),
            Duration::from_secs(20),
            "a load that failed says nothing"
        );
    }

    #[test]
    fn a_model_of_twice_the_size_takes_twice_as_long() {
        let pace = Pace::default();
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        pace.begin(start);
        pace.end(Some(SIZE), after(6));
        pace.begin(after(10));
        pace.is_of(2 * SIZE);
        assert_eq!(pace.left(SIZE, after(10)), Duration::from_secs(12));
    }

    #[test]
    fn waiting_for_memory_is_not_loading() {
        let pace = Pace::default();
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        pace.begin(start);
        pace.hold(after(1));
        assert_eq!(pace.left(SIZE, after(60)), Duration::from_secs(9));
        pace.go_on(after(60));
        assert_eq!(pace.left(SIZE, after(61)), Duration::from_secs(8));
        pace.end(Some(SIZE), after(63));
        assert_eq!(pace.left(SIZE, after(70)), Duration::from_secs(4));
    }
}
