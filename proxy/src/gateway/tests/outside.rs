//! Tiers that servers outside the tunnel run: what they are asked, what a client sees of them, who may never reach them, and those that
//! sleep until they are wanted.

use std::collections::BTreeMap;
use std::time::Duration;

use config::settings::plan::Price;
use config::settings::proxy::{Burst, Fields, Hook, MaxTokensField, Remote};
use config::tier::Tier::{Fast, Heavy, Primary};
use config::zone::Zone;
use http::Method;
use policy::record::Ending;
use policy::registry::ListedState;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::house::{House, Plans, stream_to, to};
use super::node::{Act, answer, says};
use super::peer::{Peer, Says};

pub(super) fn plans(remotes: Vec<Remote>) -> Plans {
    Plans {
        remotes,
        ..Plans::default()
    }
}

/// Waits for a fact.
pub(super) async fn until(what: &str, fact: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fact() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        sleep(Duration::from_millis(5)).await;
    }
}

fn state_of(house: &House, id: &str) -> Option<ListedState> {
    let listed = house
        .fleet
        .with(|router| router.registry().list(&["auto".to_owned()]));
    let found = listed.into_iter().find(|one| one.id == id)?;
    Some(found.state)
}

pub(super) async fn listed(house: &House, id: &str, state: ListedState) {
    until(&format!("{id} is {state:?}"), || {
        state_of(house, id) == Some(state)
    })
    .await;
}

