//! The connections with one peer: in a stack of our own, or in the kernel's.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use crate::agenda::Agenda;
use crate::drops::DropReason;
use crate::netns::{REFUSAL_BYTES, Registry, refusal};
use crate::netstack::backlog::Backlog;
use crate::netstack::conn::{Conn, End};
use crate::netstack::link::Link;
use crate::netstack::segment::{PortPair, Segment};
use crate::netstack::stack::{Ends, Stack, Surroundings};
use crate::outbox::Outbox;
use crate::quic::Quic;
use crate::settings::MTU_MAX;
use crate::wg::PeerId;
use crate::wg::session::{Plain, Session};

/// Packets kept for a peer that cannot be reached, so that it need not wait for the kernel's next attempt when it is back.
const HELD_MAX: usize = 16;

/// Packets kept because they were as large as the path seemed to be wide: the last of each of a few connections that repeat themselves.
const WIDE_MAX: usize = 4;

/// The connections with one peer.
pub(super) struct Inside {
    tcp: Tcp,
    pub(super) quic: Quic,
}

/// Who does TCP.
pub(super) enum Tcp {
    Stack(Lazy),
    Kernel(Kernel),
}

/// A stack of our own, made with the first connection: thousands of peers never have one.
pub(super) struct Lazy {
    id: PeerId,
    ends: Ends,
    random: u64,
    stack: Option<Box<Stack>>,
}

impl Lazy {
    pub(super) fn new(id: PeerId, ends: Ends, random: u64) -> Self {
        Self {
            id,
            ends,
            random,
            stack: None,
        }
    }

    fn make(&mut self, shared: &Surroundings, now: Instant) -> &mut Stack {
        let Self {
            id, ends, random, ..
        } = *self;
        self.stack
            .get_or_insert_with(|| Box::new(Stack::new(id, ends, shared.clone(), random, now)))
    }

    fn len(&self) -> usize {
        self.stack.as_ref().map_or(0, |stack| stack.len())
    }
}

/// Connections in the kernel.
pub(super) struct Kernel {
    registry: Arc<Registry>,
    address: Ipv6Addr,
    held: VecDeque<Vec<u8>>,
    wide: Option<Box<Wide>>,
}

/// Packets that a narrower path would lose. Apart, because an idle peer has none.
#[derive(Default)]
struct Wide {
    packets: VecDeque<Vec<u8>>,
}

impl Kernel {
    pub(super) fn new(registry: Arc<Registry>, address: Ipv6Addr) -> Self {
        registry.add(address);
        Self {
            registry,
            address,
            held: VecDeque::new(),
            wide: None,
        }
    }

    /// Keeps a packet that the peer cannot have got, or may not have got.
    pub(super) fn hold(&mut self, packet: &[u8]) {
        keep(&mut self.held, HELD_MAX, packet);
    }

    /// Keeps a packet that came alone, as repeated ones do, and that a path which has become narrower would lose.
    pub(super) fn note_wide(&mut self, packet: &[u8]) {
        let wide = self.wide.get_or_insert_default();
        keep(&mut wide.packets, WIDE_MAX, packet);
    }

    /// Sends again what was too large for the path, cut to what it carries.
    pub(super) fn say_again(&mut self, session: &mut Session, outbox: &mut Outbox, now: Instant) {
        if let Some(mut wide) = self.wide.take() {
            send_all(&mut wide.packets, session, outbox, now);
        }
    }
}

fn keep(queue: &mut VecDeque<Vec<u8>>, max: usize, packet: &[u8]) {
    if packet.len() > MTU_MAX {
        return;
    }
    let mut room = if queue.len() >= max {
        queue.pop_front().unwrap_or_default()
    } else {
        Vec::with_capacity(MTU_MAX + 16)
    };
    room.clear();
    room.extend_from_slice(packet);
    queue.push_back(room);
}

fn send_all(
    queue: &mut VecDeque<Vec<u8>>,
    session: &mut Session,
    outbox: &mut Outbox,
    now: Instant,
) {
    for mut packet in queue.drain(..) {
        let length = packet.len();
        packet.resize(length.next_multiple_of(16), 0);
        session.seal(&mut packet, length, outbox, now);
    }
}

impl Inside {
    pub(super) const fn new(tcp: Tcp, quic: Quic) -> Self {
        Self { tcp, quic }
    }

    pub(super) const fn is_kernel(&self) -> bool {
        matches!(self.tcp, Tcp::Kernel(_))
    }

    pub(super) const fn kernel_mut(&mut self) -> Option<&mut Kernel> {
        match &mut self.tcp {
            Tcp::Kernel(kernel) => Some(kernel),
            Tcp::Stack(_) => None,
        }
    }

