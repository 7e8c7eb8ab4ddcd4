//! Counts tokens of an answer from what passes by: believes the node's `usage`, estimates when there is none, and says which.
//! Sees text only to measure its length; keeps none.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// Bytes of a token where nothing better is known: 4 for English, less for others, so this rarely overcounts.
const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Generated.
    pub completion_tokens: u64,
    /// Of the prompt, taken from the node's cache.
    pub cached_tokens: u64,
    /// Of the generated ones: reasoning.
    pub reasoning_tokens: u64,
    /// Energy that the machine spent on it, thousandths of a joule.
    pub millijoules: u64,
    /// The node did not say: counted from bytes and chunks.
    pub estimated: bool,
}

impl Usage {
    /// Prompt and answer.
    pub const fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// Watches one answer.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    prompt_bytes: u64,
    text_bytes: u64,
    pieces: u64,
    reported: Option<Usage>,
    queue_ms: Option<u64>,
}

impl Meter {
    /// A meter for an answer to a prompt of so many bytes of text.
    pub fn new(prompt_bytes: u64) -> Self {
        Self {
            prompt_bytes,
            ..Self::default()
        }
    }

    /// Sees a chunk of a stream, or a whole answer.
    pub fn see(&mut self, body: &Value) {
        if let Some(usage) = reported(body) {
            self.reported = Some(usage);
        }
        self.queue_ms = waited(body).or(self.queue_ms);
        let choices = body.get("choices").and_then(Value::as_array);
        let bytes: u64 = choices.into_iter().flatten().map(choice_bytes).sum();
        if bytes > 0 {
            self.pieces = self.pieces.saturating_add(1);
            self.text_bytes = self.text_bytes.saturating_add(bytes);
        }
    }

    /// How long the node says that the request waited for a slot.
    pub const fn queue_ms(&self) -> Option<u64> {
        self.queue_ms
    }

    /// Whether any text came by.
    pub const fn has_text(&self) -> bool {
        self.text_bytes > 0
    }

    /// The tokens so far. Works at any moment, so also for an answer that was cut.
    pub fn usage(&self) -> Usage {
        self.reported.unwrap_or(Usage {
            prompt_tokens: self.prompt_bytes.div_ceil(BYTES_PER_TOKEN),
            // A streamed piece holds at least one token.
            completion_tokens: self.text_bytes.div_ceil(BYTES_PER_TOKEN).max(self.pieces),
            estimated: true,
            ..Usage::default()
        })
    }
}

/// The usage that an answer states.
pub fn reported(body: &Value) -> Option<Usage> {
    let usage = body.get("usage")?;
    let detail = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    Some(Usage {
        prompt_tokens: usage.get("prompt_tokens")?.as_u64()?,
        // Vectors and ranks have no answer of tokens.
        completion_tokens: usage
            .get("completion_tokens")
            .map_or(Some(0), Value::as_u64)?,
        cached_tokens: detail("/prompt_tokens_details/cached_tokens"),
        reasoning_tokens: detail("/completion_tokens_details/reasoning_tokens"),
        millijoules: millijoules(usage),
        estimated: false,
    })
}

fn millijoules(usage: &Value) -> u64 {
    let joules = usage.get("joules").and_then(Value::as_f64);
    // As a duration: bounded, never negative, and rounded without a cast.
    let exact = joules.and_then(|joules| Duration::try_from_secs_f64(joules).ok());
    exact.map_or(0, |exact| {
        u64::try_from(exact.as_millis()).unwrap_or(u64::MAX)
    })
}

fn waited(body: &Value) -> Option<u64> {
    let seconds = body.pointer("/timings/queue_ms")?.as_f64()? / 1000.0;
    let waited = Duration::try_from_secs_f64(seconds).ok()?;
    u64::try_from(waited.as_millis()).ok()
}

