//! The tiers of this node: one supervised worker process each ([`supervisor`]), what is known about it ([`room`]) and the memory that
//! they share ([`shelf`]). Never runs a model in this process.

pub mod footprint;
pub mod remote;
pub mod room;
mod shelf;
mod supervisor;

use std::path::PathBuf;
use std::sync::Arc;

use config::settings::node::TierSettings;
use config::tier::Tier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use room::{InUse, Phase, Ready, Serving, TierRoom};
use crate::models::lock::Keeper;
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
        keeper: Arc<Keeper>,
    ) -> Self {
        Self::begin(settings, memory_max, launcher, Some(keeper))
    }

    fn begin(
        settings: Vec<TierSettings>,
        memory_max: Option<u64>,
        launcher: &Launcher,
        keeper: Option<Arc<Keeper>>,
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
                let keeper = keeper.clone();
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
