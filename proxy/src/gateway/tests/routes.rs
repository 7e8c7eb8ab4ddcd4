//! Every route of both tables, the gateway's and the administration's, against everybody who may not use it: the status, and a body
//! that says why in the form of its surface (OpenAI's, or RFC 9457 under `/admin/v1`).

use config::tier::Tier::Primary;
use config::token::{Token, TokenKind};
use http::Method;
use policy::identity::Scope;

use super::client::Client;
use super::house::{House, Plans};
use super::node::{Act, answer};
use crate::admin::routes::{PREFIX, ROUTES};
use crate::gateway::operation::{Closed, Operation, routes};

const CHAT: &str = r#"{"model":"primary","messages":[{"role":"user","content":"hello"}]}"#;
const BODIES: [(&str, &str); 6] = [
    ("/classify", r#"{"text":"hello"}"#),
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
        if *operation == Operation::Closed(Closed::Admin) {
            // What stands behind it has a table of its own.
            all.extend(ROUTES.iter().map(|route| {
                let path = format!("{PREFIX}{}", route.path.replace("{id}", "ada"));
                (route.method.parse().unwrap(), path, operation)
            }));
            continue;
        }
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

async fn asks(
    house: &House,
    method: &Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Client {
    let body = BODIES
        .iter()
        .find(|(end, _body)| path.ends_with(end))
        .map_or(COMPLETION, |(_end, body)| *body);
    let mut client = Client::sending(body);
    house
        .ask_with(method.clone(), path, headers, &mut client)
        .await;
    client
}

async fn status(
    house: &House,
    method: &Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> u16 {
    let client = asks(house, method, path, headers).await;
    client.status.expect("always an answer").as_u16()
}

/// Refused with this status and code, in the words of the surface. (The edge sends none of them for `HEAD`.)
async fn refused(
    house: &House,
    (method, path): (&Method, &str),
    bearer: &str,
    (status, code): (u16, &str),
) {
    let value = format!("Bearer {bearer}");
    let headers = [("authorization", value.as_str())];
    let headers = if bearer.is_empty() {
        &headers[..0]
    } else {
        &headers[..]
    };
    let client = asks(house, method, path, headers).await;
    let told = client.status.expect("always an answer").as_u16();
    assert_eq!(told, status, "{method} {path}");
    let kind = client.headers["content-type"].to_str().unwrap();
    assert_eq!(
        client.headers.contains_key("www-authenticate"),
        [401, 403].contains(&status),
        "{method} {path}"
    );
    assert_eq!(
        client.headers.contains_key("retry-after"),
        status == 429,
        "{method} {path}"
    );
    let body = client.json();
    if path.starts_with(PREFIX) {
        assert_eq!(kind, "application/problem+json", "{path}");
        assert_eq!(body["status"], status, "{path}: {body}");
        assert!(body["detail"].is_string() && body["title"].is_string());
        assert_eq!(body["request_id"], "req_test", "{path}: {body}");
        return;
    }
    assert_eq!(kind, "application/json", "{path}");
    assert_eq!(body["error"]["code"], code, "{method} {path}: {body}");
    assert!(body["error"]["message"].is_string(), "{path}: {body}");
    assert!(body["error"]["type"].is_string(), "{path}: {body}");
}

/// Of every closed route: how many.
async fn all_refuse(house: &House, bearer: &str, (status, code): (u16, &str)) -> usize {
    let mut closed = 0;
    for (method, path, operation) in asked() {
        if matches!(operation, Operation::Closed(_)) {
            refused(house, (&method, &path), bearer, (status, code)).await;
            closed += 1;
        }
    }
    closed
}

/// Both tables, and each spelling and method: fewer means that something is not walked.
const CLOSED_MIN: usize = ROUTES.len() + 30;

#[tokio::test]
async fn every_closed_route_tells_a_stranger_the_same() {
    let house = House::with(Vec::new()).await;
    let closed = all_refuse(&house, "", (401, "missing_api_key")).await;
    assert!(closed >= CLOSED_MIN, "{closed} routes");
    let unknown = Token::generate(TokenKind::Client).reveal();
    all_refuse(&house, unknown.expose(), (401, "invalid_api_key")).await;
}

#[tokio::test]
async fn every_closed_route_says_that_a_key_has_expired() {
    let house = House::with(Vec::new()).await;
    let key = house.expired_key().await;
    let closed = all_refuse(&house, &key, (401, "token_expired")).await;
    assert!(closed >= CLOSED_MIN, "{closed} routes");
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
    let closed = all_refuse(&house, &key, (403, "insufficient_scope")).await;
    assert!(closed >= CLOSED_MIN, "{closed} routes");
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
    let closed = all_refuse(&house, &key, (429, "rate_limit_exceeded")).await;
    assert!(closed >= CLOSED_MIN, "{closed} routes");
}
