//! Tokens guessed ahead for running answers: by a small model, or from what was said before.
//!
//! A guess is computed along with the token it follows. The answer still chooses every token by its own rules; a guess
//! only counts if it is what was chosen, so an answer never depends on what was guessed.

use scheduler::Drafting;
use scheduler::JobId;
use scheduler::NgramIndex;
use scheduler::Phase;
use scheduler::Rollback;
use scheduler::SlotId;
use scheduler::Slots;
use scheduler::Token;

use super::answer::Answer;
use crate::engine::DraftWish;
use crate::engine::Engine;
use crate::spec::LoadSpec;

/// Guesses and how good they are.
pub(super) struct Guesser {
    drafting: Drafting,
    ngram: bool,
    drafter: bool,
    said: Vec<Said>,
}

/// What was said in one slot.
#[derive(Default)]
struct Said {
    job: Option<JobId>,
    index: NgramIndex,
}

/// An answer that could go on with a guess.
struct Wish {
    slot: SlotId,
    job: JobId,
    tokens: Vec<Token>,
    most: usize,
}

impl Guesser {
    pub(super) fn new(spec: &LoadSpec, engine: &dyn Engine) -> Self {
        let drafter = engine.has_drafter();
        let can_go_back = engine.kv_state(SlotId(0), 0).rollback != Rollback::Never;
        let wanted = can_go_back && (drafter || spec.ngram);
        let most = if wanted { spec.draft_max } else { 0 };
        let slots = usize::from(engine.card().slots);
        Self {
            drafting: Drafting::new(usize::try_from(most).unwrap_or(0)),
            ngram: spec.ngram,
            drafter,
            said: std::iter::repeat_with(Said::default).take(slots).collect(),
        }
    }

    /// Gives running answers their guesses.
    pub(super) fn guess(&mut self, engine: &mut dyn Engine, slots: &mut Slots<Answer>) {
        let count = slots.iter().filter(|slot| running(slot).is_some()).count();
        let length = self.drafting.length(count);
        if length == 0 {
            return;
        }
        let wishes = slots.iter().filter_map(|slot| {
            let (job, next) = running(slot)?;
            // The longest answer has a last token; nothing is computed after it.
            let room = job.cells.saturating_sub(slot.cached().len() + 2);
            let mut tokens = Vec::with_capacity(slot.cached().len() + 1);
            tokens.extend_from_slice(slot.cached());
            tokens.push(next);
            let most = length.min(room);
            (most > 0).then_some(Wish {
                slot: slot.id(),
                job: job.id,
                tokens,
                most,
            })
        });
        let wishes: Vec<Wish> = wishes.collect();
        let mut drafts: Vec<DraftWish<'_>> = wishes
            .iter()
            .map(|wish| DraftWish {
                slot: wish.slot,
                tokens: &wish.tokens,
                most: wish.most,
                guessed: Vec::new(),
            })
            .collect();
        if self.drafter {
            engine.draft(&mut drafts);
        }
        for (wish, draft) in wishes.iter().zip(drafts) {
            let guessed = if draft.guessed.is_empty() && self.ngram {
                self.as_before(wish)
            } else {
                draft.guessed
            };
            if let Some(work) = slots.work_mut(wish.slot) {
                work.draft = guessed;
            }
        }
    }

    /// Of `drafted` tokens the first `accepted` were chosen.
    pub(super) fn observe(&mut self, drafted: usize, accepted: usize) {
        if drafted > 0 {
            self.drafting.observe(drafted, accepted);
        }
    }

    /// Tokens guessed and those of them that were right.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.drafting.drafted(), self.drafting.accepted())
    }

    fn as_before(&mut self, wish: &Wish) -> Vec<Token> {
        let Some(said) = self.said.get_mut(usize::from(wish.slot.0)) else {
            return Vec::new();
        };
        if said.job == Some(wish.job) {
            for token in wish.tokens.get(said.index.len()..).unwrap_or_default() {
                said.index.push(*token);
            }
        } else {
            said.job = Some(wish.job);
            said.index.restart(&wish.tokens);
        }
        said.index.guess(wish.most).to_vec()
    }
}

fn running(slot: &scheduler::Slot<Answer>) -> Option<(&scheduler::Job<Answer>, Token)> {
    let work = slot.work().filter(|work| !work.paused)?;
    match work.phase {
        // A guesser does not know what stands for a picture.
        Phase::Decode { .. } if !work.job.payload.media.is_empty() => None,
        Phase::Decode { next } => Some((&work.job, next)),
        Phase::Prefill { .. } => None,
    }
}
