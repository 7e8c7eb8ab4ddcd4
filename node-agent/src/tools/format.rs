//! The dialects in which models write thoughts and calls of tools, and which of them a chat template speaks. Pure data.

use config::settings::node as settings;

/// How a model writes calls.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, and whoever is told so in words.
    #[default]
    Hermes,
    /// `<|tool_call>call:name{key:<|"|>text<|"|>}<tool_call|>`.
    Gemma4,
    /// `{"name": …, "parameters": {…}}`, with or without `<|python_tag|>` in front.
    Llama3,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`, once a call.
    MistralArgs,
    /// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen 3 Coder and 3.5.
    QwenXml,
}

impl From<settings::ToolFormat> for ToolFormat {
    fn from(format: settings::ToolFormat) -> Self {
        match format {
            settings::ToolFormat::Hermes => Self::Hermes,
            settings::ToolFormat::Gemma4 => Self::Gemma4,
            settings::ToolFormat::Llama3 => Self::Llama3,
            settings::ToolFormat::Mistral => Self::Mistral,
            settings::ToolFormat::MistralArgs => Self::MistralArgs,
            settings::ToolFormat::QwenXml => Self::QwenXml,
        }
    }
}

impl ToolFormat {
    /// Reads it off the source of a chat template. A template that shows no known way of calling gets Hermes'.
    pub fn of_template(source: &str) -> Self {
        if source.contains("<|tool_call>") {
            Self::Gemma4
        } else if source.contains("[TOOL_CALLS][") || source.contains("[TOOL_CALLS] [") {
            Self::Mistral
        } else if source.contains("[TOOL_CALLS]") {
            Self::MistralArgs
        } else if source.contains("<function=") && source.contains("<parameter=") {
            Self::QwenXml
        } else if source.contains("<tool_call>") || !source.contains("tools") {
            Self::Hermes
        } else if source.contains("<|python_tag|>")
            || (source.contains("<|start_header_id|>") && source.contains("\"parameters\""))
        {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }

    /// What begins a call; empty where a call is recognised by its own form.
    pub const fn open(self) -> &'static str {
        match self {
            Self::Hermes | Self::QwenXml => "<tool_call>",
            Self::Gemma4 => "<|tool_call>",
            Self::Llama3 => "<|python_tag|>",
            Self::Mistral | Self::MistralArgs => "[TOOL_CALLS]",
        }
    }

    /// What ends a call; empty where its own form ends it.
    pub const fn close(self) -> &'static str {
        match self {
            Self::Hermes | Self::QwenXml => "</tool_call>",
            Self::Gemma4 => "<tool_call|>",
            Self::Llama3 | Self::Mistral | Self::MistralArgs => "",
        }
    }

    /// Whether the markup is made of control tokens, which an engine writes only when it is told to.
    pub const fn is_special(self) -> bool {
        match self {
            Self::Gemma4 | Self::Llama3 | Self::Mistral | Self::MistralArgs => true,
            Self::Hermes | Self::QwenXml => false,
        }
    }
}

/// What stands around a model's thoughts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ThinkTags {
    /// Before.
    pub open: &'static str,
    /// After.
    pub close: &'static str,
    /// Whether they are control tokens.
    pub special: bool,
}

impl ThinkTags {
    /// Qwen, `DeepSeek` and most others.
    pub const THINK: Self = Self {
        open: "<think>",
        close: "</think>",
        special: false,
    };
    /// Gemma 4.
    pub const GEMMA4: Self = Self {
        open: "<|channel>thought",
        close: "<channel|>",
        special: true,
    };
    /// Mistral's reasoning models.
    pub const MISTRAL: Self = Self {
        open: "[THINK]",
        close: "[/THINK]",
        special: true,
    };
    /// Seed.
    pub const SEED: Self = Self {
        open: "<seed:think>",
        close: "</seed:think>",
        special: false,
    };
    /// Those that a template shows by their closing tag.
    const PLAIN: [Self; 3] = [Self::MISTRAL, Self::SEED, Self::THINK];

    /// Reads them off the source of a chat template; `None` if the model does not think aloud.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<|channel>") {
            return Some(Self::GEMMA4);
        }
        Self::PLAIN
            .into_iter()
            .find(|tags| source.contains(tags.close))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_shows_how_its_model_calls_and_thinks() {
        for (source, format, tags) in [
            ("{{ messages }}", ToolFormat::Hermes, None),
            (
                "{{ tools }} <tool_call> </think>",
                ToolFormat::Hermes,
                Some(ThinkTags::THINK),
            ),
            ("{{ tools }} <|python_tag|>", ToolFormat::Llama3, None),
            (
                "{{ tools }} <tool_call>\\n<function= <parameter=",
                ToolFormat::QwenXml,
                None,
            ),
            (
                "{{ tools }} '[TOOL_CALLS]' [THINK] [/THINK]",
                ToolFormat::MistralArgs,
                Some(ThinkTags::MISTRAL),
            ),
            ("{{ tools }} \"[TOOL_CALLS][\"", ToolFormat::Mistral, None),
            (
                "<|tool_call>call: <|channel>thought",
                ToolFormat::Gemma4,
                Some(ThinkTags::GEMMA4),
            ),
        ] {
            assert_eq!(ToolFormat::of_template(source), format, "{source}");
            assert_eq!(ThinkTags::of_template(source), tags, "{source}");
        }
    }
}
