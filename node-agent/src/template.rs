//! A model's chat template: messages and tools in, the text that the model reads out. Templates come from GGUF files and are
//! written for Python's jinja2, so this room bends minijinja towards it. It must never do I/O, and a template that does not end
//! must cost a bounded number of steps.

mod calendar;
mod gemma;
mod methods;
mod neutral;
mod python;

use std::time::SystemTime;

use config::wire::chat::{Content, Message, Role, Tool, ToolCall};
use indexmap::IndexMap;
use minijinja::{Environment, Error, ErrorKind, Value};
use ring::digest::{SHA256, digest};
use serde_json::{Map, json};

pub use neutral::{Controls, Piece};

use crate::tools::format::{ThinkTags, ToolFormat};
use neutral::Neutral;

/// Loop steps of one rendering; a conversation of 1,000 messages needs about 50,000.
const FUEL: u64 = 5_000_000;
const NAME: &str = "chat";
/// What the agent sets itself; `chat_template_kwargs` may not.
const RESERVED: [&str; 5] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
];
/// The commonest form, for files that bring no template.
const CHATML: &str = include_str!("template/chatml.jinja");

/// What a template is filled with.
#[derive(Clone, Copy, Debug)]
pub struct Conversation<'a> {
    /// The messages so far.
    pub messages: &'a [Message],
    /// Tools that the model may call; empty for none.
    pub tools: &'a [Tool],
    /// Further variables, for example `enable_thinking`.
    pub extra: Option<&'a Map<String, serde_json::Value>>,
    /// For `strftime_now`.
    pub now: SystemTime,
}

/// Why there is no prompt.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// The template does not parse. The operator's fault, not the caller's.
    #[error("the model's chat template is broken: {0}")]
    Broken(String),
    /// The template refused this conversation.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// A variable that is not the caller's to set.
    #[error("chat_template_kwargs may not set {0}")]
    Reserved(String),
}

/// A parsed template of one model.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    /// Of the source, in hex.
    sha256: String,
    bos_token: String,
    eos_token: String,
    strip_bos: bool,
    format: ToolFormat,
    /// The template has no place for tools, so they are described in the system message.
    tools_in_text: bool,
    /// The template wants results of tools within the message that called them.
    folds_results: bool,
    thoughts: Option<ThinkTags>,
    controls: Controls,
}

impl Template {
    /// Parses `source`, or `ChatML` if a model brings none. `strip_bos`: the tokenizer writes the begin token itself.
    pub fn new(
        source: Option<&str>,
        bos_token: &str,
        eos_token: &str,
        strip_bos: bool,
    ) -> Result<Self, TemplateError> {
        let source = source.unwrap_or(CHATML);
        let mut environment = environment();
        environment
            .add_template_owned(NAME, python::without_generation_tags(source).into_owned())
            .map_err(|error| TemplateError::Broken(one_line(&error)))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            sha256: hex::encode(digest(&SHA256, source.as_bytes())),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            strip_bos,
            format: ToolFormat::of_template(source),
            tools_in_text: !source.contains("tools"),
            folds_results: source.contains("tool_responses"),
            thoughts: ThinkTags::of_template(source),
            controls: Controls::new([]),
        })
    }

    /// Takes the texts of the model's control tokens.
    #[must_use]
    pub fn with_controls<I: IntoIterator<Item = String>>(mut self, texts: I) -> Self {
        self.controls = Controls::new(texts);
        self
    }

    /// Overrules how the model is taken to call tools and to think; `None` leaves it as the template shows it.
    #[must_use]
    pub fn with_formats(
        mut self,
        calls: Option<ToolFormat>,
        thoughts: Option<Option<ThinkTags>>,
    ) -> Self {
        self.format = calls.unwrap_or(self.format);
        self.thoughts = thoughts.unwrap_or(self.thoughts);
        self
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A word that is another one whenever it makes something else of a conversation or of an answer.
    pub fn identity(&self) -> String {
        let Self {
            sha256,
            format,
            thoughts,
            ..
        } = self;
        format!("{sha256}/{format:?}/{thoughts:?}")
    }

    /// How the model writes calls of tools.
    pub const fn format(&self) -> ToolFormat {
        self.format
    }

    /// What stands around the model's thoughts, if it thinks aloud.
    pub const fn thoughts(&self) -> Option<ThinkTags> {
        self.thoughts
    }

    /// Writes the prompt, up to the place where the assistant speaks. What the conversation says is never read as markup.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<Vec<Piece>, TemplateError> {
        let described;
        let conversation = if self.tools_in_text {
            described = crate::tools::described(conversation.messages, conversation.tools);
            &Conversation {
                messages: &described,
                tools: &[],
                ..*conversation
            }
        } else {
            conversation
        };
        let mut neutral = Neutral::new(&self.controls);
        let variables = self.variables(conversation, &mut neutral)?;
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Broken(one_line(&error)))?;
        let mut text = template
            .render(Value::from_iter(variables))
            .map_err(|error| TemplateError::Refused(one_line(&error)))?;
        let begin = self.bos_token.as_str();
        if self.strip_bos
            && !begin.is_empty()
            && let Some(rest) = text.strip_prefix(begin)
        {
            text = rest.to_owned();
        }
        if self.folds_results && text.ends_with("<turn|>\n") {
            // After a call and its result the template leaves out where the model speaks.
            text.push_str("<|turn>model\n");
        }
        Ok(neutral.pieces(&text))
    }

    fn variables(
        &self,
        conversation: &Conversation<'_>,
        neutral: &mut Neutral<'_>,
    ) -> Result<IndexMap<String, Value>, TemplateError> {
        let mut writer = Writer {
            neutral,
            spared: self.spared(),
            media: 0,
        };
        let messages = conversation.messages.iter();
        let mut messages: Vec<serde_json::Value> =
            messages.map(|message| writer.message(message)).collect();
        if self.folds_results {
            messages = gemma::folded(messages);
        }
        let mut variables = IndexMap::new();
        for (name, value) in conversation.extra.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(TemplateError::Reserved(name.clone()));
            }
            let value = writer.neutral.value(value);
            variables.insert(name.clone(), Value::from_serialize(value));
        }
        let now = conversation.now;
        let strftime_now =
            Value::from_function(move |format: &str| calendar::format_utc(format, now));
        variables.insert("strftime_now".to_owned(), strftime_now);
        variables.insert("messages".to_owned(), Value::from_serialize(&messages));
        // Undefined rather than none: some templates test `tools is defined`.
        if !conversation.tools.is_empty() {
            let tools = conversation.tools.iter();
            let tools: Vec<serde_json::Value> = tools
                .filter_map(|tool| serde_json::to_value(tool).ok())
                .map(|tool| writer.neutral.value(&tool))
                .collect();
            let tools = Value::from_serialize(tools);
            variables.insert("tools".to_owned(), tools);
        }
        variables.insert("add_generation_prompt".to_owned(), true.into());
        variables.insert("bos_token".to_owned(), self.bos_token.as_str().into());
        variables.insert("eos_token".to_owned(), self.eos_token.as_str().into());
        Ok(variables)
    }

    /// Templates look for the ends of thoughts in what an assistant said, to leave the thoughts out.
    fn spared(&self) -> Vec<&'static str> {
        match self.thoughts {
            Some(ThinkTags::GEMMA4) => vec!["<|channel>", ThinkTags::GEMMA4.close],
            Some(tags) => vec![tags.open, tags.close],
            None => Vec::new(),
        }
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_name| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(methods::unknown);
    environment.set_formatter(python::format);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("length", python::length);
    environment.add_filter("count", python::length);
    environment.add_filter("string", python::string);
    environment.add_filter("int", methods::int);
    environment.add_test("sequence", methods::is_sequence);
    environment.add_test("iterable", methods::is_iterable);
    environment.add_function("raise_exception", raise_exception);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Writes messages as templates expect them: content is always text, arguments are objects where they can be.
