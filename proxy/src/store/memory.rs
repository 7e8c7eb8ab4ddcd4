//! Counters and reservations in memory: the working copy of the embedded store, and what a proxy counts with while its Redis is
//! away. Bounded: over a file it forgets what is written and not used lately and reads it again when it is asked for; without
//! one it refuses rather than forgets.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use indexmap::IndexMap;
use policy::ledger::LedgerEntry;
use policy::limit::{Counter, Decision, Elastic, Rule};
use policy::quota::{self, Charge, CounterMap};

use super::StoreError;
use super::counting::{Reservation, ReservationId, SETTLED_KEPT_MS, Settlement, given_up};

/// Counters for each address or user that the settings allow.
const COUNTERS_EACH: usize = 4;
/// Reservations that one call gives back at most because their lease has passed.
const EXPIRED_A_CALL: usize = 32;
/// Slots that one call looks at to make room, besides two for each that it may add.
const SWEPT_A_CALL: usize = 8;

/// Entries for the books that wait for a disk that failed.
const ENTRIES_MAX: usize = 50_000;

/// One number and the end of its meaning, Unix milliseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Slot {
    pub(super) value: u64,
    pub(super) expires_at_ms: u64,
}

/// What is charged under one id until it is settled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    pub(super) expires_at_ms: u64,
    pub(super) granted: u64,
    pub(super) charges: Vec<Charged>,
}

/// One counter of a reservation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Charged {
    pub(super) key: Arc<str>,
    pub(super) rule: Rule,
    pub(super) charge: Charge,
}

/// Where counters lie that are not in memory.
pub(super) trait Disk {
    /// Whether what was written may be forgotten here.
    const KEEPS: bool;

    /// The number as it was last written.
    fn load(&self, key: &str) -> Result<Option<Slot>, StoreError>;
}

/// There is no disk: memory is all there is.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoDisk;

impl Disk for NoDisk {
    const KEEPS: bool = false;

    fn load(&self, _key: &str) -> Result<Option<Slot>, StoreError> {
        Ok(None)
    }
}

/// What changed since the last call of [`CounterTable::take_changes`].
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// `None`: gone.
    pub(super) counters: Vec<(Arc<str>, Option<Slot>)>,
    /// `None`: settled or given back.
    pub(super) reservations: Vec<(ReservationId, Option<Open>)>,
    /// For the books, in the order of their settlements.
    pub(super) entries: Vec<LedgerEntry>,
    /// Which batch this is; whoever waits for it or an earlier one is served when it is written.
    pub(super) batch: u64,
}

impl Changes {
    pub(super) const fn is_empty(&self) -> bool {
        self.counters.is_empty() && self.reservations.is_empty() && self.entries.is_empty()
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: Slot,
    /// Written somewhere else too, so it may be forgotten here.
    clean: bool,
    /// On the list of what is to be written.
    listed: bool,
    /// Since the hand last came by.
    used: bool,
}

/// All counters of one process.
#[derive(Debug)]
pub(super) struct CounterTable {
    slots: IndexMap<Arc<str>, Entry>,
    slots_max: usize,
    /// Where the search for what may go goes on.
    hand: usize,
    open: HashMap<ReservationId, Open>,
    by_expiry: BTreeSet<(u64, ReservationId)>,
    settled: HashSet<ReservationId>,
    settled_in_order: VecDeque<(u64, ReservationId)>,
    changed_slots: Vec<Arc<str>>,
    changed_open: HashSet<ReservationId>,
    entries: Vec<LedgerEntry>,
    batch: u64,
    recorded: bool,
}

impl CounterTable {
    /// A table that nobody writes down, for so many addresses and users.
    pub(super) fn alone(subjects_max: usize) -> Self {
        Self {
            slots: IndexMap::new(),
            slots_max: subjects_max.saturating_mul(COUNTERS_EACH),
            hand: 0,
            open: HashMap::new(),
            by_expiry: BTreeSet::new(),
            settled: HashSet::new(),
            settled_in_order: VecDeque::new(),
            changed_slots: Vec::new(),
            changed_open: HashSet::new(),
            entries: Vec::new(),
            batch: 1,
            recorded: false,
        }
    }

    /// A table whose changes are written down, with the reservations that were open when it was last written.
    pub(super) fn recorded(subjects_max: usize, open: Vec<(ReservationId, Open)>) -> Self {
        let mut table = Self::alone(subjects_max);
        table.recorded = true;
        for (id, open) in open {
            table.by_expiry.insert((open.expires_at_ms, id));
            table.open.insert(id, open);
        }
        table
    }

