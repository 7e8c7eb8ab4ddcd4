//! A streamed answer that another machine began goes on here as if nothing had happened, wherever it was cut: every token of it is
//! tried, in every form that an answer has.

use config::settings::node::{ReasoningFormat, TierSettings, ToolFormat};
use config::tier::Tier;
use config::wire::sse::Event;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::support::{Client, Node, post, scripted, tiny_fast};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A question whose answer names its tokens.
async fn stream(client: &mut Client, path: &str, body: &Value) -> Vec<Event> {
    let mut request = post(path, body);
    let mut put = |name: &'static str, value: &'static str| {
        let name = HeaderName::from_static(name);
        request
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    };
    put("x-hearth-tokens", "1");
    put("x-hearth-created", "1700000000");
    client.events(request).await
}

/// What a client has of the chunks, however they are cut: texts together, probabilities, calls, reasons, usage.
#[derive(Debug, Default, PartialEq)]
struct Said {
    roles: usize,
    content: String,
    thoughts: String,
    /// Id, name and arguments of each.
    calls: Vec<(Value, Value, String)>,
    text: String,
    logprobs: Vec<Value>,
    offsets: Vec<Value>,
    finish: Vec<Value>,
    usage: Value,
    constant: Vec<Value>,
    done: usize,
}

impl Said {
    fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut said = Self::default();
        for event in events {
            if event.is_done() {
                said.done += 1;
            } else {
                said.see(&serde_json::from_str(&event.data).expect("JSON"));
            }
        }
        said
    }

    fn see(&mut self, chunk: &Value) {
        assert!(chunk.get("error").is_none(), "{chunk}");
        let constant = json!([
            chunk["id"],
            chunk["created"],
            chunk["model"],
            chunk["system_fingerprint"]
        ]);
        if !self.constant.contains(&constant) {
            self.constant.push(constant);
        }
        if let Some(usage) = chunk["usage"].as_object() {
            let mut usage = usage.clone();
            // What was in the cache differs from machine to machine, and so does the power that they draw.
            usage.retain(|name, _| name != "prompt_tokens_details" && name != "joules");
            self.usage = usage.into();
            return;
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        self.roles += usize::from(delta["role"].is_string());
        self.content
            .push_str(delta["content"].as_str().unwrap_or_default());
        self.thoughts
            .push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        self.text
            .push_str(choice["text"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call);
        }
        for list in [
            "/logprobs/content",
            "/logprobs/tokens",
            "/logprobs/token_logprobs",
        ] {
            let entries = choice.pointer(list).and_then(Value::as_array);
            self.logprobs
                .extend(entries.into_iter().flatten().map(rounded));
        }
        let offsets = choice
            .pointer("/logprobs/text_offset")
            .and_then(Value::as_array);
        self.offsets.extend(offsets.into_iter().flatten().cloned());
        if !choice["finish_reason"].is_null() {
            self.finish.push(choice["finish_reason"].clone());
        }
    }

    fn call(&mut self, call: &Value) {
        let index = usize::try_from(call["index"].as_u64().expect("an index")).expect("few");
        while self.calls.len() <= index {
            self.calls.push((Value::Null, Value::Null, String::new()));
        }
        let (id, name, arguments) = &mut self.calls[index];
        for (known, new) in [(id, &call["id"]), (name, &call["function"]["name"])] {
            if !new.is_null() {
                assert!(known.is_null(), "told twice: {call}");
                *known = new.clone();
            }
        }
        arguments.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
    }
}

/// Sums in another order differ in the last digits.
fn rounded(entry: &Value) -> Value {
    match entry.as_f64() {
        Some(number) => json!(format!("{number:.3}")),
        None => entry.get("token").cloned().unwrap_or_else(|| entry.clone()),
    }
}

/// Cuts the answer at every token; returns the whole of it, with how many tokens it named.
async fn cut_everywhere(tier: TierSettings, path: &str, body: &Value) -> (Said, usize) {
    let node = Node::ready(vec![tier]).await;
    let mut client = node.client().await;
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = stream(&mut client, path, &body).await;
    let told: Vec<i32> = events
        .iter()
        .flat_map(|event| event.tokens.clone())
        .collect();
    let whole = Said::of(&events);
    assert_eq!(
        (whole.finish.len(), whole.done, whole.constant.len()),
        (1, 1, 1)
    );
    for k in 1..=told.len() {
        if !whole.logprobs.is_empty() && !is_told(&events, k) {
            // The probability of a token whose text is held back is not told, so nobody cuts there.
            continue;
        }
        body["_resume"] = json!({"tokens": told[..k]});
        let resumed = Said::of(&stream(&mut client, path, &body).await);
        // All that a client has who was told no more than these: events after the one with the last of them.
        let mut named = 0;
        let mut end = 0;
        for (place, event) in events.iter().enumerate() {
            named += event.tokens.len();
            if named > k {
                break;
            }
            if !event.tokens.is_empty() {
                end = place + 1;
            }
        }
        let mut expected = Said::of(&events[end..]);
        // An answer that goes on begins no second time; nothing was sent yet where nothing was complete.
        expected.roles = 0;
        assert_eq!(resumed, expected, "cut at {k} of {}", told.len());
    }
    (whole, told.len())
}

