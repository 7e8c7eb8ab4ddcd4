//! Requests that two servers could read differently. Each gets one refusal or exactly one answer, and the connection ends:
//! the request hidden inside is never served.

use super::harness::{Edge, Seen, edge};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Name, framing fields, body.
const POSTS: [(&str, &str, &str); 23] = [
    (
        "CL.TE",
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "0\r\n\r\nX",
    ),
    (
        "TE.CL",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "5c\r\nGPOST",
    ),
    (
        "TE.TE",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "0\r\n\r\n",
    ),
    (
        "TE list",
        "Transfer-Encoding: identity, chunked",
        "0\r\n\r\n",
    ),
    (
        "TE after tab",
        "Transfer-Encoding: \x0bchunked",
        "0\r\n\r\n",
    ),
    ("TE quoted", "Transfer-Encoding: \"chunked\"", "0\r\n\r\n"),
    (
        "TE underscore",
        "Transfer_Encoding: chunked\r\nContent-Length: 1",
        "x",
    ),
    (
        "two lengths",
        "Content-Length: 1\r\nContent-Length: 5",
        "hello",
    ),
    (
        "two equal lengths",
        "Content-Length: 5\r\nContent-Length: 5",
        "hello",
    ),
    ("length list", "Content-Length: 5, 5", "hello"),
    ("length sign", "Content-Length: +5", "hello"),
    ("length comma", "Content-Length: 5 ,", "hello"),
    (
        "length huge",
        "Content-Length: 18446744073709551616",
        "hello",
    ),
    ("space before colon", "Content-Length : 5", "hello"),
    ("obs-fold", "X: a\r\n b\r\nContent-Length: 5", "hello"),
    ("NUL in value", "X: a\0b\r\nContent-Length: 5", "hello"),
    (
        "compressed body",
        "Content-Encoding: gzip\r\nContent-Length: 5",
        "hello",
    ),
    ("bare LF among fields", "X: y\nContent-Length: 5", "hello"),
    ("bare CR among fields", "X: y\rContent-Length: 5", "hello"),
    ("field without colon", "Content-Length 5", "hello"),
    ("field without name", ": 5", "hello"),
    ("non-ASCII name", "C\u{f6}ntent-Length: 5", "hello"),
    (
        "unknown expectation",
        "Expect: 200-ok\r\nContent-Length: 5",
        "hello",
    ),
];

/// Name, chunked body. Refused, or answered once with what was read.
const CHUNKS: [(&str, &str); 9] = [
    ("empty chunk size", "\r\nhello\r\n0\r\n\r\n"),
    ("LF after chunk size", "5\nhello\n0\n\n"),
    ("LF in chunk extension", "5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("negative chunk size", "-5\r\nhello\r\n0\r\n\r\n"),
    ("hex prefix", "0x5\r\nhello\r\n0\r\n\r\n"),
    (
        "huge chunk size",
        "ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    ("chunk longer than said", "2\r\nhello\r\n0\r\n\r\n"),
    ("junk after chunk", "5\r\nhelloXX\r\n0\r\n\r\n"),
    ("good", "5\r\nhello\r\n0\r\n\r\n"),
];

/// Name, head.
const HEADS: [(&str, &str); 15] = [
    ("bare LF", "GET /echo HTTP/1.1\nHost: localhost\n\n"),
    (
        "folded first header",
        "GET /echo HTTP/1.1\r\n Host: localhost\r\n\r\n",
    ),
    (
        "NUL in target",
        "GET /echo\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    (
        "two blanks",
        "GET  /echo HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    ("no Host", "GET /echo HTTP/1.1\r\nX: y\r\n\r\n"),
    (
        "two Hosts",
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    ),
    (
        "foreign Host on loopback",
        "GET /echo HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ),
    ("odd Host", "GET /echo HTTP/1.1\r\nHost: local host\r\n\r\n"),
    (
        "foreign absolute-form",
        "GET https://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
    (
        "HTTP/1.0 with TE",
        "POST /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("HTTP/0.9", "GET /echo\r\n\r\n"),
    ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("TRACE", "TRACE /echo HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    (
        "CONNECT",
        "CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
    ),
    (
        "unknown method",
        "BREW /echo HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ),
];

fn post(fields: &str, body: &str) -> String {
    format!("POST /echo HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n{body}")
}

/// Sends an attempt with a request hidden behind it; the status of its one answer.
async fn status_of_only_answer(edge: &Edge, name: &str, attempt: &str) -> u16 {
    let mut socket = edge.socket().await;
    socket
        .try_send(format!("{attempt}{HIDDEN}").as_bytes())
        .await;
    let answer = socket.read_to_close().await;
    assert_eq!(status_lines(&answer), 1, "{name}: {answer:?}");
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| panic!("{name}: {answer:?}"))
}

#[tokio::test]
async fn no_attempt_gets_a_second_answer() {
    let mut edge = edge();
    let large = [
        ("too many headers", post(&"X: y\r\n".repeat(120), "")),
        (
            "large head",
            post(&format!("X: {}", "y".repeat(40_000)), ""),
        ),
    ];
    let posts = POSTS
        .iter()
        .map(|(name, fields, body)| (*name, post(fields, body)));
    let heads = HEADS.iter().map(|(name, head)| (*name, (*head).to_owned()));
    for (name, attempt) in posts.chain(heads).chain(large) {
        let status = status_of_only_answer(&edge, name, &attempt).await;
        assert!((400..=499).contains(&status), "{name}: {status}");
    }
    for (name, body) in CHUNKS {
        let attempt = post("Transfer-Encoding: chunked", body);
        let status = status_of_only_answer(&edge, name, &attempt).await;
        assert!(status == 200 || status == 400, "{name}: {status}");
    }
    let behind = "GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(
        status_of_only_answer(&edge, "behind a good request", behind).await,
        200
    );
    while let Ok(seen) = edge.seen.try_recv() {
        assert_ne!(
            seen,
            Seen::Called("/hidden".to_owned()),
            "a hidden request was served"
        );
    }
}

#[tokio::test]
async fn a_request_hidden_after_a_slow_chunked_body_is_not_served() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    let head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.send(head).await;
    edge.until(Seen::Called("/echo".to_owned())).await;
    socket.send(b"0\r\n\r\n").await;
    edge.until(Seen::Body(Ok(0))).await;
    socket.try_send(HIDDEN.as_bytes()).await;
    let answer = socket.read_to_close().await;
    assert_eq!(status_lines(&answer), 1, "{answer}");
}

#[tokio::test]
async fn well_formed_requests_pass_on_one_connection_even_after_empty_lines() {
    let mut edge = edge();
    let mut socket = edge.socket().await;
    for _ in 0..2 {
        socket
            .send(b"\r\nGET https://localhost/hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        assert!(socket.read_until("hello").await.starts_with("HTTP/1.1 200"));
        edge.until(Seen::Called("/hello".to_owned())).await;
    }
}

#[tokio::test]
async fn arriving_byte_by_byte_changes_nothing() {
    let edge = edge();
    let mut socket = edge.socket().await;
    for byte in b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nok" {
        socket.send(&[*byte]).await;
    }
    assert!(socket.read_until("ok").await.starts_with("HTTP/1.1 200"));
}

fn status_lines(answers: &str) -> usize {
    answers
        .split("HTTP/1.1 ")
        .skip(1)
        .filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        .count()
}