    /// Charges all counters or none and remembers what was charged.
    pub(super) fn reserve<D: Disk>(
        &mut self,
        reservation: &Reservation,
        now_unix_ms: u64,
        disk: &D,
    ) -> Result<Decision, StoreError> {
        let Reservation {
            id,
            counters,
            elastic,
            lease_ms,
            ..
        } = reservation;
        self.expire(now_unix_ms, disk)?;
        if let Some(open) = self.open.get(id) {
            let granted = open.granted;
            let states = self.stand(counters, now_unix_ms, disk)?;
            return Ok(Decision::Admitted { granted, states });
        }
        if *lease_ms > 0 && self.settled.contains(id) {
            return Err(given_up());
        }
        // What is open goes with its settlement or its lease; nobody may open without end.
        if self.open.len() >= self.slots_max {
            return Err(StoreError::Overloaded);
        }
        self.make_room::<D>(counters.len(), now_unix_ms)?;
        let mut view = View {
            table: self,
            disk,
            now_unix_ms,
        };
        let now_us = now_unix_ms.saturating_mul(1_000);
        let (decision, charges) = quota::apply(&mut view, counters, *elastic, now_us)?;
        if decision.is_admitted() && !counters.is_empty() && *lease_ms > 0 {
            let expires_at_ms = now_unix_ms.saturating_add(*lease_ms);
            let charges = counters.iter().zip(charges);
            let charges = charges.map(|(counter, charge)| Charged {
                key: Arc::clone(&counter.key),
                rule: counter.rule,
                charge,
            });
            let open = Open {
                expires_at_ms,
                granted: decision.granted(),
                charges: charges.collect(),
            };
            self.by_expiry.insert((expires_at_ms, *id));
            self.open.insert(*id, open);
            self.open_changed(*id);
        }
        Ok(decision)
    }

    /// Brings the counters to what was spent, once; says which batch of changes holds it.
    pub(super) fn settle(
        &mut self,
        settlement: &Settlement,
        now_unix_ms: u64,
        disk: &impl Disk,
    ) -> Result<u64, StoreError> {
        let id = settlement.id;
        self.expire(now_unix_ms, disk)?;
        self.forget_settled(now_unix_ms);
        if self.settled.contains(&id) {
            return Ok(self.batch);
        }
        let now_us = now_unix_ms.saturating_mul(1_000);
        let open = self.open.get(&id).map(|open| open.charges.clone());
        let mut view = View {
            table: self,
            disk,
            now_unix_ms,
        };
        for (index, (counter, spent)) in settlement
            .counters
            .iter()
            .zip(&settlement.spent)
            .enumerate()
        {
            let charge = open.as_deref().and_then(|charges| {
                let at = charges.get(index).filter(|one| one.key == counter.key);
                at.or_else(|| charges.iter().find(|one| one.key == counter.key))
            });
            let charge = charge.map(|charged| charged.charge);
            quota::settle(
                &mut view,
                (&counter.key, counter.rule),
                charge,
                *spent,
                now_us,
            )?;
        }
        self.close(&id);
        self.settled.insert(id);
        let until = now_unix_ms.saturating_add(SETTLED_KEPT_MS);
        self.settled_in_order.push_back((until, id));
        if self.recorded {
            self.entries.extend(settlement.entry.clone());
        }
        Ok(self.batch)
    }

    /// Lets reservations live until `lease_ms` from now.
    pub(super) fn extend(&mut self, id: &ReservationId, lease_ms: u64, now_unix_ms: u64) {
        let Some(open) = self.open.get_mut(id) else {
            return;
        };
        let until = now_unix_ms.saturating_add(lease_ms);
        let before = std::mem::replace(&mut open.expires_at_ms, until);
        self.by_expiry.remove(&(before, *id));
        self.by_expiry.insert((until, *id));
        self.open_changed(*id);
    }

    /// What a reservation would be answered; charges nothing.
    pub(super) fn look<D: Disk>(
        &mut self,
        counters: &[Counter],
        now_unix_ms: u64,
        disk: &D,
    ) -> Result<Decision, StoreError> {
        self.expire(now_unix_ms, disk)?;
        self.sweep::<D>(counters.len(), now_unix_ms);
        let stored = self.stored(counters, now_unix_ms, disk)?;
        let now_us = now_unix_ms.saturating_mul(1_000);
        Ok(quota::decide(counters, Elastic::default(), &stored, now_us).decision)
    }

