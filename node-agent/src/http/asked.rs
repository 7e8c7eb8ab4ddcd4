//! The two surfaces behind one face: a checked request, what it is planned as, and where its events go.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use config::settings::node::SamplingDefaults;
use config::wire::chat::{Content, Message, Role};
use config::wire::node::{CONTINUE, RESUME};
use config::wire::valid::{ChatRequest, CompletionRequest, ValidChat, ValidCompletion};
use engine::{Event, Prompt, Refusal, Resume};
use http::Response;
use serde::Deserialize;

use super::call::Call;
use super::remote::Forward;
use super::slide::Fitting;
use super::stream::Writer;
use super::{Body, json_response};
use crate::answer::Envelope;
use crate::answer::chat_stream::ChatStream;
use crate::answer::chat_whole::ChatWhole;
use crate::answer::text::TextAnswer;
use crate::chat::{self, Plan, Setting};
use crate::media;
use crate::reply::Refused;
use crate::tiers::{Ready, TierRoom};

/// Parsing and rendering this much takes well below a millisecond.
const INLINE_BYTES_MAX: usize = 32 * 1024;
/// Which of the two surfaces.
#[derive(Clone, Copy, Debug)]
pub(super) enum Surface {
    Chat,
    Text,
}

impl Surface {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Text => "text_completion",
        }
    }
}

/// A request with all that planning it needs.
pub(super) struct Task {
    pub(super) asked: Arc<Asked>,
    pub(super) call: Call,
    pub(super) room: Arc<TierRoom>,
    pub(super) ready: Arc<Ready>,
    /// How long its model was loaded for it.
    pub(super) loaded: Option<Duration>,
}

impl Task {
    /// Plans, and says where the events go. A long conversation takes its time, so it gets a thread of its own; other streams must
    /// not wait for it.
    pub(super) async fn prepare(self) -> Result<(Plan, Output), Refused> {
        let shorter = match &self.asked.body {
            Checked::Chat(chat) => {
                let fitting = Fitting {
                    ready: &self.ready,
                    room: &self.room,
                    call: &self.call,
                };
                fitting.shorter(chat).await?
            }
            Checked::Text(_) => None,
        };
        // A picture of a few bytes may have millions of pixels.
        if self.asked.bytes.len() <= INLINE_BYTES_MAX && !self.asked.has_media() {
            return self.prepare_now(shorter);
        }
        in_a_thread(move || self.prepare_now(shorter)).await
    }

    fn prepare_now(self, shorter: Option<(ValidChat, usize)>) -> Result<(Plan, Output), Refused> {
        let dropped = shorter.as_ref().map_or(0, |(_chat, dropped)| *dropped);
        let shorter = shorter.map(|(chat, _dropped)| Checked::Chat(Box::new(chat)));
        let asked = shorter.as_ref().unwrap_or(&self.asked.body);
        let said = self.asked.said.as_deref();
        let mut plan = asked.plan(&self.ready, &self.room, (&self.call, said))?;
        if let (Some(begun), [only]) = (self.asked.begun.clone(), plan.specs.as_mut_slice()) {
            only.resume = Some(begun);
        }
        let mut envelope = asked.envelope(&self.call, &self.room);
        envelope.dropped = dropped;
        envelope.load_ms = self.loaded.map(|time| time.as_secs_f64() * 1000.0);
        envelope.goes_on = said.is_some();
        envelope.names_tokens = self.call.resumable && plan.specs.len() == 1;
        let output = asked.output(envelope, &plan);
        Ok((plan, output))
    }
}

/// A checked request, and as it came: another server gets that.
pub(super) struct Asked {
    surface: Surface,
    body: Checked,
    bytes: Bytes,
    /// What the tier says first where the conversation has no system message.
    system: Option<String>,
    /// The beginning of its answer, which another node made.
    begun: Option<Resume>,
    /// How it begins, said by another model.
    said: Option<String>,
}

