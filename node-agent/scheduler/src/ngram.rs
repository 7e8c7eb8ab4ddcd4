//! Guesses the next tokens from what was said before: code, quotes and tables repeat themselves.
//!
//! The last place where the same few tokens stood is remembered for every few tokens, so a guess costs a look into a map,
//! however long the text is.

use std::collections::HashMap;

use crate::job::Token;

/// A guess needs this many tokens in common with an earlier place; fewer are common by chance.
const LENGTH: usize = 3;

/// The places in one sequence of tokens, by the tokens that stand there.
#[derive(Clone, Debug, Default)]
pub struct NgramIndex {
    /// Where the tokens after the last occurrence of each group begin.
    after: HashMap<[Token; LENGTH], usize>,
    /// Every token so far.
    tokens: Vec<Token>,
}

impl NgramIndex {
    /// Forgets everything and starts with `tokens`.
    pub fn restart(&mut self, tokens: &[Token]) {
        self.after.clear();
        self.tokens.clear();
        for token in tokens {
            self.push(*token);
        }
    }

    /// Notes the next token.
    pub fn push(&mut self, token: Token) {
        // The last group is entered only when something follows it.
        if let Some(group) = self.tokens.last_chunk::<LENGTH>() {
            self.after.insert(*group, self.tokens.len());
        }
        self.tokens.push(token);
    }

    /// How many tokens were noted.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether none was noted.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens that followed when the last few stood there before; at most `most`.
    pub fn guess(&self, most: usize) -> &[Token] {
        let place = self
            .tokens
            .last_chunk::<LENGTH>()
            .and_then(|group| self.after.get(group));
        let Some(place) = place else { return &[] };
        let end = self.tokens.len().min(place.saturating_add(most));
        self.tokens.get(*place..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(numbers: &[i32]) -> Vec<Token> {
        numbers.iter().copied().map(Token).collect()
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let mut index = NgramIndex::default();
        index.restart(&tokens(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3]));
        assert_eq!(index.guess(2), tokens(&[4, 5]));
        assert_eq!(index.guess(99).len(), 7, "to the end of what is known");
        index.push(Token(7));
        assert_eq!(index.guess(2), [], "2 3 7 is new");
    }

    #[test]
    fn the_latest_place_counts() {
        let mut index = NgramIndex::default();
        index.restart(&tokens(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]));
        assert_eq!(index.guess(1), tokens(&[5]));
    }

    #[test]
    fn a_repeating_tail_is_guessed_on() {
        let mut index = NgramIndex::default();
        index.restart(&tokens(&[7, 7, 7, 7]));
        assert_eq!(index.guess(4), tokens(&[7]));
        index.restart(&[]);
        assert!(index.is_empty() && index.guess(4).is_empty());
    }
}
