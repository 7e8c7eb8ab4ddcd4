//! The nodes as they reported themselves: tiers, models, load. Believes a report about load and readiness only; whether a
//! backend really answers is the breaker's business.

mod ranked;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use config::ids::{BackendId, NodeId};
use config::settings::proxy::tier_of_model;
use config::tier::Tier;
use config::wire::node::{BackEnd, Memory, ModelReport, Report, TierReport, TierState, VERSION};
use config::wire::wake::WakeReport;
use ranked::Nodes;
use serde::Serialize;

/// Model ids remembered after their nodes left, so that a model that is merely away is "unavailable", not "unknown".
const REMEMBERED_MAX: usize = 1_000;
/// Longest id of a model.
const MODEL_ID_MAX: usize = 256;

/// Why a report was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReportRefusal {
    /// Another version of the words.
    #[error("version_unsupported")]
    Version,
    /// Not newer than the last one.
    #[error("report_stale")]
    Stale,
    /// More nodes than allowed.
    #[error("too_many_nodes")]
    TooManyNodes,
    /// A field makes no sense.
    #[error("report_malformed: {0}")]
    Malformed(&'static str),
}

/// Something that a person may want to know, in the order it happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A node reported for the first time, or again after silence.
    NodeUp(NodeId),
    /// A node started or stopped to drain.
    Draining(NodeId, bool),
    /// A backend's state changed; `None` before = it was not there, `None` after = it is gone.
    Backend {
        /// Which.
        backend: BackendId,
        /// Before.
        from: Option<TierState>,
        /// Now.
        to: Option<TierState>,
    },
}

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// It takes no new work.
    pub draining: bool,
    /// The machine's memory.
    pub memory: Memory,
    /// Its tiers, each once.
    pub tiers: Vec<TierReport>,
    /// When the last report came.
    pub reported_at: Instant,
    /// It is at home. A server outside the tunnel may be elsewhere, whatever is reported of it.
    pub local: bool,
    /// It is a server of somebody else, not a node of ours: it speaks `OpenAI`'s API alone.
    pub foreign: bool,
    /// How it is woken, as it said itself.
    pub wake: Option<WakeReport>,
    /// It went silent and can be woken: cold, not down.
    pub asleep: Option<Asleep>,
    /// Who does TCP at its end of the tunnel, as it said itself.
    pub back_end: Option<BackEnd>,
    seq: u64,
}

/// A machine that sleeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Asleep {
    /// When it was noticed.
    pub since: Instant,
    /// It did not wake up: until then nobody tries again.
    pub gives_up_until: Option<Instant>,
}

impl Node {
    /// Until when a sleeping node is given up; `false`: it does not sleep.
    const fn wakes_until(&mut self, until: Option<Instant>) -> bool {
        match &mut self.asleep {
            Some(asleep) => {
                asleep.gives_up_until = until;
                true
            }
            None => false,
        }
    }

    /// Goes to sleep with what it last said of its tiers; `false`: nothing wakes it up. `held`: an administrator wants it to get no work.
    fn fall_asleep(&mut self, held: bool, now: Instant) -> bool {
        let wake = self.wake.as_ref().filter(|wake| wake.can_be_woken());
        let Some(takes) = wake.map(|wake| Duration::from_secs(u64::from(wake.takes_secs.max(1))))
        else {
            return false;
        };
        if self.asleep.is_some() {
            return true;
        }
        self.asleep = Some(Asleep {
            since: now,
            gives_up_until: None,
        });
        // Whoever is woken does not know any more that it was about to go. What its administrator said stays said.
        self.draining = held;
        self.tiers.retain(|tier| tier.model.is_some());
        for tier in &mut self.tiers {
            tier.state = TierState::Sleeping;
            tier.reason = None;
            tier.slots_busy = 0;
            tier.queue_depth = 0;
            tier.wakes_in_ms = u64::try_from(takes.as_millis()).unwrap_or(u64::MAX);
        }
        true
    }
}

/// One backend: one tier of one node.
#[derive(Clone, Copy, Debug)]
pub struct Backend<'a> {
    /// The node.
    pub node: &'a Node,
    /// The tier.
    pub tier: &'a TierReport,
}

impl Backend<'_> {
    /// Whether prompts for it stay at home.
    pub const fn is_local(&self) -> bool {
        self.node.local && !self.tier.elsewhere
    }

    /// Its id.
    pub fn id(&self) -> BackendId {
        BackendId {
            node: self.node.id.clone(),
            tier: self.tier.tier,
        }
    }

    /// The model's id, once loaded.
    pub fn model_id(&self) -> Option<&str> {
        self.tier.model.as_ref().map(|model| model.id.as_str())
    }

    /// Whether its model has this name: its id, or one of the other names that its node gave it.
    pub fn answers_to(&self, name: &str) -> bool {
        let model = self.tier.model.as_ref();
        model.is_some_and(|model| names(model).any(|known| known == name))
    }
}

