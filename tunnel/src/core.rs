//! The whole tunnel without a socket: datagrams, wishes and time go in, datagrams come out.
//!
//! Mutate with `handle_*` and the wishes, then [`Core::work`] and drain [`Core::poll_transmit`];
//! [`Core::poll_timeout`] says when to come back. No I/O and no waiting happen here.
//! One clock escapes: boringtun reads the system's clock itself for its own timers.

mod handshakes;
mod inside;
mod ledger;
mod member;
mod pmtu;
mod pulse;
mod race;
mod timers;
mod ways;
mod wishes;

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::io::IoSlice;
use std::net::Ipv6Addr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use self::inside::{check, is_open, refuse};
use self::ledger::Ledger;
use self::member::{Member, Promoted};
use self::pulse::is_echo;
use crate::agenda::Agenda;
use crate::board::Board;
use crate::carrier::Carriers;
use crate::drops::{DropReason, Drops};
use crate::netns::{FRONT, Inbound, Registry, SLOT_BYTES, split};
use crate::netstack::backlog::Backlog;
use crate::netstack::clock::Clock;
use crate::netstack::conn::{ConnKey, End};
use crate::netstack::doorbell::Doorbell;
use crate::netstack::link::Link;
use crate::netstack::stack::{Sizes, Surroundings};
use crate::outbox::{Batch, Outbox};
use crate::path::{CarrierId, Path};
use crate::quic::{Setup, is_ours};
use crate::settings::{MTU_MAX, MTU_MIN, Settings};
use crate::wg::PeerId;
use crate::wg::bench::{Bench, Hands};
use crate::wg::budget::{Budget, Rate};
use crate::wg::gate::Gate;
use crate::wg::message::Message;
use crate::wg::session::{Datagram, Session};
use crate::wheel::{Due, Wheel};

/// While packets come, the board is told that they do so often.
const POST_EVERY: Duration = Duration::from_millis(50);
/// Handshakes that we begin: as many at once, then 1,000 a second, 7 % of a core.
const CALLS: Rate = Rate {
    interval: Duration::from_millis(1),
    burst: 250,
};
/// Streams of a peer without a session end after this long.
pub(crate) const SESSIONLESS_MAX: Duration = Duration::from_mins(1);
/// A peer that has not answered for this long may have lost what it is sent now.
const DOUBT_AFTER: Duration = Duration::from_millis(500);
/// No UDP datagram is larger.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// What the core shows to the outside while the driver owns it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Windows {
    pub(crate) board: Arc<Board>,
    pub(crate) drops: Arc<Drops>,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) carriers: Arc<Carriers>,
    /// Counts handshakes that peers began which wait for us to begin them: they have lost what they knew.
    pub(crate) calls: Arc<watch::Sender<u64>>,
}

impl Windows {
    pub(crate) fn send_carried(&self, id: CarrierId, batch: &Batch) {
        self.carriers.send(id, batch, &self.drops);
    }
}

/// What the core has when the kernel does TCP.
pub(crate) struct Ground {
    pub(crate) registry: Arc<Registry>,
    /// Packets for the kernel.
    inbound: Inbound,
}

impl Ground {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self {
            registry,
            inbound: Inbound::new(),
        }
    }
}

/// The tunnel's state.
pub(crate) struct Core {
    settings: Settings,
    windows: Windows,
    gate: Gate,
    /// Where handshakes are examined and answered.
    bench: Bench,
    /// Initiations that we begin of ourselves, so that thousands of peers are called one after the other.
    calls: Budget,
    members: HashMap<PeerId, Box<Member>>,
    by_address: HashMap<Ipv6Addr, PeerId>,
    by_key: HashMap<[u8; 32], PeerId>,
    /// Who was heard from where, by a hash of the path: a guess at who begins a handshake from there.
    by_path: HashMap<u64, PeerId>,
    paths: RandomState,
    /// Sessions whose id is not that of their member, which was made with an earlier one.
    aliases: HashMap<PeerId, PeerId>,
    listeners: HashMap<u16, Arc<Backlog>>,
    agenda: Agenda,
    outbox: Outbox,
    shared: Surroundings,
    quic: Arc<Setup>,
    /// `None`: TCP is done here.
    kernel: Option<Ground>,
    /// Whose datagrams were handled last, while [`Core::settle`] is still to be called.
    unsettled: Option<PeerId>,
    /// Room for one decrypted datagram.
    plain: Vec<u8>,
    /// Room for the doorbell's list.
    rung: Vec<ConnKey>,
    random: StdRng,
    wheel: Wheel,
    /// What has come off the wheel and waits to be looked at.
    due: VecDeque<Due>,
    /// What peers were sent and received before they were forgotten.
    ledger: Ledger,
}

