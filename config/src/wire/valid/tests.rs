//! Stories of requests: JSON, defaults, what reaches the node, and properties that hold for any bytes.

use proptest::prelude::*;
use serde_json::json;

use super::*;

mod ask;
mod bounds;
mod completion;
mod conversation;

fn chat(body: &Value) -> Result<ValidChat, Invalid> {
    ValidChat::parse(body.to_string().as_bytes())
}

fn completion(body: &Value) -> Result<ValidCompletion, Invalid> {
    ValidCompletion::parse(body.to_string().as_bytes())
}

/// A good request with one member set.
fn with(key: &str, value: Value) -> Value {
    let mut body = json!({"model": "auto", "messages": [{"role": "user", "content": "Hi"}]});
    body[key] = value;
    body
}

fn with_messages(messages: &Value) -> Value {
    json!({"model": "auto", "messages": messages})
}

const PIXEL: &str = "data:image/png;base64,iVBORw0KGgo=";

#[test]
fn the_smallest_request_has_defaults() {
    let chat = chat(&with("model", json!("auto"))).expect("valid");
    assert_eq!(chat.model, "auto");
    assert_eq!(chat.kind(), Kind::Text);
    assert!(!chat.stream);
    assert_eq!(chat.generation.n, 1);
    assert_eq!(chat.max_tokens(), None);
    assert_eq!(chat.tool_choice, ToolChoice::Auto);
    assert_eq!(chat.unknown, Unknown::default());
}

#[test]
fn only_honoured_fields_reach_the_node() {
    let mut body = with("stream", json!(true));
    for (key, value) in [
        ("user", json!("me")),
        ("metadata", json!({"a": "b"})),
        ("tier", json!("heavy")),
        ("store", json!(true)),
        ("evil", json!("x")),
        ("temperature", json!(0.7)),
        ("seed", json!(7)),
        ("logit_bias", json!({"9": -1, "3": 2.5})),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(2)),
        ("reasoning_effort", json!("low")),
        (
            "response_format",
            json!({"type": "json_object", "schema": {"type": "object"}}),
        ),
        ("chat_template_kwargs", json!({"enable_thinking": false})),
        ("grammar", json!("root ::= \"a\"")),
    ] {
        body[key] = value;
    }
    let chat = chat(&body).expect("valid");
    assert_eq!(chat.tier, Some(Tier::Heavy));
    assert!(!chat.include_usage(), "the client did not ask");
    assert_eq!(
        chat.to_node_body(),
        json!({
            "model": "auto",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": 0.7,
            "seed": 7,
            "logit_bias": {"3": 2.5, "9": -1.0},
            "grammar": "root ::= \"a\"",
            "logprobs": true,
            "top_logprobs": 2,
            "response_format": {"type": "json_object", "schema": {"type": "object"}},
            "reasoning_effort": "low",
            "chat_template_kwargs": {"enable_thinking": false},
        })
    );
}

/// Every rule of sampling, none at its default.
fn sampling() -> Vec<(&'static str, Value)> {
    vec![
        ("temperature", json!(0.5)),
        ("dynatemp_range", json!(0.25)),
        ("dynatemp_exponent", json!(1.5)),
        ("top_p", json!(0.75)),
        ("top_k", json!(30)),
        ("min_p", json!(0.125)),
        ("typical_p", json!(0.5)),
        ("top_n_sigma", json!(1.5)),
        ("xtc_probability", json!(0.5)),
        ("xtc_threshold", json!(0.25)),
        ("repeat_penalty", json!(1.25)),
        ("repeat_last_n", json!(-1)),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-0.5)),
        ("dry_multiplier", json!(0.5)),
        ("dry_base", json!(1.5)),
        ("dry_allowed_length", json!(3)),
        ("dry_penalty_last_n", json!(100)),
        ("dry_sequence_breakers", json!(["\n", "|"])),
        ("mirostat", json!(2)),
        ("mirostat_tau", json!(4.0)),
        ("mirostat_eta", json!(0.5)),
        ("seed", json!(-7)),
        ("logit_bias", json!({"5": -100.0})),
        ("ignore_eos", json!(true)),
        ("min_tokens", json!(3)),
    ]
}

#[test]
fn sampling_out_of_range_is_named_with_its_value_and_range() {
    for (key, value, range) in [
        ("temperature", json!(2.5), "2.5 is not a number from 0 to 2"),
        ("top_k", json!(-2), "-2 is not an integer from -1 to"),
        (
            "xtc_probability",
            json!(1.5),
            "1.5 is not a number from 0 to 1",
        ),
        ("dry_base", json!(0.5), "0.5 is not a number from 1 to 10"),
        ("mirostat", json!(3), "3 is not an integer from 0 to 2"),
        ("repeat_penalty", json!(0), "0 is outside"),
        ("dry_sequence_breakers", json!("x"), "expected an array"),
    ] {
        let refused = chat(&with(key, value)).expect_err(key);
        assert_eq!(refused.param.as_deref(), Some(key));
        assert!(
            refused.message.contains(range),
            "{key}: {}",
            refused.message
        );
    }
    let refused = chat(&with("dry_sequence_breakers", json!([""]))).expect_err("empty");
    assert_eq!(refused.param.as_deref(), Some("dry_sequence_breakers[0]"));
}

