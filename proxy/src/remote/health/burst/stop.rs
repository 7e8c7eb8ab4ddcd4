//! Stops a server that nobody needs, until it is seen to be gone: a stop that fails is tried again for ever, by whatever proxy is there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::wire::node::TierState;
use tokio::time::sleep;

use super::super::super::hook;
use super::super::super::lease::{Hold, now_unix_ms};
use super::super::super::starter::Starter;
use super::super::Watcher;
use super::LOOK;
use crate::store::{BurstRecord, BurstStage};

/// A server that was told to stop may go on answering for so long.
const GOES_WITHIN: Duration = Duration::from_mins(1);
/// While the store does not answer nobody knows who else uses a server; after this it is stopped all the same.
const STORE_PATIENCE: Duration = Duration::from_mins(5);

/// A try that did not work.
struct NotGone {
    reason: String,
    /// It may go all the same.
    going: bool,
}

impl Watcher {
    /// Whether it is this proxy's turn to stop it, as far as it knows.
    pub(super) fn is_to_be_stopped(&self, starter: &Starter) -> bool {
        let now = Instant::now();
        // Somebody waits for it: it is started next.
        if starter.is_wanted() || self.paid.rest_until.is_some_and(|until| now < until) {
            return false;
        }
        match &self.paid.note {
            Some(note) => match note.stage {
                BurstStage::Stopping { .. } => is_due(note, starter),
                BurstStage::Starting | BurstStage::Ready => starter.is_unused(),
            },
            None => starter.is_awake() && starter.is_unused(),
        }
    }

    /// Nobody here needs it; stops it unless another proxy does.
    pub(super) async fn stop(&mut self, starter: &Arc<Starter>) {
        if starter.burst().stop.is_none() {
            // It stops by itself.
            if starter.doze() {
                self.release().await;
                self.enter(TierState::Sleeping, None);
            }
            return;
        }
        let lever = match Hold::lever(&self.rooms.store, starter.name(), starter.lease()).await {
            Ok(lever) => lever,
            Err(error) => return self.stop_without_store(starter, &error.to_string()).await,
        };
        self.paid.store_away = None;
        let Some(lever) = lever else {
            return self.rest(starter);
        };
        if self.may_stop(starter).await {
            tracing::info!(
                remote = self.remote.name(),
                "a server that nobody needs is stopped"
            );
            self.run_stop(starter, Some(&lever)).await;
        } else if starter.is_awake() {
            // Told before another proxy may look: nobody stops what this one goes on using.
            self.renew(starter).await;
        }
        lever.give_back().await;
    }

    /// A store that does not answer for long must not keep a machine running that costs money by the hour.
    async fn stop_without_store(&mut self, starter: &Starter, error: &str) {
        let since = *self.paid.store_away.get_or_insert_with(Instant::now);
        if since.elapsed() < STORE_PATIENCE {
            return;
        }
        let is_stopping = |note: &BurstRecord| note.is_stopping();
        if self.paid.note.as_ref().is_some_and(is_stopping) || starter.doze() {
            tracing::warn!(
                remote = self.remote.name(),
                error,
                "a server is stopped that another proxy may use: the store does not answer"
            );
            self.usage = None;
            self.run_stop(starter, None).await;
        }
    }

    fn rest(&mut self, starter: &Starter) {
        self.paid.rest_until = Some(Instant::now() + Hold::keep_every(starter.lease()));
    }

    /// Under the lever: whether nobody needs it and somebody pays for it. From then on it is asleep here.
    async fn may_stop(&mut self, starter: &Starter) -> bool {
        let was_awake = starter.is_awake();
        let start = self.paid.note.as_ref().map(|note| note.start.clone());
        let Ok(note) = self.read_note(starter).await else {
            return false;
        };
        let is_retry = note.as_ref().is_some_and(BurstRecord::is_stopping);
        match &note {
            // Another proxy has stopped it.
            None if !was_awake => return false,
            // Another proxy has started it anew: somebody needs it.
            Some(note) if !was_awake && Some(&note.start) != start.as_ref() => return false,
            // Another proxy has just tried.
            Some(note) if is_retry && !is_due(note, starter) => return false,
            Some(_) | None => {}
        }
        self.release().await;
        let used = Hold::is_used(&self.rooms.store, starter.name()).await;
        // Somebody came while the store was asked: it goes on, and its use is noted at the next turn.
        if starter.is_wanted() || !(starter.doze() || (is_retry && !starter.is_awake())) {
            return false;
        }
        self.enter(TierState::Sleeping, None);
        self.report();
        let is_free = matches!(used, Ok(false));
        if !is_free {
            // It goes on for the others; for us it is as good as asleep, and a request finds it awake at once.
            self.rest(starter);
        }
        is_free
    }

