//! The whole of a chat request: every field once, then the body that a node gets.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::read::{Object, as_string, invalid, quote, unsupported, word};
use super::{
    ChatRequest, Invalid, Kind, ReasoningEffort, SCHEMA_BYTES_MAX, TOP_LOGPROBS_MAX, ValidChat,
    json, message, options, tools,
};
use crate::wire::chat::{ResponseFormat, ToolChoice};
use crate::wire::wishes::Wishes;

const METADATA_MAX: usize = 16;
const METADATA_BYTES_MAX: usize = 512;
const USER_BYTES_MAX: usize = 512;
const TEMPLATE_KWARGS_BYTES_MAX: usize = 16 * 1024;
const REFUSED: [(&str, &str); 3] = [
    ("audio", "spoken answers are not offered; leave it out"),
    (
        "web_search_options",
        "Hearth does not search the web; leave it out",
    ),
    ("moderation", "Hearth does not moderate; leave it out"),
];

impl ChatRequest {
    /// Reads the JSON, within depth and size.
    pub fn read(bytes: &[u8]) -> Result<Self, Invalid> {
        json::object(bytes).map(Self)
    }

    /// Checks every field.
    pub fn check(self) -> Result<ValidChat, Invalid> {
        let mut body = Object::root(self.0);
        refuse(&mut body)?;
        let model = options::model(&mut body)?;
        let conversation = message::conversation(&mut body)?;
        let toolbox = tools::toolbox(&mut body)?;
        options::ignore(&mut body);
        Ok(ValidChat {
            model,
            tier: options::tier(&mut body)?,
            messages: conversation.messages,
            stream: body.boolean("stream")?.unwrap_or(false),
            stream_options: options::stream_options(&mut body)?,
            generation: options::generation(&mut body)?,
            logprobs: logprobs(&mut body)?,
            tools: toolbox.tools,
            tool_choice: toolbox.choice,
            parallel_tool_calls: body.boolean("parallel_tool_calls")?,
            response_format: response_format(&mut body)?,
            reasoning_effort: reasoning_effort(&mut body)?,
            chat_template_kwargs: template_kwargs(&mut body)?,
            slides: slides(&mut body)?,
            wishes: Wishes::take(&mut body)?,
            user: options::end_user(&mut body, USER_BYTES_MAX)?,
            metadata: metadata(&mut body)?,
            kind: if conversation.media == 0 {
                Kind::Text
            } else {
                Kind::Media
            },
            media_bytes: conversation.media_bytes,
            unknown: body.unknown(),
        })
    }

    /// [`ChatRequest::read`] and [`ChatRequest::check`].
    pub fn parse(bytes: &[u8]) -> Result<ValidChat, Invalid> {
        Self::read(bytes)?.check()
    }
}

impl ValidChat {
    /// Reads and checks a body; the same as [`ChatRequest::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        ChatRequest::parse(bytes)
    }

    /// Text alone, or media as well.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Bytes of all media once decoded.
    pub const fn media_bytes(&self) -> u64 {
        self.media_bytes
    }

    /// Whether the caller wants the usage chunk.
    pub const fn include_usage(&self) -> bool {
        self.stream_options.include_usage
    }

    /// Tokens to generate at most.
    pub const fn max_tokens(&self) -> Option<u32> {
        self.generation.max_tokens
    }

    /// The body for a node: honoured fields alone, never the caller's JSON. `user`, `metadata` and `tier` stay behind.
    pub fn to_node_body(&self) -> Value {
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        // Messages are strings, arrays and objects with string keys: they always have a JSON form.
        let messages = serde_json::to_value(&self.messages).unwrap_or_default();
        body.insert("messages".to_owned(), messages);
        options::write_stream(self.stream, &mut body);
        options::write(&self.generation, &mut body);
        if let Some(top) = self.logprobs {
            body.insert("logprobs".to_owned(), true.into());
            body.insert("top_logprobs".to_owned(), top.into());
        }
        if !self.tools.is_empty() {
            let tools = serde_json::to_value(&self.tools).unwrap_or_default();
            body.insert("tools".to_owned(), tools);
        }
        if self.tool_choice != ToolChoice::Auto {
            body.insert("tool_choice".to_owned(), self.tool_choice.to_value());
        }
        if let Some(parallel) = self.parallel_tool_calls {
            body.insert("parallel_tool_calls".to_owned(), parallel.into());
        }
        if self.response_format != ResponseFormat::Text {
            body.insert(
                "response_format".to_owned(),
                self.response_format.to_value(),
            );
        }
        if let Some(effort) = self.reasoning_effort {
            body.insert("reasoning_effort".to_owned(), effort.as_str().into());
        }
        if !self.chat_template_kwargs.is_empty() {
            let variables = Value::Object(self.chat_template_kwargs.clone());
            body.insert("chat_template_kwargs".to_owned(), variables);
        }
        if self.slides {
            body.insert("context_overflow".to_owned(), "slide".into());
        }
        Value::Object(body)
    }
}

