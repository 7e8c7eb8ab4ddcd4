//! How long a model takes to load, to say how far one is that is being loaded. llama.cpp does not say; the time that it took before
//! does, and before the first time the size of its file. An estimate, for people who wait: never quite a hundred percent.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Reading speed that is assumed before the first load: a SATA disk's.
const BYTES_PER_SECOND: u64 = 400_000_000;
/// Starting a worker takes this much however small the model is.
const AT_LEAST: Duration = Duration::from_millis(500);
const PERCENT_MAX: u128 = 99;

/// The loads of one tier.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Loads>);

#[derive(Debug, Default)]
struct Loads {
    /// The load under way.
    began: Option<Instant>,
    /// How long the last one took.
    took: Option<Duration>,
}

impl Pace {
    /// A load begins, unless one is under way.
    pub(super) fn begin(&self, now: Instant) {
        self.loads().began.get_or_insert(now);
    }

    /// The load under way has ended, with a model or without.
    pub(super) fn end(&self, is_loaded: bool, now: Instant) {
        let mut loads = self.loads();
        let began = loads.began.take();
        if let (true, Some(began)) = (is_loaded, began) {
            loads.took = Some(now.saturating_duration_since(began));
        }
    }

    /// How far the load under way is, in percent; `None`: there is none.
    pub(super) fn percent(&self, size_bytes: u64, now: Instant) -> Option<u8> {
        let loads = self.loads();
        let since = now.saturating_duration_since(loads.began?);
        let guess = || Duration::from_secs_f64(from_size(size_bytes));
        let expected = loads.took.unwrap_or_else(guess).max(AT_LEAST);
        let percent = since.as_millis() * 100 / expected.as_millis().max(1);
        u8::try_from(percent.min(PERCENT_MAX)).ok()
    }

    fn loads(&self) -> MutexGuard<'_, Loads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn from_size(size_bytes: u64) -> f64 {
    let millis = size_bytes.saturating_mul(1_000) / BYTES_PER_SECOND;
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_load_goes_by_the_first() {
        let pace = Pace::default();
        let start = Instant::now();
        assert_eq!(pace.percent(1, start), None);
        pace.begin(start);
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(pace.percent(4_000_000_000, after(5)), Some(50));
        assert_eq!(pace.percent(4_000_000_000, after(500)), Some(99));
        pace.end(true, after(20));
        pace.begin(after(100));
        assert_eq!(pace.percent(4_000_000_000, after(105)), Some(25));
        pace.end(false, after(101));
        assert_eq!(pace.percent(1, after(102)), None);
    }
}
