//! Tools, calls of tools, and the old `functions` that are mapped to them.

use std::collections::HashSet;

use serde_json::Value;

use super::read::{Object, as_object, invalid, kind_of, quote, unsupported};
use super::{Invalid, SCHEMA_BYTES_MAX, TOOLS_MAX};
use crate::wire::chat::{Function, FunctionCall, Tool, ToolCall, ToolChoice, ToolKind};

const NAME_BYTES_MAX: usize = 128;
const ID_BYTES_MAX: usize = 256;

/// Tools and whether they are called.
pub(super) struct Toolbox {
    pub(super) tools: Vec<Tool>,
    pub(super) choice: ToolChoice,
}

/// `tools` and `tool_choice`, or the old `functions` and `function_call`.
pub(super) fn toolbox(body: &mut Object) -> Result<Toolbox, Invalid> {
    let (list, choice) = if body.has("functions") && !body.has("tools") {
        let tools = list(body, "functions", old_tool)?;
        let choice = choice(body, "function_call", &tools)?;
        (tools, choice)
    } else {
        let tools = list(body, "tools", tool)?;
        let choice = choice(body, "tool_choice", &tools)?;
        (tools, choice)
    };
    // Whatever of the old pair is left repeats the new one.
    drop(body.take("functions"));
    drop(body.take("function_call"));
    drop(body.take("tool_choice"));
    Ok(Toolbox {
        tools: list,
        choice,
    })
}

fn list(
    body: &mut Object,
    key: &str,
    read: fn(Object) -> Result<Tool, Invalid>,
) -> Result<Vec<Tool>, Invalid> {
    let items = body.array(key, TOOLS_MAX)?.unwrap_or_default();
    let mut tools = Vec::with_capacity(items.len());
    let mut names = HashSet::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{key}[{index}]");
        let size = serde_json::to_vec(&item).map_or(usize::MAX, |json| json.len());
        if size > SCHEMA_BYTES_MAX {
            let message = format!(
                "{size} bytes of JSON are too many; at most {SCHEMA_BYTES_MAX} for one tool"
            );
            return Err(invalid(path, message));
        }
        let tool = read(as_object(path.clone(), item)?)?;
        if !names.insert(tool.function.name.clone()) {
            let message = format!("the name {} comes twice", quote(&tool.function.name));
            return Err(invalid(path, message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool(mut object: Object) -> Result<Tool, Invalid> {
    let kind = object.required_string("type", ID_BYTES_MAX)?;
    if kind != "function" {
        let message = format!("{} is not offered; only function is", quote(&kind));
        return Err(unsupported(object.at("type"), message));
    }
    let Some(inner) = object.object("function")? else {
        return Err(invalid(
            object.at("function"),
            "missing; an object with name and parameters is required",
        ));
    };
    old_tool(inner)
}

fn old_tool(mut object: Object) -> Result<Tool, Invalid> {
    let name = object.required_string("name", NAME_BYTES_MAX)?;
    check_name(object.at("name"), &name)?;
    let parameters = object.object("parameters")?;
    Ok(Tool {
        kind: ToolKind::Function,
        function: Function {
            name,
            description: object.string("description", SCHEMA_BYTES_MAX)?,
            parameters: parameters.map(|schema| Value::Object(schema.into_map())),
            strict: object.boolean("strict")?,
        },
    })
}

fn check_name(path: String, name: &str) -> Result<(), Invalid> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
    if name.is_empty() || !name.chars().all(allowed) {
        let message = format!(
            "{} is not a name: 1 to {NAME_BYTES_MAX} letters, digits, _ - . : /",
            quote(name)
        );
        return Err(invalid(path, message));
    }
    Ok(())
}

fn choice(body: &mut Object, key: &str, tools: &[Tool]) -> Result<ToolChoice, Invalid> {
    let path = body.at(key);
    let choice = match body.take(key) {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(text)) => match text.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => {
                let message = format!("{} is not one of none, auto, required", quote(other));
                return Err(invalid(path, message));
            }
        },
        Some(value) => ToolChoice::Function(chosen(path.clone(), value)?),
    };
    if let ToolChoice::Function(name) = &choice
        && !tools.iter().any(|tool| tool.function.name == *name)
    {
        let message = format!("{} is not among the tools of this request", quote(name));
        return Err(invalid(path, message));
    }
    if choice == ToolChoice::Required && tools.is_empty() {
        return Err(invalid(path, "required without any tools"));
    }
    Ok(choice)
}

/// `{"type":"function","function":{"name":...}}`, or the old `{"name":...}`.
fn chosen(path: String, value: Value) -> Result<String, Invalid> {
    let mut object = as_object(path, value)?;
    match object.object("function")? {
        Some(mut function) => function.required_string("name", NAME_BYTES_MAX),
        None => object.required_string("name", NAME_BYTES_MAX),
    }
}

/// `tool_calls` of an assistant message.
pub(super) fn calls(message: &mut Object) -> Result<Vec<ToolCall>, Invalid> {
    let items = message.array("tool_calls", TOOLS_MAX)?.unwrap_or_default();
    let mut calls = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{}[{index}]", message.at("tool_calls"));
        let mut call = as_object(path, item)?;
        let id = call.required_string("id", ID_BYTES_MAX)?;
        let Some(function) = call.object("function")? else {
            return Err(invalid(
                call.at("function"),
                "missing; an object with name and arguments is required",
            ));
        };
        calls.push(ToolCall {
            id,
            kind: ToolKind::Function,
            function: called(function)?,
        });
    }
    Ok(calls)
}

/// The old `function_call` of an assistant message.
pub(super) fn function_call(message: &mut Object) -> Result<Option<FunctionCall>, Invalid> {
    message.object("function_call")?.map(called).transpose()
}

fn called(mut function: Object) -> Result<FunctionCall, Invalid> {
    let name = function.required_string("name", NAME_BYTES_MAX)?;
    let path = function.at("arguments");
    let arguments = match function.take("arguments") {
        None => "{}".to_owned(),
        Some(Value::String(text)) => text,
        // Ollama's clients send the object itself.
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(other) => {
            let message = format!("expected JSON text, got {}", kind_of(&other));
            return Err(invalid(path, message));
        }
    };
    Ok(FunctionCall { name, arguments })
}
