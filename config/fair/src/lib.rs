//! Floor 0: who is next. Three classes, and within each everybody in turn by tokens. Knows numbers and costs alone, so a copy of it is cheap
//! and says who would go when.
//!
//! Turns are deficit round robin over tokens (Shreedhar and Varghese, 1995) in the form that serves first and pays later (surplus
//! round robin), its rounds taken at once: a job puts its principal so many tokens into debt, everybody's debt is paid alike until
//! somebody's is, and that one is next. So whoever comes new is next at once, behind nobody's hundred, and owes as much as everybody
//! else afterwards, even if it left in between; and newcomers pay [`QUANTUM`] to those who wait, so that no stream of them shuts
//! anybody out. A class goes before those below it until one of them has been passed over by [`Class::patience`] tokens: then that one has a turn, so nobody starves. Knows no clock and no request.

use std::collections::VecDeque;

/// Tokens that a newcomer pays to each of those who wait: about the shortest request.
const QUANTUM: u64 = 256;

/// What waits, in the order in which it goes. `I` names a job, `P` whose it is.
#[derive(Clone, Debug)]
pub struct Order<I, P> {
    rings: [Ring<I, P>; Class::ALL.len()],
}

impl<I, P> Default for Order<I, P> {
    fn default() -> Self {
        Self {
            rings: std::array::from_fn(|_rank| Ring::default()),
        }
    }
}

/// A class. Ordered: what goes first is less.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// Somebody looks at the screen.
    Interactive,
    /// As usual.
    #[default]
    Normal,
    /// Nobody waits for it.
    Batch,
}

impl Class {
    /// All classes, first served first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Normal, Self::Batch];

    /// Its place in [`Class::ALL`].
    pub const fn rank(self) -> usize {
        match self {
            Self::Interactive => 0,
            Self::Normal => 1,
            Self::Batch => 2,
        }
    }

    /// Tokens that classes above may take before this one has a turn: about one long answer, and about eight.
    pub const fn patience(self) -> Option<u64> {
        match self {
            Self::Interactive => None,
            Self::Normal => Some(4_096),
            Self::Batch => Some(32_768),
        }
    }
}

/// The principals of one class.
#[derive(Clone, Debug)]
struct Ring<I, P> {
    /// Whoever waited longest for a turn first. One without jobs still owes something.
    turns: VecDeque<Turn<I, P>>,
    /// Jobs of all of them.
    waiting: usize,
    /// Tokens that went to classes above while somebody waited here.
    passed: u64,
}

impl<I, P> Default for Ring<I, P> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            waiting: 0,
            passed: 0,
        }
    }
}

#[derive(Clone, Debug)]
struct Turn<I, P> {
    principal: P,
    /// First come, first served.
    jobs: VecDeque<Entry<I>>,
    /// Tokens that it owes.
    debt: u64,
    /// It has not been served yet.
    is_new: bool,
}

/// One job.
#[derive(Clone, Copy, Debug)]
pub struct Entry<I> {
    /// Its name.
    pub id: I,
    /// Tokens that it may take.
    pub cost: u64,
}

impl<I: Copy + Eq, P: Clone + Eq> Order<I, P> {
    /// Puts a job behind those of its principal and class.
    pub fn push(&mut self, class: Class, principal: P, entry: Entry<I>) {
        let ring = &mut self.rings[class.rank()];
        ring.waiting += 1;
        let mut turns = ring.turns.iter_mut();
        if let Some(turn) = turns.find(|turn| turn.principal == principal) {
            turn.jobs.push_back(entry);
            return;
        }
        ring.turns.push_back(Turn {
            principal,
            jobs: VecDeque::from([entry]),
            debt: 0,
            is_new: true,
        });
    }

    /// The job that [`Order::pop`] takes next.
    pub fn peek(&self) -> Option<I> {
        let ring = &self.rings[self.next_ring()?];
        let oldest = ring.turns.get(ring.next()?)?.jobs.front();
        oldest.map(|entry| entry.id)
    }