impl Core {
    pub(crate) fn new(
        settings: Settings,
        windows: Windows,
        kernel: Option<Ground>,
        hands: Hands,
        (seed, now): (u64, Instant),
    ) -> Self {
        let shared = Surroundings {
            clock: Clock::new(now),
            doorbell: Arc::clone(&windows.doorbell),
            sizes: Sizes::from(&settings.bounds),
        };
        let doorbell = Arc::clone(&windows.doorbell);
        let quic = Setup::new(&settings, doorbell, kernel.is_none());
        let limit = settings.bounds.handshakes_per_second_max;
        Self {
            gate: Gate::new(&settings.private_key, limit, now),
            bench: Bench::new(hands),
            calls: Budget::new(CALLS, now),
            ledger: Ledger::new(settings.bounds.peers_max),
            settings,
            windows,
            members: HashMap::new(),
            by_address: HashMap::new(),
            by_key: HashMap::new(),
            by_path: HashMap::new(),
            paths: RandomState::new(),
            aliases: HashMap::new(),
            listeners: HashMap::new(),
            agenda: Agenda::default(),
            outbox: Outbox::new(),
            shared,
            quic,
            kernel,
            unsettled: None,
            plain: vec![0; DATAGRAM_BYTES_MAX],
            rung: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            wheel: Wheel::new(now),
            due: VecDeque::new(),
        }
    }

    /// Cuts the streams of all peers while they can still be told.
    pub(crate) fn shut_streams(&mut self, now: Instant) {
        let all: Vec<PeerId> = self.members.keys().copied().collect();
        for id in all {
            self.cut(id, End::TunnelClosed, now);
        }
    }

    /// Cuts everything. The core is of no use afterwards, but for draining what it still sends.
    pub(crate) fn shut_down(&mut self, now: Instant) {
        let all: Vec<PeerId> = self.members.keys().copied().collect();
        for id in all {
            self.remove(id, End::TunnelClosed, now);
        }
        for (_, backlog) in self.listeners.drain() {
            backlog.close();
        }
        if let Some(kernel) = &self.kernel {
            kernel.registry.close(End::TunnelClosed);
        }
        self.windows.board.clear();
        self.windows.carriers.clear();
    }

    /// Takes one datagram off the wire. Whatever is in it, nothing worse than a count happens. What else comes of it waits for the next
    /// datagram of another peer or, after the last, for [`Core::settle`] at the same `now`.
    pub(crate) fn handle_one_of_many(&mut self, source: Path, datagram: &[u8], now: Instant) {
        if let Err(reason) = self.receive(source, datagram, now) {
            self.windows.drops.count(reason);
            tracing::trace!(%source, bytes = datagram.len(), ?reason, "packet dropped");
        }
    }

    #[cfg(test)]
    pub(crate) fn handle_datagram(&mut self, source: Path, datagram: &[u8], now: Instant) {
        self.handle_one_of_many(source, datagram, now);
        self.settle(now);
    }

    /// Does what else comes of the datagrams handled last.
    pub(crate) fn settle(&mut self, now: Instant) {
        if let Some(id) = self.unsettled.take() {
            self.follow_up(id, None, now);
        }
    }

