//! A TCP connection inside the tunnel, as tokio sees it.

use std::io::{self, IoSlice};
use std::net::SocketAddrV6;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::netns::KernelConn;
use crate::netstack::conn::{Conn, Failure};
use crate::quic::QuicConn;

/// A TCP connection inside the tunnel.
///
/// Dropping it resets the connection, so that the other side notices at once that nobody is there
/// any more; bytes not yet acknowledged are lost. After [`AsyncWrite::poll_shutdown`] a drop is in
/// order instead: what was written is still delivered in the background.
#[derive(Debug)]
pub struct Stream(Kind);

/// Who does its TCP.
#[derive(Debug)]
enum Kind {
    Stack(Arc<Conn>),
    Kernel(Arc<KernelConn>),
    Quic(QuicConn),
}

impl Stream {
    pub(crate) fn of_stack(conn: Arc<Conn>) -> Self {
        Self(Kind::Stack(conn))
    }

    pub(crate) fn of_kernel(conn: Arc<KernelConn>) -> Self {
        Self(Kind::Kernel(conn))
    }

    pub(crate) const fn of_quic(conn: QuicConn) -> Self {
        Self(Kind::Quic(conn))
    }

    /// Overlay address and port of the other side.
    pub fn peer_addr(&self) -> SocketAddrV6 {
        match &self.0 {
            Kind::Stack(conn) => conn.remote(),
            Kind::Kernel(conn) => conn.remote(),
            Kind::Quic(conn) => conn.remote(),
        }
    }

    /// Overlay address and port of this side.
    pub fn local_addr(&self) -> SocketAddrV6 {
        match &self.0 {
            Kind::Stack(conn) => conn.local(),
            Kind::Kernel(conn) => conn.local(),
            Kind::Quic(conn) => conn.local(),
        }
    }

    /// Ready when a connection that was begun is made or has failed.
    pub(crate) fn poll_connected(&self, context: &Context<'_>) -> Poll<Result<(), Failure>> {
        match &self.0 {
            Kind::Stack(conn) => conn.poll_connected(context),
            Kind::Quic(conn) => conn.poll_connected(context),
            Kind::Kernel(_) => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The kernel resets a socket of ours that is closed without a shutdown.
        match &self.0 {
            Kind::Stack(conn) => conn.abandon(),
            Kind::Quic(conn) => conn.abandon(),
            Kind::Kernel(_) => {}
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let room = buffer.initialize_unfilled();
        let read = match &self.0 {
            Kind::Stack(conn) => conn.poll_read(context, room),
            Kind::Kernel(conn) => conn.poll_read(context, room),
            Kind::Quic(conn) => conn.poll_read(context, room),
        };
        read.map_ok(|taken| buffer.advance(taken))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &self.0 {
            Kind::Stack(conn) => conn.poll_write(context, slices),
            Kind::Kernel(conn) => conn.poll_write(context, slices),
            Kind::Quic(conn) => conn.poll_write(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Always ready: what was written leaves without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match &self.0 {
            Kind::Stack(conn) => conn.finish(),
            Kind::Kernel(conn) => conn.finish(),
            Kind::Quic(conn) => conn.finish(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pingora's virtual sockets and hyper ask for all of these.
    #[test]
    fn a_stream_goes_wherever_a_socket_goes() {
        fn check<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug + 'static>() {}
        check::<Stream>();
    }
}
