//! A question is answered: whole and streamed, by the tier that was asked for, and says where it came from.

use std::time::Duration;

use serde_json::json;
use tests::node::Node;
use tests::proxy::Proxy;
use tests::wait::until;

/// The books are written behind the answer.
const BOOKED_MAX: Duration = Duration::from_secs(10);
const PARIS: &str = "What is the capital of France?";

#[tokio::test]
async fn a_question_is_answered_by_the_llama_at_home() {
    let proxy = Proxy::start().await;
    let _home = Node::whole().join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary", "heavy"]).await;

    for tier in ["fast", "primary", "heavy"] {
        let reply = friend.ask(tier, "Which tier are you?").await;
        assert_eq!(
            reply.text(),
            format!("I am the {tier} tier."),
            "the tier asked for is the tier that answers"
        );
        assert_eq!(reply.routing()["tier"], tier);
        assert_eq!(reply.routing()["node"], "den");
        assert_eq!(reply.header("x-routing-tier"), tier);
        assert!(
            reply.routing()["fallback"].is_null(),
            "no detour was needed"
        );
    }

    let reply = friend.ask("tiny-fast", PARIS).await;
    let body = reply.json();
    assert_eq!(reply.text(), "The capital of France is Paris.");
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert!(body["choices"][0]["message"]["refusal"].is_null());
    let usage = &body["usage"];
    let count = |field: &str| usage[field].as_u64().expect("usage counts");
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert_eq!(reply.routing()["tokens"], usage["completion_tokens"]);
}

#[tokio::test]
async fn a_stream_says_the_same_and_ends_properly() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let stream = friend.stream("fast", PARIS).await;
    assert!(
        stream.headers["content-type"]
            .to_str()
            .is_ok_and(|kind| kind.starts_with("text/event-stream"))
    );
    assert!(stream.headers.contains_key("x-request-id"));
    let transcript = stream.collect().await;

    assert_eq!(transcript.text, "The capital of France is Paris.");
    assert_eq!(transcript.finish_reason().as_deref(), Some("stop"));
    assert!(transcript.done, "the stream ends with [DONE]");
    assert_eq!(transcript.routing()["tier"], "fast");
    assert_eq!(
        transcript.routing()["tokens"],
        transcript.usage()["completion_tokens"]
    );
    assert_eq!(
        transcript.chunks[0]["choices"][0]["delta"]["role"],
        "assistant"
    );
    assert!(
        transcript
            .chunks
            .iter()
            .all(|chunk| chunk["id"] == transcript.chunks[0]["id"]),
        "one id for one answer"
    );
}

#[tokio::test]
async fn the_classifier_decides_unless_the_request_does() {
    let proxy = Proxy::start().await;
    let _home = Node::whole().join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary", "heavy"]).await;

    assert_eq!(
        friend.ask("auto", "Hello").await.routing()["tier"],
        "fast",
        "a greeting needs no more"
    );
    let hard = "Prove step by step that the square root of 2 is irrational, then write a Rust function that checks it and analyse its complexity.";
    assert_eq!(
        friend.ask("auto", hard).await.routing()["tier"],
        "heavy",
        "a proof and code deserve the strongest"
    );
    let wished = json!({"model": "auto", "tier": "primary", "messages": [{"role": "user", "content": "Hello"}]});
    assert_eq!(
        friend.complete(wished).await.routing()["tier"],
        "primary",
        "`tier` in the body overrides"
    );
}

#[tokio::test]
async fn models_are_listed_at_once_even_with_no_home() {
    let proxy = Proxy::start().await;
    let friend = proxy.friend();

    let list = friend.get("/v1/models").await;
    assert_eq!(list.status, 200);
    assert!(
        list.json()["data"].as_array().is_some(),
        "a list, however short"
    );

    let reply = friend.ask("auto", "Hello").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "no_tier_available")
    );
    assert!(
        reply
            .header("retry-after")
            .parse::<u64>()
            .is_ok_and(|seconds| seconds >= 1)
    );
}

#[tokio::test]
async fn completions_health_and_metrics_answer() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let body = json!({"model": "fast", "prompt": "Hello", "max_tokens": 4, "temperature": 0});
    let reply = friend
        .post_raw(
            "/v1/completions",
            "application/json",
            body.to_string().into_bytes(),
        )
        .await;
    assert_eq!(reply.json()["object"], "text_completion", "{}", reply.body);
    assert_eq!(friend.get("/health").await.json()["status"], "ok");
    assert_eq!(proxy.stranger().get("/healthz").await.status, 200);
    assert_eq!(proxy.stranger().get("/readyz").await.status, 200);
    friend.ask("fast", PARIS).await;
    assert!(proxy.metric("hearth_requests_total").await >= 2.0);
    assert!(proxy.metric("hearth_tokens_total").await > 0.0);
}

/// With a margin of half the scale everything is on the fence.
const ASKS_TWICE: &str = "[routing.classifier]\nsecond_opinion = true\nsecond_opinion_margin = 0.5\nsecond_opinion_ms = 10000";

#[tokio::test]
async fn a_request_on_the_fence_is_judged_by_the_fast_tier_and_nobody_pays_for_that() {
    let proxy = Proxy::with().sections(ASKS_TWICE).start().await;
    let home = Node::whole().join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary", "heavy"]).await;

    let reply = friend.ask("auto", PARIS).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    let reason = reply.routing()["reason"].clone();
    let reason = reason.as_str().expect("a reason");
    // The tiny model's one word is a tier, whichever it is; an opinion that never came reads otherwise.
    assert!(
        reason.ends_with("second_opinion") || reason.ends_with("second_opinion_agrees"),
        "{reason}"
    );
    assert!(!reason.contains("no_second_opinion"), "{reason}");
    let answered = home.metric("hearth_node_requests_total").await;
    assert_eq!(answered, Some(2.0), "the opinion and the answer");
    let books = until("the answer is in the books", BOOKED_MAX, || async {
        let books = proxy.manage(&["usage", "--records"]);
        (books != json!([])).then_some(books)
    })
    .await;
    assert_eq!(books.as_array().map(Vec::len), Some(1), "{books}");
    let made = &reply.json()["usage"]["completion_tokens"];
    assert_eq!(&books[0]["tokens_out"], made);
}
