//! The records of a store: keys, people, denials, join tokens, nodes, servers that cost money and our own secrets. Counts nothing. Every change that
//! another proxy must hear of is pushed to it; see [`super::Changes`].

use std::time::Duration;

use async_trait::async_trait;
use config::ids::{KeyId, NodeId, UserId};
use config::secret::Secret;

use super::{
    BurstRecord, Denial, Denied, JoinToken, KeyRecord, NodeRecord, Redeemed, Redemption, Store,
    StoreError, UserRecord,
};

/// Records, shared by every proxy of the store.
#[async_trait]
pub trait Records: Send + Sync {
    /// Adds or replaces an API key.
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// Replaces an API key if it still is what was read; `false` when somebody else was faster.
    async fn swap_key(&self, before: &KeyRecord, after: &KeyRecord) -> Result<bool, StoreError>;

    /// One API key.
    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// All API keys, by id.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Ends an API key for ever; `None` when there is none of that id. The second time changes nothing.
    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError>;

    /// Notes that a key was used. Coarse: callers do it at most once a minute and key.
    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError>;

    /// Adds a person who is not there yet; returns what stands there afterwards.
    async fn create_user(&self, user: &UserRecord) -> Result<UserRecord, StoreError>;

    /// Replaces a person's record if it still is what was read; `false` when somebody else was faster.
    async fn swap_user(&self, before: &UserRecord, after: &UserRecord) -> Result<bool, StoreError>;

    /// One person.
    async fn user(&self, id: &UserId) -> Result<Option<UserRecord>, StoreError>;

    /// People by id, from the one after `after` on, `limit` at most.
    async fn users(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserRecord>, StoreError>;

    /// Notes that a person was here. Coarse: callers do it at most once an hour and person. Nobody is told.
    async fn touch_user(&self, id: &UserId, now_unix: i64) -> Result<(), StoreError>;

    /// Forgets a person; `false` when there was none of that id.
    async fn remove_user(&self, id: &UserId) -> Result<bool, StoreError>;

    /// Adds or replaces a denial.
    async fn deny(&self, denial: &Denial) -> Result<(), StoreError>;

    /// Takes a denial back; `false` when there was none.
    async fn undeny(&self, whom: &Denied) -> Result<bool, StoreError>;

    /// All denials, by [`Denied::text`].
    async fn denials(&self) -> Result<Vec<Denial>, StoreError>;

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

    /// Adds or replaces a node. A node that was revoked stays revoked. Whoever changes one that is there uses [`change_node`].
    async fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError>;

    /// Replaces a node if it still is what was read; `false` when somebody else was faster.
    async fn swap_node(&self, before: &NodeRecord, after: &NodeRecord) -> Result<bool, StoreError>;

    /// Notes that a node was there. Coarse: callers do it at most once a minute and node. Nobody is told.
    async fn touch_node(&self, id: &NodeId, now_unix: i64) -> Result<(), StoreError>;

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

    /// Replaces what stands there of a server outside that was started, if it still is what was read (`None`: nothing); `after` of `None`
    /// removes it. `false` when somebody else was faster. Both have the same name. On the disk when this returns.
    async fn swap_burst(
        &self,
        name: &str,
        before: Option<&BurstRecord>,
        after: Option<&BurstRecord>,
    ) -> Result<bool, StoreError>;

    /// A server outside that was started and is not known to be stopped.
    async fn burst(&self, name: &str) -> Result<Option<BurstRecord>, StoreError>;

    /// All of them, by name.
    async fn bursts(&self) -> Result<Vec<BurstRecord>, StoreError>;

    /// 32 random bytes that stay the same for this name: made on the first call, shared by all proxies of the store.
    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError>;
}

/// Tries of [`change_node`]; each failure means that somebody else succeeded.
const TRIES_MAX: usize = 16;

/// Between two of them, at most.
const PAUSE_MS_MAX: u8 = 16;

/// Changes a node as it stands, whoever else writes it: `change` is made again on what somebody else wrote meanwhile. What stands there
/// afterwards, or `None` when there is no node of that id.
pub async fn change_node(
    store: &dyn Store,
    id: &NodeId,
    change: impl Fn(&mut NodeRecord) + Send + Sync,
) -> Result<Option<NodeRecord>, StoreError> {
    for _ in 0..TRIES_MAX {
        let Some(before) = store.node(id).await? else {
            return Ok(None);
        };
        let mut after = before.clone();
        change(&mut after);
        if after == before || store.swap_node(&before, &after).await? {
            return Ok(Some(after));
        }
        // Two that always come at the same moment would meet for ever.
        let pause = Duration::from_millis(u64::from(rand::random::<u8>() % PAUSE_MS_MAX));
        tokio::time::sleep(pause).await;
    }
    Err(StoreError::Overloaded)
}
