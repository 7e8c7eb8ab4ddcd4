//! The life of keys and accounts: rotation with overlap, changes, end users of front ends, first requests.

use config::ids::{Tenant, UserId};
use config::token::Token;
use serde_json::json;

use super::issuer::{KeyServer, Signer, good_claims, key_set};
use super::*;
use crate::auth::keyring::{GRACE_MAX, Issued, KeyError, Keys};
use crate::store::KeyRecord;

async fn made(house: &House, fill: impl FnOnce(&mut KeyRecord)) -> Issued {
    let keys = Keys::new(Arc::clone(&house.store));
    keys.create(UserId::new("ada"), false, now(), fill)
        .await
        .unwrap()
}

async fn at(house: &House, key: &str, now_unix: i64) -> Result<Principal, Refusal> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
    house.authenticator.authenticate(&headers, now_unix).await
}

#[tokio::test]
async fn both_secrets_of_a_rotated_key_are_good_until_the_overlap_ends() {
    let house = House::trusting(Vec::new());
    let keys = Keys::new(Arc::clone(&house.store));
    let first = made(&house, |_| ()).await;
    let hour = Duration::from_hours(1);
    let second = keys.rotate(&first.record.id, hour, now()).await.unwrap();
    assert_eq!(
        second.record.id, first.record.id,
        "people recognise the key"
    );
    assert_ne!(second.token.expose(), first.token.expose());
    assert_eq!(
        Token::parse(second.token.expose()).unwrap().id(),
        first.record.id.as_str()
    );
    house.authenticator.forget_key(&first.record.id);
    for good in [&first, &second] {
        assert!(at(&house, good.token.expose(), now() + 3_500).await.is_ok());
    }
    let late = at(&house, first.token.expose(), now() + 3_601).await;
    assert!(why(&late).contains("no such API key"), "{late:?}");
    assert!(
        at(&house, second.token.expose(), now() + 3_601)
            .await
            .is_ok()
    );

    let third = keys
        .rotate(&first.record.id, Duration::ZERO, now())
        .await
        .unwrap();
    house.authenticator.forget_key(&first.record.id);
    for ended in [&first, &second] {
        assert!(
            at(&house, ended.token.expose(), now()).await.is_err(),
            "no overlap was asked for"
        );
    }
    assert!(at(&house, third.token.expose(), now()).await.is_ok());
    let long = keys.rotate(&first.record.id, GRACE_MAX + hour, now()).await;
    assert!(matches!(long, Err(KeyError::LongGrace(_))));
}

#[tokio::test]
async fn a_key_is_changed_but_never_into_another_one_nor_back_to_life() {
    let house = House::trusting(Vec::new());
    let keys = Keys::new(Arc::clone(&house.store));
    let key = made(&house, |record| record.name = "old".into()).await;
    let id = &key.record.id;
    let changed = keys
        .update(id, Some(&key.record), |record| {
            record.name = "new".into();
            record.models = Some(vec!["tiny".into()]);
            record.admin = true;
            record.secret_unix = 0;
        })
        .await
        .unwrap();
    assert!(!changed.admin && changed.secret_unix == key.record.secret_unix);
    house.authenticator.forget_key(id);
    let principal = house.bearer(key.token.expose()).await.unwrap();
    assert!(principal.may_use_model("tiny") && !principal.may_use_model("big"));
    let stale = keys.update(id, Some(&key.record), |_| ()).await;
    assert_eq!(stale, Err(KeyError::Changed(id.clone())));

    keys.revoke(id, now()).await.unwrap();
    let revived = keys
        .update(id, None, |record| record.revoked_unix = None)
        .await;
    assert_eq!(revived, Err(KeyError::Revoked(id.clone())));
    let rotated = keys.rotate(id, Duration::ZERO, now()).await;
    assert!(matches!(rotated, Err(KeyError::Revoked(_))));
    let missing = KeyId::new("none");
    assert!(matches!(
        keys.revoke(&missing, now()).await,
        Err(KeyError::NotFound(_))
    ));
}

