//! From a checked request to what the engine is asked: prompt, sampling, grammar, and how the answer will be split. Pure: the time
//! is an argument, nothing is started here.

use std::time::{Duration, SystemTime};

use config::settings::node::SamplingDefaults;
use config::wire::chat::{ResponseFormat, Tool, ToolChoice};
use config::wire::valid::{self, ReasoningEffort, ValidChat, ValidCompletion};
use engine::{GenerateSpec, Grammar, Prompt, Sampling};
use serde_json::{Map, Value, json};

use crate::reply::Refused;
use crate::schema;
use crate::template::{Conversation, Template};
use crate::tools::splitter::{SplitRules, Start};
use crate::tools::{self, ToolSyntax};

/// What a request is planned with, besides itself.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The model's template.
    pub template: &'a Template,
    /// The tier's defaults.
    pub defaults: &'a SamplingDefaults,
    /// Time left.
    pub deadline: Duration,
    /// Whose request it is.
    pub principal: u64,
    /// For templates that write the date.
    pub now: SystemTime,
}

/// What the engine is asked, one entry a choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order of `choices[].index`.
    pub specs: Vec<GenerateSpec>,
    /// How answers are split.
    pub rules: SplitRules,
    /// The field that asked for a grammar, if one did.
    pub form_param: &'static str,
}

/// Plans a chat.
pub fn plan(chat: &ValidChat, setting: &Setting<'_>) -> Result<Plan, Refused> {
    text_only(chat)?;
    let calling = Calling::of(chat, setting.template.syntax())?;
    let form = form(chat, &calling)?;
    let extra = variables(chat, form.is_some() && setting.template.thinks());
    let conversation = Conversation {
        messages: &chat.messages,
        tools: calling.shown(chat),
        extra: Some(&extra),
        now: setting.now,
    };
    let mut prompt = setting.template.render(&conversation)?;
    let mut start = if prompt.trim_end().ends_with("<think>") {
        Start::Thought
    } else {
        Start::Turn
    };
    if matches!(calling, Calling::Forced(_)) {
        if start == Start::Thought {
            prompt.push_str("\n</think>\n\n");
        }
        prompt.push_str(tools::OPEN);
        prompt.push('\n');
        start = Start::Call;
    }
    let mut spec = GenerateSpec::from_template(prompt);
    fill(&mut spec, &chat.generation, setting);
    spec.logprobs = chat.logprobs;
    spec.grammar = form;
    let parses = !matches!(calling, Calling::Off);
    if parses && chat.parallel_tool_calls == Some(false) {
        spec.stop.push(tools::CLOSE.to_owned());
    }
    Ok(Plan {
        specs: repeated(&spec, chat.generation.n),
        rules: SplitRules {
            tools: parses,
            thoughts: setting.template.thinks(),
            start,
        },
        form_param: match calling {
            Calling::Forced(_) => "tools",
            Calling::Off | Calling::Free if chat.generation.grammar.is_some() => "grammar",
            Calling::Off | Calling::Free => "response_format",
        },
    })
}

/// Plans a text completion: choices of the first prompt, then of the second, and so on.
pub fn plan_completion(completion: &ValidCompletion, setting: &Setting<'_>) -> Plan {
    let mut specs = Vec::new();
    for prompt in &completion.prompts {
        let mut spec = GenerateSpec::from_template("");
        spec.prompt = match prompt {
            valid::Prompt::Text(text) => Prompt::Text {
                text: text.clone(),
                parse_special: true,
                add_special: true,
            },
            valid::Prompt::Tokens(tokens) => Prompt::Tokens(tokens.clone()),
        };
        fill(&mut spec, &completion.generation, setting);
        spec.logprobs = completion.logprobs;
        spec.grammar = completion.generation.grammar.clone().map(Grammar::Gbnf);
        specs.extend(repeated(&spec, completion.generation.n));
    }
    Plan {
        specs,
        rules: SplitRules::default(),
        form_param: "grammar",
    }
}