    /// Takes the next job: the oldest of the principal whose turn it is.
    pub fn pop(&mut self) -> Option<I> {
        let rank = self.next_ring()?;
        let ring = &mut self.rings[rank];
        let taken = ring.pop()?;
        ring.passed = 0;
        for below in self.rings.iter_mut().skip(rank + 1) {
            below.passed = if below.waiting == 0 {
                0
            } else {
                below.passed.saturating_add(taken.cost)
            };
        }
        Some(taken.id)
    }

    /// Takes this job, whosever turn it is: for when whoever is before it cannot go. It costs its principal what it costs in turn.
    pub fn take(&mut self, id: I) -> bool {
        if self.peek() == Some(id) {
            return self.pop().is_some();
        }
        let turns = self.rings.iter_mut().flat_map(|ring| &mut ring.turns);
        let mut taken = false;
        for turn in turns {
            let Some(at) = turn.jobs.iter().position(|entry| entry.id == id) else {
                continue;
            };
            if let Some(entry) = turn.jobs.remove(at) {
                turn.pay_later(entry.cost);
                taken = true;
            }
        }
        for ring in &mut self.rings {
            ring.tidy();
        }
        taken
    }

    /// Takes out all jobs that are unwanted.
    pub fn remove(&mut self, unwanted: impl Fn(I) -> bool) {
        for ring in &mut self.rings {
            for turn in &mut ring.turns {
                turn.jobs.retain(|entry| !unwanted(entry.id));
            }
            ring.tidy();
        }
    }

    /// The newest job of a principal in its lowest class: the one that loses least when there is no room.
    pub fn last_of(&self, principal: &P) -> Option<I> {
        let turns = self.rings.iter().rev().flat_map(|ring| &ring.turns);
        let mut own = turns.filter(|turn| turn.principal == *principal);
        own.find_map(|turn| turn.jobs.back()).map(|entry| entry.id)
    }

    /// All jobs in the order in which they go if nobody else comes.
    pub fn in_turn(&self) -> Vec<I> {
        let mut rest = self.clone();
        std::iter::from_fn(|| rest.pop()).collect()
    }

    /// The class whose turn it is: the lowest one whose patience is over, or else the highest that waits.
    fn next_ring(&self) -> Option<usize> {
        let waits = |class: &Class| self.rings[class.rank()].waiting > 0;
        let impatient = |class: &Class| {
            let patience = class.patience();
            patience.is_some_and(|patience| self.rings[class.rank()].passed >= patience)
        };
        let mut lowest_first = Class::ALL.into_iter().rev();
        lowest_first
            .find(|class| waits(class) && impatient(class))
            .or_else(|| Class::ALL.into_iter().find(waits))
            .map(Class::rank)
    }
}

impl<I: Copy + Eq, P: Clone + Eq> Ring<I, P> {
    fn pop(&mut self) -> Option<Entry<I>> {
        let mut turn = self.turns.remove(self.next()?)?;
        let taken = turn.jobs.pop_front()?;
        let paid = if turn.is_new { QUANTUM } else { turn.debt };
        for other in &mut self.turns {
            other.debt = other.debt.saturating_sub(paid);
        }
        turn.debt = turn.debt.saturating_sub(paid);
        turn.pay_later(taken.cost);
        self.turns.push_back(turn);
        self.tidy();
        Some(taken)
    }

    /// The place of whoever owes least of those who wait; of equals, whoever waited longest.
    fn next(&self) -> Option<usize> {
        let waiting = (0..).zip(&self.turns);
        let waiting = waiting.filter(|(_place, turn)| !turn.jobs.is_empty());
        let next = waiting.min_by_key(|(place, turn)| (turn.debt, *place));
        next.map(|(place, _turn)| place)
    }

    /// Forgets whoever neither waits nor owes. Where nobody waits, nobody is owed anything.
    fn tidy(&mut self) {
        self.waiting = self.turns.iter().map(|turn| turn.jobs.len()).sum();
        let anybody = self.waiting > 0;
        self.turns
            .retain(|turn| !turn.jobs.is_empty() || (anybody && turn.debt > 0));
    }
}

