//! Accepts connections that peers make to a port of ours.

use std::future::poll_fn;
use std::net::SocketAddrV6;
use std::sync::Arc;

use crate::error::Error;
use crate::netstack::backlog::Backlog;
use crate::stream::Stream;

/// A port open to all peers. Dropping it closes the port and resets what nobody accepted.
#[derive(Debug)]
pub struct Listener {
    backlog: Arc<Backlog>,
}

impl Listener {
    pub(crate) fn new(backlog: Arc<Backlog>) -> Self {
        Self { backlog }
    }

    /// The overlay port.
    pub fn port(&self) -> u16 {
        self.backlog.port()
    }

    /// Waits for the next connection. Cancel-safe. Fails only when the tunnel is shut down.
    pub async fn accept(&self) -> Result<(Stream, SocketAddrV6), Error> {
        let conn = poll_fn(|context| self.backlog.poll_next(context)).await;
        let stream = Stream::new(conn.ok_or(Error::Closed)?);
        let peer = stream.peer_addr();
        Ok((stream, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.backlog.close();
    }
}