/// What an entry of the model list stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ListedKind {
    /// The classifier decides.
    Auto,
    /// A tier by name.
    Tier,
    /// A model by id.
    Model,
}

/// Whether an entry of the model list can answer now.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ListedState {
    /// No backend answers.
    Unavailable,
    /// A backend is starting.
    Loading,
    /// No backend is awake, but one wakes up for the next request.
    Sleeping,
    /// At least one backend answers.
    Ready,
}

/// One entry of `GET /v1/models`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The name for the `model` field.
    pub id: String,
    /// What it stands for.
    pub kind: ListedKind,
    /// The tier behind it; `None` for `auto`.
    pub tier: Option<Tier>,
    /// Whether it can answer.
    pub state: ListedState,
    /// The model behind it: of a ready backend if there is one.
    pub model: Option<ModelReport>,
    /// The smallest context of its backends: what fits wherever the request lands.
    pub n_ctx: Option<u32>,
    /// Names of the nodes that have it.
    pub nodes: Vec<String>,
}

impl Listed {
    fn of(id: &str, kind: ListedKind, backends: &[Backend<'_>]) -> Self {
        let state = |backend: &Backend<'_>| match backend.tier.state {
            TierState::Sleeping if backend.node.asleep.is_some() || backend.node.foreign => {
                ListedState::Sleeping
            }
            // A tier that only reads its model again answers too, a little later.
            TierState::Ready | TierState::Sleeping if !backend.node.draining => ListedState::Ready,
            TierState::Ready | TierState::Sleeping | TierState::Loading => ListedState::Loading,
            TierState::Down => ListedState::Unavailable,
        };
        let best = backends.iter().max_by_key(|backend| state(backend));
        let models = backends.iter().filter_map(|one| one.tier.model.as_ref());
        let nodes: BTreeSet<&str> = backends.iter().map(|one| one.node.name.as_str()).collect();
        Self {
            id: id.to_owned(),
            kind,
            tier: best
                .filter(|_| kind != ListedKind::Auto)
                .map(|one| one.tier.tier),
            state: best.map_or(ListedState::Unavailable, state),
            model: best.and_then(|one| one.tier.model.clone()),
            n_ctx: models.map(|model| model.n_ctx).min(),
            nodes: nodes.into_iter().map(str::to_owned).collect(),
        }
    }
}

/// All nodes.
#[derive(Debug)]
pub struct Registry {
    nodes: Nodes,
    /// Servers outside the tunnel, and whether they are at home all the same.
    foreign: BTreeMap<NodeId, bool>,
    /// Nodes that get no work because an administrator said so, whether they are here, asleep or away.
    held: BTreeSet<NodeId>,
    silent_after: Duration,
    nodes_max: usize,
    remembered: BTreeMap<String, Tier>,
}

impl Registry {
    /// An empty registry; a node that says nothing for `silent_after` leaves it.
    pub fn new(silent_after: Duration, nodes_max: usize) -> Self {
        Self {
            nodes: Nodes::default(),
            foreign: BTreeMap::new(),
            held: BTreeSet::new(),
            silent_after,
            nodes_max,
            remembered: BTreeMap::new(),
        }
    }

    /// From now on this name stands for a server outside the tunnel, at home or not. Say so before its first report.
    pub fn place_outside(&mut self, node: NodeId, local: bool) {
        self.foreign.insert(node, local);
    }

    /// A server outside the tunnel, or without an agent, is gone: its name stands for nothing any more.
    pub fn place_nowhere(&mut self, node: &NodeId) {
        self.foreign.remove(node);
    }

    /// Takes a report of the node that people call `name`. The caller has checked who speaks.
    pub fn report(
        &mut self,
        name: &str,
        report: Report,
        now: Instant,
    ) -> Result<Vec<Change>, ReportRefusal> {
        check(&report)?;
        let old = self.nodes.get(&report.node_id);
        match old {
            Some(node) if report.seq <= node.seq => return Err(ReportRefusal::Stale),
            None if self.nodes.len() >= self.nodes_max => return Err(ReportRefusal::TooManyNodes),
            Some(_) | None => {}
        }
        let changes = changes(old, &report);
        self.remember(&report.tiers);
        let node = Node {
            id: report.node_id.clone(),
            name: name.to_owned(),
            draining: report.draining || self.held.contains(&report.node_id),
            memory: report.memory,
            tiers: report.tiers,
            reported_at: now,
            local: self.foreign.get(&report.node_id).copied().unwrap_or(true),
            foreign: self.foreign.contains_key(&report.node_id),
            wake: report.wake,
            asleep: None,
            back_end: report.back_end,
            seq: report.seq,
        };
        self.nodes.put(node);
        Ok(changes)
    }

