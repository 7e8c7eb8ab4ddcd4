//! What must outlive a request: counters, keys, join tokens, nodes and our own secrets. One trait, two stores with one
//! contract. Never decides whether a request may pass: the arithmetic is policy's, the words are the gateway's.

#[cfg(test)]
mod contract;
pub mod embedded;
mod local;
mod memory;
mod record;
pub mod redis;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use config::ids::{KeyId, NodeId};
use config::secret::Secret;
use config::settings::proxy::Store as StoreSettings;
use policy::limit::{Counter, Decision};

use crate::observe::metrics::Metrics;

pub use self::embedded::Embedded;
pub use self::redis::Redis;
pub use local::local_secret;
pub(crate) use local::private_folder;
pub use record::{JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption, SecretHash};

/// The name of the secret under which credentials are hashed; see [`Store::secret`].
pub const PEPPER: &str = "pepper";

/// Counters and records, shared by every room of the proxy.
#[async_trait]
pub trait Store: Send + Sync {
    /// Charges all counters, or none when one of them is used up. The embedded store counts with `now_unix_ms`;
    /// Redis counts with its own clock, so that many proxies agree.
    async fn admit(&self, counters: &[Counter], now_unix_ms: u64) -> Result<Decision, StoreError>;

    /// Takes back what an admission charged, never below zero; for requests that failed through no fault of the caller.
    async fn give_back(&self, counters: &[Counter], now_unix_ms: u64) -> Result<(), StoreError>;

    /// Answers if the store does.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Adds or replaces an API key.
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// One API key.
    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// All API keys, by id.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Ends an API key for ever; `None` when there is none of that id. The second time changes nothing.
    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError>;

    /// Notes that a key was used. Coarse: callers do it at most once a minute and key.
    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError>;

    /// Adds a join token.
    async fn put_join_token(&self, token: &JoinToken) -> Result<(), StoreError>;

    /// Takes one use of a join token for an identity, in one step. The same identity again is [`Redeemed::Again`], also
    /// when the token has expired or is used up since.
    async fn redeem_join_token(
        &self,
        redemption: &Redemption,
        now_unix: i64,
    ) -> Result<Redeemed, StoreError>;

    /// All join tokens, by id.
    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError>;

    /// Adds or replaces a node. A node that was revoked stays revoked.
    async fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError>;

    /// One node.
    async fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>, StoreError>;

    /// All nodes, by id.
    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError>;

    /// Ends a node for ever; `None` when there is none of that id. The second time changes nothing.
    async fn revoke_node(
        &self,
        id: &NodeId,
        now_unix: i64,
    ) -> Result<Option<NodeRecord>, StoreError>;

    /// 32 random bytes that stay the same for this name: made on the first call, shared by all proxies of the store.
    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError>;
}

/// Why the store did not answer. None of these is the caller's fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// No connection, no answer in time, or the server cannot take writes now.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// More work waits than the store's queue holds.
    #[error("the store is overloaded")]
    Overloaded,
    /// Something else wrote under our keys, or the file is damaged.
    #[error("the store holds something that is not ours: {0}")]
    Corrupt(String),
    /// Another process has the file open.
    #[error("another process uses {0}")]
    InUse(String),
}

impl StoreError {
    /// The word in metrics and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Corrupt(_) => "corrupt",
            Self::InUse(_) => "in_use",
        }
    }
}

/// Opens the store that the settings name. Redis need not answer yet: it is dialled again until it does.
pub async fn open(
    settings: &StoreSettings,
    state_dir: &Path,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Store>, StoreError> {
    match settings {
        StoreSettings::Embedded => Ok(Arc::new(Embedded::open(state_dir)?)),
        StoreSettings::Redis { .. } => Ok(Arc::new(Redis::open(settings, metrics).await?)),
    }
}
