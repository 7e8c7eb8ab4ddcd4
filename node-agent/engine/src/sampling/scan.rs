//! Passes over the logits of a whole vocabulary, written so that the compiler makes vector instructions of them.
//!
//! A vocabulary has up to 262,144 tokens and every one of them is looked at for every token made, so a plain loop with a
//! branch costs more than all that follows. NaN and minus infinity are never candidates.

use scheduler::Token;

use crate::engine::Candidate;

/// Values that are looked at side by side.
const LANES: usize = 16;
/// Values whose highest stands for all of them.
const BLOCK: usize = 32;
/// Values among which the best one is searched.
const STRIDE: usize = 4_096;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Adding it to a number of moderate size rounds that to an integer.
const ROUNDER: f32 = 12_582_912.0;

/// The best token; of equals, the first.
pub(super) fn best(logits: &[f32]) -> Option<Candidate> {
    let (mut highest, mut found) = (f32::NEG_INFINITY, None);
    for (index, stride) in logits.chunks(STRIDE).enumerate() {
        let here = highest_of(stride);
        if here > highest {
            highest = here;
            found = Some((index, stride));
        }
    }
    let (index, stride) = found?;
    // Found by comparison above, so one of them is the same to the bit, or zero of the other sign.
    let place = stride.iter().position(|logit| *logit >= highest)?;
    candidate(index * STRIDE + place, highest)
}

/// The `count` best tokens, best first; of equals, the lower number first.
pub(super) fn top(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut keys = keys_of_top(logits, count);
    if keys.len() > count {
        if count > 0 {
            keys.select_nth_unstable(count - 1);
        }
        keys.truncate(count);
    }
    keys.sort_unstable();
    keys.into_iter().map(from_key).collect()
}

/// At least the `count` best tokens, in no order.
fn keys_of_top(logits: &[f32], count: usize) -> Vec<u64> {
    let floor = floor_of_top(logits, count);
    let mut keys = Vec::with_capacity(logits.len().min(count.saturating_mul(2)));
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        // The compiler makes a few instructions of this; most blocks end here.
        if highest_of(block) < floor {
            continue;
        }
        for (place, logit) in block.iter().enumerate() {
            if *logit >= floor && *logit > f32::NEG_INFINITY {
                keys.push(key(index * BLOCK + place, *logit));
            }
        }
    }
    keys
}

/// A value that at least `count` logits reach: if the best of `count` blocks reach it, so many logits do.
fn floor_of_top(logits: &[f32], count: usize) -> f32 {
    let blocks = logits.len() / BLOCK;
    if count == 0 || blocks / 2 < count {
        return f32::NEG_INFINITY;
    }
    let mut highest: Vec<u32> = logits
        .chunks(BLOCK)
        .map(|block| !ordered(highest_of(block)))
        .collect();
    let (_better, floor, _worse) = highest.select_nth_unstable(count - 1);
    from_ordered(!*floor)
}

/// The highest value; minus infinity if there is none.
pub(super) fn highest_of(values: &[f32]) -> f32 {
    let higher = |one: f32, other: f32| if other > one { other } else { one };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, *value);
        }
    }
    let rest = rest.iter().copied().fold(f32::NEG_INFINITY, higher);
    lanes.into_iter().fold(rest, higher)
}

/// Mean and standard deviation of the values that are finite.
pub(super) fn spread(values: &[f32]) -> (f32, f32) {
    let (sum, count) = sums(values, |value| value);
    if count < 1.0 {
        return (0.0, 0.0);
    }
    let mean = sum / count;
    let (squares, _count) = sums(values, |value| (value - mean) * (value - mean));
    (mean, (squares / count).sqrt())
}

/// The sum of a function of all finite values, and how many they are.
fn sums(values: &[f32], of: impl Fn(f32) -> f32) -> (f32, f32) {
    let (mut sums, mut counts) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for ((sum, count), value) in sums.iter_mut().zip(&mut counts).zip(chunk) {
            let finite = value.abs() < f32::INFINITY;
            *sum += if finite { of(*value) } else { 0.0 };
            *count += if finite { 1.0 } else { 0.0 };
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        if value.is_finite()
            && let (Some(sum), Some(count)) = (sums.get_mut(lane), counts.get_mut(lane))
        {
            *sum += of(*value);
            *count += 1.0;
        }
    }
    (sums.iter().sum(), counts.iter().sum())
}

