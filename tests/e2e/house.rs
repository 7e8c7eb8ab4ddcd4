//! A house with several doors: who comes in and who decides it, keys that change while people talk, and proxies that come and go.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::client::Client;
use tests::node::{Node, slow};
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::wait::until;

const SOON: Duration = Duration::from_secs(20);

fn den(proxy: &Proxy) -> Value {
    let nodes = proxy.manage(&["node", "list"]);
    nodes[0].clone()
}

#[tokio::test]
async fn a_machine_waits_until_somebody_compares_six_words_and_approves_it() {
    let proxy = Proxy::start().await;
    let link = proxy.manage(&["node", "invite", "--approve"])["link"].clone();
    let link = link.as_str().expect("a link").to_owned();
    let mut home = Node::named("den")
        .setting("refused_retry_secs = 1")
        .tier("fast")
        .prepare();

    let before = proxy.manage(&["node", "list"]);
    assert_eq!(before, json!([]));
    let joining = home.join_in_background(&link);
    until("it waits", SOON, || async {
        (den(&proxy)["state"] == "pending").then_some(())
    })
    .await;
    let words = den(&proxy)["fingerprint"]
        .as_str()
        .expect("words")
        .to_owned();
    assert_eq!(words.split(' ').count(), 6, "{words}");

    // An agent that is started too early says so once and goes on asking, and not the machine beside it.
    home.restart();
    let status = until("the agent knows why", SOON, || async {
        let (code, said) = home.typed(&["status"]);
        (code == Some(0) && said.contains("waits for approval")).then_some(said)
    })
    .await;
    assert!(status.contains(&words), "the same words there: {status}");
    assert_eq!(
        den(&proxy)["registered_unix"],
        Value::Null,
        "it has no place in the tunnel"
    );

    let approved = proxy.manage(&["node", "approve", "den"]);
    assert_eq!(approved["state"], "approved");
    let said = joining.join().expect("does not panic");
    assert!(said.contains(&words) && said.contains("joined"), "{said}");
    assert_eq!(
        said.matches("waits for approval").count(),
        1,
        "one line: {said}"
    );
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    assert_eq!(friend.ask("fast", "Hello").await.status, 200);
    let audit = proxy.manage(&["audit", "list"]).to_string();
    assert!(audit.contains("node.approve"), "{audit}");
}

#[tokio::test]
async fn keys_change_every_second_while_streams_run_and_nobody_notices() {
    let proxy = Proxy::generous().start().await;
    let _home = Node::named("den")
        .setting("rekey_secs = 1")
        .tier_from("fast", &slow(300, 4), 16)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let first = den(&proxy)["registered_unix"].clone();

    let began = Instant::now();
    let streams = (0..12).map(|_| async {
        let mut texts = Vec::new();
        for _ in 0..2 {
            texts.push(friend.stream("fast", "Go on").await.collect().await);
        }
        texts
    });
    let told: Vec<_> = join_all(streams).await.into_iter().flatten().collect();
    let took = began.elapsed();
    for transcript in &told {
        assert!(transcript.error().is_none(), "{:?}", transcript.error());
        assert_eq!(
            transcript.text.matches("word").count(),
            300,
            "every word of every stream"
        );
        assert_eq!(transcript.routing()["migrations"].as_u64().unwrap_or(0), 0);
    }
    assert!(
        took > Duration::from_secs(4),
        "long enough for several keys: {took:?}"
    );
    assert_ne!(den(&proxy)["registered_unix"], first, "the key did change");
    tests::tell(&format!(
        "{} streams in {took:?}, a new key every second, 0 errors",
        told.len()
    ));
}

async fn two_doors(redis: &Redis, patience: &str) -> [Proxy; 2] {
    let start = || {
        Proxy::generous()
            .counting_in(redis)
            .tunnel("heartbeat_secs = 1")
            .routing(patience)
            .start()
    };
    [start().await, start().await]
}

/// Waits until a node that joined at one door is at both.
async fn at_both(doors: &[Proxy; 2]) -> [Client; 2] {
    let friends = [doors[0].friend(), doors[1].friend()];
    for (door, friend) in doors.iter().zip(&friends) {
        door.serves(friend, &["fast"]).await;
    }
    friends
}

