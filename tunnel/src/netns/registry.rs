//! Which connections there are with which peer, so that a peer's removal cuts them at once and none has too many.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::conn::{Held, Kept, KernelConn};
use super::entrance::Entrance;
use crate::drops::{DropReason, Drops};
use crate::error::Error;
use crate::netstack::conn::End;

/// IPv6 demands it of a link; a narrower overlay narrows the segments instead.
pub(super) const LINK_MTU_MIN: usize = 1280;
/// IPv6 and TCP headers.
const HEADERS: usize = 60;
/// After an accept that the system refuses (descriptors at their limit) the next is tried.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The table of connections.
#[derive(Debug)]
pub(crate) struct Registry {
    entrance: Entrance,
    drops: Arc<Drops>,
    sockets_max: usize,
    backlog_max: usize,
    mss: Option<u32>,
    inner: Mutex<Inner>,
    closed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: HashMap<Ipv6Addr, Member>,
    ports: HashSet<u16>,
    numbers: u64,
}

#[derive(Debug)]
struct Member {
    conns: HashMap<u64, Kept>,
    /// Connections that are being made.
    dialling: usize,
    /// Changes when the peer goes.
    end: watch::Sender<Option<End>>,
}

impl Member {
    fn len(&self) -> usize {
        self.conns.len() + self.dialling
    }
}

/// The limits a registry keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) sockets_max: usize,
    pub(crate) backlog_max: usize,
    pub(crate) mtu: usize,
}

/// A place for a connection that is being made; given back when dropped.
struct Dialling {
    registry: Arc<Registry>,
    address: Ipv6Addr,
    end: watch::Receiver<Option<End>>,
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(member) = self.registry.lock().peers.get_mut(&self.address) {
            member.dialling = member.dialling.saturating_sub(1);
        }
    }
}

impl Registry {
    pub(crate) fn new(entrance: Entrance, drops: Arc<Drops>, limits: Limits) -> Arc<Self> {
        let mss = (limits.mtu < LINK_MTU_MIN)
            .then(|| u32::try_from(limits.mtu - HEADERS).unwrap_or(u32::MAX));
        Arc::new(Self {
            entrance,
            drops,
            sockets_max: limits.sockets_max,
            backlog_max: limits.backlog_max,
            mss,
            inner: Mutex::default(),
            closed: watch::Sender::new(false),
        })
    }

    /// A peer has come.
    pub(crate) fn add(&self, address: Ipv6Addr) {
        self.lock().peers.entry(address).or_insert_with(|| Member {
            conns: HashMap::new(),
            dialling: 0,
            end: watch::Sender::new(None),
        });
    }

    /// A peer has gone: its streams fail at once, and attempts to connect to it too.
    pub(crate) fn remove(&self, address: Ipv6Addr, end: End) {
        let member = self.lock().peers.remove(&address);
        if let Some(member) = member {
            member.end.send_replace(Some(end));
            cut_all(member.conns.values(), end);
        }
    }

    /// Cuts the streams of a peer that stays. Those that are being made go on: whoever dials waits under a deadline.
    pub(crate) fn cut(&self, address: Ipv6Addr, end: End) {
        let conns: Vec<Kept> = self
            .lock()
            .peers
            .get(&address)
            .map(|member| member.conns.values().cloned().collect())
            .unwrap_or_default();
        cut_all(conns.iter(), end);
    }

    /// Ends everything, listeners too.
    pub(crate) fn close(&self, end: End) {
        let peers = std::mem::take(&mut self.lock().peers);
        self.closed.send_replace(true);
        for member in peers.values() {
            member.end.send_replace(Some(end));
            cut_all(member.conns.values(), end);
        }
    }

    /// Streams with a peer, those included that are being made.
    pub(crate) fn len(&self, address: Ipv6Addr) -> usize {
        self.lock().peers.get(&address).map_or(0, Member::len)
    }

    /// As [`Registry::len`], and those that no program holds but that still deliver.
    pub(crate) async fn len_with_lingering(&self, address: Ipv6Addr) -> usize {
        let held = self.len(address);
        held + self.entrance.lingering(address).await.unwrap_or(0)
    }