    /// Gives back the cost of every held counter.
    pub(super) fn release(
        &mut self,
        counters: &[Counter],
        now_unix_ms: u64,
        disk: &impl Disk,
    ) -> Result<u64, StoreError> {
        let now_us = now_unix_ms.saturating_mul(1_000);
        let mut view = View {
            table: self,
            disk,
            now_unix_ms,
        };
        for counter in counters {
            if !matches!(counter.rule, Rule::Held { .. }) {
                continue;
            }
            let charge = Charge {
                units: counter.cost,
                charged_to_us: 0,
            };
            quota::settle(
                &mut view,
                (&counter.key, counter.rule),
                Some(charge),
                0,
                now_us,
            )?;
        }
        Ok(self.batch)
    }

    /// Gives back what was reserved by requests that nobody settled or extended in time.
    pub(super) fn expire(&mut self, now_unix_ms: u64, disk: &impl Disk) -> Result<(), StoreError> {
        for _ in 0..EXPIRED_A_CALL {
            let Some(&(expires_at_ms, id)) = self.by_expiry.first() else {
                return Ok(());
            };
            if expires_at_ms > now_unix_ms {
                return Ok(());
            }
            let charges = self
                .open
                .get(&id)
                .map_or_else(Vec::new, |open| open.charges.clone());
            let now_us = now_unix_ms.saturating_mul(1_000);
            let mut view = View {
                table: self,
                disk,
                now_unix_ms,
            };
            for Charged { key, rule, charge } in &charges {
                quota::settle(&mut view, (key, *rule), Some(*charge), 0, now_us)?;
            }
            self.by_expiry.remove(&(expires_at_ms, id));
            self.close(&id);
        }
        Ok(())
    }

    /// The batch that holds what was changed last.
    pub(super) const fn batch(&self) -> u64 {
        self.batch
    }

    /// Counters in memory.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Reservations in memory.
    #[cfg(test)]
    pub(super) fn open_len(&self) -> usize {
        self.open.len()
    }

    /// Whether something waits to be written.
    pub(super) fn is_changed(&self) -> bool {
        !self.changed_slots.is_empty() || !self.changed_open.is_empty() || !self.entries.is_empty()
    }

    /// Hands out what changed, for writing, and begins a new batch.
    pub(super) fn take_changes(&mut self) -> Changes {
        let batch = self.batch;
        self.batch += 1;
        let changed = std::mem::take(&mut self.changed_slots);
        let mut counters = Vec::with_capacity(changed.len());
        for key in changed {
            let slot = self.slots.get_mut(&key).map(|entry| {
                entry.listed = false;
                entry.slot
            });
            counters.push((key, slot.filter(|slot| slot.expires_at_ms > 0)));
        }
        let reservations = self
            .changed_open
            .drain()
            .map(|id| (id, self.open.get(&id).cloned()))
            .collect();
        Changes {
            counters,
            reservations,
            entries: std::mem::take(&mut self.entries),
            batch,
        }
    }

    /// These changes are written: what did not change since may be forgotten.
    pub(super) fn written(&mut self, changes: &Changes) {
        for (key, slot) in &changes.counters {
            let Some(entry) = self.slots.get_mut(key) else {
                continue;
            };
            let is_gone = slot.is_none() && entry.slot.expires_at_ms == 0;
            // Changed again meanwhile, it waits for the next batch.
            entry.clean = !entry.listed && (is_gone || Some(entry.slot) == *slot);
        }
    }

    /// Takes back changes that could not be written.
    pub(super) fn put_back(&mut self, changes: Changes) {
        for (key, _) in changes.counters {
            if let Some(entry) = self.slots.get_mut(&key)
                && !std::mem::replace(&mut entry.listed, true)
            {
                self.changed_slots.push(key);
            }
        }
        let ids = changes.reservations.into_iter().map(|(id, _)| id);
        self.changed_open.extend(ids);
        let mut entries = changes.entries;
        entries.append(&mut self.entries);
        // While the disk is away they wait here; the counters, which matter more, are kept whatever comes.
        let lost = entries.len().saturating_sub(ENTRIES_MAX);
        if lost > 0 {
            tracing::error!(lost, "usage of requests is lost: the disk is away too long");
            entries.drain(..lost);
        }
        self.entries = entries;
    }

    fn close(&mut self, id: &ReservationId) {
        let Some(open) = self.open.remove(id) else {
            return;
        };
        self.by_expiry.remove(&(open.expires_at_ms, *id));
        self.open_changed(*id);
    }

