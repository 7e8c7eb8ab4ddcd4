//! WireGuard, TCP and QUIC inside one process: no root, no TUN device, no kernel routes.
//!
//! A [`Tunnel`] binds one UDP socket and speaks WireGuard on it with any number of peers. Inside,
//! every peer has one IPv6 address and TCP streams. Both sides use the same type: a hub is a tunnel
//! whose peers have no endpoint yet, a node is a tunnel with one peer that `initiates`.
//!
//! ```no_run
//! # use std::{net::Ipv6Addr, time::Duration};
//! # use tunnel::{Peer, PrivateKey, PublicKey, Settings, Tunnel};
//! # async fn node(hub_key: PublicKey) -> Result<(), tunnel::Error> {
//! let hub: Ipv6Addr = "fd48:6561:7274::1".parse().expect("an address");
//! let own: Ipv6Addr = "fd48:6561:7274::2".parse().expect("an address");
//! let bind = "[::]:0".parse().expect("an address");
//! let tunnel = Tunnel::start(Settings::new(bind, PrivateKey::generate(), own)).await?;
//! tunnel
//!     .set_peer(Peer {
//!         public_key: hub_key,
//!         preshared_key: None,
//!         address: hub,
//!         endpoint: "192.0.2.1:51820".parse().ok(),
//!         keepalive: Some(Duration::from_secs(15)),
//!         initiates: true,
//!     })
//!     .await?;
//! let stream = tunnel.connect(hub, 9000, Duration::from_secs(5)).await?;
//! # drop(stream);
//! # Ok(())
//! # }
//! ```
//!
//! Everything runs in one task on the runtime that called [`Tunnel::start`], but for the handshakes that strangers begin: those are
//! examined, and answered while there is no session that would have to wait, on the runtime's blocking pool, one thread at a time and only
//! while there are any. A thread of its own for the task costs a third of the small requests per second.
//!
//! # What a hub carries
//!
//! Measured with `tests/bench.sh hub` (`cargo run --release -p tunnel --example hub`) on two shared virtual cores that also ran all the peers:
//!
//! - `-- idle 10000`: known after 0.2 to 0.6 s, 1.4 KB each; with a session 12.7 KB each, of which boringtun's state is 11 KB; 2.4 to 4.9 % of a
//!   core for 500 keepalives and 65 renewals a second, half of it key agreements. A peer gets its TCP with the first connection.
//! - `-- storm 1000`: after the hub's restart 99 % have a session 0.8 s after it calls them, and 1.4 s after all of them call it at once.
//! - `-- flood 2000`: with 2,000 forged handshakes a second from 10,000 addresses a transfer that takes both cores keeps 87 to 94 % of its throughput.
//! - `-- shards 4`: the same peers on two hubs carry 1.0 to 1.4 times as much as on one, which takes 1.3 to 1.8 CPU-seconds per gigabyte.
//!   That is why the driver is not sharded: a core of it carries more than the line of any home.
//! - `-- soak 270`: 2,900 events with 50 nodes, 40,000 requests meanwhile, 4 % of them broken by the events; in every calm all nodes are back, the
//!   descriptors are as many as at first, and the heap holds 111 to 118 MB from the first calm to the eighteenth.
//! - The data path takes nothing from the heap: 9 allocations for 4,000 tokens or for 21,000 packets, both ends together
//!   (`cargo nextest run -p tunnel --test allocations`).
//!
//! # What it does not do
//!
//! - It carries nothing but TCP over IPv6, its own QUIC, and `ICMPv6` echo: no other UDP, no fragments, no routing between peers.
//! - With stock WireGuard peers `embedded` is smoltcp, whose loss recovery is weak: no SACK at the sender, no tail-loss probe, and a
//!   retransmission timeout of at least one second. A lost packet at the end of a request costs that second; on a home link bulk transfers run at
//!   10 Mbit/s and, with 1 % of loss, below 1. Token streams are not affected much. Two ends of ours speak QUIC there instead.
//! - A stock peer is sent packets of the size that its path carries, but what it sends itself is as large as its own settings make it.
//! - A QUIC connection keeps to the size of packet that the path carried when it began. Where that becomes too large they go in halves, whole
//!   again at the other end: two packets where one would do, until the next connection.
//! - Over a carrier TCP runs inside TCP: it is for networks that let no UDP through, and left as soon as one does.
//! - Where a path narrows in a transfer, a stream of smoltcp waits for its own next repeat, up to 15 s, though the path was measured long before.
//! - After an outage a stream of smoltcp with data under way resumes only with its next retransmission,
//!   whose pause has doubled meanwhile. New connections do not wait for it, and QUIC asks at once.
//! - The renewal of a running session is answered in the driver, 0.2 ms each, because its state cannot be in two places; so is an answer
//!   to our own call.
//! - Handshakes that we begin are paced, 250 at once and 1,000 a second: a hub with 10,000 remembered nodes has called all after 10 s. Those that
//!   boringtun begins by itself, with peers that have owed an answer for 15 s, are not.
//! - One driver serves all peers; it is not sharded over cores. See above for what that costs.
//! - An open stream of smoltcp holds two buffers of `tcp_buffer_bytes`, used or not; one of QUIC at most four in each direction, of what waits.
//! - A hub with several addresses should bind one of them: replies leave by the route's own source.
//! - boringtun and the timers inside it read the system clock themselves.

