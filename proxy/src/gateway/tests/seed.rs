//! The defects of the stack that this one replaces, as far as they concern what is charged and who is told what: each one is a
//! test with its name. And what the owner of a key allowed it, which that stack had no words for.

use std::sync::Arc;

use config::tier::Tier::{Fast, Heavy, Primary};
use config::token::Token;
use http::Method;
use policy::identity::Scope;
use serde_json::{Value, json};

use super::client::Client;
use super::house::{House, to};
use super::node::{Act, answer};
use crate::store::KeyRecord;

async fn asked(house: &House, bearer: &str, path: &str) -> Client {
    let bearer = format!("Bearer {bearer}");
    let mut client = Client::sending(String::new());
    let headers = [("authorization", bearer.as_str())];
    house
        .ask_with(Method::GET, path, &headers, &mut client)
        .await;
    client
}

fn told(client: &Client) -> (u16, Value) {
    let status = client.status.unwrap().as_u16();
    (status, client.json()["error"]["code"].clone())
}

/// A key of this owner that was changed.
async fn key(house: &House, change: impl FnOnce(&mut KeyRecord)) -> String {
    let key = house.key_with(&[Scope::Inference, Scope::Models]).await;
    let id = config::ids::KeyId::new(Token::parse(&key).unwrap().id());
    let mut record = house.store().key(&id).await.unwrap().unwrap();
    change(&mut record);
    house.store().put_key(&record).await.unwrap();
    key
}

async fn chat_as(house: &House, key: &str, model: &str) -> Client {
    let bearer = format!("Bearer {key}");
    let mut client = Client::sending(to(model).to_string());
    house
        .ask_with(
            Method::POST,
            "/v1/chat/completions",
            &[("authorization", &bearer)],
            &mut client,
        )
        .await;
    client
}

/// `/api/user` and `/api/conversations` answered anybody, about anybody.
#[tokio::test]
async fn seed_defect_2_what_is_somebody_s_is_told_to_nobody_else() {
    let acts = vec![Act::Reply(200, answer("hi"))];
    let house = House::with(vec![(&[Primary], acts)]).await;
    let ben = key(&house, |record| {
        record.owner = config::ids::UserId::new("ben");
    })
    .await;
    assert_eq!(house.chat(&to("primary")).await.0.status.unwrap(), 200);
    house
        .gateway
        .settle(std::time::Duration::from_secs(5))
        .await;
    for path in [
        "/api/user",
        "/api/conversations",
        "/api/conversations/1",
        "/v1/usage",
    ] {
        let mut stranger = Client::sending(String::new());
        house.ask_with(Method::GET, path, &[], &mut stranger).await;
        assert_eq!(stranger.status.unwrap(), 401, "{path}");
        let forged = asked(&house, "eyJhbGciOiJub25lIn0.e30.", path).await;
        assert_eq!(forged.status.unwrap(), 401, "{path}");
    }
    let profile = asked(&house, &ben, "/api/user").await.json();
    assert_eq!(profile["id"], "ben");
    assert_eq!(profile["usage"]["totals"]["requests"], 0, "{profile}");
    let mut ada = Client::sending(String::new());
    house.ask(Method::GET, "/api/user", &mut ada).await;
    let profile = ada.json();
    assert_eq!(profile["id"], "ada");
    assert_eq!(profile["usage"]["totals"]["requests"], 1, "{profile}");
}

/// The limiter ran before anybody knew who asked: a stranger's wrong keys used up what a household had.
#[tokio::test]
async fn seed_defect_6_who_does_not_get_in_spends_nobody_s_limit() {
    let acts = vec![Act::Reply(200, answer("hi"))];
    let house = House::with(vec![(&[Primary], acts)]).await;
    for number in 0..100 {
        let wrong = format!("hearth_sk_wrong{number}");
        let refused = chat_as(&house, &wrong, "primary").await;
        assert_eq!(refused.status.unwrap(), 401);
    }
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(
        client.status.unwrap(),
        200,
        "from the same address, in the same minute"
    );
    assert_eq!(
        client.header("x-ratelimit-remaining-requests"),
        "29",
        "only its own request counts"
    );
}

