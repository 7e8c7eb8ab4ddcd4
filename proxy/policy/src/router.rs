//! Owns what routing knows: the registry, a breaker per backend, and how many attempts are under way. Every attempt is one
//! [`Ticket`]: begun once, settled once. Opens no connection.

mod due;
mod reports;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::settings::proxy::{Routing, tier_of_model};
use config::tier::Tier;
use config::wire::node::{PREFIXES_MAX, Report, TierState};

use crate::breaker::{Breaker, News, Pass, Phase, Rules, Signal};
use crate::hedge::Speed;
use crate::identity::Principal;
use crate::refusal::Refusal;
use crate::registry::{Change, Listed, Registry, ReportRefusal};
use crate::route::warm::{Link, Warmth};
use crate::route::{self, Ahead, Ask, Local, Route};
use due::Due;

/// Ids named in the message about an unknown model.
const NEAREST_MAX: usize = 5;
/// Characters of an id that are compared: more says nothing and costs its square.
const COMPARED_MAX: usize = 64;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// Answered whole.
    Ok,
    /// The node refused the request itself (a 4xx): the caller's fault.
    CallerFault,
    /// The node's queue is full (503 `overloaded`): busy, not broken.
    Overloaded,
    /// The tier cannot answer (503 `tier_unavailable`).
    Unavailable,
    /// No connection, or it broke before the head.
    ConnectFailed,
    /// A 5xx, or an answer that makes no sense.
    ServerFault,
    /// No head, or silence in a stream, for too long.
    TimedOut,
    /// The answer broke off after its first byte.
    Broken,
    /// The client left, or nobody settled the ticket.
    Abandoned,
    /// Another backend that was asked too had content first.
    Outrun,
    /// Its model was still being loaded when the request went elsewhere.
    Loading,
}

impl Outcome {
    /// The label in metrics, logs and `_routing.attempts`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::CallerFault => "caller_fault",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::ConnectFailed => "connect_failed",
            Self::ServerFault => "server_fault",
            Self::TimedOut => "timed_out",
            Self::Broken => "broken",
            Self::Abandoned => "abandoned",
            Self::Outrun => "outrun",
            Self::Loading => "loading",
        }
    }

    /// What it says about the backend.
    pub const fn signal(self) -> Signal {
        match self {
            Self::Ok => Signal::Success,
            Self::CallerFault
            | Self::Overloaded
            | Self::Abandoned
            | Self::Outrun
            | Self::Loading => Signal::Neutral,
            Self::Unavailable
            | Self::ConnectFailed
            | Self::ServerFault
            | Self::TimedOut
            | Self::Broken => Signal::Failure,
        }
    }
}

/// One attempt under way. The shell keeps it in a guard that calls [`Router::settle`] on every path; a guard that is dropped
/// unsettled calls [`Router::abandon`].
#[derive(Debug)]
#[must_use = "an attempt counts as under way until its ticket is settled"]
pub struct Ticket {
    backend: BackendId,
    pass: Pass,
}

impl Ticket {
    /// Where the attempt goes.
    pub const fn backend(&self) -> &BackendId {
        &self.backend
    }

    /// Whether the attempt decides over its backend's breaker.
    pub const fn is_probe(&self) -> bool {
        self.pass.is_probe()
    }
}

/// What a request's `model` and `tier` ask for, before the classifier had a look.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Wish {
    /// A tier by name.
    Tier(Tier),
    /// A model by id.
    Model(String),
    /// The classifier decides.
    Auto,
}

/// The router.
#[derive(Debug)]
pub struct Router {
    registry: Registry,
    rules: Rules,
    auto_models: Vec<String>,
    breakers: HashMap<BackendId, Breaker>,
    due: Due,
    in_flight: HashMap<BackendId, u32>,
    /// A moment, and the Unix milliseconds then.
    clock: Option<(Instant, u64)>,
    speed: Speed,
    warmth: Warmth,
}

impl Router {
    /// A router without nodes.
    pub fn new(routing: &Routing, silent_after: Duration, nodes_max: usize) -> Self {
        Self {
            registry: Registry::new(silent_after, nodes_max),
            rules: Rules::from(routing),
            auto_models: routing.auto_models.clone(),
            breakers: HashMap::new(),
            due: Due::default(),
            in_flight: HashMap::new(),
            clock: None,
            speed: Speed::new(&routing.hedge),
            warmth: Warmth::default(),
        }
    }

    /// From now on this name stands for a server outside the tunnel; see [`Registry::place_outside`].
    pub fn place_outside(&mut self, node: NodeId, local: bool) {
        self.registry.place_outside(node, local);
    }

    /// Such a server is gone for good.
    pub fn place_nowhere(&mut self, node: &NodeId) {
        self.registry.place_nowhere(node);
    }

