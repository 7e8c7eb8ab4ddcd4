//! From a checked request to what the engine is asked: prompt, sampling, grammar, and how the answer will be split. Pure: the time
//! is an argument, nothing is started here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use config::settings::node::SamplingDefaults;
use config::wire::chat::{ResponseFormat, Tool, ToolChoice};
use config::wire::valid::{self, ReasoningEffort, ValidChat, ValidCompletion};
use config::wire::wishes::Priority;
use engine::{Fim, GenerateSpec, Grammar, Modalities, Prompt, Segment};
use serde_json::{Map, Value, json};

use crate::media;
use crate::reply::Refused;
use crate::schema;
use crate::template::{Conversation, Piece, Template};
use crate::tools::grammar::{self, Said, Shape};
use crate::tools::splitter::{SplitRules, Start};
use crate::tools::toolbox::Toolbox;

mod sampling;

/// What a request is planned with, besides itself.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The model's template.
    pub template: &'a Template,
    /// The tier's defaults.
    pub defaults: &'a SamplingDefaults,
    /// What the model takes besides text.
    pub modalities: Modalities,
    /// Time left.
    pub deadline: Duration,
    /// Whose request it is.
    pub principal: u64,
    /// Its class in the queue.
    pub priority: Priority,
    /// The links of its conversation, oldest first.
    pub links: &'a [u64],
    /// How the answer begins, said by another model: this one goes on from there.
    pub said: Option<&'a str>,
    /// Tokens that each answer may have, whatever the body says.
    pub max_tokens: Option<u32>,
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
    /// Where in the request each picture and sound stands.
    pub media_places: Vec<String>,
}

/// Plans a chat.
pub fn plan(chat: &ValidChat, setting: &Setting<'_>) -> Result<Plan, Refused> {
    let found = media::decode(chat, setting.modalities)?;
    let calling = Calling::of(chat)?;
    let (prompt, form) = shaped(chat, &calling, setting)?;
    let format = setting.template.format();
    let parses = !matches!(calling, Calling::Off);
    let thoughts = setting.template.thoughts();
    let mut spec = GenerateSpec::from_template("");
    spec.prompt = segments(prompt.pieces);
    spec.media = found.media;
    fill(&mut spec, &chat.generation, setting);
    spec.logprobs = chat.logprobs;
    spec.render_special =
        (parses && format.is_special()) || thoughts.is_some_and(|tags| tags.special);
    if parses && chat.parallel_tool_calls == Some(false) && form.grammar.is_none() {
        let close = format.close();
        spec.stop
            .extend((!close.is_empty()).then(|| close.to_owned()));
    }
    spec.grammar = form.grammar;
    Ok(Plan {
        specs: repeated(&spec, chat.generation.n),
        rules: SplitRules {
            calls: parses.then_some(format),
            thoughts,
            start: if prompt.thinking {
                Start::Thought
            } else {
                Start::Turn
            },
            toolbox: Arc::new(Toolbox::new(&calling.tools())),
            hold: parses && !form.exact,
        },
        form_param: match calling {
            Calling::Forced(_) => "tools",
            Calling::Free(_) if chat.response_format == ResponseFormat::Text => "tools",
            Calling::Off | Calling::Free(_) if chat.generation.grammar.is_some() => "grammar",
            Calling::Off | Calling::Free(_) => "response_format",
        },
        media_places: found.places,
    })
}

/// The prompt of a chat as text, as a person would see it.
pub fn prompt_text(chat: &ValidChat, setting: &Setting<'_>) -> Result<String, Refused> {
    let calling = Calling::of(chat)?;
    let prompt = rendered(chat, &calling, setting, false)?;
    let texts = prompt.pieces.iter().map(|piece| match piece {
        Piece::Text(text) | Piece::Literal(text) => text.as_str(),
        Piece::Media(_) => "",
    });
    Ok(texts.collect())
}

/// A rendered prompt.
struct Rendered {
    pieces: Vec<Piece>,
    /// It ends within a thought.
    thinking: bool,
}

