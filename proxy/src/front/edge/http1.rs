//! HTTP/1 connections. The head is read here and not by Pingora, which has neither a deadline for it nor a small bound;
//! Pingora then parses the same bytes again and frames bodies. A request it could misread ends the connection.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{HeaderValue, Method, Version};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::super::decoration::Decoration;
use super::super::gate::{Candidate, Framing, HeadRefusal};
use super::super::head::{RawHead, Scanner};
use super::super::lifecycle::{Phase, reached};
use super::super::session::{SessionSink, Shape};
use super::carrier::{self, Upgrade};
use super::{Connection, write_out};

/// RFC 9112 section 2.2: empty lines before a request are forgiven, but not without end.
const EMPTY_LINES_MAX: usize = 4;
/// After a refusal, what the client still sends is thrown away for so long, so that it reads the answer before the reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// What an idle connection holds ready for its next request.
const HEAD_BYTES_FIRST: usize = 64;
/// Room for a usual head; the buffer grows from there.
const HEAD_BYTES_USUAL: usize = 2 * 1024;

/// One request after the other, until one of the two sides has had enough.
pub(super) async fn serve(connection: Connection, mut stream: Stream) {
    let mut patience = connection.shared.head_timeout;
    loop {
        let mut buffer = BytesMut::new();
        let head = match read_head(&connection, &mut stream, &mut buffer, patience).await {
            Ok(Some(head)) => head,
            Ok(None) => {
                drop(timeout(LINGER, stream.shutdown()).await);
                return;
            }
            Err(refusal) => {
                let decoration = decoration(&connection, &buffer);
                return refuse(&connection, stream, refusal, decoration).await;
            }
        };
        // boxed, so that an idle connection does not keep the room that a request needs
        let Some(next) = Box::pin(exchange(&connection, stream, buffer, head)).await else {
            return;
        };
        stream = next;
        patience = connection.shared.keepalive_timeout;
    }
}

/// Fills `buffer` until it holds a whole head and returns its length; `None` if the connection should just close.
async fn read_head(
    connection: &Connection,
    stream: &mut Stream,
    buffer: &mut BytesMut,
    patience: Duration,
) -> Result<Option<usize>, HeadRefusal> {
    let mut phase = connection.shared.phase.clone();
    buffer.reserve(HEAD_BYTES_FIRST);
    let first = tokio::select! {
        // a request that is already here is still served while draining
        biased;
        read = timeout(patience, stream.read_buf(buffer)) => read,
        () = reached(&mut phase, Phase::Draining) => return Ok(None),
    };
    if !matches!(first, Ok(Ok(1..))) {
        return Ok(None);
    }
    let deadline = Instant::now() + connection.shared.head_timeout;
    let mut scanner = Scanner::default();
    let mut empty_lines = 0;
    loop {
        while buffer.starts_with(b"\r\n") && empty_lines < EMPTY_LINES_MAX {
            buffer.advance(2);
            empty_lines += 1;
        }
        if let Some(end) = scanner.scan(buffer)? {
            return Ok(Some(end));
        }
        buffer.reserve(HEAD_BYTES_USUAL);
        match timeout_at(deadline, stream.read_buf(buffer)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return Ok(None),
            Err(_) => return Err(HeadRefusal::TooSlow),
        }
    }
}

/// One request and its answer; the stream comes back if another may follow.
async fn exchange(
    connection: &Connection,
    stream: Stream,
    buffer: BytesMut,
    head: usize,
) -> Option<Stream> {
    let bytes = buffer.get(..head).unwrap_or_default();
    let raw = match RawHead::parse(bytes) {
        Ok(raw) => raw,
        Err(refusal) => {
            let decoration = decoration(connection, bytes);
            refuse(connection, stream, refusal, decoration).await;
            return None;
        }
    };
    let version = raw.version;
    let candidate = Candidate {
        version,
        method: raw.method,
        target: raw.target,
        authority: None,
        fields: raw.fields,
    };
    let (decoration, arrival) = connection.admit(&candidate);
    let arrival = match arrival {
        Ok(arrival) => arrival,
        Err(refusal) => {
            refuse(connection, stream, refusal, decoration).await;
            return None;
        }
    };
    if let Some(upgrade) = Upgrade::of(&candidate, &arrival.admitted) {
        if buffer.len() > head {
            let refusal = HeadRefusal::Malformed("there is data before the upgrade");
            refuse(connection, stream, refusal, decoration).await;
        } else {
            carrier::serve(connection, (stream, upgrade), arrival, decoration).await;
        }
        return None;
    }
    let shape = Shape {
        version,
        head_only: arrival.admitted.method == Method::HEAD,
        expects_continue: arrival.admitted.expects_continue,
    };
    let mut session = HttpSession::new(stream);
    session.set_pipelined_prefix(buffer);
    session.set_read_timeout(Some(connection.shared.body_timeout));
    let parsed = timeout(connection.shared.head_timeout, session.read_request()).await;
    let shared = connection.shared.clone();
    let request_id = decoration.request_id.clone();
    if !matches!(parsed, Ok(Ok(Some(_)))) {
        let mut sink = SessionSink::new(ServerSession::H1(session), shared, decoration, shape);
        let refusal = HeadRefusal::Malformed("the head is ambiguous");
        let _left = sink.answer(connection.refused(refusal, &request_id)).await;
        sink.close().await;
        return None;
    }
    // Servers differ in how they read odd chunks: after a chunked body nothing on this connection is believed.
    let reusable = version == Version::HTTP_11 && arrival.admitted.framing != Framing::Chunked;
    session.set_server_keepalive(
        reusable.then_some(connection.shared.keepalive_timeout.as_secs().max(1)),
    );
    let mut sink = SessionSink::new(ServerSession::H1(session), shared, decoration, shape);
    connection.respond(arrival, &mut sink).await;
    sink.finish().await
}

/// What an answer gets when the head was never understood. Its origin is looked for all the same: without it a browser hides
/// the answer from the page.
fn decoration(connection: &Connection, head: &[u8]) -> Decoration {
    const ORIGIN: &[u8] = b"origin:";
    let mut lines = head.split_inclusive(|&byte| byte == b'\n');
    let value = lines.find_map(|line| {
        let line = line.strip_suffix(b"\r\n")?;
        let (name, value) = line.split_at_checked(ORIGIN.len())?;
        name.eq_ignore_ascii_case(ORIGIN)
            .then(|| value.trim_ascii())
    });
    Decoration {
        house: connection.shared.house.clone(),
        request_id: super::new_request_id(),
        origin: value.and_then(|value| HeaderValue::from_bytes(value).ok()),
        received_at: std::time::Instant::now(),
        allow: None,
    }
}

/// Answers without a session, then closes.
async fn refuse(
    connection: &Connection,
    mut stream: Stream,
    refusal: HeadRefusal,
    decoration: Decoration,
) {
    let (status, mut headers, body) = connection.refused(refusal, &decoration.request_id);
    decoration.apply(&mut headers);
    let answer = write_out(status, headers, &body);
    let sent = timeout(connection.shared.write_timeout, async {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        AsyncWriteExt::shutdown(&mut stream).await
    });
    if !matches!(sent.await, Ok(Ok(()))) {
        return;
    }
    let drain = async {
        let mut waste = BytesMut::with_capacity(4096);
        let mut left = LINGER_BYTES_MAX;
        while let Ok(read @ 1..) = stream.read_buf(&mut waste).await {
            waste.clear();
            left = left.saturating_sub(read);
            if left == 0 {
                break;
            }
        }
    };
    drop(timeout(LINGER, drain).await);
}
