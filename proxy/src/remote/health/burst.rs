//! The part of a watch that costs money: starts a server when it is wanted and stops it when it is not. What is started is noted in the
//! store before, and the note is removed when it was seen to be gone: so a crash, a stop that fails and another proxy's doings leave
//! nothing running. Whoever starts or stops holds the lever, alone among all proxies; whoever sends requests holds a use, taken under the
//! lever, and nobody stops what is used. A server that was told to stop is believed only after a look that failed or a start of its own.

mod stop;

use std::sync::Arc;
use std::time::{Duration, Instant};

use config::wire::node::TierState;
use tokio::time::sleep;

use super::super::lease::{Hold, now_unix_ms};
use super::super::starter::Starter;
use super::super::{Found, hook};
use super::Watcher;
use crate::store::{BurstRecord, BurstStage, StoreError};

/// Between two looks at a server that starts or stops.
const LOOK: Duration = Duration::from_millis(500);

/// So often a start that another proxy was faster with is looked at anew.
const RACES_MAX: usize = 3;

/// What a proxy knows of who pays for a server.
#[derive(Debug, Default)]
pub(super) struct Paid {
    /// As it was last read or written.
    note: Option<BurstRecord>,
    /// The store was asked, and answered.
    is_known: bool,
    /// Nobody here tries to stop it before this.
    rest_until: Option<Instant>,
    /// The store does not answer since then.
    store_away: Option<Instant>,
}

/// A start that did not succeed.
struct NoStart {
    reason: String,
    /// Something may run all the same.
    may_run: bool,
    /// Another proxy was faster: what it did is looked at, and counts.
    raced: bool,
}

impl NoStart {
    fn free(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            may_run: false,
            raced: false,
        }
    }

    fn paid(reason: impl Into<String>) -> Self {
        Self {
            may_run: true,
            ..Self::free(reason)
        }
    }

    fn raced() -> Self {
        Self {
            raced: true,
            ..Self::free("another proxy starts or stops it")
        }
    }

    fn unknown(error: &StoreError) -> Self {
        Self::free(format!(
            "nobody knows whether another proxy starts it: {error}"
        ))
    }
}

impl Watcher {
    /// Finds a server that sleeps as far as this proxy knows, and may be running: another proxy started it, or died while it did, or a
    /// person did so before this proxy began.
    pub(super) async fn look_for(&mut self, starter: &Arc<Starter>) {
        let is_first = self.state.0 == TierState::Loading || !self.paid.is_known;
        self.enter(TierState::Sleeping, None);
        if self.read_note(starter).await.is_err() {
            return;
        }
        let note = self.paid.note.as_ref();
        let may_run = note.map_or(is_first, |note| !note.is_stopping());
        // What nobody has needed for long enough is about to be stopped.
        if may_run && !starter.is_unused() && !starter.is_wanted() {
            self.find_running(starter).await;
        }
    }

    /// Looks at it while nobody starts or stops it, and uses it if it answers.
    async fn find_running(&mut self, starter: &Arc<Starter>) {
        let lever = Hold::lever(&self.rooms.store, starter.name(), starter.lease()).await;
        let Ok(Some(lever)) = lever else {
            return;
        };
        // What was read before may have changed since.
        let noted = self.read_note(starter).await;
        if noted.is_ok_and(|note| !note.is_some_and(|note| note.is_stopping()))
            && let Ok(found) = self.working(Some(&lever), self.ask()).await
        {
            self.take(starter, found).await;
            starter.found();
        }
        lever.give_back().await;
    }

    /// What the store says of who pays for it. Only what somebody can stop is noted.
    async fn read_note(&mut self, starter: &Starter) -> Result<Option<BurstRecord>, StoreError> {
        if starter.burst().stop.is_none() {
            self.paid.is_known = true;
            return Ok(None);
        }
        let note = self.rooms.store.burst(starter.name()).await?;
        let start = |note: &Option<BurstRecord>| note.as_ref().map(|note| note.start.clone());
        if note.is_some() && start(&note) != start(&self.paid.note) {
            // Another proxy, or an earlier run of this one, started it: from now on this one sees to it that it is stopped.
            starter.used();
        }
        self.paid.is_known = true;
        self.paid.note.clone_from(&note);
        Ok(note)
    }

    /// Writes what stands in the store; `false`: somebody else was faster.
    async fn write_note(
        &mut self,
        starter: &Starter,
        after: Option<BurstRecord>,
    ) -> Result<bool, StoreError> {
        if starter.burst().stop.is_none() {
            return Ok(true);
        }
        let before = self.paid.note.clone();
        if before == after {
            return Ok(true);
        }
        let swapped = self
            .rooms
            .store
            .swap_burst(starter.name(), before.as_ref(), after.as_ref())
            .await;
        // Also where it could not be written: what this proxy did is true all the same.
        if !matches!(swapped, Ok(false)) {
            self.paid.note = after;
        }
        self.tell_metrics(starter);
        swapped
    }