fn rendered(
    chat: &ValidChat,
    calling: &Calling<'_>,
    setting: &Setting<'_>,
    without_thoughts: bool,
) -> Result<Rendered, Refused> {
    // Whoever goes on with what is said thinks no more.
    let without_thoughts = without_thoughts || setting.said.is_some();
    let extra = variables(chat, without_thoughts);
    let conversation = Conversation {
        messages: &chat.messages,
        tools: calling.shown(chat),
        extra: Some(&extra),
        now: setting.now,
    };
    let mut pieces = setting.template.render(&conversation)?;
    let tags = setting.template.thoughts();
    let ends_with = |tag: &str| matches!(pieces.last(), Some(Piece::Text(text)) if text.trim_end().ends_with(tag));
    let mut thinking = tags.is_some_and(|tags| ends_with(tags.open));
    if let Some(tags) = tags
        && thinking
        && without_thoughts
    {
        // The template has no way to leave thoughts out.
        pieces.push(Piece::Text(format!("\n{}\n\n", tags.close)));
        thinking = false;
    }
    if let Some(said) = setting.said {
        pieces.push(Piece::Literal(said.to_owned()));
    }
    Ok(Rendered { pieces, thinking })
}

/// A grammar for the answer, and whether it holds calls to their functions.
#[derive(Default)]
struct Form {
    grammar: Option<Grammar>,
    exact: bool,
}

/// The prompt and the form of the answer belong together: whether thoughts come first decides both.
fn shaped(
    chat: &ValidChat,
    calling: &Calling<'_>,
    setting: &Setting<'_>,
) -> Result<(Rendered, Form), Refused> {
    let schema = answer_schema(chat)?;
    if let Some(gbnf) = &chat.generation.grammar {
        let form = own_grammar(gbnf, schema.is_some(), calling)?;
        return Ok((rendered(chat, calling, setting, true)?, form));
    }
    let prompt = rendered(chat, calling, setting, false)?;
    let thoughts = setting
        .template
        .thoughts()
        .map(|tags| (tags, prompt.thinking));
    let tools = calling.tools();
    let said = match (calling, &schema) {
        (Calling::Forced(_), _) => Said::Nothing,
        (Calling::Off, None) => return Ok((prompt, Form::default())),
        (Calling::Free(_), None) => Said::Anything,
        (Calling::Off | Calling::Free(_), Some(schema)) => Said::Json(schema),
    };
    let made = grammar::make(&Shape {
        calls: (setting.template.format(), &tools),
        parallel: chat.parallel_tool_calls != Some(false),
        said,
        thoughts,
    });
    match (made, schema) {
        // What our rules cannot say, the engine's own may; thoughts must then stay out.
        (made, Some(schema))
            if matches!(calling, Calling::Off)
                && (thoughts.is_none() || made.as_ref().is_none_or(|made| !made.exact)) =>
        {
            let form = Form {
                grammar: Some(Grammar::JsonSchema(schema)),
                exact: true,
            };
            Ok((rendered(chat, calling, setting, true)?, form))
        }
        (Some(made), _) => {
            strictly_made(chat, calling, made.exact)?;
            let form = Form {
                grammar: Some(Grammar::Gbnf(made.text)),
                exact: made.exact,
            };
            Ok((prompt, form))
        }
        // Nothing but the model itself makes calls fit; they are checked before they leave.
        (None, None) if matches!(calling, Calling::Free(_)) => Ok((prompt, Form::default())),
        (None, _) => Err(unsupported(
            "tools",
            "these functions and schemas make too long a grammar; send fewer, or simpler ones",
        )),
    }
}

fn own_grammar(gbnf: &str, formed: bool, calling: &Calling<'_>) -> Result<Form, Refused> {
    if formed {
        return Err(unsupported(
            "grammar",
            "grammar and response_format exclude each other; send one of them",
        ));
    }
    if !matches!(calling, Calling::Off) {
        return Err(unsupported(
            "grammar",
            "grammar and tools exclude each other; send one of them, or tool_choice none",
        ));
    }
    Ok(Form {
        grammar: Some(Grammar::Gbnf(gbnf.to_owned())),
        exact: true,
    })
}

