//! OpenAI's API for programs on this machine, without a proxy and without a key: loopback only, and only under a name of this machine,
//! so that no web page reaches it through a rebound name. Never listens anywhere else.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use config::settings::node::TierKind;
use config::wire::models::StatusValue;
use config::wire::node::TierState;
use http::header::{CONTENT_LENGTH, HOST, ORIGIN, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::admin::is_this_machine;
use crate::http::{Body, Front, json_response};
use crate::reply::Refused;
use crate::tiers::TierRoom;

const CONNECTIONS_MAX: usize = 256;
const HEAD_SECS_MAX: u64 = 120;
/// What the proxy says about a request; a local program may not.
const TIER: HeaderName = HeaderName::from_static("x-hearth-tier");
const PRINCIPAL: HeaderName = HeaderName::from_static("x-hearth-principal");
const PREFIX: HeaderName = HeaderName::from_static(config::wire::node::PREFIX);

/// The listener, bound but not served yet, so that a busy port is found at the start.
#[derive(Debug)]
pub struct LocalApi {
    listener: TcpListener,
    front: Arc<Front>,
}

impl LocalApi {
    /// Takes the port.
    pub async fn bind(address: SocketAddr, front: Arc<Front>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, front })
    }

    /// The bound address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped; connections are counted among the agent's.
    pub async fn serve(self, connections: TaskTracker) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _from)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            // Tokens are small writes; without this each waits for the one before it.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a local connection waits for acknowledgements");
            }
            let front = self.front.clone();
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let front = front.clone();
                    async move { Ok::<_, Infallible>(answer(&front, request).await) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(HEAD_SECS_MAX))
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a local connection ended");
                }
                drop(permit);
            });
        }
    }
}

async fn answer(front: &Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let answered = if from_this_machine(request.headers()) {
        routed(front, request).await
    } else {
        Err(Refused::Stranger)
    };
    answered.unwrap_or_else(|refused| Front::refusal(&refused))
}

async fn routed(front: &Arc<Front>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(PRINCIPAL);
    head.headers.remove(PREFIX);
    if head.method == Method::GET && head.uri.path() == "/v1/models" {
        return Ok(models(front));
    }
    if head.method != Method::POST {
        let whole = Full::new(Bytes::new());
        return front.admitted(Request::from_parts(head, whole)).await;
    }
    let (bytes, held) = front.body(body).await?;
    let named: Named = serde_json::from_slice(&bytes).unwrap_or_default();
    let kind = kind_for(head.uri.path());
    let room = find(front.tiers().rooms(), named.model.as_deref(), kind)?;
    head.headers
        .insert(TIER, HeaderValue::from_static(room.tier().as_str()));
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.remove(CONTENT_LENGTH);
    // The body is counted again as it goes on; holding it twice would halve what fits.
    drop(held);
    front
        .admitted(Request::from_parts(head, Full::new(bytes)))
        .await
}

/// What kind of model can answer.
fn kind_for(path: &str) -> TierKind {
    match path {
        "/v1/embeddings" | "/embeddings" => TierKind::Embedding,
        "/v1/rerank" | "/rerank" => TierKind::Rerank,
        _text => TierKind::Chat,
    }
}

/// The tier that a request names: by tier, by model, or the first one when it leaves the choice to us.
fn find<'r>(
    rooms: &'r [Arc<TierRoom>],
    model: Option<&str>,
    kind: TierKind,
) -> Result<&'r TierRoom, Refused> {
    let wanted = model.unwrap_or("auto");
    let named = rooms
        .iter()
        .find(|room| room.tier().as_str() == wanted || room.settings().answers_to(wanted));
    let found = match named {
        None if wanted == "auto" || wanted.is_empty() => {
            let apt = rooms.iter().find(|room| room.settings().kind == kind);
            apt.or_else(|| rooms.first())
        }
        found => found,
    };
    found.map(AsRef::as_ref).ok_or_else(|| {
        let known: Vec<String> = rooms
            .iter()
            .map(|room| room.settings().model_id.clone())
            .collect();
        Refused::Unsupported {
            param: "model".to_owned(),
            message: format!("this node has {}, a tier's name or auto", known.join(", ")),
        }
    })
}

fn models(front: &Front) -> Response<Body> {
    let list: Vec<serde_json::Value> = front
        .tiers()
        .rooms()
        .iter()
        .map(|room| {
            let report = room.report();
            let n_ctx = report.model.as_ref().map(|model| model.n_ctx);
            json!({
                "id": room.settings().model_id,
                "object": "model",
                "created": 0,
                "owned_by": "hearth",
                "tier": room.tier(),
                "aliases": room.settings().aliases,
                "context_length": n_ctx,
                "max_model_len": n_ctx,
                "status": {"value": status(report.state)},
                "report": report,
            })
        })
        .collect();
    json_response(&json!({"object": "list", "data": list}))
}

/// A model that is still loading tells no context, and whoever asks it too early guesses wrong.
const fn status(state: TierState) -> StatusValue {
    match state {
        TierState::Loading => StatusValue::Loading,
        TierState::Ready => StatusValue::Loaded,
        TierState::Sleeping => StatusValue::Sleeping,
        TierState::Down => StatusValue::Unloaded,
    }
}

/// A page of another site, or a name that somebody else's DNS points here, is no program of this machine.
fn from_this_machine(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(ORIGIN).map(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        let host = origin.split_once("://").map_or("", |(_scheme, host)| host);
        is_this_machine(host)
    });
    host.is_some_and(is_this_machine) && origin.unwrap_or(true)
}

/// The one field that is needed before the body is looked at.
#[derive(Debug, Default, Deserialize)]
struct Named {
    #[serde(default)]
    model: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &'static str, origin: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        headers
    }

    #[test]
    fn a_program_of_this_machine_is_answered_and_a_web_page_is_not() {
        assert!(from_this_machine(&headers("127.0.0.1:8090", None)));
        assert!(from_this_machine(&headers(
            "localhost:8090",
            Some("http://localhost:3000")
        )));
        assert!(!from_this_machine(&headers(
            "localhost:8090",
            Some("https://evil.example")
        )));
        assert!(!from_this_machine(&headers("localhost:8090", Some("null"))));
        assert!(!from_this_machine(&headers("rebound.example", None)));
        assert!(!from_this_machine(&HeaderMap::new()));
    }
}
