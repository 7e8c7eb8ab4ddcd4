//! Carriers: streams that bring WireGuard's datagrams where UDP does not get through.
//!
//! A carrier is a path like any other: nothing that comes through it is believed before WireGuard has authenticated it, and what finds no room is
//! dropped, as on any network. Who may open one and how it is dialled is the program's business; [`Carrier::run`] speaks WebSocket (RFC 6455,
//! a binary message is a datagram) on a stream whose HTTP upgrade is done. Queues are bounded: towards the stream the newest datagram is dropped,
//! from the stream the reader waits, so that TCP slows the other side.

mod websocket;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

pub use self::websocket::{CarrierRole, websocket_accept};
use crate::drops::{DropReason, Drops};
use crate::outbox::Batch;
use crate::path::CarrierId;

/// Datagrams that wait for one carrier's stream, at most 360 KiB: 60 ms at 50 Mbit/s. More would only make every answer late.
const OUTGOING_MAX: usize = 256;
/// Datagrams of all carriers that wait for the driver.
const INBOUND_MAX: usize = 512;

/// A datagram that a carrier brought.
pub(crate) type Carried = (CarrierId, Vec<u8>);

/// All carriers of a tunnel.
#[derive(Debug)]
pub(crate) struct Carriers {
    open: Mutex<HashMap<u32, mpsc::Sender<Vec<u8>>>>,
    numbers: AtomicU32,
    inbound: mpsc::Sender<Carried>,
    /// Until the driver takes it.
    taken: Mutex<Option<mpsc::Receiver<Carried>>>,
}

impl Default for Carriers {
    fn default() -> Self {
        let (inbound, receiver) = mpsc::channel(INBOUND_MAX);
        Self {
            open: Mutex::default(),
            numbers: AtomicU32::new(0),
            inbound,
            taken: Mutex::new(Some(receiver)),
        }
    }
}

impl Carriers {
    /// What carriers bring. There is one driver, so it is given once.
    pub(crate) fn take_inbound(&self) -> Option<mpsc::Receiver<Carried>> {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Makes a carrier; `None` when there are `max` already.
    pub(crate) fn open(self: &Arc<Self>, remote: IpAddr, max: usize) -> Option<Carrier> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (sender, outgoing) = mpsc::channel(OUTGOING_MAX);
        let mut open = self.lock();
        if open.len() >= max {
            return None;
        }
        open.insert(number, sender);
        drop(open);
        Some(Carrier {
            hold: Hold {
                id: CarrierId { number, remote },
                carriers: Arc::clone(self),
            },
            outgoing,
        })
    }

    /// Queues a batch for a carrier, whose stream may have ended meanwhile.
    pub(crate) fn send(&self, id: CarrierId, batch: &Batch, drops: &Drops) {
        let Some(sender) = self.lock().get(&id.number).cloned() else {
            return;
        };
        for datagram in batch.contents().chunks(batch.segment) {
            if sender.try_send(datagram.to_vec()).is_err() {
                drops.count(DropReason::CarrierFull);
            }
        }
    }

    pub(crate) fn is_open(&self, id: CarrierId) -> bool {
        self.lock().contains_key(&id.number)
    }

    /// Ends a carrier: its stream is closed once it has taken what waits for it.
    pub(crate) fn close(&self, id: CarrierId) {
        self.lock().remove(&id.number);
    }

    /// Ends all carriers.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, mpsc::Sender<Vec<u8>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One carrier, from the side of the program that holds its stream. Dropped, it is no path any more.
#[derive(Debug)]
pub struct Carrier {
    hold: Hold,
    outgoing: mpsc::Receiver<Vec<u8>>,
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
struct Hold {
    id: CarrierId,
    carriers: Arc<Carriers>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.carriers.close(self.id);
    }
}

impl Hold {
    /// Gives a datagram to the tunnel and waits for room; false when the tunnel has ended.
    async fn deliver(&self, datagram: Vec<u8>) -> bool {
        self.carriers
            .inbound
            .send((self.id, datagram))
            .await
            .is_ok()
    }
}

impl Carrier {
    pub(crate) const fn id(&self) -> CarrierId {
        self.hold.id
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;
    use crate::outbox::Outbox;
    use crate::path::Path;

    const SOMEBODY: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn batch(path: Path, datagrams: usize) -> Batch {
        let mut outbox = Outbox::new();
        outbox.set_segments_max(64);
        for _ in 0..datagrams {
            outbox.push_copy(path, &[7; 100]);
        }
        outbox.pop().unwrap()
    }

    #[test]
    fn a_stream_that_takes_nothing_loses_datagrams_and_grows_no_queue() {
        let carriers = Arc::new(Carriers::default());
        let drops = Drops::default();
        let mut carrier = carriers.open(SOMEBODY, 1).unwrap();
        let id = carrier.id();
        for _ in 0..10 {
            carriers.send(id, &batch(Path::Carried(id), 64), &drops);
        }
        let mut kept = 0;
        while carrier.outgoing.try_recv().is_ok() {
            kept += 1;
        }
        assert_eq!(kept, OUTGOING_MAX);
        assert_eq!(drops.read().carrier_full, 640 - OUTGOING_MAX as u64);
    }

    #[test]
    fn carriers_are_counted_and_a_dropped_one_makes_room() {
        let carriers = Arc::new(Carriers::default());
        let first = carriers.open(SOMEBODY, 1).unwrap();
        assert!(carriers.open(SOMEBODY, 1).is_none());
        let id = first.id();
        assert!(carriers.is_open(id));
        drop(first);
        assert!(!carriers.is_open(id));
        assert!(carriers.open(SOMEBODY, 1).is_some());
    }

    #[test]
    fn a_path_over_a_carrier_counts_for_who_holds_it() {
        let id = CarrierId {
            number: 3,
            remote: SOMEBODY,
        };
        assert_eq!(
            Path::Carried(id).source(),
            SocketAddr::new(SOMEBODY, 0),
            "limits see the address, not the number"
        );
    }
}
