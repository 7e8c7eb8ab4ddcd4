//! The memory for models: a tier takes its place before it loads, and when there is none, the tier that has not been asked for longest
//! gives up its own, but never one that is answering. Loads and unloads nothing itself.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use config::settings::node::TierSettings;
use tokio::sync::Notify;

use super::TierRoom;
use crate::models::advise::budget_of;
use crate::models::lock::name_of;
use crate::models::machine::ram_available;

/// Bytes on loan, and the bound.
#[derive(Debug)]
pub(super) struct Shelf {
    /// `None`: only the machine is the bound.
    max: Option<u64>,
    /// What models may take of the memory that was free before any was loaded; `None` where the system does not say.
    machine: Option<u64>,
    taken: Mutex<u64>,
    rooms: Mutex<Vec<Weak<TierRoom>>>,
    /// Somebody gave something back, or ended an answer.
    moved: Notify,
}

/// What one tier may take when its settings leave that open.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Share {
    /// Bytes.
    pub(super) bytes: u64,
    /// `memory_max` is set: it holds for everything, kept prompts too.
    pub(super) bounded: bool,
}

/// A tier's place, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    shelf: Arc<Shelf>,
    bytes: u64,
}

/// The model alone is larger than the bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the model takes {needed} bytes of memory and memory_max allows {max}; raise it, or choose a smaller model or context"
)]
pub(super) struct TooLarge {
    needed: u64,
    max: u64,
}

impl Shelf {
    pub(super) fn new(max: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            max,
            machine: ram_available().map(budget_of),
            taken: Mutex::new(0),
            rooms: Mutex::default(),
            moved: Notify::new(),
        })
    }

    /// Says who can be asked to leave.
    pub(super) fn know(&self, rooms: &[Arc<TierRoom>]) {
        *lock(&self.rooms) = rooms.iter().map(Arc::downgrade).collect();
    }

    /// Slots at work, of all tiers.
    pub(super) fn slots_busy(&self) -> u32 {
        let rooms: Vec<Arc<TierRoom>> =
            lock(&self.rooms).iter().filter_map(Weak::upgrade).collect();
        rooms
            .iter()
            .map(|room| u32::from(room.stats().slots_busy))
            .sum()
    }

    /// The share of the tier whose model is `mine`: its file, and an equal part of what all models leave. It depends on the settings
    /// alone, not on who is loaded, so that a model comes back with the context that it had.
    pub(super) fn share(&self, mine: &Path) -> Share {
        let rooms = lock(&self.rooms);
        let loaded = rooms.iter().filter_map(Weak::upgrade);
        let others = loaded.map(|room| room.settings().model.clone());
        let others: Vec<u64> = others
            .filter(|path| path != mine)
            .map(|path| file_bytes(&path))
            .filter(|bytes| *bytes > 0)
            .collect();
        let bound = self.max.into_iter().chain(self.machine).min();
        Share {
            bytes: bound.map_or(u64::MAX, |bound| part_of(bound, file_bytes(mine), &others)),
            bounded: self.max.is_some(),
        }
    }

    /// The name under which a tier's model is pinned.
    pub(super) fn lock_name(&self, mine: &TierSettings) -> String {
        let rooms = lock(&self.rooms);
        let loaded = rooms.iter().filter_map(Weak::upgrade);
        let all: Vec<Arc<TierSettings>> = loaded.map(|room| room.settings()).collect();
        name_of(mine, all.iter().map(AsRef::as_ref))
    }

    /// Something changed that a waiting tier may use.
    pub(super) fn moved(&self) {
        self.moved.notify_waiters();
    }

    /// A place at once, or none.
    pub(super) fn try_take(self: &Arc<Self>, bytes: u64) -> Result<Option<Place>, TooLarge> {
        let mut taken = lock(&self.taken);
        let wanted = taken.saturating_add(bytes);
        match self.max {
            Some(max) if bytes > max => return Err(TooLarge { needed: bytes, max }),
            Some(max) if wanted > max => return Ok(None),
            Some(_) | None => {}
        }
        *taken = wanted;
        Ok(Some(Place {
            shelf: self.clone(),
            bytes,
        }))
    }

    /// Waits for a place; idle tiers are asked to leave, the longest unused first.
    pub(super) async fn take(self: &Arc<Self>, bytes: u64) -> Result<Place, TooLarge> {
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            // Registered before looking, so that nothing is missed in between.
            moved.as_mut().enable();
            if let Some(place) = self.try_take(bytes)? {
                return Ok(place);
            }
            if let Some(room) = self.longest_unused() {
                room.ask_to_leave();
            }
            moved.await;
        }
    }

    fn longest_unused(&self) -> Option<Arc<TierRoom>> {
        let rooms = lock(&self.rooms);
        let loaded = rooms.iter().filter_map(Weak::upgrade);
        let idle = loaded.filter_map(|room| Some((room.idle_since()?, room)));
        idle.min_by_key(|(since, _room): &(Instant, _)| *since)
            .map(|(_since, room)| room)
    }
}

/// Models that never fit together take turns; each then leaves what it does not need for its context to the others.
fn part_of(bound: u64, mine: u64, others: &[u64]) -> u64 {
    let all = others.iter().copied().fold(mine, u64::saturating_add);
    let left = bound.saturating_sub(all);
    let left = if left > 0 {
        left
    } else {
        bound.saturating_sub(mine)
    };
    let tiers = u64::try_from(others.len())
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    mine.saturating_add(left / tiers).min(bound)
}

/// All parts of a model; 0 for what is no file.
fn file_bytes(model: &Path) -> u64 {
    let parts = crate::models::parts(model);
    let sizes = parts.iter().filter_map(|part| std::fs::metadata(part).ok());
    sizes.map(|meta| meta.len()).sum()
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.shelf.taken);
        *taken = taken.saturating_sub(self.bytes);
        drop(taken);
        self.shelf.moved();
    }
}

/// Both tables stay whole even if a thread panicked beside them.
fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_given_when_another_is_given_back() {
        let shelf = Shelf::new(Some(100));
        let first = shelf.take(60).await.expect("fits");
        assert!(shelf.try_take(50).expect("could fit").is_none());
        let waiting = tokio::spawn({
            let shelf = shelf.clone();
            async move { shelf.take(50).await.map(|place| place.bytes) }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(waiting.await.expect("ends"), Ok(50));
        assert_eq!(*lock(&shelf.taken), 0, "its place was given back too");
    }

    #[test]
    fn what_all_models_leave_is_shared_equally() {
        assert_eq!(part_of(1_000, 100, &[200, 400]), 200);
        assert_eq!(part_of(1_000, 100, &[]), 1_000);
        assert_eq!(part_of(500, 300, &[300]), 400, "they take turns");
        assert_eq!(part_of(100, 300, &[]), 100, "never above the bound");
    }

    #[test]
    fn what_can_never_fit_is_said_with_both_numbers() {
        let shelf = Shelf::new(Some(100));
        let refused = shelf.try_take(101).expect_err("too large").to_string();
        assert!(
            refused.contains("101") && refused.contains("100"),
            "{refused}"
        );
        assert!(
            Shelf::new(None)
                .try_take(u64::MAX)
                .expect("no bound")
                .is_some()
        );
    }
}
