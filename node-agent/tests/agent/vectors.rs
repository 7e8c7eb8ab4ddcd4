//! Vectors, ranks, holes in texts, adapters, and what the machine tells about itself: the node's HTTP over real workers.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use config::settings::node::{MetricsCompat, TierKind, TierSettings};
use config::tier::Tier;
use http::Request;
use http_body_util::Full;
use node_agent::metrics::Metrics;
use node_agent::power::Power;
use serde_json::{Value, json};

use super::gguf_writer::{Arch, Extra, write_with};
use super::support::{Node, TOKEN, post, request, scripted, tiny_fast};

fn embedding() -> TierSettings {
    TierSettings {
        kind: TierKind::Embedding,
        ..tiny_fast()
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "node")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Full::new(Bytes::new()))
        .expect("a request")
}

fn numbers(embedding: &Value) -> Vec<f32> {
    match embedding.as_str() {
        Some(text) => STANDARD
            .decode(text)
            .expect("base64")
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")))
            .collect(),
        None => serde_json::from_value(embedding.clone()).expect("numbers"),
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn vectors_have_length_one_in_either_form_and_any_width() {
    let node = Node::ready(vec![embedding()]).await;
    let mut client = node.client().await;
    let texts = json!([
        "What is a proxy?",
        "What is a reverse proxy?",
        "Tell me a story about a fox."
    ]);
    let plain = client
        .ask(post(
            "/v1/embeddings",
            &json!({"model": "m", "input": texts}),
        ))
        .await;
    assert_eq!(plain.status, 200, "{}", plain.json);
    assert_eq!(plain.json["model"], "tiny-fast");
    let floats: Vec<Vec<f32>> = (0..3)
        .map(|n| numbers(&plain.json["data"][n]["embedding"]))
        .collect();
    assert!(
        floats
            .iter()
            .all(|vector| (dot(vector, vector) - 1.0).abs() < 1e-4)
    );
    let (near, far) = (dot(&floats[0], &floats[1]), dot(&floats[0], &floats[2]));
    assert!(near > far + 0.1, "{near} against {far}");

    let body = json!({"model": "m", "input": texts, "encoding_format": "base64"});
    let coded = client.ask(post("/v1/embeddings", &body)).await;
    let same = numbers(&coded.json["data"][1]["embedding"]);
    assert!(
        (dot(&same, &floats[1]) - 1.0).abs() < 1e-4,
        "the same in another form"
    );

    let body = json!({"model": "m", "input": "What is a proxy?", "dimensions": 32});
    let short = client.ask(post("/v1/embeddings", &body)).await;
    let short = numbers(&short.json["data"][0]["embedding"]);
    assert_eq!(short.len(), 32);
    assert!((dot(&short, &short) - 1.0).abs() < 1e-4);

    let words = client
        .ask(post(
            "/tokenize",
            &json!({"content": "What is a proxy?", "add_special": true}),
        ))
        .await;
    let tokens = words.json["tokens"].clone();
    let body = json!({"model": "m", "input": tokens});
    let by_tokens = client.ask(post("/v1/embeddings", &body)).await;
    let counted = tokens.as_array().map(Vec::len);
    assert_eq!(
        by_tokens.json["usage"]["prompt_tokens"]
            .as_u64()
            .and_then(|count| usize::try_from(count).ok()),
        counted
    );
    assert!(
        (dot(
            &numbers(&by_tokens.json["data"][0]["embedding"]),
            &floats[0]
        ) - 1.0)
            .abs()
            < 1e-4
    );
}

#[tokio::test]
async fn what_a_model_cannot_do_is_said_with_what_would_be_right() {
    let settings = TierSettings {
        context: Some(64),
        ..embedding()
    };
    let chat = TierSettings {
        tier: Tier::Primary,
        ..tiny_fast()
    };
    let node = Node::ready(vec![settings, chat]).await;
    let mut client = node.client().await;
    let body = json!({"model": "m", "input": ["a", "word ".repeat(100)]});
    let long = client.ask(post("/v1/embeddings", &body)).await;
    assert_eq!(
        (long.status.as_u16(), long.code()),
        (400, "context_length_exceeded")
    );
    assert_eq!(long.json["error"]["param"], "input[1]");
    assert_eq!(long.json["error"]["n_ctx"], 64);

    let body = json!({"model": "m", "input": "a", "dimensions": 4_096});
    let wide = client.ask(post("/v1/embeddings", &body)).await;
    assert_eq!(wide.json["error"]["param"], "dimensions", "{}", wide.json);

    for (tier, path, body) in [
        (
            "primary",
            "/v1/embeddings",
            json!({"model": "m", "input": "a"}),
        ),
        (
            "primary",
            "/v1/rerank",
            json!({"query": "a", "documents": ["b"]}),
        ),
        (
            "fast",
            "/v1/rerank",
            json!({"query": "a", "documents": ["b"]}),
        ),
        (
            "fast",
            "/v1/chat/completions",
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
        ),
    ] {
        let refused = client
            .ask(request(tier, path, Bytes::from(body.to_string())))
            .await;
        assert_eq!(refused.status, 400, "{tier} {path}: {}", refused.json);
        assert_eq!(refused.json["error"]["param"], "model", "{tier} {path}");
    }
}

#[tokio::test]
async fn documents_come_back_best_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = Extra {
        pooling: Some(4),
        classifier: true,
        ..Extra::default()
    };
    let settings = TierSettings {
        model: write_with(folder.path(), Arch::Qwen3, "rank", extra),
        kind: TierKind::Rerank,
        ..tiny_fast()
    };
    let node = Node::ready(vec![settings]).await;
    let mut client = node.client().await;
    let body = json!({"model": "m", "query": "what?", "documents": ["one", {"text": "two two"}, "three"], "top_n": 2, "return_documents": true});
    let ranked = client.ask(post("/v1/rerank", &body)).await;
    assert_eq!(ranked.status, 200, "{}", ranked.json);
    let results = ranked.json["results"].as_array().expect("results");
    assert_eq!(results.len(), 2);
    let score = |n: usize| results[n]["relevance_score"].as_f64().expect("a number");
    assert!(score(0) >= score(1));
    let documents = ["one", "two two", "three"];
    for result in results {
        let index = usize::try_from(result["index"].as_u64().expect("an index")).expect("small");
        assert_eq!(result["document"]["text"], documents[index]);
    }
    assert!(ranked.json["usage"]["total_tokens"].as_u64() > Some(6));
}

#[tokio::test]
async fn a_hole_is_filled_by_a_model_that_knows_how() {
    let folder = tempfile::tempdir().expect("a folder");
    let extra = Extra {
        fim: true,
        ..Extra::default()
    };
    let code = TierSettings {
        model: write_with(folder.path(), Arch::Llama, "code", extra),
        ..tiny_fast()
    };
    let chat = TierSettings {
        tier: Tier::Primary,
        ..tiny_fast()
    };
    let node = Node::ready(vec![code, chat]).await;
    let mut client = node.client().await;
    let hole = json!({"input_prefix": "fn main() {", "input_suffix": "}", "n_predict": 8, "temperature": 0});
    let filled = client.ask(post("/infill", &hole)).await;
    assert_eq!(filled.status, 200, "{}", filled.json);
    // Prefix, suffix and middle, one token each, and a token a letter.
    assert_eq!(filled.json["tokens_evaluated"], 3 + 11 + 1);
    let body = json!({"model": "m", "prompt": "fn main() {", "suffix": "}", "max_tokens": 8, "temperature": 0});
    let same = client.ask(post("/v1/completions", &body)).await;
    assert_eq!(same.status, 200, "{}", same.json);
    assert_eq!(same.json["choices"][0]["text"], filled.json["content"]);
    assert_eq!(same.json["usage"]["prompt_tokens"], 15);

    for (path, body, param) in [
        ("/infill", &hole, "input_suffix"),
        ("/v1/completions", &body, "suffix"),
    ] {
        let refused = client
            .ask(request("primary", path, Bytes::from(body.to_string())))
            .await;
        assert_eq!(refused.status, 400, "{}", refused.json);
        assert_eq!(refused.json["error"]["param"], param);
    }
}

#[tokio::test]
async fn slots_props_and_metrics_tell_what_is_going_on() {
    let slow = scripted(
        Tier::Fast,
        &json!({"say": "a long story ".repeat(50), "step_ms": 20}),
    );
    let slow = TierSettings { slots: 1, ..slow };
    let node = Node::ready(vec![slow]).await;
    let mut client = node.client().await;
    let idle = client.ask(get("/slots?fail_on_no_slot=1")).await;
    assert_eq!(idle.status, 200);
    assert_eq!(idle.json[0]["is_processing"], false);

    let mut other = node.client().await;
    let body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let running = other.send(post("/v1/chat/completions", &body)).await;
    node.wait_for_busy(Tier::Fast, 1).await;
    let busy = client.ask(get("/slots?fail_on_no_slot=1")).await;
    assert_eq!(busy.status, 503, "{}", busy.json);
    assert_eq!(client.ask(get("/slots")).await.status, 200);
    drop(running);
    drop(other);

    let props = client.ask(get("/props")).await.json;
    assert_eq!(props["total_slots"], 1);
    assert!(
        props["default_generation_settings"]["n_ctx"].is_u64(),
        "{props}"
    );
    assert_eq!(props["is_sleeping"], false);

    let metrics =
        Metrics::new(node.tiers.clone()).also_as(&[MetricsCompat::Llamacpp, MetricsCompat::Vllm]);
    metrics.request("fast", "ok", Duration::from_millis(20));
    metrics.first_token("fast", Duration::from_millis(20));
    let text = metrics.text();
    for name in [
        "llamacpp:prompt_tokens_total{model_name=\"scripted\"}",
        "llamacpp:requests_processing",
        "llamacpp:spec_decode_num_accepted_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:request_success_total{model_name=\"scripted\",finished_reason=\"stop\"} 1",
        "vllm:time_to_first_token_seconds_bucket{model_name=\"scripted\",le=\"0.025\"} 1",
        "hearth_node_prompt_hits_total{tier=\"fast\"}",
        "hearth_node_drafted_tokens_total",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(
        !node.metrics.text().contains("llamacpp:"),
        "only when asked for"
    );
}

#[tokio::test]
async fn an_answer_tells_its_energy_where_the_machine_tells_its_own() {
    let folder = tempfile::tempdir().expect("no sensors");
    let node = Node::ready(vec![tiny_fast()]).await;
    let body =
        json!({"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]});
    let silent = node.client().await.chat(&body).await;
    assert!(
        silent.json["timings"]["joules"].is_null(),
        "{}",
        silent.json
    );

    node.tiers.set_power(Power::new(folder.path(), Some(50.0)));
    let told = node.client().await.chat(&body).await;
    let timings = &told.json["timings"];
    let ms = timings["prompt_ms"].as_f64().expect("a time")
        + timings["predicted_ms"].as_f64().expect("a time");
    let joules = timings["joules"].as_f64().expect("energy");
    assert!((joules - 50.0 * ms / 1000.0).abs() < 1e-6, "{timings}");
    assert_eq!(told.json["usage"]["joules"], timings["joules"]);
    assert!(node.metrics.text().contains("hearth_node_watts 50"));
}

/// Resident memory in KiB and open files of this process.
fn held() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
    let files = std::fs::read_dir("/proc/self/fd").expect("Linux").count();
    (resident.expect("a size"), files)
}

/// `HEARTH_SOAK_SECS=3600` makes it an hour.
#[tokio::test(flavor = "multi_thread")]
async fn loading_answering_leaving_and_sleeping_leave_nothing_behind() {
    let secs = std::env::var("HEARTH_SOAK_SECS").ok();
    let secs = secs.and_then(|secs| secs.parse().ok()).unwrap_or(2);
    let sleepy = TierSettings {
        tier: Tier::Primary,
        keep_alive: Some(Duration::from_millis(50)),
        load_on_demand: true,
        ..tiny_fast()
    };
    let node = Node::start(vec![tiny_fast(), sleepy]);
    let until = |secs| Instant::now() + Duration::from_secs(secs);
    soak(&node, until(1), 1).await;
    let (memory, files) = held();
    soak(&node, until(secs), 2).await;
    let (memory_after, files_after) = held();
    assert!(
        memory_after < memory + 32 * 1024,
        "{memory} KiB became {memory_after}"
    );
    assert!(
        files_after <= files + 8,
        "{files} open files became {files_after}"
    );
    node.wait_for_busy(Tier::Fast, 0).await;
}

async fn soak(node: &Node, end: Instant, mut state: u64) {
    while Instant::now() < end {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let choice = state >> 60;
        let tier = if choice.is_multiple_of(2) {
            "fast"
        } else {
            "primary"
        };
        let mut client = node.client().await;
        let body = json!({
            "model": "m", "stream": choice > 4, "max_tokens": 1 + choice * 3,
            "messages": [{"role": "user", "content": format!("Count to {choice}")}],
        });
        let asked = client.send(request(
            tier,
            "/v1/chat/completions",
            Bytes::from(body.to_string()),
        ));
        if choice > 11 {
            // Leaves before the answer is there.
            let _left = tokio::time::timeout(Duration::from_millis(choice - 10), asked).await;
            continue;
        }
        let answer = asked.await;
        assert!(
            matches!(answer.status().as_u16(), 200 | 503),
            "{}",
            answer.status()
        );
        if choice == 7 {
            // Time for the other tier to fall asleep.
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    }
}
