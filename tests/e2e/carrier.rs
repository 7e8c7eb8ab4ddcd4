//! Networks that let no UDP through: the tunnel goes over HTTPS, streams live on, and UDP is used again once it works.

use std::time::{Duration, Instant};

use tests::node::{Node, slow};
use tests::process::free_udp_port;
use tests::proxy::Proxy;
use tests::shaper::{Shaper, Weather};
use tests::wait::until;

/// Certain to be longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);
/// Back to UDP within a minute of its working.
const BACK_MAX: Duration = Duration::from_mins(1);
/// A node is there this long after its start, models and all.
const START_MAX: Duration = Duration::from_secs(15);

/// A proxy that nodes reach by UDP through a path with weather, and the port that the node sends from.
async fn house() -> (Proxy, Shaper, u16) {
    let (outside, node) = (free_udp_port(), free_udp_port());
    let proxy = Proxy::generous()
        .tunnel(&format!("endpoint = \"127.0.0.1:{outside}\""))
        .tunnel("heartbeat_secs = 1")
        .start()
        .await;
    let shaper = Shaper::start(outside, proxy.hub(), 7).await;
    (proxy, shaper, node)
}

async fn is_carried(proxy: &Proxy) -> bool {
    proxy.metric("hearth_node_carried{node=\"den\"").await > 0.5
}

#[tokio::test]
async fn a_node_without_udp_serves_over_https_and_moves_to_udp_when_that_works() {
    let (proxy, shaper, port) = house().await;
    shaper.set(port, Weather::CUT);
    let began = Instant::now();
    let home = Node::named("den")
        .setting(&format!("bind = \"127.0.0.1:{port}\""))
        .tier_from("fast", &slow(100, 20), 4)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let took = began.elapsed();
    assert!(took < START_MAX, "{took:?}");
    let told = friend.stream("fast", "Go on").await.collect().await;
    assert!(told.error().is_none(), "{:?}", told.error());
    assert_eq!(told.text.matches("word").count(), 100, "every word");
    until("the proxy counts the carrier", SOON, || async {
        is_carried(&proxy).await.then_some(())
    })
    .await;
    let (_, said) = home.typed(&["status"]);
    assert!(said.contains("over HTTPS"), "{said}");
    let (_, said) = home.typed(&["doctor"]);
    assert!(said.contains("UDP does not get through"), "{said}");

    shaper.set(port, Weather::CLEAR);
    let began = Instant::now();
    let told = until("UDP is used", BACK_MAX, || async {
        let told = friend.stream("fast", "Go on").await.collect().await;
        assert!(told.error().is_none(), "{:?}", told.error());
        (!is_carried(&proxy).await).then_some(told)
    })
    .await;
    assert_eq!(told.text.matches("word").count(), 100, "every word");
    tests::tell(&format!(
        "served over HTTPS {took:?} after its start, by UDP {:?} after that worked",
        began.elapsed()
    ));
    assert!(proxy.metric("hearth_node_mtu_bytes{node=\"den\"").await >= 1_280.0);
}

#[tokio::test]
async fn udp_that_stops_in_the_middle_of_a_stream_costs_seconds_and_the_node_serves_on() {
    let (proxy, shaper, port) = house().await;
    let _home = Node::named("den")
        .setting(&format!("bind = \"127.0.0.1:{port}\""))
        .tier_from("fast", &slow(400, 20), 4)
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let mut stream = friend.stream("fast", "Go on").await;
    for _ in 0..20 {
        stream.data().await.expect("it streams");
    }
    shaper.set(port, Weather::CUT);
    let began = Instant::now();
    // A node that gives no sign of life loses its streams to a twin, and there is none: whatever is asked next must be served.
    let rest = stream.collect().await;
    until("it serves over HTTPS", SOON, || async {
        let reply = friend.ask("fast", "Hello").await;
        (reply.status == 200 && is_carried(&proxy).await).then_some(())
    })
    .await;
    tests::tell(&format!(
        "UDP cut in a stream: {} of 400 words, served over HTTPS {:?} later",
        20 + rest.text.matches("word").count(),
        began.elapsed()
    ));
}

#[tokio::test]
async fn only_nodes_open_carriers() {
    let proxy = Proxy::start().await;
    let friend = proxy.friend();
    let reply = friend.get("/v1/nodes/carrier").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (426, "carrier_upgrade_required")
    );
}
