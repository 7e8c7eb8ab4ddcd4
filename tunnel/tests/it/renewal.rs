//! Keys that change under a running stream: nothing is lost, nothing is cut, and what is old is forgotten.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Peer, PresharedKey, PrivateKey, Settings, Tunnel};

const PATIENCE: Duration = Duration::from_secs(10);
const ROUNDS: u8 = 20;
const ROUND_BYTES: usize = 256 * 1024;

fn peer(key: &PrivateKey, psk: u8, address: &str) -> Peer {
    Peer {
        public_key: key.public_key(),
        preshared_key: Some(PresharedKey::from_bytes([psk; 32])),
        address: address.parse().unwrap(),
        endpoint: None,
        keepalive: None,
        initiates: false,
    }
}

fn settings(key: &PrivateKey, address: &str) -> Settings {
    let bind = "127.0.0.1:0".parse().unwrap();
    let mut settings = Settings::new(bind, key.clone(), address.parse().unwrap());
    settings.backend = crate::BACKEND;
    settings.helper = Some(env!("CARGO_BIN_EXE_hearth-netns").into());
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_changes_of_keys_under_a_transfer_lose_no_byte() {
    let hub_key = PrivateKey::generate();
    let mut node_key = PrivateKey::generate();
    let (hub_at, node_at) = ("fd00::1", "fd00::2");
    let start = |key: &PrivateKey, address: &str| Tunnel::start(settings(key, address));
    let hub = start(&hub_key, hub_at).await.unwrap();
    let node = start(&node_key, node_at).await.unwrap();
    let dialled = |psk: u8| Peer {
        endpoint: Some(hub.local_addr()),
        initiates: true,
        ..peer(&hub_key, psk, hub_at)
    };
    hub.set_peer(peer(&node_key, 0, node_at)).await.unwrap();
    node.set_peer(dialled(0)).await.unwrap();
    let listener = hub.listen(80).await.unwrap();
    let (near, far) = tokio::join!(
        node.connect(hub_at.parse().unwrap(), 80, PATIENCE),
        listener.accept()
    );
    let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
    let writing = tokio::spawn(async move {
        for round in 0..ROUNDS {
            near.write_all(&vec![round; ROUND_BYTES]).await.unwrap();
        }
        near
    });
    let mut bytes = vec![0; ROUND_BYTES];
    for round in 0..ROUNDS {
        node_key = PrivateKey::generate();
        let psk = round + 1;
        hub.renew_peer(peer(&node_key, psk, node_at), None)
            .await
            .unwrap();
        node.renew_peer(dialled(psk), Some(node_key.clone()))
            .await
            .unwrap();
        let read = tokio::time::timeout(PATIENCE, far.read_exact(&mut bytes));
        read.await.expect("in time").expect("not cut");
        assert!(bytes.iter().all(|byte| *byte == round), "round {round}");
        let renewed = async {
            let key = node_key.public_key();
            let is_new = || {
                let status = hub.peer_status(node_at.parse().unwrap());
                status.is_some_and(|status| status.public_key == key)
            };
            while !is_new() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, renewed)
            .await
            .expect("the new key is used");
    }
    drop(writing.await.unwrap());
    let dropped = hub.counters();
    assert_eq!(dropped.bad_mac + dropped.unauthentic, 0, "{dropped:?}");
}

#[tokio::test]
async fn a_call_of_a_hub_that_has_lost_its_keys_is_noticed() {
    let (hub_key, node_key) = (PrivateKey::generate(), PrivateKey::generate());
    let node = Tunnel::start(settings(&node_key, "fd00::2")).await.unwrap();
    let mut calls = node.calls();
    let hub = Tunnel::start(settings(&hub_key, "fd00::1")).await.unwrap();
    let known = Peer {
        initiates: true,
        ..peer(&hub_key, 1, "fd00::1")
    };
    node.set_peer(known).await.unwrap();
    let card = Peer {
        endpoint: Some(node.local_addr()),
        ..peer(&node_key, 2, "fd00::2")
    };
    hub.set_peer(card).await.unwrap();
    hub.handshake_now("fd00::2".parse().unwrap()).await.unwrap();
    tokio::time::timeout(PATIENCE, calls.changed())
        .await
        .expect("noticed")
        .unwrap();
    let status = hub.peer_status("fd00::2".parse().unwrap()).unwrap();
    assert_eq!(status.since_handshake, None, "other keys make no session");
}
