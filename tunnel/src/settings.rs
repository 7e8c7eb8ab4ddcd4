//! What a tunnel is built from, with the bounds that keep it small.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::error::Error;
use crate::keys::PrivateKey;

/// An underlay of 1280 bytes (WSL2) carries overlay packets of 1200. IPv6 demands 1280 of a link, but
/// both ends of this one are ours and TCP keeps to the smaller of the two.
pub(crate) const MTU_MIN: usize = 1200;
const MTU_DEFAULT: usize = 1280;
/// With WireGuard's 32, UDP's 8 and IPv4's 20 bytes around it, what Ethernet carries.
const MTU_PROBED_MAX: usize = 1440;
/// Anything larger does not fit an Ethernet underlay.
pub(crate) const MTU_MAX: usize = 1500;

/// What a tunnel is built from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The UDP address to bind. `[::]:port` serves IPv4 too, and falls back to `0.0.0.0:port` on
    /// hosts without IPv6.
    pub bind: SocketAddr,
    /// Our static key.
    pub private_key: PrivateKey,
    /// Our own overlay address.
    pub address: Ipv6Addr,
    /// How large the tunnel may become.
    pub bounds: Bounds,
    /// Who does TCP inside the tunnel. [`Backend::Embedded`] unless set.
    pub backend: Backend,
    /// Streams with a peer that runs this crate too go over QUIC when TCP is not the kernel's on both sides. `true` unless set; without it,
    /// and with stock peers, they go over the embedded TCP, which is slow on lossy paths.
    pub quic: bool,
    /// The program that is [`crate::netns::helper_main`] when started with `__netns`; `None`: this one. Only for `netns`.
    pub helper: Option<PathBuf>,
}

/// Who does TCP inside the tunnel. Both ends choose for themselves: the wire is the same.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Backend {
    /// The kernel where this host lets us, otherwise the tunnel itself. The program must call [`crate::netns::helper_main`] first.
    Auto,
    /// The kernel, in a network namespace of its own; an error where that is not possible. Linux only.
    Netns,
    /// The tunnel itself.
    #[default]
    Embedded,
}

impl Backend {
    /// By its name in the settings: `auto`, `netns` or `embedded`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "netns" => Some(Self::Netns),
            "embedded" => Some(Self::Embedded),
            _ => None,
        }
    }

    /// Its name in the settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Netns => "netns",
            Self::Embedded => "embedded",
        }
    }
}

impl Settings {
    /// Settings with default bounds.
    pub fn new(bind: SocketAddr, private_key: PrivateKey, address: Ipv6Addr) -> Self {
        Self {
            bind,
            private_key,
            address,
            bounds: Bounds::default(),
            backend: Backend::default(),
            quic: true,
            helper: None,
        }
    }
}

/// How large a tunnel may become.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bounds {
    /// Peers known at once.
    pub peers_max: usize,
    /// TCP sockets with one peer at once, both directions together.
    pub sockets_per_peer_max: usize,
    /// Size of each socket's send and receive buffer.
    pub tcp_buffer_bytes: usize,
    /// Largest overlay packet until the path to a peer has been measured. A narrower path lowers it.
    pub mtu: usize,
    /// Largest overlay packet of all; not below `mtu`. The tunnel finds out what the path to each peer carries.
    pub mtu_max: usize,
    /// Connections that may wait for [`crate::Listener::accept`], half-open ones included.
    pub backlog_max: usize,
    /// Handshakes per second, from all sources together, above which senders must prove their address and port with a cookie. Who has
    /// proven it is not counted here, but has a budget of its own.
    pub handshakes_per_second_max: u64,
    /// Size asked for the UDP socket's buffers; the kernel may grant less (`net.core.rmem_max`).
    pub udp_buffer_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            peers_max: 10_000,
            sockets_per_peer_max: 2_048,
            // 100 Mbit/s at 20 ms; more makes loss recovery worse, see the crate's limits.
            tcp_buffer_bytes: 256 * 1024,
            mtu: MTU_DEFAULT,
            mtu_max: MTU_PROBED_MAX,
            backlog_max: 512,
            // 1 % of a core for strangers, 5 % for peers.
            handshakes_per_second_max: 250,
            udp_buffer_bytes: 4 * 1024 * 1024,
        }
    }
}

impl Bounds {
    pub(crate) fn check(&self) -> Result<(), Error> {
        let rules = [
            ("peers_max", self.peers_max, 1, 1_000_000, "1 to 1000000"),
            (
                "sockets_per_peer_max",
                self.sockets_per_peer_max,
                1,
                40_000,
                "1 to 40000",
            ),
            (
                "tcp_buffer_bytes",
                self.tcp_buffer_bytes,
                4_096,
                64 << 20,
                "4 KiB to 64 MiB",
            ),
            ("mtu", self.mtu, MTU_MIN, MTU_MAX, "1200 to 1500"),
            ("mtu_max", self.mtu_max, self.mtu, MTU_MAX, "mtu to 1500"),
            ("backlog_max", self.backlog_max, 1, 65_536, "1 to 65536"),
            (
                "udp_buffer_bytes",
                self.udp_buffer_bytes,
                65_536,
                1 << 30,
                "64 KiB to 1 GiB",
            ),
        ];
        for (name, value, min, max, expected) in rules {
            if !(min..=max).contains(&value) {
                return Err(Error::Setting {
                    name,
                    value,
                    expected,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_bounds_are_valid() {
        Bounds::default().check().unwrap();
    }

    #[test]
    fn a_senseless_bound_is_named() {
        let bounds = Bounds {
            mtu: 576,
            ..Bounds::default()
        };
        let message = bounds.check().unwrap_err().to_string();
        assert_eq!(message, "tunnel setting mtu is 576, must be 1200 to 1500");
    }
}
