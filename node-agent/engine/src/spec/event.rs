//! What an engine tells of an answer while it is being made.

use serde::Deserialize;
use serde::Serialize;

use super::Refusal;

/// One step in the life of a [`crate::Generation`].
///
/// The order is `Started`, any number of `Piece`, then one `Done`; or a `Refused` in place of any of them, which ends it too. `Progress`
/// may come anywhere before the first `Piece`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A slot works on the prompt.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were in the KV cache already.
        cached_tokens: u32,
        /// Time spent waiting for the slot.
        queue_ms: u64,
        /// Of an answer that goes on: the text of each token that was resumed, as it was told.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        told: Vec<String>,
    },
    /// Some more text: whole characters only, never a part of a stop string.
    Piece {
        /// The text, possibly empty when only log-probabilities or token counts are due.
        text: String,
        /// Tokens made since the piece before.
        tokens: u32,
        /// Which they are.
        #[serde(default)]
        ids: Vec<i32>,
        /// One entry per token, if they were asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprob>,
    },
    /// How far it is, before its first piece. Some may be left out.
    Progress(Progress),
    /// The answer is complete.
    Done {
        /// Why it ended.
        finish: Finish,
        /// What it used.
        usage: Usage,
        /// How long it took.
        timings: Timings,
    },
    /// The request ended without an answer.
    Refused(Refusal),
}

/// How far a request is whose answer has not begun.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It waits for a slot.
    Queue {
        /// So many go before it.
        ahead: u32,
    },
    /// Its prompt is being read.
    Prefill {
        /// Tokens read.
        done: u32,
        /// Of so many.
        total: u32,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// A stop string was found.
    StopString,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The deadline passed while the answer was being made.
    Deadline,
}

impl Finish {
    /// Names it for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Deadline => "deadline",
        }
    }
}

/// Tokens used by one request, counted by the engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens made, the end token included.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were in the KV cache already.
    pub cached_tokens: u32,
    /// Tokens of the prompt that pictures became.
    pub image_tokens: u32,
    /// Tokens of the prompt that sounds became.
    pub audio_tokens: u32,
}

/// Times of one request in milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Timings {
    /// Waiting for a slot.
    pub queue_ms: f64,
    /// From the slot to the first token.
    pub prompt_ms: f64,
    /// From the first token to the last.
    pub predicted_ms: f64,
}

/// Log-probability of one token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token and its probability before any sampling rule.
    pub chosen: LogprobEntry,
    /// The most likely tokens at this place, best first.
    pub top: Vec<LogprobEntry>,
}

/// One candidate in a [`TokenLogprob`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LogprobEntry {
    /// Number of the token.
    pub token: i32,
    /// Its bytes, possibly a part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}
