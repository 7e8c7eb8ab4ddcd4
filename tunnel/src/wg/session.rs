//! One peer's WireGuard session: boringtun's `Tunn` plus what it leaves to its user.
//!
//! - initiations follow our own schedule ([`Retry`]) and never cease while somebody wants a session;
//! - nothing is encapsulated without a session, so boringtun never queues packets;
//! - packets are padded to 16 bytes, so that their length says less;
//! - the path moves only on authenticated data, or on the answer to a handshake of ours ([`Paths`]): a
//!   replayed initiation or a cookie cannot redirect a peer;
//! - a TCP packet larger than the path carries is cut into several: both ends of a connection go on as before;
//! - data that stays unanswered for 2 s starts a handshake, since everything inside is TCP and a
//!   living peer acknowledges within a round trip.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use super::PeerId;
use super::message::Message;
use super::paths::{Paths, Position};
use super::retry::Retry;
use super::verdict::{reason, written};
use crate::drops::DropReason;
use crate::keys::{PresharedKey, PrivateKey};
use crate::netns::{PADDING_ROOM, cut_to};
use crate::netstack::segment::expects_answer;
use crate::outbox::{Outbox, ROOM_MIN};
use crate::path::Path;
use crate::peer::Peer;
use crate::settings::{MTU_MAX, MTU_MIN};

/// Head, counter and tag around a packet.
const OVERHEAD_BYTES: usize = 32;
/// WireGuard paper, section 5.4.6.
const PADDING: usize = 16;
/// IPv6's next header of a packet that may be cut.
const TCP: u8 = 6;
/// Echoes that measure the path do not call for a measurement.
const ICMPV6: u8 = 58;
/// `REKEY_AFTER_TIME` of the paper. boringtun rekeys only when it sends data; we also do when idle.
const REKEY_AFTER: Duration = Duration::from_mins(2);
/// Spreads rekeys of peers that started together.
const REKEY_SPREAD: Duration = Duration::from_secs(10);
/// Unanswered data for this long means the other side lost the session: one lost packet is repeated
/// by TCP after a second.
const UNANSWERED_MAX: Duration = Duration::from_secs(2);
/// boringtun keeps at most this many packets while a handshake runs.
const QUEUE_MAX: usize = 256;

/// A datagram off the wire, its head read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram<'a> {
    pub(crate) message: Message,
    pub(crate) source: Path,
    pub(crate) bytes: &'a [u8],
}

/// An authenticated packet for the overlay.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    pub(crate) packet: &'a [u8],
    pub(crate) source: Ipv6Addr,
}

/// One peer's session state.
pub(crate) struct Session {
    id: PeerId,
    tunn: Box<Tunn>,
    peer: Peer,
    paths: Paths,
    /// Larger overlay packets are cut.
    mtu: usize,
    /// When a packet was sent that only tells the width of the path when it is missed.
    wide_at: Option<Instant>,
    retry: Retry,
    /// Cached answer of boringtun: asking costs a clock read.
    established: bool,
    /// A handshake asked for from outside and not made yet.
    forced: bool,
    last_sent: Instant,
    last_heard: Option<Instant>,
    unanswered_since: Option<Instant>,
    sessionless_since: Option<Instant>,
    /// The peer is back after data went unanswered: what it was sent meanwhile is lost.
    renewed: bool,
    /// The operator has been told why there is no session.
    complained: bool,
    rx_bytes: u64,
    tx_bytes: u64,
}

impl Session {
    pub(crate) fn new(
        id: PeerId,
        peer: Peer,
        private: &PrivateKey,
        mac: Arc<RateLimiter>,
        now: Instant,
    ) -> Self {
        let tunn = Tunn::new(
            private.secret().clone(),
            x25519_dalek::PublicKey::from(peer.public_key.to_bytes()),
            peer.preshared_key.as_ref().map(PresharedKey::to_bytes),
            None,
            id.index(),
            Some(mac),
        );
        Self {
            id,
            tunn: Box::new(tunn),
            paths: Paths::new(peer.endpoint),
            mtu: MTU_MAX,
            wide_at: None,
            peer,
            retry: Retry::default(),
            established: false,
            forced: false,
            last_sent: now,
            last_heard: None,
            unanswered_since: None,
            sessionless_since: Some(now),
            renewed: false,
            complained: false,
            rx_bytes: 0,
            tx_bytes: 0,
        }
    }

