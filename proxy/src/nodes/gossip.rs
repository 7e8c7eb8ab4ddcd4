//! What the breakers of several proxies tell each other through the store: news of openings and closings, and the lease without which
//! nobody probes. A request waits for the store only when it would be the probe, and then shortly; while the store is away every proxy
//! goes on by itself. News that is lost is told again while it matters. Decides nothing: what news is worth is policy's.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::ids::{BackendId, Tenant};
use policy::breaker::News;
use policy::limit::{Counter, Decision, Elastic, Level, Measure, Name, Rule, Unit};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::fleet::Fleet;
use crate::store::changes::{self, Change};
use crate::store::{Reservation, ReservationId, Settlement, Store};

/// A request that would be the probe waits so long for the store at most.
const LEASE_WAIT: Duration = Duration::from_millis(250);
/// Whoever finds that another proxy probes asks again after this.
pub(super) const STAND_BACK: Duration = Duration::from_secs(1);
/// What is open is told again so often, for those whom the first word did not reach.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// Errands that wait: more than a fleet of a thousand backends makes at once. What does not fit is news that others find out themselves.
const ERRANDS_MAX: usize = 1_024;
/// An errand that the store does not take in this time is given up.
const ERRAND_MAX: Duration = Duration::from_secs(2);
/// All counters of one reservation lie in one hash slot.
const SLOT: &str = "all";

/// The right to probe one backend, for the whole fleet.
#[derive(Debug)]
pub(super) struct Lease {
    id: ReservationId,
    counters: Vec<Counter>,
}

/// What is to be told to the store, in order.
#[derive(Debug)]
enum Errand {
    Tell(BackendId, News),
    GiveBack(Lease),
}

/// Who may probe.
#[derive(Debug)]
pub(super) enum Probe {
    /// This proxy, with or without a word of the store.
    Ours(Option<Lease>),
    /// Another one is at it.
    Others,
}

/// A proxy's way to the others.
pub(super) struct Gossip {
    store: Arc<dyn Store>,
    errands: mpsc::Sender<Errand>,
    /// How long a probe may take.
    lease: Duration,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").finish_non_exhaustive()
    }
}

impl Gossip {
    /// Asks for the right to probe. A store that does not answer in time stops nobody.
    pub(super) async fn probe(&self, backend: &BackendId) -> Probe {
        let reservation = reservation(backend, self.lease);
        let asked = self.store.reserve(&reservation, now_unix_ms());
        match timeout(LEASE_WAIT, asked).await {
            Ok(Ok(Decision::Admitted { .. })) => Probe::Ours(Some(Lease {
                id: reservation.id,
                counters: reservation.counters,
            })),
            Ok(Ok(Decision::Refused { .. })) => Probe::Others,
            Ok(Err(_)) | Err(_) => Probe::Ours(None),
        }
    }

    pub(super) fn tell(&self, backend: &BackendId, news: News) {
        self.run(Errand::Tell(backend.clone(), news));
    }

    pub(super) fn give_back(&self, lease: Lease) {
        self.run(Errand::GiveBack(lease));
    }

    fn run(&self, errand: Errand) {
        if self.errands.try_send(errand).is_err() {
            tracing::debug!("the other proxies are not told: they find out themselves");
        }
    }
}

/// The task that runs the errands and hears the others.
pub struct Listener {
    fleet: Arc<Fleet>,
    store: Arc<dyn Store>,
    errands: mpsc::Receiver<Errand>,
}

/// Shares the breakers of a fleet with the other proxies of the store, as soon as the listener runs.
pub fn share(fleet: &Arc<Fleet>, store: &Arc<dyn Store>) -> Listener {
    let lease = fleet.with(|router| router.rules().probe);
    let (sender, errands) = mpsc::channel(ERRANDS_MAX);
    fleet.gossip_with(
        Gossip {
            store: Arc::clone(store),
            errands: sender,
            lease,
        },
        (std::time::Instant::now(), now_unix_ms()),
    );
    Listener {
        fleet: Arc::clone(fleet),
        store: Arc::clone(store),
        errands,
    }
}

impl Listener {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut changes = self.store.changes();
        let mut again = interval(AGAIN_EVERY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes::next(&mut changes) => match change {
                    Some(Change::Breaker { backend, term, open_ms }) => {
                        let open = open_ms.map(Duration::from_millis);
                        self.fleet.hear(&backend, News { term, open }, Instant::now().into_std());
                    }
                    Some(
                        Change::Key(_)
                        | Change::User(_)
                        | Change::Denials
                        | Change::Node(_)
                        | Change::Hub { .. }
                        | Change::Everything,
                    ) => {}
                    None => return,
                },
                errand = self.errands.recv() => match errand {
                    Some(errand) => self.run_errand(errand).await,
                    None => return,
                },
                _ = again.tick() => {
                    for (backend, news) in self.fleet.news(Instant::now().into_std()) {
                        self.run_errand(Errand::Tell(backend, news)).await;
                    }
                }
            }
        }
    }

    async fn run_errand(&self, errand: Errand) {
        let run = async {
            match errand {
                Errand::Tell(backend, news) => {
                    let change = Change::Breaker {
                        backend,
                        term: news.term,
                        open_ms: news.open.map(millis),
                    };
                    self.store.publish(&change).await
                }
                Errand::GiveBack(lease) => {
                    let settlement = Settlement {
                        id: lease.id,
                        tenant: Tenant::new(SLOT),
                        counters: lease.counters,
                        spent: vec![0],
                        entry: None,
                    };
                    self.store.settle(&settlement, now_unix_ms()).await
                }
            }
        };
        // What was not told others find out themselves; a lease ends by itself.
        if let Ok(Err(error)) = timeout(ERRAND_MAX, run).await {
            tracing::debug!(%error, "the other proxies could not be told of a breaker");
        }
    }
}

fn reservation(backend: &BackendId, lease: Duration) -> Reservation {
    let key = format!("{{{SLOT}}}:breaker:{backend}:probe");
    Reservation {
        id: ReservationId::random(),
        tenant: Tenant::new(SLOT),
        counters: vec![Counter {
            key: Arc::from(key),
            name: Name::new(Level::Service, Measure::Concurrent),
            unit: Unit::Requests,
            rule: Rule::Held { limit: 1 },
            cost: 1,
            per_million: 0,
        }],
        elastic: Elastic::default(),
        lease_ms: millis(lease),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    millis(since)
}

#[cfg(test)]
mod tests;
