//! A server outside the tunnel, on loopback: lists one model, answers as it is told, and remembers every request but the looks at it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use config::secret::Secret;
use config::settings::proxy::{Fields, MaxTokensField, Remote, RemoteUrl};
use config::tier::Tier;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What it answers.
#[derive(Clone, Debug)]
pub(super) enum Says {
    Whole(Value),
    Stream(Vec<String>),
    Status(u16, Value),
    Redirect(String),
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

/// The server.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    stage: Arc<Stage>,
}

struct Stage {
    says: Mutex<Says>,
    heard: Mutex<Vec<Heard>>,
    /// Somebody started it, and nobody stopped it since.
    on: AtomicBool,
    /// It lists its model.
    up: AtomicBool,
    looks: AtomicUsize,
    starts: AtomicUsize,
    stops: AtomicUsize,
    /// A start takes so many looks.
    takes: AtomicUsize,
    /// So many stops still fail.
    stops_fail: AtomicUsize,
    /// After a stop it answers so many looks more.
    lingers: AtomicUsize,
    /// Requests that reached it after it was stopped.
    late: AtomicUsize,
}

impl Peer {
    pub(super) async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stage = Arc::new(Stage {
            says: Mutex::new(says),
            heard: Mutex::default(),
            on: AtomicBool::new(true),
            up: AtomicBool::new(true),
            looks: AtomicUsize::new(0),
            starts: AtomicUsize::new(0),
            stops: AtomicUsize::new(0),
            takes: AtomicUsize::new(0),
            stops_fail: AtomicUsize::new(0),
            lingers: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
        });
        let played = Arc::clone(&stage);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let stage = Arc::clone(&played);
                let service = service_fn(move |request| {
                    let stage = Arc::clone(&stage);
                    async move { Ok::<_, Infallible>(stage.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, stage }
    }

    /// Lists no model until `/start` was asked for; then one that loads until so many looks have passed.
    pub(super) async fn asleep(says: Says, takes: usize) -> Self {
        let peer = Self::start(says).await;
        peer.stage.on.store(false, Ordering::SeqCst);
        peer.stage.up.store(false, Ordering::SeqCst);
        peer.stage.takes.store(takes, Ordering::SeqCst);
        peer
    }

    pub(super) fn says(&self, says: Says) {
        *self.stage.says.lock().unwrap() = says;
    }

    pub(super) fn heard(&self) -> Vec<Heard> {
        self.stage.heard.lock().unwrap().clone()
    }

    pub(super) fn starts(&self) -> usize {
        self.stage.starts.load(Ordering::SeqCst)
    }

    pub(super) fn stops(&self) -> usize {
        self.stage.stops.load(Ordering::SeqCst)
    }

    /// The next stops fail.
    pub(super) fn stops_fail(&self, times: usize) {
        self.stage.stops_fail.store(times, Ordering::SeqCst);
    }

    /// After a stop it answers so many looks more, as a machine that shuts down does.
    pub(super) fn lingers(&self, looks: usize) {
        self.stage.lingers.store(looks, Ordering::SeqCst);
    }

    /// A start takes so many looks from now on.
    pub(super) fn takes(&self, looks: usize) {
        self.stage.looks.store(0, Ordering::SeqCst);
        self.stage.takes.store(looks, Ordering::SeqCst);
    }

    /// Its server ends, the machine goes on.
    pub(super) fn crashes(&self) {
        self.stage.up.store(false, Ordering::SeqCst);
    }

    /// Whoever rents the machine out takes it away.
    pub(super) fn is_taken_away(&self) {
        self.stage.on.store(false, Ordering::SeqCst);
        self.crashes();
    }

    /// Whether it costs money.
    pub(super) fn is_on(&self) -> bool {
        self.stage.on.load(Ordering::SeqCst)
    }

    /// Requests that reached it after it was stopped.
    pub(super) fn late(&self) -> usize {
        self.stage.late.load(Ordering::SeqCst)
    }

    /// An address of it.
    pub(super) fn url(&self, path: &str) -> RemoteUrl {
        RemoteUrl {
            tls: false,
            host: "127.0.0.1".to_owned(),
            port: self.address.port(),
            path: path.to_owned(),
        }
    }

    /// The settings of a tier that it serves.
    pub(super) fn remote(&self, tier: Tier) -> Remote {
        Remote {
            name: "cloud".to_owned(),
            tier,
            url: self.url("/v1"),
            plain_http: false,
            key: Some(Secret::new("sk-ours".to_owned())),
            model: Some("vendor/big".to_owned()),
            model_id: Some("big".to_owned()),
            context: Some(1_000),
            slots: 4,
            queue_max: 0,
            modalities: Vec::new(),
            local: false,
            fields: Fields::All,
            max_tokens_field: MaxTokensField::MaxTokens,
            ca_file: None,
            connect_timeout: Duration::from_secs(1),
            health_every: Duration::from_millis(200),
            health_timeout: Duration::from_secs(1),
            price: None,
            burst: None,
        }
    }
}

impl Stage {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        match head.uri.path() {
            "/v1/models" => return self.models(),
            "/start" => {
                self.starts.fetch_add(1, Ordering::SeqCst);
                self.on.store(true, Ordering::SeqCst);
                return reply(202, "");
            }
            "/stop" => return self.stopped(),
            _ => {}
        }
        if !self.on.load(Ordering::SeqCst) {
            self.late.fetch_add(1, Ordering::SeqCst);
        }
        self.heard.lock().unwrap().push(Heard {
            path: head.uri.path().to_owned(),
            headers: head.headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        let says = self.says.lock().unwrap().clone();
        match says {
            Says::Whole(value) => reply(200, &value.to_string()),
            Says::Status(status, value) => reply(status, &value.to_string()),
            Says::Stream(events) => {
                let events = events.iter().map(|event| format!("data: {event}\n\n"));
                let mut response = reply(200, &events.collect::<String>());
                let kind = http::HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert("content-type", kind);
                response
            }
            Says::Redirect(to) => {
                let mut response = reply(307, "");
                response
                    .headers_mut()
                    .insert("location", to.parse().unwrap());
                response
            }
        }
    }

    fn stopped(&self) -> Response<Full<Bytes>> {
        self.stops.fetch_add(1, Ordering::SeqCst);
        if one_less(&self.stops_fail) {
            return reply(500, "");
        }
        self.on.store(false, Ordering::SeqCst);
        if self.lingers.load(Ordering::SeqCst) == 0 {
            self.up.store(false, Ordering::SeqCst);
        }
        reply(200, "")
    }

    fn models(&self) -> Response<Full<Bytes>> {
        let is_on = self.on.load(Ordering::SeqCst);
        if is_on && !self.up.load(Ordering::SeqCst) {
            let looks = self.looks.fetch_add(1, Ordering::SeqCst);
            if looks >= self.takes.load(Ordering::SeqCst) {
                self.up.store(true, Ordering::SeqCst);
            }
        }
        if !is_on && !one_less(&self.lingers) {
            self.up.store(false, Ordering::SeqCst);
        }
        if !self.up.load(Ordering::SeqCst) {
            let one = json!({"id": "vendor/big", "status": {"value": "loading"}});
            let list = json!({"object": "list", "data": [one]}).to_string();
            return if is_on {
                reply(200, &list)
            } else {
                reply(503, "")
            };
        }
        let list = json!({"object": "list", "data": [{"id": "vendor/big", "max_model_len": 4096}]});
        reply(200, &list.to_string())
    }
}

fn reply(status: u16, body: &str) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(body.to_owned()));
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    let headers = response.headers_mut();
    headers.insert("content-type", "application/json".parse().unwrap());
    headers.insert("x-vendor-account", "org-42".parse().unwrap());
    response
}

/// Takes one away; false: nothing is left.
fn one_less(count: &AtomicUsize) -> bool {
    let less = |left: usize| left.checked_sub(1);
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}
