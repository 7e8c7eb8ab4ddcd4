//! All connections with one peer.
//!
//! Finds the connection of a packet, lets smoltcp work on it, and decides afterwards whether the
//! connection needs another turn, a date, or can be forgotten.

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Duration as StackDuration;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};

use super::backlog::{Backlog, Room};
use super::clock::Clock;
use super::conn::{Conn, ConnKey, End};
use super::doorbell::Doorbell;
use super::entry::{Entry, Fate};
use super::link::{Link, Shape};
use super::ports::Ports;
use super::segment::{PortPair, Segment};
use crate::agenda::{Agenda, Place};
use crate::drops::DropReason;
use crate::error::Error;
use crate::settings::Bounds;
use crate::wg::PeerId;

/// Acknowledgements wait this long for data to travel with.
const ACK_DELAY: StackDuration = StackDuration::from_millis(5);
/// An idle connection asks this often whether the other side still knows it: after a restart of
/// the other side the answer is a reset.
const KEEP_ALIVE: StackDuration = StackDuration::from_secs(20);
/// A peer with a live session that does not answer TCP for this long has lost the connection.
/// Must exceed smoltcp's longest pause between two window probes, 60 s.
const SILENCE_MAX: StackDuration = StackDuration::from_secs(300);
/// A connection that begins may take this long.
const HALF_OPEN_MAX: Duration = Duration::from_secs(30);
/// Packets a connection may send per turn: one full GSO batch.
const TURN_PACKETS: usize = 48;
/// smoltcp sometimes wants to be polled at once and then has nothing to send.
const IDLE_TURN: Duration = Duration::from_millis(1);

/// The sizes a stack is built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) buffer_bytes: usize,
    pub(crate) mtu: usize,
    pub(crate) sockets_max: usize,
}

impl From<&Bounds> for Sizes {
    fn from(bounds: &Bounds) -> Self {
        Self {
            buffer_bytes: bounds.tcp_buffer_bytes,
            mtu: bounds.mtu_max,
            sockets_max: bounds.sockets_per_peer_max,
        }
    }
}

/// The two ends of the overlay path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) own: Ipv6Addr,
    pub(crate) peer: Ipv6Addr,
}

/// What a stack shares with the rest of the tunnel.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) clock: Clock,
    pub(crate) doorbell: Arc<Doorbell>,
    pub(crate) sizes: Sizes,
}

/// The TCP side of one peer.
pub(crate) struct Stack {
    peer: PeerId,
    ends: Ends,
    shared: Surroundings,
    interface: Interface,
    conns: HashMap<PortPair, Entry>,
    /// Connections that no listener has been given yet.
    half_open: usize,
    ports: Ports,
    /// For packets of no connection: smoltcp answers them with a reset.
    nobody: SocketSet<'static>,
}

