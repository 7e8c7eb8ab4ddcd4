//! Messages and their parts.

use serde_json::Value;

use super::media;
use super::read::{Object, as_array, as_object, invalid, quote, unsupported, word};
use super::tools;
use super::{Invalid, MEDIA_MAX, MESSAGES_MAX, PARTS_MAX};
use crate::wire::chat::{Content, Message, Part, Role, ToolCall};

const NAME_BYTES_MAX: usize = 256;
const ROLES: [(&str, Speaker); 6] = [
    ("system", Speaker::Known(Role::System)),
    ("developer", Speaker::Known(Role::System)),
    ("user", Speaker::Known(Role::User)),
    ("assistant", Speaker::Known(Role::Assistant)),
    ("tool", Speaker::Known(Role::Tool)),
    ("function", Speaker::Function),
];

#[derive(Clone, Copy)]
enum Speaker {
    Known(Role),
    /// The old form of `tool`, answering the last `function_call`.
    Function,
}

/// All messages and what media they carry.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    pub(super) media: usize,
    pub(super) media_bytes: u64,
    /// The call that an old `function` message answers.
    last_function_call: Option<String>,
}

/// `messages`.
pub(super) fn conversation(body: &mut Object) -> Result<Conversation, Invalid> {
    let Some(items) = body.array("messages", MESSAGES_MAX)? else {
        return Err(invalid(
            "messages",
            "missing; an array of messages is required",
        ));
    };
    if items.is_empty() {
        return Err(invalid(
            "messages",
            "empty; at least one message is required",
        ));
    }
    let mut conversation = Conversation::default();
    conversation.messages.reserve_exact(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let object = as_object(format!("messages[{index}]"), item)?;
        let message = conversation.message(object)?;
        conversation.messages.push(message);
    }
    Ok(conversation)
}

impl Conversation {
    fn message(&mut self, mut object: Object) -> Result<Message, Invalid> {
        let text = object.required_string("role", NAME_BYTES_MAX)?;
        let role = match word(object.at("role"), &text, &ROLES)? {
            Speaker::Known(role) => role,
            Speaker::Function => return self.function_result(object),
        };
        let content = self.content(&mut object, role)?;
        let name = object.string("name", NAME_BYTES_MAX)?;
        let mut message = Message {
            role,
            content,
            name,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning_content: None,
        };
        match role {
            Role::Assistant => self.assistant(&mut object, &mut message)?,
            Role::Tool => {
                message.tool_call_id =
                    Some(object.required_string("tool_call_id", NAME_BYTES_MAX)?);
            }
            Role::System | Role::User => {}
        }
        if message.content.is_none() && role != Role::Assistant {
            return Err(invalid(
                object.at("content"),
                "missing; a string or an array of parts is required",
            ));
        }
        Ok(message)
    }

    fn assistant(&mut self, object: &mut Object, message: &mut Message) -> Result<(), Invalid> {
        message.tool_calls = tools::calls(object)?;
        if let Some(function) = tools::function_call(object)? {
            let id = format!("call_{}", self.messages.len());
            self.last_function_call = Some(id.clone());
            message.tool_calls.push(ToolCall {
                id,
                kind: crate::wire::chat::ToolKind::Function,
                function,
            });
        }
        message.reasoning_content = object.string("reasoning_content", usize::MAX)?;
        if message.content.is_none() {
            message.content = object.string("refusal", usize::MAX)?.map(Content::Text);
        }
        if message.content.is_none()
            && message.tool_calls.is_empty()
            && message.reasoning_content.is_none()
        {
            return Err(invalid(
                object.at("content"),
                "missing; an assistant message needs content or tool_calls",
            ));
        }
        Ok(())
    }

    fn function_result(&mut self, mut object: Object) -> Result<Message, Invalid> {
        let Some(id) = self.last_function_call.take() else {
            return Err(invalid(
                object.at("role"),
                "a function message must follow an assistant message with function_call; newer clients use tool",
            ));
        };
        let content = self.content(&mut object, Role::Tool)?;
        Ok(Message {
            role: Role::Tool,
            content: Some(content.unwrap_or_else(|| Content::Text(String::new()))),
            name: object.string("name", NAME_BYTES_MAX)?,
            tool_calls: Vec::new(),
            tool_call_id: Some(id),
            reasoning_content: None,
        })
    }

    fn content(&mut self, object: &mut Object, role: Role) -> Result<Option<Content>, Invalid> {
        let path = object.at("content");
        match object.take("content") {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(Content::Text(text))),
            Some(value @ Value::Array(_)) => {
                let items = as_array(path.clone(), value, PARTS_MAX)?;
                if items.is_empty() && role != Role::Assistant {
                    return Err(invalid(path, "empty; at least one part is required"));
                }
                let mut parts = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    parts.push(self.part(as_object(format!("{path}[{index}]"), item)?, role)?);
                }
                Ok(Some(Content::Parts(parts)))
            }
            Some(other) => {
                let kind = super::read::kind_of(&other);
                let message = format!("expected a string or an array of parts, got {kind}");
                Err(invalid(path, message))
            }
        }
    }

    fn part(&mut self, mut part: Object, role: Role) -> Result<Part, Invalid> {
        let kind = part.required_string("type", NAME_BYTES_MAX)?;
        match kind.as_str() {
            "text" => Ok(Part::Text {
                text: part.required_string("text", usize::MAX)?,
            }),
            "refusal" => Ok(Part::Text {
                text: part.required_string("refusal", usize::MAX)?,
            }),
            "image_url" => {
                let image = media::image(&mut part)?;
                self.count(&part, role, image.bytes)?;
                Ok(Part::ImageUrl {
                    image_url: image.value,
                })
            }
            "input_audio" => {
                let audio = media::audio(&mut part)?;
                self.count(&part, role, audio.bytes)?;
                Ok(Part::InputAudio {
                    input_audio: audio.value,
                })
            }
            other => {
                let message = format!(
                    "{} is not one of text, image_url, input_audio",
                    quote(other)
                );
                Err(unsupported(part.at("type"), message))
            }
        }
    }

    fn count(&mut self, part: &Object, role: Role, bytes: u64) -> Result<(), Invalid> {
        if role != Role::User {
            let message = format!(
                "media in a {} message; only user messages carry media",
                role.as_str()
            );
            return Err(invalid(part.path(), message));
        }
        self.media += 1;
        self.media_bytes = self.media_bytes.saturating_add(bytes);
        if self.media > MEDIA_MAX {
            let message =
                format!("too many pictures and sounds; at most {MEDIA_MAX} in one request");
            return Err(invalid(part.path(), message));
        }
        Ok(())
    }
}
