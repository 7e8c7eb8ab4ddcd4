//! One answer on its way out: the sink, what was sent so far, and the record that grows with it. Decides nothing; turns what
//! the gateway decided into bytes.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use policy::limit::{self, Concurrency, CounterState};
use policy::record::{AccessRecord, Ending};
use policy::refusal::Refusal;
use tokio::time::Instant;

use super::Call;
use super::operation::ADMIN;
use super::reply::{self, ReplyContext};
use crate::admin::api;
use crate::front::sink::{BodyError, ClientGone, ClientSink, Gone};

/// Why a request ended before its answer was whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Stop {
    /// We say no.
    Refused(Refusal),
    /// Nobody listens any more.
    ClientGone,
}

impl Stop {
    /// Whether nobody waits for the answer any more, so that nobody is to go on with it.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::ClientGone | Self::Refused(Refusal::Draining))
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ClientGone> for Stop {
    fn from(_: ClientGone) -> Self {
        Self::ClientGone
    }
}

impl From<BodyError> for Stop {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone => Self::ClientGone,
            BodyError::TooSlow => Refusal::BodyTimeout.into(),
            BodyError::Malformed => Refusal::MalformedRequest {
                why: "the body's framing is broken",
            }
            .into(),
        }
    }
}

/// Status of a request whose client left; never on the wire.
const CLIENT_GONE: u16 = 499;

/// One request and its answer.
pub struct Exchange<'a> {
    sink: &'a mut dyn ClientSink,
    /// What will be told about it.
    pub record: AccessRecord,
    /// When the request's head was read.
    pub received_at: Instant,
    states: Vec<CounterState>,
    concurrency: Option<Concurrency>,
    timing: Vec<(&'static str, f64)>,
    is_streaming: bool,
}

impl<'a> Exchange<'a> {
    /// Nothing is sent yet.
    pub fn new(call: &Call, route: &'static str, sink: &'a mut dyn ClientSink) -> Self {
        let mut record = AccessRecord::new(call.request_id.clone(), route, call.method.as_str());
        record.retry_count = retry_count(&call.headers);
        record.trace_id = trace_id(&call.headers);
        let received_at = Instant::from_std(call.received_at);
        Self {
            sink,
            record,
            received_at,
            states: Vec::new(),
            concurrency: None,
            timing: Vec::new(),
            is_streaming: false,
        }
    }

    /// The limits as they stand, for the headers of whatever answer comes.
    pub fn limits(&mut self, states: &[CounterState]) {
        self.states = states.to_vec();
    }

    /// The user's open requests, for the same headers.
    pub const fn concurrency(&mut self, concurrency: Concurrency) {
        self.concurrency = Some(concurrency);
    }

    /// The limits as they were last looked at.
    pub fn states(&self) -> &[CounterState] {
        &self.states
    }

    /// Whether the limits were looked at.
    pub fn knows_limits(&self) -> bool {
        !self.states.is_empty()
    }

    /// Notes how long a part took, for `server-timing`.
    pub fn took(&mut self, part: &'static str, since: Instant) {
        self.timing
            .push((part, since.elapsed().as_secs_f64() * 1e3));
    }

    /// Notes how long a part took on the node.
    pub fn timed(&mut self, part: &'static str, ms: f64) {
        self.timing.push((part, ms));
    }

    /// Milliseconds since the request's head.
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.received_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the head of a stream is out: from then on a refusal is an event.
    pub const fn is_streaming(&self) -> bool {
        self.is_streaming
    }

