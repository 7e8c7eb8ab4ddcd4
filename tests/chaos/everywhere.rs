//! The worker that writes an answer of 64 tokens is killed after every one of them, with the real proxy, the real tunnel and real agents;
//! and real models are killed at random within each form of answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::client::{Client, Transcript};
use tests::node::{Builder, Node};
use tests::process::send;
use tests::proxy::Proxy;
use tests::wait::until;

use crate::dice::Dice;
use crate::{say, setting};

const NAMES: [&str; 2] = ["attic", "den"];
const READY_MAX: Duration = Duration::from_mins(1);

struct Twins {
    proxy: Proxy,
    nodes: [Node; 2],
    friend: Client,
}

impl Twins {
    async fn with(tier: impl Fn(Builder) -> Builder) -> Self {
        let proxy = Proxy::generous()
            .routing("breaker_failures = 1000")
            // A worker that dies again and again is started after longer and longer pauses, up to half a minute.
            .routing("migration_patience_secs = 60")
            .tunnel("heartbeat_secs = 1")
            .start()
            .await;
        let nodes = NAMES.map(|name| tier(Node::named(name)).join(&proxy));
        let friend = proxy.friend();
        let twins = Self {
            proxy,
            nodes,
            friend,
        };
        twins.are_ready().await;
        twins
    }

    async fn are_ready(&self) {
        until("both twins serve", READY_MAX, || async {
            let ready = self.proxy.metric("hearth_nodes_ready").await;
            (ready >= 2.0).then_some(())
        })
        .await;
        self.proxy.serves(&self.friend, &["fast"]).await;
    }

    /// Kills the worker at work once so many events have come. The answer, and whether another one went on with it.
    async fn killed_after(&mut self, body: &Value, events: usize) -> (Said, bool) {
        let mut stream = self.friend.stream_body(body.clone()).await;
        let name = stream.headers["x-routing-node"].to_str().expect("a name");
        let at_work = NAMES.iter().position(|known| *known == name);
        let at_work = at_work.expect("one of the two");
        let mut begun = Vec::new();
        while begun.len() < events
            && let Some(event) = stream.data().await
        {
            begun.push(event);
        }
        for worker in self.nodes[at_work].process().workers() {
            send("KILL", worker);
        }
        stream.unread(begun);
        let transcript = stream.collect().await;
        let attempts = transcript.routing()["attempts"].as_array().map(Vec::len);
        (Said::of(&transcript), attempts > Some(1))
    }

    async fn unbroken(&self, body: &Value) -> (Said, usize) {
        let transcript = self.friend.stream_body(body.clone()).await.collect().await;
        (Said::of(&transcript), transcript.chunks.len())
    }
}

/// What a client has of the chunks in the end.
#[derive(Debug, PartialEq)]
struct Said {
    text: String,
    calls: String,
    finish: Option<String>,
    tokens: Value,
    error: Option<Value>,
    done: bool,
}

impl Said {
    fn of(transcript: &Transcript) -> Self {
        let mut calls = String::new();
        for chunk in &transcript.chunks {
            let delta = &chunk["choices"][0]["delta"];
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                // Ids of calls are made of the answer's own, which differs from answer to answer.
                for part in [&call["function"]["name"], &call["function"]["arguments"]] {
                    calls.push_str(part.as_str().unwrap_or_default());
                }
            }
        }
        Self {
            text: transcript.text.clone(),
            calls,
            finish: transcript.finish_reason(),
            tokens: transcript.usage()["completion_tokens"].clone(),
            error: transcript.error(),
            done: transcript.done,
        }
    }
}

