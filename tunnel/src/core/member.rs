//! One peer of the core.

use std::time::Instant;

use crate::board::Notice;
use crate::netstack::stack::Stack;
use crate::wg::session::Session;

/// One peer: its session, and the connections inside it.
pub(super) struct Member {
    pub(super) session: Session,
    pub(super) stack: Stack,
    /// The connections know that there is a session.
    pub(super) open: bool,
}

impl Member {
    /// What the board shows about the peer.
    pub(super) fn notice(&self, now: Instant) -> Notice {
        let (rx_bytes, tx_bytes) = self.session.bytes();
        Notice {
            public_key: self.session.peer().public_key,
            endpoint: self.session.endpoint(),
            handshake_at: self
                .session
                .since_handshake()
                .and_then(|age| now.checked_sub(age)),
            heard_at: self.session.last_heard(),
            rx_bytes,
            tx_bytes,
            streams: self.stack.len(),
        }
    }
}
