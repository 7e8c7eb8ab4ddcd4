//! A stream under way: chunks pass as they are, the one that finishes is held back until the tokens are counted, comments
//! fill the silence. Never ends cleanly without a `finish_reason`.

use bytes::Bytes;
use config::wire::chat;
use config::wire::error::ErrorDetail;
use config::wire::routing::{Continued, ContinuedHow};
use config::wire::sse;
use policy::refusal::Refusal;
use policy::route::Step;
use policy::usage::{Meter, Usage};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::gather::Gather;
use super::said::Said;
use super::times::Times;
use super::watch::Watch;
use super::{PROGRESS, Relay, is_cut};
use crate::gateway::dispatch::Form;
use crate::gateway::events::{Chunk, NodeEvents, Piece};
use crate::gateway::exchange::{Exchange, Stop};
use crate::nodes::upstream::Fault;

/// One token becomes few chunks: a thought that ends, text, a call that begins.
const UNNAMED_MAX: usize = 64;

/// A stream under way.
pub(super) struct Pump<'a> {
    relay: &'a Relay<'a>,
    step: Step,
    /// `None` after a break: the node is to stop at once.
    events: Option<NodeEvents>,
    meter: Meter,
    /// Tokens of all that was written, where the node names them.
    told: Vec<i32>,
    /// Chunks that come before the one with their tokens: nobody could go on from within them.
    unnamed: Vec<Piece>,
    /// What stopped the answer would stop it anywhere.
    is_hopeless: bool,
    /// The system fingerprint of the first chunk.
    fingerprint: Option<Value>,
    /// The chunk with the `finish_reason`, until it is known to be the last.
    held: Option<Piece>,
    usage: Option<Value>,
    /// Tokens with which another node has got on: before that it is not left because it is slow, or an answer would wander while
    /// everybody is busy. `None`: nobody has gone on with it.
    moved_until: Option<u64>,
    /// The answer so far, for a client that wants it whole.
    gather: Option<Gather>,
    /// What was said so far, if another model may go on with it.
    said: Option<Said>,
    /// Tokens of other models that come before those of `told`.
    before: u64,
    /// What all chunks say of the model, whoever goes on.
    model: Option<Value>,
    /// Where the answer went on elsewhere.
    continued: Vec<Continued>,
    times: Times,
    /// When the present node began to write.
    since: Instant,
    /// The whole answer, in the end.
    whole: Option<Value>,
}

impl<'a> Pump<'a> {
    /// Nothing is sent yet.
    pub(super) fn new(
        relay: &'a Relay<'a>,
        (step, events): (Step, NodeEvents),
        times: Times,
    ) -> Self {
        let meter = Meter::new(relay.prompt_bytes);
        Self {
            relay,
            step,
            events: Some(events),
            meter,
            told: Vec::new(),
            unnamed: Vec::new(),
            is_hopeless: false,
            fingerprint: None,
            held: None,
            usage: None,
            moved_until: None,
            gather: (relay.job.form != Form::Stream).then(Gather::default),
            said: relay.by_text.then(Said::default),
            before: 0,
            model: None,
            continued: Vec::new(),
            times,
            since: Instant::now(),
            whole: None,
        }
    }

    /// Where it comes from.
    pub(super) const fn step(&self) -> &Step {
        &self.step
    }

    /// The tokens of all that was written, where the node names them.
    pub(super) fn told(&self) -> &[i32] {
        &self.told
    }

    /// Whether another node could go on from here.
    pub(super) fn may_go_on(&self) -> bool {
        let is_open = self.held.is_none() || self.is_uncounted();
        !self.told.is_empty() && !self.is_hopeless && is_open
    }

    /// Whether all is there but the count: a twin makes the end again, and counts exactly.
    pub(super) fn is_uncounted(&self) -> bool {
        let is_bare = |piece: &Piece| !piece.has_content && piece.tokens.is_empty();
        let is_whole = self.held.as_ref().is_some_and(is_bare);
        self.usage.is_none() && (is_whole || self.ends_unnamed())
    }

    /// Whether the last chunk has come behind text whose tokens are not known: both wait for the count, or somebody who makes both again.
    fn ends_unnamed(&self) -> bool {
        self.unnamed.last().is_some_and(|piece| piece.finishes)
    }

    /// Whether it may be begun anew: nothing of it is known outside, and it was a node's fault.
    pub(super) const fn may_begin_anew(&self) -> bool {
        self.gather.is_some() && !self.is_hopeless
    }

    /// Leaves the node.
    pub(super) fn leave(&mut self) {
        self.events = None;
    }

