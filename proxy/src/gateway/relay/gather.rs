//! A whole answer out of the chunks of a stream, in the form in which a node would have given it at once. Chats and text completions
//! with one choice; knows no request and sends nothing.

use config::wire::chat::CHAT_OBJECT;
use config::wire::completion::COMPLETION_OBJECT;
use serde_json::{Map, Value, json};

/// Text and calls of one answer: as much as a whole answer of a node may have.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Members of chunks that are no part of a whole answer, or are written anew.
const OWN: [&str; 9] = [
    "id",
    "object",
    "created",
    "model",
    "choices",
    "usage",
    "timings",
    "prompt_progress",
    "_routing",
];

/// An answer so far.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Of the first chunk: what is the same on all.
    first: Option<Value>,
    /// Further members, as they came last.
    extra: Map<String, Value>,
    content: String,
    thoughts: String,
    calls: Vec<Call>,
    /// Of either surface, as the chunks have them.
    logprobs: Map<String, Value>,
    finish_reason: Value,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Call {
    index: u64,
    id: String,
    name: String,
    arguments: String,
}

impl Gather {
    /// Adds one chunk; false: the answer is larger than any answer can be.
    pub(super) fn take(&mut self, chunk: &Value) -> bool {
        if self.first.is_none() {
            self.first = Some(chunk.clone());
        }
        for (name, value) in chunk.as_object().into_iter().flatten() {
            if !OWN.contains(&name.as_str()) {
                self.extra.insert(name.clone(), value.clone());
            }
        }
        let Some(choice) = chunk.pointer("/choices/0") else {
            return true;
        };
        if let Some(text) = choice.get("text").and_then(Value::as_str) {
            self.bytes += text.len();
            self.content.push_str(text);
        }
        if let Some(delta) = choice.get("delta") {
            self.delta(delta);
        }
        if let Some(Value::Object(lists)) = choice.get("logprobs") {
            self.logprobs(lists);
        }
        if let Some(reason) = choice.get("finish_reason").filter(|why| !why.is_null()) {
            self.finish_reason = reason.clone();
        }
        self.bytes <= BYTES_MAX
    }

    /// The answer, with the members that come at its end.
    pub(super) fn finish(self, last: [(&str, Option<Value>); 3]) -> Value {
        let first = self.first.unwrap_or_default();
        let is_text = first.get("object").and_then(Value::as_str) == Some(COMPLETION_OBJECT);
        let logprobs = if self.logprobs.is_empty() {
            Value::Null
        } else {
            Value::Object(self.logprobs)
        };
        let finish_reason = self.finish_reason;
        let choice = if is_text {
            json!({"text": self.content, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason})
        } else {
            let message = message(self.content, self.thoughts, self.calls);
            json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish_reason})
        };
        let object = if is_text {
            COMPLETION_OBJECT
        } else {
            CHAT_OBJECT
        };
        let mut answer = json!({
            "id": first["id"],
            "object": object,
            "created": first["created"],
            "model": first["model"],
            "choices": [choice],
        });
        if let Some(members) = answer.as_object_mut() {
            members.extend(self.extra);
            let last = last.into_iter();
            members.extend(last.filter_map(|(name, value)| Some((name.to_owned(), value?))));
        }
        answer
    }

    fn delta(&mut self, delta: &Value) {
        let text = |name: &str| delta.get(name).and_then(Value::as_str).unwrap_or_default();
        self.bytes += text("content").len() + text("reasoning_content").len();
        self.content.push_str(text("content"));
        self.thoughts.push_str(text("reasoning_content"));
        let calls = delta.get("tool_calls").and_then(Value::as_array);
        for part in calls.into_iter().flatten() {
            self.call(part);
        }
    }

    fn call(&mut self, part: &Value) {
        let index = part.get("index").and_then(Value::as_u64).unwrap_or(0);
        let text = |path: &str| {
            part.pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        self.bytes += text("/function/name").len() + text("/function/arguments").len();
        let known = self.calls.iter().position(|call| call.index == index);
        let at = known.unwrap_or_else(|| {
            self.calls.push(Call {
                index,
                ..Call::default()
            });
            self.calls.len() - 1
        });
        if let Some(call) = self.calls.get_mut(at) {
            call.id.push_str(text("/id"));
            call.name.push_str(text("/function/name"));
            call.arguments.push_str(text("/function/arguments"));
        }
    }

    /// Lists grow, whatever they are called; anything else is as it came last.
    fn logprobs(&mut self, lists: &Map<String, Value>) {
        for (name, value) in lists {
            match (self.logprobs.get_mut(name), value) {
                (Some(Value::Array(known)), Value::Array(more)) => {
                    self.bytes += more.len() * size_of::<Value>();
                    known.extend(more.iter().cloned());
                }
                (_, value) => {
                    self.logprobs.insert(name.clone(), value.clone());
                }
            }
        }
    }
}