    /// What the peer puts above the session number of the receiver index.
    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    /// Goes on where a session with other keys leaves off: only the keys are new.
    pub(crate) fn carry_on(&mut self, before: &Self) {
        self.rx_bytes += before.rx_bytes;
        self.tx_bytes += before.tx_bytes;
        self.follow(before);
    }

    /// Takes over the ways to the peer.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.paths.follow(&before.paths);
        self.mtu = before.mtu;
        self.wide_at = before.wide_at;
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) const fn paths(&self) -> &Paths {
        &self.paths
    }

    pub(crate) const fn paths_mut(&mut self) -> &mut Paths {
        &mut self.paths
    }

    /// Packets larger than this are cut from here on.
    pub(crate) const fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    pub(crate) const fn mtu(&self) -> usize {
        self.mtu
    }

    /// When a packet was sent last that a narrow path would lose.
    pub(crate) const fn wide_at(&self) -> Option<Instant> {
        self.wide_at
    }

    /// For how long it has been doubtful that the path works: data is unanswered, or a handshake.
    pub(crate) fn doubt(&self, now: Instant) -> Duration {
        let since = |at: Instant| now.duration_since(at);
        let tried = self.retry.since().map_or(Duration::ZERO, since);
        self.unanswered(now).max(tried)
    }

    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.rx_bytes, self.tx_bytes)
    }

    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// How long the peer owes an answer.
    pub(crate) fn unanswered(&self, now: Instant) -> Duration {
        self.unanswered_since
            .map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    pub(crate) fn since_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }

    /// How long there has been no session.
    pub(crate) fn sessionless(&self, now: Instant) -> Duration {
        self.sessionless_since
            .map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// Whether the peer has come back since the last call, having missed what it was sent.
    pub(crate) fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// Takes over settings that need no new session: the keys are the same.
    pub(crate) fn adopt(&mut self, peer: Peer) {
        if let Some(endpoint) = peer.endpoint
            && peer.endpoint != self.peer.endpoint
        {
            let is_used = self.paths.relocate(endpoint);
            self.forced |= peer.initiates && is_used;
        }
        self.peer = peer;
    }

    /// Encrypts `scratch[..len]`, a packet with room for padding behind it, to the peer.
    pub(crate) fn seal(
        &mut self,
        scratch: &mut [u8],
        len: usize,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let (Some(path), true) = (self.paths.current(), self.established) else {
            return;
        };
        if len > MTU_MIN && scratch[6] != ICMPV6 {
            self.wide_at = Some(now);
            if len > self.mtu && scratch[6] == TCP {
                self.seal_cut(&scratch[..len], outbox, now);
                return;
            }
        }
        let padded = len.next_multiple_of(PADDING).min(scratch.len());
        scratch[len..padded].fill(0);
        let tunn = &mut self.tunn;
        outbox.push(path, padded + OVERHEAD_BYTES, |room| {
            written(&tunn.encapsulate(&scratch[..padded], room))
        });
        self.last_sent = now;
        if len > 0 {
            self.tx_bytes += len as u64;
        }
        if expects_answer(&scratch[..len]) {
            self.unanswered_since.get_or_insert(now);
        }
    }

    /// Encrypts a TCP packet that is too large for the path, in pieces.
    fn seal_cut(&mut self, packet: &[u8], outbox: &mut Outbox, now: Instant) {
        let mut room = [0u8; MTU_MAX + PADDING_ROOM];
        let Some(copy) = room.get_mut(..packet.len()) else {
            return;
        };
        copy.copy_from_slice(packet);
        let limit = self.mtu;
        cut_to(&mut room, packet.len(), limit, |piece, len| {
            if len <= limit {
                self.seal(piece, len, outbox, now);
            }
        });
    }

    /// Handles a datagram that claims to belong to this session. `plain` must be at least as long as
    /// the datagram and no shorter than [`ROOM_MIN`]: boringtun panics otherwise.
    pub(crate) fn open<'a>(
        &mut self,
        datagram: &Datagram<'_>,
        plain: &'a mut [u8],
        outbox: &mut Outbox,
        now: Instant,
    ) -> Result<Option<Plain<'a>>, DropReason> {
        let Datagram {
            message,
            source,
            bytes,
        } = *datagram;
        if plain.len() < bytes.len().max(ROOM_MIN) || bytes.is_empty() {
            return Err(DropReason::Malformed);
        }
        match self
            .tunn
            .decapsulate(Some(source.source().ip()), bytes, plain)
        {
            TunnResult::Done => {
                if matches!(message, Message::Data(_)) {
                    self.heard(datagram, now);
                }
                Ok(None)
            }
            TunnResult::WriteToNetwork(reply) => {
                self.answer(datagram, reply, outbox, now);
                Ok(None)
            }
            TunnResult::WriteToTunnelV6(packet, from) => {
                self.heard(datagram, now);
                self.rx_bytes += packet.len() as u64;
                Ok(Some(Plain {
                    packet,
                    source: from,
                }))
            }
            TunnResult::WriteToTunnelV4(..) => {
                self.heard(datagram, now);
                Err(DropReason::NotTcp)
            }
            TunnResult::Err(error) => {
                let reason = reason(&error);
                self.complain(message, reason);
                Err(reason)
            }
        }
    }

    /// Runs boringtun's timers and ours. `wanted` says that streams wait for a session; `jitter` is
    /// uniform in 0..1. Must be called about four times a second.
    pub(crate) fn tick(&mut self, wanted: bool, jitter: f64, outbox: &mut Outbox, now: Instant) {
        let mut room = [0u8; ROOM_MIN];
        match self.tunn.update_timers(&mut room) {
            TunnResult::WriteToNetwork(datagram) => {
                let initiation = matches!(Message::parse(datagram), Ok(Message::Initiation));
                if !initiation {
                    self.transmit(datagram, outbox, now);
                } else if self.retry.is_due(now) {
                    self.transmit(datagram, outbox, now);
                    self.retry.sent(jitter, now);
                }
            }
            // ConnectionExpired is reported for ever once it happened; `wants_handshake` below is
            // what brings the session back.
            TunnResult::Err(_)
            | TunnResult::Done
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => {}
        }
        self.refresh(now);
        if self.forced && !self.peer.initiates && self.retry.is_old(now) {
            self.forced = false;
        }
        if self.wants_handshake(wanted, jitter, now) {
            if self.retry.is_due(now) {
                self.initiate(jitter, outbox, now);
            }
        } else {
            self.retry.done();
        }
        self.keep_alive(outbox, now);
    }

    /// Starts a handshake at once, whatever the schedule says.
    pub(crate) fn force(&mut self, jitter: f64, outbox: &mut Outbox, now: Instant) {
        self.forced = true;
        self.initiate(jitter, outbox, now);
    }

    fn wants_handshake(&self, wanted: bool, jitter: f64, now: Instant) -> bool {
        if self.paths.current().is_none() {
            return false;
        }
        if self.forced || (!self.established && (self.peer.initiates || wanted)) {
            return true;
        }
        if !self.peer.initiates || !self.established {
            return false;
        }
        let unanswered = self
            .unanswered_since
            .is_some_and(|since| now.duration_since(since) >= UNANSWERED_MAX);
        let age = self.since_handshake().unwrap_or_default();
        let stale = age >= REKEY_AFTER + REKEY_SPREAD.mul_f64(jitter);
        // A young session with a schedule still running: the peer's own initiation made it.
        let unfinished = self.retry.is_active() && age >= UNANSWERED_MAX;
        unanswered || stale || unfinished
    }

    /// Tries UDP with a handshake while a carrier is used; the answer moves the path. Unanswered, boringtun repeats the handshake after 5 s
    /// over the carrier, so that the session stays.
    pub(crate) fn try_udp(&mut self, outbox: &mut Outbox) {
        if let Some(endpoint) = self.paths.udp() {
            self.initiate_by(Path::Udp(endpoint), outbox);
        }
    }

    /// While the path is in doubt the other one is tried too, with a handshake of its own: a copy of the same would be a replay to the peer,
    /// and the copy that came first may be the one whose answer is lost.
    fn initiate(&mut self, jitter: f64, outbox: &mut Outbox, now: Instant) {
        let other = self.paths.other().filter(|_| self.is_in_doubt());
        for path in [self.paths.current(), other].into_iter().flatten() {
            self.initiate_by(path, outbox);
        }
        self.last_sent = now;
        self.retry.sent(jitter, now);
    }

    fn initiate_by(&mut self, path: Path, outbox: &mut Outbox) {
        let mut room = [0u8; ROOM_MIN];
        if let TunnResult::WriteToNetwork(datagram) =
            self.tunn.format_handshake_initiation(&mut room, true)
        {
            outbox.push_copy(path, datagram);
        }
    }

    fn is_in_doubt(&self) -> bool {
        self.peer.initiates && (!self.established || self.unanswered_since.is_some())
    }

    fn answer(&mut self, datagram: &Datagram<'_>, reply: &[u8], outbox: &mut Outbox, now: Instant) {
        match datagram.message {
            // A response goes where the initiation came from, which proves nothing yet: the
            // endpoint itself stays.
            Message::Initiation => outbox.push_copy(datagram.source, reply),
            Message::Response(_) => {
                let in_doubt = self.is_in_doubt();
                if self.peer.initiates && self.paths.answered(datagram.source, in_doubt) {
                    let peer = self.peer.address;
                    tracing::info!(%peer, path = %datagram.source, "the peer is reached another way");
                }
                let path = self.paths.current().unwrap_or(datagram.source);
                outbox.push_copy(path, reply);
                self.last_sent = now;
                self.last_heard = Some(now);
                self.established(now);
                self.flush_queue(outbox);
            }
            Message::Cookie(_) | Message::Data(_) => {}
        }
    }

    fn heard(&mut self, datagram: &Datagram<'_>, now: Instant) {
        self.last_heard = Some(now);
        self.answered(now);
        let position = Position::of(datagram.bytes);
        let source = datagram.source;
        if self.paths.heard(source, position, self.peer.initiates) {
            tracing::debug!(peer = %self.peer.address, endpoint = %source, "peer endpoint moved");
        }
        if !self.established {
            self.refresh(now);
            if self.established {
                self.established(now);
            }
        }
    }

    fn established(&mut self, now: Instant) {
        self.retry.done();
        self.forced = false;
        self.answered(now);
        self.refresh(now);
    }

    fn answered(&mut self, now: Instant) {
        if let Some(since) = self.unanswered_since.take() {
            self.renewed |= now.duration_since(since) >= UNANSWERED_MAX;
        }
    }

    fn refresh(&mut self, now: Instant) {
        let before = self.established;
        self.established = self.tunn.time_since_last_handshake().is_some();
        let peer = self.peer.address;
        let endpoint = self.paths.current().map(tracing::field::display);
        match (before, self.established) {
            (false, true) => {
                tracing::info!(%peer, endpoint, "tunnel session established");
                self.sessionless_since = None;
                self.complained = false;
            }
            (true, false) => {
                tracing::info!(%peer, endpoint, "tunnel session lost");
                self.sessionless_since = Some(now);
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Says once per outage what only a person can mend.
    fn complain(&mut self, message: Message, reason: DropReason) {
        let mismatch = matches!(message, Message::Response(_)) && reason == DropReason::Unauthentic;
        // A hub that calls a node after a restart has no key yet: the node registers, and then they agree.
        if mismatch && !self.complained && self.peer.initiates {
            self.complained = true;
            tracing::warn!(
                peer = %self.peer.address,
                "the peer's handshake response does not authenticate: the pre-shared keys differ"
            );
        }
    }

    fn keep_alive(&mut self, outbox: &mut Outbox, now: Instant) {
        let silent = now.duration_since(self.last_sent);
        if self.established && self.peer.keepalive.is_some_and(|after| silent >= after) {
            self.seal(&mut [], 0, outbox, now);
        }
    }

    fn flush_queue(&mut self, outbox: &mut Outbox) {
        let Some(path) = self.paths.current() else {
            return;
        };
        let mut room = [0u8; MTU_MAX + OVERHEAD_BYTES + PADDING];
        for _ in 0..QUEUE_MAX {
            match self.tunn.decapsulate(None, &[], &mut room) {
                TunnResult::WriteToNetwork(datagram) => outbox.push_copy(path, datagram),
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..) => break,
            }
        }
    }

    fn transmit(&mut self, datagram: &[u8], outbox: &mut Outbox, now: Instant) {
        if let Some(path) = self.paths.current() {
            outbox.push_copy(path, datagram);
            self.last_sent = now;
        }
    }
}
