//! Stories of bounds: what is refused, what is just accepted, what is ignored.

use serde_json::{Map, Value, json};

use super::super::*;
use super::{chat, with};

#[test]
fn fields_out_of_bounds_are_refused_with_their_path() {
    let long = "x".repeat(1000);
    refused(&[
        ("model", json!(""), "model"),
        ("model", json!(null), "model"),
        ("model", json!("a\nb"), "model"),
        ("model", json!(long), "model"),
        ("messages", json!([]), "messages"),
        ("messages", json!("Hi"), "messages"),
        ("messages", json!(null), "messages"),
        ("messages", json!(vec![1; 2049]), "messages"),
        ("stream", json!("true"), "stream"),
        (
            "stream_options",
            json!({"include_usage": 1}),
            "stream_options.include_usage",
        ),
        ("temperature", json!(2.1), "temperature"),
        ("temperature", json!(-0.1), "temperature"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!(1.01), "top_p"),
        ("top_k", json!(-2), "top_k"),
        ("top_k", json!(1.5), "top_k"),
        ("min_p", json!(2), "min_p"),
        ("typical_p", json!(-1), "typical_p"),
        ("repeat_penalty", json!(0), "repeat_penalty"),
        ("presence_penalty", json!(3), "presence_penalty"),
        ("frequency_penalty", json!(-2.5), "frequency_penalty"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!(-1), "max_tokens"),
        ("max_tokens", json!(2_147_483_648_u64), "max_tokens"),
        ("max_completion_tokens", json!(0), "max_completion_tokens"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("stop", json!(["a", ""]), "stop[1]"),
        ("stop", json!(["a", 1]), "stop[1]"),
        ("stop", json!(5), "stop"),
        ("seed", json!(1.5), "seed"),
        ("n", json!(9), "n"),
        ("n", json!(0), "n"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"5": 101}), "logit_bias.5"),
        ("top_logprobs", json!(3), "top_logprobs"),
        ("top_logprobs", json!(21), "top_logprobs"),
    ]);
}

#[test]
fn tools_and_formats_out_of_bounds_are_refused_with_their_path() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    refused(&[
        ("tools", json!([{"type": "retrieval"}]), "tools[0].type"),
        ("tools", json!([{"type": "function"}]), "tools[0].function"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a b"}}]),
            "tools[0].function.name",
        ),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "f", "parameters": []}}]),
            "tools[0].function.parameters",
        ),
        ("tools", json!([tool, tool]), "tools[1]"),
        ("tool_choice", json!("sometimes"), "tool_choice"),
        ("tool_choice", json!("required"), "tool_choice"),
        (
            "tool_choice",
            json!({"type": "function", "function": {"name": "g"}}),
            "tool_choice",
        ),
        ("parallel_tool_calls", json!(1), "parallel_tool_calls"),
        (
            "response_format",
            json!({"type": "xml"}),
            "response_format.type",
        ),
        (
            "response_format",
            json!({"type": "json_schema"}),
            "response_format.json_schema",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "a"}}),
            "response_format.json_schema.schema",
        ),
        ("response_format", json!("json"), "response_format"),
        ("reasoning_effort", json!("huge"), "reasoning_effort"),
        ("chat_template_kwargs", json!([]), "chat_template_kwargs"),
        (
            "chat_template_kwargs",
            json!({"a": "x".repeat(20_000)}),
            "chat_template_kwargs",
        ),
        (
            "grammar",
            json!("x".repeat(GRAMMAR_BYTES_MAX + 1)),
            "grammar",
        ),
        ("user", json!(5), "user"),
        ("metadata", json!({"a": 1}), "metadata.a"),
        ("tier", json!("huge"), "tier"),
    ]);
}

#[test]
fn fields_at_their_bounds_are_accepted() {
    let bias: Map<String, Value> = (0..LOGIT_BIAS_MAX)
        .map(|id| (id.to_string(), json!(-100)))
        .collect();
    for (key, value) in [
        ("temperature", json!(0)),
        ("temperature", json!(2)),
        ("top_p", json!(0)),
        ("top_k", json!(0)),
        // What llama.cpp and vLLM write for "off".
        ("top_k", json!(-1)),
        ("max_tokens", json!(2_147_483_647)),
        ("max_tokens", json!(16.0)),
        ("max_tokens", json!(null)),
        ("stop", json!("\n")),
        ("stop", json!(["a", "b", "c", "d"])),
        ("stop", json!([])),
        ("seed", json!(i64::MIN)),
        ("n", json!(8)),
        ("logit_bias", Value::Object(bias)),
        (
            "messages",
            json!(vec![json!({"role": "user", "content": ""}); MESSAGES_MAX]),
        ),
        ("tool_choice", json!("none")),
        ("tools", json!([])),
        ("response_format", json!({"type": "text"})),
        ("tier", json!("auto")),
        ("modalities", json!(["text"])),
        ("stream_options", json!(null)),
    ] {
        if let Err(error) = chat(&with(key, value.clone())) {
            panic!("{key} = {value}: {error}");
        }
    }
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    for key in ["audio", "web_search_options", "moderation"] {
        let error = chat(&with(key, json!({}))).expect_err("refused");
        assert_eq!(error.code, InvalidCode::UnsupportedParameter);
        assert_eq!(error.param.as_deref(), Some(key));
        chat(&with(key, Value::Null)).expect("null is absent");
    }
    let error = chat(&with("modalities", json!(["text", "audio"]))).expect_err("refused");
    assert_eq!(error.code, InvalidCode::UnsupportedParameter);
}

#[test]
fn ignored_fields_are_not_unknown_and_unknown_ones_are_counted() {
    let mut body = with("store", json!(true));
    for key in [
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "verbosity",
    ] {
        body[key] = json!("auto");
    }
    body["zeta"] = json!(1);
    body["alpha"] = json!({"deep": [1]});
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.unknown.count, 2);
    assert_eq!(chat.unknown.names, ["alpha", "zeta"]);
}

#[test]
fn names_of_unknown_fields_are_bounded() {
    let mut body = with("stream", json!(true));
    for index in 0..100 {
        body[format!("{}{index}", "x".repeat(500))] = json!(1);
    }
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.unknown.count, 100);
    assert!(chat.unknown.names.len() <= 16);
    assert!(chat.unknown.names.iter().all(|name| name.len() <= 64));
}

fn refused(cases: &[(&str, Value, &str)]) {
    for (key, value, param) in cases {
        let Err(error) = chat(&with(key, value.clone())) else {
            panic!("{key} = {value} was accepted");
        };
        assert_eq!(
            error.param.as_deref(),
            Some(*param),
            "{key} = {value}: {error}"
        );
        assert!(error.message.len() < 300, "{error}");
    }
}
