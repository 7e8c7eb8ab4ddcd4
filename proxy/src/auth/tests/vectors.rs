//! Signatures that a careless verifier accepts, in the manner of Project Wycheproof: zeros, orders, other encodings, other curves,
//! other lengths, malleable ones. Each token is good but for its signature.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::issuer::{KeyServer, Signer, good_claims, json_part, key_set, text};
use super::*;

/// Orders of P-256 and P-384 (FIPS 186-4 D.1.2) and of edwards25519 (RFC 8032 section 5.1, little-endian).
const ORDER_P256: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
const ORDER_P384: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973";
const ORDER_ED: &str = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";

struct Given {
    house: House,
    rsa: Signer,
    p256: Signer,
    p384: Signer,
    ed: Signer,
    _server: KeyServer,
}

impl Given {
    async fn new() -> Self {
        let (rsa, p256) = (Signer::rsa("rsa"), Signer::p256("p256"));
        let (p384, ed) = (Signer::p384("p384"), Signer::ed("ed"));
        let server = KeyServer::start().await;
        let keys: Vec<Value> = [&rsa, &p256, &p384, &ed].map(Signer::jwk).to_vec();
        server.serves("/keys", &key_set(&keys));
        let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
        Self {
            house,
            rsa,
            p256,
            p384,
            ed,
            _server: server,
        }
    }

    async fn refuses(&self, what: &str, token: &str) {
        let answer = self.house.bearer(token).await;
        assert!(answer.is_err(), "{what} was let in");
    }

    /// The signer's good token with other signatures, none of which may pass.
    async fn refuses_signatures(&self, (signer, alg): (&Signer, &str), bad: Vec<(&str, Vec<u8>)>) {
        let good = signer.token(alg, &good_claims());
        let (message, _) = good.rsplit_once('.').unwrap();
        for (what, signature) in bad {
            let token = format!("{message}.{}", text(&signature));
            self.refuses(&format!("{alg}: {what}"), &token).await;
        }
        assert!(
            self.house.bearer(&good).await.is_ok(),
            "{alg}: the good one passes"
        );
    }
}

fn signature_of(token: &str) -> Vec<u8> {
    let (_, signature) = token.rsplit_once('.').unwrap();
    URL_SAFE_NO_PAD.decode(signature).unwrap()
}

fn number(hex_text: &str) -> Vec<u8> {
    hex::decode(hex_text).unwrap()
}

/// DER, as X.509 and OpenSSL have it; JWS has the two numbers side by side (RFC 7518 section 3.4).
fn der(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    let integer = |number: &[u8]| {
        let mut all = vec![2, u8::try_from(number.len() + 1).unwrap(), 0];
        all.extend(number);
        all
    };
    let body = [integer(r), integer(s)].concat();
    let mut all = vec![0x30, u8::try_from(body.len()).unwrap()];
    all.extend(body);
    all
}

#[tokio::test]
async fn psychic_swapped_encoded_and_cut_ecdsa_signatures_are_refused() {
    let given = Given::new().await;
    for (signer, alg, order) in [
        (&given.p256, "ES256", ORDER_P256),
        (&given.p384, "ES384", ORDER_P384),
    ] {
        let good = signature_of(&signer.token(alg, &good_claims()));
        let half = good.len() / 2;
        let (r, s) = good.split_at(half);
        let (zero, order) = (vec![0; half], number(order));
        let mut one = zero.clone();
        one[half - 1] = 1;
        let both = |a: &[u8], b: &[u8]| [a, b].concat();
        let bad = vec![
            ("r = s = 0", both(&zero, &zero)),
            ("r = 0", both(&zero, s)),
            ("s = 0", both(r, &zero)),
            ("r = s = 1", both(&one, &one)),
            ("r = order", both(&order, s)),
            ("s = order", both(r, &order)),
            ("r = s = order", both(&order, &order)),
            ("r and s swapped", both(s, r)),
            ("all ones", vec![0xff; 2 * half]),
            ("empty", Vec::new()),
            ("r alone", r.to_vec()),
            ("one byte less", good[..good.len() - 1].to_vec()),
            ("one byte more", both(&good, &[0])),
            ("a zero before", both(&[0], &good)),
            ("DER", der(&good)),
            (
                "of another token",
                signature_of(&signer.token(alg, &json!({"iss": ISSUER}))),
            ),
        ];
        given.refuses_signatures((signer, alg), bad).await;
    }
}

/// a + the order of the group, little-endian: the same signature for a verifier that does not look (RFC 8032 section 5.1.7).
fn plus_order(number: &[u8]) -> Vec<u8> {
    let mut carry = 0_u16;
    let order = hex::decode(ORDER_ED).unwrap();
    let sum = number.iter().zip(order).map(|(a, b)| {
        let sum = u16::from(*a) + u16::from(b) + carry;
        carry = sum >> 8;
        u8::try_from(sum & 0xff).unwrap()
    });
    sum.collect()
}

#[tokio::test]
async fn malleable_and_cut_ed25519_signatures_are_refused() {
    let given = Given::new().await;
    let good = signature_of(&given.ed.token("EdDSA", &good_claims()));
    let (r, s) = good.split_at(32);
    let both = |a: &[u8], b: &[u8]| [a, b].concat();
    let mut neutral = vec![0; 32];
    neutral[0] = 1;
    let bad = vec![
        ("S + order", both(r, &plus_order(s))),
        ("S = 0", both(r, &[0; 32])),
        ("S = order", both(r, &number(ORDER_ED))),
        ("R neutral, S = 0", both(&neutral, &[0; 32])),
        ("all zeros", vec![0; 64]),
        ("all ones", vec![0xff; 64]),
        ("R and S swapped", both(s, r)),
        ("one byte less", good[..63].to_vec()),
        ("one byte more", both(&good, &[0])),
        ("empty", Vec::new()),
    ];
    given.refuses_signatures((&given.ed, "EdDSA"), bad).await;
}

