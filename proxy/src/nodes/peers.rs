//! Which nodes are in the tunnel: keeps the tunnel's peers equal to the store's nodes, with addresses, keys and tokens
//! derived. Never lets a revoked node stay; pre-shared keys lie in its memory alone.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use config::secret::Secret;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tunnel::kem::Shared;
use tunnel::{Carrier, Peer, PresharedKey, PublicKey, Tunnel};
use zeroize::Zeroizing;

use super::derive::{self, IDENTITY_BYTES};
use super::endpoints::{Endpoints, Heard};
use super::fleet::Fleet;
use super::members::{Member, Members, Place};
use super::unmanaged::Stations;
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
    /// An administrator was faster.
    #[error("the node was revoked while it registered")]
    Revoked,
    /// Nobody knows whether it may in.
    #[error("the store cannot say whether the node may in: {0}")]
    Store(#[from] StoreError),
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
    /// Nodes without an agent.
    stations: Option<Stations>,
    /// One change of the tunnel's peers at a time: a poll must not undo a registration.
    changing: tokio::sync::Mutex<Table>,
    /// Whether registrations are taken: a node that is called comes with one.
    open: watch::Sender<bool>,
}

/// What is known of nodes besides their membership.
#[derive(Debug, Default)]
struct Table {
    /// How each member came in, in memory alone.
    kept: HashMap<NodeId, Kept>,
    /// Nodes that are called and have not registered since this proxy started.
    called: HashMap<NodeId, Ipv6Addr>,
}

/// How a member came in.
#[derive(Clone, Debug)]
struct Kept {
    start: String,
    preshared_key: PresharedKey,
}

/// What one process hands on to the next.
#[derive(Deserialize, Serialize)]
struct Estate {
    /// Which proxy it was.
    proxy: String,
    nodes: Vec<Heir>,
}

/// What comes from the process before, which may be of an earlier version.
#[derive(Deserialize)]
#[serde(untagged)]
enum Handed {
    Estate(Estate),
    NodesAlone(Vec<Heir>),
}

/// A member as one process hands it on to the next.
#[derive(Deserialize, Serialize)]
struct Heir {
    id: NodeId,
    wireguard_key: String,
    start: String,
    preshared_key: String,
    endpoint: SocketAddr,
}

/// What a registration brought besides the record.
#[derive(Debug)]
pub struct Arrival {
    /// One start of the agent: other keys of the same start go on with the same streams.
    pub start: String,
    /// Of the ML-KEM exchange.
    pub shared: Shared,
}

/// A node that is in the tunnel now.
#[derive(Debug)]
pub struct Admitted {
    /// As all rooms know it.
    pub member: Arc<Member>,
    /// What the node needs besides the exchange to make the pre-shared key.
    pub pair_secret: [u8; 32],
}

/// A way of datagrams over HTTPS, for one node.
#[derive(Debug)]
pub struct Ride {
    /// Runs on the upgraded connection.
    pub carrier: Carrier,
    /// Cancelled when it must end: the node has opened another one, or left.
    pub end: CancellationToken,
}

/// What the secrets of nodes are derived from.
pub struct HubKeys {
    /// Shared by all proxies of one store.
    pub secret: [u8; 32],
    /// Base64 of the hub's WireGuard public key.
    pub public_key: String,
}

