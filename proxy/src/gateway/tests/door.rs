//! Who gets in and with what: paths, methods, credentials, bodies, lists, health.

use std::time::{Duration, Instant};

use config::tier::Tier::{Fast, Heavy, Primary};
use http::Method;
use serde_json::json;

use super::client::Client;
use super::house::{House, stream_to, to};
use super::node::{Act, answer};

async fn get(house: &House, path: &str) -> Client {
    let mut client = Client::sending("");
    house.ask(Method::GET, path, &mut client).await;
    client
}

#[tokio::test]
async fn without_a_credential_only_the_public_paths_answer() {
    let house = House::with(vec![(&[Primary], vec![])]).await;
    for (method, path, expected) in [
        (Method::GET, "/healthz", 200),
        (Method::GET, "/readyz", 200),
        (Method::GET, "/", 200),
        (Method::GET, "/config.json", 200),
        (Method::POST, "/v1/nodes/nonce", 200),
        (Method::POST, "/v1/chat/completions", 401),
        (Method::GET, "/v1/chat/completions", 401),
        (Method::GET, "/v1/models", 401),
        (Method::GET, "/health", 401),
        (Method::GET, "/metrics", 401),
        (Method::GET, "/nowhere", 401),
        (Method::POST, "/healthz", 405),
        (Method::DELETE, "/v1/nodes/nonce", 405),
    ] {
        let mut client = Client::sending("{}");
        house.ask_with(method.clone(), path, &[], &mut client).await;
        assert_eq!(client.status.unwrap().as_u16(), expected, "{method} {path}");
        assert!(client.ended);
        if expected == 401 {
            assert_eq!(client.json()["error"]["code"], "missing_api_key");
            assert!(client.header("www-authenticate").starts_with("Bearer"));
        }
    }
}

#[tokio::test]
async fn with_a_credential_wrong_paths_and_methods_are_explained() {
    let house = House::with(vec![]).await;
    let client = get(&house, "/v1/chat/completion").await;
    assert_eq!(client.status.unwrap(), 404);
    let message = client.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("/v1/chat/completions"), "{message}");
    let client = get(&house, "/v1/completions").await;
    assert_eq!(
        (client.status.unwrap().as_u16(), client.header("allow")),
        (405, "POST, OPTIONS")
    );
    assert!(
        !client.header("x-ratelimit-limit-requests").is_empty(),
        "limits are on every answer"
    );
}

#[tokio::test]
async fn a_key_without_the_scope_is_refused() {
    let house = House::with(vec![]).await;
    let client = get(&house, "/metrics").await;
    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["code"].clone()
        ),
        (403, json!("insufficient_scope"))
    );
}

#[tokio::test]
async fn the_model_list_is_there_at_once_even_without_a_node() {
    let house = House::with(vec![]).await;
    let begun = Instant::now();
    let client = get(&house, "/v1/models").await;
    assert!(
        begun.elapsed() < Duration::from_millis(50),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(client.json()["object"], "list");
    assert_eq!(client.json()["data"][0]["id"], "auto");
    let client = get(&house, "/v1/models/nothing").await;
    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["code"].clone()
        ),
        (404, json!("model_not_found"))
    );
}

#[tokio::test]
async fn models_are_listed_with_their_tiers() {
    let house = House::with(vec![(&[Fast, Heavy], vec![])]).await;
    let client = get(&house, "/models").await;
    let list = client.json();
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["auto", "fast", "heavy", "tiny-fast", "tiny-heavy"]);
    let one = get(&house, "/v1/models/tiny-heavy").await.json();
    assert_eq!(
        (
            &one["tier"],
            &one["status"]["value"],
            &one["context_length"]
        ),
        (&json!("heavy"), &json!("loaded"), &json!(512))
    );
}

#[tokio::test]
async fn health_speaks_llama_servers_language() {
    let empty = House::with(vec![]).await;
    let client = get(&empty, "/health").await;
    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["type"].clone()
        ),
        (503, json!("unavailable_error"))
    );
    assert_eq!(
        get(&empty, "/readyz").await.json()["failing"],
        json!(["tiers"])
    );
    let house = House::with(vec![(&[Fast], vec![])]).await;
    assert_eq!(
        get(&house, "/v1/health").await.json(),
        json!({"status": "ok"})
    );
    assert_eq!(get(&house, "/readyz").await.status.unwrap(), 200);
}

