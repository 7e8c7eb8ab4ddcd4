//! The start and stop of a server that sleeps until it is wanted: who wants it, who waits, when it is idle. One task drives it
//! ([`super::watch`]); requests only say that they need it and wait, so a client that leaves stops no start.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::settings::proxy::Burst;
use policy::calendar::minute_of_day;
use policy::waking::{Rules, Sleeper, Verdict};
use tokio::sync::Notify;

/// After a failed start nobody tries again for this long at first.
const PAUSE: Duration = Duration::from_secs(30);

/// A stop that failed is tried again after this, then after twice as long each time.
const STOP_AGAIN: Duration = Duration::from_secs(30);
/// And at least this often: somebody pays for it.
const STOP_AGAIN_MAX: Duration = Duration::from_hours(1);
/// What this proxy holds at the store ends so long after its death, or sooner where a server is kept for less.
const LEASE_MAX: Duration = Duration::from_secs(30);
const LEASE_MIN: Duration = Duration::from_secs(2);

/// What starts and stops one server.
#[derive(Debug)]
pub struct Starter {
    name: String,
    burst: Burst,
    sleeper: Mutex<Sleeper>,
    /// Wakes the task that drives it.
    wanted: Notify,
    /// Wakes those who wait for it.
    changed: Notify,
}

impl Starter {
    pub(super) fn new(name: &str, burst: Burst) -> Self {
        let rules = Rules {
            expected: burst.takes,
            pause: PAUSE,
        };
        Self {
            name: name.to_owned(),
            burst,
            sleeper: Mutex::new(Sleeper::new(rules, Instant::now())),
            wanted: Notify::new(),
            changed: Notify::new(),
        }
    }

    /// Its server's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// How it is started.
    pub(super) const fn burst(&self) -> &Burst {
        &self.burst
    }

    /// Somebody needs it now. Whoever is to start it need do nothing: the task was told.
    pub fn want(&self) -> Verdict {
        let verdict = self.sleeper().want(Instant::now());
        if matches!(verdict, Verdict::Start(_)) {
            self.wanted.notify_one();
        }
        verdict
    }

    /// Returns when something changed, or soon.
    pub async fn changed(&self) {
        // What happened between the look and the wait is seen at the next look.
        let soon = tokio::time::timeout(Duration::from_millis(250), self.changed.notified());
        let _either = soon.await;
    }

    /// A request is with it.
    pub fn used(&self) {
        self.sleeper().used(Instant::now());
    }

    /// Whether it is to run now though nobody asks.
    pub(super) fn is_kept_warm(&self, now_unix_ms: u64) -> bool {
        let hours = self.burst.warm_hours;
        hours.is_some_and(|hours| hours.holds(minute_of_day(self.burst.zone, now_unix_ms)))
    }

    /// How long what this proxy holds at the store outlives it.
    pub(super) fn lease(&self) -> Duration {
        (self.burst.idle_stop / 3).clamp(LEASE_MIN, LEASE_MAX)
    }

    /// So long after the last of so many failures to stop it comes the next try.
    pub(super) fn stop_again(&self, failures: u32) -> Duration {
        let first = STOP_AGAIN.min(self.burst.idle_stop);
        let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        doubled.min(STOP_AGAIN_MAX)
    }

    /// Whether nobody here has needed it for as long as it is kept.
    pub(super) fn is_unused(&self) -> bool {
        let idle = self.burst.idle_stop;
        self.sleeper().is_unused(idle, Instant::now())
    }

    /// Sleeps if nobody here has needed it for as long as it is kept; `false`: somebody has.
    pub(super) fn doze(&self) -> bool {
        let idle = self.burst.idle_stop;
        self.sleeper().doze(idle, Instant::now())
    }

    /// Whether it is to be started for somebody.
    pub(super) fn is_wanted(&self) -> bool {
        self.sleeper().waking().is_some()
    }

    /// Whether requests go there.
    pub(super) fn is_awake(&self) -> bool {
        self.sleeper().is_awake()
    }

    /// It runs already, and nobody here has needed it.
    pub(super) fn found(&self) {
        self.sleeper().found();
        self.changed.notify_waiters();
    }

    /// How long somebody who needs it now would wait.
    pub(super) fn wait(&self) -> Duration {
        self.sleeper().wait(Instant::now())
    }

    /// Waits until somebody needs it.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// It answers.
    pub(super) fn awake(&self) {
        self.sleeper().awake(Instant::now());
        self.changed.notify_waiters();
    }

    /// The start failed.
    pub(super) fn failed(&self) {
        self.sleeper().failed(Instant::now());
        self.changed.notify_waiters();
    }

    /// It was stopped, or stopped by itself.
    pub(super) fn slept(&self) {
        self.sleeper().slept();
        self.changed.notify_waiters();
    }

    fn sleeper(&self) -> MutexGuard<'_, Sleeper> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use config::settings::proxy::Hook;
    use config::zone::Zone;

    use super::*;

    #[test]
    fn a_stop_that_fails_is_tried_less_and_less_often_but_never_given_up() {
        let starter = |idle_secs: u64| {
            let burst = Burst {
                start: Hook::Command(Vec::new()),
                stop: None,
                key: None,
                ready_timeout: Duration::from_mins(1),
                takes: Duration::from_secs(5),
                idle_stop: Duration::from_secs(idle_secs),
                warm_hours: None,
                zone: Zone::default(),
                starts_per_hour: 1,
            };
            Starter::new("gpu", burst)
        };
        let usual = starter(900);
        let pauses =
            [0, 1, 2, 3, 7, 8, 9, u32::MAX].map(|failures| usual.stop_again(failures).as_secs());
        assert_eq!(pauses, [30, 30, 60, 120, 1_920, 3_600, 3_600, 3_600]);
        assert_eq!(starter(10).stop_again(1), Duration::from_secs(10));
        assert_eq!(usual.lease(), LEASE_MAX);
    }
}
