//! What bad input gets: the right status, in the OpenAI shape, at once; never a 500, a hang or a second answer.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tests::client::Client;
use tests::node::Node;
use tests::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn post(client: &Client, body: impl Into<Vec<u8>>) -> (u16, String, String) {
    let reply = client
        .post_raw("/v1/chat/completions", "application/json", body.into())
        .await;
    let error = reply.json()["error"].clone();
    for field in ["message", "type", "param", "code"] {
        assert!(
            error.get(field).is_some(),
            "`error.{field}` is missing: {}",
            reply.body
        );
    }
    (
        reply.status,
        reply.code(),
        error["param"].as_str().unwrap_or_default().to_owned(),
    )
}

fn chat(fields: &str) -> String {
    format!(
        "{{\"model\":\"fast\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]{fields}}}"
    )
}

#[expect(clippy::too_many_lines, reason = "one table")]
#[tokio::test]
async fn malformed_requests_are_refused_with_the_place() {
    let proxy = Proxy::start().await;
    let _home = Node::named("den").tier("fast").join(&proxy);
    let friend = proxy.friend();
    proxy.serves(&friend, &["fast"]).await;

    let cases: Vec<(&str, Vec<u8>, u16, &str, &str)> = vec![
        ("not JSON", b"{".to_vec(), 400, "invalid_json", ""),
        ("empty", Vec::new(), 400, "invalid_json", ""),
        (
            "invalid UTF-8",
            b"{\"model\":\"\xff\"}".to_vec(),
            400,
            "invalid_json",
            "",
        ),
        ("a list", b"[]".to_vec(), 400, "*", ""),
        (
            "deep nesting",
            [b"[".repeat(200_000), b"]".repeat(200_000)].concat(),
            400,
            "*",
            "",
        ),
        (
            "no messages",
            br#"{"model":"fast"}"#.to_vec(),
            400,
            "*",
            "messages",
        ),
        (
            "empty messages",
            br#"{"model":"fast","messages":[]}"#.to_vec(),
            400,
            "invalid_value",
            "messages",
        ),
        (
            "messages as text",
            br#"{"model":"fast","messages":"hi"}"#.to_vec(),
            400,
            "invalid_value",
            "messages",
        ),
        (
            "an unknown role",
            br#"{"model":"fast","messages":[{"role":"king","content":"x"}]}"#.to_vec(),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (
            "a negative maximum",
            chat(",\"max_tokens\":-1").into(),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            "a huge maximum",
            chat(",\"max_tokens\":1e30").into(),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            "a hot temperature",
            chat(",\"temperature\":7").into(),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            "a temperature as text",
            chat(",\"temperature\":\"warm\"").into(),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            "too many answers",
            chat(",\"n\":100000").into(),
            400,
            "invalid_value",
            "n",
        ),
        (
            "an unknown tier",
            chat(",\"tier\":\"giant\"").into(),
            400,
            "invalid_value",
            "tier",
        ),
        (
            "audio output",
            chat(",\"audio\":{}").into(),
            400,
            "unsupported_parameter",
            "audio",
        ),
        (
            "an unknown model",
            br#"{"model":"gpt-9","messages":[{"role":"user","content":"x"}]}"#.to_vec(),
            404,
            "model_not_found",
            "model",
        ),
        (
            "a prompt beyond the context",
            chat("").replace("Hello", &"word ".repeat(6000)).into(),
            400,
            "context_length_exceeded",
            "*",
        ),
        (
            "a body beyond the limit",
            chat("").replace("Hello", &"x".repeat(5 << 20)).into(),
            413,
            "request_too_large",
            "*",
        ),
    ];
    for (what, body, status, code, param) in cases {
        let got = post(&friend, body).await;
        assert_eq!(got.0, status, "{what}: {got:?}");
        assert!(code == "*" || got.1 == code, "{what}: {got:?}");
        assert!(param == "*" || got.2 == param, "{what}: {got:?}");
    }
    let reply = friend
        .post_raw("/v1/chat/completions", "text/plain", b"hi".to_vec())
        .await;
    assert_eq!(reply.status, 415);
    let reply = friend.get("/v1/chat/completions").await;
    assert_eq!(reply.status, 405);
    assert!(
        reply.header("allow").contains("POST"),
        "{:?}",
        reply.headers
    );
    assert_eq!(friend.get("/v1/chatcompletions").await.status, 404);
    assert_eq!(
        friend.ask("fast", "Which tier are you?").await.text(),
        "I am the fast tier.",
        "and the house still stands"
    );
}

