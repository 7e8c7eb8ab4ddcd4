//! One peer of the core.

use std::time::{Duration, Instant};

use super::inside::Inside;
use super::pmtu::Pmtu;
use super::pulse::Pulse;
use super::race::Race;
use crate::board::Notice;
use crate::wg::PeerId;
use crate::wg::session::Session;

/// What was sent before keys changed is still taken for so long: `REJECT_AFTER_TIME` of the WireGuard paper, section 6.1.
const OLD_MAX: Duration = Duration::from_mins(3);

/// What a change of sessions leaves behind.
pub(super) struct Promoted {
    pub(super) forgotten: Option<Session>,
}

/// One peer: its session, and the connections inside it.
pub(super) struct Member {
    /// What is sent goes through this one.
    pub(super) session: Session,
    /// With other keys: takes over with the first word that the peer says in it.
    pub(super) next: Option<Session>,
    /// Until when the one before is still heard.
    pub(super) old: Option<(Session, Instant)>,
    pub(super) inside: Inside,
    /// The connections know that there is a session.
    pub(super) open: bool,
    /// Whether the peer still answers.
    pub(super) pulse: Pulse,
    /// How large its packets may be.
    pub(super) pmtu: Pmtu,
    /// Whether a carrier is wanted; only for a peer that we keep a session with.
    pub(super) race: Race,
    /// When the board was told last.
    pub(super) posted_at: Instant,
}

impl Member {
    /// The session that a datagram names.
    pub(super) fn session_mut(&mut self, id: PeerId) -> Option<&mut Session> {
        let old = self.old.as_mut().map(|(session, _until)| session);
        [Some(&mut self.session), self.next.as_mut(), old]
            .into_iter()
            .flatten()
            .find(|session| session.id() == id)
    }

    /// Lets the next session take over if the peer has spoken in it just now. Returns a session that is nobody's any more.
    pub(super) fn promote(&mut self, now: Instant) -> Option<Promoted> {
        let spoke = |next: &mut Session| next.is_established() && next.last_heard() == Some(now);
        let mut session = self.next.take_if(spoke)?;
        session.carry_on(&self.session);
        let before = std::mem::replace(&mut self.session, session);
        let older = self.old.replace((before, now + OLD_MAX));
        Some(Promoted {
            forgotten: older.map(|(session, _until)| session),
        })
    }

    /// The session before this one, once its time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Session> {
        let over = |(_, until): &mut (Session, Instant)| now >= *until;
        self.old.take_if(over).map(|(session, _until)| session)
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let old = self.old.as_ref().map(|(session, _until)| session);
        [Some(&self.session), self.next.as_ref(), old]
            .into_iter()
            .flatten()
    }

    /// What the board shows about the peer.
    pub(super) fn notice(&self, now: Instant) -> Notice {
        let (rx_bytes, tx_bytes) = self.session.bytes();
        Notice {
            public_key: self.session.peer().public_key,
            path: self.session.paths().current(),
            mtu: self.session.mtu(),
            handshake_at: self
                .session
                .since_handshake()
                .and_then(|age| now.checked_sub(age)),
            heard_at: self.session.last_heard(),
            rx_bytes,
            tx_bytes,
            streams: self.inside.len(),
            round_trip: self.pulse.round_trip(),
        }
    }
}
