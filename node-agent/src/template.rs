//! A model's chat template: messages and tools in, the text that the model reads out. Templates come from GGUF files and are
//! written for Python's jinja2, so this room bends minijinja towards it. It must never do I/O, and a template that does not end
//! must cost a bounded number of steps.

mod calendar;
mod python;

use std::time::SystemTime;

use config::wire::chat::{Message, Role, Tool};
use indexmap::IndexMap;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, json};

use crate::tools::ToolSyntax;

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
    bos_token: String,
    eos_token: String,
    strip_bos: bool,
    syntax: ToolSyntax,
    /// The template has no place for tools, so they are described in the system message.
    tools_in_text: bool,
    thinks: bool,
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
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            strip_bos,
            syntax: ToolSyntax::of_template(source),
            tools_in_text: !source.contains("tools"),
            thinks: source.contains("</think>"),
        })
    }

    /// How the model writes calls of tools.
    pub const fn syntax(&self) -> ToolSyntax {
        self.syntax
    }

    /// Whether the model thinks between `<think>` and `</think>`.
    pub const fn thinks(&self) -> bool {
        self.thinks
    }

    /// Writes the prompt, up to the place where the assistant speaks.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
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
        let variables = self.variables(conversation)?;
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| TemplateError::Broken(one_line(&error)))?;
        let text = template
            .render(Value::from_iter(variables))
            .map_err(|error| TemplateError::Refused(one_line(&error)))?;
        let begin = self.bos_token.as_str();
        if self.strip_bos
            && !begin.is_empty()
            && let Some(rest) = text.strip_prefix(begin)
        {
            return Ok(rest.to_owned());
        }
        Ok(text)
    }

    fn variables(
        &self,
        conversation: &Conversation<'_>,
    ) -> Result<IndexMap<String, Value>, TemplateError> {
        let messages: Vec<serde_json::Value> =
            conversation.messages.iter().map(message_value).collect();
        let mut variables = IndexMap::new();
        for (name, value) in conversation.extra.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(TemplateError::Reserved(name.clone()));
            }
            variables.insert(name.clone(), Value::from_serialize(value));
        }
        let now = conversation.now;
        let strftime_now =
            Value::from_function(move |format: &str| calendar::format_utc(format, now));
        variables.insert("strftime_now".to_owned(), strftime_now);
        variables.insert("messages".to_owned(), Value::from_serialize(&messages));
        // Undefined rather than none: some templates test `tools is defined`.
        if !conversation.tools.is_empty() {
            let tools = Value::from_serialize(conversation.tools);
            variables.insert("tools".to_owned(), tools);
        }
        variables.insert("add_generation_prompt".to_owned(), true.into());
        variables.insert("bos_token".to_owned(), self.bos_token.as_str().into());
        variables.insert("eos_token".to_owned(), self.eos_token.as_str().into());
        Ok(variables)
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_name| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", raise_exception);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// One message as templates expect it: content is always text, arguments are objects where they can be.
fn message_value(message: &Message) -> serde_json::Value {
    let mut fields = Map::new();
    fields.insert("role".to_owned(), message.role.as_str().into());
    fields.insert("content".to_owned(), message.text().into());
    if let Some(thoughts) = &message.reasoning_content {
        fields.insert("reasoning_content".to_owned(), thoughts.as_str().into());
    }
    if let Some(name) = &message.name {
        fields.insert("name".to_owned(), name.as_str().into());
    }
    if !message.tool_calls.is_empty() && message.role == Role::Assistant {
        let calls: Vec<serde_json::Value> = message
            .tool_calls
            .iter()
            .map(|call| {
                let arguments = arguments_value(&call.function.arguments);
                json!({
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": arguments},
                })
            })
            .collect();
        fields.insert("tool_calls".to_owned(), calls.into());
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".to_owned(), id.as_str().into());
    }
    fields.into()
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
