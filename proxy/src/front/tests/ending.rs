//! How the edge ends: running streams finish, idle connections do not hold it up, and now means now.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};

use super::harness::{PATIENCE, edge, edge_with};
use crate::front::Answer;
use crate::front::lifecycle::{Drained, Phase};
use crate::front::sink::ClientSink;
use crate::gateway::Call;
use crate::nodes::peers::Ride;

#[tokio::test]
async fn a_running_stream_finishes_and_ends_the_drain_at_once() {
    for http2 in [false, true] {
        let edge = edge_with(|settings| settings.server.grace = Duration::from_mins(1));
        let mut idle = edge.socket().await;
        idle.send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        idle.read_until("hello").await;
        let reply = edge
            .client(http2)
            .get(edge.url("/short"))
            .send()
            .await
            .unwrap();
        let mut pieces = reply.bytes_stream();
        pieces.next().await.unwrap().unwrap();
        let begun = Instant::now();
        edge.phase.send_replace(Phase::Draining);
        assert_eq!(
            idle.read_to_close().await,
            "",
            "the idle connection is closed"
        );
        let rest: Vec<_> = pieces.map(Result::unwrap).collect().await;
        assert!(rest.concat().ends_with(b"data: 9\n\n"), "http2: {http2}");
        let drained = tokio::time::timeout(PATIENCE, edge.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(drained, Drained { cut: 0 });
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{:?}, http2: {http2}",
            begun.elapsed()
        );
        assert!(
            tokio::net::TcpStream::connect(edge.address).await.is_err(),
            "nobody listens any more"
        );
    }
}

#[tokio::test]
async fn a_stream_longer_than_the_grace_is_cut() {
    let edge = edge_with(|settings| settings.server.grace = Duration::from_millis(300));
    let reply = edge
        .client(true)
        .get(edge.url("/forever"))
        .send()
        .await
        .unwrap();
    edge.phase.send_replace(Phase::Draining);
    let drained = tokio::time::timeout(PATIENCE, edge.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(drained, Drained { cut: 1 });
    drop(reply);
}

#[tokio::test]
async fn stopping_does_not_wait() {
    let edge = edge_with(|settings| settings.server.grace = Duration::from_mins(1));
    let reply = edge
        .client(false)
        .get(edge.url("/forever"))
        .send()
        .await
        .unwrap();
    edge.phase.send_replace(Phase::Draining);
    edge.phase.send_replace(Phase::Stopping);
    let drained = tokio::time::timeout(Duration::from_secs(2), edge.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(drained, Drained { cut: 1 });
    drop(reply);
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let first = edge();
    let mut settings = super::harness::settings();
    settings.server.listen = vec![first.address];
    settings.server.state_dir = first.folder.path().to_owned();
    let (_phase, watching) = tokio::sync::watch::channel(Phase::Serving);
    let second = crate::front::Front::new(settings, std::sync::Arc::new(Nobody), watching);
    let message = second.err().expect("the port is taken").to_string();
    assert!(message.contains(&first.address.to_string()), "{message}");
}

struct Nobody;

#[async_trait::async_trait]
impl crate::front::Handler for Nobody {
    async fn handle(&self, _: Call, _: &mut dyn ClientSink) {}
    async fn carry(&self, _call: Call) -> Result<Ride, Answer> {
        Err((StatusCode::NOT_FOUND, HeaderMap::new(), Bytes::new()))
    }

    fn turned_away(&self, _: std::net::IpAddr, _: &'static str) {}
}
