//! Something that one proxy holds for all proxies of a store: the right to start and stop a server, a use of it. A counter with a lease:
//! whoever dies gives it back when the lease ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::ids::Tenant;
use policy::gcra::Rate;
use policy::limit::{Counter, Decision, Elastic, Level, Measure, Name, Rule, Unit};

use crate::store::{Reservation, ReservationId, Settlement, Store, StoreError};

/// All counters of one reservation lie in one hash slot.
const SLOT: &str = "all";
const HOUR_MS: u64 = 3_600_000;
/// Proxies that may use a server at once: more than anybody has.
const USERS_MAX: u64 = 1_000_000;

/// Held until it is given back, or until its lease ends.
pub(super) struct Hold {
    store: Arc<dyn Store>,
    id: ReservationId,
    counters: Vec<Counter>,
    lease: Duration,
    /// When it was last certain that nobody else could have it.
    kept_at: Mutex<Instant>,
}

impl Hold {
    /// The right to start and stop a server; `None`: another proxy has it. Nobody starts or stops one without.
    pub(super) async fn lever(
        store: &Arc<dyn Store>,
        name: &str,
        lease: Duration,
    ) -> Result<Option<Self>, StoreError> {
        Self::take(
            store,
            counter(name, "start", Rule::Held { limit: 1 }),
            lease,
        )
        .await
    }

    /// One start more within the hour; `false`: as many as this were made.
    pub(super) async fn charge_start(
        store: &Arc<dyn Store>,
        name: &str,
        starts_per_hour: u32,
    ) -> Result<bool, StoreError> {
        let rate = Rate {
            limit: u64::from(starts_per_hour),
            period_ms: HOUR_MS,
        };
        let reservation = Reservation {
            id: ReservationId::random(),
            tenant: Tenant::new(SLOT),
            counters: vec![counter(name, "starts", Rule::Gcra(rate))],
            elastic: Elastic::default(),
            lease_ms: 0,
        };
        let decision = store.reserve(&reservation, now_unix_ms()).await?;
        Ok(decision.is_admitted())
    }

    /// A use of a server: as long as any proxy has one, nobody stops it.
    pub(super) async fn usage(
        store: &Arc<dyn Store>,
        name: &str,
        lease: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let rule = Rule::Held { limit: USERS_MAX };
        Self::take(store, counter(name, "use", rule), lease).await
    }

    /// Whether any proxy uses the server.
    pub(super) async fn is_used(store: &Arc<dyn Store>, name: &str) -> Result<bool, StoreError> {
        let mut counter = counter(name, "use", Rule::Held { limit: USERS_MAX });
        counter.cost = 0;
        let (slot, counters) = (Tenant::new(SLOT), [counter]);
        let states = store.look(&slot, &counters, now_unix_ms()).await?;
        let all_left = |state: &policy::limit::CounterState| state.remaining >= USERS_MAX;
        Ok(!states.states().iter().all(all_left))
    }

    /// Takes it; `None`: there is no more of it.
    async fn take(
        store: &Arc<dyn Store>,
        counter: Counter,
        lease: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let reservation = Reservation {
            id: ReservationId::random(),
            tenant: Tenant::new(SLOT),
            counters: vec![counter],
            elastic: Elastic::default(),
            lease_ms: millis(lease),
        };
        let asked_at = Instant::now();
        let decision = store.reserve(&reservation, now_unix_ms()).await?;
        Ok(match decision {
            Decision::Admitted { .. } => Some(Self {
                store: Arc::clone(store),
                id: reservation.id,
                counters: reservation.counters,
                lease,
                kept_at: Mutex::new(asked_at),
            }),
            Decision::Refused { .. } => None,
        })
    }

    /// A lease that is held for longer is prolonged so often.
    pub(super) fn keep_every(lease: Duration) -> Duration {
        lease / 3
    }

    /// Holds it for another lease, if it is time. What has lapsed stays lapsed.
    pub(super) async fn keep(&self) {
        if !self.is_due() || self.is_lapsed() {
            return;
        }
        let asked_at = Instant::now();
        let id = [(Tenant::new(SLOT), self.id)];
        let lease_ms = millis(self.lease);
        match self.store.extend(&id, lease_ms, now_unix_ms()).await {
            Ok(()) => *self.kept_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at,
            Err(error) => tracing::debug!(%error, "a lease is not prolonged"),
        }
    }

    /// Whether it is time to prolong it.
    pub(super) fn is_due(&self) -> bool {
        self.since_kept() >= Self::keep_every(self.lease)
    }

    /// Whether somebody else may have it by now.
    pub(super) fn is_lapsed(&self) -> bool {
        self.since_kept() >= self.lease
    }

    fn since_kept(&self) -> Duration {
        let kept_at = self.kept_at.lock().unwrap_or_else(PoisonError::into_inner);
        kept_at.elapsed()
    }

    /// Gives it back. What cannot be given back now ends with its lease.
    pub(super) async fn give_back(self) {
        let spent = vec![0; self.counters.len()];
        let settlement = Settlement {
            id: self.id,
            tenant: Tenant::new(SLOT),
            counters: self.counters,
            spent,
            entry: None,
        };
        if let Err(error) = self.store.settle(&settlement, now_unix_ms()).await {
            tracing::debug!(%error, "a lease ends by itself");
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn counter(name: &str, what: &str, rule: Rule) -> Counter {
    Counter {
        key: Arc::from(format!("{{{SLOT}}}:remote:{name}:{what}")),
        name: Name::new(Level::Service, Measure::Concurrent),
        unit: Unit::Requests,
        rule,
        cost: 1,
        per_million: 0,
    }
}

pub(super) fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    const LEASE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn one_proxy_starts_at_a_time_and_no_more_often_than_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        let lever = async |name| Hold::lever(&store, name, LEASE).await.unwrap();
        let first = lever("gpu").await.expect("nobody else has it");
        assert!(lever("gpu").await.is_none());
        assert!(!first.is_due() && !first.is_lapsed());
        assert!(lever("another").await.is_some());
        first.give_back().await;
        assert!(lever("gpu").await.is_some());
        let charge = async |name| Hold::charge_start(&store, name, 2).await.unwrap();
        assert!(charge("gpu").await && charge("gpu").await);
        assert!(!charge("gpu").await, "two an hour, and both are used up");
        assert!(charge("another").await);
    }

    #[tokio::test]
    async fn what_is_not_prolonged_in_time_lapses_and_stays_so() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        let short = Duration::from_millis(300);
        let hold = Hold::lever(&store, "gpu", short).await.unwrap().unwrap();
        let at = |hold: &Hold| *hold.kept_at.lock().unwrap();
        let began = at(&hold);
        tokio::time::sleep(short / 3).await;
        hold.keep().await;
        assert!(at(&hold) > began, "it was time");
        tokio::time::sleep(short).await;
        let last = at(&hold);
        assert!(hold.is_lapsed());
        hold.keep().await;
        assert_eq!(at(&hold), last);
        assert!(Hold::lever(&store, "gpu", short).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_server_is_used_as_long_as_any_proxy_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        assert!(!Hold::is_used(&store, "gpu").await.unwrap());
        let one = Hold::usage(&store, "gpu", LEASE).await.unwrap().unwrap();
        let other = Hold::usage(&store, "gpu", LEASE).await.unwrap().unwrap();
        one.give_back().await;
        assert!(Hold::is_used(&store, "gpu").await.unwrap());
        other.give_back().await;
        assert!(!Hold::is_used(&store, "gpu").await.unwrap());
    }
}
