//! Answers as they are made.

use std::time::Duration;

use config::tier::Tier::{Heavy, Primary};
use http::Method;
use policy::record::Ending;
use serde_json::json;

use super::client::Client;
use super::house::{House, Plans, stream_to};
use super::node::{Act, error, finish, piece, role, says, usage};

fn hasty() -> Plans {
    let mut plans = Plans::default();
    plans.routing.commit_after = Duration::from_millis(50);
    plans.routing.keepalive = Duration::from_millis(100);
    plans
}

#[tokio::test]
async fn a_stream_ends_with_routing_in_its_last_normal_chunk() {
    let house = House::with(vec![(&[Primary], vec![Act::Stream(says("hi"))])]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_eq!(
        client.header("content-type"),
        "text/event-stream; charset=utf-8"
    );
    assert_eq!(client.header("cache-control"), "no-cache, no-transform");
    assert_eq!(client.header("x-accel-buffering"), "no");
    let timing = client.header("server-timing");
    assert!(
        timing.contains("auth;dur=") && timing.contains(", queue;dur=7.0, ttft;dur="),
        "{timing}"
    );
    assert!(client.headers.get("content-length").is_none());
    let events = client.events();
    assert_eq!(client.said(), "hi");
    assert_eq!(events.last().unwrap(), &json!("[DONE]"));
    let last = &events[events.len() - 2];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["_routing"]["tier"], "primary");
    assert_eq!(
        last["_routing"]["tokens"], 2,
        "the node's own count, held back for this"
    );
    assert!(last["_routing"]["ttft_ms"].is_u64());
    assert!(
        events[..events.len() - 2]
            .iter()
            .all(|event| event.get("_routing").is_none())
    );
    assert!(
        events.iter().all(|event| event.get("usage").is_none()),
        "nobody asked for usage"
    );
    assert!(client.ended && record.outcome == Ending::Ok && record.stream);
    assert_eq!(
        house.nodes[0].seen()[0].body["stream_options"]["include_usage"],
        true
    );
}

#[tokio::test]
async fn usage_comes_last_if_asked_for_and_null_before() {
    let house = House::with(vec![(&[Primary], vec![Act::Stream(says("hi"))])]).await;
    let mut body = stream_to("primary");
    body["stream_options"] = json!({"include_usage": true});

    let (client, _) = house.chat(&body).await;

    let events = client.events();
    let (done, rest) = events.split_last().unwrap();
    let (usage, normal) = rest.split_last().unwrap();
    assert_eq!(done, &json!("[DONE]"));
    assert_eq!(
        (&usage["choices"], &usage["usage"]["total_tokens"]),
        (&json!([]), &json!(7))
    );
    assert!(
        normal
            .iter()
            .all(|event| event.get("usage") == Some(&json!(null))),
        "{normal:?}"
    );
    assert!(normal.last().unwrap().get("_routing").is_some() && usage.get("_routing").is_none());
}

#[tokio::test]
async fn ordinary_chunks_pass_as_the_node_wrote_them() {
    let odd = r#"{ "choices" : [ {"delta":{"content":"a,\"usage\":null b"}} ], "zebra": 1.50, "aardvark": "\u00e9" }"#;
    let events = vec![odd.to_owned(), finish(), usage(), "[DONE]".to_owned()];
    let house = House::with(vec![(&[Primary], vec![Act::Stream(events)])]).await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    assert!(
        client.text().starts_with(&format!("data: {odd}\n\n")),
        "{}",
        client.text()
    );
}

