//! What runs beside the requests: the janitor of nodes and connections, the look into the store for nodes that registered
//! elsewhere, and the gauges. Each task ends with the proxy.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::ids::NodeId;
use config::settings::plan::Zone;
use config::settings::proxy::Usage;
use config::tier::Tier;
use policy::breaker::Phase;
use policy::calendar::Today;
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tunnel::Tunnel;

use super::Crew;
use crate::admin::words::NodeNow;
use crate::nodes::fleet::Fleet;
use crate::nodes::gossip;
use crate::nodes::members::Members;
use crate::nodes::peers::Peers;
use crate::nodes::pulse::{self, Pulse};
use crate::nodes::upstream::Upstream;
use crate::observe::metrics::{BreakerGauge, Metrics, NodeFacts};
use crate::store::Store;
use crate::store::changes::{self, Change};
use crate::store::ledger::Keep;

/// A silent node is noticed at most so late.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A node registered or revoked at another proxy is noticed at most so late.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// Sums are so much behind, where the store does not add up by itself.
const FOLD_EVERY: Duration = Duration::from_secs(5);
/// Each time at most so much goes that nobody waits for it.
const PRUNE_EVERY: Duration = Duration::from_mins(10);
/// The way to a node that has nothing to do is measured so often: 64 of these, which the loss is made of, are five minutes.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// A peer that was silent for longer is not asked: nobody wakes up a machine to measure the way to it.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// How exact `last seen` is.
const SEEN_EVERY: Duration = Duration::from_mins(1);

/// What the tasks work on.
#[derive(Clone)]
pub(super) struct Background {
    pub(super) fleet: Arc<Fleet>,
    pub(super) members: Arc<Members>,
    pub(super) peers: Arc<Peers>,
    pub(super) upstream: Upstream,
    pub(super) tunnel: Tunnel,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Arc<dyn Store>,
    pub(super) usage: Usage,
    pub(super) pulse_rules: pulse::Rules,
}

impl Background {
    /// Starts the tasks.
    pub(super) fn start(self, crew: &Crew) {
        let (syncing, seeing) = (self.clone(), self.clone());
        let (booking, pruning) = (self.clone(), self.clone());
        let measuring = self.clone();
        let pulse = self.pulse();
        let gossip = gossip::share(&self.fleet, &self.store);
        crew.employ(async move { self.sweep().await });
        crew.employ(async move { syncing.sync().await });
        crew.employ(async move { seeing.note_seen().await });
        crew.employ(async move { measuring.measure_paths().await });
        crew.employ(async move { booking.keep_books().await });
        crew.employ(async move { pruning.prune_books().await });
        crew.employ(pulse.watch());
        crew.employ(gossip.run());
    }

    fn pulse(&self) -> Pulse {
        Pulse {
            fleet: Arc::clone(&self.fleet),
            members: Arc::clone(&self.members),
            upstream: self.upstream.clone(),
            tunnel: self.tunnel.clone(),
            metrics: Arc::clone(&self.metrics),
            rules: self.pulse_rules,
        }
    }

    async fn sweep(&self) {
        let mut ticks = ticks(SWEEP_EVERY);
        loop {
            ticks.tick().await;
            for node in self.fleet.expire(Instant::now().into_std()) {
                self.silent(&node);
            }
            self.upstream.sweep();
        }
    }

    /// Requests that wait for a node which is gone go on to the next step at once, not at their deadline.
    fn silent(&self, node: &NodeId) {
        let Some(member) = self.members.member(node) else {
            return;
        };
        let heard = self
            .tunnel
            .peer_status(member.address)
            .and_then(|status| status.since_heard);
        let heard_ms = heard.map(|heard| heard.as_millis());
        tracing::warn!(%node, name = member.name, heard_ms, "a node is silent");
        // Packets still come: it is the agent that is late, answers under way may finish.
        if heard.is_none_or(|heard| heard > SYNC_EVERY) {
            self.upstream.cut(member.address);
        }
    }