fn asked(extra: &Value) -> Value {
    let mut body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Tell me a long story of the sea."}],
        "temperature": 0,
        "max_tokens": 64,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn script(say: &str) -> String {
    format!("script:{}", json!({"say": say, "step_ms": 4}))
}

#[tokio::test]
#[ignore = "kills a hundred workers: tests/chaos.sh runs it"]
async fn a_worker_killed_after_any_of_64_tokens_costs_the_reader_nothing() {
    // A byte a token: letters of two, three and four bytes lie across many cuts.
    let say_this = "Grüße aus 東京, 世界! 🐙🇨🇭 Öl, Äpfel und Kühe am Meer im Mai";
    let tier = script(say_this);
    let mut twins = Twins::with(|node| node.tier_from("fast", &tier, 4)).await;
    let body = asked(&json!({}));
    let (unbroken, chunks) = twins.unbroken(&body).await;
    assert!(unbroken.done && unbroken.error.is_none(), "{unbroken:?}");
    let step = usize::try_from(setting("HEARTH_CHAOS_STEP", 4)).expect("small");
    let mut moved = 0;
    for events in (1..chunks).step_by(step) {
        let (said, has_moved) = twins.killed_after(&body, events).await;
        assert_eq!(said, unbroken, "killed after {events} events");
        moved += usize::from(has_moved);
        twins.are_ready().await;
    }
    say(&format!(
        "killed after each of {chunks} events: {moved} times another machine went on, every answer the same"
    ));
    assert!(
        moved * 2 > chunks / step,
        "only {moved} of {chunks} were cut in time"
    );
}

#[tokio::test]
#[ignore = "kills a hundred workers: tests/chaos.sh runs it"]
async fn every_form_of_a_real_answer_survives_the_death_of_its_worker() {
    let mut twins = Twins::with(|node| node.tier("fast")).await;
    let seed = setting("HEARTH_CHAOS_SEED", 1);
    let mut dice = Dice::new(seed);
    let times = usize::try_from(setting("HEARTH_CHAOS_KILLS", 2)).expect("small");
    let things = json!({"type": "object", "additionalProperties": false, "required": ["things"], "properties": {"things": {
        "type": "array", "minItems": 30, "maxItems": 30, "items": {"type": "string", "maxLength": 24}}}});
    let schema = json!({"type": "json_schema", "json_schema": {"name": "things", "strict": true, "schema": things}});
    let tool = json!({"type": "function", "function": {"name": "remember", "parameters": things}});
    let of = |text: &str| json!([{"role": "user", "content": text}]);
    let moved = AtomicUsize::new(0);
    for (name, extra) in [
        ("text", json!({"ignore_eos": true, "max_tokens": 900})),
        (
            "letters",
            json!({"messages": of("讲一个关于大海的长故事。🐙"), "ignore_eos": true, "max_tokens": 900, "temperature": 1.5, "seed": 3}),
        ),
        (
            "schema",
            json!({"response_format": schema, "max_tokens": 900}),
        ),
        (
            "call",
            json!({"tools": [tool], "tool_choice": "required", "max_tokens": 900}),
        ),
        (
            "logprobs",
            json!({"logprobs": true, "top_logprobs": 3, "ignore_eos": true, "max_tokens": 400}),
        ),
    ] {
        let body = asked(&extra);
        let (unbroken, chunks) = twins.unbroken(&body).await;
        assert!(
            unbroken.done && unbroken.error.is_none(),
            "{name}: {unbroken:?}"
        );
        assert!(chunks > 40, "{name}: {chunks} chunks: {unbroken:?}");
        let mut here = 0;
        for _ in 0..times {
            let events = 1 + dice.below(chunks / 3);
            let (said, has_moved) = twins.killed_after(&body, events).await;
            assert_eq!(
                said, unbroken,
                "{name}, killed after {events} events, seed {seed}"
            );
            here += usize::from(has_moved);
            twins.are_ready().await;
        }
        moved.fetch_add(here, Ordering::Relaxed);
        say(&format!(
            "{name}: {times} workers killed, {here} answers went on elsewhere, all the same"
        ));
    }
    assert!(moved.load(Ordering::Relaxed) > 0, "nothing was cut in time");
}
