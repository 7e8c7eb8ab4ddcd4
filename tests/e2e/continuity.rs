//! What somebody has while others keep a house busy, what a client is told while it waits, how soon a node stops for somebody who has
//! left, and who goes on where nobody has the same model.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::Client;
use tests::node::{Node, slow};
use tests::proxy::Proxy;
use tests::wait::until;

fn story(model: &str, max_tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a long story of the sea."}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": true,
        "stream": true,
    })
}

/// A tier of the tiny model with its own number of slots and places in the queue.
fn tier(tier: &str, slots: u32, queue_max: u32) -> String {
    let file = tests::node::model(tier);
    format!(
        "[[tiers]]\ntier = \"{tier}\"\nmodel = '{}'\nslots = {slots}\nqueue_max = {queue_max}",
        file.display()
    )
}

/// Until the first token, and until the end.
async fn times(friend: &Client, body: &Value) -> (Duration, Duration) {
    let began = Instant::now();
    let mut stream = friend.stream_body(body.clone()).await;
    let mut first = None;
    while let Some(data) = stream.data().await {
        if data.contains("\"content\":\"") && !data.contains("\"content\":\"\"") {
            first.get_or_insert_with(|| began.elapsed());
        }
    }
    (first.expect("it said something"), began.elapsed())
}

/// A hundred long answers of one person, real tunnel, real worker, one slot: another one's first token comes after one of them at most.
#[tokio::test]
async fn a_hundred_long_answers_of_one_delay_another_by_at_most_one() {
    let proxy = Proxy::generous()
        .routing("queue_max = 200")
        .routing("queue_wait_secs = 300")
        .start()
        .await;
    let _den = Node::named("den").section(&tier("fast", 1, 8)).join(&proxy);
    let (ada, ben) = (proxy.friend_of("ada"), proxy.friend_of("ben"));
    proxy.serves(&ben, &["fast"]).await;
    let (alone, _) = times(&ben, &story("fast", 4)).await;

    let (told, mut ends) = tokio::sync::mpsc::channel(100);
    let mut asking = Vec::new();
    for _job in 0..100 {
        let (ada, told) = (ada.clone(), told.clone());
        asking.push(tokio::spawn(async move {
            let ended = ada.stream_body(story("fast", 200)).await.collect().await;
            assert!(ended.done, "{:?}", ended.error());
            told.send(Instant::now()).await.ok();
        }));
    }
    // As many of them end as it takes to know how long one takes while all of them wait.
    let mut last = ends.recv().await.expect("one ends");
    let mut service = Duration::ZERO;
    let mut waits = Vec::new();
    for _turn in 0..4 {
        let short = story("fast", 4);
        let asked = times(&ben, &short);
        tokio::pin!(asked);
        let (first, _) = loop {
            tokio::select! {
                took = &mut asked => break took,
                Some(end) = ends.recv() => {
                    service = service.max(end - last);
                    last = end;
                }
            }
        };
        waits.push(first);
        let end = ends.recv().await.expect("another ends");
        service = service.max(end - last);
        last = end;
    }
    let worst = waits.iter().max().copied().expect("four");
    tests::tell(&format!(
        "alone {alone:?}, behind a hundred {waits:?}, one of them takes {service:?}"
    ));
    assert!(
        worst <= service + alone + Duration::from_millis(500),
        "{waits:?} against {service:?}"
    );
    for task in asking {
        task.abort();
    }
}

