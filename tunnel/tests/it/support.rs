//! What the tunnel tests share: pairs of tunnels, a lossy relay, byte patterns.

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tunnel::{Bounds, Listener, Peer, PresharedKey, PrivateKey, Settings, Stream, Tunnel};

pub(crate) const HUB: Ipv6Addr = Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 0, 0, 0, 1);
/// smoltcp repeats what a busy machine has lost after 1, 2, 4 and 8 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(if crate::QUIC { 10 } else { 30 });

pub(crate) fn node_address(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd48, 0x6561, 0x7274, 0, 1, 0, 0, number)
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) fn settings(key: PrivateKey, address: Ipv6Addr) -> Settings {
    let mut settings = Settings::new(loopback(), key, address);
    settings.backend = crate::BACKEND;
    settings.quic = crate::QUIC;
    settings.helper = Some(env!("CARGO_BIN_EXE_hearth-netns").into());
    settings
}

pub(crate) async fn hub() -> Tunnel {
    hub_with(Bounds::default()).await
}

pub(crate) async fn hub_with(bounds: Bounds) -> Tunnel {
    let mut settings = settings(PrivateKey::generate(), HUB);
    settings.bounds = bounds;
    Tunnel::start(settings).await.expect("a hub")
}

/// A node that knows the hub at `endpoint`; the hub is told about it too.
pub(crate) async fn node(hub: &Tunnel, number: u16, endpoint: SocketAddr) -> Tunnel {
    node_with(hub, number, endpoint, Bounds::default()).await
}

pub(crate) async fn node_with(
    hub: &Tunnel,
    number: u16,
    endpoint: SocketAddr,
    bounds: Bounds,
) -> Tunnel {
    let mut settings = settings(PrivateKey::generate(), node_address(number));
    settings.bounds = bounds;
    let node = Tunnel::start(settings).await.expect("a node");
    let shared = PresharedKey::from_bytes([7; 32]);
    hub.set_peer(node_as_peer(&node, Some(shared.clone())))
        .await
        .expect("the hub takes the node");
    node.set_peer(hub_as_peer(hub, endpoint, Some(shared)))
        .await
        .expect("the node takes the hub");
    node
}

pub(crate) fn node_as_peer(node: &Tunnel, preshared_key: Option<PresharedKey>) -> Peer {
    Peer {
        public_key: node.public_key(),
        preshared_key,
        address: node.address(),
        endpoint: None,
        keepalive: None,
        initiates: false,
    }
}

pub(crate) fn hub_as_peer(
    hub: &Tunnel,
    endpoint: SocketAddr,
    preshared_key: Option<PresharedKey>,
) -> Peer {
    Peer {
        public_key: hub.public_key(),
        preshared_key,
        address: hub.address(),
        endpoint: Some(endpoint),
        keepalive: Some(Duration::from_secs(15)),
        initiates: true,
    }
}

/// A hub and one node with a session.
pub(crate) async fn pair() -> (Tunnel, Tunnel) {
    let hub = hub().await;
    let node = node(&hub, 1, hub.local_addr()).await;
    until("a session", || has_session(&hub, node.address())).await;
    (hub, node)
}

pub(crate) fn has_session(tunnel: &Tunnel, peer: Ipv6Addr) -> bool {
    tunnel
        .peer_status(peer)
        .is_some_and(|status| status.since_handshake.is_some())
}

/// Waits until a fact holds.
pub(crate) async fn until(what: &str, fact: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for a future that must end soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Sends everything back until the other side has finished.
pub(crate) async fn echo(listener: Listener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                writer.shutdown().await.ok();
            }
        });
    }
}

/// Bytes that differ everywhere, for a seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes `bytes`, finishes, and reads until the end at the same time.
pub(crate) async fn exchange(stream: Stream, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = tokio::spawn(async move {
        writer.write_all(&bytes).await?;
        writer.shutdown().await
    });
    let mut back = Vec::new();
    reader.read_to_end(&mut back).await?;
    writing.await.expect("the writer")?;
    Ok(back)
}

/// One small request and its answer.
pub(crate) async fn ping(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut back = [0; 4];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"ping");
    Ok(())
}

/// Whether the kernel does this tunnel's TCP.
pub(crate) fn is_kernels(tunnel: &Tunnel) -> bool {
    tunnel.backend() == tunnel::Backend::Netns
}

/// A figure for whoever reads the test's output.
pub(crate) fn tell(line: &str) {
    use std::io::Write as _;
    // Nowhere left to say that nothing can be said.
    drop(writeln!(std::io::stderr(), "{line}"));
}
