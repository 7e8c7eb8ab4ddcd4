//! Which nodes are in the tunnel: keeps the tunnel's peers equal to the store's nodes, with addresses, keys and tokens
//! derived. Never lets a revoked node stay, never stores a secret.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use config::secret::Secret;
use tokio::time::Instant;
use tunnel::{Peer, PresharedKey, PublicKey, Tunnel};

use super::derive::{self, IDENTITY_BYTES};
use super::endpoints::Endpoints;
use super::fleet::Fleet;
use super::members::{Member, Members};
use super::upstream::Upstream;
use crate::store::{NodeRecord, Store, StoreError};

/// Pause between two handshakes of the hub after a restart, 500 a second: a tenth of a core, and no flood for the uplink.
const KNOCK_EVERY: Duration = Duration::from_millis(2);

/// Why a node was not taken into the tunnel.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The record has no key yet, or something that is none.
    #[error("the record of the node holds no usable key")]
    Record,
    /// The tunnel refused.
    #[error("the tunnel refused: {0}")]
    Tunnel(#[from] tunnel::Error),
}

/// What must hear of nodes that come and go.
pub struct Rooms {
    /// Drops connections of nodes that left.
    pub upstream: Upstream,
    /// Stops routing to them.
    pub fleet: Arc<Fleet>,
    /// The table that is kept right.
    pub members: Arc<Members>,
}

/// Keeps the table of members and the tunnel's peers right.
pub struct Peers {
    tunnel: Tunnel,
    store: Arc<dyn Store>,
    upstream: Upstream,
    fleet: Arc<Fleet>,
    hub: HubKeys,
    members: Arc<Members>,
    endpoints: Endpoints,
    /// One change of the tunnel's peers at a time: a poll must not undo a registration.
    changing: tokio::sync::Mutex<()>,
}

/// What the secrets of nodes are derived from.
pub struct HubKeys {
    /// Shared by all proxies of one store.
    pub secret: [u8; 32],
    /// Base64 of the hub's WireGuard public key.
    pub public_key: String,
}

impl Peers {
    /// No nodes yet: call [`Peers::sync`] before the first request.
    pub fn new(tunnel: Tunnel, store: Arc<dyn Store>, rooms: Rooms, hub: HubKeys) -> Self {
        let Rooms {
            upstream,
            fleet,
            members,
        } = rooms;
        Self {
            tunnel,
            store,
            upstream,
            fleet,
            hub,
            members,
            endpoints: Endpoints::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Keeps last known endpoints, so that the hub itself calls its nodes after a restart.
    #[must_use]
    pub fn remembering(mut self, endpoints: Endpoints) -> Self {
        self.endpoints = endpoints;
        self
    }

    /// Makes the tunnel's peers equal to the store's nodes: nodes registered at another proxy come in, revoked ones leave.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let _turn = self.changing.lock().await;
        let members = self.members.all().into_iter();
        let mut gone: HashMap<NodeId, Arc<Member>> =
            members.map(|member| (member.id.clone(), member)).collect();
        let mut away = Vec::new();
        let mut told = Vec::new();
        for record in self.store.nodes().await? {
            if record.revoked_unix.is_some() || record.wireguard_key.is_none() {
                continue;
            }
            let known = gone.remove(&record.id);
            told.push((
                record.id.clone(),
                known.as_ref().and_then(|known| self.heard_at(known)),
            ));
            if known
                .is_some_and(|member| Some(&member.wireguard_key) == record.wireguard_key.as_ref())
            {
                continue;
            }
            let endpoint = self.endpoints.of(&record.id);
            match self.insert(&record, endpoint).await {
                Ok(member) if endpoint.is_some() => away.push(member.address),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(node = %record.id, %error, "a node of the store was not taken into the tunnel");
                }
            }
        }
        self.knock(away);
        self.endpoints.note(told).await;
        for member in gone.into_values() {
            self.remove(&member).await;
        }
        Ok(())
    }

    /// Takes a node that has just registered into the tunnel; its old sessions end.
    pub async fn admit(&self, record: &NodeRecord) -> Result<Arc<Member>, AdmitError> {
        let _turn = self.changing.lock().await;
        self.insert(record, None).await
    }