/// Plans a text completion: choices of the first prompt, then of the second, and so on.
pub fn plan_completion(
    completion: &ValidCompletion,
    setting: &Setting<'_>,
    fim: Option<Fim>,
) -> Result<Plan, Refused> {
    let mut specs = Vec::new();
    for prompt in &completion.prompts {
        let mut spec = GenerateSpec::from_template("");
        spec.prompt = match prompt {
            valid::Prompt::Text(text) if completion.suffix.is_some() => {
                let fim = fim.ok_or_else(|| no_fim("suffix"))?;
                let suffix = completion.suffix.as_deref().unwrap_or_default();
                let mut segments = hole(text, suffix, fim);
                segments.retain(|segment| *segment != Segment::Literal(String::new()));
                Prompt::Segments(segments)
            }
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
    Ok(Plan {
        specs,
        rules: SplitRules::default(),
        media_places: Vec::new(),
        form_param: "grammar",
    })
}

/// The two sides of a hole with the tokens that name them, as models were trained: before, after, and then what is between.
pub(crate) fn hole(before: &str, after: &str, fim: Fim) -> Vec<Segment> {
    vec![
        Segment::Tokens(vec![fim.prefix]),
        Segment::Literal(before.to_owned()),
        Segment::Tokens(vec![fim.suffix]),
        Segment::Literal(after.to_owned()),
        Segment::Tokens(vec![fim.middle]),
    ]
}

/// The refusal of a model that was not trained to fill holes.
pub(crate) fn no_fim(param: &str) -> Refused {
    Refused::Unsupported {
        param: param.to_owned(),
        message: "this model cannot fill a hole in a text: its vocabulary has no tokens for that; use a model for code, or send the text before the hole as prompt alone".to_owned(),
    }
}

/// What is done about tools.
enum Calling<'a> {
    /// None offered, or none wanted.
    Off,
    /// The model decides among these.
    Free(Vec<&'a Tool>),
    /// One of these.
    Forced(Vec<&'a Tool>),
}

impl<'a> Calling<'a> {
    fn of(chat: &'a ValidChat) -> Result<Self, Refused> {
        if chat.tools.is_empty() {
            return Ok(Self::Off);
        }
        let forced: Vec<&Tool> = match &chat.tool_choice {
            ToolChoice::None => return Ok(Self::Off),
            ToolChoice::Auto => return Ok(Self::Free(chat.tools.iter().collect())),
            ToolChoice::Required => chat.tools.iter().collect(),
            ToolChoice::Function(name) => {
                let named = |tool: &&Tool| tool.function.name == *name;
                chat.tools.iter().filter(named).collect()
            }
        };
        if forced.is_empty() {
            return Err(unsupported("tool_choice", "it names none of the tools"));
        }
        Ok(Self::Forced(forced))
    }

    /// The tools that the template shows.
    fn shown<'c>(&self, chat: &'c ValidChat) -> &'c [Tool] {
        match self {
            Self::Off => &[],
            Self::Free(_) | Self::Forced(_) => &chat.tools,
        }
    }

    /// The tools that may be called.
    fn tools(&self) -> Vec<&'a Tool> {
        match self {
            Self::Off => Vec::new(),
            Self::Free(tools) | Self::Forced(tools) => tools.clone(),
        }
    }
}

fn unsupported(param: &str, message: &str) -> Refused {
    Refused::Unsupported {
        param: param.to_owned(),
        message: message.to_owned(),
    }
}