    /// Takes what the kernel wants to send: one packet or super-segment with its virtio header in `buffer[..length]`.
    pub(crate) fn handle_kernel(&mut self, buffer: &mut [u8], length: usize, now: Instant) {
        let Some(to) = buffer
            .get(FRONT + 24..FRONT + 40)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
            .map(Ipv6Addr::from)
        else {
            return;
        };
        let Some(id) = self.by_address.get(&to).copied() else {
            return;
        };
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Member {
            session, inside, ..
        } = &mut **member;
        let Some(kernel) = inside.kernel_mut() else {
            return;
        };
        let established = session.is_established();
        let doubtful = session.unanswered(now) >= DOUBT_AFTER;
        let outbox = &mut self.outbox;
        let limit = session.mtu();
        let is_alone = length <= FRONT + MTU_MAX;
        split(buffer, (length, limit), |packet, length| {
            if doubtful || !established {
                kernel.hold(&packet[..length]);
            }
            if is_alone && length > MTU_MIN {
                kernel.note_wide(&packet[..length]);
            }
            if established {
                session.seal(packet, length, outbox, now);
            }
            ControlFlow::Continue(())
        });
        self.wheel.schedule(&mut member.place, id, now);
        if !established {
            self.nudge(id, now);
        }
    }

    /// Whether [`Core::empty_inbound`] must be called before the next datagram.
    pub(crate) fn is_inbound_full(&self) -> bool {
        self.kernel
            .as_ref()
            .is_some_and(|kernel| kernel.inbound.is_full())
    }

    /// Hands over what peers have sent to the kernel, packet by packet, merged where they are of one flow.
    pub(crate) fn empty_inbound(&mut self, write: impl FnMut(&[IoSlice<'_>])) {
        if let Some(kernel) = &mut self.kernel
            && !kernel.inbound.is_empty()
        {
            kernel.inbound.empty(write);
        }
    }

    /// Whether enough waits to be sent.
    pub(crate) fn is_outbox_full(&self) -> bool {
        self.outbox.is_full()
    }

    /// Cuts a peer's streams while it can still be told.
    pub(crate) fn cut_streams(&mut self, address: Ipv6Addr, now: Instant) {
        if let Some(id) = self.by_address.get(&address).copied() {
            self.cut(id, End::PeerRemoved, now);
        }
    }

    /// Collects the connections whose streams have rung.
    pub(crate) fn handle_ring(&mut self) {
        let mut rung = std::mem::take(&mut self.rung);
        self.windows.doorbell.take(&mut rung);
        for key in rung.drain(..) {
            if let Some(member) = self.members.get_mut(&key.peer) {
                member.inside.queue(key.ports, false, &mut self.agenda);
            }
        }
        self.rung = rung;
    }

    /// Runs timers that are due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(key) = self.agenda.next_due(now) {
            if let Some(member) = self.members.get_mut(&key.peer) {
                member.inside.queue(key.ports, true, &mut self.agenda);
            }
        }
        self.turn(now);
    }

    /// Gives queued connections their turns until all had one or enough waits to be sent.
    pub(crate) fn work(&mut self, now: Instant) {
        while !self.outbox.is_full() {
            let Some(key) = self.agenda.next() else {
                return;
            };
            if let Some(member) = self.members.get_mut(&key.peer) {
                let mtu = self.settings.bounds.mtu_max;
                let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
                let inside = &mut member.inside;
                inside.serve(key.ports, &mut link, &self.listeners, &mut self.agenda);
                self.wheel.schedule(&mut member.place, key.peer, now);
            }
        }
    }

    /// Whether [`Core::work`] or [`Core::handle_timeout`] has more to do at once.
    pub(crate) fn has_work(&self) -> bool {
        self.agenda.has_ready() || !self.due.is_empty()
    }

    /// The next datagrams for the wire.
    pub(crate) fn poll_transmit(&mut self) -> Option<Batch> {
        self.outbox.pop()
    }

    pub(crate) fn recycle(&mut self, batch: Batch) {
        self.outbox.recycle(batch);
    }

    pub(crate) fn set_segments_max(&mut self, segments: usize) {
        self.outbox.set_segments_max(segments);
    }

