//! Accepts connections that peers make to a port of ours.

use std::future::poll_fn;
use std::net::SocketAddrV6;
use std::sync::Arc;

use crate::error::Error;
use crate::netns::Acceptor;
use crate::netstack::backlog::Backlog;
use crate::stream::Stream;

/// A port open to all peers. Dropping it closes the port and resets what nobody accepted.
#[derive(Debug)]
pub struct Listener(Kind);

/// Who does its TCP.
#[derive(Debug)]
enum Kind {
    Stack(Arc<Backlog>),
    Kernel(Acceptor),
}

impl Listener {
    pub(crate) fn of_stack(backlog: Arc<Backlog>) -> Self {
        Self(Kind::Stack(backlog))
    }

    pub(crate) fn of_kernel(acceptor: Acceptor) -> Self {
        Self(Kind::Kernel(acceptor))
    }

    /// The overlay port.
    pub fn port(&self) -> u16 {
        match &self.0 {
            Kind::Stack(backlog) => backlog.port(),
            Kind::Kernel(acceptor) => acceptor.port(),
        }
    }

    /// Waits for the next connection. Cancel-safe. Fails only when the tunnel is shut down.
    pub async fn accept(&self) -> Result<(Stream, SocketAddrV6), Error> {
        let stream = match &self.0 {
            Kind::Stack(backlog) => {
                let conn = poll_fn(|context| backlog.poll_next(context)).await;
                Stream::of_stack(conn.ok_or(Error::Closed)?)
            }
            Kind::Kernel(acceptor) => Stream::of_kernel(acceptor.accept().await?),
        };
        let peer = stream.peer_addr();
        Ok((stream, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Stack(backlog) = &self.0 {
            backlog.close();
        }
    }
}
