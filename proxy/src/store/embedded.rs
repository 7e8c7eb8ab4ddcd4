//! The store of a single proxy: a redb file in the state directory. Counters are decided in memory and written together at
//! least once a second, so a crash forgets at most [`COUNTERS_LOST_MAX`] of counting; keys, join tokens, nodes and secrets are
//! on disk before their call returns. One thread owns the file; its queue is bounded.

mod records;
mod worker;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use config::ids::{KeyId, NodeId};
use config::secret::Secret;
use policy::limit::{Counter, Decision};

use super::memory::CounterTable;
use super::{
    Counting, JoinToken, KeyRecord, NodeRecord, Records, Redeemed, Redemption, StoreError, local,
};
use worker::Worker;

/// The file inside the state directory.
pub const FILE_NAME: &str = "store.redb";
/// Counting that a crash forgets at most.
pub const COUNTERS_LOST_MAX: Duration = Duration::from_secs(1);

/// A redb file and the counters in memory.
#[derive(Debug)]
pub struct Embedded {
    counters: Arc<Mutex<CounterTable>>,
    worker: Worker,
}

impl Embedded {
    /// Opens or makes the file. Only one process can have it open.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        local::private_folder(state_dir)?;
        let (worker, counters) = Worker::start(&state_dir.join(FILE_NAME))?;
        Ok(Self { counters, worker })
    }
}

/// The table stays whole even if a thread panicked beside it: every change to it is complete in itself.
fn lock(counters: &Mutex<CounterTable>) -> MutexGuard<'_, CounterTable> {
    counters.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Counting for Embedded {
    async fn admit(&self, counters: &[Counter], now_unix_ms: u64) -> Result<Decision, StoreError> {
        lock(&self.counters).admit(counters, now_unix_ms)
    }

    async fn give_back(&self, counters: &[Counter], _now_unix_ms: u64) -> Result<(), StoreError> {
        lock(&self.counters).give_back(counters);
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.worker.ask(records::ping).await
    }
}

#[async_trait]
impl Records for Embedded {
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let key = key.clone();
        self.worker
            .ask(move |file| records::put_key(file, &key))
            .await
    }

    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let id = id.clone();
        self.worker.ask(move |file| records::key(file, &id)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.worker.ask(records::keys).await
    }

    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError> {
        let id = id.clone();
        self.worker
            .ask(move |file| records::revoke_key(file, &id, now_unix))
            .await
    }

    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError> {
        let id = id.clone();
        self.worker
            .ask_lightly(move |file| records::touch_key(file, &id, now_unix))
            .await
    }

    async fn put_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        let token = token.clone();
        self.worker
            .ask(move |file| records::put_join_token(file, &token))
            .await
    }

    async fn redeem_join_token(
        &self,
        redemption: &Redemption,
        now_unix: i64,
    ) -> Result<Redeemed, StoreError> {
        let redemption = redemption.clone();
        self.worker
            .ask(move |file| records::redeem_join_token(file, &redemption, now_unix))
            .await
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.worker.ask(records::join_tokens).await
    }

    async fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError> {
        let node = node.clone();
        self.worker
            .ask(move |file| records::put_node(file, node))
            .await
    }

    async fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>, StoreError> {
        let id = id.clone();
        self.worker.ask(move |file| records::node(file, &id)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.worker.ask(records::nodes).await
    }

    async fn revoke_node(
        &self,
        id: &NodeId,
        now_unix: i64,
    ) -> Result<Option<NodeRecord>, StoreError> {
        let id = id.clone();
        self.worker
            .ask(move |file| records::revoke_node(file, &id, now_unix))
            .await
    }

    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError> {
        let name = name.to_owned();
        self.worker
            .ask(move |file| records::secret(file, &name))
            .await
    }
}

#[cfg(test)]
mod tests;
