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
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    HubRestart,
    ToPath(ToPath),
    ToNode(ToNode),
}

/// What happens to the path of a node, for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ToPath {
    Outage,
    /// A NAT gives the node another port.
    Move,
    Weather,
    /// It carries less, and nobody is told.
    Narrow,
}

/// What happens to a node, or in its name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ToNode {
    Restart,
    /// Somebody repeats what it has said.
    Replay,
    /// Strangers begin handshakes.
    Flood,
    /// Datagrams that are none.
    Garbage,
    Renewal,
    /// Both sides begin handshakes with everybody at once.
    Storm,
    /// A client reads nothing, and goes.
    Stall,
    Revocation,
    /// It is told of many times at once.
    Introductions,
    /// A client goes while its request is under way.
    HangUp,
}

/// Restarts of the hub are rarer than anything else: everybody notices them.
const OFTEN: [Event; 14] = [
    Event::ToPath(ToPath::Outage),
    Event::ToPath(ToPath::Move),
    Event::ToPath(ToPath::Weather),
    Event::ToPath(ToPath::Narrow),
    Event::ToNode(ToNode::Restart),
    Event::ToNode(ToNode::Replay),
    Event::ToNode(ToNode::Flood),
    Event::ToNode(ToNode::Garbage),
    Event::ToNode(ToNode::Renewal),
    Event::ToNode(ToNode::Storm),
    Event::ToNode(ToNode::Stall),
    Event::ToNode(ToNode::Revocation),
    Event::ToNode(ToNode::Introductions),
    Event::ToNode(ToNode::HangUp),
];

impl Event {
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        if random.random_ratio(1, 40) {
            return Self::HubRestart;
        }
        OFTEN.choose(random).copied().unwrap_or(Self::HubRestart)
    }

    /// Happens to the node with this place in the list.
    pub(crate) async fn happen(self, house: Arc<House>, place: usize, seed: u64) {
        let node = &house.nodes[place];
        let mut random = StdRng::seed_from_u64(seed);
        match self {
            Self::HubRestart => house.restart_hub().await,
            Self::ToPath(event) => event.happen(node, &mut random).await,
            Self::ToNode(event) => {
                let _hub_is_there = house.presence.read().await;
                event.happen(&house, node, &mut random).await;
            }
        }
    }
}

impl ToPath {
    async fn happen(self, node: &Node, random: &mut StdRng) {
        match self {
            Self::Outage => node.wire.set_cut(true),
            Self::Move => node.wire.move_away(),
            Self::Weather => node.wire.set_weather(random.random_range(5..100), 100),
            Self::Narrow => {
                let widths = [1_400, 1_360, 1_280];
                let width = widths.choose(random).copied();
                node.wire.set_width(width.unwrap_or(1_280));
            }
        }
        tokio::time::sleep(a_while(random) * 2).await;
        node.wire.heal();
    }
}

impl ToNode {
    async fn happen(self, house: &House, node: &Node, random: &mut StdRng) {
        match self {
            Self::Restart => house.restart_node(node, a_while(random)).await,
            Self::Replay => replay(house, node).await,
            Self::Flood => flood(house).await,
            Self::Garbage => garbage(house, node, random).await,
            Self::Renewal => house.renew(node).await,
            Self::Storm => storm(house).await,
            Self::Stall => stall(house, node, a_while(random)).await,
            Self::Revocation => house.revoke(node, a_while(random)).await,
            Self::Introductions => house.introduce_often(node).await,
            Self::HangUp => hang_up(house, node).await,
        }
    }
}

fn a_while(random: &mut StdRng) -> Duration {
    Duration::from_millis(random.random_range(50..800))
}

async fn stranger() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a socket")
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
    let piece = vec![1; 16 * 1024];
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
