//! The records of a store: keys, join tokens, nodes and our own secrets. Counts nothing.

use async_trait::async_trait;
use config::ids::{KeyId, NodeId};
use config::secret::Secret;

use super::{JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption, StoreError};

/// Records, shared by every proxy of the store.
#[async_trait]
pub trait Records: Send + Sync {
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