impl<I, P> Turn<I, P> {
    /// It is served: it owes what that costs.
    const fn pay_later(&mut self, cost: u64) {
        // Whoever has just been served is behind whoever has not, however little it was.
        self.debt = self.debt.saturating_add(if cost == 0 { 1 } else { cost });
        self.is_new = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(id: u32, cost: u64) -> Entry<u32> {
        Entry { id, cost }
    }

    fn drain(order: &mut Order<u32, u8>) -> Vec<u32> {
        std::iter::from_fn(|| order.pop()).collect()
    }

    #[test]
    fn whoever_comes_new_is_next_and_owes_for_it_afterwards() {
        let mut order = Order::default();
        for id in 0..4 {
            order.push(Class::Normal, 1, entry(id, 1_024));
        }
        assert_eq!(order.pop(), Some(0));
        order.push(Class::Normal, 2, entry(10, 4_096));
        assert_eq!(order.pop(), Some(10), "nobody's hundred come before one");
        // It leaves and comes back: what it owes is not forgotten.
        order.push(Class::Normal, 2, entry(11, 4_096));
        assert_eq!(drain(&mut order), [1, 2, 3, 11]);
    }

    #[test]
    fn newcomers_without_end_do_not_starve_whoever_owes() {
        let mut order = Order::default();
        order.push(Class::Normal, 0, entry(0, 4_096));
        order.push(Class::Normal, 0, entry(1, 4_096));
        assert_eq!(order.pop(), Some(0));
        for newcomer in 1_u8..=40 {
            order.push(
                Class::Normal,
                newcomer,
                entry(u32::from(newcomer) + 100, 4_096),
            );
            if order.pop() == Some(1) {
                assert!(newcomer < 20, "{newcomer}");
                return;
            }
        }
        panic!("the second job never came");
    }

    #[test]
    fn one_that_is_taken_out_of_turn_is_paid_for() {
        let mut order = Order::default();
        for (who, ids) in [(1, [1, 2]), (2, [3, 4])] {
            for id in ids {
                order.push(Class::Normal, who, entry(id, 1_024));
            }
        }
        assert!(order.take(3));
        assert!(!order.take(3), "once");
        assert_eq!(drain(&mut order), [1, 4, 2]);
    }

    proptest! {
        /// Everything that comes goes, once, whoever it is and whatever it costs.
        #[test]
        fn nothing_is_lost(jobs in prop::collection::vec((0_usize..3, 0_u8..5, 1_u64..9_000), 0..60), gone in 0_u32..60) {
            let mut order = Order::default();
            for (id, (class, who, cost)) in (0..).zip(&jobs) {
                order.push(Class::ALL[*class], *who, entry(id, *cost));
            }
            order.remove(|id| id == gone);
            let told = order.in_turn();
            let mut came = drain(&mut order);
            prop_assert_eq!(&told, &came);
            came.sort_unstable();
            let all: Vec<u32> = (0..).take(jobs.len()).filter(|id| *id != gone).collect();
            prop_assert_eq!(came, all);
        }

        /// Two who always wait get the same number of tokens, but for one job of each.
        #[test]
        fn tokens_are_shared_evenly(one in 256_u64..4_000, other in 256_u64..4_000) {
            let mut order = Order::default();
            let mut got = [0_i128; 2];
            for (who, cost) in [(0_u8, one), (1, other)] {
                for id in 0..600 {
                    order.push(Class::Normal, who, entry(u32::from(who) * 1_000 + id, cost));
                }
            }
            for _step in 0..600 {
                let id = order.pop().expect("enough");
                let (who, cost) = if id < 1_000 { (0, one) } else { (1, other) };
                got[who] += i128::from(cost);
                let apart = (got[0] - got[1]).abs();
                prop_assert!(apart <= i128::from(one + other), "{got:?}");
                if got.iter().any(|tokens| *tokens > i128::from(one.min(other)) * 250) {
                    break;
                }
            }
        }
    }
}
