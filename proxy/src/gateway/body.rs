//! From bytes to a checked request: bounded, timed, JSON alone. Charges nothing and decides nothing about who may ask.

use bytes::Bytes;
use config::tier::Tier;
use config::wire::chat::{Content, Message, Part, ResponseFormat};
use config::wire::valid::{AskKind, Invalid, Prompt, ValidAsk, ValidChat, ValidCompletion};
use config::wire::wishes::Wishes;
use http::{HeaderMap, header};
use policy::classify::{Features, Thresholds, Verdict, classify};
use policy::limit;
use policy::refusal::Refusal;
use policy::route::{Craft, Needs};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::dispatch::Form;
use super::exchange::{Exchange, Stop};
use super::operation::Surface;
use memory::Memory;

mod memory;

/// Bodies above the text limit that may be in memory at once: each is up to `server.media_body_max`.
const LARGE_BODIES_MAX: usize = 16;
/// Whole bodies of text that may be in memory at once; far more small ones fit.
const TEXT_BODIES_MAX: u64 = 64;

/// Reads bodies.
#[derive(Debug)]
pub struct Reader {
    text_max: u64,
    media_max: u64,
    large: Semaphore,
    text: Memory,
}

impl Reader {
    /// A reader that takes so many bytes of text, and so many with media.
    pub fn new(text_max: u64, media_max: u64) -> Self {
        Self {
            text_max,
            media_max: media_max.max(text_max),
            large: Semaphore::new(LARGE_BODIES_MAX),
            text: Memory::new(text_max.saturating_mul(TEXT_BODIES_MAX)),
        }
    }

    /// Reads and checks an inference request.
    pub async fn inference(
        &self,
        exchange: &mut Exchange<'_>,
        headers: &HeaderMap,
        surface: Surface,
    ) -> Result<Inference, Stop> {
        check_media_type(headers)?;
        let limit = match surface {
            Surface::Chat => self.media_max,
            Surface::Completion | Surface::Other(_) => self.text_max,
        };
        let announced = content_length(headers);
        if announced.is_some_and(|bytes| bytes > limit) {
            return Err(Refusal::BodyTooLarge { limit }.into());
        }
        let mut bytes = Vec::with_capacity(
            usize::try_from(announced.unwrap_or(0).min(self.text_max)).unwrap_or(0),
        );
        let mut place = None;
        let mut held = self.text.hold();
        while let Some(piece) = exchange.body().await? {
            let size = (bytes.len() + piece.len()) as u64;
            if size > limit {
                return Err(Refusal::BodyTooLarge { limit }.into());
            }
            if size > self.text_max && place.is_none() {
                let free = self.large.try_acquire();
                place = Some(free.map_err(|_| Refusal::QueueFull { retry_after: RETRY })?);
            }
            if !held.grow_to(size.min(self.text_max)) {
                return Err(Refusal::QueueFull { retry_after: RETRY }.into());
            }
            bytes.extend_from_slice(&piece);
        }
        let request = Inference::parse(surface, &bytes).map_err(Refusal::from)?;
        if bytes.len() as u64 > self.text_max && request.kind() == limit::Kind::Text {
            return Err(Refusal::BodyTooLarge {
                limit: self.text_max,
            }
            .into());
        }
        Ok(request)
    }

    /// Reads a small JSON body.
    pub async fn small(
        exchange: &mut Exchange<'_>,
        headers: &HeaderMap,
        max: u64,
    ) -> Result<Bytes, Stop> {
        check_media_type(headers)?;
        let mut bytes = Vec::new();
        while let Some(piece) = exchange.body().await? {
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(Refusal::BodyTooLarge { limit: max }.into());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }
}

/// When too many large bodies are in memory.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// `application/json`, with or without parameters: a page of another site cannot send that without asking first.
fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::UnsupportedMediaType)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// A checked request, of any surface.
#[derive(Debug)]
pub enum Inference {
    /// `/v1/chat/completions`
    Chat(Box<ValidChat>),
    /// `/v1/completions`
    Completion(Box<ValidCompletion>),
    /// Vectors and the like.
    Other(Box<ValidAsk>),
}

impl Inference {
    /// Reads and checks a body.
    fn parse(surface: Surface, bytes: &[u8]) -> Result<Self, Invalid> {
        match surface {
            Surface::Chat => ValidChat::parse(bytes).map(|chat| Self::Chat(Box::new(chat))),
            Surface::Completion => ValidCompletion::parse(bytes)
                .map(|completion| Self::Completion(Box::new(completion))),
            Surface::Other(kind) => {
                ValidAsk::parse(kind, bytes).map(|ask| Self::Other(Box::new(ask)))
            }
        }
    }

