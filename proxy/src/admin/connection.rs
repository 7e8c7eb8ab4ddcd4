//! One HTTP/1.1 connection of a local listener: small buffers, a deadline for heads, a bounded body. Knows no route.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// A request's head must be there within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of head and buffers at most.
const BUFFER_MAX: usize = 16 * 1024;
/// A whole connection; a scraper that keeps it open dials again.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(10);

/// Answers requests until the peer leaves or `stop` is told; a running answer is finished.
pub(crate) async fn serve<S, F>(
    stream: S,
    stop: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection.as_mut()) => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(HEAD_TIMEOUT, connection.as_mut()).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a local connection broke"),
        Err(_) => tracing::debug!("a local connection was cut after its time"),
    }
}
