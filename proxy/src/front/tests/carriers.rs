//! Connections that become carriers of the tunnel's datagrams, from outside.

use super::harness::{Seen, edge};

const HEAD: &str = "GET /v1/nodes/carrier HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// An empty ping of a client: final, masked with zeros.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];

#[tokio::test]
async fn a_granted_upgrade_speaks_websocket_from_then_on() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    let head = format!("{HEAD}Authorization: please\r\n\r\n");
    socket.send(head.as_bytes()).await;
    let answer = socket.read_until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    assert_eq!(edge.next().await, Seen::Called("/v1/nodes/carrier".into()));
    socket.send(&PING).await;
    let pong = socket.read_exactly(2).await;
    assert_eq!(pong, [0x8a, 0]);
}

#[tokio::test]
async fn whoever_may_not_is_answered_and_hung_up_on() {
    let edge = edge();
    let mut socket = edge.socket().await;
    socket.send(format!("{HEAD}\r\n").as_bytes()).await;
    let answer = socket.read_to_close().await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("x-request-id: "), "{answer}");
}

#[tokio::test]
async fn what_comes_before_the_upgrade_is_granted_is_refused() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    let head = format!("{HEAD}Authorization: please\r\n\r\n");
    socket.send(&[head.as_bytes(), &PING].concat()).await;
    let answer = socket.read_to_close().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(edge.next().await, Seen::TurnedAway("malformed"));
}
