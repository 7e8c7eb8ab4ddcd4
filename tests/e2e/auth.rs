//! Who may enter: keys and tokens of every kind, good and bad, and what a stranger can reach.

use serde_json::{Value, json};
use tests::issuer::{Issuer, Key, unix_now};
use tests::proxy::Proxy;

/// Good claims with one field changed.
fn with(issuer: &Issuer, field: &str, value: Value) -> Value {
    let mut claims = issuer.claims("ada");
    claims[field] = value;
    claims
}

fn without(issuer: &Issuer, field: &str) -> Value {
    let mut claims = issuer.claims("ada");
    claims
        .as_object_mut()
        .expect("claims are an object")
        .remove(field);
    claims
}

#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_tokens(issuer: &Issuer) -> Vec<(&'static str, String)> {
    let now = unix_now();
    let good = issuer.token("ada");
    let sign = |claims: &Value| issuer.sign(Key::Rsa, claims);
    let headed = |header: Value| issuer.sign_with_header(Key::Rsa, &header, &issuer.claims("ada"));
    let mut tampered = good.split('.').map(ToOwned::to_owned).collect::<Vec<_>>();
    tampered[1] = tests::issuer::encode(issuer.claims("eve").to_string());
    vec![
        (
            "another audience",
            sign(&with(issuer, "aud", json!("someone-else"))),
        ),
        (
            "another issuer",
            sign(&with(issuer, "iss", json!("https://evil.example"))),
        ),
        (
            "an issuer as a list",
            sign(&with(issuer, "iss", json!([issuer.name()]))),
        ),
        ("expired", sign(&with(issuer, "exp", json!(now - 120)))),
        (
            "expiry as text",
            sign(&with(issuer, "exp", json!((now + 3600).to_string()))),
        ),
        ("no expiry", sign(&without(issuer, "exp"))),
        ("no subject", sign(&without(issuer, "sub"))),
        ("an empty subject", sign(&with(issuer, "sub", json!("")))),
        (
            "issued in the future",
            sign(&with(issuer, "iat", json!(now + 3600))),
        ),
        (
            "not yet valid",
            sign(&with(issuer, "nbf", json!(now + 3600))),
        ),
        ("no kid", headed(json!({"alg": "RS256", "typ": "JWT"}))),
        (
            "an unknown kid",
            headed(json!({"alg": "RS256", "typ": "JWT", "kid": "other"})),
        ),
        (
            "alg none",
            format!(
                "{}.{}.",
                tests::issuer::encode(json!({"alg": "none", "kid": "rsa-1"}).to_string()),
                tests::issuer::encode(issuer.claims("ada").to_string())
            ),
        ),
        (
            "HS256 with the RSA public key",
            issuer.hs256_with_the_public_key(&issuer.claims("ada")),
        ),
        (
            "RS256 under the kid of an EC key",
            headed(json!({"alg": "RS256", "typ": "JWT", "kid": "ec-1"})),
        ),
        (
            "an unknown critical header",
            headed(json!({"alg": "RS256", "typ": "JWT", "kid": "rsa-1", "crit": ["x"], "x": 1})),
        ),
        ("a tampered payload", tampered.join(".")),
        (
            "no signature",
            good.rsplit_once('.')
                .map(|(text, _)| format!("{text}."))
                .unwrap_or_default(),
        ),
        (
            "too long",
            sign(&with(issuer, "padding", json!("x".repeat(9000)))),
        ),
        ("no token at all", "garbage".to_owned()),
    ]
}

#[tokio::test]
async fn good_tokens_of_every_algorithm_are_let_in() {
    let issuer = Issuer::start().await;
    let proxy = Proxy::generous().trusting(&issuer).start().await;

    for key in [Key::Rsa, Key::Ec, Key::Ed] {
        let person = proxy
            .stranger()
            .with_bearer(&issuer.sign(key, &issuer.claims("ada")));
        let reply = person.get("/v1/models").await;
        assert_eq!(reply.status, 200, "{key:?}: {}", reply.body);
    }
    assert_eq!(issuer.fetches(), 1, "the keys are fetched once");
}

