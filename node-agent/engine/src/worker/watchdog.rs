//! Ends the process when it hangs, because a hung worker looks busy to its agent, but a dead one is replaced.
//!
//! A grammar can be made so ambiguous that following it takes forever, and a driver can wait for a device that never
//! answers. Neither can be interrupted from outside, so a thread of its own looks at the clock.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// No limit.
const NEVER: u64 = u64::MAX;

/// The handle of the thread that is watched.
#[derive(Clone, Debug)]
pub(super) struct Watchdog {
    start: Instant,
    /// Milliseconds after `start`.
    limit: Arc<AtomicU64>,
}

impl Watchdog {
    /// Starts to watch.
    pub(super) fn start() -> io::Result<Self> {
        let watchdog = Self {
            start: Instant::now(),
            limit: Arc::new(AtomicU64::new(NEVER)),
        };
        let watching = watchdog.clone();
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || watching.watch())?;
        Ok(watchdog)
    }

    /// What begins now may take so long.
    pub(super) fn allow(&self, duration: Duration) {
        let limit = self.start.elapsed().saturating_add(duration);
        let millis = u64::try_from(limit.as_millis()).unwrap_or(NEVER);
        self.limit.store(millis, Ordering::Relaxed);
    }

    /// What begins now is waiting, which may take forever.
    pub(super) fn rest(&self) {
        self.limit.store(NEVER, Ordering::Relaxed);
    }

    fn is_late(&self) -> bool {
        self.start.elapsed().as_millis() > u128::from(self.limit.load(Ordering::Relaxed))
    }

    fn watch(&self) {
        while !self.is_late() {
            thread::sleep(LOOK_EVERY);
        }
        // The agent keeps lines with this word as the reason.
        let _lost = writeln!(io::stderr().lock(), "aborting: a step hangs");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_longer_than_allowed_is_late() {
        let watchdog = Watchdog {
            start: Instant::now(),
            limit: Arc::new(AtomicU64::new(NEVER)),
        };
        assert!(!watchdog.is_late());
        watchdog.allow(Duration::from_hours(1));
        assert!(!watchdog.is_late());
        watchdog.limit.store(0, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2));
        assert!(watchdog.is_late());
        watchdog.rest();
        assert!(!watchdog.is_late());
    }
}
