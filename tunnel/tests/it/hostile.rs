//! What strangers and dishonest peers can send, and that nothing comes of it.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use tokio::net::UdpSocket;
use tunnel::{Bounds, Counters, Peer, PrivateKey, Tunnel};

use crate::support::{
    HUB, PATIENCE, echo, hub, hub_with, is_kernels, node, node_address, pair, pattern, ping, soon,
    until,
};

/// A peer made of a bare boringtun, so that it can lie inside the tunnel.
struct Rogue {
    tunn: Tunn,
    socket: UdpSocket,
}

impl Rogue {
    /// Becomes a peer of the hub with the given overlay address and makes a session.
    async fn join(hub: &Tunnel, address: Ipv6Addr) -> Self {
        let key = PrivateKey::generate();
        hub.set_peer(Peer {
            public_key: key.public_key(),
            preshared_key: None,
            address,
            endpoint: None,
            keepalive: None,
            initiates: false,
        })
        .await
        .unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(hub.local_addr()).await.unwrap();
        let mut rogue = Self {
            tunn: Tunn::new(
                key.to_bytes().into(),
                hub.public_key().to_bytes().into(),
                None,
                None,
                1,
                None,
            ),
            socket,
        };
        let mut room = [0; 2048];
        let TunnResult::WriteToNetwork(initiation) =
            rogue.tunn.format_handshake_initiation(&mut room, false)
        else {
            panic!("no initiation");
        };
        rogue.socket.send(initiation).await.unwrap();
        let mut received = [0; 2048];
        let len = soon("a response", rogue.socket.recv(&mut received))
            .await
            .unwrap();
        let TunnResult::WriteToNetwork(keepalive) =
            rogue.tunn.decapsulate(None, &received[..len], &mut room)
        else {
            panic!("no session");
        };
        rogue.socket.send(keepalive).await.unwrap();
        rogue
    }

    fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut room = vec![0; packet.len() + 256];
        let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(packet, &mut room) else {
            panic!("no session");
        };
        datagram.to_vec()
    }

    async fn send(&mut self, packet: &[u8]) {
        let datagram = self.seal(packet);
        self.socket.send(&datagram).await.unwrap();
    }
}

/// A TCP SYN to port 9000 inside IPv6.
fn syn(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, next_header, 64];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(&40_000u16.to_be_bytes());
    packet.extend_from_slice(&9000u16.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    packet
}

async fn counted(hub: &Tunnel, what: &str, of: impl Fn(Counters) -> u64) {
    until(what, || of(hub.counters()) > 0).await;
}

