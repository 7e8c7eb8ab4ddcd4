//! Two proxies with one Redis: what one revokes, the other refuses within two seconds, also while the channel is cut.

use std::time::Instant;

use config::ids::{Tenant, UserId};
use serde_json::Value;

use super::issuer::{KeyServer, Signer, good_claims, key_set};
use super::*;
use crate::auth::keyring::{Issued, Keys};
use crate::store::redis::tests::RedisServer;
use crate::store::{Denial, Denied};

const BOUND: Duration = Duration::from_secs(2);

struct Two {
    redis: RedisServer,
    here: House,
    there: House,
    signer: Signer,
    _server: KeyServer,
}

impl Two {
    async fn new() -> Self {
        let redis = RedisServer::start().await;
        let signer = Signer::ed("ed");
        let server = KeyServer::start().await;
        server.serves("/keys", &key_set(&[signer.jwk()]));
        let trusting = || vec![issuer(IssuerKeys::Url(server.at("/keys")))];
        let here = House::with_store(trusting(), redis.store().await, None);
        let there = House::with_store(trusting(), redis.store().await, None);
        for house in [&here, &there] {
            until("the store is watched", async || {
                house.store.watched_until().is_some()
            })
            .await;
        }
        Self {
            redis,
            here,
            there,
            signer,
            _server: server,
        }
    }

    async fn key(&self) -> Issued {
        let keys = Keys::new(Arc::clone(&self.here.store));
        let key = keys
            .create(UserId::new("ada"), false, now(), |_| ())
            .await
            .unwrap();
        for house in [&self.here, &self.there] {
            house.bearer(key.token.expose()).await.unwrap();
        }
        key
    }

    fn token(&self, claims: &Value) -> String {
        self.signer.token("EdDSA", claims)
    }
}

/// Asks all the time, as a client would, until the other proxy refuses.
async fn refused_within_bound(house: &House, credential: &str, wanted: &Refusal) -> Duration {
    let begun = Instant::now();
    loop {
        let answer = house.bearer(credential).await;
        if answer.as_ref() == Err(wanted) {
            return begun.elapsed();
        }
        assert!(answer.is_ok(), "{answer:?}");
        assert!(
            begun.elapsed() < BOUND,
            "still let in after {:?}",
            begun.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn denial(whom: Denied, not_before_unix: Option<i64>) -> Denial {
    Denial {
        whom,
        not_before_unix,
        reason: "test".into(),
        created_unix: now(),
        expires_unix: None,
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_everywhere_at_once_by_push() {
    let two = Two::new().await;
    let key = two.key().await;
    let keys = Keys::new(Arc::clone(&two.here.store));
    keys.revoke(&key.record.id, now()).await.unwrap();
    let took = refused_within_bound(&two.there, key.token.expose(), &Refusal::RevokedCredential);
    assert!(
        took.await < Duration::from_millis(700),
        "a push takes milliseconds"
    );
}

#[tokio::test]
async fn a_revoked_key_is_refused_everywhere_within_two_seconds_without_the_channel() {
    let two = Two::new().await;
    two.redis.cut_channels().await;
    let key = two.key().await;
    let keys = Keys::new(Arc::clone(&two.here.store));
    keys.revoke(&key.record.id, now()).await.unwrap();
    refused_within_bound(&two.there, key.token.expose(), &Refusal::RevokedCredential).await;
}

#[tokio::test]
async fn a_denied_person_is_refused_everywhere_within_two_seconds_though_the_token_is_remembered() {
    let two = Two::new().await;
    let token = two.token(&good_claims());
    let disabled = Refusal::AccountNotAllowed {
        why: AccountFault::Disabled,
    };
    for cut in [false, true] {
        if cut {
            two.redis.cut_channels().await;
        }
        let whom = Denied::User(two.there.bearer(&token).await.unwrap().user);
        two.here
            .store
            .deny(&denial(whom.clone(), None))
            .await
            .unwrap();
        refused_within_bound(&two.there, &token, &disabled).await;
        two.here.store.undeny(&whom).await.unwrap();
        until("the person may enter again", async || {
            two.there.bearer(&token).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn whoever_signs_in_after_a_sign_out_everywhere_enters() {
    let two = Two::new().await;
    let mut claims = good_claims();
    claims["auth_time"] = (now() - 1_000).into();
    let old = two.token(&claims);
    let user = two.there.bearer(&old).await.unwrap().user;
    two.here
        .store
        .deny(&denial(Denied::User(user), Some(now() - 500)))
        .await
        .unwrap();
    refused_within_bound(&two.there, &old, &Refusal::RevokedCredential).await;
    claims["auth_time"] = (now() - 5).into();
    assert!(two.there.bearer(&two.token(&claims)).await.is_ok());
    for absent in ["auth_time", "iat"] {
        claims.as_object_mut().unwrap().remove(absent);
    }
    let undated = two.there.bearer(&two.token(&claims)).await;
    assert_eq!(
        undated,
        Err(Refusal::RevokedCredential),
        "a token without a time may be old"
    );
}

#[tokio::test]
async fn a_denied_tenant_and_a_denied_key_are_refused() {
    let two = Two::new().await;
    let key = two.key().await;
    let disabled = Refusal::AccountNotAllowed {
        why: AccountFault::Disabled,
    };
    let id = Denied::Key(key.record.id.clone());
    two.here
        .store
        .deny(&denial(id.clone(), None))
        .await
        .unwrap();
    refused_within_bound(&two.there, key.token.expose(), &disabled).await;
    two.here.store.undeny(&id).await.unwrap();
    until("the key is good again", async || {
        two.there.bearer(key.token.expose()).await.is_ok()
    })
    .await;
    let house = Denied::Tenant(Tenant::default());
    two.here.store.deny(&denial(house, None)).await.unwrap();
    refused_within_bound(&two.there, key.token.expose(), &disabled).await;
}

#[tokio::test]
async fn known_keys_pass_for_the_stated_time_while_redis_is_away_and_unknown_ones_never() {
    let mut two = Two::new().await;
    let (key, other) = (two.key().await, two.key().await);
    two.redis.kill();
    assert!(two.there.bearer(key.token.expose()).await.is_ok());
    let stranger = config::token::Token::generate(config::token::TokenKind::Client);
    let unknown = two.there.bearer(stranger.reveal().expose()).await;
    assert_eq!(unknown, Err(Refusal::StoreAway));
    pass(Duration::from_secs(20)).await;
    assert!(
        two.there.bearer(other.token.expose()).await.is_ok(),
        "30 s are not over"
    );
    pass(Duration::from_secs(12)).await;
    assert_eq!(
        two.there.bearer(key.token.expose()).await,
        Err(Refusal::StoreAway)
    );
}
