//! Looks at one server outside the tunnel and reports it like a node; starts it when it is wanted and stops it when it is not. One task a
//! server. What a look costs the other side is one list of models.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use config::ids::BackendId;
use config::wire::models::{LIST_BYTES_MAX, Listing};
use config::wire::node::TierState;
use http::StatusCode;
use tokio::time::{sleep, timeout};

use super::lease::{Hold, LEASE, Right};
use super::starter::Starter;
use super::{Found, Remote, hook, question};
use crate::nodes::fleet::Fleet;
use crate::nodes::members::Member;
use crate::nodes::upstream::{Fault, Upstream, Waits};
use crate::observe::metrics::Metrics;
use crate::store::Store;

/// Between two reports; a registry forgets who is silent.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at a server that starts.
const STARTING_LOOK: Duration = Duration::from_millis(500);
/// So many looks without an answer, and a server that stops by itself counts as asleep.
const LOST_LOOKS: u32 = 3;
/// A lease is held for longer before it ends.
const KEEP_EVERY: Duration = Duration::from_secs(LEASE.as_secs() / 3);

/// What the task works with.
#[derive(Clone)]
pub struct Rooms {
    /// Reaches it.
    pub upstream: Upstream,
    /// Hears of it.
    pub fleet: Arc<Fleet>,
    /// Knows whether another proxy starts or uses it.
    pub store: Arc<dyn Store>,
    /// Counts starts.
    pub metrics: Arc<Metrics>,
}

/// Watches one server for ever.
pub async fn watch(remote: Arc<Remote>, rooms: Rooms) {
    let member = remote.member();
    let mut watcher = Watcher {
        member,
        rooms,
        seq: AtomicU64::new(0),
        state: (TierState::Loading, None),
        next_look: Instant::now(),
        lost: 0,
        usage: None,
        kept_at: Instant::now(),
        remote,
    };
    watcher.run().await;
}

struct Watcher {
    remote: Arc<Remote>,
    member: Member,
    rooms: Rooms,
    seq: AtomicU64,
    state: (TierState, Option<String>),
    next_look: Instant,
    /// Looks without an answer, in a row.
    lost: u32,
    /// Held while this proxy uses a server that somebody must stop.
    usage: Option<Hold>,
    kept_at: Instant,
}

impl Watcher {
    async fn run(&mut self) {
        loop {
            if Instant::now() >= self.next_look {
                self.look().await;
                self.next_look = Instant::now() + self.remote.settings.health_every;
            }
            if let Some(starter) = self.remote.starter().cloned() {
                self.keep(&starter).await;
                self.report();
                tokio::select! {
                    () = sleep(REPORT_EVERY) => {}
                    () = starter.wanted() => self.start(&starter).await,
                }
            } else {
                self.report();
                sleep(REPORT_EVERY).await;
            }
        }
    }

    fn report(&self) {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        let report = self.remote.report(self.state.clone(), seq);
        let taken = self
            .rooms
            .fleet
            .report(&self.member, report, Instant::now());
        if let Err(refusal) = taken {
            tracing::warn!(remote = self.remote.name(), %refusal, "a server outside is not taken into the registry");
        }
    }

    /// Reports while something takes its time: whoever is silent is forgotten.
    async fn reporting<T>(&self, task: impl Future<Output = T>) -> T {
        let mut task = std::pin::pin!(task);
        loop {
            tokio::select! {
                done = &mut task => return done,
                () = sleep(REPORT_EVERY) => self.report(),
            }
        }
    }

    /// One look; a server that sleeps is only looked at once, because a look might wake it.
    async fn look(&mut self) {
        let starter = self.remote.starter().cloned();
        let sleeps = self.state.0 == TierState::Sleeping;
        if starter.is_some() && sleeps {
            return;
        }
        match (self.reporting(self.ask()).await, starter) {
            (Ok(found), starter) => {
                self.remote.see(found);
                self.lost = 0;
                if let Some(starter) = starter {
                    starter.awake();
                }
                self.enter(TierState::Ready, None);
            }
            (Err(_), Some(starter)) if self.state.0 == TierState::Loading => {
                starter.slept();
                self.enter(TierState::Sleeping, None);
            }
            (Err(why), starter) => {
                self.lost += 1;
                let is_gone = self.lost >= LOST_LOOKS;
                if let Some(starter) = starter.filter(|_| is_gone) {
                    starter.slept();
                    self.release().await;
                    return self.enter(TierState::Sleeping, None);
                }
                self.enter(TierState::Down, Some(why));
            }
        }
    }

