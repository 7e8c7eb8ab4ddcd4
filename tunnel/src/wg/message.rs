//! Reads the fixed head of a WireGuard datagram, before any cryptography.
//!
//! Message formats: WireGuard paper, section 5.4. Nothing here trusts a byte it has not counted.

use super::PeerId;
use crate::drops::DropReason;

pub(crate) const INITIATION_BYTES: usize = 148;
const RESPONSE_BYTES: usize = 92;
const COOKIE_BYTES: usize = 64;
/// Head and tag of a data message with an empty packet.
const DATA_BYTES_MIN: usize = 32;
/// `REJECT_AFTER_MESSAGES` of the paper, section 6.1. boringtun does not enforce it, and its replay
/// window adds to the counter without a check.
const COUNTER_MAX: u64 = u64::MAX - (1 << 13) - 1;

/// What kind of message a datagram claims to be, and whom it claims to be for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    Initiation,
    Response(PeerId),
    Cookie(PeerId),
    Data(PeerId),
}

impl Message {
    /// Reads type, length, receiver and counter.
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let kind = word(datagram, 0).ok_or(DropReason::Malformed)?;
        match (kind, datagram.len()) {
            (1, INITIATION_BYTES) => Ok(Self::Initiation),
            (2, RESPONSE_BYTES) => receiver(datagram, 8).map(Self::Response),
            (3, COOKIE_BYTES) => receiver(datagram, 4).map(Self::Cookie),
            (4, DATA_BYTES_MIN..) => {
                let counter = datagram
                    .get(8..16)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(u64::from_le_bytes)
                    .ok_or(DropReason::Malformed)?;
                if counter >= COUNTER_MAX {
                    return Err(DropReason::CounterExhausted);
                }
                receiver(datagram, 4).map(Self::Data)
            }
            (_, _) => Err(DropReason::Malformed),
        }
    }
}

fn receiver(datagram: &[u8], offset: usize) -> Result<PeerId, DropReason> {
    word(datagram, offset)
        .map(PeerId::of_receiver)
        .ok_or(DropReason::Malformed)
}

fn word(datagram: &[u8], offset: usize) -> Option<u32> {
    let bytes = datagram.get(offset..offset + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(counter: u64) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0, 0, 0xcd, 0xab, 0x12];
        datagram.extend_from_slice(&counter.to_le_bytes());
        datagram.resize(DATA_BYTES_MIN, 0);
        datagram
    }

    #[test]
    fn a_data_message_names_the_peer_above_the_session_bits() {
        let peer = PeerId::of_receiver(0x12ab_cd00);
        assert_eq!(Message::parse(&data(7)), Ok(Message::Data(peer)));
    }

    #[test]
    fn a_counter_near_its_end_is_refused_before_decryption() {
        for counter in [COUNTER_MAX, u64::MAX - 1, u64::MAX] {
            assert_eq!(
                Message::parse(&data(counter)),
                Err(DropReason::CounterExhausted)
            );
        }
        assert!(Message::parse(&data(COUNTER_MAX - 1)).is_ok());
    }

    #[test]
    fn reserved_bytes_and_wrong_lengths_are_malformed() {
        let mut reserved = data(0);
        reserved[1] = 1;
        assert_eq!(Message::parse(&reserved), Err(DropReason::Malformed));
        for (kind, len) in [
            (1u8, 147),
            (1, 149),
            (2, 91),
            (3, 65),
            (4, 31),
            (0, 64),
            (5, 64),
        ] {
            let mut datagram = vec![0; len];
            datagram[0] = kind;
            assert_eq!(
                Message::parse(&datagram),
                Err(DropReason::Malformed),
                "type {kind} length {len}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_datagram_makes_the_parser_panic(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&datagram);
        }
    }
}
