//! The whole tunnel without a socket: datagrams, wishes and time go in, datagrams come out.
//!
//! Mutate with `handle_*` and the wishes, then [`Core::work`] and drain [`Core::poll_transmit`];
//! [`Core::poll_timeout`] says when to come back. No I/O and no waiting happen here.
//! One clock escapes: boringtun reads the system's clock itself for its own timers.

mod member;
mod wishes;

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::member::Member;
use crate::agenda::Agenda;
use crate::board::Board;
use crate::drops::{DropReason, Drops};
use crate::netstack::backlog::Backlog;
use crate::netstack::clock::Clock;
use crate::netstack::conn::{ConnKey, End};
use crate::netstack::doorbell::Doorbell;
use crate::netstack::link::Link;
use crate::netstack::segment::Segment;
use crate::netstack::stack::{Sizes, Surroundings};
use crate::outbox::{Batch, Outbox};
use crate::settings::Settings;
use crate::wg::PeerId;
use crate::wg::gate::{Admission, Gate};
use crate::wg::message::Message;
use crate::wg::session::{Datagram, Plain};

/// boringtun wants its timers run at least four times a second.
const TICK: Duration = Duration::from_millis(250);
/// Streams of a peer without a session end after this long.
pub(crate) const SESSIONLESS_MAX: Duration = Duration::from_mins(1);
/// No UDP datagram is larger.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// What the core shows to the outside while the driver owns it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Windows {
    pub(crate) board: Arc<Board>,
    pub(crate) drops: Arc<Drops>,
    pub(crate) doorbell: Arc<Doorbell>,
}

/// The tunnel's state.
pub(crate) struct Core {
    settings: Settings,
    windows: Windows,
    gate: Gate,
    members: HashMap<PeerId, Member>,
    by_address: HashMap<Ipv6Addr, PeerId>,
    by_key: HashMap<[u8; 32], PeerId>,
    listeners: HashMap<u16, Arc<Backlog>>,
    agenda: Agenda,
    outbox: Outbox,
    shared: Surroundings,
    /// Room for one decrypted datagram.
    plain: Vec<u8>,
    /// Room for the doorbell's list.
    rung: Vec<ConnKey>,
    random: StdRng,
    tick_at: Instant,
}

impl Core {
    pub(crate) fn new(settings: Settings, windows: Windows, seed: u64, now: Instant) -> Self {
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
            listeners: HashMap::new(),
            agenda: Agenda::default(),
            outbox: Outbox::new(),
            shared,
            plain: vec![0; DATAGRAM_BYTES_MAX],
            rung: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            tick_at: now + TICK,
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
        self.windows.board.clear();
    }

    /// Takes one datagram off the wire. Whatever is in it, nothing worse than a count happens.
    pub(crate) fn handle_datagram(&mut self, source: SocketAddr, datagram: &[u8], now: Instant) {
        if let Err(reason) = self.receive(source, datagram, now) {
            self.windows.drops.count(reason);
            tracing::trace!(%source, bytes = datagram.len(), ?reason, "packet dropped");
        }
    }

    /// Collects the connections whose streams have rung.
    pub(crate) fn handle_ring(&mut self) {
        let mut rung = std::mem::take(&mut self.rung);
        self.windows.doorbell.take(&mut rung);
        for key in rung.drain(..) {
            if let Some(member) = self.members.get_mut(&key.peer) {
                member.stack.queue(key.ports, false, &mut self.agenda);
            }
        }
        self.rung = rung;
    }

    /// Runs every timer that is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some(key) = self.agenda.next_due(now) {
            if let Some(member) = self.members.get_mut(&key.peer) {
                member.stack.queue(key.ports, true, &mut self.agenda);
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
                let mut link = Link {
                    session: &mut member.session,
                    outbox: &mut self.outbox,
                    mtu: self.settings.bounds.mtu,
                    now,
                    inbound: None,
                    credit: 0,
                };
                member.stack.serve(key.ports, &mut link, &mut self.agenda);
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

    fn receive(
        &mut self,
        source: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), DropReason> {
        let message = Message::parse(datagram)?;
        let id = match message {
            Message::Initiation => match self.gate.admit(source, datagram, now)? {
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
        let member = self.members.get_mut(&id).ok_or(DropReason::UnknownPeer)?;
        let datagram = Datagram {
            message,
            source,
            bytes: datagram,
        };
        let opened = member
            .session
            .open(&datagram, &mut self.plain, &mut self.outbox, now);
        let outcome = match opened {
            Ok(Some(plain)) => check(&plain, member.session.peer().address, self.settings.address)
                .and_then(|segment| {
                    let mut link = Link {
                        session: &mut member.session,
                        outbox: &mut self.outbox,
                        mtu: self.settings.bounds.mtu,
                        now,
                        inbound: Some(plain.packet),
                        credit: 0,
                    };
                    let stack = &mut member.stack;
                    stack.receive(segment, &mut link, &self.listeners, &mut self.agenda)
                }),
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        if member.session.take_renewed() {
            member.stack.dial_again(&mut self.agenda);
        }
        if member.session.is_established() != member.open {
            self.note_session(id, now);
        }
        outcome
    }

    fn tick(&mut self, now: Instant) {
        self.gate.tick();
        let mut lost = Vec::new();
        for (id, member) in &mut self.members {
            let wanted = member.stack.len() > 0;
            let jitter = self.random.random();
            member.session.tick(wanted, jitter, &mut self.outbox, now);
            if wanted && member.session.sessionless(now) >= SESSIONLESS_MAX {
                lost.push(*id);
            }
            let established = member.session.is_established();
            if established && !member.open {
                member.stack.queue_all(&mut self.agenda);
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
    }

    /// Runs one peer's timers now: something about it has changed.
    fn nudge(&mut self, id: PeerId, now: Instant) {
        let jitter = self.random.random();
        if let Some(member) = self.members.get_mut(&id) {
            let wanted = member.stack.len() > 0;
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
            member.stack.queue_all(&mut self.agenda);
        }
        let notice = member.notice(now);
        self.windows.board.post(address, notice);
    }

    fn remove(&mut self, id: PeerId, end: End, now: Instant) {
        self.cut(id, end, now);
        if let Some(member) = self.members.remove(&id) {
            let peer = member.session.peer();
            self.by_address.remove(&peer.address);
            self.by_key.remove(&peer.public_key.to_bytes());
            self.windows.board.remove(peer.address);
        }
    }

    fn cut(&mut self, id: PeerId, end: End, now: Instant) {
        if let Some(member) = self.members.get_mut(&id) {
            let mut link = Link {
                session: &mut member.session,
                outbox: &mut self.outbox,
                mtu: self.settings.bounds.mtu,
                now,
                inbound: None,
                credit: 0,
            };
            member.stack.cut_all(end, &mut link, &mut self.agenda);
        }
    }
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
