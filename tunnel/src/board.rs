//! The notice board: what anyone may know about the peers, without asking the driver.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::drops::Drops;
use crate::keys::PublicKey;
use crate::path::Path;
use crate::peer::PeerStatus;

/// Facts about one peer, with instants instead of ages.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) public_key: PublicKey,
    pub(crate) path: Option<Path>,
    pub(crate) mtu: u16,
    pub(crate) handshake_at: Option<Instant>,
    pub(crate) heard_at: Option<Instant>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) streams: usize,
    pub(crate) round_trip: Option<Duration>,
    pub(crate) loss_per_mille: Option<u16>,
    pub(crate) rejected: Option<Arc<Drops>>,
}

/// Each in a box: a table has room for more than are in it.
type Notices = HashMap<Ipv6Addr, Box<Notice>>;

#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Notices>);

impl Board {
    pub(crate) fn post(&self, address: Ipv6Addr, notice: Notice) {
        match self.lock().entry(address) {
            Entry::Occupied(mut known) => **known.get_mut() = notice,
            Entry::Vacant(place) => {
                place.insert(Box::new(notice));
            }
        }
    }

    pub(crate) fn remove(&self, address: Ipv6Addr) {
        self.lock().remove(&address);
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    pub(crate) fn read(&self, address: Ipv6Addr, now: Instant) -> Option<PeerStatus> {
        let notice = Notice::clone(self.lock().get(&address)?);
        let age = |at: Instant| now.saturating_duration_since(at);
        Some(PeerStatus {
            public_key: notice.public_key,
            endpoint: notice.path.and_then(Path::udp),
            remote: notice.path.map(|path| path.source().ip()),
            path: notice.path.map(Path::kind).unwrap_or_default(),
            mtu: usize::from(notice.mtu),
            since_handshake: notice.handshake_at.map(age),
            since_heard: notice.heard_at.map(age),
            rx_bytes: notice.rx_bytes,
            tx_bytes: notice.tx_bytes,
            streams: notice.streams,
            round_trip: notice.round_trip,
            loss_per_mille: notice.loss_per_mille,
            rejected: notice
                .rejected
                .map(|rejected| rejected.read())
                .unwrap_or_default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Notices> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
