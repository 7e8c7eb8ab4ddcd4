//! Chooses a token from logits, in Rust, so that no input can abort the process and every rule can be tested alone.
//!
//! The order is llama.cpp's: bias and penalties, top-k, typical, top-p, min-p, temperature, draw. Two things are done
//! differently because they cost milliseconds at a vocabulary of 262,144: candidates are cut to the best
//! [`CANDIDATES_MAX`] before anything is sorted, and a grammar first looks at the token that was chosen anyway.

pub(crate) mod logprobs;

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasher;

use scheduler::Token;

use crate::engine::Candidate;
use crate::engine::Constraint;
use crate::spec::Sampling;

/// Tokens beyond this rank have no chance; together they hold far less than a thousandth of the probability.
const CANDIDATES_MAX: usize = 1_024;
/// Below this, a temperature means "the best token".
const TEMPERATURE_MIN: f32 = 1e-4;

/// How one answer's tokens are chosen, and what was chosen so far.
pub(crate) struct Sampler {
    rules: Sampling,
    random: SplitMix,
    constraint: Option<Box<dyn Constraint>>,
    /// Tokens that must not be chosen.
    banned: Vec<Token>,
    /// The last tokens of prompt and answer, for the repeat penalty.
    recent: VecDeque<Token>,
    /// How often each token is in the answer.
    counts: HashMap<Token, u32>,
    adjusted: Vec<f32>,
}

impl Sampler {
    /// Starts an answer to `prompt`.
    pub(crate) fn new(rules: Sampling, seed_default: Option<u64>, prompt: &[Token]) -> Self {
        let seed = rules.seed.or(seed_default).unwrap_or_else(random_seed);
        let looking_back = usize::try_from(rules.repeat_last_n).unwrap_or(usize::MAX);
        let start = prompt.len().saturating_sub(looking_back);
        Self {
            recent: prompt
                .get(start..)
                .unwrap_or_default()
                .iter()
                .copied()
                .collect(),
            rules,
            random: SplitMix(seed),
            constraint: None,
            banned: Vec::new(),
            counts: HashMap::new(),
            adjusted: Vec::new(),
        }
    }

    /// Makes the answer follow a grammar.
    pub(crate) fn constrain(&mut self, constraint: Box<dyn Constraint>) {
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

    /// Forbids tokens.
    pub(crate) fn ban(&mut self, tokens: &[Token]) {
        self.banned.extend_from_slice(tokens);
    }

    /// Chooses the next token; `None` when nothing is allowed any more, so that the answer must end.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<Token> {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = if self.leaves_logits_alone() {
            logits
        } else {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            adjusted.as_slice()
        };
        let chosen = self.choose_adjusted(logits);
        self.adjusted = adjusted;
        chosen
    }

    /// Notes that a token became part of the answer. It must not be one that ends the answer.
    pub(crate) fn accept(&mut self, token: Token) -> Result<(), String> {
        *self.counts.entry(token).or_default() += 1;
        self.recent.push_back(token);
        while self.recent.len() > usize::try_from(self.rules.repeat_last_n).unwrap_or(usize::MAX) {
            self.recent.pop_front();
        }
        match &mut self.constraint {
            Some(constraint) => constraint.accept(token),
            None => Ok(()),
        }
    }

    fn choose_adjusted(&mut self, logits: &[f32]) -> Option<Token> {
        let mut candidates = if self.is_greedy() {
            best(logits).into_iter().collect()
        } else {
            top(logits, self.candidates_wanted())
        };
        let chosen = self.draw(&mut candidates)?;
        let Some(constraint) = &mut self.constraint else {
            return Some(chosen.token);
        };
        // Nearly always the model follows the grammar by itself, and looking at one token is a thousand times cheaper.
        let mut only = vec![chosen];
        constraint.retain_allowed(&mut only);
        if !only.is_empty() {
            return Some(chosen.token);
        }
        // More than are wanted, because the grammar takes most of them away.
        let mut allowed = top(logits, CANDIDATES_MAX);
        constraint.retain_allowed(&mut allowed);
        if allowed.is_empty() {
            allowed = (0..)
                .zip(logits)
                .map(|(id, logit)| candidate(id, *logit))
                .collect();
            allowed.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
            constraint.retain_allowed(&mut allowed);
            sort(&mut allowed);
            allowed.truncate(CANDIDATES_MAX);
        }
        self.draw(&mut allowed).map(|candidate| candidate.token)
    }

    fn is_greedy(&self) -> bool {
        self.rules.temperature < TEMPERATURE_MIN
    }

    /// How many candidates survive the first rule.
    fn candidates_wanted(&self) -> usize {
        match usize::try_from(self.rules.top_k) {
            Ok(0) | Err(_) => CANDIDATES_MAX,
            Ok(top_k) => top_k.min(CANDIDATES_MAX),
        }
    }

    fn leaves_logits_alone(&self) -> bool {
        self.rules.logit_bias.is_empty()
            && self.banned.is_empty()
            && is(self.rules.repeat_penalty, 1.0)
            && is(self.rules.presence_penalty, 0.0)
            && is(self.rules.frequency_penalty, 0.0)
    }

    fn adjust(&self, logits: &mut [f32]) {
        let mut change = |token: Token, rule: &dyn Fn(f32) -> f32| {
            let slot = usize::try_from(token.0)
                .ok()
                .and_then(|id| logits.get_mut(id));
            if let Some(logit) = slot {
                *logit = rule(*logit);
            }
        };
        for (token, bias) in &self.rules.logit_bias {
            change(Token(*token), &|logit| logit + bias);
        }
        if !is(self.rules.repeat_penalty, 1.0) {
            let mut penalised: Vec<Token> = self.recent.iter().copied().collect();
            penalised.sort_unstable_by_key(|token| token.0);
            penalised.dedup();
            for token in penalised {
                change(token, &|logit| {
                    if logit <= 0.0 {
                        logit * self.rules.repeat_penalty
                    } else {
                        logit / self.rules.repeat_penalty
                    }
                });
            }
        }
        for (token, count) in &self.counts {
            let count = f32::from(u16::try_from(*count).unwrap_or(u16::MAX));
            let penalty = self.rules.presence_penalty + count * self.rules.frequency_penalty;
            change(*token, &|logit| logit - penalty);
        }
        for token in &self.banned {
            change(*token, &|_logit| f32::NEG_INFINITY);
        }
    }

    /// Draws one of `candidates`, which are sorted, best first.
    fn draw(&mut self, candidates: &mut Vec<Candidate>) -> Option<Candidate> {
        if self.is_greedy() || candidates.len() < 2 {
            return candidates.first().copied();
        }
        let rules = &self.rules;
        if let Some(top_k) = usize::try_from(rules.top_k).ok().filter(|top_k| *top_k > 0) {
            candidates.truncate(top_k);
        }
        if rules.typical_p < 1.0 {
            keep_typical(candidates, rules.typical_p);
        }
        if rules.top_p < 1.0 {
            keep_top_p(candidates, rules.top_p);
        }
        if rules.min_p > 0.0 {
            keep_min_p(candidates, rules.min_p);
        }
        let weights = probabilities(candidates, rules.temperature);
        let mut left = self.random.next_unit();
        for (candidate, weight) in candidates.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Some(*candidate);
            }
        }
        // Rounding may leave a trace of the last one.
        candidates.last().copied()
    }
}