    /// A node that sleeps did not wake up: until then it is down.
    pub fn overslept(&mut self, node: &NodeId, until: Instant) {
        self.registry.overslept(node, until);
    }

    /// A node that slept when this process started; see [`Registry::recall`].
    pub fn recall(&mut self, name: &str, report: Report, now: Instant) -> bool {
        self.registry.recall(name, report, now)
    }

    /// Something else than an attempt showed that the backend does not work: its breaker opens at once. What the other proxies must
    /// hear comes back.
    pub fn trip(&mut self, backend: &BackendId, now: Instant) -> News {
        let rules = self.rules;
        let at = (now, self.stamp(now));
        let breaker = self
            .breakers
            .entry(backend.clone())
            .or_insert_with(|| Breaker::new(rules));
        let news = breaker.fail(at);
        self.due.note(backend, breaker.phase(now), now);
        news
    }

    /// Unix milliseconds at one moment, so that terms of breakers can be compared between proxies.
    pub const fn set_clock(&mut self, at: Instant, unix_ms: u64) {
        self.clock = Some((at, unix_ms));
    }

    fn stamp(&self, now: Instant) -> u64 {
        let Some((at, unix_ms)) = self.clock else {
            return 0;
        };
        let since = now.saturating_duration_since(at).as_millis();
        unix_ms.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }

    /// Another proxy has the probe for which this ticket was given: it is given back, and asked for again after `pause`.
    pub fn stand_back(&mut self, ticket: Ticket, pause: Duration, now: Instant) {
        let Ticket { backend, pass } = ticket;
        if let Some(breaker) = self.breakers.get_mut(&backend) {
            breaker.stand_back(pass, pause, now);
            self.due.note(&backend, breaker.phase(now), now);
        }
        self.leave(&backend);
    }

    /// The first content of an attempt: a probe need not wait for the end of a long answer.
    pub fn prove(&mut self, ticket: &mut Ticket, now: Instant) -> Option<News> {
        let at = (now, self.stamp(now));
        let breaker = self.breakers.get_mut(&ticket.backend)?;
        let news = breaker.prove(&mut ticket.pass, at);
        self.due.note(&ticket.backend, breaker.phase(now), now);
        news
    }

    /// What another proxy says of a backend. Of one that is not known here nothing is kept: the table stays as small as the fleet.
    pub fn hear(&mut self, backend: &BackendId, news: News, now: Instant) -> bool {
        let rules = self.rules;
        if self.registry.backend(backend).is_none() && !self.breakers.contains_key(backend) {
            return false;
        }
        let breaker = self
            .breakers
            .entry(backend.clone())
            .or_insert_with(|| Breaker::new(rules));
        let heard = breaker.hear(news, now);
        self.due.note(backend, breaker.phase(now), now);
        heard
    }

    /// What proxies that heard nothing lately should know.
    pub fn news(&self, now: Instant) -> Vec<(BackendId, News)> {
        let all = self.breakers.iter();
        all.filter_map(|(backend, breaker)| Some((backend.clone(), breaker.news(now)?)))
            .collect()
    }

    /// Takes a report of the node that people call `name`; the caller has checked who speaks.
    pub fn report(
        &mut self,
        name: &str,
        mut report: Report,
        now: Instant,
    ) -> Result<Vec<Change>, ReportRefusal> {
        let node = report.node_id.clone();
        let held = report.tiers.iter_mut().map(|tier| {
            // Kept in the table of who is warm, and nowhere else.
            let links = std::mem::take(&mut tier.prefixes).into_iter();
            let links = links.take(PREFIXES_MAX);
            let links = links.filter_map(|link| u64::from_str_radix(&link, 16).ok());
            (tier.tier, tier.state, links.collect())
        });
        let held: Vec<(Tier, TierState, Vec<u64>)> = held.collect();
        let swapped = self.swapped(&report);
        self.remember_speeds(&mut report, &swapped, now);
        let slept = self
            .registry
            .node(&node)
            .is_some_and(|node| node.asleep.is_some());
        let changes = self.registry.report(name, report, now)?;
        if slept {
            // What its breakers saw was a machine that fell asleep.
            self.node_heard_again(&node, now);
        }
        self.heed_loaded(&changes, now);
        for backend in &swapped {
            self.warmth.another(backend);
        }
        for (tier, state, links) in held {
            let backend = BackendId {
                node: node.clone(),
                tier,
            };
            match state {
                TierState::Ready => self.warmth.told(&backend, &links, now),
                TierState::Loading | TierState::Sleeping | TierState::Down => {
                    self.warmth.cold(&backend);
                }
            }
        }
        Ok(changes)
    }