/// The sum of e to the power of all values less `highest`, which none may be above.
pub(super) fn sum_of_exponentials(values: &[f32], highest: f32) -> f64 {
    let mut sum = 0.0;
    // Few enough terms in a lane for single precision.
    for stride in values.chunks(STRIDE) {
        let mut lanes = [0.0_f32; LANES];
        let (chunks, rest) = stride.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += exponential(*value - highest);
            }
        }
        let lanes: f32 = lanes.iter().sum();
        let rest: f32 = rest.iter().map(|value| exponential(*value - highest)).sum();
        sum += f64::from(lanes) + f64::from(rest);
    }
    sum
}

/// e to the power of a number not above 0, to five digits; 0 for what is far below and for NaN.
fn exponential(exponent: f32) -> f32 {
    // Below this the result is smaller than any that matters, and its exponent would not fit.
    let sensible = exponent > -80.0;
    let power = if sensible { exponent } else { 0.0 } * LOG2_E;
    let shifted = power + ROUNDER;
    let whole = shifted - ROUNDER;
    let part = power - whole;
    // Taylor's series of 2^x on -0.5 to 0.5.
    let series = 1.339_887_5e-3_f32;
    let series = series * part + 9.618_437e-3;
    let series = series * part + 5.550_332_5e-2;
    let series = series * part + 2.402_264_8e-1;
    let series = series * part + 6.931_472e-1;
    let series = series * part + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if sensible { series * scale } else { 0.0 }
}

fn candidate(place: usize, logit: f32) -> Option<Candidate> {
    Some(Candidate {
        token: Token(i32::try_from(place).ok()?),
        logit,
    })
}

/// A number that is the lower the better a candidate is: its logit turned over, then its place.
fn key(place: usize, logit: f32) -> u64 {
    let place = u32::try_from(place).unwrap_or(u32::MAX);
    u64::from(!ordered(logit)) << 32 | u64::from(place)
}

fn from_key(key: u64) -> Candidate {
    let low = u64::from(u32::MAX);
    let [logit, place] = [key >> 32, key & low].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
    Candidate {
        token: Token(i32::try_from(place).unwrap_or(i32::MAX)),
        logit: from_ordered(!logit),
    }
}

/// The bits of a number in the order of numbers.
const fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    }
}

const fn from_ordered(bits: u32) -> f32 {
    f32::from_bits(if bits >> 31 == 1 {
        bits & !(1 << 31)
    } else {
        !bits
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive_top(logits: &[f32], count: usize) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = logits
            .iter()
            .enumerate()
            .filter(|(_place, logit)| **logit > f32::NEG_INFINITY)
            .filter_map(|(place, logit)| candidate(place, *logit))
            .collect();
        all.sort_by(|left, right| {
            let by_logit = right.logit.total_cmp(&left.logit);
            by_logit.then(left.token.0.cmp(&right.token.0))
        });
        all.truncate(count);
        all
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let one = prop_oneof![
            8 => -30.0_f32..30.0,
            2 => Just(1.5_f32),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::NAN),
        ];
        prop::collection::vec(one, 0..3_000)
    }

    proptest! {
        #[test]
        fn the_best_are_those_that_a_plain_sort_finds(logits in logits(), count in 0_usize..70) {
            prop_assert_eq!(top(&logits, count), naive_top(&logits, count));
        }

        #[test]
        fn the_best_one_is_the_first_of_the_best(logits in logits()) {
            let best = best(&logits).map(|best| best.token);
            prop_assert_eq!(best, naive_top(&logits, 1).first().map(|best| best.token));
        }

        #[test]
        fn exponentials_are_right_to_five_digits(exponent in -79.0_f32..0.0) {
            let right = f64::from(exponent).exp();
            let off = (f64::from(exponential(exponent)) - right).abs() / right;
            prop_assert!(off < 1e-5, "{exponent}: off by {off}");
        }
    }

    #[test]
    fn what_is_no_number_has_no_weight() {
        let values = [0.0, f32::NEG_INFINITY, f32::NAN, -200.0, 0.0];
        assert!((sum_of_exponentials(&values, 0.0) - 2.0).abs() < 1e-6);
    }

    #[test]
    fn spread_is_that_of_the_finite_values() {
        let (mean, deviation) = spread(&[1.0, f32::NEG_INFINITY, 3.0, 5.0]);
        assert!((mean - 3.0).abs() < 1e-6);
        assert!((deviation - (8.0_f32 / 3.0).sqrt()).abs() < 1e-6);
    }
}
