//! The whole tunnel without a socket: datagrams, wishes and time go in, datagrams come out.
//!
//! Mutate with `handle_*` and the wishes, then [`Core::work`] and drain [`Core::poll_transmit`];
//! [`Core::poll_timeout`] says when to come back. No I/O and no waiting happen here.
//! One clock escapes: boringtun reads the system's clock itself for its own timers.

mod inside;
mod member;
mod pmtu;
mod pulse;
mod race;
mod ways;
mod wishes;

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::Ipv6Addr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use self::inside::Inside;
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
use crate::netstack::segment::Segment;
use crate::netstack::stack::{Sizes, Surroundings};
use crate::outbox::{Batch, Outbox};
use crate::path::{CarrierId, Path};
use crate::settings::{MTU_MAX, Settings};
use crate::wg::PeerId;
use crate::wg::gate::{Admission, Gate};
use crate::wg::message::Message;
use crate::wg::session::{Datagram, Plain, Session};

/// boringtun wants its timers run at least four times a second.
const TICK: Duration = Duration::from_millis(250);
/// While packets come, the board is told that they do so often.
const POST_EVERY: Duration = Duration::from_millis(50);
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
    members: HashMap<PeerId, Member>,
    by_address: HashMap<Ipv6Addr, PeerId>,
    by_key: HashMap<[u8; 32], PeerId>,
    /// Sessions whose id is not that of their member, which was made with an earlier one.
    aliases: HashMap<PeerId, PeerId>,
    listeners: HashMap<u16, Arc<Backlog>>,
    agenda: Agenda,
    outbox: Outbox,
    shared: Surroundings,
    /// `None`: TCP is done here.
    kernel: Option<Ground>,
    /// Room for one decrypted datagram.
    plain: Vec<u8>,
    /// Room for the doorbell's list.
    rung: Vec<ConnKey>,
    random: StdRng,
    tick_at: Instant,
}

