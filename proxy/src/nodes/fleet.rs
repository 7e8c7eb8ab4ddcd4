//! The one router of this proxy behind its lock, held for microseconds and never across an await. Decides nothing: every
//! answer is the router's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::wire::node::{Report, TierState};
use policy::breaker::{News, Phase};
use policy::identity::Principal;
use policy::refusal::Refusal;
use policy::registry::{Change, Listed, ReportRefusal};
use policy::route::warm::Link;
use policy::route::{Ask, Route};
use policy::router::{Outcome, Router, Ticket, Wish};
use tokio::sync::watch;

use super::gossip::{Gossip, Lease, Probe, STAND_BACK};
use super::members::Member;

/// The router, shared.
#[derive(Debug)]
pub struct Fleet {
    router: Mutex<Router>,
    /// Counts whatever may make room somewhere: reports, attempts that ended, nodes that came or went.
    changes: watch::Sender<u64>,
    /// The way to the other proxies, where there are any.
    gossip: OnceLock<Gossip>,
}

impl Fleet {
    /// Shares a router.
    pub fn new(router: Router) -> Self {
        Self {
            router: Mutex::new(router),
            changes: watch::channel(0).0,
            gossip: OnceLock::new(),
        }
    }

    /// Counts up whenever a backend may have got room.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What a request's `model` and `tier` ask for.
    pub fn wish(
        &self,
        asked: (Option<&str>, Option<config::tier::Tier>),
        principal: &Principal,
    ) -> Result<Wish, Refusal> {
        let (model, tier) = asked;
        self.router().wish(model, tier, principal)
    }

    /// Where a request may go.
    pub fn plan(&self, ask: &Ask<'_>, now: Instant) -> Route {
        self.router().plan(ask, now)
    }

    /// From now on the other proxies hear of breakers; `clock` is a moment and its Unix milliseconds.
    pub(super) fn gossip_with(&self, gossip: Gossip, (at, unix_ms): (Instant, u64)) {
        self.router().set_clock(at, unix_ms);
        drop(self.gossip.set(gossip));
    }

    /// What another proxy says of a backend.
    pub(super) fn hear(&self, backend: &BackendId, news: News, now: Instant) {
        if self.router().hear(backend, news, now) {
            tracing::info!(%backend, open = news.open.is_some(), "another proxy says how a backend stands");
            self.changed();
        }
    }

    /// What proxies that heard nothing lately should know.
    pub(super) fn news(&self, now: Instant) -> Vec<(BackendId, News)> {
        self.router().news(now)
    }

    /// A request with this chain goes there: the next turn of its conversation finds it warm.
    pub fn sent(&self, backend: &BackendId, chain: &[Link], now: Instant) {
        self.router().sent(backend, chain, now);
    }

    /// The same for a backend that is asked besides the one that was chosen.
    pub fn sent_besides(&self, backend: &BackendId, chain: &[Link], now: Instant) {
        self.router().sent_besides(backend, chain, now);
    }

    /// A round trip to a node was measured.
    pub fn took(&self, node: &NodeId, round_trip: Duration) {
        self.router().took(node, round_trip);
    }

    /// Begins an attempt, unless the backend's breaker says no by now. Waits for nothing, unless this is the one attempt that decides
    /// over the breaker: that one is asked for at the store, for all proxies.
    pub async fn begin(self: &Arc<Self>, backend: &BackendId, now: Instant) -> Option<Attempting> {
        let ticket = self.router().begin(backend, now)?;
        let is_probe = ticket.is_probe();
        let mut attempting = Attempting {
            fleet: Arc::clone(self),
            ticket: Some(ticket),
            lease: None,
        };
        if let Some(gossip) = self.gossip.get().filter(|_| is_probe) {
            match gossip.probe(backend).await {
                Probe::Ours(lease) => attempting.lease = lease,
                Probe::Others => {
                    attempting.stand_back(tokio::time::Instant::now().into_std());
                    return None;
                }
            }
        }
        Some(attempting)
    }

    /// Begins an attempt besides another one: only where nothing is in doubt.
    pub fn begin_besides(
        self: &Arc<Self>,
        backend: &BackendId,
        now: Instant,
    ) -> Option<Attempting> {
        let mut router = self.router();
        if router.phase(backend, now) != Phase::Closed || !router.speed_mut().take(now) {
            return None;
        }
        let ticket = router.begin(backend, now)?;
        drop(router);
        Some(Attempting {
            fleet: Arc::clone(self),
            ticket: Some(ticket),
            lease: None,
        })
    }

    /// After which a second backend is asked for a request that this one has got; `None`: none is.
    pub fn hedge_after(
        &self,
        backend: &BackendId,
        prompt_tokens: u64,
        now: Instant,
    ) -> Option<Duration> {
        let mut router = self.router();
        if !router.speed().covers(backend.tier, prompt_tokens) {
            return None;
        }
        router.speed_mut().request(now);
        router.speed().after(backend)
    }

    /// A backend began to answer after this, or was left while it had not.
    pub fn measured(&self, backend: &BackendId, took: Duration) {
        self.router().speed_mut().measured(backend, took);
    }

    /// Takes a report of a member.
    pub fn report(
        &self,
        member: &Member,
        report: Report,
        now: Instant,
    ) -> Result<(), ReportRefusal> {
        let mut report = report;
        report.draining |= member.is_draining();
        let taken = {
            let mut router = self.router();
            router.hold_node(&member.id, member.is_draining());
            router.report(&member.name, report, now)
        };
        for change in taken? {
            tell(member, &change);
        }
        self.changed();
        Ok(())
    }