struct Writer<'n, 'c> {
    neutral: &'n mut Neutral<'c>,
    spared: Vec<&'static str>,
    /// Pictures and sounds so far.
    media: u32,
}

impl Writer<'_, '_> {
    fn message(&mut self, message: &Message) -> serde_json::Value {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), message.role.as_str().into());
        fields.insert("content".to_owned(), self.content(message).into());
        if let Some(thoughts) = &message.reasoning_content {
            let thoughts = self.neutral.text(thoughts, &[]);
            fields.insert("reasoning_content".to_owned(), thoughts.into());
        }
        if let Some(name) = &message.name {
            let name = self.neutral.text(name, &[]);
            fields.insert("name".to_owned(), name.into());
        }
        if !message.tool_calls.is_empty() && message.role == Role::Assistant {
            let calls = message.tool_calls.iter();
            let calls: Vec<serde_json::Value> = calls.map(|call| self.call(call)).collect();
            fields.insert("tool_calls".to_owned(), calls.into());
        }
        if let Some(id) = &message.tool_call_id {
            let id = self.neutral.text(id, &[]);
            fields.insert("tool_call_id".to_owned(), id.into());
        }
        fields.into()
    }

    fn content(&mut self, message: &Message) -> String {
        let spared: &[&str] = if message.role == Role::Assistant {
            &self.spared
        } else {
            &[]
        };
        match &message.content {
            None => String::new(),
            Some(Content::Text(text)) => self.neutral.text(text, spared),
            Some(Content::Parts(parts)) => {
                let mut content = String::new();
                let mut after_text = false;
                for part in parts {
                    if let Some(text) = part.text() {
                        if after_text {
                            content.push('\n');
                        }
                        content.push_str(&self.neutral.text(text, spared));
                    } else {
                        content.push(self.neutral.media(self.media));
                        self.media = self.media.saturating_add(1);
                    }
                    after_text = part.text().is_some();
                }
                content
            }
        }
    }

    fn call(&mut self, call: &ToolCall) -> serde_json::Value {
        let arguments = self
            .neutral
            .value(&arguments_value(&call.function.arguments));
        json!({
            "id": self.neutral.text(&call.id, &[]),
            "type": "function",
            "function": {
                "name": self.neutral.text(&call.function.name, &[]),
                "arguments": arguments,
            },
        })
    }
}

/// Arguments travel as text, but most templates write them with `tojson`, which would quote the text a second time.
fn arguments_value(text: &str) -> serde_json::Value {
    match serde_json::from_str(text) {
        Ok(object @ serde_json::Value::Object(_)) => object,
        Ok(_) | Err(_) => text.into(),
    }
}

/// The message of the innermost error without the excerpt of the template.
fn one_line(error: &Error) -> String {
    let detail = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) if error.kind() == ErrorKind::SyntaxError => format!("{detail} (line {line})"),
        Some(_) | None => detail,
    }
}

#[cfg(test)]
mod tests;
