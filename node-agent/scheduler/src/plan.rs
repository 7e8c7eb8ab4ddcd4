//! What the model computes in the next step: one batch for all slots.
//!
//! Running answers come first, one token each. The rest of the batch reads prompts, shared equally among those that
//! wait, so that a short prompt is not stuck behind a long one. While an answer is running, the part for prompts is kept
//! so small that the answer does not visibly stall ([`crate::Pacer`]). An answer may bring drafted tokens along; the logits of each
//! say whether the draft was right.

use std::ops::Range;

use crate::job::Token;
use crate::slots::Phase;
use crate::slots::SlotId;
use crate::slots::Slots;

/// One token to be computed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlannedToken {
    /// The sequence it belongs to.
    pub slot: SlotId,
    /// Its place in the sequence.
    pub position: u32,
    /// The token.
    pub token: Token,
    /// Whether its logits are needed.
    pub output: bool,
}

/// The tokens of one slot within a plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// The slot.
    pub slot: SlotId,
    /// Index of its first token in the plan.
    pub start: usize,
    /// Number of its tokens.
    pub len: usize,
    /// Whether they belong to a prompt.
    pub prefill: bool,
    /// Index in the plan of the first token whose logits are needed; those of all tokens after it are needed too.
    pub output: Option<usize>,
}

impl Part {
    /// The places in the plan whose logits are needed.
    pub fn outputs(&self) -> Range<usize> {
        let end = self.start + self.len;
        self.output.unwrap_or(end)..end
    }
}

/// The tokens of one step, grouped by slot.
#[derive(Clone, Debug, Default)]
pub struct BatchPlan {
    tokens: Vec<PlannedToken>,
    parts: Vec<Part>,
}

impl BatchPlan {
    /// All tokens.
    pub fn tokens(&self) -> &[PlannedToken] {
        &self.tokens
    }

    /// The groups.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The tokens of one group.
    pub fn tokens_of(&self, part: &Part) -> &[PlannedToken] {
        self.tokens
            .get(part.start..part.start + part.len)
            .unwrap_or_default()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of prompt tokens.
    pub fn prefill_len(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| part.prefill)
            .map(|part| part.len)
            .sum()
    }

    /// Number of answers that go on.
    pub fn decode_len(&self) -> usize {
        self.parts.iter().filter(|part| !part.prefill).count()
    }

    /// Tokens of prompts, and before each how many its sequence held already, for estimates of time.
    pub fn prefill_parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let parts = self.parts.iter().filter(|part| part.prefill);
        parts.map(|part| {
            let first = self.tokens.get(part.start);
            let before = first.and_then(|token| usize::try_from(token.position).ok());
            (part.len, before.unwrap_or(0))
        })
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.parts.clear();
    }

    fn add(&mut self, slot: SlotId, first_position: usize, tokens: &[Token], kind: Kind) {
        let start = self.tokens.len();
        let last = tokens.len().saturating_sub(1);
        let outputs = kind != Kind::PrefillGoesOn;
        let planned = tokens
            .iter()
            .enumerate()
            .map(|(index, token)| PlannedToken {
                slot,
                position: u32::try_from(first_position + index).unwrap_or(u32::MAX),
                token: *token,
                output: kind == Kind::Decode || (outputs && index == last),
            });
        self.tokens.extend(planned);
        self.parts.push(Part {
            slot,
            start,
            len: tokens.len(),
            prefill: kind != Kind::Decode,
            output: match kind {
                Kind::Decode => Some(start),
                Kind::PrefillEnds => Some(start + last),
                Kind::PrefillGoesOn => None,
            },
        });
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Decode,
    PrefillGoesOn,
    PrefillEnds,
}

/// Fills `into` with the next step: at most `batch_max` tokens, of which at most `prefill_max` read prompts.
pub fn plan<T>(slots: &Slots<T>, batch_max: usize, prefill_max: usize, into: &mut BatchPlan) {
    into.clear();
    let decoding = slots.iter().filter_map(|slot| {
        let work = slot.work().filter(|work| !work.paused)?;
        let Phase::Decode { next } = work.phase else {
            return None;
        };
        Some((slot, next, work.draft.as_slice()))
    });
    let mut waiting = decoding.clone().count();
    let mut tokens = Vec::new();
    for (slot, next, draft) in decoding {
        let Some(room) = batch_max
            .checked_sub(into.tokens.len() + waiting)
            .or((into.tokens.len() < batch_max).then_some(0))
        else {
            break;
        };
        tokens.clear();
        tokens.push(next);
        tokens.extend(draft.iter().take(room));
        into.add(slot.id(), slot.cached().len(), &tokens, Kind::Decode);
        waiting -= 1;
    }

    let reading = slots.iter().filter_map(|slot| {
        let work = slot.work()?;
        let Phase::Prefill { done } = work.phase else {
            return None;
        };
        let rest = work.job.prompt.get(done..)?;
        if work.solid_at(done).is_some() {
            return None;
        }
        let solid = work.solid.iter().map(|part| part.start);
        let stops = work.halt.into_iter().chain(solid);
        let until = stops.filter(|stop| *stop > done).min();
        let now = until.map_or(rest.len(), |halt| rest.len().min(halt - done));
        (!rest.is_empty()).then_some((slot.id(), done, rest, now))
    });
    let mut reading: Vec<_> = reading.collect();
    // The shortest first, so that what it leaves of its share goes to the others.
    reading.sort_by_key(|(_slot, _done, _rest, now)| *now);
    let mut left = prefill_max.min(batch_max - into.tokens.len());
    let mut sharing = reading.len();
    for (slot, done, rest, now) in reading {
        let share = left.div_ceil(sharing).min(now);
        if let Some(tokens) = rest.get(..share).filter(|tokens| !tokens.is_empty()) {
            let ends = share == rest.len();
            let kind = if ends {
                Kind::PrefillEnds
            } else {
                Kind::PrefillGoesOn
            };
            into.add(slot, done, tokens, kind);
        }
        left -= share;
        sharing -= 1;
    }
}

#[cfg(test)]
mod tests;
