//! Answers of the tiny model through the HTTP surface.

use config::tier::Tier;
use http::StatusCode;
use serde_json::{Value, json};

use crate::support::{Node, chunks, content, model, post, tiny_fast};

fn hello() -> Value {
    json!({"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": "Hello"}]})
}

fn with(mut body: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object");
    };
    body.as_object_mut().expect("an object").extend(fields);
    body
}

#[tokio::test]
async fn a_chat_is_answered_by_the_model_with_usage_and_timings() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let answer = node.client().await.chat(&hello()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
    assert_eq!(answer.text(), "Hello! How can I help you today?");
    let json = &answer.json;
    assert_eq!(json["id"], "chatcmpl-test");
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["model"], "tiny-fast");
    let choice = &json["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &json["usage"];
    let tokens = |name: &str| usage[name].as_u64().expect("a number");
    assert!(tokens("prompt_tokens") > 0 && tokens("completion_tokens") > 0);
    assert_eq!(
        tokens("total_tokens"),
        tokens("prompt_tokens") + tokens("completion_tokens")
    );
    assert_eq!(json["timings"]["predicted_n"], usage["completion_tokens"]);
}

#[tokio::test]
async fn a_stream_says_the_same_in_the_order_of_the_schema() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let body = with(
        hello(),
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let events = client.stream("/v1/chat/completions", &body).await;
    let chunks = chunks(&events);
    assert_eq!(content(&chunks), "Hello! How can I help you today?");
    let first = &chunks[0]["choices"][0];
    assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
    let [.., finish, usage] = chunks.as_slice() else {
        panic!("too few chunks");
    };
    assert_eq!(finish["choices"][0]["delta"], json!({}));
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(finish["usage"], Value::Null);
    assert!(finish.get("usage").is_some(), "null is written");
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64() > Some(0));
    assert!(usage["timings"]["predicted_per_second"].as_f64() > Some(0.0));
    for chunk in &chunks {
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&chunks[0]["id"], &chunks[0]["created"])
        );
    }
}

#[tokio::test]
async fn progress_and_timings_come_with_the_chunks_if_asked_for() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let extras = json!({"stream": true, "return_progress": true, "timings_per_token": true});
    let mut client = node.client().await;
    let events = client
        .stream("/v1/chat/completions", &with(hello(), extras))
        .await;
    let chunks = chunks(&events);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let progress = &chunks[1]["prompt_progress"];
    assert!(
        progress["total"].as_u64() > progress["processed"].as_u64(),
        "{progress}"
    );
    let timings = &chunks.last().expect("chunks")["timings"];
    assert_eq!(timings["prompt_n"], progress["total"]);
    assert!(timings["predicted_n"].as_u64() > Some(0), "{timings}");
}

#[tokio::test]
async fn choices_stop_strings_and_log_probabilities_are_honoured() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let stopped = client.chat(&with(hello(), json!({"stop": [" How"]}))).await;
    assert_eq!(stopped.text(), "Hello!");
    assert_eq!(stopped.json["choices"][0]["finish_reason"], "stop");

    let short = client
        .chat(&with(hello(), json!({"max_tokens": 3, "n": 2})))
        .await;
    assert_eq!(short.json["choices"][1]["index"], 1);
    assert_eq!(short.json["choices"][1]["finish_reason"], "length");
    assert_eq!(short.json["usage"]["completion_tokens"], 6);

    let known = client
        .chat(&with(
            hello(),
            json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3}),
        ))
        .await;
    let content = known.json["choices"][0]["logprobs"]["content"].clone();
    let content = content.as_array().expect("a list");
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        content[0]["token"], content[0]["top_logprobs"][0]["token"],
        "greedy"
    );
}

#[tokio::test]
async fn choices_of_one_prompt_are_those_of_their_seeds_and_the_prompt_counts_once() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let wild = json!({"temperature": 1.5, "top_p": 0.95, "xtc_probability": 0.2, "dry_multiplier": 0.8, "max_tokens": 12});
    let mut alone = Vec::new();
    for seed in 7..10 {
        let fields = json!({"seed": seed});
        let answer = client
            .chat(&with(with(hello(), wild.clone()), fields))
            .await;
        alone.push(answer);
    }
    let all = client
        .chat(&with(with(hello(), wild), json!({"seed": 7, "n": 3})))
        .await;
    let usage = |answer: &Value, key: &str| answer["usage"][key].as_u64().expect("a number");
    let mut completion = 0;
    for (choice, alone) in alone.iter().enumerate() {
        assert_eq!(
            all.json["choices"][choice]["message"]["content"],
            alone.text()
        );
        completion += usage(&alone.json, "completion_tokens");
    }
    assert_eq!(usage(&all.json, "completion_tokens"), completion);
    assert_eq!(
        usage(&all.json, "prompt_tokens"),
        usage(&alone[0].json, "prompt_tokens")
    );
}

