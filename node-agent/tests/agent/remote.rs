//! A tier on another server at home, which is a real one: this program's own `serve` with a tiny model.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use config::secret::Secret;
use config::settings::node::{TierSettings, Upstream};
use config::tier::Tier;
use config::wire::node::TierState;
use node_agent::tiers::Phase;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Node, PATIENCE, chunks, content, model, tiny_fast};

/// `hearth-node serve` on a port of its own.
struct Server {
    address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let settings = folder.path().join("node.toml");
        let text = format!(
            "[node]\nstate_dir = \"{}\"\n\n[[tiers]]\ntier = \"fast\"\nmodel = \"{}\"\nmodel_id = \"other-name\"\nthreads = 1\ngpu_layers = 0\n[log]\nformat = \"json\"\n",
            folder.path().join("state").display(),
            model("tiny-fast-q8_0.gguf").display(),
        );
        std::fs::write(&settings, text).expect("writes");
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth-node"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut address = None;
        let mut ready = false;
        let told = async {
            while address.is_none() || !ready {
                let line = lines.next_line().await.expect("reads").expect("lives");
                let line: Value = serde_json::from_str(&line).expect("JSON");
                match line["msg"].as_str() {
                    Some("the local API answers") => {
                        address = line["address"].as_str().map(ToOwned::to_owned);
                    }
                    Some("a tier is ready") => ready = true,
                    _other => {}
                }
            }
        };
        timeout(PATIENCE, told).await.expect("ready in time");
        // Its log goes on; nobody needs it.
        tokio::spawn(async move { while let Ok(Some(_line)) = lines.next_line().await {} });
        let address = address.expect("told").parse().expect("an address");
        Self {
            address,
            child,
            _folder: folder,
        }
    }
}

fn remote(address: SocketAddr, model: Option<&str>) -> TierSettings {
    // An error means that it is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    TierSettings {
        tier: Tier::Fast,
        model: std::path::PathBuf::new(),
        model_id: "ours".to_owned(),
        upstream: Some(Upstream {
            local: true,
            url: format!("http://{address}/v1"),
            model: model.map(ToOwned::to_owned),
            key: None,
        }),
        ..tiny_fast()
    }
}

async fn phase_of(node: &Node, wanted: impl Fn(&Phase) -> bool) -> Phase {
    let room = node.tiers.room(Tier::Fast).expect("there");
    let mut phases = room.phases();
    let reached = timeout(PATIENCE, phases.wait_for(|phase| wanted(phase))).await;
    assert!(reached.is_ok(), "still {:?}", room.phase());
    room.phase()
}

fn question(stream: bool) -> Value {
    json!({
        "model": "ours", "stream": stream, "temperature": 0, "stream_options": stream.then(|| json!({"include_usage": true})),
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    })
}

#[tokio::test]
async fn a_tier_on_another_server_answers_under_our_names() {
    let server = Server::start().await;
    let node = Node::start(vec![remote(server.address, None)]);
    phase_of(&node, |phase| matches!(phase, Phase::Remote(_))).await;
    let report = node.tiers.room(Tier::Fast).expect("there").report();
    assert_eq!(report.state, TierState::Ready);
    assert_eq!(report.model.expect("listed").id, "ours");

    let whole = node.client().await.chat(&question(false)).await;
    assert_eq!(whole.status, 200, "{}", whole.json);
    assert!(whole.text().contains("Paris"));
    assert_eq!(whole.json["model"], "ours");
    assert_eq!(whole.json["id"], "chatcmpl-test");
    assert!(whole.json["usage"]["completion_tokens"].as_u64() > Some(0));

    let events = node
        .client()
        .await
        .stream("/v1/chat/completions", &question(true))
        .await;
    let chunks = chunks(&events);
    assert!(content(&chunks).contains("Paris"));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["model"] == "ours" && chunk["id"] == "chatcmpl-test")
    );
    assert!(
        chunks
            .iter()
            .any(|chunk| chunk["usage"]["completion_tokens"].as_u64() > Some(0))
    );
}

