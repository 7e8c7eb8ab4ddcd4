//! Pumps a node's answer to the client and adds what only the proxy knows. Chunks pass as they are; the one that finishes is
//! held back until the tokens are counted. A stream never ends cleanly without a `finish_reason`, and a client that leaves
//! takes the node's work with it.

mod first;
mod gather;
mod onward;
mod pump;
mod said;
mod times;
mod watch;

use std::time::Duration;

use config::ids::NodeId;
use config::wire::routing::Routing;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use policy::limit::Name;
use policy::refusal::Refusal;
use policy::route::{Route, Step};
use policy::router::Outcome;
use policy::usage::{Meter, Usage};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::dispatch::{Begun, Dispatcher, Job, Opened, attempt_at};
use super::events::{NodeEvents, Piece};
use super::exchange::{Exchange, Stop};
use first::First;
pub use first::{Pass, Queueing};
use pump::Pump;
use times::{Times, parts};

/// So often a whole answer of which the client has seen nothing is begun anew.
const BEGINNINGS_MAX: usize = 4;
/// With so many tokens more whoever goes on with an answer has got on.
const PROGRESS: u64 = 32;
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
    /// How it waits where all are full.
    pub queueing: Queueing<'a>,
    /// Another model may go on with it from the text that was said.
    pub by_text: bool,
}

impl Relay<'_> {
    /// Carries an answer that the client wants whole. One that breaks off is carried on like a stream, and where nobody can do that
    /// it is begun anew elsewhere: the client has seen nothing of it.
    pub async fn whole(&self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        let mut first = First::new(self);
        for _beginning in 0..BEGINNINGS_MAX {
            let answered = first.begin(exchange, false).await;
            exchange.record.attempts.append(&mut first.trail);
            let answered = answered.map_err(|stop| blamed(stop, &first.lost));
            let begun = self.begun(exchange, (answered, first.asked.take()))?;
            let times = first.times(exchange.received_at, begun.opened());
            let (opened, events, chunks) = match begun {
                Begun::Whole(opened, body) => {
                    return self.told_whole(exchange, (opened, body), times).await;
                }
                Begun::Stream(opened, events, chunks) => (opened, *events, chunks),
            };
            exchange.record.ttft_ms = Some(exchange.elapsed_ms());
            let mut pump = Pump::new(self, (opened.step.clone(), events), times);
            let running = (opened, chunks);
            let pumped = Box::pin(self.pump(exchange, &mut pump, running)).await;
            self.note(exchange, pump.step(), (pump.usage(), pump.queue_ms()));
            match pumped {
                Ok(()) => {
                    let body = pump.whole().ok_or(Refusal::Internal)?;
                    self.reply(exchange, &body).await?;
                    let _late = timeout(FAREWELL, pump.finish()).await;
                    return Ok(());
                }
                Err(stop) if pump.may_begin_anew() && !stop.is_final() => {
                    first.lost.push(pump.step().backend.node.clone());
                }
                Err(stop) => return Err(blamed(stop, &first.lost)),
            }
        }
        Err(Refusal::UpstreamError.into())
    }

    /// Carries a stream.
    pub async fn stream(&self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        exchange.record.stream = true;
        let mut first = First::new(self);
        let answered = first.begin(exchange, true).await;
        exchange.record.attempts = std::mem::take(&mut first.trail);
        let begun = self.begun(exchange, (answered, first.asked.take()))?;
        let times = first.times(exchange.received_at, begun.opened());
        let Begun::Stream(opened, events, chunks) = begun else {
            return Err(Refusal::Internal.into());
        };
        exchange.record.ttft_ms = Some(exchange.elapsed_ms());
        for (part, ms) in times.early(opened.told, Instant::now()) {
            exchange.timed(part, ms);
        }
        exchange.took("ttft", exchange.received_at);
        let mut pump = Pump::new(self, (opened.step.clone(), *events), times);
        let running = (opened, chunks);
        let pumped = Box::pin(self.pump(exchange, &mut pump, running)).await;
        self.note(exchange, pump.step(), (pump.usage(), pump.queue_ms()));
        pumped?;
        exchange.end().await?;
        // The client has its answer; the connection may be of use to the next request.
        let _late = timeout(FAREWELL, pump.finish()).await;
        Ok(())
    }

    /// Passes on an answer that came whole.
    async fn told_whole(
        &self,
        exchange: &mut Exchange<'_>,
        (opened, mut body): (Opened, Value),
        times: Times,
    ) -> Result<(), Stop> {
        let mut meter = Meter::new(self.prompt_bytes);
        meter.see(&body);
        self.note(exchange, &opened.step, (meter.usage(), meter.queue_ms()));
        let timing = times.split(body.get("timings"), Instant::now());
        if body
            .pointer("/timings/predicted_ms")
            .is_some_and(Value::is_number)
        {
            let writing = Duration::try_from_secs_f64(timing.decode_ms / 1e3).unwrap_or_default();
            let first = exchange.received_at.elapsed().saturating_sub(writing);
            exchange.record.ttft_ms = Some(u64::try_from(first.as_millis()).unwrap_or(u64::MAX));
        }
        let mut routing = self.routing(exchange, &opened.step, is_cut(&body));
        routing.timing = Some(timing);
        body["_routing"] = serde_json::to_value(routing).unwrap_or_default();
        opened.settle(Outcome::Ok);
        self.reply(exchange, &body).await
    }

    /// Sends a whole answer with what is known of its way.
    async fn reply(&self, exchange: &mut Exchange<'_>, body: &Value) -> Result<(), Stop> {
        let routing: Option<Routing> = serde_json::from_value(body["_routing"].clone()).ok();
        let mut headers = routing.as_ref().map(routing_headers).unwrap_or_default();
        if let Some(timing) = routing.as_ref().and_then(|routing| routing.timing) {
            for (part, ms) in parts(&timing) {
                exchange.timed(part, ms);
            }
        }
        if let Some(ms) = exchange.record.ttft_ms {
            exchange.timed("ttft", Duration::from_millis(ms).as_secs_f64() * 1e3);
        }
        let bytes = serde_json::to_vec(body).map_err(|_| Refusal::Internal)?;
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        exchange.reply(StatusCode::OK, headers, bytes.into()).await
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
            continued: Vec::new(),
            timing: None,
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
type Running = (Opened, NodeEvents, Vec<Piece>);

/// When nodes have been lost over a request, that is why there is no answer, whoever else is busy or away.
fn blamed(stop: Stop, lost: &[NodeId]) -> Stop {
    match stop {
        Stop::Refused(Refusal::NoTierAvailable { .. } | Refusal::QueueFull { .. })
            if !lost.is_empty() =>
        {
            Refusal::UpstreamError.into()
        }
        // The words for the middle of a stream; nothing of this one was sent.
        Stop::Refused(Refusal::UpstreamBroken) => Refusal::UpstreamError.into(),
        Stop::Refused(_) | Stop::ClientGone => stop,
    }
}

/// Whether an answer ended because it was long enough.
fn is_cut(body: &Value) -> bool {
    let choices = body.get("choices").and_then(Value::as_array);
    choices
        .into_iter()
        .flatten()
        .any(|choice| choice.get("finish_reason").and_then(Value::as_str) == Some("length"))
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
