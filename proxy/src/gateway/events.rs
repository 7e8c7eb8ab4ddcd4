//! A node's stream as chunks: bytes to events to what each chunk means for the relay. Trusts nothing: sizes are bounded, what
//! is no JSON object is a fault. Sends nothing and waits for nothing but bytes.

use config::wire::error::{ErrorBody, ErrorDetail};
use config::wire::progress::Progress as Word;
use config::wire::sse::{Decoder, Event};
use serde_json::Value;

use super::progress::{Doing, Progress};
use crate::nodes::upstream::{AnswerBody, Fault};

/// One event of a node: a chunk of tokens with log-probabilities is a few KiB.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// A whole stream: far above any answer that a model gives within the time a request may take.
const STREAM_BYTES_MAX: usize = 256 * 1024 * 1024;

/// What one event of a node's stream is.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// A chunk with choices.
    Piece(Piece),
    /// The chunk without choices that carries the usage.
    Usage(Value),
    /// The node gave up.
    Error(ErrorDetail),
    /// `[DONE]`
    Done,
    /// What no client could read; what came before it stands.
    Nonsense,
}

/// A chunk with choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// As the node wrote it: goes to the client as it is wherever possible.
    pub raw: String,
    /// The same, read.
    pub value: Value,
    /// A choice has its `finish_reason` here.
    pub finishes: bool,
    /// A choice has content here, not just a role.
    pub has_content: bool,
    /// The tokens that it and what was held back before it are made of, where the node names them.
    pub tokens: Vec<i32>,
}

impl Chunk {
    /// Reads one event.
    fn read(event: Event) -> Result<Self, Fault> {
        if event.is_done() {
            return Ok(Self::Done);
        }
        let value: Value = serde_json::from_str(&event.data).map_err(|_| Fault::Nonsense)?;
        let Some(members) = value.as_object() else {
            return Err(Fault::Nonsense);
        };
        if members.get("error").is_some_and(|error| !error.is_null()) {
            let body: ErrorBody = serde_json::from_value(value).map_err(|_| Fault::Nonsense)?;
            return Ok(Self::Error(body.error));
        }
        let Some(choices) = members.get("choices").and_then(Value::as_array) else {
            return Err(Fault::Nonsense);
        };
        if choices.is_empty() {
            return Ok(Self::Usage(value));
        }
        let finishes = choices.iter().any(finishes);
        let has_content = choices.iter().any(has_content);
        Ok(Self::Piece(Piece {
            raw: event.data,
            finishes,
            has_content,
            tokens: event.tokens,
            value,
        }))
    }
}

fn finishes(choice: &Value) -> bool {
    choice
        .get("finish_reason")
        .is_some_and(|reason| !reason.is_null())
}

fn has_content(choice: &Value) -> bool {
    let is_filled = |value: &Value| match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    };
    let text = choice.get("text").is_some_and(is_filled);
    let delta = choice.get("delta").and_then(Value::as_object);
    text || delta.is_some_and(|delta| {
        delta
            .iter()
            .any(|(name, value)| name != "role" && is_filled(value))
    })
}

/// Reads a node's stream.
#[derive(Debug)]
pub struct NodeEvents {
    body: AnswerBody,
    decoder: Decoder,
    bytes: usize,
    /// Read already, to be given out first.
    waiting: Vec<Chunk>,
    /// Where it is told what a node says of its progress.
    progress: Progress,
    /// What it last said of that.
    word: Option<Word>,
}

impl NodeEvents {
    /// Reads the body of an answer as a stream of events.
    pub fn new(body: AnswerBody) -> Self {
        Self {
            body,
            decoder: Decoder::new(EVENT_BYTES_MAX),
            bytes: 0,
            waiting: Vec::new(),
            progress: Progress::default(),
            word: None,
        }
    }

    /// What the node last said of its work before it begins to answer.
    pub const fn word(&self) -> Option<Word> {
        self.word
    }

    /// Tells there how far the node is, until it begins to answer.
    #[must_use]
    pub fn telling(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// The chunks that the next bytes complete, perhaps none; `None` at the end of the stream. Cancel-safe: bytes that
    /// were read are decoded before anything else is awaited.
    pub async fn next(&mut self) -> Result<Option<Vec<Chunk>>, Fault> {
        if !self.waiting.is_empty() {
            return Ok(Some(std::mem::take(&mut self.waiting)));
        }
        let Some(bytes) = self.body.next().await? else {
            // Cut within an event: what is left of it is lost.
            return if self.decoder.is_mid_event() {
                Err(Fault::Lost)
            } else {
                Ok(None)
            };
        };
        self.bytes += bytes.len();
        if self.bytes > STREAM_BYTES_MAX {
            return Err(Fault::Nonsense);
        }
        let mut events = Vec::new();
        self.decoder
            .push(&bytes, &mut events)
            .map_err(|_| Fault::Nonsense)?;
        if let Some(word) = self.decoder.progress() {
            self.word = Some(word);
            self.progress.tell(Doing::Node(word));
        }
        let read = |event| Chunk::read(event).unwrap_or(Chunk::Nonsense);
        Ok(Some(events.into_iter().map(read).collect()))
    }

    /// Gives back chunks that came with the last ones and are not wanted yet.
    pub fn put_back(&mut self, chunks: impl Iterator<Item = Chunk>) {
        self.waiting.extend(chunks);
    }

    /// Reads to the clean end, after which the connection can be used again.
    pub async fn finish(&mut self) {
        while let Ok(Some(_)) = self.body.next().await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(data: &str) -> Result<Chunk, Fault> {
        Chunk::read(Event {
            data: data.to_owned(),
            ..Event::default()
        })
    }

    fn piece(data: &str) -> Piece {
        match chunk(data) {
            Ok(Chunk::Piece(piece)) => piece,
            other => panic!("{data} is {other:?}"),
        }
    }

    #[test]
    fn a_role_alone_is_no_content() {
        assert!(!piece(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#).has_content);
        for content in [
            r#"{"choices":[{"delta":{"content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"text":"a"}]}"#,
        ] {
            assert!(piece(content).has_content, "{content}");
        }
    }

    #[test]
    fn a_finish_reason_in_any_choice_finishes() {
        assert!(
            piece(r#"{"choices":[{"delta":{}},{"delta":{},"finish_reason":"stop"}]}"#).finishes
        );
        assert!(!piece(r#"{"choices":[{"delta":{},"finish_reason":null}]}"#).finishes);
    }

    #[test]
    fn done_usage_and_error_are_told_apart() {
        assert_eq!(chunk("[DONE]"), Ok(Chunk::Done));
        assert!(matches!(
            chunk(r#"{"choices":[],"usage":{"prompt_tokens":1}}"#),
            Ok(Chunk::Usage(_))
        ));
        let error = chunk(r#"{"error":{"message":"m","type":"server_error","code":503}}"#);
        assert!(matches!(error, Ok(Chunk::Error(detail)) if detail.code.as_deref() == Some("503")));
    }

    #[test]
    fn what_makes_no_sense_is_a_fault() {
        for data in [
            "",
            "{",
            "[]",
            "\"text\"",
            r#"{"choices":"none"}"#,
            r#"{"object":"x"}"#,
        ] {
            assert_eq!(chunk(data), Err(Fault::Nonsense), "{data}");
        }
    }
}
