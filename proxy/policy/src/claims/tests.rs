use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{CUSTOM_TOKEN_AUDIENCE, ClaimRefusal, ClaimSet, IssuerRules, check};
use crate::refusal::{AccountFault, Refusal};

const NOW: i64 = 1_800_000_000;

fn firebase() -> IssuerRules {
    IssuerRules {
        issuer: "https://securetoken.google.com/home-1".to_owned(),
        audiences: vec!["home-1".to_owned()],
        user_claim: "sub".to_owned(),
        aliases: Vec::new(),
        groups_claim: None,
        plan_claim: None,
        admin_claim: None,
        admin_values: Vec::new(),
        require: Vec::new(),
        plans: BTreeMap::new(),
        firebase: true,
        leeway: Duration::from_secs(30),
        email_verified: false,
        allow: Vec::new(),
        plan: None,
    }
}

fn oidc() -> IssuerRules {
    IssuerRules {
        issuer: "https://id.example.org/".to_owned(),
        audiences: vec!["hearth".to_owned(), "hearth-cli".to_owned()],
        firebase: false,
        ..firebase()
    }
}

fn good(rules: &IssuerRules) -> Map<String, Value> {
    let claims = json!({
        "iss": rules.issuer,
        "aud": rules.audiences.first(),
        "sub": "ada",
        "exp": NOW + 3_600,
        "iat": NOW - 10,
        "auth_time": NOW - 20,
        "email": "Ada@Example.org",
        "email_verified": true,
    });
    claims.as_object().cloned().unwrap_or_default()
}

/// Applies a change to good claims: a value replaces a claim, null removes it.
fn judge(rules: &IssuerRules, change: &Value) -> Result<String, ClaimRefusal> {
    let mut claims = good(rules);
    for (name, value) in change.as_object().into_iter().flatten() {
        if value.is_null() {
            claims.remove(name);
        } else {
            claims.insert(name.clone(), value.clone());
        }
    }
    let claims = ClaimSet::try_from(claims)?;
    check(&claims, rules, NOW).map(|verified| verified.user.to_string())
}

#[test]
fn good_claims_name_the_user_under_their_issuer() {
    let user = judge(&firebase(), &json!({})).expect("good claims");
    assert_eq!(user, "https://securetoken.google.com/home-1|ada");
    assert!(judge(&oidc(), &json!({})).is_ok());
}

#[test]
fn every_rule_for_firebase_refuses() {
    use ClaimRefusal::{
        AudienceNotString, CustomToken, EmptySubject, Expired, IssuedInFuture, LongSubject,
        Missing, NotYet, SignedInInFuture, WrongAudience, WrongIssuer, WrongType,
    };
    let table = [
        (json!({"sub": ""}), EmptySubject),
        (json!({"sub": null}), Missing("sub")),
        (json!({"sub": "x".repeat(129)}), LongSubject(128)),
        (json!({"sub": 7}), WrongType("sub")),
        (json!({"aud": ["home-1"]}), AudienceNotString),
        (json!({"aud": "home-2"}), WrongAudience),
        (json!({"aud": "home-1 "}), WrongAudience),
        (json!({"aud": null}), Missing("aud")),
        (json!({"aud": 1}), WrongType("aud")),
        (json!({"aud": {"home-1": true}}), WrongType("aud")),
        (
            json!({"aud": CUSTOM_TOKEN_AUDIENCE, "iss": "robot@home-1.iam.gserviceaccount.com"}),
            CustomToken,
        ),
        (
            json!({"iss": "https://securetoken.google.com/home-2"}),
            WrongIssuer,
        ),
        (
            json!({"iss": "https://session.firebase.google.com/home-1"}),
            WrongIssuer,
        ),
        (json!({"iss": null}), Missing("iss")),
        (json!({"iss": 5}), WrongType("iss")),
        (
            json!({"iss": ["https://securetoken.google.com/home-1"]}),
            WrongType("iss"),
        ),
        (json!({"exp": NOW - 31}), Expired),
        (json!({"exp": NOW - 30}), Expired),
        (json!({"exp": null}), Missing("exp")),
        (json!({"exp": "never"}), WrongType("exp")),
        (json!({"exp": 1e300}), WrongType("exp")),
        (json!({"nbf": NOW + 31}), NotYet),
        (json!({"nbf": "soon"}), WrongType("nbf")),
        (json!({"iat": NOW + 31}), IssuedInFuture),
        (json!({"iat": null}), Missing("iat")),
        (json!({"iat": true}), WrongType("iat")),
        (json!({"auth_time": NOW + 31}), SignedInInFuture),
        (json!({"auth_time": null}), Missing("auth_time")),
        (json!({"auth_time": []}), WrongType("auth_time")),
        (json!({"email": 3}), WrongType("email")),
        (
            json!({"email_verified": "true"}),
            WrongType("email_verified"),
        ),
    ];
    for (change, refusal) in table {
        assert_eq!(judge(&firebase(), &change), Err(refusal), "{change}");
    }
}

#[test]
fn what_lies_within_the_leeway_passes() {
    for change in [
        json!({"exp": NOW - 29}),
        json!({"exp": 1_800_000_000.5}),
        json!({"nbf": NOW + 30}),
        json!({"iat": NOW + 30}),
        json!({"auth_time": NOW + 30}),
        json!({"sub": "x".repeat(128)}),
        json!({"sub": "ü".repeat(128)}),
    ] {
        assert!(judge(&firebase(), &change).is_ok(), "{change}");
    }
}

