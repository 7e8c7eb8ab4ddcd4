//! What handles ask of the core.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use super::Core;
use super::inside::{Inside, Kernel, Lazy, Tcp};
use super::member::Member;
use super::pmtu::Pmtu;
use super::pulse::Pulse;
use crate::error::Error;
use crate::keys::PrivateKey;
use crate::netstack::backlog::Backlog;
use crate::netstack::conn::{Conn, End};
use crate::netstack::link::Link;
use crate::netstack::stack::Ends;
use crate::peer::Peer;
use crate::quic::{Quic, WayReply};
use crate::wg::PeerId;
use crate::wg::gate::Gate;
use crate::wg::session::Session;
use crate::wheel::Place;

/// Collisions of random 24-bit indices are rare; more draws than this mean the table is full.
const INDEX_DRAWS: usize = 64;

impl Core {
    /// Adds a peer, or replaces the one with its address. With the same keys the session and its
    /// streams live on; with new keys they die at once.
    pub(crate) fn set_peer(&mut self, peer: Peer, now: Instant) -> Result<(), Error> {
        peer.check(self.settings.address)?;
        let key = peer.public_key.to_bytes();
        self.check_key(&peer)?;
        if let Some(id) = self.by_address.get(&peer.address).copied()
            && let Some(member) = self.members.get_mut(&id)
        {
            let known = member.session.peer();
            if known.public_key == peer.public_key && known.preshared_key == peer.preshared_key {
                member.session.adopt(peer);
                self.nudge(id, now);
                return Ok(());
            }
            self.remove(id, End::PeerRemoved, now);
        }
        if self.members.len() >= self.settings.bounds.peers_max {
            return Err(Error::TooManyPeers(self.settings.bounds.peers_max));
        }
        let id = self.draw_id()?;
        let ends = Ends {
            own: self.settings.address,
            peer: peer.address,
        };
        self.by_address.insert(peer.address, id);
        self.by_key.insert(key, id);
        let random = self.random.random();
        let tcp = if let Some(kernel) = &self.kernel {
            let registry = Arc::clone(&kernel.registry);
            Tcp::Kernel(Kernel::new(registry, ends.peer))
        } else {
            Tcp::Stack(Lazy::new(id, ends, random))
        };
        let quic = Quic::new(id, ends, Arc::clone(&self.quic), self.random.random());
        let before = self.ledger.open(ends.peer);
        let bounds = &self.settings.bounds;
        let pmtu = Pmtu::new(bounds.mtu, bounds.mtu_max);
        let mut session = Session::new(id, peer, self.gate.identity(), now);
        session.set_mtu(pmtu.size());
        let member = Member {
            session,
            next: None,
            old: None,
            inside: Inside::new(tcp, quic),
            open: false,
            pulse: Pulse::new(now),
            pmtu,
            narrowed: false,
            race: None,
            posted_at: now,
            expected: None,
            place: Place::default(),
            rx_bytes: before.rx,
            tx_before: before.tx,
            rejected: None,
        };
        self.members.insert(id, Box::new(member));
        self.arrive(id, now);
        Ok(())
    }

    /// Begins a second session with a peer, under other keys: it takes over as soon as both sides have it, and no stream notices. A peer
    /// that is new here is added. `private`: our own key from now on; only for a tunnel with one peer.
    pub(crate) fn renew_peer(
        &mut self,
        peer: Peer,
        private: Option<PrivateKey>,
        now: Instant,
    ) -> Result<(), Error> {
        peer.check(self.settings.address)?;
        self.check_key(&peer)?;
        let is_rotated = private.is_some();
        if let Some(private) = private {
            let limit = self.settings.bounds.handshakes_per_second_max;
            self.gate = Gate::new(&private, limit, now);
            self.settings.private_key = private;
        }
        let Some(member_id) = self.by_address.get(&peer.address).copied() else {
            return self.set_peer(peer, now);
        };
        let id = self.draw_id()?;
        let Some(member) = self.members.get_mut(&member_id) else {
            return Err(Error::UnknownPeer(peer.address));
        };
        let known = member.session.peer();
        let is_same =
            known.public_key == peer.public_key && known.preshared_key == peer.preshared_key;
        if is_same && !is_rotated {
            member.session.adopt(peer);
            self.nudge(member_id, now);
            return Ok(());
        }
        let key = peer.public_key.to_bytes();
        let mut next = Session::new(id, peer, self.gate.identity(), now);
        next.follow(&member.session);
        next.tick(false, self.random.random(), &mut self.outbox, now);
        let stale = member.next.replace(Box::new(next));
        let due = member.due(now);
        self.wheel.schedule(&mut member.place, member_id, due);
        if let Some(stale) = stale {
            self.forget_session(&stale);
        }
        self.aliases.insert(id, member_id);
        self.by_key.insert(key, id);
        Ok(())
    }

