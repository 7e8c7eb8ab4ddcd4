//! The command line's end of the admin socket. Tells a proxy that does not run from one that refuses.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::SOCKET_NAME;
use super::words::Problem;

/// One command.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of an answer: thousands of keys.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// Why a command did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: no proxy runs with this state directory.
    #[error("no proxy answers at {0}: is it running, with this state_dir?")]
    NotRunning(String),
    /// The socket is there but not for us.
    #[error("{path}: {error}; run this as the user that runs the proxy")]
    Forbidden {
        /// The socket.
        path: String,
        /// What the system said.
        error: String,
    },
    /// The proxy said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke.
    #[error("the proxy did not answer properly: {0}; look into its log")]
    Broken(String),
}

/// A running proxy.
#[derive(Debug)]
pub struct AdminClient {
    connection: http1::SendRequest<Full<Bytes>>,
}

impl AdminClient {
    /// Dials the proxy of this state directory.
    pub async fn connect(state_dir: &Path) -> Result<Self, ClientError> {
        let path = state_dir.join(SOCKET_NAME);
        let shown = path.display().to_string();
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) => {
                let nobody = matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                );
                if nobody {
                    return Err(ClientError::NotRunning(shown));
                }
                return Err(ClientError::Forbidden {
                    path: shown,
                    error: error.to_string(),
                });
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the admin connection broke");
            }
        });
        Ok(Self { connection: sender })
    }

    /// Asks.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        let request = Request::get(path).body(Bytes::new()).map_err(broken)?;
        read(&self.call(request).await?)
    }

    /// Orders.
    pub async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, ClientError> {
        let order = serde_json::to_vec(order).map_err(broken)?;
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(order.into())
            .map_err(broken)?;
        read(&self.call(request).await?)
    }

    /// Sends a request, whatever the answer says.
    pub async fn call(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let mut request = request.map(Full::new);
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("localhost"));
        let conversation = async {
            let response = self
                .connection
                .send_request(request)
                .await
                .map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, BODY_MAX);
            let body = body.collect().await.map_err(broken)?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(TIMEOUT, conversation)
            .await
            .map_err(|_| ClientError::Broken(format!("nothing within {} s", TIMEOUT.as_secs())))?
    }
}

/// What an answer says: what was asked for, or why not.
pub fn read<T: DeserializeOwned>(answer: &Response<Bytes>) -> Result<T, ClientError> {
    if answer.status().is_success() {
        return serde_json::from_slice(answer.body()).map_err(broken);
    }
    Err(ClientError::Refused(refusal(answer)))
}

/// Why not, in words.
pub fn refusal(answer: &Response<Bytes>) -> String {
    match serde_json::from_slice::<Problem>(answer.body()) {
        Ok(problem) => problem.detail,
        Err(_) => format!("the answer was {}", answer.status()),
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}
