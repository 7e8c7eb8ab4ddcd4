//! Prompts that were read once and are kept in memory for later, least recently used out first.
//!
//! What is kept with each is the engine's business (`S`); this room knows the tokens, who may reuse them, and the bytes.
//! An entry is found only from behind the wall of whoever filled it.

use std::rc::Rc;

use crate::job::Token;
use crate::job::Wall;
use crate::links::Links;
use crate::prefix::KvState;
use crate::prefix::Rollback;
use crate::prefix::common_prefix;
use crate::prefix::reusable;

/// Bytes that an entry takes beside its state and tokens.
const ENTRY_BYTES: usize = 256;
/// Entries at most, since every look goes through all of them.
const ENTRIES_MAX: usize = 256;

/// A prompt that was read, and the state of the model after it.
#[derive(Clone, Debug)]
pub struct Kept<S> {
    /// Who may reuse it.
    pub wall: Wall,
    /// The tokens read.
    pub tokens: Vec<Token>,
    /// Which conversations they are.
    pub links: Links,
    /// What the cache holds of them.
    pub kv: KvState,
    /// The state, shared with whoever is using it now.
    pub state: Rc<S>,
    /// Bytes of the state.
    pub bytes: usize,
}

impl<S> Kept<S> {
    fn size(&self) -> usize {
        self.bytes + self.tokens.len() * size_of::<Token>() + ENTRY_BYTES
    }

    /// Whether everything that `tokens` could be used for, this can be used for too.
    fn covers(&self, wall: Wall, tokens: &[Token]) -> bool {
        self.wall == wall
            && match self.kv.rollback {
                Rollback::Any => self.tokens.starts_with(tokens),
                Rollback::Window(_) | Rollback::Never => self.tokens == tokens,
            }
    }
}

/// Kept prompts within a bound of bytes.
#[derive(Debug)]
pub struct Prompts<S> {
    bytes_max: usize,
    bytes: usize,
    /// Least recently used first.
    kept: Vec<Kept<S>>,
}