    /// Adds up what was settled since.
    async fn keep_books(&self) {
        let mut ticks = ticks(FOLD_EVERY);
        loop {
            ticks.tick().await;
            if let Err(error) = self.store.fold().await {
                tracing::debug!(%error, "usage is added up later");
            }
        }
    }

    /// Removes what is older than the settings keep.
    async fn prune_books(&self) {
        let mut ticks = ticks(PRUNE_EVERY);
        loop {
            ticks.tick().await;
            let now_ms = crate::admin::server::now_unix_ms();
            let before = |kept: Duration| {
                now_ms.saturating_sub(u64::try_from(kept.as_millis()).unwrap_or(u64::MAX))
            };
            let day = Today::at(Zone::default(), before(self.usage.retention))
                .day
                .label;
            let keep = Keep {
                records_from_ms: before(self.usage.records_retention),
                sums_from_day: day.to_string(),
            };
            match self.store.prune(&keep).await {
                Ok(0) => {}
                Ok(gone) => tracing::info!(gone, "old usage was removed"),
                Err(error) => tracing::warn!(%error, "old usage cannot be removed"),
            }
        }
    }

    /// Asks every node for an echo: its answer tells the round trip, and the answers that fail to come tell the loss. So the first request
    /// after a quiet night knows how far each of them is.
    async fn measure_paths(&self) {
        let mut ticks = ticks(MEASURE_EVERY);
        loop {
            ticks.tick().await;
            for member in self.members.all() {
                let Some(status) = self.tunnel.peer_status(member.address) else {
                    continue;
                };
                if let Some(round_trip) = status.round_trip {
                    self.fleet.took(&member.id, round_trip);
                }
                let is_heard = status.since_heard.is_some_and(|heard| heard < SILENT_MAX);
                if is_heard && status.since_handshake.is_some() {
                    // An error: it has just left the tunnel.
                    let _asked = self.tunnel.echo(member.address).await;
                }
            }
        }
    }

    async fn sync(&self) {
        let mut ticks = ticks(SYNC_EVERY);
        let mut changes = self.store.changes();
        let mut is_away = false;
        loop {
            // What another proxy changed counts at once; the look every two seconds is the net under it.
            tokio::select! {
                _ = ticks.tick() => {}
                () = node_changed(&mut changes) => {}
            }
            let synced = self.peers.sync().await;
            if let Err(error) = &synced {
                self.metrics.store_error(error.label());
                if !is_away {
                    tracing::warn!(%error, "nodes cannot be read from the store");
                }
            }
            is_away = synced.is_err();
        }
    }

    async fn note_seen(&self) {
        let mut ticks = ticks(SEEN_EVERY);
        loop {
            ticks.tick().await;
            let nodes: Vec<NodeId> = self.fleet.with(|router| {
                let nodes = router.registry().nodes();
                // One that sleeps is known, not seen.
                let seen = nodes.filter(|node| node.asleep.is_none());
                seen.map(|node| node.id.clone()).collect()
            });
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let now_unix = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            if let Err(error) = self.peers.note_seen(&nodes, now_unix).await {
                self.metrics.store_error(error.label());
            }
        }
    }
}

