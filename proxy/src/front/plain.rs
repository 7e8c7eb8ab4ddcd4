//! Somebody speaks plain HTTP to the TLS port: says so in one readable answer instead of a dead connection, and never
//! redirects. A credential that came this way was readable on the whole path, so its owner must hear that.

use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;
use policy::refusal::Refusal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::edge::{new_request_id, write_out};
use crate::gateway::reply::{self, ReplyContext};

/// First byte of every TLS connection: a record of type handshake (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Enough to see the credentials of a usual request.
const HEAD_BYTES_MAX: usize = 8 * 1024;
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a connection that begins like this is worth a handshake.
pub(super) fn is_tls(first: u8) -> bool {
    first == TLS_HANDSHAKE
}

/// Reads one head, answers it, and leaves the rest to the close.
pub(super) async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    drop(timeout(PATIENCE, answer(stream)).await);
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> std::io::Result<()> {
    let mut head = BytesMut::with_capacity(1024);
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let refusal = if shows_credential(&head) {
        Refusal::PlainHttp
    } else {
        Refusal::MalformedRequest {
            why: "plain HTTP on a TLS port: use https",
        }
    };
    let context = ReplyContext {
        request_id: new_request_id(),
        limit_headers: HeaderMap::new(),
    };
    let (status, headers, body) = reply::refuse(&refusal, &context);
    stream.write_all(&write_out(status, headers, &body)).await?;
    stream.flush().await?;
    stream.shutdown().await?;
    // unread bytes would turn the close into a reset that takes the answer with it
    let mut left = 64 * 1024_usize;
    while left > 0 {
        head.clear();
        match stream.read_buf(&mut head).await? {
            0 => break,
            read => left = left.saturating_sub(read),
        }
    }
    Ok(())
}

fn shows_credential(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    ["authorization:", "x-api-key:", "api-key:"]
        .iter()
        .any(|name| text.lines().skip(1).any(|line| line.starts_with(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer_to(request: &str) -> String {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(request.as_bytes()).await.unwrap();
        let read = async {
            let mut answer = String::new();
            theirs.read_to_string(&mut answer).await.unwrap();
            drop(theirs);
            answer
        };
        let ((), answer) = tokio::join!(
            async {
                turn_away(&mut ours).await;
                drop(ours);
            },
            read
        );
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn plain_http_is_told_to_use_tls_and_a_leaked_credential_is_called_leaked() {
        let plain = answer_to("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            plain.starts_with("HTTP/1.1 400 ") && plain.contains("use https"),
            "{plain}"
        );
        let leaked =
            answer_to("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n\r\n").await;
        assert!(
            leaked.starts_with("HTTP/1.1 403 ") && leaked.contains("plain_http"),
            "{leaked}"
        );
        assert!(
            !leaked.to_lowercase().contains("location:"),
            "never a redirect that repeats the credential"
        );
    }

    #[test]
    fn a_handshake_is_told_from_http() {
        assert!(is_tls(22) && !is_tls(b'G') && !is_tls(0x80));
    }
}
