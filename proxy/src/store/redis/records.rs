//! The records in Redis: JSON in hashes, changed by compare-and-set in one script that tells the other proxies too. All of one
//! deployment's records lie in one slot (`{prefix}`), so that the script runs on a cluster. Counts nothing.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use async_trait::async_trait;
use config::ids::{KeyId, NodeId, UserId};
use config::secret::Secret;
use redis::AsyncCommands;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::Redis;
use super::seal::Seal;
use super::watch::{channel, version};
use crate::store::{
    BurstRecord, Change, Changes, Denial, Denied, JoinToken, KeyRecord, NodeRecord, Records,
    Redeemed, Redemption, StoreError, UserRecord, local,
};

/// Tries of a compare-and-set; each failure means that somebody else succeeded.
const TRIES_MAX: usize = 16;
/// The hashes.
const KEYS: &str = "keys";
const USERS: &str = "users";
/// Ids of [`USERS`] in order, for pages.
const USERS_INDEX: &str = "users_index";
const DENIALS: &str = "denials";
const JOIN_TOKENS: &str = "join_tokens";
const NODES: &str = "nodes";
const BURSTS: &str = "bursts";
const SECRETS: &str = "secrets";
/// What has seals.
const SEALED: [&str; 6] = [KEYS, USERS, DENIALS, JOIN_TOKENS, NODES, BURSTS];

impl Redis {
    fn secrets(&self) -> MutexGuard<'_, HashMap<String, Secret<[u8; 32]>>> {
        self.known_secrets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A secret that Redis gets when it is asked for and not there.
    pub(super) fn remember_secret(&self, name: &str, secret: &Secret<[u8; 32]>) {
        self.secrets().insert(name.to_owned(), secret.clone());
    }

    /// All secrets, by name.
    pub(super) async fn all_secrets(&self) -> Result<Vec<(String, Secret<[u8; 32]>)>, StoreError> {
        self.seal_all().await?;
        let mut texts = self.texts(SECRETS).await?;
        texts.sort();
        texts
            .into_iter()
            .map(|(name, text)| {
                let secret = self.seal.decrypt(&name, &text)?;
                Ok((name, secret))
            })
            .collect()
    }

    fn hash(&self, records: &str) -> String {
        format!("{{{}}}:{records}", self.prefix)
    }

    async fn text(&self, records: &str, id: &str) -> Result<Option<String>, StoreError> {
        self.seal_all().await?;
        let hash = self.hash(records);
        self.link
            .call(async |connection| connection.hget(&hash, id).await)
            .await
    }

    async fn one<T: DeserializeOwned>(
        &self,
        records: &str,
        id: &str,
    ) -> Result<Option<T>, StoreError> {
        let text = self.text(records, id).await?;
        text.map(|text| self.parse(records, id, &text)).transpose()
    }

    async fn all<T: DeserializeOwned>(&self, records: &str) -> Result<Vec<T>, StoreError> {
        self.seal_all().await?;
        let mut found = self.texts(records).await?;
        found.sort();
        found
            .iter()
            .map(|(id, text)| self.parse(records, id, text))
            .collect()
    }

    async fn texts(&self, records: &str) -> Result<Vec<(String, String)>, StoreError> {
        let hash = self.hash(records);
        self.link
            .call_at_leisure(async |connection| connection.hgetall(&hash).await)
            .await
    }

    /// Seals what was written before there were seals, once; from then on nothing else is believed. A Redis whose secrets are
    /// encrypted has been through this, so what has no seal there was written by somebody else.
    async fn seal_all(&self) -> Result<(), StoreError> {
        if self.seal.is_strict() {
            return Ok(());
        }
        let _one_at_a_time = self.sealing.lock().await;
        if self.seal.is_strict() {
            return Ok(());
        }
        let secrets = self.texts(SECRETS).await?;
        if !secrets.iter().any(|(_, text)| Seal::is_sealed(text)) {
            for records in SEALED {
                for (id, text) in self.texts(records).await? {
                    if !Seal::is_sealed(&text) {
                        let sealed = self.seal.seal((records, &id), &text);
                        // Who was faster sealed it too, or is asked again after the next start.
                        self.replace((records, &id), (&text, &sealed), None).await?;
                    }
                }
            }
            // The last step: a crash before it begins anew.
            for (name, text) in secrets {
                let secret = self.seal.decrypt(&name, &text)?;
                let sealed = self.seal.encrypt(&name, secret.expose())?;
                self.replace((SECRETS, &name), (&text, &sealed), None)
                    .await?;
            }
        }
        self.seal.be_strict()
    }

