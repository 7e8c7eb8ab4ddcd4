//! The rules that cut the tail, or the head, off a sorted list of candidates. Each leaves at least one.

use crate::engine::Candidate;

/// Probabilities of sorted candidates at a temperature; they sum to 1.
pub(super) fn probabilities(candidates: &[Candidate], temperature: f32) -> Vec<f64> {
    let best = candidates.first().map_or(0.0, |candidate| candidate.logit);
    let weight = |candidate: &Candidate| f64::from((candidate.logit - best) / temperature).exp();
    let mut weights: Vec<f64> = candidates.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}

/// Shannon entropy in nats.
fn entropy(weights: &[f64]) -> f64 {
    let term = |weight: &f64| {
        if *weight > 0.0 {
            -weight * weight.ln()
        } else {
            0.0
        }
    };
    weights.iter().map(term).sum()
}

/// Keeps the logits that lie at most `n` standard deviations below the best (<https://arxiv.org/abs/2411.07641>).
pub(super) fn keep_top_n_sigma(candidates: &mut Vec<Candidate>, n: f32, deviation: f32) {
    let Some(best) = candidates.first().map(|candidate| candidate.logit) else {
        return;
    };
    let lowest = best - n * deviation;
    keep_while(candidates, |candidate| candidate.logit >= lowest);
}

/// Keeps the best that together reach a probability (<https://arxiv.org/abs/1904.09751>).
pub(super) fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
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

/// Keeps those that are at least this likely relative to the best.
pub(super) fn keep_min_p(candidates: &mut Vec<Candidate>, min_p: f32) {
    let Some(best) = candidates.first().map(|candidate| candidate.logit) else {
        return;
    };
    let lowest = best + min_p.ln();
    keep_while(candidates, |candidate| candidate.logit >= lowest);
}

fn keep_while(candidates: &mut Vec<Candidate>, wanted: impl Fn(&Candidate) -> bool) {
    let keep = candidates
        .iter()
        .take_while(|candidate| wanted(candidate))
        .count();
    candidates.truncate(keep.max(1));
}

/// Keeps the tokens whose information is closest to the expected one, up to a probability of `typical_p`
/// (<https://arxiv.org/abs/2202.00666>).
pub(super) fn keep_typical(candidates: &mut Vec<Candidate>, typical_p: f32) {
    let weights = probabilities(candidates, 1.0);
    let expected = entropy(&weights);
    let distance = |weight: f64| (-weight.ln() - expected).abs();
    let mut rated: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
    rated.sort_by(|left, right| distance(left.1).total_cmp(&distance(right.1)));
    let mut reached = 0.0;
    let mut keep = 0;
    for (_place, weight) in &rated {
        keep += 1;
        reached += weight;
        if reached > f64::from(typical_p) {
            break;
        }
    }
    rated.truncate(keep.max(1));
    rated.sort_unstable_by_key(|(place, _weight)| *place);
    let mut kept = rated.iter().map(|(place, _weight)| *place).peekable();
    let mut place = 0;
    candidates.retain(|_candidate| {
        let keeps = kept.next_if_eq(&place).is_some();
        place += 1;
        keeps
    });
}

/// Excludes all but the least likely of those that reach the threshold.
pub(super) fn exclude_top(candidates: &mut Vec<Candidate>, threshold: f32) {
    let above = probabilities(candidates, 1.0)
        .into_iter()
        .take_while(|weight| *weight >= f64::from(threshold))
        .count();
    candidates.drain(..above.saturating_sub(1));
}

/// The temperature that suits how sure the model is: lower by up to `range` when it is, higher when it is not
/// (<https://arxiv.org/abs/2309.02772>).
pub(super) fn dynamic_temperature(
    candidates: &[Candidate],
    temperature: f32,
    range: f32,
    exponent: f32,
) -> f32 {
    if range <= 0.0 || candidates.len() < 2 {
        return temperature;
    }
    let count = f64::from(u32::try_from(candidates.len()).unwrap_or(u32::MAX));
    let unsure = entropy(&probabilities(candidates, 1.0)) / count.ln();
    let lowest = (temperature - range).max(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a number between 0 and 1 needs no more than seven digits"
    )]
    let part = unsure.clamp(0.0, 1.0).powf(f64::from(exponent)) as f32;
    lowest + (temperature + range - lowest) * part
}
