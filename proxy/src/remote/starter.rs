//! The start and stop of a server that sleeps until it is wanted: who wants it, who waits, when it is idle. One task drives it
//! ([`super::watch`]); requests only say that they need it and wait, so a client that leaves stops no start.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::settings::proxy::Burst;
use policy::waking::{Rules, Sleeper, Verdict};
use tokio::sync::Notify;

/// After a failed start nobody tries again for this long at first.
const PAUSE: Duration = Duration::from_secs(30);

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

    pub(super) fn sleeper(&self) -> MutexGuard<'_, Sleeper> {
        self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
