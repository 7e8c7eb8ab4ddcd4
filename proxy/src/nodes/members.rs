//! The table of nodes that may speak through the tunnel. Only remembers; who comes in is decided in `peers.rs`.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::ids::NodeId;
use config::secret::Secret;
use config::tier::Tier;

/// A node that may speak through the tunnel.
#[derive(Debug)]
pub struct Member {
    /// Its name for ever.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// Its address inside the tunnel.
    pub address: Ipv6Addr,
    /// Tiers it may serve; `None`: all.
    pub tiers: Option<Vec<Tier>>,
    /// Base64 of the WireGuard key it registered last.
    pub wireguard_key: String,
    /// Bearer token inside the tunnel, both ways.
    pub agent_token: Secret<String>,
}

/// All of them, by id.
#[derive(Debug, Default)]
pub struct Members {
    by_id: Mutex<HashMap<NodeId, Arc<Member>>>,
}

impl Members {
    /// The node with this id.
    pub fn member(&self, id: &NodeId) -> Option<Arc<Member>> {
        self.table().get(id).cloned()
    }

    /// The node with this address inside the tunnel.
    pub fn at(&self, address: Ipv6Addr) -> Option<Arc<Member>> {
        self.table()
            .values()
            .find(|member| member.address == address)
            .cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Member>> {
        self.table().values().cloned().collect()
    }

    /// Adds a node or replaces what is known of it.
    pub fn insert(&self, member: Arc<Member>) {
        self.table().insert(member.id.clone(), member);
    }

    /// Forgets a node.
    pub fn remove(&self, id: &NodeId) {
        self.table().remove(id);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Member>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