mod agenda;
mod board;
mod carrier;
mod core;
mod driver;
mod drops;
mod error;
pub mod kem;
mod keys;
mod listener;
#[cfg_attr(not(target_os = "linux"), path = "netns_elsewhere.rs")]
pub mod netns;
mod netstack;
mod outbox;
mod path;
mod peer;
mod quic;
mod settings;
mod socket;
mod stream;
mod wg;
mod wheel;

use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::core::{Core, Ground, Windows};
use crate::driver::{Command, Driver};
use crate::netns::{Entrance, Limits, Plan, Registry, Tun};
use crate::netstack::conn::{End, Failure};
use crate::quic::Way;
use crate::socket::Socket;
use crate::wg::bench::Hands;

pub use crate::carrier::{Carrier, CarrierRole, websocket_accept};
pub use crate::drops::Counters;
pub use crate::error::Error;
pub use crate::keys::{PresharedKey, PrivateKey, PublicKey};
pub use crate::listener::Listener;
pub use crate::path::PathKind;
pub use crate::peer::{Peer, PeerStatus};
pub use crate::settings::{Backend, Bounds, Settings};
pub use crate::stream::Stream;

/// A stream whose connection breaks while it is being made is begun anew this often.
const DIALS_MAX: usize = 3;
/// Commands that may wait for the driver; more senders wait themselves.
const COMMANDS_MAX: usize = 256;

/// A running tunnel. Clones are handles of the same one; dropping the last stops it.
#[derive(Clone, Debug)]
pub struct Tunnel {
    commands: mpsc::Sender<Command>,
    facts: Arc<Facts>,
}

/// What never changes while the tunnel runs, and the windows into it.
#[derive(Debug)]
struct Facts {
    local_addr: SocketAddr,
    public_key: PublicKey,
    address: Ipv6Addr,
    windows: Windows,
    carriers_max: usize,
    /// `None`: TCP is done by the driver.
    kernel: Option<Arc<Registry>>,
}

impl Tunnel {
    /// Binds the UDP socket and starts the driver on the current tokio runtime.
    pub async fn start(settings: Settings) -> Result<Self, Error> {
        settings.bounds.check()?;
        let socket = Socket::bind(settings.bind, settings.bounds.udp_buffer_bytes)?;
        let windows = Windows::default();
        let ground = choose(&settings, &windows).await?;
        let (kernel, tun) = ground.unzip();
        let facts = Facts {
            local_addr: socket.local_addr(),
            public_key: settings.private_key.public_key(),
            address: settings.address,
            windows: windows.clone(),
            carriers_max: settings.bounds.peers_max,
            kernel: kernel.clone(),
        };
        let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
        let ground = kernel.map(Ground::new);
        let seed = (rand::random(), Instant::now());
        let core = Core::new(settings, windows.clone(), ground, Hands::Pool, seed);
        tokio::spawn(Driver::new(core, (socket, tun), windows, receiver).run());
        Ok(Self {
            commands: sender,
            facts: Arc::new(facts),
        })
    }

    /// The bound UDP address.
    pub fn local_addr(&self) -> SocketAddr {
        self.facts.local_addr
    }