    /// An administrator said whether a node gets no new work, whether it is here, asleep or away.
    pub fn hold(&self, node: &NodeId, held: bool) {
        let is_news = self.router().hold_node(node, held);
        if is_news {
            self.changed();
        }
    }

    /// A node gives no sign of life: it sleeps if it can be woken, else nothing of it is believed until it reports.
    pub fn lost(&self, node: &NodeId, now: Instant) {
        self.router().node_lost(node, now);
        self.changed();
    }

    /// A node registered anew: until it reports nothing of it is believed.
    pub fn restarted(&self, node: &NodeId, now: Instant) {
        self.router().node_restarted(node, now);
    }

    /// A node that was believed gone is heard again: what its breakers saw was the way there, so a request may try it at once.
    pub fn heard_again(&self, node: &NodeId, now: Instant) {
        self.router().node_heard_again(node, now);
    }

    /// Nodes at which attempts are under way, each once.
    pub fn busy(&self) -> BTreeSet<NodeId> {
        self.router().busy()
    }

    /// From now on this name stands for a server outside the tunnel, at home or not.
    pub fn place_outside(&self, node: NodeId, local: bool) {
        self.router().place_outside(node, local);
    }

    /// Such a server is gone for good.
    pub fn place_nowhere(&self, node: &NodeId) {
        self.router().place_nowhere(node);
    }

    /// Something else than an attempt showed that the backend does not work.
    pub fn trip(&self, backend: &BackendId, now: Instant) {
        let news = self.router().trip(backend, now);
        self.tell(backend, Some(news));
    }

    /// A node that sleeps did not wake up: until then it is down.
    pub fn overslept(&self, node: &NodeId, until: Instant) {
        self.router().overslept(node, until);
    }

    /// A node that slept when this proxy started.
    pub fn recall(&self, name: &str, report: Report, now: Instant) -> bool {
        self.router().recall(name, report, now)
    }

    /// A node was revoked.
    pub fn forget(&self, node: &NodeId) {
        self.router().remove_node(node);
    }

    /// Drops nodes that were silent for too long and returns them.
    pub fn expire(&self, now: Instant) -> Vec<NodeId> {
        self.router().expire(now)
    }

    /// What `GET /v1/models` lists for the principal.
    pub fn list(&self, principal: &Principal) -> Vec<Listed> {
        self.router().list(principal)
    }

    /// Reads the router without changing it.
    pub fn with<R>(&self, read: impl FnOnce(&Router) -> R) -> R {
        read(&self.router())
    }

    /// How every breaker stands.
    pub fn phases(&self, now: Instant) -> Vec<(BackendId, Phase)> {
        let router = self.router();
        router
            .phases(now)
            .map(|(backend, phase)| (backend.clone(), phase))
            .collect()
    }

    fn tell(&self, backend: &BackendId, news: Option<News>) {
        if let (Some(gossip), Some(news)) = (self.gossip.get(), news) {
            gossip.tell(backend, news);
        }
    }

    fn router(&self) -> MutexGuard<'_, Router> {
        self.router.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(member: &Member, change: &Change) {
    match change {
        Change::NodeUp(node) => tracing::info!(%node, name = member.name, "a node reports"),
        Change::Draining(node, draining) => {
            tracing::info!(%node, draining, "a node changed its mind about new work");
        }
        Change::Backend { backend, from, to } => {
            tracing::info!(
                node = %backend.node,
                tier = %backend.tier,
                from = from.map(TierState::as_str),
                to = to.map(TierState::as_str),
                "a tier changed"
            );
        }
    }
}

/// One attempt under way. Dropped unsettled it counts as abandoned, so no path can leak it.
#[derive(Debug)]
pub struct Attempting {
    fleet: Arc<Fleet>,
    ticket: Option<Ticket>,
    /// The right to probe, if this is a probe and the store could be asked.
    lease: Option<Lease>,
}

impl Attempting {
    /// Whether it decides over its backend's breaker.
    pub fn is_probe(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_probe)
    }

    /// It has content: a probe need not wait for the end.
    pub fn prove(&mut self, now: Instant) {
        if let Some(ticket) = &mut self.ticket {
            let news = self.fleet.router().prove(ticket, now);
            self.fleet.tell(ticket.backend(), news);
        }
        self.give_back();
    }

    /// Ends the attempt.
    pub fn settle(mut self, outcome: Outcome, now: Instant) {
        self.end(outcome, now);
    }

    fn end(&mut self, outcome: Outcome, now: Instant) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        let backend = ticket.backend().clone();
        let news = self.fleet.router().settle(ticket, outcome, now);
        // First the news, then the lease: who gets the lease next knows why.
        self.fleet.tell(&backend, news);
        self.give_back();
        // A backend that is full has no more room than before: whoever waits tries it again when it reports.
        if outcome != Outcome::Overloaded {
            self.fleet.changed();
        }
    }

    fn stand_back(&mut self, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.fleet.router().stand_back(ticket, STAND_BACK, now);
        }
    }

    fn give_back(&mut self) {
        if let (Some(gossip), Some(lease)) = (self.fleet.gossip.get(), self.lease.take()) {
            gossip.give_back(lease);
        }
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        self.end(Outcome::Abandoned, tokio::time::Instant::now().into_std());
    }
}
