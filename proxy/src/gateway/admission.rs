//! Charges requests: all counters or none, and so many open requests a user. What was reserved is settled once, when the
//! guard goes. The arithmetic is policy's, the numbers are the store's.

mod settling;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use config::ids::Tenant;
use config::settings::proxy::Limits;
use config::tier::Tier;
use config::wire::wishes::Priority;
use policy::calendar::Calendar;
use policy::identity::{Principal, Subject};
use policy::ledger::LedgerEntry;
use policy::limit::{Concurrency, Counter, Decision, Kind, Name};
use policy::open::OpenRequests;
use policy::plan::{self, Outcome, Spend, Tiers};
use policy::refusal::Refusal;

use self::settling::Settling;
use super::Call;
use super::exchange::Exchange;
use crate::observe::metrics::Metrics;
use crate::store::{Reservation, ReservationId, Settlement, Store, StoreError};

/// A request in progress whose settlement is under way still counts for a moment: so long a new one waits for it.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(60),
];

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
    /// Days and months as they are now; made again at each midnight.
    calendar: ArcSwap<Calendar>,
    open: Arc<Mutex<OpenRequests>>,
    settling: Arc<Settling>,
    metrics: Arc<Metrics>,
    /// The store did not answer the last request.
    is_away: AtomicBool,
}

impl Admission {
    /// Admits by these limits, which may be swapped while running.
    pub fn new(store: Arc<dyn Store>, limits: Arc<ArcSwap<Limits>>, metrics: Arc<Metrics>) -> Self {
        let lease = limits.load().lease;
        Self {
            settling: Arc::new(Settling::new(
                Arc::clone(&store),
                Arc::clone(&metrics),
                lease,
            )),
            store,
            limits,
            calendar: ArcSwap::default(),
            open: Arc::default(),
            metrics,
            is_away: AtomicBool::new(false),
        }
    }

    /// Counts one more open request of the user in this process, until the guard is dropped: before a body is read, so that
    /// whoever may have few requests open may not fill the memory with many.
    pub fn enter(
        &self,
        principal: &Principal,
        exchange: &mut Exchange<'_>,
    ) -> Result<OpenRequest, Refusal> {
        let limit = plan::concurrent_max(principal, &self.limits.load());
        let subject = principal.subject();
        let (entered, open) = {
            let mut all = lock(&self.open);
            (all.enter(&subject, limit), all.of(&subject))
        };
        exchange.concurrency(Concurrency {
            limit: u64::from(limit),
            open: u64::from(open),
        });
        entered?;
        Ok(OpenRequest {
            open: Arc::clone(&self.open),
            subject,
        })
    }

    /// Charges what runs no model: what it costs is known now, so it is final.
    pub async fn charge(
        &self,
        asking: Asking<'_>,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Refusal> {
        let charged = self.reserve(asking, Spend::default(), exchange).await;
        let refusal = charged.err();
        refusal.map_or(Ok(()), |refusal| {
            self.note(&refusal);
            Err(refusal)
        })
    }

    /// Reserves all that a request may spend. The guard says how many tokens were granted, and settles when it goes.
    pub async fn reserve(
        &self,
        asking: Asking<'_>,
        spend: Spend,
        exchange: &mut Exchange<'_>,
    ) -> Result<Admitted, Refusal> {
        let limits = self.limits.load();
        let calendar = self.calendar(&limits, asking.now_unix_ms);
        let counters = counters(asking, spend, (&limits, &calendar));
        let principal = asking.principal;
        let day = plan::day(principal, &limits, &calendar, asking.now_unix_ms);
        // What is never corrected needs no settlement.
        let is_final = !spend.in_progress && spend.answer.want == 0;
        let reservation = Reservation {
            id: ReservationId::random(),
            tenant: plan::slot(principal.tenant(), &limits),
            counters,
            elastic: spend.answer,
            lease_ms: if is_final { 0 } else { millis(limits.lease) },
        };
        drop(limits);
        let decision = self.decide(&reservation, asking.now_unix_ms).await;
        let decision = decision.map_err(|error| self.store_away(&error))?;
        self.store_is_back();
        exchange.limits(decision.states());
        if let Some(refusal) = decision.refusal() {
            return Err(refusal);
        }
        let Reservation {
            id,
            tenant,
            counters,
            ..
        } = reservation;
        if !is_final {
            self.settling.opened((id, &tenant), asking.now_unix_ms);
        }
        Ok(Admitted {
            settling: (!is_final).then(|| Arc::clone(&self.settling)),
            id,
            tenant,
            cut_by: cut_by(&counters, &decision, spend.answer.want),
            counters,
            granted: decision.granted(),
            spend,
            day,
            outcome: Outcome::Unknown,
            entry: None,
            is_late: false,
            since: (asking.now_unix_ms, Instant::now()),
        })
    }