#[tokio::test]
async fn a_peer_can_speak_only_for_itself_and_only_to_us() {
    let hub = hub().await;
    let listener = hub.listen(9000).await.unwrap();
    let (own, other) = (node_address(1), node_address(2));
    let mut rogue = Rogue::join(&hub, own).await;

    rogue.send(&syn(other, HUB, 6)).await;
    counted(&hub, "a spoofed source", |counters| counters.foreign_source).await;
    rogue.send(&syn(own, other, 6)).await;
    counted(&hub, "peer to peer", |counters| {
        counters.foreign_destination
    })
    .await;
    rogue.send(&syn(own, HUB, 44)).await;
    counted(&hub, "a fragment", |counters| counters.not_tcp).await;
    assert_eq!(hub.peer_status(own).unwrap().streams, 0);

    rogue.send(&syn(own, HUB, 6)).await;
    // Half-open connections of the kernel are its own.
    if !is_kernels(&hub) {
        until("an honest attempt", || {
            hub.peer_status(own).unwrap().streams == 1
        })
        .await;
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(
        nobody.is_err(),
        "a half-open connection must not be accepted"
    );
}

/// Any IPv6 packet of one peer's, with this much behind its header.
fn packet(ends: (Ipv6Addr, Ipv6Addr), next_header: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(&[next_header, 64]);
    packet.extend_from_slice(&ends.0.octets());
    packet.extend_from_slice(&ends.1.octets());
    packet.extend_from_slice(rest);
    packet
}

/// What an inner firewall must not let through, and the reason that it is counted by.
fn forbidden(own: Ipv6Addr, other: Ipv6Addr) -> Vec<(String, Vec<u8>, &'static str)> {
    let hub = (own, HUB);
    let mut all: Vec<(String, Vec<u8>, &'static str)> = Vec::new();
    let mut add = |what: &str, packet: Vec<u8>, reason| all.push((what.to_owned(), packet, reason));
    for source in [other, HUB, Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED] {
        add("a spoofed source", syn(source, HUB, 6), "foreign_source");
        let echo = packet((source, HUB), 58, &[128, 0, 0, 0, 0, 1, 0, 1]);
        add("a spoofed echo", echo, "foreign_source");
    }
    let multicast = "ff02::1".parse().unwrap();
    for destination in [other, Ipv6Addr::LOCALHOST, multicast] {
        let to_another = syn(own, destination, 6);
        add("another destination", to_another, "foreign_destination");
        let echo = packet((own, destination), 58, &[128, 0, 0, 0, 0, 1, 0, 1]);
        add("another one's echo", echo, "foreign_destination");
    }
    let mut port = syn(own, HUB, 6);
    port[42..44].copy_from_slice(&22u16.to_be_bytes());
    add("a port of somebody else", port, "closed_port");
    // Extension headers (RFC 8200, section 4), their TCP behind them, and protocols that are none of ours.
    for header in [0u8, 43, 44, 50, 51, 60, 135, 139, 140, 253] {
        let mut rest = vec![6, 0, 0, 0, 0, 0, 0, 0];
        rest.extend_from_slice(&syn(own, HUB, 6)[40..]);
        let what = format!("extension header {header}");
        add(&what, packet(hub, header, &rest), "not_tcp");
    }
    for fragment in [1u8, 0xf9] {
        let mut rest = vec![6, 0, 0, fragment, 0, 0, 0, 7];
        rest.extend_from_slice(&syn(own, HUB, 6)[40..]);
        add("a fragment", packet(hub, 44, &rest), "not_tcp");
    }
    for protocol in [1u8, 2, 4, 17, 41, 47, 59, 89, 132] {
        let what = format!("protocol {protocol}");
        add(&what, packet(hub, protocol, &[0; 32]), "not_tcp");
    }
    // Neighbours, routers and redirects (RFC 4861) are spoken of to nobody.
    for kind in [1u8, 2, 133, 134, 135, 136, 137] {
        let what = format!("ICMPv6 type {kind}");
        add(
            &what,
            packet(hub, 58, &[kind, 0, 0, 0, 0, 0, 0, 0]),
            "not_tcp",
        );
    }
    let mut ipv4 = vec![
        0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    ipv4.extend_from_slice(&syn(own, HUB, 6)[40..]);
    add("IPv4", ipv4, "not_tcp");
    add("half a TCP header", packet(hub, 6, &[0; 10]), "not_tcp");
    all
}

#[tokio::test]
async fn whatever_is_no_tcp_to_a_port_of_ours_is_dropped_and_counted() {
    let hub = hub().await;
    let _listener = hub.listen(9000).await.unwrap();
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    until("the session", || {
        hub.peer_status(own).unwrap().since_heard.is_some()
    })
    .await;
    let mut expected = hub.counters().each();
    for (what, packet, reason) in forbidden(own, node_address(2)) {
        rogue.send(&packet).await;
        for one in &mut expected {
            one.1 += u64::from(one.0 == reason);
        }
        let total = |counts: &[(&str, u64)]| counts.iter().map(|one| one.1).sum::<u64>();
        until(&what, || total(&hub.counters().each()) >= total(&expected)).await;
        assert_eq!(hub.counters().each(), expected, "{what}");
    }
    assert_eq!(hub.streams_now(own).await.unwrap(), 0);
    let rejected = hub.peer_status(own).unwrap().rejected;
    assert!(rejected.closed_port > 0, "told of the peer: {rejected:?}");
}

#[tokio::test]
async fn a_replayed_packet_neither_counts_twice_nor_moves_the_endpoint() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    let home = rogue.socket.local_addr().unwrap();
    let datagram = rogue.seal(&syn(own, HUB, 44));
    rogue.socket.send(&datagram).await.unwrap();
    counted(&hub, "the packet", |counters| counters.not_tcp).await;

    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    elsewhere
        .send_to(&datagram, hub.local_addr())
        .await
        .unwrap();
    counted(&hub, "the replay", |counters| counters.replayed).await;
    assert_eq!(hub.peer_status(own).unwrap().endpoint, Some(home));
    assert_eq!(hub.counters().not_tcp, 1);
}

#[tokio::test]
async fn a_forged_packet_from_elsewhere_does_not_move_the_endpoint() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    let home = rogue.socket.local_addr().unwrap();
    until("the endpoint", || {
        hub.peer_status(own).unwrap().endpoint == Some(home)
    })
    .await;
    // The right receiver and a fresh counter, as a watcher of the path could make it; only the tag is wrong.
    let mut forged = rogue.seal(&syn(own, HUB, 6));
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    elsewhere.send_to(&forged, hub.local_addr()).await.unwrap();
    counted(&hub, "the forgery", |counters| counters.unauthentic).await;
    // The board is posted four times a second; an honest packet would move a stolen endpoint back.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.peer_status(own).unwrap().endpoint, Some(home));

    let honest = rogue.seal(&syn(own, HUB, 44));
    elsewhere.send_to(&honest, hub.local_addr()).await.unwrap();
    let moved = elsewhere.local_addr().unwrap();
    until("the endpoint to follow authenticated data", || {
        hub.peer_status(own).unwrap().endpoint == Some(moved)
    })
    .await;
}

#[tokio::test]
async fn an_initiation_alone_does_not_move_the_endpoint() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    let home = rogue.socket.local_addr().unwrap();
    until("the endpoint", || {
        hub.peer_status(own).unwrap().endpoint == Some(home)
    })
    .await;
    let mut room = [0; 256];
    let TunnResult::WriteToNetwork(initiation) =
        rogue.tunn.format_handshake_initiation(&mut room, true)
    else {
        panic!("no initiation");
    };
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    elsewhere
        .send_to(initiation, hub.local_addr())
        .await
        .unwrap();
    soon(
        "a response to where it came from",
        elsewhere.recv(&mut [0; 256]),
    )
    .await
    .unwrap();
    // The board is posted four times a second.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(hub.peer_status(own).unwrap().endpoint, Some(home));
}

