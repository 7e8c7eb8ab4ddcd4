//! Whether guessing tokens ahead pays, and how many.
//!
//! A right guess saves a step; a wrong one costs the time of computing it. The more answers run, the less a step is
//! waiting for memory and the more every guessed token costs, so guessing stops when many run. It also stops for a while
//! when most guesses are wrong.

/// Answers at once above which nothing is guessed.
const RUNNING_MAX: usize = 4;
/// Below this share of right guesses, guessing rests.
const RATE_MIN: f64 = 0.25;
/// How much a new guess counts in the recent rate.
const LEARN: f64 = 0.05;
/// Steps to rest before it is tried again.
const REST_STEPS: u32 = 64;
/// How good guesses are taken to be before any was checked.
const RATE_FIRST: f64 = 0.6;

/// Decides how far ahead to guess.
#[derive(Clone, Copy, Debug)]
pub struct Drafting {
    most: usize,
    rate: f64,
    resting: u32,
    drafted: u64,
    accepted: u64,
}

impl Drafting {
    /// Guesses at most `most` tokens ahead; 0 never does.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            rate: RATE_FIRST,
            resting: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    /// How many tokens to guess for each of `running` answers in the next step.
    pub fn length(&mut self, running: usize) -> usize {
        if self.most == 0 || running == 0 || running > RUNNING_MAX {
            return 0;
        }
        if self.resting > 0 {
            self.resting -= 1;
            return 0;
        }
        // As far as the last token is still rather right than wrong.
        let mut length = 1;
        let mut likely = self.rate * self.rate;
        while length < self.most && likely > 0.3 {
            length += 1;
            likely *= self.rate;
        }
        length.min(self.most.div_ceil(running))
    }

    /// Notes that of `drafted` guessed tokens the first `accepted` were right.
    pub fn observe(&mut self, drafted: usize, accepted: usize) {
        let wrong = usize::from(accepted < drafted);
        for right in std::iter::repeat_n(1.0, accepted).chain(std::iter::repeat_n(0.0, wrong)) {
            self.rate += LEARN * (right - self.rate);
        }
        self.drafted += u64::try_from(drafted).unwrap_or(0);
        self.accepted += u64::try_from(accepted).unwrap_or(0);
        if drafted > 0 && self.rate < RATE_MIN {
            self.resting = REST_STEPS;
            // The next try starts without prejudice, but not full of hope.
            self.rate = f64::midpoint(RATE_MIN, RATE_FIRST);
        }
    }

    /// Tokens guessed since the start.
    pub fn drafted(&self) -> u64 {
        self.drafted
    }

    /// Those of them that were right.
    pub fn accepted(&self) -> u64 {
        self.accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_guesses_reach_further_and_bad_ones_stop() {
        let mut drafting = Drafting::new(8);
        let first = drafting.length(1);
        assert!((1..8).contains(&first), "{first}");
        for _step in 0..100 {
            drafting.observe(4, 4);
        }
        assert_eq!(drafting.length(1), 8);
        assert_eq!((drafting.drafted(), drafting.accepted()), (400, 400));

        let mut lengths = Vec::new();
        for _step in 0..200 {
            let length = drafting.length(1);
            lengths.push(length);
            if length > 0 {
                drafting.observe(length, 0);
            }
        }
        assert!(
            lengths.iter().filter(|length| **length == 0).count() > 100,
            "{lengths:?}"
        );
        assert!(
            lengths.iter().rev().take(100).any(|length| *length > 0),
            "it is tried again"
        );
    }

    #[test]
    fn nothing_is_guessed_for_many_answers() {
        assert_eq!(Drafting::new(8).length(RUNNING_MAX + 1), 0);
        assert_eq!(Drafting::new(0).length(1), 0);
        assert!(Drafting::new(8).length(4) <= 2);
    }
}
