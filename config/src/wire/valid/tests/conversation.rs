//! Stories of messages, media and tools.

use serde_json::json;

use super::super::*;
use super::{PIXEL, chat, with, with_messages};
use crate::wire::chat::{Content, Part, Role};

#[test]
fn media_is_counted_by_its_decoded_size() {
    let body = with_messages(&json!([{"role": "user", "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]}]));
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.kind(), Kind::Media);
    assert_eq!(chat.media_bytes(), 8 + 3);
    let Some(Content::Parts(parts)) = &chat.messages[0].content else {
        panic!("parts expected");
    };
    assert_eq!(parts.iter().filter(|part| part.is_media()).count(), 2);
    assert!(matches!(parts[0], Part::Text { .. }));
}

#[test]
fn media_that_cannot_be_taken_says_why() {
    let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let cases = [
        (
            image("https://example.org/cat.png"),
            "messages[0].content[0].image_url",
            "not fetched",
        ),
        (
            image("HTTP://169.254.169.254/"),
            "messages[0].content[0].image_url",
            "not fetched",
        ),
        (
            image("file:///etc/passwd"),
            "messages[0].content[0].image_url",
            "data:",
        ),
        (
            image("data:image/svg+xml;base64,AAAA"),
            "messages[0].content[0].image_url",
            "image/png",
        ),
        (
            image("data:image/png,AAAA"),
            "messages[0].content[0].image_url",
            "base64",
        ),
        (
            image("data:image/png;base64,"),
            "messages[0].content[0].image_url",
            "base64",
        ),
        (
            image("data:image/png;base64,A*=="),
            "messages[0].content[0].image_url",
            "base64",
        ),
        (
            image("data:image/png;base64,AAAAA"),
            "messages[0].content[0].image_url",
            "base64",
        ),
        (
            json!({"type": "image_url"}),
            "messages[0].content[0].image_url",
            "missing",
        ),
        (
            json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "midi"}}),
            "messages[0].content[0].input_audio.format",
            "wav",
        ),
        (
            json!({"type": "file", "file": {}}),
            "messages[0].content[0].type",
            "text",
        ),
        (
            json!({"text": "x"}),
            "messages[0].content[0].type",
            "missing",
        ),
        (json!("x"), "messages[0].content[0]", "object"),
    ];
    for (part, param, hint) in cases {
        let body = with_messages(&json!([{"role": "user", "content": [part]}]));
        let error = chat(&body).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some(param), "{part}");
        assert!(error.message.contains(hint), "{part}: {error}");
    }
}

#[test]
fn media_are_few_and_come_from_the_user() {
    let image = json!({"type": "image_url", "image_url": {"url": PIXEL}});
    let body = with_messages(&json!([{"role": "system", "content": [image]}]));
    let error = chat(&body).expect_err("refused");
    assert_eq!(error.param.as_deref(), Some("messages[0].content[0]"));
    let many = with_messages(&json!([{"role": "user", "content": vec![image; MEDIA_MAX + 1]}]));
    assert!(chat(&many).is_err(), "media are bounded");
}

#[test]
fn messages_that_make_no_sense_are_refused() {
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let cases = [
        (json!([{"content": "x"}]), "messages[0].role"),
        (
            json!([{"role": "robot", "content": "x"}]),
            "messages[0].role",
        ),
        (json!([{"role": "user"}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": 5}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": []}]),
            "messages[0].content",
        ),
        (json!([{"role": "assistant"}]), "messages[0].content"),
        (
            json!([{"role": "tool", "content": "x"}]),
            "messages[0].tool_call_id",
        ),
        (
            json!([{"role": "tool", "tool_call_id": "c1"}]),
            "messages[0].content",
        ),
        (
            json!([{"role": "function", "content": "x"}]),
            "messages[0].role",
        ),
        (
            json!([{"role": "assistant", "tool_calls": [{"id": "c1"}]}]),
            "messages[0].tool_calls[0].function",
        ),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]),
            "messages[0].tool_calls[0].id",
        ),
        (
            json!([{"role": "assistant", "tool_calls": vec![call; 129]}]),
            "messages[0].tool_calls",
        ),
        (json!(["x"]), "messages[0]"),
    ];
    for (messages, param) in cases {
        let error = chat(&with_messages(&messages)).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some(param), "{messages}: {error}");
    }
}

#[test]
fn conversation_with_tools_survives_the_way_to_the_node() {
    let mut body = with_messages(&json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"at\":\"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "easy"},
    ]));
    body["tools"] = json!([{"type": "function", "function": {
        "name": "weather", "description": "d", "strict": true,
        "parameters": {"type": "object", "properties": {"z": {}, "a": {}}}}}]);
    body["tool_choice"] = json!({"type": "function", "function": {"name": "weather"}});
    let node = chat(&body).expect("valid").to_node_body();
    assert_eq!(node["messages"], body["messages"]);
    assert_eq!(node["tools"], body["tools"]);
    assert_eq!(node["tool_choice"], body["tool_choice"]);
    assert!(
        node.to_string().contains(r#"{"z":{},"a":{}}"#),
        "a schema's order is kept"
    );
}

#[test]
fn old_functions_become_tools() {
    let mut body = with_messages(&json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "function_call": {"name": "weather", "arguments": {"at": "Rome"}}},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]));
    body["functions"] = json!([{"name": "weather", "parameters": {"type": "object"}}]);
    body["function_call"] = json!({"name": "weather"});
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.tools[0].function.name, "weather");
    assert_eq!(chat.tool_choice, ToolChoice::Function("weather".to_owned()));
    assert_eq!(
        chat.messages[1].tool_calls[0].function.arguments,
        r#"{"at":"Rome"}"#
    );
    assert_eq!(chat.messages[2].role, Role::Tool);
    assert_eq!(
        chat.messages[2].tool_call_id.as_deref(),
        Some(chat.messages[1].tool_calls[0].id.as_str())
    );
    assert_eq!(chat.unknown.count, 0);
}

#[test]
fn messages_of_errors_never_quote_the_conversation() {
    let secret = "the bank code is 1234";
    let bodies = [
        with_messages(&json!([{"role": "user", "content": {"text": secret}}])),
        with_messages(&json!([{"role": "user", "content": [{"type": "text", "text": [secret]}]}])),
        with_messages(&json!([{"role": "assistant", "content": secret, "tool_calls": secret}])),
        with("stop", json!([secret, secret, secret, secret, ""])),
        with("user", json!([secret])),
    ];
    for body in bodies {
        let error = chat(&body).expect_err("refused");
        assert!(!error.message.contains("bank"), "{error}");
    }
}

#[test]
fn newer_maximum_wins_and_developer_is_system() {
    let mut body = with_messages(&json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"},
    ]));
    body["max_tokens"] = json!(5);
    body["max_completion_tokens"] = json!(9);
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.max_tokens(), Some(9));
    let roles: Vec<Role> = chat.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::System, Role::User]);
    assert_eq!(chat.messages[1].text(), "Hi");
}