    /// Two peers never share a key.
    fn check_key(&self, peer: &Peer) -> Result<(), Error> {
        let holder = self.by_key.get(&peer.public_key.to_bytes());
        let holder = holder.and_then(|id| self.members.get(&self.member_of(*id)));
        match holder.map(|member| member.session.peer().address) {
            Some(holder) if holder != peer.address => Err(Error::KeyInUse(holder)),
            Some(_) | None => Ok(()),
        }
    }

    /// Forgets a peer and cuts its streams; false when there was none.
    pub(crate) fn remove_peer(&mut self, address: Ipv6Addr, now: Instant) -> bool {
        let Some(id) = self.by_address.get(&address).copied() else {
            return false;
        };
        self.remove(id, End::PeerRemoved, now);
        true
    }

    /// Finds out how to reach a port of a peer, and begins the stream if that is QUIC. `reply` is told, sooner or later.
    pub(crate) fn way(&mut self, address: Ipv6Addr, port: u16, reply: WayReply, now: Instant) {
        if port == 0 {
            drop(reply.send(Err(Error::PortZero)));
            return;
        }
        let id = self.by_address.get(&address).copied();
        let Some((id, member)) =
            id.and_then(|id| self.members.get_mut(&id).map(|member| (id, member)))
        else {
            drop(reply.send(Err(Error::UnknownPeer(address))));
            return;
        };
        let mtu = self.settings.bounds.mtu_max;
        let link = Link::idle(&mut member.session, &mut self.outbox, mtu, now);
        let quic = &mut member.inside.quic;
        quic.dial(port, reply, &link, &mut self.agenda);
        if !member.session.is_established() {
            self.nudge(id, now);
        }
    }

    /// Begins a TCP connection; it is made when the session and the peer allow.
    pub(crate) fn connect(
        &mut self,
        address: Ipv6Addr,
        port: u16,
        now: Instant,
    ) -> Result<Arc<Conn>, Error> {
        if port == 0 {
            return Err(Error::PortZero);
        }
        let id = self.id_of(address)?;
        let member = self
            .members
            .get_mut(&id)
            .ok_or(Error::UnknownPeer(address))?;
        let conn = member
            .inside
            .connect(port, (&self.shared, now), &mut self.agenda)?
            .ok_or(Error::Closed)?;
        if !member.session.is_established() {
            self.nudge(id, now);
        }
        Ok(conn)
    }

    /// How many connections with a peer there are, those included that only deliver their last bytes.
    pub(crate) fn streams(&self, address: Ipv6Addr) -> usize {
        let id = self.by_address.get(&address);
        let member = id.and_then(|id| self.members.get(id));
        member.map_or(0, |member| member.inside.len())
    }

    /// Opens a port to all peers.
    pub(crate) fn listen(&mut self, port: u16) -> Result<Arc<Backlog>, Error> {
        if port == 0 {
            return Err(Error::PortZero);
        }
        self.listeners.retain(|_, backlog| !backlog.is_closed());
        if self.listeners.contains_key(&port) {
            return Err(Error::PortInUse(port));
        }
        let backlog = Backlog::new(port, self.settings.bounds.backlog_max);
        self.listeners.insert(port, Arc::clone(&backlog));
        Ok(backlog)
    }

    /// Starts a handshake at once.
    pub(crate) fn force_handshake(&mut self, address: Ipv6Addr, now: Instant) -> Result<(), Error> {
        let id = self.id_of(address)?;
        let jitter = self.random.random();
        let member = self
            .members
            .get_mut(&id)
            .ok_or(Error::UnknownPeer(address))?;
        if member.session.paths().current().is_none() {
            return Err(Error::NoEndpoint(address));
        }
        member.session.force(jitter, &mut self.outbox, now);
        self.wheel.schedule(&mut member.place, id, now);
        Ok(())
    }

    /// Asks a peer for a sign of life; without a session nothing is sent.
    pub(crate) fn echo(&mut self, address: Ipv6Addr, now: Instant) -> Result<(), Error> {
        let id = self.id_of(address)?;
        let member = self
            .members
            .get_mut(&id)
            .ok_or(Error::UnknownPeer(address))?;
        let own = self.settings.address;
        let Member { pulse, session, .. } = &mut **member;
        pulse.ask(session, own, (&mut self.outbox, now));
        self.wheel.schedule(&mut member.place, id, now);
        Ok(())
    }

    /// Looks at a peer that is new: at once, or in its turn when many are to be called.
    fn arrive(&mut self, id: PeerId, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if !member.session.calls(false, now) || self.calls.take(now) {
            self.nudge(id, now);
            return;
        }
        self.wheel.schedule(&mut member.place, id, now);
        self.note_session(id, now);
    }

    fn id_of(&self, address: Ipv6Addr) -> Result<PeerId, Error> {
        self.by_address
            .get(&address)
            .copied()
            .ok_or(Error::UnknownPeer(address))
    }

    fn draw_id(&mut self) -> Result<PeerId, Error> {
        for _ in 0..INDEX_DRAWS {
            let id = PeerId::from_random(self.random.random());
            if !self.members.contains_key(&id) && !self.aliases.contains_key(&id) {
                return Ok(id);
            }
        }
        Err(Error::TooManyPeers(self.members.len()))
    }
}