    fn stack_mut(&mut self) -> Option<&mut Stack> {
        match &mut self.tcp {
            Tcp::Stack(lazy) => lazy.stack.as_deref_mut(),
            Tcp::Kernel(_) => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tcp.len() + self.quic.len()
    }

    /// Whether something waits for the peer: a connection, or packets of one.
    pub(super) fn is_wanted(&self) -> bool {
        self.tcp.is_wanted() || self.quic.is_wanted()
    }

    pub(super) fn queue(&mut self, ports: PortPair, came_due: bool, agenda: &mut Agenda) {
        if Quic::is_place(ports) {
            self.quic.queue(came_due, agenda);
        } else if let Some(stack) = self.stack_mut() {
            stack.queue(ports, came_due, agenda);
        }
    }

    pub(super) fn serve(
        &mut self,
        ports: PortPair,
        link: &mut Link<'_>,
        listeners: &HashMap<u16, Arc<Backlog>>,
        agenda: &mut Agenda,
    ) {
        if Quic::is_place(ports) {
            self.quic.serve(link, listeners, agenda);
        } else if let Some(stack) = self.stack_mut() {
            stack.serve(ports, link, agenda);
        }
    }

    /// The session has come: everybody may send.
    pub(super) fn session_came(&mut self, link: &mut Link<'_>, agenda: &mut Agenda) {
        self.quic.session_came(link, agenda);
        match &mut self.tcp {
            Tcp::Stack(lazy) => {
                if let Some(stack) = &mut lazy.stack {
                    stack.queue_all(agenda);
                }
            }
            Tcp::Kernel(kernel) => kernel.let_go(link.session, link.outbox, link.now),
        }
    }

    /// The peer is back and has missed what it was sent.
    pub(super) fn peer_returned(&mut self, link: &mut Link<'_>, agenda: &mut Agenda) {
        self.quic.peer_returned(agenda);
        match &mut self.tcp {
            Tcp::Stack(lazy) => {
                if let Some(stack) = &mut lazy.stack {
                    stack.dial_again(agenda);
                }
            }
            Tcp::Kernel(kernel) => kernel.let_go(link.session, link.outbox, link.now),
        }
    }

    /// Works on a packet; `link` holds it. The kernel's packets go another way.
    pub(super) fn receive(
        &mut self,
        segment: Segment,
        link: &mut Link<'_>,
        (shared, listeners): (&Surroundings, &HashMap<u16, Arc<Backlog>>),
        agenda: &mut Agenda,
    ) -> Result<(), DropReason> {
        match &mut self.tcp {
            Tcp::Stack(lazy) => {
                let stack = lazy.make(shared, link.now);
                stack.receive(segment, link, listeners, agenda)
            }
            Tcp::Kernel(_) => Ok(()),
        }
    }

    /// Begins a TCP connection.
    pub(super) fn connect(
        &mut self,
        port: u16,
        (shared, now): (&Surroundings, Instant),
        agenda: &mut Agenda,
    ) -> Result<Option<Arc<Conn>>, crate::Error> {
        match &mut self.tcp {
            Tcp::Stack(lazy) => lazy.make(shared, now).connect(port, agenda).map(Some),
            Tcp::Kernel(_) => Ok(None),
        }
    }

    pub(super) fn cut_all(&mut self, end: End, link: &mut Link<'_>, agenda: &mut Agenda) {
        self.quic.cut_all(end, link);
        match &mut self.tcp {
            Tcp::Stack(lazy) => {
                if let Some(stack) = &mut lazy.stack {
                    stack.cut_all(end, link, agenda);
                }
            }
            Tcp::Kernel(kernel) => kernel.cut_all(end),
        }
    }
}

impl Tcp {
    fn len(&self) -> usize {
        match self {
            Self::Stack(lazy) => lazy.len(),
            Self::Kernel(kernel) => kernel.registry.len(kernel.address),
        }
    }

    fn is_wanted(&self) -> bool {
        match self {
            Self::Stack(lazy) => lazy.len() > 0,
            Self::Kernel(kernel) => !kernel.held.is_empty() || self.len() > 0,
        }
    }
}

impl Kernel {
    fn cut_all(&mut self, end: End) {
        self.held.clear();
        match end {
            End::SessionLost => self.registry.cut(self.address, end),
            End::PeerRemoved | End::TunnelClosed => self.registry.remove(self.address, end),
        }
    }

    fn let_go(&mut self, session: &mut Session, outbox: &mut Outbox, now: Instant) {
        send_all(&mut self.held, session, outbox, now);
    }
}

/// Whether somebody listens on the port that a connection is asked for.
pub(super) fn is_open(listeners: &HashMap<u16, Arc<Backlog>>, segment: Segment) -> bool {
    let backlog = listeners.get(&segment.ports.local);
    backlog.is_some_and(|backlog| !backlog.is_closed())
}

/// Tells the peer that nobody listens there.
pub(super) fn refuse(packet: &[u8], session: &mut Session, (outbox, now): (&mut Outbox, Instant)) {
    if let Some(mut reset) = refusal(packet) {
        session.seal(&mut reset, REFUSAL_BYTES, outbox, now);
    }
}

/// Checks who an overlay packet is from and to. Peers never reach each other through us.
pub(super) fn check(
    plain: &Plain<'_>,
    peer: Ipv6Addr,
    own: Ipv6Addr,
) -> Result<Segment, DropReason> {
    if plain.source != peer {
        return Err(DropReason::ForeignSource);
    }
    let segment = Segment::parse(plain.packet)?;
    if segment.destination != own {
        return Err(DropReason::ForeignDestination);
    }
    Ok(segment)
}
