//! Charges requests: all counters or none, and so many open requests a user. What was charged for nothing goes back. The
//! arithmetic is policy's, the numbers are the store's.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use config::settings::proxy::Limits;
use policy::identity::{Principal, Subject};
use policy::limit::{Concurrency, Counter, Kind, concurrent_max, counters, ip_counters};
use policy::open::OpenRequests;
use policy::refusal::Refusal;

use super::Call;
use super::exchange::Exchange;
use crate::observe::metrics::Metrics;
use crate::store::{Store, StoreError};

/// Who asks for what, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Who.
    pub principal: &'a Principal,
    /// From where.
    pub ip: IpAddr,
    /// What it costs from.
    pub kind: Kind,
    /// Unix milliseconds.
    pub now_unix_ms: u64,
}

/// The limits, and the store that counts.
pub struct Admission {
    store: Arc<dyn Store>,
    limits: Arc<ArcSwap<Limits>>,
    open: Arc<Mutex<OpenRequests>>,
    metrics: Arc<Metrics>,
}

impl Admission {
    /// Admits by these limits, which may be swapped while running.
    pub fn new(store: Arc<dyn Store>, limits: Arc<ArcSwap<Limits>>, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            limits,
            open: Arc::default(),
            metrics,
        }
    }

    /// Counts one more open request of the user, until the guard is dropped.
    pub fn enter(
        &self,
        principal: &Principal,
        exchange: &mut Exchange<'_>,
    ) -> Result<OpenRequest, Refusal> {
        let limit = concurrent_max(principal, &self.limits.load());
        let subject = principal.subject();
        let (entered, open) = {
            let mut all = lock(&self.open);
            (all.enter(&subject, limit), all.of(&subject))
        };
        exchange.concurrency(Concurrency { limit, open });
        entered?;
        Ok(OpenRequest {
            open: Arc::clone(&self.open),
            subject,
        })
    }

    /// Charges a request.
    pub async fn charge(
        &self,
        asking: Asking<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<Charged, Refusal> {
        let counters = self.counters(asking);
        let decision = self.store.admit(&counters, asking.now_unix_ms).await;
        let decision = decision.map_err(|error| self.store_away(&error))?;
        exchange.limits(decision.states());
        if let Some(refusal) = decision.refusal() {
            if let Refusal::RateLimited { state, .. } | Refusal::QuotaExceeded { state, .. } =
                &refusal
            {
                self.metrics.limit_rejection(state.name);
            }
            return Err(refusal);
        }
        Ok(Charged { counters })
    }

    /// Reads where the limits stand and charges nothing: a request refused for another reason tells them too.
    pub async fn look(&self, asking: Asking<'_>, exchange: &mut Exchange<'_>) {
        let counters = self.counters(asking);
        self.read(counters, asking.now_unix_ms, exchange).await;
    }

    /// The same for somebody unknown: only the address has limits yet. The guard bounds how often this is asked.
    pub async fn look_at_address(&self, call: &Call, exchange: &mut Exchange<'_>) {
        let counters = ip_counters(call.ip, Kind::Text, &self.limits.load());
        self.read(counters, call.unix_ms, exchange).await;
    }

    async fn read(
        &self,
        mut counters: Vec<Counter>,
        now_unix_ms: u64,
        exchange: &mut Exchange<'_>,
    ) {
        for counter in &mut counters {
            counter.cost = 0;
        }
        match self.store.admit(&counters, now_unix_ms).await {
            Ok(decision) => exchange.limits(decision.states()),
            // The answer is an error already; without these headers it is still right.
            Err(error) => self.metrics.store_error(error.label()),
        }
    }

    /// Gives back what was charged for a request that nobody answered.
    pub async fn give_back(&self, charged: &Charged, now_unix_ms: u64) {
        if let Err(error) = self.store.give_back(&charged.counters, now_unix_ms).await {
            self.metrics.store_error(error.label());
            tracing::warn!(%error, "a request that was not answered stays charged");
        }
    }

    /// Tokens generated when a request sets no maximum.
    pub fn max_tokens_default(&self) -> u32 {
        self.limits.load().max_tokens_default
    }

    fn counters(&self, asking: Asking<'_>) -> Vec<Counter> {
        let Asking {
            principal,
            ip,
            kind,
            now_unix_ms,
        } = asking;
        counters(principal, ip, kind, &self.limits.load(), now_unix_ms)
    }

    fn store_away(&self, error: &StoreError) -> Refusal {
        self.metrics.store_error(error.label());
        tracing::warn!(%error, "a request could not be admitted");
        Refusal::StoreAway
    }
}

/// What a request was charged to.
#[derive(Debug)]
pub struct Charged {
    counters: Vec<Counter>,
}

/// One open request of a user.
#[derive(Debug)]
pub struct OpenRequest {
    open: Arc<Mutex<OpenRequests>>,
    subject: Subject,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        lock(&self.open).leave(&self.subject);
    }
}

fn lock(open: &Mutex<OpenRequests>) -> MutexGuard<'_, OpenRequests> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
