//! How many connections one node may hold to the report service, so that a stolen one cannot keep the others out. Knows only
//! addresses, which the tunnel has proven.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};

/// Connections of one node: it needs one, and a second while it replaces the first.
const PER_NODE_MAX: usize = 8;

/// Who is connected, and how often. Bounded by the peers of the tunnel.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<Ipv6Addr, usize>>,
}

/// One connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    node: Ipv6Addr,
}

impl Places {
    /// A place for one more connection of the node, if it does not hold too many.
    pub(super) fn take(self: &Arc<Self>, node: Ipv6Addr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.entry(node).or_insert(0);
        if *own >= PER_NODE_MAX {
            return None;
        }
        *own += 1;
        Some(Place {
            places: Arc::clone(self),
            node,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self
            .places
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut own) = taken.entry(self.node) {
            if *own.get() > 1 {
                *own.get_mut() -= 1;
            } else {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_node_leaves_room_for_the_others() {
        let places = Arc::new(Places::default());
        let (greedy, quiet) = (Ipv6Addr::new(1, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::LOCALHOST);
        let mut held: Vec<_> = (0..PER_NODE_MAX)
            .filter_map(|_| places.take(greedy))
            .collect();
        assert_eq!(held.len(), PER_NODE_MAX);
        assert!(places.take(greedy).is_none());
        assert!(places.take(quiet).is_some());
        held.pop();
        assert!(places.take(greedy).is_some(), "a closed one makes room");
        drop(held);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