#[tokio::test]
async fn a_key_has_limits_groups_and_a_tenant_of_its_own() {
    let house = House::trusting(Vec::new());
    let key = made(&house, |record| {
        record.tenant = Tenant::new("lab");
        record.groups = vec!["robots".into()];
        record.limits = Some(Plan {
            text_per_day: Some(9),
            ..Plan::default()
        });
    })
    .await;
    let principal = house.bearer(key.token.expose()).await.unwrap();
    assert_eq!(principal.tenant().as_str(), "lab");
    assert_eq!(principal.group_subjects().len(), 1);
    assert_eq!(
        principal.key_plan.and_then(|plan| plan.text_per_day),
        Some(9)
    );
}

#[tokio::test]
async fn a_trusted_front_end_names_its_end_users_and_nobody_else_does() {
    let house = House::trusting(Vec::new());
    let front = made(&house, |record| record.act_as = true).await;
    let plain = made(&house, |_| ()).await;
    let named = async |key: &Issued, user: &str| {
        let shown = [
            ("x-api-key", key.token.expose().as_str()),
            ("x-hearth-user", user),
        ];
        house.headers(&shown).await
    };
    let (bob, eve) = (
        named(&front, "bob").await.unwrap(),
        named(&front, "eve").await.unwrap(),
    );
    assert_ne!(bob.subject(), eve.subject());
    assert_eq!(bob.acts_for, Some(UserId::new("ada")));
    assert_eq!(bob.key, eve.key);
    let refused = named(&plain, "bob").await;
    let why = AccountFault::MayNotActAs;
    assert_eq!(refused, Err(Refusal::AccountNotAllowed { why }));

    let authenticator = &house.authenticator;
    let owner = house.bearer(front.token.expose()).await.unwrap();
    let by_body = authenticator.acting_as(owner, "bob", now()).await.unwrap();
    assert_eq!(
        by_body.subject(),
        bob.subject(),
        "head and body name the same person"
    );
    let kept = authenticator
        .acting_as(by_body, "eve", now())
        .await
        .unwrap();
    assert_eq!(kept.subject(), bob.subject(), "the head wins over the body");
    let other = house.bearer(plain.token.expose()).await.unwrap();
    let ignored = authenticator
        .acting_as(other.clone(), "bob", now())
        .await
        .unwrap();
    assert_eq!(ignored, other, "`user` is a label for everybody else");
}

#[tokio::test]
async fn azure_clients_show_their_key_where_the_settings_allow_it() {
    let house = House::trusting(Vec::new());
    let key = made(&house, |_| ()).await;
    assert!(
        house
            .headers(&[("api-key", key.token.expose().as_str())])
            .await
            .is_ok()
    );
}

struct Signed {
    house: House,
    signer: Signer,
    _server: KeyServer,
}

async fn signed(change: impl Fn(Issuer) -> Issuer) -> Signed {
    let signer = Signer::ed("ed");
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let house = House::trusting(vec![change(issuer(IssuerKeys::Url(server.at("/keys"))))]);
    Signed {
        house,
        signer,
        _server: server,
    }
}

impl Signed {
    async fn with(&self, claims: &serde_json::Value) -> Result<Principal, Refusal> {
        self.house.bearer(&self.signer.token("EdDSA", claims)).await
    }
}

