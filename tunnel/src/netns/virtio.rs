//! The ten bytes that the kernel puts in front of every packet of a TUN with offloads (virtio specification, section 5.1.6, as
//! `struct virtio_net_hdr` in native byte order). Pure.

pub(crate) const HEADER_BYTES: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_V6: u8 = 4;
const IPV6_HEADER_BYTES: u16 = 40;
/// Where the checksum is in a TCP header.
const CHECKSUM_OFFSET: u16 = 16;

/// What the kernel says about a packet it hands over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Header {
    /// The checksum is only begun: it covers the pseudo-header.
    pub(super) needs_checksum: bool,
    /// Payload bytes in each segment, when the packet is more than one.
    pub(super) segment: Option<u16>,
}

impl Header {
    /// `None`: not something that a TCP socket of ours sends.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let segment = match bytes[1] {
            GSO_NONE => None,
            GSO_TCP_V6 => Some(number(4)).filter(|size| *size > 0),
            _ => return None,
        };
        let needs_checksum = bytes[0] & NEEDS_CHECKSUM != 0;
        if needs_checksum && (number(6), number(8)) != (IPV6_HEADER_BYTES, CHECKSUM_OFFSET) {
            return None;
        }
        Some(Self {
            needs_checksum,
            segment,
        })
    }

    /// For a TCP packet whose checksum field holds the folded pseudo-header: the AEAD tag has authenticated it, so that the kernel need not sum
    /// it again. `segment`: what the merged packets carried each.
    pub(super) fn to_bytes(header_length: u16, segment: Option<u16>) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = NEEDS_CHECKSUM;
        if let Some(segment) = segment {
            bytes[1] = GSO_TCP_V6;
            bytes[4..6].copy_from_slice(&segment.to_ne_bytes());
        }
        bytes[2..4].copy_from_slice(&header_length.to_ne_bytes());
        bytes[6..8].copy_from_slice(&IPV6_HEADER_BYTES.to_ne_bytes());
        bytes[8..10].copy_from_slice(&CHECKSUM_OFFSET.to_ne_bytes());
        bytes
    }
}