/// What is done about tools.
enum Calling<'a> {
    /// None offered, or none wanted.
    Off,
    /// The model decides.
    Free,
    /// One of these.
    Forced(Vec<&'a Tool>),
}

impl<'a> Calling<'a> {
    fn of(chat: &'a ValidChat, syntax: ToolSyntax) -> Result<Self, Refused> {
        if chat.tools.is_empty() {
            return Ok(Self::Off);
        }
        let forced: Vec<&Tool> = match &chat.tool_choice {
            ToolChoice::None => return Ok(Self::Off),
            ToolChoice::Auto => return Ok(Self::Free),
            ToolChoice::Required => chat.tools.iter().collect(),
            ToolChoice::Function(name) => {
                let named = |tool: &&Tool| tool.function.name == *name;
                chat.tools.iter().filter(named).collect()
            }
        };
        if forced.is_empty() {
            return Err(unsupported("tool_choice", "it names none of the tools"));
        }
        match syntax {
            ToolSyntax::Hermes => Ok(Self::Forced(forced)),
            ToolSyntax::Foreign => Err(unsupported(
                "tool_choice",
                "this model cannot be made to call a tool; use auto or none",
            )),
        }
    }

    /// The tools that the template shows.
    fn shown<'c>(&self, chat: &'c ValidChat) -> &'c [Tool] {
        match self {
            Self::Off => &[],
            Self::Free | Self::Forced(_) => &chat.tools,
        }
    }
}

fn unsupported(param: &str, message: &str) -> Refused {
    Refused::Unsupported {
        param: param.to_owned(),
        message: message.to_owned(),
    }
}

/// No model of this node sees or hears yet.
fn text_only(chat: &ValidChat) -> Result<(), Refused> {
    for (at, message) in chat.messages.iter().enumerate() {
        let Some(config::wire::chat::Content::Parts(parts)) = &message.content else {
            continue;
        };
        if let Some(part) = parts.iter().position(config::wire::chat::Part::is_media) {
            return Err(unsupported(
                &format!("messages[{at}].content[{part}]"),
                "this model takes text only, no pictures or sound",
            ));
        }
    }
    Ok(())
}

/// The one form that the answer must take.
fn form(chat: &ValidChat, calling: &Calling<'_>) -> Result<Option<Grammar>, Refused> {
    let asked = match (&chat.response_format, &chat.generation.grammar) {
        (ResponseFormat::Text, None) => None,
        (ResponseFormat::Text, Some(grammar)) => Some(("grammar", Grammar::Gbnf(grammar.clone()))),
        (ResponseFormat::JsonObject { .. } | ResponseFormat::JsonSchema { .. }, None) => {
            Some(("response_format", Grammar::JsonSchema(answer_schema(chat)?)))
        }
        (ResponseFormat::JsonObject { .. } | ResponseFormat::JsonSchema { .. }, Some(_)) => {
            return Err(unsupported(
                "grammar",
                "grammar and response_format exclude each other; send one of them",
            ));
        }
    };
    match (calling, asked) {
        (Calling::Off, asked) => Ok(asked.map(|(_param, grammar)| grammar)),
        (Calling::Free, None) => Ok(None),
        (Calling::Forced(tools), None) => {
            strict_tools(chat, tools)?;
            Ok(Some(Grammar::JsonSchema(tools::call_schema(tools)?)))
        }
        (Calling::Free | Calling::Forced(_), Some((param, _grammar))) => Err(unsupported(
            param,
            "a form of the answer and tools exclude each other; send one of them, or tool_choice none",
        )),
    }
}

/// The schema of the answer, as far as a grammar can hold the answer to it; a strict one is held to all of it or refused.
fn answer_schema(chat: &ValidChat) -> Result<Value, Refused> {
    let asked = chat.response_format.schema().cloned();
    let mut schema = asked.unwrap_or_else(|| json!({"type": "object"}));
    if let ResponseFormat::JsonSchema { strict: true, .. } = chat.response_format {
        strictly(&schema, "response_format.json_schema.schema")?;
    }
    schema::tame(&mut schema);
    Ok(schema)
}