impl Asked {
    /// Parses and checks; in a thread of its own when there is much of it.
    pub(super) async fn read(surface: Surface, bytes: Bytes) -> Result<Self, Refused> {
        let body = if bytes.len() <= INLINE_BYTES_MAX {
            Checked::parse(surface, &bytes)?
        } else {
            let bytes = bytes.clone();
            in_a_thread(move || Checked::parse(surface, &bytes)).await?
        };
        Ok(Self {
            surface,
            body,
            bytes,
            system: None,
            begun: None,
            said: None,
        })
    }

    /// The same with the beginning of its answer, if the body has one.
    pub(super) fn resumed(mut self) -> Result<Self, Refused> {
        // Bodies without it are not parsed twice.
        if has(&self.bytes, RESUME) || has(&self.bytes, CONTINUE) {
            let body: Begun =
                serde_json::from_slice(&self.bytes).map_err(|_error| Refused::Unsupported {
                    param: RESUME.to_owned(),
                    message: "expected {\"tokens\": [integers]}, and _continue {\"text\": \"...\"}"
                        .to_owned(),
                })?;
            let goes_on = body.begun.is_some() || body.said.is_some();
            if goes_on && self.choices() > 1 {
                return Err(Refused::Unsupported {
                    param: RESUME.to_owned(),
                    message: format!("only one answer can go on, not {}", self.choices()),
                });
            }
            self.begun = body.begun;
            self.said = body.said.map(|said| said.text);
        }
        Ok(self)
    }

    /// The same with the tier's own system message, if the conversation has none.
    pub(super) fn told(mut self, system: Option<&str>) -> Self {
        if let (Some(system), Checked::Chat(chat)) = (system, &mut self.body)
            && tell(chat, system)
        {
            self.system = Some(system.to_owned());
        }
        self
    }

    fn has_media(&self) -> bool {
        match &self.body {
            Checked::Chat(chat) => media::has_any(chat),
            Checked::Text(_) => false,
        }
    }

    /// What the model would read, each prompt once however many answers are wanted.
    pub(super) fn prompts(
        &self,
        ready: &Ready,
        room: &TierRoom,
        call: &Call,
    ) -> Result<Vec<Prompt>, Refused> {
        let said = self.said.as_deref();
        let plan = self.body.plan(ready, room, (call, said))?;
        let mut prompts: Vec<Prompt> = plan.specs.into_iter().map(|spec| spec.prompt).collect();
        prompts.dedup();
        Ok(prompts)
    }

    /// For another server.
    pub(super) fn forward(self) -> Forward {
        Forward {
            surface: self.surface,
            streams: self.streams(),
            body: self.bytes,
            system: self.system,
        }
    }

    /// Answers to one prompt.
    pub(super) fn choices(&self) -> usize {
        self.body.choices()
    }

    /// Whether the answer is a stream.
    pub(super) const fn streams(&self) -> bool {
        match &self.body {
            Checked::Chat(chat) => chat.stream,
            Checked::Text(text) => text.stream,
        }
    }
}

/// Puts the tier's own system message first, unless the conversation has one; whether that was done.
pub(super) fn tell(chat: &mut ValidChat, system: &str) -> bool {
    let mut messages = chat.messages.iter();
    if messages.any(|message| message.role == Role::System) {
        return false;
    }
    chat.messages.insert(0, system_message(system));
    true
}

/// What a body may have besides what clients send.
#[derive(Deserialize)]
struct Begun {
    #[serde(rename = "_resume")]
    begun: Option<Resume>,
    #[serde(rename = "_continue")]
    said: Option<Said>,
}

#[derive(Deserialize)]
struct Said {
    text: String,
}

fn has(bytes: &[u8], name: &str) -> bool {
    bytes
        .windows(name.len())
        .any(|part| part == name.as_bytes())
}

fn system_message(text: &str) -> Message {
    Message {
        role: Role::System,
        content: Some(Content::Text(text.to_owned())),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        reasoning_content: None,
    }
}

pub(super) fn setting<'a>(
    ready: &'a Ready,
    defaults: &'a SamplingDefaults,
    call: &'a Call,
) -> Result<Setting<'a>, Refused> {
    Ok(Setting {
        template: &ready.template,
        defaults,
        modalities: ready.card.modalities,
        deadline: call.time_left().ok_or(Refused::Deadline)?,
        principal: call.principal,
        priority: call.priority,
        links: &call.links,
        said: None,
        max_tokens: call.max_tokens,
        now: call.began_at(),
    })
}

