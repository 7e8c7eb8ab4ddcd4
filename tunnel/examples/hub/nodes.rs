//! Real nodes, as many tunnels in one process. A line on stdin makes all of them begin a handshake at once.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tunnel::{Listener, Peer, PublicKey, Settings, Tunnel};

use crate::figures::{HUB, PORT, address, key, source};

pub(crate) async fn run(hub: &str, hub_key: &str, count: u32, first: u32) {
    let hub: SocketAddr = hub.parse().expect("an address");
    let hub_key: PublicKey = hub_key.parse().expect("a key");
    let mut nodes = Vec::new();
    for number in first + 1..=first + count {
        nodes.push(node((hub, hub_key), number).await);
    }
    let (sender, mut lines) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            sender.blocking_send(line).ok();
        }
    });
    while lines.recv().await.is_some() {
        for node in &nodes {
            node.handshake_now(HUB).await.ok();
        }
    }
}

async fn node((hub, hub_key): (SocketAddr, PublicKey), number: u32) -> Tunnel {
    let node = Tunnel::start(Settings::new(source(number), key(number), address(number)))
        .await
        .expect("a node");
    node.set_peer(Peer {
        public_key: hub_key,
        preshared_key: None,
        address: HUB,
        endpoint: Some(hub),
        keepalive: Some(Duration::from_secs(20)),
        initiates: true,
    })
    .await
    .expect("the hub");
    tokio::spawn(serve(node.listen(PORT).await.expect("a port")));
    node
}

/// Reads for ever; answers every `?` with one byte.
async fn serve(listener: Listener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut room = vec![0; 65_536];
            while let Ok(length @ 1..) = stream.read(&mut room).await {
                if room[..length].contains(&b'?') && stream.write_all(b"!").await.is_err() {
                    return;
                }
            }
        });
    }
}