#[tokio::test]
async fn bad_tokens_of_every_kind_are_refused_and_cost_no_fetch() {
    let issuer = Issuer::start().await;
    let proxy = Proxy::generous().trusting(&issuer).start().await;
    assert_eq!(
        proxy
            .stranger()
            .with_bearer(&issuer.token("ada"))
            .get("/v1/models")
            .await
            .status,
        200
    );

    for (what, token) in bad_tokens(&issuer) {
        let reply = proxy.stranger().with_bearer(&token).get("/v1/models").await;
        assert!(
            [401, 431].contains(&reply.status),
            "{what} was answered with {}",
            reply.status
        );
        assert!(
            !reply.body.contains(&token),
            "{what}: a token is never echoed"
        );
        if reply.status == 401 {
            assert!(
                reply.header("www-authenticate").starts_with("Bearer"),
                "{what}: {:?}",
                reply.headers
            );
        }
    }
    assert!(
        issuer.fetches() <= 2,
        "an unknown kid costs at most one fetch a minute, not {}",
        issuer.fetches()
    );
    assert_eq!(
        proxy
            .stranger()
            .with_bearer(&issuer.token("ada"))
            .get("/v1/models")
            .await
            .status,
        200,
        "good tokens still work"
    );
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once() {
    let proxy = Proxy::start().await;
    let (id, key) = proxy.key("guest");
    let guest = proxy.stranger().with_bearer(&key);
    assert_eq!(guest.get("/v1/models").await.status, 200);

    proxy.manage(&["key", "revoke", &id]);

    let reply = guest.get("/v1/models").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (401, "token_revoked"),
        "{}",
        reply.body
    );
    let listed = proxy.manage(&["key", "list"]).to_string();
    assert!(listed.contains(&id), "a revoked key stays in the list");
    assert!(!listed.contains(&key), "a key is shown once, never again");
}

#[tokio::test]
async fn a_mistyped_key_is_called_a_typo() {
    let proxy = Proxy::start().await;
    let (_, key) = proxy.key("guest");
    let mut typo = key.into_bytes();
    typo[25] = if typo[25] == b'a' { b'b' } else { b'a' }; // within the secret
    let typo = String::from_utf8(typo).expect("keys are ASCII");

    let reply = proxy.stranger().with_bearer(&typo).get("/v1/models").await;

    assert_eq!(
        (reply.status, reply.code().as_str()),
        (401, "invalid_api_key")
    );
    assert!(
        reply.body.contains("check sum"),
        "not looked up, and said so: {}",
        reply.body
    );
}

#[tokio::test]
async fn a_stranger_reaches_nothing_but_health_page_and_enrolment() {
    let proxy = Proxy::start().await;
    let stranger = proxy.stranger();

    for open in [
        "/healthz",
        "/readyz",
        "/",
        "/chat.js",
        "/chat.css",
        "/config.json",
    ] {
        let reply = stranger.get(open).await;
        assert!(
            [200, 503].contains(&reply.status),
            "{open}: {}",
            reply.status
        );
    }
    for closed in [
        "/health",
        "/v1/models",
        "/v1/models/fast",
        "/metrics",
        "/admin",
        "/slots",
        "/props",
        "/v1/chat/completions",
        "/debug",
        "/nodes",
        "/../etc/passwd",
        "//v1/models",
        "/v1/models/%2e%2e/healthz",
        "/v1/nodes",
    ] {
        let reply = stranger.get(closed).await;
        assert!(
            [400, 401, 404].contains(&reply.status),
            "{closed}: {}",
            reply.status
        );
        assert_ne!(reply.status, 200, "{closed}");
    }
    let reply = stranger
        .complete(json!({"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}))
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (401, "missing_api_key")
    );
    assert!(
        reply.header("ratelimit-policy").contains("text-min-ip"),
        "even a refusal tells the limits of the address: {:?}",
        reply.headers
    );
    assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
}
