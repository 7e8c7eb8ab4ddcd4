//! What a request may spend before it runs, and what it has spent when it has ended. Figures alone.

use config::settings::plan::Price;
use config::tier::Tier;

use crate::limit::{Counter, Elastic, MILLION, Measure, Unit};

/// Some tiers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tiers([bool; 3]);

impl Tiers {
    /// These.
    pub fn of(tiers: impl IntoIterator<Item = Tier>) -> Self {
        let mut set = Self::default();
        for tier in tiers {
            set.0[Self::place(tier)] = true;
        }
        set
    }

    /// Whether it is one of them.
    pub const fn has(self, tier: Tier) -> bool {
        self.0[Self::place(tier)]
    }

    /// All of them, the largest first.
    pub fn each(self) -> impl Iterator<Item = Tier> {
        [Tier::Heavy, Tier::Primary, Tier::Fast]
            .into_iter()
            .filter(move |tier| self.has(*tier))
    }

    const fn place(tier: Tier) -> usize {
        match tier {
            Tier::Fast => 0,
            Tier::Primary => 1,
            Tier::Heavy => 2,
        }
    }
}

/// What a request is going to spend, as far as is known before it runs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spend {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer: how many it would like, and the fewest that make sense.
    pub answer: Elastic,
    /// Pictures and pieces of sound.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The tiers that may answer: budgets of all of them are reserved, and only that of the one that did is charged.
    pub tiers: Tiers,
    /// What its tokens cost.
    pub price: Price,
    /// Whether it counts as a request in progress.
    pub in_progress: bool,
}

impl Spend {
    /// What the prompt costs if nothing of it is cached, millionths.
    pub(super) fn prompt_micros(&self) -> u64 {
        micros(self.prompt_tokens, self.price.input)
    }
}

/// The price of so many tokens, rounded up to a millionth.
pub fn micros(tokens: u64, per_million: u64) -> u64 {
    let product = u128::from(tokens) * u128::from(per_million);
    u64::try_from(product.div_ceil(u128::from(MILLION))).unwrap_or(u64::MAX)
}

/// What a request used in the end.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Used {
    /// Tokens of the prompt, those of a cache included.
    pub prompt_tokens: u64,
    /// Of these, tokens that a cache held.
    pub cached_tokens: u64,
    /// Tokens of the answer.
    pub answer_tokens: u64,
    /// Which tier answered; `None`: none did.
    pub tier: Option<Tier>,
    /// What its tokens cost.
    pub price: Price,
}

impl Used {
    /// The money, millionths.
    pub fn micros(&self) -> u64 {
        let fresh = self.prompt_tokens.saturating_sub(self.cached_tokens);
        micros(fresh, self.price.input)
            .saturating_add(micros(self.cached_tokens, self.price.cached_input))
            .saturating_add(micros(self.answer_tokens, self.price.output))
    }
}

/// How a request ended, for its counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Outcome {
    /// Nobody told: it counts as all that was granted.
    #[default]
    Unknown,
    /// It was served, in whole or in part.
    Served(Used),
    /// Nobody was served, through no fault of the caller: all goes back.
    GivenBack,
}

/// What every counter of a request is charged in the end; `granted` is what its admission granted.
pub fn spent(counters: &[Counter], granted: u64, outcome: &Outcome) -> Vec<u64> {
    let one = |counter: &Counter| {
        if counter.name.measure == Measure::Concurrent {
            return 0;
        }
        match (outcome, counter.unit) {
            (Outcome::GivenBack, _) => 0,
            (Outcome::Served(used), _) if is_of_another(counter, used.tier) => 0,
            (Outcome::Served(used), Unit::Tokens) => {
                used.prompt_tokens.saturating_add(used.answer_tokens)
            }
            (Outcome::Served(used), Unit::Micros) => used.micros(),
            (Outcome::Served(_), Unit::Requests | Unit::Items | Unit::Bytes) => counter.cost,
            (Outcome::Unknown, _) => counter.charge(granted),
        }
    };
    counters.iter().map(one).collect()
}

/// Whether it is the budget of a tier that did not answer.
fn is_of_another(counter: &Counter, answered: Option<Tier>) -> bool {
    counter.name.tier.is_some() && counter.name.tier != answered
}
