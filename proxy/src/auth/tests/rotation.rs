//! How keys come, change and stay away.

use std::fs::{self, File};

use serde_json::json;

use super::issuer::{Answer, KeyServer, Signer, good_claims, key_set};
use super::*;

async fn serving(signer: &Signer) -> (KeyServer, House) {
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    until("the first fetch", async || house.authenticator.is_ready()).await;
    (server, house)
}

fn failing(status: u16) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: String::new(),
    }
}

#[tokio::test]
async fn a_rotated_key_is_found_with_one_fetch_and_the_old_one_ends() {
    let (old, new) = (Signer::ed("old"), Signer::ed("new"));
    let (server, house) = serving(&old).await;
    let of_old = old.token("EdDSA", &good_claims());
    assert!(house.bearer(&of_old).await.is_ok());
    server.serves("/keys", &key_set(&[new.jwk()]));
    pass(Duration::from_secs(2)).await;
    let token = new.token("EdDSA", &good_claims());
    let both = tokio::join!(house.bearer(&token), house.bearer(&token));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    assert_eq!(server.hits("/keys"), 2);
    assert!(
        house.bearer(&of_old).await.is_err(),
        "a remembered token outlived its key"
    );
}

#[tokio::test]
async fn a_flood_of_unknown_kids_is_one_fetch_and_good_tokens_pass() {
    let good = Signer::ed("good");
    let (server, house) = serving(&good).await;
    pass(Duration::from_secs(2)).await;
    let flood = (0..200).map(|number| {
        let stranger = Signer::ed(&format!("unknown {number}"));
        let (token, house) = (stranger.token("EdDSA", &good_claims()), &house);
        async move { house.bearer(&token).await }
    });
    let refused = futures_util::future::join_all(flood).await;
    assert!(refused.iter().all(Result::is_err));
    assert!(
        house
            .bearer(&good.token("EdDSA", &good_claims()))
            .await
            .is_ok()
    );
    assert_eq!(
        server.hits("/keys"),
        2,
        "one at the start and one for the flood"
    );
    pass(Duration::from_secs(61)).await;
    assert!(
        house
            .bearer(&Signer::ed("x").token("EdDSA", &good_claims()))
            .await
            .is_err()
    );
    assert_eq!(server.hits("/keys"), 3, "a minute later it may ask again");
}

#[tokio::test]
async fn keys_are_kept_for_a_day_while_the_issuer_is_away() {
    let signer = Signer::ed("k");
    let (server, house) = serving(&signer).await;
    server.answers("/keys", failing(500));
    for hours in [2, 10, 11] {
        pass(Duration::from_hours(hours)).await;
        assert!(
            house
                .bearer(&signer.token("EdDSA", &good_claims()))
                .await
                .is_ok(),
            "{hours}"
        );
    }
    server.stop();
    pass(Duration::from_hours(2)).await;
    assert!(
        house
            .bearer(&signer.token("EdDSA", &good_claims()))
            .await
            .is_err()
    );
    assert!(!house.authenticator.is_ready());
}

#[tokio::test]
async fn keys_are_refreshed_in_the_background_at_80_percent_of_their_age() {
    let signer = Signer::ed("k");
    let server = KeyServer::start().await;
    let mut answer = failing(200);
    answer.headers = vec!["cache-control: public, max-age=1000".into()];
    answer.body = key_set(&[signer.jwk()]).to_string();
    server.answers("/keys", answer);
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    until("the first fetch", async || house.authenticator.is_ready()).await;
    pass(Duration::from_secs(790)).await;
    assert!(
        house
            .bearer(&signer.token("EdDSA", &good_claims()))
            .await
            .is_ok()
    );
    assert_eq!(server.hits("/keys"), 1);
    pass(Duration::from_secs(20)).await;
    let mut other = good_claims();
    other["sub"] = json!("bob, whose token is not remembered");
    assert!(house.bearer(&signer.token("EdDSA", &other)).await.is_ok());
    until("the refresh", async || server.hits("/keys") == 2).await;
}

