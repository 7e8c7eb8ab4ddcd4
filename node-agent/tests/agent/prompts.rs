//! What reaches the model: text of people stays text, a template of the settings takes the place of the model's own, and a conversation
//! that is too long is shortened with its sender's leave.

use config::settings::node::{ReasoningFormat, ToolFormat};
use config::tier::Tier;
use http::StatusCode;
use node_agent::tiers::Phase;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Client, Node, PATIENCE, chunks, content, post, tiny_fast};

/// A control token of the tiny model, among words that occur nowhere else in a prompt.
const MARKED: &str = "QQ<|im_end|>ZZ";
const CONTROL: &str = "<|im_end|>";

async fn tokens(client: &mut Client, text: &str, parse_special: bool) -> usize {
    let asked = json!({"content": text, "parse_special": parse_special});
    let answer = client.ask(post("/tokenize", &asked)).await;
    answer.json["tokens"].as_array().expect("tokens").len()
}

/// Tokens of a prompt in which the marked words are text, piece by piece; and if they were read as markup.
async fn counted(client: &mut Client, prompt: &str) -> (usize, usize) {
    let pieces: Vec<&str> = prompt.split(MARKED).collect();
    assert!(pieces.len() > 1, "the text is in the prompt: {prompt}");
    let mut text = 0;
    for (at, piece) in pieces.iter().enumerate() {
        let before = if at > 0 { "ZZ" } else { "" };
        let after = if at + 1 < pieces.len() { "QQ" } else { "" };
        text += tokens(client, &format!("{before}{piece}{after}"), true).await;
    }
    let as_text = tokens(client, CONTROL, false).await;
    assert!(as_text > 1, "as a control token it is one");
    let markup = tokens(client, prompt, true).await;
    (text + as_text * (pieces.len() - 1), markup)
}

#[tokio::test]
async fn a_control_token_that_somebody_wrote_reaches_the_model_as_text() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let tool = |description: &str| json!([{"type": "function", "function": {"name": "f", "description": description, "parameters": {"type": "object"}}}]);
    let called_as = |name: &str| {
        json!([
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "ok"},
        ])
    };
    let called = |arguments: &str, result: &str| {
        json!([
            {"role": "user", "content": "Go"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": result},
        ])
    };
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    let quoted = json!({ "a": MARKED }).to_string();
    let places = [
        ("content", json!({"messages": user(MARKED.into())})),
        (
            "a part of content",
            json!({"messages": user(json!([{"type": "text", "text": MARKED}]))}),
        ),
        (
            "the system message",
            json!({"messages": [{"role": "system", "content": MARKED}, {"role": "user", "content": "x"}]}),
        ),
        (
            "an earlier answer",
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARKED}, {"role": "user", "content": "y"}]}),
        ),
        (
            "a tool's result",
            json!({"messages": called("{}", MARKED), "tools": tool("d")}),
        ),
        (
            "arguments",
            json!({"messages": called(&quoted, "ok"), "tools": tool("d")}),
        ),
        (
            "the name in an earlier call",
            json!({"messages": called_as(MARKED), "tools": tool("d")}),
        ),
        (
            "a tool's description",
            json!({"messages": user("x".into()), "tools": tool(MARKED)}),
        ),
        (
            "two places",
            json!({"messages": called(&quoted, MARKED), "tools": tool("d")}),
        ),
    ];
    for (place, mut body) in places {
        body["model"] = "auto".into();
        body["max_tokens"] = 1.into();
        let prompt = client.ask(post("/apply-template", &body)).await;
        let prompt = prompt.json["prompt"].as_str().expect("a prompt").to_owned();
        let (text, markup) = counted(&mut client, &prompt).await;
        assert_ne!(text, markup, "{place}: the difference can be seen");
        let answer = client.chat(&body).await;
        assert_eq!(
            answer.json["usage"]["prompt_tokens"], text,
            "{place}: {}",
            answer.json
        );
        let count = client.ask(post("/count/v1/chat/completions", &body)).await;
        assert_eq!(count.json["prompt_tokens"], text, "{place}");
    }
}

#[tokio::test]
async fn no_function_is_named_with_a_control_token() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let function = json!({"type": "function", "function": {"name": CONTROL, "parameters": {"type": "object"}}});
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"model": "auto", "messages": messages, "tools": [function]});
    let answer = node.client().await.chat(&body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.json);
    assert_eq!(answer.json["error"]["param"], "tools[0].function.name");
}

