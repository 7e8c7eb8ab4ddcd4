//! The dialects in which models write thoughts and calls of tools, and which of them a chat template speaks. Pure data.

use std::str::FromStr;

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

/// Every format with its name in the settings.
const NAMES: [(&str, ToolFormat); 6] = [
    ("hermes", ToolFormat::Hermes),
    ("gemma4", ToolFormat::Gemma4),
    ("llama3", ToolFormat::Llama3),
    ("mistral", ToolFormat::Mistral),
    ("mistral_args", ToolFormat::MistralArgs),
    ("qwen_xml", ToolFormat::QwenXml),
];

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

    /// The name in the settings.
    pub fn as_str(self) -> &'static str {
        NAMES
            .iter()
            .find(|(_name, format)| *format == self)
            .map_or("hermes", |(name, _format)| name)
    }
}

impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _format)| *name == text);
        found.map(|(_name, format)| *format).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _format)| *name).collect();
            format!("{text:?} is no tool format; one of {}", names.join(", "))
        })
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
    /// All of them with their names in the settings.
    pub const ALL: [(&'static str, Self); 4] = [
        ("gemma4", Self::GEMMA4),
        ("mistral", Self::MISTRAL),
        ("seed", Self::SEED),
        ("think", Self::THINK),
    ];

    /// Reads them off the source of a chat template; `None` if the model does not think aloud.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<|channel>") {
            return Some(Self::GEMMA4);
        }
        Self::ALL
            .iter()
            .map(|(_name, tags)| *tags)
            .find(|tags| source.contains(tags.close))
    }

    /// By the name in the settings.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _tags)| *known == name);
        found.map(|(_name, tags)| *tags)
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

    #[test]
    fn names_are_read_back() {
        for (name, format) in NAMES {
            assert_eq!(name.parse(), Ok(format));
            assert_eq!(format.as_str(), name);
        }
        assert!("xml".parse::<ToolFormat>().is_err());
        assert_eq!(ThinkTags::named("think"), Some(ThinkTags::THINK));
    }
}