    fn tell_metrics(&self, starter: &Starter) {
        let note = self.paid.note.as_ref();
        let failures = note.map_or(0, BurstRecord::stop_failures);
        let runs = note.is_some() || starter.is_awake();
        self.rooms.metrics.burst(starter.name(), runs, failures);
    }

    /// It answers, and from now on this proxy uses it. Under the lever.
    async fn take(&mut self, starter: &Starter, found: Found) {
        self.renew(starter).await;
        let note = self.paid.note.clone();
        let note = note.unwrap_or_else(|| BurstRecord::new(starter.name(), now_unix_ms()));
        let noted = self
            .write_note(starter, Some(note.at(BurstStage::Ready)))
            .await;
        if let Err(error) = noted {
            tracing::warn!(remote = starter.name(), %error, "if this proxy dies now, a server that costs money is not stopped");
        }
        self.sees(found);
        self.next_look = Instant::now() + self.remote.settings.health_every;
        // Reported before those who wait go on: their route must find it.
        self.report();
    }

    /// Holds this proxy's use of a server, and stops it when nobody has used it for long enough.
    pub(super) async fn keep(&mut self, starter: &Arc<Starter>) {
        let at_work = self
            .rooms
            .fleet
            .with(|router| router.in_flight(&self.backend()));
        let is_kept_warm = starter.is_kept_warm(now_unix_ms());
        if at_work > 0 || is_kept_warm {
            starter.used();
        }
        if is_kept_warm && !starter.is_awake() {
            // After a start that failed it says no for a while.
            let _started_or_not = starter.want();
        }
        self.tell_metrics(starter);
        if self.is_to_be_stopped(starter) {
            return self.stop(starter).await;
        }
        if starter.is_awake() {
            self.hold_on(starter).await;
        }
    }

    /// Keeps this proxy's use of it known to the others.
    async fn hold_on(&mut self, starter: &Arc<Starter>) {
        if self.usage.as_ref().is_some_and(|usage| !usage.is_due()) {
            return;
        }
        // Once lapsed, a fresh one comes too late.
        let was_lapsed = self.usage.as_ref().is_some_and(Hold::is_lapsed);
        if !was_lapsed {
            self.renew(starter).await;
        }
        let is_lapsed = self.usage.as_ref().is_some_and(Hold::is_lapsed);
        if is_lapsed && starter.burst().stop.is_some() {
            // Another proxy may be stopping it: the next request looks first.
            self.usage = None;
            starter.slept();
            self.enter(TierState::Sleeping, None);
        }
    }

    /// Taken anew instead of prolonged: a lease that ended while the store was away would stay ended.
    async fn renew(&mut self, starter: &Starter) {
        let fresh = Hold::usage(&self.rooms.store, starter.name(), starter.lease()).await;
        if let Ok(Some(fresh)) = fresh {
            self.release().await;
            self.usage = Some(fresh);
        }
    }

    pub(super) async fn release(&mut self) {
        if let Some(usage) = self.usage.take() {
            usage.give_back().await;
        }
    }

    /// Starts it for whoever waits.
    pub(super) async fn start(&mut self, starter: &Arc<Starter>) {
        if starter.is_awake() {
            // It was found meanwhile.
            return;
        }
        self.enter(TierState::Sleeping, None);
        self.report();
        let began = Instant::now();
        let (started, lever) = match self.wait_for_lever(starter).await {
            Ok(Some(lever)) => (self.started_or_raced(starter, &lever).await, Some(lever)),
            Ok(None) => (self.found_without_store(starter).await, None),
            Err(no) => (Err(no), None),
        };
        match started {
            Ok(found) => {
                self.take(starter, found).await;
                starter.awake();
                self.rooms.metrics.wake(starter.name(), "start", "ok");
                tracing::info!(
                    remote = self.remote.name(),
                    ms = began.elapsed().as_millis(),
                    "a server outside answers"
                );
            }
            Err(NoStart {
                reason, may_run, ..
            }) => {
                self.rooms.metrics.wake(starter.name(), "start", "failed");
                tracing::warn!(remote = self.remote.name(), %reason, "a server outside did not start");
                self.rooms.fleet.trip(&self.backend(), Instant::now());
                // Nobody waits for the stop.
                starter.failed();
                if may_run {
                    self.run_stop(starter, lever.as_ref()).await;
                }
            }
        }
        if let Some(lever) = lever {
            lever.give_back().await;
        }
    }

