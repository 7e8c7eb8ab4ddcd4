//! A hub and its nodes, each behind a wire of its own; what happens to one of them leaves the others alone.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tunnel::{Backend, Listener, Peer, PresharedKey, PrivateKey, Settings, Stream, Tunnel};

use super::wire::Wire;

pub(crate) const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
pub(crate) const PORT: u16 = 9000;
/// A hub's port may be taken for a moment after its end.
const BIND_TRIES: u32 = 100;

/// Who does TCP.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) backend: Backend,
    pub(crate) helper: Option<PathBuf>,
}

pub(crate) struct House {
    ground: Ground,
    hub_key: PrivateKey,
    hub_at: SocketAddr,
    hub: Mutex<Tunnel>,
    pub(crate) nodes: Vec<Node>,
    /// Taken for writing while the hub is away.
    pub(crate) presence: tokio::sync::RwLock<()>,
}

pub(crate) struct Node {
    number: u16,
    pub(crate) wire: Wire,
    tunnel: Mutex<Tunnel>,
    /// What both sides know of it; whoever changes that holds this.
    keys: tokio::sync::Mutex<Keys>,
}

struct Keys {
    private: PrivateKey,
    shared: PresharedKey,
}

impl Keys {
    fn generate() -> Self {
        Self {
            private: PrivateKey::generate(),
            shared: PresharedKey::from_bytes(PrivateKey::generate().to_bytes()),
        }
    }
}

impl Node {
    pub(crate) fn tunnel(&self) -> Tunnel {
        let tunnel = self.tunnel.lock();
        tunnel.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn address(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, 0, self.number)
    }

    fn as_peer(&self, keys: &Keys) -> Peer {
        Peer {
            public_key: keys.private.public_key(),
            preshared_key: Some(keys.shared.clone()),
            address: self.address(),
            endpoint: None,
            keepalive: None,
            initiates: false,
        }
    }
}

impl House {
    pub(crate) async fn build(ground: Ground, count: u16) -> Self {
        let hub_key = PrivateKey::generate();
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let hub = start_hub(&ground, &hub_key, bind).await;
        let hub_at = hub.local_addr();
        let mut house = Self {
            ground,
            hub_key,
            hub_at,
            hub: Mutex::new(hub),
            nodes: Vec::new(),
            presence: tokio::sync::RwLock::default(),
        };
        for number in 1..=count {
            let keys = Keys::generate();
            let node = Node {
                number,
                wire: Wire::start(hub_at, u64::from(number) << 32).await,
                tunnel: Mutex::new(house.start_node(number, &keys).await),
                keys: tokio::sync::Mutex::new(keys),
            };
            house.nodes.push(node);
        }
        for node in &house.nodes {
            house.introduce(node, &*node.keys.lock().await).await;
        }
        house
    }

    pub(crate) fn hub(&self) -> Tunnel {
        let hub = self.hub.lock();
        hub.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn hub_at(&self) -> SocketAddr {
        self.hub_at
    }

    fn hub_as_peer(&self, node: &Node, keys: &Keys) -> Peer {
        Peer {
            public_key: self.hub_key.public_key(),
            preshared_key: Some(keys.shared.clone()),
            address: HUB,
            endpoint: Some(node.wire.address),
            keepalive: Some(Duration::from_secs(5)),
            initiates: true,
        }
    }

    async fn start_node(&self, number: u16, keys: &Keys) -> Tunnel {
        let address = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, 0, number);
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut settings = Settings::new(bind, keys.private.clone(), address);
        // Every third is like a stock peer.
        settings.quic = !number.is_multiple_of(3);
        let node = Tunnel::start(settings).await.expect("a node");
        tokio::spawn(echo(node.listen(PORT).await.expect("a port")));
        node
    }

    /// Tells both sides of each other.
    async fn introduce(&self, node: &Node, keys: &Keys) {
        let hub = self.hub_as_peer(node, keys);
        self.hub()
            .set_peer(node.as_peer(keys))
            .await
            .expect("the hub is there");
        node.tunnel()
            .set_peer(hub)
            .await
            .expect("the node is there");
    }

    /// The power fails, and the node comes back with other keys.
    pub(crate) async fn restart_node(&self, node: &Node, away: Duration) {
        let mut keys = node.keys.lock().await;
        node.wire.set_cut(true);
        node.tunnel().shutdown().await;
        tokio::time::sleep(away).await;
        *keys = Keys::generate();
        let fresh = self.start_node(node.number, &keys).await;
        *node.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        node.wire.set_cut(false);
        self.introduce(node, &keys).await;
    }

    /// Keys change under whatever runs.
    pub(crate) async fn renew(&self, node: &Node) {
        let mut keys = node.keys.lock().await;
        *keys = Keys::generate();
        let hub = self.hub_as_peer(node, &keys);
        let renewed = self.hub().renew_peer(node.as_peer(&keys), None).await;
        renewed.expect("the hub is there");
        let own = Some(keys.private.clone());
        let renewed = node.tunnel().renew_peer(hub, own).await;
        renewed.expect("the node is there");
    }

    /// The hub forgets a node for a while.
    pub(crate) async fn revoke(&self, node: &Node, away: Duration) {
        let keys = node.keys.lock().await;
        self.hub().remove_peer(node.address()).await.ok();
        tokio::time::sleep(away).await;
        self.introduce(node, &keys).await;
    }

    /// Many tell the hub of the same node at once.
    pub(crate) async fn introduce_often(&self, node: &Node) {
        let keys = node.keys.lock().await;
        let (hub, peer) = (self.hub(), node.as_peer(&keys));
        let all = (0..20).map(|_| hub.set_peer(peer.clone()));
        for outcome in futures_util::future::join_all(all).await {
            outcome.expect("the hub is there");
        }
    }

    /// The hub ends without a word and comes back at the same port; it remembers who was where, and calls them.
    pub(crate) async fn restart_hub(&self) {
        let _alone = self.presence.write().await;
        let old = self.hub();
        let mut known = Vec::new();
        for node in &self.nodes {
            let status = old.peer_status(node.address());
            let keys = node.keys.lock().await;
            known.push(Peer {
                endpoint: status.and_then(|status| status.endpoint),
                initiates: true,
                ..node.as_peer(&keys)
            });
        }
        old.shutdown().await;
        drop(old);
        let fresh = start_hub(&self.ground, &self.hub_key, self.hub_at).await;
        for peer in known {
            fresh.set_peer(peer).await.expect("a peer");
        }
        *self.hub.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
    }
}

async fn start_hub(ground: &Ground, key: &PrivateKey, bind: SocketAddr) -> Tunnel {
    let mut settings = Settings::new(bind, key.clone(), HUB);
    settings.backend = ground.backend;
    settings.helper.clone_from(&ground.helper);
    let mut tried = 0;
    let hub = loop {
        match Tunnel::start(settings.clone()).await {
            Ok(hub) => break hub,
            Err(error) => {
                tried += 1;
                assert!(tried < BIND_TRIES, "the hub does not start: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::spawn(echo(hub.listen(PORT).await.expect("a port")));
    hub
}

/// Sends everything back until the other side has finished.
async fn echo(listener: Listener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                writer.shutdown().await.ok();
            }
        });
    }
}

/// Sends bytes and reads them back; an error is a stream that broke.
pub(crate) async fn exchange(stream: Stream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        writer.write_all(bytes).await?;
        writer.shutdown().await
    };
    let mut back = Vec::new();
    let reading = reader.read_to_end(&mut back);
    tokio::try_join!(writing, reading)?;
    Ok(back)
}
