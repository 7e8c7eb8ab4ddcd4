//! Every route of the table against everybody who may not use it.

use config::tier::Tier::Primary;
use config::token::{Token, TokenKind};
use http::Method;
use policy::identity::Scope;

use super::client::Client;
use super::house::{House, Plans};
use super::node::{Act, answer};
use crate::gateway::operation::{Operation, routes};

const CHAT: &str = r#"{"model":"primary","messages":[{"role":"user","content":"hello"}]}"#;
const BODIES: [(&str, &str); 5] = [
    ("/chat/completions", CHAT),
    ("/apply-template", CHAT),
    ("/embeddings", r#"{"model":"primary","input":"hello"}"#),
    (
        "/rerank",
        r#"{"model":"primary","query":"a","documents":["b"]}"#,
    ),
    (
        "tokenize",
        r#"{"model":"primary","content":"a","tokens":[1]}"#,
    ),
];
const COMPLETION: &str = r#"{"model":"primary","prompt":"hello"}"#;

/// Every route with a method it answers, ids filled in; paths under `/v1` in both spellings.
fn asked() -> Vec<(Method, String, &'static Operation)> {
    let mut all = Vec::new();
    for (path, operation) in routes() {
        let path = path.replace("{id}", "tiny-primary");
        let closed = matches!(operation, Operation::Closed(_));
        let bare = path
            .strip_prefix("/v1")
            .filter(|_| closed)
            .map(str::to_owned);
        for path in [Some(path.clone()), bare].into_iter().flatten() {
            for method in operation
                .allow()
                .split(", ")
                .filter(|name| *name != "OPTIONS")
            {
                all.push((method.parse().unwrap(), path.clone(), operation));
            }
        }
    }
    all
}

async fn status(
    house: &House,
    method: &Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> u16 {
    let body = BODIES
        .iter()
        .find(|(end, _body)| path.ends_with(end))
        .map_or(COMPLETION, |(_end, body)| *body);
    let mut client = Client::sending(body);
    house
        .ask_with(method.clone(), path, headers, &mut client)
        .await;
    client.status.expect("always an answer").as_u16()
}

#[tokio::test]
async fn no_closed_route_answers_without_a_credential_or_with_a_wrong_one() {
    let house = House::with(Vec::new()).await;
    let stranger = Token::generate(TokenKind::Client).reveal();
    let admin = Token::generate(TokenKind::Admin).reveal();
    let wrong = [
        String::new(),
        "Bearer hearth_sk_typo".to_owned(),
        format!("Bearer {}", stranger.expose()),
        format!("Bearer {}", admin.expose()),
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.".to_owned(),
        "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln".to_owned(),
        "Basic YTpi".to_owned(),
    ];
    let mut closed = 0;
    for (method, path, operation) in asked() {
        for value in &wrong {
            let headers = [("authorization", value.as_str())];
            let headers = if value.is_empty() {
                &headers[..0]
            } else {
                &headers[..]
            };
            let status = status(&house, &method, &path, headers).await;
            match operation {
                Operation::Closed(_) => {
                    assert_eq!(status, 401, "{method} {path} with {value:?}");
                    closed += 1;
                }
                Operation::Open(_) => {
                    assert!(
                        !matches!(status, 401 | 403),
                        "{method} {path} is open: {status}"
                    );
                }
            }
        }
    }
    assert!(
        closed >= 7 * 12,
        "only {closed} refusals: the table is not walked"
    );
}

#[tokio::test]
async fn no_closed_route_answers_without_its_scope() {
    let house = House::with(Vec::new()).await;
    let key = house.key_with(&[]).await;
    let bearer = format!("Bearer {key}");
    for (method, path, operation) in asked() {
        if matches!(operation, Operation::Closed(_)) {
            let headers = [("authorization", bearer.as_str())];
            assert_eq!(
                status(&house, &method, &path, &headers).await,
                403,
                "{method} {path}"
            );
        }
    }
}

#[tokio::test]
async fn no_closed_route_answers_when_the_credit_is_exhausted() {
    let mut plans = Plans::default();
    plans.limits.per_user.text = 1;
    plans.limits.per_user.media = 1;
    plans.limits.per_user.health = 1;
    let acts = vec![Act::Reply(200, answer("hi"))];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let key = house.key_with(&Scope::ALL).await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    for (method, path) in [
        (Method::GET, "/v1/models"),
        (Method::POST, "/v1/chat/completions"),
    ] {
        let first = status(&house, &method, path, &headers).await;
        assert_eq!(first, 200, "{path} takes the only unit");
    }
    for (method, path, operation) in asked() {
        if matches!(operation, Operation::Closed(_)) {
            assert_eq!(
                status(&house, &method, &path, &headers).await,
                429,
                "{method} {path}"
            );
        }
    }
}
