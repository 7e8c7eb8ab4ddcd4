//! The admin socket: HTTP/1.1 over a Unix socket in the state directory, for its owner alone. Whoever can open it is the
//! operator; there is no other credential.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use config::ids::RequestId;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::api::{self, BODY_MAX};
use super::{AdminError, Api, Asked, SOCKET_NAME, connection};
use crate::store::private_folder;

/// Connections at once.
const CONNECTIONS_MAX: usize = 16;
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
    pub async fn serve(self, api: Arc<Api>, stop: CancellationToken) {
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
            let uid = stream.peer_cred().ok().map(|peer| peer.uid());
            let (api, stop) = (Arc::clone(&api), stop.clone());
            tokio::spawn(async move {
                let _permit = permit;
                connection::serve(stream, stop, |request| {
                    answer(Arc::clone(&api), request, uid)
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

async fn answer(
    api: Arc<Api>,
    request: Request<Incoming>,
    uid: Option<u32>,
) -> Response<Full<Bytes>> {
    let request_id = RequestId::new(format!("req_{:032x}", rand::random::<u128>()));
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX + 1).collect()).await;
    let answer = match body {
        Ok(Ok(body)) => {
            let actor = uid.map_or_else(|| "local".to_owned(), |uid| format!("uid:{uid}"));
            let asked = Asked {
                method: head.method,
                path: head.uri.path().to_owned(),
                query: head.uri.query().map(str::to_owned),
                headers: head.headers,
                body: body.to_bytes(),
                actor,
                from: SOCKET_NAME.to_owned(),
                request_id,
                now_unix_ms: now_unix_ms(),
            };
            api.answer(&asked).await
        }
        Ok(Err(_)) => api::problem(&AdminError::TooLarge(BODY_MAX), &request_id),
        Err(_) => api::told(
            StatusCode::REQUEST_TIMEOUT,
            "the order was not complete in time",
            &request_id,
        ),
    };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}

/// Now, Unix milliseconds.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
