//! Going away without failing anybody: a node that is drained or stopped, a model that is changed, a proxy that is replaced by its next
//! version; each under load, streams included, and nobody sees an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::client::Client;
use tests::node::{Node, slow};
use tests::proxy::Proxy;
use tests::redis::Redis;
use tests::wait::until;
use tokio::task::JoinSet;

/// Both proxies of a house were away for two seconds and more.
const REFUSALS_MAX: usize = 50;

/// People who ask one thing after the other, every second one without a stream.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    people: JoinSet<Vec<String>>,
}

impl Load {
    fn of(proxy: &Proxy, people: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut all = JoinSet::new();
        for number in 0..people {
            let client = proxy.friend_of(&format!("person-{number}"));
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            all.spawn(person(client, number, stop, answered));
        }
        Self {
            stop,
            answered,
            people: all,
        }
    }

    /// People who know both doors of a house.
    fn of_house(doors: &[Proxy; 2], people: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let mut all = JoinSet::new();
        for number in 0..people {
            let made = doors[0].manage(&["key", "create", "--name", &format!("citizen-{number}")]);
            let key = made["key"].as_str().expect("a key");
            let known = doors
                .each_ref()
                .map(|door| door.stranger().with_bearer(key));
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            all.spawn(citizen(known, number, stop, answered));
        }
        Self {
            stop,
            answered,
            people: all,
        }
    }