fn message(content: String, thoughts: String, calls: Vec<Call>) -> Value {
    let called_only = content.is_empty() && !calls.is_empty();
    let content = (!called_only).then_some(content);
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        let calls = calls.into_iter().map(|call| {
            let function = json!({"name": call.name, "arguments": call.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        });
        message["tool_calls"] = calls.collect();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(chunks: &[Value]) -> Value {
        let mut gather = Gather::default();
        for chunk in chunks {
            assert!(gather.take(chunk));
        }
        gather.finish([
            ("usage", Some(json!({"prompt_tokens": 1}))),
            ("timings", None),
            ("_routing", Some(json!({}))),
        ])
    }

    fn chunk(delta: &Value, finish_reason: Option<&str>) -> Value {
        json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny", "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}],
            "usage": null,
        })
    }

    #[test]
    fn text_and_thoughts_become_one_message() {
        let answer = gathered(&[
            chunk(&json!({"role": "assistant", "content": ""}), None),
            chunk(&json!({"reasoning_content": "Let me "}), None),
            chunk(&json!({"reasoning_content": "see."}), None),
            chunk(&json!({"content": "Hel"}), None),
            chunk(&json!({"content": "lo"}), None),
            chunk(&json!({}), Some("stop")),
        ]);
        assert_eq!(
            answer,
            json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "tiny", "system_fingerprint": "fp_1",
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello", "refusal": null, "reasoning_content": "Let me see."},
                    "logprobs": null, "finish_reason": "stop",
                }],
                "usage": {"prompt_tokens": 1}, "_routing": {},
            })
        );
    }

    #[test]
    fn calls_are_put_together_by_their_index() {
        let part = |call: Value| chunk(&json!({"tool_calls": [call]}), None);
        let answer = gathered(&[
            part(
                json!({"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            ),
            part(json!({"index": 0, "function": {"arguments": "{\"a\":"}})),
            part(
                json!({"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}}),
            ),
            part(json!({"index": 0, "function": {"arguments": "1}"}})),
            chunk(&json!({}), Some("tool_calls")),
        ]);
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        assert_eq!(
            message["tool_calls"],
            json!([
                {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
                {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ])
        );
    }

    #[test]
    fn probabilities_of_both_surfaces_are_joined() {
        let mut chat = chunk(&json!({"content": "a"}), None);
        chat["choices"][0]["logprobs"] = json!({"content": [{"token": "a"}], "refusal": null});
        let answer = gathered(&[chat.clone(), chat]);
        assert_eq!(
            answer["choices"][0]["logprobs"],
            json!({"content": [{"token": "a"}, {"token": "a"}], "refusal": null})
        );
        let text = |text: &str, offset: u32| {
            json!({"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "tiny", "choices": [{
                "text": text, "index": 0, "finish_reason": null,
                "logprobs": {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{}], "text_offset": [offset]},
            }]})
        };
        let answer = gathered(&[text("ab", 0), text("c", 2)]);
        assert_eq!(answer["choices"][0]["text"], "abc");
        assert_eq!(
            answer["choices"][0]["logprobs"]["text_offset"],
            json!([0, 2])
        );
        assert_eq!(answer["object"], "text_completion");
    }
}