    fn open_changed(&mut self, id: ReservationId) {
        if self.recorded {
            self.changed_open.insert(id);
        }
    }

    fn forget_settled(&mut self, now_unix_ms: u64) {
        let max = self.slots_max;
        while let Some((until, id)) = self.settled_in_order.front().copied()
            && (until <= now_unix_ms || self.settled_in_order.len() > max)
        {
            self.settled_in_order.pop_front();
            self.settled.remove(&id);
        }
    }

    fn stored(
        &mut self,
        counters: &[Counter],
        now_unix_ms: u64,
        disk: &impl Disk,
    ) -> Result<Vec<Option<u64>>, StoreError> {
        let mut view = View {
            table: self,
            disk,
            now_unix_ms,
        };
        counters
            .iter()
            .map(|counter| view.load(&counter.key))
            .collect()
    }

    fn stand(
        &mut self,
        counters: &[Counter],
        now_unix_ms: u64,
        disk: &impl Disk,
    ) -> Result<Vec<policy::limit::CounterState>, StoreError> {
        let stored = self.stored(counters, now_unix_ms, disk)?;
        let now_us = now_unix_ms.saturating_mul(1_000);
        let states = counters.iter().zip(stored);
        Ok(states
            .map(|(counter, stored)| quota::state(counter, stored, now_us))
            .collect())
    }

    /// Lets go what has expired, and, over a disk, what is written and was not used since the hand last came by.
    fn make_room<D: Disk>(&mut self, incoming: usize, now_unix_ms: u64) -> Result<(), StoreError> {
        self.sweep::<D>(incoming, now_unix_ms);
        if self.slots.len() + incoming <= self.slots_max.saturating_add(self.slots_max / 4) {
            return Ok(());
        }
        // Full of what lives or is not written yet: one whole look before the answer is no.
        for _ in 0..self.slots.len() {
            self.step_hand(now_unix_ms, D::KEEPS);
        }
        if self.slots.len() + incoming > self.slots_max {
            return Err(StoreError::Overloaded);
        }
        Ok(())
    }

    /// Moves the hand a little.
    fn sweep<D: Disk>(&mut self, incoming: usize, now_unix_ms: u64) {
        for _ in 0..(SWEPT_A_CALL + 2 * incoming).min(self.slots.len()) {
            self.step_hand(now_unix_ms, D::KEEPS);
        }
    }

    fn step_hand(&mut self, now_unix_ms: u64, keeps: bool) {
        if self.hand >= self.slots.len() {
            self.hand = 0;
        }
        let over = self.slots.len() > self.slots_max;
        let Some((_, entry)) = self.slots.get_index_mut(self.hand) else {
            return;
        };
        let expired = entry.slot.expires_at_ms <= now_unix_ms;
        let unused = !std::mem::take(&mut entry.used);
        // What lies otherwise on a disk must be written before it is forgotten, even if it means nothing any more.
        let may_go = !keeps || entry.clean;
        if may_go && (expired || (keeps && over && unused)) {
            self.slots.swap_remove_index(self.hand);
        } else {
            self.hand += 1;
        }
    }

    fn put(&mut self, key: &Arc<str>, slot: Slot) {
        let entry = Entry {
            slot,
            clean: false,
            listed: self.recorded,
            used: true,
        };
        let known = self.slots.insert(Arc::clone(key), entry);
        if self.recorded && known.is_none_or(|known| !known.listed) {
            self.changed_slots.push(Arc::clone(key));
        }
    }
}

/// A table and what lies under it, at one moment.
struct View<'t, D> {
    table: &'t mut CounterTable,
    disk: &'t D,
    now_unix_ms: u64,
}

impl<D: Disk> CounterMap for View<'_, D> {
    type Error = StoreError;

    fn load(&mut self, key: &str) -> Result<Option<u64>, StoreError> {
        let lives = |slot: Slot| (slot.expires_at_ms > self.now_unix_ms).then_some(slot.value);
        if let Some(entry) = self.table.slots.get_mut(key) {
            entry.used = true;
            return Ok(lives(entry.slot));
        }
        let Some(slot) = self.disk.load(key)? else {
            return Ok(None);
        };
        let entry = Entry {
            slot,
            clean: true,
            listed: false,
            used: true,
        };
        self.table.slots.insert(Arc::from(key), entry);
        Ok(lives(slot))
    }

    fn save(&mut self, key: &Arc<str>, value: u64, expires_at_ms: u64) -> Result<(), StoreError> {
        let slot = Slot {
            value,
            expires_at_ms,
        };
        self.table.put(key, slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
