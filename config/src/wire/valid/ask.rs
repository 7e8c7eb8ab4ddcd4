//! What can be asked of a model besides an answer: vectors, ranks, tokens, a rendered prompt, the middle of a text.

use serde_json::{Map, Value};

use super::read::{Object, as_array, as_integer, as_string, invalid, kind_of};
use super::{ChatRequest, Invalid, Prompt, Unknown, ValidInfill, json, options};
use crate::tier::Tier;
use crate::wire::wishes::Wishes;

/// Texts of one request, at most; OpenAI's bound.
pub const TEXTS_MAX: usize = 2_048;
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;
const TOKENS_MAX: usize = 131_072;
const DIMENSIONS_MAX: u32 = 16_384;
/// Where the body names no model: servers with one model never asked for it.
const ANY_MODEL: &str = "auto";

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AskKind {
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/rerank`
    Rerank,
    /// `POST /tokenize`
    Tokenize,
    /// `POST /detokenize`
    Detokenize,
    /// `POST /apply-template`
    ApplyTemplate,
    /// `POST /infill`
    Infill,
}

impl AskKind {
    /// The operation on a node.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::ApplyTemplate => "/apply-template",
            Self::Infill => "/infill",
        }
    }

    /// The word for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::ApplyTemplate => "apply_template",
            Self::Infill => "infill",
        }
    }

    /// The member that every answer has.
    pub const fn answer_key(self) -> &'static str {
        match self {
            Self::Embeddings => "data",
            Self::Rerank => "results",
            Self::Tokenize => "tokens",
            Self::Detokenize | Self::Infill => "content",
            Self::ApplyTemplate => "prompt",
        }
    }
}

/// A checked request of any of these kinds, ready for a node.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidAsk {
    /// What is asked.
    pub kind: AskKind,
    /// `model` as sent.
    pub model: String,
    /// `tier` of the body.
    pub tier: Option<Tier>,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// Bytes of text that a model reads.
    pub text_bytes: usize,
    /// Tokens to generate at most, where any are generated and the caller says so.
    pub max_tokens: Option<u32>,
    /// Keys that were not understood.
    pub unknown: Unknown,
    body: Value,
}

impl ValidAsk {
    /// Reads and checks a body.
    pub fn parse(kind: AskKind, bytes: &[u8]) -> Result<Self, Invalid> {
        match kind {
            AskKind::Embeddings => ValidEmbeddings::parse(bytes).map(Self::from),
            AskKind::Rerank => ValidRerank::parse(bytes).map(Self::from),
            AskKind::Tokenize | AskKind::Detokenize => words(kind, bytes),
            AskKind::ApplyTemplate => {
                let chat = ChatRequest::parse(bytes)?;
                Ok(Self {
                    kind,
                    body: chat.to_node_body(),
                    model: chat.model,
                    tier: chat.tier,
                    wishes: chat.wishes,
                    user: chat.user,
                    text_bytes: 0,
                    max_tokens: None,
                    unknown: chat.unknown,
                })
            }
            AskKind::Infill => {
                let infill = ValidInfill::parse(bytes)?;
                let texts = [&infill.prefix, &infill.suffix, &infill.prompt];
                let extra = infill.extra.iter().map(|file| file.text.len());
                Ok(Self {
                    kind,
                    text_bytes: texts.iter().map(|text| text.len()).sum::<usize>()
                        + extra.sum::<usize>(),
                    max_tokens: infill.generation.max_tokens,
                    body: infill.to_node_body(),
                    model: infill.model,
                    tier: infill.tier,
                    wishes: infill.wishes,
                    user: infill.user,
                    unknown: infill.unknown,
                })
            }
        }
    }

    /// The body for a node: checked fields alone.
    pub fn to_node_body(&self) -> Value {
        self.body.clone()
    }
}

/// A request for vectors after every check.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidEmbeddings {
    /// `model` as sent.
    pub model: String,
    /// `tier` of the body.
    pub tier: Option<Tier>,
    /// 1 to 2,048 texts.
    pub inputs: Vec<Prompt>,
    /// Vectors as base64 of little-endian 32-bit floats instead of as numbers.
    pub base64: bool,
    /// The first so many numbers of each vector, brought to length 1 again.
    pub dimensions: Option<u32>,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// Keys that were not understood.
    pub unknown: Unknown,
}

impl ValidEmbeddings {
    /// Reads and checks a body.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut body = Object::root(json::object(bytes)?);
        let inputs = inputs(&mut body)?;
        let formats = [("float", false), ("base64", true)];
        let base64 = match body.string("encoding_format", 64)? {
            None => false,
            Some(text) => super::read::word("encoding_format".to_owned(), &text, &formats)?,
        };
        Ok(Self {
            model: model(&mut body)?,
            tier: options::tier(&mut body)?,
            inputs,
            base64,
            dimensions: body.unsigned("dimensions", 1..=DIMENSIONS_MAX)?,
            wishes: Wishes::take(&mut body)?,
            user: options::end_user(&mut body, 512)?,
            unknown: body.unknown(),
        })
    }
}

impl From<ValidEmbeddings> for ValidAsk {
    fn from(asked: ValidEmbeddings) -> Self {
        let bytes = asked.inputs.iter().map(|input| match input {
            Prompt::Text(text) => text.len(),
            // Four bytes count as one token.
            Prompt::Tokens(tokens) => tokens.len() * 4,
        });
        let mut body = Map::new();
        let text_bytes = bytes.sum();
        let inputs: Value = asked.inputs.iter().map(Prompt::to_value).collect();
        body.insert("model".to_owned(), asked.model.clone().into());
        body.insert("input".to_owned(), inputs);
        if asked.base64 {
            body.insert("encoding_format".to_owned(), "base64".into());
        }
        if let Some(dimensions) = asked.dimensions {
            body.insert("dimensions".to_owned(), dimensions.into());
        }
        Self {
            kind: AskKind::Embeddings,
            model: asked.model,
            tier: asked.tier,
            wishes: asked.wishes,
            user: asked.user,
            text_bytes,
            max_tokens: None,
            unknown: asked.unknown,
            body: Value::Object(body),
        }
    }
}

/// A request to rank documents after every check.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ValidRerank {
    /// `model` as sent.
    pub model: String,
    /// `tier` of the body.
    pub tier: Option<Tier>,
    /// What the documents are held against.
    pub query: String,
    /// 1 to 2,048 documents.
    pub documents: Vec<String>,
    /// Only the best so many.
    pub top_n: Option<u32>,
    /// Say the documents again in the answer.
    pub return_documents: bool,
    /// What it wishes for in its `hearth` member; stays on the proxy.
    pub wishes: Wishes,
    /// Whom the caller serves; stays on the proxy.
    pub user: Option<String>,
    /// Keys that were not understood.
    pub unknown: Unknown,
}

impl ValidRerank {
    /// Reads and checks a body in the form that Jina and Cohere share.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut body = Object::root(json::object(bytes)?);
        let query = body.required_string("query", TEXT_BYTES_MAX)?;
        // `texts` is what text-embeddings-inference calls them.
        let key = if body.has("documents") {
            "documents"
        } else {
            "texts"
        };
        let documents = body
            .array(key, TEXTS_MAX)?
            .ok_or_else(|| invalid("documents", "missing; an array of strings is required"))?;
        if documents.is_empty() {
            return Err(invalid(key, "empty; at least one document is required"));
        }
        let documents = documents.into_iter().enumerate().map(|(index, item)| {
            let path = format!("{key}[{index}]");
            match item {
                Value::Object(map) => {
                    let mut object = Object::root(map);
                    object
                        .string("text", TEXT_BYTES_MAX)?
                        .ok_or_else(|| invalid(path, "expected a string, or an object with text"))
                }
                text @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)) => as_string(path, text, TEXT_BYTES_MAX),
            }
        });
        let documents: Vec<String> = documents.collect::<Result<_, _>>()?;
        Ok(Self {
            model: model(&mut body)?,
            tier: options::tier(&mut body)?,
            query,
            documents,
            top_n: body.unsigned("top_n", 1..=u32::MAX)?,
            return_documents: body.boolean("return_documents")?.unwrap_or(false),
            wishes: Wishes::take(&mut body)?,
            user: options::end_user(&mut body, 512)?,
            unknown: body.unknown(),
        })
    }
}

impl From<ValidRerank> for ValidAsk {
    fn from(asked: ValidRerank) -> Self {
        let documents: usize = asked.documents.iter().map(String::len).sum();
        // The question is read with each document.
        let text_bytes = documents + asked.query.len() * asked.documents.len();
        let mut body = Map::new();
        body.insert("model".to_owned(), asked.model.clone().into());
        body.insert("query".to_owned(), asked.query.into());
        body.insert("documents".to_owned(), asked.documents.into());
        if let Some(top) = asked.top_n {
            body.insert("top_n".to_owned(), top.into());
        }
        if asked.return_documents {
            body.insert("return_documents".to_owned(), true.into());
        }
        Self {
            kind: AskKind::Rerank,
            model: asked.model,
            tier: asked.tier,
            wishes: asked.wishes,
            user: asked.user,
            text_bytes,
            max_tokens: None,
            unknown: asked.unknown,
            body: Value::Object(body),
        }
    }
}

/// `/tokenize` and `/detokenize`.
fn words(kind: AskKind, bytes: &[u8]) -> Result<ValidAsk, Invalid> {
    let mut asked = Object::root(json::object(bytes)?);
    let mut body = Map::new();
    if kind == AskKind::Tokenize {
        let content = asked.required_string("content", TEXT_BYTES_MAX)?;
        body.insert("content".to_owned(), content.into());
        for key in ["add_special", "parse_special", "with_pieces"] {
            if let Some(value) = asked.boolean(key)? {
                body.insert(key.to_owned(), value.into());
            }
        }
    } else {
        let items = asked.array("tokens", TOKENS_MAX)?;
        let items = items.ok_or_else(|| invalid("tokens", "missing; an array is required"))?;
        body.insert("tokens".to_owned(), ids("tokens", items)?.into());
    }
    Ok(ValidAsk {
        kind,
        model: model(&mut asked)?,
        tier: options::tier(&mut asked)?,
        wishes: Wishes::take(&mut asked)?,
        user: options::end_user(&mut asked, 512)?,
        text_bytes: 0,
        max_tokens: None,
        unknown: asked.unknown(),
        body: Value::Object(body),
    })
}

pub(super) fn model(body: &mut Object) -> Result<String, Invalid> {
    if body.has("model") {
        options::model(body)
    } else {
        Ok(ANY_MODEL.to_owned())
    }
}

fn inputs(body: &mut Object) -> Result<Vec<Prompt>, Invalid> {
    // `content` is what llama-server calls it.
    let key = if body.has("input") {
        "input"
    } else {
        "content"
    };
    match body.take(key) {
        None => Err(invalid(
            "input",
            "missing; a string or an array of strings is required",
        )),
        Some(Value::String(text)) => Ok(vec![input(key.to_owned(), Value::String(text))?]),
        Some(Value::Array(items)) => {
            if items.first().is_some_and(Value::is_number) {
                return Ok(vec![input(key.to_owned(), Value::Array(items))?]);
            }
            let items = as_array(key.to_owned(), Value::Array(items), TEXTS_MAX)?;
            if items.is_empty() {
                return Err(invalid(key, "empty; at least one text is required"));
            }
            let read = items.into_iter().enumerate();
            read.map(|(index, item)| input(format!("{key}[{index}]"), item))
                .collect()
        }
        Some(other) => {
            let message = format!(
                "expected a string, an array of strings or an array of token ids, got {}",
                kind_of(&other)
            );
            Err(invalid(key, message))
        }
    }
}

fn input(path: String, value: Value) -> Result<Prompt, Invalid> {
    if let Value::Array(items) = value {
        let tokens = ids(&path, items)?;
        if tokens.is_empty() {
            return Err(invalid(path, "empty; at least one token id is required"));
        }
        return Ok(Prompt::Tokens(tokens));
    }
    let text = as_string(path.clone(), value, TEXT_BYTES_MAX)?;
    if text.is_empty() {
        return Err(invalid(path, "empty; a text has at least one character"));
    }
    Ok(Prompt::Text(text))
}

fn ids(path: &str, items: Vec<Value>) -> Result<Vec<i32>, Invalid> {
    let items = as_array(path.to_owned(), Value::Array(items), TOKENS_MAX)?;
    let mut ids = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let id = as_integer(format!("{path}[{index}]"), item, 0..=i64::from(i32::MAX))?;
        ids.extend(i32::try_from(id));
    }
    Ok(ids)
}
