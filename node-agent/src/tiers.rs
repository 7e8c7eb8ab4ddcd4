//! The tiers of this node: one supervised worker process each ([`supervisor`]), and what is known about it. Never runs a model in
//! this process.

pub mod supervisor;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use config::settings::node::{KvType, TierSettings};
use config::tier::Tier;
use config::wire::node::{ModelReport, TierReport, TierState};
use engine::{LoadSpec, ModelCard, Stats, Worker};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::reply::Refused;
use crate::template::Template;

/// Layers are put on the GPU as far as it has room; no model has more.
const ALL_LAYERS: u32 = 9_999;
/// One principal may fill half of a queue.
const PRINCIPAL_SHARE: usize = 2;

/// How to start a worker.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Usually this program.
    pub program: PathBuf,
    /// Usually `worker`.
    pub args: Vec<String>,
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
}

/// What a tier is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The worker is starting.
    Loading,
    /// It answers.
    Ready(Arc<Ready>),
    /// It ended, or would not start; it is tried again.
    Down {
        /// Why, for the operator.
        reason: String,
    },
}

/// One tier.
#[derive(Debug)]
pub struct TierRoom {
    settings: TierSettings,
    phase: watch::Sender<Phase>,
    sha256: OnceLock<String>,
    starts: AtomicU64,
    changes: watch::Sender<u64>,
}

impl TierRoom {
    /// Its settings.
    pub const fn settings(&self) -> &TierSettings {
        &self.settings
    }

    /// Which tier.
    pub const fn tier(&self) -> Tier {
        self.settings.tier
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

    /// The worker, if it answers.
    pub fn ready(&self) -> Result<Arc<Ready>, Refused> {
        let reason = match &*self.phase.borrow() {
            Phase::Ready(ready) => return Ok(ready.clone()),
            Phase::Loading => "its model is being loaded",
            Phase::Down { .. } => "its worker is down",
        };
        Err(Refused::TierUnavailable {
            tier: self.tier(),
            reason,
        })
    }

    /// How busy the worker is; zeros when there is none.
    pub fn stats(&self) -> Stats {
        match &*self.phase.borrow() {
            Phase::Ready(ready) => *ready.worker.stats().borrow(),
            Phase::Loading | Phase::Down { .. } => Stats::default(),
        }
    }

    /// The SHA-256 of the model file, once known.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.get().map(String::as_str)
    }

    /// Keeps the SHA-256 of the model file.
    pub fn set_sha256(&self, sha256: String) {
        if self.sha256.set(sha256).is_ok() {
            self.changed();
        }
    }

    /// A word that changes whenever the same seed may give another answer.
    pub fn fingerprint(&self) -> Option<String> {
        let name = format!(
            "{}\0{}\0{:?}",
            self.sha256()?,
            env!("CARGO_PKG_VERSION"),
            self.settings.sampling
        );
        let hash = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        let hex = hex::encode(hash.as_ref());
        Some(format!("fp_{}", hex.get(..12).unwrap_or(&hex)))
    }

    /// What the proxy is told.
    pub fn report(&self) -> TierReport {
        let (state, reason, card) = match self.phase() {
            Phase::Loading => (TierState::Loading, None, None),
            Phase::Ready(ready) => (TierState::Ready, None, Some(ready.card.clone())),
            Phase::Down { reason } => (TierState::Down, Some(reason), None),
        };
        let stats = self.stats();
        TierReport {
            tier: self.tier(),
            state,
            reason,
            model: card.map(|card| self.model_report(card)),
            slots: self.settings.slots,
            slots_busy: u32::from(stats.slots_busy),
            queue_depth: stats.queue_depth,
            queue_max: self.settings.queue_max,
            tokens_per_second: finite(stats.tokens_per_second),
            prompt_tokens_per_second: finite(stats.prompt_tokens_per_second),
        }
    }

    fn model_report(&self, card: ModelCard) -> ModelReport {
        ModelReport {
            id: self.settings.model_id.clone(),
            file_sha256: self.sha256().unwrap_or_default().to_owned(),
            size_bytes: card.size_bytes,
            n_ctx: card.n_ctx,
            n_ctx_train: card.n_ctx_train,
            parameters: card.parameters,
            quantization: card.quantization,
            architecture: card.architecture,
            modalities: Vec::new(),
        }
    }

    fn load_spec(&self) -> LoadSpec {
        let settings = &self.settings;
        let mut spec = LoadSpec::new(&settings.model);
        spec.n_ctx = settings.context.unwrap_or(0);
        spec.slots = u16::try_from(settings.slots).unwrap_or(u16::MAX);
        spec.threads = settings
            .threads
            .map(|threads| u16::try_from(threads).unwrap_or(u16::MAX));
        spec.kv_type = match settings.kv_type {
            KvType::F16 => engine::KvType::F16,
            KvType::Q8 => engine::KvType::Q8_0,
            KvType::Q4 => engine::KvType::Q4_0,
        };
        spec.gpu_layers = settings.gpu_layers.unwrap_or(ALL_LAYERS);
        spec.mlock = settings.mlock;
        spec.queue_max = usize::try_from(settings.queue_max).unwrap_or(usize::MAX);
        spec.queue_per_principal_max = spec.queue_max.div_ceil(PRINCIPAL_SHARE);
        spec
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
        self.changed();
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// All tiers of the node.
#[derive(Debug)]
pub struct Tiers {
    rooms: Vec<Arc<TierRoom>>,
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tiers {
    /// Starts a supervisor for each tier.
    pub fn start(settings: Vec<TierSettings>, launcher: &Launcher) -> Self {
        let (changes, _receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let rooms: Vec<Arc<TierRoom>> = settings
            .into_iter()
            .map(|settings| {
                let (phase, _receiver) = watch::channel(Phase::Loading);
                Arc::new(TierRoom {
                    settings,
                    phase,
                    sha256: OnceLock::new(),
                    starts: AtomicU64::new(0),
                    changes: changes.clone(),
                })
            })
            .collect();
        for room in &rooms {
            tasks.spawn(supervisor::supervise(
                room.clone(),
                launcher.clone(),
                stop.clone(),
            ));
        }
        Self {
            rooms,
            changes,
            stop,
            tasks,
        }
    }

    /// Each tier.
    pub fn rooms(&self) -> &[Arc<TierRoom>] {
        &self.rooms
    }

    /// One tier, if this node has it.
    pub fn room(&self, tier: Tier) -> Option<&Arc<TierRoom>> {
        self.rooms.iter().find(|room| room.tier() == tier)
    }

    /// Counts changes of any tier's phase.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Computes the hashes of the model files in the background, one after the other.
    pub fn hash_models(&self, mut hashes: crate::models::Hashes) {
        let rooms = self.rooms.clone();
        let stop = self.stop.clone();
        self.tasks.spawn_blocking(move || {
            for room in rooms {
                match hashes.sha256(&room.settings.model, &stop) {
                    Ok(Some(sha256)) => room.set_sha256(sha256),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(tier = %room.tier(), %error, "the model file could not be hashed");
                    }
                }
            }
        });
    }

    /// Ends all workers and waits for them.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

const fn finite(rate: f64) -> f64 {
    if rate.is_finite() { rate } else { 0.0 }
}
