//! Networks that let no UDP through: at the start, in the middle, and no longer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tunnel::{CarrierRole, PathKind, Stream, Tunnel};

use crate::relay::Relay;
use crate::support::{
    HUB, PATIENCE, echo, exchange, has_session, hub, node, node_address, pattern, ping, soon, tell,
    until,
};

/// Back to UDP within a minute of its working.
const BACK_MAX: Duration = Duration::from_mins(1);

/// Once is enough for what takes half a minute and has nothing to do with who does TCP.
const RETURNS: bool = crate::QUIC && matches!(crate::BACKEND, tunnel::Backend::Embedded);

/// A hub's front: every connection is a carrier, and so would be a WebSocket whose upgrade is done.
struct Front {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn front(hub: &Tunnel) -> Front {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let hub = hub.clone();
    let task = tokio::spawn(async move {
        let mut carriers = tokio::task::JoinSet::new();
        while let Ok((stream, from)) = listener.accept().await {
            let carrier = hub.accept_carrier(from.ip()).expect("a carrier");
            carriers.spawn(carrier.run(stream, CarrierRole::Server));
        }
    });
    Front { address, task }
}

/// What a node's program does: dials whenever a carrier is wanted.
async fn dial(node: Tunnel, front: SocketAddr) {
    loop {
        let Ok(mut wanted) = node.watch_carrier(HUB).await else {
            return;
        };
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            return;
        }
        if let Ok(stream) = TcpStream::connect(front).await
            && let Ok(carrier) = node.open_carrier(HUB, front.ip()).await
        {
            carrier.run(stream, CarrierRole::Client).await.ok();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn path(node: &Tunnel) -> Option<PathKind> {
    node.peer_status(HUB).map(|status| status.path)
}

/// A hub and a node that can dial it, with a relay between them that can be cut.
async fn house(cut: bool) -> (Tunnel, Tunnel, Relay, Front) {
    let hub = hub().await;
    tokio::spawn(echo(hub.listen(9000).await.unwrap()));
    let relay = Relay::start(hub.local_addr(), 0, 1).await;
    relay.set_cut(cut);
    let front = front(&hub).await;
    let node = node(&hub, 1, relay.address).await;
    tokio::spawn(dial(node.clone(), front.address));
    (hub, node, relay, front)
}

#[tokio::test]
async fn where_udp_is_blocked_a_carrier_takes_over_within_seconds() {
    let began = Instant::now();
    let (hub, node, _relay, _front) = house(true).await;
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    soon("an answer", ping(&mut stream)).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    tell(&format!(
        "UDP blocked from the start: an answer after {:?}",
        began.elapsed()
    ));
    assert_eq!(path(&node), Some(PathKind::Carried));
    assert_eq!(node.peer_status(HUB).unwrap().endpoint, None);
    let bytes = pattern(3_000_000, 5);
    let stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    assert!(soon("bulk", exchange(stream, bytes.clone())).await.unwrap() == bytes);
    let at_hub = hub.peer_status(node_address(1)).unwrap();
    assert_eq!(at_hub.path, PathKind::Carried);
}

#[tokio::test]
async fn a_hub_reaches_a_carried_node_too() {
    let (hub, node, _relay, _front) = house(true).await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    until("a session", || has_session(&hub, node_address(1))).await;
    let stream = hub.connect(node_address(1), 8080, PATIENCE).await.unwrap();
    let bytes = pattern(500_000, 6);
    assert!(soon("bulk", exchange(stream, bytes.clone())).await.unwrap() == bytes);
}

#[tokio::test]
async fn udp_that_works_is_used_and_no_carrier_is_wanted() {
    let (_hub, node, _relay, _front) = house(false).await;
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    let wanted = node.watch_carrier(HUB).await.unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        ping(&mut stream).await.unwrap();
        assert!(!*wanted.borrow());
        assert_eq!(path(&node), Some(PathKind::Udp));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pings until an answer comes over this way, and says how long that took.
async fn ping_until(stream: &mut Stream, node: &Tunnel, kind: PathKind) -> Duration {
    let began = Instant::now();
    while path(node) != Some(kind) {
        tokio::time::timeout(BACK_MAX, ping(stream))
            .await
            .expect("an answer")
            .expect("a stream that lives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// The longest test there is: how soon UDP is tried again is what it is about.
#[tokio::test]
async fn udp_blocked_in_the_middle_costs_seconds_and_no_stream_and_when_it_is_back_it_is_used() {
    let (hub, node, relay, _front) = house(false).await;
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    ping(&mut stream).await.unwrap();
    relay.set_cut(true);
    let took = ping_until(&mut stream, &node, PathKind::Carried).await;
    ping(&mut stream).await.unwrap();
    tell(&format!("UDP cut in a session: carried after {took:?}"));
    assert!(took < Duration::from_secs(6), "{took:?}");
    if !RETURNS {
        return;
    }
    relay.set_cut(false);
    let took = ping_until(&mut stream, &node, PathKind::Udp).await;
    tell(&format!("UDP back: used after {took:?}"));
    assert!(took < BACK_MAX, "{took:?}");
    until("the hub to follow", || {
        hub.peer_status(node_address(1)).unwrap().path == PathKind::Udp
    })
    .await;
    for _ in 0..50 {
        soon("an answer", ping(&mut stream)).await.unwrap();
        assert_eq!(path(&node), Some(PathKind::Udp), "it stays");
    }
    let wanted = node.watch_carrier(HUB).await.unwrap();
    let give_up = Instant::now() + Duration::from_secs(20);
    while *wanted.borrow() {
        assert!(Instant::now() < give_up, "the carrier is let go");
        ping(&mut stream).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_carrier_that_breaks_is_dialled_again_and_no_stream_is_lost() {
    let (hub, node, _relay, front) = house(true).await;
    let mut stream = node.connect(HUB, 9000, PATIENCE).await.unwrap();
    ping(&mut stream).await.unwrap();
    let listening = front.address;
    drop(front);
    until("the carrier to be missed", || {
        path(&node) == Some(PathKind::Udp)
    })
    .await;
    let listener = loop {
        match TcpListener::bind(listening).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let accepting = tokio::spawn(async move {
        let mut carriers = tokio::task::JoinSet::new();
        while let Ok((stream, from)) = listener.accept().await {
            let carrier = hub.accept_carrier(from.ip()).expect("a carrier");
            carriers.spawn(carrier.run(stream, CarrierRole::Server));
        }
    });
    soon("an answer", ping(&mut stream)).await.unwrap();
    assert_eq!(path(&node), Some(PathKind::Carried));
    accepting.abort();
}

#[tokio::test]
async fn what_comes_through_a_carrier_is_believed_no_more_than_what_comes_by_udp() {
    let (hub, node, _relay, front) = house(false).await;
    until("a session", || has_session(&hub, node.address())).await;
    let endpoint = hub.peer_status(node.address()).unwrap().endpoint;
    let before = hub.counters();
    let (here, there) = tokio::io::duplex(1 << 16);
    let remote = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
    let carrier = hub.accept_carrier(remote).unwrap();
    let running = tokio::spawn(carrier.run(there, CarrierRole::Server));
    let (mut reading, mut here) = tokio::io::split(here);
    let mut initiation = vec![0x82, 0xfe, 0, 148, 0, 0, 0, 0, 1, 0, 0, 0];
    initiation.resize(8 + 148, 7);
    here.write_all(&initiation).await.unwrap();
    until("the forged handshake to be counted", || {
        hub.counters().bad_mac > before.bad_mac
    })
    .await;
    assert_eq!(hub.peer_status(node.address()).unwrap().endpoint, endpoint);
    here.write_all(&[0x81, 0x81, 0, 0, 0, 0, b'x'])
        .await
        .unwrap();
    let ended = soon("the end of a carrier of text", running).await.unwrap();
    assert!(ended.is_err());
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut rest)
        .await
        .unwrap();
    drop(front);
}

#[tokio::test]
async fn a_hub_closes_its_carriers_when_it_stops() {
    let hub = hub().await;
    let (_here, there) = tokio::io::duplex(1 << 16);
    let carrier = hub.accept_carrier(Ipv4Addr::LOCALHOST.into()).unwrap();
    let running = tokio::spawn(carrier.run(there, CarrierRole::Server));
    hub.shutdown().await;
    soon("the carrier's end", running).await.unwrap().unwrap();
    assert!(hub.accept_carrier(Ipv4Addr::LOCALHOST.into()).is_err());
}
