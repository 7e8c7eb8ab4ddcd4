//! The QUIC connections with one peer: timers, packets, and their end. Decides nothing about streams.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_proto::{Connection, ConnectionHandle, Endpoint, Transmit};

use super::carrier::Carrier;
use super::setup::Setup;
use super::word::{self, HEADER_BYTES, Half};
use crate::netstack::link::Link;
use crate::netstack::stack::Ends;
use crate::settings::MTU_MAX;

/// Packets per turn: one full GSO batch.
const TURN_PACKETS: usize = 48;
/// Received packets share buffers of this size.
const ARENA_BYTES: usize = 16 * 1024;
/// A connection without streams is closed after this.
const IDLE_MAX: Duration = Duration::from_mins(1);
/// A closed connection is looked at this often until it may be forgotten.
const CLOSING: Duration = Duration::from_millis(100);

/// Halves of packets that wait for the others: reordering by more is rare, and then only costs a packet.
const HALVES_MAX: usize = 64;

/// The connections.
pub(super) struct Engine {
    pub(super) endpoint: Endpoint,
    pub(super) roads: HashMap<ConnectionHandle, Arc<Carrier>>,
    /// Where we dial.
    pub(super) ours: Option<ConnectionHandle>,
    pub(super) idle_since: Option<Instant>,
    pub(super) packets: Vec<u8>,
    arena: BytesMut,
    halves: Halves,
}

/// Halves of packets whose others have not come, the newest last: number, which half, what is in it.
#[derive(Default)]
struct Halves(VecDeque<(u32, bool, Vec<u8>)>);

/// What came of a connection's turn.
pub(super) struct Turn {
    pub(super) is_unfinished: bool,
    pub(super) next: Option<Instant>,
}

impl Engine {
    pub(super) fn new(setup: &Setup) -> Box<Self> {
        Box::new(Self {
            endpoint: setup.endpoint(),
            roads: HashMap::new(),
            ours: None,
            idle_since: None,
            packets: Vec::new(),
            arena: BytesMut::new(),
            halves: Halves::default(),
        })
    }

    /// Takes half of a packet; the whole once both are there.
    pub(super) fn join(&mut self, half: Half<'_>) -> Option<Vec<u8>> {
        self.halves.join(half)
    }

    /// The peer numbers its packets anew.
    pub(super) fn forget_halves(&mut self) {
        self.halves.0.clear();
    }

    /// A received packet in a buffer that it may keep.
    pub(super) fn hold(&mut self, datagram: &[u8]) -> BytesMut {
        if self.arena.capacity() < datagram.len() {
            self.arena = BytesMut::with_capacity(ARENA_BYTES.max(datagram.len()));
        }
        self.arena.extend_from_slice(datagram);
        self.arena.split()
    }

