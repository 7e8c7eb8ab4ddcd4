//! What fails at home is seen, routed around, said, and forgiven: fallback, breaker, clients that leave.

use std::time::Duration;

use serde_json::json;
use tests::node::{Node, broken, slow};
use tests::proxy::Proxy;
use tests::wait::until;

#[tokio::test]
async fn heavy_killed_falls_back_and_says_so() {
    let proxy = Proxy::start().await;
    let mut strong = Node::named("workstation").tier("heavy").join(&proxy);
    let _small = Node::named("laptop")
        .tier("fast")
        .tier("primary")
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "primary", "heavy"]).await;
    assert_eq!(
        friend.ask("heavy", "Which tier are you?").await.text(),
        "I am the heavy tier."
    );

    strong.kill();

    let reply = friend.ask("heavy", "Which tier are you?").await;
    assert_eq!(reply.text(), "I am the primary tier.");
    assert_eq!(reply.routing()["fallback"], "heavy->primary");
    assert_eq!(reply.header("x-routing-fallback"), "heavy->primary");
    assert!(
        reply.routing()["attempts"]
            .as_array()
            .is_some_and(|attempts| attempts.len() >= 2),
        "{}",
        reply.routing()
    );
}

#[tokio::test]
async fn the_breaker_opens_probes_once_and_closes() {
    let proxy = Proxy::generous()
        .routing("breaker_open_secs = 2")
        .start()
        .await;
    let mut home = Node::named("den")
        .tier_from("heavy", &broken(), 1)
        .tier("fast")
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "heavy"]).await;

    for _ in 0..3 {
        assert_eq!(
            friend.ask("heavy", "Hello").await.routing()["fallback"],
            "heavy->fast"
        );
    }
    assert!(
        proxy.metric("hearth_breaker_state").await > 0.0,
        "three failures open the breaker"
    );
    let tried = |reply: &tests::client::Reply| {
        let attempts = reply.routing()["attempts"].clone();
        attempts.as_array().is_some_and(|attempts| {
            attempts.iter().any(|attempt| {
                attempt["tier"] == "heavy"
                    && attempt["node"] == "den"
                    && attempt["outcome"] != "breaker_open"
            })
        })
    };
    assert!(
        !tried(&friend.ask("heavy", "Hello").await),
        "an open breaker keeps requests away"
    );

    home.replace_tier("heavy", &tests::node::model("heavy").display().to_string());
    home.restart();

    until(
        "the probe closes the breaker",
        Duration::from_secs(30),
        || async {
            let reply = friend.ask("heavy", "Which tier are you?").await;
            (reply.status == 200 && reply.text() == "I am the heavy tier.").then_some(())
        },
    )
    .await;
    let open: f64 = proxy.metric("hearth_breaker_state").await;
    assert!(open.abs() < f64::EPSILON, "closed again: {open}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let proxy = Proxy::start().await;
    let home = Node::named("den")
        .tier_from("fast", &slow(100, 20), 1)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let mut stream = friend.stream("fast", "Talk for a long time.").await;
    stream.data().await.expect("the stream starts");
    let busy = || async { home.metric("hearth_node_slots_busy").await };
    until("the slot is busy", Duration::from_secs(5), || async {
        busy().await.filter(|slots| *slots >= 1.0)
    })
    .await;
    drop(stream);

    until(
        "the slot is free within a second",
        Duration::from_secs(1),
        || async { busy().await.filter(|slots| *slots < 0.5) },
    )
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_frees_its_slot_too() {
    let proxy = Proxy::start().await;
    let home = Node::named("den")
        .tier_from("fast", &slow(100, 200), 1)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let asking = tokio::spawn({
        let friend = friend.clone();
        async move {
            friend.complete(json!({"model": "fast", "messages": [{"role": "user", "content": "word ".repeat(1500)}]})).await
        }
    });
    let busy = || async { home.metric("hearth_node_slots_busy").await };
    until("the slot is busy", Duration::from_secs(5), || async {
        busy().await.filter(|slots| *slots >= 1.0)
    })
    .await;
    asking.abort();

    until("the slot is free", Duration::from_secs(2), || async {
        busy().await.filter(|slots| *slots < 0.5)
    })
    .await;
}

#[tokio::test]
async fn a_node_that_dies_in_the_middle_ends_the_stream_with_an_error() {
    let proxy = Proxy::start().await;
    let mut home = Node::named("den")
        .tier_from("fast", &slow(100, 20), 2)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let mut stream = friend.stream("fast", "Talk for a long time.").await;
    for _ in 0..3 {
        stream.data().await.expect("the stream starts");
    }
    home.kill();

    let transcript = stream.collect().await;
    assert!(
        transcript.error().is_some(),
        "a broken answer never looks complete"
    );
    assert!(transcript.finish_reason().is_none());
}
