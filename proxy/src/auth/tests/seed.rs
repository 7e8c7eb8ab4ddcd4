//! The defects of the stack that this one replaces, as far as they concern who may enter: each one is a test with its name.

use serde_json::json;

use super::issuer::{Answer, KeyServer, Signer, good_claims, json_part, key_set};
use super::*;

/// Quotas were "enforced" for accounts that no code ever made.
#[tokio::test]
async fn seed_defect_1_the_account_is_made_by_the_first_request() {
    let signer = Signer::ed("ed");
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    let ada = house
        .bearer(&signer.token("EdDSA", &good_claims()))
        .await
        .unwrap();
    assert!(house.store.user(&ada.user).await.unwrap().is_some());
}

/// A failed start of the identity provider let every `eyJhbG...` in.
#[tokio::test]
async fn seed_defect_3_an_issuer_that_cannot_be_reached_lets_nobody_in() {
    let server = KeyServer::start().await;
    let broken = Answer {
        status: 500,
        headers: Vec::new(),
        body: String::new(),
    };
    server.answers("/keys", broken);
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    let signer = Signer::ed("ed");
    let good = signer.token("EdDSA", &good_claims());
    assert_eq!(house.bearer(&good).await, Err(Refusal::IssuerAway));
    let unsigned = format!(
        "{}.{}.",
        json_part(&json!({"alg": "none"})),
        json_part(&good_claims())
    );
    for token in [
        unsigned.as_str(),
        "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
        "eyJhbG.x.y",
    ] {
        assert!(house.bearer(token).await.is_err(), "{token}");
    }
    assert!(
        !house.authenticator.is_ready(),
        "and the proxy says that it is not ready"
    );
}

/// One key for everybody, compared byte by byte until the first difference.
#[tokio::test]
async fn seed_defect_4_keys_are_many_and_hashes_are_compared_in_constant_time() {
    let house = House::trusting(Vec::new());
    let keys = keyring::Keys::new(Arc::clone(&house.store));
    let owner = config::ids::UserId::new("ada");
    let one = keys
        .create(owner.clone(), false, now(), |_| ())
        .await
        .unwrap();
    let other = keys.create(owner, false, now(), |_| ()).await.unwrap();
    assert_ne!(one.token.expose(), other.token.expose());
    let stored = serde_json::to_string(&one.record).unwrap();
    let shown = config::token::Token::parse(one.token.expose()).unwrap();
    assert!(
        !stored.contains(shown.secret().expose().as_str()),
        "the store holds a hash"
    );
    assert!(!one.record.secret_hash.matches(&other.record.secret_hash));
    // `SecretHash` has no `PartialEq` path in `auth`: the only comparison is `matches`, which is `subtle::ConstantTimeEq`.
    keys.revoke(&one.record.id, now()).await.unwrap();
    until("one key ends alone", async || {
        house.bearer(one.token.expose()).await.is_err()
    })
    .await;
    assert!(house.bearer(other.token.expose()).await.is_ok());
}