    /// The tier with which a request goes on whose own tier's budget is used up.
    pub fn downgrade(&self, principal: &Principal, tier: Tier, used_up: Name) -> Option<Tier> {
        plan::downgrade(principal, &self.limits.load(), tier, used_up)
    }

    /// Asks the store; while settlements of requests that have ended are under way, a refusal for too many in progress is not
    /// the last word.
    async fn decide(
        &self,
        reservation: &Reservation,
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        let mut decision = self.store.reserve(reservation, now_unix_ms).await?;
        for wait in PATIENCE {
            let crowded = matches!(decision.refusal(), Some(Refusal::TooManyOpen { .. }));
            if !crowded || self.settling.is_idle() {
                break;
            }
            tokio::time::sleep(wait).await;
            decision = self.store.reserve(reservation, now_unix_ms).await?;
        }
        Ok(decision)
    }

    /// Counts a refusal by the limit that refused.
    pub fn note(&self, refusal: &Refusal) {
        if let Some(name) = refusal.limit_name() {
            self.metrics.limit_rejection(name);
        }
    }

    /// Reads where the limits stand and charges nothing: a request refused for another reason tells them too.
    pub async fn look(&self, asking: Asking<'_>, exchange: &mut Exchange<'_>) {
        self.look_for(asking, Spend::default(), exchange).await;
    }

    /// The same with the budgets of every tier and the requests in progress.
    pub async fn look_at_all(&self, asking: Asking<'_>, exchange: &mut Exchange<'_>) {
        let all = Spend {
            tiers: Tiers::of(Tier::ALL),
            in_progress: true,
            ..Spend::default()
        };
        self.look_for(asking, all, exchange).await;
    }

    async fn look_for(&self, asking: Asking<'_>, spend: Spend, exchange: &mut Exchange<'_>) {
        let limits = self.limits.load();
        let calendar = self.calendar(&limits, asking.now_unix_ms);
        let counters = counters(asking, spend, (&limits, &calendar));
        let slot = plan::slot(asking.principal.tenant(), &limits);
        drop(limits);
        self.read((slot, counters), asking.now_unix_ms, exchange)
            .await;
    }

    /// The same for somebody unknown: only the address has limits yet. The guard bounds how often this is asked.
    pub async fn look_at_address(&self, call: &Call, exchange: &mut Exchange<'_>) {
        let limits = self.limits.load();
        let tenant = Tenant::default();
        let counters = plan::ip_counters(call.ip, Kind::Text, &limits, &tenant);
        let slot = plan::slot(&tenant, &limits);
        drop(limits);
        self.read((slot, counters), call.unix_ms, exchange).await;
    }

    async fn read(
        &self,
        (slot, mut counters): (Tenant, Vec<Counter>),
        now_unix_ms: u64,
        exchange: &mut Exchange<'_>,
    ) {
        for counter in &mut counters {
            counter.cost = 0;
        }
        match self.store.look(&slot, &counters, now_unix_ms).await {
            Ok(decision) => exchange.limits(decision.states()),
            // The answer is an error already; without these headers it is still right.
            Err(error) => self.metrics.store_error(error.label()),
        }
    }

    /// Its class in the queues: what it wishes, and no more than its plans allow.
    pub fn priority(&self, principal: &Principal, wished: Priority) -> Priority {
        plan::priority(principal, &self.limits.load(), wished)
    }

    /// Whether what the principal asks must stay at home, whatever the request says.
    pub fn is_local_only(&self, principal: &Principal) -> bool {
        plan::is_local_only(principal, &self.limits.load())
    }

    /// Tokens generated when a request sets no maximum.
    pub fn max_tokens_default(&self) -> u32 {
        self.limits.load().max_tokens_default
    }