/// Whether a client can have been told exactly so many tokens.
fn is_told(events: &[Event], tokens: usize) -> bool {
    let sums = events.iter().scan(0, |sum, event| {
        *sum += event.tokens.len();
        Some(*sum)
    });
    sums.into_iter().any(|sum| sum == tokens)
}

fn hello(extra: Value) -> Value {
    let mut body = json!({"model": "auto", "temperature": 0, "seed": 5, "messages": [{"role": "user", "content": "Hello"}]});
    let Value::Object(extra) = extra else {
        panic!("an object");
    };
    body.as_object_mut().expect("an object").extend(extra);
    body
}

fn says(text: &str) -> TierSettings {
    scripted(Tier::Fast, &json!({ "say": text }))
}

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["city", "days"], "additionalProperties": false,
    }}})
}

#[tokio::test]
async fn plain_text_goes_on_at_any_of_64_tokens() {
    for (temperature, logprobs) in [(0.0, false), (1.0, false), (1.0, true)] {
        let body = hello(
            json!({"max_tokens": 64, "ignore_eos": true, "temperature": temperature, "logprobs": logprobs}),
        );
        let (whole, told) = cut_everywhere(tiny_fast(), CHAT, &body).await;
        assert_eq!(whole.usage["completion_tokens"], 64);
        assert!(told > 50 && whole.roles == 1, "{told}: {whole:?}");
        assert_eq!(whole.logprobs.is_empty(), !logprobs);
    }
}

/// A question that the tiny model can answer in one way only.
fn dictated(text: &str, extra: Value) -> Value {
    let mut body = hello(extra);
    body["grammar"] = format!("root ::= {}", json!(text)).into();
    body
}

/// The same as a prompt without a conversation.
fn old(mut body: Value) -> Value {
    let members = body.as_object_mut().expect("an object");
    members.remove("messages");
    members.insert("prompt".to_owned(), "Once upon a time".into());
    body
}

#[tokio::test]
async fn characters_of_many_bytes_are_never_split() {
    let text = "日本 😀 é 👩‍👩‍👧 ünï ";
    // One token a byte.
    let (whole, told) = cut_everywhere(says(text), CHAT, &hello(json!({}))).await;
    assert_eq!(whole.content, text);
    assert!(told > 30, "{told}");
    for (path, body) in [
        (CHAT, dictated(text, json!({}))),
        (TEXT, old(dictated(text, json!({})))),
    ] {
        let (whole, _) = cut_everywhere(tiny_fast(), path, &body).await;
        assert_eq!(format!("{}{}", whole.content, whole.text), text);
    }
}

#[tokio::test]
async fn old_completions_go_on_at_any_token() {
    for extra in [json!({}), json!({"logprobs": 2})] {
        let mut body = json!({"model": "auto", "prompt": "Once upon a time", "max_tokens": 64, "ignore_eos": true, "seed": 9, "temperature": 0.9});
        body.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("one").clone());
        let (whole, told) = cut_everywhere(tiny_fast(), TEXT, &body).await;
        assert_eq!(whole.usage["completion_tokens"], 64);
        assert!(told > 50, "{told}");
    }
}

#[tokio::test]
async fn a_call_of_a_tool_goes_on_at_any_token() {
    let forced = json!({"tools": [weather()], "tool_choice": "required", "max_tokens": 120, "parallel_tool_calls": false});
    let (whole, told) = cut_everywhere(tiny_fast(), CHAT, &hello(forced)).await;
    assert_eq!(
        (whole.calls.len(), &whole.finish[0]),
        (1, &json!("tool_calls"))
    );
    let arguments: Value = serde_json::from_str(&whole.calls[0].2).expect("JSON");
    assert!(arguments["days"].is_number() && told > 5, "{whole:?}");
}

