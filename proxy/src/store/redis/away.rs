//! While Redis is away: nobody, everybody by this proxy's own count, or those with a share of it; and the journal, from which every
//! settlement of that time is sent when Redis is back, once an id. Decides nothing while Redis answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use config::settings::proxy::{OnFailure, Redis as RedisSettings};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use policy::limit::{Counter, Decision};

use super::counting::{Bill, Counters};
use super::link::Link;
use crate::observe::metrics::Metrics;
use crate::store::StoreError;
use crate::store::counting::{Reservation, ReservationId, Settlement};
use crate::store::journal::{Journal, Left};
use crate::store::lease::{Shares, word};
use crate::store::memory::{CounterTable, NoDisk};

/// Bills that are on their way to Redis at once.
const SENT_AT_ONCE: usize = 64;
/// Between two looks at the journal.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Requests that were admitted here and still run, at most.
const RUNNING_MAX: usize = 100_000;
/// Subjects in memory while this proxy counts alone.
const SUBJECTS_MAX: usize = 100_000;

/// What this proxy may do alone.
#[derive(Debug)]
pub(super) struct Away {
    mode: OnFailure,
    alone: Mutex<Alone>,
    shares: Mutex<Shares>,
    journal: Arc<Journal>,
    metrics: Arc<Metrics>,
}

/// What it did alone since Redis went.
#[derive(Debug)]
struct Alone {
    table: CounterTable,
    /// Requests that run, with the counters as they were charged.
    running: HashMap<ReservationId, Vec<Counter>>,
    /// Shares that stand in the journal.
    noted: HashSet<Arc<str>>,
    is_used: bool,
}

impl Alone {
    fn new() -> Self {
        Self {
            table: CounterTable::alone(SUBJECTS_MAX),
            running: HashMap::new(),
            noted: HashSet::new(),
            is_used: false,
        }
    }
}

impl Away {
    /// With what an earlier run left in the journal.
    pub(super) fn new(
        settings: &RedisSettings,
        (journal, left): (Arc<Journal>, Left),
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let gauge = |unit| metrics.store_lease_units(unit);
        let mut shares = Shares::new(settings.lease_percent, settings.leases_max, gauge);
        let mut alone = Alone::new();
        for (key, (unit, units)) in left.shares {
            shares.restore(&key, &unit, units);
            alone.is_used = true;
            // What it said when it was written stands in the journal already.
            alone.noted.insert(key);
        }
        Arc::new(Self {
            mode: settings.on_failure,
            alone: Mutex::new(alone),
            shares: Mutex::new(shares),
            journal,
            metrics,
        })
    }

    /// Redis said where these counters stand.
    pub(super) fn learn(&self, counters: &[Counter], decision: &Decision) {
        // Until the journal is empty Redis does not know all, and what it says is left may be spent already.
        if self.mode == OnFailure::Lease && !self.alone().is_used {
            self.shares().learn(counters, decision.states());
        }
    }

    /// An admission without Redis.
    pub(super) async fn reserve(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
        cause: StoreError,
    ) -> Result<Decision, StoreError> {
        let counters = match self.mode {
            OnFailure::Closed => return Err(cause),
            OnFailure::Open => reservation.counters.clone(),
            OnFailure::Lease => self.shares().scaled(&reservation.counters).ok_or_else(|| {
                StoreError::Unavailable(format!(
                    "{cause}; and this proxy holds no share of the caller's limits, as the caller was not here lately"
                ))
            })?,
        };
        let decision = self.charge(reservation, &counters, now_unix_ms)?;
        if !decision.is_admitted() && self.mode == OnFailure::Lease {
            return Err(StoreError::Unavailable(format!(
                "{cause}; and this proxy's share of the caller's limits is spent until Redis is back"
            )));
        }
        self.metrics.store_open_admission();
        if decision.is_admitted() && reservation.lease_ms == 0 {
            self.owe_final(reservation).await?;
        }
        Ok(told(decision, &reservation.counters))
    }

    /// Charges the table, and writes down what a restart must know.
    fn charge(
        &self,
        reservation: &Reservation,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        let mut alone = self.alone();
        if alone.running.len() >= RUNNING_MAX {
            return Err(StoreError::Overloaded);
        }
        if self.mode == OnFailure::Lease {
            self.note(&mut alone, counters)?;
        }
        let scaled = Reservation {
            counters: counters.to_vec(),
            ..reservation.clone()
        };
        alone.is_used = true;
        let decision = alone.table.reserve(&scaled, now_unix_ms, &NoDisk)?;
        if decision.is_admitted() && reservation.lease_ms > 0 {
            if self.mode == OnFailure::Lease {
                let charges = counters
                    .iter()
                    .map(|one| (Arc::clone(&one.key), one.charge(decision.granted())));
                self.journal
                    .admitted(&reservation.id.to_string(), charges.collect())?;
            }
            alone.running.insert(reservation.id, scaled.counters);
        }
        Ok(decision)
    }

