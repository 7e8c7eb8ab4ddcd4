//! Accepts connections that peers make to a port of ours.

use std::future::poll_fn;
use std::net::SocketAddrV6;
use std::sync::Arc;

use crate::error::Error;
use crate::netns::Acceptor;
use crate::netstack::backlog::{Arrival, Backlog};
use crate::stream::Stream;

/// A port open to all peers. Dropping it closes the port and resets what nobody accepted.
#[derive(Debug)]
pub struct Listener {
    backlog: Arc<Backlog>,
    /// Where the kernel does TCP, its connections come from here.
    kernel: Option<Acceptor>,
}

impl Listener {
    pub(crate) const fn new(backlog: Arc<Backlog>, kernel: Option<Acceptor>) -> Self {
        Self { backlog, kernel }
    }

    /// The overlay port.
    pub fn port(&self) -> u16 {
        self.backlog.port()
    }

    /// Waits for the next connection. Cancel-safe. Fails only when the tunnel is shut down.
    pub async fn accept(&self) -> Result<(Stream, SocketAddrV6), Error> {
        let arrives = poll_fn(|context| self.backlog.poll_next(context));
        let stream = match &self.kernel {
            None => stream(arrives.await)?,
            Some(acceptor) => tokio::select! {
                arrival = arrives => stream(arrival)?,
                accepted = acceptor.accept() => Stream::of_kernel(accepted?),
            },
        };
        let peer = stream.peer_addr();
        Ok((stream, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.backlog.close();
    }
}

fn stream(arrival: Option<Arrival>) -> Result<Stream, Error> {
    match arrival {
        Some(Arrival::Stack(conn)) => Ok(Stream::of_stack(conn)),
        Some(Arrival::Quic(conn)) => Ok(Stream::of_quic(conn)),
        None => Err(Error::Closed),
    }
}
