//! What the owner of a tunnel says about a peer, and what the tunnel reports back.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::drops::Counters;
use crate::error::Error;
use crate::keys::{PresharedKey, PublicKey};
use crate::path::PathKind;

/// One remote end of the tunnel.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The peer's static key.
    pub public_key: PublicKey,
    /// The pre-shared key, the same on both sides.
    pub preshared_key: Option<PresharedKey>,
    /// The peer's overlay address: the only inner source address accepted from it.
    pub address: Ipv6Addr,
    /// Where to send the first datagram. A peer without one must contact us first.
    pub endpoint: Option<SocketAddr>,
    /// How long the path may stay silent before an empty packet is sent, to hold NAT mappings open.
    pub keepalive: Option<Duration>,
    /// Whether this side keeps the session up by itself, without waiting for traffic.
    pub initiates: bool,
}

impl Peer {
    pub(crate) fn check(&self, own: Ipv6Addr) -> Result<(), Error> {
        let address = self.address;
        if address == own
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
        {
            return Err(Error::BadAddress(address));
        }
        Ok(())
    }
}

/// What the tunnel knows about a peer; byte counts lag by at most a quarter second, `since_heard` by a twentieth.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PeerStatus {
    /// The peer's key.
    pub public_key: PublicKey,
    /// Where the peer was last heard from, or the configured endpoint; `None` while a carrier brings its datagrams.
    pub endpoint: Option<SocketAddr>,
    /// The address that they come from, whatever brings them.
    pub remote: Option<IpAddr>,
    /// What brings its datagrams.
    pub path: PathKind,
    /// The largest overlay packet that is sent to it, in bytes.
    pub mtu: usize,
    /// Age of the current session; `None` while there is none.
    pub since_handshake: Option<Duration>,
    /// Time since the last authenticated packet from the peer.
    pub since_heard: Option<Duration>,
    /// Overlay bytes received from the peer since its address was first known here, whatever its keys and sessions were.
    pub rx_bytes: u64,
    /// Overlay bytes sent to the peer, counted the same way.
    pub tx_bytes: u64,
    /// Streams open with the peer.
    pub streams: usize,
    /// The way there and back, measured by [`crate::Tunnel::echo`]; `None` until the peer answered one.
    pub round_trip: Option<Duration>,
    /// Lost of the last 64 echoes, per mille, there and back together; `None` until the fate of one is known.
    pub loss_per_mille: Option<u16>,
    /// What was refused of this peer since it was added, by reason. Only what can be told to be from it.
    pub rejected: Counters,
}
