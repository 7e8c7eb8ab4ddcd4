//! Reads boringtun's answers.

use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;

use crate::drops::DropReason;

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
pub(crate) fn reason(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp => DropReason::Replayed,
        WireGuardError::WrongIndex
        | WireGuardError::NoCurrentSession
        | WireGuardError::UnexpectedPacket => DropReason::UnknownPeer,
        WireGuardError::InvalidMac => DropReason::BadMac,
        WireGuardError::UnderLoad => DropReason::Limited,
        WireGuardError::WrongKey | WireGuardError::InvalidAeadTag => DropReason::Unauthentic,
        WireGuardError::DestinationBufferTooSmall
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::InvalidPacket
        | WireGuardError::LockFailed
        | WireGuardError::ConnectionExpired => DropReason::Malformed,
    }
}
