//! A bounded memory of what was used lately: two halves, of which the older is forgotten when the younger is full. Every step
//! takes the same short time, and no flood of new entries can push out what is in use. Knows no time.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// Entries by key, at most as many as were said.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// Room for `max` entries, at least two.
    pub(super) fn new(max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            half: (max / 2).max(1),
        }
    }

    /// The entry of a key, which counts as used.
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.insert(key, value);
        }
        self.young.get_mut(key)
    }

    /// Adds or replaces an entry.
    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Forgets an entry.
    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets all entries.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Entries now.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut recent = Recent::new(100);
        recent.insert(0, "mine");
        for key in 1..10_000 {
            recent.insert(key, "flood");
            assert!(recent.len() <= 100, "{} entries", recent.len());
            assert_eq!(
                recent.get(&0).map(|value| *value),
                Some("mine"),
                "after {key}"
            );
        }
        recent.insert(0, "new");
        assert_eq!(recent.get(&0).map(|value| *value), Some("new"));
        recent.remove(&0);
        assert!(recent.get(&0).is_none());
        recent.clear();
        assert_eq!(recent.len(), 0);
    }
}
