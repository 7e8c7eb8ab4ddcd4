//! The whole of a text completion request.

use serde_json::{Map, Value};

use super::read::{Object, as_array, as_integer, as_string, invalid, kind_of, unsupported};
use super::{Generation, Invalid, N_MAX, Unknown, json, options};
use crate::tier::Tier;
use crate::wire::chat::StreamOptions;
use crate::wire::wishes::Wishes;

/// Tokens of one prompt given as ids, at most.
const PROMPT_TOKENS_MAX: usize = 131_072;
const LOGPROBS_MAX: u32 = 5;
const SUFFIX_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A text completion request as JSON, not yet checked.
#[derive(Debug)]
pub struct CompletionRequest(Map<String, Value>);

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids of the model.
    Tokens(Vec<i32>),
}

impl Prompt {
    /// The OpenAI shape.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Text(text) => text.clone().into(),
            Self::Tokens(tokens) => tokens.clone().into(),
        }
    }
}

/// A text completion request after every check. Made by [`ValidCompletion::parse`] alone.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidCompletion {
    /// `model` as sent.
    pub model: String,
    /// `tier` of the body.
    pub tier: Option<Tier>,
    /// 1 to 8 prompts; with `n`, at most 8 answers in all.
    pub prompts: Vec<Prompt>,
    /// What comes after the answer: the model fills the hole between the prompt and this.
    pub suffix: Option<String>,
    /// Answer as it is made.
    pub stream: bool,
    /// How the stream ends.
    pub stream_options: StreamOptions,
    /// What chat completions have too.
    pub generation: Generation,
    /// `Some(k)`: probabilities with the `k` likeliest tokens, 0 to 5.
    pub logprobs: Option<u8>,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// Keys that were not understood.
    pub unknown: Unknown,
}

impl CompletionRequest {
    /// Reads the JSON, within depth and size.
    pub fn read(bytes: &[u8]) -> Result<Self, Invalid> {
        json::object(bytes).map(Self)
    }

    /// Checks every field.
    pub fn check(self) -> Result<ValidCompletion, Invalid> {
        let mut body = Object::root(self.0);
        refuse(&mut body)?;
        options::ignore(&mut body);
        let model = options::model(&mut body)?;
        let prompts = prompts(&mut body)?;
        let generation = options::generation(&mut body)?;
        let answers = prompts
            .len()
            .saturating_mul(usize::try_from(generation.n).unwrap_or(usize::MAX));
        if answers > usize::try_from(N_MAX).unwrap_or(usize::MAX) {
            let message =
                format!("{answers} answers (prompts times n) are too many; at most {N_MAX}");
            return Err(invalid("n", message));
        }
        let suffix = suffix(&mut body, &prompts)?;
        let logprobs = body.unsigned("logprobs", 0..=LOGPROBS_MAX)?;
        Ok(ValidCompletion {
            model,
            tier: options::tier(&mut body)?,
            prompts,
            suffix,
            stream: body.boolean("stream")?.unwrap_or(false),
            stream_options: options::stream_options(&mut body)?,
            generation,
            logprobs: logprobs.and_then(|top| u8::try_from(top).ok()),
            wishes: Wishes::take(&mut body)?,
            user: options::end_user(&mut body, 512)?,
            unknown: body.unknown(),
        })
    }

    /// [`CompletionRequest::read`] and [`CompletionRequest::check`].
    pub fn parse(bytes: &[u8]) -> Result<ValidCompletion, Invalid> {
        Self::read(bytes)?.check()
    }
}

impl ValidCompletion {
    /// Reads and checks a body; the same as [`CompletionRequest::parse`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        CompletionRequest::parse(bytes)
    }

    /// Text completions carry no media.
    pub const fn kind(&self) -> super::Kind {
        super::Kind::Text
    }

    /// Whether the caller wants the usage chunk.
    pub const fn include_usage(&self) -> bool {
        self.stream_options.include_usage
    }

    /// Tokens to generate at most.
    pub const fn max_tokens(&self) -> Option<u32> {
        self.generation.max_tokens
    }

    /// The body for a node: honoured fields alone, never the caller's JSON.
    pub fn to_node_body(&self) -> Value {
        let mut body = Map::new();
        body.insert("model".to_owned(), self.model.clone().into());
        let prompt = match self.prompts.as_slice() {
            [one] => one.to_value(),
            many => many.iter().map(Prompt::to_value).collect(),
        };
        body.insert("prompt".to_owned(), prompt);
        if let Some(suffix) = &self.suffix {
            body.insert("suffix".to_owned(), suffix.clone().into());
        }
        options::write_stream(self.stream, &mut body);
        options::write(&self.generation, &mut body);
        if let Some(top) = self.logprobs {
            body.insert("logprobs".to_owned(), top.into());
        }
        Value::Object(body)
    }
}

fn refuse(body: &mut Object) -> Result<(), Invalid> {
    if body.boolean("echo")? == Some(true) {
        return Err(unsupported("echo", "echo is not offered; leave it out"));
    }
    if body
        .integer("best_of", 1..=i64::from(u32::MAX))?
        .is_some_and(|best_of| best_of > 1)
    {
        return Err(unsupported("best_of", "best_of is not offered; use n"));
    }
    Ok(())
}

/// A text after the hole; an empty one is none, as with OpenAI.
fn suffix(body: &mut Object, prompts: &[Prompt]) -> Result<Option<String>, Invalid> {
    let suffix = body.string("suffix", SUFFIX_BYTES_MAX)?;
    let suffix = suffix.filter(|text| !text.is_empty());
    let tokens = |prompt: &Prompt| matches!(prompt, Prompt::Tokens(_));
    if suffix.is_some() && prompts.iter().any(tokens) {
        return Err(invalid(
            "suffix",
            "a suffix needs the prompt as text, not as token ids",
        ));
    }
    Ok(suffix)
}

fn prompts(body: &mut Object) -> Result<Vec<Prompt>, Invalid> {
    match body.take("prompt") {
        None => Err(invalid("prompt", "missing; a string is required")),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) => {
            if items.first().is_some_and(Value::is_number) {
                return Ok(vec![tokens("prompt", items)?]);
            }
            let most = usize::try_from(N_MAX).unwrap_or(usize::MAX);
            let items = as_array("prompt".to_owned(), Value::Array(items), most)?;
            if items.is_empty() {
                return Err(invalid("prompt", "empty; a string is required"));
            }
            items
                .into_iter()
                .enumerate()
                .map(|(index, item)| prompt(format!("prompt[{index}]"), item))
                .collect()
        }
        Some(other) => {
            let message = format!(
                "expected a string, an array of strings or an array of token ids, got {}",
                kind_of(&other)
            );
            Err(invalid("prompt", message))
        }
    }
}

fn prompt(path: String, value: Value) -> Result<Prompt, Invalid> {
    if let Value::Array(items) = value {
        return tokens(&path, items);
    }
    as_string(path, value, usize::MAX).map(Prompt::Text)
}

fn tokens(path: &str, items: Vec<Value>) -> Result<Prompt, Invalid> {
    let items = as_array(path.to_owned(), Value::Array(items), PROMPT_TOKENS_MAX)?;
    if items.is_empty() {
        return Err(invalid(path, "empty; at least one token id is required"));
    }
    let mut ids = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let id = as_integer(format!("{path}[{index}]"), item, 0..=i64::from(i32::MAX))?;
        ids.extend(i32::try_from(id));
    }
    Ok(Prompt::Tokens(ids))
}
