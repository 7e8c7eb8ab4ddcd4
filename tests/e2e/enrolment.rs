//! A node gets in once, with one link, and stays the same node for ever; or it is told why not. And what is known of its tunnel afterwards.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::node::Node;
use tests::process::said;
use tests::proxy::Proxy;
use tests::wait::until;
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// Certain to be longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_join_link_works_once() {
    let proxy = Proxy::start().await;
    let link = proxy.invite();
    let den = Node::named("den").tier("fast").prepare();
    den.join(&link);

    let attic = Node::named("attic").tier("fast").prepare();
    let said = attic.join_refused(&link);

    assert!(said.contains("used"), "one clear line: {said}");
    den.join(&link); // the same identity again is no new node
    assert_eq!(
        proxy.manage(&["node", "list"]).as_array().map(Vec::len),
        Some(1)
    );
}

#[tokio::test]
async fn a_revoked_node_is_out_within_seconds() {
    let proxy = Proxy::start().await;
    let den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let id = den.registration()["node_id"]
        .as_str()
        .expect("a joined node has an id")
        .to_owned();
    proxy.manage(&["node", "revoke", &id]);

    until(
        "the revoked node answers no more",
        Duration::from_secs(5),
        || async { (friend.ask("fast", "Hello").await.status == 503).then_some(()) },
    )
    .await;
}

#[tokio::test]
async fn a_link_that_has_expired_lets_nobody_in_and_says_what_next() {
    let proxy = Proxy::start().await;
    let made = proxy.manage(&["node", "invite", "--expires", "1s"]);
    let link = made["link"].as_str().expect("a link");
    let den = Node::named("den").tier("fast").prepare();
    let end = made["expires_unix"].as_u64().expect("a date");
    until("it has expired", SOON, || async {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.is_ok_and(|now| now.as_secs() > end).then_some(())
    })
    .await;
    let said = den.join_refused(link);
    assert!(
        said.contains("expired") && said.contains("hearth-proxy node invite"),
        "what next: {said}"
    );
}

#[tokio::test]
async fn a_revoked_node_says_why_and_does_not_ask_again_and_again() {
    let proxy = Proxy::generous().tunnel("heartbeat_secs = 1").start().await;
    let den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    proxy.manage(&["node", "revoke", "den"]);
    let status = until("the agent knows", Duration::from_secs(40), || async {
        let (_, said) = den.typed(&["status"]);
        said.contains("revoked at the proxy").then_some(said)
    })
    .await;
    assert!(
        status.contains("refused") && status.contains("join with a new link"),
        "what next: {status}"
    );
    let asked = || proxy.metric("hearth_node_refusals_total{reason=\"node_revoked\"");
    let before = asked().await;
    assert!(before >= 1.0, "the reason has a name: {before}");
    // Once a minute at most: in a tenth of one it may ask once more.
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        let since = asked().await - before;
        assert!(since <= 1.0, "it asked {since} times in seconds");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (code, said) = den.typed(&["doctor"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("FAIL") && said.contains("revoked at the proxy"),
        "{said}"
    );
}

/// The tunnel of the one node, as `node list` tells it.
fn tunnel(proxy: &Proxy) -> Value {
    proxy.manage(&["node", "list"])[0]["tunnel"].clone()
}

fn words(proxy: &Proxy, arguments: &[&str]) -> String {
    let config = proxy.config().display().to_string();
    let (code, words) = said(
        "hearth-proxy",
        &[arguments, &["--config", &config]].concat(),
    );
    assert_eq!(code, Some(0), "{words}");
    words
}

#[tokio::test]
async fn lists_and_metrics_tell_how_the_tunnel_to_each_node_is_until_it_is_revoked() {
    let proxy = Proxy::generous().tunnel("heartbeat_secs = 1").start().await;
    let _den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    // Nobody asks it anything: an idle node is measured all the same.
    let told = until("all is measured", SOON, || async {
        let told = tunnel(&proxy);
        let is_whole = told["round_trip_ms"].is_number() && told["loss_percent"].is_number();
        is_whole.then_some(told)
    })
    .await;
    assert_eq!(told["carrier"], "udp", "{told}");
    assert_eq!(told["loss_percent"], 0.0, "{told}");
    assert!(told["mtu"].as_u64() >= Some(1_280), "{told}");
    assert!(told["handshake_age_secs"].as_f64() < Some(180.0), "{told}");
    assert!(told["received_bytes"].as_u64() > Some(0), "{told}");
    assert!(told["sent_bytes"].as_u64() > Some(0), "{told}");
    for end in ["back_end", "proxy_back_end"] {
        let name = told[end].as_str().unwrap_or_default();
        assert!(["netns", "embedded"].contains(&name), "{told}");
    }
    let address = told["address"].as_str().unwrap_or_default();
    assert!(address.starts_with("127.0.0.1:"), "{told}");

    let table = words(&proxy, &["node", "list"]);
    for word in ["VIA", "ROUND TRIP", "LOSS", "MTU", "BACK-END", "HANDSHAKE"] {
        assert!(table.contains(word), "{table}");
    }
    assert!(
        table.contains("UDP") && table.contains(" ms ") && table.contains("0.0 %"),
        "{table}"
    );
    let shown = words(&proxy, &["node", "show", "den"]);
    for word in ["by UDP from 127.0.0.1:", "not told", "rejected"] {
        assert_eq!(shown.contains(word), word != "not told", "{shown}");
    }

    let own = |name: &str| format!("{name}{{node=\"den\"");
    for (name, least, most) in [
        ("hearth_node_connected", 1.0, 1.0),
        ("hearth_wg_last_handshake_seconds", 0.0, 180.0),
        ("hearth_node_round_trip_seconds", 1e-6, 5.0),
        ("hearth_node_loss_ratio", 0.0, 0.0),
        ("hearth_node_carried", 0.0, 0.0),
        ("hearth_node_mtu_bytes", 1_280.0, 1_500.0),
        ("hearth_node_received_bytes_total", 1.0, 1e9),
        ("hearth_node_sent_bytes_total", 1.0, 1e9),
    ] {
        let value = proxy.metric(&own(name)).await;
        assert!((least..=most).contains(&value), "{name} {value}");
    }
    assert!(proxy.metric("hearth_tunnel_back_end{").await > 0.5);

    let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let rejected = "hearth_tunnel_rejected_packets_total{reason=\"malformed\"}";
    until("what belongs to nobody is counted", SOON, || async {
        stranger
            .send_to(b"nonsense", proxy.hub())
            .await
            .expect("it is sent");
        (proxy.metric(rejected).await >= 1.0).then_some(())
    })
    .await;

    proxy.manage(&["node", "revoke", "den"]);
    until("its series are gone", SOON, || async {
        let page = proxy.admin("/metrics").await.body;
        (!page.contains("node=\"den\"")).then_some(())
    })
    .await;
    assert_eq!(tunnel(&proxy), Value::Null);
}
