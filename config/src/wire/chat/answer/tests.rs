//! Stories of answers: written exactly, read tolerantly.

use serde_json::json;

use super::*;
use crate::wire::chat::FunctionCall;

fn chunk() -> ChatChunk {
    ChatChunk {
        id: "chatcmpl-1".to_owned(),
        object: CHUNK_OBJECT.to_owned(),
        created: 1,
        model: "tiny".to_owned(),
        choices: vec![ChunkChoice {
            index: 0,
            delta: Delta {
                role: Some(Role::Assistant),
                content: Some(String::new()),
                ..Delta::default()
            },
            logprobs: None,
            finish_reason: None,
        }],
        usage: None,
        system_fingerprint: None,
        timings: None,
        routing: None,
        extra: IndexMap::new(),
    }
}

#[test]
fn the_first_chunk_is_written_as_sdks_expect_it() {
    assert_eq!(
        serde_json::to_string(&chunk()).expect("serialises"),
        r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}"#
    );
}

#[test]
fn the_last_chunk_has_an_empty_delta() {
    let mut last = chunk();
    last.choices[0].delta = Delta::default();
    last.choices[0].finish_reason = Some(FinishReason::ToolCalls);
    assert!(last.finishes());
    let json = serde_json::to_value(&last).expect("serialises");
    assert_eq!(
        json["choices"][0],
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "tool_calls"})
    );
}

#[test]
fn usage_is_absent_null_or_there() {
    let absent = chunk();
    let null = ChatChunk {
        usage: Some(None),
        ..chunk()
    };
    let there = ChatChunk {
        usage: Some(Some(Usage::new(3, 4, 1))),
        choices: Vec::new(),
        ..chunk()
    };
    for (chunk, want) in [
        (absent, None),
        (null, Some(json!(null))),
        (
            there,
            Some(json!({
                "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 0},
            })),
        ),
    ] {
        let json = serde_json::to_value(&chunk).expect("serialises");
        assert_eq!(json.get("usage"), want.as_ref());
        let again: ChatChunk = serde_json::from_value(json).expect("parses");
        assert_eq!(again, chunk);
    }
}

#[test]
fn a_whole_answer_has_every_required_member() {
    let response = ChatResponse {
        id: "chatcmpl-1".to_owned(),
        object: CHAT_OBJECT.to_owned(),
        created: 1,
        model: "tiny".to_owned(),
        choices: vec![Choice {
            index: 0,
            message: ResponseMessage {
                role: Role::Assistant,
                content: None,
                refusal: None,
                reasoning_content: None,
                tool_calls: vec![ToolCall {
                    id: "call_1".to_owned(),
                    kind: ToolKind::Function,
                    function: FunctionCall {
                        name: "f".to_owned(),
                        arguments: "{}".to_owned(),
                    },
                }],
            },
            logprobs: None,
            finish_reason: FinishReason::ToolCalls,
        }],
        usage: None,
        system_fingerprint: None,
        timings: None,
        routing: None,
        extra: IndexMap::new(),
    };
    assert_eq!(
        serde_json::to_string(&response).expect("serialises"),
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}]}"#
    );
}

#[test]
fn chunks_of_llama_server_are_read() {
    let text = r#"{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1,"id":"x","model":"m","system_fingerprint":"b1",
        "object":"chat.completion.chunk","timings":{"cache_n":0,"prompt_n":9,"prompt_ms":1.5,"prompt_per_token_ms":0.1,"predicted_n":2,
        "predicted_ms":3.0,"predicted_per_second":9.5},"prompt_progress":{"total":9}}"#;
    let chunk: ChatChunk = serde_json::from_str(text).expect("parses");
    assert!(chunk.finishes());
    assert_eq!(chunk.timings.map(|timings| timings.predicted_n), Some(2));
    assert!(
        chunk.extra.contains_key("prompt_progress"),
        "a relay loses nothing"
    );
}

#[test]
fn pieces_of_a_tool_call_need_only_their_index() {
    let delta: Delta = serde_json::from_value(
        json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\"a"}}]}),
    )
    .expect("parses");
    assert_eq!(
        serde_json::to_value(&delta).expect("serialises"),
        json!({"tool_calls": [{"index": 1, "function": {"arguments": "{\"a"}}]})
    );
}
