//! QUIC with one peer, as the driver sees it: who the peer is, who waits for it, which streams are taken. Costs next to nothing while there
//! is no connection; one is made for the first stream and closed a minute after the last. Packets and timers are the engine's.
//!
//! Each side dials on a connection of its own and takes streams from the other's, so nobody has to agree on who begins.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{ConnectionHandle, DatagramEvent, Incoming};
use tokio::sync::oneshot;

use super::carrier::Carrier;
use super::conn::QuicConn;
use super::engine::{Engine, send, send_all};
use super::setup::Setup;
use super::word::{self, PORT, Parcel, Word};
use crate::agenda::{Agenda, Place};
use crate::drops::DropReason;
use crate::error::Error;
use crate::netstack::backlog::{Arrival, Backlog, Room};
use crate::netstack::conn::{ConnKey, End};
use crate::netstack::link::Link;
use crate::netstack::segment::PortPair;
use crate::netstack::stack::Ends;
use crate::stream::Stream;
use crate::wg::PeerId;

/// TCP never has a connection between these ports: a peer's place in the agenda and on the doorbell.
const PLACE: PortPair = PortPair {
    local: 0,
    remote: 0,
};
/// A peer that has not said within this time that it knows this room, of its first session, is a stock one.
const PATIENCE: Duration = Duration::from_millis(300);
/// A word is lost as easily as any packet.
const ASK_EVERY: Duration = Duration::from_millis(100);
const ASKS_MAX: u32 = 4;
/// One each way, and those that are being closed.
const CONNECTIONS_MAX: usize = 8;
/// A stream that waits for room with its listener is looked at this often.
const ADMIT_EVERY: Duration = Duration::from_millis(20);

/// What a dial comes to.
#[derive(Debug)]
pub(crate) enum Way {
    /// A stream that is being made.
    Quic(Stream),
    /// The peer is to be dialled with TCP.
    Tcp,
}

/// Who waits for a [`Way`].
pub(crate) type WayReply = oneshot::Sender<Result<Way, Error>>;

/// QUIC with one peer.
pub(crate) struct Quic {
    id: PeerId,
    ends: Ends,
    setup: Arc<Setup>,
    place: Place,
    /// Changes whenever we forget connections without saying so.
    life: u64,
    peer: Option<Word>,
    /// How often the peer was asked in this session, and when first and last.
    asked: Option<(u32, Instant, Instant)>,
    /// It has never answered.
    silent: bool,
    waiting: Vec<(u16, WayReply)>,
    /// Streams of the peer wait for their listeners.
    is_queued: bool,
    engine: Option<Box<Engine>>,
}

/// A peer's place in the agenda.
const fn place_of(peer: PeerId) -> ConnKey {
    ConnKey { peer, ports: PLACE }
}

impl Quic {
    pub(crate) fn new(peer: PeerId, ends: Ends, setup: Arc<Setup>, life: u64) -> Self {
        Self {
            id: peer,
            ends,
            setup,
            place: Place::default(),
            life,
            peer: None,
            asked: None,
            silent: false,
            waiting: Vec::new(),
            is_queued: false,
            engine: None,
        }
    }

    /// Whether this place in the agenda is that of a peer's QUIC.
    pub(crate) fn is_place(ports: PortPair) -> bool {
        ports == PLACE
    }

