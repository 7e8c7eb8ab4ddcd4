//! An answer under way, from node to node if need be: token for token by a twin, or, where the request allows it and no twin is there,
//! by another model from the text so far. Says nothing twice and ends nothing cleanly that was not complete.

use std::borrow::Cow;
use std::time::Duration;

use policy::refusal::Refusal;
use policy::route::Route;
use policy::router::Outcome;
use tokio::time::Instant;

use super::first::{Pass, while_waiting};
use super::pump::Pump;
use super::{PROGRESS, Relay, Running};
use crate::gateway::dispatch::{Form, Job, Opened, Tries, attempt_at};
use crate::gateway::events::Piece;
use crate::gateway::exchange::{Exchange, Stop};

/// So often one answer may be carried on by another node without getting on: it may be what kills them.
const MIGRATIONS_MAX: usize = 4;
/// Between two looks for somebody to go on.
const MIGRATION_PAUSE: Duration = Duration::from_millis(200);

/// So long a twin is looked for where another model may go on as well: a worker that died is back within a second.
const TWIN_PATIENCE: Duration = Duration::from_secs(2);
/// And so long where all is said and only the count is missing: the client has its answer and waits for the end of it.
const COUNT_PATIENCE: Duration = Duration::from_secs(5);

/// Who goes on, and with what.
struct Onward {
    running: Running,
    /// Another model: what it was asked.
    from_text: Option<Job>,
}

