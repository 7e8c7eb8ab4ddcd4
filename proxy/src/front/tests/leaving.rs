//! A client that leaves is noticed within a second, in the middle of a stream and before its first byte.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use super::harness::{Seen, edge, edge_with};

#[tokio::test]
async fn leaving_in_the_middle_of_a_stream_is_noticed() {
    let mut edge = edge();
    for http2 in [false, true] {
        let reply = edge
            .client(http2)
            .get(edge.url("/forever"))
            .send()
            .await
            .unwrap();
        let mut pieces = reply.bytes_stream();
        pieces.next().await.unwrap().unwrap();
        let begun = Instant::now();
        drop(pieces);
        edge.until(Seen::Gone).await;
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}, http2: {http2}",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn leaving_before_the_first_byte_is_noticed() {
    let mut edge = edge();
    for http2 in [false, true] {
        let (client, url) = (edge.client(http2), edge.url("/silent"));
        let asking = tokio::spawn(async move { client.post(url).body("").send().await });
        edge.until(Seen::Called("/silent".to_owned())).await;
        let begun = Instant::now();
        asking.abort();
        edge.until(Seen::Gone).await;
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}, http2: {http2}",
            begun.elapsed()
        );
    }
}

#[tokio::test]
async fn bytes_where_none_may_come_end_the_connection() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    socket
        .send(b"GET /silent HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    edge.until(Seen::Called("/silent".to_owned())).await;
    socket
        .send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    edge.until(Seen::Gone).await;
    assert_eq!(socket.read_to_close().await, "");
    assert!(
        edge.seen.try_recv().is_err(),
        "the second request is never served"
    );
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let mut edge = edge_with(|settings| settings.server.write_timeout = Duration::from_secs(1));
    let mut socket = edge.socket().await;
    socket
        .send(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    edge.until(Seen::Gone).await;

    let reply = edge
        .client(true)
        .get(edge.url("/flood"))
        .send()
        .await
        .unwrap();
    edge.until(Seen::Gone).await;
    drop(reply);
}

#[tokio::test]
async fn an_http2_connection_that_breaks_takes_its_streams_with_it() {
    let mut edge = edge();
    let mut socket = edge.socket_for("h2").await;
    // preface, SETTINGS, then HEADERS of stream 1 with END_STREAM and END_HEADERS: GET, https, /silent, localhost
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let fields = b"\x82\x87\x04\x07/silent\x01\x09localhost";
    bytes.extend([0, 0, u8::try_from(fields.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    bytes.extend(fields);
    socket.send(&bytes).await;
    edge.until(Seen::Called("/silent".to_owned())).await;
    let begun = Instant::now();
    drop(socket);
    edge.until(Seen::Gone).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}
