//! The functions of one request: which there are, what they take, and whether a call fits. Pure.

use config::wire::chat::Tool;
use serde_json::{Map, Value};

use crate::schema::validate;

/// The functions that an answer may call. The empty one knows nothing and lets everything pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Toolbox {
    functions: Map<String, Value>,
}

impl Toolbox {
    /// Those of a request.
    pub fn new(tools: &[&Tool]) -> Self {
        let functions = tools.iter().map(|tool| {
            let parameters = tool.function.parameters.clone();
            (
                tool.function.name.clone(),
                parameters.unwrap_or(Value::Bool(true)),
            )
        });
        Self {
            functions: functions.collect(),
        }
    }

    /// Whether there is such a function.
    pub fn knows(&self, name: &str) -> bool {
        self.functions.is_empty() || self.functions.contains_key(name)
    }

    /// Whether the arguments are an object that the function takes.
    pub fn accepts(&self, name: &str, arguments: &str) -> bool {
        let Ok(arguments @ Value::Object(_)) = serde_json::from_str(arguments) else {
            return false;
        };
        self.knows(name)
            && self
                .functions
                .get(name)
                .is_none_or(|schema| validate::check(&arguments, schema).is_ok())
    }

    /// Whether a parameter takes text and nothing else.
    pub fn is_text(&self, function: &str, parameter: &str) -> bool {
        self.functions.get(function).is_some_and(|schema| {
            let property = schema.get("properties").and_then(|all| all.get(parameter));
            property.is_some_and(|property| validate::is_text(property, schema))
        })
    }
}
