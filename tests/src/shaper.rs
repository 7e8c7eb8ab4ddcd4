//! A UDP path between nodes and a hub that loses, delays and cuts by a printed seed, for each node on its own: bad weather without root, on
//! any kernel. Knows a node by the port that it sends from. Carries datagrams as they are and never reads one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Datagrams on their way in one direction; a router that holds more loses them as well.
const UNDERWAY_MAX: usize = 4_096;
/// Nodes behind one path.
const PATHS_MAX: usize = 64;

/// What happens to the datagrams of one node, each way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Weather {
    /// Of a thousand.
    pub loss_per_mille: u32,
    /// Later than on a clear day.
    pub delay: Duration,
    /// Nothing passes.
    pub is_cut: bool,
}

impl Weather {
    /// Nothing is lost and nothing is late.
    pub const CLEAR: Self = Self {
        loss_per_mille: 0,
        delay: Duration::ZERO,
        is_cut: false,
    };
    /// Nothing passes.
    pub const CUT: Self = Self {
        is_cut: true,
        ..Self::CLEAR
    };

    /// So many of a thousand are lost, and the others are late.
    pub const fn bad(loss_per_mille: u32, delay: Duration) -> Self {
        Self {
            loss_per_mille,
            delay,
            ..Self::CLEAR
        }
    }
}

/// The path; gone when dropped.
#[derive(Debug)]
pub struct Shaper {
    sky: Arc<Sky>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Sky {
    /// By the node's port.
    weather: Mutex<HashMap<u16, Weather>>,
    dice: Mutex<u64>,
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Shaper {
    /// Listens for nodes on the port and carries what they send to the hub, and back.
    pub async fn start(port: u16, hub: SocketAddr, seed: u64) -> Self {
        let inside = UdpSocket::bind(("127.0.0.1", port)).await;
        let inside = Arc::new(inside.expect("the port is free"));
        let sky = Arc::new(Sky {
            weather: Mutex::default(),
            dice: Mutex::new(seed | 1),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let task = tokio::spawn(carry(inside, hub, Arc::clone(&sky)));
        Self {
            sky,
            task: task.abort_handle(),
        }
    }

    /// Changes the weather of the node that sends from this port.
    pub fn set(&self, node_port: u16, weather: Weather) {
        self.sky.weather().insert(node_port, weather);
    }

    /// Datagrams that passed and that were lost.
    pub fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.sky.passed), of(&self.sky.lost))
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sky {
    fn weather(&self) -> MutexGuard<'_, HashMap<u16, Weather>> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a datagram of now arrives; `None`: never.
    fn arrival(&self, node_port: u16) -> Option<Instant> {
        let weather = self.weather().get(&node_port).copied().unwrap_or_default();
        let thrown = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            *dice ^= *dice << 13;
            *dice ^= *dice >> 7;
            *dice ^= *dice << 17;
            *dice % 1_000
        };
        let is_lost = weather.is_cut || thrown < u64::from(weather.loss_per_mille);
        let count = if is_lost { &self.lost } else { &self.passed };
        count.fetch_add(1, Ordering::Relaxed);
        (!is_lost).then(|| Instant::now() + weather.delay)
    }
}

type Late = (Instant, Vec<u8>);

async fn carry(inside: Arc<UdpSocket>, hub: SocketAddr, sky: Arc<Sky>) {
    let mut lines: HashMap<SocketAddr, mpsc::Sender<Late>> = HashMap::new();
    // Ends with this task: so do the lines.
    let mut tasks = JoinSet::new();
    let mut room = vec![0; 65_536];
    loop {
        let Ok((len, from)) = inside.recv_from(&mut room).await else {
            // What the system tells of an earlier datagram whose node is gone.
            continue;
        };
        if !lines.contains_key(&from) && lines.len() >= PATHS_MAX {
            continue;
        }
        let line = lines.entry(from).or_insert_with(|| {
            let (up, arriving) = mpsc::channel(UNDERWAY_MAX);
            let path = (Arc::clone(&inside), from, hub);
            tasks.spawn(both_ways(path, arriving, Arc::clone(&sky)));
            up
        });
        if let (Some(at), Some(bytes)) = (sky.arrival(from.port()), room.get(..len)) {
            // A full line loses it.
            let _full = line.try_send((at, bytes.to_vec()));
        }
    }
}

/// One node's way to the hub and back, from a port of its own as behind a NAT.
async fn both_ways(
    (inside, node, hub): (Arc<UdpSocket>, SocketAddr, SocketAddr),
    mut up: mpsc::Receiver<Late>,
    sky: Arc<Sky>,
) {
    let outside = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    outside.connect(hub).await.expect("a route");
    let (back, mut down) = mpsc::channel::<Late>(UNDERWAY_MAX);
    let upward = async {
        while let Some((at, bytes)) = up.recv().await {
            sleep_until(at).await;
            let _refused = outside.send(&bytes).await;
        }
    };
    let downward = async {
        while let Some((at, bytes)) = down.recv().await {
            sleep_until(at).await;
            let _refused = inside.send_to(&bytes, node).await;
        }
    };
    let hearing = async {
        let mut room = vec![0; 65_536];
        loop {
            let Ok(len) = outside.recv(&mut room).await else {
                // The hub is being restarted.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            if let (Some(at), Some(bytes)) = (sky.arrival(node.port()), room.get(..len)) {
                let _full = back.try_send((at, bytes.to_vec()));
            }
        }
    };
    tokio::select! {
        () = upward => {}
        () = downward => {}
        () = hearing => {}
    }
}
