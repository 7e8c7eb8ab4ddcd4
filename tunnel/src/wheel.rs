//! When to look at which peer again: a timer wheel of quarter seconds.
//!
//! Thousands of idle peers must not be looked at four times a second. A peer is put into the slot of the next moment at which
//! something is due; putting it into an earlier one leaves its old entry behind, which is recognised as stale when its slot comes.
//! The wheel decides nothing and reads no clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wg::PeerId;

/// boringtun wants the timers of a busy peer run at least four times a second.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// Sixteen seconds; what is due later is looked at then, and put off again.
const SLOTS: u64 = 64;
const SLOTS_ROOM: usize = 64;

/// A peer's own place on the wheel: the slot it waits for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Place(Option<u64>);

/// A peer taken from the wheel, with the slot it was in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Due {
    pub(crate) id: PeerId,
    slot: u64,
}

/// The wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    began: Instant,
    slots: [Vec<PeerId>; SLOTS_ROOM],
    /// The last slot that has been emptied.
    turned: u64,
    /// The first slot that may hold something.
    next: Option<u64>,
}

impl Wheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            slots: std::array::from_fn(|_| Vec::new()),
            turned: 0,
            next: None,
        }
    }

    /// Makes sure that the peer is looked at soon after `at`, and no sooner than with the next slot.
    pub(crate) fn schedule(&mut self, place: &mut Place, id: PeerId, at: Instant) {
        if place.0.is_some_and(|slot| slot <= self.turned + 1) {
            return;
        }
        let slot = self.slot(at).clamp(self.turned + 1, self.turned + SLOTS);
        if place.0.is_some_and(|known| known <= slot) {
            return;
        }
        place.0 = Some(slot);
        self.slots[index(slot)].push(id);
        self.next = Some(self.next.map_or(slot, |next| next.min(slot)));
    }

    /// Moves everything whose time has come into `due`, stale entries included: see [`Place::came`].
    pub(crate) fn turn(&mut self, now: Instant, due: &mut VecDeque<Due>) {
        let reached = self.passed(now);
        if reached <= self.turned {
            return;
        }
        // One round empties every slot, however long the wheel has stood still.
        let first = (self.turned + 1).max(reached.saturating_sub(SLOTS - 1));
        for at in first..=reached {
            for id in self.slots[index(at)].drain(..) {
                due.push_back(Due { id, slot: at });
            }
        }
        self.turned = reached;
        self.next =
            (reached + 1..=reached + SLOTS).find(|slot| !self.slots[index(*slot)].is_empty());
    }

    /// When [`Wheel::turn`] has something to do; `None`: never.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.next
            .map(|slot| self.began + TICK * u32::try_from(slot).unwrap_or(u32::MAX))
    }

    /// The slot that begins at or after `at`.
    fn slot(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        let slot = since.as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(slot).unwrap_or(u64::MAX)
    }

    /// The last slot that has begun.
    fn passed(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Place {
    /// Whether this is what the peer waited for; it waits for nothing afterwards. False for an entry that an earlier one has replaced.
    pub(crate) fn came(&mut self, due: Due) -> bool {
        // A wheel that stood still takes several rounds' entries out of one slot.
        let came = self.0.is_some_and(|slot| slot <= due.slot);
        if came {
            self.0 = None;
        }
        came
    }
}

fn index(slot: u64) -> usize {
    usize::try_from(slot % SLOTS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u32) -> PeerId {
        PeerId::from_random(number << 8)
    }

    #[test]
    fn an_earlier_date_wins_and_the_later_entry_is_stale() {
        let now = Instant::now();
        let mut wheel = Wheel::new(now);
        let mut place = Place::default();
        wheel.schedule(&mut place, id(1), now + Duration::from_secs(3));
        wheel.schedule(&mut place, id(1), now + Duration::from_secs(1));
        wheel.schedule(&mut place, id(1), now + Duration::from_secs(2));
        assert_eq!(wheel.next_at(), Some(now + Duration::from_secs(1)));
        let mut due = VecDeque::new();
        wheel.turn(now + Duration::from_secs(1), &mut due);
        assert_eq!(due.len(), 1);
        assert!(place.came(due[0]));
        wheel.turn(now + Duration::from_secs(3), &mut due);
        assert_eq!(due.len(), 2);
        assert!(!place.came(due[1]), "stale");
        assert_eq!(wheel.next_at(), None);
    }

    #[test]
    fn a_peer_looked_at_again_and_again_has_one_entry_a_slot() {
        let now = Instant::now();
        let mut wheel = Wheel::new(now);
        let mut place = Place::default();
        for micros in 0..1_000 {
            wheel.schedule(&mut place, id(1), now + Duration::from_micros(micros));
        }
        let mut due = VecDeque::new();
        wheel.turn(now + TICK, &mut due);
        assert_eq!(due.len(), 1);
    }

    proptest! {
        #[test]
        fn every_peer_comes_up_within_a_slot_of_its_date_or_a_round(
            dates in proptest::collection::vec(0u64..40_000, 1..60),
            steps in proptest::collection::vec(1u64..5_000, 1..60),
        ) {
            let began = Instant::now();
            let mut wheel = Wheel::new(began);
            let mut waiting: BTreeMap<u32, (Place, Instant)> = BTreeMap::new();
            for (number, date) in dates.iter().enumerate() {
                let number = u32::try_from(number).unwrap();
                let at = began + Duration::from_millis(*date);
                let mut place = Place::default();
                wheel.schedule(&mut place, id(number), at);
                waiting.insert(number, (place, at));
            }
            let mut now = began;
            let ends = now + Duration::from_mins(1);
            let mut due = VecDeque::new();
            let mut step = steps.iter().cycle();
            while now < ends {
                now += Duration::from_millis(*step.next().unwrap());
                wheel.turn(now, &mut due);
                for one in due.drain(..) {
                    let Some((place, at)) = waiting.get_mut(&one.id.index()) else { continue };
                    if !place.came(one) {
                        continue;
                    }
                    if *at > now {
                        // Beyond a round: put off again, as the core does.
                        prop_assert!(*at + TICK > began + TICK * u32::try_from(SLOTS).unwrap());
                        wheel.schedule(place, one.id, *at);
                    } else {
                        waiting.remove(&one.id.index());
                    }
                }
                let late: Vec<_> = waiting.values().filter(|(_, at)| *at + TICK <= now).collect();
                prop_assert!(late.is_empty(), "{late:?} at {now:?}");
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
