//! Machines that lose their power: what waits for them ends in time, what was pooled is dropped, and they are back soon after they are.

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tests::node::{Node, slow};
use tests::process::free_udp_port;
use tests::proxy::{HOME, NEW_HOME, Proxy};
use tests::shaper::{Shaper, Weather};
use tests::wait::until;

/// Certain to be longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);
/// Connections that the proxy keeps to a node.
const POOLED: usize = 200;
/// A machine without power is noticed, and whatever waited for it has an answer.
const NOTICED_MAX: Duration = Duration::from_secs(10);
/// A machine that starts again serves again.
const BACK_MAX: Duration = Duration::from_secs(3);
/// A house that has moved is found when the old one has been silent for ten seconds at the latest.
const MOVED_MAX: Duration = Duration::from_secs(15);
/// The name of a house.
const NAME: &str = "house.hearth.test";

#[tokio::test]
async fn a_machine_that_loses_its_power_with_200_pooled_connections_costs_nobody_his_deadline() {
    let (outside, port) = (free_udp_port(), free_udp_port());
    let proxy = Proxy::generous()
        .tunnel(&format!("endpoint = \"127.0.0.1:{outside}\""))
        .tunnel("heartbeat_secs = 1")
        .tunnel("silent_after_secs = 5")
        .routing(&format!("pool_max = {POOLED}"))
        .start()
        .await;
    let shaper = Shaper::start(outside, proxy.hub(), 11).await;
    // Over HTTPS it would be back at once: this machine has no power at all.
    let _attic = Node::named("attic")
        .setting(&format!("bind = \"127.0.0.1:{port}\""))
        .section("[tunnel]\ncarrier = false")
        .tier_with("heavy", &slow(2, 100), 64, &format!("queue_max = {POOLED}"))
        .join(&proxy);
    let _den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "heavy"]).await;
    let asked = |count: usize| {
        let asks = (0..count).map(|_| async {
            let began = Instant::now();
            let reply = friend.ask("heavy", "Hello").await;
            (reply, began.elapsed())
        });
        join_all(asks)
    };
    let warm = asked(POOLED).await;
    assert!(warm.iter().all(|(reply, _)| reply.status == 200));

    shaper.set(port, Weather::CUT);
    let cut = Instant::now();
    let late = asked(50).await;
    let slowest = late.iter().map(|(_, took)| *took).max();
    let slowest = slowest.expect("there are answers");
    for (reply, took) in &late {
        assert_eq!(reply.status, 200, "after {took:?}: {}", reply.body);
        assert_eq!(reply.routing()["fallback"], "heavy->fast");
    }
    assert!(slowest < NOTICED_MAX, "{slowest:?}");
    until("it is out of the table", SOON, || async {
        (proxy.metric("hearth_nodes_ready").await < 1.5).then_some(())
    })
    .await;
    let noticed = cut.elapsed();
    assert!(noticed < NOTICED_MAX, "{noticed:?}");

    shaper.set(port, Weather::CLEAR);
    let clear = Instant::now();
    until("it serves again", SOON, || async {
        let reply = friend.ask("heavy", "Hello").await;
        (reply.status == 200 && reply.routing()["fallback"].is_null()).then_some(())
    })
    .await;
    tests::tell(&format!(
        "{POOLED} pooled connections to a machine without power: of 50 requests each was answered elsewhere, the last after {slowest:?}; \
         it serves {:?} after its power is back",
        clear.elapsed()
    ));
}

