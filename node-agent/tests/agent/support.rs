//! What the stories share: a server over chosen tiers, a client on an in-memory stream, and waiting for facts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::secret::Secret;
use config::settings::load;
use config::settings::node::TierSettings;
use config::tier::Tier;
use config::wire::sse::{Decoder, Event};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use node_agent::http::{AgentToken, Front};
use node_agent::metrics::Metrics;
use node_agent::tiers::{Launcher, Phase, Tiers};
use node_agent::work::Work;
use serde_json::Value;
use tokio::time::timeout;

/// Long enough for a busy machine; every wait ends at the fact, not at the time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const TOKEN: &str = "agent-token-of-the-tests";

pub(crate) fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/models")
        .join(name)
}

pub(crate) fn tiny_fast() -> TierSettings {
    settings(Tier::Fast, &model("tiny-fast-q8_0.gguf"), "tiny-fast")
}

/// A scripted engine; `script` is its JSON.
pub(crate) fn scripted(tier: Tier, script: &Value) -> TierSettings {
    settings(tier, Path::new(&format!("script:{script}")), "scripted")
}

/// As the settings file gives them, with all defaults.
fn settings(tier: Tier, model: &Path, id: &str) -> TierSettings {
    let model = toml::Value::String(model.to_str().expect("text").to_owned());
    let text = format!(
        "[node]\nstate_dir = \"/nowhere\"\n[[tiers]]\ntier = \"{tier}\"\nmodel = {model}\nmodel_id = \"{id}\"\n\
         queue_max = 8\nthreads = 1\ngpu_layers = 0\n"
    );
    let parsed = load::parse_node("tests", &text, &load::Outside::this());
    parsed.expect("right").tiers.remove(0)
}

pub(crate) fn launcher() -> Launcher {
    Launcher {
        program: PathBuf::from(env!("CARGO_BIN_EXE_hearth-node")),
        args: vec!["worker".to_owned()],
    }
}

/// A node's server without a tunnel.
pub(crate) struct Node {
    pub(crate) tiers: Arc<Tiers>,
    pub(crate) work: Work,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) front: Arc<Front>,
}

impl Node {
    /// Starts the tiers and waits until they answer.
    pub(crate) async fn ready(settings: Vec<TierSettings>) -> Self {
        let node = Self::start(settings);
        for room in node.tiers.rooms() {
            let mut phases = room.phases();
            let ready = phases.wait_for(|phase| matches!(phase, Phase::Ready(_)));
            let ready = timeout(PATIENCE, ready).await;
            assert!(ready.is_ok(), "{} is {:?}", room.tier(), room.phase());
        }
        node
    }

    pub(crate) fn start(settings: Vec<TierSettings>) -> Self {
        Self::with_memory(settings, None)
    }

    pub(crate) fn with_memory(settings: Vec<TierSettings>, memory_max: Option<u64>) -> Self {
        let tiers = Arc::new(Tiers::start(settings, memory_max, &launcher()));
        let metrics = Arc::new(Metrics::new(tiers.clone()));
        let work = Work::default();
        let token = AgentToken::default();
        token.set(Secret::new(TOKEN.to_owned()));
        let front = Front::new(tiers.clone(), token, work.clone(), metrics.clone());
        Self {
            tiers,
            work,
            metrics,
            front: Arc::new(front),
        }
    }

    /// Connects to the server.
    pub(crate) async fn client(&self) -> Client {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(self.front.clone().serve(theirs));
        Client::over(ours).await
    }

    /// Waits until a tier has this many busy slots.
    pub(crate) async fn wait_for_busy(&self, tier: Tier, busy: u16) {
        let room = self.tiers.room(tier).expect("configured");
        let mut stats = room.ready().expect("ready").worker.stats();
        let reached = stats.wait_for(|stats| stats.slots_busy == busy);
        let reached = timeout(PATIENCE, reached)
            .await
            .map(|reached| reached.is_ok());
        assert_eq!(
            reached,
            Ok(true),
            "{} slots are busy",
            room.stats().slots_busy
        );
    }
}

/// A connection to a node; dropping it is leaving.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        self.json["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_else(|| panic!("no content in {}", self.json))
    }

    pub(crate) fn code(&self) -> &str {
        self.json["error"]["code"]
            .as_str()
            .unwrap_or_else(|| panic!("no error in {}", self.json))
    }
}

impl Client {
    pub(crate) async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    ) -> Self {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("handshake");
        let connection = tokio::spawn(async move {
            // The other side may close first; the test sees that by itself.
            drop(connection.await);
        });
        Self { sender, connection }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        self.sender.ready().await.expect("the connection is open");
        timeout(PATIENCE, self.sender.send_request(request))
            .await
            .expect("answers in time")
            .expect("answers")
    }

    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let response = self.send(request).await;
        let (head, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect())
            .await
            .expect("in time")
            .expect("a body");
        let json = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        Answer {
            status: head.status,
            headers: head.headers,
            json,
        }
    }

    pub(crate) async fn chat(&mut self, body: &Value) -> Answer {
        self.ask(post("/v1/chat/completions", body)).await
    }

    /// All events of a streamed chat.
    pub(crate) async fn stream(&mut self, path: &str, body: &Value) -> Vec<Event> {
        self.events(post(path, body)).await
    }

    /// All events of an answer.
    pub(crate) async fn events(&mut self, request: Request<Full<Bytes>>) -> Vec<Event> {
        let response = self.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = timeout(PATIENCE, response.into_body().collect()).await;
        let body = body.expect("in time").expect("a whole body").to_bytes();
        let mut events = Vec::new();
        Decoder::default()
            .push(&body, &mut events)
            .expect("valid SSE");
        events
    }
}

/// A request as the proxy sends it, to the fast tier.
pub(crate) fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    request("fast", path, Bytes::from(body.to_string()))
}

pub(crate) fn request(tier: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("host", "node")
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("x-hearth-tier", tier)
        .header("x-hearth-completion-id", "chatcmpl-test")
        .header("x-request-id", "req_test")
        .header("x-hearth-principal", "u:00112233")
        .body(Full::new(body))
        .expect("a request")
}

/// The chunks of a stream, without `[DONE]`.
pub(crate) fn chunks(events: &[Event]) -> Vec<Value> {
    let (done, chunks) = events.split_last().expect("events");
    assert!(done.is_done(), "ends with [DONE], not {done:?}");
    chunks
        .iter()
        .map(|event| serde_json::from_str(&event.data).expect("JSON"))
        .collect()
}

/// The text of all content deltas.
pub(crate) fn content(chunks: &[Value]) -> String {
    chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect()
}