    /// An administrator said whether the node gets no new work; see [`Registry::hold`].
    pub fn hold_node(&mut self, node: &NodeId, held: bool) -> bool {
        self.registry.hold(node, held)
    }

    /// The node gives no sign of life; see [`Registry::lose`]. Its open breakers wait until it is heard again.
    pub fn node_lost(&mut self, node: &NodeId, now: Instant) {
        self.registry.lose(node, now);
        self.warmth.forget(node);
    }

    /// The node registered anew: its count of reports begins again, and its open breakers may probe at once.
    pub fn node_restarted(&mut self, node: &NodeId, now: Instant) {
        self.registry.forget(node);
        self.warmth.forget(node);
        self.node_heard_again(node, now);
    }

    /// The node was out of reach and is heard again: its open breakers may probe at once.
    pub fn node_heard_again(&mut self, node: &NodeId, now: Instant) {
        for (backend, breaker) in &mut self.breakers {
            if backend.node == *node {
                breaker.restarted(now);
                self.due.note(backend, breaker.phase(now), now);
            }
        }
    }

    /// The node was revoked: nothing of it remains but its tickets.
    pub fn remove_node(&mut self, node: &NodeId) -> bool {
        self.breakers.retain(|backend, _| backend.node != *node);
        self.due.retain(|backend| backend.node != *node);
        self.speed.forget(node);
        self.warmth.forget(node);
        self.registry.hold(node, false);
        self.registry.forget(node)
    }

    /// Drops nodes that were silent for too long and returns them. Breakers of theirs stay while they have something to say.
    pub fn expire(&mut self, now: Instant) -> Vec<NodeId> {
        let silent = self.registry.expire(now);
        for node in &silent {
            self.warmth.forget(node);
        }
        let registry = &self.registry;
        self.breakers.retain(|backend, breaker| {
            registry.backend(backend).is_some() || breaker.phase(now) != Phase::Closed
        });
        let breakers = &self.breakers;
        self.due.retain(|backend| breakers.contains_key(backend));
        silent
    }

