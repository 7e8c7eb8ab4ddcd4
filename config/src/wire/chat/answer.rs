//! Answers and chunks of the chat completions surface: read tolerantly, written exactly as the SDKs' schemas require.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Role, ToolCall, ToolKind};
use crate::wire::routing::Routing;

/// A whole answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-...`
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// One for each `n`.
    pub choices: Vec<Choice>,
    /// Tokens used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
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

/// The `object` of [`ChatResponse`].
pub const CHAT_OBJECT: &str = "chat.completion";
/// The `object` of [`ChatChunk`].
pub const CHUNK_OBJECT: &str = "chat.completion.chunk";

/// One of `n` answers. `logprobs` is written as null when absent, as the schema requires.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Choice {
    /// From 0.
    pub index: u32,
    /// The answer.
    pub message: ResponseMessage,
    /// Probabilities, if asked for.
    #[serde(default)]
    pub logprobs: Option<Logprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model said. `content` and `refusal` are written as null when absent, as the schema requires.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ResponseMessage {
    /// `assistant`.
    pub role: Role,
    /// The text; null when tools were called.
    #[serde(default)]
    pub content: Option<String>,
    /// Always null: local models refuse in their text.
    #[serde(default)]
    pub refusal: Option<String>,
    /// What the model thought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model was done, or a stop string came.
    Stop,
    /// The maximum or the context was reached.
    Length,
    /// Tools are to be called.
    ToolCalls,
    /// A filter cut it.
    ContentFilter,
    /// The old form of [`FinishReason::ToolCalls`].
    FunctionCall,
}

impl FinishReason {
    /// The word in JSON, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::FunctionCall => "function_call",
        }
    }
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Of the prompt, in detail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// Of the answer, in detail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
    /// Energy that the machine spent on it, where it tells. Ours: OpenAI has no such member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
}

impl Usage {
    /// Usage with its sum and the tokens found in the cache.
    pub const fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens,
                image_tokens: 0,
                audio_tokens: 0,
            }),
            completion_tokens_details: Some(CompletionTokensDetails {
                reasoning_tokens: 0,
            }),
            joules: None,
        }
    }
}

/// Of the prompt, in detail.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct PromptTokensDetails {
    /// Not processed again.
    pub cached_tokens: u64,
    /// Of pictures.
    #[serde(skip_serializing_if = "is_none")]
    pub image_tokens: u64,
    /// Of sound.
    #[serde(skip_serializing_if = "is_none")]
    pub audio_tokens: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
const fn is_none(tokens: &u64) -> bool {
    *tokens == 0
}

/// Of the answer, in detail.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct CompletionTokensDetails {
    /// Spent on thinking.
    pub reasoning_tokens: u64,
}

/// Speeds, as llama-server reports them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Timings {
    /// Prompt tokens found in the cache.
    pub cache_n: u64,
    /// Prompt tokens processed.
    pub prompt_n: u64,
    /// Time for them.
    pub prompt_ms: f64,
    /// Tokens generated.
    pub predicted_n: u64,
    /// Time for them.
    pub predicted_ms: f64,
    /// Their rate.
    pub predicted_per_second: f64,
    /// Time the request waited for a slot; ours, llama-server does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ms: Option<f64>,
    /// Time until the model was loaded for the request; ours. Absent where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// Energy for prompt and answer, the answer's part of what the machine drew; ours. Absent where no sensor tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules: Option<f64>,
}

/// Probabilities of the answer's tokens.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Logprobs {
    /// One entry a token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    #[serde(default)]
    pub refusal: Option<Value>,
}

/// Probability of one token and of those that were close.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Its bytes: a token may be half a character.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens at this place.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// One likely token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
}

/// One piece of a streamed answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChatChunk {
    /// The same on every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// The same on every chunk.
    pub created: i64,
    /// The same on every chunk.
    pub model: String,
    /// Empty on the usage chunk.
    pub choices: Vec<ChunkChoice>,
    /// `Some(None)` writes null, as earlier chunks must when usage was asked for; `None` writes nothing.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pub usage: Option<Option<Usage>>,
    /// As in [`ChatResponse`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
    /// On the last chunk, or on each if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// On the chunk that carries `finish_reason`; written by the proxy alone.
    #[serde(rename = "_routing", skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Members that we do not know; kept so that a relay loses nothing.
    #[serde(flatten)]
    pub extra: IndexMap<String, Value>,
}

impl ChatChunk {
    /// Whether a choice of this chunk ends here.
    pub fn finishes(&self) -> bool {
        self.choices
            .iter()
            .any(|choice| choice.finish_reason.is_some())
    }
}

/// A change of one choice. `logprobs` and `finish_reason` are written as null when absent.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// Which.
    pub index: u32,
    /// What is added.
    #[serde(default)]
    pub delta: Delta,
    /// Probabilities of what is added.
    #[serde(default)]
    pub logprobs: Option<Logprobs>,
    /// On the last chunk of the choice.
    #[serde(default)]
    pub finish_reason: Option<FinishReason>,
}

/// What is added to a message.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Delta {
    /// On the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// A piece of a tool call. The first one carries everything, later ones `index` and more of the arguments.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ToolCallDelta {
    /// Which call.
    pub index: u32,
    /// On the first piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// On the first piece.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ToolKind>,
    /// Name on the first piece, arguments on all.
    #[serde(default)]
    pub function: FunctionDelta,
}

/// A piece of a function call.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct FunctionDelta {
    /// On the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// Keeps "present but null" apart from "absent".
#[expect(
    clippy::option_option,
    reason = "absent, null and a value are three different things to a client"
)]
pub(crate) fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests;
