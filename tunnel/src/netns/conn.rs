//! One stream of the `netns` back-end: a socket of the kernel, and why we cut it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
/// A stream that has not found the kernel's buffer full for this long is no bulk transfer any more.
const QUIET: Duration = Duration::from_secs(2);
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
    /// When the stream was bulk last, in milliseconds since birth; zero while it is not.
    bulk_at: AtomicU64,
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
            bulk_at: AtomicU64::new(0),
        };
        conn.prepare()?;
        Ok(conn)
    }

    fn prepare(&self) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        socket.set_tcp_nodelay(true)?;
        self.congestion(REQUEST_CONGESTION);
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.note_full(),
                outcome => {
                    self.note_write();
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

    /// The kernel has as much as it takes: from here on the path decides how fast this stream is, and random loss must not.
    fn note_full(&self) {
        let was_bulk = self.bulk_at.swap(self.age(), Ordering::Relaxed) > 0;
        if !was_bulk {
            self.congestion(BULK_CONGESTION);
        }
    }

    /// A stream of requests again, as a pooled connection is after an upload.
    fn note_write(&self) {
        let bulk_at = self.bulk_at.load(Ordering::Relaxed);
        if bulk_at == 0 {
            return;
        }
        let quiet = Duration::from_millis(self.age().saturating_sub(bulk_at));
        if quiet >= QUIET {
            self.bulk_at.store(0, Ordering::Relaxed);
            self.congestion(REQUEST_CONGESTION);
        }
    }

    /// Milliseconds since birth, never zero.
    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).map_or(u64::MAX, |age| age.max(1))
    }

    /// A kernel without it keeps its own.
    fn congestion(&self, name: &[u8]) {
        if let Err(error) = SockRef::from(&self.socket).set_tcp_congestion(name) {
            tracing::debug!(%error, name = %String::from_utf8_lossy(name), "a stream keeps the congestion control it has");
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv6Addr;

    use tokio::net::TcpListener;

    use super::*;

    /// A stream and its other end, which reads nothing.
    async fn pair() -> (KernelConn, TcpStream) {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (other, _) = listener.accept().await.unwrap();
        let conn = KernelConn::new(dialled.unwrap(), 1, Weak::new()).unwrap();
        (conn, other)
    }

    /// What the system lets us choose, and what it leaves as it was.
    fn expected(socket: &TcpStream, name: &[u8]) -> Vec<u8> {
        drop(SockRef::from(socket).set_tcp_congestion(name));
        in_use(socket)
    }

    fn in_use(socket: &TcpStream) -> Vec<u8> {
        let name = SockRef::from(socket).tcp_congestion().unwrap();
        name.into_iter().take_while(|byte| *byte != 0).collect()
    }

    async fn write(conn: &KernelConn, bytes: &[u8]) {
        let from = [IoSlice::new(bytes)];
        poll_fn(|context| conn.poll_write(context, &from))
            .await
            .unwrap();
    }

    /// Writes until the kernel takes no more.
    async fn fill(conn: &KernelConn) {
        let piece = vec![7; 64 * 1024];
        let from = [IoSlice::new(&piece)];
        let is_taken =
            || poll_fn(|context| Poll::Ready(conn.poll_write(context, &from).is_ready()));
        while is_taken().await {}
    }

    #[tokio::test]
    async fn requests_are_not_paced_and_bulk_does_not_yield_to_loss() {
        let (conn, other) = pair().await;
        let requests = expected(&other, REQUEST_CONGESTION);
        assert_eq!(in_use(&conn.socket), requests);
        write(&conn, &[7; 8 * 1024]).await;
        assert_eq!(in_use(&conn.socket), requests);
        fill(&conn).await;
        assert_eq!(in_use(&conn.socket), expected(&other, BULK_CONGESTION));
    }

    #[tokio::test]
    async fn a_stream_that_was_bulk_carries_requests_again_later() {
        let (mut conn, other) = pair().await;
        let requests = in_use(&conn.socket);
        fill(&conn).await;
        conn.born = conn.born.checked_sub(QUIET * 2).unwrap();
        let mut room = vec![0; 1 << 20];
        let draining = async {
            loop {
                other.readable().await.unwrap();
                let _nothing_yet = other.try_read(&mut room);
            }
        };
        tokio::select! {
            () = draining => {}
            () = write(&conn, &[7; 100]) => {}
        }
        assert_eq!(in_use(&conn.socket), requests);
    }
}
