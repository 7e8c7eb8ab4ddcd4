//! The IPv4 networks that this machine is on, as the kernel's table of routes tells (Linux); elsewhere none are known, and the settings
//! must name the site and the broadcast address. Opens no socket.

use std::fmt;
use std::fs;
use std::net::Ipv4Addr;

/// A network of private addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// The network of an address.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        let address = Ipv4Addr::from_bits(address.to_bits() & mask(prefix));
        Self { address, prefix }
    }

    /// Where all of it listens.
    pub const fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.prefix))
    }

    /// Whether the address is in it.
    pub const fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.address.to_bits()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

const fn mask(prefix: u8) -> u32 {
    match prefix {
        0 => 0,
        prefix => u32::MAX << (32 - prefix),
    }
}

/// Those of this machine, as they are now.
pub(super) fn own() -> Vec<Network> {
    let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
    of_table(&table)
}

/// Routes without a gateway to private networks that hold more than one machine.
fn of_table(table: &str) -> Vec<Network> {
    let mut all: Vec<Network> = Vec::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let field = |index: usize| {
            let text = fields.get(index)?;
            u32::from_str_radix(text, 16).ok().map(u32::swap_bytes)
        };
        let (Some(address), Some(gateway), Some(mask)) = (field(1), field(2), field(7)) else {
            continue;
        };
        let prefix = u8::try_from(mask.leading_ones()).unwrap_or(32);
        let network = Network::new(Ipv4Addr::from_bits(address), prefix);
        let is_lan = network.address.is_private() || network.address.is_link_local();
        if gateway == 0 && is_lan && (8..=30).contains(&prefix) && !all.contains(&network) {
            all.push(network);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n\
            wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0\n\
            ppp0\t08080808\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            br0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            odd\n";
        let found: Vec<String> = of_table(table).iter().map(Network::to_string).collect();
        assert_eq!(found, ["192.168.1.0/24", "10.1.0.0/16"]);
        assert!(of_table("").is_empty());
    }

    #[test]
    fn a_network_knows_its_ends() {
        let network = Network::new([192, 168, 5, 77].into(), 22);
        assert_eq!(network.to_string(), "192.168.4.0/22");
        assert_eq!(network.broadcast(), Ipv4Addr::new(192, 168, 7, 255));
        assert!(network.contains([192, 168, 6, 1].into()));
        assert!(!network.contains([192, 168, 8, 1].into()));
    }
}