    /// Waits until so many more answers came.
    async fn goes_on(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        until("people are answered", Duration::from_mins(1), || async {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// Everybody is answered to the end: how many were, and what failed.
    async fn ends(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        while let Some(person) = self.people.join_next().await {
            failed.extend(person.expect("a person does not panic"));
        }
        (self.answered.load(Ordering::Relaxed), failed)
    }
}

async fn person(
    client: Client,
    number: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failed = Vec::new();
    let mut turn = number;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let failure = if turn.is_multiple_of(2) {
            let reply = client.ask("fast", "Talk.").await;
            (reply.status != 200).then(|| format!("status {}", reply.status))
        } else {
            let stream = client.stream("fast", "Talk.").await;
            let transcript = stream.collect().await;
            let whole = transcript.done && transcript.finish_reason().is_some();
            (!whole).then(|| format!("a stream ended with {:?}", transcript.chunks.last()))
        };
        failed.extend(failure);
        answered.fetch_add(1, Ordering::Relaxed);
    }
    failed
}

/// Somebody who knows both proxies of a house, and asks the other one where one refuses or hangs up before it has said anything.
async fn citizen(
    doors: [Client; 2],
    number: usize,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) -> Vec<String> {
    let mut failed = Vec::new();
    let (mut door, mut turn, mut refused) = (number % 2, number, 0);
    while !stop.load(Ordering::Relaxed) {
        let streams = turn.is_multiple_of(2);
        let body = json!({
            "model": "fast",
            "messages": [{"role": "user", "content": "Talk."}],
            "temperature": 0,
            "stream": streams,
        });
        let Some(stream) = doors[door].try_stream(body).await else {
            door = 1 - door;
            refused += 1;
            if refused > REFUSALS_MAX {
                failed.push("nobody is there".to_owned());
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (status, text) = (stream.status, stream.rest().await);
        // A second without a processor is long for a Redis that is asked for an answer within one: that says so, and is no part of this.
        if status == 503 && text.contains("store_unavailable") {
            door = 1 - door;
            continue;
        }
        let is_whole = if streams {
            text.ends_with("data: [DONE]\n\n") && text.contains("\"finish_reason\":\"")
        } else {
            let answer: Value = serde_json::from_str(&text).unwrap_or_default();
            answer["choices"][0]["finish_reason"].is_string()
        };
        if status != 200 || !is_whole {
            failed.push(format!("status {status}: {text}"));
        }
        refused = 0;
        turn += 1;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    failed
}

fn talker(name: &str) -> tests::node::Builder {
    Node::named(name).tier_from("fast", &slow(10, 15), 8)
}

async fn two_nodes() -> (Proxy, Node, Node) {
    let proxy = Proxy::generous().start().await;
    let den = talker("den").join(&proxy);
    let loft = talker("loft").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    until("both are there", Duration::from_secs(20), || async {
        (proxy.metric("hearth_nodes_ready").await >= 2.0).then_some(())
    })
    .await;
    (proxy, den, loft)
}

#[tokio::test]
async fn a_drained_node_fails_nobody_and_gets_work_again_when_it_is_told() {
    let (mut proxy, den, loft) = two_nodes().await;
    let load = Load::of(&proxy, 6);
    load.goes_on(12).await;

    let told = proxy.manage(&["node", "drain", "den"]);
    assert_eq!(told["draining"], true);
    load.goes_on(6).await;
    until(
        "what ran there has ended",
        Duration::from_secs(20),
        || async { (den.metric("hearth_node_slots_busy").await == Some(0.0)).then_some(()) },
    )
    .await;
    let before = den.metric("hearth_node_requests_total").await;
    load.goes_on(12).await;
    assert_eq!(
        den.metric("hearth_node_requests_total").await,
        before,
        "no new work"
    );
    assert!(loft.metric("hearth_node_requests_total").await.is_some());
    let (answered, failed) = load.ends().await;
    assert!(failed.is_empty(), "{answered} answered, failed: {failed:?}");

    // It is remembered.
    proxy.kill();
    proxy.restart().await;
    let list = proxy.manage(&["node", "list"]);
    let drained = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|node| node["name"] == "den");
    assert_eq!(drained.map(|node| &node["draining"]), Some(&true.into()));
    proxy.serves(&proxy.friend(), &["fast"]).await;
    proxy.manage(&["node", "undrain", "den"]);
    drop(loft);
    until(
        "the other one answers again",
        Duration::from_secs(30),
        || async { (proxy.friend().ask("fast", "Hello").await.status == 200).then_some(()) },
    )
    .await;
}

#[tokio::test]
async fn a_node_that_is_stopped_fails_nobody() {
    let (proxy, mut den, _loft) = two_nodes().await;
    let load = Load::of(&proxy, 6);
    load.goes_on(12).await;

    den.process().signal("TERM");
    let status = den.process().ended(Duration::from_secs(20)).await;

    assert!(status.success(), "{status}");
    load.goes_on(12).await;
    let (answered, failed) = load.ends().await;
    tests::tell(&format!("answered={answered} failed={}", failed.len()));
    assert!(failed.is_empty(), "{answered} answered, failed: {failed:?}");
}

#[tokio::test]
async fn a_proxy_that_is_replaced_fails_nobody() {
    let (mut proxy, _den, _loft) = two_nodes().await;
    let load = Load::of(&proxy, 6);
    load.goes_on(12).await;

    let mut old = proxy.upgrade();
    let status = old.ended(Duration::from_secs(40)).await;

    assert!(status.success(), "{status}");
    load.goes_on(24).await;
    let (answered, failed) = load.ends().await;
    tests::tell(&format!("answered={answered} failed={}", failed.len()));
    assert!(failed.is_empty(), "{answered} answered, failed: {failed:?}");
}

/// A new version for a whole house: first one proxy is stopped and started, then the other one is replaced while it runs.
#[tokio::test]
async fn a_house_whose_proxies_are_replaced_one_after_the_other_fails_nobody() {
    let redis = Redis::start().await;
    let build = || {
        Proxy::generous()
            .counting_in(&redis)
            .tunnel("heartbeat_secs = 1")
            .start()
    };
    let mut doors = [build().await, build().await];
    let den = talker("den").join(&doors[0]);
    let loft = talker("loft").join(&doors[1]);
    both_at_both(&doors).await;
    let load = Load::of_house(&doors, 6);
    load.goes_on(12).await;

    doors[0].process().signal("TERM");
    let status = doors[0].process().ended(Duration::from_secs(40)).await;
    assert!(status.success(), "{status}");
    load.goes_on(12).await;
    doors[0].restart().await;
    both_at_both(&doors).await;
    load.goes_on(12).await;

    let mut old = doors[1].upgrade();
    let status = old.ended(Duration::from_secs(40)).await;
    assert!(status.success(), "{status}");
    load.goes_on(12).await;
    both_at_both(&doors).await;
    load.goes_on(12).await;

    let (answered, failed) = load.ends().await;
    tests::tell(&format!("answered={answered} failed={}", failed.len()));
    assert!(failed.is_empty(), "{answered} answered, failed: {failed:?}");
    for home in [&den, &loft] {
        let (_, said) = home.typed(&["status"]);
        assert_eq!(said.matches(" connected, ").count(), 2, "{said}");
    }
}

/// Waits until both nodes serve through both proxies.
async fn both_at_both(doors: &[Proxy; 2]) {
    for door in doors {
        until("both are there", Duration::from_secs(40), || async {
            let ready = door.try_metric("hearth_nodes_ready").await?;
            (ready >= 2.0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_model_that_is_changed_fails_nobody() {
    let proxy = Proxy::generous().start().await;
    let mut den = talker("den").join(&proxy);
    proxy.serves(&proxy.friend(), &["fast"]).await;
    let load = Load::of(&proxy, 4);
    load.goes_on(8).await;

    for words in [6, 8] {
        den.replace_tier("fast", &slow(words, 15));
        den.process().signal("HUP");
        load.goes_on(16).await;
    }

    let (answered, failed) = load.ends().await;
    tests::tell(&format!("answered={answered} failed={}", failed.len()));
    assert!(failed.is_empty(), "{answered} answered, failed: {failed:?}");
}
