//! Requests after every check: the only chat and completion types that the floors above accept. A field is honoured within its
//! bounds, accepted and ignored by name, or refused with its path; nothing is dropped in silence. Never keeps the raw JSON.

use std::fmt;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::tier::Tier;
use crate::wire::chat::{Message, ResponseFormat, StreamOptions, Tool, ToolChoice};
use crate::wire::wishes::Wishes;

mod ask;
mod chat;
mod completion;
mod infill;
mod json;
mod media;
mod message;
mod options;
pub(super) mod read;
mod sampling;
mod tools;

pub use ask::{AskKind, TEXTS_MAX, ValidAsk, ValidEmbeddings, ValidRerank};
pub use completion::{CompletionRequest, Prompt, ValidCompletion};
pub use infill::{ExtraFile, ValidInfill};
pub use media::IMAGE_TYPES;
pub use sampling::Sampling;

/// Messages of one request, at most.
pub const MESSAGES_MAX: usize = 2048;
/// Parts of one message, at most.
pub const PARTS_MAX: usize = 256;
/// Pictures and sounds of one request, at most.
pub const MEDIA_MAX: usize = 32;
/// Tools of one request, and calls of one message, at most.
pub const TOOLS_MAX: usize = 128;
/// Bytes of one tool's JSON, and of a response schema, at most.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a grammar, at most.
pub const GRAMMAR_BYTES_MAX: usize = 64 * 1024;
/// Entries of `logit_bias`, at most.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Stop strings, at most.
pub const STOP_MAX: usize = 4;
/// Answers of one request, at most.
pub const N_MAX: u32 = 8;
/// `top_logprobs`, at most.
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Levels of nested arrays and objects, at most.
pub const DEPTH_MAX: usize = 64;
/// Values in one JSON body, at most: bounds the memory that a small body can claim.
pub const VALUES_MAX: usize = 262_144;

/// Why a request is the caller's fault.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The path of the field at fault, as `messages[2].content[0].image_url`.
    pub param: Option<String>,
    /// The word a program looks at.
    pub code: InvalidCode,
    /// What is wrong, the value, and what would be right. Never quotes the conversation.
    pub message: String,
}

/// The kinds of [`Invalid`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum InvalidCode {
    /// Not JSON, not UTF-8, too deep, or not an object.
    InvalidJson,
    /// A field has the wrong type or is outside its bounds.
    InvalidValue,
    /// A field that Hearth does not offer.
    UnsupportedParameter,
}

impl InvalidCode {
    /// The `code` of the error body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidValue => "invalid_value",
            Self::UnsupportedParameter => "unsupported_parameter",
        }
    }
}

impl fmt::Display for InvalidCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request carries, because limits differ.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// Text alone.
    Text,
    /// Pictures or sound as well.
    Media,
}

/// Top-level keys that Hearth does not know: accepted, because SDKs send extras, and counted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    /// How many.
    pub count: usize,
    /// The first few names, sorted and shortened.
    pub names: Vec<String>,
}

/// A chat request as JSON, not yet checked.
#[derive(Debug)]
pub struct ChatRequest(Map<String, Value>);

/// What chat and text completions share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Tokens to generate at most; `None`: the operator's default.
    pub max_tokens: Option<u32>,
    /// How many answers, 1 to 8.
    pub n: u32,
    /// Strings that end the answer, at most 4, none empty.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Never end at the model's own end.
    pub ignore_eos: bool,
    /// Tokens before which the model does not end the answer.
    pub min_tokens: u32,
    /// GBNF grammar of the answer.
    pub grammar: Option<String>,
    /// Whether the prompt may be kept for later requests.
    pub cache_prompt: Option<bool>,
    /// `timings` on every chunk.
    pub timings_per_token: bool,
    /// Progress of prompt processing in the stream.
    pub return_progress: bool,
}

/// How hard the model thinks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ReasoningEffort {
    /// Not at all.
    None,
    /// A little.
    Minimal,
    /// Less than usual.
    Low,
    /// As usual.
    Medium,
    /// More than usual.
    High,
    /// As much as it can.
    Xhigh,
}

impl ReasoningEffort {
    /// All words, in order.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Minimal,
        Self::Low,
        Self::Medium,
        Self::High,
        Self::Xhigh,
    ];

    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
        }
    }
}

/// A chat request after every check. Made by [`ValidChat::parse`] alone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidChat {
    /// `model` as sent: a model's id, a tier, or a name that means "choose for me".
    pub model: String,
    /// `tier` of the body: binding, unlike what a classifier says.
    pub tier: Option<Tier>,
    /// 1 to 2,048 messages.
    pub messages: Vec<Message>,
    /// Answer as it is made.
    pub stream: bool,
    /// How the stream ends.
    pub stream_options: StreamOptions,
    /// What text completions have too.
    pub generation: Generation,
    /// `Some(k)`: probabilities with the `k` likeliest tokens, 0 to 20.
    pub logprobs: Option<u8>,
    /// Tools the model may call, names unique; `functions` end up here too.
    pub tools: Vec<Tool>,
    /// Whether they are called.
    pub tool_choice: ToolChoice,
    /// Several calls in one answer.
    pub parallel_tool_calls: Option<bool>,
    /// The form of the answer.
    pub response_format: ResponseFormat,
    /// How hard the model thinks.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Variables of the chat template.
    pub chat_template_kwargs: Map<String, Value>,
    /// `context_overflow: "slide"`: leave out the oldest turns rather than refuse a conversation that is too long.
    pub slides: bool,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// The caller's notes; stay on the proxy.
    pub metadata: IndexMap<String, String>,
    /// Keys that were not understood.
    pub unknown: Unknown,
    kind: Kind,
    media_bytes: u64,
}

#[cfg(test)]
mod tests;