    /// Whether these chunks come from a machine that writes what the first one would have written.
    pub(super) fn is_continued_by(&self, first: &[Piece]) -> bool {
        let same = |piece: &Piece| fingerprint(&piece.value) == self.fingerprint.as_ref();
        self.fingerprint.is_some() && first.first().is_some_and(same)
    }

    /// Goes on with the chunks of another node.
    pub(super) fn go_on(&mut self, step: Step, events: NodeEvents) {
        self.moves(&step, ContinuedHow::Tokens);
        self.step = step;
        self.events = Some(events);
        self.unnamed.clear();
        self.usage = None;
        self.held = None;
    }

    /// The text of the answer so far, if another model may go on with it.
    pub(super) fn text(&self) -> Option<&str> {
        let may = !self.is_hopeless && self.held.is_none();
        self.said.as_ref().filter(|_said| may)?.text()
    }

    /// Goes on with the chunks of another model: its tokens are others.
    pub(super) fn go_on_from_text(&mut self, step: Step, events: NodeEvents) {
        self.moves(&step, ContinuedHow::Text);
        self.before = self.written();
        self.told.clear();
        self.fingerprint = None;
        self.meter = Meter::new(self.relay.prompt_bytes);
        self.step = step;
        self.events = Some(events);
        self.unnamed.clear();
        self.usage = None;
    }

    /// Tokens of the answer so far.
    pub(super) fn written(&self) -> u64 {
        let told = u64::try_from(self.told.len()).unwrap_or(u64::MAX);
        let counted = self.meter.usage();
        let own = if told == 0 && counted.estimated {
            counted.completion_tokens
        } else {
            told
        };
        self.before.saturating_add(own)
    }

    /// The whole answer, once it has ended.
    pub(super) const fn whole(&mut self) -> Option<Value> {
        self.whole.take()
    }

    fn moves(&mut self, to: &Step, how: ContinuedHow) {
        self.continued.push(Continued {
            from: self.step.node_name.clone(),
            to: to.node_name.clone(),
            model: to.model.clone(),
            at_token: self.written(),
            how,
        });
        self.moved_until = Some(self.written().saturating_add(PROGRESS));
        self.times.went_on(self.since.elapsed());
        self.since = Instant::now();
    }

    /// Sends what another node would have said again, now that there is none.
    pub(super) async fn give_up(&mut self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        let mut out = Vec::new();
        self.release(&mut out);
        flush(exchange, &mut out).await
    }

