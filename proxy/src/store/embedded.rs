//! The store of a single proxy: a redb file in the state directory. One thread writes it; its queue is bounded.
//!
//! Counters and reservations are decided in memory and written together [`COMMIT_EVERY`] after the first change. A settlement
//! returns when it is on disk, so whatever was acknowledged as settled survives `kill -9`. What such a crash can lose is the
//! last [`COMMIT_EVERY`] of admissions and of settlements that nobody was told of. An admission whose settlement was lost
//! stays charged until its lease passes after the restart. Keys, join tokens, nodes and secrets are on disk before their
//! call returns.

mod backup;
mod counters;
mod ledger;
mod record_calls;
mod records;
mod transfer;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use config::ids::Tenant;
use policy::limit::{Counter, CounterState, Decision};
use policy::quota;
use tokio::sync::broadcast;

use super::changes::BACKLOG;
use super::counting::{Reservation, ReservationId, Settlement};
use super::memory::CounterTable;
use super::{Change, Counting, StoreError, local};
use counters::FileDisk;
use worker::{Started, Worker};

/// The file inside the state directory.
pub const FILE_NAME: &str = "store.redb";
/// How long the first change waits for others to be written together with them.
pub const COMMIT_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for a settlement to be on disk; beyond it the disk hangs.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses and users in memory when nothing else is said.
const SUBJECTS_DEFAULT: usize = 100_000;

/// A redb file and the counters in memory.
#[derive(Debug)]
pub struct Embedded {
    counters: Arc<Mutex<CounterTable>>,
    disk: Arc<FileDisk>,
    worker: Worker,
    changes: broadcast::Sender<Change>,
    /// Whether it counts at all.
    counts: bool,
}

impl Embedded {
    /// Opens or makes the file. Only one process can have it open.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        Self::open_for(state_dir, SUBJECTS_DEFAULT)
    }

    /// The same with a bound on the addresses and users that are kept in memory; more than these are read from the file.
    pub fn open_for(state_dir: &Path, subjects_max: usize) -> Result<Self, StoreError> {
        local::private_folder(state_dir)?;
        let path = state_dir.join(FILE_NAME);
        let Started {
            worker,
            counters,
            disk,
        } = Worker::start(&path, subjects_max)?;
        Ok(Self {
            counters,
            disk,
            worker,
            changes: broadcast::Sender::new(BACKLOG),
            counts: true,
        })
    }

    /// A store that admits everybody, charges nothing and writes no usage down: what a benchmark compares with. No setting leads
    /// here.
    #[doc(hidden)]
    pub fn granting(state_dir: &Path) -> Result<Self, StoreError> {
        let mut store = Self::open(state_dir)?;
        store.counts = false;
        Ok(store)
    }

    /// The part of a settlement that is done before the wait for the disk, where it is within about [`COMMIT_EVERY`]; says which
    /// batch holds it. Whoever needs it to survive a crash calls [`Counting::settle`].
    pub fn charge(&self, settlement: &Settlement, now_unix_ms: u64) -> Result<u64, StoreError> {
        let batch = lock(&self.counters).settle(settlement, now_unix_ms, &*self.disk)?;
        self.worker.wake();
        Ok(batch)
    }

    /// Writes a copy of the file while the proxy runs: all that was acknowledged when the call began, as one moment. The copy
    /// is a store of its own: put it in place of [`FILE_NAME`] of a stopped proxy. Refuses to replace a file.
    pub async fn backup(&self, to: &Path) -> Result<u64, StoreError> {
        let to = to.to_owned();
        let batch = lock(&self.counters).batch();
        self.on_disk(batch).await?;
        self.worker.backup(to).await
    }

    /// Waits until a batch is on disk.
    async fn on_disk(&self, batch: u64) -> Result<(), StoreError> {
        self.worker.wake();
        let mut written = self.worker.written();
        let wait = written.wait_for(|&written| written >= batch);
        match tokio::time::timeout(COMMIT_TIMEOUT, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Unavailable(
                "the store's thread has stopped".into(),
            )),
            Err(_) => Err(StoreError::Unavailable("the disk does not answer".into())),
        }
    }
}

/// The table stays whole even if a thread panicked beside it: every change to it is complete in itself.
fn lock(counters: &Mutex<CounterTable>) -> MutexGuard<'_, CounterTable> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where counters stand that nobody used.
fn full(counters: &[Counter], now_unix_ms: u64) -> Vec<CounterState> {
    let now_us = now_unix_ms.saturating_mul(1_000);
    let states = counters.iter();
    states
        .map(|counter| quota::state(counter, None, now_us))
        .collect()
}

#[async_trait]
impl Counting for Embedded {
    async fn reserve(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        if !self.counts {
            return Ok(Decision::Admitted {
                granted: reservation.elastic.want,
                states: full(&reservation.counters, now_unix_ms),
            });
        }
        let decision = lock(&self.counters).reserve(reservation, now_unix_ms, &*self.disk);
        self.worker.wake();
        decision
    }

    async fn settle(&self, settlement: &Settlement, now_unix_ms: u64) -> Result<(), StoreError> {
        if !self.counts {
            return Ok(());
        }
        let batch = self.charge(settlement, now_unix_ms)?;
        self.on_disk(batch).await
    }

    async fn extend(
        &self,
        ids: &[(Tenant, ReservationId)],
        lease_ms: u64,
        now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        let mut counters = lock(&self.counters);
        for (_, id) in ids {
            counters.extend(id, lease_ms, now_unix_ms);
        }
        drop(counters);
        self.worker.wake();
        Ok(())
    }

    async fn look(
        &self,
        _tenant: &Tenant,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        lock(&self.counters).look(counters, now_unix_ms, &*self.disk)
    }

    async fn release(
        &self,
        _tenant: &Tenant,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        let batch = lock(&self.counters).release(counters, now_unix_ms, &*self.disk)?;
        self.on_disk(batch).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.worker.ask(records::ping).await
    }
}

#[cfg(test)]
mod tests;
