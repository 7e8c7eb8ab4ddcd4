//! What the classifier tells over HTTP, and the second opinion.

use config::tier::Tier::{Fast, Heavy, Primary};
use http::Method;
use policy::identity::Scope;
use serde_json::Value;

use super::client::Client;
use super::house::House;
use super::node::{Act, answer};

async fn classified(house: &House, body: &'static str) -> (u16, Value) {
    let mut client = Client::sending(body);
    let key = house.key_with(&[Scope::Inference]).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let asked = house.ask_with(Method::POST, "/classify", &headers, &mut client);
    Box::pin(asked).await;
    (client.status.expect("an answer").as_u16(), client.json())
}

#[tokio::test]
async fn a_text_gets_its_category_with_class_score_and_reasons() {
    let house = House::with(vec![(
        &[Fast, Primary, Heavy],
        vec![Act::Reply(200, answer("hi"))],
    )])
    .await;
    let (status, told) = classified(&house, r#"{"text":"Hello!"}"#).await;
    assert_eq!((status, &told["category"]), (200, &"greeting".into()));
    assert!(told["latency_ms"].is_number(), "{told}");
    let body = r#"{"text":"Prove that there are infinitely many primes, step by step"}"#;
    let (_, told) = classified(&house, body).await;
    assert_eq!(
        (&told["category"], &told["class"]),
        (&"analysis".into(), &"heavy".into())
    );
    let weights = told["reasons"].as_array().expect("reasons").iter();
    let sum: f64 = weights.filter_map(|reason| reason["weight"].as_f64()).sum();
    let score = told["score"].as_f64().expect("a score");
    assert!((score - (sum + 0.24).min(1.0)).abs() < 0.01, "{told}");
}

#[tokio::test]
async fn a_body_that_is_not_a_text_is_refused_in_words() {
    let house = House::with(vec![(&[Fast], vec![Act::Reply(200, answer("hi"))])]).await;
    for body in ["{}", r#"{"text":7}"#, r#"{"text":"a","more":1}"#, "no"] {
        let (status, told) = classified(&house, body).await;
        assert_eq!(status, 400, "{body}");
        assert_eq!(told["error"]["param"], "text", "{body}: {told}");
    }
}