    /// What was counted so far; of an answer that was cut, at least the tokens that were told.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.meter.usage();
        let told = u64::try_from(self.told.len()).unwrap_or(u64::MAX);
        if usage.estimated && told > 0 {
            usage.completion_tokens = told;
        }
        // Whoever went on from the text read it with the prompt: nobody pays twice for what was said.
        if !usage.estimated {
            usage.prompt_tokens = usage.prompt_tokens.saturating_sub(self.before);
        }
        usage.completion_tokens = usage.completion_tokens.saturating_add(self.before);
        usage
    }

    /// How long the request waited for a slot.
    pub(super) const fn queue_ms(&self) -> Option<u64> {
        self.meter.queue_ms()
    }

    /// Reads the node's answer to its clean end.
    pub(super) async fn finish(&mut self) {
        if let Some(events) = &mut self.events {
            events.finish().await;
        }
    }

    /// Sends the stream, from its first chunks to its end.
    pub(super) async fn run(
        &mut self,
        exchange: &mut Exchange<'_>,
        first: Vec<Piece>,
    ) -> Result<(), Stop> {
        let mut out = Vec::new();
        self.begin(exchange, first, &mut out).await?;
        let rules = &self.relay.dispatcher.rules;
        let (mut heard, mut sent) = (Instant::now(), Instant::now());
        let mut watch = self.watch();
        let (relay, step) = (self.relay, self.step.clone());
        loop {
            let may_leave = self.may_leave();
            let silent = (heard + rules.idle_timeout).min(self.relay.job.deadline);
            let chunks = tokio::select! {
                chunks = next_of(&mut self.events) => chunks,
                () = sleep_until(silent.min(sent + rules.keepalive)) => {
                    if Instant::now() >= silent {
                        self.excuse(Refusal::Timeout)?;
                        return self.conclude(exchange, &mut out).await;
                    }
                    sent = Instant::now();
                    self.keep_alive(exchange).await?;
                    continue;
                }
                () = watch.lost(|| may_leave && has_twin(relay, &step)) => Err(Fault::Lost),
                stop = exchange.gone() => return Err(stop),
            };
            heard = Instant::now();
            watch.heard();
            let more = match chunks {
                Ok(Some(chunks)) => self.take(chunks.into_iter(), &mut out),
                Ok(None) => Ok(false),
                Err(_) => self.excuse(Refusal::UpstreamBroken),
            };
            if matches!(more, Ok(false)) {
                return self.conclude(exchange, &mut out).await;
            }
            if !out.is_empty() {
                flush(exchange, &mut out).await?;
                sent = Instant::now();
            }
            more?;
        }
    }

    /// Sends the head, if the client streams, and what came first.
    async fn begin(
        &mut self,
        exchange: &mut Exchange<'_>,
        first: Vec<Piece>,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        if self.gather.is_none() {
            let headers = self.relay.early_headers(&self.step);
            exchange.start_stream(headers).await?;
        }
        self.take(first.into_iter().map(Chunk::Piece), out)?;
        flush(exchange, out).await
    }

    /// Breaks the silence, if the client streams.
    async fn keep_alive(&self, exchange: &mut Exchange<'_>) -> Result<(), Stop> {
        if self.gather.is_some() {
            return Ok(());
        }
        exchange.send(Bytes::from_static(sse::KEEP_ALIVE)).await
    }

    /// Watches the node, if another one could go on.
    fn watch(&self) -> Watch {
        let rules = &self.relay.dispatcher.rules;
        let is_of_use = self.relay.job.resumable && !rules.migration_patience.is_zero();
        let after = (is_of_use && self.may_go_on()).then_some(rules.stall_after);
        let inquiry = self.relay.dispatcher.inquiry();
        Watch::new(inquiry, self.step.backend.node.clone(), after)
    }

    /// Whether its node may be left for being slow: nobody has gone on yet, or whoever did has got on.
    fn may_leave(&self) -> bool {
        self.moved_until.is_none_or(|until| self.written() >= until)
    }

    /// What goes wrong after all content has come costs the client nothing: only the node's goodbye is missing. Where the count is missing
    /// too, a twin is looked for, which can make it.
    fn excuse(&self, refusal: Refusal) -> Result<bool, Stop> {
        let resumable = self.relay.job.resumable && self.may_go_on();
        let is_worth_it = resumable && self.is_uncounted();
        let has_ended = self.held.is_some() || self.ends_unnamed();
        if has_ended && !is_worth_it {
            Ok(false)
        } else {
            Err(refusal.into())
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
                Chunk::Piece(piece) => self.piece(piece, out),
                Chunk::Usage(value) => {
                    self.release(out);
                    self.meter.see(&value);
                    self.usage = Some(value);
                }
                Chunk::Error(detail) => {
                    tracing::debug!(request_id = %self.relay.job.request_id, step = %self.step.backend, code = detail.code, "a node gave up within a stream");
                    self.is_hopeless = would_happen_again(&detail);
                    return self.excuse(Refusal::UpstreamBroken);
                }
                Chunk::Nonsense => return self.excuse(Refusal::UpstreamBroken),
                Chunk::Done => return Ok(false),
            }
        }
        Ok(true)
    }

    /// A chunk goes out when the tokens that it is made of are known, if the node names them at all.
    fn piece(&mut self, piece: Piece, out: &mut Vec<u8>) {
        if self.fingerprint.is_none() {
            self.fingerprint = fingerprint(&piece.value).cloned();
        }
        let is_named = !piece.tokens.is_empty();
        let may_end = piece.finishes && self.unnamed.is_empty();
        if is_named || may_end || self.told.is_empty() {
            self.release(out);
            self.told.extend(&piece.tokens);
            self.pass(piece, out);
        } else if self.unnamed.len() < UNNAMED_MAX {
            self.unnamed.push(piece);
        } else {
            // It names them no more: nobody can go on with this.
            self.is_hopeless = true;
            self.release(out);
            self.pass(piece, out);
        }
    }

    /// Passes on what waits for its tokens.
    fn release(&mut self, out: &mut Vec<u8>) {
        for piece in std::mem::take(&mut self.unnamed) {
            self.pass(piece, out);
        }
    }

    fn pass(&mut self, piece: Piece, out: &mut Vec<u8>) {
        self.meter.see(&piece.value);
        if let Some(said) = &mut self.said {
            said.hear(&piece.value);
        }
        if self.model.is_none() {
            self.model = piece.value.get("model").cloned();
        }
        if let Some(held) = self.held.take() {
            self.write(held, out);
        }
        if piece.finishes {
            self.held = Some(piece);
        } else {
            self.write(piece, out);
        }
    }

    /// Writes an ordinary chunk: as the node wrote it unless the client asked for something else.
    fn write(&mut self, piece: Piece, out: &mut Vec<u8>) {
        const NO_USAGE: &str = ",\"usage\":null";
        if let Some(gather) = &mut self.gather {
            self.is_hopeless |= !gather.take(&piece.value);
            return;
        }
        let usage = piece.value.get("usage");
        let as_wanted = match usage {
            None => !self.relay.wants_usage,
            Some(usage) => self.relay.wants_usage && usage.is_null(),
        };
        let as_wanted = as_wanted && self.before == 0;
        if as_wanted && piece.value.get("_routing").is_none() {
            return sse::write_data(out, &piece.raw);
        }
        let mut raw = piece.raw;
        // The text `,"usage":null` cannot be part of a JSON string: its quotes would be escaped there.
        if usage.is_some_and(Value::is_null)
            && self.before == 0
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
        if let (Some(model), true) = (&self.model, self.before > 0) {
            members.insert("model".to_owned(), model.clone());
        }
        if self.relay.wants_usage {
            members.insert("usage".to_owned(), Value::Null);
        } else {
            members.remove("usage");
        }
    }

    /// Sends the end of an answer whose count is estimated: nobody could make it.
    pub(super) async fn conclude_uncounted(
        &mut self,
        exchange: &mut Exchange<'_>,
    ) -> Result<(), Stop> {
        self.conclude(exchange, &mut Vec::new()).await
    }

    /// Sends what is left, and the end if there is one.
    async fn conclude(
        &mut self,
        exchange: &mut Exchange<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        self.release(out);
        let written = self.last_words(exchange, out);
        flush(exchange, out).await?;
        written
    }

    /// Writes the held chunk with `_routing`, the usage if asked for, and `[DONE]`.
    fn last_words(&mut self, exchange: &mut Exchange<'_>, out: &mut Vec<u8>) -> Result<(), Stop> {
        let Some(mut last) = self.held.take().map(|piece| piece.value) else {
            return Err(Refusal::UpstreamBroken.into());
        };
        self.relay
            .note(exchange, &self.step, (self.usage(), self.queue_ms()));
        let timings = self.usage.as_ref().and_then(|usage| usage.get("timings"));
        let timings = timings.or_else(|| last.get("timings")).cloned();
        let timing = self.times.split(timings.as_ref(), Instant::now());
        let mut routing = self.relay.routing(exchange, &self.step, is_cut(&last));
        routing.continued = std::mem::take(&mut self.continued);
        routing.timing = Some(timing);
        if let Some(mut gather) = self.gather.take() {
            gather.take(&last);
            let usage = self.usage_chunk(&last)["usage"].take();
            let routing = serde_json::to_value(routing).unwrap_or_default();
            let members = [
                ("usage", Some(usage)),
                ("timings", timings),
                ("_routing", Some(routing)),
            ];
            self.whole = Some(gather.finish(members));
            return Ok(());
        }
        self.adapt(&mut last);
        let usage_chunk = self.relay.wants_usage.then(|| self.usage_chunk(&last));
        if let Some(timings) = timings {
            last["timings"] = timings;
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
        let usage = self.usage();
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
        if self.before > 0 || chunk.get("usage").is_none_or(Value::is_null) {
            chunk["usage"] = serde_json::to_value(counted).unwrap_or_default();
        }
        if let (Some(model), true) = (&self.model, self.before > 0) {
            chunk["model"] = model.clone();
        }
        if let Some(members) = chunk.as_object_mut() {
            members.remove("_routing");
        }
        chunk
    }
}

/// Whether another node could go on with an answer of this step at this moment.
fn has_twin(relay: &Relay<'_>, step: &Step) -> bool {
    let route = (relay.twins)(step);
    let mut steps = route.steps.iter();
    steps.any(|other| other.backend != step.backend)
}

/// The next chunks; never of a node that was left.
async fn next_of(events: &mut Option<NodeEvents>) -> Result<Option<Vec<Chunk>>, Fault> {
    match events {
        Some(events) => events.next().await,
        None => Err(Fault::Lost),
    }
}

/// Whether every other machine would give up here as well: the request is at fault, or its time is over.
fn would_happen_again(detail: &ErrorDetail) -> bool {
    detail.kind == "invalid_request_error" || detail.code.as_deref() == Some("timeout")
}

fn fingerprint(chunk: &Value) -> Option<&Value> {
    chunk
        .get("system_fingerprint")
        .filter(|value| value.is_string())
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