/// A call may wait so long for the listeners of this proxy.
const OPENING_MAX: Duration = Duration::from_secs(30);

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
            stations: None,
            changing: tokio::sync::Mutex::default(),
            open: watch::channel(false).0,
        }
    }

    /// Keeps last known endpoints, so that the hub itself calls its nodes after a restart.
    #[must_use]
    pub fn remembering(mut self, endpoints: Endpoints) -> Self {
        self.endpoints = endpoints;
        self
    }

    /// Takes nodes without an agent too.
    #[must_use]
    pub fn with_stations(mut self, stations: Stations) -> Self {
        self.stations = Some(stations);
        self
    }

    /// Registrations are taken from now on: nodes that this proxy knew before its start are called.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Makes the members equal to the store's nodes: revoked ones and those that wait for approval leave, and who was here before this
    /// proxy started is called. A node comes in only by registering here: its pre-shared key lies nowhere else.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let mut table = self.changing.lock().await;
        // Servers outside stand in the settings, not in the store.
        let members = self.members.all().into_iter();
        let members = members.filter(|member| member.is_in_tunnel());
        let mut gone: HashMap<NodeId, Arc<Member>> =
            members.map(|member| (member.id.clone(), member)).collect();
        // Asked before anything is taken from the table: a store that is away must cost nobody a call.
        let records = self.store.nodes().await?;
        let mut called = std::mem::take(&mut table.called);
        let mut away = Vec::new();
        let mut told = Vec::new();
        for record in records {
            if record.revoked_unix.is_some() || record.pending {
                continue;
            }
            // Also of those that are not here: one that sleeps is not woken for work that it must not get.
            self.fleet.hold(&record.id, record.draining);
            let known = gone.remove(&record.id);
            if let Some(member) = &known {
                heed_drain(member, record.draining);
            }
            let heard = known.as_ref().and_then(|known| self.heard_at(known));
            told.push((record.id.clone(), heard));
            if known.is_some() {
                continue;
            }
            if let Some(address) = called.remove(&record.id) {
                table.called.insert(record.id, address);
            } else if let Some(address) = self.expected(&record).await {
                table.called.insert(record.id, address);
                away.push(address);
            }
        }
        self.call(away);
        self.endpoints.note(told).await;
        for member in gone.into_values() {
            table.kept.remove(&member.id);
            self.remove(&member).await;
        }
        for address in called.into_values() {
            self.forget_peer(address).await;
        }
        Ok(())
    }

    /// Somebody of the store who is not here: a server without an agent comes in at once, a node can be called if it was heard before.
    async fn expected(&self, record: &NodeRecord) -> Option<Ipv6Addr> {
        if record.unmanaged.is_none() {
            return self.card(record).await;
        }
        if let Err(error) = self.station(record).await {
            tracing::warn!(node = %record.id, %error, "a node without an agent was not taken into the tunnel");
        }
        None
    }

    /// Takes a node that has just registered into the tunnel. With another start its old sessions end; with the same one its streams go on
    /// under the new keys.
    pub async fn admit(
        &self,
        record: &NodeRecord,
        arrival: Arrival,
    ) -> Result<Admitted, AdmitError> {
        let mut table = self.changing.lock().await;
        // The record was read before this lock was had. A revocation is written first and throws out under the lock: either it is seen here,
        // or it finds the member.
        let known = self.store.node(&record.id).await?;
        if known.is_some_and(|known| known.revoked_unix.is_some()) {
            return Err(AdmitError::Revoked);
        }
        if record.unmanaged.is_some() {
            return Ok(Admitted {
                member: self.station(record).await?,
                pair_secret: [0; 32],
            });
        }
        let wireguard_key = record.wireguard_key.as_deref().ok_or(AdmitError::Record)?;
        let (secret, hub) = (&self.hub.secret, &self.hub.public_key);
        let pair_secret = derive::pair_secret(secret, &record.id, wireguard_key, hub);
        let node_key: PublicKey = wireguard_key.parse().map_err(|_| AdmitError::Record)?;
        let hub_key: PublicKey = hub.parse().map_err(|_| AdmitError::Record)?;
        let kept = Kept {
            start: arrival.start,
            preshared_key: arrival
                .shared
                .preshared_key(&pair_secret, node_key, hub_key),
        };
        let member = self.insert(record, kept, None, &mut table).await?;
        Ok(Admitted {
            member,
            pair_secret,
        })
    }

    /// All members with their keys, for the process that takes over: it goes on with the same keys, and no node must register again.
    /// `proxy`: which one this is. Secrets: for a pipe between two processes and nothing else.
    pub async fn estate(&self, proxy: String) -> Zeroizing<Vec<u8>> {
        let table = self.changing.lock().await;
        let members = self.members.all();
        let heirs = members.iter().filter_map(|member| {
            let kept = table.kept.get(&member.id)?;
            let endpoint = self.tunnel.peer_status(member.address)?.endpoint?;
            Some(Heir {
                id: member.id.clone(),
                wireguard_key: member.wireguard_key.clone(),
                start: kept.start.clone(),
                preshared_key: STANDARD.encode(kept.preshared_key.to_bytes()),
                endpoint,
            })
        });
        let nodes = heirs.collect();
        let estate = Estate { proxy, nodes };
        Zeroizing::new(serde_json::to_vec(&estate).unwrap_or_default())
    }

    /// Takes over the members of the process before and calls them. Whoever cannot be taken registers, as after any other restart. Says
    /// which proxy that process was.
    pub async fn inherit(&self, estate: &[u8]) -> Option<String> {
        match serde_json::from_slice(estate).ok()? {
            Handed::Estate(Estate { proxy, nodes }) => {
                self.take_over(nodes).await;
                Some(proxy)
            }
            Handed::NodesAlone(nodes) => {
                self.take_over(nodes).await;
                None
            }
        }
    }

    async fn take_over(&self, heirs: Vec<Heir>) {
        let mut table = self.changing.lock().await;
        let mut away = Vec::new();
        for heir in heirs {
            let Ok(Some(mut record)) = self.store.node(&heir.id).await else {
                continue;
            };
            let Ok(preshared_key) = PresharedKey::from_base64(&heir.preshared_key) else {
                continue;
            };
            if record.revoked_unix.is_some() || record.pending {
                continue;
            }
            record.wireguard_key = Some(heir.wireguard_key);
            let kept = Kept {
                start: heir.start,
                preshared_key,
            };
            match self
                .insert(&record, kept, Some(heir.endpoint), &mut table)
                .await
            {
                Ok(member) => away.push(member.address),
                Err(error) => {
                    tracing::debug!(node = %record.id, %error, "a node was not taken over");
                }
            }
        }
        drop(table);
        let count = away.len();
        for address in away {
            if let Err(error) = self.tunnel.handshake_now(address).await {
                tracing::debug!(%address, %error, "a node was not called");
            }
        }
        tracing::info!(nodes = count, "nodes taken over from the process before");
    }

    /// Throws a node out that was revoked at this proxy; the others hear of it through the store.
    pub async fn throw_out(&self, id: &NodeId) {
        let mut table = self.changing.lock().await;
        table.kept.remove(id);
        if let Some(address) = table.called.remove(id) {
            self.forget_peer(address).await;
        }
        match self.members.member(id) {
            Some(member) => self.remove(&member).await,
            // It may sleep, known from an earlier run.
            None => self.fleet.forget(id),
        }
    }

    /// Notes in the store which nodes were there lately.
    pub async fn note_seen(&self, nodes: &[NodeId], now_unix: i64) -> Result<(), StoreError> {
        for id in nodes {
            self.store.touch_node(id, now_unix).await?;
        }
        Ok(())
    }

    /// A carrier for a member that is reached over HTTPS from an address; `None`: it is no member, or the tunnel takes no more.
    pub fn carry(&self, id: &NodeId, from: IpAddr) -> Option<Ride> {
        self.members.member(id)?;
        let carrier = self.tunnel.accept_carrier(from).ok()?;
        let end = self.members.carry(id);
        Some(Ride { carrier, end })
    }

    /// Whether a node other than `not_this` uses the WireGuard key.
    pub fn uses_key(&self, wireguard_key: &str, not_this: &NodeId) -> bool {
        self.members
            .all()
            .iter()
            .any(|member| member.wireguard_key == wireguard_key && member.id != *not_this)
    }

    /// Where a member speaks from, once it has spoken.
    fn heard_at(&self, member: &Member) -> Option<Heard> {
        let status = self.tunnel.peer_status(member.address)?;
        status.since_heard?;
        Some(Heard {
            endpoint: status.endpoint?,
            wireguard_key: status.public_key.to_string(),
        })
    }

    /// A peer that can be called and cannot talk: nobody has its pre-shared key. A node that is called registers at once.
    async fn card(&self, record: &NodeRecord) -> Option<Ipv6Addr> {
        let heard = self.endpoints.of(&record.id)?;
        let address = derive::overlay_address(&identity(record).ok()?);
        let peer = Peer {
            public_key: heard.wireguard_key.parse().ok()?,
            preshared_key: Some(PresharedKey::from_bytes(rand::random())),
            address,
            endpoint: Some(heard.endpoint),
            keepalive: None,
            initiates: false,
        };
        match self.tunnel.set_peer(peer).await {
            Ok(()) => Some(address),
            Err(error) => {
                tracing::debug!(node = %record.id, %error, "a node cannot be called");
                None
            }
        }
    }

    /// Calls nodes where they were last heard from: their NAT mappings are still open, and a node that waits for our packets
    /// would notice the restart only by its own timers. The tunnel repeats a call for 90 s.
    fn call(&self, away: Vec<Ipv6Addr>) {
        if away.is_empty() {
            return;
        }
        let tunnel = self.tunnel.clone();
        let mut open = self.open.subscribe();
        tokio::spawn(async move {
            // Whoever is called registers at once, and must find somebody who takes it.
            let opened = open.wait_for(|is_open| *is_open);
            drop(tokio::time::timeout(OPENING_MAX, opened).await);
            let nodes = away.len();
            tracing::info!(nodes, "calling nodes at their last known endpoints");
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
        kept: Kept,
        endpoint: Option<SocketAddr>,
        table: &mut Table,
    ) -> Result<Arc<Member>, AdmitError> {
        let wireguard_key = record.wireguard_key.clone().ok_or(AdmitError::Record)?;
        let address = derive::overlay_address(&identity(record)?);
        let peer = Peer {
            public_key: wireguard_key.parse().map_err(|_| AdmitError::Record)?,
            preshared_key: Some(kept.preshared_key.clone()),
            address,
            endpoint,
            keepalive: None,
            // The node dials: its own address changes, ours does not.
            initiates: false,
        };
        let before = table.kept.get(&record.id).map(|kept| &kept.start);
        let goes_on = self.members.member(&record.id).is_some() && before == Some(&kept.start);
        if goes_on {
            self.tunnel.renew_peer(peer, None).await?;
        } else {
            self.tunnel.set_peer(peer).await?;
            // Connections under the old key are dead, pooled ones included.
            self.upstream.cut(address);
        }
        let token = derive::agent_token(&self.hub.secret, &record.id, &kept.start);
        let member = Arc::new(Member {
            id: record.id.clone(),
            name: record.name.clone(),
            address,
            tiers: record.tiers.clone(),
            wireguard_key,
            agent_token: Secret::new(token),
            place: Place::Tunnel,
            draining: AtomicBool::new(record.draining),
        });
        table.called.remove(&record.id);
        table.kept.insert(record.id.clone(), kept);
        self.members.insert(Arc::clone(&member));
        if !goes_on {
            self.fleet.restarted(&member.id, Instant::now().into_std());
        }
        Ok(member)
    }

    /// Takes a node without an agent into the tunnel.
    async fn station(&self, record: &NodeRecord) -> Result<Arc<Member>, AdmitError> {
        let stations = self.stations.as_ref().zip(record.unmanaged.as_ref());
        let (stations, server) = stations.ok_or(AdmitError::Record)?;
        let heard = self.endpoints.of(&record.id);
        let endpoint = heard.map(|heard| heard.endpoint);
        let member = stations
            .open(&self.tunnel, (record, server), endpoint)
            .await?;
        member.draining.store(record.draining, Ordering::Relaxed);
        self.members.insert(Arc::clone(&member));
        Ok(member)
    }

    async fn forget_peer(&self, address: Ipv6Addr) {
        if let Err(error) = self.tunnel.remove_peer(address).await {
            tracing::debug!(%address, %error, "a peer was not removed from the tunnel");
        }
    }

    async fn remove(&self, member: &Member) {
        self.members.remove(&member.id);
        if let Some(stations) = &self.stations {
            stations.close(member);
        }
        self.fleet.forget(&member.id);
        self.upstream.cut(member.address);
        if let Err(error) = self.tunnel.remove_peer(member.address).await {
            tracing::error!(node = %member.id, %error, "a node was not removed from the tunnel");
        }
        tracing::info!(node = %member.id, name = member.name, "a node left the tunnel");
    }
}

fn heed_drain(member: &Member, draining: bool) {
    if member.draining.swap(draining, Ordering::Relaxed) == draining {
        return;
    }
    tracing::info!(node = %member.id, name = member.name, draining, "somebody said whether a node gets new work");
}

pub(super) fn identity(record: &NodeRecord) -> Result<[u8; IDENTITY_BYTES], AdmitError> {
    STANDARD
        .decode(&record.identity)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(AdmitError::Record)
}
