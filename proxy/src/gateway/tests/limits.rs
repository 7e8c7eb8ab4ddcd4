//! What requests cost, and what goes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use config::tier::Tier::Primary;
use futures_util::poll;
use http::Method;
use serde_json::json;

use super::client::Client;
use super::house::{House, Plans, stream_to, to};
use super::node::{Act, answer, error};

fn generous() -> Plans {
    let mut plans = Plans::default();
    plans.limits.per_ip.text = 1_000;
    plans.limits.per_user.text = 1_000;
    plans
}

#[tokio::test]
async fn the_101st_request_of_a_day_is_refused_and_stops_every_sdk() {
    let house = House::planned(
        generous(),
        vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])],
    )
    .await;
    for request in 1..=100 {
        let (client, _) = house.chat(&to("primary")).await;
        assert_eq!(client.status.unwrap(), 200, "request {request}");
        assert_eq!(
            client.header("x-ratelimit-remaining-requests"),
            (100 - request).to_string()
        );
    }
    let (client, record) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 429);
    let body = client.json();
    assert_eq!(
        (&body["error"]["type"], &body["error"]["code"]),
        (&json!("insufficient_quota"), &json!("insufficient_quota"))
    );
    assert_eq!(client.header("x-should-retry"), "false");
    assert_eq!(
        client.header("retry-after"),
        (12 * 3600).to_string(),
        "midnight is twelve hours away"
    );
    assert_eq!(client.header("x-ratelimit-limit-requests"), "100");
    assert_eq!(client.header("x-ratelimit-reset-requests"), "12h0m0s");
    assert!(
        client
            .header("ratelimit-policy")
            .contains("\"text-day\";q=100;w=86400")
    );
    assert_eq!(record.refusal, Some("quota_exceeded"));
    assert_eq!(
        house.nodes[0].seen().len(),
        100,
        "refused before any node hears of it"
    );
}

#[tokio::test]
async fn the_31st_request_of_a_minute_is_refused_with_the_time_to_wait() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    for _ in 0..30 {
        assert_eq!(house.chat(&to("primary")).await.0.status.unwrap(), 200);
    }
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["code"].clone()
        ),
        (429, json!("rate_limit_exceeded"))
    );
    assert!(client.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert_eq!(client.header("x-ratelimit-remaining-requests"), "0");
}

#[tokio::test]
async fn what_nobody_answered_is_not_charged() {
    let acts = vec![
        Act::Reply(500, error("server_error", "internal")),
        Act::Reply(200, answer("hi")),
    ];
    let house = House::planned(generous(), vec![(&[Primary], acts)]).await;
    assert_eq!(house.chat(&to("primary")).await.0.status.unwrap(), 502);
    // No answer waits for its settlement; this test does.
    let admission = &house.gateway.rooms.admission;
    admission.flush(Duration::from_secs(20)).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(
        client.header("x-ratelimit-remaining-requests"),
        "99",
        "only the second one counts"
    );
}

#[tokio::test]
async fn a_node_without_room_charges_nobody_even_after_the_head_of_a_stream() {
    let mut plans = generous();
    plans.routing.commit_after = Duration::from_millis(20);
    let late = error("server_error", "overloaded").to_string();
    let acts = vec![
        Act::Slowly(Duration::from_millis(100), vec![late]),
        Act::Reply(200, answer("hi")),
    ];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let (client, _) = house.chat(&stream_to("primary")).await;
    assert_eq!(
        client.events().last().unwrap()["error"]["code"],
        "overloaded"
    );
    let admission = &house.gateway.rooms.admission;
    admission.flush(Duration::from_secs(20)).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.header("x-ratelimit-remaining-requests"), "99");
}

#[tokio::test]
async fn the_callers_own_fault_stays_charged() {
    let acts = vec![
        Act::Reply(
            400,
            error("invalid_request_error", "context_length_exceeded"),
        ),
        Act::Reply(200, answer("hi")),
    ];
    let house = House::planned(generous(), vec![(&[Primary], acts)]).await;
    house.chat(&to("primary")).await;
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(
        client.header("x-ratelimit-remaining-requests"),
        "98",
        "a node had to count the tokens"
    );
}

