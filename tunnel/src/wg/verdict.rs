//! Reads boringtun's answers.

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use crate::drops::Drop;

/// How many bytes boringtun has written for the wire.
pub(crate) fn written(result: &TunnResult<'_>) -> usize {
    match result {
        TunnResult::WriteToNetwork(datagram) => datagram.len(),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => 0,
    }
}

/// Why boringtun refused a datagram.
pub(crate) fn reason(error: &WireGuardError) -> Drop {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp => Drop::Replayed,
        WireGuardError::WrongIndex
        | WireGuardError::NoCurrentSession
        | WireGuardError::UnexpectedPacket => Drop::UnknownPeer,
        WireGuardError::InvalidMac => Drop::BadMac,
        WireGuardError::UnderLoad => Drop::Limited,
        WireGuardError::WrongKey | WireGuardError::InvalidAeadTag => Drop::Unauthentic,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed
        | WireGuardError::ConnectionExpired => Drop::Malformed,
    }
}