#[tokio::test]
async fn a_node_that_is_killed_in_a_stream_serves_again_soon_after_its_start() {
    let proxy = Proxy::generous()
        .routing("migration_patience_secs = 1")
        .start()
        .await;
    let mut attic = Node::named("attic")
        .tier_from("heavy", &slow(400, 20), 4)
        .join(&proxy);
    let _den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast", "heavy"]).await;
    let mut stream = friend.stream("heavy", "Go on").await;
    for _ in 0..5 {
        stream.data().await.expect("it streams");
    }
    attic.kill();
    let killed = Instant::now();
    let reply = friend.ask("heavy", "Hello").await;
    assert_eq!(
        (reply.status, reply.routing()["fallback"].as_str()),
        (200, Some("heavy->fast"))
    );
    let elsewhere = killed.elapsed();
    let rest = stream.collect().await;
    assert!(rest.error().is_some(), "nobody can go on with it");

    attic.replace_tier("heavy", &slow(2, 1));
    attic.restart();
    let began = Instant::now();
    until("it serves again", SOON, || async {
        let reply = friend.ask("heavy", "Hello").await;
        (reply.status == 200 && reply.routing()["fallback"].is_null()).then_some(())
    })
    .await;
    let took = began.elapsed();
    tests::tell(&format!(
        "a node killed in a stream: the next request elsewhere after {elsewhere:?}, served there again {took:?} after its start"
    ));
    assert!(took <= BACK_MAX, "{took:?}");
}

#[tokio::test]
async fn a_proxy_that_is_killed_in_a_stream_finds_its_node_again_and_the_node_stops_for_nobody() {
    let mut proxy = Proxy::generous().start().await;
    let den = Node::named("den")
        .tier_from("fast", &slow(1_000, 20), 4)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    proxy.remembers_its_nodes().await;
    let mut stream = friend.stream("fast", "Go on").await;
    for _ in 0..5 {
        stream.data().await.expect("it streams");
    }
    proxy.kill();
    let rest = stream.collect().await;
    assert!(
        rest.finish_reason().is_none(),
        "a cut answer never looks complete"
    );
    proxy.restart().await;
    let began = Instant::now();
    let one = json!({
        "model": "fast", "messages": [{"role": "user", "content": "Go on"}], "max_tokens": 1,
    });
    until("it answers again", SOON, || async {
        (friend.complete(one.clone()).await.status == 200).then_some(())
    })
    .await;
    let took = began.elapsed();
    tests::tell(&format!(
        "a proxy killed in a stream: its node answers again {took:?} after the proxy answers"
    ));
    assert!(took <= Duration::from_millis(1_500), "{took:?}");
    until("the answer that nobody reads is over", SOON, || async {
        (den.metric("hearth_node_slots_busy").await == Some(0.0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_house_that_only_ipv6_reaches_is_joined_without_a_setting() {
    let proxy = Proxy::generous().at("[::1]").start().await;
    let den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    assert_eq!(friend.ask("fast", "Hello").await.status, 200);
    let shown = proxy.manage(&["node", "show", "den"]);
    assert_eq!(shown["tunnel"]["carrier"], "udp", "{shown}");
    drop(den);
}

/// Whether a program may have an `/etc/hosts` of its own here.
fn gives_names_of_its_own() -> bool {
    let probe = Command::new("unshare")
        .args(["--map-root-user", "--mount", "true"])
        .status();
    let gives = probe.is_ok_and(|status| status.success());
    assert!(
        gives || std::env::var_os("HEARTH_NAMESPACES").is_none(),
        "this machine gives namespaces"
    );
    gives
}

#[tokio::test]
async fn a_house_whose_name_leads_to_another_address_is_found_there() {
    if !gives_names_of_its_own() {
        return;
    }
    let names = tempfile::NamedTempFile::new().expect("a file can be made");
    // Written in place: the node sees this very file.
    let lead_to = |address: &str| {
        let line = format!("{address} {NAME}\n");
        std::fs::write(names.path(), line).expect("a name can be written");
    };
    lead_to(HOME);
    let mut proxy = Proxy::generous().known_as(NAME).start().await;
    let _den = Node::named("den")
        .knowing(names.path())
        .tier("fast")
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    proxy.remembers_its_nodes().await;

    proxy.move_house().await;
    let friend = proxy.friend();
    lead_to(NEW_HOME);
    let began = Instant::now();
    until("it serves there", SOON, || async {
        (friend.ask("fast", "Hello").await.status == 200).then_some(())
    })
    .await;
    let took = began.elapsed();
    tests::tell(&format!(
        "a house that moved answers {took:?} after its name leads there"
    ));
    assert!(took <= MOVED_MAX, "{took:?}");
}
