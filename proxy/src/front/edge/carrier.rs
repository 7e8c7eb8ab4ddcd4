//! Connections that become carriers of the tunnel's datagrams: a WebSocket (RFC 6455) over HTTP/1.1, granted by the handler alone. Guard and seats are
//! those of any request; what is carried is never looked at here.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use config::wire::node::CARRIER_PATH;
use http::{HeaderMap, Method, StatusCode, Version};
use pingora::protocols::Stream;
use policy::refusal::Refusal;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tunnel::{CarrierRole, websocket_accept};

use super::super::client_address::Subnet;
use super::super::decoration::Decoration;
use super::super::gate::{Admitted, Candidate, Framing};
use super::super::lifecycle::{Phase, reached};
use super::super::{Answer, Ride};
use super::{Arrival, Connection, SEAT_RETRY, write_out};
use crate::gateway::reply::{self, ReplyContext};

/// RFC 6455, section 4.1: the only version there is.
const VERSION: &[u8] = b"13";
const KEY_BYTES: usize = 16;
/// A client that was refused has this long to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// A request to become a carrier.
pub(super) struct Upgrade {
    accept: String,
}

impl Upgrade {
    /// Reads it from a head. `None`: it is a request like any other.
    pub(super) fn of(candidate: &Candidate<'_>, admitted: &Admitted) -> Option<Self> {
        let is_ours = admitted.path == CARRIER_PATH
            && admitted.method == Method::GET
            && admitted.framing == Framing::Implicit
            && candidate.version == Version::HTTP_11;
        if !is_ours
            || !has_token(candidate, "connection", b"upgrade")
            || !has_token(candidate, "upgrade", b"websocket")
        {
            return None;
        }
        let key = only(candidate, "sec-websocket-key")?;
        let is_key = STANDARD
            .decode(key)
            .is_ok_and(|bytes| bytes.len() == KEY_BYTES);
        if !is_key || only(candidate, "sec-websocket-version") != Some(VERSION) {
            return None;
        }
        Some(Self {
            accept: websocket_accept(key),
        })
    }
}

/// Asks the handler, answers, and carries until one side has had enough.
pub(super) async fn serve(
    connection: &Connection,
    (mut stream, upgrade): (Stream, Upgrade),
    arrival: Arrival,
    decoration: Decoration,
) {
    let shared = &connection.shared;
    let mut phase = shared.phase.clone();
    let ride = match admitted(connection, arrival).await {
        Ok(ride) => ride,
        Err((status, mut headers, body)) => {
            decoration.apply(&mut headers);
            let answer = write_out(status, headers, &body);
            drop(timeout(FAREWELL, send(&mut stream, &answer, true)).await);
            return;
        }
    };
    let answer = switching(&upgrade.accept);
    let sent = timeout(shared.write_timeout, send(&mut stream, &answer, false)).await;
    if !matches!(sent, Ok(Ok(()))) {
        return;
    }
    let Ride { carrier, end } = ride;
    tokio::select! {
        ended = carrier.run(stream, CarrierRole::Server) => {
            tracing::debug!(peer = %connection.peer, ?ended, "a carrier ended");
        }
        () = end.cancelled() => {}
        // While draining, answers under way still need it.
        () = reached(&mut phase, Phase::Stopping) => {}
    }
}

/// As for any request: the guard, then who may.
async fn admitted(connection: &Connection, arrival: Arrival) -> Result<Ride, Answer> {
    let shared = &connection.shared;
    let turned_away = |refusal: &Refusal| {
        shared.handler.turned_away(arrival.ip, refusal.label());
        let context = ReplyContext {
            request_id: arrival.request_id.clone(),
            limit_headers: HeaderMap::new(),
        };
        reply::refuse(refusal, &context)
    };
    if let Err(retry_after) = shared.guard.admit(Subnet::of(arrival.ip)) {
        return Err(turned_away(&Refusal::Guarded { retry_after }));
    }
    if shared.is_draining() {
        let retry_after = SEAT_RETRY;
        return Err(turned_away(&Refusal::QueueFull { retry_after }));
    }
    shared.handler.carry(arrival.into_call()).await
}

async fn send(stream: &mut Stream, bytes: &[u8], is_last: bool) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await?;
    if is_last {
        AsyncWriteExt::shutdown(stream).await?;
    }
    Ok(())
}

fn switching(accept: &str) -> BytesMut {
    let status = StatusCode::SWITCHING_PROTOCOLS;
    let mut out = BytesMut::with_capacity(256);
    out.extend_from_slice(
        format!("HTTP/1.1 {} Switching Protocols\r\n", status.as_str()).as_bytes(),
    );
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
    out.extend_from_slice(format!("sec-websocket-accept: {accept}\r\n\r\n").as_bytes());
    out
}

fn values<'a>(candidate: &'a Candidate<'_>, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let of_name = move |field: &&(&str, &[u8])| field.0.eq_ignore_ascii_case(name);
    candidate.fields.iter().filter(of_name).map(|field| field.1)
}

fn only<'a>(candidate: &'a Candidate<'_>, name: &'static str) -> Option<&'a [u8]> {
    let mut values = values(candidate, name);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// Whether one of a field's comma-separated values is this, whatever its case.
fn has_token(candidate: &Candidate<'_>, name: &'static str, token: &[u8]) -> bool {
    values(candidate, name)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .any(|value| value.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_upgrade_to_our_path_is_one() {
        let key: (&str, &[u8]) = ("Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==");
        let whole: Vec<(&str, &[u8])> = vec![
            ("Host", b"localhost"),
            ("Connection", b"keep-alive, Upgrade"),
            ("Upgrade", b"WebSocket"),
            ("Sec-WebSocket-Version", b"13"),
            key,
        ];
        let is_upgrade = |target: &str, fields: &[(&str, &[u8])]| {
            let candidate = Candidate {
                version: Version::HTTP_11,
                method: "GET",
                target,
                authority: None,
                fields: fields.to_vec(),
            };
            let admitted = candidate.admit(None).unwrap();
            Upgrade::of(&candidate, &admitted).is_some()
        };
        assert!(is_upgrade(CARRIER_PATH, &whole));
        assert!(!is_upgrade("/v1/models", &whole));
        for missing in 1..whole.len() {
            let mut fields = whole.clone();
            fields.remove(missing);
            assert!(
                !is_upgrade(CARRIER_PATH, &fields),
                "without {:?}",
                whole[missing].0
            );
        }
        let twice = [whole.as_slice(), &[key]].concat();
        assert!(!is_upgrade(CARRIER_PATH, &twice));
    }
}
