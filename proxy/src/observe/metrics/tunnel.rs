//! How the tunnel and each node in it are: gauges that are read off when somebody looks. The names of nodes are bounded by the settings.

use std::sync::atomic::AtomicI64;

use ::tunnel::{PathKind, PeerStatus};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{NodeLabel, ReasonLabel};
use super::{Metrics, Seconds};

type Count = Gauge<i64, AtomicI64>;

/// The series.
#[derive(Debug, Default)]
pub(super) struct TunnelSeries {
    handshake_age: Family<NodeLabel, Seconds>,
    round_trip: Family<NodeLabel, Seconds>,
    received: Family<NodeLabel, Count>,
    sent: Family<NodeLabel, Count>,
    prefixes: Family<NodeLabel, Count>,
    carried: Family<NodeLabel, Count>,
    mtu: Family<NodeLabel, Count>,
    drops: Family<ReasonLabel, Count>,
    refusals: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// How the tunnel to a node is, by its name; the number of nodes is bounded by the settings.
    pub fn node(&self, node: &str, status: &PeerStatus) {
        self.tunnel.node(node, status);
    }

    /// So many beginnings of conversations lie in a node's caches.
    pub fn node_prefixes(&self, node: &str, prefixes: usize) {
        let label = NodeLabel { node: node.into() };
        let gauge = self.tunnel.prefixes.get_or_create(&label);
        gauge.set(i64::try_from(prefixes).unwrap_or(i64::MAX));
    }

    /// What the tunnel has dropped since the start, for this reason.
    pub fn tunnel_drops(&self, reason: &'static str, packets: u64) {
        self.tunnel.drops(reason, packets);
    }

    /// An enrolment or a registration was refused.
    pub fn node_refused(&self, reason: &'static str) {
        self.tunnel.refused(reason);
    }

    /// A node is gone: its series end.
    pub fn forget_node(&self, node: &str) {
        self.tunnel.forget(node);
    }
}

impl TunnelSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
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
            "node_received_bytes",
            "Bytes received from a node inside the tunnel since it registered",
            self.received.clone(),
        );
        registry.register(
            "node_sent_bytes",
            "Bytes sent to a node inside the tunnel since it registered",
            self.sent.clone(),
        );
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
            "tunnel_drops",
            "Packets and handshakes that the tunnel has dropped since the start, by reason",
            self.drops.clone(),
        );
        registry.register(
            "node_refusals",
            "Enrolments and registrations that were refused, by reason",
            self.refusals.clone(),
        );
    }

    pub(super) fn node(&self, node: &str, status: &PeerStatus) {
        let label = NodeLabel { node: node.into() };
        let count = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        if let Some(age) = status.since_handshake {
            let gauge = self.handshake_age.get_or_create(&label);
            gauge.set(age.as_secs_f64());
        }
        if let Some(time) = status.round_trip {
            let gauge = self.round_trip.get_or_create(&label);
            gauge.set(time.as_secs_f64());
        }
        self.received
            .get_or_create(&label)
            .set(count(status.rx_bytes));
        self.sent.get_or_create(&label).set(count(status.tx_bytes));
        let carried = i64::from(status.path == PathKind::Carried);
        self.carried.get_or_create(&label).set(carried);
        let mtu = i64::try_from(status.mtu).unwrap_or(i64::MAX);
        self.mtu.get_or_create(&label).set(mtu);
    }

    pub(super) fn forget(&self, node: &str) {
        let label = NodeLabel { node: node.into() };
        self.handshake_age.remove(&label);
        self.round_trip.remove(&label);
        self.received.remove(&label);
        self.sent.remove(&label);
        self.prefixes.remove(&label);
        self.carried.remove(&label);
        self.mtu.remove(&label);
    }

    pub(super) fn drops(&self, reason: &'static str, packets: u64) {
        let gauge = self.drops.get_or_create(&ReasonLabel { reason });
        gauge.set(i64::try_from(packets).unwrap_or(i64::MAX));
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }
}