fn choice_bytes(choice: &Value) -> u64 {
    let part = choice.get("delta").or_else(|| choice.get("message"));
    let words = part
        .into_iter()
        .flat_map(|part| [part.get("content"), part.get("reasoning_content")])
        .chain([choice.get("text")])
        .flatten();
    let calls = part
        .and_then(|part| part.get("tool_calls"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(|call| {
            [
                call.pointer("/function/name"),
                call.pointer("/function/arguments"),
            ]
        })
        .flatten();
    words
        .chain(calls)
        .filter_map(Value::as_str)
        .map(|text| u64::try_from(text.len()).unwrap_or(u64::MAX))
        .sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Meter, Usage};

    fn metered(prompt_bytes: u64, bodies: &[Value]) -> Usage {
        let mut meter = Meter::new(prompt_bytes);
        for body in bodies {
            meter.see(body);
        }
        meter.usage()
    }

    fn delta(text: &str) -> Value {
        json!({"choices": [{"index": 0, "delta": {"content": text}}], "usage": null})
    }

    #[test]
    fn the_nodes_own_count_is_believed() {
        let usage = json!({"choices": [], "usage": {
            "prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 8},
            "completion_tokens_details": {"reasoning_tokens": 2},
            "joules": 1.25,
        }});
        let expected = Usage {
            prompt_tokens: 12,
            completion_tokens: 3,
            cached_tokens: 8,
            reasoning_tokens: 2,
            millijoules: 1_250,
            estimated: false,
        };
        let found = metered(4_000, &[delta("one"), delta("two"), usage]);
        assert_eq!(found, expected);
        assert_eq!(found.total_tokens(), 15);
    }

    #[test]
    fn vectors_have_a_prompt_alone() {
        let usage = json!({"data": [], "usage": {"prompt_tokens": 12, "total_tokens": 12}});
        let found = metered(4_000, &[usage]);
        assert_eq!((found.prompt_tokens, found.completion_tokens), (12, 0));
        assert!(!found.estimated);
    }

    #[test]
    fn the_wait_for_a_slot_is_what_the_node_says() {
        let mut meter = Meter::new(0);
        meter.see(&delta("one"));
        assert_eq!(meter.queue_ms(), None);
        meter.see(&json!({"choices": [], "timings": {"queue_ms": 21.7}}));
        meter.see(&json!({"choices": [], "timings": {"queue_ms": -1.0}}));
        assert_eq!(meter.queue_ms(), Some(21));
    }

    #[test]
    fn an_answer_that_was_cut_is_estimated_and_says_so() {
        let found = metered(40, &[delta("a"), delta("b"), delta("c")]);
        assert_eq!((found.prompt_tokens, found.completion_tokens), (10, 3));
        assert!(found.estimated, "a piece is at least a token");
        let long = metered(0, &[delta(&"x".repeat(400))]);
        assert_eq!(long.completion_tokens, 100);
    }

    #[test]
    fn every_kind_of_text_counts() {
        for body in [
            json!({"choices": [{"message": {"content": "12345678"}}]}),
            json!({"choices": [{"text": "12345678"}]}),
            json!({"choices": [{"delta": {"reasoning_content": "12345678"}}]}),
            json!({"choices": [{"delta": {"tool_calls": [{"function": {"name": "1234", "arguments": "5678"}}]}}]}),
            json!({"choices": [{"delta": {"content": "1234"}}, {"delta": {"content": "5678"}}]}),
        ] {
            assert_eq!(
                metered(0, std::slice::from_ref(&body)).completion_tokens,
                2,
                "{body}"
            );
        }
    }

    #[test]
    fn chunks_without_text_count_nothing() {
        let mut meter = Meter::new(0);
        for body in [
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            json!({"usage": {"prompt_tokens": "many"}}),
            json!([1, 2]),
            json!(null),
        ] {
            meter.see(&body);
        }
        assert!(!meter.has_text());
        assert_eq!(meter.usage().completion_tokens, 0);
        assert!(meter.usage().estimated);
    }
}
