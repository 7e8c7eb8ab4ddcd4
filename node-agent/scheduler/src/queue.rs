//! Requests that wait for a slot: bounded, in turn by principal, gone when their deadline is.
//!
//! Who is next is [`Order`]'s: a hundred requests of one delay another by one request, not by a hundred, and somebody with long
//! prompts gets as many tokens as somebody with short ones, not as many requests. A full queue shuts out nobody because of
//! somebody else's many: whoever has the most waiting loses the newest of them to a newcomer. An answer that began on another machine,
//! one of each principal, goes before all that has not begun: its reader is in the middle of a sentence, and its turn was paid there.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Instant;

use fair::Entry;
use fair::Order;

use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;

/// A bounded queue that serves principals in turn, and each principal first come first served.
#[derive(Debug)]
pub struct Queue<T> {
    jobs: HashMap<JobId, Job<T>>,
    order: Order<JobId, Principal>,
    /// Answers that began elsewhere, before all others; the order knows nothing of them.
    begun: VecDeque<JobId>,
    /// How many of each principal wait.
    held: HashMap<Principal, usize>,
    len_max: usize,
    per_principal_max: usize,
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
            jobs: HashMap::new(),
            order: Order::default(),
            begun: VecDeque::new(),
            held: HashMap::new(),
            len_max,
            per_principal_max,
        }
    }

    /// How many jobs wait.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// All jobs that wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Job<T>> {
        self.jobs.values()
    }

    /// How many principals have a job here.
    pub fn principals(&self) -> usize {
        self.held.len()
    }

    /// Lets a job wait, or gives it back when there is no room. `Some`: the job that it takes the place of, the newest of whoever
    /// has the most here.
    pub fn push(&mut self, job: Job<T>) -> Result<Option<Job<T>>, Box<QueueFull<T>>> {
        let own = self.held.get(&job.principal).copied().unwrap_or(0);
        if own >= self.per_principal_max {
            let waiting = own;
            return Err(Box::new(QueueFull { job, waiting }));
        }
        let mut displaced = None;
        let goes_first = job.begun && !self.has_begun(job.principal);
        // Those are bounded by themselves: there are no more than principals with a place here.
        if goes_first && self.begun.len() < self.len_max {
            *self.held.entry(job.principal).or_insert(0) += 1;
            self.begun.push_back(job.id);
            self.jobs.insert(job.id, job);
            return Ok(None);
        }
        if self.len() >= self.len_max {
            let Some(most) = self.whoever_has_more_than(own + 1) else {
                let waiting = self.len();
                return Err(Box::new(QueueFull { job, waiting }));
            };
            displaced = self.order.last_of(&most).and_then(|last| self.remove(last));
        }
        *self.held.entry(job.principal).or_insert(0) += 1;
        let entry = Entry {
            id: job.id,
            cost: job.cost(),
        };
        self.order.push(job.class, job.principal, entry);
        self.jobs.insert(job.id, job);
        Ok(displaced)
    }

    /// The job that [`Queue::pop`] takes next.
    pub fn peek(&self) -> Option<&Job<T>> {
        let first = self.begun.front().copied();
        self.jobs.get(&first.or_else(|| self.order.peek())?)
    }

    /// Takes the next job: of the class whose turn it is, the oldest of the principal whose turn it is.
    pub fn pop(&mut self) -> Option<Job<T>> {
        let first = self.begun.pop_front();
        let id = first.or_else(|| self.order.pop())?;
        self.forget(id)
    }

    /// All jobs in the order in which they go if nobody else comes.
    pub fn in_turn(&self) -> Vec<JobId> {
        let mut all: Vec<JobId> = self.begun.iter().copied().collect();
        all.extend(self.order.in_turn());
        all
    }

    /// Takes a job out, wherever it stands.
    pub fn remove(&mut self, id: JobId) -> Option<Job<T>> {
        let job = self.forget(id)?;
        self.begun.retain(|known| *known != id);
        self.order.remove(|unwanted| unwanted == id);
        Some(job)
    }

    /// Takes out all jobs whose deadline has passed.
    pub fn expire(&mut self, now: Instant) -> Vec<Job<T>> {
        // Asked before every step, so the common answer must cost nothing.
        if self.poll_timeout().is_none_or(|first| first > now) {
            return Vec::new();
        }
        let is_late = |job: &&Job<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<JobId> = self.iter().filter(is_late).map(|job| job.id).collect();
        let mut out: Vec<Job<T>> = late.iter().filter_map(|id| self.forget(*id)).collect();
        self.begun.retain(|id| !late.contains(id));
        self.order.remove(|id| late.contains(&id));
        out.sort_by_key(|job| (job.arrived, job.id));
        out
    }

    /// When the next deadline passes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.iter().filter_map(|job| job.deadline).min()
    }

    /// Whether an answer of this principal that began elsewhere waits already.
    fn has_begun(&self, principal: Principal) -> bool {
        let mut waiting = self.begun.iter().filter_map(|id| self.jobs.get(id));
        waiting.any(|job| job.principal == principal)
    }

    /// The principal with the most jobs here, if those are more than `count`.
    fn whoever_has_more_than(&self, count: usize) -> Option<Principal> {
        let most = self.held.iter().max_by_key(|(who, held)| (**held, who.0))?;
        (*most.1 > count).then_some(*most.0)
    }

    /// Takes a job that the order no longer has, or is about to lose.
    fn forget(&mut self, id: JobId) -> Option<Job<T>> {
        let job = self.jobs.remove(&id)?;
        if let Some(held) = self.held.get_mut(&job.principal) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&job.principal);
            }
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests;
