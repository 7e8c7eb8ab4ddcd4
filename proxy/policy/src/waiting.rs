//! The waiting room of a tier: who waits while every backend is full, who is next, and who finds no room. Bounded; fair by person and by
//! tokens ([`fair::Order`]). Wakes nobody and asks nobody: whoever is woken tries, and says what came of it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use config::tier::Tier;
use config::wire::wishes::Priority;
use fair::{Class, Entry, Order};

use crate::identity::Subject;

/// Retry hints stay within these: below a second is no hint to SDKs, and beyond half a minute nobody knows.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a place becomes free, where none has yet: a typical answer takes this long.
const SERVICE: Duration = Duration::from_secs(5);
/// Of a new measurement in the average, one part in so many.
const SMOOTHING: u32 = 4;
/// Whoever is asked and does not answer within this is passed over for now: its client reads slowly.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);
/// What was tried in vain is tried again after this even if nothing is heard of: a breaker opens by time alone.
const TRIES_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A place in a room.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

/// Somebody who wants to wait.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Who.
    pub subject: Subject,
    /// Before whom.
    pub priority: Priority,
    /// Tokens that it may take.
    pub cost: u64,
    /// What it is after: guests with the same number can go to the same places.
    pub want: u64,
}

/// A guest that was let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entered {
    /// Its place.
    pub ticket: Ticket,
    /// Who has to leave for it: the newest of whoever has the most waiting.
    pub displaced: Option<Ticket>,
}

/// No room.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full {
    /// When there will probably be some.
    pub retry_after: Duration,
}

/// The rooms of all tiers.
#[derive(Debug)]
pub struct Rooms {
    by_tier: HashMap<Tier, Room>,
    len_max: usize,
    next: u64,
}

#[derive(Debug, Default)]
struct Room {
    order: Order<Ticket, Subject>,
    guests: HashMap<Ticket, Guest>,
    held: HashMap<Subject, usize>,
    /// The order written down, until it changes.
    in_turn: Option<Vec<Ticket>>,
    /// What was tried in vain since the last change outside.
    in_vain: HashSet<u64>,
    /// Which change that was.
    generation: u64,
    /// When something was first tried in vain since.
    since: Option<Instant>,
    /// Who was let in somewhere: not waiting, but its place is kept until it is known whether it stays.
    trying: HashSet<Ticket>,
    /// Who did not answer when it was its turn.
    slow: HashSet<Ticket>,
    /// Whose turn it is, and since when.
    asked: Option<(Ticket, Instant)>,
    pace: Pace,
}

/// How often a place becomes free.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    every: Option<Duration>,
}

impl Rooms {
    /// Rooms for so many each; 0: nobody waits.
    pub fn new(len_max: usize) -> Self {
        Self {
            by_tier: HashMap::new(),
            len_max,
            next: 0,
        }
    }

    /// How many wait for a tier.
    pub fn waiting(&self, tier: Tier) -> usize {
        self.by_tier.get(&tier).map_or(0, Room::waiting)
    }

    /// Lets a guest wait. A full room has none for it unless somebody else has more waiting than it would have.
    pub fn enter(&mut self, tier: Tier, guest: Guest) -> Result<Entered, Full> {
        self.next += 1;
        let ticket = Ticket(self.next);
        let len_max = self.len_max;
        let room = self.by_tier.entry(tier).or_default();
        let own = room.held.get(&guest.subject).copied().unwrap_or(0);
        let mut displaced = None;
        if room.waiting() >= len_max {
            let full = Full {
                retry_after: room.free_in(),
            };
            let most = room.whoever_has_more_than(own + 1).ok_or(full)?;
            displaced = room.order.last_of(&most);
            if let Some(ticket) = displaced {
                room.leave(ticket);
            }
        }
        room.enter(ticket, guest);
        Ok(Entered { ticket, displaced })
    }

    /// Something has changed outside, for the so-many-th time: whatever was tried in vain may be tried again.
    pub fn changed(&mut self, tier: Tier, generation: u64) {
        if let Some(room) = self.by_tier.get_mut(&tier)
            && room.generation != generation
        {
            room.generation = generation;
            room.again();
        }
    }

    /// Whether a guest still has its place.
    pub fn holds(&self, tier: Tier, ticket: Ticket) -> bool {
        let room = self.by_tier.get(&tier);
        room.is_some_and(|room| room.guests.contains_key(&ticket))
    }

    /// Whose turn it is to try; `None`: nobody's until something changes.
    pub fn turn(&mut self, tier: Tier, now: Instant) -> Option<Ticket> {
        self.by_tier.get_mut(&tier)?.turn(now)
    }

    /// So many go before it.
    pub fn ahead(&mut self, tier: Tier, ticket: Ticket) -> usize {
        let room = self.by_tier.get_mut(&tier);
        room.map_or(0, |room| room.ahead(ticket))
    }

    /// It was let in somewhere, and whoever is next may try.
    pub fn tries(&mut self, tier: Tier, ticket: Ticket) {
        if let Some(room) = self.by_tier.get_mut(&tier)
            && room.guests.contains_key(&ticket)
        {
            room.trying.insert(ticket);
            room.asked = None;
        }
    }

