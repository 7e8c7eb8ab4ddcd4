//! One tier: what it is doing and who uses it. Its supervisor changes it; requests borrow its worker. What the proxy is told about it is [`told`]'s.

mod told;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use config::settings::node::TierSettings;
use config::tier::Tier;
use config::wire::node::ModelReport;
use engine::{ModelCard, Refusal, Stats, Worker};
use tokio::sync::{Notify, watch};

use super::pace::Pace;
use super::remote::Remote;
use super::shelf::{Place, Shelf};
use crate::models::lock::Pin;
use crate::power::Power;
use crate::reply::Refused;
use crate::template::Template;

/// Why there is no worker at once.
enum Busy {
    /// It is being loaded for whoever waits.
    Waking,
    Refused(Refused),
}

/// A worker that answers.
#[derive(Debug)]
pub struct Ready {
    /// The process.
    pub worker: Worker,
    /// What the model says about itself.
    pub card: ModelCard,
    /// The model's chat template.
    pub template: Template,
    /// What its file was when it was admitted; `None` where nothing is pinned.
    pub pin: Option<Arc<Pin>>,
    /// Its place in the memory for models.
    pub(super) _place: Place,
}

/// What a tier is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The worker is starting.
    Loading {
        /// Somebody waits for it: it slept before.
        wanted: bool,
    },
    /// It answers.
    Ready(Arc<Ready>),
    /// Another server answers.
    Remote(Arc<Remote>),
    /// Its model is not in memory; the first request wakes it.
    Sleeping,
    /// It ended, or would not start; it is tried again.
    Down {
        /// Why, for the operator.
        reason: String,
    },
}

/// Who uses a tier, and since when nobody does. Its lock is held while a phase with a worker is left, so that no request gets a
/// worker that is on its way out.
#[derive(Debug)]
struct Activity {
    busy: usize,
    /// Requests that wait for the model to be loaded: it is loaded for them, so it stays until they have had it.
    waiting: usize,
    used_at: Instant,
}

/// One tier.
#[derive(Debug)]
pub struct TierRoom {
    tier: Tier,
    pub(super) settings: ArcSwap<TierSettings>,
    phase: watch::Sender<Phase>,
    activity: Mutex<Activity>,
    /// A request came, or the last one ended.
    used: Notify,
    /// A sleeping tier is asked for.
    pub(super) wanted: Notify,
    /// Another tier needs the memory.
    pub(super) leave: Notify,
    /// Settings for the next life.
    pub(super) next: watch::Sender<Arc<TierSettings>>,
    /// What the model was pinned as, of which file.
    pin: RwLock<Option<(PathBuf, Arc<Pin>)>>,
    /// The model as it was when last seen.
    last: Mutex<Option<ModelReport>>,
    pub(super) starts: AtomicU64,
    changes: watch::Sender<u64>,
    pub(super) shelf: Arc<Shelf>,
    /// The machine's sensors, once known.
    power: OnceLock<Arc<Power>>,
    /// How long its model takes to load.
    pace: Pace,
}

/// A worker in use by one request, until dropped.
#[derive(Debug)]
pub struct InUse {
    room: Arc<TierRoom>,
    serving: Serving,
    /// How long its model was loaded for it.
    loaded: Option<Duration>,
}

/// Who answers.
#[derive(Clone, Debug)]
pub enum Serving {
    /// A worker of this node.
    Worker(Arc<Ready>),
    /// Another server.
    Remote(Arc<Remote>),
}

impl InUse {
    /// Who answers.
    pub const fn serving(&self) -> &Serving {
        &self.serving
    }

    /// How long it was waited for until the model was loaded; `None`: it was.
    pub const fn loaded(&self) -> Option<Duration> {
        self.loaded
    }
}

/// Counts as waiting until dropped.
struct Waiting<'r>(&'r TierRoom);

impl<'r> Waiting<'r> {
    fn begin(room: &'r TierRoom) -> Self {
        room.activity().waiting += 1;
        Self(room)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.waiting = activity.waiting.saturating_sub(1);
        drop(activity);
        self.0.used.notify_waiters();
        self.0.shelf.moved();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut activity = self.room.activity();
        activity.busy = activity.busy.saturating_sub(1);
        activity.used_at = Instant::now();
        drop(activity);
        self.room.used.notify_waiters();
        self.room.shelf.moved();
    }
}

impl TierRoom {
    /// A tier whose supervisor has not begun.
    pub(super) fn new(
        settings: TierSettings,
        changes: watch::Sender<u64>,
        shelf: Arc<Shelf>,
    ) -> Self {
        let first = if settings.load_on_demand {
            Phase::Sleeping
        } else {
            Phase::Loading { wanted: false }
        };
        let tier = settings.tier;
        let settings = Arc::new(settings);
        Self {
            tier,
            settings: ArcSwap::new(settings.clone()),
            phase: watch::channel(first).0,
            activity: Mutex::new(Activity {
                busy: 0,
                waiting: 0,
                used_at: Instant::now(),
            }),
            used: Notify::new(),
            wanted: Notify::new(),
            leave: Notify::new(),
            next: watch::channel(settings).0,
            pin: RwLock::default(),
            last: Mutex::default(),
            starts: AtomicU64::new(0),
            changes,
            shelf,
            power: OnceLock::new(),
            pace: Pace::default(),
        }
    }

