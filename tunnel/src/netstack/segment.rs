//! Reads as much of an overlay packet as is needed to find its connection.
//!
//! Only plain TCP over IPv6 passes: no extension headers, no fragments, no other protocol. Lengths
//! and checksums are the stack's business.

use std::net::Ipv6Addr;

use crate::drops::DropReason;

const IPV6_HEADER_BYTES: usize = 40;
const TCP_HEADER_BYTES: usize = 20;
const TCP: u8 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The local and the remote port: a connection's name within its peer.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct PortPair {
    pub(crate) local: u16,
    pub(crate) remote: u16,
}

/// What an incoming TCP segment is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) destination: Ipv6Addr,
    pub(crate) ports: PortPair,
    /// Asks for a new connection.
    pub(crate) opens: bool,
}

impl Segment {
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        if packet.len() < IPV6_HEADER_BYTES + TCP_HEADER_BYTES {
            return Err(DropReason::NotTcp);
        }
        let (ip, tcp) = packet.split_at(IPV6_HEADER_BYTES);
        if ip[0] >> 4 != 6 || ip[6] != TCP {
            return Err(DropReason::NotTcp);
        }
        let destination = ip
            .get(24..40)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .map(Ipv6Addr::from)
            .ok_or(DropReason::NotTcp)?;
        let ports = PortPair {
            remote: u16::from_be_bytes([tcp[0], tcp[1]]),
            local: u16::from_be_bytes([tcp[2], tcp[3]]),
        };
        Ok(Self {
            destination,
            ports,
            opens: tcp[13] & (SYN | RST | ACK) == SYN,
        })
    }
}

/// Whether a packet of ours makes a living peer answer: data, or the start or end of a stream.
/// A bare acknowledgement or a reset does not. Whether one of QUIC's does, only QUIC knows.
pub(crate) fn expects_answer(packet: &[u8]) -> bool {
    let Some(tcp) = packet.get(IPV6_HEADER_BYTES..) else {
        return false;
    };
    if packet[6] != TCP || tcp.len() < TCP_HEADER_BYTES {
        return false;
    }
    let header = usize::from(tcp[12] >> 4) * 4;
    tcp[13] & RST == 0 && (tcp.len() > header || tcp[13] & (SYN | FIN) != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(protocol: u8, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6] = protocol;
        packet[39] = 1;
        packet[40..44].copy_from_slice(&[0x1f, 0x90, 0x00, 0x50]);
        packet[53] = flags;
        packet
    }

    #[test]
    fn ports_and_intent_are_read() {
        let segment = Segment::parse(&packet(TCP, SYN)).unwrap();
        assert_eq!(
            segment.ports,
            PortPair {
                local: 80,
                remote: 8080
            }
        );
        assert_eq!(segment.destination, "::1".parse::<Ipv6Addr>().unwrap());
        assert!(segment.opens);
        assert!(!Segment::parse(&packet(TCP, SYN | ACK)).unwrap().opens);
    }

    #[test]
    fn fragments_extension_headers_and_other_protocols_are_refused() {
        for protocol in [0, 17, 43, 44, 51, 58, 60] {
            assert_eq!(
                Segment::parse(&packet(protocol, SYN)),
                Err(DropReason::NotTcp),
                "{protocol}"
            );
        }
    }

    #[test]
    fn only_what_a_living_peer_acknowledges_expects_an_answer() {
        let with = |flags, payload: usize| {
            let mut packet = packet(TCP, flags);
            packet[52] = 5 << 4;
            packet.resize(60 + payload, 0);
            expects_answer(&packet)
        };
        assert!(with(SYN, 0) && with(FIN | ACK, 0) && with(ACK, 1));
        assert!(!with(ACK, 0) && !with(RST, 0) && !with(RST | ACK, 0));
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_parser_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Segment::parse(&packet);
            let _ = expects_answer(&packet);
        }
    }
}
