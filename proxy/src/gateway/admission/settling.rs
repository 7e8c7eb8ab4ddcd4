//! Settlements on their way to the store: a bounded queue and one task, so that no answer waits for a disk or a network. The
//! same task extends the leases of requests that still run.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use config::ids::Tenant;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{MissedTickBehavior, interval_at};

use crate::observe::metrics::Metrics;
use crate::store::{ReservationId, Settlement, Store};

/// Settlements that may wait; more than requests that can be open at once by default.
const QUEUE_MAX: usize = 16_384;
/// Settlements at the store at once: with one commit each 50 ms, 40,000 a second.
const AT_ONCE_MAX: usize = 2_048;
/// Tries of one settlement; it is charged once however often it arrives.
const TRIES: u32 = 4;
/// Pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

/// A settlement and when its request ended, Unix milliseconds.
type Due = (Settlement, u64);

/// The queue, and the reservations that are open.
pub(super) struct Settling {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    lease: Duration,
    queue: OnceLock<Sender<Due>>,
    open: Mutex<HashMap<ReservationId, Tenant>>,
    /// The clock of the calls: what it said last, and when.
    clock: Mutex<(u64, Instant)>,
    under_way: AtomicUsize,
    done: Notify,
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settling").finish_non_exhaustive()
    }
}

impl Settling {
    pub(super) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, lease: Duration) -> Self {
        Self {
            store,
            metrics,
            lease,
            queue: OnceLock::new(),
            open: Mutex::default(),
            clock: Mutex::new((0, Instant::now())),
            under_way: AtomicUsize::new(0),
            done: Notify::new(),
        }
    }

    /// A reservation is open: its lease is extended until it is settled.
    pub(super) fn opened(
        self: &Arc<Self>,
        (id, tenant): (ReservationId, &Tenant),
        now_unix_ms: u64,
    ) {
        self.queue();
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = (now_unix_ms, Instant::now());
        self.table().insert(id, tenant.clone());
    }

    /// A settlement will come: [`Settling::settle`] follows.
    pub(super) fn expect(&self) {
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    /// Queues a settlement that was expected. Full, it is lost, and the lease gives back what was reserved: a metric says so.
    pub(super) fn settle(self: &Arc<Self>, settlement: Settlement, now_unix_ms: u64) {
        self.table().remove(&settlement.id);
        if self.queue().try_send((settlement, now_unix_ms)).is_err() {
            self.finished();
            self.metrics.store_error("settlement_lost");
            tracing::error!("a settlement was lost: the queue to the store is full");
        }
    }

    /// Whether no settlement is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::Acquire) == 0
    }

    /// Waits until no request is open and no settlement under way.
    pub(super) async fn flush(&self, patience: Duration) {
        let idle = async {
            loop {
                let done = self.done.notified();
                if self.is_idle() && self.table().is_empty() {
                    return;
                }
                done.await;
            }
        };
        if tokio::time::timeout(patience, idle).await.is_err() {
            tracing::warn!("settlements were still under way at the end");
        }
    }

    fn now(&self) -> u64 {
        let (unix_ms, at) = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let since = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        unix_ms.saturating_add(since)
    }

    fn finished(&self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
        self.done.notify_waiters();
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<ReservationId, Tenant>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue; the first request starts its task, in the runtime that serves requests.
    fn queue(self: &Arc<Self>) -> &Sender<Due> {
        self.queue.get_or_init(|| {
            let (sender, receiver) = channel(QUEUE_MAX);
            // A weak handle: the task ends with the last owner.
            let weak = Arc::downgrade(self);
            tokio::spawn(run(receiver, weak, self.lease));
            sender
        })
    }

    async fn send(&self, (settlement, now_unix_ms): Due) {
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            match self.store.settle(&settlement, now_unix_ms).await {
                Ok(()) => break,
                Err(error) if attempt == TRIES => {
                    self.metrics.store_error("settlement_lost");
                    tracing::error!(%error, "a settlement was lost; its lease gives back what was reserved");
                }
                Err(error) => {
                    self.metrics.store_error(error.label());
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        self.finished();
    }

    async fn extend(&self) {
        let open: Vec<(Tenant, ReservationId)> = self
            .table()
            .iter()
            .map(|(id, tenant)| (tenant.clone(), *id))
            .collect();
        if open.is_empty() {
            return;
        }
        let lease_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = self.store.extend(&open, lease_ms, self.now()).await {
            self.metrics.store_error(error.label());
            tracing::warn!(%error, "leases could not be extended; trying again");
        }
    }
}

async fn run(mut queue: Receiver<Due>, settling: std::sync::Weak<Settling>, lease: Duration) {
    let mut under_way = FuturesUnordered::new();
    let mut extend = interval_at(tokio::time::Instant::now() + lease / 3, lease / 3);
    extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = queue.recv(), if under_way.len() < AT_ONCE_MAX => {
                let (Some(due), Some(settling)) = (next, settling.upgrade()) else {
                    break;
                };
                under_way.push(async move { settling.send(due).await });
            }
            Some(()) = under_way.next() => {}
            _ = extend.tick() => {
                let Some(settling) = settling.upgrade() else {
                    break;
                };
                settling.extend().await;
            }
        }
    }
    while under_way.next().await.is_some() {}
}
