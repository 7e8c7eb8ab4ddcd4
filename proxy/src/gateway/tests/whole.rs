//! Answers that are not streamed.

use config::tier::Tier::{Fast, Heavy, Primary};
use http::Method;
use policy::record::Ending;
use serde_json::json;

use super::client::Client;
use super::house::{House, to};
use super::node::{Act, answer, error};

#[tokio::test]
async fn an_answer_carries_where_it_came_from() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;

    let (client, record) = house.chat(&to("primary")).await;

    assert_eq!(client.status.unwrap(), 200);
    let body = client.json();
    assert_eq!(body["choices"][0]["message"]["content"], "hi");
    let routing = &body["_routing"];
    assert_eq!(
        (&routing["tier"], &routing["model"]),
        (&json!("primary"), &json!("tiny-primary"))
    );
    assert_eq!(
        (&routing["node"], &routing["reason"]),
        (&json!("home-2"), &json!("requested"))
    );
    assert_eq!(
        (&routing["tokens"], &routing["fallback"]),
        (&json!(2), &json!(null))
    );
    assert_eq!(
        routing["attempts"],
        json!([{"tier": "primary", "node": "home-2", "outcome": "ok"}])
    );
    assert_eq!(client.header("x-routing-tier"), "primary");
    assert!(
        client.headers.get("server").is_none(),
        "a node's headers are not for clients"
    );
    assert_eq!(
        (record.outcome, record.usage.unwrap().prompt_tokens),
        (Ending::Ok, 5)
    );
}

#[tokio::test]
async fn an_answer_says_how_long_its_parts_took() {
    let mut timed = answer("hi");
    timed["timings"] = json!({"queue_ms": 7.25, "predicted_ms": 0.0});
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, timed)])]).await;

    let (client, record) = house.chat(&to("primary")).await;

    let timing = client.header("server-timing");
    assert!(
        ["auth;dur=", ", queue;dur=7.3, ", ", ttft;dur="]
            .iter()
            .all(|part| timing.contains(part)),
        "{timing}"
    );
    assert!(client.json()["_routing"]["ttft_ms"].is_u64());
    assert!(record.ttft_ms.is_some_and(|ttft| ttft <= record.ms));
}

#[tokio::test]
async fn a_node_is_asked_with_our_own_words_only() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    let mut body = to("primary");
    body["evil"] = "x".into();
    body["user"] = "ada@example.org".into();

    house.chat(&body).await;

    let seen = house.nodes[0].seen().remove(0);
    assert!(
        seen.head
            .starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.header("authorization"),
        Some("Bearer agent-secret"),
        "never the client's credential"
    );
    assert_eq!(seen.header("x-hearth-tier"), Some("primary"));
    assert_eq!(seen.header("x-request-id"), Some("req_test"));
    assert!(
        seen.header("x-hearth-completion-id")
            .unwrap()
            .starts_with("chatcmpl-")
    );
    assert!(
        seen.header("x-hearth-deadline-ms")
            .unwrap()
            .parse::<u64>()
            .unwrap()
            <= 30_000
    );
    assert!(seen.header("x-hearth-principal").unwrap().starts_with("u:"));
    assert_eq!((seen.body.get("evil"), seen.body.get("user")), (None, None));
    assert_eq!(seen.body["messages"][0]["content"], "hello");
}

#[tokio::test]
async fn every_kind_of_failure_falls_back_and_says_so() {
    for (act, outcome) in [
        (
            Act::Reply(503, error("server_error", "tier_unavailable")),
            "unavailable",
        ),
        (
            Act::Reply(503, error("server_error", "overloaded")),
            "overloaded",
        ),
        (
            Act::Reply(500, error("server_error", "internal")),
            "server_fault",
        ),
        (
            Act::Reply(401, error("invalid_request_error", "invalid_api_key")),
            "server_fault",
        ),
        (Act::Reply(200, json!("no answer")), "server_fault"),
        (Act::Die, "connect_failed"),
    ] {
        let nodes: Vec<(&[_], _)> = vec![
            (&[Heavy], vec![act]),
            (&[Primary], vec![Act::Reply(200, answer("hi"))]),
        ];
        let house = House::with(nodes).await;

        let (client, record) = house.chat(&to("heavy")).await;

        assert_eq!(client.status.unwrap(), 200, "{outcome}");
        let body = client.json();
        assert_eq!(
            body["_routing"]["fallback"], "heavy->primary",
            "the client can see the detour"
        );
        assert_eq!(body["_routing"]["attempts"][0]["outcome"], outcome);
        assert_eq!(body["_routing"]["attempts"][1]["outcome"], "ok");
        assert_eq!(client.header("x-routing-fallback"), "heavy->primary");
        assert_eq!(record.fallback.as_deref(), Some("heavy->primary"));
        let (first, second) = (
            house.nodes[0].seen().remove(0),
            house.nodes[1].seen().remove(0),
        );
        assert_eq!(first.body, second.body, "the same request");
    }
}

