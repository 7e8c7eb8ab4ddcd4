//! DRY ("don't repeat yourself"): the longer a passage is repeated word for word, the less likely is its next token.
//!
//! The rule is that of llama.cpp: a token that would lengthen a repetition of `n` tokens loses
//! `multiplier * base ^ (n - allowed_length)`, and no repetition reaches back over a sequence breaker. Breakers are looked
//! for in the text, so that nothing has to be looked up in the vocabulary for each request.

use std::collections::HashMap;
use std::collections::HashSet;

use scheduler::Token;

use super::penalties::change;
use crate::spec::Dry;

/// The rule and what was said so far.
#[derive(Debug)]
pub(super) struct DryPenalty {
    rule: Dry,
    breakers: Vec<Vec<u8>>,
    /// Everything looked back on, oldest first.
    said: Vec<Token>,
    /// Tokens after the last breaker.
    since_breaker: usize,
    /// Tokens that contain a breaker by themselves; they are never penalised.
    breaking: HashSet<Token>,
    /// The end of the text, in which a breaker may have begun.
    tail: Vec<u8>,
    tail_max: usize,
}

impl DryPenalty {
    /// `None` when it would change nothing.
    pub(super) fn new(rule: &Dry) -> Option<Self> {
        if rule.multiplier <= 0.0 || rule.base < 1.0 || rule.last_n == 0 {
            return None;
        }
        let breakers: Vec<Vec<u8>> = rule
            .breakers
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| text.as_bytes().to_vec())
            .collect();
        let longest = breakers.iter().map(Vec::len).max().unwrap_or(1);
        Some(Self {
            rule: rule.clone(),
            breakers,
            said: Vec::new(),
            since_breaker: 0,
            breaking: HashSet::new(),
            tail: Vec::new(),
            tail_max: longest - 1,
        })
    }

    /// Tokens of a prompt that matter.
    pub(super) fn looks_back(&self) -> usize {
        usize::try_from(self.rule.last_n).unwrap_or(usize::MAX)
    }

    /// Goes on by a token, whose bytes are `piece`.
    pub(super) fn accept(&mut self, token: Token, piece: &[u8]) {
        self.said.push(token);
        // The oldest are dropped many at once, not one by one.
        let looks_back = self.looks_back();
        if self.said.len() > looks_back.saturating_mul(2) {
            self.said.drain(..self.said.len() - looks_back);
        }
        if self.contains_breaker(piece) {
            self.breaking.insert(token);
        }
        self.tail.extend_from_slice(piece);
        if self.contains_breaker(&self.tail) {
            self.since_breaker = 0;
            // What has been found is not found again.
            self.tail.clear();
        } else {
            self.since_breaker += 1;
            let excess = self.tail.len().saturating_sub(self.tail_max);
            self.tail.drain(..excess);
        }
    }

    fn contains_breaker(&self, text: &[u8]) -> bool {
        self.breakers.iter().any(|breaker| {
            text.windows(breaker.len())
                .any(|window| window == breaker.as_slice())
        })
    }

    pub(super) fn apply(&self, logits: &mut [f32]) {
        let allowed = usize::try_from(self.rule.allowed_length).unwrap_or(usize::MAX);
        let start = self.said.len().saturating_sub(self.looks_back());
        let said = self.said.get(start..).unwrap_or_default();
        let limit = self.since_breaker.min(said.len());
        if said.len() <= allowed || limit < allowed {
            return;
        }
        let exponent_max = if self.rule.base > 1.000_001 {
            // Beyond this the penalty would be infinite.
            (f32::MAX.ln() / self.rule.base.ln()).floor()
        } else {
            0.0
        };
        for (token, length) in continued(said, limit, allowed) {
            if self.breaking.contains(&token) {
                continue;
            }
            let beyond = u16::try_from(length - allowed).unwrap_or(u16::MAX);
            let mut exponent = f32::from(beyond);
            if exponent_max > 0.0 {
                exponent = exponent.min(exponent_max);
            }
            let penalty = self.rule.multiplier * self.rule.base.powf(exponent);
            change(logits, token, |logit| logit - penalty);
        }
    }
}

/// The tokens that would lengthen a repetition of at least `allowed` tokens, each with the longest one, at most `limit`.
fn continued(said: &[Token], limit: usize, allowed: usize) -> HashMap<Token, usize> {
    let mut longest: HashMap<Token, usize> = HashMap::new();
    let backwards: Vec<Token> = said.iter().rev().copied().collect();
    for (back, length) in suffix_lengths(&backwards).into_iter().enumerate().skip(1) {
        let length = length.min(limit);
        if length < allowed {
            continue;
        }
        if let Some(next) = backwards.get(back - 1) {
            let known = longest.entry(*next).or_default();
            *known = length.max(*known);
        }
    }
    longest
}

/// For each place, how many tokens from there are the same as from the beginning (the Z function, linear in time).
fn suffix_lengths(text: &[Token]) -> Vec<usize> {
    let mut lengths = vec![0; text.len()];
    let (mut left, mut right) = (0, 0);
    for place in 1..text.len() {
        let mut length = if place < right {
            lengths
                .get(place - left)
                .copied()
                .unwrap_or(0)
                .min(right - place)
        } else {
            0
        };
        while place + length < text.len() && text.get(length) == text.get(place + length) {
            length += 1;
        }
        if let Some(slot) = lengths.get_mut(place) {
            *slot = length;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule() -> Dry {
        Dry {
            multiplier: 1.0,
            base: 2.0,
            allowed_length: 2,
            last_n: u32::MAX,
            breakers: vec!["\n".to_owned(), "END".to_owned()],
        }
    }

    fn penalised(said: &[(i32, &str)]) -> Vec<f32> {
        let mut dry = DryPenalty::new(&rule()).expect("it is on");
        for (token, piece) in said {
            dry.accept(Token(*token), piece.as_bytes());
        }
        let mut logits = [0.0; 8];
        dry.apply(&mut logits);
        logits.to_vec()
    }

    #[test]
    fn what_would_lengthen_a_repetition_is_less_likely() {
        let said = [
            (1, "a"),
            (2, "b"),
            (3, "c"),
            (4, "d"),
            (1, "a"),
            (2, "b"),
            (3, "c"),
        ];
        assert_eq!(penalised(&said), [0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_breaker_ends_a_repetition_even_across_tokens() {
        let said = [
            (1, "a"),
            (2, "E"),
            (3, "ND"),
            (4, "d"),
            (1, "a"),
            (2, "E"),
            (3, "ND"),
        ];
        assert_eq!(penalised(&said), [0.0; 8]);
        let said = [(1, "a"), (2, "b"), (3, "\n"), (1, "a"), (2, "b")];
        assert_eq!(penalised(&said), [0.0; 8], "a breaker itself is free");
    }

    proptest! {
        #[test]
        fn suffix_lengths_are_those_of_a_plain_search(text in prop::collection::vec(0..3_i32, 0..40)) {
            let text: Vec<Token> = text.into_iter().map(Token).collect();
            for (place, length) in suffix_lengths(&text).into_iter().enumerate().skip(1) {
                let plain = text.iter().zip(&text[place..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(length, plain);
            }
        }
    }
}