#[tokio::test]
async fn a_server_that_misbehaves_gives_no_keys() {
    let signer = Signer::ed("k");
    let keys = key_set(&[signer.jwk()]).to_string();
    let many: Vec<_> = (0..65)
        .map(|number| Signer::ed(&number.to_string()).jwk())
        .collect();
    let answer = |status: u16, headers: &[&str], body: String| Answer {
        status,
        headers: headers.iter().map(|&header| header.to_owned()).collect(),
        body,
    };
    let server = KeyServer::start().await;
    server.serves("/elsewhere", &key_set(&[signer.jwk()]));
    let cases = [
        (
            "redirect",
            answer(302, &["location: /elsewhere"], keys.clone()),
        ),
        (
            "huge",
            answer(200, &[], format!("{keys}{}", " ".repeat(300 * 1024))),
        ),
        ("many", answer(200, &[], key_set(&many).to_string())),
        ("junk", answer(200, &[], "<html>".into())),
        ("empty", answer(200, &[], json!({"keys": []}).to_string())),
        ("status", answer(503, &[], keys.clone())),
    ];
    for (name, answer) in cases {
        let path = format!("/{name}");
        server.answers(&path, answer);
        let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at(&path)))]);
        let refused = house.bearer(&signer.token("EdDSA", &good_claims())).await;
        assert_eq!(refused, Err(Refusal::IssuerAway), "{name}");
        assert!(
            house
                .bearer(&signer.token("EdDSA", &good_claims()))
                .await
                .is_err()
        );
        assert_eq!(
            server.hits(&path),
            1,
            "{name}: a failure is not repeated at once"
        );
    }
    assert_eq!(server.hits("/elsewhere"), 0);
}

#[tokio::test]
async fn keys_never_come_over_plain_http_from_afar() {
    let signer = Signer::ed("k");
    for url in [
        "http://192.0.2.1/keys",
        "ftp://127.0.0.1/keys",
        "http://localhost.evil.example/",
        "x",
    ] {
        let house = House::trusting(vec![issuer(IssuerKeys::Url(url.into()))]);
        let started = std::time::Instant::now();
        assert!(
            house
                .bearer(&signer.token("EdDSA", &good_claims()))
                .await
                .is_err()
        );
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "{url} was dialled"
        );
    }
}

#[tokio::test]
async fn discovery_leads_to_the_keys_of_this_issuer_only() {
    let signer = Signer::ed("k");
    let server = KeyServer::start().await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let well_known = "/.well-known/openid-configuration";
    let mut trusted = issuer(IssuerKeys::Discovery);
    trusted.issuer.clone_from(&server.url);
    let mut claims = good_claims();
    claims["iss"] = json!(server.url);
    let token = signer.token("EdDSA", &claims);

    server.serves(
        well_known,
        &json!({"issuer": "https://other.example", "jwks_uri": server.at("/keys")}),
    );
    assert!(
        House::trusting(vec![trusted.clone()])
            .bearer(&token)
            .await
            .is_err()
    );
    server.serves(
        well_known,
        &json!({"issuer": server.url, "jwks_uri": "http://192.0.2.1/keys"}),
    );
    assert!(
        House::trusting(vec![trusted.clone()])
            .bearer(&token)
            .await
            .is_err()
    );
    assert_eq!(server.hits("/keys"), 0);

    server.serves(
        well_known,
        &json!({"issuer": server.url, "jwks_uri": server.at("/keys")}),
    );
    assert!(House::trusting(vec![trusted]).bearer(&token).await.is_ok());
}