fn refuse(body: &mut Object) -> Result<(), Invalid> {
    for (key, message) in REFUSED {
        if body.take(key).is_some() {
            return Err(unsupported(key, message));
        }
    }
    // Text is what is offered; asking for it is no fault.
    match body.take("modalities") {
        None => Ok(()),
        Some(value) if value == json!(["text"]) => Ok(()),
        Some(_) => Err(unsupported(
            "modalities",
            "only [\"text\"] is offered; leave it out",
        )),
    }
}

fn logprobs(body: &mut Object) -> Result<Option<u8>, Invalid> {
    let wanted = body.boolean("logprobs")?.unwrap_or(false);
    let top = body.unsigned("top_logprobs", 0..=u32::from(TOP_LOGPROBS_MAX))?;
    match (wanted, top) {
        (true, top) => Ok(Some(
            u8::try_from(top.unwrap_or(0)).unwrap_or(TOP_LOGPROBS_MAX),
        )),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(invalid(
            "top_logprobs",
            "top_logprobs needs logprobs: true next to it",
        )),
    }
}

fn response_format(body: &mut Object) -> Result<ResponseFormat, Invalid> {
    let Some(mut format) = body.object("response_format")? else {
        return Ok(ResponseFormat::Text);
    };
    let kind = format.required_string("type", 64)?;
    match kind.as_str() {
        "text" => Ok(ResponseFormat::Text),
        "json_object" => Ok(ResponseFormat::JsonObject {
            schema: schema(&mut format)?,
        }),
        "json_schema" => json_schema(format),
        other => {
            let message = format!(
                "{} is not one of text, json_object, json_schema",
                quote(other)
            );
            Err(invalid(format.at("type"), message))
        }
    }
}

fn json_schema(mut format: Object) -> Result<ResponseFormat, Invalid> {
    let Some(mut inner) = format.object("json_schema")? else {
        return Err(invalid(
            format.at("json_schema"),
            "missing; an object with name and schema is required",
        ));
    };
    let name = inner
        .string("name", 64)?
        .unwrap_or_else(|| "response".to_owned());
    let Some(schema) = schema(&mut inner)? else {
        return Err(invalid(
            inner.at("schema"),
            "missing; a JSON schema is required",
        ));
    };
    Ok(ResponseFormat::JsonSchema {
        name,
        schema,
        strict: inner.boolean("strict")?.unwrap_or(false),
    })
}

fn schema(object: &mut Object) -> Result<Option<Value>, Invalid> {
    let path = object.at("schema");
    let Some(schema) = object.object("schema")? else {
        return Ok(None);
    };
    let schema = Value::Object(schema.into_map());
    let size = schema.to_string().len();
    if size > SCHEMA_BYTES_MAX {
        let message = format!("{size} bytes of JSON are too many; at most {SCHEMA_BYTES_MAX}");
        return Err(invalid(path, message));
    }
    Ok(Some(schema))
}

fn reasoning_effort(body: &mut Object) -> Result<Option<ReasoningEffort>, Invalid> {
    let Some(text) = body.string("reasoning_effort", 64)? else {
        return Ok(None);
    };
    let words = ReasoningEffort::ALL.map(|effort| (effort.as_str(), effort));
    word("reasoning_effort".to_owned(), &text, &words).map(Some)
}

/// What happens to a conversation that is longer than the model's context.
fn slides(body: &mut Object) -> Result<bool, Invalid> {
    let Some(text) = body.string("context_overflow", 64)? else {
        return Ok(false);
    };
    let words = [("error", false), ("slide", true)];
    word("context_overflow".to_owned(), &text, &words)
}

fn template_kwargs(body: &mut Object) -> Result<Map<String, Value>, Invalid> {
    let Some(variables) = body.object("chat_template_kwargs")? else {
        return Ok(Map::new());
    };
    let map = variables.into_map();
    let size = serde_json::to_vec(&map).map_or(usize::MAX, |json| json.len());
    if size > TEMPLATE_KWARGS_BYTES_MAX {
        let message =
            format!("{size} bytes of JSON are too many; at most {TEMPLATE_KWARGS_BYTES_MAX}");
        return Err(invalid("chat_template_kwargs", message));
    }
    Ok(map)
}

fn metadata(body: &mut Object) -> Result<IndexMap<String, String>, Invalid> {
    let Some(entries) = body.object("metadata")? else {
        return Ok(IndexMap::new());
    };
    let map = entries.into_map();
    if map.len() > METADATA_MAX {
        let message = format!("{} entries are too many; at most {METADATA_MAX}", map.len());
        return Err(invalid("metadata", message));
    }
    let mut metadata = IndexMap::with_capacity(map.len());
    for (key, value) in map {
        if key.len() > METADATA_BYTES_MAX {
            return Err(invalid("metadata", "a key is longer than 512 bytes"));
        }
        let path = format!("metadata.{key}");
        let value = as_string(path, value, METADATA_BYTES_MAX)?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}