#[tokio::test]
async fn a_user_has_so_many_open_requests_and_no_more() {
    let mut plans = generous();
    plans.limits.concurrent_per_user = 1;
    let acts = vec![Act::Hang(vec![]), Act::Reply(200, answer("hi"))];
    let house = Arc::new(House::planned(plans, vec![(&[Primary], acts)]).await);
    let first = Arc::clone(&house);
    let open = tokio::spawn(async move {
        let mut client = Client::sending(stream_to("primary").to_string());
        first
            .ask(Method::POST, "/v1/chat/completions", &mut client)
            .await
    });
    while house.nodes[0].seen().is_empty() {
        tokio::task::yield_now().await;
    }
    let (client, record) = house.chat(&to("primary")).await;
    assert_eq!(
        (client.status.unwrap().as_u16(), record.refusal),
        (429, Some("too_many_open"))
    );
    assert!(
        client
            .header("ratelimit")
            .ends_with(", \"concurrency\";r=0")
    );
    assert_eq!(client.json()["error"]["limit_name"], "concurrency");
    open.abort();
    assert!(open.await.unwrap_err().is_cancelled());
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(
        client.status.unwrap(),
        200,
        "the place is free again, however the first one ended"
    );
}

#[tokio::test]
async fn lists_and_health_have_counters_of_their_own() {
    let house = House::with(vec![]).await;
    for left in (0..120).rev() {
        let mut client = Client::sending("");
        house.ask(Method::GET, "/v1/models", &mut client).await;
        assert_eq!(
            client.header("x-ratelimit-remaining-requests"),
            left.to_string()
        );
    }
    let mut client = Client::sending("");
    house.ask(Method::GET, "/health", &mut client).await;
    assert_eq!(client.status.unwrap(), 429);
}

#[tokio::test]
async fn a_body_that_does_not_end_counts_as_an_open_request() {
    let mut plans = generous();
    plans.limits.concurrent_per_user = 1;
    let acts = vec![Act::Reply(200, answer("hi"))];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let stalled = Arc::<AtomicUsize>::default();
    let mut slow = Client::sending("{").stalling(&stalled);
    let mut upload = Box::pin(house.ask(Method::POST, "/v1/chat/completions", &mut slow));
    while stalled.load(Ordering::Relaxed) == 0 {
        assert!(poll!(&mut upload).is_pending());
        tokio::task::yield_now().await;
    }
    let (client, record) = house.chat(&to("primary")).await;
    assert_eq!(
        (client.status.unwrap().as_u16(), record.refusal),
        (429, Some("too_many_open"))
    );
    drop(upload);
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 200);
}

#[tokio::test]
async fn bodies_that_do_not_end_cannot_fill_the_memory() {
    let mut plans = generous();
    plans.limits.concurrent_per_user = 1_000;
    let acts = vec![Act::Reply(200, answer("hi"))];
    let house = House::planned(plans, vec![(&[Primary], acts)]).await;
    let stalled = Arc::<AtomicUsize>::default();
    // The house takes 64 KiB of text each.
    let mut clients: Vec<Client> = (0..100)
        .map(|_| Client::sending(vec![b' '; 60 * 1024]).stalling(&stalled))
        .collect();
    let mut uploads: Vec<_> = clients
        .iter_mut()
        .map(|client| Box::pin(house.ask(Method::POST, "/v1/chat/completions", client)))
        .collect();
    let mut refused = 0;
    for upload in &mut uploads {
        let before = stalled.load(Ordering::Relaxed);
        while stalled.load(Ordering::Relaxed) == before {
            if let Poll::Ready(record) = poll!(&mut *upload) {
                assert_eq!(record.refusal, Some("queue_full"));
                refused += 1;
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(refused, 100 - 68, "as many as fit into 64 whole bodies");
    drop(uploads);
    let (client, _) = house.chat(&to("primary")).await;
    assert_eq!(client.status.unwrap(), 200);
}
