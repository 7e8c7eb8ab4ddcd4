//! API keys, and how credentials may be shown at all.

use config::tier::Tier;
use config::token::{Token, TokenKind};
use policy::identity::Scope;

use super::*;
use crate::admin::Operations;
use crate::admin::words::{KeyMade, KeyOrder};

async fn made(house: &House, order: KeyOrder) -> KeyMade {
    let operations = Operations::new(Arc::clone(&house.store), "https://h".into(), None, None);
    let kind = if order.admin {
        TokenKind::Admin
    } else {
        TokenKind::Client
    };
    let token = Token::generate(kind);
    let record = operations.key_record(&order, &token).await.unwrap();
    house.store.put_key(&record).await.unwrap();
    KeyMade {
        key: token.reveal().expose().clone(),
        record: record.into(),
    }
}

fn named(name: &str) -> KeyOrder {
    KeyOrder {
        name: name.into(),
        ..KeyOrder::default()
    }
}

#[tokio::test]
async fn a_key_names_its_principal() {
    let house = House::trusting(Vec::new());
    let mut order = named("laptop");
    order.owner = Some("ada".into());
    order.tiers = Some(vec![Tier::Fast]);
    order.plan.text_per_day = Some(7);
    let key = made(&house, order).await;
    let principal = house.bearer(&key.key).await.unwrap();
    assert_eq!(principal.user.as_str(), "ada");
    assert_eq!(principal.key, Some(key.record.id));
    assert_eq!(principal.tiers, Some(vec![Tier::Fast]));
    assert_eq!(principal.plan.text_per_day, Some(7));
    assert!(principal.may(Scope::Inference) && !principal.may(Scope::Metrics) && !principal.admin);

    let mut order = named("root");
    order.admin = true;
    let key = made(&house, order).await.key;
    assert!(key.starts_with("hearth_ak_"));
    assert!(house.bearer(&key).await.unwrap().may(Scope::Admin));
}

#[tokio::test]
async fn every_way_to_show_a_key_is_one_way() {
    let house = House::trusting(Vec::new());
    let (key, other) = (
        made(&house, named("a")).await.key,
        made(&house, named("b")).await.key,
    );
    let bearer = format!("bEaReR   {key} ");
    let right = [
        vec![("authorization", bearer.as_str())],
        vec![("x-api-key", key.as_str())],
        vec![
            ("authorization", bearer.as_str()),
            ("x-api-key", key.as_str()),
        ],
        vec![("x-api-key", key.as_str()), ("x-api-key", key.as_str())],
    ];
    for headers in right {
        assert!(house.headers(&headers).await.is_ok(), "{headers:?}");
    }
    let two = [
        ("authorization", bearer.as_str()),
        ("x-api-key", other.as_str()),
    ];
    assert_eq!(house.headers(&two).await, Err(Refusal::AmbiguousCredential));
    let missing = Err(Refusal::MissingCredential);
    assert_eq!(house.headers(&[]).await, missing);
    assert_eq!(
        house.headers(&[("authorization", "Bearer ")]).await,
        missing
    );
    assert_eq!(
        house.headers(&[("cookie", &key), ("api_key", &key)]).await,
        missing
    );
    let long = "x".repeat(9_000);
    assert_eq!(
        house.headers(&[("x-api-key", &long)]).await,
        Err(Refusal::HeaderTooLarge)
    );
    let basic = house.headers(&[("authorization", "Basic YTpi")]).await;
    assert!(why(&basic).contains("Bearer"));
}

#[tokio::test]
async fn near_misses_are_refused_and_a_typo_is_called_one() {
    let house = House::trusting(Vec::new());
    let key = made(&house, named("a")).await.key;
    let last = if key.ends_with('x') { "y" } else { "x" };
    let typo = format!("{}{last}", key.get(..key.len() - 1).unwrap());
    let refused = house.bearer(&typo).await;
    assert!(why(&refused).contains("check sum"), "{}", why(&refused));
    assert!(!why(&refused).contains(&typo));

    let stranger = Token::generate(TokenKind::Client);
    let unknown = why(&house.bearer(stranger.reveal().expose()).await);
    assert!(unknown.contains("no such API key"), "{unknown}");
    let join = Token::generate(TokenKind::Join);
    assert!(why(&house.bearer(join.reveal().expose()).await).contains("join token"));
    assert!(house.bearer("sk-proj-something").await.is_err());
}

#[tokio::test]
async fn a_right_id_with_a_wrong_secret_looks_like_an_unknown_key() {
    let house = House::trusting(Vec::new());
    let key = made(&house, named("a")).await;
    let mut record = house.store.key(&key.record.id).await.unwrap().unwrap();
    let stranger = Token::generate(TokenKind::Client);
    record.id = KeyId::new(stranger.id());
    house.store.put_key(&record).await.unwrap();
    let refused = why(&house.bearer(stranger.reveal().expose()).await);
    assert!(refused.contains("no such API key"), "{refused}");
}

#[tokio::test]
async fn a_key_revoked_here_is_refused_at_once() {
    let house = House::trusting(Vec::new());
    let key = made(&house, named("a")).await;
    assert!(house.bearer(&key.key).await.is_ok());
    house.store.revoke_key(&key.record.id, now()).await.unwrap();
    house.authenticator.forget_key(&key.record.id);
    assert_eq!(
        house.bearer(&key.key).await,
        Err(Refusal::RevokedCredential)
    );
}

#[tokio::test]
async fn a_key_revoked_elsewhere_is_refused_within_two_seconds() {
    let house = House::trusting(Vec::new());
    let key = made(&house, named("a")).await;
    assert!(house.bearer(&key.key).await.is_ok());
    house.store.revoke_key(&key.record.id, now()).await.unwrap();
    pass(Duration::from_millis(1_900)).await;
    assert_eq!(
        house.bearer(&key.key).await,
        Err(Refusal::RevokedCredential)
    );
}

#[tokio::test]
async fn an_expired_key_says_so() {
    let house = House::trusting(Vec::new());
    let mut order = named("a");
    order.expires_secs = Some(60);
    let key = made(&house, order).await.key;
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", key.parse().unwrap());
    let authenticator = &house.authenticator;
    assert!(authenticator.authenticate(&headers, now()).await.is_ok());
    let late = authenticator.authenticate(&headers, now() + 61).await;
    assert_eq!(late, Err(Refusal::ExpiredCredential));
}

#[tokio::test]
async fn the_use_of_a_key_is_noted() {
    let house = House::trusting(Vec::new());
    let key = made(&house, named("a")).await;
    assert!(house.bearer(&key.key).await.is_ok());
    until("the note", async || {
        let record = house.store.key(&key.record.id).await.unwrap().unwrap();
        record.last_used_unix.is_some_and(|used| used >= now() - 60)
    })
    .await;
}
