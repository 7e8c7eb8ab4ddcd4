//! Connections that a load balancer hands on, and those that only claim so.

use std::time::{Duration, Instant};

use config::settings::proxy::Cidr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::harness::{Edge, PATIENCE, edge, edge_with};
use crate::front::proxy_protocol::tests::v2;

fn behind_load_balancer() -> Edge {
    edge_with(|settings| {
        let address = [127, 0, 0, 0].into();
        settings.server.proxy_protocol = vec![Cidr { address, prefix: 8 }];
        settings.server.head_timeout = Duration::from_secs(1);
        settings.server.connections_per_ip_max = 2;
    })
}

async fn address_behind(edge: &Edge, header: &[u8], fields: &str) -> String {
    let mut socket = edge.socket_after(header).await;
    let ask =
        format!("GET /ip HTTP/1.1\r\nHost: llm.example.org\r\n{fields}Connection: close\r\n\r\n");
    socket.send(ask.as_bytes()).await;
    let answer = socket.read_to_close().await;
    answer.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_client_is_whom_the_load_balancer_names() {
    let edge = behind_load_balancer();
    for client in ["203.0.113.7:4711", "[2001:db8::7]:4711"] {
        let client: std::net::SocketAddr = client.parse().unwrap();
        let header = v2(client, &[]);
        assert_eq!(
            address_behind(&edge, &header, "").await,
            client.ip().to_string()
        );
        let forged = "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n";
        let found = address_behind(&edge, &header, forged).await;
        assert_eq!(
            found,
            client.ip().to_string(),
            "a header of the client counts for nothing"
        );
    }
    let v1 = b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 443\r\n";
    assert_eq!(address_behind(&edge, v1, "").await, "203.0.113.9");
}

#[tokio::test]
async fn a_load_balancer_must_say_whose_connection_it_hands_on_and_in_time() {
    let edge = behind_load_balancer();
    let malformed: [&[u8]; 3] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
        b"PROXY TCP4 nobody 127.0.0.1 1 443\r\n",
        b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for bytes in malformed {
        let mut tcp = TcpStream::connect(edge.address).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, tcp.read_to_end(&mut answer))
            .await
            .unwrap();
        // A reset is a close too.
        assert!(
            read.is_err() || answer.is_empty(),
            "{}",
            answer.escape_ascii()
        );
    }
    let begun = Instant::now();
    let mut silent = TcpStream::connect(edge.address).await.unwrap();
    silent.write_all(b"PROXY TCP4 203.0").await.unwrap();
    let _closed = timeout(PATIENCE, silent.read(&mut [0; 1]))
        .await
        .expect("cut at the deadline");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_stranger_cannot_send_a_proxy_header() {
    let edge = edge();
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    let header = v2("203.0.113.7:4711".parse().unwrap(), &[]);
    tcp.write_all(&header).await.unwrap();
    let mut answer = Vec::new();
    let _reset_or_end = timeout(PATIENCE, tcp.read_to_end(&mut answer))
        .await
        .unwrap();
    assert!(!answer.starts_with(b"\x16"), "no handshake follows");
}

#[tokio::test]
async fn connections_behind_a_load_balancer_are_counted_by_client() {
    let edge = behind_load_balancer();
    let of = |last: u8| v2(([203, 0, 113, last], 4711).into(), &[]);
    let (first, second) = (
        edge.socket_after(&of(1)).await,
        edge.socket_after(&of(1)).await,
    );
    let mut third = TcpStream::connect(edge.address).await.unwrap();
    third.write_all(&of(1)).await.unwrap();
    let read = timeout(PATIENCE, third.read(&mut [0; 1]))
        .await
        .expect("two of one client");
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    drop(edge.socket_after(&of(2)).await);
    drop((first, second));
}
