//! One QUIC connection, shared by its streams and the driver.
//!
//! Data moves between a stream and QUIC's own buffers under the connection's lock: no second queue. What a peer has sent and nobody reads
//! is bounded by the stream's window, and so is what it has not read of ours. This room never sends: it rings, and the driver asks for packets.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use quinn_proto::Connection;

use super::road::{Number, Road};
use crate::netstack::conn::{ConnKey, Failure};
use crate::netstack::doorbell::Doorbell;

/// One connection.
pub(crate) struct Carrier {
    pub(super) own: Ipv6Addr,
    pub(super) peer: Ipv6Addr,
    key: ConnKey,
    doorbell: Arc<Doorbell>,
    road: Mutex<Road>,
}

impl Carrier {
    pub(super) fn new(
        proto: Connection,
        key: ConnKey,
        (own, peer): (Ipv6Addr, Ipv6Addr),
        doorbell: Arc<Doorbell>,
    ) -> Arc<Self> {
        Arc::new(Self {
            own,
            peer,
            key,
            doorbell,
            road: Mutex::new(Road::new(proto)),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Road> {
        self.road.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when a stream that was begun is taken or refused.
    pub(super) fn poll_connected(
        &self,
        number: Number,
        context: &Context<'_>,
    ) -> Poll<Result<(), Failure>> {
        let mut road = self.lock();
        let made = road.is_made(number);
        if made.is_none() {
            road.read_later(number, context.waker());
        }
        made.map_or(Poll::Pending, Poll::Ready)
    }

    /// Reads what has arrived; `Ok(0)` is the end of the stream.
    pub(super) fn poll_read(
        &self,
        number: Number,
        context: &Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut road = self.lock();
        let (read, ring) = road.read(number, into);
        if let Ok(None) = read {
            road.read_later(number, context.waker());
            self.ring_if(ring, road);
            return Poll::Pending;
        }
        self.ring_if(ring, road);
        Poll::Ready(read.map(Option::unwrap_or_default))
    }

    /// Takes bytes for sending; pending while the peer's window is full.
    pub(super) fn poll_write(
        &self,
        number: Number,
        context: &Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut road = self.lock();
        let taken = road.write(number, from);
        if let Ok(0) = taken
            && from.iter().any(|slice| !slice.is_empty())
        {
            road.write_later(number, context.waker());
            return Poll::Pending;
        }
        self.ring_if(taken.is_ok(), road);
        Poll::Ready(taken)
    }

    /// Ends the writing side; what was written before is still delivered.
    pub(super) fn finish(&self, number: Number) -> io::Result<()> {
        let mut road = self.lock();
        let finished = road.finish(number);
        self.ring_if(true, road);
        finished
    }

    /// Whoever held the stream is gone: reset it, unless it was shut down in order.
    pub(super) fn abandon(&self, number: Number, now: Instant) {
        let mut road = self.lock();
        road.abandon(number, now);
        self.ring_if(true, road);
    }

    fn ring_if(&self, condition: bool, mut road: MutexGuard<'_, Road>) {
        let ring = condition && !road.rung;
        road.rung |= condition;
        drop(road);
        if ring {
            self.doorbell.ring(self.key);
        }
    }
}
