//! Chooses a token from logits, in Rust, so that no input can abort the process and every rule can be tested alone.
//!
//! The order is llama.cpp's: bias, penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, temperature, draw; or
//! bias, penalties, DRY, temperature, mirostat. Three things are done differently. Candidates are cut to the best
//! [`CANDIDATES_MAX`], or as many as `top_k` asks for, before anything is sorted; a grammar first looks at the token that
//! was chosen anyway; both would cost milliseconds at a vocabulary of 262,144. And a draw depends on the seed and the
//! place in the answer, not on how many draws were made before.

mod cut;
mod dry;
pub(crate) mod logprobs;
mod mirostat;
mod penalties;
mod random;
mod scan;

use scheduler::Token;

use self::dry::DryPenalty;
use self::mirostat::Surprise;
use self::penalties::Penalties;
use self::penalties::change;
use self::random::Draws;
use self::random::Purpose;
use crate::engine::Candidate;
use crate::engine::Constraint;
use crate::spec::Sampling;

/// Without a `top_k`, tokens beyond this rank have no chance; together they hold far less than a thousandth of the
/// probability.
const CANDIDATES_MAX: usize = 1_024;
/// Where a grammar looks first when only the best token that it allows is wanted.
const CANDIDATES_FEW: usize = 64;
/// Where it looks when it allows none of the [`CANDIDATES_MAX`] best, before it looks everywhere.
const CANDIDATES_MORE: usize = 16 * 1_024;
/// Below this, a temperature means "the best token".
const TEMPERATURE_MIN: f32 = 1e-4;

/// How one answer's tokens are chosen, and what was chosen so far.
pub(crate) struct Sampler {
    rules: Sampling,
    draws: Draws,
    constraint: Option<Box<dyn Constraint + Send>>,
    /// Tokens that must not be chosen, and before which place in the answer.
    banned: Vec<(Token, u64)>,
    penalties: Option<Penalties>,
    dry: Option<DryPenalty>,
    surprise: Option<Surprise>,
    /// Tokens in the answer so far.
    place: u64,
    adjusted: Vec<f32>,
}

/// What a token is drawn from: candidates, best first, and their probabilities, which sum to 1.
pub(crate) struct Distribution {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) probabilities: Vec<f64>,
}

impl Sampler {
    /// Starts an answer to `prompt` with a vocabulary of `n_vocab` tokens.
    pub(crate) fn new(
        rules: Sampling,
        seed_default: Option<u64>,
        prompt: &[Token],
        n_vocab: u32,
    ) -> Self {
        Self {
            draws: Draws::new(rules.seed.or(seed_default)),
            constraint: None,
            banned: Vec::new(),
            penalties: Penalties::new(&rules, prompt),
            dry: rules.dry.as_ref().and_then(DryPenalty::new),
            surprise: rules.mirostat.map(|rule| Surprise::new(rule, n_vocab)),
            place: 0,
            adjusted: Vec::new(),
            rules,
        }
    }

    /// How many tokens at the end of the prompt are to be told with [`Sampler::read`], which needs their text.
    pub(crate) fn reads(&self) -> usize {
        self.dry.as_ref().map_or(0, DryPenalty::looks_back)
    }

    /// Tells a token of the prompt and its bytes.
    pub(crate) fn read(&mut self, token: Token, piece: &[u8]) {
        if let Some(dry) = &mut self.dry {
            dry.accept(token, piece);
        }
    }

    /// Whether the rest of an answer follows from its tokens alone.
    pub(crate) fn can_resume(&self) -> bool {
        self.surprise.is_none()
    }

    /// Makes the answer follow a grammar.
    pub(crate) fn constrain(&mut self, constraint: Box<dyn Constraint + Send>) {
        self.constraint = Some(constraint);
    }

    /// Whether the answer follows a grammar.
    pub(crate) fn is_constrained(&self) -> bool {
        self.constraint.is_some()
    }

    /// Whether it is normal that no token is allowed any more.
    pub(crate) fn may_run_dry(&self) -> bool {
        self.constraint.is_some() || !self.banned.is_empty() || !self.rules.logit_bias.is_empty()
    }