    /// Who does TCP: `netns` or `embedded`.
    pub fn backend(&self) -> Backend {
        match self.facts.kernel {
            Some(_) => Backend::Netns,
            None => Backend::Embedded,
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> PublicKey {
        self.facts.public_key
    }

    /// Our overlay address.
    pub fn address(&self) -> Ipv6Addr {
        self.facts.address
    }

    /// Adds a peer, or replaces the one with its overlay address. With unchanged keys the session
    /// and its streams live on; with new keys they die at once.
    pub async fn set_peer(&self, peer: Peer) -> Result<(), Error> {
        self.ask(|reply| Command::SetPeer(Box::new(peer), reply))
            .await?
    }

    /// Changes the keys with a peer while streams run: a second session is made beside the first, takes over with the first authenticated
    /// word that the peer says in it, and the first is still heard for three minutes. A peer that is new here is added. `private_key` is
    /// our own key from now on, for a tunnel with one peer; [`Tunnel::public_key`] goes on to name the first.
    pub async fn renew_peer(
        &self,
        peer: Peer,
        private_key: Option<PrivateKey>,
    ) -> Result<(), Error> {
        self.ask(|reply| Command::RenewPeer(Box::new((peer, private_key)), reply))
            .await?
    }

    /// Counts handshakes begun by a peer that waits for us to begin them, as a hub does that has restarted and lost its sessions: what
    /// it knew of us may be gone.
    pub fn calls(&self) -> watch::Receiver<u64> {
        self.facts.windows.calls.subscribe()
    }

    /// Forgets a peer and cuts its streams at once; false when there was none.
    pub async fn remove_peer(&self, address: Ipv6Addr) -> Result<bool, Error> {
        self.ask(|reply| Command::RemovePeer(address, reply)).await
    }

    /// Connects to a port of a peer. `deadline` covers the WireGuard handshake too, when one is
    /// needed first. Cancel-safe: a dropped attempt leaves nothing behind.
    pub async fn connect(
        &self,
        address: Ipv6Addr,
        port: u16,
        deadline: Duration,
    ) -> Result<Stream, Error> {
        match tokio::time::timeout(deadline, self.dial(address, port)).await {
            Ok(outcome) => outcome,
            Err(_) if self.has_session(address) => Err(Error::ConnectTimeout {
                address,
                port,
                after: deadline,
            }),
            Err(_) => Err(Error::NoSession {
                address,
                after: deadline,
            }),
        }
    }

    /// Opens a port to all peers.
    pub async fn listen(&self, port: u16) -> Result<Listener, Error> {
        let kernel = match &self.facts.kernel {
            Some(kernel) => Some(kernel.listen(port).await?),
            None => None,
        };
        let backlog = self.ask(|reply| Command::Listen(port, reply)).await??;
        Ok(Listener::new(backlog, kernel))
    }

    /// What is known about a peer; `None` when there is no such peer.
    pub fn peer_status(&self, address: Ipv6Addr) -> Option<PeerStatus> {
        self.facts.windows.board.read(address, Instant::now())
    }

    /// Starts a handshake with a peer at once, for when it has not been heard of as expected.
    pub async fn handshake_now(&self, address: Ipv6Addr) -> Result<(), Error> {
        self.ask(|reply| Command::Handshake(address, reply)).await?
    }

    /// Asks a peer for a sign of life and does not wait for it: [`PeerStatus::since_heard`] and [`PeerStatus::round_trip`] tell.
    /// Answered by the peer's tunnel itself, so a busy program and a waiting TCP do not matter. Asked often, it is sent
    /// at most every 10 ms.
    pub async fn echo(&self, address: Ipv6Addr) -> Result<(), Error> {
        self.ask(|reply| Command::Echo(address, reply)).await?
    }

    /// Whether a carrier to a peer that we keep a session with is wanted: UDP has answered nothing for 2 s, or a carrier is in use. The
    /// program that can dial one waits for `true`, dials, and gives the stream to [`Tunnel::open_carrier`]. Ends with the peer.
    pub async fn watch_carrier(&self, address: Ipv6Addr) -> Result<watch::Receiver<bool>, Error> {
        self.ask(|reply| Command::WatchCarrier(address, reply))
            .await?
    }

    /// A carrier to a peer, for a stream that has been dialled to `remote`. It is used when a handshake is answered through it while UDP answers
    /// none, and ended by the tunnel once UDP has worked for 10 s.
    pub async fn open_carrier(&self, address: Ipv6Addr, remote: IpAddr) -> Result<Carrier, Error> {
        self.ask(|reply| Command::OpenCarrier(address, remote, reply))
            .await?
    }

    /// A carrier for a stream that somebody at `remote` has opened. Whoever speaks through it must be a peer, and is answered through it.
    pub fn accept_carrier(&self, remote: IpAddr) -> Result<Carrier, Error> {
        if self.commands.is_closed() {
            return Err(Error::Closed);
        }
        let max = self.facts.carriers_max;
        let carriers = &self.facts.windows.carriers;
        carriers
            .open(remote, max)
            .ok_or(Error::TooManyCarriers(max))
    }

    /// Connections with a peer at this moment, those included whose streams are gone but whose last
    /// bytes are still to be delivered. [`PeerStatus::streams`] is up to a quarter of a second old.
    pub async fn streams_now(&self, address: Ipv6Addr) -> Result<usize, Error> {
        let streams = self.ask(|reply| Command::Streams(address, reply)).await?;
        let Some(kernel) = &self.facts.kernel else {
            return Ok(streams);
        };
        let held = kernel.len(address);
        let all = kernel.len_with_lingering(address).await;
        Ok(streams + all.saturating_sub(held))
    }

    /// Packets dropped so far, by reason.
    pub fn counters(&self) -> Counters {
        self.facts.windows.drops.read()
    }

    /// Cuts all streams, closes all listeners and the socket. Returns when that is done.
    pub async fn shutdown(&self) {
        // An error means that it is done already.
        drop(self.ask(Command::ShutDown).await);
        self.commands.closed().await;
    }

    async fn dial(&self, address: Ipv6Addr, port: u16) -> Result<Stream, Error> {
        for _ in 0..DIALS_MAX {
            let stream = match self
                .ask(|reply| Command::Way(address, port, reply))
                .await??
            {
                Way::Quic(stream) => stream,
                Way::Tcp => match &self.facts.kernel {
                    Some(kernel) => {
                        return Ok(Stream::of_kernel(kernel.connect(address, port).await?));
                    }
                    None => {
                        self.ask(|reply| Command::Connect(address, port, reply))
                            .await??
                    }
                },
            };
            match poll_fn(|context| stream.poll_connected(context)).await {
                Ok(()) => return Ok(stream),
                Err(Failure::Lost) => {}
                Err(Failure::Refused) => return Err(Error::Refused { address, port }),
                Err(Failure::Cut(End::PeerRemoved)) => return Err(Error::PeerRemoved(address)),
                Err(Failure::Cut(End::TunnelClosed)) => return Err(Error::Closed),
                Err(Failure::Cut(End::SessionLost)) => break,
            }
        }
        Err(Error::NoSession {
            address,
            after: core::SESSIONLESS_MAX,
        })
    }

    fn has_session(&self, address: Ipv6Addr) -> bool {
        self.peer_status(address)
            .is_some_and(|status| status.since_handshake.is_some())
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)
    }
}

/// Who does TCP, said once in the log with the reason.
async fn choose(
    settings: &Settings,
    windows: &Windows,
) -> Result<Option<(Arc<Registry>, Tun)>, Error> {
    if settings.backend == Backend::Embedded {
        tracing::info!("tunnel back-end embedded: TCP is done in this process, as set");
        return Ok(None);
    }
    let plan = Plan {
        helper: settings.helper.clone(),
        address: settings.address,
        mtu: settings.bounds.mtu_max,
    };
    match Entrance::open(&plan).await {
        Ok((entrance, tun, how)) => {
            tracing::info!("tunnel back-end netns: the kernel's TCP in {how}");
            let limits = Limits {
                sockets_max: settings.bounds.sockets_per_peer_max,
                backlog_max: settings.bounds.backlog_max,
                mtu: settings.bounds.mtu_max,
            };
            let drops = Arc::clone(&windows.drops);
            Ok(Some((Registry::new(entrance, drops, limits), tun)))
        }
        Err(error) if settings.backend == Backend::Auto => {
            tracing::info!(
                "tunnel back-end embedded: TCP is done in this process, because netns is not possible here: {error}"
            );
            Ok(None)
        }
        Err(error) => Err(Error::Backend(error)),
    }
}