    fn note(&self, alone: &mut Alone, counters: &[Counter]) -> Result<(), StoreError> {
        for counter in counters {
            if !alone.noted.contains(&counter.key) {
                let units = counter.rule.limit();
                self.journal
                    .share(&counter.key, word(counter.unit), units)?;
                alone.noted.insert(Arc::clone(&counter.key));
            }
        }
        Ok(())
    }

    /// A charge that nobody settles.
    async fn owe_final(&self, reservation: &Reservation) -> Result<(), StoreError> {
        let counters = &reservation.counters;
        let settlement = Settlement {
            id: reservation.id,
            tenant: reservation.tenant.clone(),
            counters: counters.clone(),
            spent: counters
                .iter()
                .map(|counter| counter.charge(reservation.elastic.want))
                .collect(),
            entry: None,
        };
        self.owe(&settlement).await
    }

    /// Where counters stand without Redis.
    pub(super) fn look(
        &self,
        counters: &[Counter],
        now_unix_ms: u64,
        cause: StoreError,
    ) -> Result<Decision, StoreError> {
        let scaled = match self.mode {
            OnFailure::Closed => None,
            OnFailure::Open => Some(counters.to_vec()),
            OnFailure::Lease => self.shares().scaled(counters),
        };
        let scaled = scaled.ok_or(cause)?;
        let decision = self.alone().table.look(&scaled, now_unix_ms, &NoDisk)?;
        Ok(told(decision, counters))
    }

    /// A request that was admitted here has ended: its place is free. Redis, or the journal, charges it.
    pub(super) fn ended(
        &self,
        settlement: &Settlement,
        now_unix_ms: u64,
    ) -> Result<(), StoreError> {
        let mut alone = self.alone();
        let Some(counters) = alone.running.remove(&settlement.id) else {
            return Ok(());
        };
        let scaled = Settlement {
            counters,
            entry: None,
            ..settlement.clone()
        };
        alone.table.settle(&scaled, now_unix_ms, &NoDisk).map(drop)
    }

    /// Requests that were admitted here still run.
    pub(super) fn extend(&self, id: &ReservationId, lease_ms: u64, now_unix_ms: u64) {
        let mut alone = self.alone();
        if alone.running.contains_key(id) {
            alone.table.extend(id, lease_ms, now_unix_ms);
        }
    }

    /// Writes a settlement down for later. It is durable when this returns.
    pub(super) async fn owe(&self, settlement: &Settlement) -> Result<(), StoreError> {
        self.journal.owe(Bill::of(settlement)).await?;
        self.metrics.store_bills(self.journal.waiting());
        Ok(())
    }

    /// Sends what waits; whether nothing waits any more.
    async fn pay(&self, counters: &Counters) -> bool {
        loop {
            let bills = self.journal.bills(SENT_AT_ONCE);
            if bills.is_empty() {
                return true;
            }
            let sent: FuturesUnordered<_> = bills
                .iter()
                .map(async |(at, bill)| (*at, counters.settle(bill, None).await))
                .collect();
            let sent: Vec<(u64, Result<(), StoreError>)> = sent.collect().await;
            let mut paid = Vec::with_capacity(sent.len());
            for (at, charged) in sent {
                match charged {
                    Ok(()) => paid.push(at),
                    Err(StoreError::Corrupt(error)) => {
                        tracing::error!(%error, "a settlement of the journal cannot be charged and is dropped");
                        self.metrics.store_error("settlement_lost");
                        paid.push(at);
                    }
                    Err(
                        StoreError::Unavailable(_) | StoreError::Overloaded | StoreError::InUse(_),
                    ) => {}
                }
            }
            let is_stuck = paid.is_empty();
            self.journal.paid(&paid);
            self.metrics.store_bills(self.journal.waiting());
            if is_stuck {
                return false;
            }
        }
    }

    /// Redis knows all: what was counted alone means nothing any more.
    fn forget(&self) {
        let mut alone = self.alone();
        if alone.is_used && self.journal.clear() {
            *alone = Alone::new();
            tracing::info!("Redis has charged all that was admitted without it");
        }
    }

    /// Whether nothing waits for Redis.
    #[cfg(test)]
    pub(super) fn journal_is_empty(&self) -> bool {
        self.journal.waiting() == 0
    }

    fn alone(&self) -> MutexGuard<'_, Alone> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The decision with the limits that the caller knows: what is left is what this proxy may still give.
fn told(mut decision: Decision, counters: &[Counter]) -> Decision {
    let (Decision::Admitted { states, .. } | Decision::Refused { states, .. }) = &mut decision;
    for (state, counter) in states.iter_mut().zip(counters) {
        state.limit = counter.rule.limit();
    }
    decision
}

/// Sends the journal whenever Redis answers, for as long as somebody counts.
pub(super) async fn reconcile(away: Weak<Away>, counters: Weak<Counters>, link: Weak<Link>) {
    let Some(mut up) = link.upgrade().map(|link| link.up()) else {
        return;
    };
    loop {
        // The link tells when it is up; what failed in between is seen at the next look.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, up.changed()).await {
            return;
        }
        let (Some(away), Some(counters)) = (away.upgrade(), counters.upgrade()) else {
            return;
        };
        let is_up = *up.borrow_and_update();
        if is_up && away.pay(&counters).await {
            away.forget();
        }
    }
}
