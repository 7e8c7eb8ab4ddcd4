//! The nodes, found by id, by tier and by model name. Tiers and names list their backends by what the last report said of their load,
//! so that whoever looks for a good one need not look at all. Every change goes through here: the lists never disagree with the nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use config::ids::{BackendId, NodeId};
use config::tier::Tier;
use config::wire::node::{TierReport, TierState};

use super::{Backend, Node, names};

/// How good a backend looks from its report alone, the best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Rank {
    /// A free slot, then a place in the queue, then whoever must wake up, then nothing.
    standing: u8,
    /// Jobs a slot, in thousandths.
    busy: u32,
    /// How long it takes for a token.
    pace: Duration,
}

impl Rank {
    fn of(node: &Node, tier: &TierReport) -> Self {
        let jobs = tier.slots_busy.saturating_add(tier.queue_depth);
        let slots = tier.slots.max(1);
        let standing = match tier.state {
            TierState::Down => 3,
            TierState::Loading if tier.wakes_in_ms == 0 => 3,
            TierState::Ready | TierState::Sleeping | TierState::Loading if node.draining => 3,
            TierState::Sleeping | TierState::Loading => 2,
            TierState::Ready => u8::from(jobs >= slots),
        };
        Self {
            standing,
            busy: jobs.saturating_mul(1_000) / slots,
            pace: Duration::from_secs_f64(1.0 / tier.tokens_per_second.clamp(0.001, 1e6)),
        }
    }
}

type Ranked = BTreeSet<(Rank, BackendId)>;

/// All nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: BTreeMap<NodeId, Node>,
    tiers: BTreeMap<Tier, Ranked>,
    models: HashMap<String, Ranked>,
}

impl Nodes {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn get(&self, id: &NodeId) -> Option<&Node> {
        self.known.get(id)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Node> {
        self.known.values()
    }

    /// Takes a node in, in the place of what was known of it.
    pub(super) fn put(&mut self, node: Node) {
        self.take(&node.id);
        for (rank, backend, tier) in places(&node) {
            let ranked = self.tiers.entry(backend.tier).or_default();
            ranked.insert((rank, backend.clone()));
            for name in tier.model.iter().flat_map(names) {
                let ranked = self.models.entry(name.to_owned()).or_default();
                ranked.insert((rank, backend.clone()));
            }
        }
        self.known.insert(node.id.clone(), node);
    }

    /// Lets a node go.
    pub(super) fn take(&mut self, id: &NodeId) -> Option<Node> {
        let node = self.known.remove(id)?;
        for (rank, backend, tier) in places(&node) {
            let place = (rank, backend);
            if let Some(ranked) = self.tiers.get_mut(&place.1.tier) {
                ranked.remove(&place);
            }
            for name in tier.model.iter().flat_map(names) {
                let Some(ranked) = self.models.get_mut(name) else {
                    continue;
                };
                ranked.remove(&place);
                if ranked.is_empty() {
                    self.models.remove(name);
                }
            }
        }
        Some(node)
    }

    /// Changes a node, if it is known.
    pub(super) fn change(&mut self, id: &NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(mut node) = self.take(id) {
            change(&mut node);
            self.put(node);
        }
    }

    /// All backends, by node and tier.
    pub(super) fn backends(&self) -> impl Iterator<Item = Backend<'_>> {
        self.values()
            .flat_map(|node| node.tiers.iter().map(move |tier| Backend { node, tier }))
    }

    /// One backend.
    pub(super) fn backend(&self, id: &BackendId) -> Option<Backend<'_>> {
        let node = self.get(&id.node)?;
        let tier = node.tiers.iter().find(|tier| tier.tier == id.tier)?;
        Some(Backend { node, tier })
    }

    /// The backends of a tier, the best first.
    pub(super) fn of_tier(&self, tier: Tier) -> impl Iterator<Item = Backend<'_>> {
        self.all(self.tiers.get(&tier))
    }

    /// The backends whose model has this name, the best first.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = Backend<'_>> {
        self.all(self.models.get(name))
    }

    /// The tier of a model: of whoever has it by its id before those that call it so besides, by node.
    pub(super) fn tier_of_model(&self, name: &str) -> Option<Tier> {
        let ranked = self.models.get(name)?;
        let first = ranked.first()?.1.tier;
        if ranked.iter().all(|(_, backend)| backend.tier == first) {
            return Some(first);
        }
        let is_alias = |id: &BackendId| {
            let backend = self.backend(id);
            backend.is_none_or(|backend| backend.model_id() != Some(name))
        };
        let ids = ranked.iter().map(|(_, backend)| backend);
        let best = ids.min_by_key(|backend| (is_alias(backend), *backend))?;
        Some(best.tier)
    }

    fn all<'a>(&'a self, ranked: Option<&'a Ranked>) -> impl Iterator<Item = Backend<'a>> {
        let ids = ranked.into_iter().flatten();
        ids.filter_map(|(_, id)| self.backend(id))
    }
}

/// Where a node's tiers stand. A report never has a tier twice.
fn places(node: &Node) -> impl Iterator<Item = (Rank, BackendId, &TierReport)> {
    node.tiers.iter().map(|tier| {
        let node_id = node.id.clone();
        let backend = BackendId {
            node: node_id,
            tier: tier.tier,
        };
        (Rank::of(node, tier), backend, tier)
    })
}