#[tokio::test]
async fn a_wrong_grammar_is_refused_with_its_line_and_column() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let refused = client
        .chat(&with(
            hello(),
            json!({"grammar": "root ::= \"a\"\nx ::= (y"}),
        ))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let error = &refused.json["error"];
    assert_eq!(error["param"], "grammar");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("line 2, column 7"), "{message}");

    let schema = json!({"type": "object", "properties": {"a": {"items": {"type": "text"}}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema}});
    let fields = json!({"response_format": format});
    let refused = client.chat(&with(hello(), fields)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        refused.json["error"]["param"],
        "response_format.json_schema.schema.properties.a.items.type"
    );
}

#[tokio::test]
async fn text_completions_are_answered_streamed_and_whole() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let body = json!({"model": "auto", "prompt": prompt, "temperature": 0, "logprobs": 1});
    let whole = client.ask(post("/v1/completions", &body)).await;
    assert_eq!(whole.json["object"], "text_completion");
    assert_eq!(
        whole.json["choices"][0]["text"],
        "Hello! How can I help you today?"
    );
    let offsets = &whole.json["choices"][0]["logprobs"]["text_offset"];
    assert_eq!(offsets[0], 0);
    let events = client
        .stream(
            "/v1/completions",
            &with(
                body,
                json!({"stream": true, "stream_options": {"include_usage": true}}),
            ),
        )
        .await;
    let chunks = chunks(&events);
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, "Hello! How can I help you today?");
    assert_eq!(
        chunks.last().expect("usage")["usage"]["total_tokens"],
        whole.json["usage"]["total_tokens"]
    );
}

/// The evaluation set in OpenAI's form.
fn request_of(eval: &Value) -> Value {
    let mut messages = Vec::new();
    let mut body = json!({"model": "auto", "temperature": 0, "max_tokens": 500});
    for turn in eval["m"].as_array().expect("turns") {
        match turn[0].as_str().expect("a role") {
            "tools" => body["tools"] = turn[1].clone(),
            "call" => messages.push(json!({"role": "assistant", "content": "", "tool_calls": [{
                "type": "function", "id": "call_1",
                "function": {"name": turn[1]["name"], "arguments": turn[1]["arguments"].to_string()},
            }]})),
            "tool" => messages.push(json!({"role": "tool", "tool_call_id": "call_1", "content": turn[1]})),
            role => messages.push(json!({"role": role, "content": turn[1]})),
        }
    }
    body["messages"] = messages.into();
    body
}

fn is_right(eval: &Value, message: &Value) -> bool {
    let Some(wanted) = eval.get("want_call") else {
        return message["content"] == eval["want"];
    };
    let called = &message["tool_calls"][0]["function"];
    let arguments = called["arguments"].as_str().unwrap_or("null");
    called["name"] == wanted["name"]
        && serde_json::from_str::<Value>(arguments).ok().as_ref() == Some(&wanted["arguments"])
}

fn evals() -> Vec<Value> {
    let text = std::fs::read_to_string(model("evals.json")).expect("the evaluation set");
    let evals: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let ours = |eval: &Value| eval["tier"] == "any" || eval["tier"] == "fast";
    evals.into_iter().filter(ours).collect()
}

#[tokio::test]
async fn the_evaluation_set_scores_as_with_llama_server() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let (mut right, mut calls, mut calls_right) = (0, 0, 0);
    for eval in evals() {
        let answer = client.chat(&request_of(&eval)).await;
        assert_eq!(answer.status, StatusCode::OK, "{eval}: {}", answer.json);
        let good = is_right(&eval, &answer.json["choices"][0]["message"]);
        right += usize::from(good);
        if eval.get("want_call").is_some() {
            calls += 1;
            calls_right += usize::from(good);
        }
    }
    // llama-server with the same file: 242 of 321, all tool calls. A few ties fall differently with another batch.
    assert!(right >= 238, "only {right} answers are right");
    assert_eq!(calls_right, calls, "every tool call is found");
}

