//! The node's end of the proxy's connections: who is let in, and how many.

use std::net::Ipv6Addr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tunnel::Listener;

use super::Uplink;
use crate::http::Front;

/// The proxy pools its connections; more than this is a fault of its own.
const CONNECTIONS_MAX: usize = 256;

/// Who answers, and where that is counted.
#[derive(Debug)]
pub(super) struct Accepting {
    front: Arc<Front>,
    connections: TaskTracker,
}

impl From<&Uplink> for Accepting {
    fn from(uplink: &Uplink) -> Self {
        Self {
            front: uplink.front.clone(),
            connections: uplink.connections.clone(),
        }
    }
}

/// Serves the hub's connections until the tunnel closes. The tunnel has one peer; that nobody else is let in is said here once more.
pub(super) async fn accept(accepting: Accepting, listener: Listener, hub: Ipv6Addr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, from)) = listener.accept().await {
        let permit = room.clone().try_acquire_owned();
        match permit {
            Ok(permit) if *from.ip() == hub => {
                let front = accepting.front.clone();
                accepting.connections.spawn(async move {
                    front.serve(stream).await;
                    drop(permit);
                });
            }
            Ok(_) | Err(_) => {
                tracing::warn!(%from, "a connection was turned away");
                drop(stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use config::wire::node::{HUB_ADDRESS, NODE_PORT};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;
    use tunnel::{Backend, Peer, PrivateKey, Settings, Tunnel};

    use super::*;
    use crate::http::AgentToken;
    use crate::metrics::Metrics;
    use crate::tiers::{Launcher, Tiers};
    use crate::work::Work;

    const NODE: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 9);
    const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 7);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn accepting() -> Accepting {
        let launcher = Launcher {
            program: "/nowhere".into(),
            args: Vec::new(),
        };
        let tiers = Arc::new(Tiers::start(Vec::new(), None, &launcher));
        let metrics = Arc::new(Metrics::new(tiers.clone()));
        let front = Front::new(tiers, AgentToken::default(), Work::default(), metrics);
        Accepting {
            front: Arc::new(front),
            connections: TaskTracker::new(),
        }
    }

    async fn started(key: &PrivateKey, address: Ipv6Addr) -> Tunnel {
        let bind = "127.0.0.1:0".parse().expect("an address");
        let mut settings = Settings::new(bind, key.clone(), address);
        settings.backend = Backend::Embedded;
        Tunnel::start(settings).await.expect("a tunnel")
    }

    /// What a node says to a peer with this address.
    async fn answer_to(caller: Ipv6Addr) -> Vec<u8> {
        let keys = [PrivateKey::generate(), PrivateKey::generate()];
        let node = started(&keys[0], NODE).await;
        let peer = started(&keys[1], caller).await;
        let of = |key: &PrivateKey, address, endpoint| Peer {
            public_key: key.public_key(),
            preshared_key: None,
            address,
            endpoint: Some(endpoint),
            keepalive: None,
            initiates: true,
        };
        let listener = node.listen(NODE_PORT).await.expect("listens");
        let met = node.set_peer(of(&keys[1], caller, peer.local_addr())).await;
        met.expect("a peer");
        let met = peer.set_peer(of(&keys[0], NODE, node.local_addr())).await;
        met.expect("a peer");
        let door = tokio::spawn(accept(accepting(), listener, HUB_ADDRESS));
        let mut stream = peer
            .connect(NODE, NODE_PORT, PATIENCE)
            .await
            .expect("connects");
        let mut heard = Vec::new();
        let exchange = async {
            stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")
                .await?;
            stream.read_to_end(&mut heard).await
        };
        let ended = timeout(PATIENCE, exchange).await;
        assert!(ended.is_ok(), "neither answered nor cut");
        door.abort();
        heard
    }

    #[tokio::test]
    async fn the_hub_is_answered_and_any_other_address_is_turned_away() {
        let heard = answer_to(HUB_ADDRESS).await;
        assert!(heard.starts_with(b"HTTP/1.1 "), "{heard:?}");
        assert_eq!(answer_to(STRANGER).await, b"");
    }
}
