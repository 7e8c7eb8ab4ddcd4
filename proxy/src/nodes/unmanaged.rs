//! Nodes without an agent: any server that speaks `OpenAI`'s API behind a stock WireGuard. They stand in the store like other nodes, and
//! are looked at like servers outside. Such a peer has no pre-shared key, because a file on its disk would be no secret of ours, and no
//! agent token: it may say nothing to the report service.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use config::ids::NodeId;
use config::wire::node::Unmanaged;
use tokio_util::task::AbortOnDropHandle;
use tunnel::{Peer, Tunnel};

use super::derive;
use super::members::Member;
use super::peers::{AdmitError, identity};
use crate::remote::{self, Remote, Roads};
use crate::store::NodeRecord;

/// Characters of a model's name.
const MODEL_CHARS_MAX: usize = 256;

/// The servers behind stock peers, each with the task that looks at it.
pub struct Stations {
    roads: Arc<Roads>,
    rooms: remote::Rooms,
    watches: Mutex<HashMap<NodeId, AbortOnDropHandle<()>>>,
}

impl Stations {
    /// None yet.
    pub fn new(roads: Arc<Roads>, rooms: remote::Rooms) -> Self {
        Self {
            roads,
            rooms,
            watches: Mutex::default(),
        }
    }

    /// Takes one into the tunnel and looks at it from now on. `endpoint`: where it was heard last.
    pub(super) async fn open(
        &self,
        tunnel: &Tunnel,
        (record, server): (&NodeRecord, &Unmanaged),
        endpoint: Option<SocketAddr>,
    ) -> Result<Arc<Member>, AdmitError> {
        let wireguard_key = record.wireguard_key.as_deref().ok_or(AdmitError::Record)?;
        let address = derive::overlay_address(&identity(record)?);
        let peer = Peer {
            public_key: wireguard_key.parse().map_err(|_| AdmitError::Record)?,
            preshared_key: None,
            address,
            endpoint,
            keepalive: None,
            initiates: false,
        };
        tunnel.set_peer(peer).await?;
        let remote = Arc::new(Remote::in_tunnel(record, server, address));
        self.roads.lead_to(Arc::clone(&remote));
        // What only nodes of ours can do is not asked of it.
        self.rooms
            .fleet
            .place_outside(record.id.clone(), remote.is_local());
        let watching = tokio::spawn(remote::watch(Arc::clone(&remote), self.rooms.clone()));
        self.watches()
            .insert(record.id.clone(), AbortOnDropHandle::new(watching));
        tracing::info!(node = %record.id, name = record.name, tier = %server.tier, "a server behind a stock WireGuard is looked at");
        Ok(Arc::new(remote.member()))
    }

    /// Looks at it no more.
    pub(super) fn close(&self, member: &Member) {
        self.watches().remove(&member.id);
        self.roads.lead_no_more(member.address);
        self.rooms.fleet.place_nowhere(&member.id);
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, AbortOnDropHandle<()>>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong with a server that wants in, in words for whoever registers it.
pub(super) fn check(server: &Unmanaged, record: &NodeRecord) -> Result<(), String> {
    if server.port == 0 {
        return Err("unmanaged.port is 1 to 65535".to_owned());
    }
    if let Some(model) = &server.model {
        let chars = model.chars().count();
        if chars == 0 || chars > MODEL_CHARS_MAX || model.chars().any(char::is_control) {
            return Err(format!(
                "unmanaged.model has 1 to {MODEL_CHARS_MAX} characters and no control characters"
            ));
        }
    }
    let Some(tiers) = &record.tiers else {
        return Ok(());
    };
    if tiers.contains(&server.tier) {
        return Ok(());
    }
    let tiers: Vec<&str> = tiers.iter().map(|tier| tier.as_str()).collect();
    Err(format!(
        "this node was invited for {}, not for {}: name another --tier or ask for another link",
        tiers.join(", "),
        server.tier
    ))
}