#[tokio::test]
async fn a_callers_mistake_stays_the_callers_on_another_server() {
    let server = Server::start().await;
    let node = Node::start(vec![remote(server.address, None)]);
    phase_of(&node, |phase| matches!(phase, Phase::Remote(_))).await;
    let mut long = question(false);
    long["messages"][0]["content"] = json!("word ".repeat(20_000));
    let answer = node.client().await.chat(&long).await;
    assert_eq!(answer.status, 400, "{}", answer.json);
    let message = answer.json["error"]["message"].as_str().expect("says why");
    assert!(message.contains("maximum context length"), "{message}");
}

#[tokio::test]
async fn a_server_without_the_model_and_a_dead_one_are_down_with_the_reason() {
    let mut server = Server::start().await;
    let node = Node::start(vec![remote(server.address, Some("gemma3:27b"))]);
    let Phase::Down { reason } = phase_of(&node, |phase| matches!(phase, Phase::Down { .. })).await
    else {
        panic!("waited for that");
    };
    assert!(
        reason.contains("gemma3:27b") && reason.contains("other-name"),
        "{reason}"
    );

    server.child.kill().await.expect("is killed");
    let node = Node::start(vec![remote(server.address, None)]);
    let Phase::Down { reason } = phase_of(&node, |phase| matches!(phase, Phase::Down { .. })).await
    else {
        panic!("waited for that");
    };
    assert!(reason.ends_with("does not answer"), "{reason}");
    let answer = node.client().await.chat(&question(false)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (503, "tier_unavailable")
    );
}

/// A server that says of its model what `status` holds, counts who looks, and breaks off in the middle of every stream.
async fn breaks_off(
    status: watch::Receiver<&'static str>,
    looks: watch::Sender<usize>,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _from) = listener.accept().await.expect("accepts");
            let (status, looks) = (*status.borrow(), looks.clone());
            tokio::spawn(async move {
                let mut head = vec![0; 16 * 1024];
                let read = stream.read(&mut head).await.unwrap_or(0);
                let asked = String::from_utf8_lossy(&head[..read]).into_owned();
                let answer = if asked.starts_with("GET") {
                    looks.send_modify(|looks| *looks += 1);
                    let list = format!(
                        r#"{{"object":"list","data":[{{"id":"m","status":{{"value":"{status}"}}}}]}}"#
                    );
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{list}",
                        list.len()
                    )
                } else {
                    let event = r#"data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"half an"},"finish_reason":null}]}"#;
                    format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{event}\n\n"
                    )
                };
                // The client may be gone; then nobody misses the answer.
                let _sent = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_and_no_done() {
    let (_says, status) = watch::channel("loaded");
    let address = breaks_off(status, watch::channel(0).0).await;
    let settings = TierSettings {
        upstream: Some(Upstream {
            local: true,
            url: format!("http://{address}/v1"),
            model: None,
            key: Some(Secret::new("a key".to_owned())),
        }),
        ..remote(address, None)
    };
    let node = Node::start(vec![settings]);
    phase_of(&node, |phase| matches!(phase, Phase::Remote(_))).await;
    let events = node
        .client()
        .await
        .stream("/v1/chat/completions", &question(true))
        .await;
    let last = events.last().expect("events");
    assert!(events[0].data.contains("half an"), "{events:?}");
    assert!(
        last.data.contains("\"error\"") && !last.is_done(),
        "{last:?}"
    );
}

#[tokio::test]
async fn a_server_that_still_loads_its_model_is_waited_for() {
    let (says, status) = watch::channel("loading");
    let (looks, mut looked) = watch::channel(0);
    let address = breaks_off(status, looks).await;
    let node = Node::start(vec![remote(address, Some("m"))]);
    let room = node.tiers.room(Tier::Fast).expect("there");
    // The second look comes after the first was understood.
    let twice = timeout(PATIENCE, looked.wait_for(|looks| *looks >= 2)).await;
    twice.expect("in time").expect("the server lives");
    assert_eq!(room.report().state, TierState::Loading);
    says.send_replace("loaded");
    phase_of(&node, |phase| matches!(phase, Phase::Remote(_))).await;
    assert_eq!(room.report().state, TierState::Ready);
}
