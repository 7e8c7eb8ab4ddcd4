//! The chat completions surface as data: messages and tools as they travel in requests, and, re-exported, answers and chunks.
//! What a request may contain is checked in [`valid`](super::valid).

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::valid::ChatRequest;

mod answer;

pub(crate) use answer::present;
pub use answer::{
    CHAT_OBJECT, CHUNK_OBJECT, ChatChunk, ChatResponse, Choice, ChunkChoice,
    CompletionTokensDetails, Delta, FinishReason, FunctionDelta, Logprobs, PromptTokensDetails,
    ResponseMessage, Timings, TokenLogprob, ToolCallDelta, TopLogprob, Usage,
};

/// Who speaks. `developer` is read as [`Role::System`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The word in JSON and in chat templates.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a conversation. Serialises to the OpenAI shape, which chat templates read too.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` only for an assistant that called tools.
    pub content: Option<Content>,
    /// The speaker's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// What the assistant thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    /// All text of the message, parts joined by line breaks.
    pub fn text(&self) -> String {
        match &self.content {
            None => String::new(),
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                let texts: Vec<&str> = parts.iter().filter_map(Part::text).collect();
                texts.join("\n")
            }
        }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Text and media, in order.
    Parts(Vec<Part>),
}

/// One part of a message.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture within the request.
    ImageUrl {
        /// The picture.
        image_url: ImageUrl,
    },
    /// Sound within the request.
    InputAudio {
        /// The sound.
        input_audio: InputAudio,
    },
}

impl Part {
    /// The text of a text part.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(text),
            Self::ImageUrl { .. } | Self::InputAudio { .. } => None,
        }
    }

    /// Whether it is a picture or sound.
    pub const fn is_media(&self) -> bool {
        match self {
            Self::Text { .. } => false,
            Self::ImageUrl { .. } | Self::InputAudio { .. } => true,
        }
    }
}

/// A picture as a `data:` URL; remote addresses never get this far.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ImageUrl {
    /// `data:image/...;base64,...`
    pub url: String,
    /// `auto`, `low` or `high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Sound as base64.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct InputAudio {
    /// Base64 of the file.
    pub data: String,
    /// `wav`, `mp3`, `flac` or `ogg`.
    pub format: String,
}

/// A call of a tool.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ToolCall {
    /// `call_...`
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default)]
    pub kind: ToolKind,
    /// The function called.
    pub function: FunctionCall,
}

/// The function called.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// JSON text, as the model wrote it.
    pub arguments: String,
}

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// The function.
    pub function: Function,
}

/// The only kind of tool.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// A function described by a JSON schema.
    #[default]
    Function,
}

/// A function the model may call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments: an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// The arguments must follow the schema exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether tools are called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ToolChoice {
    /// No calls.
    None,
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
    /// This function.
    Function(String),
}

impl ToolChoice {
    /// The OpenAI shape.
    pub fn to_value(&self) -> Value {
        match self {
            Self::None => "none".into(),
            Self::Auto => "auto".into(),
            Self::Required => "required".into(),
            Self::Function(name) => {
                serde_json::json!({"type": "function", "function": {"name": name}})
            }
        }
    }
}

/// The form of the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// A JSON object; llama-server lets it carry a schema.
    JsonObject {
        /// What the object must look like.
        schema: Option<Value>,
    },
    /// JSON that follows a schema.
    JsonSchema {
        /// The schema's name.
        name: String,
        /// The schema: an object, or `true`.
        schema: Value,
        /// The answer must follow the schema exactly.
        strict: bool,
    },
}

impl ResponseFormat {
    /// The OpenAI shape.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Text => serde_json::json!({"type": "text"}),
            Self::JsonObject { schema: None } => serde_json::json!({"type": "json_object"}),
            Self::JsonObject {
                schema: Some(schema),
            } => serde_json::json!({"type": "json_object", "schema": schema}),
            Self::JsonSchema {
                name,
                schema,
                strict,
            } => serde_json::json!({
                "type": "json_schema",
                "json_schema": {"name": name, "schema": schema, "strict": strict},
            }),
        }
    }

    /// The schema that the answer must follow, if one was given.
    pub const fn schema(&self) -> Option<&Value> {
        match self {
            Self::Text => None,
            Self::JsonObject { schema } => schema.as_ref(),
            Self::JsonSchema { schema, .. } => Some(schema),
        }
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StreamOptions {
    /// One more chunk with `usage` before `[DONE]`.
    pub include_usage: bool,
}