#[tokio::test]
async fn the_first_request_of_a_new_sub_makes_the_account_with_its_plan() {
    let given = signed(|issuer| Issuer {
        plan: Some("family".into()),
        tenant: Tenant::new("home-2"),
        ..issuer
    })
    .await;
    let mut claims = good_claims();
    claims["email"] = json!("Ada@Example.org");
    let principal = given.with(&claims).await.unwrap();
    assert_eq!(principal.plan.text_per_day, Some(1_000));
    let record = given
        .house
        .store
        .user(&principal.user)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (record.tenant.as_str(), record.issuer.as_str()),
        ("home-2", ISSUER)
    );
    assert_eq!(
        record.email,
        Some(policy::identity::Subject::of_email("ada@example.org"))
    );
    assert_eq!(record.last_seen_unix % 3_600, 0, "to the hour");

    let mut after = record.clone();
    after.overrides.text_per_day = Some(3);
    assert!(given.house.store.swap_user(&record, &after).await.unwrap());
    until("the administrator's figures", async || {
        let principal = given.with(&claims).await.unwrap();
        principal.overrides.text_per_day == Some(3)
    })
    .await;
    let closed = crate::store::UserRecord {
        disabled_unix: Some(now()),
        ..after.clone()
    };
    assert!(given.house.store.swap_user(&after, &closed).await.unwrap());
    until("the closing of the account", async || {
        given.with(&claims).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn groups_plan_and_administration_come_from_the_claims_of_the_settings() {
    let given = signed(|issuer| Issuer {
        groups_claim: Some("realm_access.roles".into()),
        plan_claim: Some("https://example.org/plan".into()),
        admin_claim: Some("roles".into()),
        admin_values: vec!["hearth-admin".into()],
        require: vec![("hd".into(), vec!["example.org".into()])],
        ..issuer
    })
    .await;
    let mut claims = good_claims();
    claims["hd"] = json!("example.org");
    claims["realm_access"] = json!({"roles": ["kids", "adults", "kids"]});
    claims["https://example.org/plan"] = json!("family");
    let ada = given.with(&claims).await.unwrap();
    assert_eq!(
        ada.groups.iter().map(|group| &**group).collect::<Vec<_>>(),
        ["adults", "kids"]
    );
    assert_eq!(ada.plan_name.as_deref(), Some("family"));
    assert!(!ada.admin);
    claims["roles"] = json!(["user", "hearth-admin"]);
    assert!(given.with(&claims).await.unwrap().admin);
    claims["roles"] = json!(true);
    assert!(
        !given.with(&claims).await.unwrap().admin,
        "true is none of the values"
    );
    claims["https://example.org/plan"] = json!("gold");
    assert_eq!(
        given.with(&claims).await.unwrap().plan_name,
        None,
        "there is no such plan"
    );
    claims["realm_access"] = json!({"roles": "kids"});
    assert_eq!(given.with(&claims).await.unwrap().groups.len(), 1);
    for wrong in [json!(7), json!([7]), json!({"a": 1})] {
        claims["realm_access"] = json!({ "roles": wrong });
        assert!(given.with(&claims).await.is_err());
    }
    claims["realm_access"] = json!({});
    claims["hd"] = json!("elsewhere.org");
    assert!(why(&given.with(&claims).await).contains("`hd`"));
}

#[tokio::test]
async fn one_issuer_may_stand_twice_for_two_audiences_and_have_two_spellings() {
    let signer = Signer::ed("ed");
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let base = issuer(IssuerKeys::Url(server.at("/keys")));
    let second = Issuer {
        audiences: vec!["other".into()],
        aliases: vec!["issuer.example".into()],
        plan: Some("family".into()),
        ..base.clone()
    };
    let house = House::trusting(vec![base, second]);
    let mut claims = good_claims();
    let first = house.bearer(&signer.token("EdDSA", &claims)).await.unwrap();
    claims["aud"] = json!("other");
    claims["iss"] = json!("issuer.example");
    let other = house.bearer(&signer.token("EdDSA", &claims)).await.unwrap();
    assert_eq!(other.user, first.user, "the spelling makes no other person");
    assert_eq!(
        (first.plan_name, other.plan_name.as_deref()),
        (None, Some("family"))
    );
    claims["aud"] = json!("third");
    assert!(house.bearer(&signer.token("EdDSA", &claims)).await.is_err());
}