    /// Its settings. They change when the settings file is read again.
    pub fn settings(&self) -> Arc<TierSettings> {
        self.settings.load_full()
    }

    /// Which tier.
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// What it is doing now.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Tells of every new phase.
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// How often its worker was started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// The worker, if it answers now.
    pub fn ready(&self) -> Result<Arc<Ready>, Refused> {
        match &*self.phase.borrow() {
            Phase::Ready(ready) => Ok(ready.clone()),
            Phase::Remote(_) => Err(self.unavailable("another server runs it")),
            Phase::Loading { .. } => Err(self.unavailable("its model is being loaded")),
            Phase::Sleeping => Err(self.unavailable("its model is not loaded")),
            Phase::Down { .. } => Err(self.unavailable("its worker is down")),
        }
    }

    /// A worker for one request. A sleeping tier is woken; one that is being loaded is waited for, by as many as its worker would take;
    /// one that is down is not: the proxy has other places to ask.
    pub async fn acquire(self: &Arc<Self>) -> Result<InUse, Refused> {
        let mut phases = self.phase.subscribe();
        let _waiting = Waiting::begin(self);
        let mut is_new = true;
        let began = Instant::now();
        loop {
            match self.try_acquire() {
                Err(Busy::Waking) if is_new && self.is_crowded() => return Err(self.crowded()),
                Err(Busy::Waking) => is_new = false,
                Err(Busy::Refused(refused)) => return Err(refused),
                Ok(mut in_use) => {
                    in_use.loaded = (!is_new).then(|| began.elapsed());
                    return Ok(in_use);
                }
            }
            if phases.changed().await.is_err() {
                return Err(self.unavailable("the node is shutting down"));
            }
        }
    }

    fn try_acquire(self: &Arc<Self>) -> Result<InUse, Busy> {
        let mut activity = self.activity();
        let phase = self.phase();
        let serving = match phase {
            Phase::Ready(ready) => Serving::Worker(ready),
            Phase::Remote(remote) => Serving::Remote(remote),
            Phase::Sleeping => {
                // Kept for a supervisor that does not listen yet.
                self.wanted.notify_one();
                return Err(Busy::Waking);
            }
            Phase::Loading { .. } => return Err(Busy::Waking),
            Phase::Down { .. } => return Err(Busy::Refused(self.unavailable("it is down"))),
        };
        activity.busy += 1;
        activity.used_at = Instant::now();
        drop(activity);
        self.used.notify_waiters();
        Ok(InUse {
            room: self.clone(),
            serving,
            loaded: None,
        })
    }

    /// More wait than slots and queue of the worker will have room for.
    fn is_crowded(&self) -> bool {
        let settings = self.settings.load();
        let room = settings.slots.saturating_add(settings.queue_max);
        self.waiting() > room
    }

    fn crowded(&self) -> Refused {
        let waiting = self.waiting().saturating_sub(1);
        Refused::Engine(Refusal::QueueFull { waiting })
    }

    /// Requests that wait for the model to be loaded.
    fn waiting(&self) -> u32 {
        u32::try_from(self.activity().waiting).unwrap_or(u32::MAX)
    }

    const fn unavailable(&self, reason: &'static str) -> Refused {
        Refused::TierUnavailable {
            tier: self.tier,
            reason,
        }
    }

