//! Where a prompt is read, and how much of it need not be read again.
//!
//! What a prompt begins with may be in the slot it gets, in another slot (even one at work), or in host memory. Reuse must
//! never change an answer: a cache is only used as far as [`scheduler::reusable`] says, so a model with a sliding window or a
//! recurrent state also gets copies made at the places where prompts part. Whoever stands behind another wall finds nothing.

use std::rc::Rc;

use scheduler::Job;
use scheduler::Kept;
use scheduler::KvState;
use scheduler::Links;
use scheduler::Prompts;
use scheduler::Rollback;
use scheduler::SlotId;
use scheduler::Slots;
use scheduler::Token;
use scheduler::Wall;
use scheduler::common_prefix;
use scheduler::reusable;

use super::answer::Answer;
use crate::engine::Engine;
use crate::engine::Snapshot;

/// Fewer tokens are read again faster than they are kept and found.
const WORTH_KEEPING: usize = 32;

/// The prompts that were read before.
pub(super) struct Reuse {
    kept: Prompts<Snapshot>,
    /// The model cannot go back freely, so copies are made ahead.
    cannot_go_back: bool,
    hits: u64,
    moves: u64,
}

/// Where a job goes.
pub(super) struct Place {
    pub(super) slot: SlotId,
    /// Tokens of its prompt that are in the slot's cache.
    pub(super) kept: usize,
    /// Where reading pauses for a copy.
    pub(super) halt: Option<usize>,
}

/// Where the beginning of a prompt can be had.
#[derive(Clone, Copy)]
enum Source {
    Slot(SlotId, usize),
    Memory(usize),
}

impl Source {
    fn usable(self) -> usize {
        match self {
            Self::Slot(_, usable) | Self::Memory(usable) => usable,
        }
    }
}

impl Reuse {
    pub(super) fn new(bytes_max: u64, engine: &dyn Engine) -> Self {
        let rollback = engine.kv_state(SlotId(0), 0).rollback;
        Self {
            kept: Prompts::new(usize::try_from(bytes_max).unwrap_or(usize::MAX)),
            cannot_go_back: rollback != Rollback::Any,
            hits: 0,
            moves: 0,
        }
    }

    /// Prompts of which something was reused.
    pub(super) fn hits(&self) -> u64 {
        self.hits
    }

    /// Those that were found elsewhere than in their slot.
    pub(super) fn moves(&self) -> u64 {
        self.moves
    }

    /// Bytes in host memory.
    pub(super) fn bytes(&self) -> usize {
        self.kept.bytes()
    }

