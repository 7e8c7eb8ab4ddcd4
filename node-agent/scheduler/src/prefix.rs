//! How much of a cached sequence a new prompt may reuse.
//!
//! The KV cache of a slot holds keys and values of its last request. A prompt that begins with the same tokens need not
//! read them again (about 40 times faster to the first token). Two traps make this more than a comparison: a cache with
//! a sliding window has forgotten old positions, and going back in it gives wrong logits *without any error*; and a
//! recurrent model has only its last state. Whose cache it is is decided elsewhere: see [`crate::Slots::choose`].

use crate::job::Token;

/// How far a model's cache can go back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rollback {
    /// To any position: full attention.
    Any,
    /// Only as far as the sliding window's cells reach; the number is the window's length in tokens.
    Window(u32),
    /// Not at all: recurrent and hybrid models can only be continued.
    Never,
}

/// What the engine says about a sequence in its cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KvState {
    /// Number of tokens in the sequence.
    pub len: usize,
    /// The oldest position still held by every part of the cache; `None` if the sequence is empty.
    pub oldest: Option<u32>,
    /// How far it can go back.
    pub rollback: Rollback,
}

impl KvState {
    /// What a copy of the sequence can do: it leaves out what the window has moved past.
    #[must_use]
    pub fn copied(self) -> Self {
        let Rollback::Window(window) = self.rollback else {
            return self;
        };
        let first = u32::try_from(self.len)
            .unwrap_or(u32::MAX)
            .saturating_sub(window);
        Self {
            oldest: self.oldest.map(|oldest| oldest.max(first)),
            ..self
        }
    }
}

/// Counts the tokens with which both sequences begin.
pub fn common_prefix(left: &[Token], right: &[Token]) -> usize {
    left.iter().zip(right).take_while(|(l, r)| l == r).count()
}

/// Says how many of `common` leading tokens may be kept in the cache for a prompt of `prompt_len` tokens.
///
/// At least the prompt's last token is always computed, because its logits are needed.
pub fn reusable(common: usize, prompt_len: usize, kv: KvState) -> usize {
    let wanted = common.min(prompt_len.saturating_sub(1)).min(kv.len);
    let Some(oldest) = kv.oldest else {
        return 0;
    };
    let possible = match kv.rollback {
        Rollback::Any => true,
        Rollback::Never => wanted == kv.len,
        Rollback::Window(window) => {
            // The next token is at `wanted` and looks back on `window` tokens, itself included.
            let next = u32::try_from(wanted).unwrap_or(u32::MAX);
            oldest <= next.saturating_add(1).saturating_sub(window)
        }
    };
    if possible { wanted } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(len: usize, oldest: u32, rollback: Rollback) -> KvState {
        KvState {
            len,
            oldest: Some(oldest),
            rollback,
        }
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        assert_eq!(reusable(10, 10, kv(50, 0, Rollback::Any)), 9);
        assert_eq!(reusable(0, 1, kv(50, 0, Rollback::Any)), 0);
    }

    #[test]
    fn a_window_that_has_moved_on_is_not_reused() {
        // Measured: after 1,800 tokens a window of 768 keeps 1,032..1,799, and going back to 300 gives wrong logits.
        let moved = kv(1_800, 1_032, Rollback::Window(768));

        assert_eq!(reusable(300, 2_000, moved), 0);
        assert_eq!(reusable(1_800, 2_000, moved), 1_800);
        assert_eq!(
            reusable(1_799, 2_000, moved),
            1_799,
            "the token at 1,799 sees 1,032 to itself"
        );
        assert_eq!(reusable(1_798, 2_000, moved), 0);
        assert_eq!(
            reusable(300, 2_000, kv(700, 0, Rollback::Window(768))),
            300,
            "nothing forgotten yet"
        );
    }

    #[test]
    fn a_recurrent_model_is_only_continued() {
        assert_eq!(reusable(20, 30, kv(20, 0, Rollback::Never)), 20);
        assert_eq!(reusable(19, 30, kv(20, 0, Rollback::Never)), 0);
    }

    #[test]
    fn an_empty_sequence_has_nothing_to_reuse() {
        let empty = KvState {
            len: 0,
            oldest: None,
            rollback: Rollback::Any,
        };
        assert_eq!(reusable(5, 10, empty), 0);
    }
}
