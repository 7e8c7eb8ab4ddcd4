//! What happens to a connection after its handshake: HTTP/1 or HTTP/2, the gate, the guard, the handler. Holds no policy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use config::ids::RequestId;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::apps::ServerApp;
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::{ALPN, Stream};
use pingora::server::ShutdownWatch;
use policy::refusal::Refusal;

use super::Shared;
use super::client_address::{Subnet, client_address};
use super::connections::Entrance;
use super::decoration::Decoration;
use super::gate::{Admitted, Candidate, HeadRefusal};
use super::lifecycle::Counted;
use super::session::SessionSink;
use crate::admin::routes;
use crate::gateway::Call;
use crate::gateway::reply::{self, ReplyContext};

mod carrier;
mod http1;
mod http2;

/// When a client with too many open requests may try again.
const SEAT_RETRY: Duration = Duration::from_secs(1);

/// The application behind Pingora's listeners.
pub(super) struct Edge {
    pub(super) shared: Arc<Shared>,
}

/// What all requests of one connection have in common.
#[derive(Clone)]
struct Connection {
    shared: Arc<Shared>,
    peer: IpAddr,
    /// Through a loopback listener, which answers to its own names only.
    loopback: bool,
}

/// A request between gate and handler.
struct Arrival {
    admitted: Admitted,
    ip: IpAddr,
    request_id: RequestId,
    received_at: Instant,
    /// Values of `Access-Control-Request-Headers`.
    preflight: Vec<Vec<u8>>,
}

#[async_trait]
impl ServerApp for Edge {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        _shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let digest = stream.get_socket_digest()?;
        let inet = |address: Option<&pingora::protocols::l4::socket::SocketAddr>| {
            address.and_then(|address| address.as_inet().copied())
        };
        let peer: SocketAddr = inet(digest.peer_addr())?;
        let local = inet(digest.local_addr());
        // What the door learned before TLS: behind a load balancer the socket's peer is not the client.
        let entrance = stream.get_proxy_digest();
        let client = entrance
            .as_ref()
            .and_then(|digest| digest.user_data.as_ref()?.downcast_ref::<Entrance>())
            .map_or(peer.ip(), |entrance| entrance.client);
        let connection = Connection {
            shared: Arc::clone(&self.shared),
            peer: client,
            loopback: local.is_some_and(|local| self.shared.loopback_listeners.contains(&local)),
        };
        let _tally = self.shared.census.count(Counted::Connection);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            http2::serve(connection, stream).await;
        } else {
            http1::serve(connection, stream).await;
        }
        None
    }
}

impl Connection {
    /// Passes a head through the gate. The decoration is there either way, so that a refusal carries it too.
    fn admit(&self, candidate: &Candidate<'_>) -> (Decoration, Result<Arrival, HeadRefusal>) {
        let received_at = Instant::now();
        let hosts = self.loopback.then_some(self.shared.hosts.as_slice());
        let admitted = candidate.admit(hosts);
        let request_id = match &admitted {
            Ok(Admitted {
                request_id: Some(id),
                ..
            }) => RequestId::new(id.as_str()),
            Ok(_) | Err(_) => new_request_id(),
        };
        let fields = || candidate.fields.iter().copied();
        let origin = fields().find(|field| field.0.eq_ignore_ascii_case("origin"));
        let decoration = Decoration {
            house: Arc::clone(&self.shared.house),
            request_id: request_id.clone(),
            origin: origin.and_then(|field| HeaderValue::from_bytes(field.1).ok()),
            received_at,
            allow: administered(candidate.target),
        };
        let arrival = admitted.map(|admitted| Arrival {
            ip: client_address(self.peer, &self.shared.trusted_proxies, &candidate.fields),
            request_id,
            received_at,
            preflight: fields()
                .filter(|field| {
                    field
                        .0
                        .eq_ignore_ascii_case("access-control-request-headers")
                })
                .map(|field| field.1.to_vec())
                .collect(),
            admitted,
        });
        (decoration, arrival)
    }

    /// Answers an admitted request.
    async fn respond(&self, arrival: Arrival, sink: &mut SessionSink) {
        let shared = &self.shared;
        let _tally = shared.census.count(Counted::Request);
        if arrival.admitted.method == Method::OPTIONS {
            let wanted: Vec<&[u8]> = arrival.preflight.iter().map(Vec::as_slice).collect();
            let origin = arrival.admitted.headers.get(http::header::ORIGIN);
            let headers = shared.house.cors.preflight(origin, &wanted);
            let _left = sink.no_content(headers).await;
            return;
        }
        if let Err(retry_after) = shared.guard.admit(Subnet::of(arrival.ip)) {
            let refusal = Refusal::Guarded { retry_after };
            shared.handler.turned_away(arrival.ip, refusal.label());
            refuse(&refusal, arrival.request_id, sink).await;
            return;
        }
        let Some(_seat) = shared.requests.enter(arrival.ip) else {
            let refusal = Refusal::QueueFull {
                retry_after: SEAT_RETRY,
            };
            shared.handler.turned_away(arrival.ip, refusal.label());
            refuse(&refusal, arrival.request_id, sink).await;
            return;
        };
        let request_id = arrival.request_id.clone();
        shared.handler.handle(arrival.into_call(), sink).await;
        if sink.is_unanswered() {
            refuse(&Refusal::Internal, request_id, sink).await;
        }
    }

    fn refused(
        &self,
        refusal: HeadRefusal,
        request_id: &RequestId,
    ) -> (StatusCode, HeaderMap, Bytes) {
        self.shared.handler.turned_away(self.peer, refusal.label());
        reply::refuse_head(refusal, request_id)
    }
}

impl Arrival {
    fn into_call(self) -> Call {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Call {
            request_id: self.request_id,
            ip: self.ip,
            method: self.admitted.method,
            path: self.admitted.path,
            query: self.admitted.query,
            headers: self.admitted.headers,
            received_at: self.received_at,
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn administered(target: &str) -> Option<HeaderValue> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    HeaderValue::from_str(&routes::allow(path)?).ok()
}

async fn refuse(refusal: &Refusal, request_id: RequestId, sink: &mut SessionSink) {
    let context = ReplyContext {
        request_id,
        limit_headers: HeaderMap::new(),
    };
    let _left = sink.answer(reply::refuse(refusal, &context)).await;
}

/// `req_` and 32 hex digits.
pub(super) fn new_request_id() -> RequestId {
    RequestId::new(format!("req_{:032x}", rand::random::<u128>()))
}

/// A whole HTTP/1 answer for connections that have no session; the connection closes after it.
pub(super) fn write_out(status: StatusCode, mut headers: HeaderMap, body: &Bytes) -> BytesMut {
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(DATE, get_cached_date());
    let mut out = BytesMut::with_capacity(1024 + body.len());
    let line = format!(
        "HTTP/1.1 {} {}\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or("Refused")
    );
    out.extend_from_slice(line.as_bytes());
    for (name, value) in &headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_session_is_whole_http() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_static("b"));
        let out = write_out(StatusCode::BAD_REQUEST, headers, &Bytes::from_static(b"{}"));
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 400 Bad Request\r\n") && text.ends_with("\r\n\r\n{}"),
            "{text}"
        );
        assert!(text.contains("content-length: 2\r\n") && text.contains("connection: close\r\n"));
    }
}
