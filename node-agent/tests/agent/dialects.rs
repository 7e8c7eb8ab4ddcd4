//! Calls of tools in every dialect: the grammar is loaded by the real engine, the model writes a call under it, and the splitter reads
//! back what was written.

use std::sync::Arc;

use config::wire::chat::Tool;
use config::wire::valid::ChatRequest;
use engine::{Event, Finish, GenerateSpec, Grammar, LoadSpec, Sampling, Worker};
use node_agent::tools::format::ToolFormat;
use node_agent::tools::grammar::{self, Said, Shape};
use node_agent::tools::splitter::{Part, SplitRules, Splitter, Start};
use node_agent::tools::toolbox::Toolbox;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{PATIENCE, launcher, model};

const FORMATS: [ToolFormat; 6] = [
    ToolFormat::Hermes,
    ToolFormat::Gemma4,
    ToolFormat::Llama3,
    ToolFormat::Mistral,
    ToolFormat::MistralArgs,
    ToolFormat::QwenXml,
];
const SEEDS: u64 = 6;

fn tools() -> Vec<Tool> {
    let tools = json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "minLength": 1, "maxLength": 12},
                "unit": {"enum": ["celsius", "fahrenheit", "it's \"hot\""]},
                "days": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
                "place": {"type": "object", "properties": {"north": {"type": "boolean"}, "zone": {"type": "null"}}, "required": ["north", "zone"], "additionalProperties": false},
            },
            "required": ["city", "unit", "days", "place"], "additionalProperties": false,
        }}},
        {"type": "function", "function": {"name": "stop", "parameters": {
            "type": "object", "properties": {"now": {"type": "boolean"}}, "required": ["now"], "additionalProperties": false,
        }}},
    ]);
    let body =
        json!({"model": "auto", "messages": [{"role": "user", "content": "x"}], "tools": tools});
    let chat = ChatRequest::parse(body.to_string().as_bytes());
    chat.expect("valid").tools
}

async fn worker() -> Worker {
    let mut spec = LoadSpec::new(model("tiny-fast-q8_0.gguf"));
    spec.n_ctx = 2_048;
    spec.threads = Some(1);
    let launcher = launcher();
    let spawned = Worker::spawn(&launcher.program, &launcher.args, spec).await;
    spawned.expect("loads").0
}

/// What the model writes, if it comes to an end of its own.
async fn written(worker: &Worker, gbnf: String, seed: u64) -> Option<String> {
    let prompt = "<|im_start|>user\nWeather in Paris?<|im_end|>\n<|im_start|>assistant\n";
    let mut ask = GenerateSpec::from_template(prompt);
    ask.max_tokens = Some(400);
    ask.grammar = Some(Grammar::Gbnf(gbnf));
    ask.render_special = true;
    ask.sampling = Sampling {
        temperature: 0.9,
        seed: Some(seed),
        ..Sampling::default()
    };
    let mut answer = worker.generate(ask).await.expect("accepted");
    let mut text = String::new();
    loop {
        match timeout(PATIENCE, answer.next()).await.expect("in time") {
            Some(Event::Piece { text: more, .. }) => text.push_str(&more),
            Some(Event::Done { finish, .. }) => return (finish == Finish::Stop).then_some(text),
            Some(Event::Refused(refusal)) => panic!("the grammar is refused: {refusal:?}"),
            Some(Event::Started { .. } | Event::Progress(_)) => {}
            None => panic!("ended without an answer"),
        }
    }
}

/// The calls that the splitter finds, from pieces of so many letters.
fn read(
    text: &str,
    format: ToolFormat,
    toolbox: &Arc<Toolbox>,
    letters: usize,
) -> Vec<(String, Value)> {
    let mut splitter = Splitter::new(SplitRules {
        calls: Some(format),
        thoughts: None,
        start: Start::Turn,
        toolbox: toolbox.clone(),
        hold: false,
    });
    let mut parts = Vec::new();
    let all: Vec<char> = text.chars().collect();
    for piece in all.chunks(letters) {
        splitter.push(&piece.iter().collect::<String>(), &mut parts);
    }
    splitter.finish(&mut parts);
    let mut calls: Vec<(String, String)> = Vec::new();
    for part in parts {
        match part {
            Part::Call { name, .. } => calls.push((name, String::new())),
            Part::Arguments { text, .. } => calls.last_mut().expect("a call").1.push_str(&text),
            Part::Text(said) | Part::Thought(said) => {
                panic!("{format:?}: {said:?} beside the calls of {text:?}")
            }
        }
    }
    let parsed = |arguments: &str| {
        serde_json::from_str(arguments)
            .unwrap_or_else(|error| panic!("{format:?}: {error} in {arguments:?} of {text:?}"))
    };
    calls
        .iter()
        .map(|(name, arguments)| (name.clone(), parsed(arguments)))
        .collect()
}

