//! The frames of a carrier: WebSocket (RFC 6455) on a stream whose HTTP upgrade is done, a binary message for each datagram. Reading and writing
//! go on beside each other, so that two full streams never wait for one another. Decides nothing about who is at the other end.

use std::io;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::{Either, select};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::{Carrier, Hold};

/// Larger than any datagram of ours; what is longer ends the carrier.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// Datagrams written before the stream is flushed.
const FLUSH_AFTER: usize = 64;
/// A stream that says nothing is asked for a sign of life this often, so that middleboxes keep it and a dead one is found.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Nothing for so long, not even an answer to two pings: the other end is gone.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// A stream that takes nothing for so long is of no use as a path.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// A closing frame is a courtesy.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a server answers to a key (`Sec-WebSocket-Accept`; RFC 6455, section 4.2.2). SHA-1 keeps no secret here: it shows that the other side has
/// read the request.
pub fn websocket_accept(key: &[u8]) -> String {
    let mut text = key.to_vec();
    text.extend_from_slice(GUID.as_bytes());
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// Which end of the HTTP upgrade this is: a client masks what it sends (RFC 6455, section 5.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CarrierRole {
    /// Who asked for the upgrade.
    Client,
    /// Who granted it.
    Server,
}

impl Carrier {
    /// Carries datagrams over a stream until the tunnel has no more use for the carrier (`Ok`) or the stream is at its end. Dropping the future
    /// ends it as well.
    pub async fn run(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        role: CarrierRole,
    ) -> io::Result<()> {
        let config = WebSocketConfig::default()
            .read_buffer_size(64 << 10)
            .write_buffer_size(64 << 10)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let role = match role {
            CarrierRole::Client => Role::Client,
            CarrierRole::Server => Role::Server,
        };
        let socket = WebSocketStream::from_raw_socket(stream, role, Some(config)).await;
        let (mut sink, source) = socket.split();
        let Self { hold, outgoing } = self;
        let ended = {
            let reading = pin!(read(source, &hold));
            let writing = pin!(write(&mut sink, outgoing));
            match select(reading, writing).await {
                Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
            }
        };
        // Nobody is told through it any more, so nobody waits for the farewell.
        drop(hold);
        drop(timeout(CLOSE_MAX, sink.close()).await);
        ended
    }
}

/// Gives what comes to the tunnel.
async fn read<S>(mut source: SplitStream<WebSocketStream<S>>, hold: &Hold) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let next = timeout(SILENCE_MAX, source.next())
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        match next {
            Some(Ok(Message::Binary(datagram))) => {
                if !hold.deliver(datagram.into()).await {
                    return Ok(());
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Text(_))) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a text message on a carrier of datagrams",
                ));
            }
            Some(Ok(Message::Close(_))) | None => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(Err(error)) => return Err(plain(error)),
        }
    }
}

/// Sends what the tunnel has for the other end; `Ok` when it has closed the carrier.
async fn write<S>(
    sink: &mut SplitSink<WebSocketStream<S>, Message>,
    mut outgoing: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting = Vec::with_capacity(FLUSH_AFTER);
    loop {
        match timeout(PING_EVERY, outgoing.recv_many(&mut waiting, FLUSH_AFTER)).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) => {
                let ping = sink.send(Message::Ping(Bytes::new()));
                in_time(ping).await?;
                continue;
            }
        }
        let sending = async {
            for datagram in waiting.drain(..) {
                sink.feed(Message::Binary(datagram.into())).await?;
            }
            sink.flush().await
        };
        in_time(sending).await?;
    }
}

async fn in_time(sending: impl Future<Output = Result<(), Error>>) -> io::Result<()> {
    match timeout(WRITE_MAX, sending).await {
        Ok(sent) => sent.map_err(plain),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn plain(error: Error) -> io::Error {
    if let Error::Io(error) = error {
        error
    } else {
        io::Error::other(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_that_of_the_standard() {
        // RFC 6455, section 1.3.
        assert_eq!(
            websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}
