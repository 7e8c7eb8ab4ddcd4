//! A request as the scheduler sees it, and the rule that decides whether it fits into a context at all.
//!
//! Nothing here is ever shortened to fit: a prompt that does not fit is refused with the numbers.

use std::time::Instant;

use fair::Class;

/// Number of a job, unique within one worker.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct JobId(pub u64);

/// Whose request it is: the unit of fairness.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Principal(pub u64);

/// Who may reuse a prompt that was read: only requests behind the same wall. Derived from a secret or a tenant, so that
/// two of them are the same only if they are meant to be.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Wall(pub u128);

/// One token of the model's vocabulary.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token(pub i32);

/// A request that waits or works. `T` is whatever its owner needs to answer it.
#[derive(Clone, Debug)]
pub struct Job<T> {
    /// Its number.
    pub id: JobId,
    /// Whose it is.
    pub principal: Principal,
    /// Before whom it goes.
    pub class: Class,
    /// Its answer began on another machine: somebody is reading it.
    pub begun: bool,
    /// Who may reuse its prompt.
    pub wall: Wall,
    /// The tokens to read, never empty.
    pub prompt: Vec<Token>,
    /// The links of its conversation, oldest first: by these its next turn is found here.
    pub links: Vec<u64>,
    /// The most tokens its sequence can hold at any time: the prompt and the longest answer.
    pub cells: usize,
    /// When it came.
    pub arrived: Instant,
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
    /// What its owner keeps with it.
    pub payload: T,
}

impl<T> Job<T> {
    /// What it costs its principal's share: the tokens it may take.
    pub fn cost(&self) -> u64 {
        u64::try_from(self.cells.max(self.prompt.len())).unwrap_or(u64::MAX)
    }
}

/// How many tokens an admitted job may make.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Admission {
    /// The limit, at least 1.
    pub tokens_max: u32,
}

/// A prompt that does not fit, or not together with the wanted answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooLong {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// What was asked for.
    pub max_tokens: Option<u32>,
    /// The slot's context.
    pub n_ctx: u32,
}

/// Checks that a prompt and the answer that was asked for fit into one slot's context.
///
/// Without `max_tokens` the answer may take what is left.
pub fn admit(
    prompt_tokens: usize,
    max_tokens: Option<u32>,
    n_ctx: u32,
) -> Result<Admission, TooLong> {
    let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
    let left = n_ctx.saturating_sub(prompt_tokens);
    let tokens_max = max_tokens.unwrap_or(left).max(1);
    if tokens_max > left {
        return Err(TooLong {
            prompt_tokens,
            max_tokens,
            n_ctx,
        });
    }
    Ok(Admission { tokens_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_needs_room_for_one_token() {
        assert_eq!(admit(99, None, 100), Ok(Admission { tokens_max: 1 }));
        assert!(admit(100, None, 100).is_err());
        assert!(admit(usize::MAX, None, u32::MAX).is_err());
    }

    #[test]
    fn an_explicit_length_must_fit_whole() {
        assert_eq!(admit(60, Some(40), 100), Ok(Admission { tokens_max: 40 }));
        let too_long = TooLong {
            prompt_tokens: 60,
            max_tokens: Some(41),
            n_ctx: 100,
        };
        assert_eq!(
            admit(60, Some(41), 100),
            Err(too_long),
            "never cut short in silence"
        );
    }
}
