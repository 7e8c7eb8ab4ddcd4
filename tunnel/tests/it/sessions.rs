//! Sessions: how they begin, move, end and come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::{Bounds, Error, Peer, PresharedKey, PrivateKey, Tunnel};

use crate::relay::Relay;
use crate::support::{
    HUB, PATIENCE, echo, exchange, has_session, hub, hub_as_peer, hub_with, is_kernels, loopback,
    node, node_address, node_as_peer, pair, pattern, ping, settings, soon, tell, until,
};

#[tokio::test]
async fn a_connection_waits_for_the_first_handshake() {
    let hub = hub().await;
    let node = node(&hub, 1, hub.local_addr()).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let began = Instant::now();
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn dials_made_before_the_session_all_go_through_once_it_is_there() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    relay.set_cut(true);
    let node = node(&hub, 1, relay.address).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let node = node.clone();
        dials.spawn(async move {
            let mut stream = node.connect(HUB, 9000, PATIENCE).await?;
            ping(&mut stream).await.map_err(|_| Error::Closed)
        });
    }
    until("the dials to be begun", || {
        node.peer_status(HUB)
            .is_some_and(|status| status.streams == 50)
    })
    .await;
    relay.set_cut(false);
    while let Some(done) = soon("all dials", dials.join_next()).await {
        done.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lost_first_initiation_costs_about_a_second() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    relay.set_cut(true);
    let node = node(&hub, 1, relay.address).await;
    until("the first initiation", || relay.lost() > 0).await;
    relay.set_cut(false);
    let began = Instant::now();
    until("a session", || has_session(&node, HUB)).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn eighty_peers_share_one_hub_port() {
    let hub = hub().await;
    let mut nodes = Vec::new();
    for number in 1..=80 {
        nodes.push(node(&hub, number, hub.local_addr()).await);
    }
    for node in &nodes {
        tokio::spawn(echo(node.listen(8080).await.unwrap()));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for node in &nodes {
        let (hub, address) = (hub.clone(), node.address());
        tasks.spawn(async move {
            until("a session", || has_session(&hub, address)).await;
            let stream = hub.connect(address, 8080, PATIENCE).await.unwrap();
            assert_eq!(*stream.peer_addr().ip(), address);
            let bytes = pattern(30_000, u64::from(address.segments()[7]));
            assert!(exchange(stream, bytes.clone()).await.unwrap() == bytes);
        });
    }
    while let Some(done) = soon("all nodes", tasks.join_next()).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn under_load_a_node_proves_its_address_with_a_cookie() {
    let bounds = Bounds {
        handshakes_per_second_max: 0,
        ..Bounds::default()
    };
    let hub = hub_with(bounds).await;
    let node = node(&hub, 1, hub.local_addr()).await;
    until("a session", || has_session(&hub, node.address())).await;
    assert!(hub.counters().limited > 0, "the first attempt got a cookie");
}

#[tokio::test]
async fn a_dual_stack_hub_serves_ipv4_nodes() {
    let mut settings = settings(PrivateKey::generate(), HUB);
    settings.bind = "[::]:0".parse().unwrap();
    let hub = Tunnel::start(settings).await.unwrap();
    let endpoint = SocketAddr::from(([127, 0, 0, 1], hub.local_addr().port()));
    let node = node(&hub, 1, endpoint).await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    until("a session", || has_session(&hub, node.address())).await;
    let mut stream = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    let seen = hub.peer_status(node.address()).unwrap().endpoint;
    assert_eq!(
        seen,
        Some(node.local_addr()),
        "shown as IPv4, not as mapped"
    );
}

#[tokio::test]
async fn a_peer_told_a_new_endpoint_goes_there_at_once() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    until("a session", || has_session(&hub, node.address())).await;
    relay.set_cut(true);
    let shared = Some(PresharedKey::from_bytes([7; 32]));
    node.set_peer(hub_as_peer(&hub, hub.local_addr(), shared))
        .await
        .unwrap();
    until("the hub to see the direct path", || {
        hub.peer_status(node.address()).unwrap().endpoint == Some(node.local_addr())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_preshared_key_never_connects_and_says_so() {
    let hub = hub().await;
    let node = Tunnel::start(settings(PrivateKey::generate(), node_address(1)))
        .await
        .unwrap();
    let (one, two) = ([1; 32], [2; 32]);
    hub.set_peer(node_as_peer(&node, Some(PresharedKey::from_bytes(one))))
        .await
        .unwrap();
    let wrong = Some(PresharedKey::from_bytes(two));
    node.set_peer(hub_as_peer(&hub, hub.local_addr(), wrong))
        .await
        .unwrap();
    let deadline = Duration::from_millis(1500);
    let began = Instant::now();
    let error = node.connect(HUB, 9000, deadline).await.unwrap_err();
    assert!(began.elapsed() < deadline + Duration::from_millis(500));
    assert_eq!(
        error.to_string(),
        "no handshake with fd48:6561:7274::1 within 1500 ms: unreachable, or the keys do not match"
    );
    assert!(node.counters().unauthentic > 0, "{:?}", node.counters());
    assert!(!has_session(&hub, node.address()) && !has_session(&node, HUB));
}

#[tokio::test]
async fn a_peer_that_was_never_heard_of_cannot_be_dialled() {
    let hub = hub().await;
    let error = hub
        .connect(node_address(1), 8080, Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UnknownPeer(_)), "{error}");
    assert!(!hub.remove_peer(node_address(1)).await.unwrap());
    assert!(hub.peer_status(node_address(1)).is_none());
}

#[tokio::test]
async fn a_removed_peers_streams_fail_on_both_sides_within_a_second() {
    let (hub, node) = pair().await;
    let listener = node.listen(8080).await.unwrap();
    let mut client = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    let began = Instant::now();
    assert!(hub.remove_peer(node.address()).await.unwrap());
    let (mut one, mut two) = ([0; 1], [0; 1]);
    let (here, there) = tokio::join!(
        soon("our end", client.read(&mut one)),
        soon("their end", server.read(&mut two)),
    );
    assert!(here.is_err() && there.is_err(), "{here:?} {there:?}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let again = hub
        .connect(node.address(), 8080, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(again, Error::UnknownPeer(_)), "{again}");
}

#[tokio::test]
async fn a_restarted_node_with_a_new_key_replaces_the_old_one() {
    let (hub, old) = pair().await;
    let listener = old.listen(8080).await.unwrap();
    let mut stream = hub.connect(old.address(), 8080, PATIENCE).await.unwrap();
    let (_held, _) = soon("a connection", listener.accept()).await.unwrap();

    let new = node(&hub, 1, hub.local_addr()).await;
    assert_ne!(new.public_key(), old.public_key());
    let error = soon("the old stream", stream.read(&mut [0; 1])).await;
    assert!(error.is_err(), "streams of the old key must die");

    tokio::spawn(echo(new.listen(8080).await.unwrap()));
    let mut stream = hub.connect(new.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
}

#[tokio::test]
async fn setting_a_peer_again_with_the_same_keys_keeps_its_streams() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut stream = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    let again = node_as_peer(&node, Some(PresharedKey::from_bytes([7; 32])));
    hub.set_peer(again).await.unwrap();
    soon("another answer", ping(&mut stream)).await.unwrap();
}

/// A hub that can be started again on the same port with the same key.
async fn restartable(key: &PrivateKey, bind: SocketAddr) -> Tunnel {
    let mut settings = settings(key.clone(), HUB);
    settings.bind = bind;
    Tunnel::start(settings).await.unwrap()
}

#[tokio::test]
async fn a_node_finds_a_restarted_hub_by_itself() {
    let key = PrivateKey::generate();
    let first = restartable(&key, loopback()).await;
    let bind = first.local_addr();
    let node = node(&first, 1, bind).await;
    until("a session", || has_session(&first, node.address())).await;
    // A crash: nothing is said to the node.
    let peer = node_as_peer(&node, Some(PresharedKey::from_bytes([7; 32])));
    first.shutdown().await;
    drop(first);

    let second = restartable(&key, bind).await;
    second.set_peer(peer).await.unwrap();
    tokio::spawn(echo(second.listen(9000).await.unwrap()));
    let began = Instant::now();
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_restarted_hub_that_remembers_the_endpoint_is_back_in_a_round_trip() {
    let key = PrivateKey::generate();
    let first = restartable(&key, loopback()).await;
    let bind = first.local_addr();
    let node = node(&first, 1, bind).await;
    until("a session", || has_session(&first, node.address())).await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let endpoint = first.peer_status(node.address()).unwrap().endpoint;
    assert_eq!(endpoint, Some(node.local_addr()));
    first.shutdown().await;
    drop(first);

    let second = restartable(&key, bind).await;
    let began = Instant::now();
    second
        .set_peer(Peer {
            endpoint,
            initiates: true,
            ..node_as_peer(&node, Some(PresharedKey::from_bytes([7; 32])))
        })
        .await
        .unwrap();
    let mut stream = second
        .connect(node.address(), 8080, PATIENCE)
        .await
        .unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
}

/// A token every 20 ms until the stream breaks.
async fn stream_until_broken(mut stream: tunnel::Stream) -> Instant {
    let mut room = [0; 5];
    loop {
        let sent = stream.write_all(b"token").await;
        if sent.is_err() || stream.read_exact(&mut room).await.is_err() {
            return Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_that_streams_to_a_hub_that_crashed_notices_and_goes_on_with_the_next() {
    let key = PrivateKey::generate();
    let first = restartable(&key, loopback()).await;
    let bind = first.local_addr();
    let relay = Relay::start(bind, 0, 1).await;
    let node = node(&first, 1, relay.address).await;
    until("a session", || has_session(&first, node.address())).await;
    tokio::spawn(echo(first.listen(9000).await.unwrap()));
    let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let streaming = tokio::spawn(stream_until_broken(stream));
    until("tokens", || relay.passed() > 50).await;
    let endpoint = first.peer_status(node.address()).unwrap().endpoint;
    // A crash: nothing that the hub says on its way out arrives.
    relay.set_cut(true);
    first.shutdown().await;
    drop(first);

    let second = restartable(&key, bind).await;
    tokio::spawn(echo(second.listen(9000).await.unwrap()));
    relay.set_cut(false);
    let back = Instant::now();
    let peer = Peer {
        endpoint,
        initiates: true,
        ..node_as_peer(&node, Some(PresharedKey::from_bytes([7; 32])))
    };
    second.set_peer(peer).await.unwrap();
    let broken = soon("the stream's end", streaming).await.unwrap();
    let noticed = broken.saturating_duration_since(back);
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    let took = back.elapsed();
    tell(&format!(
        "a crash noticed after {noticed:?}, going on after {took:?}"
    ));
    // smoltcp repeats what nobody has acknowledged after 1 s, and then after 2.
    let is_smoltcp = !is_kernels(&node) && !crate::QUIC;
    let allowed = if is_smoltcp { 4_500 } else { 1_500 };
    assert!(took <= Duration::from_millis(allowed), "{took:?}");
}

#[tokio::test]
async fn a_forced_handshake_makes_a_new_session_under_running_streams() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let age = || node.peer_status(HUB).unwrap().since_handshake.unwrap();
    until("the session to age", || age() > Duration::from_millis(600)).await;
    node.handshake_now(HUB).await.unwrap();
    until("a new session", || age() < Duration::from_millis(500)).await;
    soon("an answer", ping(&mut stream)).await.unwrap();
    let nowhere = hub.handshake_now(node_address(9)).await.unwrap_err();
    assert!(matches!(nowhere, Error::UnknownPeer(_)));
}

#[tokio::test]
async fn a_stream_survives_a_new_nat_port() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    until("a session", || has_session(&hub, node.address())).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut up = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let mut down = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut up)).await.unwrap();
    let moved = relay.rebind(hub.local_addr()).await;
    soon("an answer through the new port", ping(&mut up))
        .await
        .unwrap();
    until("the hub to follow", || {
        hub.peer_status(node.address()).unwrap().endpoint == Some(moved)
    })
    .await;
    soon("an answer to the hub", ping(&mut down)).await.unwrap();
}

#[tokio::test]
async fn an_idle_path_makes_no_handshakes() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    // The last packet of an exchange is a bare acknowledgement that nobody answers.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let age = node.peer_status(HUB).unwrap().since_handshake.unwrap();
    assert!(
        age > Duration::from_millis(2900),
        "a new session after {age:?}"
    );
}

#[tokio::test]
#[ignore = "takes five minutes: boringtun's own timers cannot be hurried"]
async fn a_node_comes_back_after_an_outage_longer_than_boringtuns_patience() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    let node = node(&hub, 1, relay.address).await;
    until("a session", || has_session(&hub, node.address())).await;
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap_err();
    assert!(matches!(stream, Error::Refused { .. }));
    relay.set_cut(true);
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(!has_session(&node, HUB));
    relay.set_cut(false);
    let began = Instant::now();
    stream = node
        .connect(HUB, 9000, Duration::from_secs(31))
        .await
        .unwrap_err();
    assert!(matches!(stream, Error::Refused { .. }), "{stream}");
    assert!(began.elapsed() < Duration::from_secs(31));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_over_a_path_that_loses_one_in_twenty_completes() {
    let hub = hub().await;
    let relay = Relay::start(hub.local_addr(), 50, 0x5eed).await;
    let node = node(&hub, 1, relay.address).await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let patience = Duration::from_secs(50);
    let stream = node.connect(HUB, 9000, patience).await.unwrap();
    let bytes = pattern(60_000, 8);
    let back = tokio::time::timeout(patience, exchange(stream, bytes.clone())).await;
    assert!(
        back.expect("in time").unwrap() == bytes,
        "loss must not change bytes"
    );
    assert!(relay.lost() > 0 && relay.passed() > 0);
}

#[tokio::test]
async fn a_shut_down_tunnel_ends_everything_it_gave_out() {
    let (hub, node) = pair().await;
    let listener = hub.listen(9000).await.unwrap();
    let mut client = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let (mut server, _) = soon("a connection", listener.accept()).await.unwrap();
    hub.shutdown().await;
    assert!(soon("our stream", server.read(&mut [0; 1])).await.is_err());
    assert!(
        soon("their stream", client.read(&mut [0; 1]))
            .await
            .is_err()
    );
    assert!(matches!(
        soon("the listener", listener.accept()).await,
        Err(Error::Closed)
    ));
    let after = hub.connect(node.address(), 8080, PATIENCE).await;
    assert!(matches!(after, Err(Error::Closed)));
    hub.shutdown().await;
}

#[tokio::test]
async fn dropping_the_last_handle_stops_the_driver_and_frees_the_port() {
    let (hub, node) = pair().await;
    let listener = hub.listen(9000).await.unwrap();
    let bind = hub.local_addr();
    drop(hub);
    assert!(matches!(
        soon("the listener", listener.accept()).await,
        Err(Error::Closed)
    ));
    let give_up = Instant::now() + PATIENCE;
    while tokio::net::UdpSocket::bind(bind).await.is_err() {
        assert!(Instant::now() < give_up, "the port stays bound");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(node);
}

#[tokio::test]
async fn a_port_has_one_listener_until_it_is_dropped() {
    let hub = hub().await;
    let listener = hub.listen(9000).await.unwrap();
    assert!(matches!(
        hub.listen(9000).await,
        Err(Error::PortInUse(9000))
    ));
    drop(listener);
    hub.listen(9000).await.unwrap();
    assert!(matches!(hub.listen(0).await, Err(Error::PortZero)));
}

#[tokio::test]
async fn two_peers_cannot_share_a_key_and_the_table_is_bounded() {
    let mut settings = settings(PrivateKey::generate(), HUB);
    settings.bounds.peers_max = 1;
    let hub = Tunnel::start(settings).await.unwrap();
    let peer = |number: u16, key: u8| Peer {
        public_key: PrivateKey::from_bytes([key; 32]).public_key(),
        preshared_key: None,
        address: node_address(number),
        endpoint: None,
        keepalive: None,
        initiates: false,
    };
    hub.set_peer(peer(1, 1)).await.unwrap();
    let shared = hub.set_peer(peer(2, 1)).await.unwrap_err();
    assert!(matches!(shared, Error::KeyInUse(_)), "{shared}");
    let many = hub.set_peer(peer(2, 2)).await.unwrap_err();
    assert!(matches!(many, Error::TooManyPeers(1)), "{many}");
    let own = Peer {
        address: HUB,
        ..peer(3, 3)
    };
    assert!(matches!(hub.set_peer(own).await, Err(Error::BadAddress(_))));
}
