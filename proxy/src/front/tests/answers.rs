//! What clients get: both protocols, the headers on every answer, bodies, deadlines, limits.

use std::time::{Duration, Instant};

use bytes::Bytes;
use config::settings::proxy::Cidr;
use futures_util::StreamExt;
use http::StatusCode;

use super::harness::{Edge, Seen, edge, edge_with};
use crate::front::sink::BodyError;

#[tokio::test]
async fn both_protocols_answer_with_the_headers_every_answer_carries() {
    let edge = edge();
    for http2 in [false, true] {
        let client = edge.client(http2);
        for path in ["/hello", "/refuse", "/nothing"] {
            let ask = client
                .get(edge.url(path))
                .header("origin", "https://app.example.org");
            let reply = ask
                .header("x-request-id", "my-own-id-1")
                .send()
                .await
                .unwrap();
            let headers = reply.headers();
            assert_eq!(headers["x-request-id"], "my-own-id-1", "{path}");
            assert_eq!(headers["openai-version"], "2020-10-01");
            assert_eq!(
                headers["access-control-allow-origin"], "https://app.example.org",
                "{path}"
            );
            assert_eq!(headers["x-content-type-options"], "nosniff");
            assert_eq!(headers["referrer-policy"], "no-referrer");
            assert!(
                headers["content-security-policy"]
                    .to_str()
                    .unwrap()
                    .contains("frame-ancestors 'none'")
            );
            assert!(headers.contains_key("openai-processing-ms") && headers.contains_key("date"));
            assert!(
                !headers.contains_key("strict-transport-security"),
                "not with our own certificate"
            );
            let protocol = if http2 {
                http::Version::HTTP_2
            } else {
                http::Version::HTTP_11
            };
            assert_eq!(reply.version(), protocol);
        }
        let nothing = client.get(edge.url("/nothing")).send().await.unwrap();
        assert_eq!(
            nothing.status(),
            StatusCode::INTERNAL_SERVER_ERROR,
            "a handler that says nothing"
        );
        assert!(
            nothing.headers()["x-request-id"]
                .to_str()
                .unwrap()
                .starts_with("req_")
        );
    }
}