    /// Stops it, and sees it go.
    pub(super) async fn run_stop(&mut self, starter: &Starter, lever: Option<&Hold>) {
        let burst = starter.burst().clone();
        let Some(stop) = &burst.stop else {
            return;
        };
        let note = self.paid.note.clone();
        let note = note.unwrap_or_else(|| BurstRecord::new(starter.name(), now_unix_ms()));
        let failures = note.stop_failures();
        let since = match note.stage {
            BurstStage::Stopping { since_unix_ms, .. } => since_unix_ms,
            BurstStage::Starting | BurstStage::Ready => now_unix_ms(),
        };
        let tried = |failures: u32, going: bool| {
            note.at(BurstStage::Stopping {
                since_unix_ms: since,
                tried_unix_ms: now_unix_ms(),
                failures,
                going,
            })
        };
        // Before it is told to: whoever finds it answering from now on does not believe it.
        if let Ok(false) = self.write_note(starter, Some(tried(failures, true))).await {
            // Another proxy acted without the store's word; what it did is read at the next look.
            return self.rest(starter);
        }
        let told = hook::run(stop, burst.key.as_ref());
        let gone = match self.working(lever, told).await {
            Ok(()) => self.goes(lever, GOES_WITHIN).await,
            Err(error) => Err(NotGone {
                going: !error.is_refusal(),
                reason: error.to_string(),
            }),
        };
        let outcome = if gone.is_ok() { "ok" } else { "failed" };
        self.rooms.metrics.wake(starter.name(), "stop", outcome);
        let after = match gone {
            Ok(()) => None,
            Err(NotGone { reason, going }) => {
                let failures = failures.saturating_add(1);
                let again_secs = starter.stop_again(failures).as_secs();
                tracing::error!(remote = starter.name(), %reason, failures, again_secs, "a server that nobody needs could not be stopped: it costs money; it is tried again");
                Some(tried(failures, going))
            }
        };
        if let Err(error) = self.write_note(starter, after).await {
            // At worst it is stopped once more.
            tracing::warn!(remote = starter.name(), %error, "the other proxies do not know how a stop ended");
        }
    }

    /// Looks until it does not answer any more.
    async fn goes(&self, lever: Option<&Hold>, within: Duration) -> Result<(), NotGone> {
        let until = Instant::now() + within;
        while self.working(lever, self.ask()).await.is_ok() {
            if Instant::now() >= until {
                return Err(NotGone {
                    reason: format!(
                        "it still answers {} s after it was stopped",
                        within.as_secs()
                    ),
                    going: false,
                });
            }
            self.working(lever, sleep(LOOK)).await;
        }
        Ok(())
    }

    /// What was told to stop a moment ago is left to go: until a look fails, or its time is over.
    pub(super) async fn see_it_go(&self, lever: &Hold, tried_unix_ms: u64) {
        let since = Duration::from_millis(now_unix_ms().saturating_sub(tried_unix_ms));
        let left = GOES_WITHIN.saturating_sub(since);
        // Whether it went or not: a start of its own comes next.
        let _gone = self.goes(Some(lever), left).await;
    }
}

/// Whether it is time for the next try. A clock that was put back counts as none.
fn is_due(note: &BurstRecord, starter: &Starter) -> bool {
    let BurstStage::Stopping {
        tried_unix_ms,
        failures,
        ..
    } = note.stage
    else {
        return true;
    };
    let again = starter.stop_again(failures);
    let now = now_unix_ms();
    let since = Duration::from_millis(now.saturating_sub(tried_unix_ms));
    since >= again || now < tried_unix_ms
}
