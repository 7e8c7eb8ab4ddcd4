//! The error body of the OpenAI surface. Knows the shape alone: which refusal becomes which status is decided by the gateway.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// `{"error": {...}}`: the only shape whose message every SDK shows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong. `param` and `code` are written as `null` when absent, because the schema requires all four members.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorDetail {
    /// For people: what, the value, and what would be right.
    #[serde(default)]
    pub message: String,
    /// The family, e.g. `invalid_request_error`.
    #[serde(rename = "type", default, deserialize_with = "text_or_empty")]
    pub kind: String,
    /// The path of the field at fault, e.g. `messages[2].content[0].image_url`.
    #[serde(default, deserialize_with = "text")]
    pub param: Option<String>,
    /// The word a program looks at, e.g. `model_not_found`.
    #[serde(default, deserialize_with = "text")]
    pub code: Option<String>,
    /// Further members: `retry_after_s`, `limit`, `used`, `resets_at`, `request_id`, ...
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ErrorBody {
    /// An error without `param`.
    pub fn new(kind: &str, code: &str, message: impl Into<String>) -> Self {
        Self {
            error: ErrorDetail {
                message: message.into(),
                kind: kind.to_owned(),
                param: None,
                code: Some(code.to_owned()),
                extra: Map::new(),
            },
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: Option<String>) -> Self {
        self.error.param = param;
        self
    }

    /// Adds one further member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.error.extra.insert(name.to_owned(), value.into());
        self
    }

    /// The body as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings, numbers and maps with string keys always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A string; numbers become text, because llama-server sends `code` as a number.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(D::Error::custom("expected a string, a number or null"))
        }
    }
}

fn text_or_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(text(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_four_members_are_always_written() {
        let body = ErrorBody::new("server_error", "overloaded", "queue full");
        let json = serde_json::to_string(&body).expect("serialises");
        assert_eq!(
            json,
            r#"{"error":{"message":"queue full","type":"server_error","param":null,"code":"overloaded"}}"#
        );
    }

    #[test]
    fn numeric_code_of_llama_server_is_read_as_text() {
        let body: ErrorBody = serde_json::from_str(
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
        )
        .expect("parses");
        assert_eq!(body.error.code.as_deref(), Some("503"));
        assert_eq!(body.error.param, None);
    }

    #[test]
    fn further_members_survive_a_round_trip() {
        let body = ErrorBody::new("insufficient_quota", "insufficient_quota", "used up")
            .with_param(Some("model".to_owned()))
            .with("limit", 100);
        let again: ErrorBody = serde_json::from_slice(&body.to_bytes()).expect("parses");
        assert_eq!(again, body);
    }
}
