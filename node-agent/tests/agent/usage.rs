//! Usage is the engine's own count, whoever asks for it and however an answer ends.

use bytes::Bytes;
use config::tier::Tier;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Node, PATIENCE, chunks, request, tiny_fast};

/// What counts tokens: the node's requests by their names, and the engine.
struct Counted {
    node: Node,
    requests: usize,
    /// Completion tokens of all requests so far.
    told: u64,
}

impl Counted {
    async fn new() -> Self {
        Self {
            node: Node::ready(vec![tiny_fast()]).await,
            requests: 0,
            told: 0,
        }
    }

    fn named(&mut self, body: &Value) -> (String, http::Request<http_body_util::Full<Bytes>>) {
        self.requests += 1;
        let name = format!("chatcmpl-{}", self.requests);
        let mut asked = request(
            "fast",
            "/v1/chat/completions",
            Bytes::from(body.to_string()),
        );
        let value = name.parse().expect("a header value");
        asked.headers_mut().insert("x-hearth-completion-id", value);
        (name, asked)
    }

    /// What the node says afterwards that a request used.
    async fn afterwards(&mut self, name: &str) -> (u64, u64) {
        let mut asked = request("fast", &format!("/requests/{name}"), Bytes::new());
        *asked.method_mut() = Method::GET;
        let answer = self.node.client().await.ask(asked).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}: {}", answer.json);
        let used = tokens(&answer.json["usage"]);
        self.told += used.1;
        used
    }

    async fn whole(&mut self, body: &Value) -> (u64, u64) {
        let (name, asked) = self.named(body);
        let answer = self.node.client().await.ask(asked).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
        let used = tokens(&answer.json["usage"]);
        assert_eq!(self.afterwards(&name).await, used, "{body}");
        used
    }

    async fn streamed(&mut self, body: &Value) -> (u64, u64) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let (name, asked) = self.named(&body);
        let mut client = self.node.client().await;
        let response = client.send(asked).await;
        assert_eq!(response.status(), StatusCode::OK);
        let collected = timeout(PATIENCE, response.into_body().collect()).await;
        let bytes = collected.expect("in time").expect("whole").to_bytes();
        let mut events = Vec::new();
        config::wire::sse::Decoder::default()
            .push(&bytes, &mut events)
            .expect("valid SSE");
        let used = tokens(&chunks(&events).last().expect("chunks")["usage"]);
        assert_eq!(self.afterwards(&name).await, used, "{body}");
        used
    }

    /// Leaves a stream after so many frames.
    async fn left(&mut self, body: &Value, frames: usize) {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let (name, asked) = self.named(&body);
        let mut client = self.node.client().await;
        let mut response = client.send(asked).await.into_body();
        for _frame in 0..frames {
            let frame = timeout(PATIENCE, response.frame()).await;
            if frame.expect("in time").is_none() {
                break;
            }
        }
        drop((response, client));
        self.afterwards(&name).await;
    }

    /// The engine has counted no more and no less.
    async fn settle(&self) {
        let room = self.node.tiers.room(Tier::Fast).expect("configured");
        let mut stats = room.ready().expect("ready").worker.stats();
        let told = self.told;
        let idle =
            stats.wait_for(|stats| stats.slots_busy == 0 && stats.completion_tokens_total >= told);
        let counted = timeout(PATIENCE, idle).await;
        let counted = *counted.expect("the engine reports").expect("it lives");
        assert_eq!(counted.completion_tokens_total, told);
    }
}

fn tokens(usage: &Value) -> (u64, u64) {
    let number = |name: &str| {
        usage[name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {usage}"))
    };
    (number("prompt_tokens"), number("completion_tokens"))
}

fn asked(fields: &Value) -> Value {
    let mut body = json!({"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": "Tell me a story."}]});
    let all = body.as_object_mut().expect("an object");
    all.extend(fields.as_object().expect("an object").clone());
    body
}

#[tokio::test]
async fn streamed_or_not_an_answer_tells_what_the_engine_counted() {
    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    }}});
    let mut counted = Counted::new().await;
    for fields in [
        json!({}),
        json!({"max_tokens": 5}),
        json!({"stop": [" a"]}),
        json!({"n": 3, "temperature": 1.2, "seed": 3, "max_tokens": 20}),
        json!({"tools": [tool], "tool_choice": "required", "max_tokens": 100}),
        json!({"response_format": {"type": "json_object"}, "max_tokens": 40}),
        json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 7}),
    ] {
        let body = asked(&fields);
        let whole = counted.whole(&body).await;
        assert!(whole.0 > 0 && whole.1 > 0, "{fields}");
        assert_eq!(counted.streamed(&body).await, whole, "{fields}");
    }
    counted.settle().await;
}

#[tokio::test]
async fn an_answer_that_is_left_anywhere_is_counted_as_the_engine_counts_it() {
    let mut counted = Counted::new().await;
    for n in [1, 2] {
        let body = asked(&json!({"ignore_eos": true, "max_tokens": 60, "n": n}));
        for frames in [0, 1, 2, 3, 5, 9, 17, 33, 60] {
            counted.left(&body, frames).await;
        }
    }
    counted.settle().await;
}
