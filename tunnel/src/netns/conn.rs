//! One stream of the `netns` back-end: a socket of the kernel, and why we cut it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::registry::Registry;
use crate::netstack::conn::End;

/// An idle connection asks this often whether the other side still knows it.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A peer that acknowledges nothing for this long has lost the connection.
const SILENCE_MAX: Duration = Duration::from_mins(5);
/// So many bytes within [`BURST`] are a bulk transfer.
const BULK_BYTES: u32 = 192 * 1024;
const BURST: Duration = Duration::from_millis(250);
/// What random loss does not slow down.
const BULK_CONGESTION: &[u8] = b"bbr";
/// Small requests have no rate to measure: BBR, which many hosts have by default, paces each to that of the one before.
const REQUEST_CONGESTION: &[u8] = b"cubic";

/// A connection of the kernel.
pub(crate) struct KernelConn {
    socket: TcpStream,
    local: SocketAddrV6,
    remote: SocketAddrV6,
    end: OnceLock<End>,
    /// The writing side was shut down in order.
    finished: AtomicBool,
    registry: Weak<Registry>,
    /// Its place among the peer's connections.
    pub(super) number: u64,
    born: Instant,
    /// When the burst began, in milliseconds since birth, and its bytes.
    burst_at: AtomicU64,
    burst_bytes: AtomicU32,
    bulk: AtomicBool,
}

impl KernelConn {
    /// Takes a connected socket over. `mss` is set where the overlay is narrower than IPv6 wants links to be.
    pub(super) fn new(
        socket: TcpStream,
        number: u64,
        registry: Weak<Registry>,
    ) -> io::Result<Self> {
        let (SocketAddr::V6(local), SocketAddr::V6(remote)) =
            (socket.local_addr()?, socket.peer_addr()?)
        else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let conn = Self {
            socket,
            local: plain(local),
            remote: plain(remote),
            end: OnceLock::new(),
            finished: AtomicBool::new(false),
            registry,
            number,
            born: Instant::now(),
            burst_at: AtomicU64::new(0),
            burst_bytes: AtomicU32::new(0),
            bulk: AtomicBool::new(false),
        };
        conn.prepare()?;
        Ok(conn)
    }

    fn prepare(&self) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        socket.set_tcp_nodelay(true)?;
        if let Err(error) = socket.set_tcp_congestion(REQUEST_CONGESTION) {
            tracing::debug!(%error, "a new stream keeps the system's congestion control");
        }
        // Dropped without a shutdown, the other side must see a reset, not an end.
        socket.set_linger(Some(Duration::ZERO))?;
        let probes = TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE);
        socket.set_tcp_keepalive(&probes)?;
        socket.set_tcp_user_timeout(Some(SILENCE_MAX))
    }

    pub(crate) fn local(&self) -> SocketAddrV6 {
        self.local
    }

    pub(crate) fn remote(&self) -> SocketAddrV6 {
        self.remote
    }

    /// Cuts the connection from this side; its stream fails at once, and the peer gets a reset while it can be reached.
    pub(super) fn cut(&self, end: End) {
        let _first_reason_stays = self.end.set(end);
        if let Err(error) = rustix::net::connect_unspec(&self.socket) {
            tracing::debug!(%error, "a connection could not be reset");
            // Whoever reads or writes must wake up in any case.
            drop(SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both));
        }
    }

    pub(crate) fn poll_read(
        &self,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(end) = self.end.get() {
                return Poll::Ready(Err(end.error()));
            }
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(self.explain(outcome)),
            }
        }
    }

    pub(crate) fn poll_write(
        &self,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(end) = self.end.get() {
                return Poll::Ready(Err(end.error()));
            }
            ready!(self.socket.poll_write_ready(context))?;
            match self.socket.try_write_vectored(from) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    if let Ok(taken) = outcome {
                        self.note_burst(taken);
                    }
                    return Poll::Ready(self.explain(outcome));
                }
            }
        }
    }

    /// Ends the writing side; what was written before is still delivered, also after the stream is dropped.
    pub(crate) fn finish(&self) -> io::Result<()> {
        if let Some(end) = self.end.get() {
            return Err(end.error());
        }
        if self.finished.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let socket = SockRef::from(&self.socket);
        socket.set_linger(None)?;
        match socket.shutdown(std::net::Shutdown::Write) {
            // The other side has reset it meanwhile: reading says so.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            outcome => outcome,
        }
    }

    /// Our own reason is better than what the system makes of it.
    fn explain(&self, outcome: io::Result<usize>) -> io::Result<usize> {
        match (outcome, self.end.get()) {
            (Ok(0) | Err(_), Some(end)) => Err(end.error()),
            (outcome, _) => outcome,
        }
    }

    /// A stream that sends much at once is bulk from then on.
    fn note_burst(&self, taken: usize) {
        if self.bulk.load(Ordering::Relaxed) {
            return;
        }
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        let began = self.burst_at.load(Ordering::Relaxed);
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        if u128::from(now.saturating_sub(began)) > BURST.as_millis() {
            self.burst_at.store(now, Ordering::Relaxed);
            self.burst_bytes.store(taken, Ordering::Relaxed);
            return;
        }
        let before = self.burst_bytes.load(Ordering::Relaxed);
        let sum = before.saturating_add(taken);
        self.burst_bytes.store(sum, Ordering::Relaxed);
        if sum >= BULK_BYTES {
            self.bulk.store(true, Ordering::Relaxed);
            // A kernel without it keeps its own.
            if let Err(error) = SockRef::from(&self.socket).set_tcp_congestion(BULK_CONGESTION) {
                tracing::debug!(%error, "no BBR for a bulk stream");
            }
        }
    }
}

impl Drop for KernelConn {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(*self.remote.ip(), self.number);
        }
    }
}

impl fmt::Debug for KernelConn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KernelConn")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// Without flow label and scope, which mean nothing in the overlay.
fn plain(address: SocketAddrV6) -> SocketAddrV6 {
    SocketAddrV6::new(*address.ip(), address.port(), 0, 0)
}

/// What the registry keeps of a connection.
pub(super) type Kept = Weak<KernelConn>;
/// What a stream keeps of it.
pub(super) type Held = Arc<KernelConn>;
