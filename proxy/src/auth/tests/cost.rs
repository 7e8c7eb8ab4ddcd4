//! What a token costs, remembered and not; a figure for people, so it runs only when asked for:
//! `cargo test -p proxy --release what_a_token_costs -- --ignored --nocapture`.

use std::time::Instant;

use serde_json::json;

use super::issuer::{KeyServer, Signer, good_claims, key_set};
use super::*;

const TOKENS: usize = 300;
const AGAIN: usize = 20;

fn micros(begun: Instant, times: usize) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(times).unwrap_or(1))
}

#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn what_a_token_costs() {
    let signers = [
        (Signer::rsa("rsa"), "RS256"),
        (Signer::p256("p256"), "ES256"),
        (Signer::ed("ed"), "EdDSA"),
    ];
    let server = KeyServer::start().await;
    let keys: Vec<_> = signers.iter().map(|(signer, _)| signer.jwk()).collect();
    server.serves("/keys", &key_set(&keys));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    let mut costs = serde_json::Map::new();
    for (signer, alg) in &signers {
        let tokens: Vec<HeaderMap> = (0..TOKENS)
            .map(|number| {
                let mut claims = good_claims();
                claims["jti"] = json!(number);
                let mut headers = HeaderMap::new();
                let value = format!("Bearer {}", signer.token(alg, &claims));
                headers.insert(AUTHORIZATION, value.parse().unwrap());
                headers
            })
            .collect();
        // The account and the keys are there before the clock runs.
        house
            .bearer(&signer.token(alg, &good_claims()))
            .await
            .unwrap();
        let now = now();
        let begun = Instant::now();
        for headers in &tokens {
            house
                .authenticator
                .authenticate(headers, now)
                .await
                .unwrap();
        }
        costs.insert(format!("{alg}_verified_us"), micros(begun, TOKENS).into());
        let begun = Instant::now();
        for headers in std::iter::repeat_n(&tokens, AGAIN).flatten() {
            house
                .authenticator
                .authenticate(headers, now)
                .await
                .unwrap();
        }
        costs.insert(
            format!("{alg}_remembered_us"),
            micros(begun, TOKENS * AGAIN).into(),
        );
    }
    let line = serde_json::Value::Object(costs).to_string();
    // The harness swallows what is printed by a macro.
    let mut out = std::io::stdout();
    std::io::Write::write_all(&mut out, line.as_bytes()).unwrap();
}
