//! The UDP socket: batches in (GRO, recvmmsg), batches out (GSO). Knows nothing of WireGuard.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState, is_msg_size_err};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::error::Error;
use crate::outbox::Batch;

/// Buffers filled by one receive call, each with up to 64 KiB of datagrams from one sender.
const RECEIVE_BUFFERS: usize = 16;
const RECEIVE_BYTES: usize = 65_536;
/// A network that takes nothing for this long has lost what we had for it.
const SEND_MAX: Duration = Duration::from_secs(1);

/// A bound socket and its receive buffers.
pub(crate) struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    /// The operator knows that the path is too narrow.
    told_narrow: AtomicBool,
    buffers: [Vec<u8>; RECEIVE_BUFFERS],
    meta: [RecvMeta; RECEIVE_BUFFERS],
}

impl Socket {
    /// Binds. Must be called on a tokio runtime.
    pub(crate) fn bind(bind: SocketAddr, buffer_bytes: usize) -> Result<Self, Error> {
        Self::open(bind, buffer_bytes).map_err(|source| Error::Bind { bind, source })
    }

    fn open(bind: SocketAddr, buffer_bytes: usize) -> io::Result<Self> {
        let socket = match open_bound(bind) {
            Err(_) if bind.is_ipv6() && bind.ip().is_unspecified() => {
                open_bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, bind.port())))?
            }
            other => other?,
        };
        grow(buffer_bytes, |bytes| socket.set_recv_buffer_size(bytes));
        grow(buffer_bytes, |bytes| socket.set_send_buffer_size(bytes));
        let granted = socket.recv_buffer_size()?;
        if granted < buffer_bytes {
            tracing::info!(
                wanted = buffer_bytes,
                granted,
                "UDP receive buffer is small: raise net.core.rmem_max for fast bulk transfers"
            );
        }
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let udp = UdpSocket::from_std(socket.into())?;
        Ok(Self {
            local: udp.local_addr()?,
            udp,
            state,
            told_narrow: AtomicBool::new(false),
            buffers: std::array::from_fn(|_| vec![0; RECEIVE_BYTES]),
            meta: [RecvMeta::default(); RECEIVE_BUFFERS],
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// How many datagrams one send may carry; falls to 1 when the network refuses.
    pub(crate) fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Ready when datagrams may have arrived.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.udp.poll_recv_ready(context)
    }

    /// Receives what is there, at most one call's worth, and gives every datagram to `take`.
    /// Returns whether there may be more.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(SocketAddr, &[u8])) -> io::Result<bool> {
        let Self {
            udp,
            state,
            buffers,
            meta,
            ..
        } = self;
        let mut slices = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let received = udp.try_io(Interest::READABLE, || {
            state.recv(UdpSockRef::from(&*udp), &mut slices, meta)
        });
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        for (meta, buffer) in meta.iter().zip(buffers.iter()).take(count) {
            let source = canonical(meta.addr);
            let bytes = &buffer[..meta.len.min(buffer.len())];
            if meta.stride == 0 {
                take(source, bytes);
                continue;
            }
            for datagram in bytes.chunks(meta.stride) {
                take(source, datagram);
            }
        }
        Ok(true)
    }

    /// Sends a batch. Datagrams that cannot be sent are lost, as on any network.
    pub(crate) async fn send(&self, destination: SocketAddr, batch: &Batch) {
        let segment = (batch.count() > 1).then_some(batch.segment);
        let Err(error) = self.transmit(destination, batch.contents(), segment).await else {
            return;
        };
        if segment.is_none() || !refuses_offload(&error) {
            self.note_lost(batch, &error);
            return;
        }
        // The network card or the kernel refused segmentation; it is off from here on.
        for datagram in batch.contents().chunks(batch.segment) {
            if let Err(error) = self.transmit(destination, datagram, None).await {
                self.note_lost(batch, &error);
            }
        }
    }

    fn note_lost(&self, batch: &Batch, error: &io::Error) {
        if is_msg_size_err(error) && !self.told_narrow.swap(true, Ordering::Relaxed) {
            tracing::info!(
                bytes = batch.segment,
                "the network card does not carry datagrams of this size: the tunnel keeps to smaller ones"
            );
        }
        tracing::debug!(destination = %batch.destination, %error, "datagram not sent");
    }

    async fn transmit(
        &self,
        destination: SocketAddr,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination: self.reachable(destination),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        };
        let send = || self.state.try_send(UdpSockRef::from(&self.udp), &transmit);
        match self.udp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::timeout(SEND_MAX, self.udp.async_io(Interest::WRITABLE, send))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }

    /// An IPv6 socket reaches IPv4 through mapped addresses.
    fn reachable(&self, destination: SocketAddr) -> SocketAddr {
        match destination {
            SocketAddr::V4(v4) if self.local.is_ipv6() => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
            }
            SocketAddr::V4(_) | SocketAddr::V6(_) => destination,
        }
    }
}

/// Asks for the largest buffer the system grants: Linux trims the wish, others refuse it. Less than
/// wished costs speed, not correctness.
fn grow(wish: usize, set: impl Fn(usize) -> io::Result<()>) {
    let mut bytes = wish;
    while set(bytes).is_err() && bytes > RECEIVE_BYTES {
        bytes /= 2;
    }
}

/// Whether an error may come from segmentation offload rather than from the destination.
fn refuses_offload(error: &io::Error) -> bool {
    // EIO and EINVAL; EMSGSIZE would hit every segment alike.
    matches!(error.raw_os_error(), Some(5 | 22))
}

fn open_bound(bind: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))?;
    if bind.is_ipv6() {
        socket.set_only_v6(!bind.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&bind.into())?;
    Ok(socket)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, v6.port())),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
