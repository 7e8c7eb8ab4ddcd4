//! A tier sleeps, wakes, makes room for others and changes its model, and no request notices more than a wait.

use std::time::Duration;

use config::settings::node::TierSettings;
use config::tier::Tier;
use config::wire::node::TierState;
use config::wire::sse::Decoder;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use node_agent::models::Gguf;
use node_agent::models::memory::{Load, Shape};
use node_agent::tiers::Phase;
use node_agent::tiers::footprint::load_of;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{Node, PATIENCE, chunks, content, model, post, request, scripted, tiny_fast};

fn question() -> Value {
    json!({"model": "auto", "messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0})
}

fn streamed() -> Value {
    let mut question = question();
    question["stream"] = json!(true);
    question
}

fn tier(tier: Tier, name: &str) -> TierSettings {
    TierSettings {
        tier,
        model: model(&format!("tiny-{name}-q8_0.gguf")),
        model_id: format!("tiny-{name}"),
        load_on_demand: true,
        ..tiny_fast()
    }
}

impl Node {
    async fn wait_for(&self, tier: Tier, what: &str, wanted: impl Fn(&Phase) -> bool) {
        let mut phases = self.tiers.room(tier).expect("configured").phases();
        let reached = timeout(PATIENCE, phases.wait_for(|phase| wanted(phase))).await;
        let now = self.tiers.room(tier).expect("configured").phase();
        assert!(reached.is_ok(), "{tier} {what}, but is {now:?}");
    }

    fn state(&self, tier: Tier) -> TierState {
        self.tiers.room(tier).expect("configured").report().state
    }

    async fn ask_tier(&self, tier: &str) -> String {
        let body = question().to_string().into();
        let request = request(tier, "/v1/chat/completions", body);
        let answer = self.client().await.ask(request).await;
        assert_eq!(answer.status, 200, "{}", answer.json);
        answer.text().to_owned()
    }
}

/// The text of a stream that ends well.
async fn text_of(response: Response<Incoming>) -> String {
    let body = timeout(PATIENCE, response.into_body().collect()).await;
    let body = body.expect("in time").expect("whole").to_bytes();
    let mut events = Vec::new();
    Decoder::default()
        .push(&body, &mut events)
        .expect("valid SSE");
    content(&chunks(&events))
}

/// What a tier takes, all in all.
fn bytes_of(settings: &TierSettings) -> u64 {
    let gguf = Gguf::open(&settings.model).expect("a model");
    let shape = Shape::of(&gguf).expect("a language model");
    let load = Load {
        context: settings.context.map_or(0, u64::from),
        ..load_of(settings)
    };
    shape.need(load).total()
}

const fn asleep(phase: &Phase) -> bool {
    matches!(phase, Phase::Sleeping)
}

#[tokio::test]
async fn a_model_that_nobody_asks_for_leaves_memory_and_comes_back_with_the_next_request() {
    let settings = TierSettings {
        keep_alive: Some(Duration::ZERO),
        ..tiny_fast()
    };
    let node = Node::start(vec![settings]);
    node.wait_for(Tier::Fast, "sleeps", asleep).await;
    let report = node.tiers.room(Tier::Fast).expect("there").report();
    assert_eq!(report.state, TierState::Sleeping);
    let known = report.model.expect("the proxy still knows the model");
    assert_eq!(known.id, "tiny-fast");

    assert!(node.ask_tier("fast").await.contains("Paris"));
    node.wait_for(Tier::Fast, "sleeps again", asleep).await;
    let events = node
        .client()
        .await
        .stream("/v1/chat/completions", &streamed())
        .await;
    assert!(content(&chunks(&events)).contains("Paris"));
    assert_eq!(node.tiers.room(Tier::Fast).expect("there").starts(), 3);
}

#[tokio::test]
async fn a_tier_that_loads_on_demand_is_known_before_it_was_ever_loaded() {
    let node = Node::start(vec![tier(Tier::Primary, "primary")]);
    let room = node.tiers.room(Tier::Primary).expect("there").clone();
    let mut changes = node.tiers.changes();
    let known = async {
        while room.report().model.is_none() {
            changes.changed().await.expect("lives");
        }
    };
    timeout(PATIENCE, known).await.expect("known in time");
    let model = room.report().model.expect("just seen");
    assert_eq!(
        (model.architecture.as_str(), model.quantization.as_str()),
        ("llama", "Q8_0")
    );
    assert_eq!(room.starts(), 0, "nothing was loaded for that");
    assert!(node.ask_tier("primary").await.contains("Paris"));
}

#[tokio::test]
async fn the_longest_unused_tier_makes_room_and_a_busy_one_never_does() {
    let settings: Vec<TierSettings> = [
        (Tier::Fast, "fast"),
        (Tier::Primary, "primary"),
        (Tier::Heavy, "heavy"),
    ]
    .map(|(which, name)| {
        let mut settings = tier(which, name);
        settings.context = Some(512);
        settings.engine.prompt_cache_bytes = 0;
        settings
    })
    .into();
    // Room for the heavy one and one of the others.
    let room = settings.iter().skip(1).map(bytes_of).sum();
    let node = Node::with_memory(settings, Some(room));
    node.ask_tier("fast").await;
    node.ask_tier("primary").await;
    assert_eq!(node.state(Tier::Fast), TierState::Ready);
    node.ask_tier("heavy").await;
    assert_eq!(
        node.state(Tier::Fast),
        TierState::Sleeping,
        "unused the longest"
    );
    assert_eq!(node.state(Tier::Primary), TierState::Ready);

    // With both in use, fast has to wait for one of them.
    let primary = node.tiers.room(Tier::Primary).expect("there");
    let heavy = node.tiers.room(Tier::Heavy).expect("there");
    let in_use = (
        primary.acquire().await.expect("ready"),
        heavy.acquire().await.expect("ready"),
    );
    let fast = node.tiers.room(Tier::Fast).expect("there").clone();
    let waiting = tokio::spawn(async move { fast.acquire().await.is_ok() });
    node.wait_for(Tier::Fast, "waits", |phase| {
        matches!(phase, Phase::Loading { wanted: true })
    })
    .await;
    assert_eq!(node.state(Tier::Primary), TierState::Ready);
    drop(in_use);
    assert!(
        timeout(PATIENCE, waiting)
            .await
            .expect("in time")
            .expect("ends")
    );
}

#[tokio::test]
async fn a_model_larger_than_the_bound_says_both_numbers() {
    let node = Node::with_memory(vec![tiny_fast()], Some(1_000));
    node.wait_for(Tier::Fast, "is down", |phase| {
        matches!(phase, Phase::Down { reason } if reason.contains("1.0 kB are its share") && reason.contains("memory_max"))
    })
    .await;
}

#[tokio::test]
async fn new_settings_bring_a_new_model_while_a_running_answer_finishes_on_the_old_one() {
    let slow = json!({"say": "one two three four five six", "step_ms": 100});
    let node = Node::ready(vec![scripted(Tier::Fast, &slow)]).await;
    let mut running = node.client().await;
    let running = running
        .send(post("/v1/chat/completions", &streamed()))
        .await;

    let settings = TierSettings {
        model_id: "tiny-new".to_owned(),
        ..tiny_fast()
    };
    assert!(node.tiers.change(vec![settings]).is_empty());
    let mut changes = node.tiers.changes();
    let swapped = async {
        let room = node.tiers.room(Tier::Fast).expect("there");
        while room.settings().model_id != "tiny-new" {
            changes.changed().await.expect("lives");
        }
    };
    timeout(PATIENCE, swapped).await.expect("swapped in time");
    assert!(
        node.ask_tier("fast").await.contains("Paris"),
        "new requests get the new model"
    );

    assert_eq!(text_of(running).await, "one two three four five six");
}

#[tokio::test]
async fn settings_that_do_not_work_leave_the_old_model_serving() {
    let node = Node::ready(vec![tiny_fast()]).await;
    let broken = TierSettings {
        model: model("README.md"),
        ..tiny_fast()
    };
    let strange = node.tiers.change(vec![broken, tier(Tier::Heavy, "heavy")]);
    assert_eq!(strange, [Tier::Heavy], "a new tier needs a restart");
    assert!(node.ask_tier("fast").await.contains("Paris"));
    assert_eq!(node.state(Tier::Fast), TierState::Ready);
}

#[tokio::test]
async fn as_many_wait_for_the_first_load_as_its_queue_takes_and_the_proxy_is_told_how_long() {
    let settings = TierSettings {
        queue_max: 2,
        slots: 1,
        ..scripted(Tier::Fast, &json!({"say": "hi", "load_ms": 1_500}))
    };
    let node = Node::start(vec![settings]);
    let room = node.tiers.room(Tier::Fast).expect("there").clone();
    let mut changes = node.tiers.changes();
    let known = async {
        while room.report().model.is_none() {
            changes.changed().await.expect("lives");
        }
    };
    timeout(PATIENCE, known).await.expect("known in time");
    let report = room.report();
    assert_eq!(report.state, TierState::Loading);
    assert!(report.wakes_in_ms > 0, "{report:?}");

    let wait = || {
        let room = room.clone();
        tokio::spawn(async move { room.acquire().await.map(drop) })
    };
    let waiting = [wait(), wait(), wait()];
    let all_wait = async {
        while room.report().queue_depth < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_wait).await.expect("they wait");
    let refused = room.acquire().await.expect_err("no room");
    assert!(refused.to_string().contains("3 requests wait"), "{refused}");
    for one in waiting {
        assert_eq!(
            timeout(PATIENCE, one)
                .await
                .expect("in time")
                .expect("ends"),
            Ok(())
        );
    }
    let report = room.report();
    assert_eq!((report.state, report.wakes_in_ms), (TierState::Ready, 0));
}

#[tokio::test]
async fn whoever_waits_for_a_sleeping_model_gets_comments_and_then_the_answer() {
    let sleepy = json!({"say": "good morning", "load_ms": 4_000});
    let settings = TierSettings {
        load_on_demand: true,
        ..scripted(Tier::Fast, &sleepy)
    };
    let node = Node::start(vec![settings]);
    let mut client = node.client().await;
    let response = client.send(post("/v1/chat/completions", &streamed())).await;
    assert_eq!(response.status(), 200, "the head comes before the model");
    assert_eq!(text_of(response).await, "good morning");
}