    fn parse<T: DeserializeOwned>(
        &self,
        records: &str,
        id: &str,
        text: &str,
    ) -> Result<T, StoreError> {
        let json = self.seal.unseal((records, id), text)?;
        serde_json::from_str(json)
            .map_err(|error| StoreError::Corrupt(format!("{records}/{id}: {error}")))
    }

    fn sealed<T: Serialize>(
        &self,
        records: &str,
        id: &str,
        record: &T,
    ) -> Result<String, StoreError> {
        let json = json(records, id, record)?;
        Ok(self.seal.seal((records, id), &json))
    }

    /// Reads, changes, and writes if nobody else wrote in between; else again. `change` gets `None` when there is no record,
    /// and returns `None` to leave things as they are. `news` is told to all proxies if something changed.
    async fn change<T: DeserializeOwned + Serialize>(
        &self,
        (records, id): (&str, &str),
        news: Option<&Change>,
        mut change: impl FnMut(Option<T>) -> Option<T> + Send,
    ) -> Result<Option<T>, StoreError> {
        for _ in 0..TRIES_MAX {
            let before = self.text(records, id).await?;
            let known = before
                .as_deref()
                .map(|text| self.parse(records, id, text))
                .transpose()?;
            let Some(record) = change(known) else {
                return Ok(None);
            };
            let after = self.sealed(records, id, &record)?;
            let before = before.unwrap_or_default();
            if before == after || self.replace((records, id), (&before, &after), news).await? {
                return Ok(Some(record));
            }
        }
        Err(StoreError::Overloaded)
    }

    /// Writes `after` ('' removes) if what stands there reads as `before`.
    async fn swap<T: DeserializeOwned + Serialize + PartialEq>(
        &self,
        (records, id): (&str, &str),
        news: &Change,
        (before, after): (&T, &T),
    ) -> Result<bool, StoreError> {
        let Some(text) = self.text(records, id).await? else {
            return Ok(false);
        };
        // Compared as records: a version before this one may have written fewer members.
        if self.parse::<T>(records, id, &text)? != *before {
            return Ok(false);
        }
        let after = self.sealed(records, id, after)?;
        self.replace((records, id), (&text, &after), Some(news))
            .await
    }

    async fn replace(
        &self,
        (records, id): (&str, &str),
        (before, after): (&str, &str),
        news: Option<&Change>,
    ) -> Result<bool, StoreError> {
        let mut invocation = self.replacing.prepare_invoke();
        invocation
            .key(self.hash(records))
            .key(version(&self.prefix));
        if records == USERS {
            invocation.key(self.hash(USERS_INDEX));
        }
        let news = news.map_or_else(|| Ok(String::new()), |news| json("changes", "", news))?;
        invocation
            .arg(id)
            .arg(before)
            .arg(after)
            .arg(channel(&self.prefix))
            .arg(news);
        self.link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await
    }

    async fn remove(&self, (records, id): (&str, &str), news: &Change) -> Result<bool, StoreError> {
        for _ in 0..TRIES_MAX {
            let Some(before) = self.text(records, id).await? else {
                return Ok(false);
            };
            if self
                .replace((records, id), (&before, ""), Some(news))
                .await?
            {
                return Ok(true);
            }
        }
        Err(StoreError::Overloaded)
    }
}

