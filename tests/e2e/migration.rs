//! A machine dies in the middle of an answer: another one goes on with it, token for token, and the client sees one stream.

use std::time::Duration;

use serde_json::{Value, json};
use tests::client::{Client, Transcript};
use tests::node::Node;
use tests::proxy::Proxy;
use tests::wait::until;

fn long(extra: &Value) -> Value {
    let mut body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Tell me a long story of the sea."}],
        "temperature": 0.8,
        "seed": 7,
        "max_tokens": 120,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn whole(friend: &Client, body: &Value) -> Transcript {
    let transcript = friend.stream_body(body.clone()).await.collect().await;
    assert!(
        transcript.finish_reason().is_some(),
        "{:?}",
        transcript.error()
    );
    transcript
}

#[tokio::test]
async fn an_answer_goes_on_where_a_killed_node_stopped() {
    let proxy = Proxy::start().await;
    let mut nodes = [
        Node::named("attic").tier("fast").join(&proxy),
        Node::named("den").tier("fast").join(&proxy),
    ];
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    until("both nodes serve", Duration::from_secs(30), || async {
        (proxy.metric("hearth_nodes_ready").await >= 2.0).then_some(())
    })
    .await;

    let body = long(&json!({}));
    let unbroken = whole(&friend, &body).await;

    let mut stream = friend.stream_body(body).await;
    let at_work = stream.headers["x-routing-node"]
        .to_str()
        .expect("a name")
        .to_owned();
    let mut begun = Vec::new();
    for _ in 0..10 {
        begun.push(stream.data().await.expect("the stream goes on"));
    }
    nodes[usize::from(at_work == "den")].kill();
    stream.unread(begun);
    let transcript = stream.collect().await;

    assert!(transcript.error().is_none(), "{:?}", transcript.error());
    assert_eq!(transcript.text, unbroken.text);
    assert_eq!(transcript.finish_reason(), unbroken.finish_reason());
    assert_eq!(transcript.usage()["completion_tokens"], 120);
    assert_eq!(
        transcript.usage()["prompt_tokens"],
        unbroken.usage()["prompt_tokens"]
    );
    let other = if at_work == "den" { "attic" } else { "den" };
    assert_eq!(transcript.routing()["node"], other);
    let attempts = transcript.routing()["attempts"].clone();
    assert_eq!(
        attempts,
        json!([
            {"tier": "fast", "node": at_work, "outcome": "broken"},
            {"tier": "fast", "node": other, "outcome": "ok"},
        ])
    );
    let constant = |chunk: &Value| (chunk["id"].clone(), chunk["created"].clone());
    let first = constant(&transcript.chunks[0]);
    assert!(
        transcript
            .chunks
            .iter()
            .all(|chunk| constant(chunk) == first)
    );
    let roles = transcript
        .chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"]["role"] == "assistant");
    assert_eq!(roles.count(), 1, "the answer begins once");
    assert!(proxy.metric("hearth_migrations_total").await >= 1.0);
}
