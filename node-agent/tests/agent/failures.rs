//! What callers see when something is wrong: with their request, with the tier, or with the worker.

use bytes::Bytes;
use config::tier::Tier;
use config::wire::sse::Decoder;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use node_agent::tiers::Phase;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Node, PATIENCE, post, request, scripted, tiny_fast};

fn say(text: &str) -> Value {
    json!({"model": "auto", "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn only_the_hub_gets_an_answer_and_only_where_there_is_one() {
    let node = Node::start(vec![scripted(Tier::Fast, &json!({"say": "hi"}))]);
    let mut client = node.client().await;
    for wrong in ["Bearer wrong", "Basic x", "Bearer "] {
        let mut request = post("/v1/chat/completions", &say("x"));
        request
            .headers_mut()
            .insert("authorization", wrong.parse().expect("a value"));
        let answer = client.ask(request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.code(), "invalid_agent_token");
    }
    for path in ["/", "/metrics", "/v1/models", "/v1/chat/completions/"] {
        assert_eq!(
            client.ask(post(path, &say("x"))).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    for (path, wrong, right) in [
        ("/v1/chat/completions", Method::GET, "POST"),
        ("/count/v1/completions", Method::GET, "POST"),
        ("/slots", Method::POST, "GET"),
        ("/props", Method::DELETE, "GET"),
    ] {
        let mut request = post(path, &say("x"));
        *request.method_mut() = wrong;
        let answer = client.ask(request).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(answer.headers["allow"], right, "{path}");
    }
    let mut health = post("/health", &Value::Null);
    *health.method_mut() = Method::GET;
    assert_eq!(client.ask(health).await.json, json!({"status": "ok"}));
}

#[tokio::test]
async fn bad_requests_are_the_callers_fault_with_the_field_named() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let mut client = node.client().await;
    let picture =
        json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]);
    let cases = [
        (json!({"model": "auto"}), "invalid_value", "messages"),
        (
            json!({"model": "auto", "messages": []}),
            "invalid_value",
            "messages",
        ),
        (
            json!({"model": "auto", "messages": [{"role": "user", "content": picture}]}),
            "unsupported_parameter",
            "messages[0].content[0].image_url",
        ),
        (
            json!({"model": "auto", "messages": [{"role": "user", "content": "x"}], "grammar": "root ::= ("}),
            "invalid_value",
            "grammar",
        ),
        (
            json!({"model": "auto", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": []}}),
            "invalid_value",
            "chat_template_kwargs",
        ),
    ];
    for (body, code, param) in cases {
        let answer = client.chat(&body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.json);
        assert_eq!(answer.code(), code, "{}", answer.json);
        assert_eq!(answer.json["error"]["param"], param, "{}", answer.json);
    }
    let broken = client
        .ask(request("fast", "/v1/chat/completions", Bytes::from("{")))
        .await;
    assert_eq!(broken.code(), "invalid_json");
    let no_tier = client
        .ask(request("huge", "/v1/chat/completions", Bytes::from("{}")))
        .await;
    assert_eq!(
        no_tier.code(),
        "invalid_hop_header",
        "not the caller's fault"
    );
    let large = request("fast", "/v1/chat/completions", vec![b' '; 25 << 20].into());
    assert_eq!(client.ask(large).await.code(), "request_too_large");
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_the_numbers() {
    let node = Node::ready(vec![tiny_fast()]).await;
    for stream in [false, true] {
        let mut body = say(&"many words ".repeat(50_000));
        body["stream"] = stream.into();
        let answer = node.client().await.chat(&body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.code(), "context_length_exceeded");
        assert_eq!(answer.json["error"]["n_ctx"], 2_048);
        assert!(answer.json["error"]["n_prompt_tokens"].as_u64() > Some(2_048));
    }
}

#[tokio::test]
async fn a_tier_that_is_missing_or_down_sends_the_request_on() {
    let refuses = json!({"refuse_load": "no such tensor"});
    let node = Node::start(vec![scripted(Tier::Primary, &refuses)]);
    let primary = node.tiers.room(Tier::Primary).expect("configured");
    let mut phases = primary.phases();
    let down = phases.wait_for(|phase| matches!(phase, Phase::Down { .. }));
    drop(
        timeout(PATIENCE, down)
            .await
            .expect("goes down")
            .expect("lives"),
    );
    let mut client = node.client().await;
    for tier in ["primary", "heavy"] {
        let body = Bytes::from(say("x").to_string());
        let answer = client
            .ask(request(tier, "/v1/chat/completions", body))
            .await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{tier}");
        assert_eq!(answer.code(), "tier_unavailable");
        assert!(answer.headers.contains_key("retry-after"));
    }
    let report = primary.report();
    assert!(
        report
            .reason
            .is_some_and(|reason| reason.contains("no such tensor"))
    );
}

#[tokio::test]
async fn a_crash_before_the_first_token_is_a_clean_503_and_the_tier_comes_back() {
    let script = json!({"say": "fine", "crash_on": "please crash"});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    let mut client = node.client().await;
    let room = node.tiers.room(Tier::Fast).expect("configured");
    let mut phases = room.phases();
    phases.mark_unchanged();
    let answer = client.chat(&say("please crash")).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.code(), "tier_unavailable");
    phases.changed().await.expect("the tier goes down");
    let ready = phases.wait_for(|phase| matches!(phase, Phase::Ready(_)));
    drop(
        timeout(PATIENCE, ready)
            .await
            .expect("comes back")
            .expect("lives"),
    );
    assert_eq!(room.starts(), 2);
    assert_eq!(client.chat(&say("again")).await.text(), "fine");
    assert!(
        node.metrics
            .text()
            .contains("hearth_node_worker_starts_total{tier=\"fast\"} 2")
    );
}

#[tokio::test]
async fn a_worker_that_answers_between_its_crashes_is_waited_for_each_time() {
    let script = json!({"say": "fine", "crash_on": "please crash"});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    let mut client = node.client().await;
    let room = node.tiers.room(Tier::Fast).expect("configured");
    for crashes in 1..=4 {
        assert_eq!(client.chat(&say("hello")).await.text(), "fine");
        let answer = client.chat(&say("please crash")).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        let mut phases = room.phases();
        let gone = phases.wait_for(|phase| !matches!(phase, Phase::Ready(_)));
        drop(timeout(PATIENCE, gone).await.expect("ends").expect("lives"));
        assert!(
            matches!(room.phase(), Phase::Loading { .. }),
            "after {crashes} crashes: {:?}",
            room.phase()
        );
    }
    assert_eq!(client.chat(&say("hello")).await.text(), "fine");
    assert_eq!(room.starts(), 5);
}

#[tokio::test]
async fn a_crash_within_a_stream_is_an_error_event_and_no_done() {
    let script =
        json!({"say": "a long answer that never ends well", "crash_after_tokens": 8, "step_ms": 5});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    let mut body = say("x");
    body["stream"] = true.into();
    let mut client = node.client().await;
    let events = client.stream("/v1/chat/completions", &body).await;
    let last = events.last().expect("events");
    assert!(!last.is_done());
    let last: Value = serde_json::from_str(&last.data).expect("JSON");
    assert_eq!(last["error"]["code"], "tier_unavailable");
    assert!(events.len() > 2, "what was said before arrived");
}

#[tokio::test]
async fn a_caller_who_leaves_frees_the_slot() {
    let script = json!({"say": "x".repeat(4_000), "step_ms": 5});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    for stream in [true, false] {
        let mut body = say("count");
        body["stream"] = stream.into();
        let mut client = node.client().await;
        let waiting = tokio::spawn(async move {
            let response = client.send(post("/v1/chat/completions", &body)).await;
            let mut body = response.into_body();
            while let Some(Ok(_frame)) = body.frame().await {}
            drop(client);
        });
        node.wait_for_busy(Tier::Fast, 1).await;
        waiting.abort();
        let left = tokio::time::Instant::now();
        node.wait_for_busy(Tier::Fast, 0).await;
        assert!(
            left.elapsed().as_millis() < 1_000,
            "took {:?}",
            left.elapsed()
        );
    }
    let waited = timeout(PATIENCE, async {
        while !node.metrics.text().contains("outcome=\"abandoned\"} 2") {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "{}", node.metrics.text());
}

#[tokio::test]
async fn the_head_of_a_stream_goes_out_before_a_slow_first_token() {
    let script = json!({"say": "late", "step_ms": 4_500});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    let mut body = say("x");
    body["stream"] = true.into();
    body["max_tokens"] = 1.into();
    let mut client = node.client().await;
    let asked = tokio::time::Instant::now();
    let response = client.send(post("/v1/chat/completions", &body)).await;
    let waited = asked.elapsed();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(
        (900..4_400).contains(&waited.as_millis()),
        "after {waited:?}"
    );
    let bytes = response
        .into_body()
        .collect()
        .await
        .expect("a whole body")
        .to_bytes();
    let mut events = Vec::new();
    Decoder::default()
        .push(&bytes, &mut events)
        .expect("valid SSE");
    assert!(events.last().is_some_and(config::wire::sse::Event::is_done));
}

#[tokio::test]
async fn whoever_waits_is_told_how_many_go_before_it() {
    let script = json!({"say": "x".repeat(4_000), "step_ms": 20});
    let mut tier = scripted(Tier::Fast, &script);
    tier.slots = 1;
    let node = Node::ready(vec![tier]).await;
    let mut first = node.client().await;
    let busy = tokio::spawn(async move { first.chat(&say("one")).await });
    node.wait_for_busy(Tier::Fast, 1).await;
    let mut body = say("two");
    body["stream"] = true.into();
    let mut second = node.client().await;
    let mut waiting = second
        .send(post("/v1/chat/completions", &body))
        .await
        .into_body();
    let told = timeout(PATIENCE, async {
        let mut told = Vec::new();
        while !String::from_utf8_lossy(&told).contains(": queue 0\n\n") {
            let frame = waiting.frame().await.expect("more").expect("a frame");
            told.extend(frame.into_data().expect("data"));
        }
    });
    told.await.expect("it is told its place");
    busy.abort();
}

#[tokio::test]
async fn a_full_queue_and_a_passed_deadline_have_their_own_words() {
    let script = json!({"say": "x".repeat(4_000), "step_ms": 20});
    let mut tier = scripted(Tier::Fast, &script);
    tier.slots = 1;
    tier.queue_max = 1;
    let node = Node::ready(vec![tier]).await;
    let mut first = node.client().await;
    let busy = tokio::spawn(async move { first.chat(&say("one")).await });
    node.wait_for_busy(Tier::Fast, 1).await;
    let mut second = node.client().await;
    let waiting = tokio::spawn(async move { second.chat(&say("two")).await });
    let mut stats = node.tiers.rooms()[0].ready().expect("ready").worker.stats();
    let queued = stats.wait_for(|stats| stats.queue_depth == 1);
    drop(
        timeout(PATIENCE, queued)
            .await
            .expect("is queued")
            .expect("lives"),
    );
    let answer = node.client().await.chat(&say("three")).await;
    assert_eq!(
        answer.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "{}",
        answer.json
    );
    assert_eq!(answer.code(), "overloaded");
    waiting.abort();
    busy.abort();
    node.wait_for_busy(Tier::Fast, 0).await;

    let mut late = post("/v1/chat/completions", &say("four"));
    late.headers_mut()
        .insert("x-hearth-deadline-ms", 200.into());
    let answer = node.client().await.ask(late).await;
    assert_eq!(
        answer.status,
        StatusCode::GATEWAY_TIMEOUT,
        "{}",
        answer.json
    );
    assert_eq!(answer.code(), "timeout");
}

#[tokio::test]
async fn a_draining_node_finishes_what_runs_and_takes_nothing_new() {
    let script = json!({"say": "a whole answer", "step_ms": 20});
    let node = Node::ready(vec![scripted(Tier::Fast, &script)]).await;
    let mut first = node.client().await;
    let mut second = node.client().await;
    let running = tokio::spawn(async move { first.chat(&say("one")).await });
    node.wait_for_busy(Tier::Fast, 1).await;
    node.work.drain();
    let refused = second.chat(&say("two")).await;
    assert_eq!(refused.code(), "draining");
    assert_eq!(running.await.expect("runs").text(), "a whole answer");
    timeout(PATIENCE, node.work.idle()).await.expect("is idle");
}