#[tokio::test]
async fn a_node_that_joins_at_one_proxy_serves_both_and_the_death_of_one_costs_the_other_nothing() {
    let redis = Redis::start().await;
    let mut doors = two_doors(&redis, "migration_patience_secs = 1").await;
    let home = Node::named("den").tier("fast").join(&doors[0]);
    let [_, there] = at_both(&doors).await;
    let (_, said) = home.typed(&["status"]);
    assert_eq!(
        said.matches(" connected, ").count(),
        2,
        "a tunnel to each: {said}"
    );

    doors[0].kill();
    let began = Instant::now();
    let mut asked = 0;
    while began.elapsed() < Duration::from_secs(3) {
        let reply = there.ask("fast", "Hello").await;
        assert_eq!(reply.status, 200, "after {:?}", began.elapsed());
        asked += 1;
    }
    tests::tell(&format!(
        "one of two proxies killed: {asked} requests at the other, 0 errors"
    ));
    let began = Instant::now();
    doors[0].restart().await;
    let friend = doors[0].friend();
    until("it serves again", SOON, || async {
        (friend.ask("fast", "Hello").await.status == 200).then_some(())
    })
    .await;
    tests::tell(&format!(
        "the proxy is back, with its node, {:?} after its start",
        began.elapsed()
    ));

    // The proxy that the machine joined is away when the machine starts: it knows the other one.
    doors[0].kill();
    let mut home = home;
    home.restart();
    until("it serves at the other door", SOON, || async {
        (there.ask("fast", "Hello").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_revoked_at_one_proxy_is_cut_at_the_other_within_a_second() {
    let redis = Redis::start().await;
    let doors = two_doors(&redis, "migration_patience_secs = 0").await;
    let _home = Node::named("den")
        .tier_from("fast", &slow(2_000, 10), 4)
        .join(&doors[0]);
    let [_, there] = at_both(&doors).await;
    let mut stream = there.stream("fast", "Go on").await;
    for _ in 0..5 {
        stream.data().await.expect("it streams");
    }
    let began = Instant::now();
    doors[0].manage(&["node", "revoke", "den"]);
    let revoked = began.elapsed();
    let rest = stream.collect().await;
    let cut = began.elapsed();
    assert!(rest.error().is_some(), "an error event, not a clean end");
    tests::tell(&format!(
        "revoked after {revoked:?} (the command), cut at the other proxy after {cut:?}"
    ));
    let since = cut.saturating_sub(revoked);
    assert!(
        since <= Duration::from_secs(1),
        "{since:?} after the command ended"
    );
    assert_eq!(there.ask("fast", "Hello").await.status, 503);
}

#[tokio::test]
async fn an_idle_node_is_back_shortly_after_its_proxy_was_killed_and_started_again() {
    let mut proxy = Proxy::generous().start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    proxy.remembers_its_nodes().await;
    proxy.kill();
    proxy.restart().await;
    let began = Instant::now();
    until("it serves again", SOON, || async {
        (friend.ask("fast", "Hello").await.status == 200).then_some(())
    })
    .await;
    let took = began.elapsed();
    tests::tell(&format!("back {took:?} after the proxy answered again"));
    assert!(took <= Duration::from_millis(1_500), "{took:?}");
}

#[tokio::test]
async fn the_doctor_says_what_works_and_what_does_not_and_what_to_do() {
    let mut proxy = Proxy::start().await;
    let mut home = Node::named("den").tier("fast").prepare();
    let (code, said) = home.typed(&["doctor"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("FAIL") && said.contains("hearth-node join"),
        "{said}"
    );

    home.join(&proxy.invite());
    let (code, said) = home.typed(&["doctor"]);
    assert_eq!(
        code,
        Some(0),
        "the machine tries it without its agent: {said}"
    );
    for what in [
        "dns",
        "mtu",
        "https",
        "clock",
        "back-end",
        "handshake",
        "round trip",
    ] {
        assert!(said.contains(what), "{what} in {said}");
    }
    home.restart();
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let said = until("all is well", SOON, || async {
        let (code, said) = home.typed(&["doctor"]);
        (code == Some(0) && !said.contains("warn")).then_some(said)
    })
    .await;
    assert!(said.contains("ms inside the tunnel"), "{said}");
    until("the node's bytes are counted", SOON, || async {
        let received = proxy.metric("hearth_node_received_bytes_total{node=\"den\"");
        (received.await > 0.0).then_some(())
    })
    .await;

    proxy.kill();
    let (code, said) = home.typed(&["doctor"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAIL  https"), "{said}");
}