    /// The end user whom a trusted front end names.
    pub fn end_user(&self) -> Option<&str> {
        match self {
            Self::Chat(chat) => chat.user.as_deref(),
            Self::Completion(completion) => completion.user.as_deref(),
            Self::Other(ask) => ask.user.as_deref(),
        }
    }

    /// What it wishes for besides its answer, as its body says.
    pub const fn wishes(&self) -> Wishes {
        match self {
            Self::Chat(chat) => chat.wishes,
            Self::Completion(completion) => completion.wishes,
            Self::Other(ask) => ask.wishes,
        }
    }

    /// What it costs from.
    pub fn kind(&self) -> limit::Kind {
        match self {
            Self::Chat(chat) => chat.kind().into(),
            Self::Completion(completion) => completion.kind().into(),
            Self::Other(_) => limit::Kind::Text,
        }
    }

    /// What a model must take besides text.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Chat(chat) => Needs::of(chat),
            Self::Completion(_) => Needs::default(),
            Self::Other(ask) => Needs {
                craft: match ask.kind {
                    AskKind::Embeddings => Craft::Embedding,
                    AskKind::Rerank => Craft::Rerank,
                    AskKind::Infill | AskKind::ApplyTemplate => Craft::Text,
                    AskKind::Tokenize | AskKind::Detokenize => Craft::Any,
                },
                native: match ask.kind {
                    AskKind::Embeddings | AskKind::Rerank => false,
                    AskKind::Infill
                    | AskKind::ApplyTemplate
                    | AskKind::Tokenize
                    | AskKind::Detokenize => true,
                },
                ..Needs::default()
            },
        }
    }

    /// `model` and `tier` as sent.
    pub fn asked(&self) -> (Option<&str>, Option<Tier>) {
        match self {
            Self::Chat(chat) => (Some(chat.model.as_str()), chat.tier),
            Self::Completion(completion) => (Some(completion.model.as_str()), completion.tier),
            Self::Other(ask) => (Some(ask.model.as_str()), ask.tier),
        }
    }

    /// Answer as it is made.
    pub const fn stream(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.stream,
            Self::Completion(completion) => completion.stream,
            Self::Other(_) => false,
        }
    }

    /// The client wants the usage chunk.
    pub const fn wants_usage(&self) -> bool {
        match self {
            Self::Chat(chat) => chat.include_usage(),
            Self::Completion(completion) => completion.include_usage(),
            Self::Other(_) => false,
        }
    }

    /// How many top-level keys were not understood.
    pub const fn unknown(&self) -> usize {
        match self {
            Self::Chat(chat) => chat.unknown.count,
            Self::Completion(completion) => completion.unknown.count,
            Self::Other(ask) => ask.unknown.count,
        }
    }

    /// The operation on the node.
    pub const fn node_path(&self) -> &'static str {
        match self {
            Self::Chat(_) => "/v1/chat/completions",
            Self::Completion(_) => "/v1/completions",
            Self::Other(ask) => ask.kind.path(),
        }
    }

    /// The member that every whole answer of a node has.
    pub fn answer_key(&self) -> &'static str {
        match self {
            Self::Chat(_) | Self::Completion(_) => "choices",
            Self::Other(ask) => ask.kind.answer_key(),
        }
    }

    /// Whether another model can answer in place of the one that was named: never where numbers of one model mean nothing beside
    /// those of another.
    pub fn may_change_model(&self) -> bool {
        match self {
            Self::Chat(_) | Self::Completion(_) => true,
            Self::Other(ask) => ask.model == "auto" && ask.tier.is_none(),
        }
    }

    /// A fresh `id` for the answer.
    pub fn new_answer_id(&self) -> String {
        let prefix = match self {
            Self::Chat(_) => "chatcmpl",
            Self::Completion(_) => "cmpl",
            Self::Other(ask) => ask.kind.label(),
        };
        format!("{prefix}-{:032x}", rand::random::<u128>())
    }

    /// The body for a node.
    pub fn node_body(&self) -> Value {
        match self {
            Self::Chat(chat) => chat.to_node_body(),
            Self::Completion(completion) => completion.to_node_body(),
            Self::Other(ask) => ask.to_node_body(),
        }
    }

    /// Bytes of text in the prompt, to estimate tokens that no node counted.
    pub fn prompt_bytes(&self) -> u64 {
        let bytes: usize = match self {
            Self::Chat(chat) => chat.messages.iter().map(message_bytes).sum(),
            Self::Completion(completion) => {
                let suffix = completion.suffix.as_ref().map_or(0, String::len);
                completion.prompts.iter().map(prompt_bytes).sum::<usize>() + suffix
            }
            Self::Other(ask) => ask.text_bytes,
        };
        bytes as u64
    }

    /// The pictures and sound in it.
    pub fn media(&self) -> Carried {
        let mut carried = Carried::default();
        let Self::Chat(chat) = self else {
            return carried;
        };
        for message in &chat.messages {
            carried.messages += 1;
            let Some(Content::Parts(parts)) = &message.content else {
                continue;
            };
            for encoded in parts.iter().filter_map(encoded) {
                carried.items += 1;
                carried.encoded_bytes += encoded.len() as u64;
                carried.bytes += encoded.len() as u64 / 4 * 3;
            }
        }
        carried
    }

    /// Whether a model reads a prompt for it, which costs tokens.
    pub const fn reads_prompt(&self) -> bool {
        match self {
            Self::Chat(_) | Self::Completion(_) => true,
            Self::Other(ask) => match ask.kind {
                AskKind::Embeddings | AskKind::Rerank | AskKind::Infill => true,
                AskKind::Tokenize | AskKind::Detokenize | AskKind::ApplyTemplate => false,
            },
        }
    }

    /// Whether a node can count its prompt beforehand.
    pub const fn has_tokenizer(&self) -> bool {
        matches!(self, Self::Chat(_) | Self::Completion(_))
    }

    /// Whether tokens are generated; and how many at most, if the caller says so.
    pub const fn generates(&self) -> Option<Option<u32>> {
        match self {
            Self::Chat(chat) => Some(chat.max_tokens()),
            Self::Completion(completion) => Some(completion.max_tokens()),
            Self::Other(ask) => match ask.kind {
                AskKind::Infill => Some(ask.max_tokens),
                AskKind::Embeddings
                | AskKind::Rerank
                | AskKind::Tokenize
                | AskKind::Detokenize
                | AskKind::ApplyTemplate => None,
            },
        }
    }

    /// How many answers are wanted, of all prompts.
    pub fn choices(&self) -> u32 {
        match self {
            Self::Chat(chat) => chat.generation.n,
            Self::Completion(completion) => {
                let prompts = u32::try_from(completion.prompts.len()).unwrap_or(u32::MAX);
                completion.generation.n.saturating_mul(prompts)
            }
            Self::Other(_) => 1,
        }
    }

    /// In what form a node is asked for the answer. One answer of tokens is asked for as a stream even if the client wants it whole:
    /// another node can go on with that.
    pub fn form(&self) -> Form {
        match self {
            Self::Chat(_) | Self::Completion(_) if self.stream() => Form::Stream,
            Self::Chat(_) | Self::Completion(_) if self.choices() == 1 => Form::Gathered,
            Self::Chat(_) | Self::Completion(_) | Self::Other(_) => Form::Whole,
        }
    }

    /// Whether another node can go on with the answer: there is one, of tokens.
    pub fn is_resumable(&self) -> bool {
        self.form() != Form::Whole && self.choices() == 1
    }

    /// Whether another model can go on with the answer from its text: one answer in words, whose form is free.
    pub fn is_plain_text(&self) -> bool {
        match self {
            Self::Chat(chat) => {
                chat.generation.n == 1
                    && chat.generation.grammar.is_none()
                    && chat.logprobs.is_none()
                    && chat.response_format == ResponseFormat::Text
            }
            Self::Completion(_) | Self::Other(_) => false,
        }
    }

    /// What the classifier thinks of it.
    pub fn verdict(&self, thresholds: Thresholds) -> Verdict {
        let features = match self {
            Self::Chat(chat) => Features::of(chat),
            Self::Completion(completion) => Features::of_completion(completion),
            // What it costs does not depend on what it says.
            Self::Other(_) => Features::default(),
        };
        classify(&features, thresholds)
    }
}

/// What a request carries besides text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Carried {
    /// Messages of the conversation.
    pub messages: u64,
    /// Pictures and pieces of sound.
    pub items: u64,
    /// Their bytes, decoded.
    pub bytes: u64,
    /// Their bytes as they were sent.
    pub encoded_bytes: u64,
}

fn encoded(part: &Part) -> Option<&str> {
    match part {
        Part::Text { .. } => None,
        Part::ImageUrl { image_url } => {
            let data = image_url.url.split_once(',');
            Some(data.map_or(image_url.url.as_str(), |(_kind, data)| data))
        }
        Part::InputAudio { input_audio } => Some(&input_audio.data),
    }
}

fn message_bytes(message: &Message) -> usize {
    match &message.content {
        None => 0,
        Some(Content::Text(text)) => text.len(),
        Some(Content::Parts(parts)) => parts.iter().filter_map(Part::text).map(str::len).sum(),
    }
}

fn prompt_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Text(text) => text.len(),
        // Four bytes count as one token.
        Prompt::Tokens(tokens) => tokens.len() * 4,
    }
}