    /// Since when nobody uses a loaded model; `None` while somebody does or there is none.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let activity = self.activity();
        let loaded = matches!(&*self.phase.borrow(), Phase::Ready(_));
        let idle = activity.busy == 0 && activity.waiting == 0;
        (loaded && idle).then_some(activity.used_at)
    }

    pub(super) fn ask_to_leave(&self) {
        self.leave.notify_one();
    }

    /// Leaves the phase with a worker unless a request came meanwhile.
    pub(super) fn lie_down(&self, next: Phase) -> bool {
        let activity = self.activity();
        if activity.busy > 0 || activity.waiting > 0 {
            return false;
        }
        self.enter(next);
        drop(activity);
        true
    }

    /// Resolves when nobody has used the tier for so long.
    pub(super) async fn unused_for(&self, keep_alive: Duration) {
        loop {
            let used = self.used.notified();
            match self.idle_since() {
                Some(since) if since.elapsed() >= keep_alive => return,
                Some(since) => {
                    let left = keep_alive.saturating_sub(since.elapsed());
                    // Either way it is looked at again.
                    let _used = tokio::time::timeout(left, used).await;
                }
                None => used.await,
            }
        }
    }

    /// Resolves when no request holds a worker of this tier.
    pub(super) async fn unused_by_all(&self) {
        loop {
            let used = self.used.notified();
            if self.activity().busy == 0 {
                return;
            }
            used.await;
        }
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        // Both fields are whole at any time.
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes new settings: the new model is loaded beside the old one where memory allows, and running answers finish on the old one.
    pub fn change(&self, settings: TierSettings) {
        self.next.send_if_modified(|next| {
            if **next == settings {
                return false;
            }
            *next = Arc::new(settings);
            true
        });
    }

    pub(super) fn sense(&self, power: Arc<Power>) {
        // The first one stays.
        let _known = self.power.set(power);
    }

    /// One answer's part in what the machine draws: as much as that of every other slot at work.
    pub fn watts_each(&self) -> Option<f64> {
        let watts = self.power.get()?.read(Instant::now()).watts?;
        Some(watts / f64::from(self.shelf.slots_busy().max(1)))
    }

    /// How busy the worker is; zeros when there is none.
    pub fn stats(&self) -> Stats {
        match &*self.phase.borrow() {
            Phase::Ready(ready) => *ready.worker.stats().borrow(),
            Phase::Remote(_) => Stats {
                slots_busy: u16::try_from(self.activity().busy).unwrap_or(u16::MAX),
                ..Stats::default()
            },
            // They are in its queue as soon as it is there.
            Phase::Loading { .. } | Phase::Sleeping => Stats {
                queue_depth: self.waiting(),
                ..Stats::default()
            },
            Phase::Down { .. } => Stats::default(),
        }
    }

    /// What the model was pinned as, once it was admitted.
    pub fn pin(&self) -> Option<Arc<Pin>> {
        let known = self.pin.read().unwrap_or_else(PoisonError::into_inner);
        let (path, pin) = known.as_ref()?;
        (*path == self.settings.load().model).then(|| pin.clone())
    }

    /// Keeps what a model was pinned as.
    pub(super) fn set_pin(&self, path: PathBuf, pin: Arc<Pin>) {
        *self.pin.write().unwrap_or_else(PoisonError::into_inner) = Some((path, pin));
        self.changed();
    }

    fn sha256(&self) -> String {
        self.pin().map(|pin| pin.sha256.clone()).unwrap_or_default()
    }

    /// A word that changes whenever the same seed may give another answer. That of a conversation which `slides`, so that it loses its
    /// oldest turns where they do not fit, also changes with the context.
    pub fn fingerprint(&self, slides: bool) -> Option<String> {
        let settings = self.settings.load();
        let n_ctx = self.ready().ok().filter(|_ready| slides);
        let name = format!(
            "{}\0{}\0{:?}\0{:?}\0{:?}\0{:?}\0{:?}",
            self.pin()?.fingerprint(),
            env!("CARGO_PKG_VERSION"),
            settings.sampling,
            settings.kv_type,
            settings.system,
            self.ready().ok().map(|ready| ready.template.identity()),
            n_ctx.map(|ready| ready.card.n_ctx),
        );
        let hash = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        let hex = hex::encode(hash.as_ref());
        Some(format!("fp_{}", hex.get(..12).unwrap_or(&hex)))
    }

    /// Shows a loaded model to requests.
    pub(super) fn show(&self, settings: Arc<TierSettings>, ready: Arc<Ready>) {
        if let Some(pin) = &ready.pin {
            self.set_pin(settings.model.clone(), pin.clone());
        }
        self.settings.store(settings);
        self.remember(self.model_report(ready.card.clone()));
        self.enter(Phase::Ready(ready));
    }

    /// Does what has to be waited for before its model can be loaded on; how long that takes says nothing about loading.
    pub(super) async fn held_up<T>(&self, by: impl Future<Output = T>) -> T {
        self.pace.hold(Instant::now());
        let done = by.await;
        self.pace.go_on(Instant::now());
        done
    }

    /// What is being loaded has so many bytes.
    pub(super) fn loads_bytes(&self, bytes: u64) {
        self.pace.is_of(bytes);
    }

    /// How far its model is that is being loaded, in percent; `None`: none is. An estimate.
    pub fn load_percent(&self) -> Option<u8> {
        let size = self.last().map_or(0, |model| model.size_bytes);
        self.pace.percent(size, Instant::now())
    }

    pub(super) fn enter(&self, phase: Phase) {
        match &phase {
            Phase::Loading { .. } => self.pace.begin(Instant::now()),
            Phase::Ready(ready) => self.pace.end(Some(ready.card.size_bytes), Instant::now()),
            Phase::Remote(_) => self.pace.end(Some(0), Instant::now()),
            Phase::Sleeping | Phase::Down { .. } => self.pace.end(None, Instant::now()),
        }
        self.phase.send_replace(phase);
        self.changed();
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}
