//! Nodes as management shows them. Only words: what is found out about a node, is found out elsewhere.

use std::collections::BTreeMap;

use config::ids::NodeId;
use config::tier::Tier;
use serde::{Deserialize, Serialize};

use crate::store::NodeRecord;

/// A node as lists show it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeView {
    /// Its name for ever.
    pub id: NodeId,
    /// What people call the machine.
    pub name: String,
    /// `approved`, `pending`, `revoked`, or `outside` for a server of the settings.
    pub state: String,
    /// Six words of its identity, the same as on the machine itself; empty for a server of the settings.
    #[serde(default)]
    pub fingerprint: String,
    /// Tiers it may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// As the last registration told.
    pub agent_version: String,
    /// Unix seconds.
    pub created_unix: i64,
    /// Unix seconds of the last registration.
    pub registered_unix: Option<i64>,
    /// Unix seconds, coarse.
    pub last_seen_unix: Option<i64>,
    /// Unix seconds.
    pub revoked_unix: Option<i64>,
    /// It gets no new work until it is told otherwise.
    #[serde(default)]
    pub draining: bool,
    /// How it is now; `None`: this proxy has no report of it, or no proxy runs.
    pub now: Option<NodeNow>,
    /// Its tunnel to this proxy; `None`: it has none now, or no proxy runs.
    #[serde(default)]
    pub tunnel: Option<NodeTunnel>,
}

impl NodeView {
    /// A server outside the tunnel: it stands in the settings and nowhere else.
    pub fn outside(now: NodeNow) -> Self {
        Self {
            id: now.id.clone(),
            name: now.id.to_string(),
            state: "outside".to_owned(),
            fingerprint: String::new(),
            tiers: None,
            agent_version: String::new(),
            created_unix: 0,
            registered_unix: None,
            last_seen_unix: None,
            revoked_unix: None,
            draining: false,
            now: Some(now),
            tunnel: None,
        }
    }
}

/// A node as its last report told.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeNow {
    /// Which.
    pub id: NodeId,
    /// Seconds since the last report.
    pub seen_secs_ago: u64,
    /// It went silent and wakes up for the next request that needs it.
    #[serde(default)]
    pub asleep: bool,
    /// A server outside the tunnel, named in the settings.
    #[serde(default)]
    pub outside: bool,
    /// One for each tier, as `fast ready tiny-fast 1/4`, with the reason behind where it cannot answer.
    pub tiers: Vec<String>,
}

impl From<NodeRecord> for NodeView {
    fn from(node: NodeRecord) -> Self {
        Self {
            fingerprint: config::fingerprint::words(&node.id).unwrap_or_default(),
            id: node.id,
            name: node.name,
            state: match (node.revoked_unix, node.pending) {
                (Some(_), _) => "revoked",
                (None, true) => "pending",
                (None, false) => "approved",
            }
            .to_owned(),
            tiers: node.tiers,
            agent_version: node.agent_version,
            created_unix: node.created_unix,
            registered_unix: node.registered_unix,
            last_seen_unix: node.last_seen_unix,
            revoked_unix: node.revoked_unix,
            draining: node.draining,
            now: None,
            tunnel: None,
        }
    }
}

/// The tunnel to a node, as the proxy sees it that was asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeTunnel {
    /// What brings its datagrams: `udp`, or `wss` where no UDP gets through.
    pub carrier: String,
    /// The address that they come from.
    pub address: Option<String>,
    /// The largest packet that the path carries inside the tunnel, bytes.
    pub mtu: usize,
    /// Who does TCP at its end: `netns`, `embedded`, `stock` for a WireGuard without an agent; `None`: it has not told.
    pub back_end: Option<String>,
    /// Who does TCP at the proxy's end.
    pub proxy_back_end: String,
    /// Age of the WireGuard session, seconds; `None`: there is none.
    pub handshake_age_secs: Option<f64>,
    /// Seconds since the last packet that was certainly its own.
    pub heard_secs_ago: Option<f64>,
    /// The way there and back inside the tunnel, milliseconds; `None`: not measured yet.
    pub round_trip_ms: Option<f64>,
    /// Lost of the last 64 echoes there and back, percent; `None`: not measured yet.
    pub loss_percent: Option<f64>,
    /// Received from it inside the tunnel.
    pub received_bytes: u64,
    /// Sent to it inside the tunnel.
    pub sent_bytes: u64,
    /// Packets and handshakes of it that were rejected, by reason; only reasons that occurred.
    pub rejected: BTreeMap<String, u64>,
}