async fn raw(proxy: &Proxy) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate =
        CertificateDer::from_pem_slice(proxy.certificate().as_bytes()).expect("a PEM certificate");
    roots.add(certificate).expect("a certificate");
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(proxy.address())
        .await
        .expect("the proxy listens");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .expect("TLS works")
}

/// Everything the proxy sends until it closes or is silent for two seconds.
async fn answer(proxy: &Proxy, request: &str) -> String {
    let mut socket = raw(proxy).await;
    socket
        .write_all(request.as_bytes())
        .await
        .expect("the proxy reads");
    let mut heard = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(length @ 1..)) =
        tokio::time::timeout(Duration::from_secs(2), socket.read(&mut piece)).await
    {
        heard.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&heard).into_owned()
}

#[tokio::test]
async fn desync_attempts_get_one_refusal_and_a_closed_door() {
    let proxy = Proxy::start().await;
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let attempts = [
        (
            "CL.TE",
            format!(
                "{head}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "TE.CL",
            format!(
                "{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{smuggled}"
            ),
        ),
        (
            "two lengths",
            format!("{head}Content-Length: 0\r\nContent-Length: 44\r\n\r\n{smuggled}"),
        ),
        (
            "odd encoding",
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        ),
        (
            "bare LF",
            "GET /healthz HTTP/1.1\nHost: localhost\n\nGET /healthz HTTP/1.1\nHost: localhost\n\n"
                .to_owned(),
        ),
        (
            "space before colon",
            format!("GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n{smuggled}"),
        ),
        (
            "folded header",
            format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c\r\n\r\n{smuggled}"),
        ),
        (
            "no host",
            format!("GET /healthz HTTP/1.1\r\n\r\n{smuggled}"),
        ),
        (
            "two hosts",
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n{smuggled}"),
        ),
    ];
    for (what, request) in attempts {
        let heard = answer(&proxy, &request).await;
        assert!(
            heard.matches("HTTP/1.1 ").count() <= 1,
            "{what} got two answers:\n{heard}"
        );
        assert!(
            !heard.starts_with("HTTP/1.1 200"),
            "{what} was served:\n{heard}"
        );
    }
    assert_eq!(proxy.stranger().get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_client_cannot_say_who_it_is() {
    let proxy = Proxy::generous()
        .limit("text_per_minute_per_ip = 3")
        .limit("health_per_minute_per_ip = 3")
        .start()
        .await;
    let (_, key) = proxy.key("guest");
    let mut refused = 0;
    for turn in 0..8 {
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nX-Forwarded-For: 10.0.0.{turn}\r\n\
             Forwarded: for=10.1.0.{turn}\r\nX-Real-IP: 10.2.0.{turn}\r\nConnection: close\r\n\r\n"
        );
        refused += usize::from(answer(&proxy, &request).await.starts_with("HTTP/1.1 429"));
    }
    assert!(
        refused >= 4,
        "a new address in a header is not a new address: {refused} of 8 refused"
    );
}

#[tokio::test]
async fn a_head_that_drips_is_cut() {
    let proxy = Proxy::generous()
        .server("head_timeout_secs = 1")
        .start()
        .await;
    let mut socket = raw(&proxy).await;
    let started = std::time::Instant::now();
    let cut = async {
        loop {
            if socket.write_all(b"X").await.is_err() || socket.flush().await.is_err() {
                return;
            }
            let mut byte = [0];
            let heard =
                tokio::time::timeout(Duration::from_millis(100), socket.read(&mut byte)).await;
            if matches!(heard, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(6), cut)
        .await
        .expect("one byte now and then does not hold a connection");
    assert!(started.elapsed() >= Duration::from_millis(800));
    assert_eq!(proxy.stranger().get("/healthz").await.status, 200);
}