    /// Waits until nobody else starts or stops it; `None`: the store does not answer.
    async fn wait_for_lever(&self, starter: &Starter) -> Result<Option<Hold>, NoStart> {
        let patience = starter.burst().ready_timeout;
        let until = Instant::now() + patience;
        loop {
            match Hold::lever(&self.rooms.store, starter.name(), starter.lease()).await {
                Ok(Some(lever)) => return Ok(Some(lever)),
                Ok(None) if Instant::now() < until => {
                    self.report();
                    sleep(LOOK).await;
                }
                Ok(None) => {
                    return Err(NoStart::free(format!(
                        "another proxy has been starting or stopping it for {} s",
                        patience.as_secs()
                    )));
                }
                Err(error) => {
                    tracing::debug!(%error, "nobody knows who starts a server");
                    return Ok(None);
                }
            }
        }
    }

    /// Nobody can ask the others: what answers is used, unless this proxy told it to stop. Nothing is started, because nobody would know.
    async fn found_without_store(&self, starter: &Starter) -> Result<Found, NoStart> {
        let note = self.paid.note.as_ref();
        if note.is_none_or(|note| !note.is_stopping())
            && let Ok(found) = self.working(None, self.ask()).await
        {
            return Ok(found);
        }
        Err(NoStart::free(format!(
            "nobody knows whether another proxy starts {}: the store does not answer",
            starter.name()
        )))
    }

    /// A lever may lapse while its holder stands still: then two proxies act, and the note shows whose word counts.
    async fn started_or_raced(
        &mut self,
        starter: &Starter,
        lever: &Hold,
    ) -> Result<Found, NoStart> {
        for _ in 1..RACES_MAX {
            match self.started(starter, lever).await {
                Err(NoStart { raced: true, .. }) => {}
                started => return started,
            }
        }
        self.started(starter, lever).await
    }

    /// Under the lever: finds it running, waits for the start of somebody who died, or starts it.
    async fn started(&mut self, starter: &Starter, lever: &Hold) -> Result<Found, NoStart> {
        let noted = self.read_note(starter).await;
        let note = noted.map_err(|error| NoStart::unknown(&error))?;
        match note.as_ref().map(|note| note.stage) {
            Some(BurstStage::Stopping {
                tried_unix_ms,
                going: true,
                ..
            }) => self.see_it_go(lever, tried_unix_ms).await,
            Some(BurstStage::Stopping { going: false, .. }) => {}
            None | Some(BurstStage::Starting | BurstStage::Ready) => {
                if let Ok(found) = self.working(Some(lever), self.ask()).await {
                    return Ok(found);
                }
            }
        }
        if let Some(note) = note.filter(|note| note.stage == BurstStage::Starting)
            && let Some(left) = left_of(&note, starter.burst().ready_timeout)
        {
            // Whoever started it is gone, and it may still come. A second start could be a second machine.
            return self
                .ready((starter, lever), left)
                .await
                .map_err(NoStart::paid);
        }
        self.start_anew(starter, lever).await
    }

    async fn start_anew(&mut self, starter: &Starter, lever: &Hold) -> Result<Found, NoStart> {
        let burst = starter.burst().clone();
        let most = burst.starts_per_hour;
        match Hold::charge_start(&self.rooms.store, starter.name(), most).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(NoStart::free(format!(
                    "it was started {most} times within an hour: starts_per_hour bounds the bill"
                )));
            }
            Err(error) => return Err(NoStart::unknown(&error)),
        }
        // First the note, then the machine: whoever dies in between costs nothing.
        let note = BurstRecord::new(starter.name(), now_unix_ms());
        let before = self.paid.note.clone();
        match self.write_note(starter, Some(note)).await {
            Ok(true) => {}
            Ok(false) => return Err(NoStart::raced()),
            Err(error) => {
                self.paid.note = before;
                return Err(NoStart::unknown(&error));
            }
        }
        let start = hook::run(&burst.start, burst.key.as_ref());
        match self.working(Some(lever), start).await {
            Ok(()) => self
                .ready((starter, lever), burst.ready_timeout)
                .await
                .map_err(NoStart::paid),
            // What failed may have begun all the same.
            Err(error) => Err(NoStart::paid(error.to_string())),
        }
    }

    /// Looks until it answers.
    async fn ready(
        &self,
        (starter, lever): (&Starter, &Hold),
        left: Duration,
    ) -> Result<Found, String> {
        let until = Instant::now() + left;
        loop {
            let why = match self.working(Some(lever), self.ask()).await {
                Ok(found) => return Ok(found),
                Err(why) => why,
            };
            if Instant::now() >= until {
                let secs = starter.burst().ready_timeout.as_secs();
                return Err(format!("it did not answer within {secs} s: {why}"));
            }
            self.report();
            self.working(Some(lever), sleep(LOOK)).await;
        }
    }
}

/// What is left of the time that a start may take; `None`: nothing.
fn left_of(note: &BurstRecord, ready_timeout: Duration) -> Option<Duration> {
    let gone = now_unix_ms().saturating_sub(note.started_unix_ms);
    let left = ready_timeout.checked_sub(Duration::from_millis(gone))?;
    (!left.is_zero()).then_some(left)
}
