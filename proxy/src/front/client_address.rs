//! Whose address a request counts for. Believes forwarding headers from configured proxies only, from right to left, and
//! stops at the first address that is not one of them: whatever stands further left the client wrote itself. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use config::settings::proxy::Cidr;

/// The unit in which addresses are counted: one IPv4 address or one IPv6 /64, since a home gets at least a /64.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Subnet(IpAddr);

impl Subnet {
    /// The subnet an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            v4 @ IpAddr::V4(_) => Self(v4),
            IpAddr::V6(v6) => Self(IpAddr::V6(Ipv6Addr::from_bits(
                v6.to_bits() & !u128::from(u64::MAX),
            ))),
        }
    }
}

/// The client's address: the peer's, unless the peer is trusted to say otherwise.
pub(crate) fn client_address(peer: IpAddr, trusted: &[Cidr], fields: &[(&str, &[u8])]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_within(peer, trusted) {
        return peer;
    }
    let values = |wanted: &'static str| {
        fields
            .iter()
            .filter(move |field| field.0.eq_ignore_ascii_case(wanted))
            .map(|field| field.1)
    };
    let plain = walk(peer, trusted, values("x-forwarded-for"), parse_address);
    let standard = walk(peer, trusted, values("forwarded"), parse_forwarded);
    match (plain, standard) {
        (Some(address), None) | (None, Some(address)) => address,
        (Some(one), Some(other)) if one == other => one,
        // a proxy that writes one of the two leaves the other to the client: believe neither
        (Some(_), Some(_)) | (None, None) => peer,
    }
}

/// From right to left while the addresses are trusted; `None` if the header is not there at all.
fn walk<'a>(
    peer: IpAddr,
    trusted: &[Cidr],
    values: impl Iterator<Item = &'a [u8]>,
    parse: fn(&str) -> Option<IpAddr>,
) -> Option<IpAddr> {
    let values: Vec<&[u8]> = values.collect();
    if values.is_empty() {
        return None;
    }
    let mut address = peer;
    for element in values
        .iter()
        .rev()
        .flat_map(|value| value.rsplit(|&byte| byte == b','))
    {
        let parsed = std::str::from_utf8(element)
            .ok()
            .map(str::trim)
            .and_then(parse);
        let Some(next) = parsed else { break };
        address = next.to_canonical();
        if !is_within(address, trusted) {
            break;
        }
    }
    Some(address)
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .or_else(|| bracketed?.parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

/// The `for` of one element of RFC 7239's `Forwarded`.
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    let pair = element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    let quoted = pair
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    parse_address(quoted.unwrap_or(pair))
}

/// Whether one of the ranges holds the address.
pub(super) fn is_within(address: IpAddr, ranges: &[Cidr]) -> bool {
    ranges.iter().any(|range| contains(range, address))
}

fn contains(range: &Cidr, address: IpAddr) -> bool {
    let (base, bits, prefix) = match (range.address, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => (
            u128::from(base.to_bits()) << 96,
            u128::from(address.to_bits()) << 96,
            range.prefix.min(32),
        ),
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            (base.to_bits(), address.to_bits(), range.prefix.min(128))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    base & mask == bits & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRUSTED: [Cidr; 2] = [
        Cidr {
            address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 0)),
            prefix: 8,
        },
        Cidr {
            address: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)),
            prefix: 8,
        },
    ];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn of(peer: &str, fields: &[(&str, &str)]) -> IpAddr {
        let fields: Vec<(&str, &[u8])> = fields
            .iter()
            .map(|field| (field.0, field.1.as_bytes()))
            .collect();
        client_address(ip(peer), &TRUSTED, &fields)
    }

    #[test]
    fn a_stranger_cannot_say_who_it_is() {
        assert_eq!(
            of("203.0.113.9", &[("X-Forwarded-For", "1.1.1.1")]),
            ip("203.0.113.9")
        );
        assert_eq!(
            of("203.0.113.9", &[("Forwarded", "for=1.1.1.1")]),
            ip("203.0.113.9")
        );
    }

    #[test]
    fn a_trusted_chain_is_read_from_the_right() {
        let chain = [
            ("x-forwarded-for", "6.6.6.6, 203.0.113.7"),
            ("x-forwarded-for", "10.1.1.1"),
        ];
        assert_eq!(
            of("10.0.0.1", &chain),
            ip("203.0.113.7"),
            "6.6.6.6 is the client's own invention"
        );
        assert_eq!(
            of("10.0.0.1", &[("x-forwarded-for", "10.0.0.9")]),
            ip("10.0.0.9")
        );
        assert_eq!(
            of("10.0.0.1", &[("x-forwarded-for", "unknown")]),
            ip("10.0.0.1")
        );
        assert_eq!(
            of("10.0.0.1", &[("x-forwarded-for", "203.0.113.7:99")]),
            ip("203.0.113.7")
        );
        let v6 = "for=evil, For=\"[2001:db8::1]:47\";proto=https";
        assert_eq!(
            of("::ffff:10.0.0.1", &[("Forwarded", v6)]),
            ip("2001:db8::1")
        );
    }

    #[test]
    fn two_headers_that_disagree_are_both_ignored() {
        let both = [("x-forwarded-for", "1.1.1.1"), ("forwarded", "for=2.2.2.2")];
        assert_eq!(of("10.0.0.1", &both), ip("10.0.0.1"));
    }

    #[test]
    fn an_ipv6_home_is_one_client() {
        assert_eq!(
            Subnet::of(ip("2001:db8::1")),
            Subnet::of(ip("2001:db8::ffff:1"))
        );
        assert_ne!(
            Subnet::of(ip("2001:db8::1")),
            Subnet::of(ip("2001:db8:0:1::1"))
        );
        assert_eq!(Subnet::of(ip("::ffff:1.2.3.4")), Subnet::of(ip("1.2.3.4")));
    }

    #[test]
    fn the_whole_internet_is_prefix_zero() {
        let all = Cidr {
            address: ip("0.0.0.0"),
            prefix: 0,
        };
        assert!(contains(&all, ip("8.8.8.8")) && !contains(&all, ip("::1")));
    }

    proptest! {
        #[test]
        fn header_soup_never_moves_a_stranger(peer in any::<[u8; 4]>(), soup in ".{0,80}", standard in any::<bool>()) {
            let peer = IpAddr::from(peer);
            let name = if standard { "forwarded" } else { "x-forwarded-for" };
            let found = client_address(peer, &TRUSTED, &[(name, soup.as_bytes())]);
            if !is_within(peer, &TRUSTED) {
                prop_assert_eq!(found, peer);
            }
        }

        #[test]
        fn what_stands_left_of_the_first_stranger_is_never_believed(forged in ".{0,60}", real in any::<[u8; 4]>()) {
            let real = IpAddr::from(real);
            prop_assume!(!is_within(real, &TRUSTED));
            let chain = format!("{forged}, {real}, 10.2.3.4");
            let found = client_address(ip("10.0.0.1"), &TRUSTED, &[("x-forwarded-for", chain.as_bytes())]);
            prop_assert_eq!(found, real);
        }
    }
}
