//! The memory that bodies may take together while they arrive. A body takes of it what has really come, so that announcing
//! much costs nobody anything. Knows no bodies, only sizes.

use tokio::sync::{Semaphore, SemaphorePermit};

/// How finely memory is counted.
const UNIT_BYTES: u64 = 1024;

/// What all bodies share.
#[derive(Debug)]
pub(super) struct Memory(Semaphore);

/// One body's part, given back when dropped.
#[derive(Debug)]
pub(super) struct Held<'a> {
    memory: &'a Memory,
    part: Option<SemaphorePermit<'a>>,
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        Self(Semaphore::new(units.min(Semaphore::MAX_PERMITS)))
    }

    /// Nothing yet.
    pub(super) const fn hold(&self) -> Held<'_> {
        Held {
            memory: self,
            part: None,
        }
    }
}

impl Held<'_> {
    /// Whether there is room for the body to be this long now.
    #[must_use]
    pub(super) fn grow_to(&mut self, bytes: u64) -> bool {
        let held = self.part.as_ref().map_or(0, SemaphorePermit::num_permits);
        let needed = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        let Ok(more) = u32::try_from(needed.saturating_sub(held)) else {
            return false;
        };
        if more == 0 {
            return true;
        }
        let Ok(taken) = self.memory.0.try_acquire_many(more) else {
            return false;
        };
        match &mut self.part {
            Some(part) => part.merge(taken),
            None => self.part = Some(taken),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_what_there_is_and_give_it_back() {
        let memory = Memory::new(10 * UNIT_BYTES);
        let (mut first, mut second) = (memory.hold(), memory.hold());
        assert!(first.grow_to(1) && first.grow_to(1_000) && first.grow_to(8 * UNIT_BYTES));
        assert!(second.grow_to(2 * UNIT_BYTES) && !second.grow_to(2 * UNIT_BYTES + 1));
        assert!(second.grow_to(2 * UNIT_BYTES), "what it had it keeps");
        drop(first);
        assert!(second.grow_to(10 * UNIT_BYTES) && !second.grow_to(u64::MAX));
    }
}