    /// Waits until every settlement is in the store, so long; for the end of the process.
    pub async fn flush(&self, patience: Duration) {
        self.settling.flush(patience).await;
    }

    /// Today, everywhere.
    fn calendar(&self, limits: &Limits, now_unix_ms: u64) -> Arc<Calendar> {
        let mut calendar = self.calendar.load_full();
        if !calendar.holds(now_unix_ms) {
            calendar = Arc::new(Calendar::new(limits, now_unix_ms));
            self.calendar.store(Arc::clone(&calendar));
        }
        calendar
    }

    fn store_away(&self, error: &StoreError) -> Refusal {
        self.metrics.store_error(error.label());
        // Once an outage, not once a request.
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the store does not answer: requests are refused until it does");
        }
        Refusal::StoreAway
    }

    fn store_is_back(&self) {
        if self.is_away.load(Ordering::Relaxed) && self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the store answers again");
        }
    }
}

fn counters(
    asking: Asking<'_>,
    spend: Spend,
    (limits, calendar): (&Limits, &Calendar),
) -> Vec<Counter> {
    let Asking {
        principal,
        ip,
        kind,
        now_unix_ms,
    } = asking;
    plan::counters(&plan::Asking {
        principal,
        ip,
        kind,
        spend,
        limits,
        calendar,
        now_unix_ms,
    })
}

/// The limit that granted less than was wanted: it has no room for another token.
fn cut_by(counters: &[Counter], decision: &Decision, want: u64) -> Option<Name> {
    if decision.granted() >= want {
        return None;
    }
    let standing = counters.iter().zip(decision.states());
    let mut elastic = standing.filter(|(counter, _)| counter.per_million > 0);
    let full = elastic.find(|(counter, state)| {
        let more = counter.charge(decision.granted().saturating_add(1));
        more.saturating_sub(counter.charge(decision.granted())) > state.remaining
    });
    full.map(|(_, state)| state.name)
}

/// What a request was charged to. Settles once, when it is dropped: as served or given back if that was said, and as all that
/// was granted if nothing was.
#[derive(Debug)]
pub struct Admitted {
    /// `None`: the charge is final.
    settling: Option<Arc<Settling>>,
    id: ReservationId,
    tenant: Tenant,
    counters: Vec<Counter>,
    granted: u64,
    cut_by: Option<Name>,
    spend: Spend,
    /// The local date for which it counts.
    day: Arc<str>,
    outcome: Outcome,
    entry: Option<LedgerEntry>,
    /// Its end is known, what it used is being asked.
    is_late: bool,
    /// When it was admitted, on the clock of the calls and on one that never jumps.
    since: (u64, Instant),
}

impl Admitted {
    /// Tokens that the answer may have.
    pub const fn granted(&self) -> u64 {
        self.granted
    }

    /// The limit because of which fewer were granted than were wanted.
    pub const fn cut_by(&self) -> Option<Name> {
        self.cut_by
    }

    /// What was reserved.
    pub const fn spend(&self) -> &Spend {
        &self.spend
    }

    /// The local date for which it counts.
    pub const fn day(&self) -> &Arc<str> {
        &self.day
    }

    /// Under which it is settled.
    pub const fn id(&self) -> ReservationId {
        self.id
    }

    /// How the request ended, with its line for the books.
    pub fn ended(&mut self, outcome: Outcome, entry: LedgerEntry) {
        self.outcome = outcome;
        self.entry = Some(entry);
    }

    /// The request has ended, and what it used will be known in a moment: whoever asks again meanwhile waits for that.
    pub fn expect_usage(&mut self) {
        if let (false, Some(settling)) = (self.is_late, &self.settling) {
            settling.expect();
            self.is_late = true;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(settling) = self.settling.take() else {
            return;
        };
        let counters = std::mem::take(&mut self.counters);
        let spent = plan::spent(&counters, self.granted, &self.outcome);
        let settlement = Settlement {
            id: self.id,
            tenant: self.tenant.clone(),
            counters,
            spent,
            entry: self.entry.take(),
        };
        if !self.is_late {
            settling.expect();
        }
        let (at, since) = self.since;
        settling.settle(settlement, at.saturating_add(millis(since.elapsed())));
    }
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