/// A second try ran what the first one might still be running.
#[tokio::test]
async fn seed_defect_11_a_request_that_a_node_may_have_started_is_not_run_there_again() {
    let house = House::with(vec![(&[Heavy, Primary, Fast], vec![Act::Die])]).await;

    let (client, record) = house.chat(&to("heavy")).await;

    assert_eq!(client.status.unwrap(), 502);
    assert_eq!(client.json()["error"]["code"], "upstream_error");
    assert_eq!(
        house.nodes[0].seen().len(),
        1,
        "the node may still be working on the first one"
    );
    assert_eq!(record.attempts.len(), 3);
}

#[tokio::test]
async fn a_node_that_is_not_there_is_passed_over() {
    let house = House::with(vec![
        (&[Heavy], vec![]),
        (&[Primary], vec![Act::Reply(200, answer("hi"))]),
    ])
    .await;
    // Nothing listens there any more: the registry does not know yet.
    let gone = house
        .fleet
        .with(|router| router.registry().nodes().next().unwrap().id.clone());
    house.gateway.rooms.dispatcher.members.remove(&gone);

    let (client, _) = house.chat(&to("heavy")).await;

    assert_eq!(
        client.json()["_routing"]["attempts"][0]["outcome"],
        "connect_failed"
    );
    assert_eq!(client.json()["_routing"]["fallback"], "heavy->primary");
}

#[tokio::test]
async fn the_callers_fault_is_told_and_not_tried_again() {
    for (code, status) in [("context_length_exceeded", 400), ("invalid_value", 400)] {
        let act = Act::Reply(400, error("invalid_request_error", code));
        let nodes: Vec<(&[_], _)> = vec![
            (&[Heavy], vec![act]),
            (&[Primary], vec![Act::Reply(200, answer("hi"))]),
        ];
        let house = House::with(nodes).await;

        let (client, record) = house.chat(&to("heavy")).await;

        assert_eq!(client.status.unwrap(), status);
        assert_eq!(client.json()["error"]["code"], code);
        assert_eq!(
            client.json()["error"]["message"],
            format!("node says {code}")
        );
        assert!(
            house.nodes[1].seen().is_empty(),
            "another tier would say the same"
        );
        assert_eq!(record.attempts[0].outcome, "caller_fault");
    }
}

#[tokio::test]
async fn connections_are_used_again() {
    let house = House::with(vec![(&[Primary], vec![Act::Reply(200, answer("hi"))])]).await;
    for _ in 0..5 {
        assert_eq!(house.chat(&to("primary")).await.0.status.unwrap(), 200);
    }
    assert_eq!(
        (house.nodes[0].seen().len(), house.nodes[0].connections()),
        (5, 1)
    );
}

#[tokio::test]
async fn a_connection_that_died_in_the_pool_costs_nobody_anything() {
    let acts = vec![
        Act::Reply(200, answer("one")),
        Act::Reply(200, answer("two")),
    ];
    let house = House::with(vec![(&[Primary], acts)]).await;
    house.chat(&to("primary")).await;
    let address = house.gateway.rooms.dispatcher.members.all()[0].address;
    assert_eq!(house.upstream.idle(address), 1);
    house.upstream.cut(address);

    let (client, record) = house.chat(&to("primary")).await;

    assert_eq!(client.json()["choices"][0]["message"]["content"], "two");
    assert_eq!(
        (record.attempts.len(), house.nodes[0].connections()),
        (1, 2)
    );
}

#[tokio::test]
async fn a_client_that_leaves_takes_the_nodes_work_with_it() {
    let house = House::with(vec![(&[Primary], vec![Act::Hang(vec![])])]).await;
    let mut client = Client::sending(to("primary").to_string()).leaving_after(0);

    let record = house
        .ask(Method::POST, "/v1/chat/completions", &mut client)
        .await;

    assert_eq!((record.status, record.outcome), (499, Ending::ClientGone));
    let backend = house
        .fleet
        .with(|router| router.registry().backends().next().unwrap().id());
    assert_eq!(
        house.fleet.with(|router| router.in_flight(&backend)),
        0,
        "the ticket is settled"
    );
}
