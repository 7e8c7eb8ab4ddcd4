//! The packets between two ends of ours that are not TCP: UDP to one port, either QUIC, half of a packet of QUIC's, or a word about who we are.
//! No state, no decisions.
//!
//! The UDP checksum is zero, as RFC 6935 allows for what travels inside something that authenticates it. Whoever is not of ours drops
//! such packets, and never answers the word.

use std::net::Ipv6Addr;

/// The overlay port of both sides.
pub(super) const PORT: u16 = 51_821;
const IPV6_HEADER_BYTES: usize = 40;
/// IPv6 and UDP.
pub(super) const HEADER_BYTES: usize = IPV6_HEADER_BYTES + 8;
const UDP: u8 = 17;
/// QUIC's packets have the bit 0x40 in their first byte (RFC 9000, section 17), a word has not.
const QUIC_BIT: u8 = 0x40;
const WORD: u8 = 0x01;
const FIRST: u8 = 0x02;
const SECOND: u8 = 0x03;
/// Which half, and of what.
const HALF_HEADER_BYTES: usize = 5;
const VERSION: u8 = 1;
const EMBEDDED: u8 = 1;
const ASKS: u8 = 2;
/// Kind, version, flags, nothing, life.
pub(super) const WORD_BYTES: usize = 12;

/// What one end says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Word {
    /// Changes whenever the end has forgotten its connections.
    pub(super) life: u64,
    /// Its own TCP is the embedded one.
    pub(super) embedded: bool,
    /// It wants to be told the same.
    pub(super) asks: bool,
}

/// What came.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Parcel<'a> {
    Word(Word),
    Quic(&'a [u8]),
    Half(Half<'a>),
}

/// Half of a packet of QUIC's that is larger than what the path carries: QUIC itself never makes them small enough for every path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Half<'a> {
    /// The same in both halves, and for a long time in no others.
    pub(super) number: u32,
    pub(super) is_first: bool,
    pub(super) bytes: &'a [u8],
}

impl<'a> Half<'a> {
    /// Both halves of a packet.
    pub(super) fn both(number: u32, packet: &'a [u8]) -> [Self; 2] {
        let (first, second) = packet.split_at(packet.len().div_ceil(2));
        [(true, first), (false, second)].map(|(is_first, bytes)| Self {
            number,
            is_first,
            bytes,
        })
    }

    /// Writes it as a payload; `None`: it does not fit.
    pub(super) fn write(self, room: &mut [u8]) -> Option<usize> {
        let length = HALF_HEADER_BYTES + self.bytes.len();
        let (head, rest) = room.get_mut(..length)?.split_at_mut(HALF_HEADER_BYTES);
        head[0] = if self.is_first { FIRST } else { SECOND };
        head[1..].copy_from_slice(&self.number.to_be_bytes());
        rest.copy_from_slice(self.bytes);
        Some(length)
    }

    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (head, bytes) = payload.split_at_checked(HALF_HEADER_BYTES)?;
        Some(Self {
            number: u32::from_be_bytes(head.get(1..)?.try_into().ok()?),
            is_first: head.first() == Some(&FIRST),
            bytes,
        })
    }
}

