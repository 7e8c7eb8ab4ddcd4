//! How many prompt tokens one step may read, so that running answers do not visibly stall.
//!
//! The time of a step is modelled as the time of the running answers, plus as much again for one more pass through the weights
//! (sequences of different lengths are computed apart), plus so much for each prompt token, plus so much for each pair of a
//! prompt token and a token before it (attention). The two rates are fitted to what steps really took, older
//! ones counting less. Three rules keep the first estimates honest: the first chunk is small, no chunk is more than twice
//! the largest that was measured, and a step that took longer than predicted makes the next ones smaller at once, while
//! good news is believed slowly.

use std::time::Duration;

use crate::plan::BatchPlan;

/// Prompt tokens in a step before anything was measured.
const FIRST: usize = 16;
/// Fewer tokens at once are hardly faster than these, since the weights are read once per step in any case.
const LEAST: usize = 12;
/// How much of the allowed gap is planned for. The rest is for sampling, sending and a machine that is busy with more.
const USED: f64 = 0.75;
/// How much longer a step may be that disturbs no running answer: somebody may want to cancel, or come with a short prompt.
const QUIET_FACTOR: f64 = 3.0;
/// How much older steps count, each time.
const KEEP: f64 = 0.9;
/// How fast good news is believed.
const RELAX: f64 = 0.2;

/// Learns how fast prompts are read, and says how many of their tokens one step may take.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    stall_secs: f64,
    batch_max: usize,
    /// Seconds of a step without prompts.
    decode_secs: Option<f64>,
    fit: Fit,
    /// The most prompt tokens in a step so far.
    largest: usize,
    /// How much longer steps take than predicted, at least 1.
    slower: f64,
}

/// Least squares for `secs = each * tokens + pair * pairs`, older measurements fading.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    tokens_tokens: f64,
    tokens_pairs: f64,
    pairs_pairs: f64,
    tokens_secs: f64,
    pairs_secs: f64,
}

impl Fit {
    fn learn(&mut self, tokens: f64, pairs: f64, secs: f64) {
        // Every step counts alike, however many tokens it had.
        let weight = 1.0 / tokens;
        for (sum, new) in [
            (&mut self.tokens_tokens, tokens * tokens),
            (&mut self.tokens_pairs, tokens * pairs),
            (&mut self.pairs_pairs, pairs * pairs),
            (&mut self.tokens_secs, tokens * secs),
            (&mut self.pairs_secs, pairs * secs),
        ] {
            *sum = *sum * KEEP + new * weight;
        }
    }

    /// Seconds for each token and for each pair; `None` before the first measurement.
    fn rates(&self) -> Option<(f64, f64)> {
        if self.tokens_tokens <= 0.0 {
            return None;
        }
        let flat = (self.tokens_secs / self.tokens_tokens).max(0.0);
        let spread = self.tokens_tokens * self.pairs_pairs;
        let determinant = spread - self.tokens_pairs * self.tokens_pairs;
        // Nearly parallel: all measurements were at the same place of a prompt.
        if determinant <= spread * 1e-3 {
            return Some((flat, 0.0));
        }
        let each = (self.tokens_secs * self.pairs_pairs - self.pairs_secs * self.tokens_pairs)
            / determinant;
        let pair = (self.pairs_secs * self.tokens_tokens - self.tokens_secs * self.tokens_pairs)
            / determinant;
        if pair <= 0.0 {
            return Some((flat, 0.0));
        }
        if each <= 0.0 {
            return Some((0.0, self.pairs_secs / self.pairs_pairs));
        }
        Some((each, pair))
    }
}

impl Pacer {
    /// Keeps the gaps between the tokens of running answers under `stall_max`.
    pub fn new(stall_max: Duration, batch_max: usize) -> Self {
        Self {
            stall_secs: stall_max.as_secs_f64(),
            batch_max,
            decode_secs: None,
            fit: Fit::default(),
            largest: 0,
            slower: 1.0,
        }
    }

    /// Notes how long a plan took.
    pub fn observe(&mut self, plan: &BatchPlan, elapsed: Duration) {
        let secs = elapsed.as_secs_f64();
        let prefill = plan.prefill_len();
        if prefill == 0 {
            let old = self.decode_secs.unwrap_or(secs);
            let believed = if secs > old {
                secs.min(2.0 * old)
            } else {
                secs
            };
            self.decode_secs = Some(old + RELAX * (believed - old));
            return;
        }
        let passes = if plan.decode_len() > 0 { 2.0 } else { 1.0 };
        let secs = (secs - passes * self.decode_secs.unwrap_or(0.0)).max(secs / 4.0);
        let (tokens, pairs) =
            plan.prefill_parts()
                .fold((0.0, 0.0), |(tokens, pairs), (len, before)| {
                    let (len, before) = (count(len), count(before));
                    (tokens + len, pairs + len * (before + len / 2.0))
                });
        if let Some((each, pair)) = self.fit.rates() {
            let ratio = secs / (each * tokens + pair * pairs).max(1e-9);
            // A machine that was busy for one step is no reason to crawl.
            let ratio = ratio.clamp(1.0, 2.0);
            self.slower = if ratio > self.slower {
                ratio
            } else {
                self.slower + RELAX * (ratio - self.slower)
            };
        }
        self.fit.learn(tokens, pairs, secs);
        self.largest = self.largest.max(prefill);
    }

    /// How many prompt tokens the next step may take when sequences of `before` tokens are being read.
    pub fn budget(&self, answers_running: bool, before: usize) -> usize {
        let Some((each, pair)) = self.fit.rates() else {
            return FIRST.min(self.batch_max);
        };
        let allowed = if answers_running {
            self.stall_secs * USED - 2.0 * self.decode_secs.unwrap_or(0.0)
        } else {
            self.stall_secs * QUIET_FACTOR
        };
        let secs = allowed.max(0.0) / self.slower;
        // secs = each * n + pair * (before * n + n * n / 2), solved for n.
        let linear = each + pair * count(before);
        let root = (linear * linear + 2.0 * pair * secs).sqrt();
        let fits = 2.0 * secs / (linear + root).max(1e-12);
        let fits = whole(fits, self.batch_max);
        let most = self.largest.saturating_mul(2).max(FIRST);
        fits.min(most).max(LEAST).min(self.batch_max)
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// The whole part of `number`, at most `most`.
fn whole(number: f64, most: usize) -> usize {
    if number >= count(most) {
        return most;
    }
    let nanos = Duration::try_from_secs_f64(number.max(0.0)).unwrap_or_default();
    usize::try_from(nanos.as_secs()).unwrap_or(most)
}

#[cfg(test)]
mod tests;
