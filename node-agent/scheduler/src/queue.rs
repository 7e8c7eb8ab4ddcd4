//! Requests that wait for a slot: bounded, in turn by principal, gone when their deadline is.
//!
//! One principal who sends a hundred requests delays another by one request, not by a hundred.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Instant;

use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;

/// A bounded queue that serves principals in turn, and each principal first come first served.
#[derive(Debug)]
pub struct Queue<T> {
    waiting: HashMap<Principal, VecDeque<Job<T>>>,
    /// Every principal with a waiting job, next one first.
    turns: VecDeque<Principal>,
    len: usize,
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
            self.turns.push_back(job.principal);
        }
        self.waiting
            .entry(job.principal)
            .or_default()
            .push_back(job);
        self.len += 1;
        Ok(())
    }

    /// Takes the next job: the oldest of the principal whose turn it is.
    pub fn pop(&mut self) -> Option<Job<T>> {
        let principal = self.turns.pop_front()?;
        let jobs = self.waiting.get_mut(&principal)?;
        let job = jobs.pop_front()?;
        if jobs.is_empty() {
            self.waiting.remove(&principal);
        } else {
            self.turns.push_back(principal);
        }
        self.len -= 1;
        Some(job)
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
                .retain(|principal| waiting.contains_key(principal));
            out.sort_by_key(|job| (job.arrived, job.id));
        }
        out
    }
}

#[cfg(test)]
mod tests;
