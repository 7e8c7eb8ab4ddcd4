//! Which tokens pass and which do not: the fixture table of the contract, and what attackers send.

use http::HeaderValue;
use ring::hmac;
use serde_json::{Value, json};

use super::issuer::{KeyServer, Signer, good_claims, json_part, key_set, text};
use super::*;
use crate::auth::verify::REMEMBERED_MAX;

struct Fixtures {
    house: House,
    server: KeyServer,
    rsa: Signer,
    p256: Signer,
    p384: Signer,
    ed: Signer,
}

impl Fixtures {
    async fn new() -> Self {
        Self::with(|issuer| issuer).await
    }

    async fn with(change: impl FnOnce(Issuer) -> Issuer) -> Self {
        let (rsa, p256) = (Signer::rsa("rsa"), Signer::p256("p256"));
        let (p384, ed) = (Signer::p384("p384"), Signer::ed("ed"));
        let server = KeyServer::start().await;
        let keys: Vec<Value> = [&rsa, &p256, &p384, &ed].map(Signer::jwk).to_vec();
        server.serves("/keys", &key_set(&keys));
        let trusted = issuer(IssuerKeys::Url(server.at("/keys")));
        let house = House::trusting(vec![change(trusted)]);
        Self {
            house,
            server,
            rsa,
            p256,
            p384,
            ed,
        }
    }

    async fn refuses(&self, token: &str, part_of_why: &str) {
        let refused = self.house.bearer(token).await;
        let why = why(&refused);
        assert!(
            why.contains(part_of_why),
            "{why:?} instead of {part_of_why:?}"
        );
        assert!(!why.contains(token), "an error repeats the token");
    }
}

fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = good_claims();
    claims[name] = value;
    claims
}

