//! The tiers of this node: one supervised worker process each ([`supervisor`]), what is known about it ([`room`]) and the memory that
//! they share ([`shelf`]). Never runs a model in this process.

pub mod footprint;
mod load_spec;
mod pace;
mod placed;
pub mod remote;
pub mod room;
mod shelf;
mod supervisor;
mod talk;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use config::settings::node::TierSettings;
use config::tier::Tier;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::models::lock::Keeper;
use crate::power::{Power, Reading};
pub use room::{InUse, Phase, Ready, Serving, TierRoom};
use shelf::Shelf;

/// How to start a worker.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Usually this program.
    pub program: PathBuf,
    /// Usually `worker`.
    pub args: Vec<String>,
}

/// All tiers of the node.
#[derive(Debug)]
pub struct Tiers {
    rooms: Vec<Arc<TierRoom>>,
    power: OnceLock<Arc<Power>>,
    changes: watch::Sender<u64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tiers {
    /// Starts a supervisor for each tier, and pins nothing. `memory_max`: bytes for all models together; `None`: whatever the machine gives.
    pub fn start(
        settings: Vec<TierSettings>,
        memory_max: Option<u64>,
        launcher: &Launcher,
    ) -> Self {
        Self::begin(settings, memory_max, launcher, None)
    }

    /// The same, and each model is held to what it was pinned as.
    pub fn locked(
        settings: Vec<TierSettings>,
        memory_max: Option<u64>,
        launcher: &Launcher,
        keeper: &Arc<Keeper>,
    ) -> Self {
        Self::begin(settings, memory_max, launcher, Some(keeper))
    }

    fn begin(
        settings: Vec<TierSettings>,
        memory_max: Option<u64>,
        launcher: &Launcher,
        keeper: Option<&Arc<Keeper>>,
    ) -> Self {
        let (changes, _receiver) = watch::channel(0);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let shelf = Shelf::new(memory_max);
        let rooms: Vec<Arc<TierRoom>> = settings
            .into_iter()
            .map(|settings| Arc::new(TierRoom::new(settings, changes.clone(), shelf.clone())))
            .collect();
        shelf.know(&rooms);
        for room in &rooms {
            let room = room.clone();
            if room.settings().upstream.is_some() {
                tasks.spawn(remote::watch(room, stop.clone()));
            } else {
                let keeper = keeper.cloned();
                tasks.spawn(supervisor::supervise(
                    room,
                    launcher.clone(),
                    keeper,
                    stop.clone(),
                ));
            }
        }
        Self {
            rooms,
            power: OnceLock::new(),
            changes,
            stop,
            tasks,
        }
    }

    /// Takes new settings, tier by tier. Says which tiers came or went: that needs a restart.
    pub fn change(&self, settings: Vec<TierSettings>) -> Vec<Tier> {
        let mut strange: Vec<Tier> = Vec::new();
        let mut missing: Vec<Tier> = self.rooms.iter().map(|room| room.tier()).collect();
        for settings in settings {
            missing.retain(|tier| *tier != settings.tier);
            match self.room(settings.tier) {
                // A worker does not become a server elsewhere.
                Some(room) if room.settings().upstream.is_some() == settings.upstream.is_some() => {
                    room.change(settings);
                }
                Some(_) | None => strange.push(settings.tier),
            }
        }
        strange.extend(missing);
        strange
    }

    /// Knows the machine's sensors from now on; the first ones stay.
    pub fn set_power(&self, power: Power) {
        let power = Arc::new(power);
        for room in &self.rooms {
            room.sense(power.clone());
        }
        let _known = self.power.set(power);
    }

    /// What the sensors say; nothing as long as none is known.
    pub fn power(&self) -> Reading {
        let power = self.power.get();
        power.map_or_else(Reading::default, |power| power.read(Instant::now()))
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

    /// Ends all workers and waits for them.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