#[async_trait]
impl Records for Redis {
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        let news = Change::Key(key.id.clone());
        self.change((KEYS, key.id.as_str()), Some(&news), |_| Some(key.clone()))
            .await
            .map(drop)
    }

    async fn swap_key(&self, before: &KeyRecord, after: &KeyRecord) -> Result<bool, StoreError> {
        let news = Change::Key(after.id.clone());
        self.swap((KEYS, after.id.as_str()), &news, (before, after))
            .await
    }

    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.one(KEYS, id.as_str()).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.all(KEYS).await
    }

    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError> {
        let news = Change::Key(id.clone());
        self.change(
            (KEYS, id.as_str()),
            Some(&news),
            |known: Option<KeyRecord>| {
                let mut key = known?;
                key.revoked_unix.get_or_insert(now_unix);
                Some(key)
            },
        )
        .await
    }

    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError> {
        self.change((KEYS, id.as_str()), None, |known: Option<KeyRecord>| {
            let mut key = known?;
            key.last_used_unix = key.last_used_unix.max(Some(now_unix));
            Some(key)
        })
        .await
        .map(drop)
    }

    async fn create_user(&self, user: &UserRecord) -> Result<UserRecord, StoreError> {
        let news = Change::User(user.id.clone());
        let made = self
            .change(
                (USERS, user.id.as_str()),
                Some(&news),
                |known: Option<UserRecord>| Some(known.unwrap_or_else(|| user.clone())),
            )
            .await?;
        Ok(made.unwrap_or_else(|| user.clone()))
    }

    async fn swap_user(&self, before: &UserRecord, after: &UserRecord) -> Result<bool, StoreError> {
        let news = Change::User(after.id.clone());
        self.swap((USERS, after.id.as_str()), &news, (before, after))
            .await
    }

    async fn user(&self, id: &UserId) -> Result<Option<UserRecord>, StoreError> {
        self.one(USERS, id.as_str()).await
    }

    async fn users(
        &self,
        after: Option<&UserId>,
        limit: usize,
    ) -> Result<Vec<UserRecord>, StoreError> {
        self.seal_all().await?;
        let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        let index = self.hash(USERS_INDEX);
        let count = isize::try_from(limit).unwrap_or(isize::MAX);
        let ids: Vec<String> = self
            .link
            .call(async |connection| {
                connection
                    .zrangebylex_limit(&index, &from, "+", 0, count)
                    .await
            })
            .await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let hash = self.hash(USERS);
        let texts: Vec<Option<String>> = self
            .link
            .call(async |connection| connection.hmget(&hash, &ids).await)
            .await?;
        ids.iter()
            .zip(texts)
            .filter_map(|(id, text)| text.map(|text| self.parse(USERS, id, &text)))
            .collect()
    }

    async fn touch_user(&self, id: &UserId, now_unix: i64) -> Result<(), StoreError> {
        self.change((USERS, id.as_str()), None, |known: Option<UserRecord>| {
            let mut user = known?;
            user.last_seen_unix = user.last_seen_unix.max(now_unix);
            Some(user)
        })
        .await
        .map(drop)
    }

    async fn remove_user(&self, id: &UserId) -> Result<bool, StoreError> {
        self.remove((USERS, id.as_str()), &Change::User(id.clone()))
            .await
    }

    async fn deny(&self, denial: &Denial) -> Result<(), StoreError> {
        let text = denial.whom.text();
        self.change((DENIALS, &text), Some(&Change::Denials), |_| {
            Some(denial.clone())
        })
        .await
        .map(drop)
    }

    async fn undeny(&self, whom: &Denied) -> Result<bool, StoreError> {
        self.remove((DENIALS, &whom.text()), &Change::Denials).await
    }

    async fn denials(&self) -> Result<Vec<Denial>, StoreError> {
        self.all(DENIALS).await
    }

    async fn put_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        self.change((JOIN_TOKENS, &token.id), None, |_| Some(token.clone()))
            .await
            .map(drop)
    }

    async fn redeem_join_token(
        &self,
        redemption: &Redemption,
        now_unix: i64,
    ) -> Result<Redeemed, StoreError> {
        let mut redeemed = Redeemed::Unknown;
        self.change(
            (JOIN_TOKENS, &redemption.id),
            None,
            |known: Option<JoinToken>| {
                let mut token = known?;
                redeemed = token.redeem(redemption, now_unix);
                Some(token)
            },
        )
        .await?;
        Ok(redeemed)
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.all(JOIN_TOKENS).await
    }

    async fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError> {
        let news = Change::Node(node.id.clone());
        self.change(
            (NODES, node.id.as_str()),
            Some(&news),
            |known: Option<NodeRecord>| {
                let mut node = node.clone();
                node.revoked_unix = known
                    .and_then(|known| known.revoked_unix)
                    .or(node.revoked_unix);
                Some(node)
            },
        )
        .await
        .map(drop)
    }

    async fn swap_node(&self, before: &NodeRecord, after: &NodeRecord) -> Result<bool, StoreError> {
        let news = Change::Node(after.id.clone());
        self.swap((NODES, after.id.as_str()), &news, (before, after))
            .await
    }

    async fn touch_node(&self, id: &NodeId, now_unix: i64) -> Result<(), StoreError> {
        self.change((NODES, id.as_str()), None, |known: Option<NodeRecord>| {
            let mut node = known?;
            node.last_seen_unix = node.last_seen_unix.max(Some(now_unix));
            Some(node)
        })
        .await
        .map(drop)
    }

    async fn node(&self, id: &NodeId) -> Result<Option<NodeRecord>, StoreError> {
        self.one(NODES, id.as_str()).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.all(NODES).await
    }

    async fn revoke_node(
        &self,
        id: &NodeId,
        now_unix: i64,
    ) -> Result<Option<NodeRecord>, StoreError> {
        let news = Change::Node(id.clone());
        self.change(
            (NODES, id.as_str()),
            Some(&news),
            |known: Option<NodeRecord>| {
                let mut node = known?;
                node.revoked_unix.get_or_insert(now_unix);
                Some(node)
            },
        )
        .await
    }

    async fn swap_burst(
        &self,
        name: &str,
        before: Option<&BurstRecord>,
        after: Option<&BurstRecord>,
    ) -> Result<bool, StoreError> {
        let text = self.text(BURSTS, name).await?;
        let known = text.as_deref();
        let known = known
            .map(|text| self.parse::<BurstRecord>(BURSTS, name, text))
            .transpose()?;
        if known.as_ref() != before {
            return Ok(false);
        }
        let after = match after {
            Some(after) => self.sealed(BURSTS, name, after)?,
            None => String::new(),
        };
        let text = text.unwrap_or_default();
        self.replace((BURSTS, name), (&text, &after), None).await
    }

    async fn burst(&self, name: &str) -> Result<Option<BurstRecord>, StoreError> {
        self.one(BURSTS, name).await
    }

    async fn bursts(&self) -> Result<Vec<BurstRecord>, StoreError> {
        self.all(BURSTS).await
    }

    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError> {
        self.seal_all().await?;
        let hash = self.hash(SECRETS);
        let known = self.secrets().get(name).cloned();
        let proposal = match &known {
            Some(known) => known.clone(),
            None => local::random()?,
        };
        let proposal = self.seal.encrypt(name, proposal.expose())?;
        let made: bool = self
            .link
            .call(async |connection| connection.hset_nx(&hash, name, &proposal).await)
            .await?;
        if made && known.is_some() {
            tracing::warn!(
                name,
                "Redis had lost a secret of this proxy; it has it again"
            );
        }
        let text = self.text(SECRETS, name).await?.unwrap_or_default();
        let secret = self.seal.decrypt(name, &text)?;
        self.secrets().insert(name.to_owned(), secret.clone());
        Ok(secret)
    }
}

#[async_trait]
impl Changes for Redis {
    fn changes(&self) -> broadcast::Receiver<Change> {
        self.watch.changes()
    }

    async fn publish(&self, change: &Change) -> Result<(), StoreError> {
        let mut invocation = self.announcing.prepare_invoke();
        invocation
            .key(version(&self.prefix))
            .arg(channel(&self.prefix))
            .arg(json("changes", "", change)?);
        self.link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await
    }

    fn watched_until(&self) -> Option<Instant> {
        self.watch.watched_until()
    }
}

fn json<T: Serialize>(records: &str, id: &str, record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record)
        .map_err(|error| StoreError::Corrupt(format!("{records}/{id}: {error}")))
}
