//! A machine without an agent: any server that speaks `OpenAI`'s API behind a stock WireGuard. Enrols and registers in its name and writes
//! the configuration that `wg-quick` reads. Keeps nothing on this machine: the file is all there is.

use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use config::ids::NodeId;
use config::tier::Tier;
use config::wire::node::{RegisterReply, Unmanaged};
use tunnel::PrivateKey;
use zeroize::Zeroizing;

use crate::hub::{Hub, HubError};
use crate::identity::Identity;
use crate::join::{self, JoinError, JoinLink};
use crate::register::full_endpoint;

/// Below the 30 s after which the tightest NATs forget a UDP mapping: nobody but the peer keeps it open.
const KEEPALIVE_SECS: u32 = 25;
/// What the tunnel carries in one packet wherever IPv6 is carried at all (RFC 8200 section 5).
const MTU: u32 = 1280;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What people call the machine.
    pub name: String,
    /// The tier it serves.
    pub tier: Tier,
    /// The port on which its server listens.
    pub port: u16,
    /// The server's name for the model; `None`: the first that it lists.
    pub model: Option<String>,
}

/// Between two questions whether somebody has approved it.
const APPROVAL_EVERY: Duration = Duration::from_secs(5);

/// Why there is no such file.
#[derive(Debug, thiserror::Error)]
pub enum UnmanagedError {
    /// The proxy did not take the link, or was not there.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The proxy did not take the registration, or was not there.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// No key could be made.
    #[error("no key can be made: {0}")]
    Key(#[from] std::io::Error),
}

/// A place for a machine without an agent.
#[derive(Debug)]
pub struct Written {
    /// The text of the file; holds the private key.
    pub file: Zeroizing<String>,
    /// Its name for ever: to approve, drain and revoke it.
    pub node_id: NodeId,
}

/// Takes a place with this link. `waits` is told the node's id when somebody must approve it first.
pub async fn write(
    link: &JoinLink,
    wanted: &Wanted,
    waits: impl FnOnce(&NodeId),
) -> Result<Written, UnmanagedError> {
    let identity = Identity::fleeting()?;
    let hub = Hub::new(&link.proxy, link.pin)?;
    let enrolled = hub.enrol(&identity, &link.token, &wanted.name).await?;
    if !enrolled.approved {
        waits(&enrolled.node_id);
        join::approval(link, &identity, &wanted.name, APPROVAL_EVERY).await?;
    }
    let key = PrivateKey::generate();
    let served = Unmanaged {
        tier: wanted.tier,
        port: wanted.port,
        model: wanted.model.clone(),
    };
    let reply = hub
        .register_unmanaged(&identity, &enrolled.node_id, key.public_key(), served)
        .await?;
    let host = hub.host().unwrap_or_default();
    Ok(Written {
        file: file(&key, &reply, (&host, &enrolled.node_id, wanted)),
        node_id: enrolled.node_id,
    })
}

fn file(
    key: &PrivateKey,
    reply: &RegisterReply,
    (host, node, wanted): (&str, &NodeId, &Wanted),
) -> Zeroizing<String> {
    let private = Zeroizing::new(STANDARD.encode(key.to_bytes()));
    let endpoint = full_endpoint(&reply.hub.endpoint, host);
    let mut text = Zeroizing::new(String::with_capacity(4_096));
    // Writing to a String cannot fail.
    let written = write!(
        text,
        "# {name}, a node of {host} without an agent: it serves the tier {tier}.\n\
         #\n\
         # 1. Save as /etc/wireguard/hearth.conf and let nobody else read it, for it holds a private key: chmod 600 /etc/wireguard/hearth.conf\n\
         # 2. wg-quick up hearth            (at every start of the machine: systemctl enable --now wg-quick@hearth)\n\
         # 3. Have a server that speaks OpenAI's API listen on [{address}]:{port}, or on every address:\n\
         #      llama-server --host :: --port {port} ...      OLLAMA_HOST=[::]:{port} ollama serve      vllm serve --host :: --port {port} ...\n\
         #\n\
         # Does it work? Here `wg show hearth` tells of a latest handshake; on the proxy `hearth-proxy node show {node}` tells the rest.\n\
         # To end it: `hearth-proxy node revoke {node}` there, `wg-quick down hearth` here.\n\
         \n\
         [Interface]\n\
         # Of this machine alone; whoever has it is this node.\n\
         PrivateKey = {private}\n\
         # Where the proxy finds the server, inside the tunnel.\n\
         Address = {address}/128\n\
         # Fits through every path that carries IPv6.\n\
         MTU = {MTU}\n\
         \n\
         [Peer]\n\
         # The proxy.\n\
         PublicKey = {hub_key}\n\
         # Outbound UDP to here must be allowed; nothing needs to come in by itself.\n\
         Endpoint = {endpoint}\n\
         # The proxy's address inside: nothing else goes through the tunnel, and nobody else reaches this machine by it.\n\
         AllowedIPs = {hub}/128\n\
         # Holds the way through a router open.\n\
         PersistentKeepalive = {KEEPALIVE_SECS}\n",
        name = wanted.name,
        tier = wanted.tier,
        port = wanted.port,
        address = reply.address,
        private = private.as_str(),
        hub_key = reply.hub.public_key,
        hub = reply.hub.address,
    );
    debug_assert!(written.is_ok());
    text
}

#[cfg(test)]
mod tests {
    use config::wire::node::{HUB_ADDRESS, Hub as HubPlace};

    use super::*;

    #[test]
    fn the_file_is_what_wg_quick_reads() {
        let key = PrivateKey::from_bytes([7; 32]);
        let reply = RegisterReply {
            address: "fd48:6561:7274::2".parse().expect("an address"),
            proxy: String::new(),
            hub: HubPlace {
                public_key: STANDARD.encode([9; 32]),
                endpoint: ":51820".to_owned(),
                address: HUB_ADDRESS,
            },
            preshared_key: String::new(),
            kem_ciphertext: String::new(),
            agent_token: String::new(),
            report_port: 9000,
            heartbeat_secs: 5,
            server_time_ms: 0,
            hubs: Vec::new(),
        };
        let wanted = Wanted {
            name: "attic".to_owned(),
            tier: Tier::Heavy,
            port: 11_434,
            model: None,
        };
        let node = NodeId::new("node_0123456789abcdef");
        let written = file(&key, &reply, ("llm.example.org", &node, &wanted));
        assert!(
            written.len() < 4_096,
            "a string that grows leaves the key behind"
        );
        assert!(written.contains("node revoke node_0123456789abcdef"));
        let lines: Vec<&str> = written
            .lines()
            .filter(|line| !line.starts_with('#'))
            .collect();
        assert_eq!(
            lines,
            [
                "",
                "[Interface]",
                "PrivateKey = BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
                "Address = fd48:6561:7274::2/128",
                "MTU = 1280",
                "",
                "[Peer]",
                "PublicKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=",
                "Endpoint = llm.example.org:51820",
                "AllowedIPs = fd48:6561:7274::1/128",
                "PersistentKeepalive = 25",
            ]
        );
    }
}
