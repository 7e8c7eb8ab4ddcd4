//! Tools: how a model is told about them, made to call them ([`grammar`]), and how its calls are found in its text ([`splitter`]), in
//! the format that the model was trained on ([`format`]). Pure; runs no tool.

pub mod format;
pub mod grammar;
mod notation;
pub mod splitter;
pub mod toolbox;

use config::wire::chat::{Content, Message, Role, Tool};
use serde_json::Value;

/// Opens a call where the model is told in words how to call.
const OPEN: &str = "<tool_call>";
/// Closes it.
const CLOSE: &str = "</tool_call>";

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
