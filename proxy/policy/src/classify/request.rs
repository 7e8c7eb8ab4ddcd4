//! Shows a checked request to the classifier: which texts, and whose. Copies no text.

use config::wire::chat::{Content, Message, Part, ResponseFormat, Role};
use config::wire::valid::{Prompt, ReasoningEffort, ValidChat, ValidCompletion};

use super::{Ask, Features, Speaker, Turn};

pub(super) fn of_chat(chat: &ValidChat) -> Features {
    let turns: Vec<Turn<'_>> = chat.messages.iter().flat_map(turns_of).collect();
    Features::of_ask(&Ask {
        turns: &turns,
        tools: chat.tools.len(),
        schema: !matches!(chat.response_format, ResponseFormat::Text),
        media: chat.messages.iter().map(media_of).sum(),
        effort_high: matches!(
            chat.reasoning_effort,
            Some(ReasoningEffort::High | ReasoningEffort::Xhigh)
        ),
        max_tokens: chat.generation.max_tokens,
    })
}

pub(super) fn of_completion(completion: &ValidCompletion) -> Features {
    let turns: Vec<Turn<'_>> = completion
        .prompts
        .iter()
        .filter_map(|prompt| match prompt {
            Prompt::Text(text) => Some(Turn {
                speaker: Speaker::User,
                text,
            }),
            Prompt::Tokens(_) => None,
        })
        .collect();
    Features::of_ask(&Ask {
        turns: &turns,
        schema: completion.generation.grammar.is_some(),
        max_tokens: completion.generation.max_tokens,
        ..Ask::default()
    })
}

fn turns_of(message: &Message) -> impl Iterator<Item = Turn<'_>> {
    let speaker = match message.role {
        Role::System => Speaker::System,
        Role::User => Speaker::User,
        Role::Assistant => Speaker::Assistant,
        Role::Tool => Speaker::Tool,
    };
    let (whole, parts) = match &message.content {
        Some(Content::Text(text)) => (Some(text.as_str()), None),
        Some(Content::Parts(parts)) => (None, Some(parts)),
        // An assistant that only called tools has spoken, without a text.
        None => (Some(""), None),
    };
    let parts = parts.into_iter().flatten().filter_map(Part::text);
    whole
        .into_iter()
        .chain(parts)
        .map(move |text| Turn { speaker, text })
}

fn media_of(message: &Message) -> usize {
    match &message.content {
        Some(Content::Parts(parts)) => parts.iter().filter(|part| part.text().is_none()).count(),
        Some(Content::Text(_)) | None => 0,
    }
}
