//! The choices of one request, generated side by side, as one sequence of events. Dropping it cancels all of them.
//!
//! Several choices of one prompt read it once: the others begin when the first one has read it, and find it in the cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use engine::{Event, Finish, GenerateSpec, Generation, Refusal};
use futures_util::FutureExt;
use futures_util::future::select_all;
use tokio::time::{Instant, timeout_at};

use super::record::{Cut, Unsettled};
use crate::reply::Refused;
use crate::tiers::Ready;

/// The engine keeps the deadline itself; this much later it is thought to hang.
const SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Flow {
    generations: Vec<(usize, Generation)>,
    waiting: VecDeque<Waiting>,
    /// Runs the model; held no longer than anything waits for it.
    ready: Option<Arc<Ready>>,
    ends_at: Instant,
    /// What is told of choices that are cut off.
    unsettled: Arc<Unsettled>,
}

/// A choice that begins when another one has read their prompt.
#[derive(Debug)]
struct Waiting {
    choice: usize,
    spec: GenerateSpec,
    leader: usize,
    may_begin: bool,
}

impl Flow {
    pub(super) async fn start(
        ready: Arc<Ready>,
        specs: Vec<GenerateSpec>,
        (ends_at, unsettled): (Instant, Arc<Unsettled>),
    ) -> Result<Self, Refused> {
        let mut flow = Self {
            generations: Vec::with_capacity(specs.len()),
            waiting: VecDeque::new(),
            ready: None,
            ends_at: ends_at + SLACK,
            unsettled,
        };
        let mut leader: Option<(usize, GenerateSpec)> = None;
        let alone = specs.len() == 1;
        for (choice, spec) in specs.into_iter().enumerate() {
            let shared = leader.as_ref().filter(|(_, first)| shares(first, &spec));
            if let Some((leader, _first)) = shared {
                flow.waiting.push_back(Waiting {
                    choice,
                    spec,
                    leader: *leader,
                    may_begin: false,
                });
                continue;
            }
            leader = (!alone).then(|| (choice, spec.clone()));
            let generation = ready.worker.generate(spec).await;
            flow.generations
                .push((choice, generation.map_err(Refused::Engine)?));
        }
        flow.ready = (!flow.waiting.is_empty()).then_some(ready);
        Ok(flow)
    }

    /// The next event of any choice; `None` when all are complete. A refusal of one ends all. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        if let Err((choice, refusal)) = self.begin_waiting().await {
            self.clear();
            return Some((choice, Event::Refused(refusal)));
        }
        if self.generations.is_empty() {
            return None;
        }
        let event = timeout_at(self.ends_at, next_of(&mut self.generations)).await;
        let (place, event) = event.unwrap_or((0, Some(Event::Refused(Refusal::DeadlineExceeded))));
        Some(self.settle(place, event))
    }

    /// An event that is there already.
    pub(super) fn ready(&mut self) -> Option<(usize, Event)> {
        if self.generations.is_empty() {
            return None;
        }
        let (place, event) = next_of(&mut self.generations).now_or_never()?;
        Some(self.settle(place, event))
    }

    /// Begins the choices whose prompt has been read. One that is interrupted here begins the next time.
    async fn begin_waiting(&mut self) -> Result<(), (usize, Refusal)> {
        while let Some(ready) = &self.ready
            && let Some(place) = self.waiting.iter().position(|choice| choice.may_begin)
            && let Some(next) = self.waiting.get(place)
        {
            let choice = next.choice;
            let generation = ready.worker.generate(next.spec.clone()).await;
            let generation = generation.map_err(|refusal| (choice, refusal))?;
            self.generations.push((choice, generation));
            self.waiting.remove(place);
        }
        if self.waiting.is_empty() {
            self.ready = None;
        }
        Ok(())
    }

    fn clear(&mut self) {
        for (choice, generation) in self.generations.drain(..) {
            let cut = Cut::Aborted(generation.abort());
            self.unsettled.note(choice, cut);
        }
        self.waiting.clear();
        self.ready = None;
    }

    /// Forgets choices that are complete.
    fn settle(&mut self, place: usize, event: Option<Event>) -> (usize, Event) {
        let choice = self.generations.get(place).map_or(0, |(choice, _)| *choice);
        let lost = || {
            Event::Refused(Refusal::WorkerGone {
                reason: String::new(),
            })
        };
        let mut event = event.unwrap_or_else(lost);
        if let Event::Done {
            finish: Finish::Deadline,
            usage,
            ..
        } = event
        {
            self.unsettled.note(choice, Cut::Used(usage));
            event = Event::Refused(Refusal::DeadlineExceeded);
        }
        match &event {
            Event::Refused(_) => self.clear(),
            Event::Done { .. } => {
                drop(self.generations.remove(place));
                self.has_read(choice);
            }
            Event::Piece { .. } => self.has_read(choice),
            Event::Started { .. } | Event::Progress(_) => {}
        }
        (choice, event)
    }

    /// A choice has read its prompt.
    fn has_read(&mut self, leader: usize) {
        let followers = self.waiting.iter_mut();
        for waiting in followers.filter(|waiting| waiting.leader == leader) {
            waiting.may_begin = true;
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether the second choice finds in the cache what the first one has read.
fn shares(first: &GenerateSpec, second: &GenerateSpec) -> bool {
    first.cache_prompt && first.prompt == second.prompt && first.media == second.media
}

async fn next_of(generations: &mut [(usize, Generation)]) -> (usize, Option<Event>) {
    if let [(_choice, only)] = generations {
        return (0, only.next().await);
    }
    let waiting = generations
        .iter_mut()
        .map(|(_choice, generation)| Box::pin(generation.next()));
    let (event, place, _others) = select_all(waiting).await;
    (place, event)
}
