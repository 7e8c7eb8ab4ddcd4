//! Requests that wait for a slot: bounded, in turn by principal, gone when their deadline is.
//!
//! Turns are deficit round robin over tokens (Shreedhar and Varghese, 1995): every turn is worth [`QUANTUM`] tokens, and a job is
//! taken when its principal's turns add up to its cost. So a hundred requests of one delay another by one request, not by
//! a hundred, and somebody with long prompts gets as many tokens as somebody with short ones, not as many requests.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Instant;

use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;

/// Tokens that one turn is worth: about the shortest request. A turn takes one job at most.
const QUANTUM: u64 = 256;

/// A bounded queue that serves principals in turn, and each principal first come first served.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: HashMap<Principal, VecDeque<Job<T>>>,
    /// Every principal with a waiting job, next one first, and the tokens it has saved up.
    turns: VecDeque<Turn>,
    len: usize,
    len_max: usize,
    per_principal_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    principal: Principal,
    saved: u64,
    /// It has been given its turn and can pay.
    settled: bool,
}

/// A job that found no room.
#[derive(Clone, Debug)]
pub struct QueueFull<T> {
    /// The job, back to its owner.
    pub job: Job<T>,
    /// How many wait: in all, or of this principal if that limit was the reason.
    pub waiting: usize,
}

impl<T> Queue<T> {
    /// Makes an empty queue for `len_max` jobs, of which one principal may hold `per_principal_max`.
    pub fn new(len_max: usize, per_principal_max: usize) -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
            len_max,
            per_principal_max,
        }
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All jobs that wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Job<T>> {
        self.waiting.values().flatten()
    }

    /// Lets a job wait, or gives it back when there is no room.
    pub fn push(&mut self, job: Job<T>) -> Result<(), Box<QueueFull<T>>> {
        let own = self.waiting.get(&job.principal).map_or(0, VecDeque::len);
        if self.len >= self.len_max || own >= self.per_principal_max {
            let waiting = if self.len >= self.len_max {
                self.len
            } else {
                own
            };
            return Err(Box::new(QueueFull { job, waiting }));
        }
        if own == 0 {
            self.turns.push_back(Turn {
                principal: job.principal,
                saved: 0,
                settled: false,
            });
        }
        self.waiting
            .entry(job.principal)
            .or_default()
            .push_back(job);
        self.len += 1;
        Ok(())
    }

    /// The job that [`Queue::pop`] takes next.
    pub fn peek(&mut self) -> Option<&Job<T>> {
        self.settle_turn();
        let turn = self.turns.front()?;
        self.waiting.get(&turn.principal)?.front()
    }

    /// Takes the next job: the oldest of the principal whose turn it is.
    pub fn pop(&mut self) -> Option<Job<T>> {
        self.settle_turn();
        let mut turn = self.turns.pop_front()?;
        let jobs = self.waiting.get_mut(&turn.principal)?;
        let job = jobs.pop_front()?;
        if jobs.is_empty() {
            self.waiting.remove(&turn.principal);
        } else {
            // What is left over from cheap jobs is no right to a burst later.
            turn.saved = turn.saved.saturating_sub(job.cost()).min(QUANTUM);
            turn.settled = false;
            self.turns.push_back(turn);
        }
        self.len -= 1;
        Some(job)
    }

    /// Goes round until a principal can pay for its oldest job, which is then in front.
    fn settle_turn(&mut self) {
        if self.turns.front().is_none_or(|turn| turn.settled) {
            return;
        }
        let turns_to_go = |turn: &Turn| {
            let oldest = self.waiting.get(&turn.principal).and_then(VecDeque::front);
            let cost = oldest.map_or(0, Job::cost);
            cost.saturating_sub(turn.saved).div_ceil(QUANTUM).max(1)
        };
        let to_go: Vec<u64> = self.turns.iter().map(turns_to_go).collect();
        // All rounds at once: whoever needs the fewest is first, and of equals the one whose turn comes earlier.
        let Some((first, rounds)) = (0..)
            .zip(to_go)
            .min_by_key(|(place, rounds)| (*rounds, *place))
        else {
            return;
        };
        for (place, turn) in self.turns.iter_mut().enumerate() {
            let turns = if place <= first { rounds } else { rounds - 1 };
            turn.saved = turn.saved.saturating_add(turns.saturating_mul(QUANTUM));
        }
        self.turns.rotate_left(first);
        if let Some(turn) = self.turns.front_mut() {
            turn.settled = true;
        }
    }

    /// Takes a job out, wherever it stands.
    pub fn remove(&mut self, id: JobId) -> Option<Job<T>> {
        self.take_out(|job| job.id == id).pop()
    }

    /// Takes out all jobs whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Job<T>> {
        // Asked before every step, so the common answer must cost nothing.
        if self.poll_timeout().is_none_or(|first| first > now) {
            return Vec::new();
        }
        self.take_out(|job| job.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// When the next deadline passes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let jobs = self.waiting.values().flatten();
        jobs.filter_map(|job| job.deadline).min()
    }

    fn take_out(&mut self, unwanted: impl Fn(&Job<T>) -> bool) -> Vec<Job<T>> {
        let mut out = Vec::new();
        for jobs in self.waiting.values_mut() {
            let (taken, kept): (VecDeque<_>, _) = jobs.drain(..).partition(&unwanted);
            out.extend(taken);
            *jobs = kept;
        }
        if !out.is_empty() {
            self.len -= out.len();
            self.waiting.retain(|_principal, jobs| !jobs.is_empty());
            let waiting = &self.waiting;
            self.turns
                .retain(|turn| waiting.contains_key(&turn.principal));
            out.sort_by_key(|job| (job.arrived, job.id));
        }
        out
    }
}

#[cfg(test)]
mod tests;
