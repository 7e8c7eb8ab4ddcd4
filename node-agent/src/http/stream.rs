//! A streamed answer under way. The head waits for the first token, so that a refusal can still be a status; after three seconds it goes
//! out anyway. Dropping the body cancels the answer.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use config::wire::sse;
use engine::Event;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::time::timeout;

use super::Body;
use super::flow::Flow;
use super::job::Held;
use super::progress::Teller;
use super::record::Record;
use crate::answer::chat_stream::ChatStream;
use crate::answer::text::TextAnswer;
use crate::reply::Refused;

/// Silence longer than this is broken by a comment.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events that are ready are sent together up to about this size.
const TOGETHER_BYTES: usize = 16 * 1024;

/// Writes either surface.
#[derive(Debug)]
pub(super) enum Writer {
    Chat(Box<ChatStream>),
    Text(Box<TextAnswer>),
}

impl Writer {
    fn event(&mut self, choice: usize, event: &Event, out: &mut Vec<u8>) {
        match self {
            Self::Chat(chat) => chat.event(choice, event, out, Instant::now()),
            Self::Text(text) => text.event(choice, event, out),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Chat(chat) => chat.end(out),
            Self::Text(text) => text.end(out),
        }
    }
}

/// The rest of an answer.
#[derive(Debug)]
pub(super) struct Live {
    flow: Flow,
    writer: Writer,
    first: Vec<u8>,
    ended: bool,
    record: Option<Record>,
    /// The longest wait of a choice for its slot, as far as they had begun when the head went out.
    queue_ms: Option<u64>,
    /// How long the prompt was read, until the first of the answer.
    read: Option<Duration>,
    held: Held,
}

impl Live {
    /// Waits for the first token; how long that may take is the caller's to say. Tells meanwhile how far it is.
    pub(super) async fn open(
        flow: Flow,
        writer: Writer,
        held: Held,
        (record, teller): (&mut Record, &Teller),
    ) -> Result<Self, Refused> {
        let mut live = Self {
            flow,
            writer,
            first: Vec::new(),
            ended: false,
            record: None,
            queue_ms: None,
            read: None,
            held,
        };
        let mut started = None;
        while live.first.is_empty() {
            let Some((choice, event)) = live.flow.next().await else {
                break;
            };
            record.see(choice, &event);
            teller.hear(&event);
            if let Event::Refused(refusal) = event {
                return Err(Refused::Engine(refusal));
            }
            if let Event::Started { queue_ms, .. } = event {
                live.queue_ms = live.queue_ms.max(Some(queue_ms));
                started.get_or_insert_with(Instant::now);
            }
            live.writer.event(choice, &event, &mut live.first);
        }
        live.read = started.map(|started| started.elapsed());
        Ok(live)
    }

    /// Writes the record at the end of the stream instead of now.
    pub(super) fn attach(&mut self, record: Record) {
        self.record = Some(record);
    }

    /// The head, and the body as it comes.
    pub(super) fn into_response(self: Box<Self>) -> Response<Body> {
        let parts = [
            ("queue", self.queue_ms.map(Duration::from_millis)),
            ("prefill", self.read),
            ("load", self.held.loaded()),
        ];
        let known = parts.iter().filter_map(|(part, time)| {
            let ms = (*time)?.as_secs_f64() * 1000.0;
            Some(format!("{part};dur={ms:.1}"))
        });
        let known: Vec<String> = known.collect();
        let chunks = stream::unfold(self, |mut live| async move {
            let bytes = live.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), live))
        });
        let mut response = event_stream(StreamBody::new(chunks).boxed_unsync());
        if !known.is_empty()
            && let Ok(known) = HeaderValue::try_from(known.join(", "))
        {
            response.headers_mut().insert("server-timing", known);
        }
        response
    }

    /// The next bytes; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let mut out = std::mem::take(&mut self.first);
        while !self.ended && out.is_empty() {
            match timeout(KEEP_ALIVE, self.flow.next()).await {
                Ok(event) => self.take(event, &mut out),
                Err(_silence) => out.extend_from_slice(sse::KEEP_ALIVE),
            }
        }
        while !self.ended && out.len() < TOGETHER_BYTES {
            let Some(event) = self.flow.ready() else {
                break;
            };
            self.take(Some(event), &mut out);
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn take(&mut self, event: Option<(usize, Event)>, out: &mut Vec<u8>) {
        let Some((choice, event)) = event else {
            self.writer.end(out);
            self.ended = true;
            self.record_mut(Record::complete);
            return;
        };
        self.record_mut(|record| record.see(choice, &event));
        if let Event::Refused(refusal) = event {
            // After the head there is no other way to say it, and no `[DONE]`: clients must not take the answer for complete.
            let body = Refused::Engine(refusal).body();
            if let Err(error) = sse::write_json(out, &body) {
                tracing::error!(%error, "an error event could not be written");
            }
            self.ended = true;
        } else {
            self.writer.event(choice, &event, out);
        }
    }

    fn record_mut(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }
}

/// A body of events with its head.
pub(super) fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    response
}