fn is(value: f32, neutral: f32) -> bool {
    (value - neutral).abs() < f32::EPSILON
}

fn candidate(id: i32, logit: f32) -> Candidate {
    Candidate {
        token: Token(id),
        logit,
    }
}

/// The best token; of equals, the first. NaN is never the best.
fn best(logits: &[f32]) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for (id, logit) in (0..).zip(logits) {
        if *logit > best.map_or(f32::NEG_INFINITY, |best| best.logit) {
            best = Some(candidate(id, *logit));
        }
    }
    best
}

/// The `count` best tokens, best first, in one pass over the logits.
pub(crate) fn top(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::with_capacity(2 * count.min(logits.len()));
    let mut worst = f32::NEG_INFINITY;
    for (id, logit) in (0..).zip(logits) {
        if *logit > worst {
            kept.push(candidate(id, *logit));
            if kept.len() >= 2 * count {
                kept.select_nth_unstable_by(count, order);
                kept.truncate(count);
                let lowest = kept
                    .iter()
                    .map(|candidate| candidate.logit)
                    .min_by(f32::total_cmp);
                worst = lowest.unwrap_or(worst);
            }
        }
    }
    sort(&mut kept);
    kept.truncate(count);
    kept
}

fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(order);
}

/// Best first; equals by number, so that the order never depends on chance.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the shape that sorting asks for"
)]
fn order(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    let by_logit = right.logit.total_cmp(&left.logit);
    by_logit.then(left.token.0.cmp(&right.token.0))
}

/// Probabilities of sorted candidates at a temperature; they sum to 1.
fn probabilities(candidates: &[Candidate], temperature: f32) -> Vec<f64> {
    let best = candidates.first().map_or(0.0, |candidate| candidate.logit);
    let weight = |candidate: &Candidate| f64::from((candidate.logit - best) / temperature).exp();
    let mut weights: Vec<f64> = candidates.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}

fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    let mut reached = 0.0;
    let mut keep = 0;
    for weight in probabilities(candidates, 1.0) {
        keep += 1;
        reached += weight;
        if reached >= f64::from(top_p) {
            break;
        }
    }
    candidates.truncate(keep.max(1));
}

fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f32) {
    let Some(best) = candidates.first().map(|candidate| candidate.logit) else {
        return;
    };
    let lowest = best + min_p.ln();
    let keep = candidates
        .iter()
        .take_while(|candidate| candidate.logit >= lowest)
        .count();
    candidates.truncate(keep.max(1));
}

/// Keeps the tokens whose information is closest to the expected one, up to a probability of `typical_p`
/// (<https://arxiv.org/abs/2202.00666>).
fn keep_typical(candidates: &mut Vec<Candidate>, typical_p: f32) {
    let weights = probabilities(candidates, 1.0);
    let entropy: f64 = weights
        .iter()
        .map(|weight| {
            if *weight > 0.0 {
                -weight * weight.ln()
            } else {
                0.0
            }
        })
        .sum();
    let mut rated: Vec<(f64, f64, Candidate)> = weights
        .into_iter()
        .zip(candidates.iter())
        .map(|(weight, candidate)| ((-weight.ln() - entropy).abs(), weight, *candidate))
        .collect();
    rated.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut reached = 0.0;
    let mut keep = 0;
    for (_distance, weight, _candidate) in &rated {
        keep += 1;
        reached += weight;
        if reached > f64::from(typical_p) {
            break;
        }
    }
    rated.truncate(keep.max(1));
    candidates.clear();
    candidates.extend(
        rated
            .into_iter()
            .map(|(_distance, _weight, candidate)| candidate),
    );
    sort(candidates);
}

fn random_seed() -> u64 {
    std::hash::RandomState::new().hash_one(0_u8)
}

/// Steele, Lea and Flood's `SplitMix64`: small, good enough for sampling, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0.0..1.0`.
    fn next_unit(&mut self) -> f64 {
        let high = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests;