#[test]
fn a_fraction_of_a_second_never_helps_the_token() {
    let change = json!({"exp": 1_799_999_970.9});
    assert_eq!(judge(&firebase(), &change), Err(ClaimRefusal::Expired));
}

#[test]
fn oidc_accepts_arrays_and_several_audiences_but_no_mixture_of_types() {
    let accepted = [
        json!({"aud": ["other", "hearth"]}),
        json!({"aud": "hearth-cli"}),
        json!({"iat": null, "auth_time": null}),
        json!({"sub": "x".repeat(255)}),
    ];
    for change in accepted {
        assert!(judge(&oidc(), &change).is_ok(), "{change}");
    }
    let refused = [
        (json!({"aud": []}), ClaimRefusal::WrongAudience),
        (json!({"aud": ["other"]}), ClaimRefusal::WrongAudience),
        (
            json!({"aud": ["hearth", 1]}),
            ClaimRefusal::WrongType("aud"),
        ),
        (
            json!({"iss": "https://id.example.org"}),
            ClaimRefusal::WrongIssuer,
        ),
        (
            json!({"sub": "x".repeat(256)}),
            ClaimRefusal::LongSubject(255),
        ),
        (json!({"iat": NOW + 40}), ClaimRefusal::IssuedInFuture),
    ];
    for (change, refusal) in refused {
        assert_eq!(judge(&oidc(), &change), Err(refusal), "{change}");
    }
}

#[test]
fn null_is_a_wrong_type_and_not_an_absent_claim() {
    let mut claims = good(&oidc());
    claims.insert("nbf".to_owned(), Value::Null);
    assert_eq!(
        ClaimSet::try_from(claims),
        Err(ClaimRefusal::WrongType("nbf"))
    );
}

#[test]
fn another_claim_may_name_the_user() {
    let rules = IssuerRules {
        user_claim: "email".to_owned(),
        ..oidc()
    };
    let user = judge(&rules, &json!({})).expect("the claim is there");
    assert!(user.ends_with("|Ada@Example.org"), "{user}");
    for change in [json!({"email": null}), json!({"email": ""})] {
        let refusal = judge(&rules, &change).expect_err("nobody is named");
        assert_eq!(refusal, ClaimRefusal::NoUser("email".to_owned()));
    }
}

#[test]
fn the_allow_list_takes_addresses_and_whole_domains_only() {
    let listed = |entry: &str, email: &str| {
        let rules = IssuerRules {
            allow: vec![entry.to_owned()],
            ..oidc()
        };
        judge(&rules, &json!({"email": email})).is_ok()
    };
    assert!(listed("ada@example.org", "ADA@example.ORG"));
    assert!(listed("@example.org", "grace@Example.org"));
    assert!(!listed("@example.org", "grace@sub.example.org"));
    assert!(!listed("@example.org", "grace@evil-example.org"));
    assert!(!listed("@example.org", "@example.org"));
    assert!(!listed("ada@example.org", "ada@example.org.evil"));
    assert!(!listed("@example.org", ""));
}

#[test]
fn an_unverified_address_is_worth_nothing() {
    let verified_only = IssuerRules {
        email_verified: true,
        ..firebase()
    };
    let with_list = IssuerRules {
        allow: vec!["@example.org".to_owned()],
        ..firebase()
    };
    let fault = Err(ClaimRefusal::Account(AccountFault::EmailNotVerified));
    for rules in [verified_only, with_list] {
        assert!(judge(&rules, &json!({})).is_ok());
        assert_eq!(judge(&rules, &json!({"email_verified": false})), fault);
        assert_eq!(judge(&rules, &json!({"email_verified": null})), fault);
    }
}

#[test]
fn refusals_turn_into_the_reasons_that_callers_see() {
    assert_eq!(
        Refusal::from(ClaimRefusal::Expired),
        Refusal::ExpiredCredential
    );
    let account = Refusal::from(ClaimRefusal::Account(AccountFault::NotOnList));
    assert_eq!(account.label(), "account_not_allowed");
    let hint = Refusal::from(ClaimRefusal::CustomToken).to_string();
    assert!(
        hint.contains("getIdToken"),
        "the hint says what to do: {hint}"
    );
}

#[test]
fn claims_deserialize_with_the_same_rules() {
    let value = Value::Object(good(&oidc()));
    assert!(serde_json::from_value::<ClaimSet>(value).is_ok());
    let wrong = serde_json::from_value::<ClaimSet>(json!({"exp": "tomorrow"}));
    let message = wrong.expect_err("wrong type").to_string();
    assert!(message.contains("`exp`"), "{message}");
    assert!(serde_json::from_value::<ClaimSet>(json!([1])).is_err());
}

proptest! {
    #[test]
    fn times_at_the_edge_of_numbers_never_panic(exp: i64, nbf: i64, iat: i64, now: i64) {
        let mut claims = good(&oidc());
        for (name, value) in [("exp", exp), ("nbf", nbf), ("iat", iat)] {
            claims.insert(name.to_owned(), value.into());
        }
        let claims = ClaimSet::try_from(claims).expect("integers are times");
        let accepted = check(&claims, &oidc(), now).is_ok();
        if accepted {
            prop_assert!(exp.saturating_add(30) > now);
            prop_assert!(nbf <= now.saturating_add(30) && iat <= now.saturating_add(30));
        }
    }
}
