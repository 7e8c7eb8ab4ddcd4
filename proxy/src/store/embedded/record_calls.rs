//! The records of the file, asked for from any task: each call is one question to the thread that owns the file, and what
//! changed is told to this process, the only one that has the file open.

use async_trait::async_trait;
use config::ids::{KeyId, NodeId, UserId};
use config::secret::Secret;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{Embedded, records};
use crate::store::{
    BurstRecord, Change, Changes, Denial, Denied, JoinToken, KeyRecord, NodeRecord, Records,
    Redeemed, Redemption, StoreError, UserRecord,
};

impl Embedded {
    /// Tells what was changed, if it was.
    fn tell<T>(&self, done: Result<T, StoreError>, news: Change) -> Result<T, StoreError> {
        if done.is_ok() {
            // Without listeners there is nobody to tell.
            drop(self.changes.send(news));
        }
        done
    }
}

#[async_trait]
impl Records for Embedded {
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let news = Change::Key(key.id.clone());
        let key = key.clone();
        let put = self
            .worker
            .ask(move |file| records::put_key(file, &key))
            .await;
        self.tell(put, news)
    }

    async fn swap_key(&self, before: &KeyRecord, after: &KeyRecord) -> Result<bool, StoreError> {
        let news = Change::Key(after.id.clone());
        let (before, after) = (before.clone(), after.clone());
        let swapped = self
            .worker
            .ask(move |file| records::swap_key(file, &before, &after))
            .await;
        self.tell(swapped, news)
    }

    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        let id = id.clone();
        self.worker.ask(move |file| records::key(file, &id)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.worker.ask(records::keys).await
    }

    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError> {
        let news = Change::Key(id.clone());
        let id = id.clone();
        let revoked = self
            .worker
            .ask(move |file| records::revoke_key(file, &id, now_unix))
            .await;
        self.tell(revoked, news)
    }

    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError> {
        let id = id.clone();
        self.worker
            .ask_lightly(move |file| records::touch_key(file, &id, now_unix))
            .await
    }

    async fn create_user(&self, user: &UserRecord) -> Result<UserRecord, StoreError> {
        let news = Change::User(user.id.clone());
        let user = user.clone();
        let made = self
            .worker
            .ask(move |file| records::create_user(file, user))
            .await;
        self.tell(made, news)
    }

    async fn swap_user(&self, before: &UserRecord, after: &UserRecord) -> Result<bool, StoreError> {
        let news = Change::User(after.id.clone());
        let (before, after) = (before.clone(), after.clone());
        let swapped = self
            .worker
            .ask(move |file| records::swap_user(file, &before, &after))
            .await;
        self.tell(swapped, news)
    }

    async fn user(&self, id: &UserId) -> Result<Option<UserRecord>, StoreError> {
        let id = id.clone();
        self.worker.ask(move |file| records::user(file, &id)).await
    }

    async fn users(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserRecord>, StoreError> {
        let after = after.cloned();
        self.worker
            .ask(move |file| records::users(file, after.as_ref(), limit))
            .await
    }

    async fn touch_user(&self, id: &UserId, now_unix: i64) -> Result<(), StoreError> {
        let id = id.clone();
        self.worker
            .ask_lightly(move |file| records::touch_user(file, &id, now_unix))
            .await
    }

    async fn remove_user(&self, id: &UserId) -> Result<bool, StoreError> {
        let news = Change::User(id.clone());
        let id = id.clone();
        let removed = self
            .worker
            .ask(move |file| records::remove_user(file, &id))
            .await;
        self.tell(removed, news)
    }

    async fn deny(&self, denial: &Denial) -> Result<(), StoreError> {
        let denial = denial.clone();
        let put = self
            .worker
            .ask(move |file| records::put_denial(file, &denial))
            .await;
        self.tell(put, Change::Denials)
    }

    async fn undeny(&self, whom: &Denied) -> Result<bool, StoreError> {
        let whom = whom.clone();
        let removed = self
            .worker
            .ask(move |file| records::remove_denial(file, &whom))
            .await;
        self.tell(removed, Change::Denials)
    }

    async fn denials(&self) -> Result<Vec<Denial>, StoreError> {
        self.worker.ask(records::denials).await
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
        let news = Change::Node(node.id.clone());
        let node = node.clone();
        let put = self
            .worker
            .ask(move |file| records::put_node(file, node))
            .await;
        self.tell(put, news)
    }

    async fn swap_node(&self, before: &NodeRecord, after: &NodeRecord) -> Result<bool, StoreError> {
        let news = Change::Node(after.id.clone());
        let (before, after) = (before.clone(), after.clone());
        let swapped = self
            .worker
            .ask(move |file| records::swap_node(file, &before, &after))
            .await;
        self.tell(swapped, news)
    }

    async fn touch_node(&self, id: &NodeId, now_unix: i64) -> Result<(), StoreError> {
        let id = id.clone();
        self.worker
            .ask_lightly(move |file| records::touch_node(file, &id, now_unix))
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
        let news = Change::Node(id.clone());
        let id = id.clone();
        let revoked = self
            .worker
            .ask(move |file| records::revoke_node(file, &id, now_unix))
            .await;
        self.tell(revoked, news)
    }

    async fn swap_burst(
        &self,
        name: &str,
        before: Option<&BurstRecord>,
        after: Option<&BurstRecord>,
    ) -> Result<bool, StoreError> {
        let (name, before, after) = (name.to_owned(), before.cloned(), after.cloned());
        self.worker
            .ask(move |file| records::swap_burst(file, &name, before.as_ref(), after.as_ref()))
            .await
    }

    async fn burst(&self, name: &str) -> Result<Option<BurstRecord>, StoreError> {
        let name = name.to_owned();
        self.worker
            .ask(move |file| records::burst(file, &name))
            .await
    }

    async fn bursts(&self) -> Result<Vec<BurstRecord>, StoreError> {
        self.worker.ask(records::bursts).await
    }

    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError> {
        let name = name.to_owned();
        self.worker
            .ask(move |file| records::secret(file, &name))
            .await
    }
}

#[async_trait]
impl Changes for Embedded {
    fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    async fn publish(&self, change: &Change) -> Result<(), StoreError> {
        self.tell(Ok(()), change.clone())
    }

    /// Nothing is lost between tasks of one process.
    fn watched_until(&self) -> Option<Instant> {
        Some(Instant::now())
    }
}
