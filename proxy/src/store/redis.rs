//! The store that many proxies share. One script decides an admission by the server's clock; records are JSON in hashes,
//! changed by compare-and-set. The only room that names the Redis driver. Nothing under its keys can authenticate anybody: keys
//! and tokens lie there as hashes. (The shared secrets lie there too: Redis belongs to the proxies alone.)

mod link;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use config::ids::{KeyId, NodeId};
use config::secret::Secret;
use config::settings::proxy::{OnFailure, Store as StoreSettings};
use policy::limit::{Counter, Decision, Rule};
use policy::quota;
use redis::{AsyncCommands, Script};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::memory::CounterTable;
use super::{
    Counting, JoinToken, KeyRecord, NodeRecord, Records, Redeemed, Redemption, StoreError, local,
};
use crate::observe::metrics::Metrics;
use link::Link;

/// Tries of a compare-and-set; each failure means that somebody else succeeded.
const TRIES_MAX: usize = 16;
/// The hashes.
const KEYS: &str = "keys";
const JOIN_TOKENS: &str = "join_tokens";
const NODES: &str = "nodes";
const SECRETS: &str = "secrets";

/// One Redis, and counters of our own for when it is away.
#[derive(Debug)]
pub struct Redis {
    link: Link,
    prefix: String,
    /// `Some`: admissions go on with counters of this process while Redis is away (`on_failure = "open"`).
    alone: Option<Mutex<CounterTable>>,
    /// Secrets as last seen: a Redis that lost its data gets them back, so that running proxies and new keys agree.
    known_secrets: Mutex<HashMap<String, Secret<[u8; 32]>>>,
    admission: Script,
    giving_back: Script,
    replacing: Script,
    metrics: Arc<Metrics>,
}

impl Redis {
    /// Prepares the connection. An absent server is no error: calls fail until it is there.
    pub async fn open(settings: &StoreSettings, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let StoreSettings::Redis {
            url,
            prefix,
            timeout,
            on_failure,
        } = settings
        else {
            return Err(StoreError::Unavailable("no Redis is configured".into()));
        };
        let alone = match on_failure {
            OnFailure::Closed => None,
            OnFailure::Open => Some(Mutex::default()),
        };
        let store = Self {
            link: Link::open(url, *timeout)?,
            prefix: prefix.clone(),
            alone,
            known_secrets: Mutex::default(),
            admission: Script::new(include_str!("redis/admit.lua")),
            giving_back: Script::new(include_str!("redis/give_back.lua")),
            replacing: Script::new(include_str!("redis/replace.lua")),
            metrics,
        };
        if let Err(error) = store.ping().await {
            tracing::warn!(%error, "Redis is away; trying on");
        }
        Ok(store)
    }

    /// An admission at the given time, or at the server's.
    async fn decide(
        &self,
        counters: &[Counter],
        now_us: Option<u64>,
    ) -> Result<Decision, StoreError> {
        let invocation = self.invocation(&self.admission, counters, now_us);
        let answer: Vec<String> = self
            .link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await?;
        Seen::read(&answer)
            .ok_or_else(|| StoreError::Corrupt("the answer of the admission script".into()))?
            .decision(counters)
    }

    async fn take_back(&self, counters: &[Counter], now_us: Option<u64>) -> Result<(), StoreError> {
        let invocation = self.invocation(&self.giving_back, counters, now_us);
        self.link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await
    }

    fn invocation<'a>(
        &self,
        script: &'a Script,
        counters: &[Counter],
        now_us: Option<u64>,
    ) -> redis::ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        invocation.arg(now_us.map_or_else(String::new, |now| now.to_string()));
        for counter in counters {
            invocation.key(format!("{}:c:{}", self.prefix, counter.key));
            match counter.rule {
                Rule::Gcra(rate) => invocation
                    .arg("g")
                    .arg(rate.interval_us())
                    .arg(rate.burst_us()),
                Rule::Day(day) => invocation
                    .arg("d")
                    .arg(quota::step(counter, None, 0).expires_at_ms)
                    .arg(day.limit),
            };
            invocation.arg(counter.cost);
        }
        invocation
    }

    fn secrets(&self) -> MutexGuard<'_, HashMap<String, Secret<[u8; 32]>>> {
        self.known_secrets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, records: &str) -> String {
        format!("{}:{records}", self.prefix)
    }

    async fn text(&self, records: &str, id: &str) -> Result<Option<String>, StoreError> {
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
        text.map(|text| parse(records, id, &text)).transpose()
    }

    async fn all<T: DeserializeOwned>(&self, records: &str) -> Result<Vec<T>, StoreError> {
        let hash = self.hash(records);
        let mut found: Vec<(String, String)> = self
            .link
            .call(async |connection| connection.hgetall(&hash).await)
            .await?;
        found.sort();
        found
            .iter()
            .map(|(id, text)| parse(records, id, text))
            .collect()
    }

    /// Reads, changes, and writes if nobody else wrote in between; else again. `change` gets `None` when there is no record,
    /// and returns `None` to leave things as they are.
    async fn change<T: DeserializeOwned + Serialize>(
        &self,
        records: &str,
        id: &str,
        mut change: impl FnMut(Option<T>) -> Option<T> + Send,
    ) -> Result<Option<T>, StoreError> {
        let hash = self.hash(records);
        for _ in 0..TRIES_MAX {
            let before = self.text(records, id).await?;
            let known = before
                .as_deref()
                .map(|text| parse(records, id, text))
                .transpose()?;
            let Some(record) = change(known) else {
                return Ok(None);
            };
            let after = serde_json::to_string(&record)
                .map_err(|error| StoreError::Corrupt(format!("{records}/{id}: {error}")))?;
            let before = before.unwrap_or_default();
            if before == after {
                return Ok(Some(record));
            }
            let mut invocation = self.replacing.prepare_invoke();
            invocation.key(&hash).arg(id).arg(before).arg(after);
            let replaced: bool = self
                .link
                .call(async |connection| invocation.invoke_async(connection).await)
                .await?;
            if replaced {
                return Ok(Some(record));
            }
        }
        Err(StoreError::Overloaded)
    }
}