fn claims_without(name: &str) -> Value {
    let mut claims = good_claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn every_supported_algorithm_passes() {
    let given = Fixtures::new().await;
    let cases = [
        (&given.rsa, "RS256"),
        (&given.rsa, "RS384"),
        (&given.rsa, "RS512"),
        (&given.rsa, "PS256"),
        (&given.p256, "ES256"),
        (&given.p384, "ES384"),
        (&given.ed, "EdDSA"),
    ];
    for (signer, alg) in cases {
        let token = signer.token(alg, &good_claims());
        let principal = given
            .house
            .bearer(&token)
            .await
            .unwrap_or_else(|why| panic!("{alg}: {why}"));
        assert_eq!(principal.user.as_str(), format!("{ISSUER}|ada"));
        assert!(principal.key.is_none() && !principal.admin);
    }
    assert_eq!(given.server.hits("/keys"), 1);
}

#[tokio::test]
async fn claims_that_do_not_fit_are_refused() {
    let given = Fixtures::new().await;
    let cases = [
        (claims_with("aud", json!("other")), "another audience"),
        (claims_without("aud"), "`aud` is missing"),
        (
            claims_with("aud", json!({"hearth": 1})),
            "`aud` has the wrong type",
        ),
        (
            claims_with("iss", json!("https://evil.example")),
            "issuer is not trusted",
        ),
        (
            claims_with("iss", json!([ISSUER])),
            "`iss` has the wrong type",
        ),
        (claims_with("iss", json!(7)), "`iss` has the wrong type"),
        (claims_without("iss"), "issuer is not trusted"),
        (claims_with("exp", json!(now() - 31)), "expired"),
        (
            claims_with("exp", json!("tomorrow")),
            "`exp` has the wrong type",
        ),
        (claims_without("exp"), "`exp` is missing"),
        (claims_with("nbf", json!(now() + 120)), "not valid yet"),
        (
            claims_with("iat", json!(now() + 120)),
            "issued in the future",
        ),
        (claims_without("sub"), "`sub`"),
        (claims_with("sub", json!("")), "`sub` is empty"),
        (claims_with("sub", json!(5)), "`sub` has the wrong type"),
        (json!([1, 2]), "not a JSON object"),
    ];
    for (claims, why) in cases {
        given.refuses(&given.rsa.token("RS256", &claims), why).await;
    }
}

#[tokio::test]
async fn firebase_demands_more() {
    let given = Fixtures::with(|mut issuer| {
        issuer.firebase = true;
        issuer
    })
    .await;
    let mut good = claims_with("auth_time", json!(now() - 60));
    assert!(
        given
            .house
            .bearer(&given.rsa.token("RS256", &good))
            .await
            .is_ok()
    );
    good["aud"] = json!([AUDIENCE]);
    given
        .refuses(&given.rsa.token("RS256", &good), "`aud` must be one string")
        .await;
    let future = claims_with("auth_time", json!(now() + 600));
    given
        .refuses(
            &given.rsa.token("RS256", &future),
            "sign-in lies in the future",
        )
        .await;
    let mut long = claims_with("sub", json!("x".repeat(129)));
    long["auth_time"] = json!(now() - 60);
    given
        .refuses(&given.rsa.token("RS256", &long), "longer than 128")
        .await;
}

#[tokio::test]
async fn forged_and_confused_tokens_are_refused() {
    let given = Fixtures::new().await;
    let good = good_claims();
    let none = format!(
        "{}.{}.",
        json_part(&json!({"alg": "none", "kid": "rsa"})),
        json_part(&good)
    );
    given.refuses(&none, "algorithm is not allowed").await;

    // CVE-2015-9235: the RSA public key as an HMAC secret.
    let message = format!(
        "{}.{}",
        json_part(&json!({"alg": "HS256", "kid": "rsa"})),
        json_part(&good)
    );
    let modulus = given.rsa.jwk()["n"].as_str().unwrap().to_owned();
    let secret = hmac::Key::new(hmac::HMAC_SHA256, modulus.as_bytes());
    let confused = format!(
        "{message}.{}",
        text(hmac::sign(&secret, message.as_bytes()).as_ref())
    );
    given.refuses(&confused, "algorithm is not allowed").await;

    let token = given.rsa.token("RS256", &good);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let header = message.split_once('.').unwrap().0;
    let other = json_part(&claims_with("sub", json!("eve")));
    given
        .refuses(
            &format!("{header}.{other}.{signature}"),
            "signature is wrong",
        )
        .await;
    given
        .refuses(&format!("{message}."), "signature is wrong")
        .await;
    given
        .refuses(
            &format!("{message}.{}", "A".repeat(342)),
            "signature is wrong",
        )
        .await;

    // An RSA signature under the name of an EC key, and the other way round.
    let under_ec = given
        .rsa
        .signed(&json!({"alg": "RS256", "kid": "p256"}), &good);
    given
        .refuses(&under_ec, "algorithm does not belong to its key")
        .await;
    let under_rsa = given
        .p256
        .signed(&json!({"alg": "ES256", "kid": "rsa"}), &good);
    given
        .refuses(&under_rsa, "algorithm does not belong to its key")
        .await;

    // CVE-2022-21449: r = s = 0.
    let message = format!(
        "{}.{}",
        json_part(&json!({"alg": "ES256", "kid": "p256"})),
        json_part(&good)
    );
    given
        .refuses(
            &format!("{message}.{}", text(&[0; 64])),
            "signature is wrong",
        )
        .await;
}

#[tokio::test]
async fn odd_headers_are_refused_and_places_in_them_never_visited() {
    let given = Fixtures::new().await;
    let good = good_claims();
    let trap = given.server.at("/trap");
    let odd = Signer::rsa("attacker");
    let lured = json!({"alg": "RS256", "kid": "attacker", "jku": trap, "x5u": trap, "jwk": odd.jwk(), "x5c": ["AAAA"]});
    given
        .refuses(&odd.signed(&lured, &good), "unknown key")
        .await;
    assert_eq!(given.server.hits("/trap"), 0);

    let cases = [
        (json!({"alg": "RS256"}), "names no key"),
        (json!({"alg": "RS256", "kid": ""}), "names no key"),
        (
            json!({"alg": "RS256", "kid": "k".repeat(300)}),
            "names no key",
        ),
        (json!({"alg": "RS256", "kid": 7}), "wrong type"),
        (
            json!({"alg": "RS256", "kid": "rsa", "crit": ["exp"]}),
            "`crit`",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "crit": null}),
            "`crit`",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "b64": false}),
            "`crit`",
        ),
        (
            json!({"alg": "RS256", "kid": "rsa", "typ": null}),
            "wrong type",
        ),
        (json!(["RS256", "rsa", null, null]), "well-formed"),
        (
            json!({"alg": "RS256", "kid": "rsa", "typ": "secevent+jwt"}),
            "`typ`",
        ),
        (
            json!({"alg": "RS1", "kid": "rsa"}),
            "algorithm is not allowed",
        ),
        (json!({"kid": "rsa"}), "names no algorithm"),
        (json!("text"), "well-formed"),
    ];
    for (header, why) in cases {
        given.refuses(&given.rsa.signed(&header, &good), why).await;
    }
    let access = given.rsa.signed(
        &json!({"alg": "RS256", "kid": "rsa", "typ": "at+JWT"}),
        &good,
    );
    assert!(given.house.bearer(&access).await.is_ok());

    let doubled = text(br#"{"alg":"RS256","alg":"RS256","kid":"rsa"}"#);
    given
        .refuses(
            &format!("{doubled}.{}.AAAA", json_part(&good)),
            "well-formed",
        )
        .await;
    let claims = good.to_string();
    let twice = text(claims.replacen('{', r#"{"sub":"eve","#, 1).as_bytes());
    let header = json_part(&json!({"alg": "RS256", "kid": "rsa"}));
    given
        .refuses(&format!("{header}.{twice}.AAAA"), "claims are not")
        .await;
    for broken in ["a.b.c", "..", "e30.e30.", "e30=.e30.e30"] {
        assert!(given.house.bearer(broken).await.is_err(), "{broken}");
    }
}

#[tokio::test]
async fn an_algorithm_that_the_settings_do_not_name_is_refused() {
    let given = Fixtures::with(|mut issuer| {
        issuer.algorithms = vec!["ES256".into(), "HS256".into(), "none".into()];
        issuer
    })
    .await;
    given
        .refuses(
            &given.rsa.token("RS256", &good_claims()),
            "algorithm is not allowed",
        )
        .await;
    assert!(
        given
            .house
            .bearer(&given.p256.token("ES256", &good_claims()))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_key_is_bound_to_the_algorithm_it_names() {
    let (rsa, server) = (Signer::rsa("rsa"), KeyServer::start().await);
    let mut jwk = rsa.jwk();
    jwk["alg"] = json!("RS512");
    server.serves("/keys", &key_set(&[jwk]));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    assert!(
        house
            .bearer(&rsa.token("RS512", &good_claims()))
            .await
            .is_ok()
    );
    let refused = house.bearer(&rsa.token("RS256", &good_claims())).await;
    assert!(why(&refused).contains("does not belong to its key"));
}

#[tokio::test]
async fn keys_that_are_no_public_signature_keys_are_ignored() {
    let (rsa, ed) = (Signer::rsa("enc"), Signer::ed("fine"));
    let mut encryption = rsa.jwk();
    encryption["use"] = json!("enc");
    let mut signs_only = Signer::ed("ops").jwk();
    signs_only["key_ops"] = json!(["sign"]);
    let mut private = Signer::ed("private").jwk();
    private["d"] = json!("AAAA");
    let symmetric = json!({"kty": "oct", "kid": "oct", "k": "AAAA", "alg": "HS256"});
    let twins = [Signer::ed("twin").jwk(), Signer::ed("twin").jwk()];
    let mut keys = vec![
        encryption,
        signs_only,
        private,
        symmetric,
        ed.jwk(),
        json!("no key"),
    ];
    keys.extend(twins);
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&keys));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    assert!(
        house
            .bearer(&ed.token("EdDSA", &good_claims()))
            .await
            .is_ok()
    );
    for kid in ["enc", "ops", "private", "oct", "twin"] {
        let token = ed.signed(&json!({"alg": "EdDSA", "kid": kid}), &good_claims());
        assert!(
            why(&house.bearer(&token).await).contains("unknown key"),
            "{kid}"
        );
    }
}

#[tokio::test]
async fn only_listed_accounts_enter_where_there_is_a_list() {
    let given = Fixtures::with(|mut issuer| {
        issuer.allow = vec!["@example.org".into()];
        issuer
    })
    .await;
    let mut claims = claims_with("email", json!("ada@example.org"));
    let refused = given.house.bearer(&given.ed.token("EdDSA", &claims)).await;
    assert!(
        matches!(refused, Err(Refusal::AccountNotAllowed { .. })),
        "{refused:?}"
    );
    claims["email_verified"] = json!(true);
    assert!(
        given
            .house
            .bearer(&given.ed.token("EdDSA", &claims))
            .await
            .is_ok()
    );
    claims["email"] = json!("eve@example.net");
    let refused = given.house.bearer(&given.ed.token("EdDSA", &claims)).await;
    assert!(
        matches!(refused, Err(Refusal::AccountNotAllowed { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_remembered_token_ends_with_its_exp() {
    let given = Fixtures::new().await;
    let token = given
        .ed
        .token("EdDSA", &claims_with("exp", json!(now() + 20)));
    let mut headers = HeaderMap::new();
    headers.insert(
        AUTHORIZATION,
        HeaderValue::try_from(format!("Bearer {token}")).unwrap(),
    );
    let authenticator = &given.house.authenticator;
    assert!(authenticator.authenticate(&headers, now()).await.is_ok());
    assert!(
        authenticator
            .authenticate(&headers, now() + 19)
            .await
            .is_ok()
    );
    let late = authenticator.authenticate(&headers, now() + 60).await;
    assert_eq!(late, Err(Refusal::ExpiredCredential));
    let rendered = given.house.metrics.render();
    assert!(rendered.contains("hearth_auth_failures_total{reason=\"expired_credential\"} 1"));
}

/// A token whose issuer gives it hours is verified again after five minutes all the same.
#[tokio::test]
async fn a_remembered_token_is_believed_for_five_minutes_at_most() {
    let given = Fixtures::new().await;
    let begun = now();
    let claims = claims_with("exp", json!(begun + 7_200));
    let token = given.ed.token("EdDSA", &claims);
    let tokens = &given.house.authenticator.rooms.tokens;
    // The first look fetches the keys, and a new set makes what was remembered old.
    assert!(tokens.check(&token, begun).await.is_ok());
    assert!(tokens.check(&token, begun).await.is_ok());
    assert_eq!(tokens.remembered(), 1);
    assert!(tokens.is_remembered(&token, begun + 299));
    assert!(!tokens.is_remembered(&token, begun + 300));
    assert_eq!(tokens.remembered(), 0, "and what is old is let go");
}

#[tokio::test]
async fn a_flood_of_good_tokens_is_remembered_within_bounds() {
    let given = Fixtures::new().await;
    let tokens = &given.house.authenticator.rooms.tokens;
    let mut most = 0;
    for number in 0..2_500 {
        let claims = claims_with("jti", json!(number.to_string()));
        let token = given.ed.token("EdDSA", &claims);
        tokens.check(&token, now()).await.unwrap();
        most = most.max(tokens.remembered());
    }
    assert!(most <= REMEMBERED_MAX, "{most}");
    tokens.forget_all();
    assert_eq!(
        tokens.remembered(),
        0,
        "changes that were missed forget all"
    );
}
