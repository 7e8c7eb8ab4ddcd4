//! Something that one proxy holds for all proxies of a store: the right to start a server, a use of it. A counter with a lease: whoever
//! dies gives it back when the lease ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::ids::Tenant;
use policy::gcra::Rate;
use policy::limit::{Counter, Decision, Elastic, Level, Measure, Name, Rule, Unit};

use crate::store::{Reservation, ReservationId, Settlement, Store, StoreError};

/// All counters of one reservation lie in one hash slot.
const SLOT: &str = "all";
const HOUR_MS: u64 = 3_600_000;
/// Without a word from its holder a lease ends after this.
pub(super) const LEASE: Duration = Duration::from_mins(1);
/// Proxies that may use a server at once: more than anybody has.
const USERS_MAX: u64 = 1_000_000;

/// Held until it is given back, or until its lease ends.
pub(super) struct Hold {
    store: Arc<dyn Store>,
    id: ReservationId,
    counters: Vec<Counter>,
    /// What stays charged when it is given back.
    spent: Vec<u64>,
}

/// Who may start a server.
pub(super) enum Right {
    /// This proxy.
    Ours(Hold),
    /// Another one is at it.
    Others,
    /// Nobody: the hour's starts are used up.
    UsedUp,
}

impl Hold {
    /// The right to start a server: one proxy has it, and no more starts an hour than this.
    pub(super) async fn start(
        store: &Arc<dyn Store>,
        name: &str,
        starts_per_hour: u32,
    ) -> Result<Right, StoreError> {
        let rate = Rate {
            limit: u64::from(starts_per_hour),
            period_ms: HOUR_MS,
        };
        let counters = vec![
            counter(name, "start", Rule::Held { limit: 1 }),
            counter(name, "starts", Rule::Gcra(rate)),
        ];
        Ok(match Self::take(store, counters, vec![0, 1]).await? {
            Ok(hold) => Right::Ours(hold),
            // The one that another proxy holds comes first in the list.
            Err(0) => Right::Others,
            Err(_) => Right::UsedUp,
        })
    }

    /// A use of a server: as long as any proxy has one, nobody stops it.
    pub(super) async fn usage(
        store: &Arc<dyn Store>,
        name: &str,
    ) -> Result<Option<Self>, StoreError> {
        let rule = Rule::Held { limit: USERS_MAX };
        let taken = Self::take(store, vec![counter(name, "use", rule)], vec![0]);
        Ok(taken.await?.ok())
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

    /// Takes it, or says which counter refuses.
    async fn take(
        store: &Arc<dyn Store>,
        counters: Vec<Counter>,
        spent: Vec<u64>,
    ) -> Result<Result<Self, usize>, StoreError> {
        let id = ReservationId::random();
        let reservation = Reservation {
            id,
            tenant: Tenant::new(SLOT),
            counters,
            elastic: Elastic::default(),
            lease_ms: u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX),
        };
        let decision = store.reserve(&reservation, now_unix_ms()).await?;
        Ok(match decision {
            Decision::Admitted { .. } => Ok(Self {
                store: Arc::clone(store),
                id,
                counters: reservation.counters,
                spent,
            }),
            Decision::Refused { refused, .. } => Err(refused),
        })
    }

    /// Holds it for another [`LEASE`].
    pub(super) async fn keep(&self) -> Result<(), StoreError> {
        let id = [(Tenant::new(SLOT), self.id)];
        let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        self.store.extend(&id, lease_ms, now_unix_ms()).await
    }

    /// Gives it back. What cannot be given back now ends with its lease.
    pub(super) async fn give_back(self) {
        let settlement = Settlement {
            id: self.id,
            tenant: Tenant::new(SLOT),
            counters: self.counters,
            spent: self.spent,
            entry: None,
        };
        if let Err(error) = self.store.settle(&settlement, now_unix_ms()).await {
            tracing::debug!(%error, "a lease ends by itself");
        }
    }
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

fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Embedded;

    #[tokio::test]
    async fn one_proxy_starts_at_a_time_and_no_more_often_than_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        let first = Hold::start(&store, "gpu", 2).await.unwrap();
        let second = Hold::start(&store, "gpu", 2).await.unwrap();
        assert!(matches!(second, Right::Others));
        give(first).await;
        give(Hold::start(&store, "gpu", 2).await.unwrap()).await;
        assert!(
            matches!(Hold::start(&store, "gpu", 2).await.unwrap(), Right::UsedUp),
            "two an hour, and both are used up"
        );
        give(Hold::start(&store, "other", 2).await.unwrap()).await;
    }

    async fn give(right: Right) {
        let Right::Ours(hold) = right else {
            panic!("nobody else starts it");
        };
        hold.keep().await.unwrap();
        hold.give_back().await;
    }

    #[tokio::test]
    async fn a_server_is_used_as_long_as_any_proxy_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path()).unwrap());
        assert!(!Hold::is_used(&store, "gpu").await.unwrap());
        let one = Hold::usage(&store, "gpu").await.unwrap().unwrap();
        let other = Hold::usage(&store, "gpu").await.unwrap().unwrap();
        one.give_back().await;
        assert!(Hold::is_used(&store, "gpu").await.unwrap());
        other.give_back().await;
        assert!(!Hold::is_used(&store, "gpu").await.unwrap());
    }
}