fn first_tool_eval() -> Value {
    let is_call = |eval: &Value| eval.get("want_call").is_some();
    evals().into_iter().find(is_call).expect("has tool calls")
}

#[tokio::test]
async fn a_tool_call_streams_as_deltas_with_one_id() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let eval = first_tool_eval();
    let body = with(request_of(&eval), json!({"stream": true}));
    let events = node
        .client()
        .await
        .stream("/v1/chat/completions", &body)
        .await;
    let chunks = chunks(&events);
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["tool_calls"][0])
        .filter(|delta| !delta.is_null())
        .collect();
    assert!(
        deltas[0]["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("call_"))
    );
    assert_eq!(deltas[0]["function"]["name"], eval["want_call"]["name"]);
    assert!(deltas.iter().skip(1).all(|delta| delta.get("id").is_none()));
    let arguments: String = deltas
        .iter()
        .filter_map(|delta| delta["function"]["arguments"].as_str())
        .collect();
    let arguments: Value = serde_json::from_str(&arguments).expect("JSON");
    assert_eq!(arguments, eval["want_call"]["arguments"]);
    let finish = chunks.last().expect("chunks");
    assert_eq!(finish["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_required_tool_is_called_and_a_schema_is_followed() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    }}});
    let forced = with(
        hello(),
        json!({"tools": [tool], "tool_choice": "required", "max_tokens": 100}),
    );
    let answer = client.chat(&forced).await;
    let choice = &answer.json["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{}", answer.json);
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["name"],
        "get_weather"
    );

    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": true}});
    let formed = client
        .chat(&with(
            hello(),
            json!({"response_format": format, "max_tokens": 60}),
        ))
        .await;
    let value: Value =
        serde_json::from_str(formed.text()).unwrap_or_else(|_| panic!("{}", formed.json));
    assert!(value["ok"].is_boolean());

    let both = json!({"response_format": {"type": "json_object"}, "tool_choice": "auto"});
    let either = client.chat(&with(forced, both)).await;
    let message = &either.json["choices"][0]["message"];
    let formed = message["content"]
        .as_str()
        .is_some_and(|text| text.trim_start().starts_with('{'));
    assert!(
        formed || message["tool_calls"].is_array(),
        "a call or JSON: {}",
        either.json
    );
}

#[tokio::test]
async fn words_become_tokens_and_prompts_and_come_back() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let asked = json!({"content": "Hello there", "with_pieces": true});
    let tokens = client.ask(post("/tokenize", &asked)).await;
    let tokens = tokens.json["tokens"].as_array().expect("tokens").clone();
    let ids: Vec<&Value> = tokens.iter().map(|token| &token["id"]).collect();
    let back = client
        .ask(post("/detokenize", &json!({"tokens": ids})))
        .await;
    assert_eq!(back.json, json!({"content": "Hello there"}));
    let prompt = client.ask(post("/apply-template", &hello())).await;
    let prompt = prompt.json["prompt"].as_str().expect("a prompt");
    assert!(prompt.ends_with("<|im_start|>assistant\n"), "{prompt}");
}

#[tokio::test]
async fn tokens_are_counted_and_properties_shown() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let tokens = client
        .ask(post("/tokenize", &json!({"content": "Hello"})))
        .await;
    assert!(
        tokens.json["tokens"]
            .as_array()
            .is_some_and(|tokens| !tokens.is_empty())
    );
    let mut request = post("/props", &Value::Null);
    *request.method_mut() = http::Method::GET;
    let props = client.ask(request).await;
    assert_eq!(props.json["tiers"][0]["report"]["state"], "ready");
    assert_eq!(props.json["model_path"], "tiny-fast-q8_0.gguf");
    let folder = model("");
    let folder = folder.to_str().expect("text");
    assert!(
        !props.json.to_string().contains(folder),
        "the file's name is shown, its folder is nobody's business"
    );
    assert!(node.tiers.room(Tier::Heavy).is_none());
}

#[tokio::test]
async fn the_names_of_the_metrics_are_a_contract() {
    let node = Node::ready(vec![tiny_fast()]).await;
    node.client().await.chat(&hello()).await;
    node.metrics.report("ok");
    node.metrics.registration("ok");
    let text = node.metrics.text();
    let names: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    insta::assert_snapshot!(names.join("\n"));
    assert!(
        text.contains("hearth_node_requests_total{tier=\"fast\",outcome=\"ok\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("hearth_node_tier_ready{tier=\"fast\"} 1"),
        "{text}"
    );
}
