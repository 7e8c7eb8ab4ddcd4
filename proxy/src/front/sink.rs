//! The client's side of one request: its body comes in, the answer goes out. Knows nothing about HTTP versions or
//! about what is being said; the server's own implementation is in `session.rs`, tests bring one in memory.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use thiserror::Error;

/// The client has left: nothing can be sent to it any more, so whatever works for it should stop.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the client has left")]
pub struct ClientGone;

/// Who no longer waits for the end of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Gone {
    /// The client has left.
    Client,
    /// The proxy ends, and its grace is over: there is a moment left to say so.
    Proxy,
}

/// Why the body of a request could not be read to its end.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BodyError {
    /// The client closed the connection or reset the stream.
    #[error("the client has left")]
    Gone,
    /// The body was not complete within `server.body_timeout`.
    #[error("the request body took too long")]
    TooSlow,
    /// The framing of the body is broken: nothing that follows can be trusted, the connection closes after the answer.
    #[error("the request body is not framed correctly")]
    Malformed,
}

/// One request's way back to its client.
///
/// Order: `body` until `None` (or not at all), then `head` once, `chunk` any number of times, `end` once. An answer
/// whose head has no `Content-Length` is chunked (HTTP/1.1) or framed (HTTP/2), never ended by closing; an answer that
/// is dropped before `end` is cut so that the client cannot take it for complete.
#[async_trait]
pub trait ClientSink: Send {
    /// The next piece of the request's body, `None` at its end. Under the total deadline `server.body_timeout`.
    async fn body(&mut self) -> Result<Option<Bytes>, BodyError>;

    /// Sends status and headers. The front adds its own (request id, CORS, security) when they are missing.
    async fn head(&mut self, status: StatusCode, headers: HeaderMap) -> Result<(), ClientGone>;

    /// Sends a piece of the answer's body and flushes it. A client that takes nothing for `server.write_timeout` is gone.
    async fn chunk(&mut self, bytes: Bytes) -> Result<(), ClientGone>;

    /// Ends the answer.
    async fn end(&mut self) -> Result<(), ClientGone>;

    /// Resolves when the client has left, or when the proxy waits for nobody any more; cancel-safe. Of a client it says nothing while the
    /// request's body is still unread.
    async fn gone(&mut self) -> Gone;
}