    /// Connects. The caller sets the deadline.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        address: Ipv6Addr,
        port: u16,
    ) -> Result<Held, Error> {
        if port == 0 {
            return Err(Error::PortZero);
        }
        let mut place = self.begin(address)?;
        let socket = self.entrance.socket().await.map_err(Error::Namespace)?;
        let socket = self.dialling_socket(socket).map_err(Error::Namespace)?;
        let dialled = tokio::select! {
            dialled = socket.connect(SocketAddr::from((address, port))) => dialled,
            changed = place.end.wait_for(Option::is_some) => {
                return Err(gone(address, changed.ok().and_then(|end| *end)));
            }
        };
        let stream = dialled.map_err(|source| dial_error(address, port, source))?;
        let conn = self.enter(address, stream).map_err(Error::Namespace)?;
        conn.ok_or_else(|| gone(address, *place.end.borrow()))
    }

    /// Opens a port to all peers.
    pub(crate) async fn listen(self: &Arc<Self>, port: u16) -> Result<Acceptor, Error> {
        if port == 0 {
            return Err(Error::PortZero);
        }
        if *self.closed.borrow() {
            return Err(Error::Closed);
        }
        if !self.lock().ports.insert(port) {
            return Err(Error::PortInUse(port));
        }
        let guard = PortGuard {
            registry: Arc::clone(self),
            port,
        };
        let backlog = u16::try_from(self.backlog_max).unwrap_or(u16::MAX);
        let socket = self
            .entrance
            .listener(port, backlog)
            .await
            .map_err(Error::Namespace)?;
        let socket = std::net::TcpListener::from(socket);
        let socket = socket
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(socket))
            .map_err(Error::Namespace)?;
        Ok(Acceptor {
            socket,
            closed: self.closed.subscribe(),
            guard,
        })
    }

    pub(super) fn forget(&self, address: Ipv6Addr, number: u64) {
        if let Some(member) = self.lock().peers.get_mut(&address) {
            member.conns.remove(&number);
        }
    }

    fn begin(self: &Arc<Self>, address: Ipv6Addr) -> Result<Dialling, Error> {
        let mut inner = self.lock();
        let member = inner
            .peers
            .get_mut(&address)
            .ok_or(Error::UnknownPeer(address))?;
        if member.len() >= self.sockets_max {
            return Err(Error::TooManyStreams(self.sockets_max));
        }
        member.dialling += 1;
        Ok(Dialling {
            registry: Arc::clone(self),
            address,
            end: member.end.subscribe(),
        })
    }

    fn dialling_socket(&self, socket: OwnedFd) -> io::Result<TcpSocket> {
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        if let Some(mss) = self.mss {
            SockRef::from(&socket).set_tcp_mss(mss)?;
        }
        Ok(TcpSocket::from_std_stream(socket))
    }

    /// `None`: the peer has gone.
    fn enter(self: &Arc<Self>, address: Ipv6Addr, stream: TcpStream) -> io::Result<Option<Held>> {
        let number = {
            let mut inner = self.lock();
            inner.numbers += 1;
            inner.numbers
        };
        let conn = Arc::new(KernelConn::new(stream, number, Arc::downgrade(self))?);
        let mut inner = self.lock();
        let Some(member) = inner.peers.get_mut(&address) else {
            // Its drop asks for the lock.
            drop(inner);
            drop(conn);
            return Ok(None);
        };
        member.conns.insert(number, Arc::downgrade(&conn));
        Ok(Some(conn))
    }

    /// Whether a peer may have one more stream that it begins itself.
    fn admits(&self, address: Ipv6Addr) -> bool {
        let inner = self.lock();
        let Some(member) = inner.peers.get(&address) else {
            return false;
        };
        let admits = member.len() < self.sockets_max;
        if !admits {
            self.drops.count(DropReason::TooManyStreams);
        }
        admits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening port, given back when dropped.
#[derive(Debug)]
struct PortGuard {
    registry: Arc<Registry>,
    port: u16,
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.registry.lock().ports.remove(&self.port);
    }
}

/// Takes connections that peers make.
#[derive(Debug)]
pub(crate) struct Acceptor {
    // Closed before its port is given back.
    socket: TcpListener,
    closed: watch::Receiver<bool>,
    guard: PortGuard,
}

impl Acceptor {
    /// The next connection. Cancel-safe.
    pub(crate) async fn accept(&self) -> Result<Held, Error> {
        let mut closed = self.closed.clone();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _gone = closed.wait_for(|closed| *closed) => return Err(Error::Closed),
            };
            match accepted {
                Ok((stream, SocketAddr::V6(from))) => {
                    if let Some(conn) = self.take(stream, *from.ip()) {
                        return Ok(conn);
                    }
                }
                Ok((_, SocketAddr::V4(_))) => {}
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, from: Ipv6Addr) -> Option<Held> {
        let registry = &self.guard.registry;
        if registry.admits(from)
            && let Ok(Some(conn)) = registry.enter(from, stream)
        {
            return Some(conn);
        }
        None
    }
}

fn cut_all<'a>(conns: impl Iterator<Item = &'a Kept>, end: End) {
    for conn in conns.filter_map(Kept::upgrade) {
        conn.cut(end);
    }
}

fn gone(address: Ipv6Addr, end: Option<End>) -> Error {
    match end {
        Some(End::TunnelClosed) => Error::Closed,
        Some(End::PeerRemoved | End::SessionLost) | None => Error::PeerRemoved(address),
    }
}

fn dial_error(address: Ipv6Addr, port: u16, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::ConnectionRefused {
        Error::Refused { address, port }
    } else if source.kind() == io::ErrorKind::AddrNotAvailable {
        Error::NoSourcePort
    } else {
        Error::Dial {
            address,
            port,
            source,
        }
    }
}
