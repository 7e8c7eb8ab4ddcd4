//! Counters in memory: the working copy of the embedded store, and what a proxy counts with while its Redis is away. Bounded;
//! full of live counters it refuses rather than forgets.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use policy::limit::{Counter, Decision};
use policy::quota::{self, CounterMap};

use super::StoreError;

/// Counters at most: 100,000 users and addresses with three each, about 50 MiB.
const COUNTERS_MAX: usize = 300_000;
/// How much time passes between two searches for expired counters.
const SWEEP_EVERY_MS: u64 = 10_000;

/// One number and the end of its meaning, Unix milliseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Slot {
    pub(super) value: u64,
    pub(super) expires_at_ms: u64,
}

/// What changed since the last call of [`CounterTable::take_changes`].
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) written: Vec<(String, Slot)>,
    pub(super) dropped: Vec<String>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.written.is_empty() && self.dropped.is_empty()
    }
}

/// All counters of one process.
#[derive(Debug, Default)]
pub(super) struct CounterTable {
    slots: HashMap<String, Slot>,
    /// Changed since the last call of `take_changes`; `None`: nobody wants to know.
    changed: Option<HashSet<String>>,
    swept_at_ms: u64,
}

impl CounterTable {
    /// A table whose changes are written somewhere.
    pub(super) fn recorded(slots: HashMap<String, Slot>) -> Self {
        Self {
            slots,
            changed: Some(HashSet::new()),
            swept_at_ms: 0,
        }
    }

    pub(super) fn admit(
        &mut self,
        counters: &[Counter],
        now_unix_ms: u64,
    ) -> Result<Decision, StoreError> {
        self.sweep(now_unix_ms, counters.len());
        if self.slots.len() + counters.len() > COUNTERS_MAX {
            return Err(StoreError::Overloaded);
        }
        let Ok(decision) = quota::apply(self, counters, now_unix_ms.saturating_mul(1_000));
        Ok(decision)
    }

    pub(super) fn give_back(&mut self, counters: &[Counter]) {
        let Ok(()) = quota::give_back(self, counters);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Hands out what changed, for writing.
    pub(super) fn take_changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for key in self.changed.as_mut().into_iter().flat_map(HashSet::drain) {
            match self.slots.get(&key) {
                Some(slot) => changes.written.push((key, *slot)),
                None => changes.dropped.push(key),
            }
        }
        changes
    }

    /// Takes back changes that could not be written.
    pub(super) fn put_back(&mut self, changes: Changes) {
        let Some(changed) = &mut self.changed else {
            return;
        };
        changed.extend(changes.written.into_iter().map(|(key, _)| key));
        changed.extend(changes.dropped);
    }

    /// Drops what has expired: now and then, and whenever the table is full.
    fn sweep(&mut self, now_unix_ms: u64, incoming: usize) {
        let due = now_unix_ms.saturating_sub(self.swept_at_ms) >= SWEEP_EVERY_MS;
        let full = self.slots.len() + incoming > COUNTERS_MAX && now_unix_ms > self.swept_at_ms;
        if !due && !full {
            return;
        }
        self.swept_at_ms = now_unix_ms;
        let changed = &mut self.changed;
        self.slots.retain(|key, slot| {
            let lives = slot.expires_at_ms > now_unix_ms;
            if !lives && let Some(changed) = changed {
                changed.insert(key.clone());
            }
            lives
        });
    }
}

impl CounterMap for CounterTable {
    type Error = Infallible;

    fn load(&mut self, key: &str) -> Result<Option<u64>, Infallible> {
        Ok(self.slots.get(key).map(|slot| slot.value))
    }

    fn save(&mut self, key: &str, value: u64, expires_at_ms: u64) -> Result<(), Infallible> {
        let slot = Slot {
            value,
            expires_at_ms,
        };
        if let Some(known) = self.slots.get_mut(key) {
            *known = slot;
        } else {
            self.slots.insert(key.to_owned(), slot);
        }
        if let Some(changed) = &mut self.changed
            && !changed.contains(key)
        {
            changed.insert(key.to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract::minute;

    #[test]
    fn a_table_full_of_live_counters_refuses_and_recovers_with_time() {
        let mut table = CounterTable::default();
        for number in 0..COUNTERS_MAX {
            let slot = Slot {
                value: 0,
                expires_at_ms: 50_000,
            };
            table.slots.insert(number.to_string(), slot);
        }
        let counter = [minute("u:new", 3)];
        assert_eq!(table.admit(&counter, 10_000), Err(StoreError::Overloaded));
        assert_eq!(table.admit(&counter, 49_999), Err(StoreError::Overloaded));
        assert!(table.admit(&counter, 50_000).is_ok());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn changes_that_could_not_be_written_come_again() {
        let mut table = CounterTable::recorded(HashMap::new());
        table.admit(&[minute("u:a", 3)], 10_000).unwrap();
        let changes = table.take_changes();
        assert_eq!(changes.written.len(), 1);
        assert!(table.take_changes().is_empty());
        table.put_back(changes);
        table.admit(&[minute("u:b", 3)], 200_000).unwrap();
        let changes = table.take_changes();
        let written: Vec<&str> = changes
            .written
            .iter()
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(written, ["u:b"]);
        assert_eq!(changes.dropped, ["u:a"], "it expired before it was written");
    }
}
