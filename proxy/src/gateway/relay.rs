//! Pumps a node's answer to the client and adds what only the proxy knows. Chunks pass as they are; the one that finishes is
//! held back until the tokens are counted. A stream never ends cleanly without a `finish_reason`, and a client that leaves
//! takes the node's work with it.

use bytes::Bytes;
use config::settings::proxy::Routing as Rules;
use config::wire::chat;
use config::wire::routing::Routing;
use config::wire::sse;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use policy::refusal::Refusal;
use policy::route::{Route, Step};
use policy::router::Outcome;
use policy::usage::Meter;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::{Dispatcher, Job, Opened, Tries, attempt_at};
use super::events::{Chunk, NodeEvents, Piece};
use super::exchange::{Exchange, Stop};
use crate::nodes::upstream::Fault;

/// After `[DONE]` a node closes its answer at once; one that does not loses its connection instead of holding us.
const FAREWELL: std::time::Duration = std::time::Duration::from_millis(250);

/// One answer to be carried.
pub struct Relay<'a> {
    /// Who tries the steps.
    pub dispatcher: &'a Dispatcher,
    /// What is asked.
    pub job: &'a Job,
    /// Where.
    pub route: &'a Route,
    /// Bytes of text in the prompt, to estimate tokens that no node counted.
    pub prompt_bytes: u64,
    /// The client asked for the usage chunk.
    pub wants_usage: bool,
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
        let (opened, mut body) = answered?;
        let mut meter = Meter::new(self.prompt_bytes);
        meter.see(&body);
        self.note(exchange, &opened.step, &meter);
        let routing = self.routing(exchange, &opened.step);
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
        let (opened, events, first) = answered?;
        exchange.record.ttft_ms = Some(exchange.elapsed_ms());
        exchange.took("ttft", exchange.received_at);
        let meter = Meter::new(self.prompt_bytes);
        let mut pump = Pump {
            relay: self,
            step: &opened.step.clone(),
            events,
            meter,
            held: None,
            usage: None,
        };
        let pumped = pump.run(exchange, first).await;
        self.note(exchange, pump.step, &pump.meter);
        match &pumped {
            Ok(()) => opened.settle(Outcome::Ok),
            Err(stop) => {
                let outcome = outcome_of(stop);
                exchange
                    .record
                    .attempts
                    .push(attempt_at(pump.step, outcome.as_str()));
                opened.settle(outcome);
            }
        }
        pumped?;
        exchange.end().await?;
        // The client has its answer; the connection may be of use to the next request.
        let _late = timeout(FAREWELL, pump.events.finish()).await;
        Ok(())
    }

    fn note(&self, exchange: &mut Exchange<'_>, step: &Step, meter: &Meter) {
        let record = &mut exchange.record;
        record.tier = Some(step.backend.tier);
        record.node = Some(step.backend.node.clone());
        record.model = Some(step.model.clone());
        record.fallback = self.route.detour(step);
        record.usage = Some(meter.usage());
    }

    /// Notes the successful try and makes the metadata of the answer.
    fn routing(&self, exchange: &mut Exchange<'_>, step: &Step) -> Routing {
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
            reason: self.route.reason.clone(),
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
) -> Result<(Opened, NodeEvents, Vec<Piece>), Stop> {
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

/// A stream under way.
struct Pump<'a> {
    relay: &'a Relay<'a>,
    step: &'a Step,
    events: NodeEvents,
    meter: Meter,
    /// The chunk with the `finish_reason`, until it is known to be the last.
    held: Option<Piece>,
    usage: Option<Value>,
}

