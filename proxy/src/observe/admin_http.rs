//! The loopback listener for the machine's own tools: `/metrics`, `/healthz`, `/readyz`. Says nothing that needs a credential,
//! and answers nobody who calls it by another name than this machine's (DNS rebinding).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::metrics::{CONTENT_TYPE as METRICS_TYPE, Metrics};
use crate::admin::connection;

/// Connections at once; a scraper needs one.
const CONNECTIONS_MAX: usize = 16;
/// Pause after a failed accept, so that a full table of files does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the listener shows.
pub struct Pages {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The checks that fail now, for `/readyz`; none: ready.
    pub failing: Box<dyn Fn() -> BoxFuture<'static, Vec<&'static str>> + Send + Sync>,
}

/// Serves until told to stop.
pub async fn serve(listener: TcpListener, pages: Arc<Pages>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (pages, stop) = (Arc::clone(&pages), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            connection::serve(stream, stop, |request| answer(Arc::clone(&pages), request)).await;
        });
    }
}

async fn answer(pages: Arc<Pages>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if !names_this_machine(request.headers()) {
        return text(
            StatusCode::FORBIDDEN,
            "call this listener by its loopback address\n",
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/metrics" => typed(StatusCode::OK, METRICS_TYPE, pages.metrics.render()),
        "/healthz" => text(StatusCode::OK, "ok"),
        "/readyz" => {
            let failing = (pages.failing)().await;
            let status = if failing.is_empty() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            let body = json!({ "ready": failing.is_empty(), "failed": failing });
            typed(status, "application/json", body.to_string())
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz or /readyz\n"),
    }
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let Ok(authority) = host.parse::<http::uri::Authority>() else {
        return false;
    };
    matches!(
        authority.host().to_ascii_lowercase().as_str(),
        "localhost" | "127.0.0.1" | "[::1]"
    )
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests;