#[tokio::test]
async fn bodies_of_any_size_and_framing_arrive_whole() {
    let edge = edge();
    for http2 in [false, true] {
        let client = edge.client(http2);
        for size in [0, 1, 65_537, 5_000_000] {
            let body = Bytes::from(vec![7; size]);
            let sent = client
                .post(edge.url("/echo"))
                .body(body.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(sent.bytes().await.unwrap(), body, "length, {size}, {http2}");
            let pieces = futures_util::stream::iter([
                Ok::<_, std::io::Error>(body.clone()),
                Ok(body.clone()),
            ]);
            let chunked = client
                .post(edge.url("/echo"))
                .body(reqwest::Body::wrap_stream(pieces));
            assert_eq!(
                chunked.send().await.unwrap().bytes().await.unwrap().len(),
                2 * size,
                "chunked, {http2}"
            );
        }
    }
}

#[tokio::test]
async fn a_stream_arrives_piece_by_piece_and_ends_properly() {
    let edge = edge();
    for http2 in [false, true] {
        let begun = Instant::now();
        let reply = edge
            .client(http2)
            .get(edge.url("/short"))
            .send()
            .await
            .unwrap();
        let mut pieces = reply.bytes_stream();
        let first = pieces.next().await.unwrap().unwrap();
        assert!(first.starts_with(b"data: 0\n\n"));
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "the first event does not wait for the last"
        );
        let rest: Vec<_> = pieces.map(Result::unwrap).collect().await;
        assert!(rest.concat().ends_with(b"data: 9\n\n"), "http2: {http2}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_complete() {
    let edge = edge();
    for http2 in [false, true] {
        let whole = async {
            edge.client(http2)
                .get(edge.url("/cut"))
                .send()
                .await?
                .bytes()
                .await
        };
        assert!(whole.await.is_err(), "http2: {http2}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_but_not_after_a_chunked_body() {
    let edge = edge();
    let mut socket = edge.socket().await;
    for _ in 0..3 {
        socket
            .send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        assert!(
            socket
                .read_until("hello")
                .await
                .to_lowercase()
                .contains("connection: keep-alive")
        );
    }
    socket
        .send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        .await;
    let last = socket.read_to_close().await;
    assert!(
        last.starts_with("HTTP/1.1 200") && last.ends_with("ok"),
        "{last}"
    );
}

#[tokio::test]
async fn a_head_request_gets_no_body_and_an_old_client_no_chunks() {
    let edge = edge();
    let mut socket = edge.socket().await;
    socket
        .send(b"HEAD /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let head = socket.read_until("\r\n\r\n").await;
    assert!(
        head.contains("content-length: 5") || head.contains("Content-Length: 5"),
        "{head}"
    );
    socket
        .send(b"GET /short HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .await;
    let old = socket.read_to_close().await.to_lowercase();
    assert!(
        !old.contains("transfer-encoding") && old.contains("content-length: 90"),
        "{old}"
    );
    assert!(old.starts_with("http/1.1 200") && old.ends_with("data: 9\n\n"));
}

#[tokio::test]
async fn expect_continue_is_honoured_and_an_early_refusal_is_readable() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    socket
        .send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .await;
    socket.read_until("100 Continue\r\n\r\n").await;
    socket.send(b"ok").await;
    assert!(socket.read_until("ok").await.starts_with("HTTP/1.1 200"));
    edge.until(Seen::Body(Ok(2))).await;

    let mut socket = edge.socket().await;
    socket
        .send(b"POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        .await;
    socket.try_send(&vec![b'x'; 50_000]).await;
    let answer = socket.read_to_close().await;
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_preflight_needs_nothing_and_strangers_get_no_permission() {
    let mut edge = edge_with(|settings| settings.guard_burst = 1);
    let client = edge.client(true);
    for (origin, allowed) in [
        ("https://app.example.org", true),
        ("https://evil.example", false),
    ] {
        let ask = client.request(http::Method::OPTIONS, edge.url("/v1/chat/completions"));
        let ask = ask
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        let reply = ask
            .header(
                "access-control-request-headers",
                "authorization,x-stainless-os",
            )
            .send()
            .await
            .unwrap();
        assert_eq!(reply.status(), StatusCode::NO_CONTENT);
        let headers = reply.headers();
        assert_eq!(headers.contains_key("access-control-allow-origin"), allowed);
        assert_eq!(
            headers.contains_key("access-control-allow-methods"),
            allowed
        );
        assert!(headers.get_all("vary").iter().any(|vary| vary == "Origin"));
    }
    assert!(
        edge.seen.try_recv().is_err(),
        "the handler is not asked, the guard does not count"
    );
}

#[tokio::test]
async fn a_page_can_read_even_the_refusal_of_a_head_that_was_not_understood() {
    let edge = edge();
    let origin = "Origin: https://app.example.org";
    for odd in [
        format!("X-Large: {}", "a".repeat(40_000)),
        "No colon".into(),
    ] {
        let mut socket = edge.socket().await;
        let head = format!("GET /hello HTTP/1.1\r\nHost: localhost\r\n{origin}\r\n{odd}\r\n\r\n");
        socket.try_send(head.as_bytes()).await;
        let answer = socket.read_to_close().await;
        assert!(
            answer.starts_with("HTTP/1.1 4")
                && answer.contains("access-control-allow-origin: https://app.example.org\r\n"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn one_address_cannot_ask_without_end() {
    let mut edge = edge_with(|settings| {
        settings.guard_per_minute = 1;
        settings.guard_burst = 2;
    });
    let client = edge.client(true);
    let ask = async || client.get(edge.url("/hello")).send().await.unwrap();
    assert_eq!(ask().await.status(), StatusCode::OK);
    assert_eq!(ask().await.status(), StatusCode::OK);
    let refused = ask().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(
        refused.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >= 1
    );
    edge.until(Seen::TurnedAway("guarded")).await;
}

async fn address_seen(edge: &Edge) -> String {
    let ask = edge
        .client(false)
        .get(edge.url("/ip"))
        .header("x-forwarded-for", "203.0.113.7");
    ask.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn forwarded_addresses_count_only_from_a_trusted_proxy() {
    assert_eq!(address_seen(&edge()).await, "127.0.0.1");
    let trusting = edge_with(|settings| {
        let address = [127, 0, 0, 0].into();
        settings.server.trusted_proxies = vec![Cidr { address, prefix: 8 }];
    });
    assert_eq!(address_seen(&trusting).await, "203.0.113.7");
}

#[tokio::test]
async fn the_handler_sees_allow_listed_headers_only() {
    let edge = edge();
    for http2 in [false, true] {
        let ask = edge
            .client(http2)
            .get(edge.url("/headers"))
            .header("x-user-id", "root")
            .header("cookie", "a=b");
        let names = ask
            .bearer_auth("t")
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        assert!(
            names.contains("authorization")
                && !names.contains("user-id")
                && !names.contains("cookie"),
            "{names}"
        );
    }
}

#[tokio::test]
async fn slow_heads_and_silent_connections_are_cut_at_the_deadline() {
    let mut edge = edge_with(|settings| settings.server.head_timeout = Duration::from_secs(1));
    let mut slow = edge.socket().await;
    let begun = Instant::now();
    for byte in b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX-A: "
        .iter()
        .cycle()
    {
        if begun.elapsed() > Duration::from_secs(5) || !slow.try_send(&[*byte]).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = slow.read_to_close().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "a byte now and then does not keep a head open"
    );
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
    edge.until(Seen::TurnedAway("head_too_slow")).await;

    let mut silent = edge.socket().await;
    assert_eq!(
        silent.read_to_close().await,
        "",
        "a silent connection just closes"
    );
}

#[tokio::test]
async fn idle_connections_are_closed_after_the_keepalive() {
    let edge = edge_with(|settings| settings.server.keepalive_timeout = Duration::from_secs(1));
    let mut socket = edge.socket().await;
    socket
        .send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    socket.read_until("hello").await;
    assert_eq!(socket.read_to_close().await, "");
}

#[tokio::test]
async fn a_slow_body_is_cut_at_the_deadline() {
    let mut edge = edge_with(|settings| settings.server.body_timeout = Duration::from_secs(1));
    let mut socket = edge.socket().await;
    socket
        .send(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        .await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) && socket.try_send(b"x").await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    edge.until(Seen::Body(Err(BodyError::TooSlow))).await;
    let answer = socket.read_to_close().await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn one_address_has_so_many_connections_and_gets_them_back() {
    let edge = edge_with(|settings| settings.server.connections_per_ip_max = 2);
    let first = edge.socket().await;
    let _second = edge.socket().await;
    let refused = async || {
        let tcp = tokio::net::TcpStream::connect(edge.address).await.unwrap();
        let mut byte = [0];
        tcp.readable().await.unwrap();
        tcp.try_read(&mut byte)
    };
    let third = tokio::time::timeout(super::harness::PATIENCE, refused())
        .await
        .unwrap();
    assert!(
        matches!(third, Ok(0) | Err(_)),
        "closed before any handshake"
    );
    drop(first);
    let again = async {
        while edge
            .client(false)
            .get(edge.url("/hello"))
            .send()
            .await
            .is_err()
        {}
    };
    tokio::time::timeout(super::harness::PATIENCE, again)
        .await
        .expect("the seat of a closed connection comes back");
}

#[tokio::test]
async fn one_address_has_so_many_requests_in_progress_however_few_its_connections() {
    let mut edge = edge_with(|settings| settings.server.connections_per_ip_max = 1);
    let client = edge.client(true);
    let ask = |path: &str| client.get(edge.url(path)).send();
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(ask("/forever").await.unwrap());
    }
    let refused = ask("/hello").await.unwrap();
    assert_eq!(refused.status(), 503, "four for its one connection");
    assert!(refused.headers().contains_key("retry-after"));
    drop(open);
    edge.until(Seen::Gone).await;
    let again = async {
        while client
            .get(edge.url("/hello"))
            .send()
            .await
            .unwrap()
            .status()
            != 200
        {}
    };
    tokio::time::timeout(super::harness::PATIENCE, again)
        .await
        .expect("the seat of an ended request comes back");
}

#[tokio::test]
async fn a_new_certificate_is_served_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let paths = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let write = || {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&paths.0, made.cert.pem()).unwrap();
        std::fs::write(&paths.1, made.signing_key.serialize_pem()).unwrap();
        reqwest::Certificate::from_der(made.cert.der()).unwrap()
    };
    let ask = async |edge: &Edge, certificate: reqwest::Certificate| {
        let client = reqwest::Client::builder()
            .tls_certs_only([certificate])
            .build()
            .unwrap();
        client.get(edge.url("/hello")).send().await
    };
    let old = write();
    let edge = edge_with(|settings| {
        let (cert_file, key_file) = paths.clone();
        settings.tls = config::settings::proxy::Tls::Files {
            cert_file,
            key_file,
        };
    });
    let reply = ask(&edge, old.clone()).await.unwrap();
    assert!(reply.headers().contains_key("strict-transport-security"));
    let new = write();
    edge.certificates.reload().unwrap();
    assert!(ask(&edge, new).await.is_ok() && ask(&edge, old).await.is_err());
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_one_readable_answer() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let edge = edge();
    let mut tcp = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    tcp.write_all(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(super::harness::PATIENCE, tcp.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("plain_http"),
        "{answer}"
    );
}

/// An answer larger than a client takes within one deadline is not cut as long as the client goes on taking.
#[tokio::test]
async fn a_slow_reader_that_goes_on_reading_gets_everything() {
    let edge = edge_with(|settings| settings.server.write_timeout = Duration::from_secs(1));
    let body = Bytes::from(vec![b'z'; 12 * 1024 * 1024]);
    for http2 in [false, true] {
        let reply = edge
            .client(http2)
            .post(edge.url("/echo"))
            .body(body.clone())
            .send()
            .await
            .unwrap();
        let mut pieces = reply.bytes_stream();
        let (mut taken, begun) = (0, Instant::now());
        while let Some(piece) = pieces.next().await {
            taken += piece.unwrap().len();
            if begun.elapsed() < Duration::from_secs(2) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(taken, body.len(), "http2: {http2}");
    }
}

/// The client's connection preface and an empty SETTINGS frame (RFC 9113 section 3.4).
const HTTP2_OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn http2_connections_that_never_open_or_stay_idle_are_closed() {
    let edge = edge_with(|settings| {
        settings.server.head_timeout = Duration::from_secs(1);
        settings.server.keepalive_timeout = Duration::from_secs(1);
    });
    let mut silent = edge.socket_for("h2").await;
    silent.read_to_close().await;
    let mut idle = edge.socket_for("h2").await;
    idle.send(HTTP2_OPENING).await;
    let begun = Instant::now();
    idle.read_to_close().await;
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "an open connection may be idle for a while"
    );
}
