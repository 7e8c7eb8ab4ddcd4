//! HTTP/2 connections: Pingora's bounded server (100 streams, 64 KiB header list), with a deadline for the opening, an idle
//! limit, and the same gate as HTTP/1.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Version};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{
    H2Accept, H2Options, HttpSession, default_h2_options, handshake,
};
use pingora::protocols::{Digest, Stream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::super::gate::Candidate;
use super::super::lifecycle::{Phase, reached};
use super::super::session::{SessionSink, Shape};
use super::Connection;

/// Uploads run at one window a round trip: 64 KiB, the default, is 13 Mbit/s at 40 ms, this is 50.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What one connection can make us hold, whatever its streams: whoever sends bodies and takes no answers fills it without any
/// credential, and one address may have hundreds of connections.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// Unsent bytes of one answer before its writer has to wait.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams refused during acceptance before the connection is dropped; as Pingora's own limit.
const REJECTED_MAX: usize = 32;
/// After the last stream of a closing connection: the final frames.
const FAREWELL: Duration = Duration::from_secs(1);

/// Streams side by side, until one of the two sides has had enough.
pub(super) async fn serve(connection: Connection, stream: Stream) {
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let opening = timeout(
        connection.shared.head_timeout,
        handshake(stream, Some(options())),
    );
    let Ok(Ok(mut h2)) = opening.await else {
        return;
    };
    let mut phase = connection.shared.phase.clone();
    let streams = TaskTracker::new();
    let mut rejected = 0;
    let mut closing = false;
    loop {
        let patience = if closing && streams.is_empty() {
            FAREWELL
        } else {
            connection.shared.keepalive_timeout
        };
        let accepted = tokio::select! {
            accepted = timeout(patience, HttpSession::from_h2_conn(&mut h2, Arc::clone(&digest))) => accepted,
            () = reached(&mut phase, Phase::Draining), if !closing => {
                h2.graceful_shutdown();
                closing = true;
                continue;
            }
        };
        match accepted {
            Ok(Ok(Some(H2Accept::Session(session)))) => {
                streams.spawn(exchange(connection.clone(), session));
            }
            Ok(Ok(Some(H2Accept::Rejected))) if rejected < REJECTED_MAX => rejected += 1,
            Ok(Ok(Some(H2Accept::Rejected) | None) | Err(_)) => return,
            // silence: fine while something runs, else the connection has been idle for long enough
            Err(_) if !streams.is_empty() => {}
            Err(_) if closing => return,
            Err(_) => {
                h2.graceful_shutdown();
                closing = true;
            }
        }
    }
}

fn options() -> H2Options {
    let mut options = default_h2_options();
    options
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    options
}

async fn exchange(connection: Connection, session: HttpSession) {
    let request = session.req_header();
    let target = std::str::from_utf8(request.raw_path()).unwrap_or_default();
    let candidate = Candidate {
        version: Version::HTTP_2,
        method: request.method.as_str(),
        target,
        authority: request.uri.authority().map(http::uri::Authority::as_str),
        fields: request
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect(),
    };
    let (decoration, arrival) = connection.admit(&candidate);
    let shape = Shape {
        version: Version::HTTP_2,
        head_only: request.method == Method::HEAD,
        expects_continue: false,
    };
    let request_id = decoration.request_id.clone();
    let shared = Arc::clone(&connection.shared);
    let mut session = ServerSession::H2(session);
    session.set_write_timeout(Some(shared.write_timeout));
    let mut sink = SessionSink::new(session, shared, decoration, shape);
    match arrival {
        Ok(arrival) => connection.respond(arrival, &mut sink).await,
        Err(refusal) => {
            let _left = sink.answer(connection.refused(refusal, &request_id)).await;
        }
    }
    sink.finish().await;
}
