//! The store that many proxies share. One script decides an admission by the server's clock; records are JSON in hashes,
//! changed by compare-and-set. The only room that names the Redis driver. Nothing under its keys can authenticate anybody: keys
//! and tokens lie there as hashes. (The shared secrets lie there too: Redis belongs to the proxies alone.)

mod ledger;
mod link;
mod records;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use config::ids::Tenant;
use config::secret::Secret;
use config::settings::proxy::{OnFailure, Store as StoreSettings};
use policy::limit::{Counter, Decision, Elastic, Rule};
use policy::quota;
use redis::{AsyncCommands, Script};

use super::counting::{Reservation, ReservationId, Settlement};
use super::memory::{CounterTable, NoDisk};
use super::{Counting, StoreError};
use crate::observe::metrics::Metrics;
use link::Link;
use watch::Watch;

/// One Redis, and counters of our own for when it is away.
#[derive(Debug)]
pub struct Redis {
    link: Arc<Link>,
    /// Hears what other proxies changed.
    watch: Arc<Watch>,
    prefix: String,
    /// `Some`: admissions go on with counters of this process while Redis is away (`on_failure = "open"`).
    alone: Option<Mutex<CounterTable>>,
    /// Secrets as last seen: a Redis that lost its data gets them back, so that running proxies and new keys agree.
    known_secrets: Mutex<HashMap<String, Secret<[u8; 32]>>>,
    admission: Script,
    giving_back: Script,
    replacing: Script,
    announcing: Script,
    folding: Script,
    noting: Script,
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
            OnFailure::Open => Some(Mutex::new(CounterTable::alone(100_000))),
        };
        let link = Arc::new(Link::open(url, *timeout)?);
        let store = Self {
            watch: Watch::start(&link, prefix),
            link,
            prefix: prefix.clone(),
            alone,
            known_secrets: Mutex::default(),
            admission: Script::new(include_str!("redis/admit.lua")),
            giving_back: Script::new(include_str!("redis/give_back.lua")),
            replacing: Script::new(include_str!("redis/replace.lua")),
            announcing: Script::new(include_str!("redis/announce.lua")),
            folding: Script::new(include_str!("redis/fold.lua")),
            noting: Script::new(include_str!("redis/note.lua")),
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
        elastic: Elastic,
        now_us: Option<u64>,
    ) -> Result<Decision, StoreError> {
        let charges = counters.iter().map(|counter| counter.charge(elastic.want));
        let charges: Vec<u64> = charges.collect();
        let invocation = self.invocation(&self.admission, counters, &charges, now_us);
        let answer: Vec<String> = self
            .link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await?;
        Seen::read(&answer)
            .ok_or_else(|| StoreError::Corrupt("the answer of the admission script".into()))?
            .decision(counters, elastic)
    }

    async fn take_back(
        &self,
        counters: &[Counter],
        units: &[u64],
        now_us: Option<u64>,
    ) -> Result<(), StoreError> {
        let invocation = self.invocation(&self.giving_back, counters, units, now_us);
        self.link
            .call(async |connection| invocation.invoke_async(connection).await)
            .await
    }

    fn invocation<'a>(
        &self,
        script: &'a Script,
        counters: &[Counter],
        units: &[u64],
        now_us: Option<u64>,
    ) -> redis::ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        invocation.arg(now_us.map_or_else(String::new, |now| now.to_string()));
        for (counter, units) in counters.iter().zip(units) {
            invocation.key(format!("{}:c:{}", self.prefix, counter.key));
            match counter.rule {
                Rule::Gcra(rate) => invocation
                    .arg("g")
                    .arg(rate.interval_us())
                    .arg(rate.burst_us()),
                Rule::Window(window) => invocation
                    .arg("d")
                    .arg(window.resets_at_ms.saturating_add(3_600_000))
                    .arg(window.limit),
                Rule::Held { limit } => invocation.arg("d").arg(1_u64 << 52).arg(limit),
            };
            invocation.arg(*units);
        }
        invocation
    }
}

#[async_trait]
impl Counting for Redis {
    async fn reserve(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        let decision = self
            .decide(&reservation.counters, reservation.elastic, None)
            .await;
        let Some(alone) = &self.alone else {
            return decision;
        };
        match decision {
            Err(StoreError::Unavailable(_)) => {
                self.metrics.store_open_admission();
                alone
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .reserve(reservation, now_unix_ms, &NoDisk)
            }
            Ok(_) | Err(StoreError::Overloaded | StoreError::Corrupt(_) | StoreError::InUse(_)) => {
                decision
            }
        }
    }

    async fn settle(&self, settlement: &Settlement, now_unix_ms: u64) -> Result<(), StoreError> {
        let counters = &settlement.counters;
        let back: Vec<u64> = counters
            .iter()
            .zip(&settlement.spent)
            .map(|(counter, spent)| counter.charge(0).saturating_sub(*spent))
            .collect();
        match (self.take_back(counters, &back, None).await, &self.alone) {
            (Err(StoreError::Unavailable(_)), Some(alone)) => alone
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .settle(settlement, now_unix_ms, &NoDisk)
                .map(drop),
            (done, _) => done,
        }
    }

    async fn extend(
        &self,
        _ids: &[(Tenant, ReservationId)],
        _lease_ms: u64,
        _now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        Ok(())
    }

    async fn look(
        &self,
        _tenant: &Tenant,
        counters: &[Counter],
        _now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        self.decide(counters, Elastic::default(), None).await
    }

    async fn release(
        &self,
        _tenant: &Tenant,
        counters: &[Counter],
        _now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        let units: Vec<u64> = counters.iter().map(|counter| counter.cost).collect();
        self.take_back(counters, &units, None).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.link
            .call(async |connection| connection.ping::<()>().await)
            .await
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

    fn decision(&self, counters: &[Counter], elastic: Elastic) -> Result<Decision, StoreError> {
        let decision = quota::decide(counters, elastic, &self.stored, self.now_us).decision;
        // Two languages, one arithmetic: a difference is a defect, and the script is what charged.
        if matches!(decision, Decision::Admitted { .. }) != self.admitted {
            return Err(StoreError::Corrupt("script and policy disagree".into()));
        }
        Ok(decision)
    }
}

#[cfg(test)]
pub(crate) mod tests;
