//! The store that many proxies share. One script decides an admission by the server's clock; records are JSON in hashes,
//! changed by compare-and-set and sealed, secrets are encrypted: whoever can write to Redis, and nothing else, can refuse or grant
//! quota, but authenticate nobody. The only room that names the Redis driver.

mod away;
mod counting;
mod dial;
mod ledger;
mod link;
mod records;
mod seal;
mod transfer;
mod watch;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use config::ids::Tenant;
use config::secret::Secret;
use config::settings::proxy::Redis as RedisSettings;
use policy::limit::{Counter, Decision};
use redis::Script;

use super::counting::{Reservation, ReservationId, Settlement};
use super::journal::Journal;
use super::{Counting, StoreError};
use crate::observe::metrics::Metrics;
use away::Away;
use counting::Counters;
use link::Link;
use seal::Seal;
use watch::Watch;

pub(super) use counting::Bill;
#[cfg(test)]
pub(super) use counting::Owed;

/// One Redis, and what this proxy may do while it is away.
#[derive(Debug)]
pub struct Redis {
    link: Arc<Link>,
    /// Hears what other proxies changed.
    watch: Arc<Watch>,
    counters: Arc<Counters>,
    away: Arc<Away>,
    prefix: String,
    seal: Seal,
    /// Secrets as last seen: a Redis that lost its data gets them back, so that running proxies and new keys agree.
    known_secrets: Mutex<HashMap<String, Secret<[u8; 32]>>>,
    /// Held while old records are sealed.
    sealing: tokio::sync::Mutex<()>,
    replacing: Script,
    announcing: Script,
    folding: Script,
    noting: Script,
}

impl Redis {
    /// Prepares the connection. An absent server is no error: calls fail until it is there.
    pub async fn open(
        settings: &RedisSettings,
        state_dir: &Path,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let seal = Seal::open(settings, state_dir)?;
        let journal = Journal::open(state_dir)?;
        let link = Link::open(settings).await?;
        let prefix = &settings.prefix;
        let counters = Counters::new(&link, prefix, settings.wait_replicas);
        let away = Away::new(settings, journal, metrics);
        tokio::spawn(away::reconcile(
            Arc::downgrade(&away),
            Arc::downgrade(&counters),
            Arc::downgrade(&link),
        ));
        let store = Self {
            watch: Watch::start(&link, prefix),
            link,
            counters,
            away,
            prefix: prefix.clone(),
            seal,
            known_secrets: Mutex::default(),
            sealing: tokio::sync::Mutex::default(),
            replacing: Script::new(include_str!("redis/replace.lua")),
            announcing: Script::new(include_str!("redis/announce.lua")),
            folding: Script::new(include_str!("redis/fold.lua")),
            noting: Script::new(include_str!("redis/note.lua")),
        };
        if let Err(error) = store.ping().await {
            tracing::warn!(%error, "Redis is away; trying on");
        }
        Ok(store)
    }

    /// One round trip with a script that does nothing: what the line and the server cost by themselves.
    pub async fn run_empty_script(&self) -> Result<(), StoreError> {
        self.counters.run_empty().await
    }
}

#[async_trait]
impl Counting for Redis {
    async fn reserve(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        match self.counters.reserve(reservation, None).await {
            Ok(decision) => {
                self.away.learn(&reservation.counters, &decision);
                Ok(decision)
            }
            Err(cause @ StoreError::Unavailable(_)) => {
                let decision = self.away.reserve(reservation, now_unix_ms, cause).await;
                if decision.is_err() && reservation.lease_ms > 0 {
                    let (counters, refused) = (Arc::clone(&self.counters), reservation.clone());
                    tokio::spawn(async move { counters.withdraw(&refused).await });
                }
                decision
            }
            Err(error) => Err(error),
        }
    }

    async fn settle(&self, settlement: &Settlement, now_unix_ms: u64) -> Result<(), StoreError> {
        self.away.ended(settlement, now_unix_ms)?;
        match self.counters.settle(&Bill::of(settlement), None).await {
            Err(StoreError::Unavailable(_)) => self.away.owe(settlement).await,
            done => done,
        }
    }

    async fn extend(
        &self,
        ids: &[(Tenant, ReservationId)],
        lease_ms: u64,
        now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        for (_, id) in ids {
            self.away.extend(id, lease_ms, now_unix_ms);
        }
        self.counters.extend(ids, lease_ms).await
    }

    async fn look(
        &self,
        tenant: &Tenant,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        match self.counters.look(tenant, counters, None).await {
            Err(cause @ StoreError::Unavailable(_)) => self.away.look(counters, now_unix_ms, cause),
            seen => seen,
        }
    }

    async fn release(
        &self,
        _tenant: &Tenant,
        counters: &[Counter],
        _now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        self.counters.release(counters).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let ping = redis::cmd("PING");
        self.link
            .call(async |line| ping.query_async::<redis::Value>(line).await)
            .await
            .map(drop)
    }
}

#[cfg(test)]
pub(crate) mod tests;