fn strict_tools(chat: &ValidChat, forced: &[&Tool]) -> Result<(), Refused> {
    for tool in forced {
        if tool.function.strict == Some(true)
            && let Some(parameters) = &tool.function.parameters
        {
            let same = |other: &Tool| other.function.name == tool.function.name;
            let at = chat.tools.iter().position(same).unwrap_or_default();
            strictly(parameters, &format!("tools[{at}].function.parameters"))?;
        }
    }
    Ok(())
}

fn strictly(schema: &Value, place: &str) -> Result<(), Refused> {
    schema::check(schema)
        .map_err(|inner| unsupported(&format!("{place}{}", inner.path), &inner.to_string()))
}

/// The template's variables: the caller's, and what follows from other fields.
fn variables(chat: &ValidChat, formed: bool) -> Map<String, Value> {
    let mut variables = chat.chat_template_kwargs.clone();
    let mut propose = |name: &str, value: Value| {
        variables.entry(name).or_insert(value);
    };
    if let Some(effort) = chat.reasoning_effort {
        propose("reasoning_effort", effort.as_str().into());
        if effort == ReasoningEffort::None {
            propose("enable_thinking", false.into());
        }
    }
    // A grammar leaves no room for thoughts.
    if formed {
        propose("enable_thinking", false.into());
    }
    variables
}

fn fill(spec: &mut GenerateSpec, generation: &valid::Generation, setting: &Setting<'_>) {
    spec.max_tokens = generation.max_tokens;
    spec.stop.clone_from(&generation.stop);
    spec.sampling = sampling(&generation.sampling, setting.defaults);
    spec.cache_prompt = generation.cache_prompt.unwrap_or(true);
    spec.deadline = Some(setting.deadline);
    spec.principal = setting.principal;
}

/// The request's values, else the tier's, else the engine's.
fn sampling(asked: &valid::Sampling, defaults: &SamplingDefaults) -> Sampling {
    let engine = Sampling::default();
    Sampling {
        temperature: number(asked.temperature)
            .or(defaults.temperature)
            .unwrap_or(engine.temperature),
        top_k: asked.top_k.or(defaults.top_k).unwrap_or(engine.top_k),
        top_p: number(asked.top_p)
            .or(defaults.top_p)
            .unwrap_or(engine.top_p),
        min_p: number(asked.min_p)
            .or(defaults.min_p)
            .unwrap_or(engine.min_p),
        typical_p: number(asked.typical_p).unwrap_or(engine.typical_p),
        repeat_penalty: number(asked.repeat_penalty)
            .or(defaults.repeat_penalty)
            .unwrap_or(engine.repeat_penalty),
        repeat_last_n: engine.repeat_last_n,
        presence_penalty: number(asked.presence_penalty).unwrap_or(engine.presence_penalty),
        frequency_penalty: number(asked.frequency_penalty).unwrap_or(engine.frequency_penalty),
        logit_bias: asked
            .logit_bias
            .iter()
            .filter_map(|(token, bias)| Some((i32::try_from(*token).ok()?, narrow(*bias))))
            .collect(),
        seed: asked.seed.map(i64::cast_unsigned),
    }
}

fn number(value: Option<f64>) -> Option<f32> {
    value.map(narrow)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sampling values are small and need no more than seven digits"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

/// `n` times the same question; with a fixed seed each choice gets its own.
fn repeated(spec: &GenerateSpec, n: u32) -> Vec<GenerateSpec> {
    (0..n.max(1))
        .map(|index| {
            let mut spec = spec.clone();
            if let Some(seed) = &mut spec.sampling.seed {
                *seed = seed.wrapping_add(u64::from(index));
            }
            spec
        })
        .collect()
}

#[cfg(test)]
mod tests;