impl Core {
    pub(crate) fn new(
        settings: Settings,
        windows: Windows,
        kernel: Option<Ground>,
        (seed, now): (u64, Instant),
    ) -> Self {
        let shared = Surroundings {
            clock: Clock::new(now),
            doorbell: Arc::clone(&windows.doorbell),
            sizes: Sizes::from(&settings.bounds),
        };
        let limit = settings.bounds.handshakes_per_second_max;
        Self {
            gate: Gate::new(&settings.private_key, limit, now),
            settings,
            windows,
            members: HashMap::new(),
            by_address: HashMap::new(),
            by_key: HashMap::new(),
            aliases: HashMap::new(),
            listeners: HashMap::new(),
            agenda: Agenda::default(),
            outbox: Outbox::new(),
            shared,
            kernel,
            plain: vec![0; DATAGRAM_BYTES_MAX],
            rung: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            tick_at: now + TICK,
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

    /// Takes one datagram off the wire. Whatever is in it, nothing worse than a count happens.
    pub(crate) fn handle_datagram(&mut self, source: Path, datagram: &[u8], now: Instant) {
        if let Err(reason) = self.receive(source, datagram, now) {
            self.windows.drops.count(reason);
            tracing::trace!(%source, bytes = datagram.len(), ?reason, "packet dropped");
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
        } = member;
        let Inside::Kernel(kernel) = inside else {
            return;
        };
        let established = session.is_established();
        let doubtful = session.unanswered(now) >= DOUBT_AFTER;
        let outbox = &mut self.outbox;
        let limit = session.mtu();
        split(buffer, (length, limit), |packet, length| {
            if doubtful || !established {
                kernel.hold(&packet[..length]);
            }
            if established {
                session.seal(packet, length, outbox, now);
            }
            ControlFlow::Continue(())
        });
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

    /// Runs every timer that is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(key) = self.agenda.next_due(now) {
            if let Some(member) = self.members.get_mut(&key.peer) {
                member.inside.queue(key.ports, true, &mut self.agenda);
            }
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            self.tick(now);
        }
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
                member.inside.serve(key.ports, &mut link, &mut self.agenda);
            }
        }
    }

    /// Whether [`Core::work`] has more to do.
    pub(crate) fn has_work(&self) -> bool {
        self.agenda.has_ready()
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

    /// When to call [`Core::handle_timeout`] next.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.agenda
            .first_due()
            .map_or(self.tick_at, |due| due.min(self.tick_at))
    }

    fn receive(&mut self, source: Path, datagram: &[u8], now: Instant) -> Result<(), DropReason> {
        let message = Message::parse(datagram)?;
        let session_id = match message {
            Message::Initiation => match self.gate.admit(source.source(), datagram, now)? {
                Admission::From(key) => self
                    .by_key
                    .get(&key.to_bytes())
                    .copied()
                    .ok_or(DropReason::UnknownPeer)?,
                Admission::Prove(cookie) => {
                    self.outbox.push_copy(source, &cookie);
                    return Err(DropReason::Limited);
                }
            },
            Message::Response(id) | Message::Cookie(id) | Message::Data(id) => id,
        };
        let id = self.member_of(session_id);
        let datagram = Datagram {
            message,
            source,
            bytes: datagram,
        };
        let (outcome, promoted) = self.take((id, session_id), &datagram, now)?;
        self.follow_up(id, promoted, now);
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
        let promoted = member.promote(now);
        let own = self.settings.address;
        let outcome = match opened {
            Ok(Some(plain)) if is_echo(plain.packet) => {
                let out = (&mut self.outbox, now);
                let echo = member.pulse.take(&plain, (&mut member.session, own), out);
                echo.map(|echo| member.measured(echo, now))
            }
            Ok(Some(plain)) => {
                let length = plain.packet.len();
                match check(&plain, member.session.peer().address, own) {
                    Err(reason) => Err(reason),
                    Ok(_) if member.inside.is_kernel() => keep(self.kernel.as_mut(), length),
                    Ok(segment) => {
                        let mtu = self.settings.bounds.mtu_max;
                        let session = &mut member.session;
                        let mut link = Link::idle(session, &mut self.outbox, mtu, now);
                        link.inbound = Some(plain.packet);
                        let inside = &mut member.inside;
                        inside.receive(segment, &mut link, &self.listeners, &mut self.agenda)
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
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.session.take_renewed() {
            let mtu = self.settings.bounds.mtu_max;
            let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
            member.inside.peer_returned(&mut link, &mut self.agenda);
        }
        let is_news = member.session.last_heard() == Some(now)
            && (member.pulse.is_asked_since(member.posted_at)
                || now.duration_since(member.posted_at) >= POST_EVERY);
        if let Some(promoted) = promoted {
            tracing::info!(peer = %member.session.peer().address, "the tunnel goes on with new keys");
            if let Some(session) = promoted.forgotten {
                self.forget_session(&session);
            }
            self.note_session(id, now);
        } else if member.session.is_established() != member.open {
            self.note_session(id, now);
        } else if is_news {
            member.posted_at = now;
            let notice = member.notice(now);
            let address = member.session.peer().address;
            self.windows.board.post(address, notice);
        }
    }

    fn tick(&mut self, now: Instant) {
        self.gate.tick();
        let mut lost = Vec::new();
        let mut expired = Vec::new();
        let own = self.settings.address;
        for (id, member) in &mut self.members {
            let wanted = member.inside.is_wanted();
            let jitter = self.random.random();
            member.session.tick(wanted, jitter, &mut self.outbox, now);
            if let Some(next) = &mut member.next {
                next.tick(false, jitter, &mut self.outbox, now);
            }
            expired.extend(member.expired(now));
            member.tend(
                &self.windows.carriers,
                (own, jitter),
                (&mut self.outbox, now),
            );
            if wanted && member.session.sessionless(now) >= SESSIONLESS_MAX {
                lost.push(*id);
            }
            let established = member.session.is_established();
            if established && !member.open {
                let mtu = self.settings.bounds.mtu_max;
                let mut link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
                member.inside.session_came(&mut link, &mut self.agenda);
            }
            member.open = established;
            let notice = member.notice(now);
            self.windows
                .board
                .post(member.session.peer().address, notice);
        }
        for id in lost {
            self.cut(id, End::SessionLost, now);
        }
        for session in expired {
            self.forget_session(&session);
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

    /// Runs one peer's timers now: something about it has changed.
    fn nudge(&mut self, id: PeerId, now: Instant) {
        let jitter = self.random.random();
        if let Some(member) = self.members.get_mut(&id) {
            let wanted = member.inside.is_wanted();
            member.session.tick(wanted, jitter, &mut self.outbox, now);
        }
        self.note_session(id, now);
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
            self.by_address.remove(&peer.address);
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

/// Checks who an overlay packet is from and to. Peers never reach each other through us.
fn check(plain: &Plain<'_>, peer: Ipv6Addr, own: Ipv6Addr) -> Result<Segment, DropReason> {
    if plain.source != peer {
        return Err(DropReason::ForeignSource);
    }
    let segment = Segment::parse(plain.packet)?;
    if segment.destination != own {
        return Err(DropReason::ForeignDestination);
    }
    Ok(segment)
}

#[cfg(test)]
mod sim;
