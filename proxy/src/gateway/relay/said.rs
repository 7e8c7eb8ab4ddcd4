//! What was said of an answer so far, as far as another model can go on with it: plain text after whatever was thought, nothing of a
//! call. Kept only where the request allows that.

use serde_json::Value;

/// Text that an answer may have and be gone on with; more is not carried to another model.
const BYTES_MAX: usize = 256 * 1024;

/// The text of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    text: String,
    /// It has something that is no text: nobody goes on from there.
    has_more: bool,
}

impl Said {
    /// Takes in what a chunk says.
    pub(super) fn hear(&mut self, chunk: &Value) {
        let Some(delta) = chunk.pointer("/choices/0/delta") else {
            return;
        };
        let text = delta.get("content").and_then(Value::as_str);
        self.text.push_str(text.unwrap_or_default());
        let calls = delta.get("tool_calls").and_then(Value::as_array);
        self.has_more |= calls.is_some_and(|calls| !calls.is_empty());
        self.has_more |= self.text.len() > BYTES_MAX;
    }

    /// The text, if another model can go on from there.
    pub(super) fn text(&self) -> Option<&str> {
        (!self.has_more && !self.text.trim().is_empty()).then_some(self.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(deltas: &[Value]) -> Option<String> {
        let mut said = Said::default();
        for delta in deltas {
            said.hear(&json!({"choices": [{"index": 0, "delta": delta}]}));
        }
        said.text().map(ToOwned::to_owned)
    }

    #[test]
    fn text_can_be_gone_on_with_and_nothing_else() {
        let thought = json!({"reasoning_content": "hm"});
        let (one, two) = (json!({"content": "one "}), json!({"content": "two"}));
        let call = json!({"tool_calls": [{"index": 0}]});
        assert_eq!(said(&[one.clone(), two]).as_deref(), Some("one two"));
        assert_eq!(
            said(&[thought.clone(), one.clone()]).as_deref(),
            Some("one ")
        );
        assert_eq!(said(&[thought]), None, "nobody goes on with a thought");
        assert_eq!(said(&[one, call]), None);
        assert_eq!(said(&[json!({"content": " \n"})]), None);
    }
}
