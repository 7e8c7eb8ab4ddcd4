//! What is asked of a model besides an answer: carried as it is, charged as text, never given to a model of another kind.

use config::tier::Tier::{Fast, Primary};
use http::Method;
use policy::identity::Scope;
use serde_json::{Value, json};

use super::client::Client;
use super::house::House;
use super::node::Act;

async fn ask(house: &House, path: &str, body: &Value) -> (Client, policy::record::AccessRecord) {
    let key = house.key_with(&Scope::ALL).await;
    let bearer = format!("Bearer {key}");
    let mut client = Client::sending(body.to_string());
    let headers = [("authorization", bearer.as_str())];
    let record = house
        .ask_with(Method::POST, path, &headers, &mut client)
        .await;
    (client, record)
}

#[tokio::test]
async fn a_hole_is_sent_to_the_node_and_its_tokens_are_counted() {
    let filled = json!({"content": "x", "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}});
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, filled)])]).await;
    let body = json!({"model": "primary", "input_prefix": "a", "input_suffix": "b", "n_predict": 2, "unknown": 1});

    let (client, record) = ask(&house, "/infill", &body).await;

    assert_eq!(
        client.status.map(|status| status.as_u16()),
        Some(200),
        "{}",
        client.json()
    );
    assert_eq!(client.json()["content"], "x");
    assert_eq!(client.json()["_routing"]["tier"], "primary");
    let usage = record.usage.expect("counted");
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 2));
    let seen = house.nodes[0].seen();
    assert!(
        seen[0].head.starts_with("POST /infill "),
        "{}",
        seen[0].head
    );
    assert_eq!(seen[0].body["input_suffix"], "b");
    assert_eq!(seen[0].body["unknown"], Value::Null, "checked fields alone");
}

#[tokio::test]
async fn words_are_asked_of_any_model() {
    let house = House::with(vec![(
        &[Fast],
        vec![Act::Reply(200, json!({"tokens": [1, 2]}))],
    )])
    .await;

    let (client, _record) = ask(
        &house,
        "/v1/tokenize",
        &json!({"model": "fast", "content": "a"}),
    )
    .await;

    assert_eq!(client.json()["tokens"], json!([1, 2]));
}

#[tokio::test]
async fn vectors_are_never_asked_of_a_model_for_text() {
    let house = House::with(vec![(&[Fast, Primary], Vec::new())]).await;
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "fast", "input": "a"})),
        (
            "/v1/rerank",
            json!({"model": "auto", "query": "a", "documents": ["b"]}),
        ),
    ] {
        let (client, _record) = ask(&house, path, &body).await;
        assert_eq!(
            client.status.map(|status| status.as_u16()),
            Some(400),
            "{}",
            client.json()
        );
        assert!(house.nodes[0].seen().is_empty());
    }
}