    /// When to call [`Core::handle_timeout`] next; `None`: nothing is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dates = [self.agenda.first_due(), self.wheel.next_at()];
        dates.into_iter().flatten().min()
    }

    fn receive(&mut self, source: Path, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        let message = Message::parse(datagram)?;
        let session_id = match message {
            Message::Initiation => return self.initiation(source, datagram, now),
            Message::Response(id) | Message::Cookie(id) | Message::Data(id) => id,
        };
        let datagram = Datagram {
            message,
            source,
            bytes: datagram,
        };
        let outcome = self.deliver(session_id, &datagram, now);
        self.blame(session_id, outcome)
    }

    /// Counts what a peer sent that was refused.
    fn blame(
        &mut self,
        session_id: PeerId,
        outcome: Result<(), DropReason>,
    ) -> Result<(), DropReason> {
        if let Err(reason) = outcome {
            let id = self.member_of(session_id);
            if let Some(member) = self.members.get_mut(&id) {
                member.count(reason);
            }
        }
        outcome
    }

    /// Gives a datagram to the peer whose it is.
    fn deliver(
        &mut self,
        session_id: PeerId,
        datagram: &Datagram<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let id = self.member_of(session_id);
        if self.unsettled != Some(id) {
            self.settle(now);
        }
        let (outcome, promoted) = self.take((id, session_id), datagram, now)?;
        self.unsettled = Some(id);
        if promoted.is_some() {
            self.unsettled = None;
            self.follow_up(id, promoted, now);
        }
        outcome
    }

    /// Decrypts a datagram of a peer and gives what was in it to whom it is for. The outer error: there is no such peer or session.
    fn take(
        &mut self,
        (id, session_id): (PeerId, PeerId),
        datagram: &Datagram<'_>,
        now: Instant,
    ) -> Result<(Result<(), DropReason>, Option<Promoted>), DropReason> {
        let member = self.members.get_mut(&id).ok_or(DropReason::UnknownPeer)?;
        // The kernel's packets are decrypted where they wait for it.
        let room = match &mut self.kernel {
            Some(kernel) if fits_slot(datagram.bytes) => kernel.inbound.room(),
            Some(_) | None => &mut self.plain,
        };
        let session = member.session_mut(session_id);
        let session = session.ok_or(DropReason::UnknownPeer)?;
        let opened = session.open(datagram, room, &mut self.outbox, now);
        let is_call = datagram.message == Message::Initiation && session.peer().initiates;
        if is_call && opened.is_ok() {
            self.windows.calls.send_modify(|calls| *calls += 1);
        }
        let received = opened.as_ref().map_or(None, Option::as_ref);
        let length = received.map_or(0, |plain| plain.packet.len());
        member.rx_bytes += length as u64;
        let promoted = member.promote(now);
        let own = self.settings.address;
        let outcome = match opened {
            Ok(Some(plain)) if is_echo(plain.packet) => {
                let out = (&mut self.outbox, now);
                let echo = member.pulse.take(&plain, (&mut member.session, own), out);
                echo.map(|echo| member.measured(echo, now))
            }
            Ok(Some(plain)) if is_ours(plain.packet) => {
                let mtu = self.settings.bounds.mtu_max;
                let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
                if plain.source == link.session.peer().address {
                    let quic = &mut member.inside.quic;
                    quic.receive(plain.packet, &mut link, &self.listeners, &mut self.agenda)
                } else {
                    Err(DropReason::ForeignSource)
                }
            }
            Ok(Some(plain)) => {
                let length = plain.packet.len();
                match check(&plain, member.session.peer().address, own) {
                    Err(reason) => Err(reason),
                    Ok(segment) if member.inside.is_kernel() => {
                        // The kernel may have more ports open than ours.
                        if segment.opens && !is_open(&self.listeners, segment) {
                            refuse(plain.packet, &mut member.session, (&mut self.outbox, now));
                            Err(DropReason::ClosedPort)
                        } else {
                            keep(self.kernel.as_mut(), length)
                        }
                    }
                    Ok(segment) => {
                        let mtu = self.settings.bounds.mtu_max;
                        let session = &mut member.session;
                        let mut link = Link::idle(session, &mut self.outbox, mtu, now);
                        link.inbound = Some(plain.packet);
                        let inside = &mut member.inside;
                        let around = (&self.shared, &self.listeners);
                        inside.receive(segment, &mut link, around, &mut self.agenda)
                    }
                }
            }
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        Ok((outcome, promoted))
    }

    /// What else comes of a datagram: connections begun anew, and news on the board.
    fn follow_up(&mut self, id: PeerId, promoted: Option<Promoted>, now: Instant) {
        self.expect(id);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.session.take_renewed() {
            let mtu = self.settings.bounds.mtu_max;
            let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
            member.inside.peer_returned(&mut link, &mut self.agenda);
        }
        member.heal(&mut self.outbox, now);
        let due = member.due(now);
        self.wheel.schedule(&mut member.place, id, due);
        let is_heard = member.session.last_heard() == Some(now);
        let is_news = is_heard
            && (member.pulse.is_asked_since(member.posted_at)
                || now.duration_since(member.posted_at) >= POST_EVERY);
        if let Some(promoted) = promoted {
            tracing::info!(peer = %member.session.peer().address, "the tunnel goes on with new keys");
            if let Some(old) = promoted.forgotten {
                self.forget_session(&old.0);
            }
            self.note_session(id, now);
        } else if member.session.is_established() != member.open {
            self.note_session(id, now);
        } else if is_news {
            member.posted_at = now;
            let notice = member.notice(now);
            let address = member.session.peer().address;
            self.windows.board.post(address, notice);
        } else if is_heard {
            // The board is told with the next look.
            self.wheel.schedule(&mut member.place, id, now);
        }
    }

    /// Whose session this is.
    fn member_of(&self, session: PeerId) -> PeerId {
        self.aliases.get(&session).copied().unwrap_or(session)
    }

    /// Nobody finds this session any more.
    fn forget_session(&mut self, session: &Session) {
        self.aliases.remove(&session.id());
        let key = session.peer().public_key.to_bytes();
        if self.by_key.get(&key) == Some(&session.id()) {
            self.by_key.remove(&key);
        }
    }

    /// Tells connections and board that a session came or went.
    fn note_session(&mut self, id: PeerId, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.open = member.session.is_established();
        let address = member.session.peer().address;
        if member.open {
            let mtu = self.settings.bounds.mtu_max;
            let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
            member.inside.session_came(&mut link, &mut self.agenda);
        }
        let notice = member.notice(now);
        self.windows.board.post(address, notice);
    }

    fn remove(&mut self, id: PeerId, end: End, now: Instant) {
        self.cut(id, end, now);
        if let Some(member) = self.members.remove(&id) {
            let peer = member.session.peer();
            self.ledger.close(peer.address, member.bytes());
            self.by_address.remove(&peer.address);
            if let Some(expected) = member.expected
                && self.by_path.get(&expected) == Some(&id)
            {
                self.by_path.remove(&expected);
            }
            self.windows.board.remove(peer.address);
            for session in member.sessions() {
                self.forget_session(session);
            }
        }
    }

    fn cut(&mut self, id: PeerId, end: End, now: Instant) {
        if let Some(member) = self.members.get_mut(&id) {
            let mtu = self.settings.bounds.mtu_max;
            let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
            member.inside.cut_all(end, &mut link, &mut self.agenda);
        }
    }
}

/// Keeps the packet that was decrypted last for the kernel.
fn keep(kernel: Option<&mut Ground>, length: usize) -> Result<(), DropReason> {
    let kept = length <= MTU_MAX && kernel.is_some_and(|kernel| kernel.inbound.keep(length));
    if kept {
        Ok(())
    } else {
        Err(DropReason::NotTcp)
    }
}

/// Whether a datagram, decrypted, fits a place of [`Inbound`].
fn fits_slot(datagram: &[u8]) -> bool {
    datagram.len() <= SLOT_BYTES
}

#[cfg(test)]
mod sim;
