//! A client in memory: sends a body, collects the answer, and leaves when told to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use config::wire::sse::{Decoder, Event};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::front::sink::{BodyError, ClientGone, ClientSink, Gone};

/// The client's side of one request.
pub(super) struct Client {
    body: VecDeque<Bytes>,
    /// What was sent is not all: the rest never comes, and here it counts who waits for it.
    stalls: Option<Arc<AtomicUsize>>,
    /// Leaves when so many chunks have come.
    leaves_after: usize,
    /// Leaves when told to.
    leaves_when: Option<Arc<Notify>>,
    /// Who it is that waits no longer then.
    because: Gone,
    begun: Instant,
    pub(super) status: Option<StatusCode>,
    pub(super) headers: HeaderMap,
    pub(super) headed_at: Option<Duration>,
    pub(super) chunks: Vec<(Duration, Bytes)>,
    pub(super) ended: bool,
}

impl Client {
    pub(super) fn sending(body: impl Into<Bytes>) -> Self {
        Self {
            body: VecDeque::from([body.into()]),
            stalls: None,
            leaves_after: usize::MAX,
            leaves_when: None,
            because: Gone::Client,
            begun: Instant::now(),
            status: None,
            headers: HeaderMap::new(),
            headed_at: None,
            chunks: Vec::new(),
            ended: false,
        }
    }

    /// Sends its body in pieces of so many bytes, and nowhere says how many there are in all.
    pub(super) fn sending_in_pieces(body: &str, bytes: usize) -> Self {
        let mut client = Self::sending(Bytes::new());
        client.body = body
            .as_bytes()
            .chunks(bytes)
            .map(Bytes::copy_from_slice)
            .collect();
        client
    }

    /// Never sends the end of its body, and counts when the house waits for it.
    pub(super) fn stalling(mut self, stalled: &Arc<AtomicUsize>) -> Self {
        self.stalls = Some(Arc::clone(stalled));
        self
    }

    pub(super) const fn leaving_after(mut self, chunks: usize) -> Self {
        self.leaves_after = chunks;
        self
    }

    /// Stays, and the proxy ends when told to.
    pub(super) fn sent_away_when(mut self, ends: &Arc<Notify>) -> Self {
        self.because = Gone::Proxy;
        self.leaving_when(ends)
    }

    /// Leaves when told to.
    pub(super) fn leaving_when(mut self, leaves: &Arc<Notify>) -> Self {
        self.leaves_when = Some(Arc::clone(leaves));
        self
    }

    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self
            .chunks
            .iter()
            .flat_map(|(_, chunk)| chunk.to_vec())
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The data of all events; `[DONE]` is a JSON string here.
    pub(super) fn events(&self) -> Vec<Value> {
        let mut events = Vec::new();
        Decoder::default()
            .push(self.text().as_bytes(), &mut events)
            .unwrap();
        let read = |event: &Event| match serde_json::from_str(&event.data) {
            Ok(value) => value,
            Err(_) => Value::String(event.data.clone()),
        };
        events.iter().map(read).collect()
    }

    /// The text of all deltas.
    pub(super) fn said(&self) -> String {
        let events = self.events();
        let deltas = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        deltas.collect()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no header {name}"))
            .to_str()
            .unwrap()
    }
}

#[async_trait]
impl ClientSink for Client {
    async fn body(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.body.is_empty()
            && let Some(stalled) = &self.stalls
        {
            stalled.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
        Ok(self.body.pop_front())
    }

    async fn head(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), ClientGone> {
        assert!(self.status.is_none(), "one head an answer");
        self.status = Some(status);
        self.headers = headers;
        self.headed_at = Some(self.begun.elapsed());
        Ok(())
    }

    async fn chunk(&mut self, bytes: Bytes) -> Result<(), ClientGone> {
        assert!(
            self.status.is_some() && !self.ended,
            "chunks come between head and end"
        );
        self.chunks.push((self.begun.elapsed(), bytes));
        Ok(())
    }

    async fn end(&mut self) -> Result<(), ClientGone> {
        self.ended = true;
        Ok(())
    }

    async fn gone(&mut self) -> Gone {
        if let Some(leaves) = &self.leaves_when {
            leaves.notified().await;
        } else if self.chunks.len() < self.leaves_after {
            std::future::pending::<()>().await;
        }
        self.because
    }
}
