//! WireGuard for many peers on one socket, over boringtun's state machine for a single peer.
//!
//! This room decides who a datagram belongs to and wraps what boringtun 0.7.1 leaves to its user:
//! source-aware handshake limits, retries, expiry, padding, counters, roaming. It never touches a
//! socket and never looks inside the overlay packets.

pub(crate) mod bench;
pub(crate) mod budget;
pub(crate) mod gate;
pub(crate) mod message;
pub(crate) mod noise;
pub(crate) mod paths;
pub(crate) mod retry;
pub(crate) mod session;
mod verdict;

/// The local 24-bit index of a peer: what the peer puts above the low 8 bits of the receiver index.
///
/// Random, so that it tells an observer neither the number of peers nor who is who.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct PeerId(u32);

impl PeerId {
    /// The peer a receiver index of the wire belongs to; the low 8 bits number the session.
    pub(crate) const fn of_receiver(index: u32) -> Self {
        Self(index >> 8)
    }

    /// A candidate drawn from random bits.
    pub(crate) const fn from_random(bits: u32) -> Self {
        Self(bits >> 8)
    }

    pub(crate) const fn index(self) -> u32 {
        self.0
    }
}
