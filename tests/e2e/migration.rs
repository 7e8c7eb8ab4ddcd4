//! A machine dies, stalls or goes home in the middle of an answer: another one goes on with it, token for token, and the client sees
//! one stream.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{Client, Stream, Transcript};
use tests::node::{Builder, Node};
use tests::process;
use tests::proxy::{self, Proxy};
use tests::wait::until;

const NAMES: [&str; 2] = ["attic", "den"];

/// Three quarters of a second until a silent node is believed gone, and the rest for a busy machine.
const GAP_MAX: Duration = Duration::from_secs(4);

/// Tokens of an answer that is broken after a few: a fast machine makes three of them in a millisecond, and a signal takes some.
const LONG: u64 = 1_000;

fn long(extra: &Value) -> Value {
    let mut body = json!({
        "model": "fast",
        "messages": [{"role": "user", "content": "Tell me a long story of the sea."}],
        "temperature": 0.8,
        "seed": 7,
        "max_tokens": LONG,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

async fn whole(friend: &Client, body: &Value) -> Transcript {
    let transcript = friend.stream_body(body.clone()).await.collect().await;
    assert!(
        transcript.finish_reason().is_some(),
        "{:?}",
        transcript.error()
    );
    transcript
}

/// Two nodes with the same model.
struct House {
    proxy: Proxy,
    nodes: [Node; 2],
    friend: Client,
}

impl House {
    async fn of_twins(proxy: proxy::Builder, tune: impl Fn(Builder) -> Builder) -> Self {
        let proxy = proxy.start().await;
        let nodes = NAMES.map(|name| tune(Node::named(name)).tier("fast").join(&proxy));
        let friend = proxy.friend();
        let house = Self {
            proxy,
            nodes,
            friend,
        };
        house.is_whole().await;
        house
    }

    async fn is_whole(&self) {
        self.proxy.serves(&self.friend, &["fast"]).await;
        until("both nodes serve", Duration::from_secs(30), || async {
            (self.proxy.metric("hearth_nodes_ready").await >= 2.0).then_some(())
        })
        .await;
    }

    /// Begins an answer and reads so many chunks of it; says who is at work on it.
    async fn begin(&self, body: &Value, chunks: usize) -> (Stream, usize) {
        let (stream, node) = begin(&self.friend, body, chunks).await;
        let at_work = NAMES.iter().position(|name| *name == node);
        (stream, at_work.expect("one of the two"))
    }

    async fn migrations(&self) -> f64 {
        self.proxy.metric("hearth_migrations_total").await
    }
}

async fn begin(friend: &Client, body: &Value, chunks: usize) -> (Stream, String) {
    let mut stream = friend.stream_body(body.clone()).await;
    let node = stream.headers["x-routing-node"].to_str();
    let node = node.expect("a name").to_owned();
    let mut begun = Vec::new();
    for _ in 0..chunks {
        begun.push(stream.data().await.expect("the stream goes on"));
    }
    stream.unread(begun);
    (stream, node)
}

/// Reads to the end; says how long nothing came at most.
async fn gap(mut stream: Stream) -> (Transcript, Duration) {
    let (mut events, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    while let Some(event) = stream.data().await {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        events.push(event);
    }
    stream.unread(events);
    (stream.collect().await, longest)
}

fn assert_same(transcript: &Transcript, unbroken: &Transcript) {
    assert!(transcript.error().is_none(), "{:?}", transcript.error());
    assert_eq!(transcript.text, unbroken.text);
    assert_eq!(transcript.finish_reason(), unbroken.finish_reason());
    for name in ["completion_tokens", "prompt_tokens"] {
        assert_eq!(transcript.usage()[name], unbroken.usage()[name], "{name}");
    }
    assert!(transcript.done);
    let constant = |chunk: &Value| (chunk["id"].clone(), chunk["created"].clone());
    let first = constant(&transcript.chunks[0]);
    let mut chunks = transcript.chunks.iter();
    assert!(chunks.all(|chunk| constant(chunk) == first));
    let begins = |chunk: &&Value| chunk["choices"][0]["delta"]["role"] == "assistant";
    let roles = transcript.chunks.iter().filter(begins);
    assert_eq!(roles.count(), 1, "the answer begins once");
}

#[tokio::test]
async fn an_answer_goes_on_where_a_killed_node_stopped() {
    let mut house = House::of_twins(Proxy::generous(), |node| node).await;
    let body = long(&json!({}));
    let unbroken = whole(&house.friend, &body).await;

    let (stream, at_work) = house.begin(&body, 10).await;
    house.nodes[at_work].kill();
    let transcript = stream.collect().await;

    assert_same(&transcript, &unbroken);
    let (dead, other) = (NAMES[at_work], NAMES[1 - at_work]);
    assert_eq!(transcript.routing()["node"], other);
    assert_eq!(
        transcript.routing()["attempts"],
        json!([
            {"tier": "fast", "node": dead, "outcome": "broken"},
            {"tier": "fast", "node": other, "outcome": "ok"},
        ])
    );
    assert!(house.migrations().await >= 1.0);
}

#[tokio::test]
async fn a_greedy_answer_is_the_same_wherever_its_node_is_killed() {
    let mut house = House::of_twins(Proxy::generous(), |node| node).await;
    let body = long(&json!({"temperature": 0}));
    let unbroken = whole(&house.friend, &body).await;
    for chunks in [1, 2, 5, 30, 90] {
        let (stream, at_work) = house.begin(&body, chunks).await;
        house.nodes[at_work].kill();
        let (transcript, gap) = gap(stream).await;
        assert_same(&transcript, &unbroken);
        assert!(gap < GAP_MAX, "{gap:?}");
        house.nodes[at_work].restart();
        house.is_whole().await;
    }
    assert!(house.migrations().await >= 3.0);
}

#[tokio::test]
async fn a_node_that_stands_still_is_left_for_its_twin() {
    let mut house = House::of_twins(Proxy::generous(), |node| node).await;
    let body = long(&json!({}));
    let unbroken = whole(&house.friend, &body).await;

    let (stream, at_work) = house.begin(&body, 5).await;
    house.nodes[at_work].process().signal("STOP");
    let (transcript, gap) = gap(stream).await;

    assert_same(&transcript, &unbroken);
    assert!(gap < GAP_MAX, "{gap:?}");
    assert_eq!(transcript.routing()["attempts"][0]["outcome"], "broken");
    assert!(house.migrations().await >= 1.0);
}

#[tokio::test]
async fn a_node_that_goes_home_leaves_its_answers_to_its_twin() {
    let at_once = |node: Builder| node.setting("grace_secs = 0");
    let mut house = House::of_twins(Proxy::generous(), at_once).await;
    let body = long(&json!({}));
    let unbroken = whole(&house.friend, &body).await;

    let (stream, at_work) = house.begin(&body, 5).await;
    house.nodes[at_work].process().signal("TERM");
    let transcript = stream.collect().await;

    assert_same(&transcript, &unbroken);
    assert!(house.migrations().await >= 1.0);
    let ended = house.nodes[at_work]
        .process()
        .ended(Duration::from_secs(10));
    assert!(ended.await.success());
}

#[tokio::test]
async fn the_only_node_goes_on_with_its_answer_when_its_worker_is_back() {
    let proxy = Proxy::start().await;
    let mut den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let body = long(&json!({}));
    let unbroken = whole(&friend, &body).await;

    let (stream, _) = begin(&friend, &body, 5).await;
    let workers = den.process().workers();
    assert_eq!(workers.len(), 1, "one tier, one worker");
    process::send("KILL", workers[0]);
    let transcript = stream.collect().await;

    assert_same(&transcript, &unbroken);
    assert!(proxy.metric("hearth_migrations_total").await >= 1.0);
}