impl Stack {
    pub(crate) fn new(
        peer: PeerId,
        ends: Ends,
        shared: Surroundings,
        random: u64,
        now: Instant,
    ) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random;
        let mut shape = Shape {
            mtu: shared.sizes.mtu,
        };
        let mut interface = Interface::new(config, &mut shape, shared.clock.to_stack(now));
        interface.update_ip_addrs(|addresses| {
            let own = IpCidr::new(IpAddress::Ipv6(ends.own), 128);
            // A fresh interface has room for two addresses.
            let _ = addresses.push(own);
        });
        Self {
            peer,
            ends,
            shared,
            interface,
            conns: HashMap::new(),
            half_open: 0,
            ports: Ports::new((random >> 32) as u32),
            nobody: SocketSet::new(Vec::new()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.conns.len()
    }

    /// Begins a connection to a port of the peer.
    pub(crate) fn connect(&mut self, port: u16, agenda: &mut Agenda) -> Result<Arc<Conn>, Error> {
        let max = self.shared.sizes.sockets_max;
        if self.conns.len() >= max {
            return Err(Error::TooManyStreams(max));
        }
        let conns = &self.conns;
        let local = self
            .ports
            .take(|local| {
                !conns.contains_key(&PortPair {
                    local,
                    remote: port,
                })
            })
            .ok_or(Error::NoSourcePort)?;
        let mut socket = self.socket();
        let from = IpListenEndpoint {
            addr: Some(IpAddress::Ipv6(self.ends.own)),
            port: local,
        };
        let to = (IpAddress::Ipv6(self.ends.peer), port);
        socket
            .connect(self.interface.context(), to, from)
            .map_err(|_| Error::PortZero)?;
        let ports = PortPair {
            local,
            remote: port,
        };
        Ok(self.insert(ports, socket, None, agenda))
    }

    /// Works on a packet from the peer; `link` holds it.
    pub(crate) fn receive(
        &mut self,
        segment: Segment,
        link: &mut Link<'_>,
        listeners: &HashMap<u16, Arc<Backlog>>,
        agenda: &mut Agenda,
    ) -> Result<(), DropReason> {
        if segment.opens {
            self.admit(segment.ports, listeners, link.now, agenda)?;
        }
        let at = self.shared.clock.to_stack(link.now);
        let Some(entry) = self.conns.get_mut(&segment.ports) else {
            self.interface
                .poll_ingress_single(at, link, &mut self.nobody);
            // smoltcp has refused it.
            return if segment.opens {
                Err(DropReason::ClosedPort)
            } else {
                Ok(())
            };
        };
        self.interface
            .poll_ingress_single(at, link, &mut entry.conn.lock().sockets);
        agenda.queue(
            &mut entry.place,
            ConnKey {
                peer: self.peer,
                ports: segment.ports,
            },
        );
        Ok(())
    }

    /// Gives one connection its turn: hand it over, send, and see what comes next.
    pub(crate) fn serve(&mut self, ports: PortPair, link: &mut Link<'_>, agenda: &mut Agenda) {
        let Some(entry) = self.conns.get_mut(&ports) else {
            return;
        };
        entry.place.taken();
        let key = ConnKey {
            peer: self.peer,
            ports,
        };
        let clock = self.shared.clock;
        let at = clock.to_stack(link.now);
        let conn = Arc::clone(&entry.conn);
        let mut inner = conn.lock();
        inner.rung = false;
        if entry.hand_over(&conn, &mut inner) {
            self.half_open = self.half_open.saturating_sub(1);
        }
        entry.lose_patience(&mut inner, link.now);

        link.credit = TURN_PACKETS;
        while let PollResult::SocketStateChanged =
            self.interface.poll_egress(at, link, &mut inner.sockets)
        {}
        let next = self.interface.poll_at(at, &inner.sockets);
        let next = next.map(|next| clock.to_system(next).max(link.now));

        if let Fate::Forget = entry.fate(&inner, next, link.now) {
            drop(inner);
            self.forget(ports, agenda);
            return;
        }
        drop(inner);
        match next {
            // Without a session the stack cannot send; the session's arrival queues everybody.
            Some(next) if next <= link.now && link.session.is_established() => {
                if link.credit < TURN_PACKETS {
                    agenda.queue(&mut entry.place, key);
                } else {
                    agenda.schedule(&mut entry.place, key, link.now + IDLE_TURN);
                }
            }
            Some(next) if next > link.now => agenda.schedule(&mut entry.place, key, next),
            Some(_) | None => {}
        }
        if let Some(give_up_at) = entry.give_up_at {
            agenda.schedule(&mut entry.place, key, give_up_at);
        }
    }

    /// Queues a connection for its turn, when it still exists.
    pub(crate) fn queue(&mut self, ports: PortPair, came_due: bool, agenda: &mut Agenda) {
        if let Some(entry) = self.conns.get_mut(&ports) {
            if came_due {
                entry.place.came_due();
            }
            agenda.queue(
                &mut entry.place,
                ConnKey {
                    peer: self.peer,
                    ports,
                },
            );
        }
    }

    /// Queues every connection: the session has come.
    pub(crate) fn queue_all(&mut self, agenda: &mut Agenda) {
        for (ports, entry) in &mut self.conns {
            agenda.queue(
                &mut entry.place,
                ConnKey {
                    peer: self.peer,
                    ports: *ports,
                },
            );
        }
    }

    /// Begins connections anew whose first packet the peer has missed. smoltcp would repeat it only
    /// after its backoff.
    pub(crate) fn dial_again(&mut self, agenda: &mut Agenda) {
        for (ports, entry) in &mut self.conns {
            let mut inner = entry.conn.lock();
            if inner.state() != State::SynSent {
                continue;
            }
            let from = IpListenEndpoint {
                addr: Some(IpAddress::Ipv6(self.ends.own)),
                port: ports.local,
            };
            let to = (IpAddress::Ipv6(self.ends.peer), ports.remote);
            inner.socket().abort();
            if let Err(error) = inner.socket().connect(self.interface.context(), to, from) {
                tracing::debug!(%error, "a connection could not be begun anew");
            }
            drop(inner);
            let key = ConnKey {
                peer: self.peer,
                ports: *ports,
            };
            agenda.queue(&mut entry.place, key);
        }
    }

    /// Cuts connections, says so to the peer while a session lasts, and forgets them. The loss of the
    /// session spares those that are only being made: whoever dials waits for it under a deadline.
    pub(crate) fn cut_all(&mut self, end: End, link: &mut Link<'_>, agenda: &mut Agenda) {
        let all: Vec<PortPair> = self.conns.keys().copied().collect();
        for ports in all {
            if let Some(entry) = self.conns.get(&ports) {
                let begins = entry.conn.lock().state() == State::SynSent;
                if begins && end == End::SessionLost {
                    continue;
                }
                entry.conn.cut(end);
            }
            self.serve(ports, link, agenda);
            self.forget(ports, agenda);
        }
    }

    /// Makes room for a connection the peer begins, if a listener wants it.
    fn admit(
        &mut self,
        ports: PortPair,
        listeners: &HashMap<u16, Arc<Backlog>>,
        now: Instant,
        agenda: &mut Agenda,
    ) -> Result<(), DropReason> {
        if let Some(entry) = self.conns.get(&ports) {
            let inner = entry.conn.lock();
            let over = matches!(inner.state(), State::TimeWait | State::Closed)
                || (inner.abandoned && inner.state() == State::FinWait2);
            drop(inner);
            if !over {
                return Ok(());
            }
            // RFC 9293, 3.10.7.4: a new connection may take the place of one in TIME-WAIT.
            self.forget(ports, agenda);
        }
        let Some(backlog) = listeners.get(&ports.local) else {
            return Ok(());
        };
        if self.conns.len() >= self.shared.sizes.sockets_max {
            return Err(DropReason::TooManyStreams);
        }
        if self.half_open >= backlog.share() {
            return Err(DropReason::BacklogFull);
        }
        match backlog.reserve() {
            Room::Full => return Err(DropReason::BacklogFull),
            Room::Closed => return Ok(()),
            Room::Taken => {}
        }
        let mut socket = self.socket();
        let at = IpListenEndpoint {
            addr: Some(IpAddress::Ipv6(self.ends.own)),
            port: ports.local,
        };
        if socket.listen(at).is_err() {
            backlog.release();
            return Ok(());
        }
        self.insert(ports, socket, Some(Arc::clone(backlog)), agenda);
        self.half_open += 1;
        if let Some(entry) = self.conns.get_mut(&ports) {
            entry.give_up_at = Some(now + HALF_OPEN_MAX);
        }
        Ok(())
    }

    fn insert(
        &mut self,
        ports: PortPair,
        socket: Socket<'static>,
        backlog: Option<Arc<Backlog>>,
        agenda: &mut Agenda,
    ) -> Arc<Conn> {
        let key = ConnKey {
            peer: self.peer,
            ports,
        };
        let addresses = (
            SocketAddrV6::new(self.ends.own, ports.local, 0, 0),
            SocketAddrV6::new(self.ends.peer, ports.remote, 0, 0),
        );
        let conn = Conn::new(key, addresses, Arc::clone(&self.shared.doorbell), socket);
        let mut entry = Entry {
            conn: Arc::clone(&conn),
            place: Place::default(),
            backlog,
            give_up_at: None,
        };
        agenda.queue(&mut entry.place, key);
        self.conns.insert(ports, entry);
        conn
    }

    fn forget(&mut self, ports: PortPair, agenda: &mut Agenda) {
        if let Some(mut entry) = self.conns.remove(&ports) {
            let key = ConnKey {
                peer: self.peer,
                ports,
            };
            agenda.forget(&mut entry.place, key);
            if let Some(backlog) = entry.backlog {
                backlog.release();
                self.half_open = self.half_open.saturating_sub(1);
            }
        }
    }

    fn socket(&self) -> Socket<'static> {
        let bytes = self.shared.sizes.buffer_bytes;
        let mut socket = Socket::new(
            SocketBuffer::new(vec![0; bytes]),
            SocketBuffer::new(vec![0; bytes]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.set_timeout(Some(SILENCE_MAX));
        socket.set_congestion_control(CongestionControl::Cubic);
        socket
    }
}