async fn ask_with(house: &House, headers: &[(&'static str, &str)], body: &Value) -> Client {
    let mut client = Client::sending(body.to_string());
    house
        .ask_with(Method::POST, "/v1/chat/completions", headers, &mut client)
        .await;
    client
}

#[tokio::test]
async fn a_server_outside_answers_in_our_words() {
    let mut foreign = answer("from afar");
    foreign["id"] = "vendor-1".into();
    foreign["system_fingerprint"] = "fp_vendor".into();
    foreign["provider"] = "Vendor".into();
    let peer = Peer::start(Says::Whole(foreign)).await;
    let mut plans = plans(vec![peer.remote(Heavy)]);
    let price = Price {
        input: 1_000_000,
        cached_input: 0,
        output: 2_000_000,
    };
    plans.prices.models = BTreeMap::from([("big".to_owned(), price)]);
    let house = House::planned(plans, vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let mut body = to("big");
    body["max_tokens"] = 7.into();
    body["top_k"] = 5.into();
    body["hearth"] = json!({"priority": "normal"});

    let (client, record) = house.chat(&body).await;

    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    let answer = client.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "from afar");
    assert_eq!(answer["model"], "big");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_ne!(answer["id"], "vendor-1");
    assert!(answer.get("provider").is_none() && answer.get("system_fingerprint").is_none());
    assert_eq!(answer["_routing"]["node"], "cloud");
    assert_eq!(answer["_routing"]["tier"], "heavy");
    assert!(client.headers.get("x-vendor-account").is_none());
    assert_eq!(record.usage.unwrap().prompt_tokens, 5);
    let heard = peer.heard();
    assert_eq!(heard[0].path, "/v1/chat/completions");
    assert_eq!(heard[0].headers["authorization"], "Bearer sk-ours");
    assert_eq!(heard[0].body["model"], "vendor/big");
    assert_eq!(heard[0].body["max_tokens"], 7);
    assert_eq!(heard[0].body["top_k"], 5);
    for ours in ["hearth", "tier", "_resume"] {
        assert!(heard[0].body.get(ours).is_none(), "{ours}");
    }
    let foreign = |name: &&str| name.starts_with("x-hearth");
    let names: Vec<&str> = heard[0]
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    assert!(!names.iter().any(foreign), "{names:?}");
}

#[tokio::test]
async fn a_strict_server_gets_only_what_its_api_knows() {
    let peer = Peer::start(Says::Whole(answer("hi"))).await;
    let remote = Remote {
        fields: Fields::OpenAi,
        max_tokens_field: MaxTokensField::MaxCompletionTokens,
        ..peer.remote(Heavy)
    };
    let house = House::planned(plans(vec![remote]), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let mut body = to("big");
    body["max_tokens"] = 7.into();
    body["top_k"] = 5.into();
    body["temperature"] = 0.5.into();

    house.chat(&body).await;

    let heard = peer.heard();
    assert_eq!(heard[0].body["max_completion_tokens"], 7);
    assert_eq!(heard[0].body["temperature"], 0.5);
    for name in ["max_tokens", "top_k"] {
        assert!(heard[0].body.get(name).is_none(), "{name}");
    }
}

#[tokio::test]
async fn a_foreign_stream_is_passed_on_chunk_by_chunk() {
    let peer = Peer::start(Says::Stream(says("from afar"))).await;
    let house = House::planned(plans(vec![peer.remote(Heavy)]), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let mut body = stream_to("big");
    body["stream_options"] = json!({"include_usage": true});

    let (client, record) = house.chat(&body).await;

    assert_eq!(client.said(), "from afar", "{}", client.text());
    let events = client.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    let named = |event: &&Value| event.is_object();
    for event in events.iter().filter(named) {
        assert_eq!(event["model"], "big", "{event}");
        assert!(event["id"].as_str().unwrap().starts_with("chatcmpl-"));
    }
    assert_eq!(record.usage.unwrap().completion_tokens, 2);
    assert_eq!(
        peer.heard()[0].body["stream_options"],
        json!({"include_usage": true})
    );
}

#[tokio::test]
async fn what_must_stay_at_home_never_leaves_it() {
    let peer = Peer::start(Says::Whole(answer("from afar"))).await;
    let house = House::planned(plans(vec![peer.remote(Heavy)]), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let friend = format!(
        "Bearer {}",
        house.key_with(&policy::identity::Scope::CLIENT).await
    );
    let at_home = format!("Bearer {}", house.key_that_stays().await);
    let in_body = |stream: bool| {
        let mut body = to("heavy");
        body["hearth"] = json!({"local_only": true});
        body["stream"] = stream.into();
        body
    };
    let auth = |key| ("authorization", key);
    for (headers, body) in [
        (vec![auth(at_home.as_str())], to("heavy")),
        (vec![auth(at_home.as_str())], to("big")),
        (vec![auth(at_home.as_str())], to("auto")),
        (
            vec![auth(at_home.as_str()), ("x-hearth-local-only", "false")],
            to("heavy"),
        ),
        (
            vec![auth(friend.as_str()), ("x-hearth-local-only", "true")],
            to("heavy"),
        ),
        (vec![auth(friend.as_str())], in_body(false)),
        (vec![auth(friend.as_str())], in_body(true)),
    ] {
        let client = ask_with(&house, &headers, &body).await;
        assert_eq!(client.status.unwrap(), 503, "{body}: {}", client.text());
        let error = client.json();
        assert_eq!(error["error"]["code"], "no_tier_available");
        let said = error["error"]["message"].as_str().unwrap();
        assert!(said.contains("local_only"), "{said}");
    }
    assert!(peer.heard().is_empty(), "nothing left the house");
    let free = ask_with(&house, &[auth(friend.as_str())], &to("heavy")).await;
    assert_eq!(free.status.unwrap(), 200);
}

#[tokio::test]
async fn what_must_stay_at_home_falls_back_within_it() {
    let peer = Peer::start(Says::Whole(answer("from afar"))).await;
    let house = House::planned(
        plans(vec![peer.remote(Heavy)]),
        vec![(&[Fast], vec![Act::Reply(200, answer("home"))])],
    )
    .await;
    listed(&house, "big", ListedState::Ready).await;
    let key = format!("Bearer {}", house.key_that_stays().await);

    let client = ask_with(&house, &[("authorization", &key)], &to("heavy")).await;

    assert_eq!(client.json()["_routing"]["node"], "home-2");
    assert!(peer.heard().is_empty());
}

#[tokio::test]
async fn a_server_in_the_house_may_have_what_stays_there() {
    let peer = Peer::start(Says::Whole(answer("from the cellar"))).await;
    let remote = Remote {
        local: true,
        ..peer.remote(Heavy)
    };
    let house = House::planned(plans(vec![remote]), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let key = format!("Bearer {}", house.key_that_stays().await);
    let client = ask_with(&house, &[("authorization", &key)], &to("heavy")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
}

#[tokio::test]
async fn foreign_errors_become_the_next_step_and_tell_nothing() {
    let peer = Peer::start(Says::Status(500, json!({"error": {"message": "org-42"}}))).await;
    let other = Peer::start(Says::Whole(answer("stolen"))).await;
    let house = House::planned(
        plans(vec![peer.remote(Heavy)]),
        vec![(&[Primary], vec![Act::Reply(200, answer("home"))])],
    )
    .await;
    listed(&house, "big", ListedState::Ready).await;
    let away = format!("http://{}/v1/chat/completions", other.address);
    let cases = [
        (
            Says::Status(429, json!({"error": {"message": "org-42 quota"}})),
            "overloaded",
        ),
        (
            Says::Status(401, json!({"error": {"message": "bad key sk-ours"}})),
            "server_fault",
        ),
        (Says::Redirect(away), "server_fault"),
        (Says::Whole(json!("no answer")), "server_fault"),
    ];
    for (says, outcome) in cases {
        peer.says(says);
        let (client, _) = house.chat(&to("heavy")).await;
        assert_eq!(client.status.unwrap(), 200, "{}", client.text());
        let routing = &client.json()["_routing"];
        assert_eq!(routing["fallback"], "heavy->primary");
        let first = &routing["attempts"][0];
        assert_eq!(
            (&first["node"], &first["outcome"]),
            (&json!("cloud"), &json!(outcome))
        );
        let text = client.text();
        assert!(
            !text.contains("org-42") && !text.contains("sk-ours"),
            "{text}"
        );
    }
    assert!(
        other.heard().is_empty(),
        "no redirect is followed, and no key goes along"
    );
}

#[tokio::test]
async fn a_callers_fault_is_told_in_our_words() {
    let refusal =
        json!({"object": "error", "message": "This model's maximum context length is 10"});
    let peer = Peer::start(Says::Status(400, refusal)).await;
    let house = House::planned(plans(vec![peer.remote(Heavy)]), vec![]).await;
    listed(&house, "big", ListedState::Ready).await;
    let (client, record) = house.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 400);
    assert_eq!(client.json()["error"]["code"], "context_length_exceeded");
    assert_eq!(record.outcome, Ending::Refused);
}

#[tokio::test]
async fn a_server_that_goes_away_leaves_the_list_and_comes_back() {
    let peer = Peer::asleep(Says::Whole(answer("hi")), 0).await;
    let house = House::planned(plans(vec![peer.remote(Heavy)]), vec![]).await;
    listed(&house, "heavy", ListedState::Unavailable).await;
    reqwest::Client::new()
        .post(peer.url("/start").to_string())
        .send()
        .await
        .unwrap();
    listed(&house, "big", ListedState::Ready).await;
}

#[tokio::test]
async fn a_model_that_is_still_loading_is_asked_nothing_because_it_cannot_tell_its_context() {
    let peer = Peer::asleep(Says::Whole(answer("hi")), 3).await;
    let remote = Remote {
        context: None,
        ..peer.remote(Heavy)
    };
    let house = House::planned(plans(vec![remote]), vec![]).await;
    reqwest::Client::new()
        .post(peer.url("/start").to_string())
        .send()
        .await
        .unwrap();
    listed(&house, "big", ListedState::Ready).await;
    let all = house
        .fleet
        .with(|router| router.registry().list(&["auto".to_owned()]));
    let big = all.into_iter().find(|one| one.id == "big").unwrap();
    assert_eq!(big.n_ctx, Some(4_096));
}

fn burst(peer: &Peer, change: impl FnOnce(&mut Burst)) -> Remote {
    let mut burst = Burst {
        start: Hook::Url(peer.url("/start")),
        stop: Some(Hook::Url(peer.url("/stop"))),
        key: None,
        ready_timeout: Duration::from_secs(20),
        takes: Duration::from_secs(5),
        idle_stop: Duration::from_mins(10),
        warm_hours: None,
        zone: Zone::default(),
        starts_per_hour: 3,
    };
    change(&mut burst);
    Remote {
        burst: Some(burst),
        ..peer.remote(Heavy)
    }
}

#[tokio::test]
async fn the_first_request_starts_a_sleeping_server_once_and_everybody_waits_with_progress() {
    let peer = Peer::asleep(Says::Stream(says("awake")), 1).await;
    let mut plans = plans(vec![burst(&peer, |_| {})]);
    plans.routing.commit_after = Duration::from_millis(100);
    plans.routing.keepalive = Duration::from_millis(100);
    let house = House::planned(plans, vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    assert_eq!(peer.starts(), 0, "nobody has wanted it yet");

    let body = stream_to("big");
    let (one, two, three) = tokio::join!(house.chat(&body), house.chat(&body), house.chat(&body));

    for (client, _) in [&one, &two, &three] {
        assert_eq!(client.said(), "awake", "{}", client.text());
        assert!(
            client.text().contains(": keep-alive load "),
            "{}",
            client.text()
        );
    }
    assert_eq!(peer.starts(), 1, "one starter at a time");
    assert_eq!(state_of(&house, "big"), Some(ListedState::Ready));
    assert!(
        house
            .metrics
            .render()
            .contains("hearth_wakes_total{node=\"cloud\",act=\"start\",outcome=\"ok\"} 1")
    );
}

#[tokio::test]
async fn a_client_that_leaves_stops_no_start() {
    let peer = Peer::asleep(Says::Stream(says("awake")), 1).await;
    let mut plans = plans(vec![burst(&peer, |_| {})]);
    plans.routing.commit_after = Duration::from_millis(10);
    plans.routing.keepalive = Duration::from_millis(50);
    let house = House::planned(plans, vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    let mut client = Client::sending(stream_to("big").to_string()).leaving_after(1);
    house
        .ask(Method::POST, "/v1/chat/completions", &mut client)
        .await;
    listed(&house, "big", ListedState::Ready).await;
    assert!(
        peer.heard().is_empty(),
        "nobody waits for an answer any more"
    );
}

#[tokio::test]
async fn whoever_cannot_wait_goes_to_a_warm_tier() {
    let peer = Peer::asleep(Says::Whole(answer("awake")), 0).await;
    let remote = burst(&peer, |burst| burst.takes = Duration::from_secs(20));
    let house = House::planned(
        plans(vec![remote]),
        vec![(&[Primary], vec![Act::Reply(200, answer("warm"))])],
    )
    .await;
    listed(&house, "big", ListedState::Sleeping).await;
    let key = format!(
        "Bearer {}",
        house.key_with(&policy::identity::Scope::CLIENT).await
    );
    let class = |class| {
        [
            ("authorization", key.as_str()),
            ("x-hearth-priority", class),
        ]
    };

    let quick = ask_with(&house, &class("interactive"), &to("heavy")).await;
    assert_eq!(quick.json()["_routing"]["fallback"], "heavy->primary");
    assert_eq!(peer.starts(), 0);

    let patient = ask_with(&house, &class("batch"), &to("heavy")).await;
    assert_eq!(patient.json()["_routing"]["node"], "cloud");
    assert_eq!(peer.starts(), 1);
}

#[tokio::test]
async fn a_server_that_nobody_needs_is_stopped() {
    let peer = Peer::asleep(Says::Whole(answer("awake")), 0).await;
    let remote = burst(&peer, |burst| burst.idle_stop = Duration::from_millis(300));
    let house = House::planned(plans(vec![remote]), vec![]).await;
    listed(&house, "big", ListedState::Sleeping).await;
    let (client, _) = house.chat(&to("big")).await;
    assert_eq!(client.status.unwrap(), 200, "{}", client.text());
    until("it is stopped", || peer.stops() == 1).await;
    listed(&house, "big", ListedState::Sleeping).await;
}

#[tokio::test]
async fn a_start_that_fails_opens_the_breaker_and_is_stopped() {
    let peer = Peer::asleep(Says::Whole(answer("awake")), usize::MAX).await;
    let remote = burst(&peer, |burst| {
        burst.ready_timeout = Duration::from_millis(300);
    });
    let house = House::planned(
        plans(vec![remote]),
        vec![(&[Primary], vec![Act::Reply(200, answer("warm"))])],
    )
    .await;
    listed(&house, "big", ListedState::Sleeping).await;

    let (first, _) = house.chat(&to("heavy")).await;
    let (second, _) = house.chat(&to("heavy")).await;

    let routing = &first.json()["_routing"];
    assert_eq!(routing["fallback"], "heavy->primary", "{routing}");
    assert_eq!(routing["attempts"][0]["outcome"], "unavailable");
    assert_eq!(
        second.json()["_routing"]["attempts"][0]["outcome"],
        "breaker_open"
    );
    assert_eq!(peer.starts(), 1);
    until("what may run all the same is stopped", || peer.stops() == 1).await;
}

#[tokio::test]
async fn starts_are_bounded_because_they_cost_money() {
    let peer = Peer::asleep(Says::Whole(answer("awake")), 0).await;
    let remote = burst(&peer, |burst| {
        burst.starts_per_hour = 1;
        burst.idle_stop = Duration::from_millis(100);
    });
    let house = House::planned(
        plans(vec![remote]),
        vec![(&[Primary], vec![Act::Reply(200, answer("warm"))])],
    )
    .await;
    listed(&house, "big", ListedState::Sleeping).await;
    let (first, _) = house.chat(&to("heavy")).await;
    assert_eq!(first.json()["_routing"]["node"], "cloud");
    until("it is stopped", || peer.stops() == 1).await;
    listed(&house, "big", ListedState::Sleeping).await;
    let (second, _) = house.chat(&to("heavy")).await;
    assert_eq!(second.json()["_routing"]["fallback"], "heavy->primary");
    assert_eq!(peer.starts(), 1);
}
