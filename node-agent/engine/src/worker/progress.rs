//! Tells those who wait how far they are: how many go before them, and how much of their prompt is read. Seldom enough to cost nothing,
//! and only what has changed. Decides nothing.

use std::collections::HashMap;
use std::io;
use std::time::Duration;
use std::time::Instant;

use scheduler::JobId;
use scheduler::Phase;
use scheduler::Queue;
use scheduler::Slots;

use super::answer::Answer;
use super::outbox::Outbox;
use crate::spec::Event;
use crate::spec::Progress;

/// So often at most; people do not read faster.
const EVERY: Duration = Duration::from_millis(500);

/// What was told last.
pub(super) struct Reporter {
    told: HashMap<JobId, Progress>,
    next: Instant,
}

impl Reporter {
    pub(super) fn new() -> Self {
        Self {
            told: HashMap::new(),
            next: Instant::now(),
        }
    }

    /// Tells everybody whose answer has not begun, if it is time.
    pub(super) fn report(
        &mut self,
        (queue, slots): (&Queue<Answer>, &Slots<Answer>),
        outbox: &mut Outbox,
        now: Instant,
    ) -> io::Result<()> {
        if now < self.next {
            return Ok(());
        }
        self.next = now + EVERY;
        let mut told = HashMap::new();
        let waiting = (0..).zip(queue.in_turn());
        let waiting = waiting.map(|(ahead, job)| (job, Progress::Queue { ahead }));
        for (job, progress) in waiting.chain(reading(slots)) {
            if self.told.get(&job) != Some(&progress) {
                outbox.event(job, Event::Progress(progress))?;
            }
            told.insert(job, progress);
        }
        self.told = told;
        Ok(())
    }
}

/// The prompts that are being read.
fn reading(slots: &Slots<Answer>) -> impl Iterator<Item = (JobId, Progress)> {
    let works = slots.iter().filter_map(|slot| slot.work());
    works.filter_map(|work| {
        let Phase::Prefill { done } = work.phase else {
            return None;
        };
        let total = work.job.prompt.len();
        let progress = Progress::Prefill {
            done: u32::try_from(done).unwrap_or(u32::MAX),
            total: u32::try_from(total).unwrap_or(u32::MAX),
        };
        (done < total).then_some((work.job.id, progress))
    })
}