/// The schema of the answer, as far as a grammar can hold the answer to it; a strict one is held to all of it or refused.
fn answer_schema(chat: &ValidChat) -> Result<Option<Value>, Refused> {
    if chat.response_format == ResponseFormat::Text {
        return Ok(None);
    }
    let asked = chat.response_format.schema().cloned();
    let mut schema = asked.unwrap_or_else(|| json!({"type": "object"}));
    let place = "response_format.json_schema.schema";
    well_formed(&schema, place)?;
    if let ResponseFormat::JsonSchema { strict: true, .. } = chat.response_format {
        strictly(&schema, place)?;
    }
    schema::tame(&mut schema);
    Ok(Some(schema))
}

/// Strict functions, and a strict form beside functions, are held to all of their schemas or refused.
fn strictly_made(chat: &ValidChat, calling: &Calling<'_>, exact: bool) -> Result<(), Refused> {
    for tool in calling.tools() {
        let Some(parameters) = &tool.function.parameters else {
            continue;
        };
        let same = |other: &Tool| other.function.name == tool.function.name;
        let at = chat.tools.iter().position(same).unwrap_or_default();
        let place = format!("tools[{at}].function.parameters");
        well_formed(parameters, &place)?;
        if tool.function.strict == Some(true) && matches!(calling, Calling::Forced(_)) {
            strictly(parameters, &place)?;
        }
    }
    if let ResponseFormat::JsonSchema { strict: true, .. } = chat.response_format
        && !exact
        && matches!(calling, Calling::Free(_))
    {
        return Err(unsupported(
            "response_format",
            "beside tools, a strict schema may only use type, properties, required, items, enum, const, anyOf and lengths; leave the rest out, or set strict to false",
        ));
    }
    Ok(())
}

fn well_formed(schema: &Value, place: &str) -> Result<(), Refused> {
    schema::well_formed(schema).map_err(|inner| Refused::Malformed {
        param: format!("{place}{}", inner.path),
        message: inner.to_string(),
    })
}

fn strictly(schema: &Value, place: &str) -> Result<(), Refused> {
    schema::check(schema)
        .map_err(|inner| unsupported(&format!("{place}{}", inner.path), &inner.to_string()))
}

/// The template's variables: the caller's, and what follows from other fields.
fn variables(chat: &ValidChat, without_thoughts: bool) -> Map<String, Value> {
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
    // Some grammars leave no room for thoughts.
    if without_thoughts {
        propose("enable_thinking", false.into());
    }
    variables
}

/// What the engine reads of a rendered prompt. Text as it is, unless something in it must not be taken for a control token.
fn segments(pieces: Vec<Piece>) -> Prompt {
    if pieces.iter().any(|piece| !matches!(piece, Piece::Text(_))) {
        let segments = pieces.into_iter().map(|piece| match piece {
            Piece::Text(text) => Segment::Text(text),
            Piece::Literal(text) => Segment::Literal(text),
            Piece::Media(index) => Segment::Media(index),
        });
        return Prompt::Segments(segments.collect());
    }
    let texts = pieces.into_iter().map(|piece| match piece {
        Piece::Text(text) | Piece::Literal(text) => text,
        Piece::Media(_) => String::new(),
    });
    Prompt::Text {
        text: texts.collect(),
        parse_special: true,
        add_special: true,
    }
}

pub(crate) fn fill(spec: &mut GenerateSpec, generation: &valid::Generation, setting: &Setting<'_>) {
    spec.max_tokens = generation.max_tokens;
    spec.tokens_at_most = setting.max_tokens;
    spec.stop.clone_from(&generation.stop);
    spec.sampling = sampling::merge(&generation.sampling, setting.defaults);
    spec.ignore_eos = generation.ignore_eos;
    spec.min_tokens = generation.min_tokens;
    spec.cache_prompt = generation.cache_prompt.unwrap_or(true);
    spec.deadline = Some(setting.deadline);
    spec.principal = setting.principal;
    spec.links = setting.links.to_vec();
    spec.priority = match setting.priority {
        Priority::Interactive => engine::Priority::Interactive,
        Priority::Normal => engine::Priority::Normal,
        Priority::Batch => engine::Priority::Batch,
    };
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
