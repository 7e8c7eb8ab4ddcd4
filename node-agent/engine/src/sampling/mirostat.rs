//! Mirostat (<https://arxiv.org/abs/2007.14966>): keeps the surprise of an answer near a target by what was chosen before.

use super::cut::probabilities;
use crate::engine::Candidate;
use crate::spec::Mirostat;
use crate::spec::MirostatVersion;

/// Candidates that the first version estimates the distribution from; llama.cpp's value.
const ESTIMATED: usize = 100;

/// The rule and where it has got to.
#[derive(Debug)]
pub(super) struct Surprise {
    rule: Mirostat,
    /// The most surprise that a candidate may have, in bits.
    most: f64,
    n_vocab: f64,
}

impl Surprise {
    pub(super) fn new(rule: Mirostat, n_vocab: u32) -> Self {
        Self {
            rule,
            most: 2.0 * f64::from(rule.tau),
            n_vocab: f64::from(n_vocab.max(2)),
        }
    }

    /// Cuts what would surprise too much off sorted candidates.
    pub(super) fn cut(&self, candidates: &mut Vec<Candidate>, temperature: f32) {
        let weights = probabilities(candidates, temperature);
        let keep = match self.rule.version {
            MirostatVersion::One => self.keep_by_estimate(&weights),
            MirostatVersion::Two => weights
                .iter()
                .take_while(|weight| -weight.log2() <= self.most)
                .count(),
        };
        candidates.truncate(keep.max(1));
    }

    fn keep_by_estimate(&self, weights: &[f64]) -> usize {
        let (mut products, mut squares) = (0.0, 0.0);
        let pairs = weights.windows(2).take(ESTIMATED - 1);
        for (rank, pair) in (1_u32..).zip(pairs) {
            if let [likelier, next] = pair {
                let step = (f64::from(rank + 1) / f64::from(rank)).ln();
                products += step * (likelier / next).ln();
                squares += step * step;
            }
        }
        let slope = products / squares;
        let beyond = slope - 1.0;
        let count = beyond * self.most.exp2() / (1.0 - self.n_vocab.powf(-beyond));
        let count = count.powf(1.0 / slope);
        // NaN, which a flat or empty list leads to, keeps one.
        (1..=weights.len())
            .rfind(|keep| u32::try_from(*keep).is_ok_and(|keep| f64::from(keep) <= count))
            .unwrap_or(1)
    }

    /// Notes how likely the chosen token was among those that were left.
    pub(super) fn observe(&mut self, probability: f64) {
        let error = -probability.log2() - f64::from(self.rule.tau);
        self.most -= f64::from(self.rule.eta) * error;
    }
}