/// A value in Gemma's notation, as its template writes it.
fn gemma(value: &Value) -> String {
    match value {
        Value::String(text) => format!("<|\"|>{text}<|\"|>"),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(gemma).collect::<Vec<_>>().join(",")
        ),
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", gemma(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn xml(name: &str, arguments: &Value) -> String {
    let mut text = format!("<function={name}>\n");
    for (key, value) in arguments.as_object().expect("an object") {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        for part in ["<parameter=", key, ">\n", &value, "\n</parameter>\n"] {
            text.push_str(part);
        }
    }
    text + "</function>"
}

/// White space between the parts of JSON is the model's own choice.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

/// The calls written down again, in the dialect; the model's text must be that.
fn written_again(format: ToolFormat, calls: &[(String, Value)]) -> String {
    let (open, close) = (format.open(), format.close());
    let object = |key: &str, (name, arguments): &(String, Value)| {
        format!("{{\"name\":\"{name}\",\"{key}\":{arguments}}}")
    };
    match format {
        ToolFormat::Hermes => calls
            .iter()
            .map(|call| [open, &object("arguments", call), close].concat())
            .collect::<Vec<_>>()
            .concat(),
        ToolFormat::Llama3 => calls
            .iter()
            .map(|call| object("parameters", call))
            .collect::<Vec<_>>()
            .join(";"),
        ToolFormat::Mistral => {
            let calls: Vec<String> = calls.iter().map(|call| object("arguments", call)).collect();
            format!("{open}[{}]", calls.join(","))
        }
        ToolFormat::MistralArgs => calls
            .iter()
            .map(|(name, arguments)| format!("{open}{name}[ARGS]{arguments}"))
            .collect::<Vec<_>>()
            .concat(),
        ToolFormat::Gemma4 => calls
            .iter()
            .map(|(name, arguments)| format!("{open}call:{name}{}{close}", gemma(arguments)))
            .collect::<Vec<_>>()
            .concat(),
        ToolFormat::QwenXml => calls
            .iter()
            .map(|(name, arguments)| [open, &xml(name, arguments), close].concat())
            .collect::<Vec<_>>()
            .concat(),
    }
}

#[tokio::test]
async fn a_call_written_under_the_grammar_of_any_dialect_is_read_back_as_it_was_meant() {
    let worker = worker().await;
    let tools = tools();
    let tools: Vec<&Tool> = tools.iter().collect();
    let toolbox = Arc::new(Toolbox::new(&tools));
    for format in FORMATS {
        let made = |parallel| {
            let made = grammar::make(&Shape {
                calls: (format, &tools),
                parallel,
                said: Said::Nothing,
                thoughts: None,
            });
            made.expect("a grammar")
        };
        // One call alone, and one after the other as long as the model likes.
        let grammars = [made(false), made(true)];
        // Text of Qwen's and Gemma's calls runs to its end mark: no grammar holds it to a length.
        let bare = matches!(format, ToolFormat::QwenXml | ToolFormat::Gemma4);
        assert!(grammars.iter().all(|made| made.exact != bare), "{format:?}");
        let mut complete = 0;
        for (seed, made) in (0..SEEDS).zip(grammars.iter().cycle()) {
            // A wild model may go on for ever within a text.
            let Some(text) = written(&worker, made.text.clone(), seed).await else {
                continue;
            };
            complete += 1;
            let calls = read(&text, format, &toolbox, 3);
            assert!(!calls.is_empty(), "{format:?}: {text:?}");
            assert_eq!(
                calls,
                read(&text, format, &toolbox, usize::MAX),
                "{format:?}: {text:?}"
            );
            for (name, arguments) in &calls {
                if made.exact {
                    assert!(
                        toolbox.accepts(name, &arguments.to_string()),
                        "{format:?}: {text:?}"
                    );
                }
            }
            assert_eq!(
                squeezed(&written_again(format, &calls)),
                squeezed(&decoded(format, &text)),
                "{format:?}"
            );
        }
        assert!(
            complete >= 2,
            "{format:?}: only {complete} of {SEEDS} came to an end"
        );
    }
}

/// JSON may write a letter as an escape; ours are written out.
fn decoded(format: ToolFormat, text: &str) -> String {
    match format {
        ToolFormat::Gemma4 | ToolFormat::QwenXml => text.to_owned(),
        ToolFormat::Hermes | ToolFormat::Llama3 | ToolFormat::Mistral | ToolFormat::MistralArgs => {
            normal(text)
        }
    }
}

/// Every JSON text within quotation marks written as we write it.
fn normal(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, quoted)) = rest.split_once('"') {
        out.push_str(before);
        let mut ends = quoted.match_indices('"').map(|(at, _mark)| at);
        let whole = ends.find_map(|at| {
            let candidate = format!("\"{}\"", quoted.get(..at)?);
            let text: Value = serde_json::from_str(&candidate).ok()?;
            Some((text, quoted.get(at + 1..)?))
        });
        let (value, after) = whole.expect("a JSON text");
        out.push_str(&value.to_string());
        rest = after;
    }
    out + rest
}
