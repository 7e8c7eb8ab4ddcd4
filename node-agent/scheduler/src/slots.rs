//! Slots: each is one sequence of the model's KV cache, idle or at work for one job.
//!
//! What a slot's cache holds is known exactly, because it changes only through [`Slots::commit`], [`Slots::begin`] and
//! [`Slots::forget`]. A job can leave its slot in any phase; the tokens that were computed stay for reuse.

use std::time::Instant;

use crate::job::Job;
use crate::job::JobId;
use crate::job::Principal;
use crate::job::Token;
use crate::plan::BatchPlan;
use crate::prefix::common_prefix;

/// A prompt that shares less than this part of itself with a cache takes the least recently used slot instead.
const SIMILAR_ENOUGH_DIVISOR: usize = 10;

/// Number of a slot, which is also the number of its sequence.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SlotId(pub u16);

/// One sequence of the model.
#[derive(Debug)]
pub struct Slot<T> {
    id: SlotId,
    /// The tokens in the KV cache, in order.
    cached: Vec<Token>,
    /// Whose tokens they are.
    owner: Option<Principal>,
    /// When the slot was last given away, in jobs.
    used: u64,
    work: Option<Work<T>>,
}

/// A job in its slot.
#[derive(Debug)]
pub struct Work<T> {
    /// The job.
    pub job: Job<T>,
    /// How far it is.
    pub phase: Phase,
    /// Its reader is slow, so it makes no tokens for now.
    pub paused: bool,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// The prompt is being read; so many of its tokens are in the cache.
    Prefill {
        /// Tokens read.
        done: usize,
    },
    /// The answer is being made; this token was chosen and is to be computed next.
    Decode {
        /// The token chosen last.
        next: Token,
    },
}

/// All slots of a model.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    given: u64,
}

impl<T> Slot<T> {
    /// Its number.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The tokens in its cache.
    pub fn cached(&self) -> &[Token] {
        &self.cached
    }

    /// What it works on.
    pub fn work(&self) -> Option<&Work<T>> {
        self.work.as_ref()
    }
}

impl<T> Slots<T> {
    /// Makes `count` idle slots with empty caches.
    pub fn new(count: u16) -> Self {
        let slots = (0..count).map(|number| Slot {
            id: SlotId(number),
            cached: Vec::new(),
            owner: None,
            used: 0,
            work: None,
        });
        Self {
            slots: slots.collect(),
            given: 0,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Slot<T>> {
        self.slots.iter()
    }

    /// How many are at work.
    pub fn busy(&self) -> usize {
        self.slots.iter().filter(|slot| slot.work.is_some()).count()
    }

    /// Tokens in all caches.
    pub fn cached_tokens(&self) -> usize {
        self.slots.iter().map(|slot| slot.cached.len()).sum()
    }

    /// What a slot works on.
    pub fn work_mut(&mut self, id: SlotId) -> Option<&mut Work<T>> {
        self.slots.get_mut(usize::from(id.0))?.work.as_mut()
    }

    /// The slot that works on a job.
    pub fn find(&self, job: JobId) -> Option<SlotId> {
        let at_work = |slot: &&Slot<T>| slot.work.as_ref().is_some_and(|work| work.job.id == job);
        self.slots.iter().find(at_work).map(Slot::id)
    }

    /// Chooses an idle slot for a prompt, and says how many of the tokens in its cache the prompt begins with.
    ///
    /// A cache is compared only with prompts of the principal who filled it: the time to the first token would otherwise
    /// tell one user what another has asked.
    pub fn choose(&self, principal: Principal, prompt: &[Token]) -> Option<(SlotId, usize)> {
        let idle = self.slots.iter().filter(|slot| slot.work.is_none());
        let rated = idle.map(|slot| {
            let own = slot.owner == Some(principal);
            let common = if own {
                common_prefix(&slot.cached, prompt)
            } else {
                0
            };
            (slot, common)
        });
        let rated: Vec<_> = rated.collect();
        let best = rated.iter().max_by_key(|(_slot, common)| *common)?;
        if best.1 > 0 && best.1 * SIMILAR_ENOUGH_DIVISOR >= prompt.len() {
            return Some((best.0.id, best.1));
        }
        let oldest = rated
            .iter()
            .min_by_key(|(slot, _common)| (!slot.cached.is_empty(), slot.used));
        oldest.map(|(slot, common)| (slot.id, *common))
    }

    /// Gives an idle slot to a job. The engine has already cut its cache to the first `kept` tokens.
    ///
    /// Gives the job back if there is no such slot or it is at work.
    pub fn begin(&mut self, id: SlotId, job: Job<T>, kept: usize) -> Result<(), Box<Job<T>>> {
        let idle = self
            .slots
            .get_mut(usize::from(id.0))
            .filter(|slot| slot.work.is_none());
        let Some(slot) = idle else {
            return Err(Box::new(job));
        };
        self.given += 1;
        slot.used = self.given;
        slot.owner = Some(job.principal);
        slot.cached.truncate(kept);
        let done = slot.cached.len();
        slot.work = Some(Work {
            job,
            phase: Phase::Prefill { done },
            paused: false,
        });
        Ok(())
    }

    /// Notes that the engine has computed a plan.
    pub fn commit(&mut self, plan: &BatchPlan) {
        for part in plan.parts() {
            let Some(slot) = self.slots.get_mut(usize::from(part.slot.0)) else {
                continue;
            };
            let tokens = plan.tokens_of(part);
            slot.cached
                .extend(tokens.iter().map(|planned| planned.token));
            if let Some(Work {
                phase: Phase::Prefill { done },
                ..
            }) = &mut slot.work
            {
                *done += tokens.len();
            }
        }
    }

    /// Notes the token that was chosen for a slot; it is computed in the next step.
    pub fn chose(&mut self, id: SlotId, token: Token) {
        if let Some(work) = self.work_mut(id) {
            work.phase = Phase::Decode { next: token };
        }
    }

    /// Takes the job out of a slot, whatever its phase. The cache stays for reuse.
    pub fn release(&mut self, id: SlotId) -> Option<Job<T>> {
        let slot = self.slots.get_mut(usize::from(id.0))?;
        slot.work.take().map(|work| work.job)
    }

    /// Notes that the engine has emptied a slot's cache.
    pub fn forget(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.cached.clear();
            slot.owner = None;
        }
    }

    /// Slots whose job is past its deadline.
    pub fn expired(&self, now: Instant) -> Vec<SlotId> {
        let late = |slot: &&Slot<T>| {
            let deadline = slot.work.as_ref().and_then(|work| work.job.deadline);
            deadline.is_some_and(|deadline| deadline <= now)
        };
        self.slots.iter().filter(late).map(Slot::id).collect()
    }

    /// When the next deadline passes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let works = self.slots.iter().filter_map(|slot| slot.work.as_ref());
        works.filter_map(|work| work.job.deadline).min()
    }
}

#[cfg(test)]
mod tests;
