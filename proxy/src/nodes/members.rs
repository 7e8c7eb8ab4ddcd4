//! The table of nodes that may speak through the tunnel. Only remembers; who comes in is decided in `peers.rs`.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::ids::NodeId;
use config::secret::Secret;
use config::tier::Tier;
use tokio_util::sync::CancellationToken;

use crate::remote::Remote;

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
    /// Where it is.
    pub place: Place,
    /// Somebody said that it gets no new work.
    pub draining: AtomicBool,
}

/// Where a member is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A node of ours.
    Tunnel,
    /// A server of somebody else, which stands for a tier. Its address is one that no tunnel has.
    Outside(Arc<Remote>),
}

impl Member {
    /// Whether somebody said that it gets no new work.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether it speaks through the tunnel, with an agent or without.
    pub fn is_in_tunnel(&self) -> bool {
        self.remote().is_none_or(|remote| remote.is_in_tunnel())
    }

    /// The server of somebody else, if it is one.
    pub const fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.place {
            Place::Tunnel => None,
            Place::Outside(remote) => Some(remote),
        }
    }
}

/// All of them, by id.
#[derive(Debug, Default)]
pub struct Members {
    by_id: Mutex<HashMap<NodeId, Arc<Member>>>,
    /// The carrier of each node that has one: the next one ends it, and so does the node's leaving.
    carriers: Mutex<HashMap<NodeId, CancellationToken>>,
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
        if let Some(carrier) = self.carriers().remove(id) {
            carrier.cancel();
        }
    }

    /// A node opens a carrier; the one it had before ends. Cancelled when this one must end.
    pub fn carry(&self, id: &NodeId) -> CancellationToken {
        let token = CancellationToken::new();
        let before = self.carriers().insert(id.clone(), token.clone());
        if let Some(before) = before {
            before.cancel();
        }
        token
    }

    fn carriers(&self) -> MutexGuard<'_, HashMap<NodeId, CancellationToken>> {
        self.carriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Member>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
