//! Which conversations a cache holds. The proxy names each beginning of a conversation by a link, a number that says nothing; here it is
//! kept with how much of a cache it needs, so that whatever cuts the cache also forgets the links. Reads no token and no text.

use std::collections::HashSet;

/// Links kept with one cache; the newest stay. The longest conversation that a proxy names has half as many.
const LINKS_MAX: usize = 64;

/// The links of one cache, oldest first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Links {
    /// Each with the tokens of the prompt in which it was named first: it is held where all of them are.
    known: Vec<(u64, usize)>,
}

impl Links {
    /// Links as they were saved.
    pub fn saved(known: &[(u64, usize)]) -> Self {
        let mut links = Self::default();
        for (link, tokens) in known {
            links.name(&[*link], *tokens);
        }
        links
    }

    /// Each link with the tokens that it needs, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, usize)> {
        self.known.iter().copied()
    }

    /// The cache is going to hold a prompt of so many tokens, and these are its links, oldest first. One that is known already needs
    /// no more than it did.
    pub fn name(&mut self, links: &[u64], tokens: usize) {
        for link in links {
            let known = self.known.iter().position(|(known, _)| known == link);
            let needs = known.map_or(tokens, |at| self.known.remove(at).1.min(tokens));
            self.known.push((*link, needs));
        }
        let over = self.known.len().saturating_sub(LINKS_MAX);
        self.known.drain(..over);
    }

    /// The cache was cut to its first `len` tokens.
    pub fn cut(&mut self, len: usize) {
        self.known.retain(|(_, tokens)| *tokens <= len);
    }

    /// Another cache held the same tokens up to `len`, and is let go.
    pub fn join(&mut self, other: &Self, len: usize) {
        let mut all = other.clone();
        all.cut(len);
        for (link, tokens) in &self.known {
            all.name(&[*link], *tokens);
        }
        *self = all;
    }

    /// What a cache of `len` tokens holds, newest first.
    pub fn held(&self, len: usize) -> impl Iterator<Item = u64> {
        let held = self.known.iter().rev();
        held.filter(move |(_, tokens)| *tokens <= len)
            .map(|(link, _)| *link)
    }
}

/// At most `most` links of all caches, each once, the newest last. The caches come with the one used last first and their links newest
/// first; of every cache the newest link is taken before the second of any, since a conversation is found again by one.
pub fn newest(caches: &[Vec<u64>], most: usize) -> Vec<u64> {
    let deepest = caches.iter().map(Vec::len).max().unwrap_or(0);
    let all = (0..deepest).flat_map(|depth| caches.iter().filter_map(move |one| one.get(depth)));
    let mut seen = HashSet::new();
    let mut taken: Vec<u64> = all
        .copied()
        .filter(|link| seen.insert(*link))
        .take(most)
        .collect();
    taken.reverse();
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(links: &Links, len: usize) -> Vec<u64> {
        links.held(len).collect()
    }

    #[test]
    fn a_link_is_held_where_its_whole_prompt_is() {
        let mut links = Links::default();
        links.name(&[1], 100);
        assert_eq!(held(&links, 99), [0_u64; 0], "the prompt is being read");
        assert_eq!(held(&links, 130), [1]);
        links.name(&[1, 2, 3], 200);
        assert_eq!(held(&links, 150), [1], "the first turn is still there");
        assert_eq!(held(&links, 200), [3, 2, 1]);
    }

    #[test]
    fn what_is_cut_is_forgotten() {
        let mut links = Links::default();
        links.name(&[1], 100);
        links.name(&[1, 2], 200);
        links.cut(150);
        links.name(&[9], 300);
        assert_eq!(held(&links, 300), [9, 1]);
    }

    #[test]
    fn a_longer_cache_takes_over_what_the_shorter_one_held() {
        let (mut long, mut short) = (Links::default(), Links::default());
        short.name(&[1], 50);
        short.name(&[2], 90);
        long.name(&[3], 120);
        long.join(&short, 60);
        assert_eq!(held(&long, 120), [3, 1]);
    }

    #[test]
    fn every_cache_is_found_by_its_newest_link_before_any_by_two() {
        let caches = [vec![3, 2, 1], vec![5, 4], vec![], vec![6, 1]];
        assert_eq!(newest(&caches, 3), [6, 5, 3]);
        assert_eq!(newest(&caches, 100), [1, 4, 2, 6, 5, 3]);
    }

    proptest! {
        #[test]
        fn a_table_stays_small_whatever_is_named(
            steps in proptest::collection::vec((proptest::collection::vec(0_u64..200, 0..40), 0_usize..500, 0_usize..500), 0..50),
        ) {
            let mut links = Links::default();
            for (named, tokens, cut) in steps {
                links.name(&named, tokens);
                prop_assert!(links.known.len() <= LINKS_MAX);
                links.cut(cut);
                prop_assert!(links.iter().all(|(_, needs)| needs <= cut));
                let once: HashSet<u64> = links.iter().map(|(link, _)| link).collect();
                prop_assert_eq!(once.len(), links.known.len());
            }
        }
    }
}