#[tokio::test]
async fn a_flood_of_handshakes_from_one_source_is_limited_and_others_get_in() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    for _ in 0..400 {
        let mut room = [0; 256];
        if let TunnResult::WriteToNetwork(initiation) =
            rogue.tunn.format_handshake_initiation(&mut room, true)
        {
            rogue.socket.send(initiation).await.unwrap();
        }
    }
    counted(&hub, "the limit", |counters| counters.limited).await;
    // The flooder shares 127.0.0.1 with the node: even then it gets in by its retries.
    let node = node(&hub, 2, hub.local_addr()).await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut stream = hub.connect(node.address(), 8080, PATIENCE).await;
    if stream.is_err() {
        stream = hub.connect(node.address(), 8080, PATIENCE).await;
    }
    soon("an answer", ping(&mut stream.unwrap())).await.unwrap();
}

#[tokio::test]
async fn garbage_of_every_length_is_ignored_while_streams_run() {
    let (hub, node) = pair().await;
    tokio::spawn(echo(node.listen(8080).await.unwrap()));
    let mut stream = hub.connect(node.address(), 8080, PATIENCE).await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for target in [hub.local_addr(), node.local_addr()] {
        throw_garbage(&stranger, target).await;
    }
    counted(&hub, "the garbage", |counters| counters.malformed).await;
    counted(&hub, "unknown receivers", |counters| counters.unknown_peer).await;
    counted(&hub, "bad macs", |counters| counters.bad_mac).await;
    soon("an answer", ping(&mut stream)).await.unwrap();
}

