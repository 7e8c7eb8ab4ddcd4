//! One stream of a QUIC connection, as a [`crate::Stream`] holds it.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddrV6;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::carrier::Carrier;
use super::road::Number;
use crate::netstack::conn::Failure;

/// Ports of the dialling side lie above the services'.
const FIRST_PORT: u64 = 16_384;

/// A stream.
#[derive(Clone)]
pub(crate) struct QuicConn {
    carrier: Arc<Carrier>,
    number: Number,
    local: SocketAddrV6,
    remote: SocketAddrV6,
}

impl QuicConn {
    /// `port`: the one that was dialled, by us or by the peer.
    pub(super) fn new(carrier: Arc<Carrier>, number: Number, port: u16, is_ours: bool) -> Self {
        let dialling = FIRST_PORT + number % (u64::from(u16::MAX) - FIRST_PORT);
        let dialling = u16::try_from(dialling).unwrap_or(u16::MAX);
        let (local, remote) = if is_ours {
            (dialling, port)
        } else {
            (port, dialling)
        };
        Self {
            local: SocketAddrV6::new(carrier.own, local, 0, 0),
            remote: SocketAddrV6::new(carrier.peer, remote, 0, 0),
            carrier,
            number,
        }
    }

    pub(crate) const fn local(&self) -> SocketAddrV6 {
        self.local
    }

    pub(crate) const fn remote(&self) -> SocketAddrV6 {
        self.remote
    }

    pub(crate) fn poll_connected(&self, context: &Context<'_>) -> Poll<Result<(), Failure>> {
        self.carrier.poll_connected(self.number, context)
    }

    pub(crate) fn poll_read(
        &self,
        context: &Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.carrier.poll_read(self.number, context, into)
    }

    pub(crate) fn poll_write(
        &self,
        context: &Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.carrier.poll_write(self.number, context, from)
    }

    pub(crate) fn finish(&self) -> io::Result<()> {
        self.carrier.finish(self.number)
    }

    pub(crate) fn abandon(&self) {
        self.carrier.abandon(self.number, Instant::now());
    }
}

impl fmt::Debug for QuicConn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QuicConn")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}
