//! What only streams over QUIC can be asked.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Peer, PresharedKey, PrivateKey, Tunnel};

use crate::relay::Relay;
use crate::support::{
    HUB, PATIENCE, echo, exchange, has_session, hub, loopback, node, node_as_peer, pattern, ping,
    settings, soon, until,
};

#[tokio::test]
async fn streams_of_a_hub_that_crashed_end_with_its_next_session_and_new_ones_work_at_once() {
    let key = PrivateKey::generate();
    let start = |bind| {
        let mut settings = settings(key.clone(), HUB);
        settings.bind = bind;
        Tunnel::start(settings)
    };
    let first = start(loopback()).await.unwrap();
    let bind = first.local_addr();
    let relay = Relay::start(bind, 0, 1).await;
    let node = node(&first, 1, relay.address).await;
    until("a session", || has_session(&first, node.address())).await;
    tokio::spawn(echo(first.listen(9000).await.unwrap()));
    let mut old = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    ping(&mut old).await.unwrap();
    let endpoint = first.peer_status(node.address()).unwrap().endpoint;
    // A crash: nothing that the hub says on its way out arrives.
    relay.set_cut(true);
    first.shutdown().await;
    drop(first);

    let second = start(bind).await.unwrap();
    tokio::spawn(echo(second.listen(9000).await.unwrap()));
    relay.set_cut(false);
    let began = Instant::now();
    let peer = Peer {
        endpoint,
        initiates: true,
        ..node_as_peer(&node, Some(PresharedKey::from_bytes([7; 32])))
    };
    second.set_peer(peer).await.unwrap();
    let end = soon("the old stream's end", old.read_u8()).await;
    assert!(end.is_err(), "nobody is there who could answer");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut new = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut new)).await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_costs_a_transfer_little() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 10, 7).await;
    let node = node(&hub, 1, relay.address).await;
    until("a session", || has_session(&hub, node.address())).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let bytes = pattern(4_000_000, 3);
    let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let began = Instant::now();
    let back = soon("the echo", exchange(stream, bytes.clone())).await;
    assert!(back.unwrap() == bytes);
    assert!(relay.lost() > 10, "{} lost", relay.lost());
    // smoltcp waits a second for each hole.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_path_that_moves_or_pauses_keeps_its_streams() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    ping(&mut stream).await.unwrap();
    relay.set_cut(true);
    stream.write_all(b"x").await.unwrap();
    until("a packet to be lost", || relay.lost() > 2).await;
    relay.set_cut(false);
    let mut room = [0; 1];
    soon("what was said meanwhile", stream.read_exact(&mut room))
        .await
        .unwrap();
    ping(&mut stream).await.unwrap();
}