impl Relay<'_> {
    /// Carries a stream to its end.
    pub(super) async fn pump(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &mut Pump<'_>,
        (mut opened, mut first): (Opened, Vec<Piece>),
    ) -> Result<(), Stop> {
        let mut job = Cow::Borrowed(self.job);
        let (mut left, mut reached) = (MIGRATIONS_MAX, 0);
        loop {
            let pumped = pump.run(exchange, first).await;
            if pump.written() >= reached + PROGRESS {
                left = MIGRATIONS_MAX;
            }
            reached = pump.written();
            let step = opened.step.clone();
            let Err(stop) = pumped else {
                opened.settle(Outcome::Ok);
                return Ok(());
            };
            pump.leave();
            let outcome = outcome_of(&stop);
            let broken = attempt_at(&step, outcome.as_str());
            exchange.record.attempts.push(broken);
            opened.settle(outcome);
            let next = match &stop {
                Stop::Refused(_) if left > 0 && !stop.is_final() => {
                    tracing::info!(request_id = %job.request_id, backend = %step.backend, outcome = outcome.as_str(), "a backend is lost for an answer");
                    self.onward(exchange, pump, &job).await?
                }
                Stop::Refused(_) | Stop::ClientGone => None,
            };
            let Some(Onward { running, from_text }) = next else {
                if pump.is_uncounted() && !stop.is_final() {
                    return pump.conclude_uncounted(exchange).await;
                }
                pump.give_up(exchange).await?;
                return Err(stop);
            };
            left -= 1;
            let (next, events, chunks) = running;
            self.dispatcher.metrics.migrated(step.backend.tier);
            tracing::info!(request_id = %job.request_id, from = %step.backend, to = %next.step.backend, tokens = pump.written(), text = from_text.is_some(), "an answer goes on elsewhere");
            match from_text {
                Some(asked) => {
                    job = Cow::Owned(asked);
                    pump.go_on_from_text(next.step.clone(), events);
                }
                None => pump.go_on(next.step.clone(), events),
            }
            (opened, first) = (next, chunks);
        }
    }

    /// Finds somebody who goes on. `None`: nobody can.
    async fn onward(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &Pump<'_>,
        job: &Job,
    ) -> Result<Option<Onward>, Stop> {
        if job.resumable && pump.may_go_on() {
            let twin = self.migrate(exchange, pump, job).await?;
            if let Some(running) = twin {
                return Ok(Some(Onward {
                    running,
                    from_text: None,
                }));
            }
        }
        let Some(asked) = pump.text().and_then(|text| {
            // Whoever goes on makes what is left.
            job.goes_on(text, pump.written())
        }) else {
            return Ok(None);
        };
        let another = self.another(exchange, pump, &asked).await?;
        Ok(another.map(|running| Onward {
            running,
            from_text: Some(asked),
        }))
    }

    /// Finds somebody who goes on with an answer that broke off, token for token.
    async fn migrate(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &Pump<'_>,
        job: &Job,
    ) -> Result<Option<Running>, Stop> {
        let step = pump.step();
        let job = job.resumed(pump.told());
        let mut until = self.patience(&job);
        // Another model may go on, or only the count is missing: nobody waits long for a machine to come back.
        if pump.is_uncounted() {
            until = until.min(Instant::now() + COUNT_PATIENCE);
        } else if pump.text().is_some() {
            until = until.min(Instant::now() + TWIN_PATIENCE);
        }
        let mut strangers = Vec::new();
        while Instant::now() < until {
            let mut route = (self.twins)(step);
            route
                .steps
                .retain(|step| !strangers.contains(&step.backend));
            match self.asked(exchange, &job, &route).await {
                Ok(running) if pump.is_continued_by(&running.2) => return Ok(Some(running)),
                // The same file, but another template or other defaults: it would write something else.
                Ok((opened, _, _)) => {
                    strangers.push(opened.step.backend.clone());
                    opened.settle(Outcome::Abandoned);
                    continue;
                }
                Err(Stop::Refused(
                    refusal @ (Refusal::BadRequest { .. } | Refusal::ContextTooLong { .. }),
                )) => {
                    unwilling(&job, &refusal);
                    return Ok(None);
                }
                Err(stop) if stop.is_final() => return Err(stop),
                Err(_) => {}
            }
            pause(exchange).await?;
        }
        Ok(None)
    }

    /// Finds another model that goes on from the text.
    async fn another(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &Pump<'_>,
        job: &Job,
    ) -> Result<Option<Running>, Stop> {
        let until = self.patience(job);
        while Instant::now() < until {
            let mut route = (self.queueing.again)(Pass {
                native: true,
                ..Pass::default()
            });
            route
                .steps
                .retain(|step| step.backend != pump.step().backend);
            match self.asked(exchange, job, &route).await {
                Ok(running) => return Ok(Some(running)),
                Err(Stop::Refused(
                    refusal @ (Refusal::BadRequest { .. } | Refusal::ContextTooLong { .. }),
                )) => {
                    unwilling(job, &refusal);
                    return Ok(None);
                }
                Err(stop) if stop.is_final() => return Err(stop),
                Err(_) => {}
            }
            pause(exchange).await?;
        }
        Ok(None)
    }

    async fn asked(
        &self,
        exchange: &mut Exchange<'_>,
        job: &Job,
        route: &Route,
    ) -> Result<Running, Stop> {
        let mut tries = Tries::new(self.dispatcher, job, route);
        let progress = tries.progress.clone();
        let streams = self.job.form == Form::Stream;
        let rules = &self.dispatcher.rules;
        let beginning = Box::pin(tries.stream());
        while_waiting(beginning, exchange, (rules, &progress, streams)).await
    }

    fn patience(&self, job: &Job) -> Instant {
        let patience = self.dispatcher.rules.migration_patience;
        (Instant::now() + patience).min(job.deadline)
    }
}

/// A node took the question and not its going on: that is ours to mend. Its words may hold the client's, and stay out.
fn unwilling(job: &Job, refusal: &Refusal) {
    let param = if let Refusal::BadRequest { param, .. } = refusal {
        param.as_deref()
    } else {
        None
    };
    tracing::warn!(request_id = %job.request_id, refusal = refusal.label(), param, "nobody goes on with an answer: its beginning was refused");
}

async fn pause(exchange: &mut Exchange<'_>) -> Result<(), Stop> {
    tokio::select! {
        () = tokio::time::sleep(MIGRATION_PAUSE) => Ok(()),
        stop = exchange.gone() => Err(stop),
    }
}

fn outcome_of(stop: &Stop) -> Outcome {
    match stop {
        Stop::ClientGone | Stop::Refused(Refusal::Draining) => Outcome::Abandoned,
        Stop::Refused(Refusal::Timeout) => Outcome::TimedOut,
        Stop::Refused(_) => Outcome::Broken,
    }
}