#[tokio::test]
async fn bad_bodies_are_refused_with_the_right_words() {
    let house = House::with(vec![(&[Primary], vec![])]).await;
    let big = format!("{{\"model\":\"{}\"}}", "x".repeat(300 * 1024));
    let text =
        json!({"model": "fast", "messages": [{"role": "user", "content": "x".repeat(70 * 1024)}]})
            .to_string();
    for (body, status, code) in [
        (String::new(), 400, "invalid_json"),
        ("{".to_owned(), 400, "invalid_json"),
        ("[]".to_owned(), 400, "invalid_json"),
        ("[".repeat(10_000), 400, "invalid_json"),
        (
            json!({"model": "fast", "messages": []}).to_string(),
            400,
            "invalid_value",
        ),
        (
            json!({"model": 7, "messages": []}).to_string(),
            400,
            "invalid_value",
        ),
        (big, 413, "request_too_large"),
        (text, 413, "request_too_large"),
        (to("nobody").to_string(), 404, "model_not_found"),
    ] {
        let mut client = Client::sending(body.clone());
        house
            .ask(Method::POST, "/v1/chat/completions", &mut client)
            .await;
        let short: String = body.chars().take(60).collect();
        assert_eq!(
            client.status.unwrap().as_u16(),
            status,
            "{short}: {}",
            client.text()
        );
        assert_eq!(client.json()["error"]["code"], code, "{short}");
        assert_eq!(
            client.header("x-ratelimit-remaining-requests"),
            "30",
            "nothing is charged: {short}"
        );
    }
}

#[tokio::test]
async fn a_completion_holds_no_media_and_gets_no_room_for_it() {
    let house = House::with(vec![(&[Primary], vec![])]).await;
    let text = format!("{{\"prompt\":\"{}", "x".repeat(70 * 1024));
    let mut client = Client::sending(text);
    house
        .ask(Method::POST, "/v1/completions", &mut client)
        .await;
    assert_eq!(client.status.unwrap().as_u16(), 413, "{}", client.text());
}

#[tokio::test]
async fn only_json_is_read() {
    let house = House::with(vec![(&[Primary], vec![])]).await;
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        let mut client = Client::sending(to("primary").to_string());
        house.ask_typed(kind, &mut client).await;
        assert_eq!(client.status.unwrap().as_u16(), 415, "{kind}");
    }
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    let mut client = Client::sending(to("primary").to_string());
    house
        .ask_typed("Application/JSON; charset=utf-8", &mut client)
        .await;
    assert_eq!(client.status.unwrap(), 200);
}

#[tokio::test]
async fn without_any_node_the_answer_is_503_with_a_hint() {
    let house = House::with(vec![]).await;
    for body in [to("auto"), to("heavy"), stream_to("auto")] {
        let (client, record) = house.chat(&body).await;
        assert_eq!(client.status.unwrap(), 503);
        assert_eq!(client.json()["error"]["code"], "no_tier_available");
        assert!(!client.header("retry-after").is_empty());
        assert_eq!(record.refusal, Some("no_tier_available"));
    }
}

#[tokio::test]
async fn auto_is_decided_by_the_classifier_and_says_why() {
    let house = House::with(vec![(
        &[Fast, Primary, Heavy],
        vec![Act::Reply(200, answer("hi"))],
    )])
    .await;
    let (client, _) = house.chat(&to("auto")).await;
    let routing = client.json()["_routing"].clone();
    assert_ne!(routing["reason"], "requested");
    assert_ne!(routing["reason"], "model");
    let (client, _) = house.chat(&to("tiny-heavy")).await;
    assert_eq!(
        (
            client.json()["_routing"]["tier"].clone(),
            client.json()["_routing"]["reason"].clone()
        ),
        (json!("heavy"), json!("model"))
    );
}

#[tokio::test]
async fn enrolment_without_a_good_token_is_refused_by_name() {
    let house = House::with(vec![]).await;
    let mut client = Client::sending("{}");
    house
        .ask_with(Method::POST, "/v1/nodes/nonce", &[], &mut client)
        .await;
    let nonce = client.json()["nonce"].as_str().unwrap().to_owned();
    assert_eq!(client.json()["expires_secs"], 60);
    let request = json!({
        "version": 1, "token": "hearth_nj_nonsense", "identity": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "name": "attic", "nonce": nonce, "signature": "AAAA",
    });
    for (field, value, status, code) in [
        (
            "token",
            json!("hearth_nj_nonsense"),
            403,
            "join_token_malformed",
        ),
        ("version", json!(2), 400, "version_unsupported"),
        ("identity", json!("short"), 400, "invalid_value"),
        ("name", json!(""), 400, "invalid_value"),
        ("name", json!("\u{1b}[2J"), 400, "invalid_value"),
        ("extra", json!(1), 400, "invalid_value"),
    ] {
        let mut request = request.clone();
        request[field] = value;
        let mut client = Client::sending(request.to_string());
        let record = house
            .ask_with(Method::POST, "/v1/nodes/enroll", &[], &mut client)
            .await;
        assert_eq!(
            (
                client.status.unwrap().as_u16(),
                client.json()["error"]["code"].clone()
            ),
            (status, json!(code)),
            "{field}"
        );
        assert_eq!(record.refusal, Some(code));
    }
}