    /// Streams with the peer, those included that are to be made or only deliver.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.waiting.iter().filter(|(_, reply)| !reply.is_closed());
        let streams = self.carriers().map(|carrier| carrier.lock().len());
        waiting.count() + streams.sum::<usize>()
    }

    /// Whether there is no connection.
    #[cfg(test)]
    pub(crate) const fn is_at_rest(&self) -> bool {
        self.engine.is_none()
    }

    /// Whether something waits for the peer.
    pub(crate) fn is_wanted(&self) -> bool {
        self.len() > 0
    }

    /// How to reach a port: told at once where the peer is known, otherwise as soon as it is.
    pub(crate) fn dial(
        &mut self,
        port: u16,
        reply: WayReply,
        link: &Link<'_>,
        agenda: &mut Agenda,
    ) {
        self.waiting.retain(|(_, reply)| !reply.is_closed());
        if self.len() >= self.setup.streams_max {
            drop(reply.send(Err(Error::TooManyStreams(self.setup.streams_max))));
            return;
        }
        self.waiting.push((port, reply));
        self.decide(link);
        self.queue(false, agenda);
    }

    pub(crate) fn queue(&mut self, came_due: bool, agenda: &mut Agenda) {
        if came_due {
            self.place.came_due();
        }
        agenda.queue(&mut self.place, place_of(self.id));
    }

    /// There is a session: say who we are, and let connections go on at once.
    pub(crate) fn session_came(&mut self, link: &mut Link<'_>, agenda: &mut Agenda) {
        if !self.setup.is_wanted() {
            return;
        }
        self.asked = Some((1, link.now, link.now));
        self.say(true, link);
        self.peer_returned(agenda);
    }

    /// The peer has missed what it was sent: its answer to a small packet tells which.
    pub(crate) fn peer_returned(&mut self, agenda: &mut Agenda) {
        for carrier in self.carriers() {
            carrier.lock().proto.ping();
        }
        self.queue(false, agenda);
    }

    /// Takes a packet for which [`word::is_ours`] holds.
    pub(crate) fn receive(
        &mut self,
        packet: &[u8],
        link: &mut Link<'_>,
        listeners: &HashMap<u16, Arc<Backlog>>,
        agenda: &mut Agenda,
    ) -> Result<(), DropReason> {
        if !self.setup.is_wanted() {
            return Err(DropReason::NotTcp);
        }
        let outcome = match word::open(packet, self.ends.own).ok_or(DropReason::NotTcp)? {
            Parcel::Word(word) => {
                self.hear(word, link);
                Ok(())
            }
            Parcel::Quic(datagram) => {
                self.take(datagram, link);
                self.admit(listeners)
            }
            Parcel::Half(half) => {
                let engine = self.engine.get_or_insert_with(|| Engine::new(&self.setup));
                if let Some(datagram) = engine.join(half) {
                    self.take(&datagram, link);
                }
                self.admit(listeners)
            }
        };
        self.queue(false, agenda);
        outcome
    }

    /// Runs what is due, sends, and says when to come back.
    pub(crate) fn serve(
        &mut self,
        link: &mut Link<'_>,
        listeners: &HashMap<u16, Arc<Backlog>>,
        agenda: &mut Agenda,
    ) {
        self.place.taken();
        if self.is_queued {
            self.is_queued = false;
            // That they wait was counted when they came.
            let _counted = self.admit(listeners);
            agenda.schedule(&mut self.place, place_of(self.id), link.now + ADMIT_EVERY);
        }
        self.decide(link);
        if let Some(at) = self.ask_again(link) {
            agenda.schedule(&mut self.place, place_of(self.id), at);
        }
        let Some(engine) = &mut self.engine else {
            return;
        };
        let ends = self.ends;
        let mut is_unfinished = false;
        let mut next = None::<Instant>;
        let handles: Vec<ConnectionHandle> = engine.roads.keys().copied().collect();
        for handle in handles {
            let turn = engine.turn(handle, ends, link);
            is_unfinished |= turn.is_unfinished;
            next = [next, turn.next].into_iter().flatten().min();
        }
        let idle = engine.rest(link.now);
        next = [next, idle].into_iter().flatten().min();
        if engine.roads.is_empty() {
            self.engine = None;
        }
        if !link.session.is_established() {
            // The session's arrival queues us; what would be sent meanwhile is only lost. But nobody's connections are not kept for ever.
            next = idle;
            is_unfinished = false;
        }
        if is_unfinished {
            agenda.queue(&mut self.place, place_of(self.id));
        } else if let Some(next) = next {
            agenda.schedule(&mut self.place, place_of(self.id), next);
        }
    }

    /// Cuts all streams and forgets the connections; the peer is told while it can be.
    pub(crate) fn cut_all(&mut self, end: End, link: &mut Link<'_>) {
        for (_, reply) in self.waiting.drain(..) {
            let error = match end {
                End::PeerRemoved => Error::PeerRemoved(self.ends.peer),
                End::TunnelClosed => Error::Closed,
                End::SessionLost => Error::NoSession {
                    address: self.ends.peer,
                    after: crate::core::SESSIONLESS_MAX,
                },
            };
            drop(reply.send(Err(error)));
        }
        let Some(mut engine) = self.engine.take() else {
            return;
        };
        let handles: Vec<ConnectionHandle> = engine.roads.keys().copied().collect();
        for handle in handles {
            if let Some(carrier) = engine.roads.get(&handle) {
                carrier.lock().cut(end, link.now);
            }
            engine.turn(handle, self.ends, link);
        }
        // Whoever has not heard it learns it from our next word.
        self.life = self.life.wrapping_add(1);
    }

    fn carriers(&self) -> impl Iterator<Item = &Arc<Carrier>> {
        self.engine.iter().flat_map(|engine| engine.roads.values())
    }

    fn say(&self, asks: bool, link: &mut Link<'_>) {
        let word = Word {
            life: self.life,
            embedded: self.setup.is_embedded,
            asks,
        };
        send(&word.bytes(), self.ends, link);
    }

    fn hear(&mut self, word: Word, link: &mut Link<'_>) {
        if self.peer.is_some_and(|known| known.life != word.life) {
            for carrier in self.carriers() {
                carrier.lock().lose(link.now);
            }
            if let Some(engine) = &mut self.engine {
                engine.forget_halves();
            }
        }
        self.peer = Some(word);
        self.silent = false;
        if word.asks {
            self.say(false, link);
        }
        self.decide(link);
    }

    /// Asks a peer that has not answered; says when to do so again.
    fn ask_again(&mut self, link: &mut Link<'_>) -> Option<Instant> {
        if self.peer.is_some() || !link.session.is_established() || !self.setup.is_wanted() {
            return None;
        }
        let (times, first, last) = self.asked?;
        if times >= ASKS_MAX {
            return (!self.waiting.is_empty()).then_some(first + PATIENCE);
        }
        if link.now < last + ASK_EVERY {
            return Some(last + ASK_EVERY);
        }
        self.asked = Some((times + 1, first, link.now));
        self.say(true, link);
        Some(link.now + ASK_EVERY)
    }

    /// Tells those who wait, if it is known what to tell.
    fn decide(&mut self, link: &Link<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        let is_quic = match (self.setup.is_wanted(), self.peer) {
            (false, _) => false,
            (true, Some(word)) => word.embedded || self.setup.is_embedded,
            (true, None) => {
                let is_late = |(_, first, _)| link.now.duration_since(first) >= PATIENCE;
                self.silent |= link.session.is_established() && self.asked.is_some_and(is_late);
                if !self.silent {
                    return;
                }
                false
            }
        };
        for (port, reply) in std::mem::take(&mut self.waiting) {
            if reply.is_closed() {
                continue;
            }
            let way = if is_quic {
                self.open(port, link)
            } else {
                Ok(Way::Tcp)
            };
            // A stream that nobody takes is reset by being dropped.
            drop(reply.send(way));
        }
    }

    fn open(&mut self, port: u16, link: &Link<'_>) -> Result<Way, Error> {
        let (own, peer) = (self.ends.own, self.ends.peer);
        let engine = self.engine.get_or_insert_with(|| Engine::new(&self.setup));
        let known = engine.ours.and_then(|handle| engine.roads.get(&handle));
        let known = known.filter(|carrier| !carrier.lock().is_over());
        let carrier = if let Some(carrier) = known {
            Arc::clone(carrier)
        } else {
            let remote = SocketAddr::from((peer, PORT));
            let client = self.setup.client(link.session.mtu());
            let (handle, proto) = engine
                .endpoint
                .connect(link.now, client, remote, "peer")
                .map_err(|error| Error::Dial {
                    address: peer,
                    port,
                    source: std::io::Error::other(error),
                })?;
            let doorbell = Arc::clone(&self.setup.doorbell);
            let carrier = Carrier::new(proto, place_of(self.id), (own, peer), doorbell);
            engine.roads.insert(handle, Arc::clone(&carrier));
            engine.ours = Some(handle);
            carrier
        };
        let number = carrier.lock().dial(port);
        engine.idle_since = None;
        Ok(Way::Quic(Stream::of_quic(QuicConn::new(
            carrier, number, port, true,
        ))))
    }

    /// Gives a QUIC packet to its connection.
    fn take(&mut self, datagram: &[u8], link: &mut Link<'_>) {
        let engine = self.engine.get_or_insert_with(|| Engine::new(&self.setup));
        let remote = SocketAddr::from((self.ends.peer, PORT));
        let bytes = engine.hold(datagram);
        engine.packets.clear();
        let event =
            engine
                .endpoint
                .handle(link.now, remote, None, None, bytes, &mut engine.packets);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(carrier) = engine.roads.get(&handle) {
                    let mut road = carrier.lock();
                    road.proto.handle_event(event);
                    road.digest();
                }
                engine.relay(handle);
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.welcome(incoming, link),
            Some(DatagramEvent::Response(transmit)) => {
                send_all(&engine.packets, &transmit, self.ends, link);
            }
            None => {}
        }
    }

    fn welcome(&mut self, incoming: Incoming, link: &mut Link<'_>) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        if engine.roads.len() >= CONNECTIONS_MAX {
            engine.endpoint.ignore(incoming);
            return;
        }
        engine.packets.clear();
        let server = self.setup.server(link.session.mtu());
        let accepted =
            engine
                .endpoint
                .accept(incoming, link.now, &mut engine.packets, Some(server));
        match accepted {
            Ok((handle, proto)) => {
                let doorbell = Arc::clone(&self.setup.doorbell);
                let ends = (self.ends.own, self.ends.peer);
                let carrier = Carrier::new(proto, place_of(self.id), ends, doorbell);
                carrier.lock().digest();
                engine.roads.insert(handle, carrier);
                engine.relay(handle);
            }
            Err(refused) => {
                tracing::debug!(cause = %refused.cause, "a connection inside the tunnel was not taken");
                if let Some(transmit) = refused.response {
                    send_all(&engine.packets, &transmit, self.ends, link);
                }
            }
        }
    }

    /// Hands streams that the peer has begun to their listeners, or refuses them. One whose listener has no room waits, as with TCP.
    fn admit(&mut self, listeners: &HashMap<u16, Arc<Backlog>>) -> Result<(), DropReason> {
        let is_over = self.len() > self.setup.streams_max;
        let mut outcome = Ok(());
        self.is_queued = false;
        for carrier in self.engine.iter().flat_map(|engine| engine.roads.values()) {
            let asking = carrier.lock().take_asking();
            for (number, port) in asking {
                match admit_one(carrier, (number, port), listeners.get(&port), is_over) {
                    Ok(()) => {}
                    Err(reason) => {
                        self.is_queued |= reason == DropReason::BacklogFull;
                        outcome = Err(reason);
                    }
                }
            }
        }
        outcome
    }
}

fn admit_one(
    carrier: &Arc<Carrier>,
    (number, port): (u64, u16),
    backlog: Option<&Arc<Backlog>>,
    is_over: bool,
) -> Result<(), DropReason> {
    let mut road = carrier.lock();
    if is_over {
        road.refuse(number);
        return Err(DropReason::TooManyStreams);
    }
    match backlog.map(|backlog| (backlog, backlog.reserve())) {
        Some((backlog, Room::Taken)) => {
            road.accept(number);
            drop(road);
            let conn = QuicConn::new(Arc::clone(carrier), number, port, false);
            if !backlog.deliver(Arrival::Quic(conn.clone())) {
                conn.abandon();
            }
            Ok(())
        }
        Some((_, Room::Full)) => {
            road.ask_later(number);
            Err(DropReason::BacklogFull)
        }
        Some((_, Room::Closed)) | None => {
            road.refuse(number);
            Err(DropReason::ClosedPort)
        }
    }
}