#[async_trait]
impl Counting for Redis {
    async fn admit(&self, counters: &[Counter], now_unix_ms: u64) -> Result<Decision, StoreError> {
        let decision = self.decide(counters, None).await;
        let Some(alone) = &self.alone else {
            return decision;
        };
        match decision {
            Err(StoreError::Unavailable(_)) => {
                self.metrics.store_open_admission();
                alone
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .admit(counters, now_unix_ms)
            }
            Ok(_) | Err(StoreError::Overloaded | StoreError::Corrupt(_) | StoreError::InUse(_)) => {
                decision
            }
        }
    }

    async fn give_back(&self, counters: &[Counter], _now_unix_ms: u64) -> Result<(), StoreError> {
        match (self.take_back(counters, None).await, &self.alone) {
            (Err(StoreError::Unavailable(_)), Some(alone)) => {
                alone
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .give_back(counters);
                Ok(())
            }
            (done, _) => done,
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.link
            .call(async |connection| connection.ping::<()>().await)
            .await
    }
}

#[async_trait]
impl Records for Redis {
    async fn put_key(&self, key: &KeyRecord) -> Result<(), StoreError> {
        self.change(KEYS, key.id.as_str(), |_| Some(key.clone()))
            .await
            .map(drop)
    }

    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.one(KEYS, id.as_str()).await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.all(KEYS).await
    }

    async fn revoke_key(&self, id: &KeyId, now_unix: i64) -> Result<Option<KeyRecord>, StoreError> {
        self.change(KEYS, id.as_str(), |known: Option<KeyRecord>| {
            let mut key = known?;
            key.revoked_unix.get_or_insert(now_unix);
            Some(key)
        })
        .await
    }

    async fn touch_key(&self, id: &KeyId, now_unix: i64) -> Result<(), StoreError> {
        self.change(KEYS, id.as_str(), |known: Option<KeyRecord>| {
            let mut key = known?;
            key.last_used_unix = key.last_used_unix.max(Some(now_unix));
            Some(key)
        })
        .await
        .map(drop)
    }

    async fn put_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        self.change(JOIN_TOKENS, &token.id, |_| Some(token.clone()))
            .await
            .map(drop)
    }

    async fn redeem_join_token(
        &self,
        redemption: &Redemption,
        now_unix: i64,
    ) -> Result<Redeemed, StoreError> {
        let mut redeemed = Redeemed::Unknown;
        self.change(JOIN_TOKENS, &redemption.id, |known: Option<JoinToken>| {
            let mut token = known?;
            redeemed = token.redeem(redemption, now_unix);
            Some(token)
        })
        .await?;
        Ok(redeemed)
    }

    async fn join_tokens(&self) -> Result<Vec<JoinToken>, StoreError> {
        self.all(JOIN_TOKENS).await
    }

    async fn put_node(&self, node: &NodeRecord) -> Result<(), StoreError> {
        self.change(NODES, node.id.as_str(), |known: Option<NodeRecord>| {
            let mut node = node.clone();
            node.revoked_unix = known
                .and_then(|known| known.revoked_unix)
                .or(node.revoked_unix);
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
        self.change(NODES, id.as_str(), |known: Option<NodeRecord>| {
            let mut node = known?;
            node.revoked_unix.get_or_insert(now_unix);
            Some(node)
        })
        .await
    }

    async fn secret(&self, name: &str) -> Result<Secret<[u8; 32]>, StoreError> {
        let hash = self.hash(SECRETS);
        let known = self.secrets().get(name).cloned();
        let proposal = match &known {
            Some(known) => hex::encode(known.expose()),
            None => hex::encode(local::random()?.expose()),
        };
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
        let mut bytes = [0_u8; 32];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| StoreError::Corrupt(format!("{SECRETS}/{name}")))?;
        let secret = Secret::new(bytes);
        self.secrets().insert(name.to_owned(), secret.clone());
        Ok(secret)
    }
}

/// The table as the script saw it; policy says what that means for every counter.
struct Seen {
    now_us: u64,
    admitted: bool,
    stored: Vec<Option<u64>>,
}

impl Seen {
    fn read(answer: &[String]) -> Option<Self> {
        let [now_us, admitted, stored @ ..] = answer else {
            return None;
        };
        let stored = stored.iter().map(|text| match text.as_str() {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        });
        Some(Self {
            now_us: now_us.parse().ok()?,
            admitted: admitted == "1",
            stored: stored.collect::<Option<_>>()?,
        })
    }

    fn decision(&self, counters: &[Counter]) -> Result<Decision, StoreError> {
        let decision = quota::decide(counters, &self.stored, self.now_us).decision;
        // Two languages, one arithmetic: a difference is a defect, and the script is what charged.
        if matches!(decision, Decision::Admitted { .. }) != self.admitted {
            return Err(StoreError::Corrupt("script and policy disagree".into()));
        }
        Ok(decision)
    }
}

fn parse<T: DeserializeOwned>(records: &str, id: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt(format!("{records}/{id}: {error}")))
}

#[cfg(test)]
pub(crate) mod tests;
