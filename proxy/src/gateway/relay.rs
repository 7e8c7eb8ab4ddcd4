//! Pumps a node's answer to the client and adds what only the proxy knows. Chunks pass as they are; the one that finishes is
//! held back until the tokens are counted. A stream never ends cleanly without a `finish_reason`, and a client that leaves
//! takes the node's work with it.

mod pump;
mod watch;

use std::time::Duration;

use bytes::Bytes;
use config::settings::proxy::Routing as Rules;
use config::wire::routing::Routing;
use config::wire::sse;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use policy::limit::Name;
use policy::refusal::Refusal;
use policy::route::{Route, Step};
use policy::router::Outcome;
use policy::usage::{Meter, Usage};
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::{Dispatcher, Job, Opened, Tries, attempt_at};
use super::events::{NodeEvents, Piece};
use super::exchange::{Exchange, Stop};
use pump::Pump;

/// So often one answer may be carried on by another node.
const MIGRATIONS_MAX: usize = 4;
/// Between two looks for somebody to go on.
const MIGRATION_PAUSE: Duration = Duration::from_millis(200);
/// After `[DONE]` a node closes its answer at once; one that does not loses its connection instead of holding us.
const FAREWELL: Duration = Duration::from_millis(250);

/// One answer to be carried.
pub struct Relay<'a> {
    /// Who tries the steps.
    pub dispatcher: &'a Dispatcher,
    /// What is asked.
    pub job: &'a Job,
    /// Where.
    pub route: &'a Route,
    /// Who can go on with an answer that a step has begun.
    pub twins: &'a (dyn Fn(&Step) -> Route + Sync),
    /// Bytes of text in the prompt, to estimate tokens that no node counted.
    pub prompt_bytes: u64,
    /// The client asked for the usage chunk.
    pub wants_usage: bool,
    /// The limit because of which the answer may be shorter than was wanted.
    pub cut_by: Option<Name>,
}

