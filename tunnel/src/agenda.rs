//! Which connections need attention: now, or at a time.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use crate::netstack::conn::ConnKey;

/// The list of things to do. A connection is at most once in each half (its entry keeps the flags),
/// so both halves are bounded by the number of connections.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    ready: VecDeque<ConnKey>,
    due: BTreeSet<(Instant, ConnKey)>,
}

/// A connection's own place in the agenda.
#[derive(Debug, Default)]
pub(crate) struct Place {
    queued: bool,
    due: Option<Instant>,
}

impl Agenda {
    /// Puts a connection at the end of the line, once.
    pub(crate) fn queue(&mut self, place: &mut Place, key: ConnKey) {
        if !place.queued {
            place.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Makes sure the connection is looked at no later than `at`. An earlier date stays: looking
    /// too early costs little, moving the date on every packet costs more.
    pub(crate) fn schedule(&mut self, place: &mut Place, key: ConnKey, at: Instant) {
        if place.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(later) = place.due.replace(at) {
            self.due.remove(&(later, key));
        }
        self.due.insert((at, key));
    }

    /// Forgets the date of a connection that is gone; a place in the line expires by itself.
    pub(crate) fn forget(&mut self, place: &mut Place, key: ConnKey) {
        if let Some(due) = place.due.take() {
            self.due.remove(&(due, key));
        }
    }

    /// The next connection in line; its entry must be told with [`Place::taken`].
    pub(crate) fn next(&mut self) -> Option<ConnKey> {
        self.ready.pop_front()
    }

    /// A connection whose date has come; its entry must be told with [`Place::came_due`].
    pub(crate) fn next_due(&mut self, now: Instant) -> Option<ConnKey> {
        match self.due.first() {
            Some((at, _)) if *at <= now => self.due.pop_first().map(|(_, key)| key),
            Some(_) | None => None,
        }
    }

    pub(crate) fn first_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Place {
    pub(crate) fn taken(&mut self) {
        self.queued = false;
    }

    pub(crate) fn came_due(&mut self) {
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netstack::segment::PortPair;
    use crate::wg::PeerId;

    fn key(remote: u16) -> ConnKey {
        ConnKey {
            peer: PeerId::from_random(1 << 8),
            ports: PortPair { local: 1, remote },
        }
    }

    #[test]
    fn a_connection_queues_once_and_keeps_its_earliest_date() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        let mut place = Place::default();
        agenda.queue(&mut place, key(1));
        agenda.queue(&mut place, key(1));
        assert_eq!(agenda.next(), Some(key(1)));
        assert_eq!(agenda.next(), None);

        for millis in [50, 10, 90] {
            agenda.schedule(&mut place, key(1), now + Duration::from_millis(millis));
        }
        assert_eq!(agenda.first_due(), Some(now + Duration::from_millis(10)));
        assert_eq!(agenda.next_due(now), None);
        assert_eq!(agenda.next_due(now + Duration::from_secs(1)), Some(key(1)));
        assert_eq!(agenda.first_due(), None, "one date per connection");
    }

    #[test]
    fn a_forgotten_connection_has_no_date() {
        let now = Instant::now();
        let mut agenda = Agenda::default();
        let mut place = Place::default();
        agenda.schedule(&mut place, key(2), now);
        agenda.forget(&mut place, key(2));
        assert_eq!(agenda.first_due(), None);
    }
}
