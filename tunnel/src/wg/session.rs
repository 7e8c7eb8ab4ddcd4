//! One peer's WireGuard session: boringtun's `Tunn` plus what it leaves to its user.
//!
//! - initiations follow our own schedule ([`Retry`]) and never cease while somebody wants a session;
//! - nothing is encapsulated without a session, so boringtun never queues packets;
//! - packets are padded to 16 bytes, so that their length says less;
//! - the path moves only on authenticated data, or on the answer to a handshake of ours ([`Paths`]): a
//!   replayed initiation or a cookie cannot redirect a peer;
//! - a TCP packet larger than the path carries is cut into several: both ends of a connection go on as before;
//! - data that stays unanswered for 2 s starts a handshake, since everything inside is TCP and a
//!   living peer acknowledges within a round trip;
//! - a peer whose clock has gone back is called back: its own handshakes would be refused as old ones for as long as its clock is wrong.

mod timers;

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};

use super::PeerId;
use super::budget::Rate;
use super::message::Message;
use super::noise::{Identity, Loan, Noise, Recipe, Returned};
use super::paths::{Paths, Position};
use super::retry::Retry;
use super::verdict::{reason, written};
use crate::drops::DropReason;
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
/// Unanswered data for this long means the other side lost the session: one lost packet is repeated
/// by TCP after a second.
const UNANSWERED_MAX: Duration = Duration::from_secs(2);
/// Handshakes of one peer that are answered: 50 a second, as the kernel's WireGuard does.
const ANSWERS: Rate = Rate {
    interval: Duration::from_millis(20),
    burst: 8,
};
/// A peer whose handshakes are refused for their date is called back this often at most.
const CALL_BACK_EVERY: Duration = Duration::from_secs(1);

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
    noise: Noise,
    identity: Arc<Identity>,
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
    /// When a packet with something in it went through last, either way.
    last_moved: Option<Instant>,
    /// When boringtun's timers ran last.
    looked_at: Instant,
    /// When the peer may have all answers again.
    answers_full_at: Instant,
    called_back_at: Option<Instant>,
    unanswered_since: Option<Instant>,
    sessionless_since: Option<Instant>,
    /// The peer is back after data went unanswered: what it was sent meanwhile is lost.
    renewed: bool,
    /// The operator has been told why there is no session.
    complained: bool,
    tx_bytes: u64,
}

impl Session {
    pub(crate) fn new(id: PeerId, peer: Peer, identity: &Arc<Identity>, now: Instant) -> Self {
        Self {
            id,
            noise: Noise::Cold,
            identity: Arc::clone(identity),
            paths: Paths::new(peer.endpoint),
            mtu: MTU_MAX,
            wide_at: None,
            peer,
            retry: Retry::default(),
            established: false,
            forced: false,
            last_sent: now,
            last_heard: None,
            last_moved: None,
            looked_at: now,
            answers_full_at: now,
            called_back_at: None,
            unanswered_since: None,
            sessionless_since: Some(now),
            renewed: false,
            complained: false,
            tx_bytes: 0,
        }
    }

    /// What the peer puts above the session number of the receiver index.
    pub(crate) const fn id(&self) -> PeerId {
        self.id
    }