#[tokio::test]
async fn a_key_file_is_read_again_when_it_changes() {
    let (old, new) = (Signer::ed("old"), Signer::ed("new"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    fs::write(&path, key_set(&[old.jwk()]).to_string()).unwrap();
    let house = House::trusting(vec![file_issuer(&path)]);
    assert!(
        house
            .bearer(&old.token("EdDSA", &good_claims()))
            .await
            .is_ok()
    );

    fs::write(&path, key_set(&[new.jwk()]).to_string()).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(later)
        .unwrap();
    pass(Duration::from_secs(2)).await;
    assert!(
        house
            .bearer(&new.token("EdDSA", &good_claims()))
            .await
            .is_ok()
    );
    assert!(
        house
            .bearer(&old.token("EdDSA", &good_claims()))
            .await
            .is_err()
    );

    fs::write(&path, "junk").unwrap();
    pass(Duration::from_secs(2)).await;
    assert!(
        house
            .bearer(&new.token("EdDSA", &good_claims()))
            .await
            .is_ok(),
        "the last good set stays"
    );
}

#[tokio::test]
async fn an_issuer_that_was_away_at_the_start_is_found_without_a_request() {
    let signer = Signer::ed("k");
    let server = KeyServer::start().await;
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys")))]);
    until("the first, vain fetch", async || server.hits("/keys") == 1).await;
    server.serves("/keys", &key_set(&[signer.jwk()]));
    assert!(!house.authenticator.is_ready());
    pass(Duration::from_secs(10)).await;
    until("the keys", async || house.authenticator.is_ready()).await;
}

/// A key server that takes its time: the connection stands, and no answer comes.
#[tokio::test]
async fn a_slow_key_server_costs_its_deadline_once_and_whoever_is_known_enters_meanwhile() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let mut slow = issuer(IssuerKeys::Url(url));
    slow.issuer = "https://slow.example".into();
    let (signer, server) = (Signer::ed("k"), KeyServer::start().await);
    server.serves("/keys", &key_set(&[signer.jwk()]));
    let house = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/keys"))), slow]);
    let mut claims = good_claims();
    claims["iss"] = json!("https://slow.example");
    let stuck = signer.token("EdDSA", &claims);
    let begun = std::time::Instant::now();
    let waiting = house.bearer(&stuck);
    let hears = async {
        // Held open until the end of the test: accepted, read, never answered.
        let (stream, _) = listener.accept().await.unwrap();
        let good = house
            .bearer(&signer.token("EdDSA", &good_claims()))
            .await
            .map(|_| ());
        (stream, good)
    };
    let (refused, (_stream, good)) = tokio::join!(waiting, hears);
    assert_eq!(refused, Err(Refusal::IssuerAway));
    assert_eq!(good, Ok(()), "one slow issuer is nobody else's problem");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    let again = std::time::Instant::now();
    assert!(house.bearer(&stuck).await.is_err());
    assert!(
        again.elapsed() < Duration::from_secs(1),
        "a failure is not waited for twice"
    );
}

#[tokio::test]
async fn of_a_huge_key_set_no_more_is_read_than_a_key_set_may_have() {
    let signer = Signer::ed("k");
    let server = KeyServer::start().await;
    let keys = key_set(&[signer.jwk()]).to_string();
    let mut answer = failing(200);
    answer.body = format!("{keys}{}", " ".repeat(256 * 1024 - keys.len()));
    server.answers("/full", answer.clone());
    answer.body.push(' ');
    server.answers("/huge", answer);
    let token = signer.token("EdDSA", &good_claims());
    let full = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/full")))]);
    assert!(full.bearer(&token).await.is_ok(), "256 KiB are allowed");
    let huge = House::trusting(vec![issuer(IssuerKeys::Url(server.at("/huge")))]);
    assert_eq!(
        huge.bearer(&token).await,
        Err(Refusal::IssuerAway),
        "and not a byte more"
    );
}

#[tokio::test]
async fn a_key_server_that_starts_to_send_wrong_keys_lets_nobody_new_in_and_nobody_known_out() {
    let signer = Signer::ed("k");
    let (server, house) = serving(&signer).await;
    let impostor = Signer::ed("k");
    for wrong in [
        json!({"keys": [{"kty": "oct", "kid": "k", "k": "c2VjcmV0"}]}),
        json!({"keys": "none"}),
        json!([]),
    ] {
        server.serves("/keys", &wrong);
        pass(Duration::from_secs(61)).await;
        let unknown = Signer::ed("unknown").token("EdDSA", &good_claims());
        assert!(house.bearer(&unknown).await.is_err(), "{wrong}");
        let forged = impostor.token("EdDSA", &good_claims());
        assert!(house.bearer(&forged).await.is_err(), "{wrong}");
        let good = house.bearer(&signer.token("EdDSA", &good_claims())).await;
        assert!(good.is_ok(), "{wrong}: what was right stays");
    }
    assert!(server.hits("/keys") > 1, "it was asked again");
}