    /// The next piece of the request's body.
    pub async fn body(&mut self) -> Result<Option<Bytes>, Stop> {
        let piece = self.sink.body().await?;
        self.record.bytes_in += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    /// Sends a whole answer.
    pub async fn reply(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), Stop> {
        let mut headers = headers;
        if status != StatusCode::NOT_MODIFIED {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        self.head(status, headers).await?;
        self.record.bytes_out += body.len() as u64;
        self.sink.chunk(body).await?;
        self.sink.end().await?;
        Ok(())
    }

    /// Sends a whole JSON answer.
    pub async fn json(
        &mut self,
        status: StatusCode,
        value: &impl serde::Serialize,
    ) -> Result<(), Stop> {
        let body = serde_json::to_vec(value).map_err(|_| Refusal::Internal)?;
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        self.reply(status, headers, body.into()).await
    }

    /// Sends a short text.
    pub async fn text(&mut self, status: StatusCode, text: &'static str) -> Result<(), Stop> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        self.reply(status, headers, Bytes::from_static(text.as_bytes()))
            .await
    }

    /// Sends the head of a stream, once.
    pub async fn start_stream(&mut self, mut headers: HeaderMap) -> Result<(), Stop> {
        if self.is_streaming {
            return Ok(());
        }
        self.is_streaming = true;
        let fixed = [
            (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
            (header::CACHE_CONTROL, "no-cache, no-transform"),
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        self.head(StatusCode::OK, headers).await
    }

    /// Sends a part of a stream.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Stop> {
        self.record.bytes_out += bytes.len() as u64;
        self.sink.chunk(bytes).await?;
        Ok(())
    }

    /// Ends a stream.
    pub async fn end(&mut self) -> Result<(), Stop> {
        self.sink.end().await?;
        Ok(())
    }

    /// Resolves when nobody waits for the answer any more, and says why it stops.
    pub async fn gone(&mut self) -> Stop {
        match self.sink.gone().await {
            Gone::Client => Stop::ClientGone,
            Gone::Proxy => Refusal::Draining.into(),
        }
    }

    /// Tells the client, in whatever form is still possible, why there is no answer.
    pub async fn stop(&mut self, stop: Stop) {
        let told = match stop {
            Stop::ClientGone => Err(Stop::ClientGone),
            Stop::Refused(refusal) => self.refuse(&refusal).await,
        };
        if told.is_err() {
            self.record.status = CLIENT_GONE;
            self.record.outcome = Ending::ClientGone;
        }
    }

    /// The record of a request that has ended.
    pub fn finish(mut self) -> AccessRecord {
        self.record.ms = self.elapsed_ms();
        self.record
    }

    async fn refuse(&mut self, refusal: &Refusal) -> Result<(), Stop> {
        self.record.refusal = Some(refusal.label());
        if self.is_streaming {
            self.record.outcome = Ending::Broken;
            self.send(reply::refuse_in_stream(refusal)).await?;
            return self.end().await;
        }
        self.record.outcome = Ending::Refused;
        let limit_headers = self.limit_headers();
        let context = ReplyContext {
            request_id: self.record.request_id.clone(),
            limit_headers,
        };
        let (status, mut headers, mut body) = reply::refuse(refusal, &context);
        if self.record.route == ADMIN {
            let told = api::told(status, &refusal.to_string(), &context.request_id);
            headers.extend(told.headers);
            body = told.body;
        }
        self.reply(status, headers, body).await
    }

    async fn head(&mut self, status: StatusCode, mut headers: HeaderMap) -> Result<(), Stop> {
        self.record.status = status.as_u16();
        for (name, value) in &self.limit_headers() {
            headers.insert(name.clone(), value.clone());
        }
        if let Some(timing) = self.server_timing() {
            headers.insert(HeaderName::from_static("server-timing"), timing);
        }
        self.sink.head(status, headers).await?;
        Ok(())
    }

    fn limit_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in limit::headers(&self.states, self.concurrency) {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }

    fn server_timing(&self) -> Option<HeaderValue> {
        let parts: Vec<String> = self
            .timing
            .iter()
            .map(|(part, ms)| format!("{part};dur={ms:.1}"))
            .collect();
        if parts.is_empty() {
            return None;
        }
        HeaderValue::from_str(&parts.join(", ")).ok()
    }
}

/// The trace of a W3C `traceparent` (version 00 and later: `00-TRACE-PARENT-FLAGS`); nothing else of the client's gets into a log.
fn trace_id(headers: &HeaderMap) -> Option<String> {
    let id = headers
        .get("traceparent")?
        .to_str()
        .ok()?
        .split('-')
        .nth(1)?;
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let valid = id.len() == 32 && id.bytes().all(is_hex) && id.bytes().any(|byte| byte != b'0');
    valid.then(|| id.to_owned())
}

/// How often the SDK tried before; what it says is for logs alone.
fn retry_count(headers: &HeaderMap) -> u32 {
    headers
        .get("x-stainless-retry-count")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_well_formed_trace_is_noted() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let cases = [
            (format!("00-{trace}-b7ad6b7169203331-01"), Some(trace)),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), None),
            (
                format!("00-{}-b7ad6b7169203331-01", trace.to_uppercase()),
                None,
            ),
            ("00-abc".to_owned(), None),
        ];
        for (header, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", HeaderValue::from_str(&header).unwrap());
            assert_eq!(trace_id(&headers).as_deref(), expected, "{header}");
        }
    }
}
