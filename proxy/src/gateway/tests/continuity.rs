//! What a client has while it waits, and what becomes of its answer when a node is lost: comments with progress, a place in a fair
//! queue, another model from the text, and the same protection for answers that are not streamed.

use std::sync::Arc;
use std::time::Duration;

use config::tier::Tier::{Fast, Primary};
use config::wire::node::TierState;
use http::Method;
use policy::record::{AccessRecord, Ending};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::Client;
use super::house::{House, Plans, stream_to, to};
use super::node::{Act, answer, error, says, usage};

/// Long enough that a place becomes free, short enough that a test of the contrary ends.
const PATIENCE: Duration = Duration::from_secs(5);

fn hasty() -> Plans {
    let mut plans = Plans::default();
    plans.routing.commit_after = Duration::from_millis(50);
    plans.routing.keepalive = Duration::from_millis(100);
    plans.routing.migration_patience = Duration::from_millis(300);
    plans.routing.idle_timeout = Duration::from_millis(300);
    plans
}

fn queueing(queue_max: usize, queue_wait: Duration) -> Plans {
    let mut plans = hasty();
    plans.routing.queue_max = queue_max;
    plans.routing.queue_wait = queue_wait;
    plans
}

fn chunk(delta: &Value, finish_reason: Option<&str>) -> String {
    chunk_of("tiny", delta, finish_reason)
}

fn chunk_of(model: &str, delta: &Value, finish_reason: Option<&str>) -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model,
        "system_fingerprint": "fp_a",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "usage": null,
    })
    .to_string()
}

fn role() -> String {
    chunk(&json!({"role": "assistant", "content": ""}), None)
}

fn said(token: i32, text: &str) -> String {
    let chunk = chunk(&json!({"content": text}), None);
    format!(": tokens {token}\ndata: {chunk}")
}

fn finish() -> String {
    chunk(&json!({}), Some("stop"))
}

fn done() -> String {
    "[DONE]".to_owned()
}

fn one_two_three(told: usize) -> Vec<String> {
    let pieces = [said(11, "one "), said(12, "two "), said(13, "three")];
    let pieces = pieces.into_iter().skip(told);
    pieces.chain([finish(), usage(), done()]).collect()
}

fn full() -> Act {
    Act::Reply(503, error("server_error", "overloaded"))
}

