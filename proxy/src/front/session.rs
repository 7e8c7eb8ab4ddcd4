//! The sink of a real connection: one request on Pingora's HTTP/1 or HTTP/2 session. Adds what every answer carries, puts
//! every wait under a deadline, and notices the client's leaving. Says nothing of its own about the request.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession as Http1;
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::decoration::Decoration;
use super::sink::{BodyError, ClientGone, ClientSink, Gone};

/// An HTTP/1.0 client cannot be sent chunks, so its answer is collected; larger ones are cut.
const COLLECTED_MAX: usize = 8 * 1024 * 1024;
/// What a client must be able to take within `server.write_timeout`.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// What is read and thrown away of a body nobody wants, so that the client can read our answer before the close.
const LINGER_BYTES_MAX: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// One request and its answer.
pub(super) struct SessionSink {
    session: ServerSession,
    shared: Arc<Shared>,
    decoration: Decoration,
    version: Version,
    head_only: bool,
    expects_continue: bool,
    body_deadline: Option<Instant>,
    progress: Progress,
    gone: bool,
}

/// What of the request shapes its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) version: Version,
    /// `HEAD`: headers only.
    pub(super) head_only: bool,
    /// The client waits for `100 Continue` before it sends its body.
    pub(super) expects_continue: bool,
}

/// How much of the answer is out.
enum Progress {
    Nothing,
    /// An HTTP/1.0 answer whose length is not known yet.
    Collecting {
        status: StatusCode,
        headers: HeaderMap,
        body: BytesMut,
    },
    Head,
    All,
}

impl SessionSink {
    pub(super) fn new(
        session: ServerSession,
        shared: Arc<Shared>,
        decoration: Decoration,
        request: Shape,
    ) -> Self {
        Self {
            version: request.version,
            head_only: request.head_only,
            expects_continue: request.expects_continue,
            session,
            shared,
            decoration,
            body_deadline: None,
            progress: Progress::Nothing,
            gone: false,
        }
    }

    /// Sends a whole answer.
    pub(super) async fn answer(
        &mut self,
        (status, mut headers, body): (StatusCode, HeaderMap, Bytes),
    ) -> Result<(), ClientGone> {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        self.head(status, headers).await?;
        self.chunk(body).await?;
        self.end().await
    }

    /// Sends `204 No Content`.
    pub(super) async fn no_content(&mut self, headers: HeaderMap) -> Result<(), ClientGone> {
        self.head(StatusCode::NO_CONTENT, headers).await?;
        self.end().await
    }

