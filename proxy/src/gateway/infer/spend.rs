//! What a question may spend, before it runs: its tokens from above, its pictures, its price. Estimates; what was really used is
//! settled afterwards.

use config::settings::plan::{Price, Prices};
use policy::limit::{Elastic, Unit};
use policy::plan::{Spend, Tiers};
use policy::refusal::Refusal;
use policy::route::Route;

use crate::gateway::body::Inference;

/// Tokens that a template writes around one message, at most.
const AROUND_MESSAGE: u64 = 32;
/// Tokens that a template writes around a conversation, at most.
const AROUND_ALL: u64 = 256;
/// Tokens of one picture or piece of sound, at most: the largest that a projector of the known families makes of a picture.
const EACH_ITEM: u64 = 4_096;

/// What a question may spend.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::gateway) struct Demand {
    /// Tokens of the prompt, from above: no token has less than one byte.
    prompt: u64,
    /// How many answers.
    choices: u64,
    /// Tokens of each answer; 0: none is generated.
    each: u64,
    items: u64,
    bytes: u64,
}

impl Demand {
    /// Of a body of so many bytes; `default` stands for a length that the caller did not say.
    pub(super) fn of(request: &Inference, body_bytes: u64, default: u32) -> Self {
        let media = request.media();
        if !request.reads_prompt() {
            return Self::default();
        }
        let choices = u64::from(request.choices());
        let each = request
            .generates()
            .map_or(0, |most| u64::from(most.unwrap_or(default)));
        Self {
            prompt: body_bytes
                .saturating_sub(media.encoded_bytes)
                .saturating_add(AROUND_ALL)
                .saturating_add(media.messages.saturating_mul(AROUND_MESSAGE))
                .saturating_add(media.items.saturating_mul(EACH_ITEM)),
            choices,
            each,
            items: media.items,
            bytes: media.bytes,
        }
    }

    /// All of it or nothing, as it is estimated.
    pub(super) fn whole(&self, route: &Route, prices: &Prices) -> Spend {
        // More than the context holds is never generated.
        let context = route.steps.iter().map(|step| u64::from(step.n_ctx)).max();
        let each = self.each.min(context.unwrap_or(self.each));
        let want = each.saturating_mul(self.choices);
        Spend {
            prompt_tokens: self.prompt,
            answer: Elastic { want, min: want },
            items: self.items,
            bytes: self.bytes,
            tiers: Tiers::of(route.steps.iter().map(|step| step.backend.tier)),
            price: dearest(route, prices),
            in_progress: true,
        }
    }

    /// With the prompt as it was counted, if it was, and content with a short answer.
    pub(super) fn counted(&self, estimated: Spend, counted: Option<u64>) -> Spend {
        let media = self.items.saturating_mul(EACH_ITEM);
        let counted = counted.map(|tokens| tokens.saturating_add(media));
        Spend {
            prompt_tokens: counted.unwrap_or(estimated.prompt_tokens),
            answer: Elastic {
                want: estimated.answer.want,
                min: self.choices.min(estimated.answer.want),
            },
            ..estimated
        }
    }

    /// Tokens of prompt and answers, at most: what its turn in a queue costs.
    pub(super) const fn tokens(&self) -> u64 {
        self.prompt
            .saturating_add(self.each.saturating_mul(self.choices))
    }

    /// Whether a better count of the prompt or a shorter answer might still be admitted.
    pub(super) fn is_elastic(&self, refusal: &Refusal) -> bool {
        let unit = refusal.limit_name().map(|name| name.measure.unit());
        self.prompt > 0 && matches!(unit, Some(Unit::Tokens | Unit::Micros))
    }

    /// The tokens of each answer, of those that were granted; `None`: none is generated.
    pub(super) const fn each(&self, granted: u64) -> Option<u64> {
        match granted.checked_div(self.choices) {
            Some(each) if self.each > 0 => Some(each),
            Some(_) | None => None,
        }
    }
}

/// The dearest of the models that may answer.
fn dearest(route: &Route, prices: &Prices) -> Price {
    let each = route
        .steps
        .iter()
        .map(|step| prices.of(&step.model, step.backend.tier));
    each.fold(Price::default(), |most, price| Price {
        input: most.input.max(price.input),
        cached_input: most.cached_input.max(price.cached_input),
        output: most.output.max(price.output),
    })
}
