//! A UDP relay between a node and a hub that loses datagrams by a seed, can be cut, and can move to
//! another source port as a NAT does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::net::UdpSocket;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;

pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    wire: Arc<Wire>,
    task: JoinHandle<()>,
}

/// What the relay's task and its owner share.
struct Wire {
    inside: UdpSocket,
    outside: Mutex<Arc<UdpSocket>>,
    moved: Notify,
    cut: AtomicBool,
    passed: AtomicU64,
    lost: AtomicU64,
    loss_per_mille: u64,
    /// Longer datagrams vanish, and nobody is told.
    width: AtomicUsize,
}

impl Relay {
    /// Relays to `hub`, losing `loss_per_mille` of the datagrams each way.
    pub(crate) async fn start(hub: SocketAddr, loss_per_mille: u64, seed: u64) -> Self {
        let inside = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = inside.local_addr().expect("an address");
        let wire = Arc::new(Wire {
            inside,
            outside: Mutex::new(outside_socket(hub).await),
            moved: Notify::new(),
            cut: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            loss_per_mille,
            width: AtomicUsize::new(usize::MAX),
        });
        let task = tokio::spawn(Arc::clone(&wire).run(seed | 1));
        Self {
            address,
            wire,
            task,
        }
    }

    pub(crate) fn set_cut(&self, cut: bool) {
        self.wire.cut.store(cut, Ordering::Relaxed);
    }

    /// From now on UDP payloads longer than this vanish.
    pub(crate) fn set_width(&self, bytes: usize) {
        self.wire.width.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn passed(&self) -> u64 {
        self.wire.passed.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.wire.lost.load(Ordering::Relaxed)
    }

    /// From now on the hub sees another source port; the old one is closed.
    pub(crate) async fn rebind(&self, hub: SocketAddr) -> SocketAddr {
        let fresh = outside_socket(hub).await;
        let address = fresh.local_addr().expect("an address");
        *self.wire.outside.lock().await = fresh;
        self.wire.moved.notify_one();
        address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    async fn run(self: Arc<Self>, mut state: u64) {
        let mut node = None;
        let mut up = vec![0u8; 65_536];
        let mut down = vec![0u8; 65_536];
        loop {
            let outside = Arc::clone(&*self.outside.lock().await);
            tokio::select! {
                Ok((len, from)) = self.inside.recv_from(&mut up) => {
                    node = Some(from);
                    if self.passes(len, &mut state) {
                        outside.send(&up[..len]).await.expect("the hub's side");
                    }
                }
                Ok(len) = outside.recv(&mut down) => {
                    if let Some(node) = node && self.passes(len, &mut state) {
                        self.inside.send_to(&down[..len], node).await.expect("the node's side");
                    }
                }
                () = self.moved.notified() => {}
            }
        }
    }

    fn passes(&self, len: usize, state: &mut u64) -> bool {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let lost = self.cut.load(Ordering::Relaxed)
            || len > self.width.load(Ordering::Relaxed)
            || *state % 1000 < self.loss_per_mille;
        let count = if lost { &self.lost } else { &self.passed };
        count.fetch_add(1, Ordering::Relaxed);
        !lost
    }
}

async fn outside_socket(hub: SocketAddr) -> Arc<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(hub).await.expect("a route");
    Arc::new(socket)
}