    /// Timers, packets to send, and what the endpoint must know.
    pub(super) fn turn(
        &mut self,
        handle: ConnectionHandle,
        ends: Ends,
        link: &mut Link<'_>,
    ) -> Turn {
        let mut sent = 0;
        if let Some(carrier) = self.roads.get(&handle) {
            let mut road = carrier.lock();
            road.rung = false;
            if road.proto.poll_timeout().is_some_and(|at| at <= link.now) {
                road.proto.handle_timeout(link.now);
            }
            road.digest();
        }
        self.relay(handle);
        while sent < TURN_PACKETS && link.session.is_established() {
            let Some(carrier) = self.roads.get(&handle) else {
                break;
            };
            self.packets.clear();
            let mut road = carrier.lock();
            let room = TURN_PACKETS - sent;
            let asked = questions(&road.proto);
            let transmit = road.proto.poll_transmit(link.now, room, &mut self.packets);
            let asks = questions(&road.proto) != asked;
            drop(road);
            let Some(transmit) = transmit else {
                break;
            };
            if asks {
                link.session.expect_answer(link.now);
            }
            sent += send_all(&self.packets, &transmit, ends, link);
        }
        self.relay(handle);
        let Some(carrier) = self.roads.get(&handle) else {
            return Turn {
                is_unfinished: false,
                next: None,
            };
        };
        let mut road = carrier.lock();
        let patience = road.lose_patience(link.now);
        Turn {
            is_unfinished: sent >= TURN_PACKETS,
            next: [road.proto.poll_timeout(), patience]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Carries what a connection has to say to the endpoint, and back; forgets a connection that is done.
    pub(super) fn relay(&mut self, handle: ConnectionHandle) {
        let Some(carrier) = self.roads.get(&handle) else {
            return;
        };
        let mut road = carrier.lock();
        while let Some(event) = road.proto.poll_endpoint_events() {
            if let Some(answer) = self.endpoint.handle_event(handle, event) {
                road.proto.handle_event(answer);
            }
        }
        let is_drained = road.proto.is_drained();
        drop(road);
        if is_drained {
            self.roads.remove(&handle);
            if self.ours == Some(handle) {
                self.ours = None;
            }
        }
    }

    /// Closes connections that nobody has used for a while; says when to look again.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Instant> {
        let is_used = self.roads.values().any(|carrier| carrier.lock().len() > 0);
        if is_used {
            self.idle_since = None;
            return None;
        }
        let until = *self.idle_since.get_or_insert(now) + IDLE_MAX;
        if now < until {
            return Some(until);
        }
        for carrier in self.roads.values() {
            carrier.lock().lose(now);
        }
        // The next turn says so to the peer.
        (!self.roads.is_empty()).then_some(now + CLOSING)
    }
}

impl Halves {
    fn join(&mut self, half: Half<'_>) -> Option<Vec<u8>> {
        let Half {
            number,
            is_first,
            bytes,
        } = half;
        let is_other = |(at, known, _): &(u32, bool, Vec<u8>)| *at == number && *known != is_first;
        let other = self.0.iter().position(is_other);
        let Some((_, _, mut other)) = other.and_then(|at| self.0.remove(at)) else {
            if self.0.len() >= HALVES_MAX {
                self.0.pop_front();
            }
            self.0.push_back((number, is_first, bytes.to_vec()));
            return None;
        };
        if is_first {
            other.splice(..0, bytes.iter().copied());
        } else {
            other.extend_from_slice(bytes);
        }
        Some(other)
    }
}

/// What a connection has sent that a living peer answers.
fn questions(proto: &Connection) -> u64 {
    let sent = proto.stats().frame_tx;
    sent.stream + sent.crypto + sent.ping
}

/// Sends what QUIC has made: one packet, or several of one size. Returns how many.
pub(super) fn send_all(
    packets: &[u8],
    transmit: &Transmit,
    ends: Ends,
    link: &mut Link<'_>,
) -> usize {
    let packets = packets.get(..transmit.size).unwrap_or(packets);
    let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
    let mut count = 0;
    for packet in packets.chunks(size) {
        send(packet, ends, link);
        count += 1;
    }
    count
}

/// Sends one payload to the peer, in halves if the path carries no packet of this size.
pub(super) fn send(payload: &[u8], ends: Ends, link: &mut Link<'_>) {
    if HEADER_BYTES + payload.len() <= link.session.mtu() {
        let write = |room: &mut [u8]| {
            room.get_mut(..payload.len())?.copy_from_slice(payload);
            Some(payload.len())
        };
        send_written(write, ends, link);
        return;
    }
    link.session.note_wide(link.now);
    // What was sent so far is more with every packet.
    let [low @ .., _, _, _, _] = link.session.tx_bytes().to_le_bytes();
    for half in Half::both(u32::from_le_bytes(low), payload) {
        send_written(|room| half.write(room), ends, link);
    }
}

fn send_written(write: impl FnOnce(&mut [u8]) -> Option<usize>, ends: Ends, link: &mut Link<'_>) {
    let mut packet = [0; MTU_MAX.next_multiple_of(16)];
    let Some(length) = packet.get_mut(HEADER_BYTES..).and_then(write) else {
        return;
    };
    let addresses: (Ipv6Addr, Ipv6Addr) = (ends.own, ends.peer);
    if let Some(length) = word::close(&mut packet, length, addresses) {
        link.session
            .seal(&mut packet, length, link.outbox, link.now);
    }
}
