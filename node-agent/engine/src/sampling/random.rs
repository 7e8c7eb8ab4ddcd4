//! Draws that depend on the seed, the place in the answer and nothing else.
//!
//! Another machine can therefore go on with an answer at any token, and guessing ahead changes nothing. This room must
//! never keep a state that a draw moves on.

use std::hash::BuildHasher;

/// Steele, Lea and Flood's `SplitMix64`: small, good enough for sampling, and the same on every machine.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a draw is for: two draws at one place must not be the same.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// The token.
    Token,
    /// Whether the likeliest tokens are excluded.
    Exclude,
    /// The token again, after a grammar has refused the first.
    Again,
}

/// All draws of one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    seed: u64,
}

impl Draws {
    /// Takes the seed, or one from chance.
    pub(super) fn new(seed: Option<u64>) -> Self {
        let seed = seed.unwrap_or_else(|| std::hash::RandomState::new().hash_one(0_u8));
        // Choices of one request have seeds that follow each other.
        Self { seed: mix(seed) }
    }

    /// A number in `0.0..1.0`.
    pub(super) fn unit(self, place: u64, purpose: Purpose) -> f64 {
        let purpose = match purpose {
            Purpose::Token => 1,
            Purpose::Exclude => 2,
            Purpose::Again => 3,
        };
        let step = place.wrapping_mul(4).wrapping_add(purpose);
        let mixed = mix(self.seed.wrapping_add(GOLDEN.wrapping_mul(step)));
        let high = u32::try_from(mixed >> 32).unwrap_or(u32::MAX);
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}

fn mix(value: u64) -> u64 {
    let mut mixed = value;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_depends_on_seed_place_and_purpose() {
        let draws = Draws::new(Some(1));
        let first = draws.unit(0, Purpose::Token);
        let others = [
            draws.unit(1, Purpose::Token),
            draws.unit(0, Purpose::Exclude),
            draws.unit(0, Purpose::Again),
            Draws::new(Some(2)).unit(0, Purpose::Token),
        ];
        assert_eq!(first.to_bits(), draws.unit(0, Purpose::Token).to_bits());
        assert!(others.iter().all(|other| (other - first).abs() > 1e-9));
    }

    #[test]
    fn draws_are_spread_evenly() {
        let draws = Draws::new(Some(3));
        let mut buckets = [0_u32; 10];
        for place in 0..10_000 {
            let unit = draws.unit(place, Purpose::Token);
            assert!((0.0..1.0).contains(&unit));
            let bucket = (0..10).rfind(|bucket| unit * 10.0 >= f64::from(*bucket));
            buckets[usize::try_from(bucket.unwrap_or(0)).unwrap_or(0)] += 1;
        }
        assert!(
            buckets.iter().all(|count| (850..1_150).contains(count)),
            "{buckets:?}"
        );
    }
}