#[test]
fn the_names_of_vllm_mean_the_same() {
    let mut body = with("repetition_penalty", json!(1.25));
    body["guided_grammar"] = json!("root ::= \"a\"");
    let generation = chat(&body).expect("valid").generation;
    assert_eq!(generation.sampling.repeat_penalty, Some(1.25));
    assert_eq!(generation.grammar.as_deref(), Some("root ::= \"a\""));
}

#[test]
fn what_reaches_the_node_is_valid_there() {
    let mut body = with(
        "response_format",
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": true}}),
    );
    body["n"] = json!(2);
    body["stop"] = json!(["a"]);
    for (key, value) in sampling() {
        body[key] = value;
    }
    let first = chat(&body).expect("valid");
    for (key, value) in sampling() {
        assert_eq!(first.to_node_body()[key], value, "{key} reaches the node");
    }
    let second = chat(&first.to_node_body()).expect("valid at the node too");
    assert_eq!(second, first);
}

#[test]
fn what_is_not_json_is_refused_as_such() {
    let deep = format!(
        "{{\"model\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let wide = format!("{{\"x\":[{}0]}}", "0,".repeat(VALUES_MAX));
    let cases: [&[u8]; 9] = [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"null",
        b"{\"a\":1} {}",
        b"{\"a\":1,\"a\":2}",
        deep.as_bytes(),
        wide.as_bytes(),
    ];
    for bytes in cases {
        let error = ValidChat::parse(bytes).expect_err("refused");
        assert_eq!(error.code, InvalidCode::InvalidJson, "{error}");
        assert_eq!(error.param, None);
    }
    let error = ValidChat::parse(b"{\"model\":\"\xff\"}").expect_err("refused");
    assert_eq!(error.code, InvalidCode::InvalidJson);
    assert!(error.message.contains("UTF-8"), "{error}");
}

#[test]
fn nesting_up_to_the_bound_is_read() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let body = |levels| {
        format!(
            r#"{{"model":"auto","messages":[{{"role":"user","content":"x"}}],"extra":{}}}"#,
            nested(levels)
        )
    };
    ValidChat::parse(body(DEPTH_MAX - 1).as_bytes()).expect("within the bound");
    let error = ValidChat::parse(body(DEPTH_MAX + 1).as_bytes()).expect_err("beyond it");
    assert!(error.message.contains("64"), "{error}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z:;,/]{0,8}".prop_map(Value::from),
        Just(json!("user")),
        Just(json!("function")),
        Just(json!("image_url")),
        Just(json!(PIXEL)),
    ];
    let key = prop_oneof![
        Just("role".to_owned()),
        Just("content".to_owned()),
        Just("type".to_owned()),
        Just("text".to_owned()),
        Just("image_url".to_owned()),
        Just("url".to_owned()),
        Just("function".to_owned()),
        Just("name".to_owned()),
        Just("tool_calls".to_owned()),
        "[a-z]{1,4}",
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        drop(ValidChat::parse(&bytes));
        drop(ValidCompletion::parse(&bytes));
    }

    #[test]
    fn no_json_panics(
        keys in prop::collection::vec(prop::sample::select(vec![
            "model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "stop", "seed", "n", "logit_bias",
            "logprobs", "top_logprobs", "tools", "tool_choice", "functions", "function_call", "response_format", "reasoning_effort",
            "metadata", "prompt", "tier", "grammar", "chat_template_kwargs",
        ]), 0..6),
        values in prop::collection::vec(any_json(), 6),
    ) {
        let mut body = with("prompt", json!("Hi"));
        for (key, value) in keys.iter().zip(values) {
            body[*key] = value;
        }
        if let Ok(valid) = chat(&body) {
            let again = chat(&valid.to_node_body()).expect("what reaches the node is valid there");
            prop_assert_eq!(again.messages, valid.messages);
            prop_assert_eq!(again.generation, valid.generation);
        }
        drop(completion(&body));
    }

    #[test]
    fn any_cut_of_a_good_body_is_refused_and_does_not_panic(cut in 0..60_usize) {
        let text = with("stream", json!(true)).to_string();
        if let Some(head) = text.as_bytes().get(..cut.min(text.len() - 1)) {
            prop_assert!(ValidChat::parse(head).is_err());
        }
    }
}