impl Relay<'_> {
    /// Carries an answer that is not streamed.
    pub async fn whole(&self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        let mut tries = Tries::new(self.dispatcher, self.job, self.route);
        let answered = tokio::select! {
            answered = tries.whole() => answered.map_err(Stop::Refused),
            () = exchange.gone() => Err(Stop::ClientGone),
        };
        let trail = std::mem::take(&mut tries.trail);
        exchange.record.attempts = trail;
        let (opened, mut body) = self.begun(exchange, (answered, tries.asked))?;
        let mut meter = Meter::new(self.prompt_bytes);
        meter.see(&body);
        self.note(exchange, &opened.step, (meter.usage(), meter.queue_ms()));
        note_times(exchange, &body);
        let routing = self.routing(exchange, &opened.step, is_cut(&body));
        let headers = routing_headers(&routing);
        body["_routing"] = serde_json::to_value(routing).unwrap_or_default();
        let bytes = serde_json::to_vec(&body).map_err(|_| Refusal::Internal)?;
        opened.settle(Outcome::Ok);
        let mut all = headers;
        all.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        exchange.reply(StatusCode::OK, all, bytes.into()).await
    }

    /// Carries a stream.
    pub async fn stream(&self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        exchange.record.stream = true;
        let mut tries = Tries::new(self.dispatcher, self.job, self.route);
        let answered = await_first(&mut tries, exchange, &self.dispatcher.rules).await;
        exchange.record.attempts = std::mem::take(&mut tries.trail);
        let (opened, events, first) = self.begun(exchange, (answered, tries.asked))?;
        exchange.record.ttft_ms = Some(exchange.elapsed_ms());
        if let Some(ms) = opened.queue_ms {
            exchange.timed("queue", ms);
        }
        exchange.took("ttft", exchange.received_at);
        let mut pump = Pump::new(self, opened.step.clone(), events);
        let pumped = self.pump(exchange, &mut pump, (opened, first)).await;
        self.note(exchange, pump.step(), (pump.usage(), pump.queue_ms()));
        pumped?;
        exchange.end().await?;
        // The client has its answer; the connection may be of use to the next request.
        let _late = timeout(FAREWELL, pump.finish()).await;
        Ok(())
    }

    /// Carries a stream to its end, from node to node if need be.
    async fn pump(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &mut Pump<'_>,
        (mut opened, mut first): (Opened, Vec<Piece>),
    ) -> Result<(), Stop> {
        let mut left = MIGRATIONS_MAX;
        loop {
            let pumped = pump.run(exchange, first).await;
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
            let may_go_on = matches!(stop, Stop::Refused(_)) && left > 0;
            let next = if may_go_on && self.job.resumable && pump.may_go_on() {
                self.migrate(exchange, pump).await?
            } else {
                None
            };
            let Some((next, events, chunks)) = next else {
                pump.give_up(exchange).await?;
                return Err(stop);
            };
            left -= 1;
            self.dispatcher.metrics.migrated(step.backend.tier);
            tracing::info!(from = %step.backend, to = %next.step.backend, tokens = pump.told().len(), "an answer goes on elsewhere");
            (opened, first) = (next, chunks);
            pump.go_on(opened.step.clone(), events);
        }
    }

    /// Finds somebody who goes on with an answer that broke off, token for token. `None`: nobody can.
    async fn migrate(
        &self,
        exchange: &mut Exchange<'_>,
        pump: &Pump<'_>,
    ) -> Result<Option<Begun>, Stop> {
        let step = pump.step();
        let job = self.job.resumed(pump.told());
        let patience = self.dispatcher.rules.migration_patience;
        let until = (Instant::now() + patience).min(job.deadline);
        let mut strangers = Vec::new();
        while Instant::now() < until {
            let mut route = (self.twins)(step);
            route
                .steps
                .retain(|step| !strangers.contains(&step.backend));
            let mut tries = Tries::new(self.dispatcher, &job, &route);
            match await_first(&mut tries, exchange, &self.dispatcher.rules).await {
                Ok(begun) if pump.is_continued_by(&begun.2) => return Ok(Some(begun)),
                // The same file, but another template or other defaults: it would write something else.
                Ok((opened, _, _)) => {
                    strangers.push(opened.step.backend.clone());
                    opened.settle(Outcome::Abandoned);
                    continue;
                }
                Err(Stop::Refused(Refusal::BadRequest { .. } | Refusal::ContextTooLong { .. })) => {
                    return Ok(None);
                }
                Err(Stop::Refused(_)) => {}
                Err(Stop::ClientGone) => return Err(Stop::ClientGone),
            }
            tokio::select! {
                () = tokio::time::sleep(MIGRATION_PAUSE) => {}
                () = exchange.gone() => return Err(Stop::ClientGone),
            }
        }
        Ok(None)
    }

    /// An answer that has begun. Of one that nobody waited for, it is noted who was at work on it.
    fn begun<T>(
        &self,
        exchange: &mut Exchange<'_>,
        (answered, asked): (Result<T, Stop>, Option<Step>),
    ) -> Result<T, Stop> {
        if let (Err(_), Some(step)) = (&answered, &asked) {
            let nothing = Meter::new(self.prompt_bytes);
            self.note(exchange, step, (nothing.usage(), None));
        }
        answered
    }

    fn note(
        &self,
        exchange: &mut Exchange<'_>,
        step: &Step,
        (usage, queue_ms): (Usage, Option<u64>),
    ) {
        let record = &mut exchange.record;
        record.tier = Some(step.backend.tier);
        record.node = Some(step.backend.node.clone());
        record.model = Some(step.model.clone());
        record.fallback = self.route.detour(step);
        record.usage = Some(usage);
        record.queue_ms = queue_ms;
    }

    /// Notes the successful try and makes the metadata of the answer.
    fn routing(&self, exchange: &mut Exchange<'_>, step: &Step, is_cut: bool) -> Routing {
        exchange
            .record
            .attempts
            .push(attempt_at(step, Outcome::Ok.as_str()));
        if let Some(wanted) = self.route.wanted
            && wanted != step.backend.tier
        {
            self.dispatcher.metrics.fallback(wanted, step.backend.tier);
        }
        Routing {
            tier: step.backend.tier,
            model: step.model.clone(),
            node: step.node_name.clone(),
            latency_ms: exchange.elapsed_ms(),
            ttft_ms: exchange.record.ttft_ms,
            tokens: exchange
                .record
                .usage
                .map_or(0, |usage| usage.completion_tokens),
            reason: match self.cut_by {
                Some(name) if is_cut => {
                    format!("{}; stopped at the limit {name}", self.route.reason)
                }
                Some(_) | None => self.route.reason.clone(),
            },
            attempts: exchange.record.attempts.clone(),
            fallback: self.route.detour(step),
        }
    }

    /// What is known when a stream starts; the last chunk has the truth.
    fn early_headers(&self, step: &Step) -> HeaderMap {
        let mut headers = HeaderMap::new();
        put(&mut headers, "x-routing-tier", step.backend.tier.as_str());
        put(&mut headers, "x-routing-model", &step.model);
        put(&mut headers, "x-routing-node", &step.node_name);
        put(
            &mut headers,
            "x-routing-fallback",
            &self.route.detour(step).unwrap_or_default(),
        );
        headers
    }
}

