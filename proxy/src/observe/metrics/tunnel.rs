//! How the tunnel and each node in it are: series that are read off when somebody looks. A node's series are named by its name and its id,
//! because two machines may have the same name; their number is bounded by the settings, and they end with the node.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use ::tunnel::{Counters, PathKind, PeerStatus};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{BackEndLabel, NodeLabel, NodeReasonLabel, ReasonLabel};
use super::{Metrics, Seconds};

type Count = Gauge<i64, AtomicI64>;

/// One node of the tunnel at the moment of looking.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// What people call it.
    pub name: String,
    /// Its name for ever.
    pub id: String,
    /// Its peer in the tunnel; `None`: there is none.
    pub status: Option<PeerStatus>,
    /// Beginnings of conversations that lie in its caches, as far as it told.
    pub prefixes: usize,
}

impl NodeFacts {
    fn label(&self) -> NodeLabel {
        NodeLabel {
            node: self.name.clone(),
            id: self.id.clone(),
        }
    }
}

/// The series.
#[derive(Debug, Default)]
pub(super) struct TunnelSeries {
    /// Whose series there are.
    known: Mutex<BTreeSet<NodeLabel>>,
    connected: Family<NodeLabel, Count>,
    handshake_age: Family<NodeLabel, Seconds>,
    round_trip: Family<NodeLabel, Seconds>,
    loss: Family<NodeLabel, Seconds>,
    received: Family<NodeLabel, Counter>,
    sent: Family<NodeLabel, Counter>,
    rejected: Family<NodeReasonLabel, Counter>,
    prefixes: Family<NodeLabel, Count>,
    carried: Family<NodeLabel, Count>,
    mtu: Family<NodeLabel, Count>,
    back_end: Family<BackEndLabel, Count>,
    rejections: Family<ReasonLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// How each node of the tunnel is now; the series of every other node end.
    pub fn nodes(&self, nodes: &[NodeFacts]) {
        self.tunnel.nodes(nodes);
    }

    /// Who does TCP at this end of the tunnel, and what the tunnel has rejected since its start, whoever it came from.
    pub fn tunnel(&self, back_end: &'static str, rejected: &Counters) {
        let label = BackEndLabel { back_end };
        self.tunnel.back_end.get_or_create(&label).set(1);
        for (reason, packets) in rejected.each() {
            let label = ReasonLabel { reason };
            hold(&self.tunnel.rejections.get_or_create(&label), packets);
        }
    }

    /// An enrolment or a registration was refused.
    pub fn node_refused(&self, reason: &'static str) {
        let label = ReasonLabel { reason };
        self.tunnel.refusals.get_or_create(&label).inc();
    }
}

impl TunnelSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "node_connected",
            "1: there is a WireGuard session with a node; 0: there is none",
            self.connected.clone(),
        );
        registry.register(
            "wg_last_handshake_seconds",
            "Time since the last WireGuard handshake with a node",
            self.handshake_age.clone(),
        );
        registry.register(
            "node_round_trip_seconds",
            "The way to a node and back inside the tunnel",
            self.round_trip.clone(),
        );
        registry.register(
            "node_loss_ratio",
            "Lost of the last 64 echoes to a node and back, 0 to 1",
            self.loss.clone(),
        );
        registry.register(
            "node_received_bytes",
            "Bytes received from a node inside the tunnel",
            self.received.clone(),
        );
        registry.register(
            "node_sent_bytes",
            "Bytes sent to a node inside the tunnel",
            self.sent.clone(),
        );
        registry.register(
            "node_rejected_packets",
            "Packets and handshakes rejected by the tunnel that were certainly a node's, by reason",
            self.rejected.clone(),
        );
        self.register_paths(registry);
    }

    fn register_paths(&self, registry: &mut Registry) {
        registry.register(
            "node_prefixes",
            "Beginnings of conversations that lie in a node's caches, as far as it told",
            self.prefixes.clone(),
        );
        registry.register(
            "node_carried",
            "1: a node's datagrams come over HTTPS, because no UDP gets through; 0: by UDP",
            self.carried.clone(),
        );
        registry.register(
            "node_mtu_bytes",
            "The largest packet inside the tunnel that the path to a node carries",
            self.mtu.clone(),
        );
        registry.register(
            "tunnel_back_end",
            "1 for whoever does TCP at this end of the tunnel: netns, the kernel; embedded, this program",
            self.back_end.clone(),
        );
        registry.register(
            "tunnel_rejected_packets",
            "Packets and handshakes rejected by the tunnel, by reason: of strangers and of nodes",
            self.rejections.clone(),
        );
        registry.register(
            "node_refusals",
            "Enrolments and registrations that were refused, by reason",
            self.refusals.clone(),
        );
    }

    fn nodes(&self, nodes: &[NodeFacts]) {
        let now: BTreeSet<NodeLabel> = nodes.iter().map(NodeFacts::label).collect();
        let before = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, now.clone())
        };
        for gone in before.difference(&now) {
            self.forget(gone);
        }
        for node in nodes {
            let label = node.label();
            match &node.status {
                Some(status) => self.peer(&label, status),
                None => self.apart(&label),
            }
            let prefixes = i64::try_from(node.prefixes).unwrap_or(i64::MAX);
            self.prefixes.get_or_create(&label).set(prefixes);
        }
    }

    fn peer(&self, label: &NodeLabel, status: &PeerStatus) {
        hold(&self.received.get_or_create(label), status.rx_bytes);
        hold(&self.sent.get_or_create(label), status.tx_bytes);
        for (reason, packets) in status.rejected.each() {
            // A reason that never was has no series: there are thirteen of them a node.
            if packets > 0 {
                let label = NodeReasonLabel {
                    node: label.node.clone(),
                    id: label.id.clone(),
                    reason,
                };
                hold(&self.rejected.get_or_create(&label), packets);
            }
        }
        let Some(age) = status.since_handshake else {
            return self.apart(label);
        };
        self.connected.get_or_create(label).set(1);
        self.handshake_age
            .get_or_create(label)
            .set(age.as_secs_f64());
        if let Some(time) = status.round_trip {
            self.round_trip.get_or_create(label).set(time.as_secs_f64());
        }
        if let Some(loss) = status.loss_per_mille {
            self.loss
                .get_or_create(label)
                .set(f64::from(loss) / 1_000.0);
        }
        let carried = i64::from(status.path == PathKind::Carried);
        self.carried.get_or_create(label).set(carried);
        let mtu = i64::try_from(status.mtu).unwrap_or(i64::MAX);
        self.mtu.get_or_create(label).set(mtu);
    }

    /// Without a session: what was measured in the last one is no news any more.
    fn apart(&self, label: &NodeLabel) {
        self.connected.get_or_create(label).set(0);
        self.handshake_age.remove(label);
        self.round_trip.remove(label);
        self.loss.remove(label);
        self.carried.remove(label);
        self.mtu.remove(label);
    }

    fn forget(&self, label: &NodeLabel) {
        self.apart(label);
        self.connected.remove(label);
        self.received.remove(label);
        self.sent.remove(label);
        self.prefixes.remove(label);
        for (reason, _) in Counters::default().each() {
            self.rejected.remove(&NodeReasonLabel {
                node: label.node.clone(),
                id: label.id.clone(),
                reason,
            });
        }
    }
}

/// Shows a count that is kept elsewhere and only grows there; it begins again where the peer does.
fn hold(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}