    /// Throws a node out that was revoked at this proxy; the others notice at their next [`Peers::sync`].
    pub async fn throw_out(&self, id: &NodeId) {
        let _turn = self.changing.lock().await;
        if let Some(member) = self.members.member(id) {
            self.remove(&member).await;
        }
    }

    /// Notes in the store which nodes were there lately.
    pub async fn note_seen(&self, nodes: &[NodeId], now_unix: i64) -> Result<(), StoreError> {
        for id in nodes {
            let Some(mut record) = self.store.node(id).await? else {
                continue;
            };
            record.last_seen_unix = Some(now_unix);
            self.store.put_node(&record).await?;
        }
        Ok(())
    }

    /// Whether a node other than `not_this` uses the WireGuard key.
    pub fn uses_key(&self, wireguard_key: &str, not_this: &NodeId) -> bool {
        self.members
            .all()
            .iter()
            .any(|member| member.wireguard_key == wireguard_key && member.id != *not_this)
    }

    /// The pre-shared key of a member, derived again.
    pub fn preshared_key(&self, member: &Member) -> [u8; 32] {
        self.secrets(&member.id, &member.wireguard_key)
            .preshared_key
    }

    fn secrets(&self, id: &NodeId, wireguard_key: &str) -> derive::PairSecrets {
        derive::pair_secrets(&self.hub.secret, id, wireguard_key, &self.hub.public_key)
    }

    /// Where a member speaks from, once it has spoken.
    fn heard_at(&self, member: &Member) -> Option<SocketAddr> {
        let status = self.tunnel.peer_status(member.address)?;
        status.since_heard.and(status.endpoint)
    }

    /// Calls nodes where they were last heard from: their NAT mappings are still open, and a node that waits for our packets
    /// would notice the restart only by its own timers. The tunnel repeats a call for 90 s.
    fn knock(&self, away: Vec<Ipv6Addr>) {
        if away.is_empty() {
            return;
        }
        tracing::info!(
            nodes = away.len(),
            "calling nodes at their last known endpoints"
        );
        let tunnel = self.tunnel.clone();
        tokio::spawn(async move {
            for address in away {
                if let Err(error) = tunnel.handshake_now(address).await {
                    tracing::debug!(%address, %error, "a node was not called");
                }
                tokio::time::sleep(KNOCK_EVERY).await;
            }
        });
    }

    async fn insert(
        &self,
        record: &NodeRecord,
        endpoint: Option<SocketAddr>,
    ) -> Result<Arc<Member>, AdmitError> {
        let identity: [u8; IDENTITY_BYTES] = STANDARD
            .decode(&record.identity)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(AdmitError::Record)?;
        let wireguard_key = record.wireguard_key.clone().ok_or(AdmitError::Record)?;
        let public_key: PublicKey = wireguard_key.parse().map_err(|_| AdmitError::Record)?;
        let address = derive::overlay_address(&identity);
        let secrets = self.secrets(&record.id, &wireguard_key);
        let peer = Peer {
            public_key,
            preshared_key: Some(PresharedKey::from_bytes(secrets.preshared_key)),
            address,
            endpoint,
            keepalive: None,
            // The node dials: its own address changes, ours does not.
            initiates: false,
        };
        self.tunnel.set_peer(peer).await?;
        // Connections under the old key are dead, pooled ones included.
        self.upstream.cut(address);
        let member = Arc::new(Member {
            id: record.id.clone(),
            name: record.name.clone(),
            address,
            tiers: record.tiers.clone(),
            wireguard_key,
            agent_token: Secret::new(secrets.agent_token),
        });
        self.members.insert(Arc::clone(&member));
        self.fleet.restarted(&member.id, Instant::now().into_std());
        Ok(member)
    }

    async fn remove(&self, member: &Member) {
        self.members.remove(&member.id);
        self.fleet.forget(&member.id);
        self.upstream.cut(member.address);
        if let Err(error) = self.tunnel.remove_peer(member.address).await {
            tracing::error!(node = %member.id, %error, "a node was not removed from the tunnel");
        }
        tracing::info!(node = %member.id, name = member.name, "a node left the tunnel");
    }
}
