//! Records of the store as they were when we looked: believed for a moment, longer while the store proves that nothing changed,
//! and for a stated time while it is away. Those that are not there are remembered too. Decides nothing about what they say.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::recent::Recent;
use crate::store::StoreError;
use crate::store::changes::WATCHED;

/// A look-up counts for this long, whatever is proven: the net below the push of changes (contract A3.4).
const KNOWN_MAX: Duration = Duration::from_secs(30);
/// Records remembered at most, those that are not there included.
const REMEMBERED_MAX: usize = 20_000;
/// While the store is away, it is asked again after this.
const AWAY_PAUSE: Duration = Duration::from_millis(500);

/// What was looked up lately.
#[derive(Debug)]
pub(super) struct Lookups<K, V> {
    kept: Mutex<Kept<K, V>>,
    stale: Duration,
    /// Whether "there is no such record" is believed, too, while the store is away.
    absence_counts: bool,
}

#[derive(Debug)]
struct Kept<K, V> {
    entries: Recent<K, Entry<V>>,
    /// Counts what was forgotten, so that a look-up from before is not remembered after it.
    epoch: u64,
    /// What was looked up before counts only while the store is away.
    doubted_at: Option<Instant>,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry<V> {
    record: Option<Arc<V>>,
    at: Instant,
}

impl<V> Entry<V> {
    /// How long ago the record was certainly so. What the store proves from a doubt on says nothing about older look-ups.
    fn age(&self, watched: Option<Instant>, doubted_at: Option<Instant>) -> Duration {
        let proof = match (watched, doubted_at) {
            (Some(watched), Some(doubted)) if self.at < doubted => Some(watched.min(doubted)),
            (watched, _) => watched,
        };
        proof.map_or(self.at, |proof| proof.max(self.at)).elapsed()
    }
}

impl<K: Clone + Eq + Hash, V> Lookups<K, V> {
    /// Nothing is known yet; `stale` is how long records are believed while the store is away.
    pub(super) fn new(stale: Duration, absence_counts: bool) -> Self {
        Self {
            kept: Mutex::new(Kept {
                entries: Recent::new(REMEMBERED_MAX),
                epoch: 0,
                doubted_at: None,
                failed_at: None,
            }),
            stale,
            absence_counts,
        }
    }

    /// The record, read unless it is known. `watched`: until when the store proves that we heard of every change.
    pub(super) async fn get(
        &self,
        id: &K,
        watched: Option<Instant>,
        read: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<Arc<V>>, StoreError> {
        let epoch = {
            let mut kept = self.lock();
            let away = kept.failed_at.is_some_and(|at| at.elapsed() < AWAY_PAUSE);
            let (epoch, doubted_at) = (kept.epoch, kept.doubted_at);
            if let Some(entry) = kept.entries.get(id) {
                let age = entry.age(watched, doubted_at);
                let doubted = doubted_at.is_some_and(|doubted| entry.at < doubted);
                let fresh = age < WATCHED && entry.at.elapsed() < KNOWN_MAX && !doubted;
                let known = entry.record.is_some() || self.absence_counts;
                if fresh || (away && age < self.stale && known) {
                    return Ok(entry.record.clone());
                }
            }
            epoch
        };
        let at = Instant::now();
        match read.await {
            Ok(record) => {
                let record = record.map(Arc::new);
                self.keep(id, record.clone(), (at, epoch));
                Ok(record)
            }
            Err(error) => self.without_store(id, watched, error),
        }
    }

    /// Remembers what was written just now.
    pub(super) fn note(&self, id: &K, record: Arc<V>) {
        let epoch = self.lock().epoch;
        self.keep(id, Some(record), (Instant::now(), epoch));
    }

    /// Looks it up again at its next use.
    pub(super) fn forget(&self, id: &K) {
        let mut kept = self.lock();
        kept.epoch = kept.epoch.wrapping_add(1);
        kept.entries.remove(id);
    }

    /// Looks everything up again. What is known still counts while the store is away.
    pub(super) fn doubt_all(&self) {
        let mut kept = self.lock();
        kept.epoch = kept.epoch.wrapping_add(1);
        kept.doubted_at = Some(Instant::now());
    }

    fn keep(&self, id: &K, record: Option<Arc<V>>, (at, epoch): (Instant, u64)) {
        let mut kept = self.lock();
        kept.failed_at = None;
        if kept.epoch == epoch {
            kept.entries.insert(id.clone(), Entry { record, at });
        }
    }

    fn without_store(
        &self,
        id: &K,
        watched: Option<Instant>,
        error: StoreError,
    ) -> Result<Option<Arc<V>>, StoreError> {
        let mut kept = self.lock();
        kept.failed_at = Some(Instant::now());
        let doubted_at = kept.doubted_at;
        kept.entries
            .get(id)
            .filter(|entry| entry.age(watched, doubted_at) < self.stale)
            .map(|entry| entry.record.clone())
            .filter(|record| record.is_some() || self.absence_counts)
            .ok_or(error)
    }

    fn lock(&self) -> MutexGuard<'_, Kept<K, V>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