    /// It tried and there was no room: nobody who is after the same need try before something changes.
    pub fn in_vain(&mut self, tier: Tier, ticket: Ticket, now: Instant) {
        if let Some(room) = self.by_tier.get_mut(&tier)
            && let Some(guest) = room.guests.get(&ticket)
        {
            room.in_vain.insert(guest.want);
            room.since.get_or_insert(now);
            room.trying.remove(&ticket);
            room.asked = None;
        }
    }

    /// It goes: its person has had so many tokens.
    pub fn go(&mut self, tier: Tier, ticket: Ticket, now: Instant) {
        if let Some(room) = self.by_tier.get_mut(&tier) {
            room.order.take(ticket);
            room.forget(ticket);
            room.pace.step(now);
        }
    }

    /// It waits no longer.
    pub fn leave(&mut self, tier: Tier, ticket: Ticket) {
        if let Some(room) = self.by_tier.get_mut(&tier) {
            room.leave(ticket);
        }
    }

    /// When there will probably be room for one more.
    pub fn retry_after(&self, tier: Tier) -> Duration {
        self.by_tier.get(&tier).map_or(RETRY_MIN, Room::free_in)
    }
}

impl Room {
    fn enter(&mut self, ticket: Ticket, guest: Guest) {
        *self.held.entry(guest.subject.clone()).or_insert(0) += 1;
        let entry = Entry {
            id: ticket,
            cost: guest.cost,
        };
        self.order
            .push(class(guest.priority), guest.subject.clone(), entry);
        self.guests.insert(ticket, guest);
        self.in_turn = None;
    }

    fn leave(&mut self, ticket: Ticket) {
        self.order.remove(|unwanted| unwanted == ticket);
        self.forget(ticket);
    }

    fn forget(&mut self, ticket: Ticket) {
        self.in_turn = None;
        self.slow.remove(&ticket);
        self.trying.remove(&ticket);
        if self.asked.is_some_and(|(asked, _since)| asked == ticket) {
            self.asked = None;
        }
        let Some(guest) = self.guests.remove(&ticket) else {
            return;
        };
        if let Some(held) = self.held.get_mut(&guest.subject) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&guest.subject);
            }
        }
    }

    fn in_turn(&mut self) -> &[Ticket] {
        let order = &self.order;
        self.in_turn.get_or_insert_with(|| order.in_turn())
    }

    /// How many wait.
    fn waiting(&self) -> usize {
        self.guests.len().saturating_sub(self.trying.len())
    }

    fn ahead(&mut self, ticket: Ticket) -> usize {
        self.in_turn();
        let in_turn = self.in_turn.iter().flatten();
        in_turn
            .take_while(|other| **other != ticket)
            .filter(|other| !self.trying.contains(other))
            .count()
    }

    /// Everybody may try again.
    fn again(&mut self) {
        self.in_vain.clear();
        self.slow.clear();
        self.since = None;
        self.asked = None;
    }

    fn turn(&mut self, now: Instant) -> Option<Ticket> {
        if let Some(since) = self.since
            && now.saturating_duration_since(since) > TRIES_AGAIN_AFTER
        {
            self.again();
        }
        if let Some((asked, since)) = self.asked
            && now.saturating_duration_since(since) > ANSWERS_WITHIN
        {
            self.slow.insert(asked);
            self.asked = None;
        }
        self.in_turn();
        let in_turn = self.in_turn.iter().flatten();
        let mut may_try = in_turn.filter(|ticket| {
            let guest = self.guests.get(ticket);
            guest.is_some_and(|guest| !self.in_vain.contains(&guest.want))
                && !self.slow.contains(ticket)
                && !self.trying.contains(ticket)
        });
        let next = *may_try.next()?;
        if self.asked.is_none_or(|(asked, _since)| asked != next) {
            self.asked = Some((next, now));
        }
        Some(next)
    }

    fn whoever_has_more_than(&self, count: usize) -> Option<Subject> {
        let most = self.held.iter().max_by_key(|(_who, held)| **held)?;
        (*most.1 > count).then(|| most.0.clone())
    }

    /// When the last of those who wait has gone, as fast as they go now.
    fn free_in(&self) -> Duration {
        let every = self.pace.every.unwrap_or(SERVICE);
        let waiting = u32::try_from(self.waiting()).unwrap_or(u32::MAX);
        every
            .saturating_mul(waiting.max(1))
            .clamp(RETRY_MIN, RETRY_MAX)
    }
}

impl Pace {
    fn step(&mut self, now: Instant) {
        if let Some(last) = self.last {
            let took = now.saturating_duration_since(last);
            self.every = Some(
                self.every
                    .map_or(took, |every| (every * (SMOOTHING - 1) + took) / SMOOTHING),
            );
        }
        self.last = Some(now);
    }
}

const fn class(priority: Priority) -> Class {
    match priority {
        Priority::Interactive => Class::Interactive,
        Priority::Normal => Class::Normal,
        Priority::Batch => Class::Batch,
    }
}

#[cfg(test)]
mod tests;
