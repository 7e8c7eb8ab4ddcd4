//! The ways to one peer, and which of them is used.
//!
//! A peer that waits for us to be found (a hub's node) is answered where it was last heard, by the newest packet that authenticates: one that was
//! overtaken on a slower way moves nothing. A peer that we keep a session with (a node's hub) is reached by the way that answered a handshake; UDP
//! is preferred, a carrier is used while UDP is in doubt. No initiation and no cookie ever moves a path, and nothing here reads a packet.

use std::net::SocketAddr;

use crate::path::{CarrierId, Path};

/// Where a data packet stands among the others: receiver index and counter, both in its head.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Position {
    pub(crate) index: u32,
    pub(crate) counter: u64,
}

impl Position {
    /// Of a data message (WireGuard paper, section 5.4.6); of anything shorter the beginning.
    pub(crate) fn of(datagram: &[u8]) -> Self {
        let part = |at: usize, len: usize| datagram.get(at..at + len);
        let index = part(4, 4).and_then(|bytes| bytes.try_into().ok());
        let counter = part(8, 8).and_then(|bytes| bytes.try_into().ok());
        Self {
            index: u32::from_le_bytes(index.unwrap_or_default()),
            counter: u64::from_le_bytes(counter.unwrap_or_default()),
        }
    }
}

/// The newest packet heard, and the session before its.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    at: Option<Position>,
    index_before: Option<u32>,
}

impl Newest {
    /// Takes note of a packet; false when a newer one was heard before.
    fn note(&mut self, position: Position) -> bool {
        match self.at {
            Some(newest) if newest.index == position.index && position.counter < newest.counter => {
                return false;
            }
            Some(newest) if newest.index == position.index => {}
            Some(_) if self.index_before == Some(position.index) => return false,
            Some(newest) => self.index_before = Some(newest.index),
            None => {}
        }
        self.at = Some(position);
        true
    }
}

/// The ways to one peer.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    current: Option<Path>,
    /// Where UDP is tried.
    udp: Option<SocketAddr>,
    /// Where we keep a session with the peer; in a box, since most have none.
    carrier: Option<Box<CarrierId>>,
    newest: Newest,
    /// Another way is used, and nobody has asked yet.
    moved: bool,
}

impl Paths {
    pub(crate) fn new(endpoint: Option<SocketAddr>) -> Self {
        Self {
            current: endpoint.map(Path::Udp),
            udp: endpoint,
            carrier: None,
            newest: Newest::default(),
            moved: true,
        }
    }