impl Word {
    pub(super) fn bytes(self) -> [u8; WORD_BYTES] {
        let mut bytes = [0; WORD_BYTES];
        bytes[0] = WORD;
        bytes[1] = VERSION;
        bytes[2] = (u8::from(self.embedded) * EMBEDDED) | (u8::from(self.asks) * ASKS);
        bytes[4..].copy_from_slice(&self.life.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // A later version says the same in its first bytes, and more behind them.
        let bytes: [u8; WORD_BYTES] = bytes.get(..WORD_BYTES)?.try_into().ok()?;
        let [WORD, _version, flags, _, life @ ..] = bytes else {
            return None;
        };
        Some(Self {
            life: u64::from_be_bytes(life),
            embedded: flags & EMBEDDED != 0,
            asks: flags & ASKS != 0,
        })
    }
}

/// Whether an overlay packet is for this room.
pub(crate) fn is_ours(packet: &[u8]) -> bool {
    packet.len() > HEADER_BYTES
        && packet[0] >> 4 == 6
        && packet[6] == UDP
        && packet[IPV6_HEADER_BYTES + 2..IPV6_HEADER_BYTES + 4] == PORT.to_be_bytes()
}

/// What is in a packet for which [`is_ours`] holds and that is for `own`; `None`: nothing that we know.
pub(super) fn open(packet: &[u8], own: Ipv6Addr) -> Option<Parcel<'_>> {
    let destination: [u8; 16] = packet.get(24..IPV6_HEADER_BYTES)?.try_into().ok()?;
    if Ipv6Addr::from(destination) != own {
        return None;
    }
    let payload = packet.get(HEADER_BYTES..)?;
    match *payload.first()? {
        first if first & QUIC_BIT != 0 => Some(Parcel::Quic(payload)),
        WORD => Word::parse(payload).map(Parcel::Word),
        FIRST | SECOND => Half::parse(payload).map(Parcel::Half),
        _ => None,
    }
}

/// Writes both headers before a payload of `length` bytes, which is in its place already. Returns the packet's length.
pub(super) fn close(
    packet: &mut [u8],
    length: usize,
    (own, peer): (Ipv6Addr, Ipv6Addr),
) -> Option<usize> {
    let (ip, rest) = packet.split_at_mut_checked(IPV6_HEADER_BYTES)?;
    let udp = rest.get_mut(..8)?;
    let udp_length = u16::try_from(length + 8).ok()?;
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, UDP, 64]);
    ip[4..6].copy_from_slice(&udp_length.to_be_bytes());
    ip[8..24].copy_from_slice(&own.octets());
    ip[24..40].copy_from_slice(&peer.octets());
    udp[..2].copy_from_slice(&PORT.to_be_bytes());
    udp[2..4].copy_from_slice(&PORT.to_be_bytes());
    udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
    udp[6..].fill(0);
    Some(HEADER_BYTES + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const PEER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER_BYTES + payload.len()];
        packet[HEADER_BYTES..].copy_from_slice(payload);
        assert_eq!(
            close(&mut packet, payload.len(), (PEER, OWN)),
            Some(HEADER_BYTES + payload.len())
        );
        packet
    }

    proptest! {
        #[test]
        fn a_word_arrives_as_it_was_said(life in any::<u64>(), embedded in any::<bool>(), asks in any::<bool>()) {
            let word = Word { life, embedded, asks };
            let packet = packet(&word.bytes());
            prop_assert!(is_ours(&packet));
            prop_assert_eq!(open(&packet, OWN), Some(Parcel::Word(word)));
            prop_assert_eq!(open(&packet, PEER), None, "for somebody else");
        }

        #[test]
        fn what_is_quic_is_left_as_it_is(mut payload in proptest::collection::vec(any::<u8>(), 1..200)) {
            payload[0] |= QUIC_BIT;
            let packet = packet(&payload);
            prop_assert_eq!(open(&packet, OWN), Some(Parcel::Quic(&payload[..])));
        }

        #[test]
        fn two_halves_are_the_whole(number in any::<u32>(), payload in proptest::collection::vec(any::<u8>(), 1..1_500)) {
            let mut whole = Vec::new();
            for half in Half::both(number, &payload) {
                let mut room = [0; 1_000];
                let length = half.write(&mut room).unwrap();
                prop_assert!(length <= HALF_HEADER_BYTES + payload.len().div_ceil(2));
                let packet = packet(&room[..length]);
                prop_assert_eq!(open(&packet, OWN), Some(Parcel::Half(half)));
                whole.extend_from_slice(half.bytes);
            }
            prop_assert_eq!(whole, payload);
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            if is_ours(&packet) {
                let _ = open(&packet, OWN);
            }
        }
    }
}
