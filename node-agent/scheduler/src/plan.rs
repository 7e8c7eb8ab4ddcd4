//! What the model computes in the next step: one batch for all slots.
//!
//! Running answers come first, one token each. The rest of the batch reads prompts, shared equally among those that
//! wait, so that a short prompt is not stuck behind a long one. While an answer is running, the part for prompts is kept
//! so small that the answer does not visibly stall ([`Pacer`]).

use std::time::Duration;

use crate::job::Token;
use crate::slots::Phase;
use crate::slots::SlotId;
use crate::slots::Slots;

/// Prompt tokens in a step before anything was measured: about 100 ms for a large model on a slow CPU.
const BUDGET_FIRST: usize = 64;
/// Fewer tokens at once are hardly faster than these, since the weights are read once per step in any case.
const BUDGET_MIN: usize = 16;
/// How much a new measurement counts.
const LEARN: f64 = 0.3;

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
    /// Index in the plan of the token whose logits are needed.
    pub output: Option<usize>,
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
        self.tokens.len() - self.prefill_len()
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
                output: outputs && index == last,
            });
        self.tokens.extend(planned);
        self.parts.push(Part {
            slot,
            start,
            len: tokens.len(),
            prefill: kind != Kind::Decode,
            output: outputs.then_some(start + last),
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
    for slot in slots.iter() {
        let Some(work) = slot.work() else { continue };
        if let Phase::Decode { next } = work.phase
            && !work.paused
            && into.tokens.len() < batch_max
        {
            into.add(slot.id(), slot.cached().len(), &[next], Kind::Decode);
        }
    }

    let reading = slots.iter().filter_map(|slot| {
        let work = slot.work()?;
        let Phase::Prefill { done } = work.phase else {
            return None;
        };
        let rest = work.job.prompt.get(done..)?;
        (!rest.is_empty()).then_some((slot.id(), done, rest))
    });
    let mut reading: Vec<_> = reading.collect();
    // The shortest first, so that what it leaves of its share goes to the others.
    reading.sort_by_key(|(_slot, _done, rest)| rest.len());
    let mut left = prefill_max.min(batch_max - into.tokens.len());
    let mut sharing = reading.len();
    for (slot, done, rest) in reading {
        let share = left.div_ceil(sharing).min(rest.len());
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

/// Learns how fast prompts are read, and says how many of their tokens one step may take.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    stall_max: Duration,
    batch_max: usize,
    /// Seconds of a step without prompts.
    decode_secs: Option<f64>,
    /// Seconds for each prompt token.
    token_secs: Option<f64>,
}

impl Pacer {
    /// Keeps the steps of running answers under `stall_max`.
    pub fn new(stall_max: Duration, batch_max: usize) -> Self {
        Self {
            stall_max,
            batch_max,
            decode_secs: None,
            token_secs: None,
        }
    }

    /// Notes how long a plan took.
    pub fn observe(&mut self, plan: &BatchPlan, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let prefill = u32::try_from(plan.prefill_len()).unwrap_or(u32::MAX);
        if prefill == 0 {
            learn(&mut self.decode_secs, seconds);
        } else if plan.prefill_len() >= BUDGET_MIN {
            let decode = if plan.decode_len() > 0 {
                self.decode_secs.unwrap_or(0.0)
            } else {
                0.0
            };
            learn(
                &mut self.token_secs,
                (seconds - decode).max(0.0) / f64::from(prefill),
            );
        }
    }

    /// How many prompt tokens the next step may take; all that fit while no answer is running.
    pub fn budget(&self, answers_running: bool) -> usize {
        if !answers_running {
            return self.batch_max;
        }
        let Some(token_secs) = self.token_secs else {
            return BUDGET_FIRST.min(self.batch_max);
        };
        let left = self.stall_max.as_secs_f64() - self.decode_secs.unwrap_or(0.0);
        let fits = Duration::try_from_secs_f64(left.max(0.0)).unwrap_or_default();
        let each = Duration::try_from_secs_f64(token_secs).unwrap_or(Duration::MAX);
        let tokens = fits.as_nanos() / each.as_nanos().max(1);
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        tokens.max(BUDGET_MIN).min(self.batch_max)
    }
}

fn learn(average: &mut Option<f64>, seconds: f64) {
    *average = Some(average.map_or(seconds, |old| old + LEARN * (seconds - old)));
}

#[cfg(test)]
mod tests;
