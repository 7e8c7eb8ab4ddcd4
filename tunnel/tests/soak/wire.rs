//! The way between one node and the hub: loses, repeats, narrows, moves and remembers datagrams as it is told.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Datagrams remembered for whoever wants to repeat them.
const REMEMBERED: usize = 64;
const HERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// A running wire. It ends when dropped.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    hub: SocketAddr,
    inside: UdpSocket,
    moved: Notify,
    cut: AtomicBool,
    lost_per_mille: AtomicU32,
    twice_per_mille: AtomicU32,
    width: AtomicUsize,
    said: Mutex<VecDeque<Vec<u8>>>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    pub(crate) async fn start(hub: SocketAddr, seed: u64) -> Self {
        let inside = UdpSocket::bind(HERE).await.expect("a socket");
        let address = inside.local_addr().expect("an address");
        let state = Arc::new(State {
            hub,
            inside,
            moved: Notify::new(),
            cut: AtomicBool::new(false),
            lost_per_mille: AtomicU32::new(0),
            twice_per_mille: AtomicU32::new(0),
            width: AtomicUsize::new(usize::MAX),
            said: Mutex::default(),
        });
        let task = tokio::spawn(Arc::clone(&state).run(seed | 1));
        Self {
            address,
            state,
            task,
        }
    }

    pub(crate) fn set_cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::Relaxed);
    }

    pub(crate) fn set_weather(&self, lost: u32, twice: u32) {
        self.state.lost_per_mille.store(lost, Ordering::Relaxed);
        self.state.twice_per_mille.store(twice, Ordering::Relaxed);
    }

    pub(crate) fn set_width(&self, bytes: usize) {
        self.state.width.store(bytes, Ordering::Relaxed);
    }

    /// From now on the hub sees another port.
    pub(crate) fn move_away(&self) {
        self.state.moved.notify_one();
    }

    /// As good as new.
    pub(crate) fn heal(&self) {
        self.set_cut(false);
        self.set_weather(0, 0);
        self.set_width(usize::MAX);
    }

    /// What the node has said to the hub lately.
    pub(crate) fn said(&self) -> Vec<Vec<u8>> {
        self.state.said().iter().cloned().collect()
    }
}

impl State {
    fn said(&self) -> std::sync::MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, mut random: u64) {
        let mut node = None;
        let (mut up, mut down) = (vec![0u8; 65_536], vec![0u8; 65_536]);
        loop {
            let outside = UdpSocket::bind(HERE).await.expect("a socket");
            outside.connect(self.hub).await.expect("a route");
            loop {
                tokio::select! {
                    Ok((length, from)) = self.inside.recv_from(&mut up) => {
                        node = Some(from);
                        let datagram = &up[..length];
                        self.remember(datagram);
                        for _ in 0..self.copies(length, &mut random) {
                            // Nobody is there while the hub restarts.
                            outside.send(datagram).await.ok();
                        }
                    }
                    // An error says that the hub restarts.
                    Ok(length) = outside.recv(&mut down) => {
                        let copies = self.copies(length, &mut random);
                        if let Some(node) = node {
                            for _ in 0..copies {
                                self.inside.send_to(&down[..length], node).await.ok();
                            }
                        }
                    }
                    () = self.moved.notified() => break,
                    // Both have failed: come again.
                    else => tokio::task::yield_now().await,
                }
            }
        }
    }

    fn remember(&self, datagram: &[u8]) {
        let mut said = self.said();
        if said.len() >= REMEMBERED {
            said.pop_front();
        }
        said.push_back(datagram.to_vec());
    }

    fn copies(&self, length: usize, random: &mut u64) -> usize {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let is = |per_mille: &AtomicU32, bits: u64| {
            bits % 1_000 < u64::from(per_mille.load(Ordering::Relaxed))
        };
        let is_lost = self.cut.load(Ordering::Relaxed)
            || length > self.width.load(Ordering::Relaxed)
            || is(&self.lost_per_mille, *random);
        if is_lost {
            0
        } else {
            1 + usize::from(is(&self.twice_per_mille, *random >> 32))
        }
    }
}