/// An answer that has begun, or goes on.
type Begun = (Opened, NodeEvents, Vec<Piece>);

/// Whether an answer ended because it was long enough.
fn is_cut(body: &Value) -> bool {
    let choices = body.get("choices").and_then(Value::as_array);
    choices
        .into_iter()
        .flatten()
        .any(|choice| choice.get("finish_reason").and_then(Value::as_str) == Some("length"))
}

/// When a whole answer began: everything but the time that the node took to write it.
fn note_times(exchange: &mut Exchange<'_>, body: &Value) {
    let timing = |name: &str| body.pointer(name).and_then(Value::as_f64);
    if let Some(ms) = timing("/timings/queue_ms") {
        exchange.timed("queue", ms);
    }
    if let Some(ms) = timing("/timings/predicted_ms") {
        let writing = Duration::try_from_secs_f64(ms / 1e3).unwrap_or_default();
        let first = exchange.received_at.elapsed().saturating_sub(writing);
        exchange.record.ttft_ms = Some(u64::try_from(first.as_millis()).unwrap_or(u64::MAX));
        exchange.timed("ttft", first.as_secs_f64() * 1e3);
    }
}

fn outcome_of(stop: &Stop) -> Outcome {
    match stop {
        Stop::ClientGone => Outcome::Abandoned,
        Stop::Refused(Refusal::Timeout) => Outcome::TimedOut,
        Stop::Refused(_) => Outcome::Broken,
    }
}

/// Waits for the first content. Until `commit_after` a refusal can still be a real status; from then on comments keep the
/// connection alive.
async fn await_first(
    tries: &mut Tries<'_>,
    exchange: &mut Exchange<'_>,
    rules: &Rules,
) -> Result<Begun, Stop> {
    let first = tries.stream();
    tokio::pin!(first);
    let mut beat = Instant::now() + rules.commit_after;
    loop {
        tokio::select! {
            answered = &mut first => return answered.map_err(Stop::Refused),
            () = sleep_until(beat) => {
                exchange.start_stream(HeaderMap::new()).await?;
                exchange.send(Bytes::from_static(sse::KEEP_ALIVE)).await?;
                beat = Instant::now() + rules.keepalive;
            }
            () = exchange.gone() => return Err(Stop::ClientGone),
        }
    }
}

fn routing_headers(routing: &Routing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, "x-routing-tier", routing.tier.as_str());
    put(&mut headers, "x-routing-model", &routing.model);
    put(&mut headers, "x-routing-node", &routing.node);
    put(
        &mut headers,
        "x-routing-fallback",
        routing.fallback.as_deref().unwrap_or_default(),
    );
    headers
}

/// Names of nodes and models may hold any letter; headers may not.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    let plain: String = value
        .chars()
        .map(|letter| {
            if letter.is_ascii_graphic() || letter == ' ' {
                letter
            } else {
                '?'
            }
        })
        .collect();
    if !plain.is_empty()
        && let Ok(value) = HeaderValue::from_str(&plain)
    {
        headers.insert(HeaderName::from_static(name), value);
    }
}
