//! The grammar of an answer that may or must call tools, think first, and take a form: one grammar over all of it, in the words of the
//! model's own format. Pure.

use config::wire::chat::Tool;
use serde_json::Value;

use super::format::{ThinkTags, ToolFormat};
use super::notation::{Notation, Rules, literal, parameters_of};

/// Calls of one answer, at most.
const CALLS_MAX: usize = 16;
/// A longer grammar is not sent to the engine.
const BYTES_MAX: usize = 60 * 1024;

/// What an answer may be.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// How the model writes calls, and the functions; empty for none.
    pub calls: (ToolFormat, &'a [&'a Tool]),
    /// More than one call.
    pub parallel: bool,
    /// What may be said instead of a call.
    pub said: Said<'a>,
    /// Thoughts before all else, and whether the prompt opened one already.
    pub thoughts: Option<(ThinkTags, bool)>,
}

/// What may be said instead of a call.
#[derive(Clone, Copy, Debug)]
pub enum Said<'a> {
    /// Nothing: a call must come.
    Nothing,
    /// Whatever the model likes.
    Anything,
    /// A value of this schema.
    Json(&'a Value),
}

/// A grammar.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Made {
    /// In llama.cpp's notation.
    pub text: String,
    /// Whether arguments and answers that follow it also follow their schemas.
    pub exact: bool,
}

/// Writes the grammar; `None` if it would be longer than an engine should be asked to read.
pub fn make(shape: &Shape<'_>) -> Option<Made> {
    let mut rules = Rules::new();
    rules.set("root", "\"\"");
    let (format, tools) = shape.calls;
    let calls = (!tools.is_empty()).then(|| calls(&mut rules, format, tools, shape.parallel));
    let opened = calls.map(|calls| {
        if format == ToolFormat::Llama3 {
            calls
        } else {
            format!("{} {calls}", literal(format.open()))
        }
    });
    let body = match (shape.said, opened) {
        (Said::Nothing, Some(calls)) => calls,
        (Said::Nothing, None) => return None,
        (Said::Json(schema), calls) => {
            let json = rules.value(schema, schema, Notation::Json);
            calls.map_or_else(|| json.clone(), |calls| format!("({calls} | {json})"))
        }
        // Without an opening mark nothing tells a call from text.
        (Said::Anything, _) if format == ToolFormat::Llama3 => return None,
        (Said::Anything, Some(_opened)) => {
            let calls = self::calls(&mut rules, format, tools, shape.parallel);
            rules.text_or("said", format.open(), &calls)
        }
        (Said::Anything, None) => return None,
    };
    let root = match shape.thoughts {
        // Free text may think as it likes.
        _ if matches!(shape.said, Said::Anything) => body,
        None => body,
        Some((tags, opened)) => {
            rules.set("gap", "[ \\t\\n]{0,4}");
            let after = rules.add("answer", format!("gap {body}"));
            let thought = rules.until("thought", tags.close, &after);
            if opened {
                thought
            } else {
                format!("gap {} {thought} | gap {body}", literal(tags.open))
            }
        }
    };
    rules.set("root", root);
    let text = rules.text();
    (text.len() <= BYTES_MAX).then(|| Made {
        exact: rules.is_exact(),
        text,
    })
}

/// A rule for all that follows the mark which opens a call, further calls included.
fn calls(rules: &mut Rules, format: ToolFormat, tools: &[&Tool], parallel: bool) -> String {
    let each: Vec<String> = tools
        .iter()
        .map(|tool| match format {
            ToolFormat::Hermes | ToolFormat::Mistral => object(rules, tool, "arguments"),
            ToolFormat::Llama3 => object(rules, tool, "parameters"),
            ToolFormat::MistralArgs => {
                let parameters = parameters(rules, tool, Notation::Json);
                let name = literal(&format!("{}[ARGS]", tool.function.name));
                rules.add("call", format!("{name} {parameters}"))
            }
            ToolFormat::Gemma4 => {
                let parameters = parameters(rules, tool, Notation::Gemma);
                let name = literal(&format!("call:{}", tool.function.name));
                rules.add("call", format!("{name} {parameters}"))
            }
            ToolFormat::QwenXml => xml(rules, tool),
        })
        .collect();
    let ws = rules.space();
    let one = rules.add("one", each.join(" | "));
    let more = if parallel { CALLS_MAX - 1 } else { 0 };
    let close = literal(format.close());
    let open = literal(format.open());
    let body = match format {
        ToolFormat::Hermes => {
            let call = rules.add("tagged", format!("{ws} {one} {ws} {close}"));
            format!("{call} ({ws} {open} {call}){{0,{more}}}")
        }
        ToolFormat::QwenXml => {
            let call = rules.add("tagged", format!("\"\\n\" {one} \"\\n\" {close}"));
            format!("{call} (\"\\n\" {open} {call}){{0,{more}}}")
        }
        ToolFormat::Gemma4 => {
            let call = rules.add("tagged", format!("{one} {close}"));
            format!("{call} ({open} {call}){{0,{more}}}")
        }
        ToolFormat::Llama3 => format!("{one} (\"; \" {one}){{0,{more}}}"),
        ToolFormat::Mistral => {
            format!("{ws} \"[\" {one} ({ws} \",\" {ws} {one}){{0,{more}}} \"]\"")
        }
        ToolFormat::MistralArgs => format!("{one} ({open} {one}){{0,{more}}}"),
    };
    rules.add("calls", body)
}

fn object(rules: &mut Rules, tool: &Tool, key: &str) -> String {
    let parameters = parameters(rules, tool, Notation::Json);
    let ws = rules.space();
    let name = literal(&Value::from(tool.function.name.as_str()).to_string());
    let key = literal(&format!("\"{key}\""));
    let label = literal("\"name\"");
    rules.add(
        "call",
        format!(
            "\"{{\" {ws} {label} {ws} \":\" {ws} {name} {ws} \",\" {ws} {key} {ws} \":\" {ws} {parameters} {ws} \"}}\""
        ),
    )
}

fn parameters(rules: &mut Rules, tool: &Tool, notation: Notation) -> String {
    match &tool.function.parameters {
        None => rules.any_object(notation),
        Some(parameters) => {
            let schema = parameters_of(Some(parameters));
            // A reference of one tool is not that of another.
            rules.forget();
            rules.value(&schema, &schema, notation)
        }
    }
}

fn xml(rules: &mut Rules, tool: &Tool) -> String {
    let schema = parameters_of(tool.function.parameters.as_ref());
    rules.forget();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut body = literal(&format!("<function={}>\n", tool.function.name));
    for (name, property) in properties.into_iter().flatten() {
        let open = literal(&format!("<parameter={name}>\n"));
        let parameter = if crate::schema::validate::is_text(property, &schema) {
            let constrained = ["enum", "const", "minLength", "maxLength"];
            if constrained
                .iter()
                .any(|keyword| property.get(keyword).is_some())
            {
                rules.loosen();
            }
            let value = rules.until("text", "</parameter>", "\"\\n\"");
            format!("{open} {value}")
        } else {
            let value = rules.value(property, &schema, Notation::Json);
            format!("{open} {value} {}", literal("\n</parameter>\n"))
        };
        let parameter = rules.add("parameter", parameter);
        body.push(' ');
        body.push_str(&parameter);
        if !required.contains(&name.as_str()) {
            body.push('?');
        }
    }
    body.push(' ');
    body.push_str(&literal("</function>"));
    rules.add("function", body)
}