#[tokio::test]
async fn a_template_of_the_settings_takes_the_place_of_the_models_own() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("chat.jinja");
    let source = "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}{{ tools is defined }}<think>";
    std::fs::write(&file, source).expect("writes");
    let mut tier = tiny_fast();
    tier.system = Some("House rules.".to_owned());
    tier.engine.chat_template_file = Some(file);
    tier.engine.tool_format = Some(ToolFormat::QwenXml);
    tier.engine.reasoning_format = Some(ReasoningFormat::None);
    let node = Node::ready(vec![tier]).await;
    let room = node.tiers.room(Tier::Fast).expect("configured");
    let ready = room.ready().expect("ready");
    assert_eq!(
        ready.template.format(),
        node_agent::tools::format::ToolFormat::QwenXml
    );
    assert_eq!(ready.template.thoughts(), None);
    let body =
        json!({"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]});
    let mut client = node.client().await;
    let prompt = client.ask(post("/apply-template", &body)).await;
    assert_eq!(
        prompt.json["prompt"],
        "[system: House rules.][user: Hi]False<think>"
    );
    let mut props = post("/props", &Value::Null);
    *props.method_mut() = http::Method::GET;
    assert_eq!(client.ask(props).await.json["chat_template"], source);
    let answer = client.chat(&body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
    assert_eq!(
        answer.json["choices"][0]["message"].get("reasoning_content"),
        None,
        "the settings say that nothing is a thought"
    );
}

#[tokio::test]
async fn a_template_that_is_none_keeps_the_tier_down_and_says_why() {
    let mut tier = tiny_fast();
    tier.engine.chat_template_file = Some("/nowhere/chat.jinja".into());
    let node = Node::start(vec![tier]);
    let room = node.tiers.room(Tier::Fast).expect("configured");
    let mut phases = room.phases();
    let down = phases.wait_for(|phase| matches!(phase, Phase::Down { .. }));
    drop(
        timeout(PATIENCE, down)
            .await
            .expect("goes down")
            .expect("lives"),
    );
    let reason = room.report().reason.expect("a reason");
    assert!(reason.contains("chat_template_file"), "{reason}");
}

/// A conversation of so many turns with about ten tokens of context for each.
fn long(turns: usize) -> Value {
    let mut messages = vec![json!({"role": "system", "content": "Remember the rules."})];
    for turn in 0..turns {
        messages.push(json!({"role": "user", "content": format!("Tell me about the old house and its garden, part {turn}, please.")}));
        messages.push(
            json!({"role": "assistant", "content": "The house is old and its garden is green."}),
        );
    }
    messages.push(json!({"role": "user", "content": "Hello"}));
    json!({"model": "auto", "temperature": 0, "max_tokens": 16, "messages": messages})
}

#[tokio::test]
async fn a_conversation_that_is_too_long_slides_with_its_senders_leave_and_says_so() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let mut body = long(150);
    let refused = client.chat(&body).await;
    assert_eq!(refused.code(), "context_length_exceeded");
    let most = refused.json["error"]["n_ctx"].as_u64().expect("n_ctx");

    body["context_overflow"] = "slide".into();
    let answer = client.chat(&body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
    let told = &answer.json["context"];
    assert_eq!(told["overflow"], "slide");
    let dropped = told["dropped_messages"].as_u64().expect("a number");
    assert!(
        dropped > 0 && dropped.is_multiple_of(2),
        "whole turns: {told}"
    );
    let used = answer.json["usage"]["prompt_tokens"]
        .as_u64()
        .expect("a number");
    assert!(used + 16 <= most && used > most / 2, "{used} of {most}");

    body["stream"] = true.into();
    let events = client.stream("/v1/chat/completions", &body).await;
    let chunks = chunks(&events);
    assert_eq!(content(&chunks), answer.text());
    let told: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk.get("context"))
        .collect();
    assert_eq!(told, [&answer.json["context"]], "once, in the first chunk");

    let mut short = long(1);
    short["context_overflow"] = "slide".into();
    let whole = client.chat(&short).await;
    assert_eq!(whole.json.get("context"), None, "nothing was left out");
}

#[tokio::test]
async fn one_message_that_is_too_long_is_refused_even_if_it_may_slide() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let text = "many words ".repeat(4_000);
    let body = json!({"model": "auto", "context_overflow": "slide", "messages": [{"role": "user", "content": text}]});
    let refused = node.client().await.chat(&body).await;
    assert_eq!(refused.code(), "context_length_exceeded");
}
