//! Tells the agent which conversations lie in the caches, so that their next turns come here. What it tells is read off the caches
//! themselves: whatever lets go of tokens lets go of their links.

use std::io;
use std::time::Duration;
use std::time::Instant;

use scheduler::Slot;
use scheduler::Slots;
use scheduler::newest;

use super::answer::Answer;
use super::outbox::Outbox;
use super::reuse::Reuse;
use crate::protocol::FromWorker;

/// How often: less than a conversation takes for its next turn.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Links told; more is not reported to any proxy.
const LINKS_MAX: usize = 256;

/// What was told last, and when.
pub(super) struct Warm {
    told: Vec<u64>,
    told_at: Instant,
    stale: bool,
}

impl Warm {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            told: Vec::new(),
            told_at: now,
            stale: false,
        }
    }

    /// The caches have changed.
    pub(super) fn touch(&mut self) {
        self.stale = true;
    }

    /// When [`Self::report`] has something to do next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.stale.then(|| self.told_at + TELL_EVERY)
    }

    /// Tells what is new.
    pub(super) fn report(
        &mut self,
        (slots, reuse): (&Slots<Answer>, &Reuse),
        outbox: &mut Outbox,
        now: Instant,
    ) -> io::Result<()> {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return Ok(());
        }
        self.stale = false;
        self.told_at = now;
        let links = held(slots, reuse);
        if links == self.told {
            return Ok(());
        }
        self.told.clone_from(&links);
        outbox.send(&FromWorker::Held { links })
    }
}

/// The links of all caches, the newest last.
fn held(slots: &Slots<Answer>, reuse: &Reuse) -> Vec<u64> {
    let mut by_age: Vec<&Slot<Answer>> = slots.iter().collect();
    by_age.sort_by_key(|slot| std::cmp::Reverse(slot.used()));
    let in_slots = by_age.into_iter().map(|slot| slot.held().collect());
    let in_memory = reuse
        .iter()
        .map(|kept| kept.links.held(kept.tokens.len()).collect());
    let caches: Vec<Vec<u64>> = in_slots.chain(in_memory).collect();
    newest(&caches, LINKS_MAX)
}