    fn enter(&mut self, state: TierState, reason: Option<String>) {
        let next = (state, reason);
        if next == self.state {
            return;
        }
        if let Some(reason) = &next.1 {
            tracing::warn!(remote = self.remote.name(), %reason, "a server outside is down");
        }
        self.state = next;
    }

    /// Its model, or why there is none.
    async fn ask(&self) -> Result<Found, String> {
        let settings = &self.remote.settings;
        let request = question::look(&self.remote).ok_or("its address makes no request")?;
        let waits = Waits {
            connect: settings.connect_timeout.min(settings.health_timeout),
            head: settings.health_timeout,
        };
        let asked = async {
            let mut answer = self
                .rooms
                .upstream
                .send(self.member.address, request, waits)
                .await?;
            let body = answer.body.collect(LIST_BYTES_MAX).await?;
            Ok::<_, Fault>((answer.status, body))
        };
        let asked = timeout(settings.health_timeout, asked).await;
        let (status, body) = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(fault)) => return Err(fault_of(fault).to_owned()),
            Err(_late) => return Err(fault_of(Fault::Timeout).to_owned()),
        };
        match status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err("it refuses our key: check key or key_file".to_owned());
            }
            other => {
                return Err(format!(
                    "it answers {} instead of a list of models: url ends in /v1 with most servers",
                    other.as_u16()
                ));
            }
        }
        let list =
            Listing::read(&body).ok_or("it answers with something else than a list of models")?;
        self.find(&list)
    }

    fn find(&self, list: &Listing) -> Result<Found, String> {
        let wanted = self.remote.settings.model.as_deref();
        let Some(found) = list.find(wanted) else {
            return Err(format!(
                "it has no model {:?}: check model",
                wanted.unwrap_or("at all")
            ));
        };
        if found.is_on_its_way() {
            return Err("its model is still loading".to_owned());
        }
        Ok(Found {
            n_ctx: found.n_ctx(),
            model: found.id.clone(),
        })
    }

    fn backend(&self) -> BackendId {
        BackendId {
            node: self.member.id.clone(),
            tier: self.remote.settings.tier,
        }
    }

    /// Holds this proxy's use of a server, and stops it when nobody has used it for long enough.
    async fn keep(&mut self, starter: &Arc<Starter>) {
        if !starter.sleeper().is_awake() {
            return;
        }
        let now = Instant::now();
        let at_work = self
            .rooms
            .fleet
            .with(|router| router.in_flight(&self.backend()));
        if at_work > 0 {
            starter.used();
        }
        let is_idle = starter.sleeper().is_idle(starter.burst().idle_stop, now);
        if is_idle {
            return self.stop(starter).await;
        }
        let is_fresh = now.saturating_duration_since(self.kept_at) < KEEP_EVERY;
        if self.usage.is_some() && is_fresh {
            return;
        }
        // Taken anew instead of prolonged: a lease that ended while the store was away would stay ended.
        self.kept_at = now;
        if let Ok(Some(fresh)) = Hold::usage(&self.rooms.store, starter.name()).await {
            self.release().await;
            self.usage = Some(fresh);
        }
    }

    async fn release(&mut self) {
        if let Some(usage) = self.usage.take() {
            usage.give_back().await;
        }
    }

    /// Nobody here needs it; stops it unless another proxy does.
    async fn stop(&mut self, starter: &Arc<Starter>) {
        self.release().await;
        let used = Hold::is_used(&self.rooms.store, starter.name()).await;
        // Somebody came while the store was asked: it goes on, and its use is noted at the next turn.
        if !starter
            .sleeper()
            .is_idle(starter.burst().idle_stop, Instant::now())
        {
            return;
        }
        // A store that does not answer must not keep a machine running that costs money by the hour.
        if used.unwrap_or(false) {
            // It goes on for the others; for us it is as good as asleep, and a request finds it awake at once.
            starter.slept();
            return self.enter(TierState::Sleeping, None);
        }
        starter.slept();
        self.enter(TierState::Sleeping, None);
        self.report();
        tracing::info!(
            remote = self.remote.name(),
            "a server that nobody needs is stopped"
        );
        self.run_stop(starter).await;
    }

    async fn run_stop(&self, starter: &Starter) {
        let burst = starter.burst();
        let Some(stop) = &burst.stop else {
            return;
        };
        let stopped = self.reporting(hook::run(stop, burst.key.as_ref())).await;
        let outcome = if stopped.is_ok() { "ok" } else { "failed" };
        self.rooms.metrics.wake(starter.name(), "stop", outcome);
        if let Err(error) = stopped {
            tracing::error!(remote = starter.name(), %error, "a server that nobody needs could not be stopped: it may cost money");
        }
    }

    /// Starts it for whoever waits.
    async fn start(&mut self, starter: &Arc<Starter>) {
        self.enter(TierState::Sleeping, None);
        self.report();
        let began = Instant::now();
        match self.started(starter).await {
            Ok(found) => {
                self.remote.see(found);
                self.lost = 0;
                self.enter(TierState::Ready, None);
                self.next_look = Instant::now() + self.remote.settings.health_every;
                // Reported before those who wait go on: their route must find it.
                self.report();
                starter.awake();
                self.rooms.metrics.wake(starter.name(), "start", "ok");
                tracing::info!(
                    remote = self.remote.name(),
                    ms = began.elapsed().as_millis(),
                    "a server outside answers"
                );
            }
            Err(reason) => {
                self.rooms.metrics.wake(starter.name(), "start", "failed");
                tracing::warn!(remote = self.remote.name(), %reason, "a server outside did not start");
                self.rooms.fleet.trip(&self.backend(), Instant::now());
                starter.failed();
                self.enter(TierState::Sleeping, None);
            }
        }
    }

    async fn started(&self, starter: &Arc<Starter>) -> Result<Found, String> {
        // Another proxy, or a person, may have started it.
        if let Ok(found) = self.reporting(self.ask()).await {
            return Ok(found);
        }
        let burst = starter.burst().clone();
        let until = Instant::now() + burst.ready_timeout;
        let right = Hold::start(&self.rooms.store, starter.name(), burst.starts_per_hour).await;
        let hold = match right {
            Ok(Right::Ours(hold)) => Some(hold),
            Ok(Right::Others) => None,
            Ok(Right::UsedUp) => {
                return Err(format!(
                    "it was started {} times within an hour: starts_per_hour bounds the bill",
                    burst.starts_per_hour
                ));
            }
            Err(error) => {
                return Err(format!(
                    "nobody knows whether another proxy starts it: {error}"
                ));
            }
        };
        let Some(hold) = hold else {
            return self.ready(starter, (until, None)).await;
        };
        let start = hook::run(&burst.start, burst.key.as_ref());
        let started = self.reporting(start).await;
        let ready = match started {
            Ok(()) => self.ready(starter, (until, Some(&hold))).await,
            Err(error) => Err(error.to_string()),
        };
        hold.give_back().await;
        if ready.is_err() {
            // What did not answer may run all the same, and cost money.
            self.run_stop(starter).await;
        }
        ready
    }

    /// Looks until it answers.
    async fn ready(
        &self,
        starter: &Starter,
        (until, hold): (Instant, Option<&Hold>),
    ) -> Result<Found, String> {
        let mut kept_at = Instant::now();
        loop {
            let why = match self.reporting(self.ask()).await {
                Ok(found) => return Ok(found),
                Err(why) => why,
            };
            if Instant::now() >= until {
                let secs = starter.burst().ready_timeout.as_secs();
                return Err(format!("it did not answer within {secs} s: {why}"));
            }
            if let Some(hold) = hold.filter(|_| kept_at.elapsed() >= KEEP_EVERY) {
                kept_at = Instant::now();
                if let Err(error) = hold.keep().await {
                    tracing::debug!(%error, "a start is not told to the other proxies");
                }
            }
            self.report();
            sleep(STARTING_LOOK).await;
        }
    }
}

const fn fault_of(fault: Fault) -> &'static str {
    match fault {
        Fault::Connect => "it does not answer",
        Fault::Lost => "its connection broke",
        Fault::Timeout => "it took too long",
        Fault::Nonsense => "its answer makes no sense",
    }
}