    /// What host memory holds, most recently used first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Kept<Snapshot>> {
        self.kept.iter()
    }

    /// Prepares an idle slot for a job; `None` if there is no idle slot.
    pub(super) fn place(
        &mut self,
        engine: &mut dyn Engine,
        slots: &mut Slots<Answer>,
        job: &Job<Answer>,
    ) -> Option<Place> {
        let (slot, common) = slots.choose(job.wall, &job.prompt)?;
        let cached = slots.get(slot)?.cached().len();
        let own = reusable(common, job.prompt.len(), engine.kv_state(slot, cached));
        if !job.payload.cache_prompt {
            self.rescue(engine, slots, slot, 0);
            return Some(Place {
                slot,
                kept: cut(engine, slots, slot, 0),
                halt: None,
            });
        }
        let halt = self.parting(slots, job);
        let elsewhere = self.elsewhere(engine, slots, job, slot);
        let better = elsewhere.filter(|source| source.usable() >= own + WORTH_KEEPING);
        let kept = if let Some(source) = better {
            self.rescue(engine, slots, slot, 0);
            self.bring(engine, slots, job, (slot, source))
        } else {
            self.rescue(engine, slots, slot, own);
            cut(engine, slots, slot, own)
        };
        self.hits += u64::from(kept > 0);
        let halt = halt.filter(|halt| *halt > kept);
        Some(Place { slot, kept, halt })
    }

    /// Keeps a copy of a slot's cache, if it is worth it and not kept already.
    pub(super) fn keep(&mut self, engine: &mut dyn Engine, slots: &Slots<Answer>, slot: SlotId) {
        let Some((wall, tokens, links)) = held(slots, slot) else {
            return;
        };
        if tokens.len() < WORTH_KEEPING
            || self.kept.join(wall, tokens, links)
            || !self.kept.could_keep(engine.snapshot_bytes(slot))
        {
            return;
        }
        if let Some(state) = engine.snapshot(slot, tokens) {
            self.insert(wall, (tokens.to_vec(), links.clone()), state);
        }
    }

    /// Keeps a state that was taken elsewhere.
    pub(super) fn insert(
        &mut self,
        wall: Wall,
        (tokens, links): (Vec<Token>, Links),
        state: Snapshot,
    ) {
        let kv = KvState {
            len: tokens.len(),
            ..state.kv
        };
        let bytes = state.bytes;
        let state = Rc::new(state);
        self.kept.insert(Kept {
            wall,
            tokens,
            links,
            kv,
            state,
            bytes,
        });
    }

    /// A slot has read as much of a prompt as its cache holds now; keeps a copy where one will be needed.
    pub(super) fn has_read(
        &mut self,
        engine: &mut dyn Engine,
        slots: &Slots<Answer>,
        slot: SlotId,
    ) {
        let Some((work, cached)) = slots
            .get(slot)
            .and_then(|slot| Some((slot.work()?, slot.cached())))
        else {
            return;
        };
        let at_parting = work.halt == Some(cached.len());
        let at_end = cached.len() == work.job.prompt.len();
        if self.cannot_go_back && work.job.payload.cache_prompt && (at_parting || at_end) {
            self.keep(engine, slots, slot);
        }
    }

    /// Empties idle slots until `wanted` more tokens fit beside those that are promised.
    pub(super) fn make_room(
        &mut self,
        engine: &mut dyn Engine,
        slots: &mut Slots<Answer>,
        (wanted, spared): (usize, SlotId),
    ) {
        let most = engine.kv_tokens_max();
        loop {
            let idle = slots
                .iter()
                .filter(|slot| slot.work().is_none() && slot.id() != spared);
            let idle: usize = idle.map(|slot| slot.cached().len()).sum();
            if idle == 0 || slots.cells_promised() + wanted + idle <= most {
                return;
            }
            let Some(oldest) = slots.oldest_idle_but(spared) else {
                return;
            };
            self.keep(engine, slots, oldest);
            cut(engine, slots, oldest, 0);
        }
    }

    /// Where the prompt parts from one that was read before, if the cache could not go back to there.
    fn parting(&self, slots: &Slots<Answer>, job: &Job<Answer>) -> Option<usize> {
        if !self.cannot_go_back {
            return None;
        }
        let in_slots = slots.iter().map(|slot| slot.common(job.wall, &job.prompt));
        let own = self.kept.iter().filter(|kept| kept.wall == job.wall);
        let in_memory = own.map(|kept| common_prefix(&kept.tokens, &job.prompt));
        let common = in_slots.chain(in_memory).max()?;
        (common >= WORTH_KEEPING && common < job.prompt.len()).then_some(common)
    }

    /// The best place but `slot` for the beginning of a prompt.
    fn elsewhere(
        &self,
        engine: &dyn Engine,
        slots: &Slots<Answer>,
        job: &Job<Answer>,
        slot: SlotId,
    ) -> Option<Source> {
        let others = slots.iter().filter(|other| other.id() != slot);
        let others = others.map(|other| {
            let common = other.common(job.wall, &job.prompt);
            let kv = engine.copied_state(other.id(), other.cached().len());
            Source::Slot(other.id(), reusable(common, job.prompt.len(), kv))
        });
        let memory = Source::Memory(self.kept.usable(job.wall, &job.prompt));
        let sources = std::iter::once(memory).chain(others);
        sources.max_by_key(|source| source.usable())
    }

    /// Fills a slot from elsewhere, and says how many tokens it then holds.
    fn bring(
        &mut self,
        engine: &mut dyn Engine,
        slots: &mut Slots<Answer>,
        job: &Job<Answer>,
        (slot, source): (SlotId, Source),
    ) -> usize {
        let (brought, (tokens, links), usable) = match source {
            Source::Slot(from, usable) => {
                let found = held(slots, from);
                let found = found.map(|(_wall, tokens, links)| (tokens.to_vec(), links.clone()));
                (engine.copy(from, slot), found.unwrap_or_default(), usable)
            }
            Source::Memory(_) => {
                let Some((kept, usable)) = self.kept.find(job.wall, &job.prompt) else {
                    return cut(engine, slots, slot, 0);
                };
                let found = (kept.tokens, kept.links);
                (engine.restore(slot, &kept.state), found, usable)
            }
        };
        if !brought {
            return cut(engine, slots, slot, 0);
        }
        slots.adopt(slot, job.wall, (&tokens, &links));
        // What arrived is asked again, so that a mistake above costs time and not an answer.
        let kv = engine.kv_state(slot, tokens.len());
        let usable = reusable(usable, job.prompt.len(), kv);
        let kept = cut(engine, slots, slot, usable);
        self.moves += u64::from(kept > 0);
        kept
    }

    /// Keeps what a slot is about to lose.
    fn rescue(
        &mut self,
        engine: &mut dyn Engine,
        slots: &Slots<Answer>,
        slot: SlotId,
        staying: usize,
    ) {
        let held = held(slots, slot).map_or(0, |(_wall, tokens, _links)| tokens.len());
        if held >= staying + WORTH_KEEPING {
            self.keep(engine, slots, slot);
        }
    }
}

/// What a slot's cache holds, for whom, and of which conversations.
fn held(slots: &Slots<Answer>, slot: SlotId) -> Option<(Wall, &[Token], &Links)> {
    let slot = slots.get(slot)?;
    Some((slot.wall()?, slot.cached(), slot.links()))
}

/// Cuts an idle slot's cache to `len` tokens, and says how many it then holds.
fn cut(engine: &mut dyn Engine, slots: &mut Slots<Answer>, slot: SlotId, len: usize) -> usize {
    let cached = slots.get(slot).map_or(0, |slot| slot.cached().len());
    let len = if len == cached || engine.keep_prefix(slot, len) {
        len
    } else {
        0
    };
    slots.truncate(slot, len);
    len
}