#[tokio::test]
async fn comments_carry_what_the_node_says_of_its_progress() {
    let words = [": queue 3", ": load 40", ": prefill 1200/4096"];
    let mut events: Vec<String> = words.map(str::to_owned).to_vec();
    events.extend(says("hi"));
    let slow = Act::Slowly(Duration::from_millis(180), events);
    let house = House::planned(hasty(), vec![(&[Primary], vec![slow])]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    let text = client.text();
    for word in words {
        let comment = format!(": keep-alive{}\n\n", word.trim_start_matches(':'));
        assert!(text.contains(&comment), "{comment:?} in {text}");
    }
    assert!(!text.contains("\n: queue"), "a node's words are between us");
    assert_eq!((client.said().as_str(), record.outcome), ("hi", Ending::Ok));
}

#[tokio::test]
async fn the_first_comment_comes_with_the_head_and_within_five_seconds() {
    let plans = Plans::default();
    assert!(
        plans.routing.commit_after < Duration::from_secs(5),
        "as A1.4 of the contract wants it, with the settings as they are"
    );
    let slow = Act::Slowly(Duration::from_millis(400), says("hi"));
    let house = House::planned(hasty(), vec![(&[Primary], vec![slow])]).await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    let (at, first) = client.chunks.first().expect("chunks");
    assert!(first.starts_with(b": keep-alive"), "{first:?}");
    assert!(*at < Duration::from_millis(400), "{at:?}");
}

#[tokio::test]
async fn a_request_waits_for_room_and_is_told_its_place() {
    let acts = vec![full(), full(), Act::Stream(says("at last"))];
    let house = House::planned(queueing(4, PATIENCE), vec![(&[Primary], acts)]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_eq!(client.said(), "at last", "{}", client.text());
    assert!(
        client.text().contains(": keep-alive queue 0"),
        "{}",
        client.text()
    );
    assert_eq!(record.outcome, Ending::Ok);
    let events = client.events();
    let routing = &events[events.len() - 2]["_routing"];
    let queue = routing["timing"]["queue_ms"].as_f64().expect("timed");
    assert!(queue > 1_000.0, "the wait counts as queue: {routing}");
    assert_eq!(routing["attempts"][0]["outcome"], "overloaded");
}

#[tokio::test]
async fn a_request_that_is_not_streamed_waits_as_well() {
    let acts = vec![full(), Act::Reply(200, answer("at last"))];
    let house = House::planned(queueing(4, PATIENCE), vec![(&[Primary], acts)]).await;

    let (client, record) = house.chat(&to("primary")).await;

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(record.outcome, Ending::Ok);
}

#[tokio::test]
async fn nobody_waits_longer_than_the_bound_and_the_hint_is_honest() {
    let wait = Duration::from_millis(300);
    let house = House::planned(queueing(4, wait), vec![(&[Primary], vec![full()])]).await;
    let began = Instant::now();

    let (client, record) = house.chat(&to("primary")).await;

    assert!(began.elapsed() >= wait, "{:?}", began.elapsed());
    assert_eq!(client.status.unwrap(), 503);
    assert_eq!(client.json()["error"]["code"], "overloaded");
    let seconds: u64 = client.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(record.refusal, Some("queue_full"));
}

/// A node dies under a request while the other one is full: there will be room in a moment.
#[tokio::test]
async fn a_request_whose_node_died_waits_for_one_that_is_full() {
    for stream in [true, false] {
        let nodes = vec![
            (&[Primary][..], vec![Act::Die]),
            (&[Primary][..], vec![full(), Act::Stream(says("at last"))]),
        ];
        let house = House::planned(queueing(4, PATIENCE), nodes).await;
        let asked = if stream {
            stream_to("primary")
        } else {
            to("primary")
        };

        let (client, record) = house.chat(&asked).await;

        assert_eq!(client.status.unwrap(), 200, "{}", client.text());
        assert!(client.text().contains("at last"), "{}", client.text());
        assert_eq!(record.outcome, Ending::Ok);
        assert_eq!(house.nodes[0].seen().len(), 1, "it may have started on it");
    }
    // With nobody who may have room it is said at once that a node broke.
    let nodes = vec![
        (&[Primary][..], vec![Act::Die]),
        (&[Primary][..], vec![Act::Die]),
    ];
    let house = House::planned(queueing(4, PATIENCE), nodes).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.json()["error"]["code"], "upstream_error");
}

/// Its node dies under a request, and the other one, which was away when it was planned, is back by then.
#[tokio::test]
async fn a_request_whose_node_died_finds_one_that_has_come_back() {
    let nodes = vec![
        (&[Primary][..], vec![Act::Hang(Vec::new())]),
        (&[Primary][..], vec![Act::Stream(says("back"))]),
    ];
    let house = House::planned(hasty(), nodes).await;
    house.tells(1, 2, TierState::Loading);
    let meanwhile = async {
        while house.nodes[0].seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        house.tells(1, 3, TierState::Ready);
        house.cut(0);
    };

    let body = stream_to("primary");
    let ((client, record), ()) = tokio::join!(house.chat(&body), meanwhile);

    assert_eq!(client.said(), "back", "{}", client.text());
    assert_eq!(record.outcome, Ending::Ok);
    assert_eq!(house.nodes[0].seen().len(), 1, "it may have started on it");
}

#[tokio::test]
async fn without_seats_a_full_house_says_so_at_once() {
    let house = House::planned(queueing(0, PATIENCE), vec![(&[Primary], vec![full()])]).await;
    let began = Instant::now();
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 503);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_leaves_its_place() {
    let house = House::planned(queueing(1, PATIENCE), vec![(&[Primary], vec![full()])]).await;
    let mut client = Client::sending(stream_to("primary").to_string()).leaving_after(1);

    let record = house
        .ask(Method::POST, "/v1/chat/completions", &mut client)
        .await;

    assert_eq!(record.outcome, Ending::ClientGone);
    assert_eq!(house.waiting().len(Primary), 0);
}

#[tokio::test]
async fn a_class_is_taken_from_header_or_body_and_told_to_the_node() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    let mut body = to("primary");
    body["hearth"] = json!({"priority": "batch"});
    house.chat(&body).await;
    body["hearth"] = json!({"priority": "urgent"});
    let (client, _) = house.chat(&body).await;

    assert_eq!(
        house.nodes[0].seen()[0].header("x-hearth-priority"),
        Some("batch")
    );
    assert_eq!(client.status.unwrap(), 400);
    assert_eq!(client.json()["error"]["param"], "hearth.priority");
}

/// An answer of which another model says the rest.
fn another() -> Vec<String> {
    let rest = chunk_of("small", &json!({"content": "three"}), None);
    vec![
        format!(": tokens 7\ndata: {rest}"),
        chunk_of("small", &json!({}), Some("stop")),
        usage(),
        done(),
    ]
}

fn begins() -> Act {
    Act::Break(vec![role(), said(11, "one "), said(12, "two ")])
}

fn gone() -> Act {
    Act::Reply(503, error("server_error", "tier_unavailable"))
}