async fn throw_garbage(from: &UdpSocket, to: SocketAddr) {
    for len in (0..200).chain([1280, 1500, 9000, 65_507]) {
        for kind in 0..6u8 {
            let mut datagram = pattern(len, u64::from(kind) + 1);
            if len >= 4 {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            from.send_to(&datagram, to).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn oversized_and_truncated_packets_of_a_real_peer_are_survived() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    for len in [60, 100, 1280, 9000, 65_000] {
        let mut packet = syn(own, HUB, 6);
        packet.resize(len, 0xff);
        rogue.send(&packet).await;
        let datagram = rogue.seal(&packet);
        for cut in [16, 31, 32, 33, datagram.len() - 1] {
            rogue.socket.send(&datagram[..cut]).await.unwrap();
        }
    }
    for first in 0..=255u8 {
        let mut packet = vec![first; 61];
        packet[0] = first;
        rogue.send(&packet).await;
    }
    let stream = node(&hub, 2, hub.local_addr()).await;
    until("the hub to live on", || {
        hub.peer_status(stream.address())
            .is_some_and(|status| status.since_handshake.is_some())
    })
    .await;
}

/// A kernel hands over at once what came at once: sixteen datagrams of one size and a short one.
#[tokio::test]
async fn of_datagrams_that_come_in_one_piece_each_is_judged_by_itself() {
    let hub = hub().await;
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    until("the session", || {
        hub.peer_status(own).unwrap().since_heard.is_some()
    })
    .await;
    let before = hub.counters();
    let mut piece = Vec::new();
    let mut segment = 0;
    for number in 0..16u8 {
        // Counted when it is decrypted, and not before.
        let mut datagram = rogue.seal(&syn(node_address(9), HUB, 6));
        segment = datagram.len();
        match number % 4 {
            1 => *datagram.last_mut().unwrap() ^= 1,
            2 => datagram[0] = 9,
            3 => datagram[5] ^= 0x55,
            _ => {}
        }
        piece.extend_from_slice(&datagram);
    }
    piece.extend_from_slice(&[4, 0, 0, 0, 1]);
    let socket = rogue.socket.into_std().unwrap();
    let state = quinn_udp::UdpSocketState::new((&socket).into()).unwrap();
    let together = if state.max_gso_segments() >= 17 {
        17
    } else {
        1
    };
    for contents in piece.chunks(segment * together) {
        let transmit = quinn_udp::Transmit {
            destination: hub.local_addr(),
            ecn: None,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: None,
        };
        state.try_send((&socket).into(), &transmit).unwrap();
    }
    let more = |now: u64, then: u64| now - then;
    until("all seventeen", || {
        let now = hub.counters();
        let sum = |counters: Counters| counters.each().iter().map(|one| one.1).sum::<u64>();
        more(sum(now), sum(before)) >= 17
    })
    .await;
    let now = hub.counters();
    assert_eq!(more(now.foreign_source, before.foreign_source), 4);
    assert_eq!(more(now.unauthentic, before.unauthentic), 4);
    assert_eq!(more(now.malformed, before.malformed), 5);
    assert_eq!(more(now.unknown_peer, before.unknown_peer), 4);
}

#[tokio::test]
async fn one_peer_cannot_fill_the_backlog_with_half_open_connections() {
    let bounds = Bounds {
        backlog_max: 8,
        ..Bounds::default()
    };
    let hub = hub_with(bounds).await;
    let listener = hub.listen(9000).await.unwrap();
    let own = node_address(1);
    let mut rogue = Rogue::join(&hub, own).await;
    for port in 1..=20u16 {
        let mut packet = syn(own, HUB, 6);
        packet[40..42].copy_from_slice(&port.to_be_bytes());
        rogue.send(&packet).await;
    }
    if !is_kernels(&hub) {
        counted(&hub, "the limit", |counters| counters.backlog_full).await;
    }
    let node = node(&hub, 2, hub.local_addr()).await;
    let dialled = node.connect(HUB, 9000, PATIENCE).await;
    assert!(dialled.is_ok(), "an honest peer must get in: {dialled:?}");
    soon("the honest peer", listener.accept()).await.unwrap();
}
