//! Where datagrams of a peer come from and go to: an address of the UDP socket, or a carrier, a stream that brings datagrams where UDP does not
//! get through. WireGuard authenticates what is inside, so a path is never trusted, only used. Knows no socket and no stream.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// One carrier of this tunnel; given again after four thousand million others.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct CarrierId {
    pub(crate) number: u32,
    /// Who holds the other end of the stream: what limits by source count by.
    pub(crate) remote: IpAddr,
}

/// The way of a datagram.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Path {
    Udp(SocketAddr),
    Carried(CarrierId),
}

impl Path {
    /// The address on the UDP socket, if it is one.
    pub(crate) const fn udp(self) -> Option<SocketAddr> {
        match self {
            Self::Udp(address) => Some(address),
            Self::Carried(_) => None,
        }
    }

    pub(crate) const fn kind(self) -> PathKind {
        match self {
            Self::Udp(_) => PathKind::Udp,
            Self::Carried(_) => PathKind::Carried,
        }
    }

    /// Whom limits count this for, and what a cookie is bound to.
    pub(crate) fn source(self) -> SocketAddr {
        match self {
            Self::Udp(address) => address,
            Self::Carried(id) => SocketAddr::new(id.remote, 0),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => address.fmt(formatter),
            Self::Carried(id) => write!(formatter, "carrier {} of {}", id.number, id.remote),
        }
    }
}

/// What brings a peer's datagrams.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum PathKind {
    /// The UDP socket.
    #[default]
    Udp,
    /// A stream of the program: see [`crate::Carrier`].
    Carried,
}

impl PathKind {
    /// Its name in logs, metrics and the programs' answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Carried => "wss",
        }
    }
}