/// Returns when a node was registered, changed or revoked anywhere, or when that may have been missed.
async fn node_changed(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes::next(changes).await {
            Some(Change::Node(_) | Change::Everything) => break,
            Some(
                Change::Key(_)
                | Change::User(_)
                | Change::Denials
                | Change::Breaker { .. }
                | Change::Hub { .. },
            ) => {}
            None => std::future::pending().await,
        }
    }
    // One look for all that changed meanwhile.
    while changes.try_recv().is_ok() {}
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Sets the gauges that nobody sets on the way.
pub(super) fn refresh(metrics: &Metrics, fleet: &Fleet, members: &Members, tunnel: &Tunnel) {
    let now = Instant::now().into_std();
    let phases = fleet.phases(now);
    let (ready, depths, prefixes) = fleet.with(|router| {
        let registry = router.registry();
        let is_ready = |node: &&policy::registry::Node| {
            node.asleep.is_none() && node.tiers.iter().any(|tier| tier.state.answers())
        };
        let depth = |tier: Tier| -> u32 {
            let backends = registry
                .backends()
                .filter(|backend| backend.tier.tier == tier);
            backends.map(|backend| backend.tier.queue_depth).sum()
        };
        (
            registry.nodes().filter(is_ready).count(),
            Tier::ALL.map(|tier| (tier, depth(tier))),
            router.prefixes(),
        )
    });
    metrics.nodes_ready(ready);
    for (tier, depth) in depths {
        metrics.queue_depth(tier, depth);
        let worst = phases
            .iter()
            .filter(|(backend, _)| backend.tier == tier)
            .map(|(_, phase)| *phase);
        metrics.breaker(
            tier,
            worst
                .max_by_key(|phase| phase.gauge())
                .map_or(BreakerGauge::Closed, gauge),
        );
    }
    metrics.tunnel(tunnel.backend().name(), &tunnel.counters());
    let members = members.all().into_iter();
    let facts = members.filter(|member| member.is_in_tunnel());
    let facts: Vec<NodeFacts> = facts
        .map(|member| NodeFacts {
            name: member.name.clone(),
            id: member.id.to_string(),
            status: tunnel.peer_status(member.address),
            prefixes: prefixes.get(member.name.as_str()).copied().unwrap_or(0),
        })
        .collect();
    metrics.nodes(&facts);
}

const fn gauge(phase: Phase) -> BreakerGauge {
    match phase {
        Phase::Closed => BreakerGauge::Closed,
        Phase::Open { .. } => BreakerGauge::Open,
        Phase::ProbeDue | Phase::Probing { .. } => BreakerGauge::HalfOpen,
    }
}

/// The nodes with a fresh report, for the administrator.
pub(super) fn nodes_now(fleet: &Fleet, members: &Members) -> Vec<NodeNow> {
    let now = Instant::now().into_std();
    let tier = |tier: &config::wire::node::TierReport| {
        let state = tier.state.as_str();
        let model = tier.model.as_ref().map_or("-", |model| model.id.as_str());
        let reason = tier.reason.as_ref().filter(|_| !tier.state.answers());
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        format!(
            "{} {state} {model} {}/{}{reason}",
            tier.tier, tier.slots_busy, tier.slots
        )
    };
    let is_in_tunnel = |id: &NodeId| {
        let member = members.member(id);
        member.is_some_and(|member| member.is_in_tunnel())
    };
    fleet.with(|router| {
        let nodes = router.registry().nodes();
        nodes
            .map(|node| NodeNow {
                id: node.id.clone(),
                asleep: node.asleep.is_some(),
                // One without an agent is a node of the house like any other.
                outside: node.foreign && !is_in_tunnel(&node.id),
                seen_secs_ago: now.saturating_duration_since(node.reported_at).as_secs(),
                tiers: node.tiers.iter().map(tier).collect(),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use config::ids::{KeyId, UserId};

    use super::*;

    #[tokio::test]
    async fn a_node_that_changed_anywhere_is_heard_of_at_once_and_once() {
        let (publish, mut changes) = broadcast::channel(4);
        let node = |id: &str| Change::Node(NodeId::new(id));
        for change in [Change::Key(KeyId::new("k")), node("a"), node("b")] {
            publish.send(change).unwrap();
        }
        node_changed(&mut changes).await;
        assert!(changes.is_empty(), "one look for both");

        publish.send(Change::User(UserId::new("ada"))).unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(20), node_changed(&mut changes));
        assert!(quiet.await.is_err(), "people are no nodes");

        for id in ["a", "b", "c", "d", "e", "f"] {
            publish.send(node(id)).unwrap();
        }
        node_changed(&mut changes).await;
        drop(publish);
        let gone = tokio::time::timeout(Duration::from_millis(20), node_changed(&mut changes));
        assert!(
            gone.await.is_err(),
            "a store that is gone is not asked in a circle"
        );
    }
}
