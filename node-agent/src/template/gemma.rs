//! Gemma 4's own place for the results of tools: a field of the message that called them, not messages of their own. Pure.

use serde_json::{Map, Value};

/// Folds each result into the message that asked for it, and the answer after the last result into the same turn.
pub(super) fn folded(messages: Vec<Value>) -> Vec<Value> {
    let mut folded: Vec<Value> = Vec::with_capacity(messages.len());
    // Whether the last message is an open turn of the model: calls, perhaps with results, no answer yet.
    let mut open = false;
    for message in messages {
        let role = message
            .get("role")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let turn = folded.last_mut().and_then(Value::as_object_mut);
        match (turn, role) {
            (Some(turn), "tool") if open => add_response(turn, &message),
            (Some(turn), "assistant")
                if open
                    && turn.contains_key("tool_responses")
                    && is_answer(&message)
                    && is_silent(turn) =>
            {
                if let Some(content) = message.get("content") {
                    turn.insert("content".to_owned(), content.clone());
                }
                open = false;
            }
            (Some(_) | None, _) => {
                open = role == "assistant" && has_calls(&message);
                folded.push(message);
            }
        }
    }
    folded
}

fn has_calls(message: &Value) -> bool {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    calls.is_some_and(|calls| !calls.is_empty())
}

fn is_answer(message: &Value) -> bool {
    let content = message.get("content").and_then(Value::as_str);
    !has_calls(message) && content.is_some_and(|content| !content.is_empty())
}

fn is_silent(turn: &Map<String, Value>) -> bool {
    let content = turn.get("content").and_then(Value::as_str);
    content.is_none_or(str::is_empty)
}

fn add_response(turn: &mut Map<String, Value>, message: &Value) {
    let content = message.get("content").cloned().unwrap_or_default();
    let response = match content.as_str().map(serde_json::from_str::<Value>) {
        Some(Ok(parsed)) => parsed,
        Some(Err(_)) | None => content,
    };
    let name = called(turn, message);
    let responses = turn
        .entry("tool_responses")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Some(responses) = responses.as_array_mut() {
        responses.push(serde_json::json!({"name": name, "response": response}));
    }
}

/// The function that a result belongs to: by the id of its call, else by its place.
fn called(turn: &Map<String, Value>, message: &Value) -> String {
    let calls = turn.get("tool_calls").and_then(Value::as_array);
    let calls = calls.map(Vec::as_slice).unwrap_or_default();
    let id = message.get("tool_call_id");
    let by_id = id.and_then(|id| calls.iter().find(|call| call.get("id") == Some(id)));
    let place = turn
        .get("tool_responses")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    by_id
        .or_else(|| calls.get(place))
        .and_then(|call| call.pointer("/function/name"))
        .or_else(|| message.get("name"))
        .or(id)
        .and_then(Value::as_str)
        .unwrap_or("unknown")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_and_the_answer_join_the_turn_that_called() {
        let call = |id: &str, name: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": {}}});
        let messages = vec![
            json!({"role": "user", "content": "?"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call("1", "a"), call("2", "b")]}),
            json!({"role": "tool", "content": "{\"x\": 1}", "tool_call_id": "2"}),
            json!({"role": "tool", "content": "plain", "tool_call_id": "9"}),
            json!({"role": "assistant", "content": "done"}),
            json!({"role": "user", "content": "thanks"}),
            json!({"role": "assistant", "content": "bye"}),
        ];
        let folded = folded(messages);
        assert_eq!(folded.len(), 4);
        assert_eq!(folded[1]["content"], "done");
        assert_eq!(
            folded[1]["tool_responses"],
            json!([{"name": "b", "response": {"x": 1}}, {"name": "b", "response": "plain"}])
        );
        assert_eq!(folded[3]["content"], "bye");
    }

    #[test]
    fn a_second_call_begins_a_turn_of_its_own() {
        let call =
            json!([{"id": "1", "type": "function", "function": {"name": "a", "arguments": {}}}]);
        let messages = vec![
            json!({"role": "assistant", "content": "", "tool_calls": call}),
            json!({"role": "tool", "content": "1", "tool_call_id": "1"}),
            json!({"role": "assistant", "content": "", "tool_calls": call}),
            json!({"role": "tool", "content": "2", "tool_call_id": "1"}),
        ];
        let folded = folded(messages);
        assert_eq!(folded.len(), 2);
        assert_eq!(folded[1]["tool_responses"][0]["response"], 2);
    }
}