    /// Forbids tokens until the answer has so many.
    pub(crate) fn ban(&mut self, tokens: &[Token], until: u64) {
        self.banned
            .extend(tokens.iter().map(|token| (*token, until)));
    }

    /// Chooses the next token; `None` when nothing is allowed any more, so that the answer must end.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<Token> {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = self.adjust(logits, &mut adjusted);
        let chosen = self.choose_adjusted(logits);
        self.adjusted = adjusted;
        chosen
    }

    /// Notes that a token with these bytes became part of the answer. It must not be one that ends the answer.
    pub(crate) fn accept(&mut self, token: Token, piece: &[u8]) -> Result<(), String> {
        self.place += 1;
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(token);
        }
        if let Some(dry) = &mut self.dry {
            dry.accept(token, piece);
        }
        match &mut self.constraint {
            Some(constraint) => constraint.accept(token),
            None => Ok(()),
        }
    }

    fn choose_adjusted(&mut self, logits: &[f32]) -> Option<Token> {
        if self.is_greedy() {
            let best = scan::best(logits)?;
            return self.first_allowed(best, logits);
        }
        let deviation = self.deviation(logits);
        let candidates = scan::top(logits, self.candidates_wanted());
        // Needed again if the grammar refuses the first choice; fewer would leave too few that it allows.
        let all = candidates.len() >= CANDIDATES_MAX && self.constraint.is_some();
        let all = all.then(|| candidates.clone());
        let (mut chosen, mut probability) = self.draw(candidates, deviation, Purpose::Token)?;
        if !self.allows(chosen) {
            let allowed = self.allowed(logits, all)?;
            (chosen, probability) = self.draw(allowed, deviation, Purpose::Again)?;
        }
        if let Some(surprise) = &mut self.surprise {
            surprise.observe(probability);
        }
        Some(chosen.token)
    }

    fn first_allowed(&mut self, best: Candidate, logits: &[f32]) -> Option<Token> {
        if self.allows(best) {
            return Some(best.token);
        }
        let few = scan::top(logits, CANDIDATES_FEW);
        let allowed = self.allowed(logits, Some(few))?;
        allowed.first().map(|best| best.token)
    }

    /// Nearly always the model follows the grammar by itself, and looking at one token is a thousand times cheaper.
    fn allows(&mut self, chosen: Candidate) -> bool {
        let Some(constraint) = &mut self.constraint else {
            return true;
        };
        let mut only = vec![chosen];
        constraint.retain_allowed(&mut only);
        !only.is_empty()
    }

    /// The best candidates that the grammar allows, among the first if it allows one of them; looks further and further down.
    fn allowed(
        &mut self,
        logits: &[f32],
        mut first: Option<Vec<Candidate>>,
    ) -> Option<Vec<Candidate>> {
        let constraint = self.constraint.as_mut()?;
        let known = first.as_ref().map_or(0, Vec::len);
        for most in [known, CANDIDATES_MAX, CANDIDATES_MORE, logits.len()] {
            let mut allowed = match first.take() {
                Some(first) => first,
                None if most <= known => continue,
                None => scan::top(logits, most),
            };
            constraint.retain_allowed(&mut allowed);
            if !allowed.is_empty() {
                allowed.truncate(CANDIDATES_MAX);
                return Some(allowed);
            }
        }
        None
    }

    fn is_greedy(&self) -> bool {
        self.rules.temperature < TEMPERATURE_MIN && self.rules.dynatemp_range <= 0.0
    }

    /// How many candidates survive the first rule.
    fn candidates_wanted(&self) -> usize {
        match usize::try_from(self.rules.top_k) {
            Ok(0) | Err(_) => CANDIDATES_MAX,
            // Mirostat itself decides how many.
            Ok(_) if self.surprise.is_some() => CANDIDATES_MAX,
            Ok(top_k) => top_k,
        }
    }

    /// The standard deviation of all logits, if a rule needs it.
    fn deviation(&self, logits: &[f32]) -> Option<f32> {
        (self.rules.top_n_sigma > 0.0 && self.surprise.is_none()).then(|| scan::spread(logits).1)
    }

    /// Applies what changes single logits; copies them only if anything does.
    fn adjust<'logits>(
        &self,
        logits: &'logits [f32],
        adjusted: &'logits mut Vec<f32>,
    ) -> &'logits [f32] {
        let bans = || {
            self.banned
                .iter()
                .filter(|(_token, until)| self.place < *until)
        };
        let leaves_alone = self.rules.logit_bias.is_empty()
            && self.penalties.is_none()
            && self.dry.is_none()
            && bans().next().is_none();
        if leaves_alone {
            return logits;
        }
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        for (token, bias) in &self.rules.logit_bias {
            change(adjusted, Token(*token), |logit| logit + bias);
        }
        if let Some(penalties) = &self.penalties {
            penalties.apply(adjusted);
        }
        if let Some(dry) = &self.dry {
            dry.apply(adjusted);
        }
        for (token, _until) in bans() {
            change(adjusted, *token, |_logit| f32::NEG_INFINITY);
        }
        adjusted
    }

    /// Draws one of `candidates`, which are sorted, best first; says how likely it was.
    fn draw(
        &self,
        candidates: Vec<Candidate>,
        deviation: Option<f32>,
        purpose: Purpose,
    ) -> Option<(Candidate, f64)> {
        let distribution = self.cut(candidates, deviation);
        let mut left = self.draws.unit(self.place, purpose);
        let Distribution {
            candidates,
            probabilities,
        } = distribution;
        for (candidate, probability) in candidates.iter().zip(&probabilities) {
            left -= probability;
            if left < 0.0 {
                return Some((*candidate, *probability));
            }
        }
        // Rounding may leave a trace of the last one.
        Some((*candidates.last()?, *probabilities.last()?))
    }

    /// Applies the rules that leave out candidates.
    fn cut(&self, mut candidates: Vec<Candidate>, deviation: Option<f32>) -> Distribution {
        let rules = &self.rules;
        if let Some(surprise) = &self.surprise {
            let temperature = rules.temperature.max(TEMPERATURE_MIN);
            surprise.cut(&mut candidates, temperature);
            return Distribution {
                probabilities: cut::probabilities(&candidates, temperature),
                candidates,
            };
        }
        if let Some(deviation) = deviation {
            cut::keep_top_n_sigma(&mut candidates, rules.top_n_sigma, deviation);
        }
        if let Some(top_k) = usize::try_from(rules.top_k).ok().filter(|top_k| *top_k > 0) {
            candidates.truncate(top_k);
        }
        if rules.typical_p < 1.0 {
            cut::keep_typical(&mut candidates, rules.typical_p);
        }
        if rules.top_p < 1.0 {
            cut::keep_top_p(&mut candidates, rules.top_p);
        }
        if rules.min_p > 0.0 {
            cut::keep_min_p(&mut candidates, rules.min_p);
        }
        if self.excludes() {
            cut::exclude_top(&mut candidates, rules.xtc_threshold);
        }
        let temperature = cut::dynamic_temperature(
            &candidates,
            rules.temperature,
            rules.dynatemp_range,
            rules.dynatemp_exponent,
        );
        Distribution {
            probabilities: cut::probabilities(&candidates, temperature.max(TEMPERATURE_MIN)),
            candidates,
        }
    }

    /// Whether the likeliest tokens are excluded this time (XTC).
    fn excludes(&self) -> bool {
        let rules = &self.rules;
        rules.xtc_probability > 0.0
            && rules.xtc_threshold <= 0.5
            && self.draws.unit(self.place, Purpose::Exclude) <= f64::from(rules.xtc_probability)
    }

    /// What the next token would be drawn from, grammar aside.
    #[cfg(test)]
    pub(crate) fn distribution(&self, logits: &[f32]) -> Distribution {
        let mut adjusted = Vec::new();
        let logits = self.adjust(logits, &mut adjusted);
        let candidates = scan::top(logits, self.candidates_wanted());
        self.cut(candidates, self.deviation(logits))
    }
}

fn is(value: f32, neutral: f32) -> bool {
    (value - neutral).abs() < f32::EPSILON
}

#[cfg(test)]
mod tests;
