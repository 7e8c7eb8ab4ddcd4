//! A TCP connection inside the tunnel, as tokio sees it.

use std::io::{self, IoSlice};
use std::net::SocketAddrV6;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::netstack::conn::Conn;

/// A TCP connection inside the tunnel.
///
/// Dropping it resets the connection, so that the other side notices at once that nobody is there
/// any more; bytes not yet acknowledged are lost. After [`AsyncWrite::poll_shutdown`] a drop is in
/// order instead: what was written is still delivered in the background.
#[derive(Debug)]
pub struct Stream {
    conn: Arc<Conn>,
}

impl Stream {
    pub(crate) fn new(conn: Arc<Conn>) -> Self {
        Self { conn }
    }

    /// Overlay address and port of the other side.
    pub fn peer_addr(&self) -> SocketAddrV6 {
        self.conn.remote()
    }

    /// Overlay address and port of this side.
    pub fn local_addr(&self) -> SocketAddrV6 {
        self.conn.local()
    }

    pub(crate) fn conn(&self) -> &Conn {
        &self.conn
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.conn.abandon();
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
        let read = self.conn.poll_read(context, buffer.initialize_unfilled());
        read.map_ok(|taken| buffer.advance(taken))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.conn.poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.conn.poll_write(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Always ready: what was written leaves without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.conn.finish())
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
