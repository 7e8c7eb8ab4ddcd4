//! The choices of one request, generated side by side, as one sequence of events. Dropping it cancels all of them.

use std::time::Duration;

use engine::{Event, Finish, GenerateSpec, Generation, Refusal, Worker};
use futures_util::FutureExt;
use futures_util::future::select_all;
use tokio::time::{Instant, timeout_at};

use crate::reply::Refused;

/// The engine keeps the deadline itself; this much later it is thought to hang.
const SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Flow {
    generations: Vec<(usize, Generation)>,
    ends_at: Instant,
}

impl Flow {
    pub(super) async fn start(
        worker: &Worker,
        specs: Vec<GenerateSpec>,
        ends_at: Instant,
    ) -> Result<Self, Refused> {
        let mut generations = Vec::with_capacity(specs.len());
        for (choice, spec) in specs.into_iter().enumerate() {
            let generation = worker.generate(spec).await.map_err(Refused::Engine)?;
            generations.push((choice, generation));
        }
        Ok(Self {
            generations,
            ends_at: ends_at + SLACK,
        })
    }

    /// The next event of any choice; `None` when all are complete. A refusal of one ends all. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
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
            ..
        } = event
        {
            event = Event::Refused(Refusal::DeadlineExceeded);
        }
        match &event {
            Event::Refused(_) => self.generations.clear(),
            Event::Done { .. } => drop(self.generations.remove(place)),
            Event::Started { .. } | Event::Piece { .. } => {}
        }
        (choice, event)
    }
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