    /// When [`Self::expire`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.registry.poll_timeout()
    }

    /// When breakers open, and for how long.
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// The nodes.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What `GET /v1/models` lists for the principal.
    pub fn list(&self, principal: &Principal) -> Vec<Listed> {
        let mut all = self.registry.list(&self.auto_models);
        all.retain(|listed| {
            listed.tier.is_none_or(|tier| principal.may_use_tier(tier))
                && match listed.kind {
                    crate::registry::ListedKind::Model => principal.may_use_model(&listed.id),
                    crate::registry::ListedKind::Auto | crate::registry::ListedKind::Tier => true,
                }
        });
        all
    }

    /// Reads `model` and `tier` of a request. `tier` wins; a model is a tier's name, `auto`, or an id.
    pub fn wish(
        &self,
        model: Option<&str>,
        tier: Option<Tier>,
        principal: &Principal,
    ) -> Result<Wish, Refusal> {
        let model = model.unwrap_or_default();
        if let Some(tier) = tier.or_else(|| tier_of_model(model)) {
            if principal.may_use_tier(tier) {
                return Ok(Wish::Tier(tier));
            }
            return Err(Refusal::ModelNotAllowed {
                model: tier.to_string(),
            });
        }
        if model.is_empty() || self.auto_models.iter().any(|auto| auto == model) {
            return Ok(Wish::Auto);
        }
        let Some(tier) = self.registry.tier_of_model(model) else {
            return Err(self.unknown(model, principal));
        };
        if principal.may_use_model(model) && principal.may_use_tier(tier) {
            return Ok(Wish::Model(model.to_owned()));
        }
        Err(Refusal::ModelNotAllowed {
            model: model.to_owned(),
        })
    }

    /// Plans a route; changes nothing.
    pub fn plan(&self, ask: &Ask<'_>, now: Instant) -> Route {
        let warm = self.warmth.of(ask.prompt.chain);
        let local = |backend: &BackendId| Local {
            in_flight: self.in_flight(backend),
            phase: self.phase(backend, now),
            cached_tokens: warm.get(backend).copied().unwrap_or(0),
            round_trip: self.warmth.round_trip(&backend.node),
            talks: self.warmth.talks(backend),
        };
        let holders: Vec<BackendId> = warm.keys().map(|id| (*id).clone()).collect();
        let due: Vec<BackendId> = self.due.now(now).cloned().collect();
        let ahead = Ahead {
            warm: &holders,
            due: &due,
        };
        route::plan(ask, &self.registry, (ahead, local), now)
    }

    /// Begins an attempt; `None` if the breaker says no by now (someone else has the probe, or it has just opened).
    pub fn begin(&mut self, backend: &BackendId, now: Instant) -> Option<Ticket> {
        let rules = self.rules;
        let breaker = self
            .breakers
            .entry(backend.clone())
            .or_insert_with(|| Breaker::new(rules));
        let pass = breaker.admit(now)?;
        if pass.is_probe() {
            self.due.note(backend, breaker.phase(now), now);
        }
        *self.in_flight.entry(backend.clone()).or_insert(0) += 1;
        Some(Ticket {
            backend: backend.clone(),
            pass,
        })
    }

    /// Ends an attempt. What the other proxies must hear of its backend comes back.
    pub fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) -> Option<News> {
        let Ticket { backend, pass } = ticket;
        let at = (now, self.stamp(now));
        self.leave(&backend);
        let breaker = self.breakers.get_mut(&backend)?;
        let news = breaker.record(pass, outcome.signal(), at);
        self.due.note(&backend, breaker.phase(now), now);
        news
    }

    fn leave(&mut self, backend: &BackendId) {
        if let Some(count) = self.in_flight.get_mut(backend) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.in_flight.remove(backend);
            }
        }
    }

    /// Ends an attempt of which nothing is known any more; for the guard's drop.
    pub fn abandon(&mut self, ticket: Ticket, now: Instant) -> Option<News> {
        self.settle(ticket, Outcome::Abandoned, now)
    }

    /// A request with this chain goes there: the next turn of its conversation finds it warm.
    pub fn sent(&mut self, backend: &BackendId, chain: &[Link], now: Instant) {
        if self.registry.backend(backend).is_some() {
            self.warmth.sent(backend, chain, now);
        }
    }

    /// A request with this chain goes there besides, to whoever of two is first: both will have read it, and whose conversation it is
    /// stays as it was.
    pub fn sent_besides(&mut self, backend: &BackendId, chain: &[Link], now: Instant) {
        if self.registry.backend(backend).is_some() {
            self.warmth.sent_besides(backend, chain, now);
        }
    }

    /// How many beginnings of conversations each node says it holds, by its name.
    pub fn prefixes(&self) -> HashMap<String, usize> {
        let told = self.warmth.told_by_node().into_iter();
        let named = told.filter_map(|(id, count)| Some((self.registry.node(id)?, count)));
        named
            .map(|(node, count)| (node.name.clone(), count))
            .collect()
    }

    /// A round trip to a node was measured.
    pub fn took(&mut self, node: &NodeId, round_trip: Duration) {
        if self.registry.node(node).is_some() {
            self.warmth.took(node, round_trip);
        }
    }

    /// Which conversations lie warm where.
    pub const fn warmth(&self) -> &Warmth {
        &self.warmth
    }

    /// How fast backends begin to answer, and who may be asked besides.
    pub const fn speed(&self) -> &Speed {
        &self.speed
    }

    /// The same, to be changed.
    pub const fn speed_mut(&mut self) -> &mut Speed {
        &mut self.speed
    }

    /// Attempts under way at a backend.
    pub fn in_flight(&self, backend: &BackendId) -> u32 {
        self.in_flight.get(backend).copied().unwrap_or(0)
    }

    /// Nodes at which attempts are under way, each once.
    pub fn busy(&self) -> BTreeSet<NodeId> {
        self.in_flight
            .keys()
            .map(|backend| backend.node.clone())
            .collect()
    }

    /// How a backend's breaker stands.
    pub fn phase(&self, backend: &BackendId, now: Instant) -> Phase {
        self.breakers
            .get(backend)
            .map_or(Phase::Closed, |breaker| breaker.phase(now))
    }

    /// All breakers that ever saw an attempt and whose backend is known, for metrics.
    pub fn phases(&self, now: Instant) -> impl Iterator<Item = (&BackendId, Phase)> {
        self.breakers
            .iter()
            .map(move |(backend, breaker)| (backend, breaker.phase(now)))
    }

    fn unknown(&self, model: &str, principal: &Principal) -> Refusal {
        // Without any node nobody can say what exists: that is an outage, not the caller's mistake.
        if self.registry.nodes().next().is_none() {
            return Refusal::NoTierAvailable {
                wanted: None,
                local_only: false,
                retry_after: Duration::from_secs(5),
            };
        }
        let mut ids: Vec<String> = self.list(principal).into_iter().map(|one| one.id).collect();
        ids.sort_by_cached_key(|id| distance(id, model));
        ids.truncate(NEAREST_MAX);
        Refusal::UnknownModel {
            model: model.chars().take(COMPARED_MAX).collect(),
            nearest: ids,
        }
    }
}

/// Levenshtein distance over the first characters, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        text.chars()
            .take(COMPARED_MAX)
            .map(|c| c.to_ascii_lowercase())
            .collect()
    };
    let (a, b) = (letters(a), letters(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = usize::from(x != y);
            let best = (diagonal + cost).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