impl<S> Prompts<S> {
    /// Keeps at most `bytes_max` bytes; 0 keeps nothing.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            kept: Vec::new(),
        }
    }

    /// Bytes kept now.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries kept now.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether `bytes` more, and the tokens, could be kept if everything else went.
    pub fn could_keep(&self, bytes: usize) -> bool {
        self.bytes_max > 0 && bytes.saturating_add(ENTRY_BYTES) <= self.bytes_max
    }

    /// Whether these tokens are kept already.
    pub fn covers(&self, wall: Wall, tokens: &[Token]) -> bool {
        self.kept.iter().any(|kept| kept.covers(wall, tokens))
    }

    /// Notes more conversations of tokens that are kept already. Says whether they are.
    pub fn join(&mut self, wall: Wall, tokens: &[Token], links: &Links) -> bool {
        let mut kept = self.kept.iter_mut();
        let Some(kept) = kept.find(|kept| kept.covers(wall, tokens)) else {
            return false;
        };
        kept.links.join(links, tokens.len());
        true
    }

    /// Keeps an entry, and lets go of what it makes superfluous and of the oldest ones. Says whether it was kept.
    pub fn insert(&mut self, mut entry: Kept<S>) -> bool {
        let size = entry.size();
        if size > self.bytes_max {
            return false;
        }
        let (covered, kept) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|kept| entry.covers(kept.wall, &kept.tokens));
        self.kept = kept;
        let covered: Vec<Kept<S>> = covered;
        for old in &covered {
            entry.links.join(&old.links, old.tokens.len());
        }
        self.bytes = self.kept.iter().map(Kept::size).sum();
        while self.bytes + size > self.bytes_max || self.kept.len() >= ENTRIES_MAX {
            self.bytes -= self.kept.remove(0).size();
        }
        self.bytes += size;
        self.kept.push(entry);
        true
    }

    /// Finds the entry of which most can be reused for a prompt, and how many tokens that is.
    pub fn find(&mut self, wall: Wall, prompt: &[Token]) -> Option<(Kept<S>, usize)>
    where
        S: std::fmt::Debug,
    {
        let rated = self
            .kept
            .iter()
            .enumerate()
            .filter(|(_place, kept)| kept.wall == wall);
        let rated = rated.map(|(place, kept)| {
            let common = common_prefix(&kept.tokens, prompt);
            (place, reusable(common, prompt.len(), kept.kv))
        });
        let (place, usable) = rated.max_by_key(|(_place, usable)| *usable)?;
        if usable == 0 {
            return None;
        }
        let kept = self.kept.remove(place);
        let found = Kept {
            wall: kept.wall,
            tokens: kept.tokens.clone(),
            links: kept.links.clone(),
            kv: kept.kv,
            state: kept.state.clone(),
            bytes: kept.bytes,
        };
        self.kept.push(kept);
        Some((found, usable))
    }

    /// How many tokens of a prompt could be reused.
    pub fn usable(&self, wall: Wall, prompt: &[Token]) -> usize {
        let own = self.kept.iter().filter(|kept| kept.wall == wall);
        let usable = own.map(|kept| {
            let common = common_prefix(&kept.tokens, prompt);
            reusable(common, prompt.len(), kept.kv)
        });
        usable.max().unwrap_or(0)
    }

    /// All entries, most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = &Kept<S>> {
        self.kept.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(wall: u128, range: std::ops::Range<i32>, rollback: Rollback) -> Kept<()> {
        let tokens: Vec<Token> = range.map(Token).collect();
        let kv = KvState {
            len: tokens.len(),
            oldest: Some(0),
            rollback,
        };
        Kept {
            wall: Wall(wall),
            tokens,
            links: Links::default(),
            kv,
            state: Rc::new(()),
            bytes: 1_000,
        }
    }

    fn prompt(range: std::ops::Range<i32>) -> Vec<Token> {
        range.map(Token).collect()
    }

    #[test]
    fn the_longest_usable_prefix_is_found_behind_ones_own_wall_only() {
        let mut prompts = Prompts::new(100_000);
        for (wall, end) in [(1, 10), (1, 30), (2, 50)] {
            // Other continuations, so that no entry covers another.
            let mut entry = entry(wall, 0..end, Rollback::Any);
            entry.tokens.push(Token(-end));
            entry.kv.len += 1;
            assert!(prompts.insert(entry));
        }
        assert_eq!(prompts.usable(Wall(1), &prompt(0..100)), 30);
        assert_eq!(prompts.usable(Wall(3), &prompt(0..100)), 0);
        let (found, usable) = prompts.find(Wall(2), &prompt(0..20)).expect("found");
        assert_eq!(
            (found.tokens.len(), usable),
            (51, 19),
            "the last token is always computed"
        );
    }

    #[test]
    fn memory_stays_within_its_bound_and_the_oldest_goes_first() {
        let mut prompts = Prompts::new(4_000);
        for wall in 0..10 {
            prompts.insert(entry(wall, 0..10, Rollback::Any));
            assert!(prompts.bytes() <= 4_000);
            // The first is always in use.
            prompts.find(Wall(0), &prompt(0..20));
        }
        assert!(prompts.usable(Wall(0), &prompt(0..20)) > 0);
        assert_eq!(prompts.usable(Wall(1), &prompt(0..20)), 0);
        assert_eq!(prompts.len(), 3);
        assert!(!Prompts::<()>::new(0).could_keep(1));
        let mut none = Prompts::new(0);
        assert!(!none.insert(entry(1, 0..3, Rollback::Any)));
    }

    #[test]
    fn an_entry_that_another_contains_is_dropped_unless_the_model_cannot_go_back() {
        for (rollback, left) in [
            (Rollback::Any, 1),
            (Rollback::Never, 2),
            (Rollback::Window(4), 2),
        ] {
            let mut prompts = Prompts::new(100_000);
            prompts.insert(entry(1, 0..10, rollback));
            prompts.insert(entry(1, 0..20, rollback));
            assert_eq!(prompts.len(), left, "{rollback:?}");
            assert!(prompts.covers(Wall(1), &prompt(0..10)));
        }
    }
}
