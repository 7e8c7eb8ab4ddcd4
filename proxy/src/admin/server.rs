//! The admin socket: HTTP/1.1 over a Unix socket in the state directory, for its owner alone. Whoever can open it is the
//! operator; there is no other credential.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::words::Problem;
use super::{AdminError, Operations, SOCKET_NAME, connection};
use crate::store::{StoreError, private_folder};

/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
/// Bytes of an order.
const BODY_MAX: usize = 64 * 1024;
/// Time for the body of an order.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket, removed with the value.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds the socket in the state directory; refuses if another proxy answers there.
    pub async fn bind(state_dir: &Path) -> io::Result<Self> {
        private_folder(state_dir).map_err(io::Error::other)?;
        let path = state_dir.join(SOCKET_NAME);
        if UnixStream::connect(&path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another proxy runs with {}", state_dir.display()),
            ));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // The state directory is closed to others, so nobody gets in before the mode is set.
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Serves until told to stop.
    pub async fn serve(self, operations: Arc<Operations>, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin socket cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (operations, stop) = (Arc::clone(&operations), stop.clone());
            tokio::spawn(async move {
                let _permit = permit;
                connection::serve(stream, stop, |request| {
                    answer(Arc::clone(&operations), request)
                })
                .await;
            });
        }
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket was gone before");
        }
    }
}

async fn answer(operations: Arc<Operations>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let done = if request.method() == Method::GET {
        look(&operations, &path).await
    } else if request.method() == Method::POST {
        act(&operations, &path, request.into_body()).await
    } else {
        Err(AdminError::Invalid("GET or POST".into()))
    };
    done.unwrap_or_else(|error| problem(&error))
}

async fn look(operations: &Operations, path: &str) -> Result<Response<Full<Bytes>>, AdminError> {
    match path {
        "/v1/keys" => Ok(found(&operations.keys().await?)),
        "/v1/nodes" => Ok(found(&operations.nodes().await?)),
        "/v1/status" => Ok(found(&operations.status().await)),
        _ => Err(nothing(path)),
    }
}

async fn act(
    operations: &Operations,
    path: &str,
    body: Incoming,
) -> Result<Response<Full<Bytes>>, AdminError> {
    match path {
        "/v1/keys" => Ok(made(&operations.create_key(order(body).await?).await?)),
        "/v1/keys/revoke" => {
            let key: String = order(body).await?;
            Ok(found(&operations.revoke_key(&key).await?))
        }
        "/v1/invites" => Ok(made(&operations.invite(order(body).await?).await?)),
        "/v1/nodes/revoke" => {
            let node: String = order(body).await?;
            Ok(found(&operations.revoke_node(&node).await?))
        }
        _ => Err(nothing(path)),
    }
}

fn found(answer: &impl Serialize) -> Response<Full<Bytes>> {
    written(StatusCode::OK, "application/json", answer)
}

fn made(answer: &impl Serialize) -> Response<Full<Bytes>> {
    written(StatusCode::CREATED, "application/json", answer)
}

fn nothing(path: &str) -> AdminError {
    AdminError::NotFound(format!("no {path} here"))
}

async fn order<T: DeserializeOwned>(body: Incoming) -> Result<T, AdminError> {
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await;
    let Ok(Ok(body)) = body else {
        return Err(AdminError::Invalid(
            "the order is too long or too slow".into(),
        ));
    };
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| AdminError::Invalid(format!("the order is wrong: {error}")))
}

fn problem(error: &AdminError) -> Response<Full<Bytes>> {
    let status = match error {
        AdminError::Invalid(_) => StatusCode::BAD_REQUEST,
        AdminError::NotFound(_) => StatusCode::NOT_FOUND,
        AdminError::Store(StoreError::Corrupt(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        AdminError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let problem = Problem {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or_default().into(),
        status: status.as_u16(),
        detail: error.to_string(),
    };
    written(status, "application/problem+json", &problem)
}

fn written(
    status: StatusCode,
    content_type: &'static str,
    body: &impl Serialize,
) -> Response<Full<Bytes>> {
    // All our words are plain structs: writing them as JSON cannot fail.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