    /// Whether nothing of the answer was sent and the client is still there.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self.progress, Progress::Nothing) && !self.gone
    }

    /// Ends a connection whose request Pingora could not read at all.
    pub(super) async fn close(mut self) {
        drop(timeout(LINGER, self.session.shutdown()).await);
    }

    /// Ends the request. The stream comes back if an HTTP/1 connection can carry another one.
    pub(super) async fn finish(self) -> Option<Stream> {
        if !matches!(self.progress, Progress::All) || self.gone {
            // cut in the middle: the client must be able to tell this from an answer that is complete
            self.close().await;
            return None;
        }
        match self.session {
            ServerSession::H1(mut session) => {
                if !session.is_body_done() {
                    linger(&mut session).await;
                    return None;
                }
                let reusable = timeout(LINGER, session.reuse()).await.ok()?.ok()??;
                let (stream, rest) = reusable.into_parts();
                rest.is_none().then_some(stream)
            }
            // dropped with its body unread, an HTTP/2 stream is reset without error (RFC 9113 section 8.1)
            ServerSession::H2(_) | ServerSession::Subrequest(_) | ServerSession::Custom(_) => None,
        }
    }

    async fn write_head(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), ClientGone> {
        let built = self.response(status, headers);
        let Ok(response) = built else {
            return Err(self.left());
        };
        let write = self.session.write_response_header(response);
        match timeout(self.shared.write_timeout, write).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(self.left()),
        }
    }

    fn response(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> pingora::Result<Box<ResponseHeader>> {
        let has_body = !(self.head_only
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED);
        let mut response = ResponseHeader::build(status, Some(headers.len() + 2))?;
        for (name, value) in headers {
            response.append_header(name.clone(), value.clone())?;
        }
        if self.version == Version::HTTP_11 && has_body && !headers.contains_key(CONTENT_LENGTH) {
            response.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        if self.shared.is_draining() {
            self.session.set_keepalive(None);
        }
        Ok(Box::new(response))
    }

    /// In pieces, each under the deadline: a slow client that takes them one by one has not left.
    async fn write(&mut self, mut bytes: Bytes, end: bool) -> Result<(), ClientGone> {
        loop {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            let last = bytes.is_empty();
            let write = self.session.write_response_body(piece, end && last);
            match timeout(self.shared.write_timeout, write).await {
                Ok(Ok(())) if last => return Ok(()),
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(self.left()),
            }
        }
    }

    fn left(&mut self) -> ClientGone {
        self.gone = true;
        ClientGone
    }

    async fn send_continue(&mut self) -> Result<(), BodyError> {
        if std::mem::take(&mut self.expects_continue)
            && let ServerSession::H1(session) = &mut self.session
            && matches!(self.progress, Progress::Nothing)
        {
            let sent = timeout(self.shared.write_timeout, session.write_continue_response()).await;
            if !matches!(sent, Ok(Ok(()))) {
                self.gone = true;
                return Err(BodyError::Gone);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ClientSink for SessionSink {
    async fn body(&mut self) -> Result<Option<Bytes>, BodyError> {
        let deadline = *self
            .body_deadline
            .get_or_insert_with(|| Instant::now() + self.shared.body_timeout);
        self.send_continue().await?;
        let Ok(read) = timeout_at(deadline, self.session.read_request_body()).await else {
            self.session.set_keepalive(None);
            return Err(BodyError::TooSlow);
        };
        read.map_err(|error| {
            self.session.set_keepalive(None);
            let etype = error.etype();
            if *etype == ErrorType::ReadTimedout {
                return BodyError::TooSlow;
            }
            let left = [
                ErrorType::ConnectionClosed,
                ErrorType::ReadError,
                ErrorType::H2Error,
            ];
            if left.contains(etype) {
                self.gone = true;
                return BodyError::Gone;
            }
            BodyError::Malformed
        })
    }

    async fn head(&mut self, status: StatusCode, mut headers: HeaderMap) -> Result<(), ClientGone> {
        if self.gone {
            return Err(ClientGone);
        }
        self.decoration.apply(&mut headers);
        if self.version == Version::HTTP_10 && !headers.contains_key(CONTENT_LENGTH) {
            self.progress = Progress::Collecting {
                status,
                headers,
                body: BytesMut::new(),
            };
            return Ok(());
        }
        self.progress = Progress::Head;
        self.write_head(status, &headers).await
    }

    async fn chunk(&mut self, bytes: Bytes) -> Result<(), ClientGone> {
        if self.gone {
            return Err(ClientGone);
        }
        if let Progress::Collecting { body, .. } = &mut self.progress {
            if body.len() + bytes.len() > COLLECTED_MAX {
                return Err(self.left());
            }
            body.extend_from_slice(&bytes);
            return Ok(());
        }
        if self.head_only || bytes.is_empty() {
            return Ok(());
        }
        self.write(bytes, false).await
    }

    async fn end(&mut self) -> Result<(), ClientGone> {
        if self.gone {
            return Err(ClientGone);
        }
        if let Progress::Collecting {
            status,
            mut headers,
            body,
        } = std::mem::replace(&mut self.progress, Progress::Head)
        {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            self.write_head(status, &headers).await?;
            if !self.head_only && !body.is_empty() {
                self.write(body.freeze(), false).await?;
            }
        }
        self.write(Bytes::new(), true).await?;
        self.progress = Progress::All;
        Ok(())
    }

    async fn gone(&mut self) -> Gone {
        if self.gone {
            return Gone::Client;
        }
        tokio::select! {
            () = left(&mut self.session) => {}
            () = self.shared.census.closed() => return Gone::Proxy,
        }
        self.gone = true;
        self.session.set_keepalive(None);
        Gone::Client
    }
}

/// Resolves when the client has left.
async fn left(session: &mut ServerSession) {
    if let ServerSession::H1(session) = &mut *session
        && !session.is_body_done()
    {
        // a probe would take a byte of the body
        return std::future::pending().await;
    }
    let left = match session {
        ServerSession::H1(session) => session.read_body_or_idle(true).await,
        ServerSession::H2(session) => session.read_body_or_idle(true).await,
        ServerSession::Subrequest(_) | ServerSession::Custom(_) => std::future::pending().await,
    };
    // an error either way: closed, reset, or bytes where none may come (a client that pipelines)
    drop(left);
}

/// Says that nothing more comes from us, then reads on for a moment: closing with unread bytes would reset the
/// connection and could take our answer with it.
async fn linger(session: &mut Http1) {
    let rest = async {
        session.shutdown().await;
        let mut left = LINGER_BYTES_MAX;
        while let Ok(Some(bytes)) = session.read_body_bytes().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
    };
    drop(timeout(LINGER, rest).await);
}