    /// Whether another way is used since the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn go(&mut self, way: Option<Path>) {
        self.moved |= self.current != way;
        self.current = way;
    }

    /// Where packets go.
    pub(crate) const fn current(&self) -> Option<Path> {
        self.current
    }

    /// Where the peer is on UDP, used at the moment or not.
    pub(crate) const fn udp(&self) -> Option<SocketAddr> {
        self.udp
    }

    pub(crate) fn carrier(&self) -> Option<CarrierId> {
        self.carrier.as_deref().copied()
    }

    /// The way that is not used but could be.
    pub(crate) fn other(&self) -> Option<Path> {
        match self.current? {
            Path::Udp(_) => self.carrier().map(Path::Carried),
            Path::Carried(_) => self.udp.map(Path::Udp),
        }
    }

    /// The owner says where the peer is on UDP. Returns whether that is used now.
    pub(crate) fn relocate(&mut self, endpoint: SocketAddr) -> bool {
        self.udp = Some(endpoint);
        let is_carried = matches!(self.current, Some(Path::Carried(_)));
        if !is_carried {
            self.go(Some(Path::Udp(endpoint)));
        }
        !is_carried
    }

    /// The peer has answered us from there. Returns the way that is used.
    pub(crate) fn found(&mut self, source: Path) -> Path {
        let current = self.current.unwrap_or(source);
        self.go(Some(current));
        self.udp = self.udp.or(current.udp());
        current
    }

    /// Takes over the ways of a session with other keys.
    pub(crate) fn follow(&mut self, before: &Self) {
        self.carrier.clone_from(&before.carrier);
        self.udp = self.udp.or(before.udp);
        if self.current.is_none() || matches!(before.current, Some(Path::Carried(_))) {
            self.go(before.current);
        }
    }

    /// There is a carrier now.
    pub(crate) fn attach(&mut self, id: CarrierId) {
        self.carrier = Some(Box::new(id));
        self.go(self.current.or(Some(Path::Carried(id))));
    }

    /// A carrier is no more. Returns whether it was used.
    pub(crate) fn detach(&mut self, id: CarrierId) -> bool {
        self.carrier.take_if(|known| **known == id);
        let was_used = self.current == Some(Path::Carried(id));
        if was_used {
            self.go(self.udp.map(Path::Udp));
        }
        was_used
    }

    /// An authenticated packet came. Returns whether the path moved.
    pub(crate) fn heard(&mut self, source: Path, position: Position, we_choose: bool) -> bool {
        let is_newest = self.newest.note(position);
        let may = match (source, self.current) {
            // Both are UDP: the peer roams.
            (Path::Udp(_), Some(Path::Udp(_)) | None) => is_newest,
            (Path::Udp(_) | Path::Carried(_), _) => is_newest && !we_choose,
        };
        if !may || self.current == Some(source) {
            return false;
        }
        self.go(Some(source));
        self.udp = source.udp().or(self.udp);
        true
    }

    /// A handshake of ours was answered: that way works in both directions. `in_doubt`: the path used so far may not. Returns whether it moved.
    pub(crate) fn answered(&mut self, source: Path, in_doubt: bool) -> bool {
        let is_ours = match source {
            Path::Udp(address) => self.udp == Some(address),
            Path::Carried(id) => self.carrier() == Some(id) && in_doubt,
        };
        if !is_ours || self.current == Some(source) {
            return false;
        }
        self.go(Some(source));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const CARRIER: CarrierId = CarrierId {
        number: 1,
        remote: IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    const CARRIED: Path = Path::Carried(CARRIER);

    fn udp(port: u16) -> Path {
        Path::Udp(address(port))
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn at(index: u32, counter: u64) -> Position {
        Position { index, counter }
    }

    #[test]
    fn a_hub_answers_where_the_newest_packet_came_from() {
        let mut paths = Paths::new(None);
        assert!(paths.heard(udp(1), at(1, 5), false));
        assert!(
            !paths.heard(udp(2), at(1, 4), false),
            "overtaken on the way"
        );
        assert!(paths.heard(CARRIED, at(1, 6), false));
        assert!(paths.heard(udp(2), at(2, 0), false), "a new session");
        assert!(
            !paths.heard(CARRIED, at(1, 900), false),
            "late and of the session before"
        );
        assert_eq!(paths.current(), Some(udp(2)));
    }

    #[test]
    fn a_node_stays_on_the_way_that_it_chose_and_follows_a_hub_that_moves() {
        let mut paths = Paths::new(Some(address(1)));
        paths.attach(CARRIER);
        assert!(!paths.heard(CARRIED, at(1, 0), true));
        assert!(
            paths.heard(udp(2), at(1, 1), true),
            "the hub's address moved"
        );
        assert!(paths.answered(CARRIED, true));
        assert!(!paths.heard(udp(2), at(2, 0), true));
        assert_eq!(paths.current(), Some(CARRIED));
        assert!(paths.answered(udp(2), false), "UDP is preferred");
    }

    #[test]
    fn of_two_answers_udp_is_used_whichever_comes_first() {
        for carried_first in [false, true] {
            let mut paths = Paths::new(Some(address(1)));
            paths.attach(CARRIER);
            if carried_first {
                assert!(paths.answered(CARRIED, true));
                assert!(paths.answered(udp(1), false));
            } else {
                paths.answered(udp(1), true);
                assert!(!paths.answered(CARRIED, false));
            }
            assert_eq!(paths.current(), Some(udp(1)));
        }
    }

    #[test]
    fn an_answer_from_elsewhere_moves_nothing() {
        let mut paths = Paths::new(Some(address(1)));
        assert!(!paths.answered(udp(9), true));
        assert!(!paths.answered(CARRIED, true), "not a carrier of ours");
        assert_eq!(paths.current(), Some(udp(1)));
    }

    #[test]
    fn a_lost_carrier_leaves_what_is_known_of_udp() {
        let mut node = Paths::new(Some(address(1)));
        node.attach(CARRIER);
        node.answered(CARRIED, true);
        assert!(node.detach(CARRIER));
        assert_eq!((node.current(), node.carrier()), (Some(udp(1)), None));
        let mut hub = Paths::new(None);
        hub.heard(CARRIED, at(1, 0), false);
        assert!(hub.detach(CARRIER));
        assert_eq!(hub.current(), None);
    }
}