#[tokio::test]
async fn odd_rsa_signatures_are_refused() {
    let given = Given::new().await;
    for alg in ["RS256", "PS256"] {
        let good = signature_of(&given.rsa.token(alg, &good_claims()));
        let both = |a: &[u8], b: &[u8]| [a, b].concat();
        let mut one = vec![0; good.len()];
        one[good.len() - 1] = 1;
        let bad = vec![
            ("zero", vec![0; good.len()]),
            ("one", one),
            ("all ones", vec![0xff; good.len()]),
            ("a zero before", both(&[0], &good)),
            ("a zero behind", both(&good, &[0])),
            ("one byte less", good[1..].to_vec()),
            ("empty", Vec::new()),
        ];
        given.refuses_signatures((&given.rsa, alg), bad).await;
    }
    let pkcs1 = given.rsa.token("RS256", &good_claims());
    for named in ["PS256", "RS384", "RS512"] {
        let header = json_part(&json!({"alg": named, "kid": "rsa"}));
        let (_, rest) = pkcs1.split_once('.').unwrap();
        given.refuses(named, &format!("{header}.{rest}")).await;
    }
}

#[tokio::test]
async fn a_key_of_another_curve_or_kind_does_not_verify() {
    let given = Given::new().await;
    let signers = [
        (&given.rsa, "RS256"),
        (&given.p256, "ES256"),
        (&given.p384, "ES384"),
        (&given.ed, "EdDSA"),
    ];
    for (signer, _) in signers {
        for (other, alg) in signers {
            if signer.kid == other.kid {
                continue;
            }
            // Signed by one key, naming another with that other's algorithm, and with its own.
            let mut forged = signer.token(alg, &good_claims());
            let header = json_part(&json!({"alg": alg, "kid": other.kid}));
            let (_, rest) = forged.split_once('.').unwrap();
            forged = format!("{header}.{rest}");
            given
                .refuses(&format!("{} as {}", signer.kid, other.kid), &forged)
                .await;
            let header = json!({"alg": alg, "kid": signer.kid});
            given
                .refuses(
                    "an algorithm of another kind",
                    &signer.signed(&header, &good_claims()),
                )
                .await;
        }
    }
}

#[tokio::test]
async fn names_of_keys_are_names_and_neither_paths_nor_queries() {
    let given = Given::new().await;
    let long = "k".repeat(4_000);
    for kid in [
        "",
        " ed",
        "ed ",
        "ED",
        "ed\u{0}",
        "../../dev/null",
        "ed' OR '1'='1",
        "https://evil.example/jwks",
        "\u{202e}de",
        &long,
    ] {
        let header = json!({"alg": "EdDSA", "kid": kid, "typ": "JWT"});
        given
            .refuses(kid, &given.ed.signed(&header, &good_claims()))
            .await;
    }
    for kid in [json!(["ed"]), json!({"ed": 1}), json!(1), json!(null)] {
        let header = json!({"alg": "EdDSA", "kid": kid});
        given
            .refuses(
                "a kid that is no text",
                &given.ed.signed(&header, &good_claims()),
            )
            .await;
    }
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("typ", json!("dpop+jwt")),
        ("typ", json!(7)),
        ("alg", json!("none")),
        ("alg", json!("nOnE")),
        ("alg", json!("ES256K")),
        ("alg", json!("eddsa")),
        ("alg", json!("")),
        ("alg", json!(null)),
    ] {
        let mut header = json!({"alg": "EdDSA", "kid": "ed"});
        header[name] = value;
        given
            .refuses(name, &given.ed.signed(&header, &good_claims()))
            .await;
    }
}

#[tokio::test]
async fn small_and_foreign_public_keys_are_no_keys() {
    let rsa = Signer::rsa("rsa");
    let mut small = rsa.jwk();
    small["n"] = json!(text(&[0xc3; 128]));
    let mut even = rsa.jwk();
    even["e"] = json!(text(&[1]));
    for weak in [small, even] {
        let server = KeyServer::start().await;
        server.serves("/keys", &key_set(&[weak]));
        let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
        assert!(
            house
                .bearer(&rsa.token("RS256", &good_claims()))
                .await
                .is_err()
        );
        // s^1 mod n = s: with the exponent one, the padding itself is a signature.
        let token = rsa.token("RS256", &good_claims());
        let (message, _) = token.rsplit_once('.').unwrap();
        let mut padded = vec![0, 1];
        padded.resize(256 - 52, 0xff);
        padded.push(0);
        padded.extend(hex::decode("3031300d060960864801650304020105000420").unwrap());
        padded.extend(ring::digest::digest(&ring::digest::SHA256, message.as_bytes()).as_ref());
        let forged = format!("{message}.{}", text(&padded));
        assert!(
            house.bearer(&forged).await.is_err(),
            "an exponent of one verifies anything"
        );
    }
    let off_curve = json!({"kty": "EC", "kid": "p256", "crv": "P-256", "x": text(&[1; 32]), "y": text(&[1; 32])});
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[off_curve]));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    let p256 = Signer::p256("p256");
    assert!(
        house
            .bearer(&p256.token("ES256", &good_claims()))
            .await
            .is_err()
    );
}