/// One bound for all routes stopped what media may send, and whoever did not announce a size had none.
#[tokio::test]
async fn seed_defect_9_each_route_has_its_bound_and_no_body_escapes_it_by_saying_no_size() {
    let house = House::with(vec![(&[Primary], vec![])]).await;
    let pieces = async |path: &str, body: String| {
        let mut client = Client::sending_in_pieces(&body, 1_000);
        house.ask(Method::POST, path, &mut client).await;
        client
    };
    // Of this house: 64 KiB of text, 256 KiB with media.
    let text = "x".repeat(70 * 1024);
    let completion = json!({"model": "primary", "prompt": text}).to_string();
    let refused = pieces("/v1/completions", completion).await;
    assert_eq!(refused.status.unwrap(), 413, "{}", refused.text());
    let mut chat = to("primary");
    chat["messages"][0]["content"] = text.into();
    let refused = pieces("/v1/chat/completions", chat.to_string()).await;
    assert_eq!(refused.status.unwrap(), 413, "a chat without media is text");
    let picture = |bytes: usize| {
        let url = format!("data:image/png;base64,{}", "A".repeat(bytes));
        let mut chat = to("primary");
        chat["messages"][0]["content"] = json!([{"type": "image_url", "image_url": {"url": url}}]);
        chat.to_string()
    };
    let taken = pieces("/v1/chat/completions", picture(120 * 1024)).await;
    let status = taken.status.unwrap();
    assert!(
        status.is_client_error() && status != 413,
        "it is read and judged: {}",
        taken.text()
    );
    let refused = pieces("/v1/chat/completions", picture(300 * 1024)).await;
    assert_eq!(refused.status.unwrap(), 413, "media have a bound too");
    let bearer = format!("Bearer {}", key(&house, |_| ()).await);
    let announced = [
        ("authorization", bearer.as_str()),
        ("content-length", "300000"),
    ];
    // Whoever waited for the rest of it would wait for ever.
    let stalled = Arc::default();
    let mut client = Client::sending("{").stalling(&stalled);
    house
        .ask_with(Method::POST, "/v1/completions", &announced, &mut client)
        .await;
    assert_eq!(client.status.unwrap(), 413, "before a byte is read");
}

/// Every path that somebody invented was a label of the metrics for ever.
#[tokio::test]
async fn seed_defect_14_a_path_that_somebody_invents_is_no_label_of_the_metrics() {
    let house = House::with(Vec::new()).await;
    let key = key(&house, |record| record.scopes = Scope::ALL.to_vec()).await;
    let lines = async || {
        let metrics = asked(&house, &key, "/metrics").await.text();
        assert!(!metrics.contains("invented"), "{metrics}");
        let requests = metrics
            .lines()
            .filter(|line| line.starts_with("hearth_requests_total{"));
        requests.count()
    };
    for path in ["/invented", "/v1/models/invented", "/invented?a=b"] {
        asked(&house, &key, path).await;
    }
    let _itself = lines().await;
    let before = lines().await;
    for number in 0..200 {
        asked(&house, &key, &format!("/invented/{number}")).await;
        asked(&house, &key, &format!("/v1/models/invented-{number}")).await;
    }
    assert!(lines().await <= before + 2, "refused for haste at most");
}

#[tokio::test]
async fn a_key_for_some_models_reaches_these_and_no_other() {
    let acts = || vec![Act::Reply(200, answer("hi"))];
    let house = House::with(vec![(&[Fast, Primary, Heavy], acts())]).await;
    let key = key(&house, |record| {
        record.models = Some(vec!["tiny-primary".into()]);
    })
    .await;
    for good in ["tiny-primary", "primary", "auto"] {
        let client = chat_as(&house, &key, good).await;
        assert_eq!(client.status.unwrap(), 200, "{good}: {}", client.text());
        assert_eq!(client.json()["_routing"]["model"], "tiny-primary", "{good}");
    }
    let refused = chat_as(&house, &key, "tiny-heavy").await;
    assert_eq!(told(&refused), (403, json!("model_not_allowed")));
    let list = asked(&house, &key, "/v1/models").await.text();
    assert!(
        list.contains("tiny-primary") && !list.contains("tiny-heavy"),
        "{list}"
    );
}

#[tokio::test]
async fn a_key_for_some_tiers_reaches_these_and_no_other() {
    let acts = || vec![Act::Reply(200, answer("hi"))];
    let house = House::with(vec![(&[Fast, Primary, Heavy], acts())]).await;
    let key = key(&house, |record| record.tiers = Some(vec![Fast])).await;
    for good in ["fast", "tiny-fast", "auto"] {
        let client = chat_as(&house, &key, good).await;
        assert_eq!(client.status.unwrap(), 200, "{good}: {}", client.text());
        assert_eq!(client.json()["_routing"]["tier"], "fast", "{good}");
    }
    for closed in ["heavy", "tiny-heavy"] {
        let refused = chat_as(&house, &key, closed).await;
        assert_eq!(
            told(&refused),
            (403, json!("model_not_allowed")),
            "{closed}"
        );
    }
    assert!(
        house.nodes[0].seen().iter().all(|seen| {
            let asked = seen.body["model"].as_str().unwrap_or_default();
            !asked.contains("heavy")
        }),
        "no node hears of what was refused"
    );
}