#[tokio::test]
async fn text_and_several_calls_go_on_at_any_byte() {
    for (format, text, content, calls) in [
        (
            ToolFormat::Hermes,
            "Let me see <b>. <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"K\\u00f6ln\", \"days\": 3}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"東京\", \"days\": 1}}\n</tool_call>",
            "Let me see <b>.",
            2,
        ),
        (
            ToolFormat::QwenXml,
            "Well. <tool_call>\n<function=get_weather>\n<parameter=city>\nBonn (Rhein)\n</parameter>\n<parameter=days>\n12\n</parameter>\n</function>\n</tool_call>",
            "Well.",
            1,
        ),
    ] {
        let mut tier = says(text);
        tier.engine.tool_format = Some(format);
        let (whole, told) = cut_everywhere(tier, CHAT, &hello(json!({"tools": [weather()]}))).await;
        assert_eq!(
            (whole.content.trim(), whole.calls.len()),
            (content, calls),
            "{whole:?}"
        );
        assert_eq!(whole.finish[0], "tool_calls");
        assert!(told > 50, "{told}");
    }
}

#[tokio::test]
async fn thoughts_go_on_at_any_byte() {
    let mut tier =
        says("<think>Is it 7 < 8? é, yes</thin no</think>\n\nIt is <b>less</b>. </think>");
    tier.engine.reasoning_format = Some(ReasoningFormat::Think);
    let (whole, told) = cut_everywhere(tier, CHAT, &hello(json!({}))).await;
    assert_eq!(whole.thoughts.trim(), "Is it 7 < 8? é, yes</thin no");
    assert!(whole.content.starts_with("It is <b>less</b>"), "{whole:?}");
    assert!(told > 50, "{told}");
    let counted = whole.usage["completion_tokens_details"]["reasoning_tokens"].as_u64();
    assert!(counted > Some(20), "{}", whole.usage);
}

#[tokio::test]
async fn an_answer_of_a_schema_goes_on_at_any_token() {
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "warm": {"type": "boolean"}, "list": {"type": "array", "items": {"type": "integer", "maximum": 999, "minimum": 0}, "minItems": 2, "maxItems": 3}},
        "required": ["city", "warm", "list"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": true}});
    for temperature in [0.0, 1.0] {
        let body = hello(
            json!({"response_format": format, "max_tokens": 120, "temperature": temperature}),
        );
        let (whole, told) = cut_everywhere(tiny_fast(), CHAT, &body).await;
        let value: Value = serde_json::from_str(&whole.content).expect("JSON");
        assert!(value["list"].is_array() && told > 5, "{value}");
    }
}

#[tokio::test]
async fn a_stop_string_is_found_across_the_cut() {
    let text = "An END. And an ENDING, and the END of it all";
    let stops = json!({"stop": ["END of", "ENDLESS"]});
    for (tier, path, body) in [
        (says(text), CHAT, hello(stops.clone())),
        (tiny_fast(), CHAT, dictated(text, stops.clone())),
        (tiny_fast(), TEXT, old(dictated(text, stops.clone()))),
    ] {
        let (whole, _) = cut_everywhere(tier, path, &body).await;
        assert_eq!(
            format!("{}{}", whole.content, whole.text),
            "An END. And an ENDING, and the "
        );
        assert_eq!(whole.finish[0], "stop");
    }
}

#[tokio::test]
async fn a_beginning_that_makes_no_sense_is_refused() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    for (begun, extra) in [
        (json!({"tokens": "many"}), json!({})),
        (json!({"tokens": [-7]}), json!({})),
        (json!({"tokens": [9_999_999]}), json!({})),
        (json!({"tokens": [5, 6]}), json!({"n": 2})),
        (json!([5, 6]), json!({})),
    ] {
        let mut body = hello(extra);
        body["_resume"] = begun;
        let mut request = post(CHAT, &body);
        request
            .headers_mut()
            .insert("x-hearth-tokens", HeaderValue::from_static("1"));
        let answer = client.ask(request).await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_REQUEST,
            "{body}: {}",
            answer.json
        );
        assert!(
            answer.json["error"]["param"]
                .as_str()
                .is_some_and(|param| param.contains("resume")),
            "{}",
            answer.json
        );
    }
    let mut body = hello(json!({}));
    body["_resume"] = json!({"tokens": [5]});
    let answer = client.ask(post(CHAT, &body)).await;
    assert_eq!(
        answer.text(),
        "Hello! How can I help you today?",
        "nobody but a proxy that asks for tokens has a say"
    );
}
