//! Tools: how a model is told about them, made to call them, and how its calls are found in its text ([`splitter`]).
//! One syntax so far, Hermes' `<tool_call>{json}</tool_call>`, which `ChatML` models write. Pure; runs no tool.

pub mod splitter;

use config::wire::chat::{Content, Message, Role, Tool};
use serde_json::{Map, Value, json};

use crate::schema;

/// Opens a call.
pub(crate) const OPEN: &str = "<tool_call>";
/// Closes a call.
pub(crate) const CLOSE: &str = "</tool_call>";
/// Where a schema keeps what its references point to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// How a model writes calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`.
    Hermes,
    /// The template has its own way, which we cannot force yet; calls in Hermes' form are still found.
    Foreign,
}

impl ToolSyntax {
    /// Reads it off the source of a chat template. A template without tools gets them described in Hermes' form.
    pub fn of_template(source: &str) -> Self {
        if source.contains(OPEN) || !source.contains("tools") {
            Self::Hermes
        } else {
            Self::Foreign
        }
    }
}

/// The functions cannot be put into one schema.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("two tools define `{0}` differently in their parameters")]
pub struct DefinitionClash(String);

/// The JSON schema of one call of one of `tools`, the text between the tags.
pub fn call_schema(tools: &[&Tool]) -> Result<Value, DefinitionClash> {
    let mut definitions: Map<String, Value> = Map::new();
    let mut calls = Vec::with_capacity(tools.len());
    for tool in tools {
        let mut parameters = tool
            .function
            .parameters
            .clone()
            .unwrap_or_else(|| json!({"type": "object"}));
        schema::tame(&mut parameters);
        hoist(&mut parameters, &mut definitions)?;
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
            "required": ["name", "arguments"],
            "additionalProperties": false,
        }));
    }
    let mut schema = match calls.pop() {
        Some(only) if calls.is_empty() => only,
        Some(last) => {
            calls.push(last);
            json!({"anyOf": calls})
        }
        None => json!({"type": "object"}),
    };
    if let Some(fields) = schema.as_object_mut() {
        fields.extend(definitions);
    }
    Ok(schema)
}

/// Moves definitions to the root, because references start there.
fn hoist(parameters: &mut Value, root: &mut Map<String, Value>) -> Result<(), DefinitionClash> {
    let Some(fields) = parameters.as_object_mut() else {
        return Ok(());
    };
    for place in DEFINITIONS {
        let Some(Value::Object(ours)) = fields.remove(place) else {
            continue;
        };
        let shared = root.entry(place).or_insert_with(|| json!({}));
        let Some(shared) = shared.as_object_mut() else {
            continue;
        };
        for (name, definition) in ours {
            if shared.get(&name).is_some_and(|known| *known != definition) {
                return Err(DefinitionClash(name));
            }
            shared.insert(name, definition);
        }
    }
    Ok(())
}

/// Rewrites a conversation for a template that knows no tools: they are described in the system message, calls and results become
/// text.
pub fn described(messages: &[Message], tools: &[Tool]) -> Vec<Message> {
    let mut rewritten: Vec<Message> = messages.iter().map(as_text).collect();
    if tools.is_empty() {
        return rewritten;
    }
    let description = description(tools);
    match rewritten.first_mut() {
        Some(first) if first.role == Role::System => {
            let text = format!("{}\n\n{description}", first.text());
            first.content = Some(Content::Text(text));
        }
        Some(_) | None => rewritten.insert(0, text_message(Role::System, description)),
    }
    rewritten
}

fn description(tools: &[Tool]) -> String {
    let mut text = "You may call one or more functions to help the user. The functions, one a line:\n<tools>\n".to_owned();
    for tool in tools {
        if let Ok(line) = serde_json::to_string(tool) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    text.push_str("</tools>\nTo call a function, answer with a JSON object between these tags:\n");
    text.push_str(OPEN);
    text.push_str("\n{\"name\": <function-name>, \"arguments\": <arguments>}\n");
    text.push_str(CLOSE);
    text
}

fn as_text(message: &Message) -> Message {
    match message.role {
        Role::Tool => {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.text());
            text_message(Role::User, text)
        }
        Role::Assistant if !message.tool_calls.is_empty() => {
            let mut text = message.text();
            for call in &message.tool_calls {
                if !text.is_empty() {
                    text.push('\n');
                }
                let name = Value::from(call.function.name.as_str());
                let arguments = &call.function.arguments;
                let call =
                    format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}");
                text.push_str(&call);
            }
            text_message(Role::Assistant, text)
        }
        Role::System | Role::User | Role::Assistant => message.clone(),
    }
}

const fn text_message(role: Role, text: String) -> Message {
    Message {
        role,
        content: Some(Content::Text(text)),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        reasoning_content: None,
    }
}

#[cfg(test)]
mod tests;
