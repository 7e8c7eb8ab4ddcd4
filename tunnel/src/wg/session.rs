//! One peer's WireGuard session: boringtun's `Tunn` plus what it leaves to its user.
//!
//! - initiations follow our own schedule ([`Retry`]) and never cease while somebody wants a session;
//! - nothing is encapsulated without a session, so boringtun never queues packets;
//! - packets are padded to 16 bytes, so that their length says less;
//! - the endpoint moves only on an authenticated data packet: a replayed initiation or a cookie
//!   cannot redirect a peer;
//! - data that stays unanswered for 2 s starts a handshake, since everything inside is TCP and a
//!   living peer acknowledges within a round trip;
//! - a peer whose clock has gone back is called back: its own handshakes would be refused as old ones for as long as its clock is wrong.

mod timers;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};

use super::PeerId;
use super::budget::Rate;
use super::message::Message;
use super::noise::{Identity, Loan, Noise, Recipe, Returned};
use super::retry::Retry;
use super::verdict::{reason, written};
use crate::drops::DropReason;
use crate::netstack::segment::expects_answer;
use crate::outbox::{Outbox, ROOM_MIN};
use crate::peer::Peer;

/// Head, counter and tag around a packet.
const OVERHEAD_BYTES: usize = 32;
/// WireGuard paper, section 5.4.6.
const PADDING: usize = 16;
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
    pub(crate) source: SocketAddr,
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
    endpoint: Option<SocketAddr>,
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
    /// The endpoint has changed and nobody has asked yet.
    moved: bool,
    tx_bytes: u64,
}

impl Session {
    pub(crate) fn new(id: PeerId, peer: Peer, identity: &Arc<Identity>, now: Instant) -> Self {
        Self {
            id,
            noise: Noise::Cold,
            identity: Arc::clone(identity),
            endpoint: peer.endpoint,
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
            moved: true,
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
        if self.endpoint.is_none() {
            self.endpoint = before.endpoint;
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
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

    /// Whether the endpoint has changed since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Takes over settings that need no new session: the keys are the same.
    pub(crate) fn adopt(&mut self, peer: Peer) {
        if peer.endpoint.is_some() && peer.endpoint != self.peer.endpoint {
            self.endpoint = peer.endpoint;
            self.moved = true;
            self.forced |= peer.initiates;
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
        let (Some(endpoint), true) = (self.endpoint, self.established) else {
            return;
        };
        self.catch_up(outbox, now);
        let padded = len.next_multiple_of(PADDING).min(scratch.len());
        scratch[len..padded].fill(0);
        let Some(tunn) = self.noise.get_mut() else {
            return;
        };
        outbox.push(endpoint, padded + OVERHEAD_BYTES, |room| {
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
        match tunn.decapsulate(Some(source.ip()), bytes, plain) {
            TunnResult::Done => {
                if matches!(message, Message::Data(_)) {
                    self.heard(source, now);
                }
                Ok(None)
            }
            TunnResult::WriteToNetwork(reply) => {
                self.answer(datagram, reply, outbox, now);
                Ok(None)
            }
            TunnResult::WriteToTunnelV6(packet, from) => {
                self.heard(source, now);
                self.last_moved = Some(now);
                Ok(Some(Plain {
                    packet,
                    source: from,
                }))
            }
            TunnResult::WriteToTunnelV4(..) => {
                self.heard(source, now);
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
        source: SocketAddr,
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

    fn initiate(&mut self, jitter: f64, outbox: &mut Outbox, now: Instant) {
        if let Some(endpoint) = self.endpoint {
            self.initiate_to(endpoint, jitter, (outbox, now));
        }
    }

    fn initiate_to(
        &mut self,
        endpoint: SocketAddr,
        jitter: f64,
        (outbox, now): (&mut Outbox, Instant),
    ) {
        let mut room = [0u8; ROOM_MIN];
        let Self {
            noise,
            identity,
            peer,
            id,
            ..
        } = self;
        let Some(tunn) = noise.make(&recipe((identity, peer, *id))) else {
            return;
        };
        if let TunnResult::WriteToNetwork(datagram) =
            tunn.format_handshake_initiation(&mut room, true)
        {
            outbox.push_copy(endpoint, datagram);
            self.last_sent = now;
            self.retry.sent(jitter, now);
        }
    }

    /// A message that does not hold: says what only a person can mend, and calls back whom only a wrong clock keeps out.
    fn refused(
        &mut self,
        message: Message,
        source: SocketAddr,
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
            self.initiate_to(source, 0.0, (outbox, now));
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
                // The peer needs a word in the new session, wherever it is now: its answer moves the endpoint.
                outbox.push_copy(datagram.source, reply);
                self.last_sent = now;
                self.last_heard = Some(now);
                self.established(now);
                match self.endpoint {
                    None => self.endpoint = Some(datagram.source),
                    Some(endpoint) if endpoint == datagram.source => {}
                    Some(_) => self.seal(&mut [], 0, outbox, now),
                }
            }
            Message::Cookie(_) | Message::Data(_) => {}
        }
    }

    fn heard(&mut self, source: SocketAddr, now: Instant) {
        self.last_heard = Some(now);
        self.answered(now);
        if self.endpoint != Some(source) {
            tracing::debug!(peer = %self.peer.address, endpoint = %source, "peer endpoint moved");
            self.endpoint = Some(source);
            self.moved = true;
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
        let endpoint = self.endpoint.map(tracing::field::display);
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
        if let Some(endpoint) = self.endpoint {
            outbox.push_copy(endpoint, datagram);
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
