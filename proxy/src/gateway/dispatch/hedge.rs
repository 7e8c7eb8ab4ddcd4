//! The first content of a step, and of a second one that is asked too when the first is slower than it usually is. The first with content
//! answers; the other is cancelled at once, which its node sees as a client that left, and costs nobody anything. Whether a second one
//! may be asked is policy's.

use std::pin::pin;

use policy::refusal::Refusal;
use policy::route::Step;
use policy::router::Outcome;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::hope::Hope;
use super::preamble::{is_stream, preamble, read_whole};
use super::{Asking, Begun, Failure, Form, Opened, Told, Tries, attempt_at};
use crate::gateway::events::{NodeEvents, Piece};
use crate::gateway::progress::Progress;

/// Bytes of a body for each token of its prompt, at most: what is longer than that in tokens is code, and is not asked twice.
const BYTES_PER_TOKEN: u64 = 4;

/// The beginning of an answer.
struct First {
    told: Told,
    said: Said,
}

enum Said {
    Stream(Box<NodeEvents>, Vec<Piece>),
    Whole(Value),
}

impl Asking<'_> {
    async fn first(self, step: &Step, hope: Hope, progress: Progress) -> Result<First, Failure> {
        let mut answer = self.ask(step, hope.until()).await?;
        let told = Told::of(&answer.headers);
        let said = if is_stream(&answer.headers) || self.job.form == Form::Stream {
            let mut events = NodeEvents::new(answer.body).telling(progress);
            let pieces = preamble(&mut events, &answer.headers, hope).await?;
            Said::Stream(Box::new(events), pieces)
        } else {
            let key = self.job.answer_key;
            Said::Whole(read_whole(&mut answer, key, self.job.deadline).await?)
        };
        Ok(First { told, said })
    }
}

/// Who had something to say first.
enum Side {
    First,
    Second,
}

impl Tries<'_> {
    /// The first content of a step, or of another one that was asked besides. `None`: neither has any; the next step may.
    pub(super) async fn first_content(
        &mut self,
        opened: Opened,
        hope: Hope,
    ) -> Result<Option<Begun>, Refusal> {
        let (asking, step) = (self.asking(), opened.step.clone());
        let first = asking.first(&step, hope, self.progress.clone());
        let until = self.loads_until();
        let mut first = pin!(asking.unless_it_loads_on((&step.backend, until), first));
        let prompt = u64::try_from(self.job.body.len()).unwrap_or(u64::MAX) / BYTES_PER_TOKEN;
        let fleet = &self.dispatcher.fleet;
        let after = fleet.hedge_after(&step.backend, prompt, Instant::now().into_std());
        let Some(after) = after.filter(|_| !opened.attempting.is_probe()) else {
            let answered = first.await;
            return self.ended(opened, answered);
        };
        tokio::select! {
            answered = &mut first => return self.ended(opened, answered),
            () = sleep(after) => {}
        }
        let Some(second) = self.second(&step) else {
            let answered = first.await;
            return self.ended(opened, answered);
        };
        let other = second.step.clone();
        tracing::debug!(slow = %step.backend, besides = %other.backend, "a second backend is asked too");
        let mut later = pin!(asking.first(&other, hope, Progress::default()));
        let (side, answered) = tokio::select! {
            answered = &mut first => (Side::First, answered),
            answered = &mut later => (Side::Second, answered),
        };
        match (side, answered) {
            (Side::First, Ok(answer)) => {
                self.outrun(second, "lost");
                Ok(Some(self.begun(opened, answer)))
            }
            (Side::Second, Ok(answer)) => {
                self.outrun(opened, "won");
                let now = Instant::now().into_std();
                let fleet = &self.dispatcher.fleet;
                fleet.sent(&other.backend, &self.job.chain, now);
                self.asked = Some(other.clone());
                Ok(Some(self.begun(second, answer)))
            }
            (Side::First, Err(failure)) => {
                self.failed(opened, failure)?;
                self.asked = Some(other.clone());
                let answered = later.await;
                self.ended(second, answered)
            }
            (Side::Second, Err(failure)) => {
                self.failed(second, failure)?;
                self.asked = Some(step.clone());
                let answered = first.await;
                self.ended(opened, answered)
            }
        }
    }

    /// Another backend for the same answer, if one may be asked now.
    fn second(&mut self, first: &Step) -> Option<Opened> {
        let route = self.route;
        let others = route.steps.get(self.next..)?.iter();
        let step = others
            .filter(|step| {
                // Nobody is woken for a race.
                !step.cold
                    && step.backend.tier == first.backend.tier
                    && step.model == first.model
                    && step.backend.node != first.backend.node
            })
            .find(|step| !self.lost.contains(&step.backend.node) && self.is_a_node(step))?;
        let fleet = &self.dispatcher.fleet;
        let now = Instant::now().into_std();
        let attempting = fleet.begin_besides(&step.backend, now)?;
        // It reads the conversation too, whoever of the two will have said it.
        fleet.sent_besides(&step.backend, &self.job.chain, now);
        self.besides.push(step.backend.clone());
        Some(self.opened(step, attempting))
    }

    /// Whether a step is a machine of ours: a server of somebody else would bill what it made for nobody.
    fn is_a_node(&self, step: &Step) -> bool {
        let member = self.dispatcher.members.member(&step.backend.node);
        member.is_some_and(|member| member.remote().is_none())
    }

    fn ended(
        &mut self,
        opened: Opened,
        answered: Result<First, Failure>,
    ) -> Result<Option<Begun>, Refusal> {
        match answered {
            Ok(answer) => Ok(Some(self.begun(opened, answer))),
            Err(failure) => {
                self.failed(opened, failure)?;
                Ok(None)
            }
        }
    }

    fn begun(&self, mut opened: Opened, answer: First) -> Begun {
        opened.told = answer.told;
        opened.attempting.prove(Instant::now().into_std());
        let took = opened.asked_at.elapsed();
        self.dispatcher.fleet.measured(&opened.step.backend, took);
        match answer.said {
            Said::Stream(events, pieces) => Begun::Stream(opened, events, pieces),
            Said::Whole(value) => Begun::Whole(opened, value),
        }
    }

    /// The slower one of two: neither a success nor a failure, and known to take at least this long.
    fn outrun(&mut self, opened: Opened, hedge: &'static str) {
        let tier = opened.step.backend.tier;
        self.dispatcher.metrics.hedge(tier, hedge);
        let took = opened.asked_at.elapsed();
        self.dispatcher.fleet.measured(&opened.step.backend, took);
        let outcome = Outcome::Outrun;
        self.trail.push(attempt_at(&opened.step, outcome.as_str()));
        opened.settle(outcome);
    }
}
