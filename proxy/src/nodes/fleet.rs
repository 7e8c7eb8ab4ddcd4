//! The one router of this proxy behind its lock, held for microseconds and never across an await. Decides nothing: every
//! answer is the router's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use config::ids::{BackendId, NodeId};
use config::wire::node::{Report, TierState};
use policy::breaker::Phase;
use policy::identity::Principal;
use policy::refusal::Refusal;
use policy::registry::{Change, Listed, ReportRefusal};
use policy::route::{Ask, Route};
use policy::router::{Outcome, Router, Ticket, Wish};

use super::members::Member;

/// The router, shared.
#[derive(Debug)]
pub struct Fleet {
    router: Mutex<Router>,
}

impl Fleet {
    /// Shares a router.
    pub const fn new(router: Router) -> Self {
        Self {
            router: Mutex::new(router),
        }
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

    /// Begins an attempt, unless the backend's breaker says no by now.
    pub fn begin(self: &Arc<Self>, backend: &BackendId, now: Instant) -> Option<Attempting> {
        let ticket = self.router().begin(backend, now)?;
        Some(Attempting {
            fleet: Arc::clone(self),
            ticket: Some(ticket),
        })
    }

    /// Takes a report of a member.
    pub fn report(
        &self,
        member: &Member,
        report: Report,
        now: Instant,
    ) -> Result<(), ReportRefusal> {
        let taken = self.router().report(&member.name, report, now);
        for change in taken? {
            tell(member, &change);
        }
        Ok(())
    }

    /// A node registered anew: until it reports nothing of it is believed.
    pub fn restarted(&self, node: &NodeId, now: Instant) {
        self.router().node_restarted(node, now);
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
}

impl Attempting {
    /// Ends the attempt.
    pub fn settle(mut self, outcome: Outcome, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.fleet.router().settle(ticket, outcome, now);
        }
    }
}

impl Drop for Attempting {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.fleet.router().abandon(ticket, Instant::now());
        }
    }
}
