//! One peer of the core.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inside::Inside;
use super::ledger::Bytes;
use super::pmtu::Pmtu;
use super::pulse::Pulse;
use super::race::Race;
use crate::board::Notice;
use crate::drops::{DropReason, Drops};
use crate::wg::PeerId;
use crate::wg::session::Session;
use crate::wheel::Place;

/// What was sent before keys changed is still taken for so long: `REJECT_AFTER_TIME` of the WireGuard paper, section 6.1.
const OLD_MAX: Duration = Duration::from_mins(3);

/// What a change of sessions leaves behind.
pub(super) struct Promoted {
    pub(super) forgotten: Option<Box<(Session, Instant)>>,
}

/// One peer: its session, and the connections inside it.
pub(super) struct Member {
    /// What is sent goes through this one.
    pub(super) session: Session,
    /// With other keys: takes over with the first word that the peer says in it.
    pub(super) next: Option<Box<Session>>,
    /// Until when the one before is still heard.
    pub(super) old: Option<Box<(Session, Instant)>>,
    pub(super) inside: Inside,
    /// The connections know that there is a session.
    pub(super) open: bool,
    /// Whether the peer still answers.
    pub(super) pulse: Pulse,
    /// How large its packets may be.
    pub(super) pmtu: Pmtu,
    /// The path has become narrower: what was too large for it is lost.
    pub(super) narrowed: bool,
    /// Whether a carrier is wanted; only for a peer that we keep a session with.
    pub(super) race: Option<Box<Race>>,
    /// When the board was told last.
    pub(super) posted_at: Instant,
    /// Where the core expects its handshakes from, as in [`super::Core::by_path`].
    pub(super) expected: Option<u64>,
    /// When to look at it again.
    pub(super) place: Place,
    /// Overlay bytes received, in all sessions.
    pub(super) rx_bytes: u64,
    /// Overlay bytes sent before there was this session.
    pub(super) tx_before: u64,
    /// What was refused, once something was.
    pub(super) rejected: Option<Arc<Drops>>,
}

impl Member {
    /// The session that a datagram names.
    pub(super) fn session_mut(&mut self, id: PeerId) -> Option<&mut Session> {
        let old = self.old.as_mut().map(|old| &mut old.0);
        [Some(&mut self.session), self.next.as_deref_mut(), old]
            .into_iter()
            .flatten()
            .find(|session| session.id() == id)
    }

    /// Lets the next session take over if the peer has spoken in it just now. Returns a session that is nobody's any more.
    pub(super) fn promote(&mut self, now: Instant) -> Option<Promoted> {
        let spoke =
            |next: &mut Box<Session>| next.is_established() && next.last_heard() == Some(now);
        let mut session = self.next.take_if(spoke)?;
        session.carry_on(&self.session);
        let before = std::mem::replace(&mut self.session, *session);
        let forgotten = self.old.replace(Box::new((before, now + OLD_MAX)));
        Some(Promoted { forgotten })
    }

    /// The session before this one, once its time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Box<(Session, Instant)>> {
        self.old.take_if(|old| now >= old.1)
    }

    /// When this peer must be looked at again, if nothing happens until then.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let dates = [
            Some(self.session.due(self.inside.is_wanted(), now)),
            self.next.as_ref().map(|next| next.due(false, now)),
            self.old.as_ref().map(|old| old.1),
            self.ways_due(now),
        ];
        dates.into_iter().flatten().min().unwrap_or(now)
    }

    /// Overlay bytes since the peer was first known.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes {
            rx: self.rx_bytes,
            tx: self.tx_before + self.session.tx_bytes(),
        }
    }

    /// Counts something of this peer that was refused.
    pub(super) fn count(&mut self, reason: DropReason) {
        self.rejected.get_or_insert_default().count(reason);
    }

    /// All sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Session> {
        let old = self.old.as_ref().map(|old| &old.0);
        [Some(&self.session), self.next.as_deref(), old]
            .into_iter()
            .flatten()
    }

    /// What the board shows about the peer.
    pub(super) fn notice(&self, now: Instant) -> Notice {
        let bytes = self.bytes();
        Notice {
            public_key: self.session.peer().public_key,
            path: self.session.paths().current(),
            mtu: u16::try_from(self.session.mtu()).unwrap_or(u16::MAX),
            handshake_at: self
                .session
                .since_handshake()
                .and_then(|age| now.checked_sub(age)),
            heard_at: self.session.last_heard(),
            rx_bytes: bytes.rx,
            tx_bytes: bytes.tx,
            streams: self.inside.len(),
            round_trip: self.pulse.round_trip(),
            loss_per_mille: self.pulse.loss_per_mille(),
            rejected: self.rejected.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use boringtun::noise::Tunn;

    use super::*;
    use crate::wg::PeerId;

    /// What the heap and the tables add to it, the example `hub` measures.
    #[test]
    fn an_idle_peer_takes_less_than_twelve_kibibytes() {
        let tables = size_of::<(PeerId, Box<Member>)>()
            + size_of::<(Ipv6Addr, PeerId)>()
            + size_of::<([u8; 32], PeerId)>()
            + size_of::<(u64, PeerId)>()
            + size_of::<(Ipv6Addr, Box<Notice>)>()
            + size_of::<Notice>();
        let own = size_of::<Member>() + tables;
        assert!(own <= 1_250, "{own} bytes of ours");
        assert!(own + size_of::<Tunn>() <= 12 * 1024);
    }
}
