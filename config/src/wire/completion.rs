//! The text completions surface (`/v1/completions`) as data: the same shape streamed and not.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chat::{FinishReason, Timings, Usage, present};
pub use super::valid::{CompletionRequest, Prompt};
use crate::wire::routing::Routing;

/// The `object` of [`CompletionResponse`], streamed or not.
pub const COMPLETION_OBJECT: &str = "text_completion";

/// An answer, or one chunk of it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-...`, the same on every chunk.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// One for each prompt and `n`; empty on the usage chunk.
    pub choices: Vec<CompletionChoice>,
    /// `Some(None)` writes null, as earlier chunks must when usage was asked for; `None` writes nothing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub usage: Option<Option<Usage>>,
    /// Changes whenever the same seed may give another answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// Speeds, as llama-server reports them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// Where the answer came from; written by the proxy alone.
    #[serde(rename = "_routing", skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Members that we do not know; kept so that a relay loses nothing.
    #[serde(flatten)]
    pub extra: IndexMap<String, Value>,
}

/// One of the answers. `logprobs` and `finish_reason` are written as null when absent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// The text, or what is added to it.
    pub text: String,
    /// From 0.
    pub index: u32,
    /// Probabilities, if asked for.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null before the last chunk.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// Probabilities in the form of the old surface: parallel lists, one entry a token.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Texts.
    pub tokens: Vec<String>,
    /// Natural logarithms of the probabilities.
    pub token_logprobs: Vec<f64>,
    /// The likeliest tokens at each place.
    pub top_logprobs: Vec<IndexMap<String, f64>>,
    /// Where each token starts in the text, in characters.
    pub text_offset: Vec<usize>,
}
