//! Log-probabilities as OpenAI reports them: of the model itself, before any sampling rule.

use scheduler::Token;

use super::scan;
use crate::engine::Candidate;

/// OpenAI's value for "very unlikely". JSON has no minus infinity.
const LOWEST: f32 = -9999.0;

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) token: Token,
    pub(crate) logprob: f32,
}

/// The chosen token and the best ones.
pub(crate) type Scores = (Scored, Vec<Scored>);

/// Scores the chosen token and the `count` best ones.
pub(crate) fn score(logits: &[f32], chosen: Token, count: u8) -> Scores {
    let best = scan::highest_of(logits);
    let sum = scan::sum_of_exponentials(logits, best);
    let scored = |candidate: Candidate| {
        let logprob = f64::from(candidate.logit - best) - sum.ln();
        Scored {
            token: candidate.token,
            logprob: narrow(logprob),
        }
    };
    let chosen_logit = usize::try_from(chosen.0).ok().and_then(|id| logits.get(id));
    let chosen = Candidate {
        token: chosen,
        logit: chosen_logit.copied().unwrap_or(f32::NEG_INFINITY),
    };
    let alternatives = match count {
        0 => Vec::new(),
        count => scan::top(logits, usize::from(count)),
    };
    (
        scored(chosen),
        alternatives.into_iter().map(scored).collect(),
    )
}

fn narrow(logprob: f64) -> f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "six digits are enough for a log-probability"
    )]
    let logprob = logprob as f32;
    if logprob >= LOWEST {
        logprob.min(0.0)
    } else {
        LOWEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_the_best_comes_first() {
        let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY];

        let (chosen, best) = score(&logits, Token(2), 4);

        let order: Vec<i32> = best.iter().map(|scored| scored.token.0).collect();
        assert_eq!(order, [1, 2, 0]);
        let sum: f32 = best.iter().map(|scored| scored.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!((chosen.logprob - best[1].logprob).abs() < f32::EPSILON);
    }

    #[test]
    fn an_impossible_token_has_a_number() {
        let (chosen, best) = score(&[0.0, f32::NEG_INFINITY], Token(1), 0);

        assert!((chosen.logprob - LOWEST).abs() < f32::EPSILON);
        assert!(best.is_empty());
    }
}