    /// The node was started anew: its count begins again, and until it reports nothing of it is believed.
    pub fn forget(&mut self, node: &NodeId) -> bool {
        self.nodes.take(node).is_some()
    }

    /// An administrator says whether the node gets no new work; whether that is news. It counts at once, also for one that sleeps: that
    /// is not woken. That it gets work again counts from its next report on, and at once where none comes because it sleeps.
    pub fn hold(&mut self, node: &NodeId, held: bool) -> bool {
        let is_news = if held {
            self.held.insert(node.clone())
        } else {
            self.held.remove(node)
        };
        if is_news {
            self.nodes.change(node, |node| {
                node.draining = held || (node.draining && node.asleep.is_none());
            });
        }
        is_news
    }

    /// The node gives no sign of life: it sleeps if something can wake it, else nothing of it is believed until it reports.
    pub fn lose(&mut self, node: &NodeId, now: Instant) {
        let Some(mut lost) = self.nodes.take(node) else {
            return;
        };
        if lost.fall_asleep(self.held.contains(node), now) {
            self.nodes.put(lost);
        }
    }

    /// Drops nodes that were silent for too long and returns them. Those that can be woken stay, asleep.
    pub fn expire(&mut self, now: Instant) -> Vec<NodeId> {
        let silent: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|node| self.is_silent(node, now))
            .map(|node| node.id.clone())
            .collect();
        for id in &silent {
            self.lose(id, now);
        }
        self.forgive(now);
        silent
    }

    /// Nodes that did not wake up may be tried again when their time is over.
    fn forgive(&mut self, now: Instant) {
        let is_due = |node: &&Node| {
            let until = node.asleep.and_then(|asleep| asleep.gives_up_until);
            until.is_some_and(|until| until <= now)
        };
        let due = self.nodes.values().filter(is_due);
        let due: Vec<NodeId> = due.map(|node| node.id.clone()).collect();
        for id in due {
            self.nodes.change(&id, |node| {
                node.wakes_until(None);
                for tier in &mut node.tiers {
                    tier.state = TierState::Sleeping;
                    tier.reason = None;
                }
            });
        }
    }

    /// A node that sleeps did not wake up: until then it is down.
    pub fn overslept(&mut self, node: &NodeId, until: Instant) {
        self.nodes.change(node, |node| {
            if node.wakes_until(Some(until)) {
                for tier in &mut node.tiers {
                    tier.state = TierState::Down;
                    tier.reason = Some("it did not wake up".to_owned());
                }
            }
        });
    }

    /// A node that slept when this process started, as another one remembers it. Ignored once the node has spoken for itself.
    pub fn recall(&mut self, name: &str, report: Report, now: Instant) -> bool {
        let can_be_woken = report.wake.as_ref().is_some_and(WakeReport::can_be_woken);
        if !can_be_woken || self.nodes.get(&report.node_id).is_some() {
            return false;
        }
        let id = report.node_id.clone();
        if self.report(name, Report { seq: 0, ..report }, now).is_err() {
            return false;
        }
        self.lose(&id, now);
        true
    }

    /// When [`Self::expire`] has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let awake = self.nodes.values().filter(|node| node.asleep.is_none());
        let silent = awake.map(|node| node.reported_at + self.silent_after);
        let asleep = self.nodes.values().filter_map(|node| node.asleep);
        silent
            .chain(asleep.filter_map(|asleep| asleep.gives_up_until))
            .min()
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One node.
    pub fn node(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// Whether the node's last report is too old, even if [`Self::expire`] was not called since.
    pub fn is_silent(&self, node: &Node, now: Instant) -> bool {
        node.asleep.is_none()
            && now.saturating_duration_since(node.reported_at) >= self.silent_after
    }

    /// All backends, by node and tier.
    pub fn backends(&self) -> impl Iterator<Item = Backend<'_>> {
        self.nodes.backends()
    }

    /// The backends of a tier; by their last reports the best first.
    pub fn of_tier(&self, tier: Tier) -> impl Iterator<Item = Backend<'_>> {
        self.nodes.of_tier(tier)
    }

    /// The backends whose model has this name; by their last reports the best first.
    pub fn named(&self, model: &str) -> impl Iterator<Item = Backend<'_>> {
        self.nodes.named(model)
    }

    /// One backend.
    pub fn backend(&self, id: &BackendId) -> Option<Backend<'_>> {
        self.nodes.backend(id)
    }

    /// Whether any node has the tier, able to answer or not.
    pub fn has_tier(&self, tier: Tier) -> bool {
        self.of_tier(tier).next().is_some()
    }

    /// The tier of a model that some node has, or had.
    pub fn tier_of_model(&self, model: &str) -> Option<Tier> {
        let known = self.nodes.tier_of_model(model);
        known.or_else(|| self.remembered.get(model).copied())
    }

    /// What `GET /v1/models` lists: `auto`, the tiers that exist, then the models, each once.
    pub fn list(&self, auto_models: &[String]) -> Vec<Listed> {
        let mut tiers: BTreeMap<Tier, Vec<Backend<'_>>> = BTreeMap::new();
        let mut models: BTreeMap<&str, Vec<Backend<'_>>> = BTreeMap::new();
        let every: Vec<Backend<'_>> = self.backends().collect();
        for backend in &every {
            tiers.entry(backend.tier.tier).or_default().push(*backend);
            for name in backend.tier.model.iter().flat_map(names) {
                models.entry(name).or_default().push(*backend);
            }
        }
        // A model that is called like a tier or like `auto` cannot be asked for by that name.
        models.retain(|id, _| {
            tier_of_model(id).is_none() && !auto_models.iter().any(|auto| auto == id)
        });
        let auto = auto_models
            .iter()
            .map(|id| Listed::of(id, ListedKind::Auto, &every));
        let tiers = tiers
            .iter()
            .map(|(tier, backends)| Listed::of(tier.as_str(), ListedKind::Tier, backends));
        let models = models
            .iter()
            .map(|(id, backends)| Listed::of(id, ListedKind::Model, backends));
        auto.chain(tiers).chain(models).collect()
    }

    fn remember(&mut self, tiers: &[TierReport]) {
        for tier in tiers {
            for name in tier.model.iter().flat_map(names) {
                if self.remembered.len() < REMEMBERED_MAX || self.remembered.contains_key(name) {
                    self.remembered.insert(name.to_owned(), tier.tier);
                }
            }
        }
    }
}