fn by_text(mut body: Value) -> Value {
    body["hearth"] = json!({"continue_with": "text"});
    body["max_tokens"] = 50.into();
    body
}

#[tokio::test]
async fn another_model_goes_on_from_the_text_where_the_request_allows_it() {
    let nodes = || {
        vec![
            (&[Primary][..], vec![begins(), gone()]),
            (&[Fast][..], vec![Act::Stream(another())]),
        ]
    };
    let house = House::planned(hasty(), nodes()).await;

    let (client, record) = house.chat(&by_text(stream_to("primary"))).await;

    assert_eq!(client.said(), "one two three", "{}", client.text());
    let events = client.events();
    let roles = events
        .iter()
        .filter(|event| event["choices"][0]["delta"]["role"].is_string());
    assert_eq!(roles.count(), 1);
    let models = events.iter().filter_map(|event| event["model"].as_str());
    assert!(
        models.clone().all(|model| model == "tiny"),
        "the same on every chunk"
    );
    let routing = &events[events.len() - 2]["_routing"];
    assert_eq!(
        routing["continued"],
        json!([{"from": "home-2", "to": "home-3", "model": "tiny-fast", "at_token": 2, "how": "text"}])
    );
    assert_eq!(routing["fallback"], "primary->fast");
    let asked = house.nodes[1].seen().remove(0).body;
    assert_eq!(asked["_continue"], json!({"text": "one two "}));
    assert_eq!(asked["max_tokens"], 48);
    // Two tokens of the first, and what the second counts.
    assert_eq!(record.usage.unwrap().completion_tokens, 4);
    assert_eq!(record.outcome, Ending::Ok);

    let house = House::planned(hasty(), nodes()).await;
    let (client, record) = house.chat(&stream_to("primary")).await;
    assert_eq!(record.outcome, Ending::Broken, "nobody asked for that");
    assert!(!client.text().contains("[DONE]"));
    assert!(house.nodes[1].seen().is_empty());
}

#[tokio::test]
async fn within_a_call_or_a_form_no_other_model_goes_on() {
    let call = json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]});
    let calls = Act::Break(vec![
        role(),
        said(11, "one "),
        format!(": tokens 12\ndata: {}", chunk(&call, None)),
    ]);
    let mut formed = by_text(stream_to("primary"));
    formed["response_format"] = json!({"type": "json_object"});
    for (act, body) in [(calls, by_text(stream_to("primary"))), (begins(), formed)] {
        let nodes = vec![
            (&[Primary][..], vec![act, gone()]),
            (&[Fast][..], vec![Act::Stream(another())]),
        ];
        let house = House::planned(hasty(), nodes).await;
        let (client, record) = house.chat(&body).await;
        assert_eq!(record.outcome, Ending::Broken, "{}", client.text());
        assert!(house.nodes[1].seen().is_empty());
    }
}

#[tokio::test]
async fn a_whole_answer_is_asked_for_as_a_stream_and_carried_on_token_for_token() {
    // Its worker is back.
    let acts = vec![begins(), Act::Stream(one_two_three(2))];
    let house = House::planned(hasty(), vec![(&[Primary], acts)]).await;

    let (client, record) = house.chat(&to("primary")).await;

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    assert_eq!(client.header("content-type"), "application/json");
    let body = client.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["message"]["content"], "one two three");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], 2);
    assert_eq!(
        body["_routing"]["continued"],
        json!([{"from": "home-2", "to": "home-2", "model": "tiny-primary", "at_token": 2, "how": "tokens"}])
    );
    assert_eq!(
        (record.outcome, record.stream),
        (Ending::Ok, false),
        "the client did not stream"
    );
    let asked = house.nodes[0].seen().remove(1).body;
    assert_eq!(asked["_resume"], json!({"tokens": [11, 12]}));
    assert_eq!(asked["stream"], true);
}

#[tokio::test]
async fn a_whole_answer_that_nobody_carries_on_is_begun_anew_elsewhere() {
    let nodes = vec![
        (&[Primary][..], vec![begins(), gone()]),
        (&[Fast][..], vec![Act::Stream(says("anew"))]),
    ];
    let house = House::planned(hasty(), nodes).await;

    let (client, record) = house.chat(&to("primary")).await;

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    let body = client.json();
    assert_eq!(body["choices"][0]["message"]["content"], "anew");
    assert_eq!(body["_routing"]["fallback"], "primary->fast");
    assert_eq!(record.usage.unwrap().completion_tokens, 2, "charged once");

    let house = House::planned(hasty(), vec![(&[Primary][..], vec![begins(), gone()])]).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 502, "{}", client.text());
    assert_eq!(client.json()["error"]["code"], "upstream_error");
}

