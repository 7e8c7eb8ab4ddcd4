//! Slots: each is one sequence of the model's KV cache, idle or at work for one job.
//!
//! What a slot's cache holds is known exactly, because it changes only through [`Slots::commit`], [`Slots::begin`] and
//! [`Slots::forget`]. A job can leave its slot in any phase; the tokens that were computed stay for reuse.

use std::ops::Range;
use std::time::Instant;

use crate::job::Job;
use crate::job::JobId;
use crate::job::Token;
use crate::job::Wall;
use crate::links::Links;
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
    /// Who may reuse them.
    wall: Option<Wall>,
    /// Which conversations they are.
    links: Links,
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
    /// Tokens that probably follow the chosen one, to be computed along with it.
    pub draft: Vec<Token>,
    /// A place in the prompt where reading pauses for a moment, because the cache is to be kept as it is there.
    pub halt: Option<usize>,
    /// Parts of the prompt that are no tokens and are read as a whole, outside of any plan ([`Slots::has_read`]). In order, none
    /// empty.
    pub solid: Vec<Range<usize>>,
}

impl<T> Work<T> {
    /// The part of the prompt that is read next, if it is solid.
    pub fn next_solid(&self) -> Option<Range<usize>> {
        match self.phase {
            Phase::Prefill { done } => self.solid_at(done),
            Phase::Decode { .. } => None,
        }
    }

    /// The solid part that holds this place of the prompt.
    pub(crate) fn solid_at(&self, place: usize) -> Option<Range<usize>> {
        let found = self.solid.iter().find(|part| part.contains(&place));
        found.cloned()
    }
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

    /// Who may reuse its cache.
    pub fn wall(&self) -> Option<Wall> {
        self.wall
    }

    /// Which conversations its cache was filled with.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The links of those that it holds, newest first.
    pub fn held(&self) -> impl Iterator<Item = u64> {
        self.links.held(self.cached.len())
    }

    /// When it was last given away, in jobs.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// How many tokens a prompt behind `wall` has in common with its cache.
    ///
    /// A cache is compared only with prompts behind the wall of whoever filled it: the time to the first token would
    /// otherwise tell one user what another has asked.
    pub fn common(&self, wall: Wall, prompt: &[Token]) -> usize {
        if self.wall == Some(wall) {
            common_prefix(&self.cached, prompt)
        } else {
            0
        }
    }
}

impl<T> Slots<T> {
    /// Makes `count` idle slots with empty caches.
    pub fn new(count: u16) -> Self {
        let slots = (0..count).map(|number| Slot {
            id: SlotId(number),
            cached: Vec::new(),
            wall: None,
            links: Links::default(),
            used: 0,
            work: None,
        });
        Self {
            slots: slots.collect(),
            given: 0,
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Slot<T>> + Clone {
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

    /// What all slots at work do.
    pub fn works_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Work<T>)> {
        let slots = self.slots.iter_mut();
        slots.filter_map(|slot| Some((slot.id, slot.work.as_mut()?)))
    }

    /// The slot that works on a job.
    pub fn find(&self, job: JobId) -> Option<SlotId> {
        let at_work = |slot: &&Slot<T>| slot.work.as_ref().is_some_and(|work| work.job.id == job);
        self.slots.iter().find(at_work).map(Slot::id)
    }

    /// One slot.
    pub fn get(&self, id: SlotId) -> Option<&Slot<T>> {
        self.slots.get(usize::from(id.0))
    }

    /// Tokens that the jobs at work may hold in all, at most.
    pub fn cells_promised(&self) -> usize {
        let works = self.slots.iter().filter_map(Slot::work);
        works.map(|work| work.job.cells).sum()
    }

    /// Chooses an idle slot for a prompt, and says how many of the tokens in its cache the prompt begins with.
    pub fn choose(&self, wall: Wall, prompt: &[Token]) -> Option<(SlotId, usize)> {
        let idle = self.slots.iter().filter(|slot| slot.work.is_none());
        let rated: Vec<_> = idle.map(|slot| (slot, slot.common(wall, prompt))).collect();
        let best = rated.iter().max_by_key(|(_slot, common)| *common)?;
        if best.1 > 0 && best.1 * SIMILAR_ENOUGH_DIVISOR >= prompt.len() {
            return Some((best.0.id, best.1));
        }
        let oldest = rated
            .iter()
            .min_by_key(|(slot, _common)| (!slot.cached.is_empty(), slot.used));
        oldest.map(|(slot, common)| (slot.id, *common))
    }

    /// The idle slot but `spared` that was used least recently and still holds tokens.
    pub fn oldest_idle_but(&self, spared: SlotId) -> Option<SlotId> {
        let idle = self
            .slots
            .iter()
            .filter(|slot| slot.work.is_none() && !slot.cached.is_empty() && slot.id != spared);
        idle.min_by_key(|slot| slot.used).map(Slot::id)
    }

    /// Notes that the engine has filled an idle slot's cache with these tokens of these conversations.
    pub fn adopt(&mut self, id: SlotId, wall: Wall, (tokens, links): (&[Token], &Links)) {
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.cached.clear();
            slot.cached.extend_from_slice(tokens);
            slot.wall = Some(wall);
            slot.links.clone_from(links);
        }
    }

    /// Notes that the engine has cut a slot's cache to its first `len` tokens.
    pub fn truncate(&mut self, id: SlotId, len: usize) {
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            slot.cached.truncate(len);
            slot.links.cut(len);
        }
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
        slot.wall = Some(job.wall);
        slot.cached.truncate(kept);
        slot.links.cut(kept);
        slot.links.name(&job.links, job.prompt.len());
        let done = slot.cached.len();
        slot.work = Some(Work {
            job,
            phase: Phase::Prefill { done },
            paused: false,
            draft: Vec::new(),
            halt: None,
            solid: Vec::new(),
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

    /// Notes that the engine has read a whole solid part of a slot's prompt, which ends at `end`.
    pub fn has_read(&mut self, id: SlotId, end: usize) {
        let Some(slot) = self.slots.get_mut(usize::from(id.0)) else {
            return;
        };
        if let Some(work) = &mut slot.work
            && let Phase::Prefill { done } = &mut work.phase
            && let Some(tokens) = work.job.prompt.get(*done..end)
        {
            slot.cached.extend_from_slice(tokens);
            *done = end;
        }
    }

    /// Notes the token that was chosen for a slot; it is computed in the next step.
    pub fn chose(&mut self, id: SlotId, token: Token) {
        if let Some(work) = self.work_mut(id) {
            work.phase = Phase::Decode { next: token };
            work.draft.clear();
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
            slot.links = Links::default();
            slot.wall = None;
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
