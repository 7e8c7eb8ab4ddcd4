//! Why a tunnel operation failed. Never carries key material or packet contents.

use std::io;
use std::net::Ipv6Addr;
use std::time::Duration;

/// Why a tunnel operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The UDP socket could not be opened or configured.
    #[error("cannot open the UDP socket on {bind}: {source}")]
    Bind {
        /// The address asked for.
        bind: std::net::SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A bound in the settings makes no sense.
    #[error("tunnel setting {name} is {value}, must be {expected}")]
    Setting {
        /// Name of the field.
        name: &'static str,
        /// The value found.
        value: usize,
        /// What would be right.
        expected: &'static str,
    },
    /// The driver has stopped: the tunnel was shut down or its runtime ended.
    #[error("the tunnel is shut down")]
    Closed,
    /// No peer has this overlay address.
    #[error("no peer has the overlay address {0}")]
    UnknownPeer(Ipv6Addr),
    /// The peer cannot have this overlay address.
    #[error("{0} cannot be a peer's overlay address")]
    BadAddress(Ipv6Addr),
    /// Another peer already has this public key.
    #[error("the public key already belongs to the peer {0}")]
    KeyInUse(Ipv6Addr),
    /// The configured number of peers is reached.
    #[error("the tunnel already has {0} peers, its maximum")]
    TooManyPeers(usize),
    /// The table of carriers is full.
    #[error("the tunnel has {0} carriers already, which is its maximum")]
    TooManyCarriers(usize),
    /// The configured number of TCP sockets of one peer is reached.
    #[error("the peer already has {0} streams, its maximum")]
    TooManyStreams(usize),
    /// Every source port towards the peer is in use.
    #[error("no source port towards the peer is free")]
    NoSourcePort,
    /// Somebody already listens on the port.
    #[error("overlay port {0} is already listened on")]
    PortInUse(u16),
    /// Port zero cannot be dialled or listened on.
    #[error("overlay port 0 cannot be used")]
    PortZero,
    /// No underlay endpoint of the peer is known, so no handshake can be started.
    #[error("the peer {0} has no known endpoint yet")]
    NoEndpoint(Ipv6Addr),
    /// The deadline passed without a WireGuard session with the peer.
    #[error(
        "no handshake with {address} within {} ms: unreachable, or the keys do not match",
        after.as_millis()
    )]
    NoSession {
        /// The peer's overlay address.
        address: Ipv6Addr,
        /// The deadline that passed.
        after: Duration,
    },
    /// The deadline passed with a session, but the peer did not answer the connection attempt.
    #[error("no answer from [{address}]:{port} within {} ms", after.as_millis())]
    ConnectTimeout {
        /// The peer's overlay address.
        address: Ipv6Addr,
        /// The port dialled.
        port: u16,
        /// The deadline that passed.
        after: Duration,
    },
    /// The peer refused the connection: nobody listens on that port.
    #[error("connection refused by [{address}]:{port}")]
    Refused {
        /// The peer's overlay address.
        address: Ipv6Addr,
        /// The port dialled.
        port: u16,
    },
    /// The peer was removed or replaced while the connection was being made.
    #[error("the peer {0} was removed")]
    PeerRemoved(Ipv6Addr),
    /// The back-end asked for does not work here.
    #[error(
        "tunnel back-end netns is not possible here: {0}; set backend to \"auto\" or \"embedded\""
    )]
    Backend(io::Error),
    /// The private network namespace does not do as it should.
    #[error("the tunnel's network namespace: {0}")]
    Namespace(io::Error),
    /// The kernel could not connect.
    #[error("cannot connect to [{address}]:{port}: {source}")]
    Dial {
        /// The peer's overlay address.
        address: Ipv6Addr,
        /// The port dialled.
        port: u16,
        /// What the operating system said.
        source: io::Error,
    },
    /// A key is not 32 bytes in base64.
    #[error("a WireGuard key is 32 bytes in base64, 44 characters")]
    BadKey,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Bind { source, .. }
            | Error::Dial { source, .. }
            | Error::Backend(source)
            | Error::Namespace(source) => source.kind(),
            Error::Closed | Error::PeerRemoved(_) => io::ErrorKind::ConnectionAborted,
            Error::UnknownPeer(_) | Error::NoEndpoint(_) => io::ErrorKind::AddrNotAvailable,
            Error::NoSession { .. } | Error::ConnectTimeout { .. } => io::ErrorKind::TimedOut,
            Error::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Error::PortInUse(_) | Error::NoSourcePort => io::ErrorKind::AddrInUse,
            Error::Setting { .. }
            | Error::BadAddress(_)
            | Error::KeyInUse(_)
            | Error::TooManyPeers(_)
            | Error::TooManyCarriers(_)
            | Error::TooManyStreams(_)
            | Error::PortZero
            | Error::BadKey => io::ErrorKind::InvalidInput,
        };
        Self::new(kind, error)
    }
}