#[tokio::test]
async fn a_break_before_the_first_content_is_another_tiers_chance() {
    for act in [
        Act::Die,
        Act::Break(vec![]),
        Act::Break(vec![role()]),
        Act::Stream(vec![role()]),
        Act::Stream(vec!["[DONE]".to_owned()]),
        Act::Stream(vec![error("server_error", "tier_unavailable").to_string()]),
        Act::Stream(vec!["nonsense".to_owned()]),
        Act::Reply(200, json!({"choices": []})),
    ] {
        let name = format!("{act:?}");
        let nodes: Vec<(&[_], _)> = vec![
            (&[Heavy], vec![act]),
            (&[Primary], vec![Act::Stream(says("hi"))]),
        ];
        let house = House::with(nodes).await;

        let (client, _) = house.chat(&stream_to("heavy")).await;

        assert_eq!(
            (client.status.unwrap().as_u16(), client.said()),
            (200, "hi".to_owned()),
            "{name}"
        );
        let events = client.events();
        assert_eq!(
            events[events.len() - 2]["_routing"]["fallback"],
            "heavy->primary",
            "{name}"
        );
        assert_eq!(
            events
                .iter()
                .filter(|event| event["choices"][0]["delta"]["role"].is_string())
                .count(),
            1,
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_break_after_the_first_content_is_an_error_event_and_never_a_clean_end() {
    for act in [
        Act::Break(vec![role(), piece("h")]),
        Act::Stream(vec![role(), piece("h")]),
        Act::Stream(vec![role(), piece("h"), "[DONE]".to_owned()]),
        Act::Stream(vec![role(), piece("h"), "nonsense".to_owned()]),
        Act::Stream(vec![
            role(),
            piece("h"),
            error("server_error", "worker_gone").to_string(),
        ]),
    ] {
        let name = format!("{act:?}");
        let nodes: Vec<(&[_], _)> = vec![
            (&[Heavy], vec![act]),
            (&[Primary], vec![Act::Stream(says("hi"))]),
        ];
        let house = House::with(nodes).await;

        let (client, record) = house.chat(&stream_to("heavy")).await;

        let events = client.events();
        let error = &events.last().unwrap()["error"];
        assert!(
            error["message"].is_string() && error["code"].is_string(),
            "{name}: {events:?}"
        );
        assert!(
            error["type"].is_string() && error.get("param").is_some(),
            "all four members: {name}"
        );
        assert!(!client.text().contains("[DONE]"), "{name}");
        assert_eq!(record.outcome, Ending::Broken);
        assert_eq!(record.attempts.last().unwrap().outcome, "broken", "{name}");
        assert!(
            house.nodes[1].seen().is_empty(),
            "nothing is said twice: {name}"
        );
    }
}

#[tokio::test]
async fn what_came_before_a_break_is_sent() {
    for rest in [
        "nonsense".to_owned(),
        error("server_error", "gone").to_string(),
    ] {
        // One write of the node: good and bad in the same bytes.
        let both = format!("{}\n\ndata: {rest}", piece("more"));
        let acts = vec![Act::Stream(vec![role(), piece("some "), both])];
        let house = House::with(vec![(&[Primary], acts)]).await;
        let (client, record) = house.chat(&stream_to("primary")).await;
        assert_eq!(client.said(), "some more");
        assert_eq!(record.outcome, Ending::Broken);
    }
}

#[tokio::test]
async fn a_failure_after_all_content_is_not_the_clients_problem() {
    let late = error("server_error", "worker_gone").to_string();
    let acts = vec![Act::Stream(vec![role(), piece("hi"), finish(), late])];
    let house = House::with(vec![(&[Primary], acts)]).await;
    let (client, record) = house.chat(&stream_to("primary")).await;
    assert_eq!((client.said().as_str(), record.outcome), ("hi", Ending::Ok));
}

#[tokio::test]
async fn all_content_without_a_goodbye_is_still_an_answer() {
    let house = House::with(vec![(
        &[Primary],
        vec![Act::Break(vec![role(), piece("hi"), finish()])],
    )])
    .await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    assert_eq!((client.said().as_str(), record.outcome), ("hi", Ending::Ok));
    assert!(record.usage.unwrap().estimated, "nobody counted");
    assert!(client.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn silence_before_the_first_token_is_filled_with_comments() {
    let acts = vec![Act::Slowly(
        Duration::from_millis(300),
        vec![piece("hi"), finish(), "[DONE]".to_owned()],
    )];
    let house = House::planned(hasty(), vec![(&[Primary], acts)]).await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    let headed = client.headed_at.unwrap();
    assert!(
        headed >= Duration::from_millis(50) && headed < Duration::from_millis(250),
        "{headed:?}"
    );
    assert!(
        client.text().starts_with(": keep-alive\n\n"),
        "{}",
        client.text()
    );
    assert!(
        client.text().matches(": keep-alive\n\n").count() >= 3,
        "before and between the tokens"
    );
    assert!(!client.text().contains(": ping"));
    assert_eq!(client.said(), "hi");
}

#[tokio::test]
async fn a_refusal_before_the_commit_is_a_status_and_after_it_an_event() {
    let busy = || Act::Reply(503, error("server_error", "overloaded"));
    let house = House::with(vec![(&[Primary], vec![busy()])]).await;
    let (client, _) = house.chat(&stream_to("primary")).await;
    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["code"].clone()
        ),
        (503, json!("overloaded"))
    );
    assert!(!client.header("retry-after").is_empty());

    let late = error("invalid_request_error", "context_length_exceeded").to_string();
    let house = House::planned(
        hasty(),
        vec![(
            &[Primary],
            vec![Act::Slowly(Duration::from_millis(150), vec![late])],
        )],
    )
    .await;
    let (client, record) = house.chat(&stream_to("primary")).await;
    assert_eq!(client.status.unwrap(), 200);
    assert_eq!(
        client.events().last().unwrap()["error"]["code"],
        "context_length_exceeded"
    );
    assert_eq!(record.refusal, Some("context_too_long"));
}

#[tokio::test]
async fn a_client_that_leaves_cuts_the_stream_to_the_node() {
    let house = House::with(vec![(
        &[Primary],
        vec![Act::Hang(vec![role(), piece("h")])],
    )])
    .await;
    let mut client = Client::sending(stream_to("primary").to_string()).leaving_after(1);

    let record = house
        .ask(Method::POST, "/v1/chat/completions", &mut client)
        .await;

    house.nodes[0].was_left().await;
    assert_eq!((record.status, record.outcome), (499, Ending::ClientGone));
    assert_eq!(
        record.usage.unwrap().completion_tokens,
        1,
        "what was said is counted"
    );
    assert_eq!(record.attempts.last().unwrap().outcome, "abandoned");
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_with_an_error() {
    let mut plans = hasty();
    plans.routing.idle_timeout = Duration::from_millis(200);
    let house = House::planned(plans, vec![(&[Primary], vec![Act::Hang(vec![piece("h")])])]).await;

    let (client, record) = house.chat(&stream_to("primary")).await;

    house.nodes[0].was_left().await;
    assert_eq!(client.events().last().unwrap()["error"]["code"], "timeout");
    assert_eq!(record.attempts.last().unwrap().outcome, "timed_out");
}

#[tokio::test]
async fn a_node_that_never_answers_costs_its_time_and_not_the_request() {
    let mut plans = hasty();
    plans.routing.first_byte_timeout = Duration::from_millis(200);
    let nodes: Vec<(&[_], _)> = vec![
        (&[Heavy], vec![Act::Hang(vec![])]),
        (&[Primary], vec![Act::Stream(says("hi"))]),
    ];
    let house = House::planned(plans, nodes).await;

    let (client, record) = house.chat(&stream_to("heavy")).await;

    house.nodes[0].was_left().await;
    assert_eq!(client.said(), "hi");
    assert_eq!(record.attempts[0].outcome, "timed_out");
}

#[tokio::test]
async fn the_deadline_of_the_whole_request_ends_it() {
    let plans = Plans {
        request_timeout: Duration::from_millis(200),
        ..Plans::default()
    };
    let house = House::planned(plans, vec![(&[Primary], vec![Act::Hang(vec![])])]).await;

    let (client, _) = house.chat(&stream_to("primary")).await;

    assert_eq!(
        (
            client.status.unwrap().as_u16(),
            client.json()["error"]["code"].clone()
        ),
        (504, json!("timeout"))
    );
}

#[tokio::test]
async fn a_finished_stream_leaves_its_connection_to_the_next() {
    let house = House::with(vec![(&[Primary], vec![Act::Stream(says("hi"))])]).await;
    for _ in 0..3 {
        house.chat(&stream_to("primary")).await;
    }
    assert_eq!(house.nodes[0].connections(), 1);
}
