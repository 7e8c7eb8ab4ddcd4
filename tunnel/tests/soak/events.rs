//! What may happen to a house: each event begins, lasts, and leaves everything as it was.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UdpSocket;
use tunnel::PrivateKey;

use super::house::{HUB, House, Node, PORT};

/// A stream that nobody reads takes no more than this before it is stuck.
const STUCK_MAX: usize = 64 << 20;

/// One thing that happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    /// A node's path is away.
    Outage,
    HubRestart,
    NodeRestart,
    /// A NAT gives a node another port.
    Move,
    /// Somebody repeats what a node has said.
    Replay,
    /// Strangers begin handshakes.
    Flood,
    /// Datagrams that are none.
    Garbage,
    Weather,
    /// The path carries less, and nobody is told.
    Narrow,
    Renewal,
    /// Both sides begin handshakes with everybody at once.
    Storm,
    /// A client reads nothing, and goes.
    Stall,
    Revocation,
    /// The same node is told of many times at once.
    Introductions,
    /// A client goes while its request is under way.
    HangUp,
}

/// Restarts of the hub are rarer than anything else: everybody notices them.
const OFTEN: [Event; 14] = [
    Event::Outage,
    Event::NodeRestart,
    Event::Move,
    Event::Replay,
    Event::Flood,
    Event::Garbage,
    Event::Weather,
    Event::Narrow,
    Event::Renewal,
    Event::Storm,
    Event::Stall,
    Event::Revocation,
    Event::Introductions,
    Event::HangUp,
];

impl Event {
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        if random.random_ratio(1, 40) {
            return Self::HubRestart;
        }
        OFTEN.choose(random).copied().unwrap_or(Self::Move)
    }

    /// Happens to the node with this place in the list.
    pub(crate) async fn happen(self, house: Arc<House>, place: usize, seed: u64) {
        if self == Self::HubRestart {
            house.restart_hub().await;
            return;
        }
        let _hub_is_there = house.presence.read().await;
        let Some(node) = house.nodes.get(place) else {
            return;
        };
        let mut random = StdRng::seed_from_u64(seed);
        let while_ = Duration::from_millis(random.random_range(50..800));
        match self {
            Self::Outage => {
                node.wire.set_cut(true);
                tokio::time::sleep(while_ * 2).await;
                node.wire.set_cut(false);
            }
            Self::HubRestart | Self::NodeRestart => house.restart_node(node, while_).await,
            Self::Move => node.wire.move_away(),
            Self::Replay => replay(&house, node).await,
            Self::Flood => flood(&house).await,
            Self::Garbage => garbage(&house, node, &mut random).await,
            Self::Weather => {
                node.wire.set_weather(random.random_range(5..100), 100);
                tokio::time::sleep(while_ * 2).await;
                node.wire.set_weather(0, 0);
            }
            Self::Narrow => {
                node.wire.set_width(*[1_400, 1_360, 1_280].choose(&mut random).unwrap_or(&1_280));
                tokio::time::sleep(while_ * 2).await;
                node.wire.set_width(usize::MAX);
            }
            Self::Renewal => house.renew(node).await,
            Self::Storm => storm(&house).await,
            Self::Stall => stall(&house, node, while_).await,
            Self::Revocation => house.revoke(node, while_).await,
            Self::Introductions => house.introduce_often(node).await,
            Self::HangUp => hang_up(&house, node).await,
        }
    }
}

async fn stranger() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket")
}

async fn replay(house: &House, node: &Node) {
    let elsewhere = stranger().await;
    for datagram in node.wire.said() {
        elsewhere.send_to(&datagram, house.hub_at()).await.ok();
    }
}

async fn flood(house: &House) {
    let elsewhere = stranger().await;
    let hub = house.hub().public_key().to_bytes();
    let own = PrivateKey::generate().to_bytes();
    let mut tunn = Tunn::new(own.into(), hub.into(), None, None, 1, None);
    let mut room = [0; 256];
    for _ in 0..50 {
        if let TunnResult::WriteToNetwork(one) = tunn.format_handshake_initiation(&mut room, true) {
            elsewhere.send_to(one, house.hub_at()).await.ok();
        }
    }
}

async fn garbage(house: &House, node: &Node, random: &mut StdRng) {
    let elsewhere = stranger().await;
    for _ in 0..50 {
        let mut datagram = vec![0; random.random_range(0..3_000)];
        random.fill(datagram.as_mut_slice());
        if let Some(head) = datagram.first_chunk_mut() {
            *head = [random.random_range(0..6), 0, 0, 0];
        }
        for to in [house.hub_at(), node.tunnel().local_addr()] {
            elsewhere.send_to(&datagram, to).await.ok();
        }
    }
}

async fn storm(house: &House) {
    let hub = house.hub();
    for node in &house.nodes {
        // One without a way to it is not called.
        hub.handshake_now(node.address()).await.ok();
        node.tunnel().handshake_now(HUB).await.ok();
    }
}

async fn stall(house: &House, node: &Node, while_: Duration) {
    let hub = house.hub();
    let dialled = hub.connect(node.address(), PORT, Duration::from_secs(2));
    let Ok(mut stream) = dialled.await else {
        return;
    };
    let piece = [1; 16 * 1024];
    let mut taken = 0;
    let pause = Duration::from_millis(200);
    while let Ok(Ok(wrote)) = tokio::time::timeout(pause, stream.write(&piece)).await {
        taken += wrote;
        assert!(taken < STUCK_MAX, "a reader that sleeps took {taken} bytes");
    }
    tokio::time::sleep(while_).await;
}

async fn hang_up(house: &House, node: &Node) {
    let hub = house.hub();
    let mut streams = Vec::new();
    for _ in 0..5 {
        let dialled = hub.connect(node.address(), PORT, Duration::from_secs(2));
        if let Ok(mut stream) = dialled.await {
            stream.write_all(&[2; 5_000]).await.ok();
            streams.push(stream);
        }
    }
}