    /// Goes on where a session with other keys leaves off: only the keys are new.
    pub(crate) fn carry_on(&mut self, before: &Self) {
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

    /// Overlay bytes sent, in the sessions before this one too.
    pub(crate) fn tx_bytes(&self) -> u64 {
        self.tx_bytes
    }

    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// Something was sent that a living peer answers, and [`expects_answer`] does not see it.
    pub(crate) fn expect_answer(&mut self, now: Instant) {
        if self.established {
            self.unanswered_since.get_or_insert(now);
        }
    }

    /// A packet would be sent larger if the path were wider.
    pub(crate) const fn note_wide(&mut self, now: Instant) {
        self.wide_at = Some(now);
    }

    /// How long the peer owes an answer.
    pub(crate) fn unanswered(&self, now: Instant) -> Duration {
        self.unanswered_since
            .map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    pub(crate) fn since_handshake(&self) -> Option<Duration> {
        self.noise.get().and_then(Tunn::time_since_last_handshake)
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
            self.note_wide(now);
            if len > self.mtu && scratch[6] == TCP {
                self.seal_cut(&scratch[..len], outbox, now);
                return;
            }
        }
        self.catch_up(outbox, now);
        let padded = len.next_multiple_of(PADDING).min(scratch.len());
        scratch[len..padded].fill(0);
        let Some(tunn) = self.noise.get_mut() else {
            return;
        };
        outbox.push(path, padded + OVERHEAD_BYTES, |room| {
            written(&tunn.encapsulate(&scratch[..padded], room))
        });
        self.last_sent = now;
        if len > 0 {
            self.tx_bytes += len as u64;
            self.last_moved = Some(now);
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
        if message == Message::Initiation && !ANSWERS.has(self.answers_full_at, now) {
            return Err(DropReason::Limited);
        }
        self.catch_up(outbox, now);
        let tunn = match message {
            Message::Initiation => {
                let Self {
                    noise,
                    identity,
                    peer,
                    id,
                    ..
                } = self;
                noise.make(&recipe((identity, peer, *id)))
            }
            Message::Response(_) | Message::Cookie(_) | Message::Data(_) => self.noise.get_mut(),
        };
        let tunn = tunn.ok_or(DropReason::UnknownPeer)?;
        match tunn.decapsulate(Some(source.source().ip()), bytes, plain) {
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
                self.last_moved = Some(now);
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
                self.refused(message, source, reason, (outbox, now));
                Err(reason)
            }
        }
    }

    /// Gives the state away so that an initiation is answered elsewhere; `None`: answer it here, or not at all.
    pub(crate) fn lend(&mut self, now: Instant) -> Option<Loan> {
        if self.established || !ANSWERS.has(self.answers_full_at, now) {
            return None;
        }
        let Self {
            noise,
            identity,
            peer,
            id,
            ..
        } = self;
        noise.lend(|| recipe((identity, peer, *id)))
    }

    /// Takes the state back, and sends the answer.
    pub(crate) fn take_back(
        &mut self,
        returned: Returned,
        source: Path,
        (outbox, now): (&mut Outbox, Instant),
    ) -> Result<(), DropReason> {
        self.noise = Noise::Here(returned.tunn);
        match returned.reply {
            Ok(reply) => {
                ANSWERS.take(&mut self.answers_full_at, now);
                outbox.push_copy(source, reply.bytes());
                Ok(())
            }
            Err(reason) => {
                self.refused(Message::Initiation, source, reason, (outbox, now));
                Err(reason)
            }
        }
    }

    /// Starts a handshake at once, whatever the schedule says.
    pub(crate) fn force(&mut self, jitter: f64, outbox: &mut Outbox, now: Instant) {
        self.forced = true;
        self.initiate(jitter, outbox, now);
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
        let mut is_sent = false;
        for path in [self.paths.current(), other].into_iter().flatten() {
            is_sent |= self.initiate_by(path, outbox);
        }
        if is_sent {
            self.last_sent = now;
            self.retry.sent(jitter, now);
        }
    }

    /// False while the state is at the workbench.
    fn initiate_by(&mut self, path: Path, outbox: &mut Outbox) -> bool {
        let mut room = [0u8; ROOM_MIN];
        let Self {
            noise,
            identity,
            peer,
            id,
            ..
        } = self;
        let Some(tunn) = noise.make(&recipe((identity, peer, *id))) else {
            return false;
        };
        if let TunnResult::WriteToNetwork(datagram) =
            tunn.format_handshake_initiation(&mut room, true)
        {
            outbox.push_copy(path, datagram);
            return true;
        }
        false
    }

    fn is_in_doubt(&self) -> bool {
        self.peer.initiates && (!self.established || self.unanswered_since.is_some())
    }

    /// A message that does not hold: says what only a person can mend, and calls back whom only a wrong clock keeps out.
    fn refused(
        &mut self,
        message: Message,
        source: Path,
        reason: DropReason,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        self.complain(message, reason);
        // An initiation older than one before: repeated by somebody else, or made by a peer whose clock went back and who lost
        // everything. A handshake of ours tells them apart, to where it came from, and moves nothing.
        let is_early = |at: Instant| now.duration_since(at) < CALL_BACK_EVERY;
        let is_old = message == Message::Initiation && reason == DropReason::Replayed;
        if is_old && !self.called_back_at.is_some_and(is_early) {
            self.called_back_at = Some(now);
            if self.initiate_by(source, outbox) {
                self.last_sent = now;
                self.retry.sent(0.0, now);
            }
        }
    }

    fn answer(&mut self, datagram: &Datagram<'_>, reply: &[u8], outbox: &mut Outbox, now: Instant) {
        match datagram.message {
            // A response goes where the initiation came from, which proves nothing yet: the
            // endpoint itself stays.
            Message::Initiation => {
                ANSWERS.take(&mut self.answers_full_at, now);
                outbox.push_copy(datagram.source, reply);
            }
            Message::Response(_) => {
                let in_doubt = self.is_in_doubt();
                let source = datagram.source;
                if self.peer.initiates && self.paths.answered(source, in_doubt) {
                    let peer = self.peer.address;
                    tracing::info!(%peer, path = %source, "the peer is reached another way");
                }
                // The peer needs a word in the new session. Whom we keep a session with hears it on the way that we chose; anybody else
                // where it is now, and its answer moves the path.
                let way = self.paths.current().filter(|_| self.peer.initiates);
                let way = way.unwrap_or(source);
                outbox.push_copy(way, reply);
                self.last_sent = now;
                self.last_heard = Some(now);
                self.established(now);
                if self.paths.found(way) != way {
                    self.seal(&mut [], 0, outbox, now);
                }
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
        self.established = self.since_handshake().is_some();
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

    fn transmit(&mut self, datagram: &[u8], outbox: &mut Outbox, now: Instant) {
        if let Some(path) = self.paths.current() {
            outbox.push_copy(path, datagram);
            self.last_sent = now;
        }
    }
}

fn recipe((identity, peer, id): (&Arc<Identity>, &Peer, PeerId)) -> Recipe {
    Recipe {
        identity: Arc::clone(identity),
        key: peer.public_key,
        psk: peer.preshared_key.clone(),
        id,
    }
}