#[tokio::test]
async fn whoever_waits_is_told_its_place_in_comments() {
    let proxy = Proxy::generous()
        .routing("commit_after_ms = 200")
        .routing("keepalive_secs = 1")
        .start()
        .await;
    let _den = Node::named("den")
        .tier_from("fast", &slow(60, 100), 1)
        .join(&proxy);
    let (ada, ben) = (proxy.friend_of("ada"), proxy.friend_of("ben"));
    proxy.serves(&ben, &["fast"]).await;
    let mut running = ada.stream_body(story("fast", 100)).await;
    running.data().await.expect("it begins");

    let mut waiting = ben.stream_body(story("fast", 1)).await;
    let told = waiting.text_until(": keep-alive queue 0\n\n").await;
    assert!(told.starts_with(": keep-alive"), "{told}");
    // Its turn comes when the other one is gone.
    drop(running);
    let text = waiting.rest().await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

/// So long the only slot of a node is at work after somebody has left.
async fn until_free(node: &Node) -> Duration {
    let left = Instant::now();
    while node.metric("hearth_node_slots_busy").await != Some(0.0) {
        assert!(left.elapsed() < Duration::from_secs(10), "it never stops");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    left.elapsed()
}

/// Leaves a stream after so many chunks.
async fn leave_stream(friend: &Client, node: &Node, chunks: usize) -> Duration {
    let mut stream = friend.stream_body(story("fast", 1_500)).await;
    for _chunk in 0..chunks {
        stream.data().await.expect("it goes on");
    }
    drop(stream);
    until_free(node).await
}

/// Leaves a whole answer so long after the node has begun with it; `None`: it was done before.
async fn leave_whole(friend: &Client, node: &Node, after: Duration) -> Option<Duration> {
    let mut body = story("fast", 1_500);
    body["stream"] = false.into();
    let asking = tokio::spawn({
        let friend = friend.clone();
        async move { friend.complete(body).await }
    });
    until("it is at work", Duration::from_secs(10), || async {
        let is_busy = node.metric("hearth_node_slots_busy").await == Some(1.0);
        (is_busy || asking.is_finished()).then_some(())
    })
    .await;
    tokio::time::sleep(after).await;
    if asking.is_finished() {
        return None;
    }
    asking.abort();
    Some(until_free(node).await)
}

/// Each moment is tried again while others have the processors: what never comes within the bound does not come.
#[tokio::test]
async fn a_node_stops_for_whoever_has_left_at_any_moment() {
    const BOUND: Duration = Duration::from_millis(100);
    const TRIES: usize = 6;
    let proxy = Proxy::start().await;
    let den = Node::named("den").section(&tier("fast", 1, 8)).join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let mut took = Vec::new();
    for chunks in [1, 2, 7, 19, 40] {
        let mut best = Duration::MAX;
        for _try in 0..TRIES {
            best = best.min(leave_stream(&friend, &den, chunks).await);
            if best < BOUND {
                break;
            }
        }
        assert!(best < BOUND, "{best:?} after {chunks} chunks");
        took.push(best);
    }
    for moment in [0, 5, 40, 150] {
        let mut best = Duration::MAX;
        for _try in 0..TRIES {
            let left = leave_whole(&friend, &den, Duration::from_millis(moment)).await;
            best = best.min(left.unwrap_or(Duration::MAX));
            if best < BOUND {
                break;
            }
        }
        // A fast machine may be done before the last moment comes, and nobody leaves it then.
        let is_done = best == Duration::MAX && moment > 100;
        assert!(best < BOUND || is_done, "{best:?} after {moment} ms");
        took.push(best);
    }
    tests::tell(&format!(
        "stopped after {took:?}: five streams, four whole answers"
    ));
}

#[tokio::test]
async fn another_model_goes_on_from_the_text_and_the_answer_says_so() {
    let proxy = Proxy::start().await;
    // Slow enough to be killed in the middle on any machine.
    let mut attic = Node::named("attic")
        .tier_from("primary", &slow(400, 10), 2)
        .join(&proxy);
    let _den = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["primary", "fast"]).await;
    let mut body = story("primary", 200);
    body["hearth"] = json!({"continue_with": "text"});
    body["stream_options"] = json!({"include_usage": true});

    let mut stream = friend.stream_body(body).await;
    let mut begun = Vec::new();
    for _chunk in 0..8 {
        begun.push(stream.data().await.expect("it goes on"));
    }
    let told: Vec<Value> = begun
        .iter()
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let told: String = told
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    stream.unread(begun);
    attic.kill();
    let transcript = stream.collect().await;

    assert!(transcript.done, "{:?}", transcript.error());
    assert!(transcript.text.starts_with(&told) && transcript.text.len() > told.len());
    let routing = transcript.routing();
    let continued = &routing["continued"][0];
    assert_eq!(
        (&continued["from"], &continued["to"], &continued["how"]),
        (&json!("attic"), &json!("den"), &json!("text")),
        "{routing}"
    );
    assert_eq!(routing["fallback"], "primary->fast");
    let at_token = continued["at_token"].as_u64().expect("a number");
    assert!(at_token > 0);
    assert_eq!(
        transcript.usage()["completion_tokens"],
        200,
        "no more than was asked for"
    );
    let same = |name: &str| {
        let first = &transcript.chunks[0][name];
        transcript.chunks.iter().all(|chunk| chunk[name] == *first)
    };
    assert!(same("id") && same("created") && same("model"));
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_survives_its_node() {
    let proxy = Proxy::start().await;
    let mut nodes = ["attic", "den"].map(|name| Node::named(name).tier("fast").join(&proxy));
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    until("both nodes serve", Duration::from_secs(30), || async {
        (proxy.metric("hearth_nodes_ready").await >= 2.0).then_some(())
    })
    .await;
    let mut body = story("fast", 1_500);
    body["stream"] = false.into();
    let unbroken = friend.complete(body.clone()).await.json();

    let asking = tokio::spawn({
        let friend = friend.clone();
        async move { friend.complete(body).await }
    });
    let at_work = until("one is at work", Duration::from_secs(10), || async {
        for (place, node) in nodes.iter().enumerate() {
            if node.metric("hearth_node_slots_busy").await == Some(1.0) {
                return Some(place);
            }
        }
        None
    })
    .await;
    // It has written some of its 1,500 tokens, and by far not all.
    tokio::time::sleep(Duration::from_millis(60)).await;
    nodes[at_work].kill();
    let reply = asking.await.expect("answers");

    assert_eq!(reply.status, 200, "{}", reply.json());
    let answer = reply.json();
    assert_eq!(answer["choices"], unbroken["choices"], "to the letter");
    for name in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(answer["usage"][name], unbroken["usage"][name], "{name}");
    }
    assert_eq!(answer["_routing"]["continued"][0]["how"], "tokens");
    let timing = reply.header("server-timing");
    for part in ["edge", "tunnel", "queue", "prefill", "decode"] {
        assert!(timing.contains(&format!("{part};dur=")), "{timing}");
    }
    let split = &unbroken["_routing"]["timing"];
    let parts = [
        "edge_ms",
        "wake_ms",
        "tunnel_ms",
        "queue_ms",
        "prefill_ms",
        "decode_ms",
    ];
    let sum: f64 = parts.iter().filter_map(|part| split[part].as_f64()).sum();
    let all = unbroken["_routing"]["latency_ms"]
        .as_f64()
        .expect("a number");
    assert!((sum - all).abs() <= 5.0, "{split} are not {all}");
}