impl Pump<'_> {
    async fn run(&mut self, exchange: &mut Exchange<'_>, first: Vec<Piece>) -> Result<(), Stop> {
        exchange
            .start_stream(self.relay.early_headers(self.step))
            .await?;
        let mut out = Vec::new();
        self.take(first.into_iter().map(Chunk::Piece), &mut out)?;
        flush(exchange, &mut out).await?;
        let rules = &self.relay.dispatcher.rules;
        let (mut heard, mut sent) = (Instant::now(), Instant::now());
        loop {
            let silent = (heard + rules.idle_timeout).min(self.relay.job.deadline);
            let chunks = tokio::select! {
                chunks = self.events.next() => chunks,
                () = sleep_until(silent.min(sent + rules.keepalive)) => {
                    if Instant::now() >= silent {
                        return Err(Refusal::Timeout.into());
                    }
                    exchange.send(Bytes::from_static(sse::KEEP_ALIVE)).await?;
                    sent = Instant::now();
                    continue;
                }
                () = exchange.gone() => return Err(Stop::ClientGone),
            };
            heard = Instant::now();
            let more = match chunks {
                Ok(Some(chunks)) => self.take(chunks.into_iter(), &mut out)?,
                Ok(None) => false,
                // All content has come: what is missing is the node's goodbye.
                Err(Fault::Lost) if self.held.is_some() => false,
                Err(_) => return Err(Refusal::UpstreamBroken.into()),
            };
            if !more {
                self.conclude(exchange, &mut out)?;
                return flush(exchange, &mut out).await;
            }
            if !out.is_empty() {
                flush(exchange, &mut out).await?;
                sent = Instant::now();
            }
        }
    }

    /// Writes what can go out; `false` after the last chunk.
    fn take(
        &mut self,
        chunks: impl Iterator<Item = Chunk>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Stop> {
        for chunk in chunks {
            match chunk {
                Chunk::Piece(piece) => {
                    self.meter.see(&piece.value);
                    if let Some(held) = self.held.take() {
                        self.write(held, out);
                    }
                    if piece.finishes {
                        self.held = Some(piece);
                    } else {
                        self.write(piece, out);
                    }
                }
                Chunk::Usage(value) => {
                    self.meter.see(&value);
                    self.usage = Some(value);
                }
                Chunk::Error(detail) => {
                    tracing::debug!(step = %self.step.backend, code = detail.code, "a node gave up within a stream");
                    return Err(Refusal::UpstreamBroken.into());
                }
                Chunk::Done => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes an ordinary chunk: as the node wrote it unless the client asked for something else.
    fn write(&self, piece: Piece, out: &mut Vec<u8>) {
        const NO_USAGE: &str = ",\"usage\":null";
        let usage = piece.value.get("usage");
        let as_wanted = match usage {
            None => !self.relay.wants_usage,
            Some(usage) => self.relay.wants_usage && usage.is_null(),
        };
        if as_wanted && piece.value.get("_routing").is_none() {
            return sse::write_data(out, &piece.raw);
        }
        let mut raw = piece.raw;
        // The text `,"usage":null` cannot be part of a JSON string: its quotes would be escaped there.
        if usage.is_some_and(Value::is_null)
            && piece.value.get("_routing").is_none()
            && let Some(at) = raw.rfind(NO_USAGE)
        {
            raw.replace_range(at..at + NO_USAGE.len(), "");
            return sse::write_data(out, &raw);
        }
        let mut value = piece.value;
        self.adapt(&mut value);
        write_json(out, &value);
    }

    fn adapt(&self, value: &mut Value) {
        let Some(members) = value.as_object_mut() else {
            return;
        };
        members.remove("_routing");
        if self.relay.wants_usage {
            members.insert("usage".to_owned(), Value::Null);
        } else {
            members.remove("usage");
        }
    }

    /// Writes the held chunk with `_routing`, the usage if asked for, and `[DONE]`.
    fn conclude(&mut self, exchange: &mut Exchange<'_>, out: &mut Vec<u8>) -> Result<(), Stop> {
        let Some(mut last) = self.held.take().map(|piece| piece.value) else {
            return Err(Refusal::UpstreamBroken.into());
        };
        self.relay.note(exchange, self.step, &self.meter);
        let routing = self.relay.routing(exchange, self.step);
        self.adapt(&mut last);
        let usage_chunk = self.relay.wants_usage.then(|| self.usage_chunk(&last));
        if let Some(timings) = self.usage.as_ref().and_then(|usage| usage.get("timings")) {
            last["timings"] = timings.clone();
        }
        last["_routing"] = serde_json::to_value(routing).unwrap_or_default();
        write_json(out, &last);
        if let Some(usage) = usage_chunk {
            write_json(out, &usage);
        }
        out.extend_from_slice(sse::DONE);
        Ok(())
    }

    fn usage_chunk(&self, last: &Value) -> Value {
        let usage = self.meter.usage();
        let counted = chat::Usage::new(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
        );
        let mut chunk = self.usage.clone().unwrap_or_else(|| {
            json!({
                "id": last["id"],
                "object": last["object"],
                "created": last["created"],
                "model": last["model"],
                "choices": [],
            })
        });
        if chunk.get("usage").is_none_or(Value::is_null) {
            chunk["usage"] = serde_json::to_value(counted).unwrap_or_default();
        }
        if let Some(members) = chunk.as_object_mut() {
            members.remove("_routing");
        }
        chunk
    }
}

async fn flush(exchange: &mut Exchange<'_>, out: &mut Vec<u8>) -> Result<(), Stop> {
    if out.is_empty() {
        return Ok(());
    }
    exchange.send(std::mem::take(out).into()).await
}

fn write_json(out: &mut Vec<u8>, value: &Value) {
    // A Value always has a JSON form.
    let _infallible = sse::write_json(out, value);
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