pub(super) async fn in_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        let reason = error.to_string();
        Err(Refused::Engine(Refusal::EngineFault { reason }))
    })
}

/// A checked request of either surface.
enum Checked {
    Chat(Box<ValidChat>),
    Text(Box<ValidCompletion>),
}

impl Checked {
    fn parse(surface: Surface, bytes: &[u8]) -> Result<Self, Refused> {
        match surface {
            Surface::Chat => ChatRequest::parse(bytes).map(|chat| Self::Chat(Box::new(chat))),
            Surface::Text => CompletionRequest::parse(bytes).map(|text| Self::Text(Box::new(text))),
        }
        .map_err(Refused::Body)
    }

    fn plan(
        &self,
        ready: &Ready,
        room: &TierRoom,
        (call, said): (&Call, Option<&str>),
    ) -> Result<Plan, Refused> {
        let settings = room.settings();
        let setting = Setting {
            said,
            ..setting(ready, &settings.sampling, call)?
        };
        match self {
            Self::Chat(chat) => chat::plan(chat, &setting),
            Self::Text(text) => chat::plan_completion(text, &setting, ready.card.fim),
        }
    }

    fn choices(&self) -> usize {
        let n = match self {
            Self::Chat(chat) => chat.generation.n,
            Self::Text(text) => text.generation.n,
        };
        usize::try_from(n).unwrap_or(1)
    }

    fn envelope(&self, call: &Call, room: &TierRoom) -> Envelope {
        let (prefix, include_usage) = match self {
            Self::Chat(chat) => ("chatcmpl-", chat.include_usage()),
            Self::Text(text) => ("cmpl-", text.include_usage()),
        };
        let began = call.began_at().duration_since(UNIX_EPOCH);
        let began = began.unwrap_or_default().as_secs();
        let slides = matches!(self, Self::Chat(chat) if chat.slides);
        Envelope {
            id: call.completion_id(prefix),
            created: i64::try_from(began).unwrap_or(i64::MAX),
            model: room.settings().model_id.clone(),
            fingerprint: room.fingerprint(slides),
            include_usage,
            n: self.choices(),
            watts: room.watts_each(),
            load_ms: None,
            dropped: 0,
            names_tokens: false,
            goes_on: false,
        }
    }

    fn output(&self, envelope: Envelope, plan: &Plan) -> Output {
        let choices = plan.specs.len();
        match self {
            Self::Chat(chat) if chat.stream => {
                let mut stream = ChatStream::new(envelope, &plan.rules, choices);
                if chat.generation.timings_per_token {
                    stream = stream.with_timings_per_token(Instant::now());
                }
                if chat.generation.return_progress {
                    stream = stream.with_progress();
                }
                Output::Stream(Writer::Chat(Box::new(stream)))
            }
            Self::Chat(_) => {
                let whole = ChatWhole::new(envelope, &plan.rules, choices);
                Output::Whole(Gatherer::Chat(Box::new(whole)))
            }
            Self::Text(text) => {
                let answer = Box::new(TextAnswer::new(envelope, choices));
                if text.stream {
                    Output::Stream(Writer::Text(answer))
                } else {
                    Output::Whole(Gatherer::Text(answer))
                }
            }
        }
    }
}

/// Where the events go.
pub(super) enum Output {
    Stream(Writer),
    Whole(Gatherer),
}

/// Gathers a whole answer of either surface.
pub(super) enum Gatherer {
    Chat(Box<ChatWhole>),
    Text(Box<TextAnswer>),
}

impl Gatherer {
    pub(super) fn take(&mut self, choice: usize, event: &Event) {
        match self {
            Self::Chat(chat) => chat.event(choice, event),
            Self::Text(text) => text.gather(choice, event),
        }
    }

    pub(super) fn response(self) -> Response<Body> {
        match self {
            Self::Chat(chat) => json_response(&chat.finish()),
            Self::Text(text) => json_response(&text.finish()),
        }
    }
}