#[tokio::test]
async fn several_answers_are_asked_for_whole() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    let mut body = to("primary");
    body["n"] = 2.into();
    house.chat(&body).await;
    let asked = house.nodes[0].seen().remove(0);
    assert_eq!(asked.body["stream"], false, "nobody can go on with two");
    assert_eq!(asked.header("x-hearth-tokens"), None);
}

#[tokio::test]
async fn the_time_is_split_in_the_body_and_in_server_timing() {
    let house = House::with(vec![(&[Primary], vec![Act::Stream(says("hi"))])]).await;

    let (client, _) = house.chat(&to("primary")).await;

    let timing = client.header("server-timing").to_owned();
    let body = client.json();
    let split = &body["_routing"]["timing"];
    for part in ["edge", "tunnel", "queue", "prefill", "decode"] {
        assert!(timing.contains(&format!("{part};dur=")), "{part}: {timing}");
        assert!(split[format!("{part}_ms")].is_f64(), "{part}: {split}");
    }
    let (stream, _) = house.chat(&stream_to("primary")).await;
    let events = stream.events();
    assert!(events[events.len() - 2]["_routing"]["timing"]["edge_ms"].is_f64());
}

/// A client leaves when its node has said so much: what is written down of it, and how long the node was at work on it after that.
async fn left_after(chunks: usize, streams: bool) -> (AccessRecord, Duration) {
    let mut events = vec![role(), said(11, "one "), said(12, "two ")];
    events.truncate(chunks);
    let house = House::planned(hasty(), vec![(&[Primary], vec![Act::Hang(events)])]).await;
    let body = if streams {
        stream_to("primary")
    } else {
        to("primary")
    };
    let leaves = Arc::new(tokio::sync::Notify::new());
    let mut client = Client::sending(body.to_string()).leaving_when(&leaves);
    let asked = house.ask(Method::POST, "/v1/chat/completions", &mut client);
    let leaving = async {
        house.nodes[0].was_asked().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        leaves.notify_one();
        let began = Instant::now();
        house.nodes[0].was_left().await;
        began.elapsed()
    };
    tokio::join!(asked, leaving)
}

/// At whatever moment a client leaves, its node is left at once and the request is charged for what was made.
#[tokio::test]
async fn a_client_may_leave_at_any_moment_streaming_or_not() {
    for streams in [true, false] {
        for chunks in 0..4 {
            let mut best = Duration::MAX;
            // Others may have the processors for a while.
            for _try in 0..5 {
                let (record, took) = left_after(chunks, streams).await;
                assert_eq!(record.outcome, Ending::ClientGone, "{streams} {chunks}");
                let made = record.usage.map_or(0, |usage| usage.completion_tokens);
                let told = u64::try_from(chunks.saturating_sub(1)).unwrap().min(2);
                assert_eq!(made, told, "{streams} {chunks}");
                best = best.min(took);
                if best < Duration::from_millis(100) {
                    break;
                }
            }
            assert!(
                best < Duration::from_millis(100),
                "{streams} {chunks}: {best:?}"
            );
        }
    }
}

/// The grace of a proxy that ends is over: its answers end with the reason, are charged for what was made, and nobody else goes on.
#[tokio::test]
async fn an_answer_that_outlasts_the_proxy_says_so_and_is_charged_for_what_was_made() {
    for streams in [true, false] {
        let events = vec![role(), said(11, "one "), said(12, "two ")];
        let nodes: Vec<(&[_], _)> = vec![
            (&[Primary], vec![Act::Hang(events.clone())]),
            (&[Primary], vec![Act::Hang(events)]),
        ];
        let house = House::planned(hasty(), nodes).await;
        let body = if streams {
            stream_to("primary")
        } else {
            to("primary")
        };
        let ends = Arc::new(tokio::sync::Notify::new());
        let mut client = Client::sending(body.to_string()).sent_away_when(&ends);
        let asked = house.ask(Method::POST, "/v1/chat/completions", &mut client);
        let ending = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ends.notify_one();
        };
        let (record, ()) = tokio::join!(asked, ending);

        assert_eq!(record.refusal, Some("draining"));
        let made = record.usage.map_or(0, |usage| usage.completion_tokens);
        assert_eq!(made, 2, "{streams}");
        assert_eq!(record.attempts.len(), 1, "{:?}", record.attempts);
        assert_eq!(record.attempts[0].outcome, "abandoned");
        if streams {
            assert_eq!(record.outcome, Ending::Broken);
            let last = client.events().pop().expect("an event");
            assert_eq!(last["error"]["code"], "draining", "{last}");
        } else {
            assert_eq!(client.status.expect("a status").as_u16(), 503);
        }
    }
}