/// The names that clients may use for a model, its id first.
fn names(model: &ModelReport) -> impl Iterator<Item = &str> {
    let aliases = model.aliases.iter().map(String::as_str);
    std::iter::once(model.id.as_str()).chain(aliases)
}

fn check(report: &Report) -> Result<(), ReportRefusal> {
    if report.version != VERSION {
        return Err(ReportRefusal::Version);
    }
    let mut seen = BTreeSet::new();
    for tier in &report.tiers {
        if !seen.insert(tier.tier) {
            return Err(ReportRefusal::Malformed("a tier appears twice"));
        }
        if tier.state == TierState::Ready && (tier.model.is_none() || tier.slots == 0) {
            return Err(ReportRefusal::Malformed(
                "a ready tier needs a model and slots",
            ));
        }
        let is_name =
            |id: &str| (1..=MODEL_ID_MAX).contains(&id.len()) && !id.chars().any(char::is_control);
        if !tier.model.iter().flat_map(names).all(is_name) {
            return Err(ReportRefusal::Malformed(
                "a model's id must be 1 to 256 printable characters",
            ));
        }
        if !(tier.tokens_per_second >= 0.0 && tier.prompt_tokens_per_second >= 0.0) {
            return Err(ReportRefusal::Malformed("a speed must not be negative"));
        }
    }
    Ok(())
}

fn changes(old: Option<&Node>, report: &Report) -> Vec<Change> {
    let mut all = Vec::new();
    if old.is_none() {
        all.push(Change::NodeUp(report.node_id.clone()));
    }
    if old.map_or(report.draining, |node| node.draining != report.draining) {
        all.push(Change::Draining(report.node_id.clone(), report.draining));
    }
    for tier in Tier::ALL {
        let state = |tiers: &[TierReport]| {
            let found = tiers.iter().find(|one| one.tier == tier);
            found.map(|one| one.state)
        };
        let from = old.and_then(|node| state(&node.tiers));
        let to = state(&report.tiers);
        if from != to {
            let node = report.node_id.clone();
            all.push(Change::Backend {
                backend: BackendId { node, tier },
                from,
                to,
            });
        }
    }
    all
}

#[cfg(test)]
mod tests;
