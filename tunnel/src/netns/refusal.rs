//! The answer to whoever asks for a port that nobody listens on: a TCP reset (RFC 9293, section 3.10.7.1). Made here, so that the question never
//! reaches the kernel: where the device stands beside the host's own, other programs listen there. Pure; nothing is allocated.

use super::outbound::PADDING_ROOM;
use super::sum::pseudo;

const IP: usize = 40;
const TCP: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const HOPS: u8 = 64;

/// Bytes of a reset.
pub(crate) const REFUSAL_BYTES: usize = IP + TCP;

/// The reset for a packet that asks for a connection, with room for padding behind it; `None`: not plain TCP over IPv6.
pub(crate) fn refusal(packet: &[u8]) -> Option<[u8; REFUSAL_BYTES + PADDING_ROOM]> {
    let header = packet.get(..IP + TCP)?;
    if header[0] >> 4 != 6 || header[6] != 6 {
        return None;
    }
    let flags = header[IP + 13];
    let data = packet.len() - (IP + usize::from(header[IP + 12] >> 4) * 4).min(packet.len());
    let taken = data + usize::from(flags & SYN != 0) + usize::from(flags & FIN != 0);
    let sequence = u32::from_be_bytes(header[IP + 4..IP + 8].try_into().ok()?);
    let acknowledged = sequence.wrapping_add(u32::try_from(taken).ok()?);

    let mut reset = [0; REFUSAL_BYTES + PADDING_ROOM];
    reset[0] = 0x60;
    reset[5] = u8::try_from(TCP).ok()?;
    reset[6] = 6;
    reset[7] = HOPS;
    reset[8..24].copy_from_slice(&header[24..40]);
    reset[24..40].copy_from_slice(&header[8..24]);
    reset[IP..IP + 2].copy_from_slice(&header[IP + 2..IP + 4]);
    reset[IP + 2..IP + 4].copy_from_slice(&header[IP..IP + 2]);
    reset[IP + 8..IP + 12].copy_from_slice(&acknowledged.to_be_bytes());
    reset[IP + 12] = 5 << 4;
    reset[IP + 13] = RST | ACK;
    let sum = pseudo(&reset, TCP).add(&reset[IP..REFUSAL_BYTES]);
    reset[IP + 16..IP + 18].copy_from_slice(&sum.checksum().to_be_bytes());
    Some(reset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(sequence: u32, data: usize) -> Vec<u8> {
        let mut packet = vec![0; IP + TCP + data];
        packet[0] = 0x60;
        packet[6] = 6;
        packet[23] = 2;
        packet[39] = 1;
        packet[IP..IP + 4].copy_from_slice(&[0x9c, 0x40, 0, 22]);
        packet[IP + 4..IP + 8].copy_from_slice(&sequence.to_be_bytes());
        packet[IP + 12] = 5 << 4;
        packet[IP + 13] = SYN;
        packet
    }

    #[test]
    fn the_answer_goes_back_and_acknowledges_the_question() {
        let reset = refusal(&question(u32::MAX, 3)).unwrap();
        assert_eq!((reset[23], reset[39]), (1, 2), "addresses");
        assert_eq!(reset[IP..IP + 4], [0, 22, 0x9c, 0x40], "ports");
        assert_eq!(reset[IP + 8..IP + 12], 3u32.to_be_bytes());
        assert_eq!(reset[IP + 13], RST | ACK);
        let sum = pseudo(&reset, TCP).add(&reset[IP..REFUSAL_BYTES]);
        assert_eq!(sum.folded(), 0xffff);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = refusal(&packet);
        }
    }
}
