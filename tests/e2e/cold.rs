//! A tier that is being loaded is on its way, not away: whoever asks for it waits, told how far it is, or goes at once where it is warm.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::client::{Client, Reply};
use tests::node::{Node, model};
use tests::proxy::Proxy;
use tests::wait::until;
use tokio::time::sleep;

const SOON: Duration = Duration::from_secs(20);

/// A model that says so, takes its time to load, and dies of the word "crash".
fn sleepy(load_ms: u64) -> String {
    format!(
        "script:{}",
        json!({"say": "good morning", "load_ms": load_ms, "crash_on": "crash"})
    )
}

/// The state of a model as clients are told it.
async fn state(friend: &Client, model: &str) -> Option<Value> {
    let list = friend.try_get("/v1/models").await?.json();
    let entry = list["data"].as_array()?.iter();
    let mut entry = entry.filter(|entry| entry["id"] == model);
    Some(entry.next()?["status"]["value"].clone())
}

async fn is(friend: &Client, model: &str, wanted: &str) {
    until(&format!("{model} is {wanted}"), SOON, || async {
        (state(friend, model).await? == wanted).then_some(())
    })
    .await;
}

fn question(model: &str, more: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

/// Asks three times, each half a second after the last, the last one as a stream; its bytes as they came.
async fn three(friend: &Client, model: &str) -> (Vec<Reply>, String) {
    let whole = [0, 500].map(|after| async move {
        sleep(Duration::from_millis(after)).await;
        friend.complete(question(model, &json!({}))).await
    });
    let streamed = async {
        sleep(Duration::from_secs(1)).await;
        let stream = friend.stream(model, "Hello").await;
        let status = stream.status;
        let all = stream.rest().await;
        assert_eq!(status, 200, "{all}");
        all
    };
    tokio::join!(join_all(whole), streamed)
}

fn all_answered((whole, streamed): &(Vec<Reply>, String)) {
    for reply in whole {
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(reply.text(), "good morning");
    }
    assert!(
        streamed.contains("[DONE]") && !streamed.contains("\"error\""),
        "{streamed}"
    );
}

#[tokio::test]
async fn everybody_who_asks_while_a_tier_is_loaded_waits_for_it_and_is_told_how_far_it_is() {
    let proxy = Proxy::generous()
        .routing("commit_after_ms = 200\nkeepalive_secs = 1")
        .start()
        .await;
    let home = Node::named("den").tier_with(
        "fast",
        &sleepy(4_000),
        2,
        "model_id = \"sleepy\"\nkeep_alive = \"1s\"",
    );
    let mut home = home.prepare();
    home.join(&proxy.invite());
    home.restart();
    let friend = proxy.friend();

    is(&friend, "sleepy", "loading").await;
    let first = three(&friend, "fast").await;
    all_answered(&first);
    assert!(first.1.contains(": keep-alive load "), "{}", first.1);
    let timing = &first.0[0].routing()["timing"];
    assert_eq!(timing["cold"], true, "{timing}");
    assert!(timing["wake_ms"].as_f64() > Some(1_000.0), "{timing}");
    assert!(timing["edge_ms"].as_f64() < Some(1_000.0), "{timing}");
    let split = first.0[0].header("server-timing");
    assert!(split.contains("wake;dur="), "{split}");

    // Asleep, it is woken by the first of them; it is known by now how long that takes.
    until("it sleeps", SOON, || async {
        let ready = home.metric("hearth_node_tier_ready").await?;
        (ready < 0.5).then_some(())
    })
    .await;
    let began = Instant::now();
    let woken = three(&friend, "sleepy").await;
    all_answered(&woken);
    assert!(woken.1.contains(": keep-alive load "), "{}", woken.1);
    tests::tell(&format!(
        "a tier that loads 4 s: 6 requests during two loads, 0 errors, the second time {:?}",
        began.elapsed()
    ));
}

#[tokio::test]
async fn whoever_cannot_wait_for_a_load_goes_where_it_is_warm_and_the_patient_wait() {
    let proxy = Proxy::generous()
        .routing("wake_interactive_secs = 1")
        .start()
        .await;
    let _laptop = Node::named("laptop").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;
    let _strong = Node::named("workstation")
        .tier_with("heavy", &sleepy(6_000), 2, "model_id = \"sleepy\"")
        .join(&proxy);
    is(&friend, "sleepy", "loading").await;

    let began = Instant::now();
    let of = |priority: &str| question("heavy", &json!({"hearth": {"priority": priority}}));
    let (hasty, patient) = tokio::join!(
        async {
            let reply = friend.complete(of("interactive")).await;
            (reply, began.elapsed())
        },
        friend.complete(of("batch")),
    );
    let (hasty, took) = hasty;
    assert_eq!(hasty.routing()["fallback"], "heavy->fast", "{}", hasty.body);
    assert_eq!(patient.text(), "good morning", "{}", patient.body);
    assert!(took < Duration::from_secs(3), "{took:?}");
    tests::tell(&format!(
        "a tier that loads 6 s: interactive elsewhere after {took:?}, batch there after {:?}",
        began.elapsed()
    ));
}

#[tokio::test]
async fn a_worker_that_crashed_is_waited_for() {
    let proxy = Proxy::generous().start().await;
    let _home = Node::named("den")
        .tier_with("fast", &sleepy(1_500), 4, "model_id = \"sleepy\"")
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["sleepy"]).await;
    let crash = json!({"messages": [{"role": "user", "content": "crash"}]});
    let hello = question("fast", &json!({}));

    // As many as open the breaker, at once.
    let broken = join_all([(); 4].map(|()| friend.complete(question("fast", &crash)))).await;
    assert!(
        broken.iter().all(|reply| reply.status >= 500),
        "the model died of them"
    );
    is(&friend, "sleepy", "loading").await;
    let began = Instant::now();
    let replies = join_all((0..6).map(|nth| {
        let (friend, hello) = (friend.clone(), hello.clone());
        async move {
            sleep(Duration::from_millis(150 * nth)).await;
            friend.complete(hello).await
        }
    }))
    .await;
    for reply in &replies {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    tests::tell(&format!(
        "6 requests after a crash, 0 errors, all answered after {:?}",
        began.elapsed()
    ));
}

#[tokio::test]
async fn a_model_that_takes_the_place_of_another_is_waited_for_under_load() {
    let proxy = Proxy::generous().start().await;
    // Memory for one of the two at a time.
    let mut home = Node::named("den")
        .setting("memory_max = \"48MiB\"")
        .tier_with(
            "fast",
            &model("fast").display().to_string(),
            4,
            "context = 512",
        )
        .join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["tiny-fast"]).await;

    let stop = &AtomicBool::new(false);
    let load = (0..6).map(|_| {
        let friend = friend.clone();
        async move {
            let mut told = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let reply = friend.ask("fast", "Which tier are you?").await;
                told.push((reply.status, reply.body.clone()));
            }
            told
        }
    });
    let swap = async {
        for tier in ["primary", "fast", "primary"] {
            home.replace_tier("fast", &model(tier).display().to_string());
            home.process().signal("HUP");
            proxy.serves(&friend, &[&format!("tiny-{tier}")]).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (told, ()) = tokio::join!(join_all(load), swap);
    let told: Vec<_> = told.into_iter().flatten().collect();
    for (status, body) in &told {
        assert_eq!(*status, 200, "{body}");
    }
    tests::tell(&format!(
        "3 models changed places under load: {} requests, 0 errors",
        told.len()
    ));
}

#[tokio::test]
async fn no_more_wait_for_a_load_than_have_room() {
    let proxy = Proxy::generous()
        .routing("queue_max = 2\nwake_interactive_secs = 60")
        .start()
        .await;
    let _home = Node::named("den")
        .tier_with(
            "fast",
            &sleepy(5_000),
            1,
            "queue_max = 1\nmodel_id = \"sleepy\"",
        )
        .join(&proxy);
    let friend = proxy.friend();
    is(&friend, "sleepy", "loading").await;

    let began = Instant::now();
    let replies = join_all((0..8).map(|_| async {
        let reply = friend.complete(question("fast", &json!({}))).await;
        (reply.status, began.elapsed())
    }))
    .await;
    let of = |wanted: bool| {
        let all = replies.iter();
        all.filter(move |(status, _)| (*status == 200) == wanted)
    };
    // One in the slot and one behind it at the node, two in the proxy.
    assert_eq!(of(true).count(), 4, "{replies:?}");
    for (status, took) in of(false) {
        assert!(matches!(status, 429 | 503), "{replies:?}");
        assert!(
            *took < Duration::from_secs(3),
            "refused at once: {replies:?}"
        );
    }
}
