//! One TCP connection, shared by its stream and the driver.
//!
//! Data moves between the stream and smoltcp's buffers directly, under a lock of this connection
//! alone: there is no second buffer, so a reader that stalls closes the TCP window and nothing grows.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddrV6;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, State};

use super::doorbell::Doorbell;
use super::segment::PortPair;
use crate::wg::PeerId;

/// A connection's name within the tunnel.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct ConnKey {
    pub(crate) peer: PeerId,
    pub(crate) ports: PortPair,
}

/// Why this side cut a connection that its stream still holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    PeerRemoved,
    SessionLost,
    TunnelClosed,
}

impl End {
    pub(crate) fn error(self) -> io::Error {
        let message = match self {
            Self::PeerRemoved => "the tunnel peer was removed or replaced",
            Self::SessionLost => "the tunnel session with the peer is lost",
            Self::TunnelClosed => "the tunnel is shut down",
        };
        io::Error::new(io::ErrorKind::ConnectionAborted, message)
    }
}

/// How an attempt to connect ended when it did not succeed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    Refused,
    /// What carried the attempt broke; another may succeed at once.
    Lost,
    Cut(End),
}

/// A connection with its socket.
pub(crate) struct Conn {
    key: ConnKey,
    local: SocketAddrV6,
    remote: SocketAddrV6,
    doorbell: Arc<Doorbell>,
    inner: Mutex<Inner>,
}

/// What the lock guards.
pub(crate) struct Inner {
    pub(crate) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// In the doorbell's list.
    pub(crate) rung: bool,
    /// The stream has shut its writing side down.
    finished: bool,
    /// The stream is gone.
    pub(crate) abandoned: bool,
    end: Option<End>,
}

impl Inner {
    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.sockets.get::<Socket<'_>>(self.handle).state()
    }

    /// Whether nothing is left to be sent, not even a reset.
    pub(crate) fn is_silent(&self) -> bool {
        self.sockets
            .get::<Socket<'_>>(self.handle)
            .remote_endpoint()
            .is_none()
    }
}

impl Conn {
    pub(crate) fn new(
        key: ConnKey,
        addresses: (SocketAddrV6, SocketAddrV6),
        doorbell: Arc<Doorbell>,
        socket: Socket<'static>,
    ) -> Arc<Self> {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let (local, remote) = addresses;
        Arc::new(Self {
            key,
            local,
            remote,
            doorbell,
            inner: Mutex::new(Inner {
                sockets,
                handle,
                rung: false,
                finished: false,
                abandoned: false,
                end: None,
            }),
        })
    }

    pub(crate) fn local(&self) -> SocketAddrV6 {
        self.local
    }

    pub(crate) fn remote(&self) -> SocketAddrV6 {
        self.remote
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when the connection is made or has failed.
    pub(crate) fn poll_connected(&self, context: &Context<'_>) -> Poll<Result<(), Failure>> {
        let mut inner = self.lock();
        if let Some(end) = inner.end {
            return Poll::Ready(Err(Failure::Cut(end)));
        }
        match inner.state() {
            State::SynSent | State::SynReceived | State::Listen => {
                inner.socket().register_send_waker(context.waker());
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(Failure::Refused)),
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => Poll::Ready(Ok(())),
        }
    }

    /// Reads what has arrived; `Ok(0)` is the end of the stream.
    pub(crate) fn poll_read(
        &self,
        context: &Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if let Some(end) = inner.end {
            return Poll::Ready(Err(end.error()));
        }
        let socket = inner.socket();
        let waiting = socket.recv_queue();
        if waiting == 0 {
            return match socket.recv(|_| (0, ())) {
                Ok(()) => {
                    socket.register_recv_waker(context.waker());
                    Poll::Pending
                }
                Err(RecvError::Finished) => Poll::Ready(Ok(0)),
                Err(RecvError::InvalidState) => Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::ConnectionReset,
                    "connection reset by the tunnel peer",
                ))),
            };
        }
        let taken = socket
            .recv_slice(into)
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        // The window was at least half closed: say that it opens. Otherwise the next
        // acknowledgement says it for nothing.
        let narrow = waiting * 2 >= socket.recv_capacity();
        self.ring_if(narrow, inner);
        Poll::Ready(Ok(taken))
    }

    /// Takes bytes for sending; pending while the send buffer is full.
    pub(crate) fn poll_write(
        &self,
        context: &Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if let Some(end) = inner.end {
            return Poll::Ready(Err(end.error()));
        }
        if inner.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let socket = inner.socket();
        if !socket.may_send() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "connection reset by the tunnel peer",
            )));
        }
        let mut taken = 0;
        for slice in from {
            let more = socket
                .send_slice(slice)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            taken += more;
            if more < slice.len() {
                break;
            }
        }
        if taken == 0 && from.iter().any(|slice| !slice.is_empty()) {
            socket.register_send_waker(context.waker());
            return Poll::Pending;
        }
        self.ring_if(taken > 0, inner);
        Poll::Ready(Ok(taken))
    }

    /// Ends the writing side; what was written before is still delivered.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut inner = self.lock();
        if let Some(end) = inner.end {
            return Err(end.error());
        }
        let first = !inner.finished;
        inner.finished = true;
        inner.socket().close();
        self.ring_if(first, inner);
        Ok(())
    }

    /// The stream is gone: reset the connection, unless it was shut down in order, in which case it
    /// finishes in the background.
    pub(crate) fn abandon(&self) {
        let mut inner = self.lock();
        inner.abandoned = true;
        if !inner.finished {
            inner.socket().abort();
        }
        self.ring_if(true, inner);
    }

    /// Cuts the connection from this side; its stream fails at once.
    pub(crate) fn cut(&self, end: End) {
        let mut inner = self.lock();
        inner.end.get_or_insert(end);
        inner.socket().abort();
    }

    fn ring_if(&self, condition: bool, mut inner: MutexGuard<'_, Inner>) {
        let ring = condition && !inner.rung;
        inner.rung |= condition;
        drop(inner);
        if ring {
            self.doorbell.ring(self.key);
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Conn")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}
